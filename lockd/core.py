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

import heapq
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, assert_never

from common.clock import Clock
from common.limits import INSPECT_ROUTES_MAX
from common.messages import (
    Acquire,
    Break,
    CallBack,
    Cancel,
    Drop,
    Ended,
    GiveUp,
    Goodbye,
    Hello,
    Here,
    Inspect,
    InUse,
    Lost,
    Member,
    Ping,
    Pong,
    Probe,
    Release,
    Report,
    Resume,
    Stale,
    ToLockd,
    View,
    Welcome,
)
from common.tokens import format_token
from lockd.effects import Change, Durable, Effect, Note, ReplicaSeen, SessionEnded, SessionOpened
from lockd.figures import Figures
from lockd.identities import Identities, new_host, taken
from lockd.inspection import inspection
from lockd.locks import Delay, FileState, Lock
from lockd.members import Members
from lockd.operators import break_hold, call_back
from lockd.queues import Queues
from lockd.restart import Restart
from lockd.shared import Over, Session, Shared

_RECONNECT_NS: Final = 25_000_000
"""A client whose connection is down has so long to come back; one that lives needs half of it on one machine."""
_LOOK_NS: Final = 50_000_000
"""So long after an Inspection another one along the same route is not answered: who asks repeats itself."""
_DUE_MAX: Final = 250
"""So much of what is due is done at once, a few milliseconds' work, before lockd looks at what has come meanwhile.

A session's end counts as one, and as one more for each lock that it holds or waits for.
"""
_STALL_NS: Final = 200_000_000
"""A timer that fires so late tells that lockd itself was stalled, not its clients."""

_GOODBYE: Final = Over("goodbye", "it said goodbye")
_CONNECTION: Final = Over("connection", "its connection is down")
_NEW_SESSION: Final = Over("replaced", "its client began a new session")
_NEW_PROCESS: Final = Over("replaced", "its replica began a new session")
_OTHER_SESSION: Final = Over("replaced", "its connection began another session")


@dataclass(slots=True)
class Contender:
    """A process that says hello as a replica whose session seems alive, until that is known."""

    route: bytes
    hello: Hello
    probe: int


