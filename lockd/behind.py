"""What lockd writes behind: grants.log, and what its locks' holders left (their clocks above all).

Theory of operation. Whatever comes up is first put into `pending`, a small file mapped into memory: a store
instead of a system call, and yet the system's, so that a killed lockd loses nothing. `flush` writes it to its
places, from time to time. A power cut can take the ends of both files, which protect nothing: tokens rise with
the epoch, and the clocks come back with the clients' hellos.

Format of `pending`: a header of _HEADER (version, boot, base, oldest), then entries of _ENTRY (base, length) and
so many bytes, padded to 8: a letter, then a line of grants.log, or what a lock's holders left as msgpack. The header's
base is the length that grants.log has without the entries, an entry's the same and one more: others do not count.
`oldest` is where in grants.log the first grant stands that is still in force.
"""

import contextlib
import mmap
import os
import sqlite3
import struct
import zlib
from pathlib import Path
from typing import Final

from msgspec import DecodeError

from common.errors import EXIT_CRASHED, CommandError
from common.grantlog import GrantLine, format_grant, parse_grant
from common.wire import pack, unpacker
from lockd.effects import KeepLeft

_VERSION: Final = 3
_CLOCKS_VERSION: Final = 2
_HEADER: Final = struct.Struct("<IIqq")
_ENTRY: Final = struct.Struct("<qI")
_BASE_OF_ENTRY: Final = struct.Struct("<q")
_SIZE_OF_ENTRY: Final = struct.Struct("<I")
_BASE_AT: Final = 8
_SIZE: Final = 64 * 1024
_LINES_MAX: Final = 64
_SCAN_BYTES_MAX: Final = 64 * 1024 * 1024
"""So much of grants.log is read where nothing says which grants were in force: after a power cut."""

_decode_left: Final = unpacker(KeepLeft)
_LINE, _LEFT = b"L", b"C"


