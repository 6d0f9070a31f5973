"""What a picture of a run shows, worked out of its files: lanes, events, messages, holds, and what went wrong.

Theory of operation. Everything has a place on two axes. On the axis of network time it is a moment, in microseconds
since the run's first moment. On the axis of logical time an event's place is its depth, the length of the longest
chain of events that led to it, so that an arrow always leads to the right and concurrent events may share a column.
What is no event, as a hold or a crash, has its logical place between the events of its lane that it lies between.

Every arrow and cut follows from the clocks alone: nothing is guessed from the order of lines in different logs.
"""

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from common.eventlog import Event
from common.grantlog import GrantLine
from common.tokens import format_token, parse_token
from scripts.picture.handed_on import handed_on
from scripts.picture.notes import NoteKind, NoteLine, RunNotes, apart
from scripts.verdict.copies import owner_by_line, owners
from scripts.verdict.evidence import Client, Evidence, Journal

_AROUND: Final = 0.4
"""How far a hold reaches around its ops, in logical time."""

LOCKD: Final = "lockd"
"""The name of lockd's lane, which is the first."""

SpanKind = Literal["down", "apart", "fault"]
ArrowKind = Literal["sync", "hand-off", "fenced", "late"]


@dataclass(frozen=True, slots=True)
class Place:
    """A place on both axes: microseconds since the run's first moment, and logical time."""

    time: int
    depth: float


@dataclass(slots=True)
class Mark:
    """An event in its lane. `changed` are the components, its own aside, that rose with it; `rest` ends its line.

    `text` is the line from the verb on. A mark that is `struck` tells of what its own lane took back later.
    """

    lane: int
    host: int
    count: int
    at: Place
    event: Event
    text: str
    changed: tuple[tuple[int, int], ...]
    struck: bool = False


@dataclass(frozen=True, slots=True)
class Hold:
    """A lock held by a lane under a token, from `begin` to `end`; it was asked for at `asked`.

    `over` says how it ended; "open" if no line tells. `served` are begin and end in the logical time of lockd's lane,
    where holds of one lock never lie over each other but readers. `first` and `last` are the numbers of the marks of
    the ops done under it, -1 if there is none.
    """

    lane: int
    lock: str
    mode: str
    token: int
    asked: Place
    begin: Place
    end: Place
    over: Literal["release", "expiry", "open"]
    waited_us: int
    served: tuple[float, float] = (0.0, 0.0)
    first: int = -1
    last: int = -1

    @property
    def exclusive(self) -> bool:
        """Tell whether it is a writer's."""
        return self.mode == "exclusive"


@dataclass(frozen=True, slots=True)
class Arrow:
    """Something that went from one lane to another.

    A push that was refused where it came is `late` if its op is in the file's history all the same, by other ways,
    and `fenced` if it is not.
    `source_mark` and `target_mark` are the numbers of the marks between which it leads, -1 where there is none.
    """

    kind: ArrowKind
    source: int
    begin: Place
    target: int
    end: Place
    label: str = ""
    source_mark: int = -1
    target_mark: int = -1


@dataclass(frozen=True, slots=True)
class Note:
    """A line of client.log or lockd.log, or of what was done to the run, at its place in a lane."""

    lane: int
    kind: NoteKind
    at: Place
    text: str


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a lane: its process is down, is apart from lockd, or something is done to it on purpose."""

    lane: int
    kind: SpanKind
    begin: Place
    end: Place
    text: str


@dataclass(frozen=True, slots=True)
class Picture:
    """All that is drawn. `origin_us` is the first moment, microseconds since 1970; lane 0 is lockd's.

    `marks` stand in an order that respects happens-before. `histories` has each file's ops as the newest journal
    tells them. `missing` counts, per host, the events that clocks count and no log here has.
    """

    title: str
    origin_us: int
    lanes: Sequence[str]
    hosts: Sequence[str]
    marks: Sequence[Mark]
    holds: Sequence[Hold]
    arrows: Sequence[Arrow]
    notes: Sequence[Note]
    spans: Sequence[Span]
    histories: Mapping[str, Journal]
    missing: Mapping[str, int]


def draw(title: str, evidence: Evidence, told: RunNotes) -> Picture:
    """Work out the picture of a run."""
    grants = [line.line for line in evidence.grants.lines] if evidence.grants else []
    return _Drawing(title, evidence.clients, grants, told).picture()


@dataclass(slots=True)
class _Lane:
    """What places things in a lane: its marks' moments and depths, both rising."""

    times: list[int] = field(default_factory=list)
    depths: list[float] = field(default_factory=list)

    def depth_at(self, time: int) -> float:
        """Return the logical time of a moment of this lane: between the events that it lies between."""
        after = bisect_right(self.times, time)
        if not self.times:
            return 0.0
        if after == 0:
            return self.depths[0] - 0.5
        if after == len(self.times):
            return self.depths[-1] + 0.5
        begin, end = self.times[after - 1], self.times[after]
        share = (time - begin) / (end - begin)
        return self.depths[after - 1] + share * (self.depths[after] - self.depths[after - 1])


