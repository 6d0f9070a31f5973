"""Values: small immutable objects, and the kinds of numbers and bytes that they hold."""

from typing import Annotated, Final

from msgspec import Meta, Struct

INTEGER_MAX: Final = (1 << 63) - 1
HASH_BYTES: Final = 16

TIME_US_MAX: Final = 253_402_300_799_999_999
"""The end of the year 9999, in microseconds since 1970: what a date can say."""

Moment = Annotated[int, Meta(ge=0, le=TIME_US_MAX)]
Number = Annotated[int, Meta(ge=0, le=INTEGER_MAX)]
"""An integer on the wire: what everybody's signed integers hold, from 0."""
Hash = Annotated[bytes, Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]


class Value(Struct, frozen=True, gc=False):
    """A tuple with names that nobody changes; it never holds what holds it, so nothing looks for cycles in it."""


class Part(Value, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A value that is part of a message: on the wire an array of its fields."""
