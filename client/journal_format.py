"""The journal's format: an SQLite database, its tables and rows.

`sqlite3 DIR/journal "SELECT * FROM history"` shows it to people. The integer key of an op packs the file's id
and the seq, so that one file's ops lie together, in order, and need no second index.
"""

from typing import Any, Final, Literal

from client.storage_errors import StorageError
from common.clock import format_clock, parse_clock
from common.records import VERBS, Record

Durability = Literal["disk", "memory"]
MetaValue = str | int
Row = tuple[Any, ...]
Statement = tuple[str, Row]

FORMAT: Final = 1
APPLICATION_ID: Final = 0x4C53544A
"""LSTJ: tells a journal from another program's database."""

SEQ_BITS: Final = 40
SEQ_MASK: Final = (1 << SEQ_BITS) - 1
PAGE_BYTES: Final = 1024
"""Small pages: a commit copies each page that it touched into the WAL, and an op is some 200 bytes."""
WAL_BYTES: Final = 128 * 1024
"""The WAL is brought into the database when it passes this size."""

SCHEMA: Final = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID",
    # The plain file on disk holds the first synced_bytes bytes of version `synced`, as far as no op above it
    # starts before them. `undone` rises when ops are taken back, for readers beside a client.
    """CREATE TABLE files (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
        promised INTEGER NOT NULL, follows INTEGER NOT NULL,
        synced INTEGER NOT NULL, synced_bytes INTEGER NOT NULL, undone INTEGER NOT NULL)""",
    # The columns that a seek reads stand first, the long ones last: SQLite stops reading a row where it can.
    """CREATE TABLE ops (
        key INTEGER PRIMARY KEY, offset INTEGER NOT NULL, low INTEGER NOT NULL, token INTEGER NOT NULL,
        time_us INTEGER NOT NULL, source INTEGER NOT NULL, verb INTEGER NOT NULL, hash BLOB NOT NULL,
        id TEXT NOT NULL, clock TEXT NOT NULL, removed BLOB NOT NULL, inserted BLOB NOT NULL)""",
    f"""CREATE VIEW history AS SELECT
        files.name AS file, key & {SEQ_MASK} AS seq,
        (token >> 40) || '.' || (token & {(1 << 40) - 1}) AS token, ops.id AS id,
        CASE verb {" ".join(f"WHEN {n} THEN '{verb}'" for n, verb in enumerate(VERBS))} END AS verb, offset,
        CAST(removed AS TEXT) AS removed, CAST(inserted AS TEXT) AS inserted, lower(hex(hash)) AS hash, clock,
        strftime('%Y-%m-%dT%H:%M:%S', time_us / 1000000, 'unixepoch') AS time, source AS of, low
        FROM ops JOIN files ON files.id = key >> {SEQ_BITS} ORDER BY key""",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {FORMAT}",
)

SET_META: Final = "INSERT OR REPLACE INTO meta VALUES (?, ?)"
INSERT_FILE: Final = (
    "INSERT INTO files (promised, follows, synced, synced_bytes, undone, id, name) VALUES (?,?,?,?,?,?,?)"
)
UPDATE_FILE: Final = "UPDATE files SET promised = ?, follows = ?, synced = ?, synced_bytes = ?, undone = ? WHERE id = ?"
DELETE_FILE: Final = "DELETE FROM files WHERE id = ?"
FILES: Final = "SELECT name, id, promised, follows, synced, synced_bytes, undone FROM files"
INSERT_OP: Final = f"INSERT INTO ops VALUES ({','.join('?' * 12)})"
DELETE_OPS: Final = "DELETE FROM ops WHERE key > ? AND key <= ?"
OPS_DOWNWARDS: Final = "SELECT * FROM ops WHERE key > ? AND key <= ? ORDER BY key DESC"
HASHED_RECORDS: Final = """
    SELECT key, token, id, verb, offset, inserted, clock, time_us, source, hash FROM ops
    WHERE key > ? AND key <= ? ORDER BY key"""
VERSIONS: Final = """
    SELECT key, token, hash, id, verb,
        time_us, offset + length(inserted), length(inserted) - length(removed), source
    FROM ops WHERE key > ? AND key <= ? ORDER BY key LIMIT ?"""

_VERB_NUMBERS: Final = {verb: number for number, verb in enumerate(VERBS)}


def key_of(file_id: int, seq: int) -> int:
    """Return the key of the op `seq`; seq 0 stands before the file's first, SEQ_MASK behind its last."""
    return file_id << SEQ_BITS | seq


def op_row(file_id: int, record: Record, low: int, digest: bytes, removed: bytes) -> Row:
    """Return the row for INSERT_OP."""
    return (
        file_id << SEQ_BITS | record.seq,
        record.offset,
        low,
        record.token,
        record.time_us,
        record.of,
        _VERB_NUMBERS[record.verb],
        digest,
        record.id,
        format_clock(record.clock),
        removed,
        record.inserted,
    )


def removed_by(row: Row) -> tuple[int, bytes]:
    """Return the (offset, removed) of a row of the table ops: what undoes it."""
    return row[1], row[10]


def read_record(row: Row) -> tuple[Record, bytes]:
    """Return the record and hash in a row of HASHED_RECORDS. Raises StorageError where nobody wrote it so."""
    key, token, id, verb, offset, inserted, clock, time_us, of, digest = row
    seq = key & SEQ_MASK
    try:
        return Record(seq, token, id, VERBS[verb], offset, inserted, parse_clock(clock), time_us, of), digest
    except (ValueError, IndexError, TypeError) as error:
        raise StorageError(f"the journal is damaged: op {seq} cannot be read ({error})") from error
