"""The directory of a run, and run.json in it: what was asked, and how it ended."""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from common.errors import EXIT_CRASHED, CommandError, refused, wrong_use
from scripts.launching.plan import Plan

VERSION: Final = 1


class RunRecord:
    """run.json, written at the start of a run and anew at its end."""

    def __init__(self, directory: Path, plan: Plan, started: datetime, more: Mapping[str, object]) -> None:
        """Use `begin` instead."""
        self.directory = directory
        self._plan, self._started, self._more = plan, started, more

    @classmethod
    def begin(cls, run_dir: str | None, plan: Plan, more: Mapping[str, object] | None = None) -> "RunRecord":
        """Make the run's directory, runs/<UTC time> unless told, and record what was asked, `more` included.

        Raises CommandError, for a directory that is not empty too: a run is never overwritten.
        """
        started = datetime.now(UTC)
        directory = _make_default(started) if run_dir is None else _make(run_dir)
        record = cls(directory, plan, started, more or {})
        try:
            # Exclusive: of two launches into one empty directory, one is refused.
            with open(directory / "run.json", "x", encoding="utf-8") as file:
                file.write(record._text(finished=False, left=(), stopped=False))
        except FileExistsError:
            raise _not_empty(directory) from None
        except OSError as error:
            raise _unusable(directory, error) from None
        return record

    def end(
        self, *, finished: bool, left: Sequence[str], stopped: bool, more: Mapping[str, object] | None = None
    ) -> None:
        """Record how the run ended; `more` stands in place of what was said at the start. Raises CommandError."""
        self._more = {**self._more, **(more or {})}
        path = self.directory / "run.json"
        new = self.directory / "run.json.new"
        try:
            new.write_text(self._text(finished=finished, left=left, stopped=stopped), encoding="utf-8")
            os.replace(new, path)
        except OSError as error:
            new.unlink(missing_ok=True)
            raise CommandError(
                EXIT_CRASHED,
                f"{path} cannot be written ({error.strerror}), so it does not say how the run ended; make room",
            ) from None

    def _text(self, *, finished: bool, left: Sequence[str], stopped: bool) -> str:
        plan = self._plan
        return (
            json.dumps(
                {
                    "version": VERSION,
                    "clients": plan.clients,
                    "ops": plan.ops,
                    "files": list(plan.files),
                    "seed": plan.seed,
                    "delay": plan.delay,
                    "durability": plan.durability,
                    "lines": plan.lines,
                    **self._more,
                    "started": f"{self._started:%Y-%m-%dT%H:%M:%SZ}",
                    "finished": finished,
                    "left": list(left),
                    "stopped": stopped,
                },
                indent=2,
            )
            + "\n"
        )


def _make_default(started: datetime) -> Path:
    stem = f"{started:%Y-%m-%dT%H-%M-%SZ}"
    number = 1
    while True:
        directory = Path("runs", stem if number == 1 else f"{stem}-{number}")
        try:
            directory.parent.mkdir(exist_ok=True)
            directory.mkdir()
        except FileExistsError:
            if not directory.is_dir():
                raise refused(f"{directory.parent} is not a directory; choose a --run-dir") from None
            number += 1  # somebody else began a run in this second
        except OSError as error:
            raise _unusable(directory, error) from None
        else:
            return directory


def _make(run_dir: str) -> Path:
    if not run_dir:
        raise wrong_use("--run-dir '': a directory's name cannot be empty; leave it out for runs/<UTC time>")
    directory = Path(run_dir)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with os.scandir(directory) as entries:
            taken = next(entries, None) is not None
    except OSError as error:
        raise _unusable(directory, error) from None
    if taken:
        raise _not_empty(directory)
    return directory


def _not_empty(directory: Path) -> CommandError:
    return refused(f"--run-dir {directory}: it is not empty, and a run is never overwritten; choose another one")


def _unusable(directory: Path, error: OSError) -> CommandError:
    return refused(f"{directory} cannot be used ({error.strerror}); choose another --run-dir")
