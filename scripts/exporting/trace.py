"""A run in the Trace Event Format, which Perfetto and chrome://tracing open: who did, held and awaited what, and when.

A client is a process with its ops, its waits for locks, and what it took in from others. lockd is one, with the holds
of each lock. Arrows go from an op to where it was taken in, and from a hold to the one that it was handed on to.
Slices of one thread may not overlap, so what overlaps goes into lanes, a thread each.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from common.eventlog import Event
from common.tokens import format_token
from scripts.picture.handed_on import handed_on
from scripts.verdict.copies import owner_by_line, owners
from scripts.verdict.evidence import Evidence

Entry = dict[str, object]
"""One trace event, as its JSON object has it."""

_LOCKD_PID = 1
_POINT_US = 1
"""What has no known span is drawn as long as this: an arrow needs a slice to end at."""


@dataclass(slots=True)
class Slice:
    """Something that lasted, in microseconds of network time; where it is drawn is told last."""

    name: str
    begin_us: int
    end_us: int
    told: dict[str, object] = field(default_factory=dict)
    pid: int = 0
    tid: int = 0


@dataclass(slots=True)
class Hold(Slice):
    """A lock held by a client, and how long that had waited for it."""

    lock: str = ""
    client: str = ""
    exclusive: bool = True
    waited_us: int = 0
    expired: bool = False


@dataclass(frozen=True, slots=True)
class Arrow:
    """From a moment in one slice to a moment in another, in microseconds."""

    kind: str
    first: Slice
    first_us: int
    second: Slice
    second_us: int


class Lanes:
    """The threads of one process: each kind of slices has one lane or, where they overlap, several."""

    def __init__(self, pid: int) -> None:
        """Begin without a thread."""
        self.pid = pid
        self.names: dict[int, str] = {}
        self._tids = count(1)

    def lay(self, name: str, slices: Iterable[Slice]) -> None:
        """Give each slice its thread."""
        lanes: list[tuple[int, int]] = []
        for one in sorted(slices, key=lambda one: (one.begin_us, -one.end_us)):
            one.pid = self.pid
            free = next((at for at, (_, end_us) in enumerate(lanes) if end_us <= one.begin_us), None)
            if free is None:
                tid = next(self._tids)
                self.names[tid] = f"{name} ({len(lanes) + 1})" if lanes else name
                lanes.append((tid, one.end_us))
                one.tid = tid
            else:
                one.tid = lanes[free][0]
                lanes[free] = one.tid, one.end_us


def trace(evidence: Evidence) -> list[Entry]:
    """Return the events of the whole trace; times are microseconds from the first."""
    holds = _holds(evidence)
    by_token = {(hold.lock, hold.client, hold.told["token"]): hold for hold in holds}
    slices: list[Slice] = list(holds)
    arrows = list(_hand_offs(holds))
    processes: list[tuple[str, Lanes]] = []
    lockd = Lanes(_LOCKD_PID)
    if evidence.grants is not None:
        processes.append(("lockd", lockd))
        for lock in sorted({hold.lock for hold in holds}):
            lockd.lay(lock, [hold for hold in holds if hold.lock == lock])
    ops: dict[str, tuple[Slice, int]] = {}
    taken_in: list[tuple[Slice, Event]] = []
    by_host = owners(evidence.clients)
    for pid, client in enumerate(evidence.clients, _LOCKD_PID + 1):
        lanes = Lanes(pid)
        processes.append((client.name, lanes))
        own, others = [], []
        for line, owner in zip(client.lines, owner_by_line(client, by_host), strict=True):
            event = line.event
            if owner is not client:
                continue
            if event.verb in ("apply", "undo"):
                others.append(one := _point(event))
                taken_in.append((one, event))
            else:
                hold = by_token.get((event.values.get("file", ""), event.host, event.values.get("token", "")))
                own.append(one := _op(event, hold))
                ops.setdefault(event.values.get("id", ""), (one, event.time_us))
        hosts = {line.event.host for line in client.lines}
        waits = [_wait(hold) for hold in holds if hold.client in hosts and by_host[hold.client] is client]
        lanes.lay("ops", own)
        lanes.lay("taken in", others)
        lanes.lay("waits", [wait for wait in waits if wait.end_us > wait.begin_us])
        slices += [one for one in (*own, *others, *waits) if one.pid]
    for one, event in taken_in:
        if event.verb == "apply" and (sent := ops.get(event.values.get("id", ""))):
            arrows.append(Arrow("sync", *sent, one, event.time_us))
    return list(_entries(processes, slices, arrows, [hold for hold in holds if hold.expired]))


def _holds(evidence: Evidence) -> list[Hold]:
    """Return the holds in the order of their grants; what was held at the end of the log ends with it."""
    lines = [entry.line for entry in evidence.grants.lines] if evidence.grants is not None else []
    last_us = max((line.time_us for line in lines), default=0)
    holds: dict[int, Hold] = {}
    for line in lines:
        if line.event == "grant":
            token = format_token(line.token)
            told: dict[str, object] = {"lock": line.lock, "token": token, "client": line.client, "mode": line.mode}
            holds[line.token] = Hold(
                f"{line.client} {line.mode} {token}",
                line.time_us,
                last_us,
                told,
                lock=line.lock,
                client=line.client,
                exclusive=line.mode == "exclusive",
                waited_us=line.waited_us,
            )
        elif (hold := holds.get(line.token)) is not None:
            hold.end_us = line.time_us
            hold.expired = line.event == "expiry"
    for hold in holds.values():
        hold.end_us = max(hold.end_us, hold.begin_us + _POINT_US)
    return list(holds.values())


def _hand_offs(holds: Sequence[Hold]) -> Iterator[Arrow]:
    for former, hold in handed_on(holds):
        if former.end_us <= hold.begin_us + _POINT_US:
            yield Arrow("hand-off", former, former.end_us, hold, hold.begin_us)


def _op(event: Event, hold: Hold | None) -> Slice:
    """An op lasts from its request for the lock to the lock's release, as far as that is known."""
    point = _point(event)
    if hold is not None:
        point.begin_us = min(event.time_us, hold.begin_us - hold.waited_us)
        point.end_us = max(point.end_us, hold.end_us)
    return point


