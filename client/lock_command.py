"""`client lock`: run COMMAND under a lock. This is the wrapper, which holds the lock; client.guardian runs COMMAND.

Theory of operation. lockd grants a lost lock to somebody else when the session has ended there and the lock delay is
over. The client's lease ends no later than lockd's (client.locking), and the guardian ends COMMAND with all below it
within the kill grace after the client's lease. So nothing of COMMAND is left at the next grant, provided that

    kill grace + slack <= lock delay,

which is checked before the lock is asked for. The slack is for a guardian that gets the processor late.
"""

import errno
import os
import select
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Final, NoReturn

from client.descendants import Unsupported
from client.guardian import Frame, Guardian, Kind
from client.terminal import Terminal
from common.errors import EXIT_UNKNOWN, CommandError, refused, wrong_use
from common.printing import printable

if TYPE_CHECKING:
    from client.locking import Lock, LockClient

SLACK_NS: Final = 250_000_000
"""So late the guardian may be, and what it kills may need to go."""
_EXIT_CANNOT_RUN: Final = 126
_EXIT_NOT_FOUND: Final = 127
_ENDING: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
"""What ends the wait for the lock, and is passed to COMMAND while that runs."""
_REACH_S: Final = 10.0
_REACH_S_MIN: Final = 1.0
"""So long at the most, and at the least, lockd is waited for: no longer than for the lock, if that is not at once."""
_PASSED: Final = (signal.SIGWINCH, signal.SIGCONT, signal.SIGTSTP)
"""What is passed to COMMAND and means nothing before it runs."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What `client lock` is to do. `conflict_code` is its exit code where the lock is not to be had in time."""

    lock: str
    command: Sequence[str]
    shared: bool
    wait_ns: int
    conflict_code: int
    kill_grace_ns: int
    lockd: str
    name: str | None


def lock_command(wanted: Wanted) -> NoReturn:
    """Run COMMAND under the lock and exit as it did. Raises CommandError where it did not run, or the lock was lost."""
    try:
        # Before anything here has a thread or a socket: neither survives a fork.
        guardian = Guardian(wanted.command, wanted.kill_grace_ns)
    except Unsupported as error:
        raise refused(f"client lock does not work here: {error}") from None
    except OSError as error:
        raise refused(f"no process can be started: {error.strerror}") from None
    code = _hold(wanted, guardian, _Signals())
    if code == -signal.SIGINT:
        # A shell that runs a script goes on with it unless who was interrupted dies of that.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    raise SystemExit(code)


def _hold(wanted: Wanted, guardian: Guardian, signals: "_Signals") -> int:
    """Take the lock, have COMMAND run, give the lock back; return the exit code, or -SIGINT to die of that."""
    from client.lock_errors import LockError, NotAcquired
    from client.locking import LockClient

    client: LockClient | None = None
    try:
        with signals.cancel():
            reach_s = min(_REACH_S, max(_REACH_S_MIN, wanted.wait_ns / 1e9))
            client = LockClient(lockd=wanted.lockd, name=wanted.name, wait=reach_s)
            _check_grace(wanted.kill_grace_ns, client.lock_delay_ns)
            lock = client.lock(
                wanted.lock,
                wait=wanted.wait_ns / 1e9,
                shared=wanted.shared,
                on_lost=lambda *_: signals.wake(),
            )
            lock.acquire()
        code = _Run(wanted, guardian, signals, client, lock).run()
        lock.release()
    except NotAcquired as error:
        raise CommandError(wanted.conflict_code, f"{error}") from None
    except LockError as error:
        raise refused(f"{error}") from None
    except _Cancelled as cancelled:
        line = f"ended by {signal.Signals(cancelled.number).name} before COMMAND was started"
        if cancelled.number == signal.SIGINT:
            _say(line)
            return -signal.SIGINT
        raise CommandError(128 + cancelled.number, line) from None
    finally:
        guardian.close()  # first, whatever happened: nothing of COMMAND is left when the lock is free
        if client is not None:
            client.close()
    return code


