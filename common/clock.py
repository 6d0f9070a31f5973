"""Vector clocks as plain dictionaries from host to count; an absent host counts 0.

Fidge, "Timestamps in message-passing systems that preserve the partial ordering" (1988), and
Mattern, "Virtual time and global states of distributed systems" (1989).
"""

import json
from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta
from msgspec.json import Decoder, Encoder

from common.values import INTEGER_MAX

Clock = Mapping[str, Annotated[int, Meta(ge=1, le=INTEGER_MAX)]]
"""A clock that nobody changes after it was made: merge and tick return new ones."""

_encode = Encoder(order="deterministic").encode
_decode = Decoder(dict[str, Annotated[int, Meta(ge=1, le=INTEGER_MAX)]]).decode


def merge(first: Clock, second: Clock) -> Clock:
    """Return the componentwise maximum."""
    if not second:
        return first
    if not first:
        return second
    merged = dict(first)
    for host, count in second.items():
        if count > merged.get(host, 0):
            merged[host] = count
    return merged


def tick(clock: Clock, host: str) -> Clock:
    """Return the clock with `host`'s component one higher."""
    return {**clock, host: clock.get(host, 0) + 1}


def happens_before_or_equal(first: Clock, second: Clock) -> bool:
    """Tell whether no component of `first` exceeds `second`'s."""
    return all(count <= second.get(host, 0) for host, count in first.items())


def concurrent(first: Clock, second: Clock) -> bool:
    """Tell whether neither clock is before, or equal to, the other."""
    return not happens_before_or_equal(first, second) and not happens_before_or_equal(second, first)


def format_clock(clock: Clock) -> str:
    """Write a clock as JSON without spaces, hosts in order. Host names need no escapes (common.names)."""
    return _encode(clock).decode()


def parse_clock(text: str) -> Clock:
    """Read `format_clock`'s output. Raises ValueError on anything else."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("a clock is a JSON object")
    for count in value.values():
        if type(count) is not int or count < 1:
            raise ValueError("a clock's components are integers from 1")
    return value


def decode_clock(data: bytes) -> Clock:
    """Read `format_clock`'s output, quickly, for whoever reads many. Raises ValueError on anything else."""
    return _decode(data)
