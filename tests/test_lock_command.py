"""`client lock` with a real lockd: what it gives COMMAND, how it ends, and that nothing of COMMAND outlives the lock.

As a command it tries the last often, and tells how many times it held: python -P -m tests.test_lock_command --tries 100
"""

import argparse
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import pytest

from client.operator import inspect
from tests.group import WITHIN_S, Child, Group, refusal, until
from tests.partition import Partition
from tests.trees import STUBBORN, left_of

_PATIENT = ("--ttl", "20s")
"""No lease ends by itself, however busy the machine is."""
_QUICK = ("--ttl", "1s", "--lock-delay", "500ms")
_QUICK_GRACE = ("--kill-grace", "200ms")
_WAITS = "echo 1 >> here; until [ -e go ]; do sleep 0.02; done; "
"""COMMAND waits for the file `go`."""


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def _begun(group: Group, lines: int = 1) -> None:
    until(lambda: _lines(group.path("here")) >= lines, "COMMAND has begun")


def _held(group: Group, *options: str, command: str = _WAITS) -> Child:
    """Start a `client lock` whose COMMAND has begun."""
    child = group.start("client", "lock", "jobs/nightly", *options, "--", "sh", "-c", command)
    _begun(group)
    return child


def _waiters(group: Group, name: str = "jobs/nightly") -> int:
    return sum(len(lock.queue) for lock in inspect(group.endpoint, name).locks if lock.lock == name)


# What COMMAND gets, and how it ends


def test_command_gets_the_lock_and_its_token_and_its_exit_code_is_ours(group: Group) -> None:
    group.lockd(*_PATIENT)
    told = "echo $LOCKSTEP_LOCK $LOCKSTEP_TOKEN; exit 7"
    outer = {"LOCKSTEP_LOCK": "outer", "LOCKSTEP_TOKEN": "9.9"}
    first = group.client("lock", "jobs/nightly", "--", "sh", "-c", told, environment=outer)
    second = group.client("lock", "--shared", "jobs/nightly", "--", "sh", "-c", told)
    assert (first.code, first.out, first.err) == (7, b"jobs/nightly 1.1\n", "")
    assert (second.code, second.out, second.err) == (7, b"jobs/nightly 1.2\n", "")


def test_a_command_that_a_signal_ended_gives_128_and_its_number(group: Group) -> None:
    group.lockd(*_PATIENT)
    done = group.client("lock", "a", "--", "sh", "-c", "kill -INT $$")
    assert (done.code, done.err) == (130, "")


@pytest.mark.parametrize(("command", "code"), [("no-such-command", 127), ("/", 126)])
def test_a_command_that_cannot_be_run(command: str, code: int, group: Group) -> None:
    group.lockd(*_PATIENT)
    done = group.client("lock", "a", "--", command)
    assert done.code == code
    assert refusal(done).startswith(f"COMMAND '{command}' cannot be run: ")
    assert group.client("lock", "a", "--no-wait", "--", "true").code == 0


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["a"], "no COMMAND: client lock NAME -- COMMAND..."),
        (["a", "--"], "no COMMAND: client lock NAME -- COMMAND..."),
        (["a", "true"], "put -- between NAME or its options, and COMMAND"),
        (["a", "git", "--", "checkout"], "put -- between NAME or its options, and COMMAND"),
        (["", "--", "true"], "NAME '': a lock's name cannot be empty"),
        (["a", "--wait", "soon", "--", "true"], "--wait: a duration reads like"),
        (["a", "--wait", "1s", "--no-wait", "--", "true"], "--no-wait and --wait contradict each other"),
        (["a", "--kill-grace", "-1s", "--", "true"], "--kill-grace: a duration reads like"),
        (["a", "-E", "256", "--", "true"], "invalid value for '--conflict-exit-code' / '-E'"),
        (["a", "--name", "#", "--", "true"], "--name '#': a client's name holds only"),
    ],
)
def test_wrong_use_is_told_before_anything_else(arguments: list[str], problem: str, group: Group) -> None:
    group.endpoint = "tcp://127.0.0.1:1"
    done = group.client("lock", *arguments)
    assert done.code == 2
    assert refusal(done).startswith(problem)


def test_behind_the_dashes_all_is_the_command(group: Group) -> None:
    group.lockd(*_PATIENT)
    done = group.client("lock", "a", "--wait", "5s", "--", "echo", "--shared", "--", "-n")
    assert (done.code, done.out) == (0, b"--shared -- -n\n")


