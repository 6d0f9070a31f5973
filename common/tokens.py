"""Fencing tokens: `epoch.counter` in one 64-bit integer, ordered as integers.

The epoch takes 23 bits (a signed integer has 63), the counter 40. See Kleppmann, "How to do
distributed locking" (2016), and the sequencers of Burrows, "The Chubby lock service" (OSDI 2006).
"""

from typing import Final

_COUNTER_BITS: Final = 40
_COUNTER_MASK: Final = (1 << _COUNTER_BITS) - 1
EPOCH_MAX: Final = (1 << 23) - 1


def make_token(epoch: int, counter: int) -> int:
    """Return the token of grant `counter` (from 1) in `epoch` (from 1)."""
    return epoch << _COUNTER_BITS | counter


def token_epoch(token: int) -> int:
    """Return the epoch in which `token` was granted."""
    return token >> _COUNTER_BITS


def format_token(token: int) -> str:
    """Write a token as `epoch.counter`; no token at all is `0.0`."""
    return f"{token >> _COUNTER_BITS}.{token & _COUNTER_MASK}"


def parse_token(text: str) -> int:
    """Read `epoch.counter`. Raises ValueError on anything else."""
    epoch, dot, counter = text.partition(".")
    if not (dot and epoch.isascii() and epoch.isdigit() and counter.isascii() and counter.isdigit()):
        raise ValueError(f"a token reads epoch.counter, not {text!r}")
    if int(epoch) > EPOCH_MAX or int(counter) > _COUNTER_MASK:
        raise ValueError(f"the token {text!r} is out of range")
    return make_token(int(epoch), int(counter))
