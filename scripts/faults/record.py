"""faults.jsonl of a run: what was done to its processes on purpose, one JSON object per line, written as it ends."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from common.eventlog import format_time

FILE: Final = "faults.jsonl"


class FaultLog:
    """Writes the file. Times are this machine's clock."""

    def __init__(self, directory: Path) -> None:
        """Begin the file in a run's directory."""
        self._file = open(directory / FILE, "w", encoding="utf-8")  # noqa: SIM115  (`close` closes it)
        self._under_way: dict[int, Callable[[], None]] = {}
        self._begun = 0

    def begins(self, victim: str, text: str) -> Callable[[], None]:
        """Note that something is done to a process from now on; return what notes that it is over."""
        begin, number = _now(), self._begun
        self._begun += 1

        def over() -> None:
            if self._under_way.pop(number, None) is not None:
                line = {"victim": victim, "text": text, "begin": begin, "end": _now()}
                self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
                self._file.flush()

        self._under_way[number] = over
        return over

    def close(self) -> None:
        """Note that all is over, and close the file."""
        for over in list(self._under_way.values()):
            over()
        self._file.close()


def _now() -> str:
    return format_time(time.time_ns() // 1000)
