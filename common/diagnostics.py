"""client.log and lockd.log: lines for people, with the time in front; never read by a program."""

import os
import time
from pathlib import Path
from typing import Final

from common.eventlog import format_time

_NOTE_LENGTH_MAX: Final = 4000


class Diagnostics:
    """An append-only text file. A full disk costs its lines, never the process."""

    def __init__(self, path: Path) -> None:
        """Open `path` for appending."""
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def note(self, text: str) -> None:
        """Append one line, stamped with this machine's clock; what is too long is cut, with an ellipsis."""
        if len(text) > _NOTE_LENGTH_MAX:
            text = text[: _NOTE_LENGTH_MAX - 1] + "…"
        printable = text if text.isprintable() else ascii(text)
        try:
            os.write(self._file, f"{format_time(time.time_ns() // 1000)} {printable}\n".encode())
        except OSError:
            return

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class Strangers:
    """Counts the malformed messages of each sender, and tells when one is its first."""

    def __init__(self, senders_max: int = 1000) -> None:
        """Remember at most `senders_max` senders; beyond that all count as one."""
        self._counts: dict[bytes, int] = {}
        self._senders_max = senders_max

    def count(self, sender: bytes) -> bool:
        """Count one more of `sender`; return whether it is the first."""
        key = sender if sender in self._counts or len(self._counts) < self._senders_max else b""
        self._counts[key] = self._counts.get(key, 0) + 1
        return self._counts[key] == 1

    @property
    def total(self) -> int:
        """How many there were in all."""
        return sum(self._counts.values())
