"""The drivers of a simulation: what lockd/server.py and client/node.py do, over a fake network, clock and disk."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Generic, Protocol, TypeVar, assert_never

from msgspec.structs import replace

from client.core import Client
from client.effects import (
    Answer,
    Begin,
    Connect,
    Disconnect,
    Effect,
    Event,
    Finished,
    Flush,
    FromDaemon,
    FromPeer,
    Joined,
    JoinRefused,
    Leave,
    Log,
    Note,
    PeerAnswer,
    Persist,
    Persisted,
    PersistFailed,
    ReadFile,
    Reconnect,
    Remember,
    SendLockd,
    SendReplica,
    Submit,
    Timer,
)
from client.journal import MetaValue, StorageError
from client.shared import Identity
from common.eventlog import format_event, parse_event
from common.grantlog import format_grant
from common.messages import Acquire, FromLockd, FromReplica, Goodbye, Hello, Member, Push, ToLockd, ToReplica
from common.records import EMPTY, Record, Version
from common.tokens import token_epoch
from common.wire import decode, encode
from lockd import effects as lockd_effects
from lockd.core import Lockd
from lockd.effects import (
    Durable,
    ForgetAcked,
    InSyncChanged,
    LogGrant,
    Rebuilt,
    ReplicaSeen,
    Send,
    SessionEnded,
    SessionOpened,
)
from tests.doubles import MemoryJournal
from tests.sim.network import LOCKD, Carrier, Connection
from tests.sim.schedule import START_NS, Schedule

Trace = deque[tuple[int, str, object]]


Missed = TypeVar("Missed")


class Broken(AssertionError):
    """An invariant does not hold, or a process did what no driver may be asked for."""


class Inconclusive(Exception):
    """What happened is outside of what is promised."""


class Crashed(Exception):
    """The process is to end here, between two effects."""


class Observer(Protocol):
    """Who looks at every step."""

    def started(self, client: "ClientProcess") -> None:
        """A client runs; it is for the observer to connect it with lockd."""

    def joined(self, client: "ClientProcess") -> None:
        """A client has opened a session."""

    def died(self, client: "ClientProcess | None") -> None:
        """A client has crashed, or lockd (None)."""

    def reconnects(self, client: "ClientProcess") -> None:
        """A client gives its connection with lockd up for a new one."""

    def refused(self, client: "ClientProcess", reason: str) -> None:
        """A client was refused by lockd, which ends it."""

    def lockd_stepped(self, lockd: "LockdProcess", effects: list[lockd_effects.Effect]) -> None:
        """Lockd has taken in something."""

    def logged(self, client: "ClientProcess", effect: Log) -> None:
        """A client has appended a line to its event log."""

    def persisted(self, client: "ClientProcess", effect: Persist) -> None:
        """A client has written to its journal."""

    def begins(self, client: "ClientProcess", op: int) -> bool:
        """Tell whether an op that is about to begin is still wanted."""

    def finished(self, client: "ClientProcess", effect: Finished) -> None:
        """An op has ended."""

    def met(self, client: "ClientProcess", file: str, token: int) -> None:
        """A replica has taken in a push, and did not refuse it."""


@dataclass(slots=True)
class World:
    """What all processes of a simulation share. Without `keep` no client may keep a lock when it is done."""

    schedule: Schedule
    network: Carrier
    observer: Observer
    keep: bool = True
    trace: Trace = field(default_factory=lambda: deque(maxlen=5000))
    clients: dict[bytes, "ClientProcess"] = field(default_factory=dict)


class Alarm:
    """A process's one timer: set again whenever the core names another deadline."""

    def __init__(self, schedule: Schedule, ring: Callable[[], None]) -> None:
        self._schedule = schedule
        self._ring = ring
        self._set_ns: int | None = None

    def set(self, time_ns: int | None) -> None:
        """Ring at `time_ns`, true time; not at all for None."""
        if time_ns != self._set_ns:
            self._set_ns = time_ns
            if time_ns is not None:
                self._schedule.at(time_ns, self._due, time_ns)

    def _due(self, time_ns: int) -> None:
        if time_ns == self._set_ns:
            self._set_ns = None
            self._ring()


