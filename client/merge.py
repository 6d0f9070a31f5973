"""Event logs merged into one order that respects happens-before. No I/O; it never holds more than one head per log.

Theory of operation: a log is in its own order, so its head, the first line not given out yet, comes before all its
others. A head may go when no other log's head happens before it: event (g, n) of host g happens before a head if the
head's clock has at least n for g. Whatever follows (g, n) in its log comes after it; so if the heads are not before
this one, nothing behind them is. This holds also where some hosts' logs are not given or have lost lines. Of the heads
that may go, the least network time goes first, then the least host.

A head that may not go waits on one head that is before it, and is looked at again when that log has gone past what it
waits for. So a line costs about what its clock holds, however many logs there are.

A copied directory's log begins with another's lines. Two heads that are one event do not wait for each other, and lines
that are equal go once.
"""

from collections.abc import Callable, Iterator, Mapping
from heapq import heappop, heappush
from typing import Final

from common.clock import Clock
from common.values import Value

_FOR_GOOD: Final = 1 << 64
"""More than any clock counts."""


class Head(Value, frozen=True):
    """What the order needs of a line: its network time (as text, it sorts), host, clock, own count, and itself."""

    time: bytes
    host: str
    count: int
    clock: Clock
    line: bytes


Source = Callable[[], Head | None]
"""Gives a log's next head, or None when there is none: for now, in a merge that is `live`."""


class _Log:
    """A log under way; `turn` counts its heads, so that what was noted of an earlier head is known to be over."""

    def __init__(self, number: int, read: Source, before: Mapping[str, int]) -> None:
        self.number = number
        self.read = read
        self.before = before
        """Per host, up to where its events had gone out when this log came in: its lines of these are copies."""
        self.head: Head | None = None
        self.turn = 0
        self.waiters: list[tuple[int, int, int]] = []
        """A heap of (the count that has to be gone past, log, its turn), for the host of the head."""


class Merge:
    """The order, given out step by step.

    In a `live` merge sources may go on, and others may come. An event may then be read before one that it knows of;
    `events` ends in front of it, with `missing` set, until that one is read or `give_up` is called.
    """

    def __init__(self, *, live: bool = False) -> None:
        """Begin without a log."""
        self.missing: dict[str, int] = {}
        self.cyclic = False
        """Some clocks were each before the other, which no honest ones are: there the least time went first."""
        self._live = live
        self._logs: list[_Log] = []
        self._fronts: dict[str, list[_Log]] = {}
        """The logs with a head, by its host."""
        self._dry: list[_Log] = []
        self._ready: list[tuple[bytes, str, int, int]] = []
        self._seen: dict[str, int] = {}
        self._gone: dict[str, int] = {}
        self._given_up: dict[str, int] = {}

    def add(self, source: Source) -> None:
        """Take in another log."""
        log = _Log(len(self._logs), source, dict(self._gone))
        self._logs.append(log)
        self._dry.append(log)

    def events(self) -> Iterator[Head]:
        """Yield what may go. It ends when the sources have no more; in a live merge, ask again then."""
        self._wake()
        while self._fronts:
            log = self._first()
            head = log.head
            assert head is not None, "what is in front has a head"
            if self._live and (missing := self._missing_of(head)):
                # A line stands in its log before its message leaves: to look again is enough, unless it is lost.
                if not self._wake():
                    self.missing = missing
                    return
                continue
            yield head
            self._gone[head.host] = head.count
            self._pass(log)
        self.missing = {}

    @property
    def may_come(self) -> bool:
        """Tell whether a log that is here has told of a host of which something is missing."""
        return any(host in self._seen for host in self.missing)

    def give_up(self) -> None:
        """Wait no longer for what is missing; where no log has its host, for nothing of that host any more."""
        for host, count in self.missing.items():
            self._given_up[host] = count if host in self._seen else _FOR_GOOD
        self.missing = {}

    def _missing_of(self, head: Head) -> dict[str, int]:
        seen, given_up = self._seen, self._given_up
        return {
            host: count
            for host, count in head.clock.items()
            if count > seen.get(host, 0) and count > given_up.get(host, 0)
        }

    def _first(self) -> _Log:
        """Return the log whose head goes next."""
        while self._ready:
            _, _, number, turn = self._ready[0]
            log = self._logs[number]
            if log.turn == turn and log.head is not None:
                return log
            heappop(self._ready)
        self.cyclic = True
        heads = [(log.head.time, log.head.host, log.number) for log in self._logs if log.head is not None]
        return self._logs[min(heads)[2]]

    def _pass(self, log: _Log) -> None:
        """Go past a head that was given out, and past the equal heads of copies."""
        gone = log.head
        assert gone is not None, "it was given out"
        copies = [other for other in self._fronts[gone.host] if other is log or other.head == gone]
        for copy in copies:
            self._advance(copy)

    def _advance(self, log: _Log) -> bool:
        """Read a log's next head, and look again at those that this one stood in the way of. Tell if there is one."""
        former = log.head
        log.turn += 1
        head = log.read()
        while head is not None and head.count <= log.before.get(head.host, 0):
            head = log.read()
        log.head = head
        if former is not None and (head is None or head.host != former.host):
            self._fronts[former.host].remove(log)
            if not self._fronts[former.host]:
                del self._fronts[former.host]
        if head is None:
            self._dry.append(log)
        else:
            if former is None or former.host != head.host:
                self._fronts.setdefault(head.host, []).append(log)
            if head.count > self._seen.get(head.host, 0):
                self._seen[head.host] = head.count
            self._place(log)
        stays = head is not None and former is not None and head.host == former.host
        released = []
        while log.waiters and (not stays or head is None or log.waiters[0][0] < head.count):
            released.append(heappop(log.waiters))
        for _, number, turn in released:  # some may have to wait on this log again
            waiter = self._logs[number]
            if waiter.turn == turn:
                self._place(waiter)
        return head is not None

    def _place(self, log: _Log) -> None:
        """Have a log with a head wait on what is before it, or be ready."""
        head = log.head
        assert head is not None, "only heads are placed"
        clock, fronts = head.clock, self._fronts
        for host in fronts if len(fronts) < len(clock) else clock:
            count = clock.get(host)
            if count is None or host not in fronts:
                continue
            for other in fronts[host]:
                front = other.head
                if other is log or front is None or front.count > count:
                    continue
                if front.count == head.count and host == head.host:
                    continue  # one event in two logs
                heappush(other.waiters, (count, log.number, log.turn))
                return
        heappush(self._ready, (head.time, head.host, log.number, log.turn))

    def _wake(self) -> bool:
        """Ask the logs that had no more; tell whether one of them goes on."""
        dry, self._dry = self._dry, []
        if not self._live:
            dry = [log for log in dry if log.turn == 0]  # the others have ended for good
        woken = [self._advance(log) for log in dry]
        if not any(woken):
            return False
        # What was ready before these heads were known may have to wait for them.
        ready, self._ready = self._ready, []
        for _, _, number, turn in ready:
            log = self._logs[number]
            if log.turn == turn and log.head is not None:
                self._place(log)
        return True
