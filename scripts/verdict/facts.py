"""The evidence, read once: typed lines and the indices that several properties need."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from common.clock import Clock
from common.records import EMPTY, Record
from common.tokens import parse_token
from scripts.verdict.branches import find_lost, first_alone, newest_journals
from scripts.verdict.copies import own_host, owner_by_line, owners
from scripts.verdict.evidence import Asked, Client, EventLine, Evidence, Flaw, Journal

CHANGES = frozenset(("write", "update", "restore"))
OPS = CHANGES | {"read"}
HASH_DIGITS = 12
"""How much of a hash an event line shows, in hexadecimal digits."""


@dataclass(slots=True)
class Tick:
    """A line of an event log with its values typed.

    `owner` is whose line it is: not the client's where that has only a copy of it. `before` is the clock of the line
    before it in the same log.
    """

    client: Client
    owner: Client
    before: Clock
    number: int
    time_us: int
    host: str
    clock: Clock
    verb: str
    file: str
    id: str
    token: int
    seq: int
    hash: str
    values: Mapping[str, str]

    @property
    def where(self) -> str:
        """Name the line for people."""
        return f"{self.client.name}/events.log:{self.number}"

    @property
    def is_copy(self) -> bool:
        """Tell whether the line counts in another log."""
        return self.owner is not self.client

    @property
    def count(self) -> int:
        """Return the own component of the clock."""
        return self.clock.get(self.host, 0)


@dataclass(slots=True)
class Facts:
    """What the properties look at.

    `logs` are the ticks by client, `by_host` by the host that ticked, without copies. `former` are the hosts that have
    lines here, and with which no log goes on. `ops` are the ticks of ops that happened, `authors` has the first line of
    each op's author. `newest` has, per file, the longest journal of a client that did not leave early and is not in
    `lost`, and whose it is. `strayed` has, per client and file, the first version that only it has: it left early, and
    died before the others heard of that; or it is in `lost`, too: its lock was lost, and the others went on without.
    `loose` has, per client, the numbers of the lines whose change a kill may have stopped. `undone` are the ids of ops
    that were taken back everywhere, or that a kill stopped before they were durable anywhere; `undone_hashes` are those
    of the versions they made.
    """

    evidence: Evidence
    flaws: list[Flaw]
    logs: list[tuple[Client, list[Tick]]]
    by_host: dict[str, list[Tick]]
    former: set[str]
    ops: list[Tick]
    authors: dict[str, Tick]
    newest: dict[str, tuple[Client, Journal]]
    strayed: dict[tuple[str, str], int]
    lost: set[tuple[str, str]]
    loose: dict[str, set[int]]
    undone: set[str]
    undone_hashes: set[str]

    def journal_of(self, tick: Tick) -> tuple[Client, Journal] | None:
        """Return the journal that has the version the line names: the client's own, else the longest.

        Where neither has that very version, one that has another in its place.
        """
        own, longest = tick.client.journals.get(tick.file), self.newest.get(tick.file)
        having = [(tick.client, own)] if own is not None else []
        having += [longest] if longest is not None else []
        having = [found for found in having if tick.seq <= len(found[1].records)]
        return next((found for found in having if hash_at(found[1], tick.seq) == tick.hash), next(iter(having), None))

    def where(self, file: str, record: Record) -> str:
        """Name the line of a record's author, or the record itself where that line is not at hand."""
        author = self.authors.get(record.id)
        return author.where if author else place(self.newest[file][0], file, record.seq)

    def in_order(self, client: Client) -> bool:
        """Tell whether the client is known to have ended in good order."""
        asked = self.evidence.asked
        return bool(asked and _is_in_order(asked) and client.name not in asked.left)

    def undisturbed(self, client: Client) -> bool:
        """Tell whether the client is known to have been spared from its start to its end, too."""
        asked = self.evidence.asked
        return bool(asked and not asked.faults and self.in_order(client))


def _is_in_order(asked: Asked | None) -> bool:
    return bool(asked and asked.finished and not asked.stopped)


def place(client: Client, file: str, seq: int) -> str:
    """Name a version in a client's journal for people."""
    return f"{client.name}/journal: {file}@{seq}"


def author_of(op_id: str) -> str:
    """Return the host that numbered an op."""
    return op_id.rpartition(":")[0]


def hash_shown(hash_: bytes) -> str:
    """Return a hash as event lines show it."""
    return hash_.hex()[:HASH_DIGITS]


def hash_at(journal: Journal, seq: int) -> str:
    """Return the hash of version `seq`, from 0, as event lines show it."""
    return hash_shown(journal.hashes[seq - 1] if seq else EMPTY.hash)


def gather(evidence: Evidence) -> Facts:
    """Read the evidence once."""
    left: tuple[str, ...] = evidence.asked.left if evidence.asked else ()
    if evidence.asked and evidence.asked.faults and not evidence.asked.finished:
        left = tuple([client.name for client in evidence.clients])  # broken off in the midst of faults
    staying = [client for client in evidence.clients if client.name not in left]
    lost = {} if _is_in_order(evidence.asked) else find_lost(evidence, staying)
    newest = newest_journals(staying, lost)
    for file, longest in newest_journals(evidence.clients).items():
        newest.setdefault(file, longest)
    strayed = {
        (client.name, file): seq
        for client in evidence.clients
        if client.name in left
        for file, journal in client.journals.items()
        if (seq := first_alone(journal, newest[file][1]))
    } | lost
    lines_of = owners(evidence.clients)
    former = {host for host, client in lines_of.items() if host != own_host(client)}
    facts = Facts(evidence, [], [], {}, former, [], {}, newest, strayed, set(lost), {}, set(), set())
    for client in evidence.clients:
        facts.logs.append((client, list(_ticks(client, lines_of, facts))))
    counting = [tick for _, ticks in facts.logs for tick in ticks if not tick.is_copy]
    for tick in sorted(counting, key=lambda tick: tick.client is not lines_of[tick.host]):  # what is wrong comes last
        facts.by_host.setdefault(tick.host, []).append(tick)
    _find_loose(facts)
    _find_undone(facts)
    for ticks in facts.by_host.values():
        for tick in ticks:
            if tick.verb in OPS:
                facts.authors.setdefault(tick.id, tick)
                if tick.id not in facts.undone:
                    facts.ops.append(tick)
    return facts


