"""Taking samples: acts are timed in alternating blocks, so that what disturbs one disturbs the others too."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Act = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done. Sizes in bytes, times in seconds."""

    rounds: int
    """Blocks of each act; one more is thrown away to warm up."""
    block: int
    """Acts per block."""
    hand_off_s: float
    crowds: tuple[int, ...]
    """How many clients hand one lock to each other."""
    working_ops: int
    """Ops of each of four working clients."""
    history_ops: int
    file_sizes: tuple[int, ...]
    """The first is what the others are compared with."""
    starts: int
    """Runs of each command."""


FULL = Effort(20, 200, 4.0, (2, 8, 32), 2000, 20_000, (1 << 10, 10 << 20, 100 << 20), 21)
QUICK = Effort(6, 60, 1.0, (2, 8), 250, 2000, (1 << 10, 10 << 20), 7)


def timed(act: Act) -> float:
    """Do it, and return how long that took, in microseconds."""
    began_ns = time.perf_counter_ns()
    act()
    return (time.perf_counter_ns() - began_ns) / 1000


def interleave(acts: Mapping[str, Act], effort: Effort, *, block: int = 0) -> dict[str, list[list[float]]]:
    """Time the acts in turn, block by block; return each one's blocks, in microseconds."""
    blocks: dict[str, list[list[float]]] = {name: [] for name in acts}
    for round_number in range(effort.rounds + 1):
        for name, act in acts.items():
            samples = [timed(act) for _ in range(block or effort.block)]
            if round_number:
                blocks[name].append(samples)
    return blocks
