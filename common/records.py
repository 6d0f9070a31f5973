"""Ops as the journal keeps them, and the hash chain over them.

Every op replaces the end of a file: it keeps the first `offset` bytes and puts `inserted` behind
them. A write inserts at the end, an update takes the last newline with it, a restore goes back to
the first byte that differs. So a byte of a version is always in the newest op that starts at or
before it, which is what makes any version cheap to find (client.journal).

The content of every version is empty or ends in a newline; `splice` keeps it so.
"""

import hashlib
from typing import Final, Literal

from common.clock import Clock
from common.values import HASH_BYTES, Hash, Number, Part

Verb = Literal["write", "update", "restore"]
VERBS: Final[tuple[Verb, ...]] = ("write", "update", "restore")


class Version(Part, frozen=True):
    """One state of a file: how many ops made it, the newest op's token, and the hash over them all."""

    seq: Number
    token: Number
    hash: Hash

    def __str__(self) -> str:
        return f"@{self.seq}/{self.hash.hex()[:12]}"


EMPTY: Final = Version(0, 0, bytes(HASH_BYTES))
"""Version 0 of every file: the empty file."""


class Record(Part, frozen=True):
    """One op that made a version.

    `seq` counts from 1. `clock` is its author's clock at the op and `time_us` network time in
    microseconds since 1970. `of` is the seq that a restore went back to, else 0.
    """

    seq: Number
    token: Number
    id: str
    verb: Verb
    offset: Number
    inserted: bytes
    clock: Clock
    time_us: Number
    of: Number = 0

    @property
    def length(self) -> int:
        """The file's length in bytes after this op."""
        return self.offset + len(self.inserted)


def splice(verb: Literal["write", "update"], text: str, length: int) -> tuple[int, bytes]:
    """Return the (offset, inserted) with which `verb` puts `text` into a file of `length` bytes."""
    data = text.encode()
    if verb == "write":
        return length, data + b"\n"
    if length == 0:
        return 0, b""
    return length - 1, b" --- " + data + b"\n"


def chain(previous: bytes, encoded: bytes) -> bytes:
    """Return the hash of the version that the record `encoded` makes out of the version `previous`."""
    return hashlib.blake2b(previous + encoded, digest_size=HASH_BYTES).digest()
