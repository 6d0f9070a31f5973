"""A replica's durable storage: the journal of ops, and the plain files as a view of it.

Theory of operation. A write is one append to the file's log, then one change to the end of the plain file. The
journal alone decides, so no op waits for the file: every SYNC_OPS ops, and at the end, the file is synced and a
mark in the log notes up to which version it is on disk. After a crash `open` rewrites the file from the least
offset of the ops above that version; what lies before it nobody has touched since. What is small and seldom
changes (`meta`: who the replica is) is a JSON file that is replaced as a whole.

The event log belongs to the storage, since its lines are to be as durable as the ops that they tell of: a durable
change carries the lines that came since the one before it, and `open` puts back what a power cut took of them.

Invariants, between any two calls:
- a file's ops are 1..head without a gap, and the plain file holds exactly the head's content;
- memory agrees with the journal: it changes only when both journal and file have changed;
- a failed write has changed nothing, or it has raised FatalStorageError, and then nothing is done any more.

One process at a time may have a directory open; who starts it sees to that.
"""

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final

from client.disk import SYSTEM, Disk
from client.effects import FileState, Persist
from client.event_file import Carried, EventFile
from client.journal_change import append_entry, plan
from client.journal_format import FORMAT, Durability, MetaValue, mark_entry
from client.journal_log import OpenLogs, OpsLog, remove_log
from client.plainfiles import PlainFiles, make_directories, read_at, sync_directory, write_at
from client.seek import common_length, end_of_version, least_offset
from client.storage_errors import FatalStorageError, StorageError, os_error
from common.messages import Head
from common.records import EMPTY, Record, Version

__all__ = ("Durability", "FatalStorageError", "Journal", "MetaValue", "StorageError", "read_meta")

SYNC_OPS: Final = 256
"""A file is synced after so many ops; this bounds what a restart, or a reader beside us, looks at twice."""
_META: Final = "meta"
_NEW_META: Final = "meta.new"


