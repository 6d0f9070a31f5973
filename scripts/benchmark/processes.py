"""The processes and the directory of one measurement: all that is started here ends here, by its id."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from common.printing import printable
from scripts.launching.processes import tie

PATIENCE_S: Final = 60.0
"""How long a child may take for what is waited for, in seconds."""

_PAUSE_S: Final = 0.02


class NotMeasured(Exception):
    """A measurement could not be made; the text says why."""


@dataclass(frozen=True, slots=True)
class Child:
    """A running process; what it says is in the files `out` and, on stderr, `complaints`."""

    process: subprocess.Popen[bytes]
    out: Path
    complaints: Path
    ends_on: signal.Signals = signal.SIGTERM
    """What asks it to end."""

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self.process.pid

    def line(self, start: str, since: int = 0) -> str:
        """Wait for a line that begins with `start`, and return it; one behind `since` bytes. Raises NotMeasured."""
        deadline = time.monotonic() + PATIENCE_S
        read, torn = since, ""
        while True:
            ended = self.process.poll() is not None
            with self.out.open("rb") as out:  # what is new alone: a child that is measured may say a lot
                out.seek(read)
                new = out.read()
            read += len(new)
            *lines, torn = (torn + new.decode("utf-8", "replace")).split("\n")
            for line in lines:
                if line.startswith(start):
                    return line
            if ended or time.monotonic() > deadline:
                raise NotMeasured(f"{self.out.stem} never said {start!r}: {self.last_words()}")
            time.sleep(_PAUSE_S)

    def finish(self, sign: signal.Signals | None = None) -> str:
        """Wait for its end with exit code 0, after a signal if one is given; return its output. Raises NotMeasured."""
        if sign is not None:
            self.process.send_signal(sign)
        try:
            code = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise NotMeasured(f"{self.out.stem} did not end in {PATIENCE_S:g} s") from None
        if code != 0:
            raise NotMeasured(f"{self.out.stem} ended with {code}: {self.last_words()}")
        return self.out.read_text("utf-8", "replace")

    def memory_kib(self, name: str) -> int:
        """Return a size from /proc/PID/status, such as VmRSS (now) or VmHWM (at most), in KiB."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1])
        raise NotMeasured(f"{self.out.stem} has no {name}")

    def last_words(self) -> str:
        """Return its last complaint."""
        words = self.complaints.read_text("utf-8", "replace").strip().splitlines()
        return printable(words[-1]) if words else "it said nothing"


def memory_of(child: Child, name: str) -> tuple[str, str, float]:
    """Return (name, what it was at most in words, MiB resident now)."""
    return name, f"resident; {child.memory_kib('VmHWM') / 1024:.1f} MiB at most", child.memory_kib("VmRSS") / 1024


class Stage:
    """A temporary directory and the children that work in it."""

    def __init__(self, directory: Path, *, tied: bool = False) -> None:
        """Use an existing directory. Children that are `tied` end with this process, however it ends.

        While those start, this process must have one thread.
        """
        self.directory = directory
        self._before = tie(os.getpid()) if tied else None
        self._children: list[Child] = []

    def python(self, name: str, *arguments: str, variables: Mapping[str, str] | None = None) -> Child:
        """Start `python -P -m arguments...` with a silent stdin; `name` is for its output."""
        return self.start(name, [sys.executable, "-P", "-m", *arguments], variables)

    def start(self, name: str, command: Sequence[str], variables: Mapping[str, str] | None = None) -> Child:
        """Start a process whose output goes to NAME.out and NAME.err; `variables` add to its environment."""
        return self._start(name, command, signal.SIGTERM, env=environment() | dict(variables or {}))

    def serve(
        self, name: str, command: Sequence[str], *, user: str | None = None, ends_on: signal.Signals = signal.SIGTERM
    ) -> Child:
        """Start another project's server, as another user if one is named."""
        return self._start(
            name,
            command,
            ends_on,
            start_new_session=True,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},  # ETCD_… and PG… would lead it elsewhere
            cwd=self.directory,
            user=user,
            group=pwd.getpwnam(user).pw_gid if user else None,
            extra_groups=() if user else None,
        )

    def lockd(self, *options: str) -> Child:
        """Start lockd in a session of its own, as a service manager starts it and every other server.

        Linux shares processors among sessions first, where autogroups are on: in that of its clients lockd would have
        one client's share. PostgreSQL makes a session of each connection's process by itself.
        """
        command = [sys.executable, "-P", "-m", "lockd", *options]
        return self._start("lockd", command, signal.SIGTERM, env=environment(), start_new_session=True)

    def data(self, name: str, user: str | None = None) -> Path:
        """Make a directory for a server, and let it be that user's if one is named."""
        directory = self.directory / f"{name}.data"
        directory.mkdir(mode=0o700)
        if user is not None:
            self.directory.chmod(0o711)
            shutil.chown(directory, user)
        return directory

    def _start(self, name: str, command: Sequence[str], ends_on: signal.Signals, **options: Any) -> Child:
        out, complaints = self.directory / f"{name}.out", self.directory / f"{name}.err"
        with out.open("wb") as stdout, complaints.open("wb") as stderr:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                preexec_fn=self._before,  # noqa: PLW1509 - one thread, see above
                **options,
            )
        self._children.append(child := Child(process, out, complaints, ends_on))
        return child

    def end(self) -> None:
        """End whatever still runs, the newest first; what does not end on SIGTERM is killed."""
        for child in reversed(self._children):
            if child.process.poll() is None:
                child.process.send_signal(child.ends_on)
        deadline = time.monotonic() + 5
        for child in reversed(self._children):
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.1, deadline - time.monotonic()))
            if child.process.poll() is None:
                child.process.kill()
                child.process.wait()
            if child.process.stdin is not None:
                child.process.stdin.close()


@contextlib.contextmanager
def stage(*, tied: bool = False) -> Iterator[Stage]:
    """Give a stage; end its children and remove its directory afterwards."""
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-", ignore_cleanup_errors=True) as directory:
        place = Stage(Path(directory), tied=tied)
        try:
            yield place
        finally:
            place.end()


@contextlib.contextmanager
def apart(*children: Child) -> Iterator[None]:
    """Keep this process on one core and the children on another, as far as there are two.

    Left alone, the scheduler may put two processes that wait for each other on one core or on two, and what they
    say to each other costs three times as much on two: a ratio of two such pairs would tell their places only.
    """
    cores = sorted(os.sched_getaffinity(0))
    _move(os.getpid(), cores[:1])
    for child in children:
        _move(child.pid, cores[-1:])
    try:
        yield
    finally:
        _move(os.getpid(), cores)


def _move(pid: int, cores: Sequence[int]) -> None:
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(thread), cores)


def environment() -> dict[str, str]:
    """Return our environment without what would lead a client elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("LOCKSTEP_", "PYTHON"))}