def test_a_kill_grace_that_the_lock_delay_does_not_cover(group: Group) -> None:
    group.lockd(*_PATIENT, "--lock-delay", "1s")
    done = group.client("lock", "a", "--kill-grace", "800ms", "--", "true")
    assert done.code == 2
    assert refusal(done) == (
        "--kill-grace 800ms and 250ms for delays are longer than lockd's --lock-delay 1000ms: COMMAND could still run"
        " when the lost lock goes to another; give --kill-grace 750ms, or start lockd with --lock-delay 1050ms"
    )
    assert group.client("lock", "a", "--kill-grace", "750ms", "--", "true").code == 0


def test_lockd_that_is_not_there(group: Group) -> None:
    group.endpoint = "tcp://127.0.0.1:1"
    done = group.client("lock", "a", "--wait", "1s", "--", "touch", "ran")
    assert done.code == 3
    assert "tcp://127.0.0.1:1" in refusal(done)
    assert not group.path("ran").exists()


# Who gets the lock


def test_a_lock_that_is_held(group: Group) -> None:
    group.lockd(*_PATIENT)
    holder = _held(group)
    busy = group.client("lock", "jobs/nightly", "--no-wait", "--", "touch", "ran")
    assert busy.code == 3
    assert "jobs/nightly" in refusal(busy)
    assert group.client("lock", "jobs/nightly", "--wait", "10ms", "-E", "9", "--", "touch", "ran").code == 9
    assert not group.path("ran").exists()
    next_one = group.start("client", "lock", "jobs/nightly", "--wait", "20s", "--", "cat", "left")
    until(lambda: _waiters(group), "the next one waits")
    group.path("left").write_text("as it was left\n")
    group.path("go").touch()
    assert holder.end().code == 0
    assert next_one.end().out == b"as it was left\n"


def test_shared_holders_run_together(group: Group) -> None:
    group.lockd(*_PATIENT)
    both = "echo 1 >> here; until [ $(wc -l < here) = 2 ]; do sleep 0.02; done"
    children = [group.start("client", "lock", "a", "--shared", "--", "sh", "-c", both) for _ in range(2)]
    assert [child.end().code for child in children] == [0, 0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_and_leaves_no_waiter(number: signal.Signals, group: Group) -> None:
    group.lockd("--ttl", "60s")  # longer than we wait
    _held(group)
    waiter = group.start("client", "lock", "jobs/nightly", "--wait", "60s", "--", "touch", "ran")
    until(lambda: _waiters(group), "it waits")
    done = waiter.stop(number)
    assert done.code == (-number if number == signal.SIGINT else 128 + number)
    assert refusal(done) == f"ended by {number.name} before COMMAND was started"
    until(lambda: not _waiters(group), "it waits no more")
    assert not group.path("ran").exists()
    group.path("go").touch()


def test_a_wait_that_is_stopped_from_the_keyboard_goes_on_later(group: Group) -> None:
    group.lockd(*_PATIENT)
    holder = _held(group)
    waiter = group.start("client", "lock", "jobs/nightly", "--wait", "60s", "--", "echo", "mine")
    until(lambda: _waiters(group), "it waits")
    caught = re.search(r"\nSigCgt:\t(\w+)", Path(f"/proc/{waiter.pid}/status").read_text())
    assert caught is not None
    assert not int(caught[1], 16) & 1 << signal.SIGTSTP - 1  # the system stops it, if a shell is there to wake it
    waiter.send(signal.SIGTSTP)
    waiter.send(signal.SIGCONT)
    group.path("go").touch()
    assert holder.end().code == 0
    done = waiter.end()
    assert (done.code, done.out) == (0, b"mine\n")


# While it runs


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "WINCH"])
def test_signals_are_passed_on(name: str, group: Group) -> None:
    group.lockd(*_PATIENT)
    child = _held(group, command=f"trap 'echo {name}; exit 9' {name}; {_WAITS}")
    done = child.stop(signal.Signals[f"SIG{name}"])
    # The shell's own children hear it, too, and it may say so.
    assert (done.code, done.out) == (9, f"{name}\n".encode())


def test_what_command_leaves_behind_is_ended_before_the_lock_is_free(group: Group) -> None:
    group.lockd(*_PATIENT)
    done = group.client("lock", "a", "--", "sh", "-c", "setsid sleep 60 & sleep 60 & exit 3")
    assert (done.code, done.out) == (3, b"")
    assert re.fullmatch(
        r"client: COMMAND left [1-9] process(es)? behind, ended before the lock was given back\n", done.err
    )
    assert not left_of("a")


def test_a_guardian_that_is_killed_takes_command_with_it(group: Group) -> None:
    group.lockd(*_PATIENT)
    child = group.start("client", "lock", "jobs/nightly", "--", "sh", "-c", STUBBORN)
    _begun(group, 3)
    guardian = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    assert len(guardian) == 1
    os.kill(int(guardian[0]), signal.SIGKILL)
    done = child.end()
    assert done.code == 4
    assert "the guardian was killed, so COMMAND was ended" in refusal(done)
    assert not left_of("jobs/nightly")
    assert group.client("lock", "jobs/nightly", "--no-wait", "--", "true").code == 0


