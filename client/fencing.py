"""Tokens checked where they count: at the file or the database that a lock protects.

A lease ends by the clock, whatever its holder is doing. A holder that was stopped, swapped out or cut off for longer
than that wakes up, does not know it yet, and writes: over what the next holder has written since. No lock service can
prevent it, for the write does not pass through it. The resource can: every grant carries a larger token than all
before it, and a resource that has seen a larger token refuses a smaller one. See Kleppmann, "How to do distributed
locking" (2016), and the sequencers of Burrows, "The Chubby lock service" (OSDI 2006).

    fenced = FencedFile("counter")
    with client.lock("counter") as lock:
        fenced.update(lock.token, lambda content: b"%d" % (int(content or 0) + 1))

The token has to be shown when the resource is read, too, not only when it is written: else a late write of an earlier
holder lands between the two, and is then overwritten by a content that was computed without it.

This fences, it does not exclude. `flock` is held for our own few system calls, never while the caller's code runs; it
is no substitute for the lock service: it knows of one machine only, cannot be taken from a holder that is stopped, has
no queue, and leaves no order behind by which a late write could be told. Nor is the fence a substitute for the lock:
of two who work at the same time it refuses one, when the work is done.
"""

import fcntl
import operator
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from client.disk import SYSTEM, Disk
from client.lock_errors import LockError
from client.plainfiles import read_at, write_at
from common.printing import printable
from common.tokens import format_token, parse_token

if TYPE_CHECKING:
    import sqlite3

TOKEN_MAX: Final = (1 << 63) - 1
WAIT_S: Final = 10.0
"""How long a call waits for another process's: far longer than any takes that is not stopped in the middle."""
_PAUSE_MAX_S: Final = 0.02


class Fenced(LockError):
    """The resource has seen a larger token, so the lock was lost since; nothing was changed.

    `resource` is the file's path or the name given; `token` was shown, and `promised` is the largest seen.
    """

    def __init__(self, resource: str, token: int, promised: int) -> None:
        """Make the error of one refusal."""
        super().__init__(resource, token, promised)
        self.resource = resource
        self.token = token
        self.promised = promised

    def __str__(self) -> str:
        """Say which token was refused for which."""
        return (
            f"{printable(self.resource)}: the token {format_token(self.token)} is fenced by"
            f" {format_token(self.promised)}; the lock was lost: acquire it again"
        )


class ResourceBusy(LockError):
    """Another process has not finished its call in time, it may be stopped; nothing was changed."""


class TokenUnreadable(LockError):
    """What should hold the largest token seen does not, so no token can be judged; nothing was changed."""


class FencedFile:
    """A file that takes no content from a holder whose lock has gone to another.

    All who change the file must do it through this class, on one machine or on a file system whose `flock` works
    between machines. Whoever only looks may open the file as any other: it is always whole, an old content or a new.
    A file that is not there reads as empty, and is made by the first write. The file at a name is replaced, so its
    permission bits stay, but not its owner, its extended attributes or its hard links.

    Beside the file PATH there are PATH.token, with the largest token seen, as `epoch.counter` in text, PATH.token.lock,
    which is empty, and sometimes PATH.token.new. Whoever removes them forgets what was promised, which is right only
    when lockd begins its tokens anew, its data lost, and none of its former holders is left.

    Methods raise Fenced; ResourceBusy; TokenUnreadable; ValueError for a token out of range; and OSError, after which
    the file holds the old content or the new one, whole. When a method returns, what it did is on the disk.
    """

    def __init__(self, path: str | os.PathLike[str], *, wait: float = WAIT_S) -> None:
        """Fence the file at `path`, or the one that a symbolic link there leads to; nothing is touched yet.

        `wait` is how many seconds a call may wait for another process's call on the same file.
        """
        self.path = Path(path).resolve()
        self._wait_s = wait
        self._content = FencedContent(self.path)

    def read(self, token: int, *, shared: bool = False) -> bytes:
        """Return the content; from now on no smaller token changes it.

        The holder of a `shared` lock is never refused: those who read beside it may have larger tokens.
        """
        with self._alone():
            return self._content.read(token, shared=shared)

    def write(self, token: int, data: bytes) -> None:
        """Replace the content."""
        with self._alone():
            self._content.write(token, data)

    def update(self, token: int, function: Callable[[bytes], bytes]) -> bytes:
        """Replace the content by what `function` makes of it, and return that.

        A larger token that is shown while the function runs is not kept waiting: this update is then refused.
        """
        data = function(self.read(token))
        self.write(token, data)
        return data

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other calls out, of this process's threads too; a process that is killed keeps nobody out."""
        name = f"{self.path}.token.lock"  # a file of its own: the others are replaced, and a lock stays with its inode
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            deadline, pause_s = time.monotonic() + self._wait_s, 0.0005
            while not _try_lock(descriptor):
                if time.monotonic() >= deadline:
                    raise ResourceBusy(
                        f"{printable(name)} has been locked for {self._wait_s:g} s: the process that has it open may be"
                        f" stopped, or its disk slow; let it go on or end it"
                    )
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _PAUSE_MAX_S)
            try:
                yield
            finally:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough: a child forked meanwhile shares it
        finally:
            os.close(descriptor)


