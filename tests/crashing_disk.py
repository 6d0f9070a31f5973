"""A disk in memory that forgets what was not synced, tears what is being written, fills up, and fails when told.

It is a client.disk.Disk. `fork` copies what a SIGKILL leaves right now, and `cut_power` makes of that what a power
cut leaves: of all that was not synced each write, truncation and change of a directory stays, goes, or stays in part.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TypeAlias


@dataclass(slots=True, eq=False)
class File:
    """`data` is what the system shows, `durable` what the disk has; writes (at, bytes) and lengths are in between."""

    number: int
    data: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    unsynced: list[tuple[int, bytes] | int] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Directory:
    """Names as the system shows them, as the disk has them, and the changes in between, each whole or not there."""

    number: int
    data: "dict[str, File | Directory]" = field(default_factory=dict)
    durable: "dict[str, File | Directory]" = field(default_factory=dict)
    unsynced: "list[dict[str, File | Directory | None]]" = field(default_factory=list)


DATA = Path("/data")
"""A directory that `new_disk` has."""
Node: TypeAlias = File | Directory
Writing = tuple[int, int, bytes]
"""A write that is about to be done: the file's number, the byte, and the data."""


def _write(content: bytearray, at: int, data: bytes) -> None:
    content.extend(bytes(max(0, at - len(content))))
    content[at : at + len(data)] = data


def _cut(content: bytearray, length: int) -> None:
    del content[length:]
    content.extend(bytes(length - len(content)))