def test_command_is_ended_when_lockd_stands_still(group: Group) -> None:
    lockd = group.lockd(*_QUICK)
    child = _held(group, *_QUICK_GRACE)
    lockd.send(signal.SIGSTOP)
    done = child.end()
    lockd.send(signal.SIGCONT)
    assert done.code == 4
    assert re.fullmatch(r"jobs/nightly was lost, held under token 1\.1: .*; COMMAND was ended", refusal(done))
    assert not left_of("jobs/nightly")


# Nothing of COMMAND outlives the lock

Fault = Literal["stopped", "cut off", "killed"]
_FAULTS: tuple[Fault, ...] = ("stopped", "cut off", "killed")

_LOOK = """
while read -r process; do
    if grep -qz ^TRY="$1" /proc/$process/environ 2>/dev/null; then echo $process is there at the next grant; fi
done < pids
"""


def _try(group: Group, fault: Fault, name: str) -> bool:
    """Take the wrapper of a COMMAND that does not want to end from lockd; see that it is gone at the next grant.

    Return whether the fault did it: on a busy machine the short lease may end before.
    """
    here, pids = group.path("here"), group.path("pids")
    for path in (here, pids):
        path.unlink(missing_ok=True)
    with ExitStack() as stack:
        way: Partition | None = None
        options = list(_QUICK_GRACE)
        if fault == "cut off":
            way = stack.enter_context(Partition(group.endpoint))
            options += ["--lockd", way.endpoint]
        mark = os.urandom(8).hex()
        first = group.start("client", "lock", name, *options, "--", "sh", "-c", STUBBORN, environment={"TRY": mark})
        until(lambda: _lines(here) >= 3, "COMMAND has begun")
        pids.write_text("".join(f"{process}\n" for process in left_of(name)))
        next_one = group.start(
            "client", "lock", name, *_QUICK_GRACE, "--wait", "20s", "--", "sh", "-c", _LOOK, "-", mark
        )
        until(lambda: _waiters(group, name) or not first.running or not next_one.running, "the next one waits")
        is_in_time = first.running and next_one.running
        if way:
            way.cut()
        else:
            first.send(signal.SIGSTOP if fault == "stopped" else signal.SIGKILL)
        done = next_one.end()
        assert done.out == b"", "what was there at the next grant"
        is_in_time &= done.code == 0
        if fault == "stopped":
            first.send(signal.SIGCONT)
        ended = first.end()
        if fault != "killed":
            assert ended.code == 4, ended
            assert "COMMAND was ended" in ended.err
        until(lambda: not left_of(name), "nothing of COMMAND is left")
        return is_in_time


@pytest.mark.parametrize("fault", _FAULTS)
def test_nothing_of_command_is_left_at_the_next_grant(fault: Fault, group: Group) -> None:
    group.lockd(*_QUICK)
    assert any(_try(group, fault, f"lock-{number}") for number in range(5))


# At a terminal


