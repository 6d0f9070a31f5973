"""A picture as one page that needs nothing else: no network, no other file."""

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any, Final

from common.eventlog import VERBS
from common.printing import printable
from common.tokens import format_token
from scripts.picture.model import Picture, Place
from scripts.verdict.evidence import Journal

CONTENT_BYTES_MAX: Final = 8 * 1024 * 1024
"""How much of the files' ops a page carries; of files beyond that it shows no content."""

_HERE: Final = Path(__file__).parent
_SCRIPTS: Final = ("run.js", "view.js", "draw.js", "page.js")


def as_page(picture: Picture) -> str:
    """Return the page, as HTML."""
    script = '"use strict";\n(() => {\n' + "\n".join([_text(name) for name in _SCRIPTS]) + "\n})();\n"
    style = _text("page.css")
    sums = {kind: _sum(text) for kind, text in (("script", script), ("style", style))}
    # Nothing is loaded, and nothing runs but these two, whatever the files of the run hold.
    policy = f"default-src 'none'; img-src data:; script-src {sums['script']}; style-src {sums['style']}"
    return Template(_text("page.html")).substitute(
        POLICY=policy, TITLE=html.escape(printable(picture.title)), STYLE=style, RUN=_as_json(picture), SCRIPT=script
    )


def _text(name: str) -> str:
    return (_HERE / name).read_text("utf-8")


def _sum(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _as_json(picture: Picture) -> str:
    """Return what the page draws. As JSON in a script element it must hold no `<`, which could end that."""
    marks = picture.marks
    run: dict[str, Any] = {
        "title": picture.title,
        "origin": picture.origin_us,
        "lanes": picture.lanes,
        "hosts": picture.hosts,
        "marks": {
            "lane": [mark.lane for mark in marks],
            "host": [mark.host for mark in marks],
            "count": [mark.count for mark in marks],
            "time": [mark.at.time for mark in marks],
            "depth": [mark.at.depth for mark in marks],
            "verb": [VERBS.index(mark.event.verb) for mark in marks],
            "changed": [[number for pair in mark.changed for number in pair] for mark in marks],
            "text": [mark.text for mark in marks],
        },
        "struck": [number for number, mark in enumerate(marks) if mark.struck],
        "holds": [
            {
                "lane": hold.lane,
                "lock": hold.lock,
                "mode": hold.mode,
                "token": format_token(hold.token),
                "asked": _at(hold.asked),
                "begin": _at(hold.begin),
                "end": _at(hold.end),
                "over": hold.over,
                "waited": hold.waited_us,
                "served": {
                    "begin": [hold.begin.time, round(hold.served[0], 3)],
                    "end": [hold.end.time, round(hold.served[1], 3)],
                },
            }
            for hold in picture.holds
        ],
        "arrows": [
            {
                "kind": arrow.kind,
                "source": arrow.source,
                "begin": _at(arrow.begin),
                "target": arrow.target,
                "end": _at(arrow.end),
                "label": arrow.label,
                "from": arrow.source_mark,
                "to": arrow.target_mark,
            }
            for arrow in picture.arrows
        ],
        "notes": [
            {"lane": note.lane, "kind": note.kind, "at": _at(note.at), "text": note.text} for note in picture.notes
        ],
        "spans": [
            {"lane": span.lane, "kind": span.kind, "begin": _at(span.begin), "end": _at(span.end), "text": span.text}
            for span in picture.spans
        ],
        "histories": _histories(picture.histories),
        "missing": picture.missing,
    }
    return json.dumps(run, separators=(",", ":")).replace("<", "\\u003c")


def _at(place: Place) -> list[float]:
    return [place.time, round(place.depth, 3)]


def _histories(journals: Mapping[str, Journal]) -> dict[str, Any]:
    """Return each file's ops, the smallest files first while there is room; None for the others."""
    sizes = {file: sum(len(record.inserted) for record in journal.records) for file, journal in journals.items()}
    room = CONTENT_BYTES_MAX
    found: dict[str, Any] = {}
    for file in sorted(journals, key=sizes.__getitem__):
        room -= sizes[file]
        found[file] = {"ops": _ops(journals[file]) if room >= 0 else None}
    return found


def _ops(journal: Journal) -> list[dict[str, Any]]:
    return [
        {
            "offset": record.offset,
            "size": len(record.inserted),
            "inserted": _inserted(record.inserted),
            "hash": hash_[:6].hex(),
        }
        for record, hash_ in zip(journal.records, journal.hashes, strict=True)
    ]


def _inserted(data: bytes) -> str | dict[str, str]:
    """Return the bytes as a text, or, where they are none, as base64."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}
