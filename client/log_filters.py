"""Which lines `client log` shows: filters that all have to hold, made from what was typed."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final, Literal

from client.merge import Head
from common.errors import wrong_use
from common.eventlog import VERBS, format_time, parse_pairs
from common.moments import parse_duration
from common.names import file_name_problem, is_host, is_op_id

Filter = Callable[[Head], bool]
"""Tells whether a line passes. Raises ValueError where the line does not read."""

Relation = Literal["--causes", "--concurrent-with"]

OWN_VERBS: Final = ("read", "write", "update", "restore")
"""Verbs of an op's own event; others take it over, or back."""
_BEGINNING: Final = "0000-01-01T00:00:00.000000Z"
"""What the time that was typed is the beginning of, to be read: each part at its least."""
_TIME_TYPED: Final = re.compile(
    r"[0-9]{4}-([0-9]{2}(-([0-9]{2}(T([0-9]{2}(:([0-9]{2}(:([0-9]{2}(\.([0-9]{1,6}Z?)?)?)?)?)?)?)?)?)?)?)?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was typed. An empty one is not asked for."""

    clients: Sequence[str] = ()
    files: Sequence[str] = ()
    op: str = ""
    since: str = ""


def values_of(head: Head) -> dict[str, str]:
    """Return a line's keys and values. Raises ValueError."""
    rest = head.line.split(b" ", 4)[4].decode()
    return parse_pairs(f" {rest}")


def verb_of(head: Head) -> str:
    """Return a line's verb."""
    return head.line.split(b" ", 4)[3].decode()


def filters_of(wanted: Wanted, now_us: int) -> list[Filter]:
    """Return the filters that were asked for, the cheap ones first. Raises CommandError."""
    filters: list[Filter] = []
    for client in wanted.clients:
        if not is_host(client):
            raise wrong_use(f"--client {client!r}: it is no client's name")
    for file in wanted.files:
        if problem := file_name_problem(file):
            raise wrong_use(f"--file {file!r}: {problem}")
    if wanted.clients:
        filters.append(partial(_is_of, frozenset(wanted.clients)))
    if wanted.since:
        filters.append(partial(_is_since, since_of(wanted.since, now_us).encode()))
    if wanted.op in VERBS:
        filters.append(partial(_has_verb, wanted.op))
    elif wanted.op:
        if not is_op_id(wanted.op):
            raise wrong_use(f"--op {wanted.op!r}: it is an op's id, like anna:7, or one of {', '.join(VERBS)}")
        filters.append(partial(_is_about, wanted.op))
    if wanted.files:
        filters.append(partial(_is_on, frozenset(wanted.files)))
    return filters


def since_of(text: str, now_us: int) -> str:
    """Return from where on `--since` shows lines: a time, or its beginning, as in the logs. Raises CommandError."""
    if _TIME_TYPED.fullmatch(text):
        try:
            datetime.fromisoformat(text + _BEGINNING[len(text) :])
        except ValueError:
            pass
        else:
            return text
    else:
        try:
            return format_time(max(0, now_us - parse_duration(text) // 1000))
        except ValueError:
            pass
    raise wrong_use(f"--since {text!r}: it is a time as in the logs, or its beginning, or how long ago, as in 5m")


def related(relation: Relation, op: Head) -> Filter:
    """Return the filter of events before an op's own one, or concurrent with it."""
    return partial(_happens_before if relation == "--causes" else _is_concurrent_with, op)


def is_before(first: Head, second: Head) -> bool:
    """Tell whether an event happens before another: whether the other's clock counts it."""
    same = first.host == second.host and first.count == second.count
    return not same and second.clock.get(first.host, 0) >= first.count


def _happens_before(op: Head, head: Head) -> bool:
    return is_before(head, op)


def _is_concurrent_with(op: Head, head: Head) -> bool:
    same = head.host == op.host and head.count == op.count
    return not same and not is_before(head, op) and not is_before(op, head)


def _is_of(clients: frozenset[str], head: Head) -> bool:
    """A client goes on as name#2, name#3 where it has lost its directory."""
    return head.host in clients or head.host.partition("#")[0] in clients


def _is_since(time: bytes, head: Head) -> bool:
    return head.time >= time


def _has_verb(verb: str, head: Head) -> bool:
    return verb_of(head) == verb


def _is_about(id_: str, head: Head) -> bool:
    return values_of(head).get("id") == id_


def _is_on(files: frozenset[str], head: Head) -> bool:
    return values_of(head).get("file") in files