class _Drawing:
    """One picture in the making."""

    def __init__(self, title: str, clients: Sequence[Client], grants: Sequence[GrantLine], told: RunNotes) -> None:
        self._title, self._clients, self._grants, self._told = title, clients, grants, told
        self._lanes = [LOCKD, *[client.name for client in clients]]
        self._clients_lanes = {client.name: lane for lane, client in enumerate(clients, 1)}
        self._lane_of: dict[str, int] = {}
        self._shapes = [_Lane() for _ in self._lanes]
        moments = [line.event.time_us for client in clients for line in client.lines]
        moments += [line.time_us for line in grants] + told.moments()
        self._origin_us = min(moments, default=0)
        self._end_us = max(moments, default=0)

    def picture(self) -> Picture:
        """Return what is drawn."""
        marks, hosts = self._draw_marks()
        self._shape_lockd()
        holds = self._draw_holds(marks)
        histories = _histories(self._clients)
        arrows = [*self._draw_syncs(marks), *self._draw_hand_offs(holds), *self._draw_refused(marks, histories)]
        notes = [
            Note(lane, note.kind, self._place(lane, note.time_us), note.text)
            for lane, notes in self._notes_by_lane()
            for note in notes
        ]
        return Picture(
            self._title,
            self._origin_us,
            self._lanes,
            hosts,
            marks,
            holds,
            arrows,
            notes,
            self._draw_spans(),
            histories,
            _missing(marks),
        )

    def _place(self, lane: int, time_us: int) -> Place:
        time = time_us - self._origin_us
        return Place(time, self._shapes[lane].depth_at(time))

    # Events

    def _draw_marks(self) -> tuple[list[Mark], list[str]]:
        """Place every event, copies of lines left out; a place rises along happens-before."""
        by_host = owners(self._clients)
        owned = [
            (lane, line)
            for lane, client in enumerate(self._clients, 1)
            for line, owner in zip(client.lines, owner_by_line(client, by_host), strict=True)
            if owner is client and _reads(line.event)
        ]
        # What happens before another event has a smaller clock, so a smaller sum.
        owned.sort(key=lambda pair: (sum(pair[1].event.clock.values()), pair[1].event.time_us))
        hosts = sorted({host for _, line in owned for host in line.event.clock}, key=lambda host: (len(host), host))
        numbers = {host: number for number, host in enumerate(hosts)}
        depths: dict[tuple[str, int], float] = {}
        before: dict[str, Mapping[str, int]] = {}
        marks: list[Mark] = []
        for lane, line in owned:
            event = line.event
            host, clock = event.host, event.clock
            last = before.get(host, {})
            rose = [(other, count) for other, count in clock.items() if count > last.get(other, 0) and other != host]
            own = clock[host]
            shape = self._shapes[lane]
            depth = 1 + max([0, *[depths.get(one, 0) for one in rose], *shape.depths[-1:]])
            depths[host, own] = depth
            before[host] = clock
            time = event.time_us - self._origin_us
            shape.times.append(max([time, *shape.times[-1:]]))
            shape.depths.append(depth)
            self._lane_of[host] = lane
            text = line.raw.split(" ", 3)[3]
            changed = tuple([(numbers[other], count) for other, count in rose])
            marks.append(Mark(lane, numbers[host], own, Place(time, depth), event, text, changed))
        _strike(marks)
        return marks, hosts

    # Locks

    def _shape_lockd(self) -> None:
        """Give lockd's lane the logical times of those to whom it granted."""
        shape = self._shapes[0]
        for line in self._grants:
            if (lane := self._lane(line.client)) is not None:
                place = self._place(lane, line.time_us)
                shape.times.append(max([place.time, *shape.times[-1:]]))
                shape.depths.append(max([place.depth, *shape.depths[-1:]]))

    def _draw_holds(self, marks: Sequence[Mark]) -> list[Hold]:
        begun: dict[tuple[int, str], tuple[GrantLine, int]] = {}
        holds: list[Hold] = []
        for line in self._grants:
            lane = self._lane(line.client)
            if lane is None:
                continue
            key = line.token, line.client
            if line.event == "grant":
                begun[key] = line, lane
            elif key in begun:
                grant, lane = begun.pop(key)
                holds.append(self._hold(grant, lane, line.time_us, line.event))
        holds += [self._hold(grant, lane, self._end_us, "open") for grant, lane in begun.values()]
        return self._in_logical_order(sorted(holds, key=lambda hold: (hold.begin.time, hold.token)), marks)

    def _hold(self, grant: GrantLine, lane: int, end_us: int, over: Literal["release", "expiry", "open"]) -> Hold:
        begin, end = self._place(lane, grant.time_us), self._place(lane, max(end_us, grant.time_us))
        asked = self._place(lane, grant.time_us - grant.waited_us)
        return Hold(lane, grant.lock, grant.mode, grant.token, asked, begin, end, over, grant.waited_us)

    def _in_logical_order(self, holds: Sequence[Hold], marks: Sequence[Mark]) -> list[Hold]:
        """Put each hold around the ops that were done under it, and its end before the begin of those after it.

        What was done under a lock that had expired is concurrent with what came after. It keeps its place in its own
        lane; in lockd's it ends where the next hold begins.
        """
        ops: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, mark in enumerate(marks):
            if mark.event.verb not in ("apply", "undo"):
                ops[mark.lane, parse_token(mark.event.values["token"])].append(number)
        next_any: dict[str, float] = {}
        next_writer: dict[str, float] = {}
        placed: list[Hold] = []
        for hold in reversed(holds):
            own = ops.get((hold.lane, hold.token), [])
            depths = [marks[number].at.depth for number in own]
            # Beside a reader others read, in any logical order: only a writer comes before all that come later.
            is_writer = hold.exclusive
            begin, end = hold.begin.depth, hold.end.depth
            limit = (next_any if is_writer else next_writer).get(hold.lock, float("inf"))
            granted = min(begin, limit)
            if depths:
                begin = min(depths) - _AROUND
                # The others take it in a step later, before the lock goes on.
                end = max(depths) + (1 + _AROUND if is_writer else _AROUND)
            if depths and hold.over != "expiry":
                granted = begin
            begin = begin if depths else granted
            served = granted, max(granted, min(end, limit))
            end = max(begin, end if hold.over == "expiry" and depths else min(end, limit))
            next_any[hold.lock] = min(granted, next_any.get(hold.lock, granted))
            if is_writer:
                next_writer[hold.lock] = min(granted, next_writer.get(hold.lock, granted))
            placed.append(
                replace(
                    hold,
                    asked=replace(hold.asked, depth=min(hold.asked.depth, begin)),
                    begin=replace(hold.begin, depth=begin),
                    end=replace(hold.end, depth=end),
                    served=served,
                    first=own[0] if own else -1,
                    last=own[-1] if own else -1,
                )
            )
        return placed[::-1]

    def _draw_hand_offs(self, holds: Sequence[Hold]) -> list[Arrow]:
        """Draw how each lock went on: to a reader from the writer before it, to a writer from all readers since."""
        arrows: list[Arrow] = []
        for last, hold in handed_on(holds):
            if last.lane != hold.lane and last.end.time <= hold.begin.time:
                begin = Place(last.end.time, min(last.end.depth, hold.begin.depth))
                ends = last.lane, begin, hold.lane, hold.begin
                arrows.append(Arrow("hand-off", *ends, hold.lock, last.last, hold.first))
        return arrows

    # Messages

    def _draw_syncs(self, marks: Sequence[Mark]) -> list[Arrow]:
        """Draw from each op to those who took it in, as far as their clocks say that it came from there."""
        ops: dict[str, int] = {}
        arrows: list[Arrow] = []
        for number, mark in enumerate(marks):
            id_ = mark.event.values.get("id", "")
            if mark.event.verb not in ("apply", "undo"):
                ops[id_] = number
            elif mark.event.verb == "apply" and id_ in ops:
                op = marks[ops[id_]]
                if op.lane != mark.lane and mark.event.clock.get(op.event.host, 0) >= op.count:
                    arrows.append(Arrow("sync", op.lane, op.at, mark.lane, mark.at, id_, ops[id_], number))
        return arrows

    def _draw_refused(self, marks: Sequence[Mark], histories: Mapping[str, Journal]) -> list[Arrow]:
        """Draw each late push to who refused it, from the last change that its author logged under that token."""
        changes: dict[int, int] = {}
        for number, mark in enumerate(marks):
            if mark.event.verb in ("write", "update", "restore"):
                changes[parse_token(mark.event.values["token"])] = number
        arrows: list[Arrow] = []
        for lane, notes in self._notes_by_lane():
            for note in notes:
                # Who refuses it may know its author no more, as its session was over; the token names one holder.
                if note.fenced in changes:
                    number = changes[note.fenced]
                    source = marks[number]
                    if source.lane != lane:
                        end = self._place(lane, note.time_us)
                        # Who refuses it knows of nothing that came with it; but it was there before that.
                        end = replace(end, depth=max(end.depth, source.at.depth + _AROUND))
                        label = format_token(note.fenced)
                        kind: ArrowKind = "late" if _is_in(histories, source.event) else "fenced"
                        arrows.append(Arrow(kind, source.lane, source.at, lane, end, label, number))
        return arrows

    # What went wrong

    def _lane(self, host: str) -> int | None:
        """Return the lane of a host; of one that has no event, by its name."""
        return self._lane_of.get(host, self._clients_lanes.get(host))

    def _notes_by_lane(self) -> list[tuple[int, Sequence[NoteLine]]]:
        clients = [(self._clients_lanes[name], notes) for name, notes in self._told.clients.items()]
        return [(0, self._told.lockd), *clients]

    def _draw_spans(self) -> list[Span]:
        """Draw where a process was down or apart from lockd, and what was done to the run on purpose."""
        spans: list[Span] = []

        def span(lane: int, kind: SpanKind, begin_us: int, end_us: int, text: str) -> None:
            spans.append(Span(lane, kind, self._place(lane, begin_us), self._place(lane, end_us), text))

        for lane, notes in self._notes_by_lane():
            for begin_us, end_us, text in self._down(lane, notes):
                span(lane, "down", begin_us, end_us, text)
        for host, stretches in apart(self._told.lockd, self._end_us).items():
            if (own := self._lane(host)) is not None:
                for begin_us, end_us, text in stretches:
                    span(own, "apart", begin_us, end_us, text)
        for fault in self._told.faults:
            victim = 0 if fault.victim == LOCKD else self._clients_lanes.get(fault.victim)
            if victim is not None:
                span(victim, "fault", fault.begin_us, fault.end_us, fault.text)
        return spans

    def _down(self, lane: int, notes: Sequence[NoteLine]) -> Iterator[tuple[int, int, str]]:
        """Yield when a lane's process was not running before a start of it: since its last sign of life."""
        shape = self._shapes[lane]
        last: NoteLine | None = None
        for note in notes:
            if note.kind == "start" and last is not None:
                before = bisect_left(shape.times, note.time_us - self._origin_us)
                event_us = self._origin_us + shape.times[before - 1] if before else 0
                if last.kind == "end":
                    yield last.time_us, note.time_us, "not running"
                else:
                    yield max(last.time_us, event_us), note.time_us, "it ended without a word"
            last = note


