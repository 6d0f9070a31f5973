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
from functools import partial
from typing import Final, NoReturn, Protocol

from client.lock_core import Hold, HoldLost, Joined, LockCore, NotJoined, Unusable, Wait
from client.lock_errors import Misuse, Unreachable
from client.zmtp import Connection, Disconnected
from common.messages import FromLockd, Mode
from common.wire import WireError, decode, encode

_QUIET_NS: Final = 20_000_000
"""So long after the last call that read the keeper begins to poll."""
_QUIET_NS_MAX: Final = 250_000_000
"""While calls read, it looks ever less often whether they still do: for so many clients each look is a wake-up."""
_RETRY_NS: Final = 5_000_000
_RETRY_NS_MAX: Final = 500_000_000
_CONNECT_NS_MAX: Final = 500_000_000
_POLL_NS_MAX: Final = 1_000_000_000
_TAKE_OVER_S: Final = 0.1
"""A follower looks so often whether it should read; it is woken when it should, so this is only for safety."""

_FINAL: Final = ("lockd refused", "what listens at")
"""What no further try would change."""
_IN_USE: Final = "is in use by a live session"
"""Said of a name. It may be that of a process that is dead: then its session ends in time."""

_sessions: "weakref.WeakSet[LockSession]" = weakref.WeakSet()


now_ns: Final = partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)
"""Return nanoseconds of a clock that goes on while the machine sleeps, as leases do."""


class Holder(Protocol):
    """Who wants a lock: it is told the number of its request, and of the loss of what it holds, maybe twice.

    `lose` is called by any thread, and must not call the session.
    """

    request: int

    def lose(self, hold: Hold) -> None:
        """Take in that a hold is lost; `hold.lost` says why."""


