"""Stories of a small group, told message by message; tests/scenarios/*.txt are to be read.

A line that begins with `>` is what happens, the lines below it are what follows. `python -m
tests.test_scenarios` writes the files anew from their `>` lines; read the difference before you keep it.

    > start NAME                  the client starts, or comes back with what it had on disk
    > NAME VERB FILE [TEXT|SEQ]   it does an op
    > leave NAME                  it ends in good order
    > hold NAME NAME              what the first sends to the second stays under way
    > let NAME NAME               and now it arrives
    > wait SECONDS                time passes
    > show                        what everybody has
"""

from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any, get_args

import pytest
from msgspec import Struct

from client.effects import Finished, LockdConnected, Log, OpVerb, Persist, Submit
from common.clock import format_clock
from common.eventlog import parse_pairs
from common.messages import FromLockd, FromReplica, Member, ToLockd, ToReplica
from common.records import Record, Version
from common.tokens import format_token
from common.wire import decode
from lockd import effects as lockd_effects
from tests.doubles import MemoryJournal
from tests.sim.network import LOCKD, Arrive, Connection
from tests.sim.processes import ClientProcess, Directory, LockdProcess, World
from tests.sim.schedule import START_NS, Schedule

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))
LEFT_OUT = (
    *("epoch", "session", "request", "group", "incarnation", "endpoint", "durability"),
    *("kind", "wait_ms", "ttl_ms", "time_us", "confirm", "epoch_id", "count", "reads", "hosts", "changes"),
)
"""Fields that a story is easier to follow without."""


