"""What lockd keeps on disk, in one small SQLite database, synced before anybody hears of it."""

import os
import sqlite3
from pathlib import Path
from typing import Final, assert_never

from lockd.effects import (
    Change,
    Durable,
    ForgetAcked,
    InSyncChanged,
    LeasesGiven,
    Rebuilt,
    ReplicaSeen,
    SessionEnded,
    SessionOpened,
)

FORMAT: Final = 4
_WITHOUT_LEASES: Final = 3
"""The format before: it does not tell what leases were given."""

_SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE epochs (epoch INTEGER PRIMARY KEY, id TEXT, changes INTEGER);
CREATE TABLE replicas (replica TEXT PRIMARY KEY, name TEXT, host TEXT UNIQUE, start_count INTEGER,
                       incarnation TEXT) WITHOUT ROWID;
CREATE TABLE sessions (session INTEGER PRIMARY KEY, name TEXT, replica TEXT, incarnation TEXT);
CREATE TABLE in_sync (file TEXT, position INTEGER, replica TEXT, PRIMARY KEY (file, position)) WITHOUT ROWID;
"""


class StateError(Exception):
    """The state cannot be read or written; the text says what, why and what to do."""


class State:
    """The open database. One lockd at a time has it."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        """Take over a connection that holds the database's exclusive lock."""
        self._connection = connection
        self._path = path

    @classmethod
    def open(cls, path: Path) -> "State":
        """Open or make the state at `path`. Raises StateError."""
        try:
            connection = sqlite3.connect(path, isolation_level=None, timeout=0)
        except sqlite3.Error as error:
            raise StateError(f"{path} cannot be opened ({error}); check the disk and its permissions") from None
        state = cls(connection, path)
        try:
            state._prepare()
        except BaseException:
            connection.close()
            raise
        return state

    def _prepare(self) -> None:
        """Lock the database, and make its tables if it is empty. Raises StateError."""
        path, execute = self._path, self._connection.execute
        try:
            execute("PRAGMA locking_mode = EXCLUSIVE")
            tables = {name for (name,) in execute("SELECT name FROM sqlite_master")}
            if tables and "meta" not in tables:
                raise StateError(_not_ours(path, "it has other tables"))
            execute("PRAGMA journal_mode = WAL")
            execute("PRAGMA synchronous = FULL")
            execute("BEGIN IMMEDIATE")
            if not tables:
                for statement in _SCHEMA.split(";"):
                    execute(statement)
                execute(
                    "INSERT INTO meta VALUES "
                    "('format', ?), ('group', ?), ('epoch', 0), ('session', 0), ('forgotten', 0)",
                    (_WITHOUT_LEASES, os.urandom(8).hex()),
                )
            if self._meta("format") == _WITHOUT_LEASES:
                execute("INSERT INTO meta VALUES ('ttl_ns', 0), ('lock_delay_ns', 0)")
                execute("UPDATE meta SET value = ? WHERE key = 'format'", (FORMAT,))
            execute("COMMIT")
            found = self._meta("format")
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise StateError(f"{path.parent} is in use by another lockd; choose another --data") from None
            raise StateError(f"{path} cannot be opened ({error}); check the disk and its permissions") from None
        except sqlite3.DatabaseError as error:
            raise StateError(_not_ours(path, str(error))) from None
        if found != FORMAT:
            raise StateError(f"{path} has format {found}, this lockd reads {FORMAT}; use the lockd that wrote it")

    @property
    def is_new(self) -> bool:
        """Tell whether no replica was ever seen."""
        row = self._connection.execute("SELECT COUNT(*) FROM replicas").fetchone()
        return bool(row[0] == 0)

    def begin(self) -> Durable:
        """Bump the epoch durably, and return what is known."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'epoch'")
            self._connection.execute(
                "INSERT INTO epochs SELECT value, ?, 0 FROM meta WHERE key = 'epoch'", (os.urandom(8).hex(),)
            )
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise StateError(f"{self._path} cannot be written ({error}); make room, start again") from None
        rows = self._connection.execute("SELECT epoch, id, changes FROM epochs")
        epochs = {epoch: (id_, changes) for epoch, id_, changes in rows}
        durable = Durable(str(self._meta("group")), self._number("epoch"), epochs, self._number("session"))
        durable.forgotten = self._number("forgotten")
        durable.leases = LeasesGiven(self._number("ttl_ns"), self._number("lock_delay_ns"))
        for row in self._connection.execute("SELECT * FROM replicas"):
            durable.replicas[row[0]] = ReplicaSeen(*row)
        for row in self._connection.execute("SELECT * FROM sessions"):
            durable.sessions[row[0]] = SessionOpened(*row)
        for file, replica in self._connection.execute("SELECT file, replica FROM in_sync ORDER BY file, position"):
            durable.in_sync[file] = (*durable.in_sync.get(file, ()), replica)
        return durable

    def write(self, changes: tuple[Change, ...]) -> None:
        """Make the changes durable, all or nothing. Raises StateError."""
        execute = self._connection.execute
        try:
            execute("BEGIN IMMEDIATE")
            for change in changes:
                match change:
                    case Rebuilt(group, epoch, epochs):
                        execute("UPDATE meta SET value = ? WHERE key = 'group'", (group,))
                        execute("UPDATE meta SET value = ? WHERE key = 'epoch'", (epoch,))
                        execute("DELETE FROM epochs")
                        rows = [(number, *seen) for number, seen in epochs.items()]
                        self._connection.executemany("INSERT INTO epochs VALUES (?, ?, ?)", rows)
                    case ForgetAcked(token):
                        execute("UPDATE meta SET value = ? WHERE key = 'forgotten'", (token,))
                    case LeasesGiven(ttl_ns, lock_delay_ns):
                        execute("UPDATE meta SET value = ? WHERE key = 'ttl_ns'", (ttl_ns,))
                        execute("UPDATE meta SET value = ? WHERE key = 'lock_delay_ns'", (lock_delay_ns,))
                    case SessionOpened(session, name, replica, incarnation):
                        execute("INSERT INTO sessions VALUES (?, ?, ?, ?)", (session, name, replica, incarnation))
                        execute("UPDATE meta SET value = ? WHERE key = 'session'", (session,))
                    case SessionEnded(session):
                        execute("DELETE FROM sessions WHERE session = ?", (session,))
                    case ReplicaSeen(replica, name, host, start_count, incarnation):
                        execute(
                            "INSERT INTO replicas VALUES (?, ?, ?, ?, ?) ON CONFLICT (replica) DO UPDATE SET "
                            "name = excluded.name, host = excluded.host, start_count = excluded.start_count, "
                            "incarnation = excluded.incarnation",
                            (replica, name, host, start_count, incarnation),
                        )
                    case InSyncChanged(file, replicas):
                        execute(
                            "UPDATE epochs SET changes = changes + 1 "
                            "WHERE epoch = (SELECT value FROM meta WHERE key = 'epoch')"
                        )
                        execute("DELETE FROM in_sync WHERE file = ?", (file,))
                        self._connection.executemany(
                            "INSERT INTO in_sync VALUES (?, ?, ?)",
                            [(file, position, replica) for position, replica in enumerate(replicas)],
                        )
                    case _:
                        assert_never(change)
            execute("COMMIT")
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise StateError(f"{self._path} cannot be written ({error}); make room, start again") from None

    def close(self) -> None:
        """Close the database; what was written is there already."""
        self._connection.close()

    def _meta(self, key: str) -> object:
        row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def _number(self, key: str) -> int:
        value = self._meta(key)
        assert isinstance(value, int)
        return value


def _not_ours(path: Path, why: str) -> str:
    return (
        f"{path} is damaged, or no lockd's state ({why}); choose another --data, or, where this group's state is lost, "
        f"move {path.parent} away and start with --rebuild N, N being how many replicas there are"
    )
