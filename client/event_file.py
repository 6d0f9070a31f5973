"""events.log on disk: one line per clock tick, appended before the message that it causes leaves.

What the system was handed outlives a kill. A power cut takes what was not synced, and leaves holes. So where ops are
to be durable, each change of the journal carries the lines since the one before it, and `open` puts them back. The
lines of reads, which change nothing, go with the next change; what no change carried a power cut may take.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from client.disk import SYSTEM, Disk
from client.plainfiles import read_at, write_at
from client.storage_errors import FatalStorageError, StorageError, os_error
from common.clock import Clock
from common.eventlog import HEADER, Event, parse_event

WAITING_BYTES_MAX: Final = 65_536
"""So much of the log may wait for a change that carries it; then the log itself is synced."""
_BLOCK_BYTES: Final = 1 << 20
_HEADER: Final = HEADER.encode()
_READ: Final = re.compile(rb"\} read file=(\"(?:[^\"\\]|\\.)*\"|\S+) id=")
_OWN_OP: Final = re.compile(
    rb"\S+ \S+ \{[^}]*\} (?:read|write|update|restore) file=(?:\"(?:[^\"\\]|\\.)*\"|\S+) id=\S+ "
)


@dataclass(frozen=True, slots=True)
class LogEnd:
    """Where an event log stands: its last line's host, clock and time, and the largest number of its op ids.

    `reads` are the clocks of the newest read of each file.
    """

    host: str
    clock: Clock
    time_us: int
    ops: int
    reads: Mapping[str, Clock] = field(default_factory=dict)


@dataclass(slots=True)
class Carried:
    """What a journal knows of the log: that it is on disk up to byte `synced`, and later lines, each with its place."""

    synced: int = 0
    lines: list[tuple[int, bytes]] = field(default_factory=list)

    def take(self, at: int, lines: bytes) -> None:
        """Take in what a mark tells."""
        if lines:
            self.lines.append((at, lines))
        elif at > self.synced:
            self.synced = at
            self.lines = [carried for carried in self.lines if carried[0] >= at]


class EventFile:
    """An open event log. With `durable` it tells which lines the next change of the journal has to carry."""

    def __init__(self, path: Path, disk: Disk, descriptor: int, *, durable: bool) -> None:
        """Use `open` instead."""
        self.path = path
        self._disk = disk
        self._file = descriptor
        self._durable = durable
        self.size = 0
        self.synced = 0
        self.waiting = bytearray()
        self.end = LogEnd("", {}, 0, 0)

    @classmethod
    def open(
        cls, path: Path, disk: Disk = SYSTEM, *, durable: bool = False, carried: Carried | None = None
    ) -> tuple["EventFile", list[str]]:
        """Open or make the log at `path`; return it, and what was repaired, in words.

        A last line without its newline was cut off by a crash before its message left; it is taken away. Where the
        last process was durable, `carried` is what its journal knows: lines that a power cut took come back, and what
        it left of lines that no change had carried goes. Raises StorageError, also for a file that is no event log.
        """
        try:
            descriptor = disk.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            log = cls(path, disk, descriptor, durable=durable)
            try:
                notes = log._mend(carried)
                log._find_end()
                if durable:
                    log.sync()
            except BaseException:
                log.close()
                raise
        except OSError as error:
            raise os_error(f"cannot use {path}", error) from error
        return log, notes

    @property
    def is_deleted(self) -> bool:
        """Tell whether the file has no name any more: nothing that is written to it will be found again."""
        return self._disk.fstat(self._file).st_nlink == 0

    @property
    def waiting_at(self) -> int:
        """Return at which byte of the log the waiting lines begin."""
        return self.size - len(self.waiting)

    def append(self, line: str) -> None:
        """Append one line, given without its newline. Raises OSError; then nothing of the line stays."""
        data = line.encode() + b"\n"
        written = self._disk.write(self._file, data)
        if written < len(data):
            self._disk.ftruncate(self._file, self.size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.size += written
        if self._durable:
            self.waiting += data
            if len(self.waiting) > WAITING_BYTES_MAX:
                self.sync()

    def cut(self, size: int) -> None:
        """Take away what was appended beyond `size`, of which no message and no change has told."""
        if size == self.size:
            return
        try:
            self._disk.ftruncate(self._file, size)
        except OSError as error:
            raise FatalStorageError(f"cannot cut {self.path}: {error.strerror}") from error
        if self.waiting:
            del self.waiting[max(0, len(self.waiting) - (self.size - size)) :]
        self.size, self.synced = size, min(self.synced, size)

    def carry(self) -> None:
        """Take in that a durable change of the journal has carried the waiting lines."""
        self.waiting.clear()

    def sync(self) -> None:
        """Wait until what was appended is on disk. Raises FatalStorageError."""
        if self.synced == self.size:
            return
        try:
            self._disk.fdatasync(self._file)
        except OSError as error:
            raise FatalStorageError(f"cannot bring {self.path} to the disk: {error.strerror}") from error
        self.synced = self.size
        self.waiting.clear()

    def newest(self) -> Iterator[Event]:
        """Yield the log's events as it was opened, the newest first, up to a line that is none."""
        stop = self.size
        while stop > len(_HEADER):
            start = self._line_start(stop - 1)
            try:
                yield parse_event(self._read(start, stop - 1).decode())
            except ValueError:
                return
            stop = start

    def close(self) -> None:
        """Close the file."""
        self._disk.close(self._file)

    # Opening

    def _mend(self, carried: Carried | None) -> list[str]:
        """Leave whole lines alone in the log, and bring back those that the journal carried."""
        size = self._disk.fstat(self._file).st_size
        begin = self._read(0, len(_HEADER))
        if begin != _HEADER:
            if size > len(_HEADER) or any(found not in (0, byte) for found, byte in zip(begin, _HEADER, strict=False)):
                raise StorageError(f"{self.path} is not an event log: it does not begin as one; move it away")
            self._rewrite(0, size, _HEADER)
            size = len(_HEADER)
        start, now, brought = self._line_start(size), b"", 0
        if carried is not None:
            known = max(carried.synced, len(_HEADER))
            if self._read(known - 1, known) == b"\n":  # nobody has cut it meanwhile
                start = known
                now, brought = _completed(self._read(known, size), known, carried.lines)
        self.size = start + len(now)
        # Written in any case: what a failed sync left in the cache reads well, but will not reach the disk.
        if start == len(_HEADER):
            self._rewrite(0, size, _HEADER + now)
        else:
            self._rewrite(start, size, now)
        notes = []
        if brought:
            notes.append(f"{self.path.name} got {brought} bytes back from the journal, which a crash had cut off")
        if gone := max(0, size - self.size):
            notes.append(f"took away the last {gone} bytes of {self.path.name}, which a crash cut off")
        return notes

    def _rewrite(self, at: int, size: int, data: bytes) -> None:
        """Put `data` at byte `at`, to be the end of the log, which has `size` bytes."""
        if data:
            # Not the log's own descriptor: that one appends, whatever the place.
            placing = self._disk.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                write_at(self._disk, placing, at, data)
            finally:
                self._disk.close(placing)
        if at + len(data) < size:
            self._disk.ftruncate(self._file, at + len(data))

    def _find_end(self) -> None:
        if self.size == len(_HEADER):
            return
        start = self._line_start(self.size - 1)
        try:
            last = parse_event(self._read(start, self.size - 1).decode())
        except ValueError as error:
            raise StorageError(
                f"the last line of {self.path} is no event ({error}); mend or remove that line"
            ) from None
        ops, reads = 0, dict[bytes, bytes]()
        for block in self._blocks():
            ops = max(ops, _largest_own(block, last.host, ops))
            reads.update(_newest_reads(block))
        self.end = LogEnd(last.host, last.clock, last.time_us, ops, _clocks(reads.values()))

    def _read(self, start: int, stop: int) -> bytes:
        return read_at(self._disk, self._file, start, stop)

    def _line_start(self, stop: int) -> int:
        """Return where the line begins that holds, or ends before, byte `stop`."""
        start = stop
        while start > len(_HEADER):
            start = max(len(_HEADER), start - WAITING_BYTES_MAX)
            newline = self._read(start, stop).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
        return start

    def _blocks(self) -> Iterator[bytes]:
        """Yield the whole log, cut between lines."""
        at, data = len(_HEADER), b""
        while at < self.size:
            more = self._read(at, min(self.size, at + _BLOCK_BYTES))
            at, data = at + len(more), data + more
            newline = data.rfind(b"\n") + 1
            yield data[:newline]
            data = data[newline:]


