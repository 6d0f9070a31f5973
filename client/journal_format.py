"""The journal's format: one log of entries for each file, appended to and never changed.

A log begins with a line, `lockstep journal 1 "NAME" CRC`, a CRC-32 in hexadecimal of what stands before it.
Entries follow: their size and the CRC-32 of what comes after it (4 bytes each, as all numbers little-endian), then
the kind, and whether the entry is the first of its change and whether more follow. An op has a head of numbers with
a CRC-32 of its own, the record as it stands under the hash chain, and the bytes that it removed from the file's end.
A mark tells all else: the version kept, what is above it being undone, both tokens, what of the file is synced, how
often ops were undone, and what became of events.log. An op promises and follows tokens too, so that a change which
carries no lines of events.log is mostly one entry.
"""

import json
import re
import zlib
from struct import Struct
from typing import Final, Literal, NamedTuple

from client.storage_errors import StorageError
from common.names import file_name_problem
from common.records import Record, Version

Durability = Literal["disk", "memory"]
MetaValue = str | int

FORMAT: Final = 2
_FIRST_WORDS: Final = b"lockstep journal "
HEADER_BYTES_MAX: Final = 8192

_PREFIX: Final = Struct("<II")
_OP: Final = Struct("<BBQQQQQQ16sIII")
_MARK: Final = Struct("<BBQQQQQQQ")
_KIND_OP: Final = 1
_KIND_MARK: Final = 2
_MORE: Final = 1
_FIRST: Final = 2
_BEGINS_CHANGE: Final = re.compile(rb"(?=[\x01\x02][\x02\x03])")
PREFIX_BYTES: Final = _PREFIX.size
_CRC_BYTES: Final = 4
OP_HEAD_BYTES: Final = PREFIX_BYTES + _OP.size + _CRC_BYTES


class Op(NamedTuple):
    """An op's entry, without its bytes: `record_at`, `inserted_at` and `removed_at` tell where in the log they stand.

    `low` is that of client.seek; `promised` and `follows` are the file's tokens once the op is in.
    """

    seq: int
    token: int
    promised: int
    follows: int
    offset: int
    low: int
    hash: bytes
    record_at: int
    record_bytes: int
    inserted_at: int
    inserted_bytes: int
    removed_at: int
    removed_bytes: int
    end: int
    flags: int

    @property
    def more(self) -> bool:
        """Whether more entries belong to the same change."""
        return bool(self.flags & _MORE)

    @property
    def length(self) -> int:
        """The file's length in bytes after the op."""
        return self.offset + self.inserted_bytes

    @property
    def version(self) -> Version:
        """The version that the op made."""
        return Version(self.seq, self.token, self.hash)


class Mark(NamedTuple):
    """A mark: the first `synced_bytes` bytes of version `synced` are on disk in the plain file.

    `lines` are lines of events.log from its byte `logged` on. Where there are none, the log is on disk up to there.
    """

    keep: int
    promised: int
    follows: int
    synced: int
    synced_bytes: int
    undone: int
    logged: int
    lines: bytes
    end: int
    flags: int

    @property
    def more(self) -> bool:
        """Whether more entries belong to the same change."""
        return bool(self.flags & _MORE)


def header_of(name: str) -> bytes:
    """Return the first line of a file's log."""
    words = _FIRST_WORDS + f"{FORMAT} {json.dumps(name)}".encode()
    return words + b" %08x\n" % zlib.crc32(words)


def read_header(data: bytes, path: object) -> tuple[str, int]:
    """Return the file's name and where the entries begin; ("", 0) where a crash has cut the line, or left holes in it.

    Raises StorageError.
    """
    line, newline, _ = data.partition(b"\n")
    if b"\0" in line and len(data) < HEADER_BYTES_MAX and not begins_change(data):
        return "", 0
    if not newline:
        if len(data) < HEADER_BYTES_MAX and (data.startswith(_FIRST_WORDS) or _FIRST_WORDS.startswith(data)):
            return "", 0
        raise StorageError(f"{path} is not a Lockstep journal")
    words = line.removeprefix(_FIRST_WORDS).split(b" ", 1)
    if not line.startswith(_FIRST_WORDS) or len(words) != 2 or not words[0].isdigit():
        raise StorageError(f"{path} is not a Lockstep journal")
    if int(words[0]) != FORMAT:
        raise StorageError(
            f"{path} has the format {int(words[0])}, this Lockstep knows {FORMAT}; use the one that wrote it"
        )
    told, _, crc = words[1].rpartition(b" ")
    if crc != b"%08x" % zlib.crc32(line[: -len(crc) - 1]):
        raise StorageError(f"{path} is damaged: its first line is not what was written")
    try:
        name = json.loads(told)
    except ValueError as error:
        raise StorageError(f"{path} is damaged: its first line names no file") from error
    if not isinstance(name, str) or file_name_problem(name):
        raise StorageError(f"{path} is damaged: its first line names no file")
    return name, len(line) + 1


