"""What a Persist does to a file's log and to the end of the file, worked out before either is touched."""

from collections.abc import Callable
from dataclasses import dataclass

from client.effects import Persist
from client.journal_format import mark_entry, op_entry
from client.journal_log import LogEnd, OpsLog
from client.plainfiles import FileEnd
from client.seek import extend_lows, load_lows
from client.storage_errors import StorageError
from common.records import Version
from common.wire import encode_record


@dataclass(slots=True)
class Plan:
    """A Persist worked out: the entries of its change, the file's new end, and what the log says afterwards.

    `places` tell where in `entries` the ops begin.
    """

    entries: bytes
    end: FileEnd
    after: LogEnd
    places: list[int]

    def done(self, start: int) -> LogEnd:
        """Return what the log says now that the entries stand at byte `start`."""
        self.after.places += [start + place for place in self.places]
        self.after.end = start + len(self.entries)
        return self.after


def plan(log: OpsLog, change: Persist, read: Callable[[int, int], bytes]) -> Plan:
    """Work out a Persist. Raises StorageError.

    `read` returns the plain file's bytes [start, stop). An op at the file's end reads nothing: it removes nothing,
    and the lows that it needs are in memory.
    """
    last, keep = log.last, change.keep
    seq = last.version.seq
    assert 0 <= keep <= seq and len(change.records) == len(change.hashes), change
    after = LogEnd(
        0,
        change.promised,
        change.follows,
        last.synced,
        last.synced_bytes,
        last.undone,
        last.version,
        last.length,
        last.unsynced_ops,
        last.indexed,
        last.places,
        last.lows,
    )
    end = FileEnd(last.length, read)
    tokens = change.promised, change.follows
    entries: list[bytes] = []
    places: list[int] = []
    if keep < seq:
        for undone in range(seq, keep, -1):
            op = log.op(undone)
            end.replace(op.offset, log.read(op.removed_at, op.end))
        after.places = last.places.copy()  # those of an append are shared: they grow when all is done
        after.cut(log.version(keep), log.length(keep) if keep else 0)
        after.synced, after.synced_bytes = min(last.synced, keep), min(last.synced_bytes, end.start)
        after.undone += 1
        after.unsynced_ops += seq - keep
    if keep < seq or not change.records:
        entries.append(
            mark_entry(keep, tokens, after.synced, after.synced_bytes, after.undone, more=bool(change.records))
        )
    size = sum(map(len, entries))
    after.lows = lows = load_lows(log, keep) if after.lows is None else after.lows.copy()
    for record, digest in zip(change.records, change.hashes, strict=True):
        assert record.seq == after.version.seq + 1, change
        try:
            removed = end.replace(record.offset, record.inserted)
        except ValueError as error:
            raise StorageError(f"op {record.seq} of {change.file} is malformed: {error}") from error
        low = extend_lows(lows, record.seq, record.offset)
        more = record is not change.records[-1]
        entry = op_entry(record, encode_record(record), digest, tokens, low, removed, more=more)
        entries.append(entry)
        places.append(size)
        size += len(entry)
        after.version = Version(record.seq, record.token, digest)
        after.unsynced_ops += 1
    after.length = end.length
    return Plan(b"".join(entries), end, after, places)
