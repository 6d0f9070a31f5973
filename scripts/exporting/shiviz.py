"""A run as one file that ShiViz and TSViz take, with what crashes have cut off put back.

Both build a graph from the clocks, and take a file whole or not at all. They demand that

- its first line is the parser expression, its second the expression between runs: here none;
- a clock holds its own host;
- a host's counts are 1, 2, 3, ..., each once;
- whatever a clock counts of another host is an event in the file;
- hosts are not named like what every JavaScript object has.

TSViz also wants the group `timestamp` to be a number of nanoseconds. It compares them as texts, and cuts off three
digits before it subtracts. So these count from a day before the first line, as the rest of a number of 19 digits.

Events that clocks count and no log has become `lost` ones. Lines come in causal order; so when one counts what has not
come, it is lost, and its place is here. A lost event gets the clock of its host's event before, one further: that is
the least it knew, and draws no line that nobody saw. It gets the time at which it was first known of.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from client.merge import Head
from common.clock import Clock, format_clock
from common.eventlog import format_time, parse_time
from common.names import is_host
from common.printing import printable

HEADER: Final = r"(?<timestamp>\d+) (?<time>\S+) (?<host>\S+) (?<clock>\{[^}]*\}) (?<event>.*)" + "\n\n"
LOST_MAX: Final = 1_000_000
"""A clock that counts so many events beyond all logs is damaged."""

_FIRST_NS: Final = 10**18 + 86_400 * 10**9
_RESERVED: Final = frozenset(
    [
        "__defineGetter__", "__defineSetter__", "__lookupGetter__", "__lookupSetter__", "__proto__", "constructor",
        "hasOwnProperty", "isPrototypeOf", "propertyIsEnumerable", "toLocaleString", "toString", "valueOf",
    ]
)  # fmt: skip


class TooManyLost(Exception):
    """So many events are missing that a clock must be damaged; in one line."""


class Mended:
    """The lines of a file that both tools take; what was mended is known when they have all been taken."""

    def __init__(self) -> None:
        """Begin an empty file."""
        self._counts: dict[str, int] = {}
        """Per host, how many of its events stand in the file."""
        self._clocks: dict[str, Clock] = {}
        self._times_us: dict[str, int] = {}
        self._lost: dict[str, list[tuple[int, int]]] = {}
        self._left_out: dict[tuple[str, str], int] = {}
        self._names: dict[str, str] = {}
        self._first_us = 0
        self._events = 0

    def lines(self, heads: Iterable[Head]) -> Iterator[str]:
        """Yield the file, line by line, from events in causal order. Raises TooManyLost."""
        yield HEADER
        for head in heads:
            if not all(host in self._counts or is_host(host) for host in head.clock):
                self._leave_out(head.host, "whose clock counts what is no host")
                continue
            try:
                time_us = parse_time(head.time.decode())
            except ValueError:
                self._leave_out(head.host, "whose time is on no calendar")
                continue
            if not self._events:
                self._first_us = time_us
            for host, count in head.clock.items():
                yield from self._put_back(host, count - (host == head.host), time_us)
            if head.count <= self._counts.get(head.host, 0):
                self._leave_out(head.host, "of events that stand in the file already")
                continue
            text = printable(head.line.split(b" ", 3)[3].decode(errors="backslashreplace"))
            yield self._line(time_us, head.host, head.clock, text)

    def told(self) -> Iterator[str]:
        """Yield in words what was mended, one line per host."""
        for host in sorted(self._lost):
            ranges = self._lost[host]
            count = sum(last - first + 1 for first, last in ranges)
            which = ", ".join([str(first) if first == last else f"{first}-{last}" for first, last in ranges[:8]])
            more = ", ..." if len(ranges) > 8 else ""
            events = "1 event" if count == 1 else f"{count} events"
            yield f"{host}: {events} that no log here has, put back as lost: {which}{more}"
        for (host, why), count in sorted(self._left_out.items()):
            yield f"{host}: {count} line{'s' if count > 1 else ''} left out {why}"
        for host, name in self._names.items():
            yield f"{host}: called {name} in the file, as ShiViz cannot take this name"

    def _put_back(self, host: str, count: int, time_us: int) -> Iterator[str]:
        """Put a host's events in, up to one that was known of at `time_us`."""
        done = self._counts.get(host, 0)
        if count <= done:
            return
        if count - done > LOST_MAX:
            raise TooManyLost(f"a clock counts {count} events of {host}, of which the logs have {done}: it is damaged")
        ranges = self._lost.setdefault(host, [])
        first = ranges.pop()[0] if ranges and ranges[-1][1] == done else done + 1
        ranges.append((first, count))
        time_us = max(time_us, self._times_us.get(host, time_us))
        for lost in range(done + 1, count + 1):
            yield self._line(time_us, host, {**self._clocks.get(host, {}), host: lost}, "lost")

    def _leave_out(self, host: str, why: str) -> None:
        self._left_out[host, why] = self._left_out.get((host, why), 0) + 1

    def _line(self, time_us: int, host: str, clock: Clock, text: str) -> str:
        self._events += 1
        self._counts[host] = clock[host]
        self._clocks[host] = clock
        self._times_us[host] = time_us
        stamp = _FIRST_NS + (time_us - self._first_us) * 1000
        return f"{stamp:019d} {format_time(time_us)} {self._name(host)} {format_clock(self._renamed(clock))} {text}\n"

    def _renamed(self, clock: Clock) -> Mapping[str, int]:
        if _RESERVED.isdisjoint(clock):
            return clock
        return {self._name(host): count for host, count in clock.items()}

    def _name(self, host: str) -> str:
        if host not in _RESERVED:
            return host
        return self._names.setdefault(host, f"{host}.client")