class Pausable(Generic[Missed]):
    """A process that can stand still; `missed` is what has come meanwhile, None while it goes on."""

    missed: list[Missed] | None = None

    @property
    def paused(self) -> bool:
        """Tell whether it stands still."""
        return self.missed is not None

    def pause(self) -> None:
        """Do nothing, until it goes on."""
        self.missed = []

    def end_pause(self) -> list[Missed]:
        """Stand still no more; return what has come meanwhile."""
        missed, self.missed = self.missed, None
        return missed or []


class LockdProcess:
    """lockd's core, its disk and its grants.log, from one start to the next."""

    def __init__(self, world: World, ttl_ns: int) -> None:
        self.world = world
        self.disk = Durable("0123456789abcdef", 0)
        self.grants: list[str] = []
        self.alive = False
        self.crash_in: int | None = None
        self._ttl_ns = ttl_ns
        self._held: list[tuple[Connection, bytes]] | None = None
        self._alarm = Alarm(world.schedule, self._ring)
        self.start()

    def start(self) -> None:
        """Start from what is on disk."""
        disk = self.disk
        disk.epoch += 1
        disk.epochs[disk.epoch] = f"{disk.epoch:016x}", 0
        durable = Durable(
            disk.group,
            disk.epoch,
            dict(disk.epochs),
            disk.last_session,
            dict(disk.replicas),
            dict(disk.in_sync),
            dict(disk.sessions),
            list(disk.holds),
            dict(disk.left),
            disk.forgotten,
            leases=disk.leases,
        )
        self.core = Lockd(durable, self._ttl_ns)
        self.alive = True
        self._do(self.core.begin(self.world.schedule.now_ns))

    def kill(self) -> None:
        """End at once."""
        self.alive = False
        self.crash_in = self._held = None
        self._alarm.set(None)
        self.world.observer.died(None)

    @property
    def paused(self) -> bool:
        """Tell whether it stands still."""
        return self._held is not None

    def pause(self) -> None:
        """Do nothing, until `go_on`."""
        self._held = []

    def go_on(self) -> None:
        """Take in what has come meanwhile, then look at the time."""
        held, self._held = self._held, None
        for connection, frame in held or ():
            self.receive(connection, frame)
        if self.alive:
            self._ring()

    def receive(self, connection: Connection, frame: bytes) -> None:
        """Take in a frame of a client."""
        if self._held is not None:
            self._held.append((connection, frame))
            return
        if not self.alive:
            return
        message: ToLockd = decode(frame, ToLockd)  # type: ignore[arg-type]
        world = self.world
        now_ns = world.schedule.now_ns
        world.trace.append((now_ns, "lockd", message))
        self._do(self.core.handle(connection[1], message, now_ns))

    def disconnected(self, route: bytes) -> None:
        """Take in that a connection is down."""
        if self.alive and self._held is None:
            self._do(self.core.disconnected(route, self.world.schedule.now_ns))

    def operate(self, request: Callable[[int], ToLockd]) -> None:
        """Let an operator, a client without a replica, ask for something."""
        now_ns, route = self.world.schedule.now_ns, b"operator"
        self._do(self.core.handle(route, Hello(1, "operator", "0" * 16, None, "", 0, "", 0, 0, ()), now_ns))
        self._do(self.core.handle(route, request(self.disk.last_session), now_ns))
        self._do(self.core.handle(route, Goodbye(self.disk.epoch, self.disk.last_session), now_ns))

    def stop(self) -> None:
        """End in good order."""
        self._do(self.core.stop(self.world.schedule.now_ns))

    def _ring(self) -> None:
        if self._held is None:
            self._do(self.core.handle_timer(self.world.schedule.now_ns))

    def _do(self, effects: list[lockd_effects.Effect]) -> None:
        try:
            for effect in effects:
                self._do_one(effect)
        except Crashed:
            self.kill()
            return
        self._alarm.set(self.core.deadline_ns())
        self.world.observer.lockd_stepped(self, effects)

    def _do_one(self, effect: lockd_effects.Effect) -> None:
        if self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in < 0:
                raise Crashed
        match effect:
            case Send(route, message):
                self.world.network.send(("lockd", LOCKD, route), encode(message), self._deliver)
            case LogGrant(line):
                self.grants.append(format_grant(line))
                self.disk.holds = [hold for hold in self.disk.holds if hold.token != line.token]
                if line.event == "grant":
                    self.disk.holds.append(line)
            case lockd_effects.Persist(changes):
                for change in changes:
                    self._write(change)
            case lockd_effects.KeepLeft(lock):
                self.disk.left[lock] = effect
            case lockd_effects.Note(text):
                self.world.trace.append((self.world.schedule.now_ns, "lockd", text))
            case _:
                assert_never(effect)

    def _deliver(self, connection: Connection, frame: bytes) -> None:
        client = self.world.clients.get(connection[2])
        if client is not None:
            client.receive_lockd(frame)

    def _write(self, change: lockd_effects.Change) -> None:
        match change:
            case ReplicaSeen(replica):
                self.disk.replicas[replica] = change
            case ForgetAcked(token):
                self.disk.forgotten = token
            case SessionOpened(session):
                self.disk.last_session = session
                self.disk.sessions[session] = change
            case InSyncChanged(file, replicas):
                id_, changes = self.disk.epochs[self.disk.epoch]
                self.disk.epochs[self.disk.epoch] = id_, changes + 1
                if replicas:
                    self.disk.in_sync[file] = replicas
                else:
                    self.disk.in_sync.pop(file, None)
            case SessionEnded(session):
                self.disk.sessions.pop(session, None)
            case lockd_effects.LeasesGiven():
                self.disk.leases = change
            case Rebuilt(group, epoch, epochs):
                self.disk.group, self.disk.epoch, self.disk.epochs = group, epoch, epochs
            case _:
                assert_never(change)


