"""The guardian of `client lock` alone, with real processes: it ends all of COMMAND when its lease is over."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.guardian import Frame, Kind, _receive, _send
from tests.group import WITHIN_S, until
from tests.trees import FLEEING, STUBBORN, left_of

_FOREVER_MS = 60_000


class _Keeper:
    """A process that keeps a guardian, and what it has told."""

    def __init__(
        self, directory: Path, *command: str, deadline_ms: int = _FOREVER_MS, grace_ms: int = 100, renew: str = "once"
    ) -> None:
        self.lock = f"guarded-{os.urandom(8).hex()}"
        self._told = directory / "told"
        with self._told.open("wb") as told:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "tests.keeper", self.lock),
                    *(str(deadline_ms), str(grace_ms), renew),
                    *command,
                ],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=told,
                pass_fds=[told.fileno()],
            )

    def told(self, name: str) -> tuple[int, int]:
        """Wait until it has told this; return the two numbers."""
        until(lambda: self.has_told(name), f"the keeper tells {name}")
        numbers = self._find(name)
        assert numbers is not None
        return numbers

    def has_told(self, name: str) -> bool:
        return self._find(name) is not None

    def _find(self, name: str) -> tuple[int, int] | None:
        lines = [line for line in self._told.read_text().splitlines(keepends=True) if line.startswith(f'["{name}"')]
        if not lines or not lines[0].endswith("\n"):
            return None
        _, first, second = json.loads(lines[0])
        return first, second

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> None:
        self._process.wait(WITHIN_S)

    def close(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        self._process.kill()
        self._process.wait(WITHIN_S)
        until(lambda: not left_of(self.lock), "all of COMMAND is gone")


@pytest.fixture
def keepers() -> Iterator[list[_Keeper]]:
    """Hold what a test started, to end it."""
    started: list[_Keeper] = []
    yield started
    for keeper in started:
        keeper.close()


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def _here(directory: Path, lines: int) -> None:
    until(lambda: _lines(directory / "here") >= lines, f"{lines} processes have begun")


def _python(text: str) -> list[str]:
    return [sys.executable, "-S", "-c", text]


def test_the_whole_tree_is_gone_after_the_deadline(tmp_path: Path, keepers: list[_Keeper]) -> None:
    keeper = _Keeper(tmp_path, "sh", "-c", STUBBORN, deadline_ms=1000)
    keepers.append(keeper)
    keeper.told("DEADLINE")
    assert keeper.told("EXITED") == (signal.SIGKILL, 0)
    assert _lines(tmp_path / "here") == 3
    assert not left_of(keeper.lock)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_the_whole_tree_is_gone_after_its_keeper(
    number: signal.Signals, tmp_path: Path, keepers: list[_Keeper]
) -> None:
    keeper = _Keeper(tmp_path, "sh", "-c", STUBBORN, deadline_ms=1000, renew="renew")
    keepers.append(keeper)
    _here(tmp_path, 3)
    keeper.send(number)
    until(lambda: not left_of(keeper.lock), "all of COMMAND is gone")


def test_the_lease_that_is_renewed_goes_on(tmp_path: Path, keepers: list[_Keeper]) -> None:
    command = "until [ -e go ]; do sleep 0.02; done; exit 7"
    keeper = _Keeper(tmp_path, "sh", "-c", command, deadline_ms=500, renew="renew")
    keepers.append(keeper)
    keeper.told("STARTED")
    over_s = time.monotonic() + 1
    until(lambda: time.monotonic() > over_s, "twice the first deadline")
    (tmp_path / "go").touch()
    assert keeper.told("EXITED") == (7 << 8, 0)
    assert not keeper.has_told("DEADLINE")


def test_a_lease_that_becomes_shorter_ends_earlier(tmp_path: Path, keepers: list[_Keeper]) -> None:
    keeper = _Keeper(tmp_path, "sleep", "60", renew="shorten")
    keepers.append(keeper)
    keeper.told("DEADLINE")
    assert keeper.told("EXITED") == (signal.SIGTERM, 0)


def test_a_guardian_sleeps_while_there_is_nothing_to_do(tmp_path: Path, keepers: list[_Keeper]) -> None:
    keeper = _Keeper(tmp_path, "sleep", "60")
    keepers.append(keeper)
    guardian, _ = keeper.told("GUARDIAN")
    keeper.told("STARTED")

    def slept() -> int:
        found = re.search(r"\nvoluntary_ctxt_switches:\t(\d+)", Path(f"/proc/{guardian}/status").read_text())
        assert found is not None
        return int(found[1])

    before = slept()
    until(lambda: slept() >= before + 10, "it gives the processor up by itself")


def test_sigterm_comes_first_and_wakes_the_stopped(tmp_path: Path, keepers: list[_Keeper]) -> None:
    stopped = "trap 'echo term >> said; exit 5' TERM; echo 1 >> here; kill -STOP $$; while :; do sleep 0.01; done"
    keeper = _Keeper(tmp_path, "sh", "-c", stopped, deadline_ms=700, grace_ms=_FOREVER_MS)
    keepers.append(keeper)
    assert keeper.told("STOPPED") == (signal.SIGSTOP, 0)
    assert keeper.told("EXITED") == (5 << 8, 0)
    assert (tmp_path / "said").read_text() == "term\n"


def test_nobody_outruns_it(tmp_path: Path, keepers: list[_Keeper]) -> None:
    keeper = _Keeper(tmp_path, *_python(FLEEING), deadline_ms=_FOREVER_MS, renew="renew")
    keepers.append(keeper)
    keeper.told("EXITED")
    assert _lines(tmp_path / "here") == 2
    assert not left_of(keeper.lock)


def test_what_is_left_behind_is_ended_and_counted(tmp_path: Path, keepers: list[_Keeper]) -> None:
    behind = "setsid sleep 60 & sleep 60 & trap '' TERM; (echo 1 >> here; while :; do sleep 60; done) & "
    keeper = _Keeper(tmp_path, "sh", "-c", behind + "until [ -e here ]; do sleep 0.01; done; exit 3")
    keepers.append(keeper)
    status, left = keeper.told("EXITED")
    assert status == 3 << 8
    assert left >= 3
    assert not left_of(keeper.lock)


def test_a_guardian_that_is_killed_is_replaced(tmp_path: Path, keepers: list[_Keeper]) -> None:
    keeper = _Keeper(tmp_path, "sh", "-c", STUBBORN, renew="renew")
    keepers.append(keeper)
    guardian, _ = keeper.told("GUARDIAN")
    _here(tmp_path, 3)
    os.kill(guardian, signal.SIGKILL)
    keeper.told("REPLACED")
    assert not left_of(keeper.lock)


def test_a_guardian_takes_no_signal_but_to_stop_and_does_not_stay_stopped(
    tmp_path: Path, keepers: list[_Keeper]
) -> None:
    keeper = _Keeper(tmp_path, "sh", "-c", "until [ -e go ]; do sleep 0.02; done", renew="renew")
    keepers.append(keeper)
    guardian, _ = keeper.told("GUARDIAN")
    keeper.told("STARTED")
    for number in sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}):
        os.kill(guardian, number)
    os.kill(guardian, signal.SIGSTOP)
    (tmp_path / "go").touch()
    assert keeper.told("EXITED") == (0, 0)


@pytest.mark.parametrize(("command", "problem"), [("no-such-command", 2), ("/", 13)], ids=["not found", "a folder"])
def test_what_cannot_be_run_is_said(command: str, problem: int, tmp_path: Path, keepers: list[_Keeper]) -> None:
    keeper = _Keeper(tmp_path, command)
    keepers.append(keeper)
    assert keeper.told("FAILED") == (problem, 0)


def test_what_was_said_last_is_heard_though_the_other_side_ended_with_something_unread() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            _send(theirs, Frame(Kind.EXITED, 7))
            _send(ours, Frame(Kind.RENEW, 8))
        assert _receive(ours) == Frame(Kind.EXITED, 7)
        with pytest.raises(EOFError):
            _receive(ours)


def test_a_deadline_that_has_passed_starts_nothing(tmp_path: Path, keepers: list[_Keeper]) -> None:
    keeper = _Keeper(tmp_path, "touch", "ran", deadline_ms=0)
    keepers.append(keeper)
    keeper.told("FAILED")
    keeper.end()
    assert not (tmp_path / "ran").exists()


_SURROUNDINGS = """
import json, os, re, sys
status = open('/proc/self/status').read()
seen = {name: int(re.search(name + r':\\t(\\w+)', status)[1], 16) for name in ('SigBlk', 'SigIgn', 'SigCgt')}
seen['descriptors'] = {n: os.readlink('/proc/self/fd/' + n) for n in os.listdir('/proc/self/fd') if n not in '3'}
seen['nice'], seen['scheduler'], seen['directory'] = os.nice(0), os.sched_getscheduler(0), os.getcwd()
seen['environment'] = {name: value for name, value in os.environ.items() if not name.startswith('LOCKSTEP_')}
seen['mine'] = [os.environ['LOCKSTEP_TOKEN'], os.environ['LOCKSTEP_LOCK']]
seen['leads'] = os.getpgrp() == os.getpid()
open(sys.argv[1], 'w').write(json.dumps(seen))
"""


@pytest.fixture
def odd_signals() -> Iterator[None]:
    """Ignore one signal as nohup does, and block another; processes that are started take both over."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("odd_signals")
