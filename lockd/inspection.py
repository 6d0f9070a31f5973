"""lockd's core: what an Inspection tells. It reads the state, and never changes it. No I/O.

It costs time in proportion to the locks there are, and is bounded in what it says: the limits are in common.limits.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice

from common.limits import (
    INSPECT_LOCKS_MAX,
    INSPECT_MEMBERS_MAX,
    INSPECT_NAMES_MAX,
    INSPECT_REPLICAS_MAX,
    INSPECT_WAITERS_MAX,
)
from common.messages import (
    Acquire,
    Count,
    Fault,
    HolderState,
    Inspect,
    Inspection,
    LockState,
    MemberState,
    Reason,
    ReplicaState,
    Spread,
    WaiterState,
)
from common.records import Version
from lockd.effects import ReplicaSeen
from lockd.locks import FileState, Hold, Lock, Waiter
from lockd.shared import Session, Shared

Early = Mapping[tuple[int, int], tuple[Acquire, int]]
"""What was asked for, and when, while sessions of the last lockd are expected: see lockd.queues."""


@dataclass(slots=True)
class Alike:
    """All files with one in-sync set: they are many, the sets few. `lost` tells that all of the set are absent.

    `names` are the first few of them; `behind` is how far each learner is behind in the file where it is the most, None
    where that is not known of one.
    """

    in_sync: tuple[str, ...]
    lost: bool
    behind: dict[str, int | None]
    files: int = 0
    unclean: int = 0
    names: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Part:
    """A replica's part in all files: with how many it is in sync, how many it learns, which depend on it."""

    in_sync: int = 0
    learning: int = 0
    behind: int | None = 0
    needed: list[str] = field(default_factory=list)
    needed_left_out: int = 0


