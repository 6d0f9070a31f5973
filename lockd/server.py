"""lockd's driver: one thread, one poller; it decides nothing."""

import os
import socket
from pathlib import Path
from typing import Final, assert_never

import zmq

from common.diagnostics import Diagnostics, Strangers
from common.errors import EXIT_CRASHED, CommandError, refused
from common.grantlog import GrantLine, format_grant
from common.limits import QUEUE_MESSAGES_MAX
from common.messages import ToLockd
from common.moments import SteadyClock
from common.signals import Signals
from common.sockets import listener, receive, send
from common.wire import WireError, decode, encode
from lockd.core import Lockd
from lockd.effects import Effect, LogGrant, Note, Persist, Send
from lockd.state import State, StateError

_WAIT_MS_MAX: Final = 512
_LINES_MAX: Final = 64
_LINES_MS_MAX: Final = 16
_LINES_US_MAX: Final = 100_000
"""So many lines of grants.log, and so long, wait at most for 16 ms without messages; a kill can take them."""
_IPC: Final = "ipc://"


class Server:
    """A bound lockd: `serve` runs it until a signal asks it to end."""

    def __init__(self, binds: list[str], data: Path, ttl_ns: int) -> None:
        """Open the data directory and bind. Raises CommandError with what, why and what to do."""
        try:
            if (data / "events.log").exists():
                raise refused(f"{data} is a client's data directory; choose another --data")
            data.mkdir(parents=True, exist_ok=True)
            self._log = Diagnostics(data / "lockd.log")
            self._grants = os.open(data / "grants.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            raise refused(f"{data} cannot be used (it is not a directory); choose another --data") from None
        except OSError as error:
            raise refused(f"{data} cannot be used ({error.strerror}); choose another --data") from None
        try:
            self._state = State.open(data / "state")
        except StateError as error:
            raise refused(str(error)) from None
        self._context = zmq.Context[zmq.Socket[bytes]]()
        self._socket = listener(self._context)
        self.endpoints: list[str] = []
        for bind in binds:
            try:
                if _answers(bind):
                    raise zmq.ZMQError(zmq.EADDRINUSE)
                self._socket.bind(bind)
            except zmq.ZMQError as error:
                self._context.destroy(linger=0)
                taken = "; is another lockd there?" if error.errno == zmq.EADDRINUSE else ";"
                raise refused(
                    f"cannot listen on {bind} ({os.strerror(error.errno or 0)}){taken} choose another --bind"
                ) from None
            endpoint = self._socket.get(zmq.LAST_ENDPOINT)
            assert isinstance(endpoint, bytes)
            self.endpoints.append(endpoint.rstrip(b"\0").decode())
        try:
            self._core = Lockd(self._state.begin(), ttl_ns)
        except StateError as error:
            raise refused(str(error)) from None
        self.epoch = self._core.epoch
        self._clock = SteadyClock()
        self._strangers = Strangers()
        self._wait_ms = -1
        self._lines: list[GrantLine] = []

    def serve(self, signals: Signals) -> None:
        """Serve until SIGINT or SIGTERM; then end in good order."""
        self._log.note(f"epoch {self.epoch} begins on {', '.join(self.endpoints)}")
        while signals.caught is None:
            now_ns, deadline_ns = self._clock.now_ns(), self._core.deadline_ns()
            left_ns = _WAIT_MS_MAX * 1_000_000 if deadline_ns is None else deadline_ns - now_ns
            if self._lines and now_ns // 1000 - self._lines[0].time_us > _LINES_US_MAX:
                self._write_lines()
            if left_ns <= 0:
                self._drain()
                self._do(self._core.handle_timer(self._clock.now_ns()))
                continue
            most_ms = _LINES_MS_MAX if self._lines else _WAIT_MS_MAX
            left_ms = left_ns // 1_000_000 + 1
            # In steps of a power of two, so that the option seldom changes.
            self._wait_at_most(most_ms if left_ms >= most_ms else 1 << left_ms.bit_length() - 1)
            frames = signals.receive(self._socket)
            if frames is not None:
                self._take_in(frames)
            elif self._lines:
                self._write_lines()
        self._do(self._core.stop(self._clock.now_ns()))
        self._write_lines()
        malformed = f"; {self._strangers.total} malformed messages were dropped" if self._strangers.total else ""
        self._log.note(f"epoch {self.epoch} ends{malformed}")

    def close(self) -> None:
        """Close socket, state and logs."""
        self._context.destroy(linger=200)
        for endpoint in self.endpoints:
            if endpoint.startswith(_IPC):
                Path(endpoint.removeprefix(_IPC)).unlink(missing_ok=True)
        self._state.close()
        self._log.close()
        os.close(self._grants)

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
            frames = receive(self._socket)
        except zmq.Again:
            return False
        self._take_in(frames)
        return True

    def _take_in(self, frames: list[bytes]) -> None:
        try:
            if len(frames) != 2:
                raise WireError(f"it has {len(frames) - 1} frames, not one")
            message: ToLockd = decode(frames[1], ToLockd)  # type: ignore[arg-type]
        except WireError as error:
            if self._strangers.count(frames[0]):
                self._log.note(f"dropped a message of {frames[0].hex()}: {error}")
            return
        self._do(self._core.handle(frames[0], message, self._clock.now_ns()))

    def _do(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self._send(effect.route, encode(effect.message))
                case LogGrant():
                    self._lines.append(effect.line)
                    if len(self._lines) >= _LINES_MAX:
                        self._write_lines()
                case Persist():
                    self._state.write(effect.changes)
                case Note():
                    self._log.note(effect.text)
                case _:
                    assert_never(effect)

    def _write_lines(self) -> None:
        """Write what came up for grants.log: in a moment without messages, for their senders wait for us."""
        text = "".join([format_grant(line) + "\n" for line in self._lines])
        self._lines.clear()
        try:
            os.write(self._grants, text.encode())
        except OSError as error:
            raise CommandError(
                EXIT_CRASHED, f"grants.log cannot be written ({error.strerror}); make room, start again"
            ) from None

    def _send(self, route: bytes, frame: bytes) -> None:
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