def op_entry(
    record: Record,
    encoded: bytes,
    digest: bytes,
    tokens: tuple[int, int],
    low: int,
    removed: bytes,
    *,
    first: bool,
    more: bool,
) -> bytes:
    """Return the entry of an op; `tokens` are promised and followed."""
    head = _OP.pack(
        _KIND_OP,
        _FIRST * first | _MORE * more,
        record.seq,
        record.token,
        *tokens,
        record.offset,
        low,
        digest,
        encoded.find(record.inserted),
        len(record.inserted),
        len(encoded),
    )
    body = b"".join((head, zlib.crc32(head).to_bytes(_CRC_BYTES, "little"), encoded, removed))
    return _PREFIX.pack(PREFIX_BYTES + len(body), zlib.crc32(body)) + body


def mark_entry(
    keep: int,
    tokens: tuple[int, int],
    synced: tuple[int, int, int],
    logged: int,
    lines: bytes | bytearray = b"",
    *,
    more: bool = False,
) -> bytes:
    """Return the entry of a mark; `tokens` are promised and followed, `synced` ends with how often ops were undone."""
    body = _MARK.pack(_KIND_MARK, _FIRST | _MORE * more, keep, *tokens, *synced, logged) + lines
    return _PREFIX.pack(PREFIX_BYTES + len(body), zlib.crc32(body)) + body


def read_entry(data: bytes, at: int, base: int) -> Op | Mark | None:
    """Return the entry at `data[at]`, or None where none stands whole; `data` begins at byte `base` of the log."""
    body_at = at + PREFIX_BYTES
    if body_at >= len(data):
        return None
    size, crc = _PREFIX.unpack_from(data, at)
    end = at + size
    if end > len(data) or size <= PREFIX_BYTES or zlib.crc32(memoryview(data)[body_at:end]) != crc:
        return None
    if data[body_at] == _KIND_OP and size >= OP_HEAD_BYTES:
        return read_op(data[at : at + OP_HEAD_BYTES], base + at)
    if data[body_at] == _KIND_MARK and size >= PREFIX_BYTES + _MARK.size:
        _, flags, keep, promised, follows, synced, synced_bytes, undone, logged = _MARK.unpack_from(data, body_at)
        lines = data[body_at + _MARK.size : end]
        return Mark(keep, promised, follows, synced, synced_bytes, undone, logged, lines, base + end, flags)
    return None


def begins_change(data: bytes) -> bool:
    """Tell whether a whole entry stands somewhere behind the first byte of `data` that is the first of its change."""
    places = (found.start() - PREFIX_BYTES for found in _BEGINS_CHANGE.finditer(data, PREFIX_BYTES + 1))
    return any(read_entry(data, place, 0) is not None for place in places)


def entry_bytes(data: bytes, at: int) -> int:
    """Return the size that the entry at `data[at]` gives itself, 0 where there is not enough to tell."""
    size: int = _PREFIX.unpack_from(data, at)[0] if at + PREFIX_BYTES <= len(data) else 0
    return size


def read_op(head: bytes, at: int) -> Op | None:
    """Return the op whose entry begins with the OP_HEAD_BYTES `head` at byte `at` of the log, None where it is none."""
    fields = head[PREFIX_BYTES : OP_HEAD_BYTES - _CRC_BYTES]
    crc = zlib.crc32(fields).to_bytes(_CRC_BYTES, "little")
    if len(head) < OP_HEAD_BYTES or fields[0] != _KIND_OP or not head.endswith(crc):
        return None
    size, _ = _PREFIX.unpack_from(head)
    values = _OP.unpack(fields)
    _, flags, seq, token, promised, follows, offset, low, digest, inserted_at, inserted_bytes, record_bytes = values
    record_at = at + OP_HEAD_BYTES
    removed_at = record_at + record_bytes
    return Op(
        seq,
        token,
        promised,
        follows,
        offset,
        low,
        digest,
        record_at,
        record_bytes,
        record_at + inserted_at,
        inserted_bytes,
        removed_at,
        at + size - removed_at,
        at + size,
        flags,
    )
