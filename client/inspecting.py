"""What an Inspection says, for people: rates, rows of tables, sentences. No I/O.

Every text that comes from elsewhere leaves this module with what is not printable escaped.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, assert_never

from common.eventlog import format_time
from common.histogram import quantile_us, since
from common.messages import HolderState, Inspection, LockState, MemberState, Reason, ReplicaState, WaiterState
from common.printing import printable
from common.tokens import format_token

Row = tuple[str, ...]

MEMBER_COLUMNS: Final = (
    "MEMBER",
    "ROLE",
    "LINK",
    "IN SYNC",
    "LEARNS",
    "BEHIND",
    "SEEN",
    "EPOCH",
    "START",
    "NEEDED FOR",
)
LOCK_COLUMNS: Final = ("LOCK", "STATE", "IN SYNC", "WHO", "MODE", "TOKEN", "FOR", "WHAT")
_STATUS_FILES_MAX: Final = 10
UNKNOWN: Final = "?"
NONE: Final = "–"


@dataclass(frozen=True, slots=True)
class Rates:
    """What happened within `over_s` seconds; the quantiles are in microseconds, None where nothing was counted.

    Without an earlier reading of the same lockd, `since_start` is true: it is the mean since then.
    """

    over_s: float
    since_start: bool
    grants_per_s: float
    ops_per_s: float
    wait_p99_us: float | None
    op_p99_us: float | None


def rates(now: Inspection, before: Inspection | None = None) -> Rates:
    """Return what has happened between two readings, or since lockd's start where `before` is of another lockd."""
    if before is not None and (before.epoch, before.since_us) != (now.epoch, now.since_us):
        before = None
    over_s = max(1, now.time_us - (before.time_us if before else now.since_us)) / 1e6
    grants = _sum_of(now, "grants") - (_sum_of(before, "grants") if before else 0)
    waits, ops = (since(_spread_of(now, what), _spread_of(before, what) if before else ()) for what in ("waits", "ops"))
    done = sum(ops) + count_of(now, "kept_ops") - (count_of(before, "kept_ops") if before else 0)
    return Rates(
        over_s, before is None, grants / over_s, done / over_s, quantile_us(waits, 0.99), quantile_us(ops, 0.99)
    )


def count_of(inspection: Inspection, what: str, kind: str = "") -> int:
    """Return one of lockd's counts, 0 where this lockd does not know it."""
    return sum(each.count for each in inspection.counts if each.what == what and each.kind == kind)


def _sum_of(inspection: Inspection, what: str) -> int:
    return sum(each.count for each in inspection.counts if each.what == what)


def _spread_of(inspection: Inspection, what: str) -> tuple[int, ...]:
    return next((each.counts for each in inspection.spreads if each.what == what), ())


# Numbers for people


