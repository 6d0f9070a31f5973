"""The signals that ask a process to end, for one that waits in ZeroMQ's receive."""

from types import FrameType

import zmq

from common.sockets import receive_from
from common.stopping import Stop


class _Woken(Exception):
    """A signal came while we waited for a message."""


class Signals(Stop):
    """A Stop that also ends a receive."""

    def __init__(self) -> None:
        """Install the handlers; only a process's main thread can."""
        self._receiving = False
        super().__init__()

    def _catch(self, number: int, frame: FrameType | None) -> None:
        super()._catch(number, frame)
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
