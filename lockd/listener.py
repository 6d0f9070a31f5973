"""lockd's connections: a ROUTER that speaks ZeroMQ's wire protocol itself, in the one thread that serves.

libzmq reads and writes in a thread of its own, and wakes ours for each message and its own for each answer. On one
machine these wake-ups are most of what a lock costs; here a message is read, served and answered by one thread. A
connection that goes down is told of at once. Who comes back under its routing id takes its place.
"""

import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from common.limits import FRAME_BYTES_MAX
from common.zmtp import COMMAND, GREETING, MORE, Frames, WrongWire, framed, pong, properties, ready

_CHUNK: Final = 1 << 14
_BACKLOG: Final = 1024
_ACCEPTS_MAX: Final = 64
_EVENTS_MAX: Final = 256
_FRAMES_MAX: Final = 64
"""So many frames of one connection are taken in at once, then it is the others' turn."""
_PARTS_MAX: Final = 3
_NOT_ALL: Final = COMMAND | MORE
_MALFORMED_MAX: Final = 100
"""Who has sent so many malformed messages over one connection is closed."""
_ROUTE_BYTES_MAX: Final = 255
_UNSENT_READ_MAX: Final = 1 << 20
"""Who has more than so many bytes to take from us is not read until it has taken all: its answers cannot pile up."""
_UNSENT_BYTES_MAX: Final = FRAME_BYTES_MAX
"""Who has more than so many bytes to take is closed: lockd sends unasked too."""
_HANDSHAKE_S: Final = 30.0
_SOON_S: Final = 200e-6
"""As long as two wake-ups take on a machine whose cores sleep when they can."""
_PAUSE_S: Final = 1.0
"""Where the system has no descriptor left, nobody is let in for so long."""
_LINGER_S: Final = 0.2
_IN: Final = select.EPOLLIN | select.EPOLLRDHUP
_DOWN: Final = select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP
_DOWNS_MAX: Final = 16
"""So many connections that are down are done with at once: thousands may be, and who is up comes first."""


class Unreachable(Exception):
    """Nobody is connected under this route."""


class Full(Exception):
    """Who was connected under this route does not read what it is sent, and was closed."""


class _Peer:
    """One connection. `route` is "" until it is known; `unsent` waits until the system takes it.

    `left` are frames that have come and wait for their turn. While `paused` nothing is read. One that is `down` is not
    polled any more: what it has said before is still to be read.
    """

    __slots__ = ("began_s", "down", "frames", "left", "malformed", "parts", "paused", "route", "socket", "unsent")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.frames = Frames()
        self.route = b""
        self.left: list[tuple[int, bytes]] = []
        self.parts: list[bytes] = []
        self.malformed = 0
        self.paused = False
        self.down = False
        self.unsent = bytearray()
        self.began_s = time.monotonic()