def inspection(shared: Shared, early: Early, message: Inspect, now_ns: int) -> Inspection:
    """Return what lockd knows at `now_ns`, of one lock where `message` names one."""
    alike = _alike(shared)
    files = sum(each.files for each in alike)
    members, members_left_out = _members(shared, _parts(alike), files, now_ns)
    states, left_out = _locks(shared, early, message.lock, now_ns)
    end_ns = _grace_end_ns(shared)
    figures = shared.figures
    return Inspection(
        shared.epoch,
        message.request,
        now_ns // 1000,
        figures.since_ns // 1000,
        shared.group,
        shared.ttl_ns // 1_000_000,
        _ms(end_ns - now_ns),
        tuple(sorted(session.name for session in shared.expected.values())[:INSPECT_MEMBERS_MAX]),
        len(shared.by_replica),
        len(shared.sessions) - len(shared.by_replica),
        files,
        sum(each.unclean for each in alike),
        sum(each.files for each in alike if each.lost),
        members,
        members_left_out,
        states,
        left_out,
        tuple([Count(*each) for each in figures.counts()]),
        tuple([Spread(what, _without_end(spread.counts), spread.sum_us) for what, spread in figures.histograms()]),
        tuple([Fault(time_ns // 1000, text) for time_ns, text in figures.faults]),
    )


def newest_of(file: FileState) -> Version | None:
    """Return the newest version of a file that lockd knows to be acknowledged, None where it knows of none."""
    if file.clean is not None:
        return file.clean
    return file.acked if file.acked_token else None


def is_lost(shared: Shared, file: FileState) -> bool:
    """Tell whether only absent replicas have what was acknowledged of a file."""
    return not any(replica in shared.by_replica for replica in file.in_sync)


def _ms(duration_ns: int) -> int:
    return max(0, duration_ns) // 1_000_000


def _without_end(counts: list[int]) -> tuple[int, ...]:
    end = len(counts)
    while end and not counts[end - 1]:
        end -= 1
    return tuple(counts[:end])


def _grace_end_ns(shared: Shared) -> int:
    """Return when lockd waits no more for sessions of the last one, 0 where it does not."""
    if not shared.expected:
        return 0
    return min([at_ns for at_ns, *what in shared.timers if not any(what)], default=0)


def _behind(file: FileState, replica: str) -> int | None:
    """Return how many acknowledged versions a learner lacks by its last report, None where that is not known."""
    newest, report = newest_of(file), file.reports.get(replica)
    if newest is None or report is None:
        return None
    version = report[0]
    if version == newest:
        return 0
    # As many versions as the group, but others: how far back they part lockd does not know.
    return newest.seq - version.seq if version.seq < newest.seq else None


def _alike(shared: Shared) -> list[Alike]:
    """Go through all files, and put together those with the same in-sync set."""
    found: dict[tuple[str, ...], Alike] = {}
    for lock in shared.locks.values():
        file = lock.file
        if file is None:
            continue
        each = found.get(file.in_sync)
        if each is None:
            learners = [replica for replica in shared.by_replica if replica not in file.in_sync]
            each = found[file.in_sync] = Alike(file.in_sync, is_lost(shared, file), dict.fromkeys(learners, 0))
        each.files += 1
        each.unclean += file.clean is None
        if len(each.names) < INSPECT_NAMES_MAX:
            each.names.append(lock.name)
        for replica, most in each.behind.items():
            each.behind[replica] = _more(most, _behind(file, replica))
    return list(found.values())


def _more(one: int | None, other: int | None) -> int | None:
    """Return the larger count, None where one of them is not known."""
    return None if one is None or other is None else max(one, other)


def _parts(alike: list[Alike]) -> dict[str, Part]:
    """Return each replica's part in all files."""
    parts: defaultdict[str, Part] = defaultdict(Part)
    for each in alike:
        for replica in each.in_sync:
            part = parts[replica]
            part.in_sync += each.files
            if each.lost:
                names = each.names[: INSPECT_NAMES_MAX - len(part.needed)]
                part.needed += names
                part.needed_left_out += each.files - len(names)
        for replica, behind in each.behind.items():
            part = parts[replica]
            part.learning += each.files
            part.behind = _more(part.behind, behind)
    return parts


def _members(shared: Shared, parts: Mapping[str, Part], files: int, now_ns: int) -> tuple[tuple[MemberState, ...], int]:
    """Return sessions with a replica or a lock, then absent replicas, in the order of their hosts."""
    sessions = [each for each in shared.sessions.values() if each.member or each.holds or each.waits]
    named = Counter(session.name for session in shared.by_replica.values())
    absent = [
        seen
        for seen in shared.replicas.values()
        # Without an incarnation it only keeps a host from being given out. One that is in no in-sync set, and whose
        # name another replica goes on under, is a directory that was wiped.
        if seen.replica not in shared.by_replica
        and seen.incarnation
        and (seen.replica in parts or not named[seen.name])
    ]
    sessions.sort(key=lambda session: (session.member is None, session.host))
    absent.sort(key=lambda seen: seen.host)
    shown = [_live(shared, session, parts, now_ns) for session in sessions[:INSPECT_MEMBERS_MAX]]
    shown += [
        _absent(shared, seen, parts.get(seen.replica, Part()), files, now_ns)
        for seen in absent[: INSPECT_MEMBERS_MAX - len(shown)]
    ]
    return tuple(shown), len(sessions) + len(absent) - len(shown)


def _live(shared: Shared, session: Session, parts: Mapping[str, Part], now_ns: int) -> MemberState:
    replica = session.member.replica if session.member else ""
    part = parts.get(replica, Part())
    return MemberState(
        session.name,
        session.host,
        replica,
        session.id,
        shared.replicas[replica].start_count if replica else 0,
        session.connected,
        _ms(now_ns - session.seen_ns),
        _ms(session.deadline_ns - now_ns),
        part.in_sync,
        part.learning,
        part.behind,
        (),
        0,
    )


def _absent(shared: Shared, seen: ReplicaSeen, part: Part, files: int, now_ns: int) -> MemberState:
    at_ns = shared.last_seen.get(seen.replica)
    seen_ms = None if at_ns is None else _ms(now_ns - at_ns)
    learning = files - part.in_sync
    return MemberState(
        seen.name,
        seen.host,
        seen.replica,
        0,
        seen.start_count,
        False,
        seen_ms,
        0,
        part.in_sync,
        learning,
        None if learning else 0,  # what it may have, nobody here knows
        tuple(part.needed),
        part.needed_left_out,
    )


def _locks(shared: Shared, early: Early, name: str, now_ns: int) -> tuple[tuple[LockState, ...], int]:
    """Return the locks to tell of, those in use first, and how many are left out."""
    asked: dict[str, list[tuple[Session, Acquire, int]]] = {}
    for (number, _), (acquire, since_ns) in early.items():
        if (session := shared.sessions.get(number)) is not None:
            asked.setdefault(acquire.lock, []).append((session, acquire, since_ns))
    if name:
        names = {name: None} if name in shared.locks or name in asked else {}
        total = len(names)
    else:
        used = [lock for each in shared.sessions.values() for lock in (*each.holds.values(), *each.waits.values())]
        names = dict.fromkeys(islice([*sorted(used), *sorted(asked)], 2 * INSPECT_LOCKS_MAX))
        unclean = (lock.name for lock in shared.locks.values() if lock.file and lock.file.clean is None)
        # Of many, what is not in use comes as it stands: to sort all of them would take long.
        names |= dict.fromkeys(sorted(islice(unclean, INSPECT_LOCKS_MAX)))
        names |= dict.fromkeys(sorted(islice(shared.locks, INSPECT_LOCKS_MAX)))
        total = len(shared.locks) + sum(1 for lock in asked if lock not in shared.locks)
    states = [_lock(shared, each, asked.get(each, []), now_ns) for each in islice(names, INSPECT_LOCKS_MAX)]
    return tuple(states), total - len(states)


def _lock(shared: Shared, name: str, asked: list[tuple[Session, Acquire, int]], now_ns: int) -> LockState:
    lock = shared.locks.get(name)
    if lock is None:
        lock = Lock(name, asked[0][1].kind, limit=asked[0][1].limit)
    file = lock.file
    holders = [_holder(shared, hold, now_ns) for hold in islice(lock.holds.values(), INSPECT_REPLICAS_MAX)]
    first = next((waiter for waiter in lock.queue.values() if shared.can_be_served(lock, waiter)), None)
    queue = [
        WaiterState(
            shared.sessions[waiter.session].host,
            waiter.mode,
            max(0, now_ns - waiter.since_ns) // 1000,
            _why(shared, lock, waiter, waiter is first, now_ns),
        )
        for waiter in islice(lock.queue.values(), INSPECT_WAITERS_MAX)
    ]
    queue += [
        WaiterState(session.host, acquire.mode, (now_ns - since_ns) // 1000, "grace")
        for session, acquire, since_ns in asked[: INSPECT_WAITERS_MAX - len(queue)]
    ]
    replicas: list[ReplicaState] = []
    outside = 0
    if file is not None:
        learners = [replica for replica in shared.by_replica if replica not in file.in_sync]
        outside = len(file.in_sync) + len(learners)
        for replica in islice([*file.in_sync, *learners], INSPECT_REPLICAS_MAX):
            host, session = shared.replicas[replica].host, shared.by_replica.get(replica)
            seen_ms = _ms(now_ns - session.seen_ns) if session is not None else None
            if replica in learners:
                replicas.append(ReplicaState(host, "learner", _behind(file, replica), seen_ms))
            else:
                replicas.append(ReplicaState(host, "absent" if session is None else "in sync", 0, seen_ms))
    return LockState(
        name,
        lock.kind,
        lock.limit,
        _ms(_delay_end_ns(shared, lock) - now_ns),
        file is None or file.clean is not None,
        newest_of(file) if file is not None else None,
        tuple(holders),
        len(lock.holds) - len(holders),
        tuple(queue),
        len(lock.queue) + len(asked) - len(queue),
        tuple(replicas),
        outside - len(replicas),
    )


def _delay_end_ns(shared: Shared, lock: Lock) -> int:
    """Return when the lock delay is over: this lock's, or that of all locks without a file after lockd's start."""
    start_ns = shared.plain_from_ns if lock.file is None else 0
    return max([start_ns, *[delay.until_ns for delay in lock.delays.values()]])


def _holder(shared: Shared, hold: Hold, now_ns: int) -> HolderState:
    session = shared.sessions[hold.session]
    return HolderState(
        session.host,
        hold.token,
        hold.mode,
        max(0, now_ns - hold.since_ns) // 1000,
        session.connected,
        _ms(now_ns - session.seen_ns),
        _ms(session.deadline_ns - now_ns),
        hold.sticky,
    )


def _why(shared: Shared, lock: Lock, waiter: Waiter, is_first: bool, now_ns: int) -> Reason:
    """Return why a waiter was not granted the lock yet, by the rules of lockd.queues."""
    if not shared.can_be_served(lock, waiter):
        if not shared.sessions[waiter.session].connected:
            return "disconnected"
        return "absent" if lock.file is not None and is_lost(shared, lock.file) else "learning"
    if not is_first:
        return "turn"
    if now_ns < _delay_end_ns(shared, lock) and not (lock.holds and shared.plain_from_ns <= now_ns):
        return "delay"
    return "learner" if lock.file is not None and not lock.holds and now_ns < lock.file.patience[0] else "holder"
