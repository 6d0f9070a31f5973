"""A data directory as one process has it: who may, and how the others reach that one."""

import contextlib
import fcntl
import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from client.plainfiles import make_directories
from client.storage_errors import StorageError
from common.errors import refused, wrong_use
from common.names import client_name_problem

Role = Literal["serve", "run", "one-shot"]

PATIENCE_S: Final = 10.0
"""How long a command waits for a directory that another one holds, in seconds."""

_PAUSE_S: Final = 0.01
_OF_A_START: Final = (
    *("journal/meta", "journal/meta.new", "journal", "files", "events.log", "client.log", "socket"),
    "lock",  # the last: whoever waits for it looks then whether it is still there
)
"""What a start makes in a new directory before it joins."""


class DirectoryLock:
    """The exclusive use of a data directory, until `release` or the end of the process."""

    def __init__(self, descriptor: int, directory: Path, made: list[Path], found: set[str]) -> None:
        """Take over the locked file; `found` is what there was before in the directory, `made` was made for it."""
        self._file = descriptor
        self._directory, self._made, self._found = directory, made, found

    def release(self, *, keep: bool = True) -> None:
        """Give the directory back. With `keep` False, it goes again as far as this start has made it."""
        os.ftruncate(self._file, 0)
        if not keep and "journal" not in self._found:
            for name in _OF_A_START:
                if name not in self._found:
                    _remove(self._directory / name)
            _remove_directories(self._made)
        os.close(self._file)


def take(
    directory: Path, role: Role, given_up: Callable[[], bool] = lambda: False, *, named: bool = True
) -> DirectoryLock | None:
    """Take the directory for `role`, or return None where a `serve` or `run` has it.

    Waits for a one-shot that has it, or returns None once `given_up()`. Raises CommandError where the directory
    cannot be used, or stays held, or is new and would give a client that is not `named` a wrong name.
    """
    deadline = time.monotonic() + PATIENCE_S
    if not named and not (directory / "journal").exists():
        default_name(directory)  # before anything is made where no client can be
    made: list[Path] = []
    while True:
        had_lock = os.path.lexists(directory / "lock")
        descriptor = _open_lock(directory, made)
        if not _locked(descriptor, directory, deadline, given_up):
            os.close(descriptor)
            return None
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.stat(directory / "lock")):
                break
        os.close(descriptor)  # who had it has taken the directory away
    found = {name for name in _OF_A_START if os.path.lexists(directory / name)}
    with contextlib.suppress(OSError):  # a hint for those who wait; the next write of this start tells
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, role.encode(), 0)
    return DirectoryLock(descriptor, directory, made, found if had_lock else found - {"lock"})


def _open_lock(directory: Path, made: list[Path]) -> int:
    """Open the directory's lock; add to `made` what had to be made for that, the deepest first. Raises CommandError."""
    missing = [path for path in (directory, *directory.parents) if not os.path.lexists(path)]
    try:
        if (directory / "grants.log").exists():
            raise refused(f"{directory} is a lockd's data directory; choose another --data")
        if directory.exists() and not directory.is_dir():
            raise refused(f"{directory} cannot be used (it is not a directory); choose another --data")
        make_directories(directory, durable=True)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except (StorageError, OSError) as error:
        if isinstance(error, FileNotFoundError) and not directory.exists():
            return _open_lock(directory, made)  # who had it has taken it away in this moment
        _remove_directories(missing)
        reason = error.strerror if isinstance(error, OSError) else error.reason
        reason = (reason or str(error)).removeprefix(f"cannot make {directory}: ")
        raise refused(f"{directory} cannot be used ({reason}); choose another --data") from None
    made[:0] = missing
    return descriptor


def _locked(descriptor: int, directory: Path, deadline: float, given_up: Callable[[], bool]) -> bool:
    """Wait until the lock is ours; False where a `serve` or `run` has it, or once `given_up()`. Raises CommandError."""
    seen = 0
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Twice, since one that was killed leaves its role behind, until the next one has written its own.
            seen = seen + 1 if os.pread(descriptor, 16, 0) in (b"serve", b"run") else 0
            if seen == 2 or given_up():
                return False
        except OSError as error:
            os.close(descriptor)
            raise refused(f"{directory} cannot be locked ({error.strerror})") from None
        else:
            return True
        if time.monotonic() > deadline:
            os.close(descriptor)
            raise refused(f"{directory} is in use by another command for {PATIENCE_S:g} s; try again")
        time.sleep(_PAUSE_S)


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except IsADirectoryError:
        _remove_directories([path])
    except OSError:
        pass  # it is not there, or stays


def _remove_directories(paths: list[Path]) -> None:
    """Take directories away; one in which there is anything stays."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.rmdir()


def connect(directory: Path) -> socket.socket | None:
    """Return a connection to the client that is up on the directory, or None where nobody listens."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _ShortPath(directory) as path:
            connection.connect(path)
    except OSError:
        connection.close()
        return None
    return connection


def listen(directory: Path) -> socket.socket:
    """Return a listening socket in the directory; what an earlier process left there goes. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(directory / "socket").st_mode):
            raise OSError(0, "socket is there, and is none")
        (directory / "socket").unlink()
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with _ShortPath(directory) as path:
        listening.bind(path)
    listening.listen(64)
    return listening


class _ShortPath:
    """The path of DIR/socket through a descriptor of DIR: a socket's path has at most 107 bytes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._descriptor = -1

    def __enter__(self) -> str:
        direct = str(self._directory / "socket")
        if len(os.fsencode(direct)) <= 100:
            return direct
        self._descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._descriptor}/socket"

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


def default_name(directory: Path) -> str:
    """Return the last part of the directory's path. Raises CommandError where that is no client's name."""
    name = directory.resolve().name
    if problem := client_name_problem(name):
        raise wrong_use(f"{name!r}, the last part of {directory}, cannot be this client's name: {problem}; set --name")
    return name