class _Shell:
    """A shell at a terminal of its own, and what stands there."""

    def __init__(self, group: Group) -> None:
        self._terminal, theirs = os.openpty()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LOCKSTEP_")}
        environment |= {"LOCKSTEP_LOCKD": group.endpoint, "PS1": "$ ", "TERM": "dumb", "HISTFILE": ""}
        self._process = subprocess.Popen(
            ["setsid", "--ctty", "bash", "--norc", "--noprofile", "--noediting", "-i"],
            cwd=group.directory,
            env=environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        self.shown = ""

    def type(self, text: str) -> None:
        self.shown = ""
        os.write(self._terminal, text.encode())

    def shows(self, pattern: str) -> None:
        """Wait until there stands what matches."""

        def look() -> bool:
            if select.select([self._terminal], [], [], 0)[0]:
                self.shown += os.read(self._terminal, 65536).decode("utf-8", "replace").replace("\r", "")
            return re.search(pattern, self.shown) is not None

        try:
            until(look, pattern)
        except AssertionError:
            raise AssertionError(f"{pattern!r} in {self.shown!r}") from None

    def close(self) -> None:
        os.close(self._terminal)
        self._process.wait(WITHIN_S)


@contextmanager
def _shell(group: Group) -> Iterator[_Shell]:
    shell = _Shell(group)
    try:
        shell.shows(r"\$ $")
        yield shell
    finally:
        shell.close()
        until(lambda: not left_of("a"), "nothing of COMMAND is left")


_COMMAND = f"{sys.executable} -P -m client lock a -- "
_at_a_terminal = pytest.mark.skipif(
    not (shutil.which("bash") and shutil.which("setsid")), reason="needs bash and setsid"
)


@_at_a_terminal
def test_at_a_terminal_command_is_in_front_and_can_be_stopped_and_go_on(group: Group) -> None:
    group.lockd(*_PATIENT)
    with _shell(group) as shell:
        shell.type(_COMMAND + "cat\n")
        until(lambda: left_of("a"), "COMMAND runs")
        shell.type("hello\n")
        shell.shows("hello\nhello\n")
        shell.type("\x1a")
        shell.shows(r"Stopped(.|\n)*\$ $")
        shell.type("echo $((6 * 7))\n")
        shell.shows(r"42\n")
        shell.type("fg\n")
        shell.shows("client lock a")
        shell.type("again\n")
        shell.shows("again\nagain\n")
        shell.type("\x03")
        shell.shows(r"\$ $")
        shell.type("echo code $?\n")
        shell.shows(r"code 130\n")


@_at_a_terminal
def test_with_others_in_front_command_gets_the_terminal_when_it_asks(group: Group) -> None:
    group.lockd(*_PATIENT)
    with _shell(group) as shell:
        # The second one reads no terminal, but runs in the same group as we do.
        shell.type(_COMMAND + "sh -c 'read line; echo got $line' | cat\n")
        until(lambda: left_of("a"), "COMMAND runs")
        shell.type("hello\n")
        shell.shows("\ngot hello\n")
        shell.shows(r"\$ $")
        shell.type("echo code ${PIPESTATUS[0]}\n")
        shell.shows(r"code 0\n")


@_at_a_terminal
def test_stopped_at_the_terminal_for_longer_than_its_lease(group: Group) -> None:
    group.lockd(*_QUICK)
    with _shell(group) as shell:
        shell.type(_COMMAND.replace("lock a", "lock a --kill-grace 200ms") + "cat\n")
        until(lambda: left_of("a"), "COMMAND runs")
        shell.type("\x1a")
        shell.shows(r"Stopped(.|\n)*\$ $")
        until(lambda: not left_of("a"), "the guardian ends it")
        shell.type("fg\n")
        shell.shows(r"was lost, .*; COMMAND was ended\n")
        shell.type("echo code $?\n")
        shell.shows(r"code 4\n")


def main() -> None:
    """Try each fault so many times, and tell how often nothing of COMMAND was left at the next grant."""
    parser = argparse.ArgumentParser(prog="tests.test_lock_command", description=main.__doc__)
    parser.add_argument("--tries", type=int, default=100)
    parser.add_argument("--fault", choices=_FAULTS, help="what happens to the wrapper [default: each]")
    options = parser.parse_args()
    tries = options.tries
    for fault in [options.fault] if options.fault else _FAULTS:
        good, done, too_late, begun_s = 0, 0, 0, time.monotonic()
        while done < tries and too_late < 10 * tries:
            with tempfile.TemporaryDirectory() as directory, Group(Path(directory)) as group:
                group.lockd(*_QUICK)
                try:
                    is_in_time = _try(group, fault, "a-try")
                    good += is_in_time
                    too_late += not is_in_time
                    done += is_in_time
                except AssertionError as error:
                    done += 1
                    print(f"wrapper {fault}, try {done}: {error}", flush=True)
        took_s = time.monotonic() - begun_s
        print(f"wrapper {fault}: gone before the next grant in {good} of {done} tries, {took_s:.0f} s", flush=True)


if __name__ == "__main__":
    main()


@_at_a_terminal
@pytest.mark.parametrize("command", ["cat", "sleep 60"])
def test_ctrl_c_ends_the_script_that_called_us(command: str, group: Group) -> None:
    group.lockd(*_PATIENT)
    group.path("script").write_text(f"{_COMMAND} {command}\necho went on\n")
    with _shell(group) as shell:
        shell.type("bash script\n")
        until(lambda: left_of("a"), "COMMAND runs")
        if command == "cat":
            shell.type("hello\n")  # it reads the terminal, so that it is in front
            shell.shows("hello\nhello\n")
        shell.type("\x03")
        shell.shows(r"\$ $")
        assert "went on" not in shell.shown
        shell.type("echo code $?\n")
        shell.shows(r"code 130\n")


@_at_a_terminal
def test_ctrl_c_ends_the_script_that_waits_for_the_lock(group: Group) -> None:
    group.lockd(*_PATIENT)
    holder = _held(group)
    group.path("script").write_text(f"{_COMMAND.replace('lock a', 'lock jobs/nightly')} true\necho went on\n")
    with _shell(group) as shell:
        shell.type("bash script\n")
        until(lambda: _waiters(group), "it waits")
        shell.type("\x03")
        shell.shows(r"\$ $")
        assert "ended by SIGINT before COMMAND was started" in shell.shown
        assert "went on" not in shell.shown
    group.path("go").touch()
    assert holder.end().code == 0
