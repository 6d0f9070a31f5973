"""The arithmetic of the benchmark: percentiles, fairness, ratios, and the rows of the table. No I/O."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that `percent` % of the values do not exceed, between two neighbours in proportion."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def median(values: Sequence[float]) -> float:
    """Return the 50th percentile."""
    return percentile(values, 50)


def jain(shares: Sequence[float]) -> float:
    """Return Jain's fairness index: 1 where all shares are equal, 1/n where one has all.

    Jain, Chiu and Hawe, "A quantitative measure of fairness" (DEC-TR-301, 1984).
    """
    total = sum(shares)
    return total * total / (len(shares) * sum(share * share for share in shares)) if total else 1.0


Blocks = Sequence[Sequence[float]]
"""Samples in the order in which they were taken, one sequence per block."""


def pooled(blocks: Blocks) -> Blocks:
    """Return all samples as one block; for blocks too short to have a median of their own."""
    return [[sample for block in blocks for sample in block]]


def p50_of(blocks: Blocks) -> float:
    """Return the median of the blocks' medians."""
    return median([median(block) for block in blocks])


def ratio_of(measured: Blocks, *limits: Blocks) -> float:
    """Return measured / (sum of limits): each block's median by those of the blocks beside it, then the median.

    A disturbance that lasts longer than a block hits both sides of its ratio.
    """
    return median(
        [
            median(block) / sum(median(bound) for bound in bounds)
            for block, *bounds in zip(measured, *limits, strict=True)
        ]
    )


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `wanted` bounds the ratio, or `measured` where there is no limit to compare it with."""

    name: str
    compared: str
    measured: float
    unit: str
    limit: float | None = None
    ratio: float | None = None
    wanted: float | None = None
    bound: Literal["most", "least"] = "most"

    @property
    def ok(self) -> bool | None:
        """Tell whether it is as wanted, None where nothing is wanted."""
        if self.wanted is None:
            return None
        judged = self.measured if self.ratio is None else self.ratio
        return judged <= self.wanted if self.bound == "most" else judged >= self.wanted


def against(name: str, compared: str, measured: Blocks, *limits: Blocks, wanted: float | None = None) -> Row:
    """Return the row of a p50 in microseconds against the sum of its limits' p50s."""
    limit = sum(p50_of(bound) for bound in limits)
    return Row(name, compared, p50_of(measured), "µs", limit, ratio_of(measured, *limits), wanted)
