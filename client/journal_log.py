"""One file's log on disk: read by seq, appended to by its one writer, read beside it by anybody.

Where each op stands is told by an index, 8 bytes an op, written behind. It is never needed: a log whose index is
missing, or does not lead to the newest mark, is read through from its beginning.

A change is whole or not there: what a crash cut off at the end is left out, and taken away by the next writer.
But where something whole stands behind what is torn, no crash did it, and the log is damaged.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from client.disk import Disk
from client.event_file import Carried
from client.journal_format import (
    HEADER_BYTES_MAX,
    OP_HEAD_BYTES,
    PREFIX_BYTES,
    Mark,
    Op,
    begins_change,
    entry_bytes,
    header_of,
    read_entry,
    read_header,
    read_op,
)
from client.plainfiles import OpenFiles, read_at, sync_directory, write_at
from client.storage_errors import FatalStorageError, StorageError, os_error
from common.clock import Clock
from common.records import EMPTY, Record, Version
from common.wire import WireError, decode_record

OPEN_LOGS_MAX: Final = 64
_SCAN_BYTES: Final = 1 << 20


@dataclass(slots=True)
class LogEnd:
    """What the entries up to byte `end` of a log say of its file.

    The first `synced_bytes` bytes of version `synced` are on disk in the plain file; `unsynced_ops` came later.
    `undone` rises with each change that took ops back, for readers. `lows` are those of client.seek, None until
    needed. The ops up to `indexed` stand in the index, the later ones at `places`.
    """

    end: int
    promised: int = 0
    follows: int = 0
    synced: int = 0
    synced_bytes: int = 0
    undone: int = 0
    version: Version = EMPTY
    length: int = 0
    unsynced_ops: int = 0
    indexed: int = 0
    places: list[int] = field(default_factory=list)
    lows: list[int] | None = None

    @property
    def known_synced(self) -> tuple[int, int, int]:
        """Return what a mark tells of that, and how often ops were undone."""
        return self.synced, self.synced_bytes, self.undone

    @property
    def is_synced(self) -> bool:
        """Tell whether the plain file is wholly on disk."""
        return self.synced == self.version.seq and self.synced_bytes == self.length

    def note_synced(self) -> None:
        """Note that it is, as of now."""
        self.synced, self.synced_bytes, self.unsynced_ops = self.version.seq, self.length, 0

    def cut(self, version: Version, length: int) -> None:
        """Leave out the ops above `version`."""
        seq = version.seq
        self.version, self.length, self.lows = version, length, None
        del self.places[max(seq - self.indexed, 0) :]
        self.indexed = min(self.indexed, seq)


class OpenLogs(OpenFiles):
    """The open logs and indexes, by path."""

    def __init__(self, disk: Disk, *, writable: bool) -> None:
        """Begin with none open."""
        super().__init__(OPEN_LOGS_MAX, disk)
        self._flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC

    def descriptor(self, path: str) -> int:
        """Return the open file; it may be closed by the next call. Raises OSError."""
        found = self.get(path)
        return self.keep(path, self.disk.open(path, self._flags)) if found is None else found


class OpsLog:
    """A file's log, open at what its last whole change left. Methods raise StorageError; it is client.seek's Ops."""

    def __init__(self, path: Path, logs: OpenLogs, name: str, last: LogEnd) -> None:
        """Use `open` or `create` instead."""
        self.path = path
        self.name = name
        self.last = last
        self.carried = Carried()
        self._start = self._newest = last.end
        self._file = str(path)
        self._index = str(path.with_suffix(".index"))
        self._logs = logs
        self._disk = logs.disk

    @classmethod
    def create(cls, path: Path, logs: OpenLogs, name: str, *, durable: bool) -> "OpsLog":
        """Make a log of nothing; `append` brings it, with its first change, to the disk."""
        header, disk = header_of(name), logs.disk
        try:
            descriptor = disk.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                write_at(disk, descriptor, 0, header)
                if durable:
                    disk.fdatasync(descriptor)  # so that behind a line that a power cut has torn there is no change
            finally:
                disk.close(descriptor)
            if durable:
                sync_directory(path.parent, disk)
        except OSError as error:
            remove_log(path, disk)
            raise os_error(f"cannot make {path}", error) from error
        except StorageError:
            remove_log(path, disk)
            raise
        return cls(path, logs, name, LogEnd(len(header)))

    @classmethod
    def open(cls, path: Path, logs: OpenLogs) -> "OpsLog | None":
        """Open a log; None where its first change never came to be."""
        log = cls(path, logs, "", LogEnd(0))
        with _trying("read", path):
            log.name, start = read_header(read_at(logs.disk, logs.descriptor(log._file), 0, HEADER_BYTES_MAX), path)
            log._start = start
            if start:
                log.last = log._from_index() or log._scan(LogEnd(start), start)
        if log.last.end == start:
            log._forget()  # whoever makes another log here must not find this one's descriptors
            return None
        return log

    def trim(self, *, durable: bool) -> None:
        """Take away what a crash has cut off behind the last whole change. Raises StorageError or FatalStorageError.

        With `durable` bring the rest to the disk: a kill may have come before the sync of the last change. It is
        written anew, for what a failed sync left in the cache reads well, but will not reach the disk.
        """
        with _trying("write", self.path):
            descriptor = self._logs.descriptor(self._file)
            if self._disk.fstat(descriptor).st_size > self.last.end:
                self._disk.ftruncate(descriptor, self.last.end)
            if durable:
                write_at(self._disk, descriptor, self._newest, self._read(self._newest, self.last.end))
        if durable:
            self._sync(descriptor)

    def remove(self) -> None:
        """Take the log away, if possible."""
        self._forget()
        remove_log(self.path, self._disk)

    # Reading

    def op(self, seq: int) -> Op:
        """Return the entry of the op `seq`, from 1 to the head."""
        last = self.last
        with _trying("read", self.path):
            op = self._op_at(
                last.places[seq - last.indexed - 1] if seq > last.indexed else self._indexed(seq), last.end
            )
        if op is not None and op.seq == seq:
            return op
        if seq <= last.indexed:
            self._do_without_index()
            return self.op(seq)
        raise StorageError(f"{self.path} is damaged: op {seq} is not where it should be")

    def _read(self, start: int, stop: int) -> bytes:
        with _trying("read", self.path):
            data = read_at(self._disk, self._logs.descriptor(self._file), start, stop)
        if len(data) < stop - start:
            raise StorageError(f"{self.path} is damaged: it ends before byte {stop}")
        return data

    def _indexed(self, seq: int) -> int:
        """Return where the index says that the op `seq` stands."""
        return int.from_bytes(self._disk.pread(self._logs.descriptor(self._index), 8, 8 * seq - 8), "little")

    def _op_at(self, place: int, end: int) -> Op | None:
        """Return the op at byte `place`, before byte `end`, or None where there is none."""
        if place >= end:
            return None
        op = read_op(self._disk.pread(self._logs.descriptor(self._file), OP_HEAD_BYTES, place), place)
        return op if op is not None and op.end <= end else None

    def record(self, seq: int) -> Record:
        """Return the op `seq`."""
        return self.record_of(self.op(seq))

    def record_of(self, op: Op) -> Record:
        """Return the op whose entry it is."""
        try:
            record = decode_record(self._part(op, op.record_at, op.removed_at))
        except WireError as error:
            raise StorageError(f"{self.path} is damaged: op {op.seq} cannot be read ({error})") from error
        if record.seq != op.seq:
            raise StorageError(f"{self.path} is damaged: op {op.seq} says that it is {record.seq}")
        return record

    def version(self, seq: int) -> Version:
        """Return the version `seq`, from 0 to the head."""
        return self.op(seq).version if seq else EMPTY

    def clock(self, seq: int) -> Clock:
        """Return the clock of the op `seq`, from 0, which has none, to the head."""
        return self.record(seq).clock if seq else {}

    def bounds(self, seq: int) -> tuple[int, int]:
        """Return the op's (offset, low)."""
        op = self.op(seq)
        return op.offset, op.low

    def length(self, seq: int) -> int:
        """Return the file's length in bytes after the op."""
        return self.op(seq).length

    def removed(self, seq: int, start: int, stop: int) -> bytes:
        """Return that part of the bytes that the op replaced."""
        op = self.op(seq)
        return self._part(op, op.removed_at + start, op.removed_at + min(stop, op.removed_bytes))

    def inserted(self, seq: int, start: int, stop: int) -> bytes:
        """Return that part of the bytes that the op put in."""
        op = self.op(seq)
        return self._part(op, op.inserted_at + start, op.inserted_at + min(stop, op.inserted_bytes))

    def _part(self, op: Op, start: int, stop: int) -> bytes:
        """Return the log's bytes [start, stop), which lie in the entry of `op`; all of that is checked."""
        place = op.record_at - OP_HEAD_BYTES
        data = self._read(place, op.end)
        if read_entry(data, 0, place) is None:
            raise StorageError(f"{self.path} is damaged: op {op.seq} is not what was written")
        return data[start - place : stop - place]

    # Writing

    def append(self, entries: bytes, *, durable: bool) -> None:
        """Append a change, all or nothing, with `durable` to the disk. Raises StorageError or FatalStorageError."""
        end = self.last.end
        try:
            descriptor = self._logs.descriptor(self._file)
            write_at(self._disk, descriptor, end, entries)
        except OSError as error:
            try:
                self._disk.ftruncate(self._logs.descriptor(self._file), end)
            except OSError as second:
                raise FatalStorageError(f"{self.path}: {error}; and it cannot be taken back ({second})") from error
            raise os_error(f"cannot write {self.path}", error) from error
        if durable:
            self._sync(descriptor)

    def take_back(self, *, durable: bool) -> None:
        """Take away what stands behind the last change that `last` knows. Raises FatalStorageError."""
        try:
            descriptor = self._logs.descriptor(self._file)
            self._disk.ftruncate(descriptor, self.last.end)
        except OSError as error:
            raise FatalStorageError(f"cannot take back what was written to {self.path}: {error}") from error
        if durable:
            self._sync(descriptor)

    def write_index(self, *, durable: bool) -> None:
        """Bring the index up to the head; a mark has to follow. Raises StorageError."""
        last = self.last
        if not last.places:
            return
        with _trying("write", self._index):
            if last.indexed == 0:
                self._logs.forget(self._index)
                self._disk.close(self._disk.open(self._index, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
            descriptor = self._logs.descriptor(self._index)
            write_at(self._disk, descriptor, 8 * last.indexed, struct.pack(f"<{len(last.places)}Q", *last.places))
            self._disk.ftruncate(descriptor, 8 * last.version.seq)
            if durable:
                self._disk.fsync(descriptor)
        last.indexed, last.places = last.version.seq, []

    def _sync(self, descriptor: int) -> None:
        try:
            self._disk.fdatasync(descriptor)
        except OSError as error:
            raise FatalStorageError(f"cannot bring {self.path} to the disk: {error.strerror}") from error

    def _forget(self) -> None:
        self._logs.forget(self._index)
        self._logs.forget(self._file)

    # Opening

    def _from_index(self) -> LogEnd | None:
        """Return what the log says, read from the last op of the index on; None where that leads to no mark."""
        try:
            seq = self._disk.fstat(self._logs.descriptor(self._index)).st_size // 8
        except FileNotFoundError:
            return None
        size = self._disk.fstat(self._logs.descriptor(self._file)).st_size
        op = self._op_at(self._indexed(seq), size) if seq else None
        if op is None or op.seq != seq:
            return None
        try:
            for entry in self._entries(op.end):
                if not isinstance(entry, Mark) or entry.keep != seq:
                    return None
                if entry.synced == seq:
                    # The mark may belong to a change that is torn; what it says is true in any case.
                    known = entry.synced, entry.synced_bytes, entry.undone
                    last = LogEnd(op.end, op.promised, op.follows, *known, op.version, op.length, indexed=seq)
                    return self._scan(last, op.end)
        except StorageError:
            pass  # a crash, or somebody, has left the index half written: read through, the log tells
        return None

    def _do_without_index(self) -> None:
        """Find the ops in the log itself, for somebody has damaged the index."""
        last = self.last
        try:
            with _trying("read", self.path):
                found = self._scan(LogEnd(self._start), self._start)
        finally:
            self.last = last
        if found.version != last.version:
            raise StorageError(f"{self.path} is damaged: it leads to {found.version}, not to {last.version}")
        last.indexed, last.places = 0, found.places

    def _scan(self, last: LogEnd, start: int) -> LogEnd:
        """Take the whole changes from byte `start` on into `last`."""
        self.carried = Carried()
        change: list[tuple[int, Op | Mark]] = []
        place = start
        for entry in self._entries(start):
            change.append((place, entry))
            place = entry.end
            if not entry.more:
                for at, part in change:
                    self._take(last, at, part)
                self._newest, last.end = change[0][0], place
                change = []
        return last

    def _take(self, last: LogEnd, place: int, entry: Op | Mark) -> None:
        last.promised, last.follows = entry.promised, entry.follows
        if isinstance(entry, Op):
            if entry.seq != last.version.seq + 1:
                raise StorageError(f"{self.path} is damaged: op {entry.seq} comes after op {last.version.seq}")
            last.version, last.length = entry.version, entry.length
            last.places.append(place)
            last.unsynced_ops += 1
            return
        if entry.keep > last.version.seq:
            raise StorageError(f"{self.path} is damaged: op {entry.keep} is missing")
        last.synced, last.synced_bytes, last.undone = entry.synced, entry.synced_bytes, entry.undone
        self.carried.take(entry.logged, entry.lines)
        if entry.keep < last.version.seq:
            last.end = place  # which is as far as the ops kept go
            kept = self._kept(last, entry.keep)
            last.cut(kept.version if kept else EMPTY, kept.length if kept else 0)
        elif entry.synced == entry.keep:
            last.unsynced_ops = 0

    def _kept(self, last: LogEnd, seq: int) -> Op | None:
        self.last = last
        return self.op(seq) if seq else None

    def _entries(self, start: int) -> Iterator[Op | Mark]:
        """Yield the whole entries from byte `start` on. Raises StorageError where more stand behind a torn one."""
        descriptor = self._logs.descriptor(self._file)
        size = self._disk.fstat(descriptor).st_size
        base, at, data = start, 0, b""
        while True:
            entry = read_entry(data, at, base)
            if entry is not None:
                yield entry
                at = entry.end - base
                continue
            read_to, has = base + len(data), len(data) - at
            if read_to >= size or (has >= PREFIX_BYTES and entry_bytes(data, at) <= has):
                break
            more = read_at(
                self._disk, descriptor, read_to, min(size, read_to + max(_SCAN_BYTES, entry_bytes(data, at)))
            )
            if not more:
                break
            base, at, data = base + at, 0, data[at:] + more
        if begins_change(read_at(self._disk, descriptor, base + at, size)):
            # A crash cuts off the last change alone.
            raise StorageError(f"{self.path} is damaged at byte {base + at}: the log goes on behind that")


@contextmanager
def _trying(to: str, path: object) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise os_error(f"cannot {to} {path}", error) from error


def remove_log(path: Path, disk: Disk) -> None:
    """Take a log and its index away, if possible: without them nothing was ever done to their file."""
    for part in (path.with_suffix(".index"), path):
        try:
            disk.unlink(part)
        except OSError:
            pass