def _reads(event: Event) -> bool:
    """Tell whether an event has what every line has, as it should be; one of a damaged log is left out."""
    values = event.values
    try:
        parse_token(values["token"])
        return event.host in event.clock and bool(values["file"] and values["id"]) and int(values["seq"]) >= 0
    except (KeyError, ValueError):
        return False


def _strike(marks: Sequence[Mark]) -> None:
    """Strike out, for each undo, the newest mark of that op in its lane."""
    newest: dict[tuple[int, str], Mark] = {}
    for mark in marks:
        key = mark.lane, mark.event.values.get("id", "")
        if mark.event.verb != "undo":
            newest[key] = mark
        elif key in newest:
            newest[key].struck = True


def _missing(marks: Sequence[Mark]) -> dict[str, int]:
    """Count, per host, the events that clocks count and no mark is of."""
    drawn: Counter[str] = Counter()
    counted: dict[str, int] = {}
    for mark in marks:
        drawn[mark.event.host] += 1
        for host, count in mark.event.clock.items():
            counted[host] = max(count, counted.get(host, 0))
    return {host: count - drawn[host] for host, count in sorted(counted.items()) if count > drawn[host]}


def _histories(clients: Sequence[Client]) -> dict[str, Journal]:
    """Return each file's ops, of the journal whose newest op has the largest token, and then the largest seq."""
    found: dict[str, Journal] = {}
    for client in clients:
        for file, journal in client.journals.items():
            if file not in found or _newest(journal) > _newest(found[file]):
                found[file] = journal
    return dict(sorted(found.items()))


def _is_in(histories: Mapping[str, Journal], event: Event) -> bool:
    """Tell whether the version that an op made is in its file's history."""
    journal, seq = histories.get(event.values["file"]), int(event.values["seq"])
    hashes = journal.hashes[seq - 1 : seq] if journal is not None else ()
    return [hash_.hex()[:12] for hash_ in hashes] == [event.values.get("hash")]


def _newest(journal: Journal) -> tuple[int, int]:
    return (journal.records[-1].token, journal.records[-1].seq) if journal.records else (0, 0)
