"""The core of a client that only locks: its session, what it holds and what it waits for. No I/O.

Theory of operation. Calls and messages change the state, and leave what is to be sent in `out` and what has happened
in `news`. The lease counts from the send time of the last Hello or Ping that was answered, so it ends here before it
ends at lockd; its end loses every lock. A broken connection loses none: over the next one all that may be lost is said
again. Nor does a restart of lockd: the next Hello claims what is held, and until lockd has decided nobody else is
granted it.

A hold that lockd calls sticky may be kept when it is given back: it is idle then, and taken again without a message. A
Recall ends that: an idle hold goes back at once, one in use when it is done.

A signal's handler may raise anywhere in here. So what is to be said is kept before it is done, a hold is there before
its wait is gone, and all of it can be done a second time: the driver then takes the connection for broken.

It must never call a hold valid behind the end of the lease, nor give an idle one out again after its Recall.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from msgspec import Struct

from client.unconfirmed import Unconfirmed
from common.limits import ANSWERS_KEPT_MAX
from common.messages import (
    Acquire,
    Cancel,
    Cause,
    Ended,
    FromLockd,
    Goodbye,
    Grant,
    Held,
    Hello,
    InUse,
    Lost,
    Mode,
    Ping,
    Pong,
    Recall,
    Refused,
    Release,
    Resume,
    Stale,
    ToLockd,
    Welcome,
)
from common.records import EMPTY

_HELLO_EVERY_NS: Final = 1_000_000_000
_HELLO_OLD_NS: Final = 2_500_000_000
"""A hello so old is given up with its connection: the lease that it brings counts from the first time it was said."""
_ANSWER_MARGIN_NS: Final = 1_000_000_000
"""lockd ends a wait; so much later it is ended here."""

_FOR_EVER_MS: Final = 1 << 40
"""A wait without an end, in milliseconds: 35 years."""

LEASE_OVER: Final = "the lease ran out: lockd did not answer in time, or this process stood still"
_CLOSED: Final = "this client was closed"
_NO_ANSWER: Final = "lockd gave no answer in time: it is down, out of reach, or stands still; look into lockd.log"


class Hold(Struct, eq=False):
    """A lock that is held. `lost` says why it is so no more, "" while it is; an `idle` one is held for nobody."""

    lock: str
    token: int
    mode: Mode
    owner: int
    limit: int
    sticky: bool
    idle: bool = False
    recalled: bool = False
    lost: str = ""


class Wait(Struct, eq=False):
    """A request, and once it is `done` its answer: a hold, or why there is none.

    Nothing more is heard of it after `deadline_ns` (None: whenever). What an `abandoned` one is granted, nobody wants;
    `wake` is for the driver: a locked threading.Lock, on whose release a thread waits.
    """

    lock: str
    mode: Mode
    owner: int
    deadline_ns: int | None
    limit: int = 0
    converts: int = 0
    sticky: bool = False
    request: int = 0
    cancelled: bool = False
    abandoned: bool = False
    done: bool = False
    hold: Hold | None = None
    cause: Cause = "request"
    reason: str = ""
    wake: Any = None


class HoldLost(Struct, frozen=True):
    """A hold is over without its owner's doing."""

    hold: Hold


class Joined(Struct, frozen=True):
    """A session is open."""


class NotJoined(Struct, frozen=True):
    """lockd refuses a session."""

    reason: str


class Unusable(Struct, frozen=True):
    """The connection seems dead: another one is to be made."""


News = Wait | HoldLost | Joined | NotJoined | Unusable
"""A Wait is news when it is done."""


