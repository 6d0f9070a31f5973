"""The journal's database, opened for its one writer or for readers beside it; SQLite's errors become ours."""

import sqlite3
from collections.abc import Generator
from pathlib import Path
from typing import Final
from urllib.parse import quote

from client.journal_format import (
    APPLICATION_ID,
    FORMAT,
    HASHED_RECORDS,
    PAGE_BYTES,
    SCHEMA,
    SEQ_MASK,
    WAL_BYTES,
    Durability,
    Row,
    Statement,
    key_of,
    read_record,
)
from client.storage_errors import FatalStorageError, StorageError, sqlite_error
from common.clock import Clock
from common.records import EMPTY, Record, Version

BUSY_SECONDS: Final = 5.0
"""How long a statement waits for another process, such as a person's sqlite3 shell, that writes."""


class Database:
    """A connection. Every method raises StorageError where SQLite refuses."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        """Use `open_for_writing` or `open_for_reading` instead."""
        self._connection = connection
        self._path = path

    @classmethod
    def open_for_writing(cls, path: Path, durability: Durability) -> "Database":
        """Open the journal, and make it if it is not there."""
        try:
            # The driver may write from a worker thread; it never does so from two at once.
            connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise sqlite_error(f"cannot open {path}", error) from error
        database = cls(connection, path)
        try:
            if not database.is_journal():
                database.rows(f"PRAGMA page_size = {PAGE_BYTES}")
                database.rows("PRAGMA journal_mode = WAL")
                database.commit([(statement, ()) for statement in SCHEMA])
            database.rows(f"PRAGMA journal_size_limit = {WAL_BYTES}")
            database.rows(f"PRAGMA wal_autocheckpoint = {WAL_BYTES // PAGE_BYTES}")
            database.rows(f"PRAGMA synchronous = {'FULL' if durability == 'disk' else 'OFF'}")
        except BaseException:
            database.close()
            raise
        return database

    @classmethod
    def open_for_reading(cls, path: Path, parameters: str) -> "Database":
        """Open an existing journal, with SQLite's URI `parameters`. Raises sqlite3.Error."""
        uri = f"file:{quote(str(path.absolute()))}?{parameters}"
        connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except BaseException:
            connection.close()
            raise
        return cls(connection, path)

    def is_journal(self) -> bool:
        """Tell whether it is a journal, or empty. Raises StorageError for a foreign or a newer one."""
        ((application_id,),) = self.rows("PRAGMA application_id")
        ((format,),) = self.rows("PRAGMA user_version")
        if application_id != APPLICATION_ID:
            if application_id or format or self.rows("SELECT 1 FROM sqlite_master LIMIT 1"):
                raise StorageError(f"{self._path} is a database of another program")
            return False
        if format > FORMAT:
            raise StorageError(
                f"{self._path} has the format {format}, and this Lockstep knows {FORMAT}; use a newer one"
            )
        return True

    def rows(self, query: str, values: Row = ()) -> list[Row]:
        """Return all rows of a query."""
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise sqlite_error(f"cannot read {self._path}", error) from error

    def op(self, columns: str, file_id: int, seq: int) -> Row:
        """Return the columns of the op `seq`."""
        rows = self.rows(f"SELECT {columns} FROM ops WHERE key = ?", (key_of(file_id, seq),))
        if not rows:
            raise StorageError(f"{self._path} is damaged: op {seq} of file {file_id} is missing")
        return rows[0]

    def blob(self, column: str, file_id: int, seq: int, start: int, stop: int) -> bytes:
        """Return the bytes [start, stop) of a column of the op `seq`."""
        # Not blobopen: some Pythons 3.11 take its row for a C int, and a key has more bits.
        part = f"CAST(substr({column}, {start + 1}, {stop - start}) AS BLOB)"
        data: bytes | None
        (data,) = self.op(part, file_id, seq)
        return data or b""  # of an empty value SQLite makes a null

    def head(self, file_id: int) -> int:
        """Return the seq of the file's newest op, or 0."""
        query = "SELECT max(key) FROM ops WHERE key BETWEEN ? AND ?"
        key: int | None = self.rows(query, (key_of(file_id, 1), key_of(file_id, SEQ_MASK)))[0][0]
        return 0 if key is None else key & SEQ_MASK

    def version(self, file_id: int, seq: int) -> tuple[Version, Clock]:
        """Return the version `seq` of a file, and its op's clock."""
        if seq == 0:
            return EMPTY, {}
        found = list(self.records(file_id, seq - 1, seq))
        if not found:
            raise StorageError(f"{self._path} is damaged: op {seq} of file {file_id} is missing")
        ((record, digest),) = found
        return Version(seq, record.token, digest), record.clock

    def records(self, file_id: int, after: int, last: int) -> Generator[tuple[Record, bytes]]:
        """Yield the ops (after, last] with their versions' hashes. Close it where you stop before its end."""
        try:
            cursor = self._connection.execute(HASHED_RECORDS, (key_of(file_id, after), key_of(file_id, last)))
            try:
                for row in cursor:
                    yield read_record(row)
            finally:
                cursor.close()
        except sqlite3.Error as error:
            raise sqlite_error(f"cannot read {self._path}", error) from error

    def commit(self, statements: list[Statement]) -> None:
        """Do all the statements or none, in one transaction. Raises StorageError or FatalStorageError."""
        execute = self._connection.execute
        try:
            if len(statements) == 1:
                execute(*statements[0])  # a transaction of its own, without the words around it
                return
            execute("BEGIN IMMEDIATE")
            for statement, values in statements:
                execute(statement, values)
            execute("COMMIT")
        except BaseException as error:
            try:
                if self._connection.in_transaction:
                    execute("ROLLBACK")
            except sqlite3.Error as second:
                raise FatalStorageError(f"{error}; and it cannot be taken back ({second})") from error
            if isinstance(error, sqlite3.Error):
                raise sqlite_error(f"cannot write {self._path}", error) from error
            raise

    def close(self) -> None:
        """Close the connection; the last one of all takes the WAL with it."""
        try:
            self._connection.close()
        except sqlite3.Error as error:
            raise sqlite_error(f"cannot close {self._path}", error) from error


class FileOps:
    """One file's ops, as client.seek reads them."""

    def __init__(self, database: Database, file_id: int) -> None:
        """Read the ops of the file with this id."""
        self._database = database
        self._file_id = file_id

    def bounds(self, seq: int) -> tuple[int, int]:
        """Return the op's (offset, low)."""
        offset, low = self._database.op("offset, low", self._file_id, seq)
        return offset, low

    def length(self, seq: int) -> int:
        """Return the file's length in bytes after the op."""
        length: int
        (length,) = self._database.op("offset + length(inserted)", self._file_id, seq)
        return length

    def removed(self, seq: int, start: int, stop: int) -> bytes:
        """Return that part of the bytes that the op replaced."""
        return self._database.blob("removed", self._file_id, seq, start, stop)

    def inserted(self, seq: int, start: int, stop: int) -> bytes:
        """Return that part of the bytes that the op put in."""
        return self._database.blob("inserted", self._file_id, seq, start, stop)
