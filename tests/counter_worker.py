"""One process of tests.counter_campaign: it increments the number under the lock, and may be killed or stopped at that.

It is a module of its own, without ZeroMQ, as thousands of it are started.
"""

import argparse
import os
import signal
import sys
from itertools import count
from pathlib import Path
from random import Random
from typing import Final, Protocol

from client.fencing import Fenced, FencedFile
from client.lock_errors import LockLost, Token

LOCK: Final = "the counter"
NOBODY: Final = "-"
"""What stands for the id of the increment before the first."""
POINTS: Final = 4
"""At so many points of a round a worker may be killed."""
FIRST_ROUNDS: Final = 10
"""A worker that is to be stopped is stopped in one of so many."""


class Resource(Protocol):
    """Where the number is."""

    def read(self, token: int) -> bytes:
        """Return the content."""

    def write(self, token: int, data: bytes) -> None:
        """Replace the content."""


class PlainFile:
    """A file whose content is replaced by a rename, whoever asks for it."""

    def __init__(self, path: Path) -> None:
        """Take the file at `path`, which may be missing."""
        self._path = path
        self._new = path.with_name(f"new-{os.getpid()}")

    def read(self, token: int) -> bytes:
        """Return the content."""
        return content_of(self._path)

    def write(self, token: int, data: bytes) -> None:
        """Replace the content."""
        self._new.write_bytes(data)
        self._new.replace(self._path)


class Fate:
    """What befalls a worker while it has the lock; it is stopped once at the most."""

    def __init__(self, chance: Random, *, survives: int, stop_within: int, with_parent: int = 0) -> None:
        """Draw in which of its first `stop_within` rounds it is stopped, together with the process `with_parent`.

        It survives `survives` rounds on average. Of both numbers 0 means that it does not happen.
        """
        self._chance = chance
        self._survives = survives
        self._with_parent = with_parent
        self._stop_in = chance.randrange(stop_within) if stop_within else -1

    def passes(self, point: str) -> None:
        """Go on behind a point in the round, or not."""
        if point == "read":
            if self._stop_in == 0:
                if self._with_parent:
                    os.kill(self._with_parent, signal.SIGSTOP)
                os.kill(os.getpid(), signal.SIGSTOP)
            self._stop_in -= 1
        if self._survives and self._chance.randrange(POINTS * self._survives) == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class Worker:
    """One who increments."""

    def __init__(self, place: Path, name: str, rounds: int, resource: Resource, fate: Fate) -> None:
        """Work in the directory `place` until the number is `rounds`."""
        self._resource = resource
        self._name = name
        self._rounds = rounds
        self._fate = fate
        self._tries = count()
        self._notes = os.open(place / f"notes-{name}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def increment(self, token: int) -> bool:
        """Add one under a token; return whether there is more to do. Raises Fenced."""
        self._fate.passes("acquired")
        number, last = parse(self._resource.read(token))
        if number >= self._rounds:
            return False
        this = f"{self._name}:{next(self._tries)}"
        self._note(f"try {this} {number + 1} {last}")
        self._fate.passes("read")
        try:
            self._resource.write(token, f"{number + 1} {this}\n".encode())
        except Fenced:
            self._note(f"refused {this}")
            raise
        self._fate.passes("written")
        self._note(f"done {this}")
        self._fate.passes("noted")
        return True

    def _note(self, line: str) -> None:
        os.write(self._notes, f"{line}\n".encode())


def work(worker: Worker) -> None:
    """Increment under the lock, with the API, as long as there is more to do."""
    from client import LockClient

    with LockClient() as client:
        lock, more = client.lock(LOCK, wait=None), True
        while more:
            try:
                with lock:
                    more = worker.increment(lock.token)
            except (LockLost, Fenced):
                pass  # what that round has done is in the notes


def content_of(path: Path) -> bytes:
    """Return a file's content; a file that is missing is empty."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def parse(content: bytes) -> tuple[int, str]:
    """Return the number and the last id."""
    if not content:
        return 0, NOBODY
    number, last = content.decode().split()
    return int(number), last


def parent_of(pid: int) -> int:
    """Return the process that has started another."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--survives", type=int, default=0)
    parser.add_argument("--stop", action="store_true")
    parser.add_argument("--fenced", action="store_true")
    parser.add_argument("--command", action="store_true", help="it runs under client lock, for one round")
    asked = parser.parse_args()
    resource: Resource = FencedFile("counter", wait=60) if asked.fenced else PlainFile(Path("counter"))
    rounds = 1 if asked.command else FIRST_ROUNDS
    wrapper = parent_of(os.getppid()) if asked.command else 0  # our parent is the guardian
    fate = Fate(
        Random(asked.seed), survives=asked.survives, stop_within=rounds if asked.stop else 0, with_parent=wrapper
    )
    worker = Worker(Path(), asked.name, asked.rounds, resource, fate)
    if not asked.command:
        work(worker)
        return
    try:
        worker.increment(Token.parse(os.environ["LOCKSTEP_TOKEN"]))
    except Fenced as refusal:
        sys.exit(str(refusal))


if __name__ == "__main__":
    _main()
