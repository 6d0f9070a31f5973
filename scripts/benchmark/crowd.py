"""Many sessions in one process, one connection each: `python -P -m scripts.benchmark.crowd ENDPOINT NAME COUNT`.

One thread serves them all, with the client's own core and connection: what reaches lockd is what so many clients would
send. It says `ready` when all sessions are open, and does what it reads from stdin: `lock N` has each session take N
locks of its own, and says `locked`; `count` says how many pings were answered, and how many sessions were lost so far.
It ends at the end of stdin.
"""

import heapq
import os
import selectors
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from client.lock_core import Joined, LockCore, Wait
from client.zmtp import Connection, Disconnected
from common.messages import FromLockd, Pong
from common.open_files import raise_open_files
from common.wire import decode, encode

_UNDER_WAY_MAX: Final = 16
"""So many sessions of one crowd wait for an answer at once: behind more of them a Hello could become too old."""
_WAIT_NS: Final = 60_000_000_000
_CONNECT_S: Final = 10.0


class Member:
    """One session: a connection and its core."""

    def __init__(self, endpoint: str, name: str, now_ns: int) -> None:
        """Connect, and say hello. Raises Disconnected."""
        incarnation = os.urandom(8).hex()
        self.name = name
        self.due_ns = 0
        self.wants = self.answered = 0
        self.core = LockCore(name, incarnation)
        self._connection = Connection(endpoint, incarnation.encode(), _CONNECT_S)
        self.core.connected(now_ns)
        self._send()

    def fileno(self) -> int:
        """Return the connection's descriptor."""
        return self._connection.fileno()

    def ask(self, now_ns: int) -> None:
        """Ask for one more of the locks that it wants."""
        self.core.acquire(Wait(f"{self.name}/{self.wants}", "exclusive", 0, now_ns + _WAIT_NS), now_ns)
        self.wants -= 1
        self._send()

    def tick(self, now_ns: int) -> None:
        """Do what is due."""
        self.core.tick(now_ns)
        self._send()

    def receive(self, now_ns: int) -> None:
        """Take in what has come. Raises Disconnected."""
        for frame in self._connection.receive(0):
            message: FromLockd = decode(frame, FromLockd)  # type: ignore[arg-type]
            self.answered += isinstance(message, Pong)
            self.core.received(message, now_ns)
        self._send()

    def _send(self) -> None:
        for message in self.core.out:
            self._connection.send(encode(message))
        self.core.out.clear()


class Crowd:
    """All members, and the loop that serves them."""

    def __init__(self, endpoint: str, name: str) -> None:
        """Begin with none."""
        self._endpoint = endpoint
        self._name = name
        self._members: list[Member] = []
        self._due: list[tuple[int, int]] = []
        self._poll = selectors.DefaultSelector()
        self._poll.register(sys.stdin, selectors.EVENT_READ)

    def open(self, count: int) -> None:
        """Open the sessions, and serve those that are open meanwhile."""
        self._each(deque([self._join] * count))

    def serve(self) -> None:
        """Do what is asked for on stdin, until its end."""
        while True:
            if not self._step():
                continue
            match sys.stdin.readline().split():
                case ["lock", number]:
                    for member in self._members:
                        member.wants = int(number)
                    asking = [member.ask for member in self._members for _ in range(int(number))]
                    self._each(deque(asking))
                    print("locked", flush=True)
                case ["count"]:
                    answered = sum(member.answered for member in self._members)
                    lost = sum(member.core.state != "joined" for member in self._members)
                    print(f"count {answered} {lost}", flush=True)
                case _:
                    return

    def _each(self, acts: "deque[Callable[[int], object]]") -> None:
        """Do all these, of which each is answered, a few at a time."""
        self._under_way = 0
        while acts or self._under_way:
            # One between two steps: on a busy machine a connection takes its time, and pings must not wait for many.
            if more := bool(acts) and self._under_way < _UNDER_WAY_MAX:
                acts.popleft()(time.monotonic_ns())
                self._under_way += 1
            self._step(wait=not more)

    def _join(self, now_ns: int) -> None:
        member = Member(self._endpoint, f"{self._name}-{len(self._members)}", now_ns)
        self._poll.register(member, selectors.EVENT_READ, len(self._members))
        self._members.append(member)
        self._ring(len(self._members) - 1)

    def _ring(self, number: int) -> None:
        """Have a member's next moment looked for in time."""
        member = self._members[number]
        due_ns = member.core.deadline_ns()
        if due_ns != member.due_ns:
            member.due_ns = due_ns
            heapq.heappush(self._due, (due_ns, number))

    def _step(self, *, wait: bool = True) -> bool:
        """Do what is next, and wait for it if so wanted; return whether there is something on stdin."""
        wait_s = (self._due[0][0] - time.monotonic_ns()) / 1e9 if self._due else None
        told = False
        for key, _ in self._poll.select(wait_s if wait else 0):
            if key.data is None:
                told = True
            else:
                self._receive(key.data)
        now_ns = time.monotonic_ns()
        while self._due and self._due[0][0] <= now_ns:
            due_ns, number = heapq.heappop(self._due)
            member = self._members[number]
            if due_ns == member.due_ns:
                member.due_ns = 0
                member.tick(now_ns)
                self._ring(number)
        return told

    def _receive(self, number: int) -> None:
        member = self._members[number]
        member.receive(time.monotonic_ns())
        for news in member.core.news:
            if not isinstance(news, Joined) and not (isinstance(news, Wait) and news.hold is not None):
                raise Disconnected(f"{member.name}: {news}")
            self._under_way -= 1
        if member.core.news:
            member.core.news.clear()
            self._ring(number)


def _main() -> None:
    raise_open_files()
    endpoint, name, count = sys.argv[1:]
    crowd = Crowd(endpoint, name)
    try:
        crowd.open(int(count))
        print("ready", flush=True)
        crowd.serve()
    except Disconnected as error:
        sys.exit(f"{error}; is this machine too busy?")


if __name__ == "__main__":
    _main()
