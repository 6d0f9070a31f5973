"""SIGINT and SIGTERM as something to poll: a handler that only sets a flag does not wake a poller."""

import os
import signal
from types import FrameType

import zmq

from common.sockets import receive_from


class _Woken(Exception):
    """A signal came while we waited for a message."""


class Signals:
    """Catches the two signals that ask a process to end; `descriptor` becomes readable when one came."""

    def __init__(self) -> None:
        """Install the handlers; only a process's main thread can."""
        self.descriptor, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.caught: int | None = None
        self._receiving = False
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._catch)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.caught = number
        if self._receiving:
            self._receiving = False
            raise _Woken

    def receive_from(self, socket: zmq.Socket[bytes]) -> tuple[list[bytes], int] | None:
        """Wait for a message within the socket's RCVTIMEO; None when the time is over, or a signal has come.

        A blocking receive costs a third less than a poll before it; it ends early only by an exception, which
        the handler raises here and nowhere else.
        """
        try:
            self._receiving = True
            if self.caught is None:
                return receive_from(socket, wait=True)
        except (_Woken, zmq.Again):
            pass
        finally:
            self._receiving = False
        return None

    def close(self) -> None:
        """Give the signals back and close the pipe."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.close(self.descriptor)
        os.close(self._write)