class ShortAnswers(MemoryJournal):
    """A journal that hands out its ops in small portions, so that an answer to a fetch needs more than one."""

    def __init__(self, random_bytes: Callable[[int], bytes], bytes_max: int) -> None:
        super().__init__(random_bytes)
        self._bytes_max = bytes_max

    def records_after(self, file: str, seq: int, bytes_max: int) -> tuple[tuple[Record, ...], bool]:
        """Return the ops behind version `seq`, few at a time."""
        return super().records_after(file, seq, min(bytes_max, self._bytes_max))


@dataclass(slots=True)
class Directory:
    """A client's data directory: what it finds again when it comes back."""

    name: str
    journal: MemoryJournal
    replica: str = ""
    lines: list[str] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        """The newest epoch of lockd that it has seen."""
        return int(self.journal.meta.get("epoch", 0))

    @property
    def host(self) -> str:
        """The component in vector clocks; "" before the first session."""
        return str(self.journal.meta.get("host", ""))

    def head(self, file: str) -> Version:
        """The newest version of a file, EMPTY of one that is not there."""
        state = self.journal.states().get(file)
        return state.head.version if state else EMPTY

    def start(self, incarnation: str) -> Client:
        """Start a core from what is here, as client/node.py does."""
        self.replica, start_count = self.journal.begin_start()
        meta, states = self.journal.meta, self.journal.states()
        events = [parse_event(line) for line in self.lines]
        clock = events[-1].clock if events else {}
        own = f"{self.host}:"
        ids = [event.values["id"] for event in events]
        identity = Identity(
            self.name,
            incarnation,
            self.replica,
            start_count,
            f"tcp://127.0.0.1:{start_count}",
            "memory",
            self.host,
            str(meta.get("group", "")),
            int(meta.get("epoch", 0)),
            str(meta.get("epoch_id", "")),
            int(meta.get("changes", 0)),
            max((int(id_.removeprefix(own)) for id_ in ids if id_.startswith(own)), default=0),
        )
        last_us = events[-1].time_us if events else 0
        reads = {event.values["file"]: event.clock for event in events if event.verb == "read"}
        return Client(identity, self.journal, states, clock, last_us, reversed(events), reads)