class Behind:
    """The open files."""

    def __init__(self, directory: Path) -> None:
        """Open or make them, write what a kill left pending, and find the grants in force. Raises OSError."""
        self.holds: list[GrantLine] = []
        self.left: dict[str, KeepLeft] = {}
        self.notes: list[str] = []
        self.waiting = 0
        self._path = directory / "grants.log"
        self._grants = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._boot = _boot()
        self._pending = _map(directory / "pending")
        self._database = self._open_clocks(directory / "clocks")
        self._lines: list[bytes] = []
        self._dirty: dict[str, KeepLeft] = {}
        self._open: dict[int, int] = {}
        self._base = self._end = 0
        self._mark = b""
        self._recover()

    def line(self, line: GrantLine) -> None:
        """Take in a line of grants.log. Raises CommandError."""
        text = format_grant(line).encode() + b"\n"
        self._put(_LINE + text)
        self._lines.append(text)
        if line.event == "grant":
            self._open[line.token] = self._base
        else:
            self._open.pop(line.token, None)
        self.waiting += 1
        if self.waiting >= _LINES_MAX:
            self.flush()

    def keep(self, left: KeepLeft) -> None:
        """Take in what a lock's holders left. Raises CommandError."""
        self._put(_LEFT + pack(left))
        self._dirty[left.lock] = left
        self.waiting += 1

    def forget_left(self) -> None:
        """Forget what holders left. Raises OSError."""
        self.left.clear()
        try:
            self._database.execute("DELETE FROM locks")
        except sqlite3.Error as error:
            raise OSError(0, f"clocks: {error}") from None

    def flush(self) -> None:
        """Write all to its places. Raises CommandError."""
        if not self.waiting:
            return
        data = b"".join(self._lines)
        try:
            self._write(data)
            self._write_left()
        except (OSError, sqlite3.Error) as error:
            name, reason = ("grants.log", error.strerror) if isinstance(error, OSError) else ("clocks", str(error))
            path = self._path.with_name(name)
            raise CommandError(EXIT_CRASHED, f"{path} cannot be written ({reason}); make room, start again") from None
        self._lines.clear()
        self._dirty.clear()
        self.waiting = 0
        self._begin(self._base + len(data))

    def close(self) -> None:
        """Write what waits, and close. Raises CommandError."""
        try:
            self.flush()
        finally:
            self._database.close()
            self._pending.close()
            os.close(self._grants)

    def _put(self, data: bytes) -> None:
        start, end = self._end, self._end + _ENTRY.size + len(data)
        if end > _SIZE - _ENTRY.size:
            self.flush()
            start, end = self._end, self._end + _ENTRY.size + len(data)
            if end > _SIZE - _ENTRY.size:
                return  # larger than all: a kill in the next moment may take it
        # The base, which makes it count, is written last.
        self._pending[start + 8 : end] = _SIZE_OF_ENTRY.pack(len(data)) + data
        self._pending[start : start + 8] = self._mark
        self._end = end + -end % 8

    def _begin(self, base: int) -> None:
        """Let what is pending count no more: it is in its places."""
        if base == self._base:
            self._pending[_HEADER.size :] = bytes(_SIZE - _HEADER.size)  # else it would count again
        oldest = next(iter(self._open.values()), base)
        self._pending[_BASE_AT + 8 : _HEADER.size] = _HEADER.pack(0, 0, 0, oldest)[_BASE_AT + 8 :]
        self._pending[_BASE_AT : _BASE_AT + 8] = _HEADER.pack(0, 0, base, 0)[_BASE_AT : _BASE_AT + 8]
        self._base, self._end, self._mark = base, _HEADER.size, _BASE_OF_ENTRY.pack(base + 1)

    def _write(self, data: bytes) -> None:
        """Write at the end of grants.log, all or nothing."""
        done = 0
        while done < len(data):
            try:
                done += os.pwrite(self._grants, data[done:], self._base + done)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._grants, self._base)  # else the next start does it
                raise

    # What an earlier run left

    def _recover(self) -> None:
        size = os.fstat(self._grants).st_size
        version, boot, base, oldest = _HEADER.unpack_from(self._pending)
        known = version == _VERSION and boot == self._boot and oldest <= base <= size
        if not known:
            base, oldest = self._whole_lines(size), max(0, size - _SCAN_BYTES_MAX)
        if base < size:
            os.ftruncate(self._grants, base)
        self._base = base
        in_force = self._in_force(oldest, base)
        lines: list[GrantLine] = []
        if known:
            for data in _entries(self._pending, base):
                try:
                    if data[:1] == _LINE:
                        lines.append(parse_grant(data[1:-1].decode()))
                        self._lines.append(data[1:])
                    else:
                        left = _decode_left(data[1:])
                        self._dirty[left.lock] = self.left[left.lock] = left
                except (DecodeError, ValueError, TypeError):
                    break
                self.waiting += 1
        for line in lines:
            if line.event == "grant":
                in_force[line.token] = (base, line)
            else:
                in_force.pop(line.token, None)
        self.holds = [line for _, line in in_force.values()]
        # Where they are: the next start may have to find them again.
        self._open = {token: start for token, (start, _) in in_force.items()}
        if self._lines:
            self.notes.append(f"lines of grants.log that were left pending, and are written now: {len(self._lines)}")
        if self.waiting:
            self.flush()
        else:
            self._begin(base)
        self._pending[:_BASE_AT] = _HEADER.pack(_VERSION, self._boot, 0, 0)[:_BASE_AT]

    def _whole_lines(self, size: int) -> int:
        """Return how much of grants.log is whole lines."""
        start = max(0, size - 65536)
        return start + os.pread(self._grants, size - start, start).rfind(b"\n") + 1

    def _in_force(self, start: int, end: int) -> dict[int, tuple[int, GrantLine]]:
        """Return the grants between these places of grants.log that none of its lines there ends, and their places."""
        found: dict[int, tuple[int, GrantLine]] = {}
        with open(self._grants, "rb", closefd=False) as log:
            log.seek(start)
            while start < end:
                line = log.readline()
                with contextlib.suppress(ValueError):
                    parsed = parse_grant(line.decode().rstrip("\n"))
                    if parsed.event == "grant":
                        found[parsed.token] = (start, parsed)
                    else:
                        found.pop(parsed.token, None)
                start += len(line)
        return found

    # What holders left

    def _open_clocks(self, path: Path) -> sqlite3.Connection:
        """Open the clocks, and read them; anew where they are damaged, as a power cut can leave them."""
        for last in (False, True):
            database = sqlite3.connect(path, isolation_level=None, timeout=0)
            try:
                database.execute("PRAGMA locking_mode = EXCLUSIVE")
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA wal_autocheckpoint = 8")  # pages; unsynced, it costs little
                database.execute("PRAGMA synchronous = OFF")
                version = database.execute("PRAGMA user_version").fetchone()[0]
                if version == 0:
                    database.execute("CREATE TABLE locks (lock TEXT PRIMARY KEY, holders_left BLOB)")
                    database.execute(f"PRAGMA user_version = {_CLOCKS_VERSION}")
                for lock, left in database.execute("SELECT lock, holders_left FROM locks"):
                    self.left[lock] = _decode_left(left)
            except (sqlite3.Error, DecodeError, ValueError, TypeError) as error:
                database.close()
                if last:
                    raise OSError(0, f"{path}: {error}") from None
                self.notes.append(f"{path} is damaged ({error}); the clocks come back with the clients")
                self.left.clear()
                for end in ("", "-wal", "-shm"):
                    Path(f"{path}{end}").unlink(missing_ok=True)
            else:
                break
        return database

    def _write_left(self) -> None:
        if self._dirty:
            self._database.execute("BEGIN")
            self._database.executemany(
                "INSERT OR REPLACE INTO locks VALUES (?, ?)",
                [(left.lock, pack(left)) for left in self._dirty.values()],
            )
            self._database.execute("COMMIT")


def grants_with_pending(directory: Path) -> bytes:
    """Return grants.log with what a kill left pending, as the next start will write it. Raises OSError."""
    data = (directory / "grants.log").read_bytes()
    try:
        pending = (directory / "pending").read_bytes()
    except FileNotFoundError:
        return data
    if len(pending) != _SIZE:
        return data
    version, boot, base, _ = _HEADER.unpack_from(pending)
    if (version, boot) != (_VERSION, _boot()) or base > len(data):
        return data
    data = data[:base]
    for entry in _entries(pending, base):
        if entry[:1] == _LINE:
            data += entry[1:]
    return data


def _boot() -> int:
    """Return what tells this boot of the machine from others: what was in memory outlives no other."""
    return zlib.crc32(Path("/proc/sys/kernel/random/boot_id").read_bytes())


def _entries(pending: mmap.mmap | bytes, base: int) -> list[bytes]:
    """Return the entries that count."""
    found, start = [], _HEADER.size
    while start + _ENTRY.size < _SIZE:
        its_base, length = _ENTRY.unpack_from(pending, start)
        if its_base != base + 1 or start + _ENTRY.size + length > _SIZE:
            break
        end = start + _ENTRY.size + length
        found.append(pending[start + _ENTRY.size : end])
        start = end + -end % 8
    return found


def _map(path: Path) -> mmap.mmap:
    """Map `pending`, its room on the disk taken: a store must not fail."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if os.fstat(descriptor).st_size != _SIZE:
            os.ftruncate(descriptor, 0)
            os.posix_fallocate(descriptor, 0, _SIZE)
        return mmap.mmap(descriptor, _SIZE)
    finally:
        os.close(descriptor)
