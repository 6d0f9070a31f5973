"""The safety rules of the protocol, each with a way to do without it: a seed has to notice.

Run as `python -m tests.sim --rules` it tells for each how many seeds that took.
"""

from collections.abc import Callable
from typing import Any, Final

from msgspec.structs import replace

from client.holder import Holder, Op
from client.replica import Follower
from common.messages import Fetched, Grant, Hello, Mode, Release, ReplicaHello
from common.records import Record, Version
from lockd.core import Lockd
from lockd.identities import Identities
from lockd.locks import FileState, Hold, Lock, Waiter
from lockd.queues import Queues
from lockd.shared import Over, Session
from tests.sim.campaign import Rules
from tests.sim.processes import LockdProcess


def ack_without_holding(follower: Follower, *arguments: Any) -> None:
    taken: Callable[[], None] = arguments[-1]
    taken()


def wait_for_no_ack(holder: Holder, op: Op) -> set[str]:
    return set()


def settle_without_waiting(holder: Holder, op: Op) -> None:
    op.acked = set(op.in_sync)
    if op.submit is not None:
        holder._do(op)
    else:
        holder._release(op, holder._shared.clock)
        holder._forget(op)


def drop_nobody(holder: Holder, op: Op, replicas: frozenset[str]) -> None:
    return


def drop_without_asking(holder: Holder, op: Op, replicas: frozenset[str]) -> None:
    if replicas:
        op.in_sync -= replicas
        holder._go_on(op)


def read_whatever_is_there(holder: Holder, grant: Grant, *, _granted: Any = Holder.granted) -> None:
    op = holder._by_request.get(grant.request)
    if op is None or op.stage != "waiting" or op.submit is None or op.submit.verb != "read":
        _granted(holder, grant)
        return
    op.stage, op.token, op.clock = "holding", grant.token, grant.clock
    op.version = holder._shared.state(op.file).head.version
    holder._do(op)
    if op in holder._ops and op.unanswered is not None:
        holder._finish(op, "ok", "")


def leave_the_file_clean(lockd: Lockd, session: Session, why: Over, now_ns: int, *, _end: Any = Lockd._end) -> None:
    before = [(lock.file, lock.file.clean) for lock in lockd.locks.values() if lock.file]
    _end(lockd, session, why, now_ns)
    for file, clean in before:
        file.clean = file.clean or clean


def call_clean_what_few_have(
    queues: Queues, lock: Lock, hold: Hold, message: Release, now_ns: int, *, _let_go: Any = Queues._let_go
) -> None:
    acked = (*message.acked, *(lock.file.in_sync if lock.file else ()))
    _let_go(queues, lock, hold, replace(message, acked=acked), now_ns)


def restart_with_clean_files(process: LockdProcess, *, _start: Any = LockdProcess.start) -> None:
    old = getattr(process, "core", None)
    _start(process)
    for lock in old.locks.values() if old else ():
        new = process.core.locks.get(lock.name)
        if new and new.file and lock.file:
            new.file.clean, new.file.clean_token = lock.file.clean, lock.file.clean_token


def grant_to_a_learner(queues: Queues, lock: Lock) -> Waiter | None:
    return next(iter(lock.queue.values()), None)


def grant_to_the_last(queues: Queues, lock: Lock) -> Waiter | None:
    members = [(waiter, queues._shared.sessions[waiter.session].member) for waiter in lock.queue.values()]
    in_sync = lock.file.in_sync if lock.file else ()
    return next((waiter for waiter, member in reversed(members) if member and member.replica in in_sync), None)


def admit_wherever_it_is(queues: Queues, lock: Lock, file: FileState) -> None:
    queues.admit(lock, [replica for replica in file.reports if replica in queues._shared.by_replica])


def admit_whatever_it_follows(queues: Queues, lock: Lock, file: FileState) -> None:
    at_clean = [replica for replica, (version, _) in file.reports.items() if version == file.clean]
    queues.admit(lock, [replica for replica in at_clean if replica in queues._shared.by_replica])


