"""Disks that can be full, for the directories of a few processes."""

import os
import resource
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Final, Protocol

_ROOM: Final = "64m"
_PAGE_BYTES: Final = 4096
_FILL_TRIES: Final = 5
_LOGS: Final = ("events.log", "journal/*.ops", "grants.log")


class Disks(Protocol):
    """Disks that can be filled and freed."""

    names: Collection[str]
    """Whose disk can be filled."""
    how: str
    """What stands for a full disk, in words."""

    def fill(self, name: str, pid: int | None) -> None:
        """Leave no more room to the process, `pid` if it runs. Raises OSError."""

    def free(self, name: str, pid: int | None) -> None:
        """Give the room back. Raises OSError."""

    def close(self) -> None:
        """Leave the files in place, and nothing else behind."""


class Mounted:
    """Each directory is a file system in memory, which is made as small as what it holds."""

    how = "a file system as large as what lies in it"

    def __init__(self, run_dir: Path, names: Collection[str]) -> None:
        """Mount them, for processes that have not started yet. Raises OSError."""
        self.names: Collection[str] = ()
        self._run_dir = run_dir
        mounted: list[str] = []
        try:
            for name in names:
                (run_dir / name).mkdir()
                _system("mount", "-t", "tmpfs", "-o", f"size={_ROOM}", "lockstep", str(run_dir / name))
                mounted.append(name)
        except OSError:
            for name in mounted:
                _system("umount", str(run_dir / name))
            for name in names:
                shutil.rmtree(run_dir / name, ignore_errors=True)
            raise
        self.names = mounted

    def fill(self, name: str, pid: int | None) -> None:
        """Make the file system as small as what lies in it."""
        for more in range(_FILL_TRIES):
            system = os.statvfs(self._run_dir / name)
            used = (system.f_blocks - system.f_bfree) * system.f_frsize + more * _PAGE_BYTES
            try:
                self._resize(name, str(used))
            except OSError:
                if more == _FILL_TRIES - 1:  # it has grown meanwhile, each time
                    raise
            else:
                break

    def free(self, name: str, pid: int | None) -> None:
        """Make it large again."""
        self._resize(name, _ROOM)

    def _resize(self, name: str, size: str) -> None:
        _system("mount", "-o", f"remount,size={size}", str(self._run_dir / name))

    def close(self) -> None:
        """Put the files where the file systems were."""
        for name in self.names:
            place, kept = self._run_dir / name, self._run_dir / f"{name}.kept"
            shutil.copytree(place, kept, ignore=shutil.ignore_patterns("socket"))
            _system("umount", str(place))
            place.rmdir()
            kept.rename(place)


class Limited:
    """No file of the process may grow beyond what one of its logs has now: that needs no rights."""

    how = "a limit on the size of its files"

    def __init__(self, run_dir: Path, names: Collection[str]) -> None:
        """Take the processes whose disks are to be full at times."""
        self.names = names
        self._run_dir = run_dir
        self._of_all = False

    def fill(self, name: str, pid: int | None) -> None:
        """Let no log grow any more, and the next time only not the largest."""
        place = self._run_dir / name
        sizes = [path.stat().st_size for pattern in _LOGS for path in place.glob(pattern)]
        self._of_all = not self._of_all
        self._limit(pid, (min if self._of_all else max)(sizes, default=0))

    def free(self, name: str, pid: int | None) -> None:
        """Lift the limit."""
        self._limit(pid, resource.RLIM_INFINITY)

    def _limit(self, pid: int | None, size: int) -> None:
        if pid is not None:
            _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, most))

    def close(self) -> None:
        """Nothing is left of it."""


def open_disks(run_dir: Path, names: Collection[str]) -> Disks:
    """Return disks for these processes: mounted where we may, else by limits."""
    if names and os.geteuid() == 0:
        try:
            return Mounted(run_dir, names)
        except OSError:
            pass
    return Limited(run_dir, names)


def _system(*command: str) -> None:
    """Run a command of the system. A Ctrl-C does not reach it. Raises OSError with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
