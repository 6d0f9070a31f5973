"""Why an op came about: the shortest chain of events from one that has no cause to the op's own.

Each event of the chain is a direct cause of the next: it happens before it, and nothing happens between them. The
clocks tell which these are: the event before in the same log, and the events that its clock newly counts, as far as
none of them is before another. A search backwards in breadth finds the chain with the fewest events.

An event is kept as three numbers, and read again when the search comes to it: there may be many.
"""

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from client.event_logs import EventLog, EventLogs, parse_head, parse_own
from client.log import Asked, Complaints, colours, find, find_op, unreadable
from client.log_filters import OWN_VERBS, is_before, values_of, verb_of
from client.log_view import as_json, as_text, event_values
from client.merge import Head
from common.errors import EXIT_CRASHED, CommandError, wrong_use
from common.printing import printable

_NONE: Final = -1
_CACHED: Final = 4096


@dataclass(frozen=True, slots=True)
class Lost:
    """An event that clocks count, and that no log here has."""

    host: str
    count: int


@dataclass(frozen=True, slots=True)
class Link:
    """An event of the chain, and in words how it led to the next; nothing of the last."""

    event: Head | Lost
    led: str = ""


@dataclass(frozen=True, slots=True)
class _Row:
    """Events `begin` to before `end`, of one host, that stand in a row in one log."""

    log: int
    begin: int
    end: int


class Index:
    """Where each event stands. Events are numbered through, log after log."""

    def __init__(self, paths: Sequence[Path], complaints: Complaints) -> None:
        """Read through the logs. Raises OSError."""
        self._paths = paths
        self._rows: dict[str, list[_Row]] = {}
        self._places = array("Q")
        self._sizes = array("L")
        self._counts = array("Q")
        self._logs = array("L")
        self.read = lru_cache(_CACHED)(self._read)
        for number, path in enumerate(paths):
            self._take(number, path, complaints)

    def __len__(self) -> int:
        return len(self._places)

    def find(self, host: str, count: int) -> int:
        """Return an event's number, or -1."""
        for row in self._rows.get(host, ()):
            at = bisect_left(self._counts, count, row.begin, row.end)
            if at < row.end and self._counts[at] == count:
                return at
        return _NONE

    def before(self, event: int) -> int:
        """Return the event before in the same log, or -1."""
        return event - 1 if event and self._logs[event - 1] == self._logs[event] else _NONE

    def same_log(self, first: int, second: int) -> bool:
        """Tell whether two events stand in one log."""
        return self._logs[first] == self._logs[second]

    def _take(self, number: int, path: Path, complaints: Complaints) -> None:
        host, begin = "", len(self)
        log = EventLog(path, complaints.complain)
        for place, line in log.lines():
            try:
                its, count = parse_own(line)
            except ValueError as error:
                complaints.complain(path, log.number, str(error))
                continue
            # A row rises: what does not, in a damaged log, begins another.
            if its != host or (len(self) > begin and count <= self._counts[-1]):
                self._end_row(host, number, begin)
                host, begin = its, len(self)
            self._places.append(place)
            self._sizes.append(len(line))
            self._counts.append(count)
            self._logs.append(number)
        self._end_row(host, number, begin)

    def _end_row(self, host: str, log: int, begin: int) -> None:
        if len(self) > begin:
            self._rows.setdefault(host, []).append(_Row(log, begin, len(self)))

    def _read(self, event: int) -> Head:
        """Return an event. Raises OSError."""
        with open(self._paths[self._logs[event]], "rb", buffering=0) as file:
            file.seek(self._places[event])
            return parse_head(file.read(self._sizes[event]))


def why(id_: str, asked: Asked) -> Iterator[bytes]:
    """Yield the chain that led to the op, as it is printed. Raises CommandError."""
    complaints = Complaints()
    try:
        paths = find(EventLogs(asked.directories), asked.directories)
        op = find_op("--why", id_, paths)
        chain = shortest_chain(Index(paths, complaints), op)
        painted = colours()
        for link in chain:
            if asked.as_json:
                yield as_json(_values(link))
                continue
            yield as_text(link.event, painted) if isinstance(link.event, Head) else f"{_named(link.event)}\n".encode()
            if link.led:
                yield f"  ↳ {printable(link.led)}\n".encode()
    except OSError as error:
        raise unreadable(error) from None
    except ValueError as error:
        raise CommandError(
            EXIT_CRASHED, f"a line that led to {id_} does not read: {error}; ask scripts/check"
        ) from None
    complaints.end()


