"""lockd's core: how a new lockd takes over from the last one, or begins without its state. No I/O.

Locks on files are void at once. Locks without a file are for their holders to claim, and nothing is granted, until
the last lockd's sessions are back, at the most until their leases are over: that lockd's ttl, which can have been
longer, is in the state. Where the state is lost, it is taken from the replicas.
"""

from collections.abc import Collection, Iterable
from functools import reduce

from common.clock import Clock, merge
from common.grantlog import GrantLine
from common.limits import INSPECT_NAMES_MAX, SEMAPHORE_MAX
from common.messages import Grant, Head, Held, Hello, Lost, ReplicaHello
from common.names import lock_name_problem
from common.records import EMPTY
from common.tokens import EPOCH_MAX, make_token, token_epoch
from lockd.effects import (
    Change,
    Durable,
    ForgetAcked,
    InSyncChanged,
    LeasesGiven,
    LogGrant,
    Note,
    Rebuilt,
    ReplicaSeen,
    SessionEnded,
    SessionOpened,
)
from lockd.identities import new_host, taken
from lockd.locks import FileState, Hold, Lock
from lockd.queues import Queues
from lockd.shared import Session, Shared


class Restart:
    """What is left of the last lockd, until it is settled."""

    def __init__(self, shared: Shared, queues: Queues, durable: Durable) -> None:
        """Work on the shared state, from what is durable."""
        self._shared = shared
        self._queues = queues
        self._before = {line.token: line for line in durable.holds}
        self._leases = durable.leases
        self._lock_delay_ns = max(shared.lock_delay_ns, durable.leases.lock_delay_ns)
        self.last_leases_ns = 0
        """Until then a client that has not heard of this lockd may go by a lease of the last one."""
        self._claims: dict[str, dict[int, tuple[int, Held]]] = {}
        self._rebuild = durable.rebuild
        self._rebuild_ns = 0
        self._survivors: dict[str, tuple[bytes, Hello]] = {}
        self._expected_of: dict[str | tuple[str, str], set[int]] = {}
        for number, before in shared.expected.items():
            for client in (before.replica, (before.name, before.incarnation)):
                self._expected_of.setdefault(client, set()).add(number)

    @property
    def rebuilding(self) -> bool:
        """Tell whether replicas are still missing from which to rebuild the state."""
        return self._rebuild > 0

    def begin(self, now_ns: int) -> None:
        """Void the locks on files that the last lockd had granted; wait for its sessions, a lease at the most."""
        shared = self._shared
        wait_ns = max(shared.ttl_ns, self._leases.ttl_ns)
        self._rebuild_ns = now_ns + wait_ns
        wait_ns += self._lock_delay_ns - shared.lock_delay_ns  # as if its lock delay were ours
        self.last_leases_ns = now_ns + wait_ns
        self._keep_leases(LeasesGiven(max(shared.ttl_ns, self._leases.ttl_ns), self._lock_delay_ns))
        if shared.expected or wait_ns > shared.ttl_ns:
            shared.ring(self.last_leases_ns, 0, 0, "")
        self._void([t for t, line in self._before.items() if line.lock in shared.locks or not shared.expected], now_ns)
        if shared.epoch > 1:
            self._delay_plain(now_ns)
        if shared.expected:
            names = _names(shared.expected.values())
            shared.out.append(Note(f"waiting, {wait_ns / 1e9:g} s at the most, for the sessions of {names}"))

    def back(self, session: Session, now_ns: int) -> None:
        """Expect no more what a client goes on with in its new session: its replica's, or without one its process's."""
        client = session.member.replica if session.member else (session.name, session.incarnation)
        self.arrived(now_ns, self._expected_of.get(client, set()) & self._shared.expected.keys())

    def arrived(self, now_ns: int, numbers: set[int]) -> None:
        """Expect these sessions of the last lockd no more; go to work when no other is expected."""
        shared = self._shared
        if not numbers:
            return
        for number in numbers:
            del shared.expected[number]
        shared.persist(*[SessionEnded(number) for number in sorted(numbers)])
        if shared.expected:
            return
        # What is not claimed can have been lost just now, since its holder's lease ran out meanwhile.
        self._delay_plain(now_ns)
        self._settle_claims(now_ns)
        releases, self._queues.early_releases = self._queues.early_releases, {}
        for (number, _), release in releases.items():
            if (session := shared.sessions.get(number)) is not None:
                self._queues.release(session, release, now_ns)
        early, self._queues.early = self._queues.early, {}
        for (number, _), (acquire, since_ns) in early.items():
            if (session := shared.sessions.get(number)) is not None:
                self._queues.acquire(session, acquire, since_ns, now_ns)
        for lock in list(shared.locks.values()):
            self._queues.advance(lock, now_ns)

    def absent(self, now_ns: int) -> None:
        """Go on without the sessions of the last lockd that are not back in time: all its leases are over."""
        shared = self._shared
        self._lock_delay_ns = shared.lock_delay_ns
        self._keep_leases(LeasesGiven(shared.ttl_ns, shared.lock_delay_ns))
        if not shared.expected:
            return
        shared.figures.sessions_ended["absent"] += len(shared.expected)
        shared.fault(now_ns, f"not back after lockd's start: {_names(shared.expected.values())}")
        self.arrived(now_ns, set(shared.expected))

    def _keep_leases(self, leases: LeasesGiven) -> None:
        """Keep for the next lockd how long leases and lock delays may be, where that has changed."""
        if leases != self._leases:
            self._leases = leases
            self._shared.persist(leases)

    def _delay_plain(self, now_ns: int) -> None:
        """Grant locks without a file to nobody for the lock delay; who has one keeps it.

        Which of them somebody has lost shortly before, and may still be about to stop using, nothing tells.
        """
        shared = self._shared
        if self._lock_delay_ns:
            shared.plain_from_ns = now_ns + self._lock_delay_ns
            shared.ring(shared.plain_from_ns, 0, 1, "")

    def _void(self, tokens: Iterable[int], now_ns: int) -> None:
        """Log the end of holds that the last lockd had granted."""
        shared = self._shared
        for token in tokens:
            line = self._before.pop(token)
            shared.figures.expiries["restart"] += 1
            shared.figures.fault(now_ns, f"{line.client} lost {line.lock}: lockd started anew")
            more = (("held_ms", f"{max(0, now_ns // 1000 - line.time_us) / 1e3:.3f}"),)
            shared.out.append(
                LogGrant(GrantLine(now_ns // 1000, "expiry", line.lock, line.mode, token, line.client, more))
            )

    def claim(self, session: Session, hello: Hello) -> None:
        """Take in which locks without a file a session of the last lockd still holds."""
        shared = self._shared
        session.claimed = bool(hello.held)
        for held in hello.held:
            of_a_lockd_before = 0 < token_epoch(held.token) < shared.epoch
            fits = not held.limit or (held.mode == "shared" and held.limit <= SEMAPHORE_MAX)
            if held.lock not in shared.locks and of_a_lockd_before and fits and not lock_name_problem(held.lock):
                self._claims.setdefault(held.lock, {})[held.token] = session.id, held
            else:
                self._tell_lost(session, held.lock, held.token)

    def _settle_claims(self, now_ns: int) -> None:
        """Take over, of each lock without a file, the hold under the largest token, and what may go with it."""
        shared = self._shared
        for name, claims in self._claims.items():
            live = {token: claim for token, claim in claims.items() if claim[0] in shared.sessions}
            if not live:
                continue
            lock = shared.locks[name] = Lock(name, "plain", limit=live[max(live)][1].limit)
            # Before all others come those of which grants.log tells; a power cut can have taken its end.
            for token in sorted(live, key=lambda token: (token in self._before, token), reverse=True):
                number, held = live[token]
                session = shared.sessions[number]
                if held.limit != lock.limit or not lock.admits(held.mode) or token in session.holds:
                    self._tell_lost(session, name, token)
                    continue
                line = self._before.pop(token, None)
                since_ns = line.time_us * 1000 if line else now_ns
                hold = Hold(
                    number, 0, token, held.mode, held.mode, EMPTY, since_ns, 0, since_ns, held.owner, held.sticky
                )
                shared.hold(lock, hold)
                time_us, sticky = now_ns // 1000, held.sticky
                hold.answer = Grant(shared.epoch, 0, name, token, held.mode, {}, EMPTY, (), (), time_us, sticky)
                shared.send(session.route, hold.answer)
        self._claims.clear()
        self._void(list(self._before), now_ns)

    def _tell_lost(self, session: Session, lock: str, token: int) -> None:
        """Tell a client that a lock that it claims is not its own any more."""
        shared = self._shared
        lost = Lost(shared.epoch, lock, token, "lockd has started anew, and others have it")
        session.broken.setdefault(token, lost)
        shared.send(session.route, lost)

    def survived(self, route: bytes, hello: Hello, now_ns: int) -> list[tuple[bytes, Hello]]:
        """Take in a replica of a group whose lockd has lost its state; return all of them when the last is here."""
        shared = self._shared
        replica = hello.replica
        problem = ""
        if replica is None or not replica.own_host or not hello.group:
            problem = "lockd has lost its state, and waits for the replicas to rebuild it from; try again later"
        elif max(hello.epoch, token_epoch(hello.highest_token)) >= EPOCH_MAX:
            problem = f"its epoch is {EPOCH_MAX} or more; use an empty data directory"
        group = [other for _, other in self._survivors.values() if other.group == hello.group]
        if any(other.epoch == hello.epoch and other.epoch_id != hello.epoch_id for other in group):
            problem = problem or "lockd is being rebuilt from replicas of another group"
        if problem or replica is None:
            shared.refuse(route, hello, problem, now_ns)
            return []
        if now_ns < self._rebuild_ns:
            return []  # a holder under the lost lockd's lease may change yet what this one has
        if replica.replica not in self._survivors:
            shared.out.append(Note(f"{replica.own_host} is here, {len(group) + 1} of {self._rebuild}"))
        self._survivors[replica.replica] = route, hello
        survivors = [survivor for survivor in self._survivors.values() if survivor[1].group == hello.group]
        if len(survivors) < self._rebuild:
            return []
        self._survivors, self._rebuild = {}, 0
        self._rebuild_from(survivors)
        return survivors

    def _rebuild_from(self, survivors: list[tuple[bytes, Hello]]) -> None:
        """Take group, hosts and in-sync sets from what the replicas have told."""
        shared = self._shared
        shared.group = survivors[0][1].group
        epoch_id = shared.epoch_id
        shared.epoch = 1 + max(max(other.epoch, token_epoch(other.highest_token)) for _, other in survivors)
        seen = sorted([(other.epoch, other.epoch_id, other.changes) for _, other in survivors])
        shared.epochs = {epoch: (id_, changes) for epoch, id_, changes in seen} | {shared.epoch: (epoch_id, 0)}
        changes: list[Change] = [
            Rebuilt(shared.group, shared.epoch, dict(shared.epochs)),
            ForgetAcked(make_token(shared.epoch, 0)),
        ]
        heads: dict[str, list[tuple[int, int, bytes, str]]] = {}
        clocks: dict[str, list[Clock]] = {}
        hosts: set[str] = set()
        replicas: list[tuple[ReplicaHello, Hello]] = []
        for _, other in survivors:
            assert other.replica is not None
            own = other.replica
            replicas.append((own, other))
            hosts.update((own.own_host, *own.hosts))
            unmade = {file: Head(EMPTY, 0, {}) for file in own.reads}  # read, and no disk had room for the file
            for file, head in (unmade | dict(own.heads)).items():
                hosts |= head.clock.keys()
                version = head.version
                clocks.setdefault(file, []).append(head.clock)
                heads.setdefault(file, []).append((head.follows, version.seq, version.hash, own.replica))
        given: set[str] = set()
        for own, other in sorted(replicas, key=lambda pair: -pair[0].count):
            # An earlier rebuilding, without one of them, can have given out its host again: it stays with who used it.
            host = new_host(other.name, hosts | given) if own.own_host in given else own.own_host
            given.add(host)
            replica = ReplicaSeen(own.replica, other.name, host, own.start_count, other.incarnation)
            shared.replicas[own.replica] = replica
            changes.append(replica)
        for host in sorted(hosts - given):
            lost = taken(host)
            shared.replicas[lost.replica] = lost
            changes.append(lost)
        for file, known in sorted(heads.items()):
            # What a newer token's holder had taken over stands behind what an older one may have left.
            most = max(known)[:3]
            clock = reduce(merge, clocks[file])
            in_sync = tuple([replica for *head, replica in known if tuple(head) == most])
            shared.locks[file] = Lock(file, "file", FileState(in_sync), writers_clock=clock)
            changes.append(InSyncChanged(file, in_sync))
        shared.persist(*changes)
        shared.out.append(Note(f"rebuilt from {len(survivors)} replicas, epoch {shared.epoch}; files: {len(heads)}"))


def _names(sessions: Collection[SessionOpened]) -> str:
    """Return whose sessions these are, for a line: the first names, and how many more."""
    names = sorted([session.name for session in sessions])
    more = f" and {len(names) - INSPECT_NAMES_MAX:,} more" if len(names) > INSPECT_NAMES_MAX else ""
    return ", ".join(names[:INSPECT_NAMES_MAX]) + more