def _replace(names: dict[str, Node], change: dict[str, Node | None]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _apply(content: bytearray, change: tuple[int, bytes] | int) -> None:
    if isinstance(change, int):
        _cut(content, change)
    else:
        _write(content, *change)


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


class CrashingDisk:
    """The disk. `before` is called before each call that changes anything, with the write, if it is one.

    `fail` is asked before each call, with its name and number, whether it fails: for the errno, 0 if it does not, and
    -1 for a write that writes only a part. `room` is how many bytes may still be added, None for as many as you like.
    """

    def __init__(self) -> None:
        """Begin with the root directory alone."""
        self.before: Callable[[Writing | None], None] | None = None
        self.fail: Callable[[str, int], int] | None = None
        self.room: int | None = None
        self.changes = 0
        self._calls = 0
        self._root = Directory(1)
        self._numbers = 1
        self._open: dict[int, tuple[Node, int]] = {}
        self._descriptors = 1_000_000

    # What a crash leaves

    def fork(self, writing: Writing | None = None, part: int = 0) -> "CrashingDisk":
        """Return a disk that goes its own way, with the first `part` bytes of a write that was about to be done."""
        fork, nodes = CrashingDisk(), dict[int, Node]()
        fork._numbers, fork._root = self._numbers, Directory(1)
        nodes[1] = fork._root

        def copy(node: Node) -> Node:
            if node.number not in nodes or node is self._root:
                if isinstance(node, File):
                    nodes[node.number] = File(node.number, node.data.copy(), node.durable.copy(), node.unsynced.copy())
                else:
                    new = nodes.setdefault(node.number, Directory(node.number))
                    assert isinstance(new, Directory)
                    new.data = {name: copy(inner) for name, inner in node.data.items()}
                    new.durable = {name: copy(inner) for name, inner in node.durable.items()}
                    new.unsynced = [
                        {name: inner and copy(inner) for name, inner in change.items()} for change in node.unsynced
                    ]
            return nodes[node.number]

        copy(self._root)
        if writing is not None and part:
            number, at, data = writing
            file = nodes[number]
            assert isinstance(file, File)
            _write(file.data, at, data[:part])
            file.unsynced.append((at, data[:part]))
        return fork

    def cut_power(self, chance: Random) -> "CrashingDisk":
        """Forget, by chance, what was not synced; return itself."""
        keeps = chance.choice((0.0, 0.3, 0.7, 0.7, 1.0))
        for node in list(_nodes(self._root)):
            if isinstance(node, File):
                for change in node.unsynced:
                    if chance.random() >= keeps:
                        continue
                    if not isinstance(change, int) and chance.random() < 0.5:
                        at, data = change
                        start, stop = sorted((chance.randint(0, len(data)), chance.randint(0, len(data))))
                        change = chance.choice(((at, data[:stop]), (at + start, data[start:]), (at, data)))
                    _apply(node.durable, change)
                node.data = node.durable.copy()
            else:
                for names in node.unsynced:
                    if chance.random() < keeps:
                        _replace(node.durable, names)
                node.data = node.durable.copy()
            node.unsynced.clear()
        return self

    def contents(self, below: Path) -> dict[str, bytes]:
        """Return what the files below a directory hold, by their names from there."""
        found, waiting = dict[str, bytes](), [("", self._find(below))]
        while waiting:
            prefix, node = waiting.pop()
            if isinstance(node, File):
                found[prefix] = bytes(node.data)
            else:
                waiting += [(f"{prefix}/{name}" if prefix else name, inner) for name, inner in node.data.items()]
        return found

    # Calls

    def open(self, path: Path | str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        """Open a file or directory."""
        self._ask("open")
        directory, name = self._directory(path, dir_fd)
        node: Node | None = directory.data.get(name) if name else directory
        if node is None:
            if not flags & os.O_CREAT:
                raise _error(errno.ENOENT)
            self._about_to(None)
            if self.room is not None and self.room <= 0:
                raise _error(errno.ENOSPC)
            node = File(self._new_number())
            self._change(directory, {name: node})
        elif flags & os.O_CREAT and flags & os.O_EXCL:
            raise _error(errno.EEXIST)
        elif isinstance(node, File) and flags & os.O_TRUNC and node.data:
            self._about_to(None)
            self._truncate(node, 0)
        if flags & os.O_DIRECTORY and not isinstance(node, Directory):
            raise _error(errno.ENOTDIR)
        self._descriptors += 1
        self._open[self._descriptors] = node, flags
        return self._descriptors

    def close(self, fd: int, /) -> None:
        """Close a descriptor."""
        del self._open[fd]

    def pread(self, fd: int, length: int, offset: int, /) -> bytes:
        """Read up to `length` bytes."""
        self._ask("pread")
        return bytes(self._file(fd).data[offset : offset + length])

    def pwrite(self, fd: int, data: bytes | bytearray, offset: int, /) -> int:
        """Write some of `data`; return how much."""
        assert not self._open[fd][1] & os.O_APPEND
        return self._write(self._file(fd), offset, bytes(data))

    def write(self, fd: int, data: bytes, /) -> int:
        """Write some of `data` at the end of a file opened to append; return how much."""
        assert self._open[fd][1] & os.O_APPEND
        return self._write(self._file(fd), len(self._file(fd).data), data)

    def ftruncate(self, fd: int, length: int, /) -> None:
        """Cut a file to `length` bytes."""
        self._ask("ftruncate")
        self._about_to(None)
        self._truncate(self._file(fd), length)

    def fsync(self, fd: int) -> None:
        """Make a file's content, or a directory's names, durable."""
        node = self._open[fd][0]
        try:
            self._ask("fsync")
        except OSError:
            if isinstance(node, File):
                node.unsynced.clear()  # as Linux does: it goes on to show the content, and will not write it again
            raise
        self._about_to(None)
        _sync(node)

    def fdatasync(self, fd: int) -> None:
        """Make a file's content durable."""
        self.fsync(fd)

    def sync(self) -> None:
        """Make all durable."""
        self._about_to(None)
        for node in list(_nodes(self._root)):
            _sync(node)

    def fchmod(self, fd: int, mode: int) -> None:
        """Leave an open file's permissions as they are: all files have the same here."""

    def fstat(self, fd: int) -> os.stat_result:
        """Tell of an open file."""
        return _stat(self._open[fd][0])

    def stat(self, path: Path | str, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
        """Tell of a file by its name."""
        return _stat(self._find(path, dir_fd))

    def listdir(self, path: Path) -> list[str]:
        """Return the names in a directory."""
        node = self._find(path)
        if isinstance(node, File):
            raise _error(errno.ENOTDIR)
        return list(node.data)

    def mkdir(self, path: Path | str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        """Make a directory."""
        self._ask("mkdir")
        directory, name = self._directory(path, dir_fd)
        if name in directory.data:
            raise _error(errno.EEXIST)
        self._about_to(None)
        if self.room is not None and self.room <= 0:
            raise _error(errno.ENOSPC)
        self._change(directory, {name: Directory(self._new_number())})

    def unlink(self, path: Path | str, *, dir_fd: int | None = None) -> None:
        """Take a name away."""
        self._ask("unlink")
        directory, name = self._directory(path, dir_fd)
        node = self._find(path, dir_fd)
        self._about_to(None)
        if self.room is not None and isinstance(node, File):
            self.room += len(node.data)
        self._change(directory, {name: None})

    def rmdir(self, path: Path | str, *, dir_fd: int | None = None) -> None:
        """Take an empty directory away."""
        self._ask("rmdir")
        directory, name = self._directory(path, dir_fd)
        node = self._find(path, dir_fd)
        if not isinstance(node, Directory):
            raise _error(errno.ENOTDIR)
        if node.data:
            raise _error(errno.ENOTEMPTY)
        self._about_to(None)
        self._change(directory, {name: None})

    def replace(self, src: Path, dst: Path) -> None:
        """Give a file another name, in place of the file that had it; on disk, too, both or neither."""
        self._ask("replace")
        (directory, old), (_, new) = self._directory(src, None), self._directory(dst, None)
        assert src.parent == dst.parent
        node = self._find(src)
        self._about_to(None)
        self._change(directory, {old: None, new: node})

    def _ask(self, call: str) -> int:
        """Fail if told so; return -1 for a write of a part."""
        self._calls += 1
        code = self.fail(call, self._calls) if self.fail is not None else 0
        if code > 0:
            raise _error(code)
        return code

    def _about_to(self, writing: Writing | None) -> None:
        self.changes += 1
        if self.before is not None:
            self.before(writing)

    def _write(self, file: File, at: int, data: bytes) -> int:
        if self._ask("write") < 0:
            data = data[: len(data) // 2] or data
        if self.room is not None:
            growth = max(0, at + len(data) - len(file.data))
            if growth > self.room:
                data = data[: len(data) - growth + self.room]
                if not data:
                    raise _error(errno.ENOSPC)
            self.room -= max(0, at + len(data) - len(file.data))
        self._about_to((file.number, at, data))
        _write(file.data, at, data)
        file.unsynced.append((at, data))
        return len(data)

    def _truncate(self, file: File, length: int) -> None:
        if self.room is not None:
            self.room += len(file.data) - length
        _cut(file.data, length)
        file.unsynced.append(length)

    def _change(self, directory: Directory, change: dict[str, Node | None]) -> None:
        _replace(directory.data, change)
        directory.unsynced.append(change)

    def _new_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _file(self, fd: int) -> File:
        node = self._open[fd][0]
        assert isinstance(node, File)
        return node

    def _find(self, path: Path | str, dir_fd: int | None = None) -> Node:
        directory, name = self._directory(path, dir_fd)
        node = directory.data.get(name) if name else directory
        if node is None:
            raise _error(errno.ENOENT)
        return node

    def _directory(self, path: Path | str, dir_fd: int | None) -> tuple[Directory, str]:
        """Return the directory that a path leads to the last part of, and that part; it is "" for the root."""
        node: Node | None = self._root if dir_fd is None else self._open[dir_fd][0]
        *parts, name = str(path).removeprefix("/").split("/")
        for part in parts:
            assert isinstance(node, Directory)
            node = node.data.get(part)
            if node is None:
                raise _error(errno.ENOENT)
            if isinstance(node, File):
                raise _error(errno.ENOTDIR)
        assert isinstance(node, Directory)
        return node, name


def _nodes(root: Directory) -> Iterator[Node]:
    """Yield every file and directory that is there, or may be after a power cut."""
    seen: dict[int, Node] = {}
    waiting: list[Node] = [root]
    while waiting:
        node = waiting.pop()
        if node.number in seen:
            continue
        seen[node.number] = node
        if isinstance(node, Directory):
            waiting += [*node.data.values(), *node.durable.values()]
            waiting += [inner for change in node.unsynced for inner in change.values() if inner is not None]
    yield from seen.values()


def _sync(node: Node) -> None:
    if isinstance(node, File):
        for change in node.unsynced:
            _apply(node.durable, change)
    else:
        for names in node.unsynced:
            _replace(node.durable, names)
    node.unsynced.clear()


def _stat(node: Node) -> os.stat_result:
    kind, size = (stat.S_IFREG, len(node.data)) if isinstance(node, File) else (stat.S_IFDIR, 0)
    return os.stat_result((kind | 0o644, node.number, 1, 1, 0, 0, size, 0, 0, 0))


def new_disk() -> CrashingDisk:
    """Return a disk with the empty directory DATA."""
    disk = CrashingDisk()
    disk.mkdir(DATA)
    disk.sync()
    return disk
