"""The wire of ZeroMQ, ZMTP 3.1 with the NULL mechanism, as bytes: https://rfc.zeromq.org/spec/23/. No I/O.

Each side begins with a greeting and a READY command; then come frames. libzmq on the other side cannot tell the
difference.
"""

import struct
from typing import Final

from common.limits import FRAME_BYTES_MAX

GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
MORE, LONG, COMMAND = 1, 2, 4
SHORT: Final = [b"\0%c" % size for size in range(256)]
"""What stands before a message of one part, by its size."""
_READY_BYTES_MAX: Final = 1024
"""Longest first frame, with which a stranger says what it is. libzmq's has some 300 bytes at the most."""
_LENGTH: Final = struct.Struct(">Q")
_PROPERTY: Final = struct.Struct(">I")


class WrongWire(Exception):
    """What comes is no ZMTP that is spoken here; the text says why."""


def framed(message: bytes) -> bytes:
    """Return a message of one part as it goes over the wire."""
    size = len(message)
    return (SHORT[size] if size < 256 else b"\2" + _LENGTH.pack(size)) + message


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
    """What has come over one connection, taken apart: first the greeting, then frames.

    The beginning of a frame is kept in the pieces in which it came, until so many bytes are there as it takes to go on:
    a long one costs what it weighs, not that times its pieces. Of a stranger, little is kept: the first frame is READY.
    """

    __slots__ = ("_begun", "_greeted", "_largest", "_pieces", "_size", "_wanted")

    def __init__(self, largest: int = FRAME_BYTES_MAX) -> None:
        """Begin before the greeting; no frame behind READY is longer than `largest` bytes."""
        self._begun = self._greeted = False
        self._largest = largest
        self._pieces: list[bytes] = []
        self._size = self._wanted = 0

    def feed(self, chunk: bytes) -> list[tuple[int, bytes]]:
        """Take in what was read; return flags and body of each frame that is whole now. Raises WrongWire."""
        buffer = chunk
        if self._pieces:
            self._pieces.append(chunk)
            self._size += len(chunk)
            if self._size < self._wanted:
                return []
            buffer = b"".join(self._pieces)
            self._pieces.clear()
        at, end = 0, len(buffer)
        found: list[tuple[int, bytes]] = []
        if not self._greeted:
            self._check_greeting(buffer)
            if end < len(GREETING):
                self._keep(buffer, 0)
                return found
            self._greeted, at = True, len(GREETING)
        wanted = 0
        while end - at > 1:
            flags = buffer[at]
            if flags & LONG:
                if end - at < 9:
                    wanted = 9
                    break
                size = _LENGTH.unpack_from(buffer, at + 1)[0]
                largest = self._largest if self._begun or found else _READY_BYTES_MAX
                if size > largest:
                    raise WrongWire(f"it sends a frame of {size} bytes, more than {largest}")
                body = at + 9
            else:
                size, body = buffer[at + 1], at + 2
            if body + size > end:
                wanted = body + size - at
                break
            at = body + size
            found.append((flags, buffer[body:at]))
        if at < end:
            self._keep(buffer[at:], wanted)
        if found:
            self._begun = True
        return found

    def _keep(self, rest: bytes, wanted: int) -> None:
        """Keep a beginning until `wanted` bytes are there."""
        self._pieces.append(rest)
        self._size, self._wanted = len(rest), wanted

    def _check_greeting(self, buffer: bytes) -> None:
        if buffer[:1] not in (b"", b"\xff") or (len(buffer) > 10 and not (buffer[9] & 1 and buffer[10] >= 3)):
            raise WrongWire("it does not speak ZMTP 3")
        if len(buffer) >= len(GREETING) and buffer[12:17] != b"NULL\0":
            raise WrongWire("it wants encryption or authentication, which are not there")


def _property(name: bytes, value: bytes) -> bytes:
    return b"%c" % len(name) + name + _PROPERTY.pack(len(value)) + value
