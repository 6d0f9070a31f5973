"""How a lock goes on from hold to hold: what the pictures of a run draw as its hand-offs."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar


class Held(Protocol):
    """A hold of a lock."""

    @property
    def lock(self) -> str:
        """Return the lock's name."""

    @property
    def exclusive(self) -> bool:
        """Tell whether it is a writer's."""


Hold = TypeVar("Hold", bound=Held)


def handed_on(holds: Iterable[Hold]) -> Iterator[tuple[Hold, Hold]]:
    """Yield which hold went on to which, of holds in the order of their grants.

    A lock hands a reader what its last writer left, and a writer what the readers since then left, too.
    """
    writers: dict[str, Hold] = {}
    readers: defaultdict[str, list[Hold]] = defaultdict(list)
    for hold in holds:
        before = [writers[hold.lock]] if hold.lock in writers else []
        if hold.exclusive:
            before = readers.pop(hold.lock, before)
            writers[hold.lock] = hold
        else:
            readers[hold.lock].append(hold)
        for former in before:
            yield former, hold
