"""What `client run --report` says on its stdout, a line at a time."""

import json
from dataclasses import dataclass
from typing import Any, Final, Literal

from common.eventlog import shorten


@dataclass(frozen=True, slots=True)
class OpEnded:
    """How an op ended; `text` is what it wrote, or the last line that a read saw of `length` bytes.

    Times are microseconds of the machine's monotonic clock; `hash` has 12 hexadecimal digits.
    """

    id: str
    verb: str
    file: str
    seq: int
    outcome: Literal["ok", "failed", "unknown"]
    reason: str
    took_ms: float
    length: int
    text: str
    hash: str
    began_us: int
    ended_us: int


@dataclass(frozen=True, slots=True)
class OpBegan:
    """An op has been asked for, and waits for its lock or is at work; microseconds as in OpEnded."""

    verb: str
    file: str
    began_us: int


Word = Literal["ready", "complete", "done"]
"""ready: it has joined. complete: it sees the whole group, and begins. done: all its ops have ended."""

Report = OpEnded | OpBegan | Word

_WORDS: Final[dict[str, Word]] = {"complete": "complete", "done": "done"}


def parse_report(line: bytes) -> Report | None:
    """Read one line; None for what is of no concern here."""
    if line.startswith(b"ready"):
        return "ready"
    if not line.startswith(b"{"):
        return None
    values: dict[str, Any] = json.loads(line)
    match values["event"]:
        case "begin":
            return OpBegan(values["verb"], values["file"], values["began_us"])
        case "end":
            return OpEnded(
                values["id"],
                values["verb"],
                values["file"],
                values["seq"],
                values["outcome"],
                values["reason"],
                values["ms"],
                values["bytes"],
                values["text"],
                values["hash"],
                values["began_us"],
                values["ended_us"],
            )
        case event:
            return _WORDS.get(event)


def describe(op: OpEnded) -> str:
    """Return an op's end in one line for people."""
    what = f"{op.verb} {op.file}@{op.seq} {op.outcome} {op.took_ms:.1f} ms"
    if op.reason:
        return f"{what}  {op.reason}"
    shown = json.dumps(shorten(op.text), ensure_ascii=not op.text.isprintable())
    if op.verb == "read":
        return f"{what}  saw {op.length} bytes, last line: {shown}" if op.length else f"{what}  saw an empty file"
    return f"{what}  {shown}"


def printable(text: str) -> str:
    """Return the text without what a terminal could take for a command: whatever is not printable goes."""
    if text.isprintable():
        return text
    return "".join([character if character.isprintable() else " " * character.isspace() for character in text])
