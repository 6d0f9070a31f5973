"""What the storage asks of the operating system: so few calls that a test can put a worse disk in their place."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from common.histogram import Histogram


class Disk(Protocol):
    """The calls of `os` that touch a data directory's durable parts, under their names there. They raise OSError."""

    def open(self, path: Path | str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        """Open a file or directory."""

    def close(self, fd: int, /) -> None:
        """Close a descriptor."""

    def pread(self, fd: int, length: int, offset: int, /) -> bytes:
        """Read up to `length` bytes."""

    def pwrite(self, fd: int, data: bytes | bytearray, offset: int, /) -> int:
        """Write some of `data`; return how much."""

    def write(self, fd: int, data: bytes, /) -> int:
        """Write some of `data` at the end of a file opened to append; return how much."""

    def ftruncate(self, fd: int, length: int, /) -> None:
        """Cut a file to `length` bytes."""

    def fsync(self, fd: int) -> None:
        """Wait until a file, or a directory's entries, are on disk."""

    def fdatasync(self, fd: int) -> None:
        """Wait until a file's content is on disk."""

    def sync(self) -> None:
        """Wait until all that was ever handed to the system is on disk."""

    def fchmod(self, fd: int, mode: int) -> None:
        """Set an open file's permissions."""

    def fstat(self, fd: int) -> os.stat_result:
        """Tell of an open file."""

    def stat(self, path: Path | str, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
        """Tell of a file by its name."""

    def listdir(self, path: Path) -> list[str]:
        """Return the names in a directory."""

    def mkdir(self, path: Path | str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        """Make a directory."""

    def unlink(self, path: Path | str, *, dir_fd: int | None = None) -> None:
        """Take a name away."""

    def rmdir(self, path: Path | str, *, dir_fd: int | None = None) -> None:
        """Take an empty directory away."""

    def replace(self, src: Path, dst: Path) -> None:
        """Give a file another name, in place of the file that had it."""


SYSTEM: Final[Disk] = os
"""The operating system's own."""


class Timed:
    """The operating system's own disk, with the time of every sync in a histogram. All other calls are the system's."""

    def __init__(self, syncs: Histogram) -> None:
        """Count the syncs in `syncs`."""
        self._syncs = syncs
        self.open, self.close = os.open, os.close
        self.pread, self.pwrite, self.write, self.ftruncate = os.pread, os.pwrite, os.write, os.ftruncate
        self.fchmod, self.fstat, self.stat, self.listdir = SYSTEM.fchmod, SYSTEM.fstat, SYSTEM.stat, SYSTEM.listdir
        self.mkdir, self.unlink, self.rmdir, self.replace = os.mkdir, os.unlink, os.rmdir, SYSTEM.replace

    def fsync(self, fd: int) -> None:
        """Wait until a file, or a directory's entries, are on disk."""
        self._timed(os.fsync, fd)

    def fdatasync(self, fd: int) -> None:
        """Wait until a file's content is on disk."""
        self._timed(os.fdatasync, fd)

    def sync(self) -> None:
        """Wait until all that was ever handed to the system is on disk."""
        self._timed(os.sync)

    def _timed(self, sync: Callable[..., None], *arguments: int) -> None:
        began_ns = time.monotonic_ns()
        sync(*arguments)
        self._syncs.add((time.monotonic_ns() - began_ns) // 1000)
