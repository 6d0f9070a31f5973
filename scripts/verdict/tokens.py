"""Tokens: they only rise, exclusive holds are alone, and every op was done under its own (G1, G4)."""

from collections import Counter, defaultdict

from common.grantlog import GrantLine
from common.tokens import format_token, make_token, token_epoch
from scripts.verdict.evidence import Client, Journal
from scripts.verdict.facts import CHANGES, OPS, Facts, Tick, author_of, place
from scripts.verdict.finding import Wrong, counted


def tokens(facts: Facts) -> str:
    """Tokens only rise, exclusive holds are alone, and every op was done under its own."""
    for client in facts.evidence.clients:
        for file, journal in client.journals.items():
            _never_fall(client, file, journal)
    granted = _holds(facts)
    for _, ticks in facts.logs:
        last: dict[tuple[str, str], int] = {}
        for op in ticks:
            if op.verb not in OPS:
                continue
            if op.token < last.get((op.host, op.file), 0):
                raise Wrong(op.where, f"the token {format_token(op.token)} is smaller than one before it")
            last[op.host, op.file] = op.token
            if granted is not None:
                _was_granted(granted, op.where, op.token, op.file, op.host, op.verb)
            if op.verb == "read":
                _is_newest(facts, op)
    for file, (client, journal) in facts.newest.items():
        for seq, record in enumerate(journal.records, 1):
            if granted is not None:
                where = place(client, file, seq)
                _was_granted(granted, where, record.token, file, author_of(record.id), record.verb)
    if granted is None:
        if facts.evidence.asked is not None:
            raise Wrong("lockd/grants.log", "it is missing")
        return "no grants.log here: judged from the journals and event logs alone"
    modes = Counter(grant.mode for grant in granted.values())
    return (
        f"{counted(len(granted), 'grant')}, {modes['exclusive']} exclusive and {modes['shared']} shared, "
        f"on {counted(len({grant.lock for grant in granted.values()}), 'lock')}"
    )


def _never_fall(client: Client, file: str, journal: Journal) -> None:
    last = 0
    for seq, record in enumerate(journal.records, 1):
        if record.token < last:
            what = f"the token {format_token(record.token)} comes after {format_token(last)}"
            raise Wrong(place(client, file, seq), what)
        last = record.token


def _holds(facts: Facts) -> dict[int, GrantLine] | None:
    """Follow grants.log line by line; return every grant by its token."""
    grants = facts.evidence.grants
    if grants is None:
        return None
    granted: dict[int, GrantLine] = {}
    held: defaultdict[str, dict[int, GrantLine]] = defaultdict(dict)
    highest = 0
    for entry in grants.lines:
        line, where = entry.line, f"{grants.name}:{entry.number}"
        token, holds = format_token(line.token), held[line.lock]
        if line.event == "grant":
            if line.token <= highest:
                raise Wrong(where, f"the token {token} is not larger than {format_token(highest)} before it")
            begins = token_epoch(line.token) != token_epoch(highest)
            if line.token != (make_token(token_epoch(line.token), 1) if begins else highest + 1):
                raise Wrong(where, f"grants are missing or out of order before {token}: they count 1, 2, 3, ...")
            if line.mode not in ("exclusive", "shared"):
                raise Wrong(where, f"the mode {line.mode} is unknown")
            for other in holds.values():
                if "exclusive" in (line.mode, other.mode):
                    raise Wrong(
                        where,
                        f"{line.lock} is granted to {line.client}, {line.mode}, while {other.client} "
                        f"holds it under {format_token(other.token)}, {other.mode}",
                    )
            highest = line.token
            granted[line.token] = holds[line.token] = line
            continue
        grant = holds.pop(line.token, None)
        if grant is None:
            state = "was let go before" if line.token in granted else "was never granted"
            raise Wrong(where, f"{line.event} of {line.lock} under {token}, which {state}")
        if (grant.client, grant.mode) != (line.client, line.mode):
            raise Wrong(
                where,
                f"{line.event} by {line.client}, {line.mode}, of what was granted to {grant.client}, {grant.mode}",
            )
    asked = facts.evidence.asked
    if asked is not None and asked.finished and not asked.stopped and not asked.left:
        for holds in held.values():
            for grant in holds.values():
                what = f"{grant.lock} was granted to {grant.client} under {format_token(grant.token)} and never let go"
                raise Wrong(f"{grants.name}:{grants.lines[-1].number}", f"it ends too early: {what}")
    return granted


def _was_granted(granted: dict[int, GrantLine], where: str, token: int, file: str, host: str, verb: str) -> None:
    grant = granted.get(token)
    if grant is None:
        raise Wrong(where, f"the token {format_token(token)} was never granted")
    if (grant.lock, grant.client) != (file, host):
        raise Wrong(
            where,
            f"{host} used the token {format_token(token)} on {file}, "
            f"but it was granted to {grant.client} on {grant.lock}",
        )
    if verb in CHANGES and grant.mode != "exclusive":
        raise Wrong(where, f"a {verb} under {format_token(token)}, which was granted {grant.mode}")


def _is_newest(facts: Facts, read: Tick) -> None:
    """A read sees the version that was the newest under its token."""
    records = facts.newest[read.file][1].records if read.file in facts.newest else ()
    if read.seq > len(records) or read.hash in facts.undone_hashes:
        return  # the hash chain tells
    if read.seq and records[read.seq - 1].token > read.token:
        token = format_token(records[read.seq - 1].token)
        raise Wrong(read.where, f"a read under {format_token(read.token)} of a version made under {token}")
    if read.seq < len(records) and records[read.seq].token < read.token:
        raise Wrong(
            read.where,
            f"a read under {format_token(read.token)} of version {read.seq}, "
            f"when {read.seq + 1} was there under {format_token(records[read.seq].token)}",
        )
