"""The signals that ask a process to end, for one that waits in ZeroMQ's receive."""

import zmq

from common.sockets import receive_from
from common.stopping import Stop, Woken


class Signals(Stop):
    """A Stop that also ends a receive."""

    def receive_from(self, socket: zmq.Socket[bytes]) -> tuple[list[bytes], int] | None:
        """Wait for a message within the socket's RCVTIMEO; None when the time is over, or a signal has come.

        A blocking receive costs a third less than a poll before it; it ends early only by an exception, which
        the handler raises here and nowhere else.
        """
        try:
            self._waiting = True
            if self.caught is None:
                return receive_from(socket, wait=True)
        except (Woken, zmq.Again):
            pass
        finally:
            self._waiting = False
        return None
