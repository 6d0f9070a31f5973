"""A group of real processes in one directory: every wait has a deadline, every process is ended by its pid."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypeVar

import zmq

from client.control import Order, Report, ask
from client.directory import connect
from common.messages import FromLockd, Hello, Welcome
from common.sockets import caller
from common.wire import decode, encode

WITHIN_S: Final = 25.0
"""How long anything may take: far more than it needs, for a machine that does other things as well."""

Value = TypeVar("Value")


def until(find: Callable[[], Value], what: str) -> Value:
    """Return the first true value that `find` returns; fail at the deadline."""
    deadline = time.monotonic() + WITHIN_S
    while not (found := find()):
        assert time.monotonic() < deadline, f"not within {WITHIN_S:g} s: {what}"
        time.sleep(0.005)
    return found


@dataclass(frozen=True)
class Done:
    """A process that has ended."""

    code: int
    out: bytes
    err: str


class Child:
    """A process; what it writes goes to two files, which can be read at any time."""

    def __init__(
        self, command: list[str], directory: Path, environment: dict[str, str], place: Path, stdout: int | None
    ) -> None:
        """Start it in `directory`; `place` is the path of its outputs, without their suffixes."""
        self._out, self._err = place.with_suffix(".out"), place.with_suffix(".err")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                command,
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out if stdout is None else stdout,
                stderr=err,
            )
        self.pid = self._process.pid
        self.what = " ".join(command[4:])

    @property
    def out(self) -> bytes:
        """What it has written to stdout."""
        return self._out.read_bytes()

    @property
    def err(self) -> str:
        """What it has written to stderr."""
        return self._err.read_text("utf-8")

    @property
    def running(self) -> bool:
        """Tell whether it has not ended."""
        return self._process.poll() is None

    def says(self, text: str) -> bytes:
        """Wait until its stdout holds `text`; return all of it."""
        wanted = text.encode()
        until(lambda: wanted in self.out or not self.running, f"{self.what} says {text!r}, not {self.out!r}")
        assert wanted in self.out, f"{self.what} ended {self._process.returncode}: {self.err}"
        return self.out

    def ready(self) -> str:
        """Wait until it is ready; return its first line."""
        self.says("\n")
        line = self.out.decode().partition("\n")[0]
        assert line.startswith("ready "), line
        return line

    def end(self) -> Done:
        """Wait for its end."""
        try:
            code = self._process.wait(WITHIN_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.what} does not end; it said {self.out!r} {self.err!r}") from None
        return Done(code, self.out, self.err)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> Done:
        """Send it a signal and wait for its end."""
        self.send(number)
        return self.end()


class Group:
    """The processes of one test, and the directory they run in."""

    def __init__(self, directory: Path) -> None:
        """Begin without a process; `directory` must exist."""
        self.directory = directory
        self.endpoint = ""
        self._children: list[Child] = []
        self._outputs = directory / "outputs"
        self._outputs.mkdir()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill whatever is still there."""
        for child in self._children:
            if child.running:
                child.send(signal.SIGKILL)
        for child in self._children:
            child.end()

    def start(
        self, program: str, *arguments: str, environment: dict[str, str] | None = None, stdout: int | None = None
    ) -> Child:
        """Start `lockd` or `client`; clients find this group's lockd in their environment."""
        surroundings = {name: value for name, value in os.environ.items() if not name.startswith("LOCKSTEP_")}
        if self.endpoint:
            surroundings["LOCKSTEP_LOCKD"] = self.endpoint
        surroundings |= environment or {}
        command = [sys.executable, "-P", "-m", program, *arguments]
        child = Child(command, self.directory, surroundings, self._outputs / str(len(self._children)), stdout)
        self._children.append(child)
        return child

    def lockd(self, *options: str) -> Child:
        """Start lockd on a free port, or on `--bind`, and wait until it is ready."""
        bind = () if "--bind" in options else ("--bind", "tcp://127.0.0.1:*")
        child = self.start("lockd", *bind, "--data", "lockd", *options)
        self.endpoint = child.ready().split()[1]
        return child

    def serving(self, data: str, *options: str) -> Child:
        """Start `client serve` on `data` and wait until it is ready."""
        child = self.start("client", "serve", "--data", data, *options)
        child.ready()
        return child

    def client(self, *arguments: str, environment: dict[str, str] | None = None) -> Done:
        """Run a client command to its end."""
        return self.start("client", *arguments, environment=environment).end()

    def ok(self, *arguments: str) -> bytes:
        """Run a client command that must end well; return what it wrote."""
        done = self.client(*arguments)
        assert (done.code, done.err) == (0, ""), (arguments, done)
        return done.out

    def op(self, data: str, verb: str, text: str = "", file: str = "notes.txt") -> Report:
        """Have the client that is up on `data` do an op, as a one-shot does, but without a process for it."""
        connection = connect(self.path(data))
        assert connection is not None, f"nobody is up on {data}"
        with connection:
            report = ask(connection, Order(verb, file, text, 0, int(WITHIN_S * 1000)))
        assert report is not None, f"the client on {data} has gone"
        assert report.outcome == "ok", report
        return report

    def path(self, *parts: str) -> Path:
        """Return a path in the group's directory."""
        return self.directory.joinpath(*parts)

    def welcome(self) -> Welcome:
        """Return what lockd tells a client without a replica: the group's id, and the live replicas."""
        context = zmq.Context[zmq.Socket[bytes]]()
        try:
            socket = caller(context, os.urandom(16).hex().encode())
            socket.connect(self.endpoint)
            incarnation = os.urandom(8).hex()
            socket.send(encode(Hello(1, f"visitor-{incarnation}", incarnation, None, "", 0, "", 0, 0, ())))
            assert socket.poll(int(WITHIN_S * 1000)), "lockd does not answer"
            answer: FromLockd = decode(socket.recv(), FromLockd)  # type: ignore[arg-type]
            assert isinstance(answer, Welcome), answer
            return answer
        finally:
            context.destroy(linger=0)


def refusal(done: Done, program: str = "client") -> str:
    """Return the one line that a command told its end in; fail if it said more, or less."""
    assert done.out == b"", done
    assert done.err.endswith("\n") and done.err.count("\n") == 1, done
    assert done.err.startswith(f"{program}: "), done
    return done.err.removeprefix(f"{program}: ").rstrip("\n")
