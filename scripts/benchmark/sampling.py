"""Taking samples: acts are timed in alternating blocks, so that what disturbs one disturbs the others too."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

_ROUNDS_MIN: Final = 3

Act = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done. Sizes in bytes, times in seconds."""

    rounds: int
    """Blocks of each act; one more is thrown away to warm up."""
    block: int
    """Acts per block."""
    turns_s: float
    """After so long the rounds end early, with three at least."""
    hand_off_s: float
    crowds: tuple[int, ...]
    """How many clients hand one lock to each other."""
    working_ops: int
    """Ops of each of four working clients in memory; a quarter of it on disk."""
    working_files: tuple[int, ...]
    """On how many files they work."""
    history_ops: int
    file_sizes: tuple[int, ...]
    """The first is what the others are compared with."""
    starts: int
    """Runs of each command."""
    failures: int
    """How often each process fails."""
    sessions: int
    """Idle sessions, half of which end at once."""
    locks: int
    """Which they hold, all together."""
    session_ttl_s: float
    cycles_s: float
    """For so long a client takes and gives back a lock beside them."""
    missed_ops: int
    """What a replica has to catch up with."""
    log_events: int
    """Events of each client whose logs are merged."""
    events: int
    """Of the run that is drawn."""
    peer_rounds: int
    """How often each peer takes its turn at a workload."""
    peer_s: float
    """How long such a turn is."""


FULL = Effort(
    rounds=20,
    block=150,
    turns_s=20.0,
    hand_off_s=3.0,
    crowds=(2, 8, 32),
    working_ops=1500,
    working_files=(1, 4),
    history_ops=20_000,
    file_sizes=(1 << 10, 10 << 20, 100 << 20),
    starts=21,
    failures=9,
    sessions=10_000,
    locks=100_000,
    session_ttl_s=3.0,
    cycles_s=4.0,
    missed_ops=10_000,
    log_events=10_000,
    events=50_000,
    peer_rounds=3,
    peer_s=1.0,
)
QUICK = Effort(
    rounds=5,
    block=30,
    turns_s=2.0,
    hand_off_s=0.5,
    crowds=(2, 8),
    working_ops=200,
    working_files=(1,),
    history_ops=600,
    file_sizes=(1 << 10, 1 << 20),
    starts=5,
    failures=1,
    sessions=1_000,
    locks=10_000,
    session_ttl_s=1.0,
    cycles_s=0.5,
    missed_ops=500,
    log_events=500,
    events=5_000,
    peer_rounds=1,
    peer_s=0.5,
)


def timed(act: Act) -> float:
    """Do it, and return how long that took, in microseconds."""
    began_ns = time.perf_counter_ns()
    act()
    return (time.perf_counter_ns() - began_ns) / 1000


def interleave(acts: Mapping[str, Act], effort: Effort, *, block: int = 0) -> dict[str, list[list[float]]]:
    """Time the acts in turn, block by block; return each one's blocks, in microseconds."""
    blocks: dict[str, list[list[float]]] = {name: [] for name in acts}
    end_s = time.monotonic() + effort.turns_s
    for round_number in range(effort.rounds + 1):
        if round_number > _ROUNDS_MIN and time.monotonic() > end_s:
            break
        for name, act in acts.items():
            samples = [timed(act) for _ in range(block or effort.block)]
            if round_number:
                blocks[name].append(samples)
    return blocks
