"""Durations counted in buckets that double: what a counter is to a number, for how long something takes.

Counts only rise, so a reader has the quantiles of any stretch of time from two readings: nobody keeps windows.
"""

from collections.abc import Sequence
from typing import Final

BUCKETS: Final = 64
"""Bucket 0 is under a microsecond, bucket i from 2^(i-1) to 2^i microseconds: as many as integers of 63 bits need."""


class Histogram:
    """How often durations lay in each bucket, and their sum in microseconds. Adding allocates nothing."""

    __slots__ = ("counts", "sum_us")

    def __init__(self) -> None:
        """Begin without a duration."""
        self.counts = [0] * BUCKETS
        self.sum_us = 0

    def add(self, duration_us: int) -> None:
        """Count a duration in microseconds; one below zero, of clocks of two machines, counts as none."""
        if duration_us <= 0:
            self.counts[0] += 1
            return
        self.counts[duration_us.bit_length()] += 1
        self.sum_us += duration_us


def since(now: Sequence[int], before: Sequence[int]) -> list[int]:
    """Return what two readings of the same counts differ by; either may end before its zeros do."""
    size = max(len(now), len(before))
    later, earlier = [[*counts, *[0] * (size - len(counts))] for counts in (now, before)]
    return [max(0, late - early) for late, early in zip(later, earlier, strict=True)]


def quantile_us(counts: Sequence[int], part: float) -> float | None:
    """Return the duration in microseconds that `part` (0 to 1) of all do not pass, None where there are none.

    Within a bucket the durations are taken to lie evenly, so it is right to a factor of two.
    """
    total = sum(counts)
    if not total:
        return None
    wanted = part * total
    for bucket, count in enumerate(counts):
        if count and wanted <= count:
            low, high = (0, 1) if bucket == 0 else (1 << bucket - 1, 1 << bucket)
            return low + (high - low) * wanted / count
        wanted -= count
    return float(1 << len(counts) - 1)