def _check_grace(kill_grace_ns: int, lock_delay_ns: int) -> None:
    if kill_grace_ns + SLACK_NS <= lock_delay_ns:
        return
    enough = f"start lockd with --lock-delay {_ms(kill_grace_ns + SLACK_NS)}"
    if lock_delay_ns >= SLACK_NS:
        enough = f"give --kill-grace {_ms(lock_delay_ns - SLACK_NS)}, or {enough}"
    raise wrong_use(
        f"--kill-grace {_ms(kill_grace_ns)} and {_ms(SLACK_NS)} for delays are longer than lockd's --lock-delay"
        f" {_ms(lock_delay_ns)}: COMMAND could still run when the lost lock goes to another; {enough}"
    )


def _ms(time_ns: int) -> str:
    return f"{time_ns // 1_000_000}ms"


class _Run:
    """COMMAND, while it runs."""

    def __init__(
        self, wanted: Wanted, guardian: Guardian, signals: "_Signals", client: "LockClient", lock: "Lock"
    ) -> None:
        self._wanted, self._guardian, self._signals, self._client, self._lock = wanted, guardian, signals, client, lock
        self._token = str(lock.token)
        self._terminal = Terminal()
        self._group = 0
        """COMMAND's process group; 0 before its start."""
        self._told_ns = 0
        """Up to when the guardian believes in the lock."""
        self._what = f"lock {printable(wanted.lock)} (token {self._token})"
        self._is_over = False
        """The lock was lost: the guardian knows it."""
        self._end = ""
        """How COMMAND came to its end, in words."""
        self._was_told_to_stop = False
        self._was_interrupted = False

    def run(self) -> int:
        """Run COMMAND; return its exit code. Raises CommandError where it did not run, or the lock was lost."""
        self._signals.pass_on()
        in_front = self._terminal.is_ours_alone()
        rest = f"{self._token}\0{self._wanted.lock}".encode()
        self._told_ns = self._client.lease_ends_ns
        self._guardian.say(Frame(Kind.START, self._told_ns, int(in_front), rest))
        poll = select.poll()
        poll.register(self._guardian, select.POLLIN)
        poll.register(self._signals.descriptor, select.POLLIN)
        try:
            while True:
                poll.poll(max(10, self._client.ttl_ns // 10_000_000))
                self._guardian.look_after()
                self._renew()
                self._pass_signals()
                for frame in self._frames():
                    self._heard(frame)
                    if frame.kind is Kind.EXITED:
                        return self._exit_code(frame.first, frame.second)
        except EOFError:
            self._guardian.replace()
            line = "the guardian was killed, so COMMAND was ended; then the lock was given back"
            raise CommandError(EXIT_UNKNOWN, f"{self._what}: {line}") from None
        finally:
            if self._group and self._terminal.in_front() == self._group:
                self._terminal.bring_to_front(os.getpgrp())
            self._terminal.close()

    def _frames(self) -> Iterator[Frame]:
        while frame := self._guardian.hear():
            yield frame

    def _heard(self, frame: Frame) -> None:
        if frame.kind is Kind.STARTED:
            self._group = frame.first
        elif frame.kind is Kind.FAILED:
            raise self._not_run(frame.first)
        elif frame.kind is Kind.STOPPED:
            self._stopped(frame.first)
        elif frame.kind is Kind.DEADLINE:
            self._end = "COMMAND was ended"
            self._is_over = True
        elif frame.kind is Kind.STUBBORN:
            _say(f"{self._what}: {frame.first} of COMMAND's processes cannot be killed, as {frame.second}; waiting")

    def _not_run(self, problem: int) -> CommandError:
        if problem == errno.ETIME:
            return refused(f"{self._what} was lost before COMMAND was started; nothing happened")
        code = _EXIT_NOT_FOUND if problem == errno.ENOENT else _EXIT_CANNOT_RUN
        return CommandError(code, f"COMMAND {self._wanted.command[0]!r} cannot be run: {os.strerror(problem)}")

    def _renew(self) -> None:
        """Tell the guardian how long the lock is safe, or that it is lost."""
        ends_ns = self._client.lease_ends_ns
        # The lease first, then the look: a lease of the next session rises after this lock was known to be lost.
        if self._lock.lost.is_set():
            if not self._is_over:
                self._guardian.say(Frame(Kind.END))
                self._end = "COMMAND was ended"
                self._is_over = True
        elif ends_ns != self._told_ns:
            self._guardian.say(Frame(Kind.RENEW, ends_ns))
            self._told_ns = ends_ns

    def _pass_signals(self) -> None:
        for number in self._signals.take():
            self._was_told_to_stop |= number == signal.SIGTSTP
            self._was_interrupted |= number == signal.SIGINT
            self._guardian.say(Frame(Kind.SIGNAL, number))

    def _stopped(self, number: int) -> None:
        """Stop as COMMAND has stopped, so that our caller, a shell, sees it; go on when that lets us go on."""
        own, front = os.getpgrp(), self._terminal.in_front()
        if number in (signal.SIGTTIN, signal.SIGTTOU) and front == own:
            # It wants the terminal, which we had left to all that run with us.
            self._terminal.bring_to_front(self._group)
        elif front == self._group or number in (signal.SIGTTIN, signal.SIGTTOU):
            self._terminal.bring_to_front(own)
            os.killpg(own, signal.SIGSTOP)  # the keyboard's signal reached COMMAND alone: so all that run with us
            if self._terminal.in_front() == own:
                self._terminal.bring_to_front(self._group)
        elif self._was_told_to_stop:
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            return  # somebody has stopped COMMAND alone, and will let it go on
        self._was_told_to_stop = False
        self._guardian.say(Frame(Kind.SIGNAL, signal.SIGCONT))

    def _exit_code(self, status: int, left: int) -> int:
        """Return the exit code of COMMAND, of which nothing is left. Raises CommandError where the lock was lost."""
        from client.lock_errors import LockLost

        code = os.waitstatus_to_exitcode(status)
        code = code if code >= 0 else 128 - code
        if not self._end:
            self._end = f"COMMAND had ended by itself, with exit code {code}"
        try:
            self._lock.check()
        except LockLost as error:
            raise CommandError(EXIT_UNKNOWN, f"{printable(str(error))}; {self._end}") from None
        if self._is_over:
            line = "this process stood still for so long that the guardian took the lock for lost"
            raise CommandError(EXIT_UNKNOWN, f"{self._what}: {line}; {self._end}")
        if left:
            what = "1 process" if left == 1 else f"{left} processes"
            _say(f"COMMAND left {what} behind, ended before the lock was given back")
        if code == 128 + signal.SIGINT and os.WIFSIGNALED(status):
            if self._group and self._terminal.in_front() == self._group:
                # The keyboard's signal reached COMMAND alone: so all that run with us.
                os.killpg(os.getpgrp(), signal.SIGINT)
                return -signal.SIGINT
            if self._was_interrupted:
                return -signal.SIGINT
        return code


class _Cancelled(Exception):
    """A signal ended the wait for the lock."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Signals:
    """The signals that came, in order; those that our caller had ignored stay ignored."""

    def __init__(self) -> None:
        self.descriptor, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._is_cancelling = False
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self._watch(*_ENDING, signal.SIGCHLD)

    def pass_on(self) -> None:
        """From now on take those, too, that mean something only once COMMAND runs: Ctrl-Z stopped us before."""
        self._watch(*_PASSED)

    def _watch(self, *numbers: signal.Signals) -> None:
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._catch)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self._is_cancelling and number in _ENDING:
            self._is_cancelling = False
            raise _Cancelled(number)

    @contextmanager
    def cancel(self) -> Iterator[None]:
        """Let a signal that came, or comes, in here raise _Cancelled."""
        self._is_cancelling = True
        try:
            for number in self.take():
                self._catch(number, None)
            yield
        finally:
            self._is_cancelling = False

    def take(self) -> list[int]:
        """Return what has come since the last call."""
        try:
            return [number for number in os.read(self.descriptor, 4096) if number in (*_ENDING, *_PASSED)]
        except BlockingIOError:
            return []

    def wake(self) -> None:
        """Make `descriptor` readable; any thread may."""
        try:
            os.write(self._wake, b"\0")
        except BlockingIOError:
            pass  # it is so already


def _say(text: str) -> None:
    print(f"client: {printable(text)}", file=sys.stderr, flush=True)
