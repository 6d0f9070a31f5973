"""The lines of events.log, written and read: `time host clock verb key=value ...` (ShiViz reads them as they are)."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

from common.clock import Clock, format_clock, parse_clock
from common.limits import LOG_TEXT_LENGTH_MAX
from common.tokens import format_token

HEADER: Final = r"(?<timestamp>\S+) (?<host>\S+) (?<clock>\{[^}]*\}) (?<event>.*)" + "\n\n"
"""The first two lines of every event log: ShiViz's parser expression, and an empty line."""

VERBS: Final = ("read", "write", "update", "restore", "apply", "undo")

_LINE: Final = re.compile(r"(\S+) (\S+) (\{[^}]*\}) ([a-z]+)((?: .*)?)")
_PAIR: Final = re.compile(r' ([a-z_]+)=("(?:[^"\\]|\\.)*"|[^\s"\\=]+)')
_PLAIN: Final = re.compile(r'[^\s"\\=\x00-\x1f\x7f-\x9f]+')
_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z", re.ASCII)
_PLAIN_KEYS: Final = frozenset({"id", "token", "seq", "hash", "bytes", "of", "from"})
"""Keys whose values are numbers, hosts or ids: they never need a JSON string."""
_ORIGIN: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Event:
    """One line: network time in microseconds since 1970, the host that ticked, its clock, and what happened."""

    time_us: int
    host: str
    clock: Clock
    verb: str
    values: dict[str, str]


def format_time(time_us: int) -> str:
    """Write microseconds since 1970 as UTC with six decimals."""
    return f"{_format_second(time_us // 1_000_000)}.{time_us % 1_000_000:06d}Z"


@lru_cache(maxsize=16)
def _format_second(seconds: int) -> str:
    return f"{_ORIGIN + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S}"


def parse_time(text: str) -> int:
    """Read `format_time`'s output. Raises ValueError."""
    if _TIME.fullmatch(text) is None:
        raise ValueError(f"a time reads like 2026-11-22T15:03:11.123456Z, not {text!r}")
    return (datetime.fromisoformat(text) - _ORIGIN) // timedelta(microseconds=1)


quote: Final = json.JSONEncoder(ensure_ascii=False).encode
"""Write a printable text as a JSON string. An encoder made once: `json.dumps` makes one for each text."""


@lru_cache(maxsize=1024)
def format_value(value: str) -> str:
    """Write a value: as it is, or as a JSON string where a reader could not tell where it ends."""
    printable = value.isprintable()
    if printable and _PLAIN.fullmatch(value):
        return value
    return quote(value) if printable else json.dumps(value)


def format_op(file: str, id_: str, token: int, seq: int, digest: bytes) -> str:
    """Write what every line tells: the file, the op's id and token, and the version it made or saw."""
    return f" file={format_value(file)} id={id_} token={format_token(token)} seq={seq} hash={digest[:6].hex()}"


def format_pairs(values: Iterable[tuple[str, str]]) -> str:
    """Write ` key=value key=value ...`, each with a space before it."""
    return "".join([f" {key}={value if key in _PLAIN_KEYS else format_value(value)}" for key, value in values])


def format_event(time_us: int, host: str, clock: Clock, verb: str, facts: str) -> str:
    """Write one line, without its newline; `facts` is of `format_op` and `format_pairs`."""
    return f"{format_time(time_us)} {host} {format_clock(clock)} {verb}{facts}"


def parse_event(line: str) -> Event:
    """Read one line, without its newline. Raises ValueError, in words."""
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError("it does not read: time host clock verb key=value ...")
    time, host, clock, verb, rest = match.groups()
    if verb not in VERBS:
        raise ValueError(f"the verb {verb!r} is unknown")
    return Event(parse_time(time), host, parse_clock(clock), verb, parse_pairs(rest))


def parse_pairs(rest: str) -> dict[str, str]:
    """Read ` key=value key=value ...`, each with a space before it. Raises ValueError."""
    values: dict[str, str] = {}
    position = 0
    while position < len(rest):
        match = _PAIR.match(rest, position)
        if match is None:
            raise ValueError(f"no key=value at {rest[position : position + 20]!r}")
        key, value = match.groups()
        if key in values:
            raise ValueError(f"the key {key!r} stands twice")
        values[key] = json.loads(value) if value.startswith('"') else value
        position = match.end()
    return values


def shorten(text: str) -> str:
    """Cut a text for a log, with an ellipsis."""
    return text if len(text) <= LOG_TEXT_LENGTH_MAX else text[: LOG_TEXT_LENGTH_MAX - 1] + "…"