class Lockd:
    """The lock server of one group."""

    def __init__(self, durable: Durable, ttl_ns: int, lock_delay_ns: int = 0) -> None:
        """Start in `durable.epoch` with leases of `ttl_ns` nanoseconds.

        A lock without a file that was lost with its holder's session is granted to nobody for `lock_delay_ns`.
        """
        self._shared = shared = Shared(
            durable.group,
            durable.epoch,
            dict(durable.epochs),
            ttl_ns,
            lock_delay_ns,
            dict(durable.replicas),
            durable.last_session,
            dict(durable.sessions),
        )
        self._identities = Identities(shared)
        self._queues = Queues(shared)
        self._members = Members(shared, self._queues)
        self._restart = Restart(shared, self._queues, durable)
        self._contenders: dict[str, Contender] = {}
        self._probes = 0
        self._timer_ns = 0
        self._looks: set[bytes] = set()
        self._looks_ns = 0
        for file, in_sync in durable.in_sync.items():
            lock = shared.locks[file] = Lock(file, "file", FileState(in_sync))
            if lock.file and (left := durable.left.get(file)) is not None:
                lock.writers_clock, lock.readers_clock = left.writers, left.readers
                if left.acked_token > durable.forgotten:
                    lock.file.acked, lock.file.acked_token = left.acked, left.acked_token

    @property
    def epoch(self) -> int:
        """Return the epoch in force."""
        return self._shared.epoch

    @property
    def locks(self) -> Mapping[str, Lock]:
        """Return all locks, by name."""
        return self._shared.locks

    @property
    def sessions(self) -> Mapping[int, Session]:
        """Return the open sessions."""
        return self._shared.sessions

    @property
    def figures(self) -> Figures:
        """Return what is counted."""
        return self._shared.figures

    @property
    def live_replicas(self) -> Mapping[str, Session]:
        """Return the sessions of the live replicas, by replica id."""
        return self._shared.by_replica

    @property
    def granted(self) -> int:
        """Return how many grants there were in this epoch."""
        return self._shared.counter

    @property
    def waiters(self) -> int:
        """Return how many requests stand in queues."""
        return self._shared.waiters

    @property
    def rebuilding(self) -> bool:
        """Tell whether replicas are still missing from which to rebuild the state."""
        return self._restart.rebuilding

    def begin(self, now_ns: int) -> list[Effect]:
        """Void the locks on files that the last lockd had granted; wait for its sessions, a lease at the most.

        Those without a file are for their holders to claim meanwhile.
        """
        shared = self._shared
        shared.out = []
        shared.figures.since_ns = now_ns
        self._restart.begin(now_ns)
        return shared.out

    def deadline_ns(self) -> int | None:
        """Return when `handle_timer` wants to be called, or None."""
        shared = self._shared
        return shared.timers[0][0] if shared.timers else None

    def handle(self, route: bytes, message: ToLockd, now_ns: int) -> list[Effect]:
        """Take in a message that came along `route` at `now_ns`, lockd's time in nanoseconds since 1970."""
        shared = self._shared
        shared.out = []
        if isinstance(message, Hello):
            self._hello(route, message, now_ns)
            return shared.out
        if isinstance(message, Inspect):
            if self._may_look(route, now_ns):
                shared.send(route, inspection(shared, self._queues.early, message, now_ns))
            return shared.out
        if isinstance(message, Goodbye) and message.session == 0:
            self._forget_contender(route)
            if (leaving := shared.by_route.get(route)) is not None:
                self._end_for_good(leaving, _GOODBYE, now_ns)
            return shared.out
        if message.epoch != shared.epoch:
            if isinstance(message, Goodbye):
                self._restart.arrived(now_ns, {message.session} & shared.expected.keys())
            shared.figures.stale += 1
            shared.send(route, Stale(shared.epoch))
            return shared.out
        session = shared.sessions.get(message.session)
        if session is None or session.route != route:
            shared.send(route, Ended(shared.epoch, message.session, "this session is not open"))
            return shared.out
        session.deadline_ns, session.seen_ns = now_ns + shared.ttl_ns, now_ns
        if not session.connected:
            self._reconnected(session, now_ns)
        match message:
            case Acquire():
                self._queues.acquire(session, message, now_ns, now_ns)
            case Release():
                self._queues.release(session, message, now_ns)
            case Ping():
                shared.send(route, Pong(shared.epoch, message.request, now_ns // 1000))
            case Cancel():
                self._queues.cancel(session, message.request, now_ns)
            case Drop():
                self._members.drop(session, message, now_ns)
            case Report():
                self._members.report(session, message, now_ns)
            case GiveUp():
                self._members.give_up(session, message, now_ns)
            case Resume():
                self._resume(session, message, now_ns)
            case InUse():
                self._queues.in_use(session, message, now_ns)
            case Break():
                break_hold(shared, self._queues, session, message, now_ns)
            case CallBack():
                call_back(shared, self._queues, session, message)
            case Here():
                self._here(session, message, now_ns)
            case Goodbye():
                self._end_for_good(session, _GOODBYE, now_ns)
            case _:
                assert_never(message)
        return shared.out

    def disconnected(self, route: bytes, now_ns: int) -> list[Effect]:
        """Take in that the connection along `route` is down: its client is dead, or back in a moment.

        Until then nothing is granted to it. A lock without a file protects what we cannot see, so that its
        holder keeps its whole lease.
        """
        shared = self._shared
        shared.out = []
        self._forget_contender(route)
        session = shared.by_route.get(route)
        if session is not None:
            session.connected = False
            # Those behind it wait no more for one who cannot be served now.
            for name in dict.fromkeys(session.waits.values()):
                self._queues.advance(shared.locks[name], now_ns)
            claims = session.claimed and shared.expected
            if not claims and all(shared.locks[name].file for name in session.holds.values()):
                session.deadline_ns = min(session.deadline_ns, now_ns + _RECONNECT_NS)
                self._ring_at(session, session.deadline_ns)
        return shared.out

    def _may_look(self, route: bytes, now_ns: int) -> bool:
        """Tell whether an Inspection may go along a route: not so many that answers pile up, or hold up grants."""
        if now_ns >= self._looks_ns:
            self._looks, self._looks_ns = set(), now_ns + _LOOK_NS
        if route in self._looks or len(self._looks) >= INSPECT_ROUTES_MAX:
            return False
        self._looks.add(route)
        return True

    def handle_timer(self, now_ns: int) -> list[Effect]:
        """Expire what is due at `now_ns`, or a part of it; the driver has drained its inbox before."""
        shared = self._shared
        shared.out = []
        stall_ns = now_ns - max(shared.timers[0][0], self._timer_ns) if shared.timers else 0
        if stall_ns <= _STALL_NS:
            stall_ns = 0
        else:
            shared.fault(now_ns, f"stalled for {stall_ns / 1e9:.3f} s; all leases are longer by that")
            for session in shared.sessions.values():
                # Nobody knows when the stall began: each has the time to send one more ping.
                session.deadline_ns = max(session.deadline_ns + stall_ns, now_ns + shared.ttl_ns // 2)
        ended: list[tuple[Session, Over]] = []
        left = _DUE_MAX
        while left > 0 and shared.timers and shared.timers[0][0] <= now_ns:
            left -= 1
            set_ns, session_id, request, name = heapq.heappop(shared.timers)
            if name:
                if (lock := shared.locks.get(name)) is not None:
                    self._queues.advance(lock, now_ns)
                continue
            if session_id == 0 and request:
                for lock in [lock for lock in shared.locks.values() if lock.file is None]:
                    self._queues.advance(lock, now_ns)
                continue
            if session_id == 0:
                if stall_ns:
                    shared.ring(now_ns + shared.ttl_ns // 2, 0, 0, "")
                    continue
                self._restart.absent(now_ns)
                continue
            due = shared.sessions.get(session_id)
            if due is None:
                continue
            if request:
                self._queues.wait_over(due, request, now_ns)
            elif set_ns == due.timer_ns:
                due.timer_ns = float("inf")
                if due.deadline_ns > now_ns:
                    self._ring_at(due, due.deadline_ns)
                elif due.member is not None:
                    self._end_for_good(due, self._lease_over(due), now_ns)
                else:
                    ended.append((due, self._lease_over(due)))
                    due.connected = False  # so that it is granted nothing more
                    left -= len(due.holds) + len(due.waits)
        # Thousands may end at once, and each change of the state costs a sync of the disk.
        if ended:
            shared.persist(*[SessionEnded(session.id) for session, _ in ended])
        for session, why in ended:
            if session.id in shared.sessions:  # else another one, that came in, has taken its place
                self._forget(session, why, now_ns)
        self._timer_ns = now_ns
        return shared.out

    def _lease_over(self, session: Session) -> Over:
        """Return why a session is over of which nothing was heard in time."""
        if not session.connected:
            return _CONNECTION
        return Over("lease", f"its lease of {self._shared.ttl_ns / 1e9:g} s ran out")

    def stop(self, now_ns: int) -> list[Effect]:
        """End in good order: every lock on a file that is held is void, and grants.log says so.

        Those without a file are for their holders to claim from the next lockd.
        """
        shared = self._shared
        shared.out = []
        for lock in [lock for lock in shared.locks.values() if lock.file]:
            for hold in list(lock.holds.values()):
                shared.lose(lock, hold, "stop", now_ns)
            lock.holds.clear()
        return shared.out

    def _ring_at(self, session: Session, at_ns: int) -> None:
        """Have the timer ring for a session's lease at `at_ns`, or earlier."""
        if at_ns < session.timer_ns:
            session.timer_ns = at_ns
            self._shared.ring(at_ns, session.id, 0, "")

    def _hello(self, route: bytes, hello: Hello, now_ns: int, is_copy: bool = False) -> None:
        """Open a session; `is_copy` where the replica's own process is known to be alive."""
        shared = self._shared
        if self._restart.rebuilding:
            for survivor, theirs in self._restart.survived(route, hello, now_ns):
                self._hello(survivor, theirs, now_ns)
            return
        running = shared.by_process.get((hello.name, hello.incarnation))
        if running and hello.request < running.hello:
            return  # it was under way for long, and its client has said another one since
        if running and running.hello == hello.request:
            shared.by_route.pop(running.route, None)
            shared.by_route[route] = running
            running.route, running.seen_ns = route, now_ns
            running.deadline_ns = max(running.deadline_ns, now_ns + shared.ttl_ns)
            shared.send(route, self._welcome(running, now_ns, running.claimed or bool(shared.expected)))
            self._members.tell_what_to_learn(running)
            self._queues.say_again(running, now_ns)
            if not running.connected:
                self._reconnected(running, now_ns)
            return
        replica = hello.replica
        replica_id, known = "", None
        if replica:
            is_copy = is_copy or self._identities.is_copy(replica, hello.incarnation)
            if not is_copy and self._contest(route, replica.replica, hello):
                return
            replica_id, known = self._identities.identify(replica, hello.incarnation, is_copy)
        problem = self._identities.hello_problem(hello, known)
        if problem:
            shared.refuse(route, hello, problem, now_ns)
            return
        changes: list[Change] = []
        believed: dict[int, Lost] = {}
        if running:
            # It has not heard of that session, so it goes on with what it claims until it hears of this one.
            for held in hello.held:
                if held.token in running.holds:
                    lost = Lost(shared.epoch, held.lock, held.token, "it was claimed in a session that has ended")
                    believed[held.token] = lost
            self._end(running, _NEW_SESSION, now_ns, believed)
        if replica and (older := shared.by_replica.get(replica_id)):
            self._end(older, _NEW_PROCESS, now_ns)
        shared.last_session += 1
        number, host, member = shared.last_session, hello.name, None
        reads: Mapping[str, Clock] = {}
        if replica:
            if replica_id != replica.replica:
                shared.out.append(
                    Note(f"{hello.name} runs on a copied directory, or on an old one; its replica is {replica_id} now")
                )
            reads = self._identities.reads_of(replica)
            hosts = {seen.host for seen in shared.replicas.values()}
            before = host = known.host if known else new_host(hello.name, hosts)
            if self._identities.has_lost_events(replica, host):
                # Others know more of its events than it does: these must not be counted twice.
                host = new_host(hello.name, hosts | {before})
                shared.out.append(Note(f"{before} has lost its newest events; it counts anew, as {host}"))
            seen = ReplicaSeen(replica_id, hello.name, host, replica.start_count, hello.incarnation)
            for each in (seen, taken(before)) if host != before else (seen,):
                shared.replicas[each.replica] = each
                changes.append(each)
            member = Member(replica_id, host, replica.endpoint, hello.incarnation)
        # Until it says more, and so has heard of this session, it may go by the lease of its last one.
        deadline_ns = max(now_ns + shared.ttl_ns, self._restart.last_leases_ns)
        session = Session(
            number, hello.name, host, route, hello.incarnation, hello.request, member, deadline_ns, now_ns
        )
        if (other := shared.by_route.get(route)) is not None:
            self._end(other, _OTHER_SESSION, now_ns)
        shared.sessions[number] = shared.by_route[route] = session
        shared.by_process[hello.name, hello.incarnation] = session
        shared.by_name.setdefault(hello.name, {})[number] = session
        shared.figures.sessions_opened += 1
        self._ring_at(session, now_ns + shared.ttl_ns)
        if member:
            shared.by_replica[member.replica] = session
        changes.append(SessionOpened(number, hello.name, member.replica if member else "", hello.incarnation))
        shared.persist(*changes)
        shared.out.append(Note(f"session {number} of {host} is open"))
        claimed = bool(shared.expected)
        shared.send(route, self._welcome(session, now_ns, claimed))
        for token, lost in believed.items():
            session.broken[token] = lost
            shared.send(route, lost)
        if member and replica:
            self._members.tell_view(session)
            self._members.take_heads(member.replica, replica, reads, now_ns)
        if shared.expected:
            self._restart.claim(session, hello)
        self._restart.back(session, now_ns)

    def _reconnected(self, session: Session, now_ns: int) -> None:
        session.connected = True
        self._queues.back(session, now_ns)

    def _resume(self, session: Session, message: Resume, now_ns: int) -> None:
        """Say again what the old connection may have lost and nobody asks for."""
        shared = self._shared
        if session.member is not None:
            shared.send(session.route, View(shared.epoch, self._members.view()))
            self._members.tell_what_to_learn(session)
        self._queues.say_again(session, now_ns)
        shared.send(session.route, Pong(shared.epoch, message.request, now_ns // 1000))

    def _contest(self, route: bytes, replica: str, hello: Hello) -> bool:
        """Where the replica's session has not ended, ask whether its process is alive; return whether that was so.

        If it is, the process that says hello runs on a copy. If not, the session ends with its lease.
        """
        shared = self._shared
        older = shared.by_replica.get(replica)
        if older is None or older.incarnation == hello.incarnation:
            return False
        contender = self._contenders.get(replica)
        if contender is None or contender.hello.incarnation != hello.incarnation:
            self._probes += 1
            self._contenders[replica] = Contender(route, hello, self._probes)
            shared.send(older.route, Probe(shared.epoch, older.id, self._probes))
        else:
            contender.route, contender.hello = route, hello
        return True

    def _here(self, older: Session, message: Here, now_ns: int) -> None:
        """Take in that a session's process is alive: who claims its place runs on a copy."""
        replica = older.member.replica if older.member else ""
        contender = self._contenders.get(replica)
        if contender is not None and contender.probe == message.request:
            del self._contenders[replica]
            self._hello(contender.route, contender.hello, now_ns, is_copy=True)

    def _end_for_good(self, session: Session, why: Over, now_ns: int) -> None:
        """End a session whose process is gone; who waits to take its place comes in."""
        contender = self._contenders.pop(session.member.replica, None) if session.member else None
        self._end(session, why, now_ns)
        if contender is not None:
            self._hello(contender.route, contender.hello, now_ns)

    def _forget_contender(self, route: bytes) -> None:
        for replica, contender in list(self._contenders.items()):
            if contender.route == route:
                del self._contenders[replica]

    def _welcome(self, session: Session, now_ns: int, claimed: bool) -> Welcome:
        shared = self._shared
        return Welcome(
            shared.epoch,
            shared.epoch_id,
            shared.changes,
            session.id,
            session.hello,
            shared.group,
            shared.ttl_ns // 1_000_000,
            session.host,
            session.member.replica if session.member else "",
            self._members.view(),
            now_ns // 1000,
            shared.lock_delay_ns // 1_000_000,
            claimed,
        )

    def _end(self, session: Session, why: Over, now_ns: int, believed: Collection[int] = ()) -> None:
        """End a session, durably before anybody hears of it; its client believes that it has these tokens' locks."""
        self._shared.persist(SessionEnded(session.id))
        self._forget(session, why, now_ns, believed)

    def _forget(self, session: Session, why: Over, now_ns: int, believed: Collection[int] = ()) -> None:
        shared = self._shared
        shared.figures.sessions_ended[why.ending] += 1
        text = f"session {session.id} of {session.host} is over: {why.text}"
        if why.ending == "goodbye" or not (session.member or session.holds):
            shared.out.append(Note(text))
        else:
            shared.fault(now_ns, text)
        touched: dict[str, Lock] = {}
        for request, name in list(session.waits.items()):
            touched[name] = self._queues.dequeue(session, request)
        for token, name in session.holds.items():
            lock = touched[name] = shared.locks[name]
            hold = lock.holds.pop(token)
            shared.lose(lock, hold, "session", now_ns)
            if why.ending != "goodbye":
                over_ns = max(now_ns, session.deadline_ns) if token in believed else now_ns
                shared.delay(lock, token, Delay(session.id, hold.mode, over_ns + shared.lock_delay_ns))
            shared.figures.fault(now_ns, f"{session.host} lost {name}, held under token {format_token(token)}")
            if lock.file and hold.mode == "exclusive":
                lock.file.clean, lock.file.astray, lock.file.settle_ns = None, True, 0
        if why.ending == "goodbye":
            for token, lost in session.broken.items():
                delayed = shared.locks.get(lost.lock)
                if delayed is not None and delayed.delays.pop(token, None) is not None:
                    touched[delayed.name] = delayed  # it has stopped with all that it had
        del shared.sessions[session.id]
        if shared.by_route.get(session.route) is session:
            del shared.by_route[session.route]
        del shared.by_name[session.name][session.id]
        if not shared.by_name[session.name]:
            del shared.by_name[session.name]
        if shared.by_process.get((session.name, session.incarnation)) is session:
            del shared.by_process[session.name, session.incarnation]
        if session.member and shared.by_replica.get(session.member.replica) is session:
            del shared.by_replica[session.member.replica]
            shared.last_seen[session.member.replica] = session.seen_ns
            self._contenders.pop(session.member.replica, None)
            for lock in shared.locks.values():
                if lock.file:
                    lock.file.reports.pop(session.member.replica, None)
                    if lock.file.settler == session.member.replica:
                        lock.file.settle_ns = 0
                    touched[lock.name] = lock
            self._members.tell_view(None)
        shared.send(session.route, Ended(shared.epoch, session.id, why.text))
        for lock in touched.values():
            self._queues.advance(lock, now_ns)
