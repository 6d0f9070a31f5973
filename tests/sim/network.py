"""The network: connections that keep their order, each message under way for a while that the seed draws."""

from collections.abc import Callable
from random import Random
from typing import Final, Protocol

from tests.sim.schedule import Schedule

Connection = tuple[str, bytes, bytes]
"""One direction of one connection: what it is for, from whom, to whom."""

Arrive = Callable[[Connection, bytes], None]

_LONG: Final = 0.97
"""How many of the messages take no unusual time."""


class Carrier(Protocol):
    """What brings frames from one process to another."""

    def send(self, connection: Connection, frame: bytes, arrive: Arrive) -> None:
        """Bring `frame` to the other end, and call `arrive` there."""


class Network:
    """Carries frames. What is sent along one connection arrives in its order; connections overtake each other."""

    def __init__(self, schedule: Schedule, random: Random, delay_ns: int, delay_ns_max: int) -> None:
        """Delay messages by `delay_ns` on average, in a wide spread that ends at `delay_ns_max`."""
        self._schedule = schedule
        self._random = random.random
        self._delay_ns = delay_ns
        self._delay_ns_max = delay_ns_max
        self._newest_ns: dict[Connection, int] = {}
        self.in_flight = 0
        self.carried = 0

    def send(self, connection: Connection, frame: bytes, arrive: Arrive) -> None:
        """Bring `frame` to the other end."""
        # The square of a uniform draw: mostly short, at times three times the average; few take very long.
        draw = self._random()
        if draw < _LONG:
            delay_ns = min(int(3 * draw * draw * self._delay_ns), self._delay_ns_max)
        else:
            delay_ns = int((draw - _LONG) / (1 - _LONG) * self._delay_ns_max)
        arrival_ns = max(self._schedule.now_ns + delay_ns, self._newest_ns.get(connection, 0))
        self._newest_ns[connection] = arrival_ns
        self.in_flight += 1
        self._schedule.at(arrival_ns, self._arrive, connection, frame, arrive)

    def _arrive(self, connection: Connection, frame: bytes, arrive: Arrive) -> None:
        self.in_flight -= 1
        self.carried += 1
        arrive(connection, frame)
