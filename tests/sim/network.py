"""The network: connections that keep their order, each message under way for a while that the seed draws.

A link is a connection with both its directions. It can break: what is under way on it is lost. A path between two
processes can be closed, in one direction or both: what is sent is held back, as TCP does, until it opens again or
the link breaks.
"""

from collections.abc import Callable, Iterable
from random import Random
from typing import Final, Protocol

from tests.sim.schedule import Schedule

LOCKD: Final = b"lockd"

Connection = tuple[str, bytes, bytes]
"""One direction of one connection: what it is for, from whom, to whom."""

Link = tuple[str, bytes, bytes]
"""What it is for, who opened it, who listens."""

Arrive = Callable[[Connection, bytes], None]

_CALM_NS: Final = 1_000_000
_USUAL: Final = 0.97
"""How many of the messages take no unusual time."""


def link_of(connection: Connection) -> Link:
    """Return the link that a connection is one direction of."""
    kind, sender, receiver = connection
    if kind == "answer" or sender == LOCKD:
        return ("replica" if kind == "answer" else kind), receiver, sender
    return connection


class Carrier(Protocol):
    """What brings frames from one process to another."""

    def send(self, connection: Connection, frame: bytes, arrive: Arrive) -> None:
        """Bring `frame` to the other end, and call `arrive` there."""


class Network:
    """Carries frames. What is sent along one connection arrives in its order; connections overtake each other."""

    def __init__(
        self, schedule: Schedule, random: Random, delay_ns: int, delay_ns_max: int, usual: float = _USUAL
    ) -> None:
        """Delay messages by `delay_ns` on average, in a wide spread that ends at `delay_ns_max`.

        Of those from replica to replica only so many as `usual` take no unusual time.
        """
        self._schedule = schedule
        self._random = random.random
        self._delay_ns = delay_ns
        self._delay_ns_max = delay_ns_max
        self._usual = usual
        self._newest_ns: dict[Connection, int] = {}
        self._broken: dict[Link, int] = {}
        self._closed: set[tuple[str, str]] = set()
        self.names: dict[bytes, str] = {LOCKD: "lockd"}
        self._held: dict[Connection, list[tuple[int, bytes, Arrive]]] = {}
        self._sent = 0
        self.down: set[Link] = set()
        self.in_flight = 0
        self.carried = 0

    def send(self, connection: Connection, frame: bytes, arrive: Arrive) -> None:
        """Bring `frame` to the other end."""
        self._sent += 1
        if self.down and (link := link_of(connection)) in self.down:
            if link[1] == connection[1]:  # who opened it queues what it sends; the listener's end is gone
                self._held.setdefault(connection, []).append((self._sent, frame, arrive))
            return
        if self._closed and self._is_closed(connection):
            self._held.setdefault(connection, []).append((self._sent, frame, arrive))
            return
        # The square of a uniform draw: mostly short, at times three times the average; few take very long.
        draw = self._random()
        usual = self._usual if connection[0] == "replica" else _USUAL
        if draw < usual:
            delay_ns = min(int(3 * draw * draw * self._delay_ns), self._delay_ns_max)
        else:
            delay_ns = int((draw - usual) / (1 - usual) * self._delay_ns_max)
        arrival_ns = max(self._schedule.now_ns + delay_ns, self._newest_ns.get(connection, 0))
        self._newest_ns[connection] = arrival_ns
        self.in_flight += 1
        broken = self._broken.get(link_of(connection), 0) if self._broken else 0
        self._schedule.at(arrival_ns, self._arrive, connection, self._sent, frame, arrive, broken)

    def _arrive(self, connection: Connection, number: int, frame: bytes, arrive: Arrive, broken: int) -> None:
        self.in_flight -= 1
        if self._broken and self._broken.get(link_of(connection), 0) != broken:
            return
        if self._closed and self._is_closed(connection):
            self._held.setdefault(connection, []).append((number, frame, arrive))
            return
        self.carried += 1
        arrive(connection, frame)

    # Faults

    def calm_down(self) -> None:
        """Carry everything within a millisecond or two from now on."""
        self._delay_ns, self._delay_ns_max = min(self._delay_ns, _CALM_NS), 2 * _CALM_NS

    def break_link(self, link: Link, *, stays_down: bool = False, forget: bool = True) -> None:
        """Lose what is under way on a link; until `mend`, where it stays down, its opener's messages wait."""
        self._broken[link] = self._broken.get(link, 0) + 1
        if stays_down:
            self.down.add(link)
        if forget:
            for connection in [connection for connection in self._held if link_of(connection) == link]:
                del self._held[connection]

    def mend(self, link: Link) -> None:
        """Let a link be up again: what its opener has sent meanwhile leaves now."""
        self.down.discard(link)
        self._release(link)

    def close(self, sender: str, receiver: str) -> None:
        """Hold back what the processes of one name send to those of another."""
        self._closed.add((sender, receiver))

    def is_open(self, one: str, other: str) -> bool:
        """Tell whether two names reach each other."""
        return (one, other) not in self._closed and (other, one) not in self._closed

    def open(self, paths: Iterable[tuple[str, str]], lose: Callable[[], bool]) -> list[Link]:
        """Open closed paths. What was held back leaves now, or breaks its link where `lose` says so.

        Returns the links that broke.
        """
        self._closed.difference_update(paths)
        broken = []
        free = {link_of(connection) for connection in self._held if not self._is_closed(connection)}
        for link in sorted(free - self.down):
            if lose():
                self.break_link(link)
                broken.append(link)
            else:
                self._release(link)
        return broken

    def _is_closed(self, connection: Connection) -> bool:
        _, sender, receiver = connection
        return (self.names.get(sender, ""), self.names.get(receiver, "")) in self._closed

    def _release(self, link: Link) -> None:
        for connection in sorted(connection for connection in self._held if link_of(connection) == link):
            # In the order of sending: some were under way already, and came to the closed path later than others.
            for _, frame, arrive in sorted(self._held.pop(connection), key=lambda held: held[0]):
                self.send(connection, frame, arrive)
