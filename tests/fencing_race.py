"""Processes race for a fenced file or table under tokens old and new, and are killed where it hurts.

`python -m tests.fencing_race file --deaths 500` runs it for longer than the suite does.

Each process appends lines to the resource, one per accepted token, and notes a line in a file of its own after the
call has returned. The tokens are readings of a clock that all share, put back by chance, so that many come too late.
What must hold, whoever was killed where: the tokens in the resource only rise; nothing that was noted is
missing; what was not noted is at most the last line of one who was killed; and what anybody has read stays.
"""

import argparse
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path
from random import Random
from typing import Any, Final, Literal, cast, get_args

from client.disk import Disk
from client.fencing import Fenced, FencedContent, FencedFile, fence
from tests.group import until

Kind = Literal["file", "sqlite"]
CALLS_PER_DEATH: Final = 400
"""How many calls of the operating system a writer of the file survives on average; an update has some 40."""
STEPS_PER_DEATH: Final = 30
"""The same for SQLite, in hundreds of its instructions."""
LOOKS_MAX: Final = 1000


@dataclass(frozen=True)
class Outcome:
    """What a race leaves: the lines in the resource, those that their writers noted, and how many were killed."""

    lines: list[str]
    noted: list[str]
    refusals: int
    deaths: int

    def problems(self) -> list[str]:
        """Tell what must not be."""
        problems = [
            f"{later!r} was accepted after {line!r}"
            for line, later in pairwise(self.lines)
            if int(later.split()[0]) < int(line.split()[0])
        ]
        held, noted = set(self.lines), set(self.noted)
        problems += [f"{len(self.lines) - len(held)} lines were accepted twice"] * (len(self.lines) > len(held))
        problems += [f"{line!r} was noted and is lost" for line in sorted(noted - held)]
        if len(held - noted) > self.deaths:
            problems.append(f"{len(held - noted)} lines were not noted, but only {self.deaths} processes killed")
        return problems


def race(place: Path, kind: Kind, processes: int, deaths: int, seed: int) -> Outcome:
    """Have processes race in the directory `place` until `deaths` were killed; then kill those that are left."""
    chance = Random(seed)
    running: list[subprocess.Popen[bytes]] = []
    started = 0
    lines: list[str] = []
    try:
        while started - len(running) < deaths:
            while len(running) < processes:
                command = ["-P", "-m", "tests.fencing_race", kind, "--worker", str(place), "--seed", f"{seed}{started}"]
                running.append(subprocess.Popen([sys.executable, *command]))
                started += 1
            _await_change(place, kind, running, len(lines) + chance.randint(1, 30))
            lines = _grown(lines, _lines(place, kind))
            chance.choice(running).kill()
            running = [each for each in running if not _is_dead(each)]
    finally:
        for each in running:
            each.kill()
            each.wait()
    lines = _grown(lines, _lines(place, kind))
    texts = [file.read_text() for file in sorted(place.glob("noted-*"))]
    notes = [line for text in texts for line in text.splitlines(keepends=True) if line.endswith("\n")]
    noted = [line.strip() for line in notes if line != "refused\n"]
    return Outcome(lines, noted, len(notes) - len(noted), started)


def _await_change(place: Path, kind: Kind, running: list[subprocess.Popen[bytes]], goal: int) -> None:
    until(lambda: len(_lines(place, kind)) >= goal or any(each.poll() for each in running), "a line or a death")


def _is_dead(process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() in (None, -signal.SIGKILL), "it ended of itself"
    return process.returncode is not None


def _grown(before: list[str], now: list[str]) -> list[str]:
    assert now[: len(before)] == before, "what was there has gone"
    return now


def _lines(place: Path, kind: Kind) -> list[str]:
    """Read the resource as any onlooker would."""
    if kind == "file":
        text = _bytes(place / "ledger").decode()
        assert text == "" or text.endswith("\n")
        return text.splitlines()
    with closing(_connect(place)) as connection:
        return [line for (line,) in connection.execute("SELECT line FROM ledger ORDER BY number")]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


class Mortal:
    """The system's disk, a client.disk.Disk; whoever uses it is killed before a call, or in the middle of a write."""

    def __init__(self, chance: Random) -> None:
        """Draw when."""
        self._chance = chance

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return the call of that name."""
        call = getattr(os, name)

        def survive(*arguments: Any, **options: Any) -> Any:
            if self._chance.randrange(CALLS_PER_DEATH) == 0:
                if name == "pwrite":
                    descriptor, data, at = arguments
                    os.pwrite(descriptor, data[: self._chance.randint(0, len(data))], at)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return survive


def _work(place: Path, kind: Kind, seed: int) -> None:
    """Append lines until killed."""
    chance, append = Random(seed), {"file": _to_file, "sqlite": _to_sqlite}[kind]
    notes = os.open(place / f"noted-{seed}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for line in append(place, chance):
        os.write(notes, f"{line}\n".encode())


def _token(chance: Random) -> int:
    """Return a token that no other process ever has; this one may have it again."""
    put_back_us = int(10 ** chance.uniform(2, 6))
    return time.monotonic_ns() // 1000 - put_back_us << 22 | os.getpid()


def _to_file(place: Path, chance: Random) -> Iterator[str]:
    fenced = FencedFile(place / "ledger", wait=60)  # a disk in use by others may take its time
    fenced._content = FencedContent(fenced.path, cast(Disk, Mortal(chance)))

    def append(content: bytes) -> bytes:
        looks = chance.choice((0, 0, LOOKS_MAX))
        while looks and _bytes(fenced.path) == content:  # let another in between read and write
            looks -= 1
            os.sched_yield()
        return content + f"{line}\n".encode()

    for number in count():
        token = _token(chance)
        line = f"{token} {number}"
        try:
            fenced.update(token, append)
        except Fenced:
            line = "refused"
        yield line


def _connect(place: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(place / "ledger.sqlite", timeout=20, isolation_level=None)
    connection.execute("CREATE TABLE IF NOT EXISTS ledger (number INTEGER PRIMARY KEY AUTOINCREMENT, line TEXT)")
    return connection


def _to_sqlite(place: Path, chance: Random) -> Iterator[str]:
    connection = _connect(place)

    def survive() -> None:
        if chance.randrange(STEPS_PER_DEATH) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    connection.set_progress_handler(survive, 100)
    for number in count():
        token = _token(chance)
        line = f"{token} {number}"
        connection.execute("BEGIN IMMEDIATE")
        try:
            fence(connection, "ledger", token)
            connection.execute("INSERT INTO ledger (line) VALUES (?)", (line,))
            connection.execute("COMMIT")
        except Fenced:
            connection.execute("ROLLBACK")
            line = "refused"
        yield line


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fencing_race")
    parser.add_argument("kind", choices=get_args(Kind))
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--deaths", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker is not None:
        _work(asked.worker, asked.kind, asked.seed)
    with tempfile.TemporaryDirectory() as place:
        outcome = race(Path(place), asked.kind, asked.processes, asked.deaths, asked.seed)
    problems = outcome.problems()
    print(
        f"{len(outcome.lines)} accepted, {outcome.refusals} refused, {outcome.deaths} killed, {len(problems)} problems"
    )
    if problems:
        raise SystemExit("\n".join(problems[:20]))


if __name__ == "__main__":
    _main()
