"""Locks for Python programs: `LockClient`, its locks, and what guards what they protect.

    from client import LockClient

    with LockClient() as client, client.lock("jobs/nightly", wait=10) as lock:
        print(lock.token)

A lock belongs to the thread that acquired it. It is a lease: it ends where lockd cannot be reached for one ttl, and
then `lock.lost` is set, `lock.check()` raises, and a guard gives nothing out any more. What must be safe even then
takes `lock.token` along, and refuses a smaller one: see client.fencing, and Kleppmann, "How to do distributed locking"
(2016).
"""

import itertools
import os
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

from client.lock_core import LEASE_OVER, Hold
from client.lock_errors import Cancelled, Deadlock, LockError, LockLost, Misuse, NotAcquired, TimedOut, Token
from client.lock_session import LockSession, now_ns
from client.settings import DEFAULT_LOCKD
from common.limits import NAME_LENGTH_MAX, SEMAPHORE_MAX
from common.messages import Mode
from common.names import client_name_problem, endpoint_problem, lock_name_problem

Value = TypeVar("Value")
OnLost = Callable[["Lock"], object]
_owners = itertools.count(1)
_AS_MADE: Final = -1.0
_WAIT_S_MAX: Final = 1e9
_thread = threading.local()


def new_owner() -> int:
    """Return a number for a task that takes locks, which no other has."""
    return next(_owners)


def _problem_of(name: object, problem_of: Callable[[str], str | None]) -> str | None:
    """Tell what is wrong with a name, which may be anything."""
    return problem_of(name) if isinstance(name, str) else "a name is a str"


def _checked(wait: object) -> float | None:
    """Return how long to wait. Raises ValueError where that is no time."""
    if wait is None or (isinstance(wait, int | float) and 0 <= wait <= _WAIT_S_MAX):
        return wait
    raise ValueError(f"wait {wait!r}: it is seconds from 0 to {_WAIT_S_MAX:.0e}, or None to wait for ever")


def _this_thread() -> int:
    """Return a number of this thread that no other ever has, unlike those that the system gives."""
    try:
        return _thread.owner  # type: ignore[no-any-return]
    except AttributeError:
        _thread.owner = new_owner()
        return _thread.owner  # type: ignore[no-any-return]


class LockClient:
    """A session with lockd, for any number of locks and threads. A context: its end gives everything back.

    It keeps its lease alive in a thread of its own, however busy others are. It belongs to the process that made it.
    """

    def __init__(self, lockd: str | None = None, *, name: str | None = None, wait: float | None = 10.0) -> None:
        """Open a session with the lockd at an endpoint, within `wait` seconds.

        Without `lockd` it is that of LOCKSTEP_LOCKD, else tcp://127.0.0.1:7461. `name` is how others see who holds a
        lock, and is in use once at a time; without one it is made of the host, the process id and chance.
        Raises Unreachable, and ValueError for a malformed endpoint or name.
        """
        endpoint = lockd or os.environ.get("LOCKSTEP_LOCKD") or DEFAULT_LOCKD
        if problem := endpoint_problem(endpoint, listening=False):
            raise ValueError(f"lockd {endpoint!r}: {problem}")
        incarnation = os.urandom(8).hex()
        name = name or _unique_name(incarnation)
        if problem := _problem_of(name, client_name_problem):
            raise ValueError(f"name {name!r}: {problem}")
        self.name: Final = name
        wait = _checked(wait)
        self._session = LockSession(endpoint, name, incarnation, _WAIT_S_MAX if wait is None else wait)

    @property
    def lease_ends_ns(self) -> int:
        """Return when the lease ends unless it is renewed, in nanoseconds of CLOCK_BOOTTIME."""
        return self._session.lease_ns

    @property
    def ttl_ns(self) -> int:
        """Return for how many nanoseconds a lease lasts, as lockd was told."""
        return self._session.ttl_ns

    @property
    def lock_delay_ns(self) -> int:
        """Return for how many nanoseconds lockd grants to nobody what was lost with its holder's session."""
        return self._session.lock_delay_ns

    def lock(
        self,
        name: str,
        *,
        wait: float | None = 10.0,
        shared: bool = False,
        sticky: bool = False,
        reentrant: bool = False,
        on_lost: OnLost | None = None,
    ) -> "Lock":
        """Return a lock, not yet acquired.

        It waits for its turn for `wait` seconds: 0 tries, None waits for ever. A `shared` one goes together with other
        shared ones. A `sticky` one is kept when it is released, so that this client takes it again without a message,
        until another wants it. A `reentrant` one may be acquired again by the thread that holds it, and is released as
        often. `on_lost` is called with the lock, in a thread of its own, when it is lost.
        Raises ValueError for a malformed name.
        """
        return Lock(self._session, name, "shared" if shared else "exclusive", wait, 0, sticky, reentrant, on_lost)

    def semaphore(self, name: str, limit: int, *, wait: float | None = 10.0, on_lost: OnLost | None = None) -> "Lock":
        """Return a place in a semaphore that `limit` holders have at once; all its clients name the same limit.

        Raises ValueError for a malformed name or limit.
        """
        if not 1 <= limit <= SEMAPHORE_MAX:
            raise ValueError(f"limit {limit}: it is 1 to {SEMAPHORE_MAX}")
        return Lock(self._session, name, "shared", wait, limit, False, False, on_lost)

    def locks(
        self, *names: str, wait: float | None = 10.0, shared: bool = False, on_lost: OnLost | None = None
    ) -> "Locks":
        """Return several locks that are acquired together: all of them, or none. `wait` is for all together.

        Raises ValueError for a malformed name, or where there is none.
        """
        if not names:
            raise ValueError("locks() without a name would hold nothing; name one lock at least")
        return Locks([self.lock(name, shared=shared, on_lost=on_lost) for name in sorted(set(names))], wait)

    def close(self) -> None:
        """Give everything back, and end the session. What still waits raises; a second time does nothing."""
        self._session.close()

    def __repr__(self) -> str:
        """Return its name, for people."""
        return f"<LockClient {self.name} at {self._session.endpoint}>"

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


