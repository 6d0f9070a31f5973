"""What the parts of lockd's core share: the group, its sessions and locks, and the effects under way."""

import heapq
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from common.eventlog import shorten
from common.grantlog import GrantEvent, GrantLine
from common.limits import ANSWERS_KEPT_MAX
from common.messages import FromLockd, Hello, Lost, Member, Refused
from common.values import Value
from lockd.effects import Change, Effect, InSyncChanged, LogGrant, Note, Persist, ReplicaSeen, Send, SessionOpened
from lockd.figures import Ending, Figures, Loss
from lockd.locks import Delay, Hold, Lock, Waiter

_TIMERS_MIN: Final = 1024
"""So many timers may always be set."""


class Over(Value, frozen=True):
    """Why a session is over: as it is counted, and in words."""

    ending: Ending
    text: str


@dataclass(slots=True)
class Session:
    """A client's lease. `member` is its replica as others reach it, None without one.

    The timer rings for it at `timer_ns`, which may be before `deadline_ns`; `seen_ns` is when it said something last.
    `waits` and `holds` have the lock by request and by token, `granted` has the token of each hold by its request.
    `waiting` has the request for which each owner waits, `owned` how many locks it holds. `broken` is what the client
    was told, and has not confirmed yet by a Release. `claimed` tells that it has claimed locks after lockd's start.
    """

    id: int
    name: str
    host: str
    route: bytes
    incarnation: str
    hello: int
    member: Member | None
    deadline_ns: int
    seen_ns: int
    connected: bool = True
    claimed: bool = False
    timer_ns: float = float("inf")
    waits: dict[int, str] = field(default_factory=dict)
    holds: dict[int, str] = field(default_factory=dict)
    granted: dict[int, int] = field(default_factory=dict)
    waiting: dict[int, int] = field(default_factory=dict)
    owned: dict[int, int] = field(default_factory=dict)
    broken: dict[int, Lost] = field(default_factory=dict)
    answers: OrderedDict[int, FromLockd] = field(default_factory=OrderedDict)


