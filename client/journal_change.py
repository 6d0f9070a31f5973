"""What a Persist does to a file's log and to the end of the file, worked out before either is touched."""

from collections.abc import Callable
from dataclasses import dataclass, replace

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
    """A Persist worked out: the entries of its change, and the file's new end.

    `kept` is what the log says of the ops that stay; `places` tell where in `entries` the new ops begin.
    """

    entries: bytes
    end: FileEnd
    kept: LogEnd
    places: list[int]
    version: Version
    tokens: tuple[int, int]
    lows: list[int]

    def done(self, start: int) -> LogEnd:
        """Return what the log says now that the entries stand at byte `start`."""
        now = self.kept
        now.end = start + len(self.entries)
        now.promised, now.follows = self.tokens
        now.version, now.length, now.lows = self.version, self.end.length, self.lows
        now.places += [start + place for place in self.places]
        now.unsynced_ops += len(self.places)
        return now


def append_entry(log: OpsLog, change: Persist, *, first: bool) -> bytes | None:
    """Return the op's entry of the commonest change, one op that only appends to log and file; None for any other.

    It takes the op into the lows: forget them where it does not come to be.
    """
    last = log.last
    if last.lows is None or change.keep != last.version.seq or len(change.records) != 1:
        return None
    record = change.records[0]
    if record.offset != last.length or record.seq != change.keep + 1:
        return None
    low = extend_lows(last.lows, record.seq, record.offset)
    tokens = change.promised, change.follows
    return op_entry(record, encode_record(record), change.hashes[0], tokens, low, b"", first=first, more=False)


def plan(
    log: OpsLog, change: Persist, read: Callable[[int, int], bytes], logged: tuple[int, bytes], *, mark: bool
) -> Plan:
    """Work out a Persist, with a `mark` of what is synced in any case. Raises StorageError.

    `logged` is what a mark says of events.log.

    `read` returns the plain file's bytes [start, stop). An op at the file's end reads nothing: it removes nothing,
    and the lows that it needs are in memory.
    """
    last, keep = log.last, change.keep
    seq = last.version.seq
    assert 0 <= keep <= seq and len(change.records) == len(change.hashes), change
    end = FileEnd(last.length, read)
    tokens = change.promised, change.follows
    entries: list[bytes] = []
    places: list[int] = []
    kept = last
    if keep < seq:
        for undone in range(seq, keep, -1):
            op = log.op(undone)
            end.replace(op.offset, log.removed(undone, 0, op.removed_bytes))
        kept = replace(last, places=last.places.copy())
        kept.cut(log.version(keep), log.length(keep) if keep else 0)
        kept.synced, kept.synced_bytes = min(last.synced, keep), min(last.synced_bytes, end.start)
        kept.undone += 1
        kept.unsynced_ops += seq - keep
    if keep < seq or not change.records or mark:
        more = bool(change.records)
        entries.append(mark_entry(keep, tokens, kept.known_synced, *logged, more=more))
    size = sum(map(len, entries))
    lows = load_lows(log, keep) if kept.lows is None else kept.lows.copy()
    version = kept.version
    for record, digest in zip(change.records, change.hashes, strict=True):
        assert record.seq == version.seq + 1, change
        try:
            removed = end.replace(record.offset, record.inserted)
        except ValueError as error:
            raise StorageError(f"op {record.seq} of {change.file} is malformed: {error}") from error
        low = extend_lows(lows, record.seq, record.offset)
        more = record is not change.records[-1]
        entry = op_entry(record, encode_record(record), digest, tokens, low, removed, first=not entries, more=more)
        entries.append(entry)
        places.append(size)
        size += len(entry)
        version = Version(record.seq, record.token, digest)
    return Plan(b"".join(entries), end, kept, places, version, tokens, lows)
