"""lockd's core: sessions, locks and in-sync sets, without I/O, clock or randomness.

Theory of operation. Every message of a client, and the timer, is one call; it changes the state and returns
effects in the order in which they are to be done. A lock has a queue and holds; whatever may let somebody
through (a release, an end of session, an admission) ends in `_advance`, which grants from the front of the
queue. Durable are the epoch, replicas and their hosts, sessions and in-sync sets; grants are not.

Invariants:
- a token is never granted twice and every grant's is larger than all before;
- an exclusive hold is alone; shared holds are together; a waiter that can be served is served in its turn;
- a file's lock goes only to a live member of its in-sync set, and exclusively while the file is unclean;
- a file is clean only at a version that its whole in-sync set holds;
- what is Persisted stands before every message that tells of it.

It must never wait, and never trust a message further than its session and token.
"""

import hashlib
import heapq
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, assert_never

from common.clock import merge
from common.grantlog import GrantEvent, GrantLine
from common.limits import ANSWERS_KEPT_MAX, LOCKS_MAX, SESSIONS_MAX, WAITERS_MAX
from common.messages import (
    Acquire,
    Admitted,
    Cancel,
    Drop,
    Ended,
    FromLockd,
    GiveUp,
    Goodbye,
    Grant,
    Hello,
    Here,
    InSync,
    Learn,
    Member,
    Mode,
    Ping,
    Pong,
    Probe,
    Refused,
    Release,
    Released,
    ReplicaHello,
    Report,
    Resume,
    Settle,
    Stale,
    ToLockd,
    View,
    Welcome,
)
from common.names import client_name_problem, file_name_problem, lock_name_problem
from common.records import EMPTY, Version
from common.tokens import format_token, make_token, token_epoch
from lockd.effects import (
    Change,
    Durable,
    Effect,
    InSyncChanged,
    KeepLeft,
    LogGrant,
    Note,
    Persist,
    Rebuilt,
    ReplicaSeen,
    Send,
    SessionEnded,
    SessionOpened,
)
from lockd.locks import FileState, Hold, Lock, Waiter, new_file

_RECONNECT_NS: Final = 25_000_000
"""A client whose connection is down has so long to come back; one that lives needs half of it on one machine."""
_PROBE_NS: Final = 500_000_000
"""A process has so long to tell that it is alive, where another claims its place."""
_STALL_NS: Final = 200_000_000
"""A timer that fires so late tells that lockd itself was stalled, not its clients."""


@dataclass(slots=True)
class Session:
    """A client's lease. `member` is its replica as others reach it, None without one."""

    id: int
    name: str
    host: str
    route: bytes
    incarnation: str
    hello: int
    member: Member | None
    deadline_ns: int
    connected: bool = True
    waits: dict[int, str] = field(default_factory=dict)
    holds: dict[int, str] = field(default_factory=dict)
    answers: OrderedDict[int, FromLockd] = field(default_factory=OrderedDict)


@dataclass(slots=True)
class Contender:
    """A process that says hello as a replica whose session seems alive, until that is known."""

    route: bytes
    hello: Hello
    until_ns: int