def shortest_chain(index: Index, op: Head) -> list[Link]:
    """Return the chain; it begins with a lost event only where none is whole. Raises OSError, CommandError."""
    last = index.find(op.host, op.count)
    if last == _NONE:
        raise wrong_use(f"--why: {op.host}'s event {op.count} has gone from its log; ask again")
    led_to = array("q", [_NONE]) * len(index)
    """Per event that the search has come to, the next of the chain."""
    lost: tuple[Lost, int] | None = None
    waiting = deque([last])
    while waiting:
        event = waiting.popleft()
        causes, gone = _direct_causes(index, event)
        if not causes and not gone:
            return _links(index, event, last, led_to)
        if gone and lost is None:
            lost = gone[0], event
        for cause in causes:
            if led_to[cause] == _NONE and cause != last:
                led_to[cause] = event
                waiting.append(cause)
    if lost is None:  # damaged clocks, in a circle
        return [Link(index.read(last))]
    first, event = lost
    return [Link(first, _how_lost_led(first, index.read(event))), *_links(index, event, last, led_to)]


def _direct_causes(index: Index, event: int) -> tuple[list[int], list[Lost]]:
    """Return an event's direct causes: those that are here, and those that are lost."""
    head = index.read(event)
    previous = index.before(event)
    before = index.read(previous) if previous != _NONE else None
    known = before.clock if before is not None else {}
    newly = dict(head.clock.items() - known.items())
    own = newly.pop(head.host, 0) - 1
    if own > known.get(head.host, 0):
        newly[head.host] = own
    causes: dict[int, Head] = {}
    if before is not None and is_before(before, head):
        causes[previous] = before
    lost: list[Lost] = []
    author = _author(head)
    while newly:
        # The op that a push brings has most of what else comes with it: few others have to be read.
        host = author if author in newly else min(newly)
        count = newly.pop(host)
        found = index.find(host, count)
        if found == _NONE:
            lost.append(Lost(host, count))
            continue
        cause = index.read(found)
        newly = {other: its for other, its in newly.items() if its > cause.clock.get(other, 0)}
        causes = {number: other for number, other in causes.items() if not is_before(other, cause)}
        causes[found] = cause
    lost = [gone for gone in lost if not any(it.clock.get(gone.host, 0) >= gone.count for it in causes.values())]
    return list(causes), lost


def _author(head: Head) -> str:
    """Return the host in the op's id; whatever it is otherwise does no harm."""
    return head.line.partition(b" id=")[2].partition(b":")[0].decode(errors="replace")


def _links(index: Index, first: int, last: int, led_to: Sequence[int]) -> list[Link]:
    links = []
    event = first
    while event != last:
        following = led_to[event]
        links.append(Link(index.read(event), _how_led(index, event, following)))
        event = following
    return [*links, Link(index.read(last))]


def _how_led(index: Index, cause: int, event: int) -> str:
    first, second = index.read(cause), index.read(event)
    if index.same_log(cause, event):
        return f"{second.host}'s next event"
    return _how_knowledge_came(first, second)


def _how_lost_led(first: Lost, second: Head) -> str:
    if first.host == second.host:
        return f"{second.host}'s next event"
    return _how_knowledge_came(first, second)


def _how_knowledge_came(first: Head | Lost, second: Head) -> str:
    """A change comes with a push, or as one of those that a replica lacked; all else comes with a lock."""
    values = values_of(second)
    its = values_of(first) if isinstance(first, Head) and verb_of(first) in OWN_VERBS else {}
    if verb_of(second) in OWN_VERBS:
        if its.get("file") == values.get("file"):
            return f"{first.host} handed the lock of {values.get('file')} on to {second.host}"
        return f"what {first.host} knew came to {second.host} with the lock of {values.get('file')}"
    if its.get("id") == values.get("id"):
        return f"{first.host} sent the change that {second.host} took in"
    return f"what {first.host} knew came to {second.host} with a push of {values.get('from', first.host)}"


def _named(lost: Lost) -> str:
    return printable(f"{lost.host}'s event {lost.count}, which no log here has")


def _values(link: Link) -> dict[str, object]:
    event = link.event
    told = event_values(event) if isinstance(event, Head) else {"host": event.host, "count": event.count, "lost": True}
    return told | {"led": link.led or None}
