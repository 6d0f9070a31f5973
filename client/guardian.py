"""The guardian of `client lock`: a small process of its own that runs COMMAND, and ends all of it in time.

Theory of operation. It is forked from the wrapper, the process that people started, before that has a thread, a socket
or a session. The wrapper holds the lock and tells up to when (RENEW, by CLOCK_BOOTTIME, which also counts while the
machine sleeps). The guardian believes its own clock and nothing else: when that moment passes, when the wrapper says
so or is gone, it sends SIGTERM to all that is below it, and `kill grace` later kills it, until nothing is left
(client.descendants). So a wrapper that is stopped, killed or cut off from lockd does not keep COMMAND alive.

What COMMAND has left behind when it ends by itself is ended in the same way: the lock is given back after that.

It never waits for anybody: frames that do not fit are dropped, nothing is printed before the tree is gone, and signals
that were meant for others are blocked. If it is killed, COMMAND is killed with it, and the wrapper ends the rest.
"""

import errno
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NoReturn

from client.descendants import Tree, become_subreaper, children, die_with, is_alive, name_process
from common.printing import printable

_LOOK_EVERY_MS: Final = 50
"""poll(2) does not count the time in which the machine sleeps, so it is not trusted for longer than this."""
_KILL_FIRST_MS: Final = 2
_KILL_EVERY_MS: Final = 50
"""Pauses between one round of killing and the next double up to this: who is killed needs a processor to be gone."""
_STUBBORN_NS: Final = 2_000_000_000
"""Who is left so long after SIGKILL is named."""
_FRAME: Final = struct.Struct("=Bqq")
_FRAME_BYTES_MAX: Final = 4096


class Kind(IntEnum):
    """What a frame says: the wrapper's first, then the guardian's. Each has two numbers; the order is theirs."""

    START = 1
    """Run COMMAND: deadline in nanoseconds, 1 if it gets the terminal; then its token and lock, with a NUL between."""
    RENEW = 2
    """The lock is safe up to this deadline, later than the one before or earlier."""
    SIGNAL = 3
    """Send this signal to COMMAND's process group."""
    END = 4
    """End all of it now."""
    STARTED = 5
    """COMMAND has this process id, which is also its process group's."""
    FAILED = 6
    """It could not be run: errno; none of it is left."""
    STOPPED = 7
    """COMMAND was stopped, by this signal."""
    DEADLINE = 8
    """The deadline has passed: all of it is being ended."""
    STUBBORN = 9
    """So many were killed and are still there; one of them."""
    EXITED = 10
    """None of it is left: COMMAND's wait status, and how many it had left behind when it ended by itself."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame's kind and numbers, and START's bytes."""

    kind: Kind
    first: int = 0
    second: int = 0
    rest: bytes = b""


@dataclass(frozen=True, slots=True)
class _Caller:
    """What the caller of the wrapper left to COMMAND: signals blocked and ignored, scheduling."""

    blocked: set[int]
    ignored: frozenset[int]
    scheduler: int
    scheduler_priority: int


