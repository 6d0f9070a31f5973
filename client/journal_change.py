"""What a Persist does to the journal's rows and the end of the file, worked out before either is touched."""

from collections.abc import Callable
from dataclasses import dataclass, field

from client.effects import Persist
from client.journal_database import Database, FileOps
from client.journal_format import (
    DELETE_FILE,
    DELETE_OPS,
    INSERT_FILE,
    INSERT_OP,
    OPS_DOWNWARDS,
    UPDATE_FILE,
    Row,
    Statement,
    key_of,
    op_row,
    removed_by,
)
from client.plainfiles import FileEnd
from client.seek import extend_lows, load_lows
from client.storage_errors import StorageError
from common.clock import Clock
from common.records import EMPTY, Version


@dataclass(slots=True)
class JournalFile:
    """What memory holds of one file's rows.

    The first `synced_bytes` bytes of version `synced` are on disk in the file; `unsynced_ops` came later.
    `undone` rises with each change that took ops back. `lows` are those of client.seek, None until needed.
    """

    id: int
    promised: int = 0
    follows: int = 0
    synced: int = 0
    synced_bytes: int = 0
    undone: int = 0
    version: Version = EMPTY
    clock: Clock = field(default_factory=dict)
    length: int = 0
    unsynced_ops: int = 0
    lows: list[int] | None = None

    @property
    def is_synced(self) -> bool:
        """Tell whether the plain file is wholly on disk."""
        return self.synced == self.version.seq and self.synced_bytes == self.length

    def note_synced(self) -> None:
        """Note that it is, as of now."""
        self.synced, self.synced_bytes, self.unsynced_ops = self.version.seq, self.length, 0

    def row(self) -> Row:
        """Return the values of UPDATE_FILE."""
        return self.promised, self.follows, self.synced, self.synced_bytes, self.undone, self.id


@dataclass(slots=True)
class Plan:
    """A Persist worked out: the statements of its transaction, the file's new end, and the file after it."""

    change: Persist
    is_new: bool
    statements: list[Statement]
    undone_rows: list[Row]
    end: FileEnd
    after: JournalFile

    def take_back(self, before: JournalFile) -> list[Statement]:
        """Return the statements that undo it when committed; lower `before` to what is still on disk."""
        keep = self.change.keep
        before.synced = min(before.synced, keep)
        before.synced_bytes = min(before.synced_bytes, self.end.start)
        before.undone = self.after.undone + 1
        return [
            (DELETE_OPS, (key_of(before.id, keep), key_of(before.id, self.after.version.seq))),
            *[(INSERT_OP, row) for row in self.undone_rows],
            (DELETE_FILE, (before.id,)) if self.is_new else (UPDATE_FILE, before.row()),
        ]


def plan(
    database: Database,
    before: JournalFile,
    change: Persist,
    read: Callable[[int, int], bytes],
    *,
    is_new: bool,
    row_differs: bool,
) -> Plan:
    """Work out a Persist. `read` returns the plain file's bytes [start, stop). Raises StorageError.

    `row_differs` tells that what is synced has changed since the file's row was written.
    An op at the file's end reads nothing: it removes nothing, and the lows that it needs are in memory.
    """
    keep, seq = change.keep, before.version.seq
    assert 0 <= keep <= seq and len(change.records) == len(change.hashes), change
    statements: list[Statement] = []
    undone_rows: list[Row] = []
    end = FileEnd(before.length, read)
    version, clock, lows, undone = before.version, before.clock, before.lows, before.undone
    synced, synced_bytes = before.synced, before.synced_bytes
    if keep < seq:
        keys = key_of(before.id, keep), key_of(before.id, seq)
        undone_rows = database.rows(OPS_DOWNWARDS, keys)
        for row in undone_rows:
            end.replace(*removed_by(row))
        statements.append((DELETE_OPS, keys))
        synced, synced_bytes = min(synced, keep), min(synced_bytes, end.start)
        version, clock = database.version(before.id, keep)
        lows, undone = None, undone + 1
    lows = load_lows(FileOps(database, before.id), keep) if lows is None else lows.copy()
    for record, digest in zip(change.records, change.hashes, strict=True):
        assert record.seq == version.seq + 1, change
        try:
            removed = end.replace(record.offset, record.inserted)
        except ValueError as error:
            raise StorageError(f"op {record.seq} of {change.file} is malformed: {error}") from error
        low = extend_lows(lows, record.seq, record.offset)
        statements.append((INSERT_OP, op_row(before.id, record, low, digest, removed)))
        version, clock = Version(record.seq, record.token, digest), record.clock
    after = JournalFile(
        before.id,
        change.promised,
        change.follows,
        synced,
        synced_bytes,
        undone,
        version,
        clock,
        end.length,
        before.unsynced_ops + len(change.records) + len(undone_rows),
        lows,
    )
    if is_new:
        statements.append((INSERT_FILE, (*after.row(), change.file)))
    elif row_differs or not (change.promised == change.follows == version.token and keep == seq and change.records):
        statements.append((UPDATE_FILE, after.row()))
    # else the newest op's token tells both of the file's, and the common op costs one row, not two.
    return Plan(change, is_new, statements, undone_rows, end, after)