def _point(event: Event) -> Slice:
    values = event.values
    name = f"{event.verb} {values.get('file', '')}@{values.get('seq', '')}"
    told: dict[str, object] = {"clock": dict(event.clock), **values}
    return Slice(name, event.time_us, event.time_us + _POINT_US, told)


def _wait(hold: Hold) -> Slice:
    token = hold.told["token"]
    return Slice(f"waits for {hold.lock} {token}", hold.begin_us - hold.waited_us, hold.begin_us, dict(hold.told))


def _entries(
    processes: Sequence[tuple[str, Lanes]], slices: Sequence[Slice], arrows: Sequence[Arrow], expired: Sequence[Hold]
) -> Iterator[Entry]:
    for order, (name, lanes) in enumerate(processes):
        about: Entry = {"ph": "M", "ts": 0, "pid": lanes.pid, "tid": 0}
        yield {**about, "name": "process_name", "args": {"name": name}}
        yield {**about, "name": "process_sort_index", "args": {"sort_index": order}}
        for tid, thread in lanes.names.items():
            yield {**about, "tid": tid, "name": "thread_name", "args": {"name": thread}}
    origin_us = min((one.begin_us for one in slices), default=0)
    found: list[tuple[int, Entry]] = []

    def put(kind: str, one: Slice, at_us: int, more: Entry) -> None:
        found.append((at_us, {"ph": kind, "ts": at_us - origin_us, "pid": one.pid, "tid": one.tid, **more}))

    for one in slices:
        put("X", one, one.begin_us, {"name": one.name, "dur": one.end_us - one.begin_us, "args": one.told})
    for hold in expired:
        put("i", hold, hold.end_us, {"name": f"{hold.name} is lost", "s": "t"})
    for number, arrow in enumerate(arrows, 1):
        named: Entry = {"name": arrow.kind, "cat": arrow.kind, "id": number}
        put("s", arrow.first, _within(arrow.first, arrow.first_us), named)
        put("f", arrow.second, _within(arrow.second, arrow.second_us), {**named, "bp": "e"})
    found.sort(key=lambda pair: pair[0])
    yield from [entry for _, entry in found]


def _within(one: Slice, at_us: int) -> int:
    """An arrow binds to the slice that is under way at its end; a slice's own end is not."""
    return min(max(at_us, one.begin_us), one.end_us - 1)
