"""A data directory as one process has it: who may, and how the others reach that one."""

import contextlib
import fcntl
import os
import socket
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


class DirectoryLock:
    """The exclusive use of a data directory, until `release` or the end of the process."""

    def __init__(self, descriptor: int) -> None:
        """Take over the locked file."""
        self._file = descriptor

    def release(self) -> None:
        """Give the directory back."""
        os.ftruncate(self._file, 0)
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
    try:
        if (directory / "grants.log").exists():
            raise refused(f"{directory} is a lockd's data directory; choose another --data")
        if directory.exists() and not directory.is_dir():
            raise refused(f"{directory} cannot be used (it is not a directory); choose another --data")
        make_directories(directory, durable=True)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except StorageError as error:
        reason = error.reason.removeprefix(f"cannot make {directory}: ")
        raise refused(f"{directory} cannot be used ({reason}); choose another --data") from None
    except OSError as error:
        raise refused(f"{directory} cannot be used ({error.strerror}); choose another --data") from None
    seen = 0
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Twice, since one that was killed leaves its role behind, until the next one has written its own.
            seen = seen + 1 if os.pread(descriptor, 16, 0) in (b"serve", b"run") else 0
            if seen == 2 or given_up():
                os.close(descriptor)
                return None
        except OSError as error:
            os.close(descriptor)
            raise refused(f"{directory} cannot be locked ({error.strerror})") from None
        else:
            with contextlib.suppress(OSError):  # a hint for those who wait; the next write of this start tells
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, role.encode(), 0)
            return DirectoryLock(descriptor)
        if time.monotonic() > deadline:
            os.close(descriptor)
            raise refused(f"{directory} is in use by another command for {PATIENCE_S:g} s; try again")
        time.sleep(_PAUSE_S)


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
    (directory / "socket").unlink(missing_ok=True)
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