class Lockd:
    """The lock server of one group."""

    def __init__(self, durable: Durable, ttl_ns: int) -> None:
        """Start in `durable.epoch` with leases of `ttl_ns` nanoseconds."""
        self.epoch = durable.epoch
        self.epochs = dict(durable.epochs)
        self.group = durable.group
        self.ttl_ns = ttl_ns
        self.sessions: dict[int, Session] = {}
        self.locks: dict[str, Lock] = {}
        self._counter = 0
        self._last_session = durable.last_session
        self._replicas = dict(durable.replicas)
        self._by_name: dict[str, Session] = {}
        self._by_route: dict[bytes, Session] = {}
        self._by_replica: dict[str, Session] = {}
        self._timers: list[tuple[int, int, int]] = []
        self._out: list[Effect] = []
        self._expected = dict(durable.sessions)
        self._before = {line.token: line for line in durable.holds}
        self._claims: dict[str, dict[int, tuple[int, Mode]]] = {}
        self._rebuild = durable.rebuild
        self._rebuild_ns = 0
        self._survivors: dict[str, tuple[bytes, Hello]] = {}
        self._contenders: dict[str, Contender] = {}
        self._early: dict[tuple[int, int], tuple[Acquire, int]] = {}
        self.waiters = 0
        for file, in_sync in durable.in_sync.items():
            lock = self.locks[file] = Lock(file, "file", FileState(in_sync))
            if lock.file and (left := durable.left.get(file)) is not None:
                lock.writers_clock, lock.readers_clock = left.writers, left.readers
                lock.file.acked, lock.file.acked_token = left.acked, left.acked_token

    # Entry points

    def begin(self, now_ns: int) -> list[Effect]:
        """Void the locks on files that the last lockd had granted; wait for its sessions, a ttl at the most.

        Those without a file are for their holders to claim meanwhile.
        """
        self._out = []
        self._rebuild_ns = now_ns + self.ttl_ns
        files = [token for token, line in self._before.items() if line.lock in self.locks or not self._expected]
        self._void(files, now_ns)
        if self._expected:
            heapq.heappush(self._timers, (now_ns + self.ttl_ns, 0, 0))
            names = ", ".join(sorted(session.name for session in self._expected.values()))
            self._out.append(Note(f"waiting, {self.ttl_ns / 1e9:g} s at the most, for the sessions of {names}"))
        return self._out

    def deadline_ns(self) -> int | None:
        """Return when `handle_timer` wants to be called, or None."""
        return self._timers[0][0] if self._timers else None

    def handle(self, route: bytes, message: ToLockd, now_ns: int) -> list[Effect]:
        """Take in a message that came along `route` at `now_ns`, lockd's time in nanoseconds since 1970."""
        self._out = []
        if isinstance(message, Hello):
            self._hello(route, message, now_ns)
            return self._out
        if isinstance(message, Goodbye) and message.session == 0:
            self._forget_contender(route)
            if (leaving := self._by_route.get(route)) is not None:
                self._end(leaving, "it said goodbye", now_ns)
            return self._out
        if message.epoch != self.epoch:
            if isinstance(message, Goodbye):
                self._arrived(now_ns, {message.session} & self._expected.keys())
            self._send(route, Stale(self.epoch))
            return self._out
        session = self.sessions.get(message.session)
        if session is None or session.route != route:
            self._send(route, Ended(self.epoch, message.session, "this session is not open"))
            return self._out
        session.deadline_ns = now_ns + self.ttl_ns
        if not session.connected:
            self._reconnected(session, now_ns)
        match message:
            case Acquire():
                self._acquire(session, message, now_ns, now_ns)
            case Release():
                self._release(session, message, now_ns)
            case Ping():
                self._send(route, Pong(self.epoch, message.request, now_ns // 1000))
            case Cancel():
                self._cancel(session, message.request, now_ns)
            case Drop():
                self._drop(session, message, now_ns)
            case Report():
                self._report(session, message, now_ns)
            case GiveUp():
                self._give_up(session, message, now_ns)
            case Resume():
                self._resume(session, message, now_ns)
            case Here():
                self._decide_contest(session, now_ns, alive=True)
            case Goodbye():
                self._end(session, "it said goodbye", now_ns)
            case _:
                assert_never(message)
        return self._out

    def disconnected(self, route: bytes, now_ns: int) -> list[Effect]:
        """Take in that the connection along `route` is down: its client is dead, or back in a moment.

        Until then nothing is granted to it. A lock without a file protects what we cannot see, so that its
        holder keeps its whole lease.
        """
        self._out = []
        self._forget_contender(route)
        session = self._by_route.get(route)
        if session is not None:
            session.connected = False
            self._decide_contest(session, now_ns, alive=False)
        if session is not None and session.id in self.sessions:
            if all(self.locks[name].file for name in session.holds.values()):
                session.deadline_ns = min(session.deadline_ns, now_ns + _RECONNECT_NS)
                heapq.heappush(self._timers, (session.deadline_ns, session.id, 0))
        return self._out

    def handle_timer(self, now_ns: int) -> list[Effect]:
        """Expire what is due at `now_ns`; the driver has drained its inbox before."""
        self._out = []
        stall_ns = now_ns - self._timers[0][0] if self._timers else 0
        if stall_ns <= _STALL_NS:
            stall_ns = 0
        else:
            self._out.append(Note(f"stalled for {stall_ns / 1e9:.3f} s; all leases are longer by that"))
            for session in self.sessions.values():
                # Nobody knows when the stall began: each has the time to send one more ping.
                session.deadline_ns = max(session.deadline_ns + stall_ns, now_ns + self.ttl_ns // 2)
        while self._timers and self._timers[0][0] <= now_ns:
            _, session_id, request = heapq.heappop(self._timers)
            if session_id == 0:
                if stall_ns:
                    heapq.heappush(self._timers, (now_ns + self.ttl_ns // 2, 0, 0))
                    continue
                self._arrived(now_ns, set(self._expected))
                continue
            due = self.sessions.get(session_id)
            if due is None:
                continue
            if request < 0:
                if (name := due.waits.get(-request)) is not None:
                    self._advance(self.locks[name], now_ns)
            elif request:
                self._wait_over(due, request, now_ns)
            elif due.deadline_ns > now_ns:
                heapq.heappush(self._timers, (due.deadline_ns, session_id, 0))
                self._decide_contest(due, now_ns, alive=False)
            else:
                lost = f"its lease of {self.ttl_ns / 1e9:g} s ran out"
                self._end(due, lost if due.connected else "its connection is down", now_ns)
        return self._out

    def stop(self, now_ns: int) -> list[Effect]:
        """End in good order: every lock that is held is void, and grants.log says so."""
        self._out = []
        for lock in self.locks.values():
            for hold in list(lock.holds.values()):
                self._log("expiry", lock, hold, now_ns)
            lock.holds.clear()
        return self._out

    # Sessions

    @property
    def rebuilding(self) -> bool:
        """Tell whether replicas are still missing from which to rebuild the state."""
        return self._rebuild > 0

    def _survived(self, route: bytes, hello: Hello, now_ns: int) -> None:
        """Take in a replica of a group whose lockd has lost its state; begin when all are here."""
        replica = hello.replica
        problem = ""
        if replica is None or not replica.own_host or not hello.group:
            problem = "lockd has lost its state, and waits for the replicas to rebuild it from; try again later"
        for _, other in self._survivors.values() if not problem else ():
            same_epoch = other.epoch == hello.epoch and other.epoch_id != hello.epoch_id
            if other.group != hello.group or same_epoch:
                problem = "lockd is being rebuilt from replicas of another group"
        if problem or replica is None:
            self._send(route, Refused(self.epoch, hello.request, problem))
            return
        if now_ns < self._rebuild_ns:
            return  # a holder under the lost lockd's lease may change yet what this one has
        if replica.replica not in self._survivors:
            self._out.append(Note(f"{replica.own_host} is here, {len(self._survivors) + 1} of {self._rebuild}"))
        self._survivors[replica.replica] = route, hello
        if len(self._survivors) < self._rebuild:
            return
        survivors, self._survivors, self._rebuild = list(self._survivors.values()), {}, 0
        self.group = hello.group
        epoch_id = self.epochs.get(self.epoch, "")
        self.epoch = 1 + max(max(other.epoch, token_epoch(other.highest_token)) for _, other in survivors)
        self.epochs = {other.epoch: other.epoch_id for _, other in survivors} | {self.epoch: epoch_id}
        changes: list[Change] = [Rebuilt(self.group, self.epoch, self.epochs)]
        heads: dict[str, list[tuple[int, int, bytes, str]]] = {}
        hosts: set[str] = set()
        for _, other in survivors:
            assert other.replica is not None
            own = other.replica
            seen = ReplicaSeen(own.replica, other.name, own.own_host, own.start_count, other.incarnation)
            self._replicas[own.replica] = seen
            changes.append(seen)
            for file, head in own.heads.items():
                hosts |= head.clock.keys()
                version = head.version
                heads.setdefault(file, []).append((head.follows, version.seq, version.hash, own.replica))
        for host in sorted(hosts - {seen.host for seen in self._replicas.values()}):
            # A lost replica's: it must not be given out again.
            lost = hashlib.blake2b(host.encode(), digest_size=8).hexdigest()
            self._replicas[lost] = ReplicaSeen(lost, host.partition("#")[0], host, 0, "")
            changes.append(self._replicas[lost])
        for file, known in sorted(heads.items()):
            # What a newer token's holder had taken over stands behind what an older one may have left.
            most = max(known)[:3]
            in_sync = tuple([replica for *head, replica in known if tuple(head) == most])
            self.locks[file] = Lock(file, "file", FileState(in_sync))
            changes.append(InSyncChanged(file, in_sync))
        self._persist(*changes)
        self._out.append(Note(f"rebuilt from {len(survivors)} replicas: {len(heads)} files, epoch {self.epoch}"))
        for survivor, other in survivors:
            self._hello(survivor, other, now_ns)

    def _hello(self, route: bytes, hello: Hello, now_ns: int, alive: bool | None = None) -> None:
        """Open a session; `alive` tells, once that is known, whether the replica's older one has its process yet."""
        if self._rebuild:
            self._survived(route, hello, now_ns)
            return
        running = self._by_name.get(hello.name)
        if running and running.incarnation == hello.incarnation and running.hello == hello.request:
            self._by_route.pop(running.route, None)
            self._by_route[route] = running
            running.route, running.deadline_ns = route, now_ns + self.ttl_ns
            self._send(route, self._welcome(running, now_ns))
            self._tell_what_to_learn(running)
            if not running.connected:
                self._reconnected(running, now_ns)
            return
        replica = hello.replica
        replica_id, known = "", None
        if replica:
            is_copy = alive or self._is_copy(replica, hello.incarnation)
            if alive is None and not is_copy and self._contest(route, replica.replica, hello, now_ns):
                return
            replica_id, known = self._identify(replica, hello.incarnation, is_copy)
        problem = self._hello_problem(hello, running, replica_id)
        if problem:
            self._send(route, Refused(self.epoch, hello.request, problem))
            return
        changes: list[Change] = []
        if running:
            self._end(running, "its client began a new session", now_ns)
        if replica and (older := self._by_replica.get(replica_id)):
            self._end(older, "its replica began a new session", now_ns)
        self._last_session += 1
        number, host, member = self._last_session, hello.name, None
        if replica:
            if replica_id != replica.replica:
                self._out.append(
                    Note(f"{hello.name} runs on a copied directory, or on an old one; its replica is {replica_id} now")
                )
            host = known.host if known else self._new_host(hello.name)
            if replica.count < self._count_of(host):
                # Others know more of its events than it does: these must not be counted twice.
                self._out.append(Note(f"{host} has lost its newest events; it counts anew, under another name"))
                host = self._new_host(hello.name)
            seen = ReplicaSeen(replica_id, hello.name, host, replica.start_count, hello.incarnation)
            self._replicas[replica_id] = seen
            changes.append(seen)
            member = Member(replica_id, host, replica.endpoint, hello.incarnation)
        session = Session(
            number,
            hello.name,
            host,
            route,
            hello.incarnation,
            hello.request,
            member,
            now_ns + self.ttl_ns,
        )
        if (other := self._by_route.get(route)) is not None:
            self._end(other, "its connection began another session", now_ns)
        self.sessions[number] = self._by_name[hello.name] = self._by_route[route] = session
        heapq.heappush(self._timers, (session.deadline_ns, number, 0))
        if member:
            self._by_replica[member.replica] = session
        changes.append(SessionOpened(number, hello.name, member.replica if member else ""))
        self._persist(*changes)
        self._out.append(Note(f"session {number} of {host} is open"))
        self._send(route, self._welcome(session, now_ns))
        if member and replica:
            self._tell_view(session)
            self._take_heads(member.replica, replica, now_ns)
        if self._expected:
            self._claim(session, hello)
        back = [
            number
            for number, expected in self._expected.items()
            if (expected.replica == member.replica if member else expected.name == hello.name)
        ]
        self._arrived(now_ns, set(back))

    def _arrived(self, now_ns: int, numbers: set[int]) -> None:
        """Expect these sessions of the last lockd no more; go to work when no other is expected."""
        if not numbers:
            return
        for number in numbers:
            del self._expected[number]
        self._persist(*[SessionEnded(number) for number in sorted(numbers)])
        if self._expected:
            return
        self._settle_claims(now_ns)
        early, self._early = self._early, {}
        for (number, _), (acquire, since_ns) in early.items():
            if (session := self.sessions.get(number)) is not None:
                self._acquire(session, acquire, since_ns, now_ns)
        for lock in list(self.locks.values()):
            self._advance(lock, now_ns)

    def _void(self, tokens: Iterable[int], now_ns: int) -> None:
        """Log the end of holds that the last lockd had granted."""
        for token in tokens:
            line = self._before.pop(token)
            more = (("held_ms", f"{max(0, now_ns // 1000 - line.time_us) / 1e3:.3f}"),)
            self._out.append(
                LogGrant(GrantLine(now_ns // 1000, "expiry", line.lock, line.mode, token, line.client, more))
            )

    def _claim(self, session: Session, hello: Hello) -> None:
        """Take in which locks without a file a session of the last lockd still holds."""
        for held in hello.held:
            lock = self.locks.get(held.lock)
            if lock is None and token_epoch(held.token) < self.epoch and not lock_name_problem(held.lock):
                self._claims.setdefault(held.lock, {})[held.token] = session.id, held.mode

    def _settle_claims(self, now_ns: int) -> None:
        """Take over, of each lock without a file, the hold under the largest token, and what may go with it."""
        for name, claims in self._claims.items():
            live = {token: claim for token, claim in claims.items() if claim[0] in self.sessions}
            if not live:
                continue
            lock = self.locks[name] = Lock(name, "plain")
            # Before all others come those of which grants.log tells; a power cut can have taken its end.
            for token in sorted(live, key=lambda token: (token in self._before, token), reverse=True):
                number, mode = live[token]
                if not lock.admits(mode):
                    continue
                session = self.sessions[number]
                line = self._before.pop(token, None)
                since_ns = line.time_us * 1000 if line else now_ns
                lock.holds[token] = Hold(number, 0, token, mode, mode, EMPTY, since_ns, 0)
                session.holds[token] = name
                self._send(session.route, Grant(self.epoch, 0, name, token, mode, {}, EMPTY, (), (), now_ns // 1000))
        self._claims.clear()
        self._void(list(self._before), now_ns)

    def _reconnected(self, session: Session, now_ns: int) -> None:
        session.connected = True
        for name in set(session.waits.values()):
            self._advance(self.locks[name], now_ns)

    def _tell_what_to_learn(self, session: Session) -> None:
        replica = session.member.replica if session.member else ""
        for lock in self.locks.values():
            if replica and lock.file and replica not in lock.file.in_sync:
                self._send(session.route, self._learn(lock, lock.file, replica))

    def _resume(self, session: Session, message: Resume, now_ns: int) -> None:
        """Say again what the old connection may have lost and nobody asks for."""
        if session.member is not None:
            self._send(session.route, View(self.epoch, self._view()))
            self._tell_what_to_learn(session)
        self._send(session.route, Pong(self.epoch, message.request, now_ns // 1000))

    def _is_copy(self, replica: ReplicaHello, incarnation: str) -> bool:
        """Tell whether a directory that starts is not the replica's: an older start, or less than that has acked."""
        known = self._replicas.get(replica.replica)
        if known is None or incarnation == known.incarnation:
            return False
        if replica.start_count <= known.start_count:
            return True
        for name, lock in self.locks.items():
            file = lock.file
            if file and file.acked_token and replica.replica in file.in_sync:
                head = replica.heads.get(name)
                if head is None or head.follows < file.acked_token or head.version.seq < file.acked.seq:
                    return True
        return False

    def _contest(self, route: bytes, replica: str, hello: Hello, now_ns: int) -> bool:
        """Where the replica's session seems alive, ask whether it is; return whether its answer is waited for.

        If it is, the process that says hello runs on a copy. If not, the connection has not told us yet.
        """
        older = self._by_replica.get(replica)
        if older is None or not older.connected or older.incarnation == hello.incarnation:
            return False
        contender = self._contenders.get(replica)
        if contender is None or contender.hello.incarnation != hello.incarnation:
            until_ns = now_ns + min(self.ttl_ns, _PROBE_NS)
            self._contenders[replica] = Contender(route, hello, until_ns)
            heapq.heappush(self._timers, (until_ns, older.id, 0))
            self._send(older.route, Probe(self.epoch, older.id))
        else:
            contender.route, contender.hello = route, hello
        return True

    def _decide_contest(self, older: Session, now_ns: int, alive: bool) -> None:
        contender = self._contenders.get(older.member.replica) if older.member else None
        if contender is None or not (alive or now_ns >= contender.until_ns or not older.connected):
            return
        assert older.member is not None
        del self._contenders[older.member.replica]
        self._hello(contender.route, contender.hello, now_ns, alive)

    def _forget_contender(self, route: bytes) -> None:
        for replica, contender in list(self._contenders.items()):
            if contender.route == route:
                del self._contenders[replica]

    def _identify(self, replica: ReplicaHello, incarnation: str, is_copy: bool) -> tuple[str, ReplicaSeen | None]:
        """Return the replica id in force, and what is known of it.

        A copy gets an id of its own, the same for every hello of this start, and takes nothing from the replica that
        it was copied from.
        """
        if not is_copy:
            return replica.replica, self._replicas.get(replica.replica)
        copy = hashlib.blake2b(f"{replica.replica} {incarnation}".encode(), digest_size=8).hexdigest()
        return copy, self._replicas.get(copy)

    def _hello_problem(self, hello: Hello, running: Session | None, replica_id: str) -> str | None:
        if problem := client_name_problem(hello.name):
            return problem
        if hello.replica and not hello.replica.replica:
            return "its replica has no id"
        if hello.group not in ("", self.group):
            return (
                "its data directory belongs to another group; use an empty one "
                "(or has lockd lost its state? start it with --rebuild N)"
            )
        seen = max(hello.epoch, token_epoch(hello.highest_token))
        if seen > self.epoch or hello.highest_token > make_token(self.epoch, self._counter):
            return (
                f"lockd's state is older than what {hello.name} has seen (epoch {self.epoch} against {seen}); "
                "start lockd on its newest data directory"
            )
        if hello.epoch and self.epochs.get(hello.epoch, "") != hello.epoch_id:
            return (
                f"lockd's state does not know of the epoch {hello.epoch} that {hello.name} has seen: one of the two is "
                "an old copy, or was one; start lockd on its newest data directory"
            )
        same = running is not None and (
            running.incarnation == hello.incarnation
            or (hello.replica and running.member and running.member.replica == replica_id)
        )
        if running is not None and not same:
            return f"the name {hello.name} is in use by a live session; choose another with --name"
        if len(self.sessions) >= SESSIONS_MAX:
            return f"lockd serves at most {SESSIONS_MAX} sessions"
        if hello.replica:
            for file, head in hello.replica.heads.items():
                lock = self.locks.get(file)
                if lock is not None and lock.kind != "file":
                    return f"{file} is a lock without a file in this group"
                if lock is None and head.version != EMPTY:
                    return f"lockd does not know its file {file}; start lockd on its newest data directory"
        return None

    def _new_host(self, name: str) -> str:
        taken = {seen.host for seen in self._replicas.values()}
        number = 1 + sum(host.partition("#")[0] == name for host in taken)
        while (host := name if number == 1 else f"{name}#{number}") in taken:
            number += 1
        return host

    def _count_of(self, host: str) -> int:
        """Return how many of a host's events the locks know of."""
        clocks = [clock for lock in self.locks.values() for clock in (lock.writers_clock, lock.readers_clock)]
        return max([clock.get(host, 0) for clock in clocks], default=0)

    def _welcome(self, session: Session, now_ns: int) -> Welcome:
        return Welcome(
            self.epoch,
            self.epochs.get(self.epoch, ""),
            session.id,
            session.hello,
            self.group,
            self.ttl_ns // 1_000_000,
            session.host,
            session.member.replica if session.member else "",
            self._view(),
            now_ns // 1000,
        )

    def _view(self) -> tuple[Member, ...]:
        return tuple([session.member for session in self._by_replica.values() if session.member])

    def _tell_view(self, but: Session | None) -> None:
        view = View(self.epoch, self._view())
        for session in self._by_replica.values():
            if session is not but:
                self._send(session.route, view)

    def _end(self, session: Session, why: str, now_ns: int) -> None:
        self._persist(SessionEnded(session.id))
        self._out.append(Note(f"session {session.id} of {session.host} is over: {why}"))
        touched: dict[str, Lock] = {}
        for request, name in list(session.waits.items()):
            touched[name] = self._dequeue(session, request)
        for token, name in session.holds.items():
            lock = touched[name] = self.locks[name]
            hold = lock.holds.pop(token)
            self._log("expiry", lock, hold, now_ns)
            if lock.file and hold.mode == "exclusive":
                lock.file.clean, lock.file.astray = None, True
        del self.sessions[session.id]
        if self._by_route.get(session.route) is session:
            del self._by_route[session.route]
        if self._by_name.get(session.name) is session:
            del self._by_name[session.name]
        if session.member and self._by_replica.get(session.member.replica) is session:
            del self._by_replica[session.member.replica]
            self._contenders.pop(session.member.replica, None)
            for lock in self.locks.values():
                if lock.file:
                    lock.file.reports.pop(session.member.replica, None)
                    lock.file.settle_asked = False
                    touched[lock.name] = lock
            self._tell_view(None)
        self._send(session.route, Ended(self.epoch, session.id, why))
        for lock in touched.values():
            self._advance(lock, now_ns)

    # Locks

    def _acquire(self, session: Session, message: Acquire, since_ns: int, now_ns: int) -> None:
        request = message.request
        if request in session.waits:
            return
        if request in session.answers:
            self._send(session.route, session.answers[request])
            return
        for token, name in session.holds.items():
            hold = self.locks[name].holds[token]
            if hold.request == request and hold.answer is not None:
                self._send(session.route, hold.answer)
                return
        problem = self._acquire_problem(session, message)
        if problem:
            self._answer(session, request, Refused(self.epoch, request, problem))
            return
        if self._expected:
            self._early.setdefault((session.id, request), (message, since_ns))
            return
        lock = self.locks.get(message.lock)
        if lock is None:
            lock = self.locks[message.lock] = Lock(message.lock, message.kind)
            if message.kind == "file":
                in_sync = tuple(sorted(self._by_replica))
                lock.file = new_file(in_sync)
                self._persist(InSyncChanged(lock.name, in_sync))
        lock.queue[session.id, request] = Waiter(session.id, request, message.mode, since_ns)
        session.waits[request] = lock.name
        self.waiters += 1
        self._advance(lock, now_ns)
        if request in session.waits:
            deadline_ns = since_ns + message.wait_ms * 1_000_000
            if deadline_ns <= now_ns:
                self._wait_over(session, request, now_ns)
            else:
                heapq.heappush(self._timers, (deadline_ns, session.id, request))

    def _dequeue(self, session: Session, request: int) -> Lock:
        """Take a waiter out of its queue; return the lock."""
        lock = self.locks[session.waits.pop(request)]
        del lock.queue[session.id, request]
        self.waiters -= 1
        return lock

    def _acquire_problem(self, session: Session, message: Acquire) -> str | None:
        lock = self.locks.get(message.lock)
        if lock is not None:
            if lock.kind != message.kind:
                return f"{message.lock} is {'a file' if lock.kind == 'file' else 'a lock without a file'} here"
            if len(lock.queue) >= WAITERS_MAX:
                return f"{message.lock} has {WAITERS_MAX} waiters already"
        elif len(self.locks) >= LOCKS_MAX:
            return f"lockd keeps at most {LOCKS_MAX} locks"
        if message.kind == "plain":
            return lock_name_problem(message.lock)
        if session.member is None:
            return "a client without a replica cannot lock a file"
        return file_name_problem(message.lock) or (self._clash(message.lock) if lock is None else None)

    def _clash(self, name: str) -> str | None:
        parts = name.split("/")
        for end in range(1, len(parts)):
            above = self.locks.get("/".join(parts[:end]))
            if above is not None and above.kind == "file":
                return f"{above.name} is a file, so it cannot be a folder of {name}"
        for other in self.locks.values():
            if other.kind == "file" and other.name.startswith(name + "/"):
                return f"{name} is a folder, since {other.name} is a file"
        return None

    def _advance(self, lock: Lock, now_ns: int) -> None:
        """Grant to whoever stands first and can be served, as long as that is possible."""
        if self._expected:
            return
        file = lock.file
        if file and not lock.holds:
            self._admit_equals(lock, file)
            if self._wait_for_learner(lock, file, now_ns):
                return
        while (waiter := self._first(lock)) is not None:
            mode: Mode = "exclusive" if file and file.clean is None else waiter.mode
            if not lock.admits(mode):
                break
            self._grant(lock, waiter, mode, now_ns)
        if file is None:
            if not lock.holds and not lock.queue:
                self.locks.pop(lock.name, None)
        elif not lock.holds:
            untouched = file.clean == EMPTY and not file.clean_token
            if untouched and not (lock.queue or lock.writers_clock or lock.readers_clock or file.reports):
                # Nothing ever happened to it: the op that named it has failed.
                if self.locks.pop(lock.name, None) is not None:
                    self._persist(InSyncChanged(lock.name, ()))
            else:
                self._ask_to_settle(lock, file)

    def _wait_for_learner(self, lock: Lock, file: FileState, now_ns: int) -> bool:
        """Tell whether to hold back for a learner that stands first, so that it can catch up; once for each waiter.

        Without that, the next grant would always come before its report, and it would starve.
        """
        for waiter in lock.queue.values():
            session = self.sessions[waiter.session]
            if not session.connected:
                continue
            member = session.member
            if file.clean is None or member is None or member.replica in file.in_sync:
                return False
            learn = self._learn(lock, file, member.replica)
            if waiter.patience_ns is None and learn.sources:
                waiter.patience_ns = now_ns + self.ttl_ns // 3
                heapq.heappush(self._timers, (waiter.patience_ns, waiter.session, -waiter.request))
                self._send(session.route, learn)
            if waiter.patience_ns is not None and now_ns < waiter.patience_ns:
                return True
        return False

    def _first(self, lock: Lock) -> Waiter | None:
        for waiter in lock.queue.values():
            session = self.sessions[waiter.session]
            if not session.connected:
                continue
            if lock.file is None:
                return waiter
            member = session.member
            if member and member.replica in lock.file.in_sync:
                return waiter
        return None

    def _grant(self, lock: Lock, waiter: Waiter, mode: Mode, now_ns: int) -> None:
        session = self.sessions[waiter.session]
        self._dequeue(session, waiter.request)
        self._counter += 1
        token = make_token(self.epoch, self._counter)
        clean: Version | None = EMPTY
        in_sync: tuple[str, ...] = ()
        learners: tuple[str, ...] = ()
        if lock.file:
            clean, in_sync = lock.file.clean, lock.file.in_sync
            learners = tuple([replica for replica in self._by_replica if replica not in in_sync])
            lock.file.settle_asked = False
        newest = self._last_session
        lock.holds[token] = Hold(session.id, waiter.request, token, mode, waiter.mode, clean, now_ns, newest)
        session.holds[token] = lock.name
        clock = lock.writers_clock
        if waiter.mode == "exclusive":
            clock = merge(clock, lock.readers_clock)
        waited_ms = f"{(now_ns - waiter.since_ns) / 1e6:.3f}"
        self._out.append(
            LogGrant(
                GrantLine(
                    now_ns // 1000,
                    "grant",
                    lock.name,
                    mode,
                    token,
                    session.host,
                    (("waited_ms", waited_ms), ("queue", str(len(lock.queue)))),
                )
            )
        )
        grant = Grant(
            self.epoch,
            waiter.request,
            lock.name,
            token,
            mode,
            clock,
            clean,
            in_sync,
            learners,
            now_ns // 1000,
        )
        lock.holds[token].answer = grant
        self._answer(session, waiter.request, grant)

    def _release(self, session: Session, message: Release, now_ns: int) -> None:
        lock = self.locks.get(message.lock)
        hold = lock.holds.get(message.token) if lock else None
        if lock is None or hold is None or hold.session != session.id:
            if message.confirm:
                answer = session.answers.get(message.request) or Released(self.epoch, message.request, False)
                self._send(session.route, answer)
            return
        if message.changed:
            lock.writers_clock, lock.readers_clock = merge(lock.writers_clock, message.clock), {}
        else:
            lock.readers_clock = merge(lock.readers_clock, message.clock)
        self._let_go(lock, hold, message, now_ns)
        if message.confirm:
            self._answer(session, message.request, Released(self.epoch, message.request, True))
        self._advance(lock, now_ns)

    def _let_go(self, lock: Lock, hold: Hold, message: Release, now_ns: int) -> None:
        """Take the hold away, decide what the file is now, and keep that before the log tells of it."""
        session = self.sessions[hold.session]
        del lock.holds[hold.token]
        del session.holds[hold.token]
        file, version, admitted = lock.file, message.version, []
        if file and hold.mode == "exclusive" and session.member and version != hold.clean:
            if set(message.acked).issuperset(file.in_sync):
                file.clean, file.clean_token = version, hold.token
                file.acked, file.acked_token = version, hold.token
                # Who has begun a session since then may have acked in an earlier life.
                older = [replica for replica, its in self._by_replica.items() if its.id <= hold.newest]
                admitted = [replica for replica in message.acked if replica in older and replica not in file.in_sync]
            else:
                file.clean = None
        if message.clock:
            self._keep_left(lock)
        self._log("release", lock, hold, now_ns)
        self._admit(lock, admitted)

    def _keep_left(self, lock: Lock) -> None:
        acked, token = (lock.file.acked, lock.file.acked_token) if lock.file else (EMPTY, 0)
        self._out.append(KeepLeft(lock.name, lock.writers_clock, lock.readers_clock, acked, token))

    def _cancel(self, session: Session, request: int, now_ns: int) -> None:
        self._early.pop((session.id, request), None)
        if request in session.waits:
            self._advance(self._dequeue(session, request), now_ns)
            return
        for token, name in session.holds.items():
            lock = self.locks[name]
            hold = lock.holds[token]
            if hold.request == request:
                del lock.holds[token]
                del session.holds[token]
                self._log("release", lock, hold, now_ns)
                self._advance(lock, now_ns)
                return

    def _wait_over(self, session: Session, request: int, now_ns: int) -> None:
        if request not in session.waits:
            return
        lock = self._dequeue(session, request)
        self._answer(session, request, Refused(self.epoch, request, f"no grant in time: {self._why(lock, session)}"))
        # Those behind may go together with the holders that it had to wait for.
        self._advance(lock, now_ns)

    def _why(self, lock: Lock, session: Session) -> str:
        if lock.holds:
            holders = ", ".join(
                f"{self.sessions[hold.session].host} under token {format_token(hold.token)}"
                for hold in lock.holds.values()
            )
            return f"{lock.name} is held by {holders}"
        if lock.file and not any(replica in self._by_replica for replica in lock.file.in_sync):
            absent = ", ".join(self._replicas[replica].host for replica in lock.file.in_sync)
            return f"only absent clients hold the newest version of {lock.name}: {absent}; start one of them"
        if lock.file and session.member and session.member.replica not in lock.file.in_sync:
            return f"this replica is still catching up with {lock.name}; try again"
        return f"{lock.name} was wanted by others first"

    # In-sync sets

    def _set_in_sync(self, lock: Lock, replicas: tuple[str, ...]) -> None:
        assert lock.file is not None
        if replicas != lock.file.in_sync:
            lock.file.in_sync = replicas
            self._persist(InSyncChanged(lock.name, replicas))

    def _admit(self, lock: Lock, replicas: list[str]) -> None:
        if not replicas:
            return
        assert lock.file is not None
        self._set_in_sync(lock, (*lock.file.in_sync, *replicas))
        for replica in replicas:
            lock.file.reports.pop(replica, None)
            self._send(self._by_replica[replica].route, Admitted(self.epoch, lock.name))

    def _admit_equals(self, lock: Lock, file: FileState) -> None:
        """Admit, while the lock is free, the learners that are where the last holder left the file."""
        if file.clean is None or not file.reports:
            return
        equal = [
            replica
            for replica, (version, follows) in file.reports.items()
            if version == file.clean and follows >= file.clean_token and replica in self._by_replica
        ]
        self._admit(lock, equal)

    def _ask_to_settle(self, lock: Lock, file: FileState) -> None:
        """Somebody learns an unclean file, or its members differ, and nobody wants it: have a live member settle it."""
        if file.clean is not None:
            file.astray = False
            file.heads.clear()
            return
        if file.settle_asked or not (file.reports or file.astray) or self._first(lock) is not None:
            return
        for replica in file.in_sync:
            if replica in self._by_replica:
                file.settle_asked = True
                self._send(self._by_replica[replica].route, Settle(self.epoch, lock.name))
                return

    def _take_heads(self, replica: str, hello: ReplicaHello, now_ns: int) -> None:
        """Tell a replica that has joined which files it has to learn."""
        for lock in list(self.locks.values()):
            file = lock.file
            if file is None:
                continue
            head = hello.heads.get(lock.name)
            if read := hello.reads.get(lock.name):
                lock.readers_clock = merge(lock.readers_clock, read)
            if replica in file.in_sync:
                if head and not lock.writers_clock:
                    lock.writers_clock = head.clock
                if file.clean is None:
                    file.heads[replica] = head.version if head else EMPTY
                    file.astray = file.astray or len({version.hash for version in file.heads.values()}) > 1
                    file.settle_asked = False
                for learner in file.reports:
                    self._send(self._by_replica[learner].route, self._learn(lock, file, learner))
                self._advance(lock, now_ns)
            else:
                version, follows = (head.version, head.follows) if head else (EMPTY, 0)
                self._consider(lock, file, replica, version, follows, now_ns, joins=True)

    def _report(self, session: Session, message: Report, now_ns: int) -> None:
        lock = self.locks.get(message.file)
        if session.member is None or lock is None or lock.file is None:
            return
        replica = session.member.replica
        if replica in lock.file.in_sync:
            self._send(session.route, Admitted(self.epoch, message.file))
        else:
            lock.file.settle_asked = False  # whom we have asked may never have heard of it
            self._consider(lock, lock.file, replica, message.version, message.follows, now_ns)

    def _consider(
        self,
        lock: Lock,
        file: FileState,
        replica: str,
        version: Version,
        follows: int,
        now_ns: int,
        joins: bool = False,
    ) -> None:
        file.reports[replica] = (version, follows)
        self._advance(lock, now_ns)
        if replica not in file.in_sync and (joins or (file.clean is not None and not lock.holds)):
            self._send(self._by_replica[replica].route, self._learn(lock, file, replica))

    def _learn(self, lock: Lock, file: FileState, learner: str) -> Learn:
        sources = tuple([r for r in file.in_sync if r in self._by_replica and r != learner])
        return Learn(self.epoch, lock.name, sources)

    def _drop(self, session: Session, message: Drop, now_ns: int) -> None:
        lock = self.locks.get(message.file)
        hold = lock.holds.get(message.token) if lock else None
        if lock is None or lock.file is None or hold is None or hold.session != session.id:
            self._send(session.route, InSync(self.epoch, message.request, False, ()))
            return
        file, own = lock.file, session.member.replica if session.member else ""
        dropped = [r for r in file.in_sync if r in message.replicas and r != own]
        if dropped:
            self._set_in_sync(lock, tuple([r for r in file.in_sync if r not in dropped]))
            names = ", ".join(self._replicas[replica].host for replica in dropped)
            self._out.append(Note(f"{names} left the in-sync set of {lock.name}: no ack for {session.host}"))
        self._send(session.route, InSync(self.epoch, message.request, True, file.in_sync))
        for replica in dropped:
            if replica in self._by_replica:
                self._send(self._by_replica[replica].route, self._learn(lock, file, replica))

    def _give_up(self, session: Session, message: GiveUp, now_ns: int) -> None:
        """Go on without a file's in-sync replicas, all of them absent, from the live ones that have the most of it."""
        if (answer := session.answers.get(message.request)) is not None:
            self._send(session.route, answer)
            return
        lock = self.locks.get(message.file)
        problem, best = self._give_up_problem(lock, message)
        if lock is None or problem:
            self._answer(session, message.request, Refused(self.epoch, message.request, problem))
            return
        lost = ", ".join(sorted(message.hosts))
        self._set_in_sync(lock, best)
        self._out.append(Note(f"{session.name} gave up what {lost} alone had of {lock.name}"))
        self._answer(session, message.request, InSync(self.epoch, message.request, True, best))
        assert lock.file is not None
        lock.file.clean, lock.file.acked, lock.file.acked_token = None, EMPTY, 0
        self._keep_left(lock)
        for replica in best:
            lock.file.reports.pop(replica, None)
            self._send(self._by_replica[replica].route, Admitted(self.epoch, lock.name))
        self._advance(lock, now_ns)

    def _give_up_problem(self, lock: Lock | None, message: GiveUp) -> tuple[str, tuple[str, ...]]:
        """Return what speaks against it, and who has the most of the file: its head follows the largest token."""
        if lock is None or lock.file is None:
            return f"{message.file} is no file of this group", ()
        if self._expected:
            return "lockd has started anew, and waits for the others to come back; try again soon", ()
        live = [replica for replica in lock.file.in_sync if replica in self._by_replica]
        if live:
            names = ", ".join(self._replicas[replica].host for replica in live)
            return f"nothing of {lock.name} is lost: {names} is in sync with it, and here", ()
        absent = {self._replicas[replica].host for replica in lock.file.in_sync}
        if absent != set(message.hosts):
            return f"in sync with {lock.name} are {', '.join(sorted(absent))}; name them all", ()
        heads = {r: head for r, head in lock.file.reports.items() if r in self._by_replica}
        if not heads:
            return f"no replica that is here has reported what it has of {lock.name}; start one, and try again", ()
        most = max((follows, version.seq, version.hash) for version, follows in heads.values())
        best = [r for r, (version, follows) in heads.items() if (follows, version.seq, version.hash) == most]
        return "", tuple(best)

    # Effects

    def _send(self, route: bytes, message: FromLockd) -> None:
        self._out.append(Send(route, message))

    def _answer(self, session: Session, request: int, message: FromLockd) -> None:
        session.answers[request] = message
        if len(session.answers) > ANSWERS_KEPT_MAX:
            session.answers.popitem(last=False)
        self._out.append(Send(session.route, message))

    def _persist(self, *changes: Change) -> None:
        self._out.append(Persist(changes))

    def _log(self, event: GrantEvent, lock: Lock, hold: Hold, now_ns: int) -> None:
        client = self.sessions[hold.session].host
        held_ms = f"{(now_ns - hold.since_ns) / 1e6:.3f}"
        self._out.append(
            LogGrant(
                GrantLine(
                    now_ns // 1000,
                    event,
                    lock.name,
                    hold.mode,
                    hold.token,
                    client,
                    (("held_ms", held_ms),),
                )
            )
        )