@dataclass(slots=True)
class Shared:
    """State that more than one part reads. `expected` are sessions of the last lockd that are not back yet.

    `epochs` has of each epoch its random id, and how often an in-sync set changed in it. `counter` is that of the
    newest token, `waiters` counts those in queues. Locks without a file are granted from `plain_from_ns` on.
    `last_seen` is when each replica that has left was heard of last, as far as this lockd knows. `timers` is a heap of
    what is due at (nanoseconds, session, request, lock): a request's wait is over, with request 0 a session's lease,
    with session 0 a lock goes on, and without a lock nobody is expected any more, or with request 1 locks without a
    file go on. When it grows beyond `timers_most` those are taken out that nobody waits for.
    """

    group: str
    epoch: int
    epochs: dict[int, tuple[str, int]]
    ttl_ns: int
    lock_delay_ns: int
    replicas: dict[str, ReplicaSeen]
    last_session: int
    expected: dict[int, SessionOpened]
    sessions: dict[int, Session] = field(default_factory=dict)
    by_name: dict[str, dict[int, Session]] = field(default_factory=dict)
    by_process: dict[tuple[str, str], Session] = field(default_factory=dict)
    by_route: dict[bytes, Session] = field(default_factory=dict)
    by_replica: dict[str, Session] = field(default_factory=dict)
    locks: dict[str, Lock] = field(default_factory=dict)
    counter: int = 0
    waiters: int = 0
    plain_from_ns: int = 0
    figures: Figures = field(default_factory=Figures)
    last_seen: dict[str, int] = field(default_factory=dict)
    timers: list[tuple[int, int, int, str]] = field(default_factory=list)
    timers_most: int = _TIMERS_MIN
    out: list[Effect] = field(default_factory=list)

    @property
    def epoch_id(self) -> str:
        """Return the random id of the epoch in force."""
        return self.epochs.get(self.epoch, ("", 0))[0]

    @property
    def changes(self) -> int:
        """Return how often an in-sync set has changed in this epoch."""
        return self.epochs.get(self.epoch, ("", 0))[1]

    def send(self, route: bytes, message: FromLockd) -> None:
        """Ask the driver to send a message."""
        self.out.append(Send(route, message))

    def answer(self, session: Session, request: int, message: FromLockd) -> None:
        """Answer a request, and keep the answer for when it comes again."""
        self.keep_answer(session, request, message)
        self.out.append(Send(session.route, message))

    def keep_answer(self, session: Session, request: int, message: FromLockd) -> None:
        """Keep what a request is to be answered by when it comes, or comes again."""
        session.answers[request] = message
        if len(session.answers) > ANSWERS_KEPT_MAX:
            session.answers.popitem(last=False)

    def fault(self, now_ns: int, text: str) -> None:
        """Note what is no ordinary life, and keep it among the newest faults."""
        self.figures.fault(now_ns, text)
        self.out.append(Note(text))

    def refuse(self, route: bytes, hello: Hello, problem: str, now_ns: int) -> None:
        """Open no session, and say why; the client ends."""
        self.figures.refusals["hello"] += 1
        self.fault(now_ns, f"{shorten(hello.name)} is refused: {problem}")
        self.send(route, Refused(self.epoch, hello.request, problem, "request"))

    def persist(self, *changes: Change) -> None:
        """Ask the driver to make changes durable, all or nothing."""
        changed = sum(1 for change in changes if type(change) is InSyncChanged)
        if changed:
            self.epochs[self.epoch] = self.epoch_id, self.changes + changed
        self.out.append(Persist(changes))

    def log(self, event: GrantEvent, lock: Lock, hold: Hold, now_ns: int) -> None:
        """Count what became of a hold, and ask the driver to log it."""
        client = self.sessions[hold.session].host
        figures = self.figures
        figures.holds.add((now_ns - hold.since_ns) // 1000)
        if event == "release" and not hold.kept:
            figures.ops.add((now_ns - hold.asked_ns) // 1000)
        held_ms = f"{(now_ns - hold.since_ns) / 1e6:.3f}"
        self.out.append(
            LogGrant(
                GrantLine(now_ns // 1000, event, lock.name, hold.mode, hold.token, client, (("held_ms", held_ms),))
            )
        )

    def hold(self, lock: Lock, hold: Hold) -> None:
        """Put a hold in force."""
        session = self.sessions[hold.session]
        lock.holds[hold.token] = hold
        session.holds[hold.token] = lock.name
        if hold.request:
            session.granted[hold.request] = hold.token
        if hold.owner:
            session.owned[hold.owner] = session.owned.get(hold.owner, 0) + 1

    def let_go(self, lock: Lock, hold: Hold) -> None:
        """Take a hold out of force."""
        session = self.sessions[hold.session]
        del lock.holds[hold.token]
        del session.holds[hold.token]
        session.granted.pop(hold.request, None)
        if hold.owner:
            left = session.owned[hold.owner] - 1
            if left:
                session.owned[hold.owner] = left
            else:
                del session.owned[hold.owner]

    def can_be_served(self, lock: Lock, waiter: Waiter) -> bool:
        """Tell whether a waiter can be granted a lock at all as things are, so that those behind it have to wait."""
        session = self.sessions[waiter.session]
        if not session.connected or lock.file is None:
            return session.connected
        return session.member is not None and session.member.replica in lock.file.in_sync

    def ring(self, at_ns: int, session: int, request: int, lock: str) -> None:
        """Have the timer ring at `at_ns`, for what the other values say in `timers`."""
        heapq.heappush(self.timers, (at_ns, session, request, lock))
        if len(self.timers) > self.timers_most:
            # Of most waits nothing is left long before their time is over.
            self.timers = [each for each in self.timers if self._is_due(each[1], each[2])]
            heapq.heapify(self.timers)
            self.timers_most = max(_TIMERS_MIN, 2 * len(self.timers))

    def _is_due(self, number: int, request: int) -> bool:
        session = self.sessions.get(number)
        return not number or (session is not None and (not request or request in session.waits))

    def delay(self, lock: Lock, token: int, delay: Delay) -> None:
        """Grant a lock to nobody until its last holder has stopped, whether it hears of its loss or not."""
        if delay.until_ns > 0 and lock.file is None:
            lock.delays[token] = delay
            self.ring(delay.until_ns, 0, 0, lock.name)

    def lose(self, lock: Lock, hold: Hold, loss: Loss, now_ns: int) -> None:
        """Count and log that a lock is lost."""
        self.figures.expiries[loss] += 1
        self.log("expiry", lock, hold, now_ns)
