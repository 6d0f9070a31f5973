"""The driver of a client that only locks: threads, the connection, the clock. It decides nothing.

Theory of operation. There is no thread that reads for the others: whoever waits for an answer reads the connection
itself, for all, and takes nobody else's time (leader and followers: Schmidt et al., "Leader/Followers", 2000). When it
has its answer it hands the reading on. A keeper thread sends the pings that are due and takes in what comes while
nobody waits; it polls the descriptor only when no call has read for a while, so that in a busy time an answer wakes one
thread, not two.
"""

import atexit
import os
import select
import threading
import time
import weakref
from typing import Final, Protocol

from client.lock_core import Granted, Hold, HoldLost, Joined, LockCore, NotGranted, NotJoined, Unusable
from client.lock_errors import Misuse, Unreachable
from client.zmtp import Connection, Disconnected
from common.messages import Cause, FromLockd, Mode
from common.wire import WireError, decode, encode

_QUIET_NS: Final = 20_000_000
"""So long after the last call that read the keeper begins to poll."""
_RETRY_NS: Final = 5_000_000
_RETRY_NS_MAX: Final = 500_000_000
_CONNECT_NS_MAX: Final = 500_000_000
_POLL_NS_MAX: Final = 1_000_000_000
_TAKE_OVER_S: Final = 0.1
"""A follower looks so often whether it should read; it is woken when it should, so this is only for safety."""

_FINAL: Final = ("lockd refused", "what listens at")
"""What no further try would change."""

_sessions: "weakref.WeakSet[LockSession]" = weakref.WeakSet()


