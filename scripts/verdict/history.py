"""History: the hash chain, the replicas' files and the snapshots all tell the same ops (G3)."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Final

from common.eventlog import format_value, shorten
from common.records import EMPTY, Record, Version
from common.tokens import format_token
from common.wire import version_after
from scripts.verdict.evidence import Client, Journal
from scripts.verdict.facts import Facts, Tick, hash_at, hash_shown, is_held, place
from scripts.verdict.finding import Wrong, counted

SNAPSHOT_BYTES_MAX: Final = 64 * 1024 * 1024
"""Every snapshot is compared up to so many bytes of content per file; beyond, a sample is."""

SNAPSHOT_SAMPLE: Final = 200
"""How many versions of a file a sample has, evenly spaced, beside the oldest and the newest."""


def hash_chain(facts: Facts) -> str:
    """Every journal's hashes follow from its ops, all journals agree, and the event logs tell the same."""
    count = 0
    for file, (best, longest) in sorted(facts.newest.items()):
        _recompute(best, file, longest, None)
        count += len(longest.records)
        for client in facts.evidence.clients:
            journal = client.journals.get(file)
            if journal is not None and journal is not longest:
                strayed = (client.name, file) in facts.strayed
                _recompute(client, file, journal, None if strayed else (best, longest))
    for client, ticks in facts.logs:
        newest = _take_turns(ticks)
        for line in ticks:
            if line.verb != "undo" and line.id not in facts.undone:
                _tells_the_same(facts, line)
        for line in newest:
            if line.number not in facts.loose.get(client.name, ()):
                _is_so(line)
    shared = " as far as they are shared" if facts.strayed else ""
    return f"{counted(count, 'version')} of {counted(len(facts.newest), 'file')}, the same in every journal{shared}"


def _recompute(client: Client, file: str, journal: Journal, longest: tuple[Client, Journal] | None) -> None:
    previous = EMPTY
    for index, (record, hash_) in enumerate(zip(journal.records, journal.hashes, strict=True)):
        if longest is not None:
            # What equals a journal that was computed need not be computed again.
            other = longest[1]
            if hash_ == other.hashes[index] and record == other.records[index]:
                previous = Version(index + 1, 0, hash_)
                continue
        where = place(client, file, index + 1)
        if record.seq != index + 1:
            raise Wrong(where, f"the op there has seq {record.seq}")
        previous = version_after(previous, record)
        if hash_ != previous.hash:
            raise Wrong(where, "its hash does not follow from the op and the hash before")
        if longest is not None:
            raise Wrong(
                where,
                f"its hash is {hash_shown(hash_)}, but {longest[0].name} has "
                f"{hash_shown(longest[1].hashes[index])} there",
            )


def _tells_the_same(facts: Facts, line: Tick) -> None:
    found = facts.journal_of(line)
    if found is None:
        if line.seq == 0 and line.verb == "read":
            if line.hash != hash_shown(EMPTY.hash):
                raise Wrong(line.where, f"hash={line.hash} is not that of the empty file")
            return
        raise Wrong(line.where, f"no journal has {line.file}@{line.seq}")
    client, journal = found
    if line.verb == "read":
        if line.hash != hash_at(journal, line.seq) and line.hash not in facts.undone_hashes:
            where = place(client, line.file, line.seq)
            raise Wrong(line.where, f"hash={line.hash}, but {where} has {hash_at(journal, line.seq)}")
        return
    if line.seq == 0:
        raise Wrong(line.where, f"{line.verb} makes no version 0")
    record = journal.records[line.seq - 1]
    pairs = [
        ("id", line.id, record.id),
        ("token", format_token(line.token), format_token(record.token)),
        ("hash", line.hash, hash_at(journal, line.seq)),
    ]
    if line.verb != "apply":
        pairs += [("verb", line.verb, record.verb), ("of", line.values.get("of", "0"), str(record.of))]
    for key, said, kept in pairs:
        if said != kept:
            where = place(client, line.file, line.seq)
            raise Wrong(line.where, f"{key}={said}, but {where} has {kept}")


def _take_turns(ticks: Sequence[Tick]) -> Collection[Tick]:
    """In one log an op is undone only where it stands, and comes again only where it was undone.

    Return the newest line of each op.
    """
    last: dict[tuple[str, str], Tick] = {}
    for line in ticks:
        if line.verb == "read":
            continue
        before = last.get((line.file, line.id))
        if before is not None and (before.verb == "undo") == (line.verb == "undo"):
            what = "was not there again" if line.verb == "undo" else "was not undone"
            raise Wrong(line.where, f"{line.verb} of {line.id}, which {what} since {before.where}")
        last[line.file, line.id] = line
    return last.values()