def take_an_old_copy_for_the_replica(identities: Identities, replica: ReplicaHello, incarnation: str) -> bool:
    known = identities._shared.replicas.get(replica.replica)
    return known is not None and incarnation != known.incarnation and replica.start_count <= known.start_count


def ask_nobody(lockd: Lockd, route: bytes, replica: str, hello: Hello) -> bool:
    return False


def let_all_in(lock: Lock, mode: Mode, converts: int = 0) -> bool:
    return True


def fence_nobody(follower: Follower, token: int, state: Any) -> bool:
    return bool(token < state.head.follows)


def promise_nothing(follower: Follower, file: str, token: int, then: Callable[[], None]) -> None:
    then()


def follow_what_is_promised(follower: Follower, file: str, token: int, then: Callable[[], None]) -> None:
    shared = follower._shared
    seq = shared.state(file).head.version.seq
    shared.persist(file, seq, (), (), (token, token), then, follower._failed(file))


def replace_nothing_where_no_op_comes(
    follower: Follower,
    file: str,
    token: int,
    previous: Version,
    records: tuple[Record, ...],
    versions: tuple[Version, ...],
    *,
    _common: Any = Follower._common,
) -> int | None:
    keep: int | None = _common(follower, file, token, previous, records, versions)
    return keep if records or keep is None else follower._shared.state(file).head.version.seq


def replace_under_the_followed_token(
    follower: Follower, file: str, token: int, *rest: Any, _common: Any = Follower._common
) -> int | None:
    keep: int | None = _common(follower, file, token + 1, *rest)
    return keep


def take_an_answer_for_the_newest(
    follower: Follower, source: str, answer: Fetched, *, _fetched: Any = Follower.fetched
) -> None:
    promised = follower._shared.state(answer.file).promised
    _fetched(follower, source, replace(answer, follows=max(promised, answer.follows)))


RULES: Final[Rules] = {
    "only what is held durably is acked": (Follower, "_take", ack_without_holding),
    "an op is acknowledged by the whole in-sync set": (Holder, "_missing", wait_for_no_ack),
    "an unclean file is settled before anything else": (Holder, "_settle", settle_without_waiting),
    "the silent are dropped, at the holder's request": (Holder, "_drop", drop_nobody),
    "a drop is lockd's, and durable": (Holder, "_drop", drop_without_asking),
    "a read counts when its token was still current": (Holder, "granted", read_whatever_is_there),
    "a file's lock goes to a member of its in-sync set": (Queues, "first", grant_to_a_learner),
    "first come, first served": (Queues, "first", grant_to_the_last),
    "the end of a holder's session leaves the file unclean": (Lockd, "_end", leave_the_file_clean),
    "clean is what the whole set has acked": (Queues, "_let_go", call_clean_what_few_have),
    "a restart of lockd leaves every file unclean": (LockdProcess, "start", restart_with_clean_files),
    "who is admitted is at the clean version": (Queues, "_admit_equals", admit_wherever_it_is),
    "who is admitted follows the token that left it clean": (Queues, "_admit_equals", admit_whatever_it_follows),
    "who has less than the whole set has acked is no member": (Identities, "is_copy", take_an_old_copy_for_the_replica),
    "a session whose process is alive keeps its place": (Lockd, "_contest", ask_nobody),
    "an exclusive hold is alone": (Lock, "admits", let_all_in),
    "a token below the promise is refused": (Follower, "_is_fenced", fence_nobody),
    "a promise is durable by itself": (Follower, "_promise", promise_nothing),
    "a promise alone follows nothing": (Follower, "_promise", follow_what_is_promised),
    "a newer token's push replaces, even without an op": (Follower, "_common", replace_nothing_where_no_op_comes),
    "under the followed token a push only adds": (Follower, "_common", replace_under_the_followed_token),
    "an answer is a push of the token that its source follows": (Follower, "fetched", take_an_answer_for_the_newest),
}