class ClientProcess(Pausable[Event]):
    """A client's core over its directory, from one start to one end."""

    def __init__(
        self,
        world: World,
        lockd: LockdProcess,
        directory: Directory,
        random: Random,
        clock_offset_ns: int,
        joined: Callable[[], None],
        drift_ppm: int = 0,
    ) -> None:
        self.world = world
        self.directory = directory
        self.reads: dict[int, bytes] = {}
        self.joined = False
        self._lockd = lockd
        self._joined = joined
        self._offset_ns = clock_offset_ns
        self._drift_ppm = drift_ppm
        self.alive = True
        self.crash_in: int | None = None
        incarnation = f"{random.getrandbits(64):016x}"
        self._connections: dict[str, Member] = {}
        self._held: list[tuple[bytes, ToReplica]] = []
        self._encoded: tuple[object, bytes] = (None, b"")
        self._alarm = Alarm(world.schedule, self._ring)
        self.core = directory.start(incarnation)
        self.lines_before = len(directory.lines)
        self.route = self.peer_route = (directory.replica + incarnation).encode()
        self._incarnation = incarnation
        world.clients[self.route] = self
        self.feed(Timer())
        world.observer.started(self)

    @property
    def name(self) -> str:
        """Return the client's name."""
        return self.directory.name

    def submit(self, submit: Submit) -> None:
        """Begin an op."""
        self.feed(submit)

    @property
    def now_ns(self) -> int:
        """The time by its own clock."""
        true_ns = self.world.schedule.now_ns
        return true_ns + (true_ns - START_NS) * self._drift_ppm // 1_000_000 + self._offset_ns

    def leave(self) -> None:
        """End the session in good order, and the process."""
        self.feed(Leave())
        self._end()

    def kill(self) -> None:
        """End at once."""
        if self.alive:
            self._end()
            self.world.observer.died(self)

    def go_on(self) -> None:
        """Take in what has come meanwhile, then look at the time."""
        for event in self.end_pause():
            self.feed(event)
        self.feed(Timer())

    def _end(self) -> None:
        self.alive = False
        self._alarm.set(None)
        for route in {self.route, self.peer_route}:
            del self.world.clients[route]

    def receive_lockd(self, frame: bytes) -> None:
        """Take in a frame of lockd."""
        message: FromLockd = decode(frame, FromLockd)  # type: ignore[arg-type]
        self.feed(FromDaemon(message))

    def receive_replica(self, route: bytes, frame: bytes) -> None:
        """Take in a frame of another replica; before the first session it waits."""
        message: ToReplica = decode(frame, ToReplica)  # type: ignore[arg-type]
        if self.joined:
            self.feed(FromPeer(route, message))
        else:
            self._held.append((route, message))

    def receive_answer(self, replica: str, frame: bytes) -> None:
        """Take in another replica's answer."""
        message: FromReplica = decode(frame, FromReplica)  # type: ignore[arg-type]
        self.feed(PeerAnswer(replica, message))

    def feed(self, event: Event) -> None:
        """Give the core an event and do what it asks for."""
        if not self.alive:
            return
        if self.missed is not None:
            self.missed.append(event)
            return
        world = self.world
        world.trace.append((world.schedule.now_ns, self.name, event))
        was_joined = self.joined
        promised = None
        if isinstance(event, FromPeer) and isinstance(event.message, Push):
            promised = self.core.head_of(event.message.file).promised
        try:
            effects = self.core.handle(event, self.now_ns)
            while effects:
                effects = self._do(effects)
        except Crashed:
            self.kill()
        else:
            if promised is not None and isinstance(event, FromPeer) and isinstance(event.message, Push):
                push = event.message
                epoch_known = token_epoch(push.token) <= self.directory.epoch
                if push.token > promised and epoch_known and not self.directory.journal.failing:
                    world.observer.met(self, push.file, push.token)
        if self.route in world.clients:  # nothing has ended it in the midst of this step
            self._set_alarm()
            if self.joined and not was_joined:
                held, self._held = self._held, []
                for route, message in held:
                    self.feed(FromPeer(route, message))
                self._joined()

    def _set_alarm(self) -> None:
        deadline_ns = self.core.deadline_ns()
        if deadline_ns is not None:
            ahead_ns = deadline_ns - self.now_ns
            deadline_ns = self.world.schedule.now_ns + ahead_ns + max(0, ahead_ns) * abs(self._drift_ppm) // 1_000_000
        self._alarm.set(deadline_ns)

    def _ring(self) -> None:
        self.feed(Timer())

    def _do(self, effects: list[Effect]) -> list[Effect]:
        """Do the effects in their order; return those that follow from a Persist, the last of them."""
        world, directory = self.world, self.directory
        logged, refusal = len(directory.lines), ""
        for effect in effects:
            if self.crash_in is not None:
                self.crash_in -= 1
                if self.crash_in < 0:
                    raise Crashed
            match effect:
                case SendLockd(message):
                    if isinstance(message, Acquire) and not world.keep:
                        message = replace(message, sticky=False)
                    connection = ("lockd", self.route, LOCKD)
                    world.network.send(connection, encode(message), self._lockd.receive)
                case SendReplica(replica, to_replica):
                    member = self._connections.get(replica)
                    if member is not None:
                        route = (member.replica + member.incarnation).encode()
                        frame = self._encode_once(to_replica)
                        world.network.send(("replica", self.peer_route, route), frame, self._deliver)
                case Answer(route, answer):
                    world.network.send(("answer", self.peer_route, route), encode(answer), self._deliver)
                case Log(time_us, host, clock, verb, facts):
                    directory.lines.append(format_event(time_us, host, clock, verb, facts))
                    world.observer.logged(self, effect)
                case Persist(ticket):
                    if effect is not effects[-1]:
                        raise Broken(f"{self.name}: a Persist is not the last effect of its list")
                    try:
                        if refusal:
                            raise StorageError(refusal)
                        directory.journal.write(effect)
                    except StorageError as error:
                        del directory.lines[logged:]
                        return self.core.handle(PersistFailed(ticket, str(error)), self.now_ns)
                    world.observer.persisted(self, effect)
                    return self.core.handle(Persisted(ticket), self.now_ns)
                case Flush(ticket):
                    if refusal := refusal or directory.journal.failing:
                        del directory.lines[logged:]
                        return self.core.handle(PersistFailed(ticket, refusal), self.now_ns)
                    return self.core.handle(Persisted(ticket), self.now_ns)
                case ReadFile(op, file):
                    self.reads[op] = directory.journal.read(file)
                case Begin(op):
                    if not world.observer.begins(self, op):
                        refusal = "nobody waits for it any more"
                case Finished():
                    world.observer.finished(self, effect)
                case Connect(member):
                    self._connections[member.replica] = member
                case Disconnect(replica):
                    self._connections.pop(replica, None)
                case Remember(replica, host, group, epoch, epoch_id, changes):
                    directory.replica = replica
                    if self.peer_route != (route := (replica + self._incarnation).encode()):
                        self.peer_route, world.clients[route] = route, self
                    kept: dict[str, MetaValue] = {"replica_id": replica, "host": host, "group": group, "epoch": epoch}
                    kept |= {"epoch_id": epoch_id, "changes": changes}
                    try:
                        directory.journal.set_meta(kept)
                    except StorageError:
                        if not self.joined:
                            raise Crashed from None  # as client/node.py, which ends with what to do about it
                case Reconnect():
                    world.observer.reconnects(self)
                case Joined():
                    self.joined = True
                    world.observer.joined(self)
                case JoinRefused(reason):
                    world.observer.refused(self, reason)
                    return []
                case Note():
                    world.trace.append((world.schedule.now_ns, self.name, effect))
                case _:
                    assert_never(effect)
        return []

    def _encode_once(self, message: ToReplica) -> bytes:
        if self._encoded[0] is not message:
            self._encoded = (message, encode(message))
        return self._encoded[1]

    def _deliver(self, connection: Connection, frame: bytes) -> None:
        kind, sender, receiver = connection
        client = self.world.clients.get(receiver)
        if client is None:
            return
        if kind == "replica":
            client.receive_replica(sender, frame)
        else:
            client.receive_answer(sender[:16].decode(), frame)
