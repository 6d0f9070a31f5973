"""The client's core: its session with lockd, and its two roles, holder and follower. No I/O.

Theory of operation. `handle` takes one event and returns effects in the order in which they are to be done;
nothing else changes the state. The session begins with a Hello and is a lease, counted from the send time of
the last ping that was answered, so the client gives up before lockd does. Whatever ends it (the lease, Ended,
Stale) voids every lock at once and begins the next session. A connection that broke does not: over the next one
all that may be lost is said again, and lockd gives its first answers. Pushes and fetches of other replicas are served
with or without a session: tokens guard them, not leases.

Network time is lockd's clock, estimated from round trips: Cristian, "Probabilistic clock synchronization"
(1989). The estimate with the smallest error is kept, and its error grows with its age.

It must never reuse a token, a request number or a count of its own clock.
"""

from collections.abc import Iterable, Mapping
from typing import Final, Literal, assert_never

from client.effects import (
    Connect,
    Disconnect,
    Effect,
    Event,
    FileState,
    FromDaemon,
    FromPeer,
    History,
    Joined,
    JoinRefused,
    Leave,
    LockdConnected,
    LockdDisconnected,
    Note,
    PeerAnswer,
    Persisted,
    PersistFailed,
    Reconnect,
    Submit,
    Timer,
)
from client.figures import Figures
from client.holder import Holder
from client.loose import loose
from client.replica import Follower
from client.shared import Identity, Shared
from common.clock import Clock, merge
from common.eventlog import Event as LogLine
from common.eventlog import format_pairs
from common.messages import (
    Ack,
    Admitted,
    Broken,
    CalledBack,
    Ended,
    Fenced,
    Fetch,
    Fetched,
    FromLockd,
    FromReplica,
    Goodbye,
    Grant,
    Hello,
    Here,
    Inspection,
    InSync,
    Learn,
    Lost,
    Member,
    Ping,
    Pong,
    Probe,
    Push,
    Recall,
    Refused,
    Released,
    ReplicaHello,
    Resume,
    Settle,
    Stale,
    View,
    Welcome,
)

_HELLO_EVERY_NS: Final = 1_000_000_000
_HELLO_OLD_NS: Final = 2_500_000_000
"""A hello so old is not repeated: the lease that it brings counts from the first time that it was said."""
_LATE_NS: Final = 200_000_000
"""Who finds the end of its lease so late has not been running."""
_FIRST_PINGS: Final = 4
_FIRST_PING_NS: Final = 20_000_000
"""A session begins with some quick round trips: its first one was slow, and a poor estimate of lockd's clock."""
_FOREIGN_MAX: Final = 100
"""So many senders of another group are named, each once."""
_DRIFT: Final = 100e-6
"""How far two machines' clocks may run apart, in seconds per second."""

Session = Literal["joining", "joined", "left"]