def now_ns() -> int:
    """Return nanoseconds of a clock that goes on while the machine sleeps, as leases do."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Holder(Protocol):
    """Who wants a lock: it is told the number of its request, and of the loss of what it holds, maybe twice.

    `lose` is called by any thread, and must not call the session.
    """

    request: int

    def lose(self, hold: Hold) -> None:
        """Take in that a hold is lost; `hold.lost` says why."""


class Call:
    """A request whose answer somebody waits for."""

    __slots__ = ("cause", "done", "hold", "reason", "wake")

    def __init__(self) -> None:
        """Begin unanswered."""
        self.done = False
        self.hold: Hold | None = None
        self.cause: Cause = "request"
        self.reason = ""
        self.wake: threading.Lock | None = None


class LockSession:
    """One connection with lockd, and one session over it. All its methods may be called from any thread."""

    def __init__(self, endpoint: str, name: str, incarnation: str, wait_s: float) -> None:
        """Open a session within `wait_s` seconds. Raises Unreachable."""
        self.endpoint = endpoint
        self._routing_id = incarnation.encode()
        self._core = LockCore(name, incarnation)
        self._mutex = threading.Lock()
        self._reading = threading.Lock()
        self._keeper_wakes = threading.Event()
        self._calls: dict[int, Call] = {}
        self._holders: dict[int, Holder] = {}
        self._connection: Connection | None = None
        self._read_ns = 0
        self._retry_ns = _RETRY_NS
        self._retry_at_ns = 0
        self._trouble = ""
        self._joined = False
        self._forked = False
        self._closed = False
        self._join(now_ns() + int(wait_s * 1e9))
        self._keeper = threading.Thread(target=self._keep, name=f"lockstep-{name}", daemon=True)
        self._keeper.start()
        _sessions.add(self)

    @property
    def lease_ns(self) -> int:
        """Return when the lease ends unless it is renewed, as `now_ns` counts."""
        return self._core.lease_ns

    @property
    def ttl_ns(self) -> int:
        """Return for how long a lease lasts."""
        return self._core.ttl_ns

    @property
    def lock_delay_ns(self) -> int:
        """Return for how long lockd grants a lost lock to nobody."""
        return self._core.lock_delay_ns

    def acquire(
        self,
        holder: Holder,
        lock: str,
        mode: Mode,
        owner: int,
        wait_ns: int | None,
        *,
        limit: int = 0,
        converts: int = 0,
        sticky: bool = False,
    ) -> Call:
        """Ask for a lock, and wait for the answer. Raises Misuse where the session is closed, or of another process."""
        self._check()
        call, request = Call(), 0
        try:
            with self._mutex:
                if sticky and (hold := self._core.take_idle(lock, mode, owner, now_ns())) is not None:
                    self._holders[hold.token] = holder
                    call.done, call.hold = True, hold
                    return call
                request = self._core.acquire(
                    lock, mode, owner, wait_ns, now_ns(), limit=limit, converts=converts, sticky=sticky
                )
                self._calls[request] = call
                holder.request = request
                self._flush()
            self._wait(call)
        except BaseException:
            # The caller was interrupted, and holds nothing of which it does not know.
            with self._mutex:
                self._core.cancel(request)
                self._flush()
                self._calls.pop(request, None)
                if call.hold is not None:
                    self._core.give_back(call.hold)
                    self._flush()
            raise
        if call.hold is not None:
            self._holders.pop(converts, None)
            self._holders[call.hold.token] = holder
            if call.hold.lost:
                holder.lose(call.hold)
        return call

    def cancel(self, request: int) -> None:
        """End a wait, from another thread."""
        with self._mutex:
            self._core.cancel(request)
            self._flush()

    def release(self, hold: Hold, *, for_good: bool = False) -> None:
        """Give a lock back; one that may be kept is kept, if not `for_good`."""
        if self._forked:
            return
        with self._mutex:
            self._holders.pop(hold.token, None)
            if for_good:
                self._core.give_back(hold)
            else:
                self._core.release(hold)
            if self._core.out:
                self._flush()
        if hold.idle and not self._keeper_wakes.is_set():
            self._keeper_wakes.set()  # from now on a Recall may come at any time

    def close(self) -> None:
        """Give everything back, and end the session; a second time does nothing."""
        if self._closed or self._forked:
            return
        self._closed = True
        with self._mutex:
            self._core.leave()
            self._flush()
        self._keeper_wakes.set()
        if self._connection is not None:
            self._connection.close()
        self._keeper.join()

    def _check(self) -> None:
        if self._forked:
            raise Misuse("a LockClient belongs to the process that made it: make one behind the fork")
        if self._closed:
            raise Misuse("this LockClient is closed; make another one")

    # Waiting and reading

    def _wait(self, call: Call) -> None:
        """Return when a call is answered: read for it, or let another thread do so."""
        while not call.done:
            if self._reading.acquire(blocking=False):
                try:
                    self._read_until(call)
                finally:
                    self._reading.release()
                    self._hand_on()
            else:
                self._follow(call)

    def _follow(self, call: Call) -> None:
        """Sleep until a call is answered, or until somebody has to read."""
        with self._mutex:
            wake = call.wake = threading.Lock()
            wake.acquire()
            done = call.done
        # Who read may have stopped before it could see that somebody is to be woken.
        if not done and self._reading.locked():
            wake.acquire(timeout=_TAKE_OVER_S)

    def _hand_on(self) -> None:
        """Wake one of those who wait for an answer, so that it reads."""
        if len(self._calls) == 0:
            return
        with self._mutex:
            for other in self._calls.values():
                if not other.done and other.wake is not None:
                    self._wake(other)
                    return

    def _read_until(self, call: Call) -> None:
        """Read, and keep the session, until a call is answered."""
        while not call.done:
            with self._mutex:
                wait_ns = self._turn()
            if not call.done:
                self._read(wait_ns)
        self._read_ns = now_ns()

    def _turn(self) -> int:
        """Do what is due; return for how long there is nothing else to do."""
        now = now_ns()
        self._core.tick(now)
        self._flush()
        return max(0, self._core.deadline_ns() - now_ns())

    def _read(self, wait_ns: int) -> None:
        """Take in what comes within so long, or try to get a connection. The caller has the reading."""
        connection = self._connection
        if connection is None:
            self._connect(wait_ns)
            return
        try:
            frame = connection.receive(wait_ns)
            if frame is None:
                return
            with self._mutex:
                self._take_in(frame)
                while connection.has_more and (frame := connection.receive(0)) is not None:
                    self._take_in(frame)
        except Disconnected as error:
            with self._mutex:
                if self._connection is connection:
                    self._disconnect(str(error))

    def _take_in(self, frame: bytes) -> None:
        try:
            message: FromLockd = decode(frame, FromLockd)  # type: ignore[arg-type]
        except WireError as error:
            self._trouble = f"what listens at {self.endpoint} is no lockd of this version: {error}"
            return
        self._core.received(message, now_ns())
        self._flush()

    # Under the mutex

    def _flush(self) -> None:
        """Send what the core wants sent, and pass on what it tells."""
        core = self._core
        while core.out or core.news:
            out, core.out = core.out, []
            for message in out:
                if self._connection is not None:
                    try:
                        self._connection.send(encode(message))
                    except Disconnected as error:
                        self._disconnect(str(error))
            if core.news:
                self._pass_on()

    def _pass_on(self) -> None:
        news, self._core.news = self._core.news, []
        for one in news:
            match one:
                case Granted(request, hold):
                    self._answer(request, hold, "request", "")
                case NotGranted(request, cause, reason):
                    self._answer(request, None, cause, reason)
                case HoldLost(hold):
                    if (holder := self._holders.pop(hold.token, None)) is not None:
                        holder.lose(hold)
                case Joined():
                    self._joined, self._trouble = True, ""
                case NotJoined(reason):
                    self._trouble = f"lockd refused: {reason}"
                case Unusable():
                    self._disconnect("lockd does not answer")

    def _answer(self, request: int, hold: Hold | None, cause: Cause, reason: str) -> None:
        call = self._calls.pop(request, None)
        if call is None:
            if hold is not None:
                self._core.give_back(hold)
            return
        call.hold, call.cause, call.reason, call.done = hold, cause, reason, True
        self._wake(call)

    def _wake(self, call: Call) -> None:
        if call.wake is not None:
            wake, call.wake = call.wake, None
            wake.release()

    def _disconnect(self, why: str) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._trouble = why
        self._core.disconnected()

    # The connection

    def _connect(self, wait_ns: int) -> None:
        """Try to get a connection, within `wait_ns` if that is less than usual. The caller has the reading."""
        now = now_ns()
        if self._closed or now < self._retry_at_ns:
            pause_ns = min(max(self._retry_at_ns - now, 1_000_000), max(wait_ns, 1_000_000))
            time.sleep(pause_ns / 1e9)
            return
        try:
            timeout_s = min(max(wait_ns, 10_000_000), _CONNECT_NS_MAX) / 1e9
            connection = Connection(self.endpoint, self._routing_id, timeout_s)
        except Disconnected as error:
            self._trouble = str(error)
            self._retry_at_ns = now_ns() + self._retry_ns
            self._retry_ns = min(2 * self._retry_ns, _RETRY_NS_MAX)
            return
        self._retry_ns = _RETRY_NS
        with self._mutex:
            self._connection = connection
            self._core.connected(now_ns())
            self._flush()

    def _join(self, end_ns: int) -> None:
        """Open the first session."""
        while not self._joined:
            left_ns = end_ns - now_ns()
            if left_ns <= 0 or self._trouble.startswith(_FINAL):
                self._closed = True
                with self._mutex:
                    self._core.leave()
                    self._flush()
                    self._disconnect(self._trouble)
                raise Unreachable(self._unreachable())
            with self._mutex:
                wait_ns = self._turn()
            self._read(min(wait_ns or 1_000_000, left_ns))

    def _unreachable(self) -> str:
        if self._trouble.startswith(_FINAL):
            return self._trouble
        why = self._trouble or "no answer"
        return f"no session with lockd at {self.endpoint} ({why}); start it, or set its endpoint (LOCKSTEP_LOCKD)"

    # The keeper

    def _keep(self) -> None:
        """Keep the session alive while nobody reads, and take in what comes then."""
        pause_ns = _QUIET_NS
        while not self._closed:
            with self._mutex:
                wait_ns = self._turn()
            quiet_ns = now_ns() - self._read_ns
            if self._reading.locked() or quiet_ns < _QUIET_NS:
                # A call reads, or has just read, and others may follow.
                pause_ns = min(2 * pause_ns, 5 * _QUIET_NS) if self._reading.locked() else _QUIET_NS
                if self._keeper_wakes.wait(min(pause_ns, max(wait_ns, 1_000_000)) / 1e9):
                    self._keeper_wakes.clear()
                continue
            pause_ns = _QUIET_NS
            self._keeper_wakes.clear()
            connection = self._connection
            if connection is not None and not self._poll(connection, wait_ns):
                continue
            if not self._reading.acquire(blocking=False):
                continue
            try:
                self._read(0 if self._connection is not None else wait_ns)
            finally:
                self._reading.release()
                self._hand_on()

    def _poll(self, connection: Connection, wait_ns: int) -> bool:
        """Wait until there is something to read, for so long at the most."""
        poller = select.poll()
        try:
            poller.register(connection, select.POLLIN)
        except ValueError:
            return True  # it was closed meanwhile
        return bool(poller.poll(min(wait_ns, _POLL_NS_MAX) // 1_000_000 + 1))


def _after_fork() -> None:
    """Make the sessions of the parent useless in its child: nothing that it sends comes from here."""
    for session in list(_sessions):
        session._forked = True
        if session._connection is not None:
            session._connection.abandon()


def _at_exit() -> None:
    """Give back what a program that ends still holds: nobody has to wait for its leases."""
    for session in list(_sessions):
        session.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
