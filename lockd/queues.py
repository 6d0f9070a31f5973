"""lockd's core: the queues of all locks, and who may be granted what. No I/O.

Whatever may let somebody through (a release, an end of session, an admission) ends in `advance`, which grants from
the front of the queue. A file's lock goes to members of its in-sync set alone; so who is in it is decided here too.
"""

from collections.abc import Iterator
from itertools import takewhile
from typing import Final

from common.clock import merge
from common.grantlog import GrantLine
from common.limits import INSPECT_NAMES_MAX, LOCKS_MAX, SEMAPHORE_MAX, WAITERS_MAX
from common.messages import (
    Acquire,
    Admitted,
    Cause,
    Grant,
    InUse,
    Learn,
    Lost,
    Mode,
    Recall,
    Refused,
    Release,
    Released,
    Settle,
)
from common.names import file_name_problem, lock_name_problem
from common.records import EMPTY, Version
from common.tokens import format_token, make_token
from lockd.deadlocks import Look
from lockd.effects import InSyncChanged, KeepLeft, LogGrant, Note
from lockd.locks import Delay, FileState, Hold, Lock, Waiter, new_file
from lockd.shared import Session, Shared

_TRY_NS_MAX: Final = 200_000_000
"""A try waits so long at the most for what may be kept unused: a client that keeps it answers within milliseconds."""