class Guardian:
    """The wrapper's side: the guardian process, and the line to it."""

    def __init__(self, command: Sequence[str], kill_grace_ns: int) -> None:
        """Fork it. This process must have no thread yet. Raises Unsupported, or OSError."""
        become_subreaper()  # for the case that the guardian is killed: what is below it comes to us
        self._kill_grace_ns = kill_grace_ns
        self._spared = frozenset(children(os.getpid()))
        self._line, line = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ignored = frozenset(number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        # Python itself ignores these two.
        ignored -= {signal.SIGPIPE, signal.SIGXFSZ}
        scheduling = os.sched_getscheduler(0), os.sched_getparam(0).sched_priority
        caller = _Caller({int(number) for number in blocked}, ignored, *scheduling)
        try:
            self.process = os.fork()
            if self.process == 0:
                self._line.close()
                _run(line, command, kill_grace_ns, caller)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            line.close()
        try:
            os.setpgid(self.process, self.process)  # it does so, too; now it has happened
        except ProcessLookupError:
            pass

    def fileno(self) -> int:
        """Return a descriptor that is readable when the guardian has said something, or ended."""
        return self._line.fileno()

    def say(self, frame: Frame) -> None:
        """Tell the guardian, unless it is gone or has not taken in what it was told before."""
        _send(self._line, frame)

    def hear(self) -> Frame | None:
        """Return what it said next, or None where it has said nothing. Raises EOFError where it has ended."""
        return _receive(self._line)

    def look_after(self) -> None:
        """Let it go on at once where somebody has stopped it: its rule must not stand still."""
        try:
            process, status = os.waitpid(self.process, os.WNOHANG | os.WUNTRACED)
        except ChildProcessError:
            return
        if process and os.WIFSTOPPED(status):
            os.kill(process, signal.SIGCONT)

    def replace(self) -> None:
        """The guardian was killed: end what was below it, by SIGTERM, and a kill grace later SIGKILL."""
        tree = Tree(self._spared)
        tree.send(signal.SIGTERM, signal.SIGCONT)
        kill_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + self._kill_grace_ns
        while True:
            tree.reap()
            if tree.is_empty:
                return
            if time.clock_gettime_ns(time.CLOCK_BOOTTIME) >= kill_ns:
                tree.kill()
            time.sleep(_KILL_FIRST_MS / 1e3)

    def close(self) -> None:
        """Let it go: if it has not ended, it ends all that is below it. Return when it has ended; then do no more."""
        self._line.close()
        try:
            os.waitpid(self.process, 0)
        except ChildProcessError:
            pass  # it was reaped with others, when it was found to be gone


def _send(line: socket.socket, frame: Frame) -> None:
    try:
        line.send(_FRAME.pack(frame.kind, frame.first, frame.second) + frame.rest, socket.MSG_DONTWAIT)
    except (BlockingIOError, BrokenPipeError, ConnectionResetError):
        return


def _receive(line: socket.socket) -> Frame | None:
    try:
        data = line.recv(_FRAME_BYTES_MAX, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except ConnectionResetError:
        # It ended before it had read all that we said. Linux tells that first, and once; what it said is still to come.
        return _receive(line)
    if not data:
        raise EOFError
    kind, first, second = _FRAME.unpack_from(data)
    return Frame(Kind(kind), first, second, data[_FRAME.size :])


def _run(line: socket.socket, command: Sequence[str], kill_grace_ns: int, caller: _Caller) -> NoReturn:
    """Be the guardian. All signals are blocked on entry."""
    code = 1
    try:
        os.setpgid(0, 0)
        become_subreaper()
        name_process("client-guardian")
        try:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        except OSError:
            pass  # only root may; without it, a COMMAND that takes every processor is ended later
        _Watch(line, command, kill_grace_ns, caller).watch()
        code = 0
    except BaseException:  # noqa: BLE001  (nothing may lead from here back into the wrapper's code)
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


class _Watch:
    """The guardian process."""

    def __init__(self, line: socket.socket, command: Sequence[str], kill_grace_ns: int, caller: _Caller) -> None:
        self._line: socket.socket | None = line
        self._command, self._kill_grace_ns, self._caller = command, kill_grace_ns, caller
        self._tree = Tree()
        self._lock = ""
        self._deadline_ns = 0
        self._process = 0
        """COMMAND's id, and its process group's; 0 before its start."""
        self._failure = -1
        """A pipe on which COMMAND says why it could not be run."""
        self._status: int | None = None
        self._left = 0
        self._kill_ns: int | None = None
        """When it is, or was, time to kill; None while nothing speaks against COMMAND."""
        self._rounds = 0
        self._told_stubborn = False
        self._poll = select.poll()
        self._poll.register(line, select.POLLIN)

    def watch(self) -> None:
        """Wait for START, then watch until nothing is left."""
        self._wake_for_children()
        while self._process == 0:
            self._poll.poll()
            self._hear()
            if self._line is None and self._process == 0:
                return
        while True:
            self._reaped(self._tree.reap(tell_stopped=self._kill_ns is None))
            if self._status is not None and self._tree.is_empty:
                self._over(self._status)
                return
            now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            if self._kill_ns is None:
                if self._status is not None:
                    self._left = sum(map(is_alive, self._tree))
                    self._end()
                elif now_ns >= self._deadline_ns:
                    self._say(Kind.DEADLINE)
                    self._end()
            elif now_ns >= self._kill_ns:
                self._reaped(self._tree.kill(self._process))
                self._rounds = min(self._rounds + 1, 10)
                self._tell_stubborn(now_ns)
            self._poll.poll(self._wait_ms())
            self._hear()

    def _wake_for_children(self) -> None:
        """Have poll end when a child ends or stops; all other signals stay blocked."""
        self._woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        self._poll.register(self._woken, select.POLLIN)

    def _wait_ms(self) -> float:
        if self._kill_ns is None:
            due_ns = self._deadline_ns
        else:
            due_ns = self._kill_ns
            if due_ns <= time.clock_gettime_ns(time.CLOCK_BOOTTIME):
                return min(_KILL_FIRST_MS << self._rounds, _KILL_EVERY_MS)
        left_ms = (due_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) / 1e6
        return min(max(0.0, left_ms) + 1, _LOOK_EVERY_MS)

    # What the wrapper says

    def _hear(self) -> None:
        """Take in all that the wrapper has said, and that it is gone."""
        try:
            os.read(self._woken, 4096)
        except BlockingIOError:
            pass
        while self._line is not None:
            try:
                frame = _receive(self._line)
            except EOFError:
                self._poll.unregister(self._line)
                self._line.close()
                self._line = None
                if self._process:
                    self._end()
                break
            if frame is None:
                break
            self._heard(frame)

    def _heard(self, frame: Frame) -> None:
        if frame.kind is Kind.START and self._process == 0:
            self._start(frame)
        elif frame.kind is Kind.RENEW:
            self._deadline_ns = frame.first
        elif frame.kind is Kind.SIGNAL and self._process and self._status is None:
            try:
                os.killpg(self._process, frame.first)
            except (ProcessLookupError, PermissionError):
                pass
        elif frame.kind is Kind.END and self._process:
            self._end()

    def _say(self, kind: Kind, first: int = 0, second: int = 0) -> None:
        if self._line is not None:
            _send(self._line, Frame(kind, first, second))

    # COMMAND

    def _start(self, frame: Frame) -> None:
        self._deadline_ns = frame.first
        token, _, lock = os.fsdecode(frame.rest).partition("\0")
        self._lock = lock
        environment = {**os.environ, "LOCKSTEP_TOKEN": token, "LOCKSTEP_LOCK": lock}
        self._failure, failure = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        guardian = os.getpid()
        if time.clock_gettime_ns(time.CLOCK_BOOTTIME) >= self._deadline_ns:
            self._say(Kind.FAILED, errno.ETIME)
            return
        try:
            self._process = os.fork()
        except OSError as error:
            self._say(Kind.FAILED, error.errno or errno.EAGAIN)
            return
        if self._process == 0:
            self._become(environment, failure, guardian, has_terminal=frame.second == 1)
        os.close(failure)
        try:
            os.setpgid(self._process, self._process)  # also here: the next SIGNAL must find it
        except OSError:
            pass  # it has done so itself, and runs already
        self._say(Kind.STARTED, self._process)

    def _become(self, environment: dict[str, str], failure: int, guardian: int, *, has_terminal: bool) -> NoReturn:
        """Be COMMAND, as its caller would have run it, but for the environment and the process group."""
        problem = errno.EIO
        try:
            die_with(guardian)
            os.setpgid(0, 0)
            os.sched_setscheduler(0, self._caller.scheduler, os.sched_param(self._caller.scheduler_priority))
            if has_terminal:
                try:
                    os.tcsetpgrp(0, os.getpid())  # SIGTTOU is blocked, as all signals are
                except OSError:
                    pass  # the terminal has hung up
            signal.set_wakeup_fd(-1)
            for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                action = signal.SIG_IGN if number in self._caller.ignored else signal.SIG_DFL
                if signal.getsignal(number) is not action:
                    signal.signal(number, action)
            signal.pthread_sigmask(signal.SIG_SETMASK, self._caller.blocked)
            os.execvpe(self._command[0], list(self._command), environment)
        except OSError as error:
            problem = error.errno or errno.EIO
        finally:
            os.write(failure, problem.to_bytes(4, "little"))
            os._exit(127)

    def _reaped(self, ended: list[tuple[int, int]]) -> None:
        for process, status in ended:
            if process != self._process or self._status is not None:
                continue
            if os.WIFSTOPPED(status):
                self._say(Kind.STOPPED, os.WSTOPSIG(status))
            else:
                self._status = status

    # The end

    def _end(self) -> None:
        """Ask all of it to end, once; those that are stopped have to run to hear it."""
        if self._kill_ns is None:
            self._kill_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + self._kill_grace_ns
            self._tree.send(signal.SIGTERM, signal.SIGCONT)

    def _tell_stubborn(self, now_ns: int) -> None:
        assert self._kill_ns is not None
        if not self._told_stubborn and now_ns >= self._kill_ns + _STUBBORN_NS:
            self._told_stubborn = True
            left = list(self._tree)
            if left:
                self._say(Kind.STUBBORN, len(left), left[0])

    def _over(self, status: int) -> None:
        """Say that nothing is left: to the wrapper, or where that is gone, to people."""
        if self._line is None:
            text = f"client: lock {printable(self._lock)}: the process that held it was killed; COMMAND was ended\n"
            if select.select([], [2], [], 0)[1]:
                os.write(2, text.encode("utf-8", "replace"))
        elif problem := os.read(self._failure, 4):
            self._say(Kind.FAILED, int.from_bytes(problem, "little"))
        else:
            self._say(Kind.EXITED, status, self._left)