def _ticks(client: Client, lines_of: Mapping[str, Client], facts: Facts) -> Iterator[Tick]:
    before: Clock = {}
    for line, owner in zip(client.lines, owner_by_line(client, lines_of), strict=True):
        try:
            tick = _typed(client, owner, before, line)
        except KeyError as error:
            problem = f"the line has no {error.args[0]}"
        except ValueError as error:
            problem = str(error)
        else:
            before = tick.clock
            yield tick
            continue
        facts.flaws.append(Flaw("logs", f"{client.name}/events.log:{line.number}", problem))


def _typed(client: Client, owner: Client, before: Clock, line: EventLine) -> Tick:
    event, values = line.event, line.event.values
    seq, hash_ = values["seq"], values["hash"]
    if not (seq.isascii() and seq.isdigit() and len(seq) < 19):
        raise ValueError(f"seq={seq} is no number")
    if len(hash_) != HASH_DIGITS or hash_.strip("0123456789abcdef"):
        raise ValueError(f"hash={hash_} is not {HASH_DIGITS} hexadecimal digits")
    return Tick(
        client,
        owner,
        before,
        line.number,
        event.time_us,
        event.host,
        event.clock,
        event.verb,
        values["file"],
        values["id"],
        parse_token(values["token"]),
        int(seq),
        hash_,
        values,
    )


def is_held(tick: Tick) -> bool:
    """Tell whether the version that a line names is in its client's own journal."""
    journal = tick.client.journals.get(tick.file)
    return journal is not None and 0 < tick.seq <= len(journal.hashes) and hash_at(journal, tick.seq) == tick.hash


def _find_loose(facts: Facts) -> None:
    """Find the lines whose change a kill may have stopped: it would have come behind them."""
    passed_on = _passed_on(facts)
    grants = facts.evidence.grants
    released = {entry.line.token for entry in grants.lines if entry.line.event == "release"} if grants else set()
    for client, ticks in facts.logs:
        if facts.undisturbed(client):
            continue
        told = Counter((tick.file, tick.hash) for tick in ticks if tick.verb not in ("read", "undo"))
        facts.loose[client.name] = set()
        for tick in _newest_change(ticks):
            done = is_held(tick) != (tick.verb == "undo")
            if tick.verb in CHANGES:
                done |= tick.token in released
            if tick.verb != "undo" and told[tick.file, tick.hash] == 1:  # else it may have been undone since
                done |= (tick.host, tick.file, tick.hash) in passed_on
            if done:
                break  # and so was all before it
            facts.loose[client.name].add(tick.number)


def _passed_on(facts: Facts) -> set[tuple[str, str, str]]:
    """Return the hosts from which other replicas have taken a version in: it was in their journals by then."""
    return {
        (host, tick.file, tick.hash)
        for _, ticks in facts.logs
        for tick in ticks
        for host in (author_of(tick.id), tick.values.get("from", ""))
        if tick.verb == "apply" and tick.host != host
    }


def _newest_change(ticks: Sequence[Tick]) -> Iterator[Tick]:
    """Yield the lines, newest first, that can tell of one change of a journal at the end of a log.

    That is an own op; or what was taken in from one replica: undos from the newest op down, and behind them, from where
    they end upwards, what is new. The next start says of each line what is true, the newest one's first, under its own
    name; of what it has said so the line is not yielded.
    """
    rest = list(ticks)
    corrected = 0
    while rest and rest[-1].verb in ("apply", "undo") and rest[-1].values.get("from") == rest[-1].host:
        rest.pop()
        corrected += 1
    after: Tick | None = None
    while rest and (after is None or _is_of_one_change(rest[-1], after)):
        after = rest.pop()
        if after.verb == "read":
            return
        if corrected:
            corrected -= 1
        else:
            yield after


def _is_of_one_change(tick: Tick, after: Tick) -> bool:
    """Tell whether two lines, one after the other, can tell of one change."""
    if (tick.host, tick.file, tick.values.get("from")) != (after.host, after.file, after.values.get("from")):
        return False
    match tick.verb, after.verb:
        case "apply", "apply":
            return tick.seq + 1 == after.seq
        case "undo", "undo":
            return tick.seq == after.seq + 1
        case "undo", "apply":
            return tick.seq == after.seq
        case _:
            return False


def _find_undone(facts: Facts) -> None:
    """Find the ops that never happened: undone or stopped, and in no journal but a strayed one."""
    kept = {
        record.id
        for client in facts.evidence.clients
        for file, journal in client.journals.items()
        for record in journal.records[: facts.strayed.get((client.name, file), len(journal.records) + 1) - 1]
    }
    for client, ticks in facts.logs:
        loose = facts.loose.get(client.name, ())
        facts.undone.update(
            tick.id for tick in ticks if (tick.verb == "undo" or tick.number in loose) and tick.id not in kept
        )
    facts.undone_hashes.update(
        tick.hash for _, ticks in facts.logs for tick in ticks if tick.id in facts.undone and tick.verb != "read"
    )
