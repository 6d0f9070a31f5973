"""Clocks: they order two events if and only if the first could have influenced the second (G5)."""

import itertools
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from common.clock import Clock, happens_before_or_equal, merge, tick
from common.tokens import token_epoch
from scripts.verdict.evidence import Journal
from scripts.verdict.facts import Facts, Tick, hash_at
from scripts.verdict.finding import Wrong, counted


def clocks(facts: Facts) -> str:
    """Clocks have no gaps, only grow, and order what could have influenced what."""
    _rise_without_gaps(facts)
    for _, ticks in facts.logs:
        _come_in_turn(ticks)
    calm = _is_calm(facts)
    for ticks in facts.by_host.values():
        for line in ticks:
            _knows_whole_pasts(facts, line)
            if line.verb in ("apply", "undo"):
                _knows_its_op(facts, line, calm)
    for file, (_, longest) in sorted(facts.newest.items()):
        _orders_changes(facts, file, longest)
    grants = facts.evidence.grants
    lost = {entry.line.token for entry in grants.lines if entry.line.event == "expiry"} if grants else set()
    for op in facts.ops:
        if op.verb == "read":
            _orders_read(facts, op, op.token in lost)
    if calm:
        _bring_nothing_else(facts)
    concurrent, pairs = concurrent_pairs(facts.ops)
    count = sum(len(ticks) for ticks in facts.by_host.values())
    figures = f"{counted(count, 'event')} of {counted(len(facts.by_host), 'host')}"
    if missing := _missing(facts):
        figures += f"; no log here of {', '.join(missing)}"
    if pairs:
        return f"{figures}; {concurrent} of {counted(pairs, 'pair')} of ops on different files are concurrent"
    return figures


def _rise_without_gaps(facts: Facts) -> None:
    for host, ticks in facts.by_host.items():
        for expected, line in enumerate(ticks, 1):
            if line.client is not ticks[0].client:
                raise Wrong(line.where, f"{host} is in {ticks[0].where} too")
            if line.count != expected:
                raise Wrong(line.where, f"{host} counts {line.count} where {expected} is next")


def _come_in_turn(ticks: Sequence[Tick]) -> None:
    """A log goes on under another host, but never again under a former one."""
    former: set[str] = set()
    for before, line in itertools.pairwise(ticks):
        if line.host != before.host:
            former.add(before.host)
        if line.host in former:
            raise Wrong(line.where, f"{line.host} comes again, after {before.host}")


def _missing(facts: Facts) -> list[str]:
    """Name what is known of, but told by no log here: hosts, and the newest events of former ones."""
    known: Clock = {}
    for ticks in facts.by_host.values():
        known = merge(known, ticks[-1].clock)
    missing = []
    for host, count in sorted(known.items()):
        told = len(facts.by_host.get(host, ()))
        if told == 0:
            missing.append(host)
        elif told < count:
            missing.append(f"{counted(count - told, 'newest event')} of {host}")
    return missing


def _knows_whole_pasts(facts: Facts, line: Tick) -> None:
    """What an event newly knows of a host is an event of it, and all that that event knew."""
    clock, before = line.clock, line.before
    for host, count in before.items():
        if clock.get(host, 0) < count:
            raise Wrong(line.where, f"the clock falls back from {count} to {clock.get(host, 0)} for {host}")
    for host, count in clock.items():
        if host == line.host or count == before.get(host, 0):
            continue
        others = facts.by_host.get(host)
        if others is None:
            continue  # no log of it is at hand
        if count > len(others):
            if host in facts.former:
                continue  # its newest events are lost
            raise Wrong(line.where, f"it knows event {count} of {host}, which has only {len(others)}")
        if not happens_before_or_equal(others[count - 1].clock, clock):
            what = f"it knows event {count} of {host}, but not what that knew ({others[count - 1].where})"
            raise Wrong(line.where, what)


def _knows_its_op(facts: Facts, line: Tick, calm: bool) -> None:
    """An apply or undo comes after its op; an apply brings nothing but that op's past."""
    author = facts.authors.get(line.id)
    if author is not None:
        made = author.clock
    else:
        found = facts.journal_of(line)
        record = found[1].records[line.seq - 1] if found and line.seq else None
        if record is None or record.id != line.id:
            return
        made = record.clock
    if not happens_before_or_equal(made, line.clock):
        raise Wrong(line.where, f"{line.verb} of {line.id} without that op's clock")
    if calm and line.verb == "apply" and tick(merge(line.before, made), line.host) != line.clock:
        raise Wrong(line.where, f"its clock holds more than what {line.host} knew and {line.id} brought")


