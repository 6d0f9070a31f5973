"""lockd's driver: one thread, one poller; it decides nothing."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, assert_never

import zmq

from common.diagnostics import Diagnostics, Strangers
from common.errors import CommandError, refused
from common.limits import QUEUE_MESSAGES_MAX
from common.messages import Hello, Resume, ToLockd
from common.moments import SteadyClock
from common.signals import Signals
from common.sockets import disconnections, gone, listener, receive_from, send
from common.wire import WireError, decode, encode
from lockd.behind import Behind
from lockd.core import Lockd
from lockd.effects import Effect, KeepLeft, LogGrant, Note, Persist, Send
from lockd.state import State, StateError

_WAIT_MS_MAX: Final = 512
_BEHIND_MS_MAX: Final = 16
_BEHIND_NS_MAX: Final = 100_000_000
"""What is written behind waits for 16 ms without messages, and so long at the most."""
_LOOK_MS: Final = 8
"""How often to look for connections that went down while somebody waits for a lock."""
_WANTED_NS: Final = 1_000_000_000
"""Where somebody waited for a lock, others will within so long."""
_IPC: Final = "ipc://"


class Server:
    """A bound lockd: `serve` runs it until a signal asks it to end."""

    def __init__(self, binds: list[str], data: Path, ttl_ns: int, lock_delay_ns: int, rebuild: int = 0) -> None:
        """Open the data directory and bind; with `rebuild` take the lost state from that many replicas.

        Raises CommandError with what, why and what to do.
        """
        if (data / "events.log").exists():
            raise refused(f"{data} is a client's data directory; choose another --data")
        self._context = zmq.Context[zmq.Socket[bytes]]()
        self._socket = listener(self._context, handover=True)
        self.endpoints: list[str] = []
        try:
            self._bind(binds)
            self._open(data, ttl_ns, lock_delay_ns, rebuild)
        except CommandError:
            self._let_go()
            raise
        self._downs = disconnections(self._socket)
        self.clock = SteadyClock()
        self._strangers = Strangers()
        self._routes: dict[int, bytes] = {}
        self._connections: dict[bytes, int] = {}
        self._wait_ms = -1
        self._behind_ns = self._wanted_ns = self._look_ns = 0

    def _bind(self, binds: list[str]) -> None:
        for bind in binds:
            try:
                if _answers(bind):
                    raise zmq.ZMQError(zmq.EADDRINUSE)
                self._socket.bind(bind)
            except zmq.ZMQError as error:
                taken = "; is another lockd there?" if error.errno == zmq.EADDRINUSE else ";"
                raise refused(
                    f"cannot listen on {bind} ({os.strerror(error.errno or 0)}){taken} choose another --bind"
                ) from None
            endpoint = self._socket.get(zmq.LAST_ENDPOINT)
            assert isinstance(endpoint, bytes)
            self.endpoints.append(endpoint.rstrip(b"\0").decode())

    def _open(self, data: Path, ttl_ns: int, lock_delay_ns: int, rebuild: int) -> None:
        try:
            data.mkdir(parents=True, exist_ok=True)
            self._log = Diagnostics(data / "lockd.log")
            self._state = State.open(data / "state")
            if rebuild and not self._state.is_new:
                raise refused(f"{data} holds the state of a group; start without --rebuild, or on an empty --data")
            self._behind = Behind(data)
            durable = self._state.begin()
        except FileExistsError:
            raise refused(f"{data} cannot be used (it is not a directory); choose another --data") from None
        except (StateError, CommandError) as error:
            raise refused(str(error)) from None
        except OSError as error:
            raise refused(f"{data} cannot be used ({error.strerror}); choose another --data") from None
        if durable.epoch == 1:
            self._behind.forget_left()  # it belongs to a state that is lost
        durable.holds, durable.left, durable.rebuild = self._behind.holds, self._behind.left, rebuild
        self.core = Lockd(durable, ttl_ns, lock_delay_ns)

    def _let_go(self, linger_ms: int = 0) -> None:
        """Give the endpoints back."""
        self._context.destroy(linger=linger_ms)
        for endpoint in self.endpoints:
            if endpoint.startswith(_IPC):
                Path(endpoint.removeprefix(_IPC)).unlink(missing_ok=True)

    def serve(self, signals: Signals, ready: Callable[[str], None], waits: Callable[[str], None]) -> None:
        """Serve until SIGINT or SIGTERM; then end in good order. Say `ready` when locks can be had.

        With --rebuild it says before what it `waits` for.
        """
        said = False
        self._log.note(f"epoch {self.core.epoch} begins on {', '.join(self.endpoints)}")
        for note in self._behind.notes:
            self._log.note(note)
        self._do(self.core.begin(self.clock.now_ns()))
        if self.core.rebuilding:
            waits("waiting for the replicas to rebuild the state from")
        while signals.caught is None:
            if not said and not self.core.rebuilding:
                ready(f"ready {' '.join(self.endpoints)} epoch {self.core.epoch}")
                said = True
            now_ns = self.clock.now_ns()
            if self._behind.waiting and now_ns - self._behind_ns > _BEHIND_NS_MAX:
                self._write_behind(now_ns)
            if now_ns >= self._look_ns:
                self._look(now_ns)
            deadline_ns = self.core.deadline_ns()
            left_ns = _WAIT_MS_MAX * 1_000_000 if deadline_ns is None else deadline_ns - now_ns
            if left_ns <= 0:
                self._drain()
                self._do(self.core.handle_timer(self.clock.now_ns()))
                continue
            most_ms = _BEHIND_MS_MAX if self._behind.waiting else _WAIT_MS_MAX
            if self.core.waiters:
                self._wanted_ns = now_ns
            if now_ns - self._wanted_ns < _WANTED_NS:
                most_ms = _LOOK_MS
            left_ms = left_ns // 1_000_000 + 1
            # In steps of a power of two, so that the option seldom changes.
            self._wait_at_most(most_ms if left_ms >= most_ms else 1 << left_ms.bit_length() - 1)
            received = signals.receive_from(self._socket)
            if received is not None:
                self._take_in(*received)
            elif self._behind.waiting:
                self._write_behind(now_ns)
        self._do(self.core.stop(self.clock.now_ns()))
        self._behind.flush()
        malformed = f"; {self._strangers.total} malformed messages were dropped" if self._strangers.total else ""
        self._log.note(f"epoch {self.core.epoch} ends{malformed}")

    def close(self) -> None:
        """Close socket, state and logs."""
        self._socket.disable_monitor()
        self._let_go(linger_ms=200)
        self._state.close()
        self._log.close()
        self._behind.close()

    def _wait_at_most(self, wait_ms: int) -> None:
        """Let the next receive wait so long."""
        if wait_ms != self._wait_ms:
            self._socket.set(zmq.RCVTIMEO, wait_ms)
            self._wait_ms = wait_ms

    def _drain(self) -> None:
        """Take in what has come: a keepalive that is here already counts before its lease can run out."""
        for _ in range(QUEUE_MESSAGES_MAX):
            if not self._receive_now():
                return

    def _receive_now(self) -> bool:
        """Take in one message if there is one; return whether there was."""
        try:
            received = receive_from(self._socket)
        except zmq.Again:
            return False
        self._take_in(*received)
        return True

    def _look(self, now_ns: int) -> None:
        """Take in which connections went down: what is of their clients' leases is for the core to say."""
        self._look_ns = now_ns + _LOOK_MS * 1_000_000
        for connection in gone(self._downs):
            route = self._routes.pop(connection, None)
            if route is not None and self._connections.get(route) == connection:
                del self._connections[route]
                self._do(self.core.disconnected(route, now_ns))

    def _take_in(self, frames: list[bytes], connection: int) -> None:
        if self._routes.get(connection) != frames[0] and connection >= 0:
            # The number may be that of an older connection: its end has to be taken in first.
            self._look(self.clock.now_ns())
            self._routes[connection], self._connections[frames[0]] = frames[0], connection
        self.core.figures.bytes_in += len(frames[-1])
        try:
            if len(frames) != 2:
                raise WireError(f"it has {len(frames) - 1} frames, not one")
            message: ToLockd = decode(frames[1], ToLockd)  # type: ignore[arg-type]
        except WireError as error:
            self.core.figures.malformed += 1
            if self._strangers.count(frames[0]):
                self._log.note(f"dropped a message of {frames[0].hex()}: {error}")
            return
        if isinstance(message, (Hello, Resume)):
            # A new connection may have the number of the old one, whose end then has to be taken in first.
            self._look(self.clock.now_ns())
            if connection >= 0:
                self._routes[connection], self._connections[frames[0]] = frames[0], connection
        self._do(self.core.handle(frames[0], message, self.clock.now_ns()))

    def _do(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self._send(effect.route, encode(effect.message))
                case LogGrant():
                    self._behind.line(effect.line)
                case KeepLeft():
                    self._behind.keep(effect)
                case Persist():
                    began_ns = time.monotonic_ns()
                    self._state.write(effect.changes)
                    self.core.figures.persists.add((time.monotonic_ns() - began_ns) // 1000)
                case Note():
                    self._log.note(effect.text)
                case _:
                    assert_never(effect)

    def _write_behind(self, now_ns: int) -> None:
        """Write what came up: in a moment without messages, for their senders wait for us."""
        self._behind.flush()
        self._behind_ns = now_ns

    def _send(self, route: bytes, frame: bytes) -> None:
        self.core.figures.bytes_out += len(frame)
        try:
            send(self._socket, route, frame)
        except zmq.Again:
            self._log.note(f"{route.hex()} does not read its messages; one was dropped")
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise


def _answers(endpoint: str) -> bool:
    """Tell whether somebody listens at an ipc endpoint, which libzmq would take away from them without a word."""
    if not endpoint.startswith(_IPC):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        return connection.connect_ex(endpoint.removeprefix(_IPC)) == 0
