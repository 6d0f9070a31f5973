"""A clock that never runs back, and durations as people write them."""

import re
import time
from typing import Final

_UNITS_NS: Final = {
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
    "": 10**9,
}
_DURATION: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|)")


class SteadyClock:
    """Nanoseconds since 1970 by the system's clock at its making, steady from there."""

    def __init__(self) -> None:
        """Take the system's time once."""
        self._origin_ns = time.time_ns() - time.monotonic_ns()

    def now_ns(self) -> int:
        """Return the time now."""
        return self._origin_ns + time.monotonic_ns()


def parse_duration(text: str) -> int:
    """Return the nanoseconds of `3s`, `500ms`, `1.5m`, `2h` or `10` (seconds). Raises ValueError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"a duration reads like 3s, 500ms or 1.5m, not {text!r}")
    return round(float(match[1]) * _UNITS_NS[match[2]])
