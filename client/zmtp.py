"""A connection to lockd's ROUTER that the caller's own thread reads and writes: ZMTP 3.1, NULL mechanism, as a DEALER.

libzmq hands every message from one of its threads to the caller's and back. For one who waits for a lock that doubles
the wake-ups, which are most of what a hand-off costs on one machine. So the client of locks speaks the protocol of the
wire itself: https://rfc.zeromq.org/spec/23/. lockd is libzmq's, and cannot tell the difference.
"""

import socket
import struct
import time
from typing import Final

from common.limits import FRAME_BYTES_MAX

_GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
_MORE, _LONG, _COMMAND = 1, 2, 4
_LENGTH: Final = struct.Struct(">Q")
_TIMEVAL: Final = struct.Struct("@ll")
_CHUNK: Final = 1 << 16
_SEND_S: Final = 1.0
"""lockd reads all the time: who cannot send for so long has no connection any more."""


class Disconnected(Exception):
    """The connection is down, or speaks something else; the text says which."""


class Connection:
    """An open connection. Any thread may send while one other receives; sends are one after the other."""

    def __init__(self, endpoint: str, routing_id: bytes, timeout_s: float) -> None:
        """Connect to `endpoint`, within `timeout_s` seconds. Raises Disconnected."""
        self._buffer = b""
        self._wait_ns = -1
        end = time.monotonic() + timeout_s
        self._socket = _connected(endpoint, timeout_s)
        try:
            self._socket.sendall(_GREETING)
            self._fill(len(_GREETING), end)
            greeting, self._buffer = self._buffer[: len(_GREETING)], self._buffer[len(_GREETING) :]
            if greeting[0] != 0xFF or greeting[9] & 1 == 0 or greeting[10] < 3 or greeting[12:17] != b"NULL\0":
                raise Disconnected("what listens there does not speak ZMTP 3 without encryption")
            ready = b"\x05READY" + _property(b"Socket-Type", b"DEALER") + _property(b"Identity", routing_id)
            self._socket.sendall(bytes([_COMMAND, len(ready)]) + ready)
            while (frame := self._take()) is None:
                self._fill(len(self._buffer) + 1, end)
            if not frame[0] & _COMMAND or not frame[1].startswith(b"\x05READY"):
                raise Disconnected(f"what listens there refuses: {frame[1][:80]!r}")
            # From here on the kernel keeps the time of each direction by itself.
            self._socket.settimeout(None)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(int(_SEND_S), 0))
        except (OSError, Disconnected) as error:
            self._socket.close()
            raise Disconnected(str(error)) from None

    def fileno(self) -> int:
        """Return the descriptor, to poll: it is readable when `receive` has something to read."""
        return self._socket.fileno()

    def send(self, message: bytes) -> None:
        """Send one message. Raises Disconnected, after which the connection is of no use."""
        size = len(message)
        head = bytes([0, size]) if size < 256 else bytes([_LONG]) + _LENGTH.pack(size)
        try:
            self._socket.sendall(head + message)
        except OSError as error:
            raise Disconnected(f"lockd does not take in what is sent ({error})") from None

    def receive(self, wait_ns: int) -> bytes | None:
        """Return the next message, None when there is none within `wait_ns` nanoseconds. Raises Disconnected.

        It may return earlier, since the time is rounded down to a power of two: to change it costs a call.
        """
        while True:
            frame = self._take()
            if frame is None:
                if wait_ns > 0:
                    self._wait_at_most(wait_ns)
                try:
                    chunk = self._socket.recv(_CHUNK, 0 if wait_ns > 0 else socket.MSG_DONTWAIT)
                except (BlockingIOError, TimeoutError):
                    return None
                except OSError as error:
                    raise Disconnected(f"the connection broke ({error})") from None
                if not chunk:
                    raise Disconnected("lockd has closed the connection")
                self._buffer += chunk
            elif frame[0] & _COMMAND:
                self._command(frame[1])
            elif frame[0] & _MORE:
                raise Disconnected("lockd sends messages of more than one part")
            else:
                return frame[1]

    @property
    def has_more(self) -> bool:
        """Tell whether a whole message was read with the one before it: no descriptor tells of that."""
        buffer = self._buffer
        return len(buffer) > 1 and self._end() <= len(buffer)

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

    def _end(self) -> int:
        """Return where the first frame in the buffer, of at least two bytes, ends; more than there is if unknown."""
        buffer = self._buffer
        if not buffer[0] & _LONG:
            return 2 + buffer[1]
        if len(buffer) < 9:
            return 9
        (size,) = _LENGTH.unpack_from(buffer, 1)
        if size > FRAME_BYTES_MAX:
            raise Disconnected(f"a frame of {size} bytes, more than {FRAME_BYTES_MAX}")
        return 9 + int(size)

    def _take(self) -> tuple[int, bytes] | None:
        """Take the first frame out of the buffer: its flags and its body; None where it is not whole yet."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        end = self._end()
        if len(buffer) < end:
            return None
        self._buffer = buffer[end:]
        return buffer[0], buffer[9 if buffer[0] & _LONG else 2 : end]

    def _fill(self, size: int, end: float) -> None:
        """Read until the buffer has so many bytes. Raises Disconnected."""
        while len(self._buffer) < size:
            self._socket.settimeout(max(0.001, end - time.monotonic()))
            chunk = self._socket.recv(_CHUNK)
            if not chunk:
                raise Disconnected("the connection was closed at once")
            self._buffer += chunk

    def _command(self, body: bytes) -> None:
        """Answer a heartbeat; all other commands are of no meaning to a client."""
        if body.startswith(b"\x04PING"):
            pong = b"\x04PONG" + body[7:23]
            try:
                self._socket.sendall(bytes([_COMMAND, len(pong)]) + pong)
            except OSError as error:
                raise Disconnected(str(error)) from None

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
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return connection


def _property(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + struct.pack(">I", len(value)) + value