class Client:
    """One client process's protocol."""

    def __init__(
        self,
        identity: Identity,
        history: History,
        files: Mapping[str, FileState],
        clock: Clock,
        last_time_us: int,
        newest: Iterable[LogLine] = (),
        reads: Mapping[str, Clock] | None = None,
    ) -> None:
        """Start from what the data directory holds: files' states, and the event log's last lines, newest first.

        `clock` and `last_time_us` are those of the last line, `reads` those of the newest read of each file. A crash
        may have come between a line and its change of the journal: then a line behind it says so.
        """
        self._loose = list(loose(newest, history))
        self._shared = Shared(identity, history, dict(files), clock, last_time_us, reads=dict(reads or {}))
        self._holder = Holder(self._shared)
        self._follower = Follower(self._shared)
        self._session: Session = "joining"
        self._ttl_ns = 0
        self._next_ns = 0
        self._sent: dict[int, int] = {}
        self._hello = 0
        self._error_ns: float = float("inf")
        self._sampled_ns = 0
        self._first_pings = 0
        self._replicas_most = 0
        self._foreign: set[str] = set()

    @property
    def joined(self) -> bool:
        """Tell whether a session is open."""
        return self._session == "joined"

    @property
    def host(self) -> str:
        """Return our component in vector clocks, "" before the first session."""
        return self._shared.identity.host

    @property
    def replicas_most(self) -> int:
        """Return how many live replicas there were at once, ours included, at the most."""
        return self._replicas_most

    @property
    def figures(self) -> Figures:
        """Return what is counted; the driver counts what passes through it."""
        return self._shared.figures

    @property
    def files(self) -> dict[str, FileState]:
        """Return what this replica has of every file."""
        return self._shared.files

    @property
    def epoch(self) -> int:
        """Return the epoch of the newest session."""
        return self._shared.identity.epoch

    @property
    def busy(self) -> bool:
        """Tell whether ops are under way."""
        return self._holder.busy

    @property
    def learning(self) -> frozenset[str]:
        """Return the files that this replica is catching up with."""
        return frozenset(self._follower.learning)

    def head_of(self, file: str) -> FileState:
        """Return what this replica has of a file."""
        return self._shared.state(file)

    def deadline_ns(self) -> int | None:
        """Return when a Timer event is due, or None."""
        if self._session == "left":
            return None
        deadline = self._next_ns
        if self._session == "joined":
            deadline = min(deadline, self._shared.lease_ns)
        ops = self._holder.deadline_ns()
        return deadline if ops is None else min(deadline, ops)

    def handle(self, event: Event, now_ns: int) -> list[Effect]:
        """Take in one event at `now_ns`, nanoseconds on a clock that never runs back."""
        shared = self._shared
        shared.now_ns = now_ns
        shared.out = []
        if not isinstance(event, PersistFailed):
            shared.clock_before = shared.clock
        match event:
            case FromDaemon(message):
                self._from_lockd(message)
            case FromPeer(route, message):
                self._from_replica(route, message)
            case PeerAnswer(replica, message):
                self._answer(replica, message)
            case Persisted(ticket):
                shared.persisted(ticket)
            case PersistFailed(ticket, reason):
                shared.persist_failed(ticket, reason)
            case Submit():
                self._holder.submit(event)
            case Timer():
                self._timer()
            case LockdConnected():
                self._connected()
            case LockdDisconnected():
                shared.connected = False
            case Leave(broken):
                self._leave(broken)
            case _:
                assert_never(event)
        return shared.out

    def _log_what_is_true(self) -> None:
        """Log that what the log tells last never came to be, and that what it takes back is still there."""
        shared = self._shared
        for line in self._loose:
            told = [(key, line.values[key]) for key in ("file", "id", "token", "seq", "hash")]
            facts = format_pairs([*told, ("from", shared.identity.host)])
            shared.log(shared.stamp_us(), shared.tick(), "apply" if line.verb == "undo" else "undo", facts)
        shared.emit(
            Note(f"a crash came between the event log and the journal; {len(self._loose)} lines say what is true")
        )
        self._loose.clear()

    # The session

    def _timer(self) -> None:
        shared = self._shared
        if self._session == "joined" and shared.now_ns >= shared.lease_ns:
            self._lease_over()
        if self._session == "joining" and shared.now_ns >= self._next_ns:
            self._say_hello()
        elif self._session == "joined" and shared.now_ns >= self._next_ns:
            self._first_pings = max(0, self._first_pings - 1)
            self._next_ns = shared.now_ns + (_FIRST_PING_NS if self._first_pings else self._ttl_ns // 3)
            shared.tell_lockd(Ping(shared.identity.epoch, shared.session, self._ping_request()))
            self._follower.report_all()
        self._holder.tick()

    def _connected(self) -> None:
        """Go on over a new connection at once: with the session if there is one, else towards one."""
        shared = self._shared
        shared.connected = True
        if self._session == "joining":
            if shared.now_ns - self._sent.get(self._hello, shared.now_ns) >= _HELLO_OLD_NS:
                del self._sent[self._hello]
            self._say_hello()
        elif self._session == "joined":
            shared.say_again()
            self._holder.say_again()
            request = self._ping_request()
            shared.tell_lockd(Resume(shared.identity.epoch, shared.session, request))

    def _ping_request(self) -> int:
        """Return a request number from whose sending, now, the lease counts once it is answered."""
        shared = self._shared
        request = shared.request()
        self._sent = {old: at for old, at in self._sent.items() if at + self._ttl_ns > shared.now_ns}
        self._sent[request] = shared.now_ns
        return request

    def _say_hello(self) -> None:
        """Ask for a session; a hello not answered soon is said again, one that is old is given up for a new one."""
        shared, identity = self._shared, self._shared.identity
        self._next_ns = shared.now_ns + _HELLO_EVERY_NS
        if not shared.connected:
            return
        sent_ns = self._sent.get(self._hello)
        if sent_ns is not None and shared.now_ns - sent_ns >= _HELLO_OLD_NS:
            # Not every connection that is dead says so.
            del self._sent[self._hello]
            shared.connected = False
            shared.emit(Reconnect())
            return
        if sent_ns is None:
            self._hello = shared.request()
            self._sent = {self._hello: shared.now_ns}
        heads = {file: state.head for file, state in shared.files.items()}
        highest = max((state.promised for state in shared.files.values()), default=0)
        durability: Literal["disk", "memory"] = "memory" if identity.durability == "memory" else "disk"
        shared.tell_lockd(
            Hello(
                self._hello,
                identity.name,
                identity.incarnation,
                ReplicaHello(
                    identity.replica,
                    identity.start_count,
                    identity.endpoint,
                    heads,
                    durability,
                    identity.host,
                    shared.clock.get(identity.host, 0),
                    dict(shared.reads),
                    tuple(sorted({*shared.clock, *shared.hosts.values()})),
                ),
                identity.group,
                identity.epoch,
                identity.epoch_id,
                identity.changes,
                highest,
                (),
            )
        )

    def _welcome(self, message: Welcome) -> None:
        shared, identity = self._shared, self._shared.identity
        if self._session != "joining" or message.request != self._hello:
            return
        sent_ns = self._sent.pop(message.request, None)
        if sent_ns is None:
            return
        self._ttl_ns = message.ttl_ms * 1_000_000
        self._holder.silence_ns = self._ttl_ns // 3
        shared.lease_ns = sent_ns + self._ttl_ns
        self._next_ns, self._first_pings = shared.now_ns, _FIRST_PINGS
        identity.group, identity.epoch, identity.epoch_id = message.group, message.epoch, message.epoch_id
        identity.changes, identity.host = message.changes, message.host
        if identity.replica != message.replica:
            shared.emit(Note(f"this directory is a copy, or an old one; its replica is {message.replica} now"))
            identity.replica = message.replica
        shared.remember()
        for state in shared.files.values():
            # All of it stands in the log; but that can have lost its end, and then it is another host's that goes on.
            shared.clock = merge(shared.clock, state.head.clock)
        shared.session = message.session
        self._session = "joined"
        if self._loose:
            self._log_what_is_true()
        self._synchronize(sent_ns, message.time_us)
        self._view(message.view)
        shared.emit(Note(f"joined as {identity.host}, session {message.session} of epoch {message.epoch}"))
        shared.emit(Joined())
        self._holder.session_opened()

    def _lease_over(self) -> None:
        late_ns = self._shared.now_ns - self._shared.lease_ns
        if late_ns > _LATE_NS:
            self._lost(f"this process stood still, until {late_ns / 1e9:.1f} s behind the end of its lease")
        else:
            self._lost("lockd did not answer within the lease")

    def _lost(self, reason: str) -> None:
        """Void every lock, and begin the next session."""
        shared = self._shared
        if self._session != "joined":
            return
        self._session = "joining"
        shared.figures.sessions_lost += 1
        shared.forget_session()
        self._next_ns = shared.now_ns
        shared.emit(Note(f"session lost: {reason}; every lock it held is void"))
        self._holder.session_lost(f"the session was lost: {reason}")
        self._follower.forget_session()

    def _leave(self, broken: str) -> None:
        shared = self._shared
        self._holder.leave(broken or "this client was told to end", unsure=bool(broken))
        if self._session == "joined":
            shared.tell_lockd(Goodbye(shared.identity.epoch, shared.session))
        elif self._hello in self._sent:
            shared.tell_lockd(Goodbye(shared.identity.epoch, 0))
        self._session = "left"
        shared.session = 0

    def _view(self, members: tuple[Member, ...]) -> None:
        shared = self._shared
        before, now = shared.members, {member.replica: member for member in members}
        shared.members = now
        shared.hosts.update((member.replica, member.host) for member in members)
        self._replicas_most = max(self._replicas_most, len(now))
        own = shared.identity.replica
        for replica in before:
            if replica not in now and replica != own:
                shared.emit(Disconnect(replica))
        for replica, member in now.items():
            if replica != own and before.get(replica) != member:
                shared.emit(Connect(member))

    def _synchronize(self, sent_ns: int, time_us: int) -> None:
        """Take a round trip with lockd as an estimate of its clock, if it is better than what we have."""
        now_ns = self._shared.now_ns
        error_ns = (now_ns - sent_ns) / 2
        if error_ns <= self._error_ns + (now_ns - self._sampled_ns) * _DRIFT:
            self._error_ns, self._sampled_ns = error_ns, now_ns
            self._shared.offset_ns = time_us * 1000 - (sent_ns + now_ns) // 2

    # Messages

    def _from_lockd(self, message: FromLockd) -> None:
        shared = self._shared
        match message:
            case Welcome():
                self._welcome(message)
                return
            case Stale():
                if self.joined and message.epoch != shared.identity.epoch:
                    self._lost("lockd has started anew")
                return
            case Refused() if message.request == self._hello and self._session == "joining":
                shared.emit(JoinRefused(message.reason))
                return
            case _:
                pass
        if not self.joined or message.epoch != shared.identity.epoch:
            return
        match message:
            case Grant():
                shared.unconfirmed.answered(message.request)
                self._holder.granted(message)
            case Released():
                shared.unconfirmed.answered(message.request)
                self._holder.released(message)
            case Pong():
                shared.unconfirmed.answered(message.request)
                self._pong(message)
            case Refused():
                shared.unconfirmed.answered(message.request)
                self._holder.refused(message)
            case InSync():
                shared.unconfirmed.answered(message.request)
                self._holder.in_sync(message)
            case View():
                self._view(message.members)
                self._holder.members_changed()
            case Learn():
                self._follower.learn(message.file, message.sources)
            case Admitted():
                self._follower.admitted(message.file)
            case Settle():
                self._holder.settle(message.file)
            case Ended():
                if message.session == shared.session:
                    self._lost(message.reason)
            case Probe():
                if message.session == shared.session:
                    shared.tell_lockd(Here(shared.identity.epoch, shared.session, message.request))
            case Lost():
                self._holder.broken(message)
            case Recall():
                self._holder.recalled(message)
            case Inspection() | Broken() | CalledBack():
                pass  # for operators; a replica does not ask for them
            case _:
                assert_never(message)

    def _pong(self, message: Pong) -> None:
        sent_ns = self._sent.pop(message.request, None)
        if sent_ns is not None:
            shared = self._shared
            shared.lease_ns = max(shared.lease_ns, sent_ns + self._ttl_ns)
            self._synchronize(sent_ns, message.time_us)

    def _from_replica(self, route: bytes, message: Push | Fetch) -> None:
        source = route[:16].decode("ascii", "replace")
        if message.group != self._shared.identity.group:
            if len(self._foreign) < _FOREIGN_MAX and source not in self._foreign:
                self._foreign.add(source)
                self._shared.emit(Note(f"dropped a message about {message.file} from another group, by {source}"))
            return
        match message:
            case Push():
                self._follower.push(route, source, message)
            case Fetch():
                self._follower.fetch(route, message)
            case _:
                assert_never(message)

    def _answer(self, replica: str, message: FromReplica) -> None:
        match message:
            case Ack():
                self._holder.acked(replica, message.file, message.token, message.seq)
            case Fenced():
                self._holder.fenced(replica, message)
            case Fetched():
                self._follower.fetched(replica, message)
            case _:
                assert_never(message)
