"""The wire of ZeroMQ, ZMTP 3.1 with the NULL mechanism, as bytes: https://rfc.zeromq.org/spec/23/. No I/O.

Each side begins with a greeting and a READY command; then come frames. libzmq on the other side cannot tell the
difference.
"""

import struct
from typing import Final

from common.limits import FRAME_BYTES_MAX

GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
MORE, LONG, COMMAND = 1, 2, 4
_LENGTH: Final = struct.Struct(">Q")
_PROPERTY: Final = struct.Struct(">I")


class WrongWire(Exception):
    """What comes is no ZMTP that is spoken here; the text says why."""


def framed(message: bytes) -> bytes:
    """Return a message of one part as it goes over the wire."""
    size = len(message)
    return (b"\0%c" % size if size < 256 else b"\2" + _LENGTH.pack(size)) + message


def command(body: bytes) -> bytes:
    """Return a command of less than 256 bytes as it goes over the wire."""
    return b"\4%c" % len(body) + body


def ready(kind: bytes, identity: bytes) -> bytes:
    """Return the READY command of a socket of this kind."""
    return command(b"\5READY" + _property(b"Socket-Type", kind) + _property(b"Identity", identity))


def properties(body: bytes) -> dict[bytes, bytes]:
    """Return the properties of a READY command, their names in lower case. Raises WrongWire."""
    if not body.startswith(b"\5READY"):
        raise WrongWire(f"it does not say READY, but {body[:40]!r}")
    found: dict[bytes, bytes] = {}
    at = 6
    try:
        while at < len(body):
            name_end = at + 1 + body[at]
            (size,) = _PROPERTY.unpack_from(body, name_end)
            found[body[at + 1 : name_end].lower()] = body[name_end + 4 : name_end + 4 + size]
            at = name_end + 4 + size
    except struct.error:
        raise WrongWire("its READY ends early") from None
    if at != len(body):
        raise WrongWire("its READY ends early")
    return found


def pong(body: bytes) -> bytes | None:
    """Return the answer to a PING, None to any other command."""
    return command(b"\4PONG" + body[7:23]) if body.startswith(b"\4PING") else None


class Frames:
    """What has come over one connection, taken apart: first the greeting, then frames."""

    __slots__ = ("_buffer", "_greeted")

    def __init__(self) -> None:
        """Begin before the greeting."""
        self._buffer = b""
        self._greeted = False

    def feed(self, chunk: bytes) -> None:
        """Take in what was read."""
        self._buffer = self._buffer + chunk if self._buffer else chunk

    @property
    def greeted(self) -> bool:
        """Take the greeting out, as soon as it is whole; tell whether it was. Raises WrongWire."""
        if not self._greeted:
            buffer = self._buffer
            if buffer[:1] not in (b"", b"\xff") or (len(buffer) > 10 and not (buffer[9] & 1 and buffer[10] >= 3)):
                raise WrongWire("it does not speak ZMTP 3")
            if len(buffer) >= len(GREETING):
                if buffer[12:17] != b"NULL\0":
                    raise WrongWire("it wants encryption or authentication, which are not there")
                self._greeted, self._buffer = True, buffer[len(GREETING) :]
        return self._greeted

    @property
    def has_more(self) -> bool:
        """Tell whether a whole frame is there. Raises WrongWire where one is too long."""
        return len(self._buffer) > 1 and self._end() <= len(self._buffer)

    def take(self) -> tuple[int, bytes] | None:
        """Return the next frame's flags and body, None while it is not whole. Raises WrongWire."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        flags = buffer[0]
        if flags & LONG:
            end = self._end()
            if len(buffer) < end:
                return None
            body = buffer[9:end]
        else:
            end = 2 + buffer[1]
            if len(buffer) < end:
                return None
            body = buffer[2:end]
        self._buffer = buffer[end:] if len(buffer) > end else b""
        return flags, body

    def _end(self) -> int:
        """Return where the first frame ends; more than there is where that is not known yet."""
        buffer = self._buffer
        if not buffer[0] & LONG:
            return 2 + buffer[1]
        if len(buffer) < 9:
            return 9
        size = int(_LENGTH.unpack_from(buffer, 1)[0])
        if size > FRAME_BYTES_MAX:
            raise WrongWire(f"it sends a frame of {size} bytes, more than {FRAME_BYTES_MAX}")
        return 9 + size


def _property(name: bytes, value: bytes) -> bytes:
    return b"%c" % len(name) + name + _PROPERTY.pack(len(value)) + value
