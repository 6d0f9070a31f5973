"""A proxy on each client's way to lockd, which can hold back, delay and break what passes. Loopback only.

Theory of operation. Each client has a port of its own here; what connects to it is connected on to lockd. Bytes
go on in their order. A direction that is blocked is not read: what was sent waits, as it does where packets are
lost and sent again, and comes when the way is free. It works in the thread of its owner, who watches `fileno`.
"""

import os
import selectors
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final

_READ_BYTES: Final = 64 * 1024
_WAITING_BYTES_MAX: Final = 4 * 1024 * 1024
"""More than this is left in the sender's socket."""
_RESET: Final = struct.pack("ii", 1, 0)


@dataclass(eq=False, slots=True)
class _End:
    """One end of a connection, and what waits to be written to it: when it is due, and the bytes."""

    socket: socket.socket
    is_client: bool
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)
    waiting_bytes: int = 0
    is_connecting: bool = False
    is_over: bool = False
    """Its other end has said all, and hangs up once this one has got it."""


@dataclass(eq=False, slots=True)
class _Way:
    """A client's way to lockd, with its connections."""

    listening: socket.socket
    pairs: list[tuple[_End, _End]] = field(default_factory=list)
    up_blocked: bool = False
    down_blocked: bool = False
    late_s: float = 0.0


class Proxy:
    """The ways of all clients."""

    def __init__(self) -> None:
        """Begin without a way."""
        self._selector = selectors.EpollSelector()
        self._ways: dict[str, _Way] = {}
        self._lockd: tuple[str, int] | None = None

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is something to do."""
        return self._selector.fileno()

    def open(self, client: str) -> str:
        """Open a client's way; return the endpoint at which it finds lockd."""
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        self._ways[client] = way = _Way(listening)
        self._selector.register(listening, selectors.EVENT_READ, (way, None))
        host, port = listening.getsockname()
        return f"tcp://{host}:{port}"

    def lead_to(self, endpoint: str) -> None:
        """Let all ways lead to lockd at this endpoint, from the next connection on."""
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        self._lockd = host, int(port)

    def block(self, client: str, *, up: bool, blocked: bool) -> None:
        """Block, or free, one direction of a client's way; `up` is towards lockd."""
        way = self._ways[client]
        if up:
            way.up_blocked = blocked
        else:
            way.down_blocked = blocked
        self._look_at(way)

    def delay(self, client: str, seconds: float) -> None:
        """Let all that comes from now on be so late, both ways."""
        self._ways[client].late_s = seconds

    def reset(self, client: str) -> None:
        """Break the client's connections; it may connect again at once."""
        way = self._ways[client]
        for pair in list(way.pairs):
            self._drop(way, pair, reset=True)

    def work(self) -> float:
        """Do what there is to do, without waiting; return after how many seconds to call again."""
        for key, events in self._selector.select(0):
            way, end = key.data
            if end is None:
                self._accept(way)
                continue
            pair = next((pair for pair in way.pairs if end in pair), None)
            if pair is None:
                continue  # dropped just now, by the other end
            try:
                if events & selectors.EVENT_READ:
                    self._read(way, pair, end)
                if events & selectors.EVENT_WRITE:
                    self._connected(end)
            except OSError:
                self._drop(way, pair)
        now_s, next_s = time.monotonic(), float("inf")
        for way in self._ways.values():
            for pair in list(way.pairs):
                try:
                    for end in pair:
                        self._write(end, now_s)
                        if end.waiting:
                            next_s = min(next_s, end.waiting[0][0])
                    is_over = any(end.is_over and not end.waiting for end in pair)
                except OSError:
                    is_over = True
                if is_over:
                    self._drop(way, pair)
            self._look_at(way)
        return max(0.0, next_s - now_s)

    def close(self) -> None:
        """Close everything."""
        for way in self._ways.values():
            for pair in list(way.pairs):
                self._drop(way, pair)
            way.listening.close()
        self._selector.close()

    # Connections

    def _accept(self, way: _Way) -> None:
        try:
            near, _ = way.listening.accept()
        except OSError:
            return
        far = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        for end in (near, far):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = _End(near, is_client=True), _End(far, is_client=False, is_connecting=True)
        way.pairs.append(pair)
        if self._lockd is None:
            self._drop(way, pair)
            return
        far.connect_ex(self._lockd)

    def _connected(self, end: _End) -> None:
        if end.is_connecting:
            end.is_connecting = False
            if error := end.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, os.strerror(error))

    def _read(self, way: _Way, pair: tuple[_End, _End], end: _End) -> None:
        other = pair[0] if end is pair[1] else pair[1]
        if other.is_over or other.waiting_bytes >= _WAITING_BYTES_MAX or self._is_blocked(way, end):
            return
        try:
            data = end.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            other.is_over = True
            return
        other.waiting.append((time.monotonic() + way.late_s, data))
        other.waiting_bytes += len(data)

    def _write(self, end: _End, now_s: float) -> None:
        while end.waiting and not end.is_connecting and end.waiting[0][0] <= now_s:
            due_s, data = end.waiting[0]
            try:
                sent = end.socket.send(data)
            except BlockingIOError:
                end.waiting[0] = now_s + 0.01, data
                return
            end.waiting_bytes -= sent
            if sent < len(data):
                end.waiting[0] = due_s, data[sent:]
            else:
                end.waiting.popleft()

    def _is_blocked(self, way: _Way, sender: _End) -> bool:
        return way.up_blocked if sender.is_client else way.down_blocked

    def _look_at(self, way: _Way) -> None:
        """Watch each end for what may be done with it, and no other."""
        for pair in way.pairs:
            for end, other in (pair, pair[::-1]):
                wanted = 0
                if not (other.is_over or other.waiting_bytes >= _WAITING_BYTES_MAX or self._is_blocked(way, end)):
                    wanted = selectors.EVENT_READ
                if end.is_connecting:
                    wanted = selectors.EVENT_WRITE
                known = self._selector.get_map().get(end.socket)
                if known is None and wanted:
                    self._selector.register(end.socket, wanted, (way, end))
                elif known is not None and not wanted:
                    self._selector.unregister(end.socket)
                elif known is not None and known.events != wanted:
                    self._selector.modify(end.socket, wanted, (way, end))

    def _drop(self, way: _Way, pair: tuple[_End, _End], *, reset: bool = False) -> None:
        way.pairs.remove(pair)
        for end in pair:
            if end.socket in self._selector.get_map():
                self._selector.unregister(end.socket)
            if reset:
                end.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.socket.close()