def _bring_nothing_else(facts: Facts) -> None:
    """What an op newly knows came with its lock: an earlier holder knew it."""
    holders: defaultdict[str, set[str]] = defaultdict(set)
    for op in sorted(facts.ops, key=lambda op: op.token):
        explained = tick(op.before, op.host)
        for holder in holders[op.file]:
            if count := op.clock.get(holder, 0):
                explained = merge(explained, facts.by_host[holder][count - 1].clock)
        if explained != op.clock:
            raise Wrong(op.where, f"its clock holds more than what {op.host} knew and its lock brought")
        holders[op.file].add(op.host)


def _is_calm(facts: Facts) -> bool:
    """Tell whether every file was clean at each grant.

    Settling an unclean file brings clocks without a tick of their own, so only in a calm run can clocks be
    checked for holding too much: it ended in order, under one epoch, and no lock was lost and no op undone, nor any
    event.
    """
    if facts.former or not all(facts.undisturbed(client) for client, _ in facts.logs):
        return False
    ticks = [line for _, ticks in facts.logs for line in ticks]
    if any(line.verb == "undo" for line in ticks) or len({token_epoch(line.token) for line in ticks}) > 1:
        return False
    events = [entry.line.event for entry in facts.evidence.grants.lines] if facts.evidence.grants else []
    # lockd, stopped, voids what is still held: that comes after the last grant.
    return "expiry" not in events or "grant" not in events[events.index("expiry") :]


def _orders_changes(facts: Facts, file: str, longest: Journal) -> None:
    before: Clock = {}
    for seq, record in enumerate(longest.records, 1):
        author = facts.authors.get(record.id)
        if author is not None and author.clock != record.clock:
            raise Wrong(author.where, f"the journals have another clock for {record.id}")
        if record.clock == before or not happens_before_or_equal(before, record.clock):
            raise Wrong(facts.where(file, record), f"its clock is not after that of {file}@{seq - 1}")
        before = record.clock


def _orders_read(facts: Facts, read: Tick, lost: bool) -> None:
    """A read of a version is after the change that made it, and before the next one.

    Where its lock was lost, its value was given to nobody: it could influence nothing.
    """
    if read.file not in facts.newest:
        return
    journal = facts.newest[read.file][1]
    records = journal.records
    if read.seq > len(records) or read.hash != hash_at(journal, read.seq):
        return  # the hash chain tells
    if read.seq and not happens_before_or_equal(records[read.seq - 1].clock, read.clock):
        raise Wrong(read.where, f"its clock is not after that of {read.file}@{read.seq}, which it read")
    if not lost and read.seq < len(records) and not happens_before_or_equal(read.clock, records[read.seq].clock):
        where = facts.where(read.file, records[read.seq])
        raise Wrong(where, f"its clock is not after that of the read before it ({read.where})")


def concurrent_pairs(ops: Iterable[Tick]) -> tuple[int, int]:
    """Return how many pairs of ops on different files are concurrent by their clocks, and how many there are.

    The clocks have to be transitive. Then the ops of one host that are concurrent with a given one stand in a
    row: behind the last that it knows, and before the first that knows it.
    """
    rows: defaultdict[tuple[str, str | None], list[Tick]] = defaultdict(list)
    files: Counter[str] = Counter()
    for op in ops:
        rows[op.host, None].append(op)
        rows[op.host, op.file].append(op)
        files[op.file] += 1
    hosts = sorted({host for host, _ in rows})
    concurrent = 0
    for other in hosts:
        counts = {file: [op.count for op in row] for (host, file), row in rows.items() if host == other}
        for host in hosts:
            if host >= other:
                break
            known = {file: [op.clock.get(host, 0) for op in rows[other, file]] for file in counts}
            for op in rows[host, None]:
                for file, sign in ((None, 1), (op.file, -1)):
                    if file in counts:
                        begin = bisect_right(counts[file], op.clock.get(other, 0))
                        concurrent += sign * max(0, bisect_left(known[file], op.count) - begin)
    total = files.total()
    return concurrent, (total * (total - 1) - sum(n * (n - 1) for n in files.values())) // 2
