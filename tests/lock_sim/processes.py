"""The drivers: what lockd/server.py and client/lock_session.py do, over a fake network and clock."""

from collections.abc import Callable, Iterator
from random import Random
from typing import Final, Literal, Protocol

from client.lock_core import Hold, HoldLost, Joined, LockCore, NotJoined, Unusable, Wait
from common.grantlog import GrantLine
from common.messages import Break, CallBack, FromLockd, Goodbye, Hello, ToLockd
from common.wire import decode, encode
from lockd import effects
from lockd.core import Lockd
from lockd.effects import Durable, LogGrant, Persist, Send, SessionEnded, SessionOpened
from tests.lock_sim.network import Link
from tests.lock_sim.world import Inside, World
from tests.sim.processes import Alarm, Broken, Crashed, Pausable

_MS: Final = 1_000_000
_OPERATOR: Final = b"operator"

_Kind = Literal["network", "task"]
"""Who lets a client do something: what has come, or a task or the time."""


class LockdProcess(Pausable[Callable[[], None]]):
    """lockd's core, its disk and its connections, from one start to the next."""

    def __init__(self, world: World, ttl_ns: int) -> None:
        """Start for the first time."""
        self.world = world
        self.disk = Durable("0123456789abcdef", 0)
        self.grants: list[GrantLine] = []
        self.alive = False
        self.crash_in: int | None = None
        self._ttl_ns = ttl_ns
        self._links: dict[bytes, Link] = {}
        self._alarm = Alarm(world.schedule, self._ring)
        self.start()

    def start(self) -> None:
        """Start from what is on disk, as lockd/state.py and lockd/behind.py give it."""
        disk = self.disk
        disk.epoch += 1
        disk.epochs[disk.epoch] = f"{disk.epoch:016x}", 0
        in_force: dict[int, GrantLine] = {}
        for line in self.grants:
            if line.event == "grant":
                in_force[line.token] = line
            else:
                in_force.pop(line.token, None)
        durable = Durable(
            disk.group,
            disk.epoch,
            dict(disk.epochs),
            disk.last_session,
            sessions=dict(disk.sessions),
            holds=list(in_force.values()),
            leases=disk.leases,
        )
        self.core = Lockd(durable, self._ttl_ns, self.world.lock_delay_ns)
        self.alive = True
        self._do(self.core.begin(self.world.schedule.now_ns))

    def kill(self, lines_lost: int = 0) -> None:
        """End at once, every connection with it; a power cut takes so many of the newest lines of grants.log."""
        self.alive = False
        self.crash_in = self.missed = None
        self._alarm.set(None)
        del self.grants[len(self.grants) - min(lines_lost, len(self.grants)) :]
        self._links.clear()
        for client in list(self.world.clients.values()):
            client.link_breaks()

    def go_on(self) -> None:
        """Take in what has come meanwhile, then look at the time."""
        for each in self.end_pause():
            each()
        if self.alive:
            self._ring()

    def lets_in(self, link: Link) -> bool:
        """Let a client in: its new connection takes the place of an older one, without a word."""
        if not self.alive or self.paused:
            return False
        older = self._links.get(link.route)
        if older is not None:
            older.broken = True
        self._links[link.route] = link
        return True

    def receive(self, link: Link, frame: bytes) -> None:
        """Take in a frame of a client."""
        if self.missed is not None:
            self.missed.append(lambda: self.receive(link, frame))
        elif self.alive and self._links.get(link.route) is link:
            message: ToLockd = decode(frame, ToLockd)  # type: ignore[arg-type]
            self.world.trace.append((self.world.schedule.now_ns, "lockd", message))
            self._do(self.core.handle(link.route, message, self.world.schedule.now_ns))

    def disconnected(self, link: Link) -> None:
        """Take in that a connection is down."""
        if self.missed is not None:
            self.missed.append(lambda: self.disconnected(link))
        elif self.alive and self._links.get(link.route) is link:
            del self._links[link.route]
            self._do(self.core.disconnected(link.route, self.world.schedule.now_ns))

    def operate(self, draw: float) -> None:
        """Let an operator break a lock that is held, or call back one that may be kept."""
        if not self.alive or self.paused:
            return
        holds = [(lock.name, token) for lock in self.core.locks.values() for token in lock.holds]
        if not holds:
            return
        lock, token = holds[int(draw * len(holds))]
        self._operate(Hello(1, "operator", "0" * 16, None, "", 0, "", 0, 0, ()))
        session, epoch = self.disk.last_session, self.disk.epoch
        breaks = int(draw * 1000) % 2 == 0
        self._operate(Break(epoch, session, 2, lock, token) if breaks else CallBack(epoch, session, 2, lock))
        self._operate(Goodbye(epoch, session))

    def _operate(self, message: ToLockd) -> None:
        if self.alive:
            self.world.trace.append((self.world.schedule.now_ns, "operator", message))
            self._do(self.core.handle(_OPERATOR, message, self.world.schedule.now_ns))

    def _ring(self) -> None:
        if self.missed is not None:
            return
        now_ns = self.world.schedule.now_ns
        self._do(self.core.handle_timer(now_ns))

    def _do(self, done: list[effects.Effect]) -> None:
        try:
            for effect in done:
                self._do_one(effect)
        except Crashed:
            self.kill()
            return
        self._alarm.set(self.core.deadline_ns())

    def _do_one(self, effect: effects.Effect) -> None:
        if self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in < 0:
                raise Crashed
        match effect:
            case Send(route, message):
                if (link := self._links.get(route)) is not None:
                    self.world.network.send(link, "down", encode(message), self._deliver)
            case LogGrant(line):
                self.grants.append(line)
                self.world.logged(self, line)
            case Persist(changes):
                for change in changes:
                    match change:
                        case SessionOpened(session):
                            self.disk.last_session = session
                            self.disk.sessions[session] = change
                        case SessionEnded(session):
                            self.disk.sessions.pop(session, None)
                        case effects.LeasesGiven():
                            self.disk.leases = change
                        case _:
                            raise Broken(f"lockd keeps {change}, and there are no files")
            case effects.Note(text):
                self.world.trace.append((self.world.schedule.now_ns, "lockd", text))
            case effects.KeepLeft():
                raise Broken("a lock without a file has no clocks")

    def _deliver(self, link: Link, frame: bytes) -> None:
        client = self.world.clients.get(link.route)
        if client is not None:
            client.receive(link, frame)


