"""A data directory read by itself: its files' versions and contents, whether or not a client runs on it.

A version's beginning stands in the plain file, as far as the journal vouches for that, and a client may be
changing the file right now. So once it is read, the journal is asked again whether it still vouches for what
was read, and whether nothing was done to that since; if not, the reading starts anew.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from client.disk import SYSTEM
from client.journal import log_numbers, read_meta
from client.journal_log import LogEnd, OpenLogs, OpsLog
from client.plainfiles import PlainFiles
from client.seek import end_of_version, least_offset
from client.storage_errors import FatalStorageError, StorageError
from common.records import Verb, Version

ATTEMPTS_MAX: Final = 64
"""How often a reading is begun anew because the client changed what was read."""
PAGE_OPS: Final = 1000
"""How many versions are read at once."""

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


class Archive:
    """The versions in one data directory. Every method raises HistoryError where it cannot answer."""

    def __init__(self, directory: Path) -> None:
        """Use `open` instead."""
        self._directory = directory
        self._path = directory / "journal"
        self._plain = PlainFiles(directory / "files", writable=False)
        self._logs = OpenLogs(SYSTEM, writable=False)
        self._paths: dict[str, Path] = {}

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open a data directory for reading; it may have been left by a killed client, or be read-only."""
        archive = cls(directory)
        try:
            if read_meta(archive._path) is None:
                if archive._path.exists() and not archive._path.is_dir():
                    raise NoArchive(f"{archive._path} is not a Lockstep journal")
                raise NoArchive(f"{directory} is no client's data directory: it has no journal")
            archive._find_all()
        except StorageError as error:
            raise NoArchive(error.reason) from error
        finally:
            archive._logs.close()
        return archive

    def close(self) -> None:
        """Close it."""
        self._plain.close()
        self._logs.close()

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
        logs = self._read(self._find_all)
        return {name: logs[name].last.version for name in sorted(logs)}

    def head(self, file: str) -> Version:
        """Return a file's newest version."""
        return self._read(lambda: self._find(file).last.version)

    def versions(self, file: str) -> Iterator[Snapshot]:
        """Yield a file's versions from 1 on; version 0 is the empty file."""
        self._read(lambda: self._find(file))
        return self._pages(file)

    def content(self, file: str, seq: int, start: int = 0) -> bytes:
        """Return the content of version `seq`, from byte `start` on."""
        for _ in range(ATTEMPTS_MAX):
            found, stands, pieces = self._read(lambda: self._end(file, seq, start))
            if stands == start:
                return b"".join(pieces)
            beginning = self._file_bytes(file, start, stands)
            if not self._still_so(file, found, stands):
                continue
            if len(beginning) == stands - start:
                return b"".join([beginning, *pieces])
            break  # somebody has cut or removed the file
        return b"".join(self._read(lambda: self._end(file, seq, start, trusting=False))[2])

    def agreed_bytes(self, file: str, first: int, second: int) -> int:
        """Return how many bytes at the beginning two versions share at least, without reading them."""

        def work() -> int:
            log = self._find(file, first)
            log = self._find(file, second)
            shorter = min(log.length(seq) if seq else 0 for seq in (first, second))
            return least_offset(log, min(first, second), max(first, second), shorter)

        return self._read(work)

    def _pages(self, file: str) -> Iterator[Snapshot]:
        last = 0

        def work() -> list[Snapshot]:
            log = self._find(file)
            head = min(log.last.version.seq, last + PAGE_OPS)
            return [_snapshot(log, seq) for seq in range(last + 1, head + 1)]

        while page := self._read(work):
            yield from page
            last = page[-1].version.seq

    def _find(self, file: str, seq: int = 0) -> OpsLog:
        log = None
        if path := self._paths.get(file):
            log = OpsLog.open(path, self._logs)
        if log is None or log.name != file:
            log = self._find_all().get(file)
        if log is None:
            raise NoFile(f"{self._directory} has no versions of {file}")
        if not 0 <= seq <= log.last.version.seq:
            raise NoVersion(f"{file} has versions 0 to {log.last.version.seq}, not {seq}")
        return log

    def _find_all(self) -> dict[str, OpsLog]:
        paths = [self._path / f"{number}.ops" for number in log_numbers(self._path)]
        logs = {log.name: log for path in paths if (log := OpsLog.open(path, self._logs))}
        self._paths = {name: log.path for name, log in logs.items()}
        return logs

    def _end(self, file: str, seq: int, start: int, *, trusting: bool = True) -> tuple[LogEnd, int, list[bytes]]:
        log = self._find(file, seq)
        head = log.last.version.seq
        trusted = least_offset(log, log.last.synced, head, log.last.synced_bytes) if trusting else 0
        return log.last, *end_of_version(log, seq, head, start, trusted)

    def _file_bytes(self, file: str, start: int, stop: int) -> bytes:
        """Return the plain file's bytes [start, stop), fewer where it has not got them."""
        try:
            return self._plain.read(file, start, stop)
        except StorageError:
            return b""
        finally:
            self._plain.close()  # the client may have replaced the file by the next time

    def _still_so(self, file: str, found: LogEnd, stands: int) -> bool:
        """Tell whether nothing was done since to the file's first `stands` bytes."""

        def work() -> bool:
            log = self._find(file)
            now, seq = log.last, found.version.seq
            if now.undone != found.undone or now.version.seq < seq or log.version(seq) != found.version:
                return False
            trusted = least_offset(log, now.synced, now.version.seq, now.synced_bytes)
            return stands <= least_offset(log, seq, now.version.seq, trusted)

        return self._read(work)

    def _read(self, work: Callable[[], Result]) -> Result:
        """Return what `work` reads; a client that takes a change back under our eyes makes us begin anew."""
        for attempt in range(ATTEMPTS_MAX):
            before = self._looks()
            try:
                return work()
            except (StorageError, FatalStorageError) as error:
                if before == self._looks() or attempt == ATTEMPTS_MAX - 1:
                    raise HistoryError(str(error)) from error
            finally:
                self._logs.close()
        raise AssertionError

    def _looks(self) -> list[tuple[str, int, int]]:
        """Return what tells whether anybody has written the journal."""
        try:
            return [(part.name, part.stat().st_size, part.stat().st_mtime_ns) for part in self._path.iterdir()]
        except OSError as error:
            raise NoArchive(f"{self._path} cannot be read ({error.strerror})") from error


def _snapshot(log: OpsLog, seq: int) -> Snapshot:
    op = log.op(seq)
    record = log.record_of(op)
    delta = op.inserted_bytes - op.removed_bytes
    return Snapshot(op.version, record.id, record.verb, record.time_us, op.length, delta, record.of)
