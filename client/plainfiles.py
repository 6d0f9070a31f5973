"""The plain files below DIR/files: found without following a link, changed at their end only.

A part of a name that is a symbolic link is refused, so no name leads out of `files`, whatever lies there.
Descriptors stay open between ops, the least recently used is closed first.
"""

import os
import stat
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final

from client.disk import SYSTEM, Disk
from client.storage_errors import FatalStorageError, StorageError, os_error

OPEN_FILES_MAX: Final = 64
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def read_at(disk: Disk, descriptor: int, start: int, stop: int) -> bytes:
    """Return the file's bytes [start, stop), fewer where it ends before. Raises OSError."""
    parts = []
    while start < stop:
        part = disk.pread(descriptor, stop - start, start)
        if not part:
            break
        parts.append(part)
        start += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def write_at(disk: Disk, descriptor: int, start: int, data: bytes | bytearray) -> None:
    """Write all of `data` at byte `start`. Raises OSError."""
    written = disk.pwrite(descriptor, data, start)
    while written < len(data):
        written += disk.pwrite(descriptor, data[written:], start + written)


def sync_directory(path: Path, disk: Disk = SYSTEM) -> None:
    """Make the directory's entries durable. Raises StorageError."""
    try:
        descriptor = disk.open(path, _DIRECTORY)
        try:
            disk.fsync(descriptor)
        finally:
            disk.close(descriptor)
    except OSError as error:
        raise os_error(f"cannot bring {path} to the disk", error) from error


def make_directories(path: Path, *, durable: bool, disk: Disk = SYSTEM) -> None:
    """Make a directory and those above it, as far as they are missing. Raises StorageError.

    With `durable` each is on disk before there is anything in it.
    """
    try:
        if is_directory(path, disk):
            return
        make_directories(path.parent, durable=durable, disk=disk)
        try:
            disk.mkdir(path)
        except FileExistsError:
            if not is_directory(path, disk):
                raise
    except OSError as error:
        raise os_error(f"cannot make {path}", error) from error
    if durable:
        sync_directory(path.parent, disk)


def is_directory(path: Path, disk: Disk) -> bool:
    """Tell whether there is a directory of that name. Raises OSError."""
    try:
        return stat.S_ISDIR(disk.stat(path).st_mode)
    except FileNotFoundError:
        return False


class OpenFiles:
    """Open descriptors by name; of more than `most` the least recently used is closed."""

    def __init__(self, most: int, disk: Disk) -> None:
        """Begin with none open."""
        self.disk = disk
        self._most = most
        self._open: OrderedDict[str, int] = OrderedDict()

    def get(self, name: str) -> int | None:
        """Return the descriptor kept under this name; it may be closed by the next `keep`."""
        found = self._open.get(name)
        if found is not None:
            self._open.move_to_end(name)
        return found

    def keep(self, name: str, descriptor: int) -> int:
        """Keep a descriptor in place of an earlier one, and return it."""
        self.forget(name)
        self._open[name] = descriptor
        if len(self._open) > self._most:
            self.disk.close(self._open.popitem(last=False)[1])
        return descriptor

    def forget(self, name: str) -> None:
        """Close what is kept under this name, if anything is."""
        descriptor = self._open.pop(name, None)
        if descriptor is not None:
            self.disk.close(descriptor)

    def close(self) -> None:
        """Close all."""
        while self._open:
            self.disk.close(self._open.popitem()[1])