def _completed(was: bytes, start: int, carried: Sequence[tuple[int, bytes]]) -> tuple[bytes, int]:
    """Return the log from byte `start` on, where it `was` so, with all that was carried; and how much of it came back.

    Behind that stay the lines that are events, up to the first that is none.
    """
    now = bytearray(was)
    known = brought = 0
    for place, lines in sorted(carried):
        at = place - start
        if not 0 <= at <= len(now):
            continue
        if now[at : at + len(lines)] != lines:
            now[at : at + len(lines)] = lines
            brought += len(lines)
        known = max(known, at + len(lines))
    before: Event | None = None
    for line in bytes(now[known:]).split(b"\n")[:-1]:
        try:
            event = parse_event(line.decode())
        except ValueError:
            break
        count = event.clock.get(event.host, 0)
        if b"\0" in line or not count:
            break
        if before is not None and before.host == event.host and count <= before.clock[event.host]:
            break
        known, before = known + len(line) + 1, event
    return bytes(now[:known]), brought


def _largest_own(block: bytes, host: str, above: int) -> int:
    """Return the largest number above `above` of an op id of `host`, else 0; with several files it may not be last."""
    numbers = {int(number) for number in re.findall(rb" id=%s:([0-9]{1,18}) " % re.escape(host.encode()), block)}
    candidates = sorted([number for number in numbers if number > above], reverse=True)
    return next((number for number in candidates if _is_own_op(block, host, number)), 0)


def _newest_reads(block: bytes) -> dict[bytes, bytes]:
    """Return, by file as it is written there, the line of its newest read; a text may hold what only looks so."""
    found: dict[bytes, bytes] = {}
    for match in _READ.finditer(block):
        begin = block.rfind(b"\n", 0, match.start()) + 1
        if block.find(b"}", begin) == match.start():
            found[match[1]] = block[begin : block.find(b"\n", begin)]
    return found


def _clocks(lines: Iterable[bytes]) -> dict[str, Clock]:
    """Return the lines' clocks by file, without those that somebody has damaged."""
    clocks: dict[str, Clock] = {}
    for line in lines:
        with contextlib.suppress(ValueError):
            event = parse_event(line.decode())
            clocks[event.values["file"]] = event.clock
    return clocks


def _is_own_op(block: bytes, host: str, number: int) -> bool:
    """Tell whether `host` has logged its op of that number; a text may hold what only looks so."""
    needle = f" id={host}:{number} ".encode()
    position = block.rfind(needle)
    while position >= 0:
        begin = block.rfind(b"\n", 0, position) + 1
        match = _OWN_OP.match(block[begin : block.find(b"\n", position) + 1])
        if match is not None and match.end() == position + len(needle) - begin:
            return True
        position = block.rfind(needle, 0, begin)
    return False