def _is_so(line: Tick) -> None:
    """What a log tells last of an op is so in its own client's journal."""
    if is_held(line) != (line.verb != "undo"):
        has = "still has" if line.verb == "undo" else "does not have"
        behind = "" if line.verb == "undo" else ", though no line undoes it"
        what = f"{line.verb} of {line.id}, which {line.client.name}/journal {has} as {line.file}@{line.seq}{behind}"
        raise Wrong(line.where, what)


def replay(facts: Facts) -> str:
    """The history, replayed, gives every replica's bytes at its own version, and nothing else lies there."""
    known = set(facts.newest) | {line.file for _, ticks in facts.logs for line in ticks}
    for client in facts.evidence.clients:
        for file in sorted(client.files):
            if file not in known:
                raise Wrong(f"{client.name}/files/{file}", "no op made this file")
    behind: defaultdict[str, list[str]] = defaultdict(list)
    size = 0
    for file, (_, longest) in sorted(facts.newest.items()):
        for owner, journal, clients in _histories(facts, file):
            length = _replay_file(facts, file, owner, journal, clients)
            size += length if journal is longest else 0
        for client in facts.evidence.clients:
            seq, newest = _own_seq(client, file), len(longest.records)
            if (client.name, file) in facts.lost:
                shared = facts.strayed[client.name, file] - 1
                ops = counted(seq - shared, "op")
                which = "it" if seq - shared == 1 else "them"
                more = f"with {ops} that the group does not have: undoes {which} when it is back"
                behind[client.name].append(f"{file}@{shared} of {newest}, {more}")
            elif alone := facts.strayed.get((client.name, file)):
                behind[client.name].append(f"{file}@{alone} is unknown to the others")
            elif seq != newest:
                if facts.in_order(client):
                    raise Wrong(f"{client.name}/journal", f"behind: {file} is at version {seq} of {newest}")
                behind[client.name].append(f"{file}@{seq} of {newest}")
    replicas, files = counted(len(facts.evidence.clients), "replica"), counted(len(facts.newest), "file")
    notes = [f"{client} is behind ({', '.join(what)})" for client, what in behind.items()]
    return "; ".join([f"{replicas} of {files}, {counted(size, 'byte')} each", *notes])


def _histories(facts: Facts, file: str) -> list[tuple[Client, Journal, list[Client]]]:
    """Return the group's history of a file, and each strayed client's own: whose it is, and who has it."""
    together = [client for client in facts.evidence.clients if (client.name, file) not in facts.strayed]
    alone = [client for client in facts.evidence.clients if (client.name, file) in facts.strayed]
    return [(*facts.newest[file], together), *((client, client.journals[file], [client]) for client in alone)]


def _replay_file(facts: Facts, file: str, owner: Client, journal: Journal, clients: Sequence[Client]) -> int:
    """Compare the clients' files with their versions; return the newest version's size in bytes."""
    due: defaultdict[int, list[Client]] = defaultdict(list)
    for client in clients:
        due[_own_seq(client, file)].append(client)
    sources = {record.of for record in journal.records if record.verb == "restore"}
    restorable: dict[int, bytearray] = {}
    content = bytearray()
    for seq in range(len(journal.records) + 1):
        if seq:
            record = journal.records[seq - 1]
            length = len(content)
            if record.offset > length:
                raise Wrong(place(owner, file, seq), f"it starts at byte {record.offset} of {length}")
            problem = _splice_problem(record, length, facts.authors.get(record.id))
            if problem:
                raise Wrong(facts.where(file, record), problem)
            _splice(content, record)
            if record.verb == "restore" and restorable.get(record.of) != content:
                raise Wrong(facts.where(file, record), f"it does not bring version {record.of} back")
        for client in due.get(seq, ()):
            found, where = client.files.get(file), f"{client.name}/files/{file}"
            if found is None and content:
                raise Wrong(where, f"it is missing; version {seq} has {counted(len(content), 'byte')}")
            if found is not None and found != content:
                raise Wrong(where, _difference(found, content, seq))
        if seq in sources:
            restorable[seq] = content[:]
    return len(content)


def _splice(content: bytearray, record: Record) -> None:
    del content[record.offset :]
    content += record.inserted


