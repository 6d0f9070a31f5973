"""lockd's driver: one thread, one poller; it decides nothing."""

import os
import socket
from pathlib import Path
from typing import Final, assert_never

import zmq

from common.diagnostics import Diagnostics, Strangers
from common.errors import EXIT_CRASHED, CommandError, refused
from common.grantlog import format_grant
from common.limits import INBOX_BATCH_MAX
from common.messages import ToLockd
from common.moments import SteadyClock
from common.signals import Signals
from common.sockets import listener
from common.wire import WireError, decode, encode
from lockd.core import Lockd
from lockd.effects import Effect, LogGrant, Note, Persist, Send
from lockd.state import State, StateError

_POLL_MS_MAX: Final = 60_000
_IPC: Final = "ipc://"


class Server:
    """A bound lockd: `serve` runs it until a signal asks it to end."""

    def __init__(self, binds: list[str], data: Path, ttl_ns: int) -> None:
        """Open the data directory and bind. Raises CommandError with what, why and what to do."""
        try:
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
                raise refused(
                    f"cannot listen on {bind} ({error.strerror}); is another lockd there? choose another --bind"
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

    def serve(self, signals: Signals) -> None:
        """Serve until SIGINT or SIGTERM; then end in good order."""
        self._log.note(f"epoch {self.epoch} begins on {', '.join(self.endpoints)}")
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(signals.descriptor, zmq.POLLIN)
        while signals.caught is None:
            if self._drain():
                continue
            deadline_ns = self._core.deadline_ns()
            timeout_ms = _POLL_MS_MAX
            if deadline_ns is not None:
                left_ns = deadline_ns - self._clock.now_ns()
                if left_ns <= 0:
                    self._do(self._core.handle_timer(self._clock.now_ns()))
                    continue
                timeout_ms = min(timeout_ms, left_ns // 1_000_000 + 1)
            poller.poll(timeout_ms)
        self._do(self._core.stop(self._clock.now_ns()))
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

    def _drain(self) -> bool:
        """Take in what has come; return whether there may be more."""
        for _ in range(INBOX_BATCH_MAX):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return False
            try:
                if len(frames) != 2:
                    raise WireError(f"it has {len(frames) - 1} frames, not one")
                message: ToLockd = decode(frames[1], ToLockd)  # type: ignore[arg-type]
            except WireError as error:
                if self._strangers.count(frames[0]):
                    self._log.note(f"dropped a message of {frames[0].hex()}: {error}")
                continue
            self._do(self._core.handle(frames[0], message, self._clock.now_ns()))
        return True

    def _do(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(route, message):
                    self._send(route, encode(message))
                case LogGrant(line):
                    self._log_grant(format_grant(line))
                case Persist(changes):
                    self._state.write(changes)
                case Note(text):
                    self._log.note(text)
                case _:
                    assert_never(effect)

    def _log_grant(self, line: str) -> None:
        try:
            os.write(self._grants, line.encode() + b"\n")
        except OSError as error:
            raise CommandError(
                EXIT_CRASHED, f"grants.log cannot be written ({error.strerror}); make room, start again"
            ) from None

    def _send(self, route: bytes, frame: bytes) -> None:
        try:
            self._socket.send_multipart((route, frame), zmq.NOBLOCK)
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
