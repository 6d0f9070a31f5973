"""lockd's core: who says hello: a known replica, a new one or a copy; under which host; and what speaks against it."""

import hashlib
from collections.abc import Collection, Mapping

from common.clock import Clock
from common.limits import SESSIONS_MAX
from common.messages import Hello, ReplicaHello
from common.names import client_name_problem
from common.records import EMPTY
from common.tokens import format_token, make_token
from lockd.effects import ReplicaSeen
from lockd.shared import Shared


class Identities:
    """What lockd knows of all replicas."""

    def __init__(self, shared: Shared) -> None:
        """Work on the shared state."""
        self._shared = shared

    def is_copy(self, replica: ReplicaHello, incarnation: str) -> bool:
        """Tell whether a directory that starts is not the replica's: an older start, or less than that has acked."""
        shared = self._shared
        known = shared.replicas.get(replica.replica)
        if known is None or incarnation == known.incarnation:
            return False
        if replica.start_count <= known.start_count:
            return True
        for name, lock in shared.locks.items():
            file = lock.file
            if file and file.acked_token and replica.replica in file.in_sync:
                head = replica.heads.get(name)
                if head is None or (head.follows, head.version.seq) < (file.acked_token, file.acked.seq):
                    return True
        return False

    def identify(self, replica: ReplicaHello, incarnation: str, is_copy: bool) -> tuple[str, ReplicaSeen | None]:
        """Return the replica id in force, and what is known of it.

        A copy gets an id of its own, the same for every hello of this start, and takes nothing from the replica that
        it was copied from.
        """
        shared = self._shared
        if not is_copy:
            return replica.replica, shared.replicas.get(replica.replica)
        copy = hashlib.blake2b(f"{replica.replica} {incarnation}".encode(), digest_size=8).hexdigest()
        return copy, shared.replicas.get(copy)

    def reads_of(self, replica: ReplicaHello) -> Mapping[str, Clock]:
        """Return what a replica's reads have left, of one that is known and knows no more of itself than it says."""
        seen = self._shared.replicas.get(replica.replica)
        if seen is None or any(clock.get(seen.host, 0) > replica.count for clock in replica.reads.values()):
            return {}
        return replica.reads

    def hello_problem(self, hello: Hello, known: ReplicaSeen | None) -> str | None:
        """Return what speaks against a hello, or None."""
        shared = self._shared
        if problem := client_name_problem(hello.name):
            return problem
        if hello.replica and not hello.replica.replica:
            return "its replica has no id"
        if hello.group not in ("", shared.group):
            return (
                "its data directory belongs to another group; use an empty one "
                "(or has lockd lost its state? start it with --rebuild N)"
            )
        advice = (
            "start lockd on its newest data directory; if that is lost, and was rebuilt without this replica, then "
            "what only this one has is lost: use an empty directory"
        )
        if hello.epoch > shared.epoch or hello.highest_token > make_token(shared.epoch, shared.counter):
            seen = format_token(max(hello.highest_token, make_token(hello.epoch, 0)))
            ours = format_token(make_token(shared.epoch, shared.counter))
            return f"lockd's state is older than what {hello.name} has seen ({ours} against {seen}); {advice}"
        epoch = hello.epoch
        id_, changes = shared.epochs.get(epoch, (hello.epoch_id, hello.changes))
        if epoch and hello.changes > changes:
            return (
                f"lockd's state is older than what {hello.name} has seen (change {changes} of epoch {epoch} against "
                f"{hello.changes}); {advice}"
            )
        if epoch and id_ != hello.epoch_id:
            return (
                f"the epoch {epoch} that {hello.name} has seen is not lockd's epoch {epoch}: lockd was, or is, "
                f"on an old copy of its state; {advice}"
            )
        named = shared.by_name.get(hello.name, {}).values()
        if known is None and any(session.incarnation != hello.incarnation for session in named):
            return f"the name {hello.name} is in use by a live session; choose another with --name"
        if len(shared.sessions) >= SESSIONS_MAX:
            return f"lockd serves at most {SESSIONS_MAX} sessions"
        if hello.replica:
            for file, head in hello.replica.heads.items():
                lock = shared.locks.get(file)
                if lock is not None and lock.kind != "file":
                    return f"{file} is a lock without a file in this group"
                if lock is None and head.version != EMPTY:
                    return f"lockd does not know its file {file}; {advice}"
        return None

    def has_lost_events(self, replica: ReplicaHello, host: str) -> bool:
        """Tell whether the locks, or its own journals, know of more of a host's events than the replica."""
        locks = self._shared.locks.values()
        clocks = [clock for lock in locks for clock in (lock.writers_clock, lock.readers_clock)]
        clocks += [head.clock for head in replica.heads.values()]
        return any(clock.get(host, 0) > replica.count for clock in clocks)


def new_host(name: str, taken: Collection[str]) -> str:
    """Return a component in vector clocks that is not among those that replicas have had."""
    number = 1 + sum(host.partition("#")[0] == name for host in taken)
    while (host := name if number == 1 else f"{name}#{number}") in taken:
        number += 1
    return host


def taken(host: str) -> ReplicaSeen:
    """Return what keeps a host that nobody goes on with from being given out again."""
    return ReplicaSeen(hashlib.blake2b(host.encode(), digest_size=8).hexdigest(), host.partition("#")[0], host, 0, "")