class Story:
    """A group without delays: what is sent arrives in the order of sending, but for what is held back."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._schedule = Schedule()
        self._random = Random(0)
        self._world = World(self._schedule, self, self)
        self._lockd = LockdProcess(self._world, 3_000_000_000)
        self._directories: dict[str, Directory] = {}
        self._processes: dict[str, ClientProcess] = {}
        self._names = {LOCKD: "lockd"}
        self._replicas: dict[str, str] = {}
        self._held: set[tuple[str, str]] = set()
        self._under_way: list[tuple[Connection, bytes, Arrive]] = []
        self._ops = 0

    def do(self, command: str) -> None:
        """Do what a `>` line says, and all that follows from it."""
        match command.split(" ", 3):
            case ["start", name]:
                self._start(name)
            case ["leave", name]:
                self._processes.pop(name).leave()
            case ["hold", sender, receiver]:
                self._held.add((sender, receiver))
            case ["let", sender, receiver]:
                self._held.remove((sender, receiver))
            case ["wait", seconds]:
                self._wait(int(float(seconds) * 1e9))
            case ["show"]:
                self._show()
            case [name, verb, file, *rest]:
                self._submit(name, verb, file, *rest)
            case _:
                raise ValueError(f"what is {command!r}?")
        self._deliver()

    # What happens

    def _start(self, name: str) -> None:
        directory = self._directories.setdefault(name, Directory(name, MemoryJournal(self._random.randbytes)))
        process = ClientProcess(self._world, self._lockd, directory, self._random, 0, lambda: None)
        self._processes[name] = process
        self._names[process.route] = self._replicas[directory.replica] = name

    def _submit(self, name: str, verb: str, file: str, rest: str = "") -> None:
        self._ops += 1
        (known,) = [each for each in get_args(OpVerb) if each == verb]
        text, of = ("", int(rest)) if verb == "restore" else (rest, 0)
        self._processes[name].submit(Submit(self._ops, known, file, text, of, 10_000_000_000))

    def _wait(self, duration_ns: int) -> None:
        end_ns = self._schedule.now_ns + duration_ns
        self._schedule.at(end_ns, lambda: None)
        while self._schedule.now_ns < end_ns:
            self._schedule.step()
            self._deliver()

    def _show(self) -> None:
        for name, directory in self._directories.items():
            for file, state in sorted(directory.journal.states().items()):
                content = directory.journal.read(file).decode()
                self._tell(f"{name} has {file}{self._short(state.head.version)} {content!r}")
        for lock in self._lockd.core.locks.values():
            assert lock.file is not None
            self._tell(f"lockd: {lock.name} is in sync at {self._short(lock.file.in_sync)}")

    def _deliver(self) -> None:
        while (index := self._next()) is not None:
            connection, frame, arrive = self._under_way.pop(index)
            self._schedule.now_ns += 1_000_000
            kind, sender, receiver = connection
            union: Any = {
                ("lockd", True): FromLockd,
                ("lockd", False): ToLockd,
                ("replica", False): ToReplica,
                ("answer", False): FromReplica,
            }[kind, sender == LOCKD]
            message: Any = decode(frame, union)
            if type(message).__name__ not in ("Ping", "Pong"):
                gone = "" if receiver == LOCKD or receiver in self._world.clients else " (gone)"
                what = f"{type(message).__name__} {self._fields(message)}".rstrip()
                self._tell(f"{self._names[sender]} -> {self._names[receiver]}{gone}  {what}")
            arrive(connection, frame)

    def _next(self) -> int | None:
        for index, ((_, sender, receiver), _, _) in enumerate(self._under_way):
            if (self._names[sender], self._names[receiver]) not in self._held:
                return index
        return None

    def _tell(self, line: str) -> None:
        self.lines.append(line)

    # What the world tells

    def started(self, client: ClientProcess) -> None:
        self._names[client.route] = client.name
        client.feed(LockdConnected())

    def met(self, client: ClientProcess, file: str, token: int) -> None:
        """Say nothing: what it does about it is told."""

    def died(self, client: ClientProcess | None) -> None:
        raise AssertionError("nothing dies in a story")

    def joined(self, client: ClientProcess) -> None:
        pass

    def reconnects(self, client: ClientProcess) -> None:
        raise AssertionError(f"{client.name} gives a connection up that works")

    def refused(self, client: ClientProcess, reason: str) -> None:
        raise AssertionError(reason)

    def send(self, connection: Connection, frame: bytes, arrive: Arrive) -> None:
        self._under_way.append((connection, frame, arrive))

    def lockd_stepped(self, lockd: LockdProcess, effects: list[lockd_effects.Effect]) -> None:
        for effect in effects:
            match effect:
                case lockd_effects.LogGrant(line):
                    token = format_token(line.token)
                    self._tell(f"  lockd logs {line.event} {line.lock} {line.mode} {token} {line.client}")
                case lockd_effects.Persist(changes):
                    for change in changes:
                        if isinstance(change, lockd_effects.InSyncChanged):
                            self._tell(f"  lockd keeps {change.file} in sync at {self._short(change.replicas)}")

    def logged(self, client: ClientProcess, effect: Log) -> None:
        values = parse_pairs(effect.facts)
        what = f"{effect.verb} {values['file']}@{values['seq']} of {values['id']}"
        self._tell(f"  {client.name} logs {format_clock(effect.clock)} {what}")

    def persisted(self, client: ClientProcess, effect: Persist) -> None:
        seq = effect.keep + len(effect.records)
        tokens = f"promised {format_token(effect.promised)}, follows {format_token(effect.follows)}"
        self._tell(f"  {client.name} keeps {effect.file}@{seq}, {tokens}")

    def begins(self, client: ClientProcess, op: int) -> bool:
        return True

    def finished(self, client: ClientProcess, effect: Finished) -> None:
        reason = f": {effect.reason}" if effect.reason else ""
        self._tell(f"  {client.name} ends {effect.id} {effect.outcome} at {self._short(effect.version)}{reason}")

    def _short(self, value: object, name: str = "") -> str:
        match value:
            case Version():
                return f"@{value.seq}"
            case Record():
                return f"{value.verb}@{value.seq} {value.inserted.decode()!r}"
            case Member():
                return value.host
            case int() if name in ("token", "promised", "follows", "highest_token"):
                return format_token(value)
            case str():
                return self._replicas.get(value, value)
            case bytes():
                return "#"
            case tuple():
                return f"({', '.join([self._short(each) for each in value])})"
            case Mapping():
                return f"{{{', '.join([f'{key}: {self._short(each)}' for key, each in value.items()])}}}"
            case Struct():
                return f"({self._fields(value)})"
        return str(value)

    def _fields(self, value: Any) -> str:
        pairs = [(name, getattr(value, name)) for name in value.__struct_fields__]
        return " ".join(
            [
                f"{key}={self._short(each, key)}"
                for key, each in pairs
                if key not in LEFT_OUT and each not in ("", 0, (), {}, False)
            ]
        )


def tell(text: str) -> str:
    """Return a story told anew from its `>` lines; comments and empty lines stay."""
    story, told = Story(), []
    for line in text.splitlines():
        if line.startswith(">"):
            story.lines = []
            story.do(line.removeprefix("> "))
            told += [line, *story.lines]
        elif line.startswith("#") or not line:
            told.append(line)
    return "\n".join(told) + "\n"


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_the_story_goes_on_as_it_was_told(path: Path) -> None:
    text = path.read_text("utf-8")
    assert tell(text) == text


def test_a_story_begins_at_one_moment_and_takes_its_time() -> None:
    story = Story()
    story.do("start anna")
    assert story._schedule.now_ns == START_NS + 2_000_000
    with pytest.raises(ValueError, match="what is"):
        story.do("anna")


if __name__ == "__main__":
    for each in SCENARIOS:
        each.write_text(tell(each.read_text("utf-8")), "utf-8")
