"""lockd's core under clients that try, cancel, convert and lose connections: nobody is left waiting or holding.

The clients do what PROTOCOL.md says of connections: what a connection may have lost is said again over the next one.
"""

import random
from collections import deque
from dataclasses import dataclass, field

from common.messages import (
    Acquire,
    Break,
    Broken,
    Cancel,
    FromLockd,
    Grant,
    Hello,
    InUse,
    Lost,
    Mode,
    Ping,
    Pong,
    Recall,
    Refused,
    Release,
    Released,
    Resume,
    ToLockd,
    Welcome,
)
from common.records import EMPTY
from lockd.core import Lockd
from lockd.effects import Durable, Effect, Send

MS = 1_000_000
LIMITS = {"x": 0, "y": 0, "pool": 2}


@dataclass
class OneWay:
    """A message without an answer, the newest request before it, and how many later ones have been answered."""

    message: ToLockd
    newest: int
    answered: int = 0


@dataclass
class Client:
    """A client and its connection: what is under way in each direction is lost with it."""

    number: int
    session: int = 0
    up: bool = True
    requests: int = 10
    there: deque[ToLockd] = field(default_factory=deque)
    back: deque[FromLockd] = field(default_factory=deque)
    open: dict[int, ToLockd] = field(default_factory=dict)
    one_ways: list[OneWay] = field(default_factory=list)
    cancelled: set[int] = field(default_factory=set)
    held: dict[int, str] = field(default_factory=dict)
    """The locks that it believes to hold, by token."""

    @property
    def route(self) -> bytes:
        return b"%d" % self.number

    def ask(self, kind: type, *values: object) -> int:
        """Send a request."""
        self.requests += 1
        message = self.open[self.requests] = kind(1, self.session, self.requests, *values)
        self._send(message)
        return self.requests

    def tell(self, message: ToLockd) -> None:
        """Send a message that has no answer."""
        self.one_ways.append(OneWay(message, self.requests))
        self._send(message)

    def say_again(self) -> None:
        """Begin a connection."""
        self.up = True
        for one_way in self.one_ways:
            self._send(one_way.message)
        for message in list(self.open.values()):
            self._send(message)
        self.ask(Resume)

    def hear(self, message: FromLockd, chance: random.Random) -> None:
        """Take in what lockd has sent."""
        if isinstance(message, (Grant, Refused, Released, Broken, Pong)):
            asked = self.open.pop(message.request, None)
            if asked is None:
                return
            for one_way in self.one_ways:
                one_way.answered += one_way.newest < message.request
            self.one_ways = [each for each in self.one_ways if each.answered < 2]
            if isinstance(message, Grant) and isinstance(asked, Acquire):
                self.held.pop(asked.converts, None)
                self.held[message.token] = message.lock
        elif isinstance(message, Lost):
            self.held.pop(message.token, None)
            self.give(message.lock, message.token)
        elif isinstance(message, Recall) and message.token in self.held:
            if chance.random() < 0.5:
                self._send(InUse(1, self.session, message.token, chance.randrange(3)))
            else:
                del self.held[message.token]
                self.give(message.lock, message.token)

    def give(self, lock: str, token: int) -> None:
        """Give a lock back, and wait for no answer."""
        self.requests += 1
        self.tell(Release(1, self.session, self.requests, lock, token, EMPTY, {}, False, (), False, False))

    def cancel(self, request: int) -> None:
        """Wait for a lock no more; what converts a hold is answered all the same."""
        asked = self.open[request]
        assert isinstance(asked, Acquire)
        if not asked.converts:
            del self.open[request]
        self.cancelled.add(request)
        self.tell(Cancel(1, self.session, request))

    def waits(self) -> list[int]:
        """Return the requests for locks that are under way and not cancelled."""
        return [n for n, each in self.open.items() if isinstance(each, Acquire) and n not in self.cancelled]

    def _send(self, message: ToLockd) -> None:
        if self.up:
            self.there.append(message)


