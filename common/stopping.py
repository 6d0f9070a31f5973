"""Signals that ask a process to end as something to poll: a handler that only sets a flag does not wake a poller."""

import os
import signal
from collections.abc import Sequence
from types import FrameType


class Stop:
    """Catches the signals that ask a process to end; `descriptor` becomes readable when one came."""

    def __init__(self, numbers: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)) -> None:
        """Install the handlers; only a process's main thread can."""
        self._numbers = numbers
        self.descriptor, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.caught: int | None = None
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, self._catch)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.caught = number

    def close(self) -> None:
        """Give the signals back and close the pipe."""
        signal.set_wakeup_fd(-1)
        for number in self._numbers:
            signal.signal(number, signal.SIG_DFL)
        os.close(self.descriptor)
        os.close(self._write)