def _splice_problem(record: Record, length: int, author: Tick | None) -> str | None:
    """Tell what is wrong with the place or the text of an op on a file of `length` bytes."""
    inserted, delta = record.inserted, f"{record.length - length:+d}"
    if author is not None and author.values.get("bytes", delta) != delta:
        return f"bytes={author.values['bytes']}, but the journals have {delta}"
    if record.verb == "write":
        expected, text = length, inserted[:-1]
    elif record.verb == "update":
        if length == 0:
            return "an update changes the empty file" if record.offset or inserted else None
        expected, text = length - 1, inserted[5:-1]
        if not inserted.startswith(b" --- "):
            return "an update without its ' --- '"
    else:
        return None
    if record.offset != expected:
        return f"the {record.verb} starts at byte {record.offset}, not {expected}"
    if not inserted.endswith(b"\n"):
        return f"the {record.verb} does not end its line"
    said, kept = author.values.get("text") if author else None, shorten(text.decode(errors="replace"))
    if said is not None and said != kept:
        return f"text={format_value(said)}, but the journals have {format_value(kept)}"
    return None


def _difference(found: bytes, content: bytearray, seq: int) -> str:
    first = next(
        (index for index, (one, other) in enumerate(zip(found, content, strict=False)) if one != other),
        min(len(found), len(content)),
    )
    line = content.count(b"\n", 0, first) + 1
    sizes = "" if len(found) == len(content) else f" ({len(found)} bytes, not {len(content)})"
    return f"differs from version {seq} replayed, first at byte {first}, line {line}{sizes}"


def _own_seq(client: Client, file: str) -> int:
    journal = client.journals.get(file)
    return len(journal.records) if journal is not None else 0


def snapshots(facts: Facts) -> str:
    """Every version that a client can show equals the replay at that version."""
    for op in facts.ops:
        said = op.values.get("snapshot")
        if said is not None and said != f"{op.file}@{op.seq}":
            raise Wrong(op.where, f"snapshot={said}, but the op is at {op.file}@{op.seq}")
    compared = total = 0
    for client in facts.evidence.clients:
        _shows_its_files(client)
    for file in sorted(facts.newest):
        total += sum(_own_seq(client, file) for client in facts.evidence.clients)
        for _, journal, clients in _histories(facts, file):
            due = _due(clients, file, journal)
            content = bytearray()
            for seq, record in enumerate(journal.records, 1):
                _splice(content, record)
                for client in due.get(seq, ()):
                    _shows(client, file, seq, content)
                    compared += 1
    if compared == total:
        return f"{counted(total, 'version')} shown, all equal to the replay"
    return f"{compared} of {counted(total, 'version')} shown (a sample), all equal to the replay"


def _shows_its_files(client: Client) -> None:
    if client.snapshots is None:
        return
    for file in sorted(client.snapshots.newest.keys() | client.journals.keys()):
        shown, kept = client.snapshots.newest.get(file, 0), _own_seq(client, file)
        if shown != kept:
            what = f"{file} is shown up to version {shown}, the journal has {kept}"
            raise Wrong(f"{client.name}/snapshots", what)


def _due(clients: Sequence[Client], file: str, journal: Journal) -> dict[int, list[Client]]:
    """Tell which version is to be compared at which clients: all, or a sample that takes turns."""
    showing = [client for client in clients if client.snapshots is not None]
    due: defaultdict[int, list[Client]] = defaultdict(list)
    if sum(record.length for record in journal.records) * len(showing) <= SNAPSHOT_BYTES_MAX:
        for client in showing:
            for seq in range(1, _own_seq(client, file) + 1):
                due[seq].append(client)
        return due
    for turn, client in enumerate(showing):
        newest = _own_seq(client, file)
        step = max(1, newest // SNAPSHOT_SAMPLE) * len(showing)
        chosen = {1, newest, *range(1 + turn * step // len(showing), newest + 1, step)}
        for seq in chosen - {0}:
            if seq <= newest:
                due[seq].append(client)
    return due


def _shows(client: Client, file: str, seq: int, content: bytearray) -> None:
    assert client.snapshots is not None
    try:
        shown = client.snapshots.content(file, seq)
    except ValueError as error:
        raise Wrong(f"{client.name}/snapshots", f"{file}@{seq} cannot be shown: {error}") from error
    if shown != content:
        raise Wrong(f"{client.name}/snapshots", f"{file}@{seq} {_difference(shown, content, seq)}")