class Storm:
    """lockd's core and its clients, of which each does anything at any time."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.core = Lockd(Durable("0123456789abcdef", 1, {1: ("1" * 16, 0)}), 3_000 * MS, 2_000 * MS)
        self.now_ns = 1_000_000 * MS
        self.clients = [Client(number) for number in range(4)]
        self.broken: set[int] = set()
        for client in self.clients:
            hello = Hello(1, f"c{client.number}", f"{client.number:0>16}", None, "", 0, "", 0, 0, ())
            self._do(self.core.handle(client.route, hello, self.now_ns))
            welcome = client.back.popleft()
            assert isinstance(welcome, Welcome)
            client.session = welcome.session

    def run(self) -> None:
        """Let it rage, then let everybody end what it does. Raises AssertionError."""
        for _ in range(150):
            self._step(self.chance.choice(self.clients))
            self._check()
        for client in self.clients:
            if not client.up:
                client.say_again()
        self._calm()
        for client in self.clients:
            for request in client.waits():
                client.cancel(request)
        self._calm()
        for client in self.clients:
            for token, lock in client.held.items():
                client.give(lock, token)
            client.held.clear()
        self._calm()
        assert not self.core.locks and not self.core.waiters
        for client in self.clients:
            session = self.core.sessions[client.session]
            assert not client.open
            assert not (session.waits or session.holds or session.granted or session.broken)
            assert not (session.waiting or session.owned)

    def _step(self, client: Client) -> None:
        chance, what = self.chance, self.chance.random()
        if what < 0.10:
            self.now_ns += MS // 10
            while (due_ns := self.core.deadline_ns()) is not None and due_ns <= self.now_ns:
                self._do(self.core.handle_timer(self.now_ns))
        elif not client.up:
            client.say_again()
        elif what < 0.14:
            client.up = False
            client.there.clear()
            client.back.clear()
            if chance.random() < 0.5:  # else lockd does not hear of it before the next one is up
                self._do(self.core.disconnected(client.route, self.now_ns))
        elif what < 0.35 and client.there:
            self._do(self.core.handle(client.route, client.there.popleft(), self.now_ns))
        elif what < 0.55 and client.back:
            client.hear(client.back.popleft(), chance)
        elif what < 0.65 and client.waits():
            client.cancel(chance.choice(client.waits()))
        elif what < 0.75 and client.held:
            token = chance.choice(list(client.held))
            lock = client.held.pop(token)
            if chance.random() < 0.5:
                client.give(lock, token)
            else:
                client.ask(Release, lock, token, EMPTY, {}, False, (), True, False)
        elif what < 0.78:
            self._break(client)
        else:
            self._acquire(client)

    def _acquire(self, client: Client) -> None:
        chance = self.chance
        lock = chance.choice(list(LIMITS))
        mode: Mode = "shared" if LIMITS[lock] or chance.random() < 0.5 else "exclusive"
        converts = 0
        mine = [token for token, name in client.held.items() if name == lock and not LIMITS[lock]]
        if mine and chance.random() < 0.5:
            converts = chance.choice(mine)
        wait_ms = chance.choice((0, 0, 1, 60_000))
        keep = chance.random() < 0.3
        client.ask(Acquire, lock, "plain", mode, wait_ms, chance.randrange(4), LIMITS[lock], converts, keep)

    def _break(self, client: Client) -> None:
        """As an operator, take a lock away from whoever holds it."""
        holds = [(lock.name, token) for lock in self.core.locks.values() for token in lock.holds]
        if holds:
            client.ask(Break, *self.chance.choice(holds))

    def _calm(self) -> None:
        """Let all that is under way come in."""
        for client in self.clients:
            client.ask(Ping)
        while any(client.there or client.back for client in self.clients):
            for client in self.clients:
                if client.there:
                    self._do(self.core.handle(client.route, client.there.popleft(), self.now_ns))
                if client.back:
                    client.hear(client.back.popleft(), self.chance)

    def _check(self) -> None:
        """Whoever believes to hold a lock holds it, but for what was broken and who has not heard of that."""
        for client in self.clients:
            session = self.core.sessions[client.session]
            gone = {asked.converts for asked in client.open.values() if isinstance(asked, Acquire)}
            assert client.held.keys() - gone - session.broken.keys() <= session.holds.keys()

    def _do(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                client = self.clients[int(effect.route)]
                if client.up:
                    client.back.append(effect.message)


def test_a_storm_leaves_no_ghost_waiter_and_no_ghost_holder() -> None:
    for seed in range(300):
        try:
            Storm(seed).run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