class Listener:
    """Bound endpoints, and everybody connected to them."""

    def __init__(self, wake: int) -> None:
        """Begin with none; a readable descriptor `wake` ends a wait."""
        self._poll = select.epoll()
        self._poll.register(wake, select.EPOLLIN)
        self._doors: dict[int, socket.socket] = {}
        self._peers: dict[int, _Peer] = {}
        self._routes: dict[bytes, _Peer] = {}
        self._strangers: dict[int, _Peer] = {}
        self._left: set[_Peer] = set()
        self._down: deque[_Peer] = deque()
        self._closed: list[bytes] = []
        self._closed_until_s = 0.0
        self._unnamed = 0
        self._paths: list[Path] = []

    def bind(self, endpoint: str) -> str:
        """Listen on an endpoint, `tcp://HOST:PORT`, a port `*` being a free one, or `ipc://PATH`; return it as it is.

        Raises OSError.
        """
        if endpoint.startswith("ipc://"):
            name = endpoint.removeprefix("ipc://")
            door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                if not name.startswith("@"):
                    if _answers(name):
                        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
                    Path(name).unlink(missing_ok=True)
                door.bind("\0" + name[1:] if name.startswith("@") else name)
                if not name.startswith("@"):
                    self._paths.append(Path(name))
                return self._open(door, endpoint)
            except BaseException:
                door.close()
                raise
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        door = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.bind(("0.0.0.0" if host == "*" else host, 0 if port == "*" else int(port)))
            return self._open(door, "tcp://{}:{}".format(*door.getsockname()))
        except BaseException:
            door.close()
            raise

    @property
    def turns(self) -> int:
        """Return after how many calls of `events` every connection was read that had something to read."""
        return len(self._peers) // _EVENTS_MAX + 1

    def events(self, wait_s: float, *, soon: bool = False) -> Iterator[tuple[bytes, list[bytes] | None]]:
        """Wait for so many seconds at the most, then yield what has come: a route and the parts of a message.

        None instead of parts tells that the connection is down. If something is likely to come `soon`, it looks again
        and again for a moment before it sleeps: to be woken takes longer than that.
        """
        if self._closed_until_s and time.monotonic() >= self._closed_until_s:
            self._closed_until_s = 0.0
            for door in self._doors:
                self._poll.modify(door, select.EPOLLIN)
        if self._strangers:
            wait_s = min(wait_s, 1.0)
        if self._closed:
            closed, self._closed = self._closed, []
            yield from [(route, None) for route in closed if route not in self._routes]
            wait_s = 0.0
        late = [peer for peer in self._left if not peer.paused] if self._left else ()
        if late or self._down:
            wait_s = 0.0  # the system tells nothing of what is here already
        doors: list[socket.socket] = []
        for descriptor, event in self._wait(wait_s, soon):
            peer = self._peers.get(descriptor)
            if peer is not None:
                if event & _DOWN:
                    self._poll.unregister(descriptor)
                    peer.down = True
                    self._down.append(peer)
                elif event & select.EPOLLOUT:
                    self._flush(peer)
                if event & _IN and not peer.paused and not peer.left:
                    yield from self._read(peer, ends=not peer.down)
            elif descriptor in self._doors:
                doors.append(self._doors[descriptor])
        for opened in doors:  # now that no event is left of a connection whose descriptor a new one may get
            self._let_in(opened)
        for peer in late:
            if peer.left:  # it may have been closed meanwhile
                yield from self._read(peer)
        for _ in range(min(len(self._down), _DOWNS_MAX)):
            peer = self._down.popleft()
            if self._is_open(peer):  # else another one has taken its place
                yield from self._lost(peer) if peer.paused else self._read(peer)
                if self._is_open(peer):
                    self._down.append(peer)
        if self._strangers:
            self._send_off()

    def _wait(self, wait_s: float, spin: bool) -> list[tuple[int, int]]:
        """Return what is ready, within so many seconds."""
        if spin:
            end_s = time.monotonic() + min(_SOON_S, wait_s)
            while time.monotonic() < end_s:
                if found := self._poll.poll(0, _EVENTS_MAX):
                    return found
        return self._poll.poll(wait_s, _EVENTS_MAX)

    def send(self, route: bytes, message: bytes) -> None:
        """Send a message of one part. Raises Unreachable, Full."""
        peer = self._routes.get(route)
        if peer is None:
            raise Unreachable
        if len(peer.unsent) > _UNSENT_BYTES_MAX:
            self._close(peer)
            raise Full
        self._write(peer, framed(message))

    def malformed(self, route: bytes) -> None:
        """Take in that a message along this route was malformed; who sends too many is closed."""
        peer = self._routes.get(route)
        if peer is not None:
            peer.malformed += 1
            if peer.malformed >= _MALFORMED_MAX:
                self._close(peer)

    def close(self) -> None:
        """Send what is left as far as that is quickly done, and give the endpoints back."""
        end = time.monotonic() + _LINGER_S
        for peer in self._peers.values():
            try:
                if peer.unsent and (left_s := end - time.monotonic()) > 0:
                    peer.socket.settimeout(left_s)
                    peer.socket.sendall(peer.unsent)
            except OSError:
                pass
            peer.socket.close()
        for door in self._doors.values():
            door.close()
        for path in self._paths:
            path.unlink(missing_ok=True)
        self._poll.close()

    def _open(self, door: socket.socket, endpoint: str) -> str:
        door.listen(_BACKLOG)
        door.setblocking(False)
        self._doors[door.fileno()] = door
        self._poll.register(door, select.EPOLLIN)
        return endpoint

    def _let_in(self, door: socket.socket) -> None:
        for _ in range(_ACCEPTS_MAX):
            try:
                connection, _ = door.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._closed_until_s = time.monotonic() + _PAUSE_S
                    for each in self._doors:
                        self._poll.modify(each, 0)
                    return
                continue
            connection.setblocking(False)
            if connection.family == socket.AF_INET:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            peer = _Peer(connection)
            self._peers[connection.fileno()] = self._strangers[connection.fileno()] = peer
            self._poll.register(connection, _IN)
            self._write(peer, GREETING)

    def _send_off(self) -> None:
        """Close connections that have not said what they are for too long."""
        now = time.monotonic()
        for peer in list(self._strangers.values()):
            if now - peer.began_s < _HANDSHAKE_S:
                return
            self._drop(peer)

    def _read(self, peer: _Peer, *, ends: bool = True) -> list[tuple[bytes, list[bytes] | None]]:
        """Return what has come over a connection, as far as it is its turn; if that `ends` there, close it."""
        frames = peer.left
        if not frames:
            try:
                chunk = peer.socket.recv(_CHUNK)
                if not chunk:
                    return self._lost(peer) if ends else []
                frames = peer.frames.feed(chunk)
            except BlockingIOError:
                return self._lost(peer) if peer.down and ends else []
            except OSError:
                return self._lost(peer) if ends else []
            except WrongWire:
                return self._lost(peer)
        if peer.left or len(frames) > _FRAMES_MAX:
            frames, peer.left = frames[:_FRAMES_MAX], frames[_FRAMES_MAX:]
            if peer.left:
                self._left.add(peer)
            else:
                self._left.discard(peer)
        found: list[tuple[bytes, list[bytes] | None]] = []
        try:
            for flags, body in frames:
                if not peer.route:
                    self._shake_hands(peer, flags, body)
                elif not flags & _NOT_ALL:
                    if peer.parts:
                        found.append((peer.route, [*peer.parts, body]))
                        peer.parts = []
                    else:
                        found.append((peer.route, [body]))
                elif flags & MORE:
                    if len(peer.parts) < _PARTS_MAX:
                        peer.parts.append(body)
                elif (answer := pong(body)) is not None:
                    self._write(peer, answer)
        except WrongWire:
            found += self._lost(peer)
        return found

    def _shake_hands(self, peer: _Peer, flags: int, body: bytes) -> None:
        """Take in how a connection begins. Raises WrongWire."""
        if not flags & COMMAND:
            raise WrongWire("it does not begin with READY")
        route = properties(body).get(b"identity", b"")
        if not route:
            self._unnamed += 1
            route = b"\0" + self._unnamed.to_bytes(4, "big")
        if len(route) > _ROUTE_BYTES_MAX:
            raise WrongWire("its routing id is too long")
        if (older := self._routes.get(route)) is not None:
            self._drop(older)
        peer.route = route
        self._routes[route] = peer
        del self._strangers[peer.socket.fileno()]
        self._write(peer, ready(b"ROUTER", b""))

    def _write(self, peer: _Peer, data: bytes) -> None:
        try:
            sent = peer.socket.send(data) if not peer.unsent else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the next look at it tells that it is down
        if sent < len(data):
            if not peer.unsent:
                self._watch(peer, _IN | select.EPOLLOUT)
            peer.unsent += data[sent:]
            if len(peer.unsent) > _UNSENT_READ_MAX and not peer.paused:
                peer.paused = True
                self._watch(peer, select.EPOLLOUT)

    def _flush(self, peer: _Peer) -> None:
        try:
            del peer.unsent[: peer.socket.send(peer.unsent)]
        except OSError:
            return
        if not peer.unsent:
            peer.paused = False
            self._watch(peer, _IN)

    def _watch(self, peer: _Peer, events: int) -> None:
        """Have the system tell of these events of a connection, if it is not known to be down."""
        if not peer.down:
            self._poll.modify(peer.socket, events)

    def _close(self, peer: _Peer) -> None:
        """Close a connection from our side; `events` tells of it, as of one that went down."""
        self._drop(peer)
        self._closed.append(peer.route)

    def _lost(self, peer: _Peer) -> list[tuple[bytes, list[bytes] | None]]:
        """Close a connection that is down; return that its route leads nowhere, if it has not another one already."""
        current = self._routes.get(peer.route) is peer
        self._drop(peer)
        return [(peer.route, None)] if current else []

    def _is_open(self, peer: _Peer) -> bool:
        return self._peers.get(peer.socket.fileno()) is peer

    def _drop(self, peer: _Peer) -> None:
        """Close a connection."""
        descriptor = peer.socket.fileno()
        del self._peers[descriptor]
        self._strangers.pop(descriptor, None)
        self._left.discard(peer)
        peer.left = []
        if self._routes.get(peer.route) is peer:
            del self._routes[peer.route]
        if not peer.down:
            self._poll.unregister(descriptor)
        peer.socket.close()


def _answers(name: str) -> bool:
    """Tell whether somebody listens at a path, which a new listener would take away without a word."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        return connection.connect_ex(name) == 0