class FencedContent:
    """What a FencedFile does with the disk, for a caller that keeps all others out.

    The order is the guarantee. The token is on disk before the content is touched, so that whatever crash comes in
    between leaves a file that refuses the older tokens, with the content as it was; the other way round a newer content
    could meet an older token. Each of the two is replaced as a whole, by a rename.
    """

    def __init__(self, path: Path, disk: Disk = SYSTEM) -> None:
        """Keep the content at `path` and its token beside it."""
        self._path = path
        self._token_path = path.with_name(f"{path.name}.token")
        self._new_path = path.with_name(f"{path.name}.token.new")
        self._disk = disk

    def read(self, token: int, *, shared: bool = False) -> bytes:
        """Promise and return the content."""
        self._promise(token, shared=shared)
        return self._read(self._path) or b""

    def write(self, token: int, data: bytes) -> None:
        """Promise and replace the content."""
        self._promise(token, shared=False)
        self._replace(self._path, data)

    def _promise(self, token: int, *, shared: bool) -> None:
        """Refuse a token below the promised one; make a larger one durable."""
        token = _checked(token)
        promised = self._promised()
        if token > promised:
            self._replace(self._token_path, f"{format_token(token)}\n".encode())
        elif token < promised and not shared:
            raise Fenced(str(self._path), token, promised)

    def _promised(self) -> int:
        """Return the largest token seen, or 0."""
        line = self._read(self._token_path)
        if line is None:
            return 0
        try:
            return parse_token(line.decode("ascii").removesuffix("\n"))
        except ValueError:
            raise TokenUnreadable(
                f"{printable(str(self._token_path))} holds no token, so nobody knows what was promised: write the"
                f" largest one there that a holder may have had, like 1.42"
            ) from None

    def _read(self, path: Path) -> bytes | None:
        try:
            descriptor = self._disk.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            return read_at(self._disk, descriptor, 0, self._disk.fstat(descriptor).st_size)
        finally:
            self._disk.close(descriptor)

    def _replace(self, path: Path, data: bytes) -> None:
        """Put a new file in the place of the one at `path`, durably, with its permissions."""
        try:
            self._disk.unlink(self._new_path)  # of one who was killed here
        except FileNotFoundError:
            pass
        descriptor = self._disk.open(self._new_path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            try:
                self._disk.fchmod(descriptor, stat.S_IMODE(self._disk.stat(path).st_mode))
            except FileNotFoundError:
                pass
            write_at(self._disk, descriptor, 0, data)
            self._disk.fsync(descriptor)
        finally:
            self._disk.close(descriptor)
        self._disk.replace(self._new_path, path)
        directory = self._disk.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._disk.fsync(directory)
        finally:
            self._disk.close(directory)


def fence(connection: "sqlite3.Connection", resource: str, token: int, *, shared: bool = False) -> None:
    """Let no smaller token pass for `resource` once the transaction that is open on `connection` is committed.

    Begin with BEGIN IMMEDIATE, call this, and only then read and change what the resource stands for:

        connection.execute("BEGIN IMMEDIATE")
        fence(connection, "accounts", lock.token)
        connection.execute("UPDATE accounts SET ...")
        connection.commit()

    What a transaction reads can be relied upon in a later one only if that one calls this, too. The tokens are in the
    table lockstep_fence(resource, token) of the same database, so that they are committed or rolled back together with
    the changes. The holder of a `shared` lock is never refused: those who read beside it may have larger tokens.

    Raises Fenced if a larger token has been committed: roll back. Raises sqlite3.ProgrammingError where no transaction
    is open, as nothing would be protected, and ValueError for a token out of range.
    """
    import sqlite3

    if not connection.in_transaction:
        raise sqlite3.ProgrammingError("fence() protects one transaction and none is open: begin with BEGIN IMMEDIATE")
    token = _checked(token)
    cursor = connection.cursor()
    cursor.row_factory = None  # the connection's may make anything of a row
    cursor.execute(
        "CREATE TABLE IF NOT EXISTS lockstep_fence (resource TEXT PRIMARY KEY NOT NULL, token INTEGER NOT NULL)"
    )
    cursor.execute(
        "INSERT INTO lockstep_fence (resource, token) VALUES (?1, ?2)"
        " ON CONFLICT (resource) DO UPDATE SET token = max(token, ?2) RETURNING token",
        (resource, token),
    )
    [(promised,)] = cursor.fetchall()
    if token < promised and not shared:
        raise Fenced(resource, token, promised)


def _checked(token: int) -> int:
    """Return the token as a plain int. Raises ValueError if it cannot be one."""
    token = operator.index(token)
    if not 0 < token <= TOKEN_MAX:
        raise ValueError(f"a token is an integer from 1 to 2^63 - 1, not {token}")
    return token


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
