"""Connections with lockd, as TCP has them: in order, and what is under way on one that breaks is lost."""

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Final, Literal

from tests.sim.schedule import Schedule

Direction = Literal["up", "down"]
"""To lockd, or from it."""

_USUAL: Final = 0.97
"""How many of the frames take no unusual time."""
_CALM_NS: Final = 1_000_000


class Link:
    """One connection of a client; its routing id, `route`, may have had others before."""

    def __init__(self, route: bytes) -> None:
        """Begin unbroken, with nothing under way."""
        self.route = route
        self.broken = False
        self.under_way: dict[Direction, deque[bytes]] = {"up": deque(), "down": deque()}
        self.newest_ns: dict[Direction, int] = {"up": 0, "down": 0}
        self.stalled_ns: dict[Direction, int] = {"up": 0, "down": 0}


Arrive = Callable[[Link, bytes], None]


class Network:
    """Carries frames, each under way for a while that the seed draws."""

    def __init__(self, schedule: Schedule, random: Random, delay_ns: int, delay_ns_max: int) -> None:
        """Delay frames by `delay_ns` on average, few of them by up to `delay_ns_max`."""
        self._schedule = schedule
        self._random = random.random
        self._delay_ns = delay_ns
        self._delay_ns_max = delay_ns_max
        self.carried = 0

    def send(self, link: Link, direction: Direction, frame: bytes, arrive: Arrive) -> None:
        """Bring `frame` to the other end, behind all that was sent before it, unless the link breaks."""
        if link.broken:
            return
        # The square of a uniform draw: mostly short, at times three times the average; few take very long.
        draw = self._random()
        if draw < _USUAL:
            delay_ns = min(int(3 * draw * draw * self._delay_ns), self._delay_ns_max)
        else:
            delay_ns = int((draw - _USUAL) / (1 - _USUAL) * self._delay_ns_max)
        link.newest_ns[direction] = max(self._schedule.now_ns + delay_ns, link.newest_ns[direction])
        link.under_way[direction].append(frame)
        self._schedule.at(link.newest_ns[direction], self._arrive, link, direction, arrive)

    def calm_down(self) -> None:
        """Carry everything within a few milliseconds from now on."""
        self._delay_ns, self._delay_ns_max = min(self._delay_ns, _CALM_NS), 2 * _CALM_NS

    def _arrive(self, link: Link, direction: Direction, arrive: Arrive) -> None:
        if link.broken:
            return
        if self._schedule.now_ns < link.stalled_ns[direction]:
            self._schedule.at(link.stalled_ns[direction], self._arrive, link, direction, arrive)
            return
        self.carried += 1
        # Whichever frame this was to bring: the one that was sent first comes first.
        arrive(link, link.under_way[direction].popleft())
