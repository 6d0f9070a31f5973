"""lockd's driver: one thread, one poller; it decides nothing."""

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, assert_never

from common.diagnostics import Diagnostics, Strangers
from common.errors import CommandError, refused
from common.eventlog import shorten
from common.limits import SESSIONS_MAX
from common.messages import ToLockd
from common.moments import SteadyClock
from common.open_files import raise_open_files
from common.stopping import Stop
from common.wire import WireError, decode, encode
from lockd.behind import Behind
from lockd.core import Lockd
from lockd.effects import Effect, KeepLeft, LogGrant, Note, Persist, Send, synced_together
from lockd.listener import Full, Listener, Unreachable
from lockd.state import State, StateError

_WAIT_NS_MAX: Final = 512_000_000
_BEHIND_NS: Final = 16_000_000
_BEHIND_NS_MAX: Final = 100_000_000
"""What is written behind waits for 16 ms without messages, and so long at the most."""
_SOON_NS: Final = 1_000_000
_GATHERED_MAX: Final = 64
"""So many messages at the most are taken in before a durable change is made: what they change is synced with it."""


class Server:
    """A bound lockd: `serve` runs it until a signal asks it to end."""

    def __init__(
        self, stop: Stop, binds: list[str], data: Path, ttl_ns: int, lock_delay_ns: int, rebuild: int = 0
    ) -> None:
        """Open the data directory and bind; with `rebuild` take the lost state from that many replicas.

        Raises CommandError with what, why and what to do.
        """
        if (data / "events.log").exists():
            raise refused(f"{data} is a client's data directory; choose another --data")
        self._open_files = raise_open_files()  # each client is a connection
        self._stop = stop
        self._listener = Listener(stop.descriptor)
        self.endpoints: list[str] = []
        try:
            self._bind(binds)
            self._open(data, ttl_ns, lock_delay_ns, rebuild)
        except CommandError:
            self._listener.close()
            raise
        self.clock = SteadyClock()
        self._strangers = Strangers()
        self._behind_ns = self._granted = self._soon_ns = 0

    def _bind(self, binds: list[str]) -> None:
        for bind in binds:
            try:
                self.endpoints.append(self._listener.bind(bind))
            except OSError as error:
                taken = "; is another lockd there?" if error.errno == errno.EADDRINUSE else ";"
                why = error.strerror or str(error)
                raise refused(f"cannot listen on {bind} ({why}){taken} choose another --bind") from None

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
        self._figures = self.core.figures

    def serve(self, ready: Callable[[str], None], waits: Callable[[str], None]) -> None:
        """Serve until SIGINT or SIGTERM; then end in good order. Say `ready` when locks can be had.

        With --rebuild it says before what it `waits` for.
        """
        said = False
        self._log.note(f"epoch {self.core.epoch} begins on {', '.join(self.endpoints)}")
        if self._open_files < SESSIONS_MAX:
            self._log.note(
                f"this process may have {self._open_files} files open, so it serves fewer clients than that; for more, "
                "raise its hard limit (ulimit -Hn, LimitNOFILE)"
            )
        for note in self._behind.notes:
            self._log.note(note)
        self._do(self.core.begin(self.clock.now_ns()))
        if self.core.rebuilding:
            waits("waiting for the replicas to rebuild the state from")
        while self._stop.caught is None:
            if not said and not self.core.rebuilding:
                ready(f"ready {' '.join(self.endpoints)} epoch {self.core.epoch}")
                said = True
            now_ns = self.clock.now_ns()
            if self._behind.waiting and now_ns - self._behind_ns > _BEHIND_NS_MAX:
                self._write_behind(now_ns)
            deadline_ns = self.core.deadline_ns()
            left_ns = _WAIT_NS_MAX if deadline_ns is None else min(deadline_ns - now_ns, _WAIT_NS_MAX)
            if left_ns <= 0:
                self._drain()
                self._do(self.core.handle_timer(self.clock.now_ns()))
                continue
            if self._behind.waiting:
                left_ns = min(left_ns, _BEHIND_NS)
            if not self._take_in_all(left_ns) and self._behind.waiting:
                self._write_behind(now_ns)
        self._do(self.core.stop(self.clock.now_ns()))
        self._behind.flush()
        malformed = f"; {self._strangers.total} malformed messages were dropped" if self._strangers.total else ""
        self._log.note(f"epoch {self.core.epoch} ends{malformed}")

    def close(self) -> None:
        """Close socket, state and logs."""
        self._listener.close()
        self._state.close()
        self._log.close()
        self._behind.close()

    def _drain(self) -> None:
        """Take in what has come: a keepalive that is here already counts before its lease can run out.

        Connections are read in turn, and any message of a client renews its lease. So it is enough that each has its
        turn: under a load without a pause, time would else never go on.
        """
        for _ in range(self._listener.turns):
            if not self._take_in_all(0):
                return

    def _take_in_all(self, wait_ns: int) -> bool:
        """Wait for so long at the most, and take in what has come; return whether there was anything.

        A durable change is made together with what else has come: it costs a sync of the disk.
        """
        gathered: list[Effect] = []
        count = 0
        if self._granted != self.core.granted:
            # Who was granted a lock gives it back soon, and others want it.
            self._granted, self._soon_ns = self.core.granted, time.monotonic_ns() + _SOON_NS
        soon = time.monotonic_ns() < self._soon_ns
        for route, parts in self._listener.events(wait_ns / 1e9, soon=soon):
            count += 1
            effects = self._handle(route, parts)
            if not gathered:
                for effect in effects:
                    if type(effect) is Persist:
                        break
                else:
                    self._do(effects)
                    continue
            gathered += effects
            if count % _GATHERED_MAX == 0:
                self._do(synced_together(gathered))
                gathered = []
        if gathered:
            self._do(synced_together(gathered))
        return count > 0

    def _handle(self, route: bytes, parts: list[bytes] | None) -> list[Effect]:
        """Have the core take in a message, or that a connection is down; return what is to be done."""
        if parts is None:
            return self.core.disconnected(route, self.clock.now_ns())
        self._figures.bytes_in += len(parts[-1])
        try:
            if len(parts) != 1:
                raise WireError(f"it has {len(parts)} frames, not one")
            message: ToLockd = decode(parts[0], ToLockd)  # type: ignore[arg-type]
        except WireError as error:
            self._figures.malformed += 1
            self._listener.malformed(route)
            if not self._strangers.count(route):
                return []
            return [Note(f"dropped a message of {route.hex()}: {shorten(str(error))}")]  # it may quote the message
        return self.core.handle(route, message, self.clock.now_ns())

    def _do(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    frame = encode(effect.message)
                    self._figures.bytes_out += len(frame)
                    try:
                        self._listener.send(effect.route, frame)
                    except Full:
                        self._log.note(f"{effect.route.hex()} does not read its messages; its connection was closed")
                    except Unreachable:
                        pass  # its connection went down, which the core hears of
                case LogGrant():
                    self._behind.line(effect.line)
                case KeepLeft():
                    self._behind.keep(effect)
                case Persist():
                    began_ns = time.monotonic_ns()
                    self._state.write(effect.changes)
                    self._figures.persists.add((time.monotonic_ns() - began_ns) // 1000)
                case Note():
                    self._log.note(effect.text)
                case _:
                    assert_never(effect)

    def _write_behind(self, now_ns: int) -> None:
        """Write what came up: in a moment without messages, for their senders wait for us."""
        self._behind.flush()
        self._behind_ns = now_ns
