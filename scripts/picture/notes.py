"""What lockd.log, client.log and faults.jsonl tell of a run, beside its events and locks.

The notes are written for people, so nothing rests on them but the picture: a line that does not read is left out.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from common.eventlog import parse_time
from common.tokens import parse_token
from scripts.faults.record import FILE as FAULTS
from scripts.verdict.load import Places

NoteKind = Literal["start", "end", "open", "closed", "over", "lost", "fenced", "undone", "note"]

GOODBYE: Final = "it said goodbye"
"""Why a session is over that ended in good order."""

_KINDS: Final[tuple[tuple[NoteKind, re.Pattern[str]], ...]] = (
    ("start", re.compile(r"start \d+ of this directory|epoch \d+ begins ")),
    ("end", re.compile(r"ended in order|epoch \d+ ends")),
    ("open", re.compile(r"session \d+ of \S+ is open|joined as ")),
    ("closed", re.compile(rf"session \d+ of \S+ is over: {GOODBYE}")),
    ("over", re.compile(r"session \d+ of \S+ is over: ")),
    ("lost", re.compile(r"session lost: |.* left the in-sync set of ")),
    ("fenced", re.compile(r"refused a push of |\S+ refused our push to ")),
    ("undone", re.compile(r"undid the newest ")),
)
_SESSION: Final = re.compile(r"session \d+ of (\S+) is (open|over)(?:: (.*))?")
_FENCED: Final = re.compile(r"refused a push of \S+ to .*: its token ([0-9.]+) is fenced by [0-9.]+")


@dataclass(frozen=True, slots=True)
class NoteLine:
    """One line; its time is in microseconds since 1970. `fenced` is the token of a late push refused, else 0."""

    time_us: int
    kind: NoteKind
    text: str
    fenced: int = 0


@dataclass(frozen=True, slots=True)
class FaultLine:
    """Something that was done to processes on purpose, from `begin_us` to `end_us`, in microseconds since 1970."""

    begin_us: int
    end_us: int
    victim: str
    text: str


@dataclass(frozen=True, slots=True)
class RunNotes:
    """The notes of lockd and of each client, by its name in findings, and the faults."""

    lockd: Sequence[NoteLine] = ()
    clients: Mapping[str, Sequence[NoteLine]] = field(default_factory=dict)
    faults: Sequence[FaultLine] = ()

    def moments(self) -> list[int]:
        """Return every moment that they name, in microseconds since 1970."""
        notes = [*self.lockd, *[note for notes in self.clients.values() for note in notes]]
        return [note.time_us for note in notes] + [
            end for fault in self.faults for end in (fault.begin_us, fault.end_us)
        ]


def read_notes(places: Places) -> RunNotes:
    """Read the notes of a run; a file that is not there has none."""
    lockd = _read_log(places.lockd / "lockd.log") if places.lockd else []
    clients = {name: _read_log(path / "client.log") for name, path in places.clients.items()}
    return RunNotes(lockd, clients, _read_faults(places.asked.parent / FAULTS) if places.asked else [])


def apart(lockd: Iterable[NoteLine], end_us: int) -> dict[str, list[tuple[int, int, str]]]:
    """Return when each host was without a session between two: begin and end, in microseconds since 1970, and why.

    One that never came back is so until `end_us`, but for one that said goodbye.
    """
    over: dict[str, tuple[int, str]] = {}
    found: dict[str, list[tuple[int, int, str]]] = {}
    for note in lockd:
        if (match := _SESSION.fullmatch(note.text)) is None:
            continue
        host, what, why = match.groups()
        if what == "over":
            over[host] = note.time_us, why or ""
        elif host in over:
            begin_us, because = over.pop(host)
            found.setdefault(host, []).append((begin_us, note.time_us, because))
    for host, (begin_us, because) in over.items():
        if because != GOODBYE:
            found.setdefault(host, []).append((begin_us, end_us, because))
    return found


def _read_log(path: Path) -> list[NoteLine]:
    return [note for line in _lines(path) if (note := _parse(line)) is not None]


def _parse(line: str) -> NoteLine | None:
    time, _, text = line.partition(" ")
    fenced = _FENCED.fullmatch(text)
    try:
        time_us, token = parse_time(time), parse_token(fenced[1]) if fenced else 0
    except ValueError:
        return None
    for kind, pattern in _KINDS:
        if pattern.match(text):
            return NoteLine(time_us, kind, text, token)
    return NoteLine(time_us, "note", text)


def _read_faults(path: Path) -> list[FaultLine]:
    found: list[FaultLine] = []
    for line in _lines(path):
        try:
            told = json.loads(line)
            begin_us, end_us = parse_time(told["begin"]), parse_time(told["end"])
            found.append(FaultLine(begin_us, end_us, str(told["victim"]), str(told["text"])))
        except (ValueError, TypeError, LookupError, RecursionError):
            continue
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8", "replace").split("\n")
    except OSError:
        return []
