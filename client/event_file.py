"""events.log on disk: one line per clock tick, appended before the message that it causes leaves."""

import mmap
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.clock import Clock
from common.eventlog import HEADER, Event, parse_event

_OWN_OP: Final = re.compile(
    rb"\S+ \S+ \{[^}]*\} (?:read|write|update|restore) file=(?:\"(?:[^\"\\]|\\.)*\"|\S+) id=\S+ "
)


@dataclass(frozen=True, slots=True)
class LogEnd:
    """Where an event log stands: its last line's host, clock and time, and the largest number of its op ids."""

    host: str
    clock: Clock
    time_us: int
    ops: int


class EventFile:
    """An open event log."""

    def __init__(self, descriptor: int, end: LogEnd) -> None:
        """Take over an open file that appends; `end` is where it stood."""
        self._file = descriptor
        self.end = end

    @classmethod
    def open(cls, path: Path) -> tuple["EventFile", list[str]]:
        """Open or make the log at `path`; return it, and what was repaired, in words.

        A last line without its newline was cut off by a crash before its message left; it is taken away.
        Raises OSError, or ValueError, in words, for a file that is no event log.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        notes: list[str] = []
        header = HEADER.encode()
        size = os.fstat(descriptor).st_size
        if not header.startswith(os.pread(descriptor, len(header), 0)):
            os.close(descriptor)
            raise ValueError(f"{path} is not an event log: it does not begin as one; move it away")
        if size < len(header):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, header)
            return cls(descriptor, LogEnd("", {}, 0, 0)), notes
        with mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) as content:
            end = content.rfind(b"\n") + 1
            try:
                last = _last_event(content, len(header), end)
            except ValueError as error:
                os.close(descriptor)
                raise ValueError(f"the last line of {path} is no event ({error}); mend or remove that line") from None
            ops = _last_op(content, last.host, end) if last else 0
        if end < size:
            os.ftruncate(descriptor, end)
            notes.append(f"took away the last {size - end} bytes of {path.name}, which a crash cut off")
        if last is None:
            return cls(descriptor, LogEnd("", {}, 0, 0)), notes
        return cls(descriptor, LogEnd(last.host, last.clock, last.time_us, ops)), notes

    def append(self, line: str) -> None:
        """Append one line, given without its newline. Raises OSError; then nothing of the line stays."""
        data = line.encode() + b"\n"
        written = os.write(self._file, data)
        if written < len(data):
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError(28, "No space left on device")

    def sync(self) -> None:
        """Wait until what was appended is on disk."""
        os.fdatasync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def _last_event(content: mmap.mmap, start: int, end: int) -> Event | None:
    if end <= start:
        return None
    begin = content.rfind(b"\n", 0, end - 1) + 1
    return parse_event(content[begin : end - 1].decode())


def _last_op(content: mmap.mmap, host: str, end: int) -> int:
    """Return the largest number of an op id of `host`; of ops on several files it is not always the last one."""
    numbers = {int(number) for number in re.findall(rb" id=%s:([0-9]{1,18}) " % re.escape(host.encode()), content)}
    return next((number for number in sorted(numbers, reverse=True) if _is_own_op(content, host, number, end)), 0)


def _is_own_op(content: mmap.mmap, host: str, number: int, end: int) -> bool:
    """Tell whether `host` has logged its op of that number; a text may hold what only looks so."""
    needle = f" id={host}:{number} ".encode()
    position = content.rfind(needle, 0, end)
    while position >= 0:
        begin = content.rfind(b"\n", 0, position) + 1
        match = _OWN_OP.match(content[begin : content.find(b"\n", position) + 1])
        if match is not None and match.end() == position + len(needle) - begin:
            return True
        position = content.rfind(needle, 0, begin)
    return False
