"""A replica's durable storage: the journal of ops, and the plain files as a view of it.

Theory of operation. A write is one SQLite transaction, then one change to the end of the plain file. The
journal alone decides, so no op waits for the file: every SYNC_OPS ops, and at the end, the file is synced and
the journal notes up to which version it is on disk. After a crash `open` rewrites the file from the least
offset of the ops above that version; what lies before it nobody has touched since.

Invariants, between any two calls:
- a file's ops are 1..head without a gap, and the plain file holds exactly the head's content;
- memory agrees with the journal: it changes only when both journal and file have changed;
- a failed write has changed nothing, or it has raised FatalStorageError, and then nothing is done any more.

One process at a time may have a directory open; who starts it sees to that.
"""

import os
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Final

from client.effects import FileState, Persist
from client.journal_change import JournalFile, plan
from client.journal_database import Database, FileOps
from client.journal_format import FILES, SET_META, UPDATE_FILE, Durability, MetaValue, Statement
from client.plainfiles import PlainFiles, make_directories, sync_directory
from client.seek import common_length, end_of_version, least_offset
from client.storage_errors import FatalStorageError, StorageError
from common.messages import Head
from common.records import EMPTY, Record, Version
from common.wire import encode_record

__all__ = ("Durability", "FatalStorageError", "Journal", "MetaValue", "StorageError")

SYNC_OPS: Final = 256
"""A file is synced after so many ops; this bounds what a restart, or a reader beside us, looks at twice."""


