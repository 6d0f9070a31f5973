"""A data directory read by itself: its files' versions and contents, whether or not a client runs on it.

A version's beginning stands in the plain file, as far as the journal vouches for that, and a client may be
changing the file right now. So once it is read, the journal is asked again whether it still vouches for what
was read, and whether nothing was done to that since; if not, the reading starts anew.
"""

import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from client.journal_database import Database, FileOps
from client.journal_format import SEQ_MASK, VERSIONS, Row, key_of
from client.plainfiles import PlainFiles
from client.seek import end_of_version, least_offset
from client.storage_errors import FatalStorageError, StorageError, sqlite_error
from common.records import VERBS, Verb, Version

ATTEMPTS_MAX: Final = 8
"""How often a reading is begun anew because the client changed what was read."""
PAGE_ROWS: Final = 1000
"""How many versions are read at once: a slow consumer must not hold up the client's checkpoints."""

Result = TypeVar("Result")


class HistoryError(ValueError):
    """What was asked for cannot be shown, in one line for people."""


class NoArchive(HistoryError):
    """The directory holds no journal that can be read."""


class NoFile(HistoryError):
    """No file of that name is in the journal."""


class NoVersion(HistoryError):
    """The file has no such version; the text names those it has."""


@dataclass(frozen=True, slots=True)
class VersionName:
    """FILE@SEQ, as people name a version."""

    file: str
    seq: int

    def __str__(self) -> str:
        return f"{self.file}@{self.seq}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version and the op that made it.

    `length` is the file's, and `delta` what the op added to it, in bytes; `time_us` is network time in
    microseconds since 1970, and `of` the seq that a restore went back to, else 0.
    """

    version: Version
    id: str
    verb: Verb
    time_us: int
    length: int
    delta: int
    of: int


@dataclass(frozen=True, slots=True)
class _Found:
    """The row of a file and its newest seq, at one moment; see the schema."""

    id: int
    head: int
    synced: int
    synced_bytes: int
    undone: int


class Archive:
    """The versions in one data directory. Every method raises HistoryError where it cannot answer."""

    def __init__(self, directory: Path) -> None:
        """Use `open` instead."""
        self._directory = directory
        self._path = directory / "journal"
        self._wal = directory / "journal-wal"
        self._plain = PlainFiles(directory / "files", writable=False)
        self._frozen: tuple[int, ...] | None = None
        self._stack = ExitStack()
        self._database: Database

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open a data directory for reading; it may have been left by a killed client, or be read-only."""
        archive = cls(directory)
        try:
            archive._connect()
        except BaseException:
            archive.close()
            raise
        return archive

    def close(self) -> None:
        """Close it."""
        self._plain.close()
        self._stack.close()

    def __enter__(self) -> Self:
        """Return itself, to be closed at the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def files(self) -> dict[str, Version]:
        """Return every file with its newest version."""

        def work(database: Database) -> dict[str, Version]:
            rows = database.rows("SELECT name, id FROM files ORDER BY name")
            return {name: database.version(id, database.head(id))[0] for name, id in rows}

        return self._read(work)

    def head(self, file: str) -> Version:
        """Return a file's newest version."""

        def work(database: Database) -> Version:
            found = self._find(database, file)
            return database.version(found.id, found.head)[0]

        return self._read(work)

    def versions(self, file: str) -> Iterator[Snapshot]:
        """Yield a file's versions from 1 on; version 0 is the empty file."""
        found = self._read(lambda database: self._find(database, file))
        return self._pages(found.id)

    def content(self, file: str, seq: int, start: int = 0) -> bytes:
        """Return the content of version `seq`, from byte `start` on."""
        for _ in range(ATTEMPTS_MAX):
            found, stands, pieces = self._read(lambda database: self._end(database, file, seq, start))
            if stands == start:
                return b"".join(pieces)
            beginning = self._file_bytes(file, start, stands)
            if not self._still_so(file, found, stands):
                continue
            if len(beginning) == stands - start:
                return b"".join([beginning, *pieces])
            break  # somebody has cut or removed the file
        return b"".join(self._read(lambda database: self._end(database, file, seq, start, trusting=False))[2])

    def agreed_bytes(self, file: str, first: int, second: int) -> int:
        """Return how many bytes at the beginning two versions share at least, without reading them."""

        def work(database: Database) -> int:
            found = self._find(database, file, first)
            found = self._find(database, file, second)
            ops = FileOps(database, found.id)
            shorter = min(ops.length(seq) if seq else 0 for seq in (first, second))
            return least_offset(ops, min(first, second), max(first, second), shorter)

        return self._read(work)

    def _pages(self, file_id: int) -> Iterator[Snapshot]:
        last = key_of(file_id, 0)

        def work(database: Database) -> list[Row]:
            return database.rows(VERSIONS, (last, key_of(file_id, SEQ_MASK), PAGE_ROWS))

        while rows := self._read(work):
            for last, token, digest, id, verb, *numbers in rows:
                yield Snapshot(Version(last & SEQ_MASK, token, digest), id, VERBS[verb], *numbers)

    def _find(self, database: Database, file: str, seq: int = 0) -> _Found:
        rows = database.rows("SELECT id, synced, synced_bytes, undone FROM files WHERE name = ?", (file,))
        if not rows:
            raise NoFile(f"{self._directory} has no versions of {file}")
        ((id, *numbers),) = rows
        found = _Found(id, database.head(id), *numbers)
        if not 0 <= seq <= found.head:
            raise NoVersion(f"{file} has versions 0 to {found.head}, not {seq}")
        return found

    def _end(
        self, database: Database, file: str, seq: int, start: int, *, trusting: bool = True
    ) -> tuple[_Found, int, list[bytes]]:
        found = self._find(database, file, seq)
        ops = FileOps(database, found.id)
        trusted = least_offset(ops, found.synced, found.head, found.synced_bytes) if trusting else 0
        return found, *end_of_version(ops, seq, found.head, start, trusted)

    def _file_bytes(self, file: str, start: int, stop: int) -> bytes:
        """Return the plain file's bytes [start, stop), fewer where it has not got them."""
        try:
            return self._plain.read(file, start, stop)
        except StorageError:
            return b""
        finally:
            self._plain.close()  # the client may have replaced the file by the next time

    def _still_so(self, file: str, found: _Found, stands: int) -> bool:
        """Tell whether nothing was done since to the file's first `stands` bytes."""

        def work(database: Database) -> bool:
            now = self._find(database, file)
            if (now.id, now.undone) != (found.id, found.undone) or now.head < found.head:
                return False
            ops = FileOps(database, now.id)
            trusted = least_offset(ops, now.synced, now.head, now.synced_bytes)
            return stands <= least_offset(ops, found.head, now.head, trusted)

        return self._read(work)

    # The connection

    def _read(self, work: Callable[[Database], Result]) -> Result:
        """Return what `work` reads from the journal as it is at one moment."""
        for _ in range(ATTEMPTS_MAX):
            failure: HistoryError | None = None
            try:
                self._database.rows("BEGIN")
                try:
                    result = work(self._database)
                finally:
                    self._database.rows("ROLLBACK")
            except HistoryError as error:
                failure = error
            except (StorageError, FatalStorageError) as error:
                failure = HistoryError(str(error))
            if self._frozen is None or self._frozen == self._identity():
                if failure is not None:
                    raise failure
                return result
            self._connect()
        raise HistoryError(f"{self._path} changes all the time; try again")

    def _identity(self) -> tuple[int, ...]:
        """Return what tells whether anybody has written the journal, whose WAL was not there or empty."""
        try:
            found = self._path.stat()
            wal_bytes = self._wal.stat().st_size if self._wal.exists() else 0
        except OSError as error:
            raise NoArchive(f"{self._path} cannot be read ({error.strerror})") from error
        return found.st_ino, found.st_size, found.st_mtime_ns, wal_bytes

    def _connect(self) -> None:
        self._stack.close()
        if not self._path.is_file():
            raise NoArchive(f"{self._directory} is no client's data directory: it has no journal")
        identity = self._identity()
        try:
            if identity[-1] == 0:
                # No client is at it, or it has not written yet. So opened, SQLite neither locks nor writes; a
                # client that comes shows in the identity: a commit grows the WAL before the journal.
                self._database = Database.open_for_reading(self._path, "mode=ro&immutable=1")
                self._frozen = identity
            else:
                self._database = self._open_with_wal()
                self._frozen = None
            self._stack.callback(self._database.close)
            if not self._database.is_journal():
                raise NoArchive(f"{self._path} is empty")
        except sqlite3.Error as error:
            raise NoArchive(str(sqlite_error(f"cannot read {self._path}", error))) from error
        except StorageError as error:
            raise NoArchive(error.reason) from error

    def _open_with_wal(self) -> Database:
        try:
            return Database.open_for_reading(self._path, "mode=ro")
        except sqlite3.OperationalError:
            if self._wal.with_name("journal-shm").exists():
                raise
            # A killed client's directory that lies where we may not write: SQLite needs a place for the WAL's
            # index. No client is at it, or the index would be there, so a copy is as good.
            copy = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="lockstep-")))
            for part in (self._path, self._wal):
                shutil.copyfile(part, copy / part.name)
            return Database.open_for_reading(copy / self._path.name, "mode=ro")