def duration(us: float | None) -> str:
    """Write microseconds with two digits or so: 80 µs, 1.8 ms, 12 ms, 1.2 s, 3 m 12 s, 2 h 5 m, 4 d 1 h."""
    if us is None:
        return NONE
    if us < 1000:
        return f"{us:.0f} µs"
    if us < 10_000:
        return f"{us / 1000:.1f} ms"
    if us < 1_000_000:
        return f"{us / 1000:.0f} ms"
    if us < 60_000_000:
        return f"{us / 1e6:.1f} s"
    seconds = int(us / 1e6)
    for unit, name, smaller, its in ((86_400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= unit:
            return f"{seconds // unit} {name} {seconds % unit // smaller} {its}"
    raise AssertionError("a minute has 60 seconds")


def plural(count: int, noun: str) -> str:
    """Write a count with its noun."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _per_s(rate: float) -> str:
    return f"{rate:.0f}/s" if rate >= 10 else f"{rate:.1f}/s"


def _left_out(count: int) -> str:
    return f"and {count} more" if count else ""


def _names(names: Iterable[str], left_out: int = 0) -> str:
    shown = [printable(name) for name in names]
    return ", ".join([*shown, _left_out(left_out)] if left_out else shown)


# Tables


def member_rows(inspection: Inspection) -> list[Row]:
    """Return a row for each member, by MEMBER_COLUMNS."""
    return [_member_row(inspection, member) for member in inspection.members]


def _member_row(inspection: Inspection, member: MemberState) -> Row:
    replica = bool(member.replica)
    link = "absent" if not member.session else "up" if member.connected else "down"
    behind = UNKNOWN if member.behind is None else str(member.behind)
    return (
        printable(member.host),
        "replica" if replica else "no replica",
        link,
        str(member.in_sync) if replica else NONE,
        str(member.learning) if replica else NONE,
        behind if replica else NONE,
        UNKNOWN if member.seen_ms is None else duration(member.seen_ms * 1000),
        str(inspection.epoch) if member.session else UNKNOWN,
        str(member.start_count) if replica else NONE,
        _names(member.needed, member.needed_left_out),
    )


def is_well(row: Row) -> bool:
    """Tell whether a member's row has nothing to look after: it is up, and not behind."""
    return row[2] == "up" and row[5] in ("0", NONE)


def lock_rows(inspection: Inspection) -> list[Row]:
    """Return the rows of all locks, by LOCK_COLUMNS: one for each holder and waiter, the lock in the first."""
    return [row for lock in inspection.locks for row in _lock_rows(lock)]


def _lock_rows(lock: LockState) -> list[Row]:
    rows: list[Row] = []
    for holder in lock.holders:
        what = "may hold" if holder.sticky else "holds"
        what += "" if holder.connected else ", link down"
        rows.append((printable(holder.host), holder.mode, format_token(holder.token), duration(holder.held_us), what))
    if lock.holders_left_out:
        rows.append((_left_out(lock.holders_left_out), "", "", "", "hold"))
    rows += [(printable(each.host), each.mode, "", duration(each.waited_us), _short(each.why)) for each in lock.queue]
    if lock.queue_left_out:
        rows.append((_left_out(lock.queue_left_out), "", "", "", "wait"))
    head = printable(lock.lock), _state(lock), _in_sync(lock)
    if lock.delay_ms:
        rows.insert(len(lock.holders), ("", "", "", duration(lock.delay_ms * 1000), "lock delay left"))
    first, *more = rows or [("", "", "", "", "free")]
    return [head + first, *[("", "", "", *row) for row in more]]


def _state(lock: LockState) -> str:
    if lock.kind == "plain":
        return f"limit {lock.limit}" if lock.limit else "no file"
    at = f" @{lock.version.seq}" if lock.version is not None else f" {UNKNOWN}"
    return ("clean" if lock.clean else "unclean") + at


def _in_sync(lock: LockState) -> str:
    """Write how many of the in-sync set are up, of how many, and how many learn."""
    if lock.kind == "plain":
        return NONE
    up, absent, learning = [
        sum(each.standing == standing for each in lock.replicas) for standing in ("in sync", "absent", "learner")
    ]
    return f"{up}/{up + absent}" + (f" +{learning}" if learning else "")


def _short(why: Reason) -> str:
    match why:
        case "holder":
            return "is next"
        case "turn":
            return "waits its turn"
        case "disconnected":
            return "link down"
        case "learning":
            return "is catching up"
        case "learner":
            return "lets one catch up"
        case "absent":
            return "newest is absent"
        case "delay":
            return "lock delay"
        case "grace":
            return "lockd's start"
        case _:
            assert_never(why)


# Sentences


def top_lines(inspection: Inspection, their: Rates) -> list[str]:
    """Return the lines above the tables of `top`."""
    up = duration(inspection.time_us - inspection.since_us)
    replicas, files = plural(inspection.replicas, "replica"), plural(inspection.files, "file")
    lost = f", of {inspection.lost} the newest version is absent" if inspection.lost else ""
    stretch = "since start" if their.since_start else "now"
    grants, ops = _per_s(their.grants_per_s), _per_s(their.ops_per_s)
    waits, times = duration(their.wait_p99_us), duration(their.op_p99_us)
    return [
        f"epoch {inspection.epoch}, up {up}; {replicas}, {files}, {inspection.unclean} unclean{lost}",
        f"{stretch}: {grants} grants, {ops} ops; p99 of waits {waits}, of ops {times}",
        *grace_lines(inspection),
    ]


def grace_lines(inspection: Inspection) -> list[str]:
    """Return what lockd waits for after its start, if it does."""
    if not inspection.expected:
        return []
    left = duration(inspection.grace_ms * 1000)
    return [f"lockd has started anew, and grants nothing yet: {left} left for {_names(inspection.expected)}"]


def fault_lines(inspection: Inspection, newest: int) -> list[str]:
    """Return the newest faults, the last of them last."""
    faults = inspection.faults[-newest:] if newest > 0 else ()
    return [f"{duration(inspection.time_us - each.time_us)} ago: {printable(each.text)}" for each in faults]


def status_lines(inspection: Inspection) -> list[str]:
    """Return the summary of a group: each line begins with what it is about."""
    mean = rates(inspection)
    losses, drops = _sum_of(inspection, "expiries"), count_of(inspection, "drops")
    gone = _sum_of(inspection, "sessions_ended") - count_of(inspection, "sessions_ended", "goodbye")
    grants, unclean = _sum_of(inspection, "grants"), count_of(inspection, "unclean_grants")
    files = [lock for lock in inspection.locks if lock.kind == "file"][:_STATUS_FILES_MAX]
    told = [
        ("group", f"{inspection.group}, epoch {inspection.epoch}, ttl {duration(inspection.ttl_ms * 1000)}"),
        ("lockd", f"up {duration(inspection.time_us - inspection.since_us)}, since {format_time(inspection.since_us)}"),
        ("sessions", f"{plural(inspection.replicas, 'replica')}, {inspection.others} without"),
        (
            "files",
            f"{inspection.files}, {inspection.unclean} unclean, of {inspection.lost} the newest version is absent",
        ),
        *[("", f"{printable(lock.lock)} {_state(lock)}, in sync {_in_sync(lock)}") for lock in files],
    ]
    if len(files) < inspection.files:
        told.append(("", _left_out(inspection.files - len(files))))
    told += [
        ("grants", f"{grants}, {_per_s(mean.grants_per_s)}, {unclean} unclean; wait p99 {duration(mean.wait_p99_us)}"),
        ("ops", f"{_per_s(mean.ops_per_s)}; p99 {duration(mean.op_p99_us)}"),
        ("lost", f"{plural(losses, 'lock')}, {plural(gone, 'session')} without a goodbye, {plural(drops, 'drop')}"),
        *[("waits", line) for line in grace_lines(inspection)],
        *[("fault", line) for line in fault_lines(inspection, len(inspection.faults))],
    ]
    return [f"{about:9} {text}" for about, text in told]


def why_lines(inspection: Inspection, name: str) -> list[str]:
    """Return sentences on a lock: who has it, and what each waiter waits for."""
    lock = next((lock for lock in inspection.locks if lock.lock == name), None)
    if lock is None:
        return [
            f"nothing is known of {printable(name)}: it is no file of this group, and no lock that is held or wanted",
            *grace_lines(inspection),
        ]
    if lock.kind == "file":
        lines = _file_lines(lock)
    elif lock.limit:
        lines = [f"{printable(name)} is a semaphore: {plural(lock.limit, 'client')} may hold it at once"]
    else:
        lines = [f"{printable(name)} is a lock without a file"]
    lines += [_holder_line(holder) for holder in lock.holders]
    if lock.holders_left_out:
        lines.append(f"{_left_out(lock.holders_left_out)} hold it")
    lines += _silent_lines(inspection, lock)
    if lock.delay_ms:
        left = duration(lock.delay_ms * 1000)
        lines.append(
            f"a holder has lost it and may not have heard: nobody else is granted it for the lock delay, {left}"
        )
    if not lock.holders:
        lines.append("nobody holds it" + ("" if lock.queue else ", and nobody waits for it"))
    lines += [f"{place}. {_waiter_line(inspection, lock, place, each)}" for place, each in enumerate(lock.queue, 1)]
    if lock.queue_left_out:
        lines.append(f"{_left_out(lock.queue_left_out)} wait behind them")
    return lines


def _file_lines(lock: LockState) -> list[str]:
    name = printable(lock.lock)
    in_sync, absent, learners = [
        [each for each in lock.replicas if each.standing == standing] for standing in ("in sync", "absent", "learner")
    ]
    at = f"version {lock.version.seq} ({lock.version.hash.hex()[:12]})" if lock.version is not None else ""
    if lock.clean:
        lines = [f"{name} is clean at {at}"]
    else:
        known = f"; acknowledged is {at}" if at else "; which version is acknowledged lockd does not know"
        lines = [f"{name} is unclean, its next holder settles it first{known}"]
    if in_sync:
        lines.append(f"in sync: {_names(each.host for each in in_sync)}")
    if absent and in_sync:
        lines.append(f"in the in-sync set, but absent: {_names(each.host for each in absent)}")
    elif absent:
        lines.append(f"only absent clients hold the newest version: {_names(each.host for each in absent)}; start one")
    lines += [f"{printable(each.host)} is catching up: {_behind(each)}" for each in learners]
    if lock.replicas_left_out:
        lines.append(f"{_left_out(lock.replicas_left_out)} have it")
    return lines


def _silent_lines(inspection: Inspection, lock: LockState) -> list[str]:
    """Name the replicas that a holder's change may wait for: they have missed a ping, which comes every third ttl."""
    holders = [holder.host for holder in lock.holders if holder.mode == "exclusive"]
    return [
        f"{printable(each.host)} is in sync, and was heard of {duration(each.seen_ms * 1000)} ago: "
        f"a change of {printable(holder)} waits for its ack"
        for holder in holders
        for each in lock.replicas
        if each.standing == "in sync"
        and each.host != holder
        and each.seen_ms is not None
        and each.seen_ms > inspection.ttl_ms / 2
    ]


def _behind(replica: ReplicaState) -> str:
    if replica.behind is None:
        return "how far it is behind is not known"
    return f"{plural(replica.behind, 'version')} behind as it last said"


def _holder_line(holder: HolderState) -> str:
    how = "exclusively" if holder.mode == "exclusive" else "shared"
    token, held = format_token(holder.token), duration(holder.held_us)
    verb = "may keep" if holder.sticky else "holds"
    line = f"{printable(holder.host)} {verb} it {how} under token {token} for {held}"
    if holder.sticky:
        line += ", until somebody wants it"
    link = "its connection is up" if holder.connected else "its connection is down"
    lease = f"its lease has {duration(holder.lease_ms * 1000)} left"
    return f"{line}; {link}, it was heard of {duration(holder.seen_ms * 1000)} ago, {lease}"


def _waiter_line(inspection: Inspection, lock: LockState, place: int, waiter: WaiterState) -> str:
    who = f"{printable(waiter.host)} ({waiter.mode}) waits {duration(waiter.waited_us)}"
    match waiter.why:
        case "holder":
            holds = [
                f"{printable(each.host)}'s {'exclusive' if each.mode == 'exclusive' else 'shared'} hold"
                for each in lock.holders
            ]
            return f"{who} for {' and '.join(holds) or 'lockd to grant it'}; it is next"
        case "turn":
            before = plural(place - 1, "other")
            return f"{who} for its turn: {before} asked before it"
        case "disconnected":
            return f"{who}: its own connection is down, and it keeps its place"
        case "learning":
            return f"{who}: it is not in the in-sync set, and is catching up"
        case "learner":
            return f"{who}: it is next, when a learner that asked before it has caught up"
        case "absent":
            absent = _names(each.host for each in lock.replicas if each.standing == "absent")
            return f"{who}: only absent clients hold the newest version: {absent}; start one"
        case "delay":
            return f"{who} for the end of the lock delay; it is next"
        case "grace":
            left = duration(inspection.grace_ms * 1000)
            return f"{who}: the grace after lockd's start, {left} left for {_names(inspection.expected)}"
        case _:
            assert_never(waiter.why)
