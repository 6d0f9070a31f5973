"""Event logs as files to read: where they lie, and their lines, one after another, also while they are written.

A log is opened for each block alone: there may be more logs than a process may have open files.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from client.merge import Head
from common.clock import decode_clock
from common.eventlog import HEADER, VERBS
from common.values import INTEGER_MAX

BLOCK_BYTES: Final = 1 << 14
LINE_BYTES_MAX: Final = 1 << 22
"""A line beyond this is none: a clock of all the sessions there may be is shorter."""

_KNOWN_BYTES: Final = 512
"""By so many bytes of its beginning a log is known again."""
_FIRST_LINE: Final = HEADER.encode().partition(b"\n")[0]
_TIME: Final = re.compile(rb"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")
_VERBS: Final = frozenset(verb.encode() for verb in VERBS)

Complain = Callable[[Path, int, str], None]
"""Called with a log, the number of a line that does not read, and what is wrong with it."""


def parse_head(line: bytes) -> Head:
    """Read what the order needs of a line, without its newline. Raises ValueError, in words."""
    parts = line.split(b" ", 4)
    if len(parts) != 5 or parts[3] not in _VERBS or _TIME.fullmatch(parts[0]) is None:
        raise ValueError("it does not read: time host clock verb key=value ...")
    text, clock = parts[1].decode(), decode_clock(parts[2])
    count = clock.get(text)
    if count is None:
        raise ValueError(f"its clock does not count {text}")
    return Head(parts[0], text, count, clock, line)


def parse_own(line: bytes) -> tuple[str, int]:
    """Read a line's host and own count alone, which is much less work. Raises ValueError, in words."""
    parts = line.split(b" ", 3)
    if len(parts) == 4:
        _, host, clock, _ = parts
        key = b'"%b":' % host
        begin = clock.find(key) + len(key)
        digits = clock[begin : begin + 30].partition(b"}")[0].partition(b",")[0]
        if begin > len(key) and digits.isdigit() and (count := int(digits)) <= INTEGER_MAX:
            return host.decode(), count
    raise ValueError("it does not read: time host clock verb key=value ...")


class EventLog:
    """One log, read from its beginning to wherever it ends, and on from there when it has grown."""

    def __init__(self, path: Path, complain: Complain) -> None:
        """Read nothing yet."""
        self.path = path
        self._name = str(path)
        self._complain = complain
        self._begin = 0
        """Where in the file the block begins."""
        self._block = b""
        self._at = 0
        self.number = 0
        """The line given out last, counted from 1."""
        self._too_long = False
        self._file: tuple[int, int] | None = None
        """Which file it is, by device and inode: another one may come in its place."""
        self._known = b""

    @property
    def torn(self) -> bool:
        """Tell whether something stands behind the last whole line, as far as the log was read."""
        return self._at < len(self._block)

    def head(self) -> Head | None:
        """Return the next line that reads; None when there is no whole one. Raises OSError."""
        for _, line in self.lines():
            try:
                return parse_head(line)
            except ValueError as error:
                self._complain(self.path, self.number, str(error))
        return None

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield each line with its place in the file, in bytes, up to the last whole one. Raises OSError."""
        while True:
            end = self._block.find(b"\n", self._at)
            if end < 0:
                if not self._fill():
                    return
                continue
            place, line = self._begin + self._at, self._block[self._at : end]
            self._at = end + 1
            self.number += 1
            if self._too_long:
                self._too_long = False
                self._complain(self.path, self.number, f"it has more than {LINE_BYTES_MAX} bytes")
            elif line and line != _FIRST_LINE:
                yield place, line

    def _fill(self) -> bool:
        """Read on behind the block, and forget what has been given out; tell whether there was anything."""
        self._begin += self._at
        self._block = self._block[self._at :]
        self._at = 0
        if len(self._block) > LINE_BYTES_MAX:
            self._too_long = True
            self._begin += len(self._block)
            self._block = b""
        try:
            # A poll of a log that has not grown costs this call alone.
            status = os.stat(self._name)
            size, file = status.st_size, (status.st_dev, status.st_ino)
            if file != self._file or (size < self._begin and not self._is_same()):
                # Its directory was lost, and another client began there; or it is read for the first time.
                self._file, self._begin, self._block, self.number, self._too_long = file, 0, b"", 0, False
            if size < self._begin + len(self._block):
                # Its client has cut off what it could not carry out: what counts goes on at the new end.
                self._begin, self._block = size, b""
            if size == self._begin + len(self._block):
                return False
            with open(self._name, "rb", buffering=0) as stream:
                stream.seek(self._begin + len(self._block))
                more = stream.read(BLOCK_BYTES)
        except FileNotFoundError:
            return False  # its directory has gone since it was found
        if not self._begin and len(self._block) < _KNOWN_BYTES:
            self._known = (self._block + more)[:_KNOWN_BYTES]
        self._block += more
        return bool(more)

    def _is_same(self) -> bool:
        """Tell whether the file still begins as it did: an inode's number may be used again."""
        with open(self._name, "rb", buffering=0) as stream:
            now = stream.read(_KNOWN_BYTES)
        return now == self._known[: len(now)]


class EventLogs:
    """The event logs in directories, each a data directory or a run directory, whose sub-directories hold them."""

    def __init__(self, directories: Sequence[Path]) -> None:
        """Look for none yet."""
        self._directories = directories
        self._known: set[Path] = set()

    def new(self) -> list[Path]:
        """Return the logs that have come since it was last asked, client-10 behind client-9. Raises OSError."""
        found: list[Path] = []
        for directory in self._directories:
            names = [directory]
            if not (directory / "events.log").is_file():
                names = sorted((Path(entry.path) for entry in os.scandir(directory)), key=_by_number)
            for place in names:
                log = place / "events.log"
                if log in self._known or not log.is_file():
                    continue
                self._known.add(log)
                # One log may be given twice, or reached by a link.
                real = log.resolve()
                if real == log or real not in self._known:
                    self._known.add(real)
                    found.append(log)
        return found


def _by_number(path: Path) -> tuple[int, str]:
    return len(path.name), path.name
