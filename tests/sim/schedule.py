"""Virtual time: what happens next, and when."""

import heapq
from collections.abc import Callable
from typing import Any, Final

START_NS: Final = 1_800_000_000 * 10**9
"""The true time at which a simulation begins, in nanoseconds since 1970."""


class Schedule:
    """What will happen, in the order of time; what falls on one moment comes in the order it was asked for."""

    def __init__(self) -> None:
        self.now_ns = START_NS
        self.steps = 0
        self._waiting: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._asked = 0

    def at(self, time_ns: int, action: Callable[..., None], *arguments: Any) -> None:
        """Do `action` at `time_ns`, or at once where that is past."""
        self._asked += 1
        heapq.heappush(self._waiting, (time_ns, self._asked, action, arguments))

    def after(self, delay_ns: int, action: Callable[..., None], *arguments: Any) -> None:
        """Do `action` in `delay_ns`."""
        self.at(self.now_ns + delay_ns, action, *arguments)

    def step(self) -> bool:
        """Do what comes next; return False where nothing is left."""
        if not self._waiting:
            return False
        time_ns, _, action, arguments = heapq.heappop(self._waiting)
        self.now_ns = max(self.now_ns, time_ns)
        self.steps += 1
        action(*arguments)
        return True