class Queues:
    """All locks, their waiters and holds."""

    def __init__(self, shared: Shared) -> None:
        """Work on the shared state."""
        self._shared = shared
        self.early: dict[tuple[int, int], tuple[Acquire, int]] = {}
        """What was asked for, and when, while sessions of the last lockd are expected."""
        self.early_releases: dict[tuple[int, int], Release] = {}
        """What was given back meanwhile: of locks that are claimed, and not taken over yet."""

    def acquire(self, session: Session, message: Acquire, since_ns: int, now_ns: int) -> None:
        """Take in a request for a lock, asked for at `since_ns`: grant it, let it wait, or refuse it."""
        shared = self._shared
        request = message.request
        if request in session.waits:
            return
        if request in session.answers:
            shared.send(session.route, session.answers[request])
            return
        if (token := session.granted.get(request)) is not None:
            hold = shared.locks[session.holds[token]].holds[token]
            assert hold.answer is not None
            shared.send(session.route, hold.answer)
            return
        lock = shared.locks.get(message.lock)
        problem = self._acquire_problem(session, message, lock)
        if problem:
            self._refuse(session, request, problem, "request")
            return
        if shared.expected:
            if (session.id, request) not in self.early and len(self.early) >= LOCKS_MAX:
                reason = (
                    f"lockd has just started, and keeps at most {LOCKS_MAX} requests until it grants; try again later"
                )
                self._refuse(session, request, reason, "request")
                return
            self.early.setdefault((session.id, request), (message, since_ns))
            return
        waiter = Waiter(session.id, request, message.mode, since_ns, message.owner, message.converts, message.sticky)
        if lock is None:
            lock = shared.locks[message.lock] = Lock(message.lock, message.kind, limit=message.limit)
            if message.kind == "file":
                in_sync = tuple(sorted(shared.by_replica))
                lock.file = new_file(in_sync)
                shared.persist(InSyncChanged(lock.name, in_sync))
            elif session.connected and now_ns >= shared.plain_from_ns:
                self._grant(lock, session, waiter, message.mode, now_ns)  # nobody holds it, nor stands before
                return
        self._enqueue(lock, session, waiter)
        self.advance(lock, now_ns)
        if request not in session.waits:
            return
        deadline_ns = since_ns + message.wait_ms * 1_000_000
        if deadline_ns <= now_ns:
            if not self._may_come_back(lock, waiter):
                self.wait_over(session, request, now_ns)
                return
            waiter.tries, deadline_ns = True, now_ns + min(_TRY_NS_MAX, shared.ttl_ns)
        shared.ring(deadline_ns, session.id, request, "")
        if message.converts or message.owner in session.owned:
            self._refuse_deadlocked([waiter], now_ns)

    def _may_come_back(self, lock: Lock, waiter: Waiter) -> bool:
        """Tell whether nothing is known to be in a waiter's way but what may be kept unused, and was recalled."""
        if lock.delays or self.first(lock) is not waiter:
            return False
        in_the_way = [hold for hold in lock.holds.values() if hold.token != waiter.converts]
        connected = all(self._shared.sessions[hold.session].connected for hold in in_the_way)
        return bool(in_the_way) and connected and all(hold.sticky and hold.recalled for hold in in_the_way)

    def _enqueue(self, lock: Lock, session: Session, waiter: Waiter) -> None:
        """Put a waiter into its place: the last one; of one that converts a hold, before all who wait for that."""
        key = session.id, waiter.request
        if waiter.converts:
            ahead = {(each.session, each.request): each for each in _conversions(lock)}
            lock.queue = {**ahead, key: waiter, **lock.queue}
        else:
            lock.queue[key] = waiter
        session.waits[waiter.request] = lock.name
        if waiter.owner:
            session.waiting[waiter.owner] = waiter.request
        self._shared.waiters += 1

    def dequeue(self, session: Session, request: int) -> Lock:
        """Take a waiter out of its queue; return the lock."""
        shared = self._shared
        lock = shared.locks[session.waits.pop(request)]
        session.waiting.pop(lock.queue.pop((session.id, request)).owner, None)
        shared.waiters -= 1
        return lock

    def _refuse(self, session: Session, request: int, reason: str, cause: Cause) -> None:
        """Answer a request for a lock by no."""
        shared = self._shared
        if cause == "wait" or cause == "deadlock":
            shared.figures.refusals[cause] += 1
        else:
            shared.figures.refusals["acquire"] += 1
        shared.answer(session, request, Refused(shared.epoch, request, reason, cause))

    def _refuse_deadlocked(self, waiters: list[Waiter], now_ns: int) -> None:
        """Refuse, of these waiters, each whose wait closes a cycle: as few as it takes."""
        shared = self._shared

        def only_waits(waiter: Waiter) -> bool:
            return not waiter.converts and waiter.owner not in shared.sessions[waiter.session].owned

        look = Look(shared)
        # Who holds nothing is in a cycle only by its place in a queue: mostly that goes on without it.
        for waiter in sorted(waiters, key=only_waits):
            session = shared.sessions[waiter.session]
            if waiter.request not in session.waits:
                continue  # it was granted, when another one was refused
            cycle = look.cycle(waiter)
            if cycle is not None:
                lock = self.dequeue(session, waiter.request)
                shared.fault(now_ns, f"deadlock: {cycle}; {session.host} is refused")
                self._refuse(session, waiter.request, f"deadlock: {cycle}", "deadlock")
                self._without(lock, waiter, now_ns)
                look = Look(shared)

    def _without(self, lock: Lock, waiter: Waiter, now_ns: int) -> None:
        """Go on after a waiter has left the queue without a grant: those behind may fit in now."""
        self.advance(lock, now_ns)
        hold = lock.holds.get(waiter.converts)
        if hold is not None and hold.owner != waiter.owner:
            # It would have taken over a hold whose own owner may wait for what it keeps from others now.
            self._refuse_deadlocked(list(lock.queue.values()), now_ns)

    def back(self, session: Session, now_ns: int) -> None:
        """Go on with a client whose connection is up again: grant what it waits for, look whether that can end."""
        locks = self._shared.locks
        for name in dict.fromkeys(session.waits.values()):
            self.advance(locks[name], now_ns)
        waiters = [locks[name].queue[session.id, request] for request, name in session.waits.items()]
        self._refuse_deadlocked(waiters, now_ns)

    def _acquire_problem(self, session: Session, message: Acquire, lock: Lock | None) -> str | None:
        shared = self._shared
        if lock is None:
            problem = file_name_problem(message.lock) if message.kind == "file" else lock_name_problem(message.lock)
            if problem:
                return problem  # before anything that repeats the name, which can have any length
            if len(shared.locks) >= LOCKS_MAX:
                return f"lockd keeps at most {LOCKS_MAX} locks"
        else:
            if lock.kind != message.kind:
                return f"{message.lock} is {'a file' if lock.kind == 'file' else 'a lock without a file'} here"
            if lock.limit != message.limit:
                here, asked = _limited(lock.limit), _limited(message.limit)
                return f"{message.lock} is {here} here, not {asked}; all who use it have to ask for the same"
            if len(lock.queue) >= WAITERS_MAX:
                return f"{message.lock} has {WAITERS_MAX} waiters already"
        if message.owner in session.waiting:
            return f"this owner waits for {shared.locks[session.waits[session.waiting[message.owner]]].name} already"
        if message.converts:
            token = format_token(message.converts)
            if not shared.expected and session.holds.get(message.converts) != message.lock:
                return f"{message.lock} is not held under token {token}, so that cannot be converted"
            if lock and any(each.converts == message.converts for each in _conversions(lock)):
                return f"the hold of {message.lock} under token {token} is being converted already"
        if message.kind == "file" and (message.limit or message.converts):
            return "a file's lock is no semaphore, and is not converted"
        if message.limit and message.converts:
            return "a semaphore is not converted, since it has one mode only"
        if message.limit and (message.mode == "exclusive" or message.limit > SEMAPHORE_MAX):
            return f"a semaphore is taken shared, by 1 to {SEMAPHORE_MAX} at once"
        if message.kind == "plain":
            return None
        if session.member is None:
            return "a client without a replica cannot lock a file"
        return self._clash(message.lock) if lock is None else None

    def _clash(self, name: str) -> str | None:
        shared = self._shared
        parts = name.split("/")
        for end in range(1, len(parts)):
            above = shared.locks.get("/".join(parts[:end]))
            if above is not None and above.kind == "file":
                return f"{above.name} is a file, so it cannot be a folder of {name}"
        for other in shared.locks.values():
            if other.kind == "file" and other.name.startswith(name + "/"):
                return f"{name} is a folder, since {other.name} is a file"
        return None

    def advance(self, lock: Lock, now_ns: int) -> None:
        """Grant to whoever stands first and can be served, as long as that is possible."""
        shared = self._shared
        if shared.expected:
            return
        file = lock.file
        if file and not lock.holds:
            self._admit_equals(lock, file)
            if self._wait_for_learner(lock, file, now_ns):
                return
        if lock.delays:
            for token in [token for token, delay in lock.delays.items() if delay.until_ns <= now_ns]:
                del lock.delays[token]
        delayed = file is None and now_ns < shared.plain_from_ns
        while lock.queue and not delayed and (waiter := self.first(lock)) is not None:
            mode = _mode_of(lock, waiter)
            if not lock.admits(mode, waiter.converts):
                self.recall(lock, waiter.converts)
                break
            session = shared.sessions[waiter.session]
            self.dequeue(session, waiter.request)
            self._grant(lock, session, waiter, mode, now_ns)
        if file is None:
            if not lock.holds and not lock.queue and not lock.delays:
                shared.locks.pop(lock.name, None)
        elif not lock.holds:
            untouched = file.clean == EMPTY and not file.clean_token
            if untouched and not (lock.queue or lock.writers_clock or lock.readers_clock or file.reports):
                # Nothing ever happened to it: the op that named it has failed.
                if shared.locks.pop(lock.name, None) is not None:
                    shared.persist(InSyncChanged(lock.name, ()))
            else:
                self._ask_to_settle(lock, file, now_ns)

    def _wait_for_learner(self, lock: Lock, file: FileState, now_ns: int) -> bool:
        """Tell whether to hold back for a learner that stands before all members, so that it can catch up.

        Without that, the next grant would always come before its report, and it would starve. It is the next one's
        turn then, and after a pause: those that do not catch up take a tenth of the time at the most.
        """
        shared = self._shared
        if file.clean is None:
            return False
        learners: list[str] = []
        for waiter in lock.queue.values():
            session = shared.sessions[waiter.session]
            if not session.connected:
                continue
            member = session.member
            if member is None or member.replica in file.in_sync:
                break
            if member.replica not in learners:
                learners.append(member.replica)
        until_ns, again_ns, learner = file.patience
        if now_ns < until_ns:
            return learner in learners
        if not learners or now_ns < again_ns:
            return False
        turn = learners.index(learner) + 1 if learner in learners else 0
        learner = learners[turn % len(learners)]
        learn = self.learn(lock, file, learner)
        if not learn.sources:
            return False
        file.patience = now_ns + shared.ttl_ns // 3, now_ns + 10 * shared.ttl_ns // 3, learner
        shared.ring(file.patience[0], 0, 0, lock.name)
        shared.send(shared.by_replica[learner].route, learn)
        return True

    def first(self, lock: Lock) -> Waiter | None:
        """Return the first waiter that can be served, None if there is none."""
        for waiter in lock.queue.values():
            if self._shared.can_be_served(lock, waiter):
                return waiter
        return None

    def _grant(self, lock: Lock, session: Session, waiter: Waiter, mode: Mode, now_ns: int) -> None:
        """Grant a lock that is free for a waiter who stands in no queue any more."""
        shared = self._shared
        if waiter.converts:
            converted = lock.holds[waiter.converts]
            shared.let_go(lock, converted)
            shared.log("release", lock, converted, now_ns)
        shared.counter += 1
        figures = shared.figures
        figures.grants[mode] += 1
        figures.waits.add((now_ns - waiter.since_ns) // 1000)
        token = make_token(shared.epoch, shared.counter)
        clean: Version | None = EMPTY
        in_sync: tuple[str, ...] = ()
        learners: tuple[str, ...] = ()
        if lock.file:
            clean, in_sync = lock.file.clean, lock.file.in_sync
            learners = tuple([replica for replica in shared.by_replica if replica not in in_sync])
            if clean is None:
                figures.unclean_grants += 1
                figures.fault(now_ns, f"{session.host} was granted {lock.name} unclean, and settles it")
        newest = shared.last_session
        # Who may keep it does, until others want it: where they wait already, it would only have to be asked.
        sticky = waiter.sticky and not lock.queue and not lock.limit and not learners
        hold = Hold(
            session.id,
            waiter.request,
            token,
            mode,
            waiter.mode,
            clean,
            now_ns,
            newest,
            waiter.since_ns,
            waiter.owner,
            sticky,
            waiter.converts,
        )
        shared.hold(lock, hold)
        clock = lock.writers_clock
        if waiter.mode == "exclusive":
            clock = merge(clock, lock.readers_clock)
        waited_ms = f"{(now_ns - waiter.since_ns) / 1e6:.3f}"
        shared.out.append(
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
            shared.epoch,
            waiter.request,
            lock.name,
            token,
            mode,
            clock,
            clean,
            in_sync,
            learners,
            now_ns // 1000,
            sticky,
        )
        hold.answer = grant
        shared.answer(session, waiter.request, grant)

    def release(self, session: Session, message: Release, now_ns: int) -> None:
        """Take a hold back, with what its holder left; the next in turn follow."""
        shared = self._shared
        lock = shared.locks.get(message.lock)
        hold = lock.holds.get(message.token) if lock else None
        if lock is None and session.claimed and shared.expected:
            self.early_releases.setdefault((session.id, message.request), message)
            return
        if lock is None or hold is None or hold.session != session.id:
            if session.broken.pop(message.token, None) and lock is not None:
                lock.delays.pop(message.token, None)  # its holder has stopped
                self.advance(lock, now_ns)
            if message.confirm:
                answer = session.answers.get(message.request) or Released(shared.epoch, message.request, False)
                shared.send(session.route, answer)
            return
        if message.changed:
            lock.writers_clock, lock.readers_clock = merge(lock.writers_clock, message.clock), {}
        else:
            lock.readers_clock = merge(lock.readers_clock, message.clock)
        if message.keep:
            self._keep(lock, hold, message, now_ns)
            return
        self._let_go(lock, hold, message, now_ns)
        if message.confirm:
            shared.answer(session, message.request, Released(shared.epoch, message.request, True))
        self.advance(lock, now_ns)

    def _keep(self, lock: Lock, hold: Hold, message: Release, now_ns: int) -> None:
        """Take in what an op has left under a lock that stays held.

        So what lockd knows of a file is never long out of date: a copied directory is told from its original, and the
        end of the holder leaves no more to settle than it ever did.
        """
        figures, file = self._shared.figures, lock.file
        if hold.kept:
            figures.kept_ops += 1
        else:
            hold.kept = True
            figures.ops.add((now_ns - hold.asked_ns) // 1000)
        if file and hold.mode == "exclusive" and message.version != hold.clean:
            if set(message.acked).issuperset(file.in_sync):
                hold.clean = file.clean = file.acked = message.version
                file.clean_token = file.acked_token = hold.token
            else:
                hold.clean = file.clean = None
        if message.clock:
            self.keep_left(lock)

    def _let_go(self, lock: Lock, hold: Hold, message: Release, now_ns: int) -> None:
        """Take the hold away, decide what the file is now, and keep that before the log tells of it."""
        shared = self._shared
        session = shared.sessions[hold.session]
        self._take_back(lock, hold)
        file, version, admitted = lock.file, message.version, []
        if file and hold.mode == "exclusive" and session.member and version != hold.clean:
            if set(message.acked).issuperset(file.in_sync):
                file.clean, file.clean_token = version, hold.token
                file.acked, file.acked_token = version, hold.token
                # Who has begun a session since then may have acked in an earlier life.
                older = [replica for replica, its in shared.by_replica.items() if its.id <= hold.newest]
                admitted = [replica for replica in message.acked if replica in older and replica not in file.in_sync]
            else:
                file.clean = None
        if message.clock:
            self.keep_left(lock)
        shared.log("release", lock, hold, now_ns)
        if admitted:
            self.admit(lock, admitted)

    def keep_left(self, lock: Lock) -> None:
        """Have what the holders left kept, behind."""
        shared = self._shared
        acked, token = (lock.file.acked, lock.file.acked_token) if lock.file else (EMPTY, 0)
        shared.out.append(KeepLeft(lock.name, lock.writers_clock, lock.readers_clock, acked, token))

    def cancel(self, session: Session, request: int, now_ns: int) -> None:
        """Take a waiter out of its queue, or back the grant that is under way to it."""
        shared = self._shared
        early, _ = self.early.pop((session.id, request), (None, 0))
        if early is not None:
            if early.converts:
                self._refuse(session, request, "it was cancelled", "wait")
            else:
                self._refuse_from_now_on(session, request, "it was cancelled", "wait")
        elif request in session.waits:
            waiter = shared.locks[session.waits[request]].queue[session.id, request]
            if waiter.converts:
                self._refuse(session, request, "it was cancelled", "wait")
            self._without(self.dequeue(session, request), waiter, now_ns)
        elif (token := session.granted.get(request)) is not None:
            lock = shared.locks[session.holds[token]]
            hold = lock.holds[token]
            if not hold.converts:
                self._take_back(lock, hold)
                self._refuse_from_now_on(session, request, "it was cancelled", "wait")
                shared.log("release", lock, hold, now_ns)
                self.advance(lock, now_ns)
        elif request not in session.answers:
            # It was lost with a connection, or never said; where it is said again, it comes behind this.
            self._refuse(session, request, "it was cancelled", "wait")

    def _refuse_from_now_on(self, session: Session, request: int, reason: str, cause: Cause) -> None:
        """Let a request that comes again be granted no more."""
        self._shared.keep_answer(session, request, Refused(self._shared.epoch, request, reason, cause))

    def recall(self, lock: Lock, but: int = 0) -> None:
        """Ask those who may keep a lock unused to give it back; `but` for the hold under that token."""
        shared = self._shared
        for hold in lock.holds.values():
            if hold.sticky and not hold.recalled and hold.token != but:
                hold.recalled = True
                shared.figures.recalls += 1
                shared.send(shared.sessions[hold.session].route, Recall(shared.epoch, lock.name, hold.token))

    def say_again(self, session: Session, now_ns: int) -> None:
        """Say again what was taken over, what is recalled and what is lost, over a new connection."""
        shared = self._shared
        for token, name in session.holds.items():
            hold = shared.locks[name].holds[token]
            if not hold.request and hold.answer is not None:
                shared.send(session.route, hold.answer)
            if hold.recalled:
                shared.send(session.route, Recall(shared.epoch, name, token))
        for token, lost in session.broken.items():
            shared.send(session.route, lost)
            lock = shared.locks.get(lost.lock)
            if lock is not None and (delay := lock.delays.get(token)) is not None:
                delay.until_ns = max(delay.until_ns, now_ns + shared.lock_delay_ns)
                shared.ring(delay.until_ns, 0, 0, lock.name)

    def in_use(self, session: Session, message: InUse, now_ns: int) -> None:
        """Take in who uses a lock that was recalled: it is held by this owner until it is released."""
        shared = self._shared
        name = session.holds.get(message.token)
        if name is None:
            return
        lock = shared.locks[name]
        hold = lock.holds[message.token]
        if not hold.recalled or not hold.sticky:
            return
        shared.let_go(lock, hold)
        hold.sticky, hold.owner = False, message.owner
        shared.hold(lock, hold)
        for waiter in [waiter for waiter in lock.queue.values() if waiter.tries]:
            if not self._may_come_back(lock, waiter):
                self.wait_over(shared.sessions[waiter.session], waiter.request, now_ns)
        self._refuse_deadlocked(list(lock.queue.values()), now_ns)

    def broken(self, lock: Lock, hold: Hold, reason: str, now_ns: int) -> int:
        """Take a hold away from a session that goes on, and tell it so; return until when nobody is granted the lock.

        Who cannot hear of it stops with its lease.
        """
        shared = self._shared
        session = shared.sessions[hold.session]
        self._take_back(lock, hold)
        shared.lose(lock, hold, "break", now_ns)
        if hold.request:
            self._refuse_from_now_on(session, hold.request, reason, "lost")
        lost = session.broken[hold.token] = Lost(shared.epoch, lock.name, hold.token, reason)
        shared.send(session.route, lost)
        until_ns = session.deadline_ns + shared.lock_delay_ns
        shared.delay(lock, hold.token, Delay(session.id, hold.mode, until_ns))
        if lock.file and hold.mode == "exclusive":
            lock.file.clean, lock.file.astray, lock.file.settle_ns = None, True, 0
        self.advance(lock, now_ns)
        return until_ns

    def _take_back(self, lock: Lock, hold: Hold) -> None:
        """Take a hold out of force, and refuse what was to convert it."""
        session = self._shared.sessions[hold.session]
        self._shared.let_go(lock, hold)
        if not lock.queue:
            return
        for waiter in [waiter for waiter in _conversions(lock) if waiter.converts == hold.token]:
            self.dequeue(session, waiter.request)
            reason = f"{lock.name} is not held any more under token {format_token(hold.token)}"
            self._refuse(session, waiter.request, reason, "lost")

    def wait_over(self, session: Session, request: int, now_ns: int) -> None:
        """Refuse a request that has waited for as long as it wanted to."""
        if request not in session.waits:
            return
        waiter = self._shared.locks[session.waits[request]].queue[session.id, request]
        lock = self.dequeue(session, request)
        self._refuse(session, request, f"no grant in time: {self._why(lock, waiter, now_ns)}", "wait")
        self._without(lock, waiter, now_ns)

    def _why(self, lock: Lock, waiter: Waiter, now_ns: int) -> str:
        shared = self._shared
        session = shared.sessions[waiter.session]
        mode = _mode_of(lock, waiter)
        admits = lock.admits(mode, waiter.converts)
        holds = [] if admits else lock.in_the_way(mode, waiter.converts)
        if holds:
            holders = [
                f"{shared.sessions[hold.session].host} under token {format_token(hold.token)}"
                for hold in holds[:INSPECT_NAMES_MAX]
            ]
            if len(holds) > len(holders):
                holders.append(f"{len(holds) - len(holders)} more")
            return f"{lock.name} is held by {', '.join(holders)}"
        if lock.file is None and now_ns < shared.plain_from_ns:
            return f"others may have lost {lock.name} when lockd started anew, and it is kept free for the lock delay"
        if lock.delays and not admits:
            return f"{lock.name} was lost by its holder, and is kept free for the lock delay"
        if lock.file and not any(replica in shared.by_replica for replica in lock.file.in_sync):
            absent = ", ".join(shared.replicas[replica].host for replica in lock.file.in_sync)
            return f"only absent clients hold the newest version of {lock.name}: {absent}; start one of them"
        if lock.file and session.member and session.member.replica not in lock.file.in_sync:
            return f"this replica is still catching up with {lock.name}; try again"
        return f"{lock.name} was wanted by others first"

    def set_in_sync(self, lock: Lock, replicas: tuple[str, ...]) -> None:
        """Make another in-sync set a file's, durably."""
        shared = self._shared
        assert lock.file is not None
        before = lock.file.in_sync
        if replicas != before:
            shared.figures.drops += sum(replica not in replicas for replica in before)
            shared.figures.admissions += sum(replica not in before for replica in replicas)
            lock.file.in_sync = replicas
            shared.persist(InSyncChanged(lock.name, replicas))

    def admit(self, lock: Lock, replicas: list[str]) -> None:
        """Take replicas into the in-sync set, durably, and tell them."""
        shared = self._shared
        if not replicas:
            return
        assert lock.file is not None
        self.set_in_sync(lock, (*lock.file.in_sync, *replicas))
        names = ", ".join(shared.replicas[replica].host for replica in replicas)
        shared.out.append(Note(f"{names} joined the in-sync set of {lock.name}"))
        for replica in replicas:
            lock.file.reports.pop(replica, None)
            if lock.file.patience[2] == replica:
                lock.file.patience = (0, 0, "")
            shared.send(shared.by_replica[replica].route, Admitted(shared.epoch, lock.name))

    def _admit_equals(self, lock: Lock, file: FileState) -> None:
        """Admit, while the lock is free, the learners that are where the last holder left the file."""
        shared = self._shared
        if file.clean is None or not file.reports:
            return
        equal = [
            replica
            for replica, (version, follows) in file.reports.items()
            if version == file.clean and follows >= file.clean_token and replica in shared.by_replica
        ]
        self.admit(lock, equal)

    def _ask_to_settle(self, lock: Lock, file: FileState, now_ns: int) -> None:
        """Somebody learns an unclean file, or its members differ, and nobody wants it: have a live member settle it.

        The next in turn, if that comes to nothing: who was asked may not have heard it, or have no room on its disk.
        """
        shared = self._shared
        if file.clean is not None:
            file.astray = False
            file.heads.clear()
            return
        if now_ns < file.settle_ns or not (file.reports or file.astray) or self.first(lock) is not None:
            return
        live = [r for r in file.in_sync if r in shared.by_replica]
        live = [r for r in live if shared.by_replica[r].connected] or live
        if live:
            file.settler = live[(live.index(file.settler) + 1) % len(live) if file.settler in live else 0]
            file.settle_ns = now_ns + shared.ttl_ns // 3
            shared.ring(file.settle_ns, 0, 0, lock.name)
            shared.figures.settles += 1
            shared.send(shared.by_replica[file.settler].route, Settle(shared.epoch, lock.name))

    def learn(self, lock: Lock, file: FileState, learner: str) -> Learn:
        """Return what tells a replica to learn a file, and from whom."""
        shared = self._shared
        sources = tuple([r for r in file.in_sync if r in shared.by_replica and r != learner])
        return Learn(shared.epoch, lock.name, sources)


def _conversions(lock: Lock) -> Iterator[Waiter]:
    """Return the waiters that convert a hold: they come before all others."""
    return takewhile(lambda waiter: waiter.converts, lock.queue.values())


def _mode_of(lock: Lock, waiter: Waiter) -> Mode:
    """Return in which mode a waiter is to be granted a lock: an unclean file's exclusively, since it is settled."""
    return "exclusive" if lock.file and lock.file.clean is None else waiter.mode


def _limited(limit: int) -> str:
    return f"a semaphore of {limit}" if limit else "a lock without a limit"
