"""SIGINT and SIGTERM as something to poll: a handler that only sets a flag does not wake a poller."""

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

Found = TypeVar("Found")


class Woken(Exception):
    """A signal came while we waited."""


class Stop:
    """Catches the two signals that ask a process to end; `descriptor` becomes readable when one came."""

    def __init__(self) -> None:
        """Install the handlers; only a process's main thread can."""
        self.descriptor, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.caught: int | None = None
        self._waiting = False
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._catch)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.caught = number
        if self._waiting:
            self._waiting = False
            raise Woken

    def wait_for(self, find: Callable[[], Found]) -> Found | None:
        """Return what `find` returns, or None once a signal has come: it breaks off a call that blocks.

        The handler raises while `find` runs, and nowhere else. What `find` was about to return may be lost then.
        """
        try:
            self._waiting = True
            if self.caught is None:
                return find()
        except Woken:
            pass
        finally:
            self._waiting = False
        return None

    def close(self) -> None:
        """Give the signals back and close the pipe."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.close(self.descriptor)
        os.close(self._write)