class Lock:
    """One lock of a client, held or not. A context: it is acquired at the beginning and released at the end.

    Where it was lost meanwhile, the end of the context raises LockLost: what was done in it was not protected.
    """

    def __init__(
        self,
        session: LockSession,
        name: str,
        mode: Mode,
        wait: float | None,
        limit: int,
        sticky: bool,
        reentrant: bool,
        on_lost: OnLost | None,
    ) -> None:
        """See LockClient.lock. Raises ValueError for a malformed name."""
        if problem := _problem_of(name, lock_name_problem):
            raise ValueError(f"lock {name!r}: {problem}")
        self.name: Final = name
        self.request = 0
        self._session = session
        self._wanted: Mode = mode
        self._wait = _checked(wait)
        self._limit = limit
        self._sticky = sticky
        self._reentrant = reentrant
        self._on_lost = on_lost
        self._hold: Hold | None = None
        self._owner = 0
        self._depth = 0
        self._waits = False
        self._told: Hold | None = None
        self._is_lost = False
        self.lost = threading.Event()
        """It is set when the lock is lost; acquiring it again takes another event."""

    def acquire(self, wait: float | None = _AS_MADE, *, owner: int = 0) -> Token:
        """Take the lock and return its token, waiting for so many seconds (None: for ever; left out: as it was made).

        `owner` stands for a task other than this thread, as those of asyncio: deadlocks are looked for among owners.
        Raises NotAcquired (TimedOut, Deadlock, Cancelled), and Misuse where it is held already.
        """
        owner = owner or _this_thread()
        if self._hold is not None and not self._hold.lost:
            if self._reentrant and self._owner == owner:
                token = Token(self._hold.token)
                self._depth += 1
                return token
            who = "this thread" if self._owner == owner else "another thread: each makes its own with LockClient.lock"
            raise Misuse(f"{self.name} is held already, by {who}")
        if self._is_lost:
            self.lost, self._is_lost = threading.Event(), False
        if self._hold is not None:
            self._session.release(self._hold)
        token = self._ask(wait, owner, self._wanted, 0)
        self._depth = 1
        return token

    def try_acquire(self) -> bool:
        """Take the lock if it is free right now; return whether it was. Raises NotAcquired where it is refused."""
        try:
            self.acquire(0)
        except (TimedOut, Deadlock):
            return False
        return True

    def release(self, *, owner: int = 0) -> None:
        """Give the lock back; one that is lost is only forgotten. Raises Misuse where this thread does not hold it."""
        if self._session.forked:
            self._session.refuse()
        hold = self._hold
        if hold is None:
            raise Misuse(f"{self.name} is not held, so it cannot be released")
        if self._owner != (owner or _this_thread()):
            raise Misuse(f"{self.name} is held by another thread; that one releases it")
        if self._depth > 1:
            self._depth -= 1
            return
        try:
            self._hold, self._depth = None, 0
            self._session.release(hold)
        except BaseException:
            self._session.unwanted.append(hold)  # interrupted: it is given back all the same
            self._session.tidy()
            raise

    def cancel(self) -> None:
        """End the wait of another thread in `acquire` or `upgrade`, which raises Cancelled there."""
        if self._waits:
            self._session.cancel(self.request)

    def upgrade(self, wait: float | None = _AS_MADE) -> Token:
        """Make a shared hold an exclusive one, with nobody in between, and return its new token.

        Until then, and where it raises, the shared hold stays. Of two who want that at once the second gets a Deadlock.
        Raises NotAcquired, LockLost, Misuse. Interrupted, as by Ctrl-C, it loses the lock.
        """
        return self._convert("exclusive", wait)

    def downgrade(self) -> Token:
        """Make an exclusive hold a shared one, with nobody in between, and return its new token."""
        return self._convert("shared", None)

    @property
    def held(self) -> bool:
        """Tell whether the lock is held, and the lease has not ended; the child of a fork holds nothing."""
        hold = self._hold
        return hold is not None and not hold.lost and now_ns() < self._session.lease_ns and not self._session.forked

    @property
    def token(self) -> Token:
        """Return the fencing token of the hold. Raises Misuse where there is none; a lost one still has it."""
        if self._hold is None:
            raise Misuse(f"{self.name} is not held, so it has no token")
        return Token(self._hold.token)

    def check(self) -> Token:
        """Return the token if the lock is still held. Raises LockLost.

        Raises Misuse where it was never acquired, and in the child of a fork.
        """
        if self._session.forked:
            self._session.refuse()
        hold = self._hold
        if hold is None:
            raise Misuse(f"{self.name} is not held")
        if hold.lost or now_ns() >= self._session.lease_ns:
            raise LockLost(f"{self.name} was lost, held under token {Token(hold.token)}: {hold.lost or LEASE_OVER}")
        return Token(hold.token)

    def guard(self, value: Value) -> "Guard[Value]":
        """Return a guard that gives `value` out only while this hold of the lock lasts."""
        self.check()
        assert self._hold is not None
        return Guard(self, self._hold, value)

    def lose(self, hold: Hold) -> None:
        """Take in that the lock is lost; the session calls it."""
        if self._told is hold:
            return
        self._is_lost = True
        self.lost.set()
        if self._on_lost is not None:
            threading.Thread(target=self._on_lost, args=(self,), name=f"{self.name} is lost", daemon=True).start()
        self._told = hold

    def _ask(self, wait: float | None, owner: int, mode: Mode, converts: int) -> Token:
        """Acquire or convert it. Whatever is raised, here or by a signal's handler: then nothing came of it."""
        wait = self._wait if wait == _AS_MADE else _checked(wait)
        wait_ns = None if wait is None else int(wait * 1e9)
        self._waits = True
        try:
            answer = self._session.acquire(
                self, self.name, mode, owner, wait_ns, limit=self._limit, converts=converts, sticky=self._sticky
            )
        finally:
            self._waits = False
        hold = answer.hold
        if hold is not None:
            try:
                token = Token(hold.token)
            except BaseException:
                self._session.unwanted.append(hold)
                self._session.tidy()
                raise
            self._hold, self._owner = hold, owner
            return token
        if answer.cause == "deadlock":
            raise Deadlock(answer.reason)
        if answer.cause == "lost" and converts:
            raise LockLost(answer.reason)
        if answer.reason == "it was cancelled":
            raise Cancelled(f"waiting for {self.name} was cancelled")
        if answer.cause == "wait":
            raise TimedOut(answer.reason)
        raise NotAcquired(answer.reason)

    def _convert(self, mode: Mode, wait: float | None) -> Token:
        token = self.check()
        hold = self._hold
        assert hold is not None
        if self._limit:
            raise Misuse(f"{self.name} is a semaphore, which has no exclusive holder")
        if self._owner != _this_thread():
            raise Misuse(f"{self.name} is held by another thread")
        if hold.mode == mode:
            return token
        try:
            return self._ask(wait, self._owner, mode, hold.token)
        except LockError:
            raise
        except BaseException:
            # What became of it is not known, so all of it is given back; the core's own hold ends when that is done.
            why = "its conversion was interrupted"
            lost = Hold(hold.lock, hold.token, hold.mode, hold.owner, hold.limit, hold.sticky, lost=why)
            self._hold = lost
            self._session.unwanted.append(hold)
            self._session.tidy()
            self.lose(lost)
            raise

    def __repr__(self) -> str:
        """Return its name and whether it is held, for people."""
        hold = self._hold
        state = "not held" if hold is None else f"{'held' if self.held else 'lost'} under {Token(hold.token)}"
        return f"<Lock {self.name}, {state}>"

    def __enter__(self) -> Self:
        """Acquire it."""
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release it. Raises LockLost where it was lost, and nothing else went wrong."""
        lost = ""
        if self._depth == 1 and kind is None:
            try:
                self.check()
            except LockLost as loss:
                lost = str(loss)
        if kind is None or not self._session.forked:
            self.release()
        if lost:
            raise LockLost(lost)


class Locks:
    """Several locks, held all or none. A context, as Lock is.

    They are acquired one after the other in the order of their names, so that two who want the same ones never wait for
    each other; what was acquired is given back where another one is not.
    """

    def __init__(self, locks: list[Lock], wait: float | None) -> None:
        """Take the locks in the order in which they are acquired."""
        self.locks: Final = tuple(locks)
        self._wait = _checked(wait)

    def acquire(self, wait: float | None = _AS_MADE) -> dict[str, Token]:
        """Take all of them, within so many seconds, and return their tokens by name. Raises NotAcquired."""
        wait = self._wait if wait == _AS_MADE else _checked(wait)
        end_ns = None if wait is None else now_ns() + int(wait * 1e9)
        before = [lock._hold for lock in self.locks]  # a lost one, too, and it is none any more when it is acquired
        try:
            for lock in self.locks:
                lock.acquire(None if end_ns is None else max(0, end_ns - now_ns()) / 1e9)
            return {lock.name: lock.check() for lock in self.locks}
        except BaseException:
            self._give_back(before)
            raise

    def release(self) -> None:
        """Give all of them back, also where one is not held, which raises Misuse."""
        try:
            for lock in reversed(self.locks):
                lock.release()
        except BaseException:
            self._give_back([])
            raise

    def _give_back(self, but: list[Hold | None]) -> None:
        """Give back those that have a hold, but for these, whatever was interrupted before."""
        for lock in reversed(self.locks):
            if lock._hold is not None and not any(lock._hold is hold for hold in but):
                lock.release()

    def check(self) -> dict[str, Token]:
        """Return the tokens by name if all are still held. Raises LockLost."""
        return {lock.name: lock.check() for lock in self.locks}

    def __enter__(self) -> Self:
        """Acquire all of them."""
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release all of them. Raises LockLost where one was lost, and nothing else went wrong."""
        try:
            if kind is None:
                self.check()
        finally:
            self.release()


class Guard(Generic[Value]):
    """What a lock protects, given out only while the lock is held: poisoned for ever when that ends."""

    __slots__ = ("_hold", "_lock", "_value")

    def __init__(self, lock: Lock, hold: Hold, value: Value) -> None:
        """Guard `value` by one hold of a lock."""
        self._lock = lock
        self._hold = hold
        self._value = value

    def get(self) -> Value:
        """Return what is guarded. Raises LockLost when the hold is over, also where the lock was acquired again."""
        if self._lock._hold is not self._hold:
            raise LockLost(f"{self._lock.name} is not held any more under token {Token(self._hold.token)}")
        self._lock.check()
        return self._value


def _unique_name(incarnation: str) -> str:
    """Return a name of the host and the process, with some chance so that it is no other's."""
    end = f"-{os.getpid()}-{incarnation[:8]}"
    host = "".join(
        [each if each.isascii() and (each.isalnum() or each in ".-_") else "-" for each in socket.gethostname()]
    )
    return host[: NAME_LENGTH_MAX - len(end)] + end
