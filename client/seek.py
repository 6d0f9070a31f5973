"""How any version of a file is found without replaying its history.

Every op replaces the end of the file: it keeps the first `offset` bytes, and the journal keeps what it
removed beside what it inserted. Two facts follow for a version v, both by induction over the ops.

- Forward: let r be the first op after v with offset(r) < bound, where bound is at most v's length. Nothing
  between v and r touched a byte below bound, so v's bytes from offset(r) up to bound are the first of what r
  removed, and v's bytes below offset(r) are still there after r. With bound = offset(r) the same holds again;
  where there is no such r, v's first `bound` bytes stand in the newest version.
- Backward: v's byte p was inserted by the newest op r up to v with offset(r) <= p.

Both ask for the nearest op whose offset is below a bound. To answer it in O(log^2 n) rows at most, each op
keeps a `low`: for seq s with the lowest set bit 2^k, the least offset of the ops (s - 2^k, s]. That is a
Fenwick tree of minima (Fenwick, "A new data structure for cumulative frequency tables", 1994); it is never
rebuilt, since a new op changes no earlier low, and cutting off the newest ops changes none either.
"""

from typing import Final, Protocol

from client.storage_errors import StorageError

_BLOCK_BYTES: Final = 65_536
"""How much is compared at once."""


class Ops(Protocol):
    """Row access to one file's ops by seq; each call reads one row."""

    def bounds(self, seq: int) -> tuple[int, int]:
        """Return the op's (offset, low)."""

    def length(self, seq: int) -> int:
        """Return the file's length in bytes after the op."""

    def removed(self, seq: int, start: int, stop: int) -> bytes:
        """Return that part of the bytes that the op replaced."""

    def inserted(self, seq: int, start: int, stop: int) -> bytes:
        """Return that part of the bytes that the op put in."""


def extend_lows(lows: list[int], seq: int, offset: int) -> int:
    """Return the low of the new op `seq`, and note it in `lows` for the next ones.

    lows[k] is the low of the newest op whose seq has the lowest set bit 2^k: all that an append ever needs.
    """
    low, level = offset, 0
    while not seq & 1:
        low = min(low, lows[level])
        seq >>= 1
        level += 1
    if level == len(lows):
        lows.append(low)
    else:
        lows[level] = low
    return low


def load_lows(ops: Ops, head: int) -> list[int]:
    """Return the `lows` behind version `head`, in O(log head) rows."""
    lows = []
    for level in range(head.bit_length()):
        count = head >> level
        lows.append(ops.bounds((count if count & 1 else count - 1) << level)[1])
    return lows


def first_below(ops: Ops, after: int, head: int, bound: int) -> int:
    """Return the first op in (after, head] with an offset below `bound`, or 0."""
    seq = after
    size = (1 << head.bit_length()) if seq == 0 else seq & -seq
    while seq < head:
        size >>= 1
        while seq + size > head:
            size >>= 1
        # The low of seq + size covers exactly (seq, seq + size]; of an odd seq only the next op is known.
        offset, low = ops.bounds(seq + (size or 1))
        if (low if size else offset) < bound:
            return _first_in(ops, seq, size, bound)
        seq += size or 1
        size = seq & -seq
    return 0


def _first_in(ops: Ops, seq: int, size: int, bound: int) -> int:
    while size > 1:
        size >>= 1
        if ops.bounds(seq + size)[1] >= bound:
            seq += size
    return seq + 1


def last_below(ops: Ops, head: int, bound: int) -> int:
    """Return the newest op up to `head` with an offset below `bound`, or 0."""
    seq = head
    while seq > 0:
        offset, low = ops.bounds(seq)
        if offset < bound:
            return seq
        seq -= 1 if low < bound else seq & -seq
    return 0


def least_offset(ops: Ops, after: int, head: int, start: int) -> int:
    """Return the least of `start` and the offsets of the ops (after, head]."""
    least, seq = start, head
    while seq > after:
        offset, low = ops.bounds(seq)
        size = seq & -seq
        if seq - size >= after:
            least, seq = min(least, low), seq - size
        else:
            least, seq = min(least, offset), seq - 1
    return least


def end_of_version(ops: Ops, seq: int, head: int, start: int, trusted: int) -> tuple[int, list[bytes]]:
    """Return (stands, pieces): version `seq` from byte `start` on is the file's [start, stands), then pieces.

    The file is trusted to hold the newest version's first `trusted` bytes; nothing is assumed about the rest
    of it. With no trust (0) all comes from the journal. Raises StorageError where ops are missing.
    """
    length = ops.length(seq) if seq else 0
    if start >= length:
        return start, []
    pieces: list[bytes] = []
    bound, _ = ops.bounds(seq)
    pieces.append(ops.inserted(seq, max(start - bound, 0), length - bound))
    newer = seq
    while bound > start and (newer := first_below(ops, newer, head, bound)):
        offset, _ = ops.bounds(newer)
        pieces.append(ops.removed(newer, max(start - offset, 0), bound - offset))
        bound = offset
    older = seq
    while bound > max(start, trusted):
        older = last_below(ops, older - 1, bound)
        if older == 0:
            raise StorageError(f"the journal is damaged: nothing made byte {bound - 1} of version {seq}")
        offset, _ = ops.bounds(older)
        pieces.append(ops.inserted(older, max(start - offset, 0), bound - offset))
        bound = offset
    if sum(map(len, pieces)) != length - max(bound, start):
        raise StorageError(f"the journal is damaged: version {seq} has a gap")
    pieces.reverse()
    return max(bound, start), pieces


def common_length(first: bytes, second: bytes) -> int:
    """Return the length of the common prefix, compared block by block."""
    start, stop = 0, min(len(first), len(second))
    while start < stop and first[start : start + _BLOCK_BYTES] == second[start : start + _BLOCK_BYTES]:
        start += _BLOCK_BYTES
    while start < stop and first[start] == second[start]:
        start += 1
    return min(start, stop)
