"""A connection to lockd that the caller's own thread reads and writes, as a DEALER does.

libzmq hands every message from one of its threads to the caller's and back. For one who waits for a lock that doubles
the wake-ups, which are most of what a hand-off costs on one machine. So the client of locks speaks the protocol of the
wire itself, as lockd does: see common.zmtp.
"""

import socket
import struct
import time
from typing import Final

from common.zmtp import COMMAND, GREETING, MORE, SHORT, Frames, WrongWire, framed, pong, properties, ready

_TIMEVAL: Final = struct.Struct("@ll")
_CHUNK: Final = 1 << 12
_SEND_S: Final = 1.0
"""lockd reads all the time: who cannot send for so long has no connection any more."""
_INTERRUPTED: Final = "a call was interrupted"


class Disconnected(Exception):
    """The connection is down, or speaks something else; the text says which."""


class Connection:
    """An open connection. Any thread may send while one other receives; sends are one after the other."""

    def __init__(self, endpoint: str, routing_id: bytes, timeout_s: float) -> None:
        """Connect to `endpoint`, within `timeout_s` seconds. Raises Disconnected."""
        self.broken = False
        """Something was interrupted, so what it sent or received may be lost: it is of no use any more."""
        self._frames = Frames()
        self._wait_ns = 0
        end = time.monotonic() + timeout_s
        self._socket = _connected(endpoint, timeout_s)
        try:
            self._socket.sendall(GREETING)
            self._socket.sendall(ready(b"DEALER", routing_id))
            while not (frames := self._fill(end)):
                pass
            if len(frames) > 1 or not frames[0][0] & COMMAND:
                raise WrongWire("it does not begin with READY alone")
            properties(frames[0][1])
            # From here on the kernel keeps the time of each direction by itself.
            self._socket.settimeout(None)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(int(_SEND_S), 0))
        except (OSError, Disconnected) as error:
            self._socket.close()
            raise Disconnected(str(error)) from None
        except WrongWire as error:
            self._socket.close()
            raise Disconnected(f"what listens there is no lockd: {error}") from None
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor, to poll: it is readable when `receive` has something to read."""
        return self._socket.fileno()

    def send(self, message: bytes) -> None:
        """Send one message. Raises Disconnected, after which the connection is of no use."""
        if self.broken:
            raise Disconnected(_INTERRUPTED)
        try:
            size = len(message)
            self._socket.sendall(SHORT[size] + message if size < 256 else framed(message))
        except OSError as error:
            raise Disconnected(f"lockd does not take in what is sent ({error})") from None

    def receive(self, wait_ns: int) -> list[bytes]:
        """Return the messages that come next, none when there are none within `wait_ns` nanoseconds.

        It may return earlier, since the time is rounded down to a power of two: to change it costs a call.
        Raises Disconnected.
        """
        if self.broken:
            raise Disconnected(_INTERRUPTED)
        if wait_ns > 0 and not self._wait_ns <= wait_ns < 2 * self._wait_ns:
            self._wait_at_most(wait_ns)
        messages: list[bytes] = []
        try:
            chunk = self._socket.recv(_CHUNK, 0 if wait_ns > 0 else socket.MSG_DONTWAIT)
            if not chunk:
                raise Disconnected("lockd has closed the connection")
            for flags, body in self._frames.feed(chunk):
                if not flags & (COMMAND | MORE):
                    messages.append(body)
                elif flags & MORE:
                    raise WrongWire("it sends messages of more than one part")
                elif (answer := pong(body)) is not None:
                    self._socket.sendall(answer)
        except (BlockingIOError, TimeoutError):
            pass
        except (OSError, WrongWire) as error:
            raise Disconnected(f"the connection broke ({error})") from None
        return messages

    def close(self) -> None:
        """Close; a thread that receives hears of it."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()

    def abandon(self) -> None:
        """Close this process's descriptor alone: behind a fork the connection belongs to the parent."""
        self._socket.close()

    def _fill(self, end: float) -> list[tuple[int, bytes]]:
        """Read once more of the beginning, until the time is over. Raises Disconnected, WrongWire."""
        self._socket.settimeout(max(0.001, end - time.monotonic()))
        chunk = self._socket.recv(_CHUNK)
        if not chunk:
            raise Disconnected("the connection was closed at once")
        return self._frames.feed(chunk)

    def _wait_at_most(self, wait_ns: int) -> None:
        wait_ns = 1 << max(20, wait_ns.bit_length() - 1)
        if wait_ns != self._wait_ns:
            self._wait_ns = wait_ns
            seconds, nanoseconds = divmod(self._wait_ns, 1_000_000_000)
            value = _TIMEVAL.pack(seconds, nanoseconds // 1000)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)


def _connected(endpoint: str, timeout_s: float) -> socket.socket:
    try:
        if endpoint.startswith("ipc://"):
            path = endpoint.removeprefix("ipc://")
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(timeout_s)
            try:
                connection.connect("\0" + path[1:] if path.startswith("@") else path)
            except BaseException:
                connection.close()
                raise
            return connection
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        connection = socket.create_connection((host, int(port)), timeout_s)
    except OSError as error:
        raise Disconnected(error.strerror or str(error)) from None
    except ValueError:  # for what no resolver is asked, as a name with an empty part
        raise Disconnected("HOST cannot be a host's name") from None
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return connection