class Task(Protocol):
    """Who uses a client's locks: a thread of the program."""

    def inside(self) -> Iterator[Inside]:
        """Yield which locks it is inside of now."""

    def answered(self, wait: Wait) -> bool:
        """Take in that a wait has ended; return whether it was this task's."""

    def lost(self, hold: Hold, until_ns: int) -> None:
        """Take in that a hold, perhaps this task's, is lost, and until when it may be inside."""


class ClientProcess(Pausable[tuple[_Kind, Callable[[], object]]]):
    """A client's core and its connection, from one start to one end."""

    def __init__(self, world: World, lockd: LockdProcess, name: str, random: Random) -> None:
        """Start, and begin to connect."""
        self.world = world
        self.name = name
        self.alive = True
        self.tasks: list[Task] = []
        self.core = LockCore(name, f"{random.getrandbits(64):016x}")
        self.answers: dict[Wait, int] = {}
        self.cut_off_ns = 0
        self._lockd = lockd
        self._random = random
        self._offset_ns = random.randint(-300, 300) * _MS
        self._link: Link | None = None
        self._route = self.core.incarnation.encode()
        self._alarm = Alarm(world.schedule, self._ring)
        world.clients[self._route] = self
        self._connect()
        self.call(lambda _: None)

    # Time

    @property
    def now_ns(self) -> int:
        """Return the time by its own clock."""
        return self.world.schedule.now_ns + self._offset_ns

    def inside(self) -> Iterator[Inside]:
        """Yield which locks its tasks are inside of."""
        for task in self.tasks:
            yield from task.inside()

    @property
    def out_by_ns(self) -> int:
        """Return by when, true time, who holds a lock is out unless the lease is renewed."""
        return self.core.lease_ns + self.world.lock_delay_ns - self._offset_ns

    # The driver

    def call(self, call: Callable[[int], object]) -> None:
        """Let a task, or the connection, call the core: at once, or when this process goes on."""
        self._step("task", lambda: call(self.now_ns))

    def receive(self, link: Link, frame: bytes) -> None:
        """Take in a frame of lockd."""
        self._step("network", lambda: self._receive(link, frame))

    def _receive(self, link: Link, frame: bytes) -> None:
        if link is not self._link:
            return
        message: FromLockd = decode(frame, FromLockd)  # type: ignore[arg-type]
        self.world.trace.append((self.world.schedule.now_ns, self.name, message))
        self.core.received(message, self.now_ns)

    def _ring(self) -> None:
        self._step("task", lambda: None)

    def _tick(self) -> None:
        now_ns = self.now_ns
        if self.core.deadline_ns() <= now_ns:
            self.core.tick(now_ns)
            if self.core.deadline_ns() <= now_ns and self.core.state != "left":
                raise Broken(f"{self.name} has nothing to do until {self.core.deadline_ns() - now_ns} ns ago")

    def _step(self, kind: _Kind, action: Callable[[], object]) -> None:
        """Do something, then what the core asks for, then look whether all is well."""
        if self.missed is not None:
            self.missed.append((kind, action))
        if self.missed is not None or not self.alive:
            return
        out_by_ns = self.out_by_ns
        action()
        self._flush(out_by_ns)
        if kind == "task":
            out_by_ns = self.out_by_ns
            self._tick()
            self._flush(out_by_ns)
        self._alarm.set(self.core.deadline_ns() - self._offset_ns)

    def _flush(self, out_by_ns: int) -> None:
        core, schedule = self.core, self.world.schedule
        while core.out or core.news:
            out, core.out = core.out, []
            for message in out:
                if self._link is not None:
                    self.world.trace.append((schedule.now_ns, self.name, message))
                    self.world.network.send(self._link, "up", encode(message), self._lockd.receive)
            news, core.news = core.news, []
            for one in news:
                match one:
                    case Wait():
                        self.answers[one] = self.answers.get(one, 0) + 1
                        if not any(task.answered(one) for task in self.tasks) and not one.abandoned:
                            raise Broken(f"nobody has asked {self.name} for {one}")
                    case HoldLost(hold):
                        until_ns = min(out_by_ns, schedule.now_ns + self.world.lock_delay_ns)
                        for task in self.tasks:
                            task.lost(hold, until_ns)
                    case Unusable():
                        self._disconnect()
                    case Joined() | NotJoined():
                        pass

    # The connection

    def link_breaks(self) -> None:
        """Break the connection; each end hears of it in its time, or lockd never."""
        link = self._link
        if link is None or link.broken:
            return
        link.broken = True
        if self._random.random() < 0.8:
            self.world.schedule.after(int(self._random.random() * 10 * _MS), self._lockd.disconnected, link)
        if self.alive:
            self.world.schedule.after(int(self._random.random() * 4 * _MS), self._hear_of, link)

    def cut_off(self, lasts_ns: int, draw: float) -> None:
        """Bring nothing further for so long, in one direction or both; nor is there another connection."""
        self.cut_off_ns = self.world.schedule.now_ns + lasts_ns
        if self._link is not None:
            if draw < 0.7:
                self._link.stalled_ns["up"] = self.cut_off_ns
            if draw > 0.3:
                self._link.stalled_ns["down"] = self.cut_off_ns

    def _hear_of(self, link: Link) -> None:
        self._step("network", lambda: self._disconnect() if self._link is link else None)

    def _disconnect(self) -> None:
        if self._link is not None:
            link, self._link = self._link, None
            link.broken = True
            self.world.schedule.after(int(self._random.random() * 10 * _MS), self._lockd.disconnected, link)
            self.core.disconnected()
        self._connect()

    def _connect(self) -> None:
        self.world.schedule.after(int((0.1 + self._random.random()) * 20 * _MS), self._try)

    def _try(self) -> None:
        self._step("network", self._open)

    def _open(self) -> None:
        if self._link is not None:
            return
        link = Link(self._route)
        if self.world.schedule.now_ns < self.cut_off_ns or not self._lockd.lets_in(link):
            self._connect()
            return
        self._link = link
        self.core.connected(self.now_ns)

    # Faults

    def go_on(self) -> None:
        """Do what has come meanwhile: what the network has brought comes first, or the tasks and the time do."""
        missed = self.end_pause()
        network_first = self._random.random() < 0.5
        for first in (True, False):
            for kind, action in missed:
                if (kind == "network") == (network_first == first):
                    self._step(kind, action)
        self._ring()

    def kill(self) -> None:
        """End at once."""
        self.link_breaks()
        self._end()

    def leave(self) -> None:
        """End the session in good order, and the process."""
        self.core.leave()
        self._flush(self.out_by_ns)
        if self._link is not None:
            # Its end is behind all that was sent.
            end_ns = self._link.newest_ns["up"] + 1
            self.world.schedule.at(end_ns, self._lockd.disconnected, self._link)
        self._end()

    def _end(self) -> None:
        self.alive = False
        self.missed = None
        self._alarm.set(None)
        self.tasks.clear()
        del self.world.clients[self._route]
