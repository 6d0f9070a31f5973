"""Processes increment one number under one lock, are killed, and are stopped past their lease: is anything lost?

`python -m tests.counter_campaign --processes 32 --rounds 10000 --kill` and the like run it for longer than the suite.

Each increment has an id. The file holds the number and the id of the increment that made it. Before a worker writes, it
notes in a file of its own, which a kill leaves as it is, the id, the number to be, and the id that the file held; when
the write has returned, that it is done; or that the fence refused it. So the increments form a chain, which is walked
from the file's last id back to the first: the number is right if the chain has that many links, counting down by one
each. Every increment noted as done must be in it, and none that was refused. One whose worker was killed in the middle
may be in it or not; what it may not is make a difference twice.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from common.errors import EXIT_UNKNOWN
from tests.counter_worker import LOCK, NOBODY, content_of, parse
from tests.group import Child, Group, until


@dataclass(frozen=True)
class Plan:
    """What is to be done: `kill` and `stop` the workers, `fenced` or not; times are texts, as lockd's options.

    With `command` each round is a COMMAND under `client lock`, and what is stopped is one in `survives` of them, with
    its wrapper; else a worker goes on with the API, and is stopped once. Where workers are killed, they survive
    `survives` rounds on average, and others are killed while they wait.
    """

    processes: int = 32
    rounds: int = 10_000
    kill: bool = False
    stop: bool = False
    fenced: bool = False
    survives: int = 200
    seed: int = 1
    ttl: str = "3s"
    lock_delay: str = "2s"
    command: bool = False
    kill_grace: str = "1s"


@dataclass(frozen=True)
class Outcome:
    """The number at the end, and how many tries were done, refused, or cut short; what is wrong.

    `losses` is how many commands were ended since the lock was lost.
    """

    number: int
    done: int
    refused: int
    undecided: int
    deaths: int
    stops: int
    losses: int
    problems: tuple[str, ...]


# The judge


@dataclass(frozen=True)
class Notes:
    """What the workers noted: of each id the number and the id before; and which were done, or refused."""

    tries: dict[str, tuple[int, str]]
    done: set[str]
    refused: set[str]


def notes_of(place: Path) -> Notes:
    """Read all notes; a line that is cut short is the last one of a worker that was killed, and says nothing."""
    notes = Notes({}, set(), set())
    for file in sorted(place.glob("notes-*")):
        for line in file.read_text().splitlines(keepends=True):
            match line.split() if line.endswith("\n") else []:
                case ["try", this, number, last]:
                    notes.tries[this] = int(number), last
                case ["done", this]:
                    notes.done.add(this)
                case ["refused", this]:
                    notes.refused.add(this)
    return notes


def judge(number: int, last: str, notes: Notes) -> Iterator[str]:
    """Tell what is wrong with a number whose last increment had the id `last`."""
    chain = set[str]()
    while last != NOBODY:
        tried = notes.tries.get(last)
        if tried is None:
            yield f"nobody has tried {last}"
            return
        if tried[0] != number:
            yield f"{last} made the number {tried[0]}, and it counts as {number}"
            return
        chain.add(last)
        number, last = number - 1, tried[1]
    if number:
        yield f"the first increment made the number {number + 1}"
    yield from (f"{this} was done and is lost" for this in sorted(notes.done - chain))
    yield from (f"{this} was refused and counts" for this in sorted(notes.refused & chain))


# The campaign


def campaign(place: Path, plan: Plan) -> Outcome:
    """Run it with a lockd of its own in the directory `place`, which must be there."""
    with Group(place) as group:
        group.lockd("--ttl", plan.ttl, "--lock-delay", plan.lock_delay)
        run = Run(group, plan)
        run.to_the_end()
    number, last = parse(content_of(place / "counter"))
    notes = notes_of(place)
    problems = [*judge(number, last, notes)]
    if number != plan.rounds:
        problems.append(f"the number is {number}, not {plan.rounds}")
    undecided = len(notes.tries) - len(notes.done | notes.refused)
    return Outcome(
        number, len(notes.done), len(notes.refused), undecided, run.deaths, run.stops, run.losses, tuple(problems)
    )


class Run:
    """The workers of a campaign, each of them replaced when it is killed and woken up when another had the lock."""

    def __init__(self, group: Group, plan: Plan) -> None:
        """Start the workers."""
        self._group = group
        self._plan = plan
        self._chance = Random(plan.seed)
        self._counter = group.path("counter")
        self._stopped: dict[Child, bytes] = {}
        self._started = 0
        self._next_kill = self._draw_kill(0)
        self.deaths = 0
        self.stops = 0
        self.losses = 0
        self._workers = [self._start() for _ in range(plan.processes)]

    def to_the_end(self) -> None:
        """Go on until each worker has seen the number it works for."""
        while self._workers:
            until(partial(self._turn, content_of(self._counter)), "the number changes")

    def _turn(self, before: bytes) -> bool:
        """Kill, wake up and replace those whose time has come; return whether one has ended, or the number changed."""
        content = content_of(self._counter)
        ended = [worker for worker in self._workers if not worker.running]
        for worker in ended:
            self._take_away(worker)
        if self._workers and self._plan.kill and parse(content)[0] >= self._next_kill:
            self._chance.choice(self._workers).send(signal.SIGKILL)
            self._next_kill = self._draw_kill(parse(content)[0])
        for worker in self._workers:
            if worker not in self._stopped and is_stopped(worker):
                self._stopped[worker] = content
                self.stops += 1
        all_stopped = len(self._stopped) == len(self._workers)
        for worker, seen in list(self._stopped.items()):
            if content != seen or all_stopped:
                del self._stopped[worker]
                worker.send(signal.SIGCONT)
        return bool(ended) or content != before

    def _take_away(self, worker: Child) -> None:
        self._workers.remove(worker)
        self._stopped.pop(worker, None)
        done = worker.end()
        killed = (-signal.SIGKILL, *([128 + signal.SIGKILL] * self._plan.command))
        if done.code in killed:
            self.deaths += 1
        elif done.code == EXIT_UNKNOWN and self._plan.command:
            assert "COMMAND was ended" in done.err, done.err
            self.losses += 1
        else:
            assert done.code == 0, (done.code, done.err)
        if done.code != 0 or parse(content_of(self._counter))[0] < self._plan.rounds:
            self._workers.append(self._start())

    def _draw_kill(self, number: int) -> int:
        return number + self._chance.randint(1, max(30, self._plan.rounds // 50))

    def _start(self) -> Child:
        self._started += 1
        plan, number = self._plan, self._started
        worker = [f"w{number}", "--rounds", str(plan.rounds), "--seed", str(plan.seed * 1_000_000 + number)]
        if plan.kill:
            worker += ["--survives", str(plan.survives)]
        if plan.fenced:
            worker.append("--fenced")
        if plan.stop and (not plan.command or number % plan.survives == plan.survives // 2):
            worker.append("--stop")
        if not plan.command:
            return self._group.start("tests.counter_worker", *worker)
        python = [sys.executable, "-P", "-m", "tests.counter_worker", "--command"]
        wrapper = ["lock", LOCK, "--wait", "10m", "--kill-grace", plan.kill_grace, "--", *python, *worker]
        return self._group.start("client", *wrapper)


def is_stopped(child: Child) -> bool:
    """Tell whether a process is stopped by a signal."""
    return Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@contextmanager
def _place(asked: Path | None) -> Iterator[Path]:
    if asked is not None:
        asked.mkdir(parents=True)
        yield asked
        return
    with tempfile.TemporaryDirectory(prefix="counter-") as place:
        yield Path(place)


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.counter_campaign")
    parser.add_argument("--processes", type=int, default=Plan.processes)
    parser.add_argument("--rounds", type=int, default=Plan.rounds)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--ttl", default=Plan.ttl)
    parser.add_argument("--lock-delay", default=Plan.lock_delay)
    parser.add_argument("--kill", action="store_true", help="kill workers, and start others")
    parser.add_argument("--survives", type=int, default=Plan.survives, help="how many rounds, on average, with --kill")
    parser.add_argument(
        "--stop", action="store_true", help="stop workers past their lease; implies --fenced without --command"
    )
    parser.add_argument("--fenced", action="store_true", help="the number is in a FencedFile")
    parser.add_argument("--unfenced", action="store_true", help="with --stop, the number is in a plain file after all")
    parser.add_argument("--place", type=Path, help="keep everything in this new directory")
    parser.add_argument("--command", action="store_true", help="each round is a command under client lock")
    parser.add_argument("--kill-grace", default=Plan.kill_grace, help="that of client lock")
    asked = parser.parse_args()
    fenced = (asked.fenced or (asked.stop and not asked.command)) and not asked.unfenced
    plan = Plan(
        processes=asked.processes,
        rounds=asked.rounds,
        kill=asked.kill,
        stop=asked.stop,
        fenced=fenced,
        survives=asked.survives,
        seed=asked.seed,
        ttl=asked.ttl,
        lock_delay=asked.lock_delay,
        command=asked.command,
        kill_grace=asked.kill_grace,
    )
    with _place(asked.place) as place:
        outcome = campaign(place, plan)
    print(
        f"the number is {outcome.number}: {outcome.done} increments done, {outcome.refused} refused by the fence,"
        f" {outcome.undecided} cut short; {outcome.deaths} processes killed, {outcome.stops} stopped,"
        f" {outcome.losses} commands ended;"
        f" {len(outcome.problems)} problems"
    )
    for problem in outcome.problems[:20]:
        print(f"  {problem}")
    sys.exit(1 if outcome.problems else 0)


if __name__ == "__main__":
    _main()
