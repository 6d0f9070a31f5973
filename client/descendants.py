"""The processes below this one, and the end of all of them. Linux alone; imports little, for the guardian uses it.

Theory of operation. A process that is a child subreaper (prctl(2), since Linux 3.4) becomes the parent of each orphan
below it, whatever the orphan did: a second fork, setsid, a process group of its own. So `waitpid` that says ECHILD
proves that none is left, and nothing else does: what /proc shows was true a moment ago. To kill is therefore to try
again until then.

A process that forks as fast as we look is first stopped: who is killed makes room for another fork, who is stopped
does not, and a fork under way fails where a signal is pending. When a look finds nobody new, all are stopped, and
are killed. Each is signalled at the very moment it is found, because the quickest flee by having a child and ending.
"""

import ctypes
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
_WALL: Final = 0x4000_0000
"""wait(2): also for children that another signal than SIGCHLD would announce."""
_LOOKS_MAX: Final = 200
"""So often those that are new are stopped before all are killed, in one round of `Tree.kill`."""

_libc = ctypes.CDLL(None, use_errno=True)


class Unsupported(Exception):
    """This system lacks what is needed to end a whole tree of processes; the text says what."""


def become_subreaper() -> None:
    """Become the parent of every orphan below this process. Raises Unsupported."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        raise Unsupported(
            "there is no /proc/PID/task/TID/children; it takes Linux with CONFIG_PROC_CHILDREN, and /proc"
        )


def die_with(parent: int) -> None:
    """Have this process killed when its parent ends; end it now if that has happened. exec leaves this as it is."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def name_process(name: str) -> None:
    """Show as `name`, of at most 15 characters, where processes are listed."""
    _libc.prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()), 0, 0, 0)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise Unsupported(f"prctl {option}: {os.strerror(ctypes.get_errno())}")


def children(process: int) -> list[int]:
    """Return a process's children, of all its threads; none if it is gone."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{process}/task"):
            with open(f"/proc/{process}/task/{thread}/children", "rb", buffering=0) as file:
                found.extend(map(int, file.readall().split()))
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def is_alive(process: int) -> bool:
    """Tell whether a process is there and not only a zombie."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] not in b"ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Tree:
    """All that is below this process, which is a subreaper; but nothing below its children that are `spared`."""

    def __init__(self, spared: frozenset[int] = frozenset()) -> None:
        """Look at nothing yet."""
        self._spared = spared
        self.is_empty = False
        """What the last `reap` found."""

    def __iter__(self) -> Iterator[int]:
        """Go through all that are found now, each before its children."""
        seen = set(self._spared)
        waiting = [os.getpid()]
        while waiting:
            for process in children(waiting.pop()):
                if process not in seen:
                    seen.add(process)
                    waiting.append(process)
                    yield process

    def reap(self, *, tell_stopped: bool = False) -> list[tuple[int, int]]:
        """Return process and wait status of each child that has ended, or stopped, if that is to be told."""
        ended = []
        self.is_empty = False
        try:
            while True:
                process, status = os.waitpid(-1, os.WNOHANG | _WALL | (os.WUNTRACED if tell_stopped else 0))
                if process == 0:
                    break
                ended.append((process, status))
        except ChildProcessError:
            self.is_empty = True
        if self._spared and not self.is_empty:
            self.is_empty = self._spared.issuperset(children(os.getpid()))
        return ended

    def send(self, *numbers: signal.Signals) -> None:
        """Send these signals, in order, to all that are found now."""
        for process in self:
            _send(process, *numbers)

    def kill(self, group: int = 0) -> list[tuple[int, int]]:
        """Kill all, and first, at one stroke, those of a process group, if one is named; return what `reap` does.

        The caller looks at `is_empty`, and if it is not so, calls again. Who may not be signalled (it has become
        another user) is left.
        """
        ended: list[tuple[int, int]] = []
        known: set[int] = set()
        for _ in range(_LOOKS_MAX):
            if group and any(_group_of(process) == group for process in self):
                # The kernel lets nobody in this group fork while it passes the signal on.
                _send(-group, signal.SIGKILL)
            before = len(known)
            for process in self:
                if process not in known:
                    _send(process, signal.SIGSTOP)
                    known.add(process)
            ended += self.reap()
            if len(known) == before:
                break
        self.send(signal.SIGKILL)
        return ended + self.reap()


def _group_of(process: int) -> int:
    try:
        return os.getpgid(process)
    except ProcessLookupError:
        return -1


def _send(process: int, *numbers: signal.Signals) -> None:
    for number in numbers:
        try:
            os.kill(process, number)
        except (ProcessLookupError, PermissionError):
            return
