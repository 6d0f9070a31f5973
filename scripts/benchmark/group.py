"""A group to measure: lockd, clients as processes, and a working client in this process."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from client.effects import OpVerb
from client.node import Durability, Node, Result
from scripts.benchmark.processes import PATIENCE_S, Child, NotMeasured, Stage
from scripts.benchmark.samples import FILE, TEXT

_WAIT_NS = 10_000_000_000


class Group:
    """lockd on a free port of the loopback, and whoever joins it."""

    def __init__(self, place: Stage, ttl: str = "60s", binds: Sequence[str] = ()) -> None:
        """Start lockd; its leases outlast every pause of the benchmark, where no other `ttl` is wanted.

        It listens on the `endpoint`, a free port of the loopback, and on what else `binds` has.
        """
        self._place = place
        self._ttl = ttl
        self._binds = binds
        self._start("tcp://127.0.0.1:*")

    def _start(self, bind: str) -> None:
        binds = [option for each in (bind, *self._binds) for option in ("--bind", each)]
        self.lockd = self._place.lockd(*binds, "--ttl", self._ttl, "--data", str(self.data("lockd")))
        self.endpoint = self.lockd.line("ready").split()[1]

    def restart(self) -> None:
        """Kill lockd, and start it again at once."""
        self.lockd.process.kill()
        self.lockd.process.wait()
        self._start(self.endpoint)

    def data(self, name: str) -> Path:
        """Return a client's data directory."""
        return self._place.directory / name

    def serve(self, count: int, durability: Durability) -> list[Child]:
        """Start `count` replicas and wait until they are ready."""
        served = [self.client(f"replica-{number}", durability, "serve") for number in range(count)]
        for child in served:
            child.line("ready")
        return served

    def run(self, count: int, ops: int, durability: Durability, files: Sequence[str] = (FILE,)) -> list[Child]:
        """Start `count` working clients, each `client run --delay 0..0` of 50-byte texts; wait until all are done."""
        lines = self._place.directory / "lines"
        lines.write_text(TEXT + "\n")
        options = ["--ops", str(ops), "--delay", "0..0", "--group", str(count), "--stay", "--lines", str(lines)]
        for file in files:
            options += ["--file", file]
        started = [self.client(f"client-{number}", durability, "run", *options) for number in range(count)]
        for child in started:
            child.line("done")
        return started

    def client(self, name: str, durability: Durability, command: str, *options: str) -> Child:
        """Start a client command on its own data directory."""
        return self._place.python(
            name,
            *("client", command, "--lockd", self.endpoint, "--data", str(self.data(name))),
            *("--durability", durability, *options),
        )


class Worker:
    """A working client in this process, so that an op is timed where it is asked for. A context."""

    def __init__(self, group: Group, durability: Durability, replicas: int) -> None:
        """Join, and wait until the group has `replicas` live replicas, this one included."""
        directory = group.data("worker")
        directory.mkdir()
        self._node = Node(directory, None, group.endpoint, durability)
        self._node.join(_WAIT_NS, lambda: False)
        deadline = time.monotonic() + PATIENCE_S
        while self._node.replicas_most < replicas:
            if time.monotonic() > deadline:
                raise NotMeasured(f"the group has {self._node.replicas_most} replicas, not {replicas}")
            self._node.step(self._node.now_ns() + 10_000_000)

    def write(self, file: str = FILE, text: str = TEXT) -> None:
        """Append a text."""
        self._do("write", file, text)

    def read(self, file: str = FILE) -> None:
        """Read a file, and keep the end of what it holds."""
        self._do("read", file, "")

    def begin(self) -> list[Result]:
        """Begin to append a text, and return where its result will be; `serve` lets it go on."""
        ended: list[Result] = []
        self._node.submit("write", FILE, ended.append, text=TEXT, wait_ns=_WAIT_NS)
        return ended

    def serve(self, duration_s: float) -> None:
        """Do what there is to do, for so long."""
        end_ns = self._node.now_ns() + int(duration_s * 1e9)
        while self._node.now_ns() < end_ns:
            self._node.step(end_ns)

    def _do(self, verb: OpVerb, file: str, text: str) -> None:
        ended: list[Result] = []
        self._node.submit(verb, file, ended.append, text=text, wait_ns=_WAIT_NS, tail_bytes=256)
        while not ended:
            self._node.step()
        finished = ended[0].finished
        if finished.outcome != "ok":
            raise NotMeasured(f"a {verb} ended {finished.outcome}: {finished.reason}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._node.leave()
        self._node.close()


def tell(child: Child, *values: int) -> None:
    """Write a line of numbers to a child's stdin."""
    assert child.process.stdin is not None
    child.process.stdin.write(" ".join(map(str, values)).encode() + b"\n")
    child.process.stdin.flush()


def last_json(text: str) -> list[float]:
    """Return the list on the last line of a child's output. Raises NotMeasured."""
    try:
        values: list[float] = json.loads(text.splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise NotMeasured(f"a child's output cannot be read ({error})") from None
    return values