class Journal:
    """The storage of one data directory; also the core's History. Every method may raise StorageError."""

    events: EventFile
    """The event log; closed with the journal."""
    repairs: list[str]
    """A line for each file that was not as the journal says since `open`; for its reader to take out."""

    def __init__(self, path: Path, meta: dict[str, MetaValue], disk: Disk, *, durable: bool) -> None:
        """Use `open` instead."""
        self._path = path
        self._disk = disk
        self._plain = PlainFiles(path.parent / "files", durable=durable, disk=disk)
        self._durable = durable
        self._broken = ""
        self._meta = meta
        self._logs = OpenLogs(disk, writable=True)
        self._files: dict[str, OpsLog] = {}
        self._number = 0
        self.repairs = []

    @classmethod
    def open(cls, directory: Path, durability: Durability, disk: Disk = SYSTEM) -> tuple["Journal", tuple[str, ...]]:
        """Open a data directory, made if it is not there; bring its event log and its files to the journal.

        Returns the journal and one line for each of them that was not as the journal says.
        """
        durable = durability == "disk"
        path = directory / "journal"
        make_directories(directory / "files", durable=durable, disk=disk)
        meta = read_meta(path, disk)
        if meta is None:
            if set(_names_in(path, disk)) - {_NEW_META}:
                raise StorageError(f"{path} is not a Lockstep journal")
            make_directories(path, durable=durable, disk=disk)
        journal = cls(path, meta or {}, disk, durable=durable)
        with ExitStack() as opened:
            opened.callback(journal._plain.close)
            opened.callback(journal._logs.close)
            was = journal.meta.get("durability")
            if durable and was == "memory":
                disk.sync()  # what was noted as synced till now was only handed to the system
            carried = journal._open_logs()
            journal.events, notes = EventFile.open(
                directory / "events.log", disk, durable=durable, carried=carried if was != "memory" else None
            )
            opened.callback(journal.events.close)
            if durable:
                sync_directory(directory, disk)
            notes += journal._repair_all()
            journal.set_meta({"durability": durability})
            opened.pop_all()
        return journal, tuple(notes)

    def _open_logs(self) -> Carried:
        """Find the file's logs; return what they have carried of the event log."""
        carried = Carried()
        for number in log_numbers(self._path, self._disk):
            path = self._path / f"{number}.ops"
            log = OpsLog.open(path, self._logs)
            if log is None:
                remove_log(path, self._disk)
                continue
            carried.synced = max(carried.synced, log.carried.synced)
            carried.lines += log.carried.lines
            if log.name in self._files:
                raise StorageError(f"{path} is damaged: {self._files[log.name].path.name} is of {log.name} already")
            log.trim(durable=self._durable)
            self._files[log.name] = log
            self._number = number
        return carried

    def close(self) -> None:
        """Sync the files, note that, and close everything. Raises FatalStorageError where a sync fails.

        What cannot be noted on a full disk, the next `open` does again.
        """
        try:
            if not self._broken:
                with suppress(StorageError):
                    self._note_synced([name for name, log in self._files.items() if not log.last.is_synced])
                if self._durable:
                    self.events.sync()
        finally:
            self._plain.close()
            self._logs.close()
            self.events.close()

    # Small values

    @property
    def meta(self) -> Mapping[str, MetaValue]:
        """The small values that `set_meta` has kept, by name."""
        return MappingProxyType(self._meta)

    def set_meta(self, values: Mapping[str, MetaValue]) -> None:
        """Keep small values, as durably as ops, all or none; those that are kept already cost nothing."""
        self._set_meta(values, durable=self._durable)

    def begin_start(self) -> tuple[str, int]:
        """Count a start of this directory, durably in any case; return (replica id, start count)."""
        replica = str(self._meta.get("replica_id") or os.urandom(8).hex())
        count = int(self._meta.get("start_count", 0)) + 1
        self._set_meta({"replica_id": replica, "start_count": count}, durable=True)
        return replica, count

    def _set_meta(self, values: Mapping[str, MetaValue], *, durable: bool) -> None:
        meta = {**self._meta, **values}
        if meta == self._meta:
            return
        data = json.dumps({"format": FORMAT, "meta": meta}, indent=1).encode() + b"\n"
        disk = self._disk
        try:
            descriptor = disk.open(self._path / _NEW_META, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            try:
                write_at(disk, descriptor, 0, data)
                if durable:
                    disk.fsync(descriptor)
            finally:
                disk.close(descriptor)
            disk.replace(self._path / _NEW_META, self._path / _META)
        except OSError as error:
            raise os_error(f"cannot write {self._path / _META}", error) from error
        self._meta = meta
        if durable:
            sync_directory(self._path, disk)

    # Reading

    def states(self) -> dict[str, FileState]:
        """Return the state of every file."""
        return {
            name: FileState(
                Head(log.last.version, log.last.follows, log.clock(log.last.version.seq)),
                log.last.length,
                log.last.promised,
            )
            for name, log in self._files.items()
        }

    def version_at(self, file: str, seq: int) -> Version | None:
        """Return the version `seq` (0 is EMPTY), or None where there is none."""
        log = self._files.get(file)
        if seq == 0:
            return EMPTY
        if log is None or not 0 < seq <= log.last.version.seq:
            return None
        return log.last.version if seq == log.last.version.seq else log.version(seq)

    def record_at(self, file: str, seq: int) -> Record:
        """Return the op that made version `seq`, from 1 to the head."""
        return self._files[file].record(seq)

    def records_after(self, file: str, seq: int, bytes_max: int) -> tuple[tuple[Record, ...], bool]:
        """Return the ops behind version `seq`, and whether more follow.

        It ends with the op with which the encoded records pass `bytes_max`.
        """
        log = self._files.get(file)
        records: list[Record] = []
        head = log.last.version.seq if log else 0
        while log and seq < head and bytes_max >= 0:
            seq += 1
            op = log.op(seq)
            records.append(log.record_of(op))
            bytes_max -= op.record_bytes
        return tuple(records), bool(records) and seq < head

    def change_to(self, file: str, seq: int) -> tuple[int, bytes]:
        """Return the (offset, inserted) that turns the head's content into version `seq`'s.

        The offset is that of the first byte that differs; (length, b"") where none does. Only the ends of
        both versions are read, from the least offset of the ops above `seq` on.
        """
        log = self._files.get(file)
        if log is None:
            assert seq == 0, seq
            return 0, b""
        length, last = log.length(seq) if seq else 0, log.last
        start = least_offset(log, seq, last.version.seq, min(length, last.length))
        wanted = self._end_at(log, seq, start)
        same = common_length(self._read_view(log, start, last.length), wanted)
        return start + same, wanted[same:]

    def content(self, file: str, seq: int) -> bytes:
        """Return the content of version `seq`, from 0 to the head."""
        return self._end_at(self._files[file], seq, 0)

    def read(self, file: str) -> bytes:
        """Return the file's content; a file that is not there is empty."""
        log = self._files.get(file)
        if log is None:
            return b""
        if self._plain.size(file) != log.last.length:  # somebody else has changed, replaced or removed it
            self._mend_file(log)
        return self._read_view(log, 0, log.last.length)

    def tail(self, file: str, bytes_max: int) -> tuple[int, bytes]:
        """Return the file's length in bytes and its last bytes, up to `bytes_max` of them."""
        log = self._files.get(file)
        if log is None:
            return 0, b""
        length = log.last.length
        return length, self._read_view(log, max(length - bytes_max, 0), length)

    # Writing

    def write(self, change: Persist) -> None:
        """Do what Persist asks for: one change of the log, then the file.

        Raises StorageError with nothing changed in journal, memory and file, or FatalStorageError.
        """
        if self._broken:
            raise FatalStorageError(self._broken)
        log = self._files.get(change.file)
        try:
            if log is not None:
                self._write(change, log, is_new=False)
            else:
                self._write_first(change)
        except FatalStorageError as error:
            self._broken = str(error)
            raise

    def _write_first(self, change: Persist) -> None:
        made = self._plain.create(change.file)
        log: OpsLog | None = None
        try:
            path = self._path / f"{self._number + 1}.ops"
            log = OpsLog.create(path, self._logs, change.file, durable=self._durable)
            self._write(change, log, is_new=True)
        except StorageError:
            if log is not None:
                log.remove()
            if made:
                self._plain.remove(change.file)
            raise
        self._files[change.file] = log
        self._number += 1

    def _write(self, change: Persist, log: OpsLog, *, is_new: bool) -> None:
        last = log.last
        changes_ops = bool(change.records) or change.keep < last.version.seq
        if not (is_new or changes_ops or last.promised != change.promised or last.follows != change.follows):
            return
        mark, events = last.unsynced_ops >= SYNC_OPS, self.events
        if mark:
            self._sync(log)
        elif (entry := append_entry(log, change, first=not events.waiting)) is not None:
            self._append(change, log, entry)
            return
        logged = (events.waiting_at, bytes(events.waiting)) if events.waiting else (events.synced, b"")
        mark = mark or bool(events.waiting)
        planned = plan(log, change, lambda start, stop: self._read_view(log, start, stop), logged, mark=mark)
        log.append(planned.entries, durable=self._durable)
        if changes_ops:
            end = planned.end
            try:
                self._plain.write_end(change.file, end.start, end.after, last.length)
            except StorageError as error:
                length = max(last.length, end.length)
                self._take_back(log, change.keep, end.start, end.before, length, error, is_new=is_new)
                raise
        log.last = planned.done(last.end)
        events.carry()

    def _append(self, change: Persist, log: OpsLog, entry: bytes) -> None:
        """Do the commonest change, one op that only appends, by the shortest way."""
        last, record, events = log.last, change.records[0], self.events
        length = last.length + len(record.inserted)
        mark = b""
        if events.waiting:
            tokens = change.promised, change.follows
            mark = mark_entry(change.keep, tokens, last.known_synced, events.waiting_at, events.waiting, more=True)
            entry = mark + entry
        written = False
        try:
            log.append(entry, durable=self._durable)
            written = True
            self._plain.write_end(change.file, last.length, record.inserted, last.length)
        except StorageError as error:
            last.lows = None
            if written:
                self._take_back(log, change.keep, last.length, b"", length, error)
            raise
        if mark:
            events.carry()
        last.places.append(last.end + len(mark))
        last.end += len(entry)
        last.promised, last.follows = change.promised, change.follows
        last.version = Version(record.seq, record.token, change.hashes[0])
        last.length = length
        last.unsynced_ops += 1

    def _take_back(
        self,
        log: OpsLog,
        keep: int,
        start: int,
        before: bytes,
        length: int,
        error: StorageError,
        *,
        is_new: bool = False,
    ) -> None:
        """Put `before` back at byte `start` of a file that may have up to `length` bytes, and take back the log's end.

        Raises FatalStorageError.
        """
        last = log.last
        try:
            self._plain.write_end(log.name, start, before, length)
            if self._durable:
                self._plain.sync(log.name)  # as long as the log has the change, a start brings the file to it
            log.take_back(durable=self._durable)
            if not is_new:
                last.synced, last.synced_bytes = min(last.synced, keep), min(last.synced_bytes, start)
                last.undone += 1
                self._mark(log)
        except (StorageError, FatalStorageError) as second:
            raise FatalStorageError(f"{error.reason}; and it cannot be taken back: {second}") from error

    def _mark(self, log: OpsLog) -> None:
        """Append a mark of what memory holds."""
        last = log.last
        tokens = last.promised, last.follows
        mark = mark_entry(last.version.seq, tokens, last.known_synced, self.events.synced)
        log.append(mark, durable=self._durable)
        log.last.end += len(mark)

    # The files as a view of the journal

    def _repair_all(self) -> tuple[str, ...]:
        notes, repaired = [], []
        for name, log in self._files.items():
            if not log.last.is_synced or self._plain.size(name) != log.last.length:
                notes.append(self._repair(log))
                repaired.append(name)
        self._note_synced(repaired)
        return tuple(filter(None, notes))

    def _mend_file(self, log: OpsLog) -> None:
        """Repair one file between two ops, and keep a line on it in `repairs`."""
        if line := self._repair(log):
            self.repairs.append(line)
        self._note_synced([log.name])

    def _repair(self, log: OpsLog) -> str:
        """Write the file anew from where it may be wrong; return a line on what was wrong, or "".

        It is for the caller to `_note_synced` afterwards.
        """
        name, last = log.name, log.last
        size, seq = self._plain.size(name), last.version.seq
        trusted = least_offset(log, last.synced, seq, min(last.synced_bytes, last.length))
        # No crash left it so: somebody else was here, and may have changed any of it.
        foreign = size is None or size < trusted or (last.is_synced and size != last.length)
        if foreign:
            trusted = 0
        end = b"".join(end_of_version(log, seq, seq, trusted, trusted)[1])
        if foreign:
            last.synced_bytes = 0
            self._mark(log)
            self._plain.recreate(name)
        was = self._plain.read(name, trusted, size or 0)
        # Written in any case: what a failed sync left in the cache reads well, but will not reach the disk.
        self._plain.write_end(name, trusted, end, trusted + len(was))
        return "" if was == end else f"files/{name} was brought back to version {seq} from byte {trusted} on"

    def _note_synced(self, names: list[str]) -> None:
        """Sync the files, and note it as durably as ops."""
        try:
            for name in names:
                log = self._files[name]
                self._sync(log)
                self._mark(log)
        except FatalStorageError as error:
            self._broken = str(error)
            raise

    def _sync(self, log: OpsLog) -> None:
        """Sync the file and bring the index up to date; a mark has to tell it."""
        if self._durable:
            self._plain.sync(log.name)
            self.events.sync()
        log.write_index(durable=self._durable)
        log.last.note_synced()

    def _read_view(self, log: OpsLog, start: int, stop: int) -> bytes:
        """Return the plain file's bytes [start, stop), after a repair if somebody else has cut it."""
        data = self._plain.read(log.name, start, stop)
        if len(data) < stop - start:
            self._mend_file(log)
            data = self._plain.read(log.name, start, stop)
        if len(data) < stop - start:
            raise StorageError(f"files/{log.name} is being changed by somebody else")
        return data

    def _end_at(self, log: OpsLog, seq: int, start: int) -> bytes:
        last = log.last
        assert 0 <= seq <= last.version.seq, seq
        stands, pieces = end_of_version(log, seq, last.version.seq, start, last.length)
        return b"".join([self._read_view(log, start, stands), *pieces])


def read_meta(path: Path, disk: Disk = SYSTEM) -> dict[str, MetaValue] | None:
    """Return the small values of the journal at `path`, None where it has none. Raises StorageError."""
    try:
        descriptor = disk.open(path / _META, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = read_at(disk, descriptor, 0, disk.fstat(descriptor).st_size)
        finally:
            disk.close(descriptor)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise os_error(f"cannot read {path / _META}", error) from error
    try:
        found = json.loads(data)
        version, meta = found["format"], dict(found["meta"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise StorageError(f"{path / _META} is damaged: {error}") from error
    if version != FORMAT:
        raise StorageError(
            f"{path} has the format {version}, this Lockstep knows {FORMAT}; use the one that wrote it, or other --data"
        )
    return meta


def log_numbers(path: Path, disk: Disk = SYSTEM) -> list[int]:
    """Return the numbers of the logs in the journal at `path`, in order. Raises StorageError."""
    names = [name.removesuffix(".ops") for name in _names_in(path, disk) if name.endswith(".ops")]
    return sorted([int(name) for name in names if name.isdigit()])


def _names_in(path: Path, disk: Disk) -> list[str]:
    """Return the names in a directory; there are none where it is missing. Raises StorageError."""
    try:
        return disk.listdir(path)
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise StorageError(f"{path} is not a Lockstep journal") from None
    except OSError as error:
        raise os_error(f"cannot read {path}", error) from error
