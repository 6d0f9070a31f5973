"""outcomes.jsonl of a run: what each client was told of each op, one JSON object per line.

An op whose client was gone before it told its end is unknown, without an id, and `ended_us` is null. What the run
itself does at its end, beside what it was asked for, is marked by `beside`.
"""

import json
from pathlib import Path
from typing import Final

from scripts.launching.reports import OpBegan, OpEnded

FILE: Final = "outcomes.jsonl"


class Outcomes:
    """Writes the file, a line as soon as an op has ended; `ok`, `failed` and `unknown` are counted."""

    def __init__(self, directory: Path) -> None:
        """Begin the file in a run's directory."""
        self._file = open(directory / FILE, "w", encoding="utf-8")  # noqa: SIM115  (`close` closes it)
        self.counts = {"ok": 0, "failed": 0, "unknown": 0}

    def ended(self, client: str, op: OpEnded, *, beside: bool = False) -> None:
        """Keep what a client was told."""
        told: dict[str, object] = {"client": client, "id": op.id, "verb": op.verb, "file": op.file}
        told["outcome"] = op.outcome
        if op.outcome == "ok":
            told |= {"seq": op.seq, "hash": op.hash}
        told |= {"began_us": op.began_us, "ended_us": op.ended_us}
        if beside:
            told["beside"] = True
        self._write(op.outcome, told)

    def cut_off(self, client: str, op: OpBegan) -> None:
        """Keep that nobody was told how this op ended."""
        told: dict[str, object] = {"client": client, "id": "", "verb": op.verb, "file": op.file, "outcome": "unknown"}
        self._write("unknown", told | {"began_us": op.began_us, "ended_us": None})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, outcome: str, told: dict[str, object]) -> None:
        self.counts[outcome] += 1
        self._file.write(json.dumps(told, ensure_ascii=False) + "\n")
        self._file.flush()