def test_command_gets_what_the_caller_left_and_no_more(tmp_path: Path, keepers: list[_Keeper]) -> None:
    script = tmp_path / "look.py"
    script.write_text(_SURROUNDINGS)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LOCKSTEP_TOKEN", "9.9")
        environment.setenv("LOCKSTEP_LOCK", "an outer one")
        command = [sys.executable, "-S", "-P", str(script)]
        keeper = _Keeper(tmp_path, *command, str(tmp_path / "guarded.json"))
        keepers.append(keeper)
        assert keeper.told("EXITED") == (0, 0)
        with (tmp_path / "told").open("ab") as told:
            # The process group is another's, the rest has to be the same.
            direct = subprocess.run(
                [*command, str(tmp_path / "direct.json")],
                cwd=tmp_path,
                stdin=subprocess.DEVNULL,
                stdout=told,
                pass_fds=[told.fileno()],
                check=False,
            )
    assert direct.returncode == 0
    guarded = json.loads((tmp_path / "guarded.json").read_text())
    plain = json.loads((tmp_path / "direct.json").read_text())
    assert guarded.pop("mine") == ["1.42", keeper.lock]
    assert plain.pop("mine") == ["9.9", "an outer one"]
    assert guarded.pop("leads")
    assert not plain.pop("leads")
    assert guarded == plain
    assert guarded["SigIgn"] & 1 << signal.SIGHUP - 1
    assert guarded["SigBlk"] & 1 << signal.SIGUSR1 - 1