@dataclass(slots=True)
class LockCore:
    """A session without a replica. Times are nanoseconds of one clock that never runs back and counts suspends."""

    name: str
    incarnation: str
    holds: dict[int, Hold] = field(default_factory=dict)
    waits: dict[int, Wait] = field(default_factory=dict)
    out: list[ToLockd] = field(default_factory=list)
    news: list[News] = field(default_factory=list)
    state: Literal["joining", "joined", "left"] = "joining"
    lease_ns: int = 0
    ttl_ns: int = 0
    lock_delay_ns: int = 0
    _idle: dict[str, Hold] = field(default_factory=dict)
    _connected: bool = False
    _session: int = 0
    _group: str = ""
    _epoch: int = 0
    _epoch_id: str = ""
    _changes: int = 0
    _highest: int = 0
    _requests: int = 0
    _hello: int = 0
    _hello_ns: int = 0
    _claimed: frozenset[int] = frozenset()
    _next_ns: int = 0
    _pings: dict[int, int] = field(default_factory=dict)
    _converting: dict[int, str] = field(default_factory=dict)
    """Conversions that were abandoned, request → lock: until lockd's word nobody knows whether the lock is held."""
    _unconfirmed: Unconfirmed = field(default_factory=Unconfirmed)

    # Calls

    def acquire(self, wait: Wait, now_ns: int) -> None:
        """Ask for a lock."""
        self._requests = wait.request = self._requests + 1
        self.waits[wait.request] = wait
        if self.state == "joined":
            self._ask(wait, now_ns)
        elif self.state == "left":
            self._end_wait(wait.request, "lost", _CLOSED)

    def take_idle(self, wait: Wait, now_ns: int) -> bool:
        """Answer a request by a hold that was kept and can be used again; return whether there is one."""
        hold = self._idle.get(wait.lock)
        if hold is None or hold.lost or now_ns >= self.lease_ns or (hold.mode != wait.mode and hold.mode == "shared"):
            return False
        # Another one under the same token: who had the one before can do nothing to it.
        taken = Hold(hold.lock, hold.token, hold.mode, wait.owner, hold.limit, True)
        self.holds[hold.token] = wait.hold = taken
        wait.done = True
        del self._idle[wait.lock]
        return True

    def abandon(self, wait: Wait) -> None:
        """Wait no more, and hold nothing of it: whoever asked hears no answer."""
        wait.abandoned = True
        self.cancel(wait.request)
        if wait.converts and wait.request in self.waits:
            self._converting[wait.request] = wait.lock
        if wait.hold is not None:
            self.drop(wait.hold)

    def drop(self, hold: Hold) -> None:
        """Give back what nobody holds any more, unless that is done, or it is idle."""
        if hold.lost or (self.holds.get(hold.token) is hold and not hold.idle):
            self.give_back(hold)

    def cancel(self, request: int) -> None:
        """Wait no more. A conversion goes on until lockd says what became of it; one to shared waits for nobody."""
        wait = self.waits.get(request)
        if wait is None or wait.cancelled:
            return
        if wait.converts and wait.mode == "shared" and not wait.abandoned:
            return  # it may be granted, and others with it: ended here, the hold would seem exclusive still
        if self._session:
            self._tell_one_way(Cancel(self._epoch, self._session, request))
        if wait.converts and self._session:
            wait.cancelled = True
        else:
            self._end_wait(request, "wait", "it was cancelled")

    def release(self, hold: Hold) -> None:
        """Give a lock back, or keep it idle where lockd allows."""
        if hold.sticky and not hold.recalled and not hold.lost and hold.lock not in self._idle:
            hold.idle, hold.owner = True, 0
            self._idle[hold.lock] = hold
        else:
            self.give_back(hold)

    def give_back(self, hold: Hold) -> None:
        """Tell lockd that a lock is free; of one that an operator broke, that its holder has stopped."""
        if self._session:
            self._tell_one_way(
                Release(self._epoch, self._session, 0, hold.lock, hold.token, EMPTY, {}, False, (), False, False)
            )
        if self._idle.get(hold.lock) is hold:
            del self._idle[hold.lock]
        self.holds.pop(hold.token, None)

    def leave(self) -> None:
        """Give everything back, and end the session."""
        for hold in list(self.holds.values()):
            self.give_back(hold)
        if self._session or self._hello:
            self._tell(Goodbye(self._epoch, self._session))
        self.state, self._session = "left", 0
        for request in list(self.waits):
            self._end_wait(request, "lost", _CLOSED)

    # Time

    def deadline_ns(self) -> int:
        """Return when `tick` wants to be called."""
        deadline_ns = self._next_ns
        if self.lease_ns < deadline_ns and (self.state == "joined" or self.holds):
            deadline_ns = self.lease_ns
        for wait in self.waits.values():
            if wait.deadline_ns is not None and wait.deadline_ns < deadline_ns and not wait.cancelled:
                deadline_ns = min(deadline_ns, wait.deadline_ns + self._margin_ns)
        return deadline_ns

    def tick(self, now_ns: int) -> None:
        """Do what has become due: pings, hellos, the end of waits and of the lease."""
        if self.state == "left":
            return
        if now_ns >= self.lease_ns and (self.holds or self.state == "joined"):
            self._lose_all(LEASE_OVER)
            # A hello under way that claims what is lost now counts no more: its session would have it without a delay.
            self._rejoin()
        for request, wait in list(self.waits.items()):
            if wait.deadline_ns is not None and now_ns >= wait.deadline_ns + self._margin_ns and not wait.cancelled:
                if self._session:
                    self._tell_one_way(Cancel(self._epoch, self._session, request))
                if wait.converts and self._session:
                    wait.cancelled = True
                else:
                    self._end_wait(request, "wait", _NO_ANSWER)
        if now_ns < self._next_ns:
            return
        if self.state == "joined":
            self._next_ns = now_ns + self.ttl_ns // 3
            self._tell(Ping(self._epoch, self._session, self._ping(now_ns)))
        else:
            self._say_hello(now_ns)

    @property
    def _margin_ns(self) -> int:
        return _ANSWER_MARGIN_NS if self.state == "joined" and self._connected else 0

    # The connection

    def connected(self, now_ns: int) -> None:
        """Go on over a new connection: with the session if there is one, else towards one."""
        self._connected = True
        for hold in list(self.holds.values()):
            if hold.lost:
                self._lose(hold, hold.lost)  # that was interrupted
        if self.state == "joining":
            # The same hello, if it is not old: lockd may have answered it already, and a new one ends what that opened.
            if now_ns - self._hello_ns >= _HELLO_OLD_NS:
                self._hello = 0
            self._say_hello(now_ns)
        elif self.state == "joined":
            for message in self._unconfirmed.again(self._requests):
                self._tell(message)
            for wait in self.waits.values():
                self._ask(wait, now_ns)
            self._tell(Resume(self._epoch, self._session, self._ping(now_ns)))

    def disconnected(self) -> None:
        """Send nothing more until there is another connection."""
        self._connected = False

    # Messages

    def received(self, message: FromLockd, now_ns: int) -> None:
        """Take in a message of lockd."""
        match message:
            case Grant() if message.epoch == self._epoch and self.state == "joined":
                self._unconfirmed.answered(message.request)
                self._granted(message)
                if self._converting:
                    self._converted(message.request, now_ns)
            case Welcome():
                self._welcome(message, now_ns)
            case Stale():
                if self.state == "joined" and message.epoch != self._epoch:
                    self._rejoin()
                    self._say_hello(now_ns)
            case Refused() if message.request == self._hello and self.state == "joining":
                self._hello = 0
                self.news.append(NotJoined(message.reason))
                for request in list(self.waits):
                    self._end_wait(request, "request", message.reason)
            case Ended():
                if message.session == self._session and self.state == "joined":
                    self._lose_all(f"its session is over: {message.reason}")
                    self._rejoin()
                    self._say_hello(now_ns)
            case Refused() | Pong() | Lost() | Recall() if message.epoch == self._epoch and self.state == "joined":
                self._in_session(message, now_ns)
            case _:
                pass  # for replicas and operators, or of a session that is over

    def _in_session(self, message: Refused | Pong | Lost | Recall, now_ns: int) -> None:
        match message:
            case Refused():
                self._unconfirmed.answered(message.request)
                self._end_wait(message.request, message.cause, message.reason)
                self._converted(message.request, now_ns)
            case Pong():
                self._unconfirmed.answered(message.request)
                sent_ns = self._pings.pop(message.request, None)
                if sent_ns is not None:
                    self.lease_ns = max(self.lease_ns, sent_ns + self.ttl_ns)
            case Lost():
                if (hold := self.holds.get(message.token)) is not None:
                    self._lose(hold, message.reason)
            case Recall():
                hold = self.holds.get(message.token)
                if hold is None:
                    return
                hold.recalled = True
                if hold.idle:
                    self.give_back(hold)
                else:
                    self._tell(InUse(self._epoch, self._session, hold.token, hold.owner))

    def _granted(self, grant: Grant) -> None:
        self._highest = max(self._highest, grant.token)
        if grant.request == 0:
            if grant.token not in self.holds:  # it was given back before lockd had decided on the claim
                self.give_back(Hold(grant.lock, grant.token, grant.mode, 0, 0, False))
            return
        wait = self.waits.get(grant.request)
        if wait is None or wait.done:
            if grant.token not in self.holds:
                self._tell_one_way(Cancel(self._epoch, self._session, grant.request))
            self.waits.pop(grant.request, None)
            return
        hold = Hold(wait.lock, grant.token, grant.mode, wait.owner, wait.limit, grant.sticky)
        if wait.abandoned:
            self.give_back(hold)
            self.holds.pop(wait.converts, None)
        elif wait.converts:
            others = {token: other for token, other in self.holds.items() if token != wait.converts}
            self.holds = others | {grant.token: hold}
            wait.hold = hold
        else:
            self.holds[grant.token] = wait.hold = hold
        wait.done = True
        self.news.append(wait)
        del self.waits[grant.request]

    def _converted(self, request: int, now_ns: int) -> None:
        """Ask for the lock of a conversion that was abandoned, now that lockd has answered that."""
        lock = self._converting.pop(request, None)
        if lock is not None:
            for wait in self.waits.values():
                if wait.lock == lock:
                    self._ask(wait, now_ns)

    def _welcome(self, message: Welcome, now_ns: int) -> None:
        if self.state != "joining" or message.request != self._hello:
            return
        for hold in self.holds.values():
            if not (message.claimed and hold.token in self._claimed):
                hold.lost = "its session was lost"
        for request, wait in list(self.waits.items()):
            if wait.cancelled:
                self._end_wait(request, "wait", "it was cancelled")
        self.state, self._session, self._hello = "joined", message.session, 0
        self.ttl_ns, self.lock_delay_ns = message.ttl_ms * 1_000_000, message.lock_delay_ms * 1_000_000
        self._group, self._epoch, self._epoch_id = message.group, message.epoch, message.epoch_id
        self._changes = message.changes
        self.lease_ns = self._hello_ns + self.ttl_ns  # earlier than it was, where lockd has a shorter ttl now
        self._next_ns = now_ns + self.ttl_ns // 3
        self.news.append(Joined())
        for hold in list(self.holds.values()):
            if hold.lost:
                self._lose(hold, hold.lost)
        for wait in self.waits.values():
            self._ask(wait, now_ns)

    # Parts

    def _request(self) -> int:
        self._requests += 1
        return self._requests

    def _tell(self, message: ToLockd) -> None:
        if self._connected:
            self.out.append(message)

    def _tell_one_way(self, message: ToLockd) -> None:
        self._unconfirmed.keep(self._requests, message)
        if self._connected:
            self.out.append(message)

    def _ask(self, wait: Wait, now_ns: int) -> None:
        if not self._connected:
            return
        if self._converting and any(
            lock == wait.lock and request < wait.request for request, lock in self._converting.items()
        ):
            return  # the conversion may be granted, and lockd would see its owner wait for itself
        wait_ms = _FOR_EVER_MS if wait.deadline_ns is None else max(0, wait.deadline_ns - now_ns) // 1_000_000
        self.out.append(
            Acquire(
                self._epoch,
                self._session,
                wait.request,
                wait.lock,
                "plain",
                wait.mode,
                wait_ms,
                wait.owner,
                wait.limit,
                wait.converts,
                wait.sticky,
            )
        )

    def _ping(self, now_ns: int) -> int:
        """Return a request number from whose sending, now, the lease counts once it is answered."""
        request = self._request()
        self._pings[request] = now_ns
        if len(self._pings) > ANSWERS_KEPT_MAX:
            del self._pings[next(iter(self._pings))]
        return request

    def _say_hello(self, now_ns: int) -> None:
        """Ask for a session; a hello not answered is said again, and one that is old given up with its connection."""
        self._next_ns = now_ns + _HELLO_EVERY_NS
        if not self._connected:
            return
        if self._hello and now_ns - self._hello_ns >= _HELLO_OLD_NS:
            self._hello = 0
            self._connected = False
            self.news.append(Unusable())
            return
        if not self._hello:
            if now_ns >= self.lease_ns:
                self._lose_all(LEASE_OVER)  # this process stood still, and nobody has looked at the time yet
            self._hello, self._hello_ns = self._request(), now_ns
            self._claimed = frozenset(self.holds)
        held = tuple(
            [
                Held(hold.lock, hold.token, hold.mode, hold.owner, hold.limit, hold.sticky)
                for hold in self.holds.values()
                if hold.token in self._claimed
            ]
        )
        self._tell(
            Hello(
                self._hello,
                self.name,
                self.incarnation,
                None,
                self._group,
                self._epoch,
                self._epoch_id,
                self._changes,
                self._highest,
                held,
            )
        )

    def _rejoin(self) -> None:
        """Begin the next session; what is waited for is asked for again in it."""
        self.state, self._session, self._hello, self._next_ns = "joining", 0, 0, 0
        self._pings.clear()
        self._converting.clear()
        self._unconfirmed.clear()

    def _lose(self, hold: Hold, reason: str) -> None:
        hold.lost = reason
        if self._idle.get(hold.lock) is hold:
            self.give_back(hold)
        else:
            self.news.append(HoldLost(hold))  # before its conversion ends: else it would be held again for a moment
        for request, wait in list(self.waits.items()):
            if wait.converts == hold.token:
                self._end_wait(request, "lost", f"the lock that it was to convert is lost: {reason}")
        self.holds.pop(hold.token, None)

    def _lose_all(self, reason: str) -> None:
        for hold in list(self.holds.values()):
            self._lose(hold, reason)

    def _end_wait(self, request: int, cause: Cause, reason: str) -> None:
        wait = self.waits.get(request)
        if wait is not None and not wait.done:
            wait.done, wait.cause, wait.reason = True, cause, reason
            self.news.append(wait)
        self.waits.pop(request, None)
