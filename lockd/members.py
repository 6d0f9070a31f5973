"""lockd's core: the group's replicas, who learns which file, and what a holder or an operator drops. No I/O."""

from collections.abc import Mapping

from common.clock import Clock, merge
from common.messages import Admitted, Drop, GiveUp, InSync, Member, Refused, ReplicaHello, Report, View
from common.records import EMPTY, Version
from common.tokens import make_token
from lockd.effects import ForgetAcked
from lockd.locks import FileState, Lock
from lockd.queues import Queues
from lockd.shared import Session, Shared


class Members:
    """The live replicas, and their part in every file."""

    def __init__(self, shared: Shared, queues: Queues) -> None:
        """Work on the shared state."""
        self._shared = shared
        self._queues = queues

    def take_heads(self, replica: str, hello: ReplicaHello, reads: Mapping[str, Clock], now_ns: int) -> None:
        """Tell a replica that has joined which files it has to learn."""
        shared = self._shared
        for lock in list(shared.locks.values()):
            file = lock.file
            if file is None:
                continue
            head = hello.heads.get(lock.name)
            if read := reads.get(lock.name):
                lock.readers_clock = merge(lock.readers_clock, read)
            if replica in file.in_sync:
                if head and not lock.writers_clock:
                    lock.writers_clock = head.clock
                if file.clean is None:
                    file.heads[replica] = head.version if head else EMPTY
                    file.astray = file.astray or len({version.hash for version in file.heads.values()}) > 1
                for learner in file.reports:
                    shared.send(shared.by_replica[learner].route, self._queues.learn(lock, file, learner))
                self._queues.advance(lock, now_ns)
            else:
                version, follows = (head.version, head.follows) if head else (EMPTY, 0)
                self._consider(lock, file, replica, version, follows, now_ns, joins=True)

    def report(self, session: Session, message: Report, now_ns: int) -> None:
        """Take in how far a learner has come."""
        shared = self._shared
        lock = shared.locks.get(message.file)
        if session.member is None or (lock is not None and lock.file is None):
            return
        replica = session.member.replica
        if lock is None or lock.file is None or replica in lock.file.in_sync:
            # A file that was forgotten meanwhile: there is nothing to learn.
            shared.send(session.route, Admitted(shared.epoch, message.file))
        else:
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
        shared = self._shared
        file.reports[replica] = (version, follows)
        self._queues.advance(lock, now_ns)
        if replica not in file.in_sync and (joins or (file.clean is not None and not lock.holds)):
            shared.send(shared.by_replica[replica].route, self._queues.learn(lock, file, replica))
        if replica not in file.in_sync:
            self._queues.recall(lock)

    def drop(self, session: Session, message: Drop, now_ns: int) -> None:
        """Take silent replicas out of an in-sync set, for the holder."""
        shared = self._shared
        lock = shared.locks.get(message.file)
        hold = lock.holds.get(message.token) if lock else None
        if lock is None or lock.file is None or hold is None or hold.session != session.id:
            shared.send(session.route, InSync(shared.epoch, message.request, False, (), shared.changes))
            return
        file, own = lock.file, session.member.replica if session.member else ""
        dropped = [r for r in file.in_sync if r in message.replicas and r != own]
        if dropped:
            self._queues.set_in_sync(lock, tuple([r for r in file.in_sync if r not in dropped]))
            names = ", ".join(shared.replicas[replica].host for replica in dropped)
            shared.fault(now_ns, f"{names} left the in-sync set of {lock.name}: {session.host} had no ack in time")
        shared.send(session.route, InSync(shared.epoch, message.request, True, file.in_sync, shared.changes))
        for replica in dropped:
            if replica in shared.by_replica:
                shared.send(shared.by_replica[replica].route, self._queues.learn(lock, file, replica))

    def give_up(self, session: Session, message: GiveUp, now_ns: int) -> None:
        """Go on without a file's in-sync replicas, all of them absent, from the live ones that have the most of it."""
        shared = self._shared
        if (answer := session.answers.get(message.request)) is not None:
            shared.send(session.route, answer)
            return
        lock = shared.locks.get(message.file)
        problem, best = self._give_up_problem(lock, message)
        if lock is None or problem:
            shared.figures.refusals["give-up"] += 1
            shared.answer(session, message.request, Refused(shared.epoch, message.request, problem, "request"))
            return
        assert lock.file is not None
        lost = ", ".join(sorted(message.hosts))
        # First of all: who is in sync from now on may have less than those who are given up.
        lock.file.clean, lock.file.acked, lock.file.acked_token = None, EMPTY, 0
        self._queues.keep_left(lock)
        shared.persist(ForgetAcked(make_token(shared.epoch, shared.counter)))
        self._queues.set_in_sync(lock, best)
        shared.fault(now_ns, f"{session.name} gave up what {lost} alone had of {lock.name}")
        shared.answer(session, message.request, InSync(shared.epoch, message.request, True, best, shared.changes))
        for replica in best:
            lock.file.reports.pop(replica, None)
            shared.send(shared.by_replica[replica].route, Admitted(shared.epoch, lock.name))
        self._queues.advance(lock, now_ns)

    def _give_up_problem(self, lock: Lock | None, message: GiveUp) -> tuple[str, tuple[str, ...]]:
        """Return what speaks against it, and who has the most of the file: its head follows the largest token."""
        shared = self._shared
        if lock is None or lock.file is None:
            return f"{message.file} is no file of this group", ()
        if shared.expected:
            return "lockd has started anew, and waits for the others to come back; try again soon", ()
        live = [replica for replica in lock.file.in_sync if replica in shared.by_replica]
        if live:
            names = ", ".join(shared.replicas[replica].host for replica in live)
            return f"nothing of {lock.name} is lost: up, and in sync with it: {names}", ()
        absent = {shared.replicas[replica].host for replica in lock.file.in_sync}
        if absent != set(message.hosts):
            return f"in sync with {lock.name}, and absent: {', '.join(sorted(absent))}; name these, and no others", ()
        heads = {r: head for r, head in lock.file.reports.items() if r in shared.by_replica}
        if not heads:
            return f"no replica that is here has reported what it has of {lock.name}; start one, and try again", ()
        most = max((follows, version.seq, version.hash) for version, follows in heads.values())
        best = [r for r, (version, follows) in heads.items() if (follows, version.seq, version.hash) == most]
        return "", tuple(best)

    def tell_what_to_learn(self, session: Session) -> None:
        """Tell a replica of every file that it is not in sync with."""
        shared = self._shared
        if session.member is None:
            return
        replica = session.member.replica
        for lock in shared.locks.values():
            if lock.file and replica not in lock.file.in_sync:
                shared.send(session.route, self._queues.learn(lock, lock.file, replica))

    def view(self) -> tuple[Member, ...]:
        """Return all live replicas."""
        shared = self._shared
        return tuple([session.member for session in shared.by_replica.values() if session.member])

    def tell_view(self, but: Session | None) -> None:
        """Tell all replicas, but one, who is there."""
        shared = self._shared
        view = View(shared.epoch, self.view())
        for session in shared.by_replica.values():
            if session is not but:
                shared.send(session.route, view)