class PlainFiles:
    """The files below `root`. A StorageError leaves the file unchanged, unless the method says otherwise."""

    def __init__(self, root: Path, *, durable: bool = False, writable: bool = True, disk: Disk = SYSTEM) -> None:
        """Serve the existing directory `root`. With `durable`, directories are synced with each new entry."""
        self._disk = disk
        self._root = root
        self._durable = durable
        self._flags = os.O_RDWR if writable else os.O_RDONLY
        self._open = OpenFiles(OPEN_FILES_MAX, disk)

    def descriptor(self, name: str) -> int:
        """Return the open file. It belongs to this object and may be closed by its next call."""
        found = self._open.get(name)
        return self._open.keep(name, self._open_file(name, create=False)[0]) if found is None else found

    def create(self, name: str) -> bool:
        """Make sure that the file is there, and empty; tell whether it was made now."""
        descriptor, made = self._open_file(name, create=True)
        if self._disk.fstat(descriptor).st_size:
            self._disk.close(descriptor)
            raise StorageError(f"files/{name} is there already, with a content that no op made; move it away")
        self._open.keep(name, descriptor)
        return made

    def recreate(self, name: str) -> None:
        """Make sure that the file is there, with whatever content."""
        self._open.keep(name, self._open_file(name, create=True)[0])

    def remove(self, name: str) -> None:
        """Take a file away that `create` has just made, if possible, and the directories that are empty then."""
        self._open.forget(name)
        if self._take_away(name, self._disk.unlink):  # else an empty file without ops does no harm
            self._remove_folders(name)

    def size(self, name: str) -> int | None:
        """Return the file's length in bytes, or None where the name leads to no plain file.

        None, too, where it leads to another file than the one that we have open: that one is forgotten.
        """
        try:
            directory = self._directory(name, create=False)
            try:
                found = self._disk.stat(name.rpartition("/")[2], dir_fd=directory, follow_symlinks=False)
            finally:
                self._disk.close(directory)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise os_error(f"cannot open files/{name}", error) from error
        kept = self._open.get(name)
        if kept is not None and not os.path.samestat(found, self._disk.fstat(kept)):
            self._open.forget(name)
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Return the bytes [start, stop), fewer where the file ends before."""
        try:
            return read_at(self._disk, self.descriptor(name), start, stop)
        except OSError as error:
            raise os_error(f"cannot read files/{name}", error) from error

    def write_end(self, name: str, start: int, data: bytes | bytearray, length: int) -> None:
        """Put `data` at byte `start`, to be the end of the file, which had `length` bytes.

        Raises StorageError with the file changed in part.
        """
        try:
            descriptor = self.descriptor(name)
            write_at(self._disk, descriptor, start, data)
            if start + len(data) < length:
                self._disk.ftruncate(descriptor, start + len(data))
        except OSError as error:
            raise os_error(f"cannot write files/{name}", error) from error

    def sync(self, name: str) -> None:
        """Wait until the file is on disk. Raises FatalStorageError: the system may have dropped it."""
        try:
            self._disk.fsync(self.descriptor(name))
        except OSError as error:
            raise FatalStorageError(f"cannot bring files/{name} to the disk: {error.strerror}") from error

    def close(self) -> None:
        """Close every descriptor."""
        self._open.close()

    def _open_file(self, name: str, *, create: bool) -> tuple[int, bool]:
        """Return (descriptor, made now)."""
        last = name.rpartition("/")[2]
        flags = self._flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        made = False
        try:
            directory = self._directory(name, create=create)
            try:
                try:
                    descriptor = self._disk.open(last, flags, dir_fd=directory)
                except (FileNotFoundError, IsADirectoryError) as error:
                    in_the_way = isinstance(error, IsADirectoryError)
                    if not create or (in_the_way and not self._take_away(name, self._disk.rmdir)):
                        raise
                    descriptor = self._disk.open(last, flags | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=directory)
                    made = True
                    if self._durable:
                        try:
                            self._disk.fsync(directory)
                        except OSError:
                            self._disk.close(descriptor)
                            raise
            finally:
                self._disk.close(directory)
        except OSError as error:
            if create:
                self._remove_folders(name)
            raise os_error(f"cannot open files/{name}", error) from error
        if not stat.S_ISREG(self._disk.fstat(descriptor).st_mode):
            self._disk.close(descriptor)
            raise StorageError(f"cannot open files/{name}: it is not a plain file")
        return descriptor, made

    def _remove_folders(self, name: str) -> None:
        """Take away the directories above a file, as far as they are empty."""
        while name := name.rpartition("/")[0]:
            if not self._take_away(name, self._disk.rmdir):
                return

    def _take_away(self, name: str, remove: Callable[..., None]) -> bool:
        """Take away a file, or an empty directory as an op makes that comes to nothing; tell whether that went well."""
        try:
            directory = self._directory(name, create=False)
            try:
                remove(name.rpartition("/")[2], dir_fd=directory)
            finally:
                self._disk.close(directory)
        except OSError:
            return False
        return True

    def _directory(self, name: str, *, create: bool) -> int:
        """Return a descriptor of the directory that holds the file, each part opened from the one before."""
        directory = self._disk.open(self._root, _DIRECTORY)
        for part in name.split("/")[:-1]:
            parent = directory
            try:
                try:
                    directory = self._disk.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
                except FileNotFoundError:
                    if not create:
                        raise
                    self._disk.mkdir(part, dir_fd=parent)
                    if self._durable:
                        self._disk.fsync(parent)
                    directory = self._disk.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
            finally:
                self._disk.close(parent)
        return directory


class FileEnd:
    """The end of a file as it will be: replaced in memory any number of times, to be written once.

    The file keeps its bytes before `start`; its bytes from there on, `before`, give way to `after`.
    """

    __slots__ = ("_read", "after", "before", "start")

    def __init__(self, length: int, read: Callable[[int, int], bytes]) -> None:
        """Begin with nothing replaced in a file of `length` bytes; `read` returns its bytes [start, stop)."""
        self._read = read
        self.start = length
        self.before = b""
        self.after = bytearray()

    @property
    def length(self) -> int:
        """The file's length in bytes, as it will be."""
        return self.start + len(self.after)

    def replace(self, offset: int, inserted: bytes) -> bytes:
        """Replace everything from byte `offset` on, and return what stood there. Raises ValueError."""
        if offset < self.start:
            more = self._read(offset, self.start)
            removed = more + self.after
            self.start, self.before, self.after = offset, more + self.before, bytearray(inserted)
            return removed
        kept = offset - self.start
        if kept > len(self.after):
            raise ValueError(f"byte {offset} is beyond the end, {self.length}")
        removed = bytes(self.after[kept:])
        self.after[kept:] = inserted
        return removed