class LockSession:
    """One connection with lockd, and one session over it. All its methods may be called from any thread."""

    def __init__(self, endpoint: str, name: str, incarnation: str, wait_s: float) -> None:
        """Open a session within `wait_s` seconds. Raises Unreachable."""
        self.endpoint = endpoint
        self._routing_id = incarnation.encode()
        self._core = LockCore(name, incarnation)
        self._mutex = threading.Lock()
        self._reader: object = None
        """Who reads: a Wait, the session itself for its keeper, or None; taken under the mutex, given up without."""
        self.unwanted: list[Wait | Hold] = []
        """What interrupted calls have left behind: to append is one step, and the keeper does the rest if need be."""
        # Released to wake the keeper. An Event whose `set` is interrupted can stay locked for ever.
        self._keeper_wakes = threading.Lock()
        self._keeper_wakes.acquire()
        self._holders: dict[int, Holder] = {}
        self._connection: Connection | None = None
        self._read_ns = 0
        self._retry_ns = _RETRY_NS
        self._retry_at_ns = 0
        self._trouble = ""
        self._joined = False
        self.forked = False
        """This is the child of the process that made it, which nothing here belongs to."""
        self._closed = False
        self._keeper = threading.Thread(target=self._keep, name=f"lockstep-{name}", daemon=True)
        try:
            self._join(now_ns() + int(wait_s * 1e9))
            self._keeper.start()
            _sessions.add(self)
        except BaseException:
            with self._mutex:
                self._core.leave()
                self._flush()
                self._disconnect(self._trouble)
            self._closed = True
            raise

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
    ) -> Wait:
        """Ask for a lock, and wait for the answer. Raises Misuse where the session is closed, or of another process."""
        if self.forked or self._closed:
            self.refuse()
        now = now_ns()
        wait = Wait(lock, mode, owner, None if wait_ns is None else now + wait_ns, limit, converts, sticky)
        try:
            try:
                with self._mutex:
                    if sticky and self._core.take_idle(wait, now):
                        assert wait.hold is not None
                        self._holders[wait.hold.token] = holder
                        return wait
                    self._core.acquire(wait, now)
                    holder.request = wait.request
                    self._flush()
                    if self._reader is None:
                        self._reader = wait
                self._wait(wait)
                if wait.hold is not None:
                    if converts:
                        self._holders.pop(converts, None)
                    self._holders[wait.hold.token] = holder
                    if wait.hold.lost:
                        holder.lose(wait.hold)
            finally:
                if self._reader is wait:
                    self._reader = None
                    if self._core.waits:
                        self._hand_on()
        except BaseException:
            # The caller was interrupted, and holds nothing of which it does not know.
            self.unwanted.append(wait)
            self.tidy()
            raise
        return wait

    def cancel(self, request: int) -> None:
        """End a wait, from another thread."""
        if self.forked:
            return
        with self._mutex:
            self._core.cancel(request)
            self._flush()

    def release(self, hold: Hold) -> None:
        """Give a lock back; one that may be kept is kept. Where it is interrupted the hold is `unwanted`."""
        with self._mutex:
            if hold.sticky:
                self._core.release(hold)
            else:
                self._core.give_back(hold)
            self._holders.pop(hold.token, None)
            if self._core.out:
                self._flush()
        if hold.idle and self._keeper_wakes.locked():
            self._wake_keeper()  # from now on a Recall may come at any time

    def tidy(self) -> None:
        """Give back what interrupted calls have left behind."""
        with self._mutex:
            while self.unwanted:
                one = self.unwanted[0]
                if isinstance(one, Wait):
                    self._core.abandon(one)
                else:
                    self._core.drop(one)
                hold = one.hold if isinstance(one, Wait) else one
                if hold is not None and hold.token not in self._core.holds:
                    self._holders.pop(hold.token, None)
                del self.unwanted[0]
            self._flush()

    def close(self) -> None:
        """Give everything back, and end the session; a second time does nothing."""
        if self._closed or self.forked:
            return
        with self._mutex:
            self._core.leave()
            self._flush()
        self._closed = True
        self._wake_keeper()
        if self._connection is not None:
            self._connection.close()
        self._keeper.join()

    def refuse(self) -> NoReturn:
        """Say why this session is of no use any more. Raises Misuse."""
        if self.forked:
            raise Misuse("a LockClient belongs to the process that made it, with its locks: make one behind the fork")
        raise Misuse("this LockClient is closed; make another one")

    # Waiting and reading

    def _wait(self, wait: Wait) -> None:
        """Return when a request is answered: read for it, or let another thread do so."""
        while not wait.done:
            if self._reader is not wait:
                self._follow(wait)
                continue
            with self._mutex:
                wait_ns = self._turn()
            if not wait.done:
                self._read(wait_ns)
        if self._reader is wait:
            self._read_ns = now_ns()

    def _follow(self, wait: Wait) -> None:
        """Sleep until a request is answered, or until somebody has to read; become the reader where there is none."""
        with self._mutex:
            if self._reader is None:
                self._reader = wait
                return
            wake = wait.wake = threading.Lock()
            wake.acquire()
            done = wait.done
        if not done:
            wake.acquire(timeout=_TAKE_OVER_S)

    def _hand_on(self) -> None:
        """Wake one of those who wait for an answer, so that it reads."""
        with self._mutex:
            for other in self._core.waits.values():
                if other.wake is not None:
                    self._wake(other)
                    return

    def _turn(self) -> int:
        """Do what is due; return for how long there is nothing else to do."""
        now = now_ns()
        left_ns = self._core.deadline_ns() - now
        if left_ns <= 0:
            self._core.tick(now)
            self._flush()
            left_ns = max(0, self._core.deadline_ns() - now_ns())
        return left_ns

    def _read(self, wait_ns: int) -> None:
        """Take in what comes within so long, or try to get a connection. The caller is the reader.

        What is interrupted is a connection that broke: over the next one everything is said again.
        """
        try:
            connection = self._connection
            if connection is None:
                self._connect(wait_ns)
            elif frames := connection.receive(wait_ns):
                with self._mutex:
                    for frame in frames:
                        self._take_in(frame)
        except BaseException as error:
            if self._connection is not None:
                self._connection.broken = True  # first, in one step: should this be interrupted, too
            with self._mutex:
                self._disconnect(str(error))
            if not isinstance(error, Disconnected):
                raise

    def _take_in(self, frame: bytes) -> None:
        core = self._core
        try:
            message: FromLockd = decode(frame, FromLockd)  # type: ignore[arg-type]
        except WireError as error:
            self._trouble = f"what listens at {self.endpoint} is no lockd of this version: {error}"
            return
        core.received(message, now_ns())
        if core.news:
            self._pass_on()
        if core.out:
            self._flush()

    # Under the mutex

    def _flush(self) -> None:
        """Send what the core wants sent, and pass on what it tells."""
        core = self._core
        try:
            while core.out or core.news:
                if core.out:
                    out, core.out = core.out, []
                    for message in out:
                        if self._connection is not None:
                            try:
                                self._connection.send(encode(message))
                            except Disconnected as error:
                                self._disconnect(str(error))
                if core.news:
                    self._pass_on()
        except BaseException as error:
            if self._connection is not None:
                self._connection.broken = True  # first, in one step: should this be interrupted, too
            self._disconnect(str(error))
            raise

    def _pass_on(self) -> None:
        news = self._core.news
        while news:
            match news[0]:
                case Wait() as wait:
                    if wait.wake is not None:
                        self._wake(wait)
                case HoldLost(hold):
                    if (holder := self._holders.get(hold.token)) is not None:
                        holder.lose(hold)
                        self._holders.pop(hold.token, None)
                case Joined():
                    self._joined, self._trouble = True, ""
                case NotJoined(reason):
                    self._trouble = f"lockd refused: {reason}"
                case Unusable():
                    self._disconnect("lockd does not answer")
            del news[0]  # now that it is done: who is interrupted before does it again

    def _wake(self, wait: Wait) -> None:
        wake, wait.wake = wait.wake, None
        wake.release()

    def _disconnect(self, why: str) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._trouble = why
            self._core.disconnected()
            connection.close()

    # The connection

    def _connect(self, wait_ns: int) -> None:
        """Try to get a connection, within `wait_ns` if that is less than usual. The caller is the reader."""
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
            if left_ns <= 0 or (self._trouble.startswith(_FINAL) and _IN_USE not in self._trouble):
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
            if self.unwanted:
                self.tidy()
            with self._mutex:
                wait_ns = self._turn()
            quiet_ns = now_ns() - self._read_ns
            reads = self._reader is not None
            if reads or quiet_ns < _QUIET_NS:
                # A call reads, or has just read, and others may follow.
                pause_ns = min(2 * pause_ns, _QUIET_NS_MAX) if reads else _QUIET_NS
                self._keeper_wakes.acquire(timeout=min(pause_ns, max(wait_ns, 1_000_000)) / 1e9)
                continue
            pause_ns = _QUIET_NS
            self._keeper_wakes.acquire(blocking=False)
            connection = self._connection
            if connection is not None and not connection.broken and not self._poll(connection, wait_ns):
                continue
            with self._mutex:
                if self._reader is not None:
                    continue
                self._reader = self
            try:
                self._read(0 if self._connection is not None else wait_ns)
            finally:
                self._reader = None
                self._hand_on()

    def _wake_keeper(self) -> None:
        try:
            self._keeper_wakes.release()
        except RuntimeError:
            pass  # it is to wake already

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
        session.forked = True
        # Threads that there are only in the parent may have had these.
        session._mutex, session._reader = threading.Lock(), None
        if session._connection is not None:
            session._connection.abandon()


def _at_exit() -> None:
    """Give back what a program that ends still holds: nobody has to wait for its leases."""
    for session in list(_sessions):
        session.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
