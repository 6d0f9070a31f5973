"""Stand-ins for what touches the world, proved against the real thing by the same tests."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from client.effects import FileState, Persist
from client.journal import MetaValue, StorageError
from common.clock import Clock
from common.messages import Head
from common.records import EMPTY, Record, Version
from common.wire import encode_record


@dataclass(slots=True)
class _File:
    """Each list begins with version 0."""

    promised: int = 0
    follows: int = 0
    versions: list[Version] = field(default_factory=lambda: [EMPTY])
    contents: list[bytes] = field(default_factory=lambda: [b""])
    records: list[Record] = field(default_factory=list)


class MemoryJournal:
    """client.journal.Journal without a disk: every version's content in a list. It outlives simulated crashes.

    While `failing` is not empty, writes raise StorageError with it and change nothing. With `random_bytes` a
    simulation makes its replica ids repeatable.
    """

    def __init__(self, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        """Make an empty journal."""
        self.failing = ""
        self._random_bytes = random_bytes
        self._meta: dict[str, MetaValue] = {}
        self._files: dict[str, _File] = {}

    @property
    def meta(self) -> Mapping[str, MetaValue]:
        """The small values, by name."""
        return self._meta

    def set_meta(self, values: Mapping[str, MetaValue]) -> None:
        """Keep small values."""
        self._check()
        self._meta.update(values)

    def begin_start(self) -> tuple[str, int]:
        """Count a start; return (replica id, start count)."""
        replica = str(self._meta.get("replica_id") or self._random_bytes(8).hex())
        count = int(self._meta.get("start_count", 0)) + 1
        self.set_meta({"replica_id": replica, "start_count": count})
        return replica, count

    def states(self) -> dict[str, FileState]:
        """Return the state of every file."""
        return {
            name: FileState(Head(file.versions[-1], file.follows, _clock(file)), len(file.contents[-1]), file.promised)
            for name, file in self._files.items()
        }

    def version_at(self, file: str, seq: int) -> Version | None:
        """Return the version `seq`, or None."""
        versions = self._files[file].versions if file in self._files else [EMPTY]
        return versions[seq] if 0 <= seq < len(versions) else None

    def record_at(self, file: str, seq: int) -> Record:
        """Return the op that made version `seq`."""
        assert seq > 0
        return self._files[file].records[seq - 1]

    def records_after(self, file: str, seq: int, bytes_max: int) -> tuple[tuple[Record, ...], bool]:
        """Return the ops behind version `seq`, up to the one that passes bytes_max; and are there more?"""
        if file not in self._files:
            return (), False
        found: list[Record] = []
        rest = self._files[file].records[seq:]
        for record in rest:
            found.append(record)
            bytes_max -= len(encode_record(record))
            if bytes_max < 0:
                break
        return tuple(found), len(found) < len(rest)

    def change_to(self, file: str, seq: int) -> tuple[int, bytes]:
        """Return the (offset, inserted) that turns the head's content into version `seq`'s."""
        contents = self._files[file].contents if file in self._files else [b""]
        head, wanted = contents[-1], contents[seq]
        shorter = min(len(head), len(wanted))
        offset = next((index for index in range(shorter) if head[index] != wanted[index]), shorter)
        return offset, wanted[offset:]

    def content(self, file: str, seq: int) -> bytes:
        """Return the content of version `seq`."""
        return self._files[file].contents[seq] if seq else b""

    def read(self, file: str) -> bytes:
        """Return the newest content."""
        return self._files[file].contents[-1] if file in self._files else b""

    def tail(self, file: str, bytes_max: int) -> tuple[int, bytes]:
        """Return the file's length in bytes and its last bytes."""
        content = self.read(file)
        return len(content), content[max(len(content) - bytes_max, 0) :]

    def write(self, change: Persist) -> None:
        """Do what Persist asks for. Raises StorageError with nothing changed."""
        self._check()
        for other in self._files if change.file not in self._files else ():
            if f"{other}/".startswith(f"{change.file}/") or f"{change.file}/".startswith(f"{other}/"):
                raise StorageError(f"files/{change.file} cannot be made: {other} is in the way")
        file = self._files.get(change.file, _File())
        assert 0 <= change.keep <= len(file.records) and len(change.records) == len(change.hashes)
        versions, contents = file.versions[: change.keep + 1], file.contents[: change.keep + 1]
        for record, digest in zip(change.records, change.hashes, strict=True):
            assert record.seq == len(versions)
            if record.offset > len(contents[-1]):
                raise StorageError(f"op {record.seq} of {change.file} is malformed")
            versions.append(Version(record.seq, record.token, digest))
            contents.append(contents[-1][: record.offset] + record.inserted)
        records = [*file.records[: change.keep], *change.records]
        self._files[change.file] = _File(change.promised, change.follows, versions, contents, records)

    def copy_to(self, other: "MemoryJournal") -> None:
        """Let another journal have what this one has."""
        other._meta, other._files = dict(self._meta), dict(self._files)

    def close(self) -> None:
        """Do nothing: there is nothing to close."""

    def _check(self) -> None:
        if self.failing:
            raise StorageError(self.failing)


def _clock(file: _File) -> Clock:
    return file.records[-1].clock if file.records else {}
