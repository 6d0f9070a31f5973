"""The random workload of `client run`: which op next, on which file, with which text, after how long."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from common.errors import wrong_use
from common.names import text_problem

_VERBS: Final[tuple[Literal["read", "write", "update"], ...]] = ("read", "write", "update")


@dataclass(frozen=True, slots=True)
class Choice:
    """One op to do, `delay_ns` nanoseconds after the last one ended."""

    verb: Literal["read", "write", "update"]
    file: str
    text: str
    delay_ns: int


class Workload:
    """A stream of choices; the same seed and name give the same stream."""

    def __init__(
        self, name: str, seed: str | None, delay_s: tuple[float, float], files: list[str], lines: list[str]
    ) -> None:
        """Choose among `files`, and among `lines` where there are any; `delay_s` is the range of pauses."""
        self._name = name
        self._random = random.Random(None if seed is None else f"{seed}/{name}")
        self._delay_s, self._files, self._lines = delay_s, files, lines
        self._count = 0

    def next(self) -> Choice:
        """Return the next choice."""
        self._count += 1
        delay_ns = round(self._random.uniform(*self._delay_s) * 1e9)
        verb = self._random.choice(_VERBS)
        file = self._random.choice(self._files)
        text = ""
        if verb != "read":
            text = f"{self._name} says this in its op {self._count}"
            if self._lines:
                text = self._random.choice(self._lines)
        return Choice(verb, file, text, delay_ns)


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file that can be a TEXT. Raises CommandError where there are none."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise wrong_use(f"--lines {path}: it cannot be read ({error.strerror})") from None
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise wrong_use(f"--lines {path}: it is not UTF-8 text (byte {error.start})") from None
    lines = [line for line in text.splitlines() if line.strip() and text_problem(line) is None]
    if not lines:
        raise wrong_use(f"--lines {path}: it holds no line of text")
    return lines


def parse_delay(text: str) -> tuple[float, float]:
    """Read `A..B`, seconds. Raises CommandError."""
    low_text, dots, high_text = text.partition("..")
    try:
        low, high = float(low_text), float(high_text if dots else low_text)
    except ValueError:
        raise wrong_use(f"--delay {text}: a delay reads A..B in seconds, like 0.0..0.2") from None
    if not 0 <= low <= high < 86_400:
        raise wrong_use(f"--delay {text}: A..B needs 0 <= A <= B, in seconds")
    return low, high