class Journal:
    """The storage of one data directory; also the core's History. Every method may raise StorageError."""

    def __init__(self, database: Database, plain: PlainFiles, *, durable: bool) -> None:
        """Use `open` instead."""
        self._database = database
        self._plain = plain
        self._durable = durable
        self._broken = ""
        self._meta: dict[str, MetaValue] = dict(database.rows("SELECT key, value FROM meta"))
        self._files: dict[str, JournalFile] = {}
        for name, *row in database.rows(FILES):
            self._files[name] = file = JournalFile(*row)
            seq = database.head(file.id)
            file.version, file.clock = database.version(file.id, seq)
            # An op under a new token promises and follows it without a word in the file's row.
            file.promised = max(file.promised, file.version.token)
            file.follows = max(file.follows, file.version.token)
            file.length = FileOps(database, file.id).length(seq) if seq else 0

    @classmethod
    def open(cls, directory: Path, durability: Durability) -> tuple["Journal", tuple[str, ...]]:
        """Open a data directory, made if it is not there, and bring its files to the journal.

        Returns the journal and one line for each file that was not as the journal says.
        """
        durable = durability == "disk"
        make_directories(directory / "files", durable=durable)
        database = Database.open_for_writing(directory / "journal", durability)
        plain = PlainFiles(directory / "files", durable=durable)
        try:
            if durable:
                sync_directory(directory)
            journal = cls(database, plain, durable=durable)
            if durable and journal.meta.get("durability") == "memory":
                os.sync()  # what was noted as synced till now was only handed to the system
            notes = journal._repair_all()
            journal.set_meta({"durability": durability})
        except BaseException:
            plain.close()
            database.close()
            raise
        return journal, notes

    def close(self) -> None:
        """Sync the files, bring the WAL into the journal, and close everything, even where that fails."""
        try:
            if not self._broken:
                self._note_synced([name for name, file in self._files.items() if not file.is_synced])
                self._database.rows("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            self._plain.close()
            self._database.close()

    # Small values

    @property
    def meta(self) -> Mapping[str, MetaValue]:
        """The small values that `set_meta` has kept, by name."""
        return MappingProxyType(self._meta)

    def set_meta(self, values: Mapping[str, MetaValue]) -> None:
        """Keep small values durably, all or none; those that are kept already cost nothing."""
        new = {key: value for key, value in values.items() if self._meta.get(key) != value}
        if new:
            self._commit([(SET_META, item) for item in new.items()])
            self._meta.update(new)

    def begin_start(self) -> tuple[str, int]:
        """Count a start of this directory, durably in any case; return (replica id, start count)."""
        replica = str(self._meta.get("replica_id") or os.urandom(8).hex())
        count = int(self._meta.get("start_count", 0)) + 1
        if not self._durable:
            self._database.rows("PRAGMA synchronous = FULL")
        self.set_meta({"replica_id": replica, "start_count": count})
        if not self._durable:
            self._database.rows("PRAGMA wal_checkpoint(TRUNCATE)")
            self._database.rows("PRAGMA synchronous = OFF")
        return replica, count

    # Reading

    def states(self) -> dict[str, FileState]:
        """Return the state of every file."""
        return {
            name: FileState(Head(file.version, file.follows, file.clock), file.length, file.promised)
            for name, file in self._files.items()
        }

    def version_at(self, file: str, seq: int) -> Version | None:
        """Return the version `seq` (0 is EMPTY), or None where there is none."""
        known = self._files.get(file)
        if seq == 0:
            return EMPTY
        if known is None or not 0 < seq <= known.version.seq:
            return None
        if seq == known.version.seq:
            return known.version
        token, digest = self._database.op("token, hash", known.id, seq)
        return Version(seq, token, digest)

    def record_at(self, file: str, seq: int) -> Record:
        """Return the op that made version `seq`, from 1 to the head."""
        ((record, _),) = self._database.records(self._files[file].id, seq - 1, seq)
        return record

    def records_after(self, file: str, seq: int, bytes_max: int) -> tuple[tuple[Record, ...], bool]:
        """Return the ops behind version `seq`, and whether more follow.

        It ends with the op with which the encoded records pass `bytes_max`.
        """
        known = self._files.get(file)
        if known is None:
            return (), False
        head, records = known.version.seq, []
        with closing(self._database.records(known.id, seq, head)) as rows:
            for record, _ in rows:
                records.append(record)
                bytes_max -= len(encode_record(record))
                if bytes_max < 0:
                    break
        return tuple(records), bool(records) and records[-1].seq < head

    def change_to(self, file: str, seq: int) -> tuple[int, bytes]:
        """Return the (offset, inserted) that turns the head's content into version `seq`'s.

        The offset is that of the first byte that differs; (length, b"") where none does. Only the ends of
        both versions are read, from the least offset of the ops above `seq` on.
        """
        known = self._files.get(file)
        if known is None:
            assert seq == 0, seq
            return 0, b""
        ops = FileOps(self._database, known.id)
        length = ops.length(seq) if seq else 0
        start = least_offset(ops, seq, known.version.seq, min(length, known.length))
        wanted = self._end_at(file, seq, start)
        same = common_length(self._read_view(file, start, known.length), wanted)
        return start + same, wanted[same:]

    def content(self, file: str, seq: int) -> bytes:
        """Return the content of version `seq`, from 0 to the head."""
        return self._end_at(file, seq, 0)

    def read(self, file: str) -> bytes:
        """Return the file's content; a file that is not there is empty."""
        known = self._files.get(file)
        if known is None:
            return b""
        if self._plain.size(file) != known.length:  # somebody else has changed, replaced or removed it
            self._repair(file)
            self._note_synced([file])
        return self._read_view(file, 0, known.length)

    def tail(self, file: str, bytes_max: int) -> tuple[int, bytes]:
        """Return the file's length in bytes and its last bytes, up to `bytes_max` of them."""
        known = self._files.get(file)
        if known is None:
            return 0, b""
        return known.length, self._read_view(file, max(known.length - bytes_max, 0), known.length)

    # Writing

    def write(self, change: Persist) -> None:
        """Do what Persist asks for: one transaction, then the file.

        Raises StorageError with nothing changed in journal, memory and file, or FatalStorageError.
        """
        if self._broken:
            raise FatalStorageError(self._broken)
        before = self._files.get(change.file)
        if before is not None:
            self._write(change, before, is_new=False)
            return
        made = self._plain.create(change.file)
        try:
            self._write(change, JournalFile(len(self._files) + 1), is_new=True)
        except StorageError:
            if made:
                self._plain.remove(change.file)
            raise

    def _write(self, change: Persist, before: JournalFile, *, is_new: bool) -> None:
        name = change.file
        changes_ops = bool(change.records) or change.keep < before.version.seq
        if not (is_new or changes_ops or before.promised != change.promised or before.follows != change.follows):
            return
        sync = before.unsynced_ops >= SYNC_OPS
        if sync:
            self._sync(name)
            before.note_synced()  # which the transaction makes durable
        planned = plan(
            self._database,
            before,
            change,
            lambda start, stop: self._read_view(name, start, stop),
            is_new=is_new,
            row_differs=sync,
        )
        self._commit(planned.statements)
        if changes_ops:
            end = planned.end
            try:
                self._plain.write_end(name, end.start, end.after, before.length)
            except StorageError as error:
                back = planned.take_back(before)
                try:
                    self._plain.write_end(name, end.start, end.before, max(before.length, end.length))
                    self._commit(back)
                except StorageError as second:
                    self._broken = f"{error.reason}; and it cannot be taken back: {second.reason}"
                    raise FatalStorageError(self._broken) from error
                raise
        self._files[name] = planned.after

    def _commit(self, statements: list[Statement]) -> None:
        if self._broken:
            raise FatalStorageError(self._broken)
        try:
            self._database.commit(statements)
        except FatalStorageError as error:
            self._broken = str(error)
            raise

    # The files as a view of the journal

    def _repair_all(self) -> tuple[str, ...]:
        notes, repaired = [], []
        for name, file in self._files.items():
            if not file.is_synced or self._plain.size(name) != file.length:
                notes.append(self._repair(name))
                repaired.append(name)
        self._note_synced(repaired)
        return tuple(filter(None, notes))

    def _repair(self, name: str) -> str:
        """Write the file anew from where it may be wrong; return a line on what was wrong, or "".

        It is for the caller to `_note_synced` afterwards.
        """
        file, size = self._files[name], self._plain.size(name)
        seq, ops = file.version.seq, FileOps(self._database, file.id)
        trusted = least_offset(ops, file.synced, seq, min(file.synced_bytes, file.length))
        if size is None or size < trusted or (file.is_synced and size != file.length):
            # No crash left it so: somebody else was here, and may have changed any of it.
            trusted = file.synced_bytes = 0
            self._commit([(UPDATE_FILE, file.row())])
            self._plain.recreate(name)
        was = self._plain.read(name, trusted, size or 0)
        end = b"".join(end_of_version(ops, seq, seq, trusted, trusted)[1])
        # Written in any case: what a failed sync left in the cache reads well, but will not reach the disk.
        self._plain.write_end(name, trusted, end, trusted + len(was))
        return "" if was == end else f"files/{name} was brought back to version {seq} from byte {trusted} on"

    def _note_synced(self, names: list[str]) -> None:
        """Sync the files, and note it durably."""
        for name in names:
            self._sync(name)
            self._files[name].note_synced()
        if names:
            self._commit([(UPDATE_FILE, self._files[name].row()) for name in names])

    def _sync(self, name: str) -> None:
        if self._durable:
            try:
                self._plain.sync(name)
            except FatalStorageError as error:
                self._broken = str(error)
                raise

    def _read_view(self, name: str, start: int, stop: int) -> bytes:
        """Return the plain file's bytes [start, stop), after a repair if somebody else has cut it."""
        data = self._plain.read(name, start, stop)
        if len(data) < stop - start:
            self._repair(name)
            self._note_synced([name])
            data = self._plain.read(name, start, stop)
        if len(data) < stop - start:
            raise StorageError(f"files/{name} is being changed by somebody else")
        return data

    def _end_at(self, name: str, seq: int, start: int) -> bytes:
        file = self._files[name]
        assert 0 <= seq <= file.version.seq, seq
        ops = FileOps(self._database, file.id)
        stands, pieces = end_of_version(ops, seq, file.version.seq, start, file.length)
        return b"".join([self._read_view(name, start, stands), *pieces])
