"""The holder's core: an op from its submission to its outcome. No I/O.

Theory of operation. An op waits for its file's lock. If the file is unclean it first settles: it pushes our
head to the whole in-sync set and waits for every ack. Then it ticks, logs, persists, pushes and waits again;
a read only ticks and logs. The release is final. A change is `ok` when every in-sync replica has acked it,
a read when lockd confirms that its token was still current. A replica that leaves the view or stays silent is
dropped by lockd at our request, and only its durable answer takes the replica off the list.

A lock that lockd calls sticky is kept when an op is done: the next op of this client on that file has it at once,
without a message to lockd, until a Recall. A read under it is given out while the lease lasts, with a margin for clocks
that run apart: before that nobody else is granted the lock. (Gray and Cheriton, "Leases", 1989; lock caching in
Burrows, "The Chubby lock service", 2006.)

An op that cannot go on is `failed` as long as no push with it has left, and `unknown` afterwards. One that is asked for
again stays `unknown` until it has been looked for in the history, under the lock.
"""

from typing import Final, Literal, assert_never

from msgspec import Struct

from client.effects import Begin, Finished, Note, Outcome, ReadFile, SendReplica, Submit
from client.shared import Shared
from common.clock import Clock, merge
from common.eventlog import format_op, format_pairs, shorten
from common.limits import CHANGE_BYTES_MAX
from common.messages import Acquire, Cancel, Drop, Fenced, Grant, InSync, Lost, Push, Recall, Refused, Release, Released
from common.records import Record, Version, splice
from common.tokens import format_token
from common.wire import version_after

_LEASE_MARGIN: Final = 7
"""A kept lock is not used any more when a seventh of a third of the ttl is left: clocks may differ by a twentieth."""
_ANSWER_MARGIN_NS: Final = 1_000_000_000
"""lockd ends a wait; so much later the client ends it by itself."""

_NO_SESSION: Final = (
    "no session with lockd in time: it is down, out of reach, stands still, or waits for other replicas (--rebuild); "
    "start it, or look into lockd.log"
)
_NO_ANSWER: Final = "lockd gave no answer in time: it is down, or stands still; look into lockd.log, and try again"

Stage = Literal["queued", "waiting", "holding", "settling", "persisting", "pushed", "releasing"]


class Kept(Struct, eq=False):
    """A sticky lock, and the version and acks that the last op under it has left. While it is `busy` an op has it."""

    token: int
    in_sync: frozenset[str]
    version: Version
    acked: set[str]
    busy: bool = True
    recalled: bool = False


class Op(Struct, eq=False):
    """An op in flight. A `submit` of None is the settling of a file that lockd asked for."""

    submit: Submit | None
    file: str
    id: str
    deadline_ns: int
    stage: Stage = "queued"
    request: int = 0
    asked_ns: int = 0
    token: int = 0
    clock: Clock = {}
    in_sync: frozenset[str] = frozenset()
    learners: tuple[str, ...] = ()
    acked: set[str] = set()
    push: Push | None = None
    version: Version | None = None
    unanswered: Drop | Release | None = None
    silent_ns: int | None = None
    pushed_again: bool = False
    asked_to_drop: frozenset[str] = frozenset()
    looked: bool = False
    kept: Kept | None = None


class Holder:
    """All ops of this client that have not ended."""

    def __init__(self, shared: Shared) -> None:
        """Work on the shared state."""
        self._shared = shared
        self._ops: list[Op] = []
        self._by_request: dict[int, Op] = {}
        self.silence_ns = 1_000_000_000
        self._left = ""
        self._kept: dict[str, Kept] = {}

    @property
    def busy(self) -> bool:
        """Tell whether there are ops that have not ended."""
        return bool(self._ops)

    def deadline_ns(self) -> int | None:
        """Return when `tick` wants to be called, or None."""
        earliest: int | None = None
        for op in self._ops:
            due_ns = op.silent_ns
            if op.stage == "queued" or op.stage == "settling":
                due_ns = op.deadline_ns if due_ns is None else min(due_ns, op.deadline_ns)
            elif op.stage == "waiting":
                due_ns = op.deadline_ns + _ANSWER_MARGIN_NS
            if due_ns is not None and (earliest is None or due_ns < earliest):
                earliest = due_ns
        return earliest

    def submit(self, submit: Submit) -> None:
        """Begin an op; ask for its lock as soon as a session is open."""
        op = Op(submit, submit.file, "", self._shared.now_ns + submit.wait_ns)
        self._ops.append(op)
        if self._left:
            self._fail(op, self._left, release=False)
        elif self._shared.session:
            self._acquire(op)

    def settle(self, file: str) -> None:
        """Settle an unclean file, as lockd asks, under its lock."""
        if not any(op.submit is None and op.file == file for op in self._ops):
            op = Op(None, file, "", self._shared.now_ns + 10_000_000_000)
            self._ops.append(op)
            self._acquire(op)

    def session_opened(self) -> None:
        """Ask for the locks of the ops that waited for a session."""
        for op in self._ops:
            if op.stage == "queued":
                self._acquire(op)

    def say_again(self) -> None:
        """Send again, over a new connection, every request that lockd has not answered; it gives its first answer."""
        for op in self._ops:
            if op.stage == "waiting":
                self._ask(op)
            elif op.unanswered is not None:
                self._shared.tell_lockd(op.unanswered)

    def session_lost(self, reason: str) -> None:
        """End every op whose lock is void; those that only waited for one wait for the next session."""
        self._kept.clear()
        for op in list(self._ops):
            if op.stage == "waiting" and op.submit is not None:
                self._by_request.pop(op.request, None)
                op.stage = "queued"
            elif op.stage != "queued":
                self._fail(op, reason, release=False)

    def leave(self, reason: str, unsure: bool) -> None:
        """End every op, and each that is still to come; where `unsure`, what was being persisted may have happened."""
        self._left = reason
        for file, kept in list(self._kept.items()):
            if not kept.busy:
                self._give_back(file, kept)
        for op in list(self._ops):
            if unsure and op.stage == "persisting":
                op.stage = "pushed"
            self._fail(op, reason, release=False)

    def granted(self, grant: Grant) -> None:
        """Go on with the op that waited for this grant; a grant that nobody waits for goes back."""
        shared = self._shared
        op = self._by_request.get(grant.request)
        if op is None:
            shared.tell_lockd_one_way(Cancel(shared.identity.epoch, shared.session, grant.request))
            return
        if op.stage != "waiting":
            return
        op.stage = "holding"
        shared.figures.waits.add((shared.now_ns - op.asked_ns) // 1000)
        op.token, op.in_sync, op.learners = grant.token, frozenset(grant.in_sync), grant.learners
        op.clock = grant.clock
        shared.saw_time(grant.time_us)
        state = shared.state(op.file)
        op.version = state.head.version
        if grant.sticky:
            op.kept = self._kept[op.file] = Kept(grant.token, op.in_sync, op.version, set())
        if shared.knows_too_much(grant.clock):
            self._fail(op, f"lockd's clock of {op.file} knows more of {shared.identity.host} than it does itself")
        elif state.promised > grant.token:
            self._fail(op, f"this replica has promised the newer token {format_token(state.promised)}")
        elif grant.clean is None:
            self._settle(op)
        elif grant.clean != state.head.version:
            self._fail(op, f"this replica is at {state.head.version}, the group at {grant.clean}; try again")
        elif op.submit is None:
            self._release(op, shared.clock)
            self._forget(op)
        else:
            self._do(op)

    def refused(self, message: Refused) -> bool:
        """End the op whose lock was refused; return whether there was one."""
        op = self._by_request.get(message.request)
        if op is None:
            return False
        trouble = self._shared.troubles.get(op.file)
        reason = (
            f"{message.reason} (the last change of {op.file} here failed: {trouble})" if trouble else message.reason
        )
        self._fail(op, reason, release=False)
        return True

    def acked(self, replica: str, file: str, token: int, seq: int) -> None:
        """Count an ack, and go on when the whole in-sync set has acked."""
        for op in self._ops:
            if op.file == file and op.token == token and op.stage in ("settling", "pushed"):
                if op.version is not None and seq >= op.version.seq:
                    op.acked.add(replica)
                    self._go_on(op)
                return

    def fenced(self, replica: str, fenced: Fenced) -> None:
        """Give up an op whose push an in-sync replica refused: another holder has a newer token."""
        token, promised = format_token(fenced.token), format_token(fenced.promised)
        who = self._shared.host_of(replica)
        self._shared.emit(Note(f"{who} refused our push to {fenced.file}: {token} is fenced by {promised}"))
        for op in self._ops:
            if replica not in op.in_sync:
                continue
            if op.file == fenced.file and op.token == fenced.token and op.stage in ("settling", "pushed"):
                self._fail(op, f"fenced: token {token} is older than {promised}, which {who} has promised")
                return

    def broken(self, message: Lost) -> None:
        """End the op whose lock an operator has taken away."""
        if (kept := self._kept.get(message.lock)) is not None and kept.token == message.token:
            del self._kept[message.lock]
        for op in self._ops:
            if op.token == message.token and op.file == message.lock:
                self._fail(op, f"its lock was lost: {message.reason}", release=False)
                return

    def recalled(self, message: Recall) -> None:
        """Give a lock back that somebody else wants: now, or when the op that has it is done."""
        kept = self._kept.get(message.lock)
        if kept is not None and kept.token == message.token:
            kept.recalled = True
            if not kept.busy:
                self._give_back(message.lock, kept)

    def released(self, message: Released) -> None:
        """Give out a read's value if its token was still current."""
        op = self._by_request.get(message.request)
        if op is None or op.stage != "releasing":
            return
        if message.current:
            self._give_out(op)
        else:
            self._finish(op, "failed", "its lock was lost before the read ended; try again")

    def in_sync(self, message: InSync) -> None:
        """Take in lockd's answer to a Drop: go on with the set that is left, or give up."""
        op = self._by_request.get(message.request)
        if op is None or op.stage not in ("settling", "pushed"):
            return
        if not message.current:
            self._fail(op, "its lock was lost")
            return
        # Durably, before the op is acknowledged by those who are left: a lockd that does not know of it is an old one.
        shared = self._shared
        shared.identity.changes = max(shared.identity.changes, message.changes)
        shared.remember()
        op.in_sync, op.unanswered = frozenset(message.in_sync), None
        op.asked_to_drop = frozenset()
        self._go_on(op)

    def members_changed(self) -> None:
        """Drop, at lockd, whoever has left and still owes an ack."""
        for op in self._ops:
            if op.stage in ("settling", "pushed"):
                self._drop(op, frozenset(self._missing(op) - self._shared.members.keys()))

    def tick(self) -> None:
        """Do what has become due: end waits, push again to the silent, drop them; go on with one op at the most."""
        now_ns, late = self._shared.now_ns, None
        for op in list(self._ops):
            if op.stage == "queued" and now_ns >= op.deadline_ns:
                self._fail(op, _NO_SESSION, release=False)
            elif op.stage == "waiting" and now_ns >= op.deadline_ns + _ANSWER_MARGIN_NS:
                shared = self._shared
                shared.tell_lockd_one_way(Cancel(shared.identity.epoch, shared.session, op.request))
                self._fail(op, _NO_ANSWER, release=False)
            elif op.stage == "settling" and now_ns >= op.deadline_ns:
                self._fail(op, f"no ack in time of {self._names(self._missing(op))}")
            elif op.silent_ns is not None and now_ns >= op.silent_ns and op.in_sync <= op.acked:
                late = late or op
            elif op.silent_ns is not None and now_ns >= op.silent_ns:
                op.silent_ns = now_ns + self.silence_ns
                if op.pushed_again:
                    op.asked_to_drop = frozenset()
                    self._drop(op, frozenset(self._missing(op)))
                else:
                    op.pushed_again = True
                    self._send(op, self._missing(op))
        if late is not None:
            self._go_on(late)

    # Stages

    def _acquire(self, op: Op) -> None:
        shared = self._shared
        kept = self._kept.get(op.file)
        if kept is not None and op.submit is not None and not kept.busy and self._lease_lasts():
            kept.busy = True
            op.stage, op.kept, op.token, op.in_sync, op.version = (
                "holding",
                kept,
                kept.token,
                kept.in_sync,
                kept.version,
            )
            self._do(op)
            return
        op.stage, op.request, op.asked_ns = "waiting", shared.request(), shared.now_ns
        self._by_request[op.request] = op
        self._ask(op)

    def _ask(self, op: Op) -> None:
        shared = self._shared
        mode: Literal["shared", "exclusive"] = "exclusive"
        if op.submit is not None and op.submit.verb == "read":
            mode = "shared"
        wait_ns = max(0, op.deadline_ns - shared.now_ns)
        shared.tell_lockd(
            Acquire(
                shared.identity.epoch,
                shared.session,
                op.request,
                op.file,
                "file",
                mode,
                wait_ns // 1_000_000,
                owner=0,
                limit=0,
                converts=0,
                sticky=op.submit is not None and mode == "exclusive",
            )
        )

    def _settle(self, op: Op) -> None:
        shared = self._shared
        head = shared.state(op.file).head.version
        shared.clock = merge(shared.clock, op.clock)
        op.stage = "persisting"

        def then() -> None:
            op.stage = "settling"
            op.push = Push(shared.identity.group, op.file, op.token, head, (), shared.clock)
            self._push(op)

        shared.persist(op.file, head.seq, (), (), (op.token, op.token), then, lambda reason: self._fail(op, reason))

    def _do(self, op: Op) -> None:
        assert op.submit is not None
        promised = self._shared.state(op.file).promised
        if promised > op.token:
            self._fail(op, f"this replica has promised the newer token {format_token(promised)}")
            return
        match op.submit.verb:
            case "read":
                self._read(op)
            case "write" | "update" | "restore":
                self._change(op)
            case _:
                assert_never(op.submit.verb)

    def _give_out(self, op: Op) -> None:
        """End a read whose value is known to be the newest."""
        if op.file in self._shared.files:
            self._finish(op, "ok", "")
        else:
            self._create(op)

    def _create(self, op: Op) -> None:
        """Make the file that a read is the first op of; it stays at version 0.

        Not before lockd knows of the read: a name that only a failed op has used may become a folder.
        """

        def failed(reason: str) -> None:
            self._shared.emit(Note(f"{op.file} was not made: {reason}"))
            self._finish(op, "ok", "")

        op.stage = "persisting"
        self._shared.persist(op.file, 0, (), (), (op.token, 0), lambda: self._finish(op, "ok", ""), failed)

    def _read(self, op: Op) -> None:
        shared = self._shared
        assert op.submit is not None
        op.version = version = shared.state(op.file).head.version
        op.id = self._new_id()
        shared.clock = merge(shared.clock, op.clock)
        facts = _facts(op, version) + format_pairs([("snapshot", f"{op.file}@{version.seq}")])
        op.clock = shared.tick()
        shared.log(shared.stamp_us(), op.clock, "read", facts)
        number = op.submit.op
        shared.emit(Begin(number, op.id))

        def then() -> None:
            shared.reads[op.file] = op.clock
            shared.emit(ReadFile(number, op.file))
            if op.kept and not op.kept.recalled and self._lease_lasts():
                self._release(op, shared.clock)
                self._give_out(op)
                return
            op.stage = "releasing"
            self._release(op, shared.clock, confirm=True)

        shared.flush(op.file, then, lambda reason: self._never_was(op, reason))

    def _change(self, op: Op) -> None:
        shared, submit = self._shared, op.submit
        assert submit is not None and submit.verb != "read"
        state = shared.state(op.file)
        head = state.head.version
        op.looked = True
        if submit.retry and (first := self._first_try(op.file, submit.retry)) is not None:
            # Under the lock of a file that is clean, or settled, nothing older than its token can come any more.
            id_, version = first
            if not _is_of(shared.history.record_at(op.file, version.seq), submit):
                self._fail(op, f"{id_} is another op, and no first try of this one; look into the snapshots")
                return
            self._release(op, shared.clock)
            op.id, op.version = id_, version
            self._finish(op, "ok", "")
            return
        if submit.verb == "restore":
            if not 0 <= submit.of <= head.seq:
                self._fail(op, f"{op.file} has versions 0 to {head.seq}, not {submit.of}")
                return
            offset, inserted = shared.history.change_to(op.file, submit.of)
            if len(inserted) > CHANGE_BYTES_MAX:
                self._fail(
                    op,
                    f"it would put back {len(inserted)} bytes, an op at most {CHANGE_BYTES_MAX}; "
                    "restore a version that is nearer first",
                )
                return
        else:
            offset, inserted = splice(submit.verb, submit.text, state.length)
        op.id = self._new_id()
        shared.clock = merge(shared.clock, op.clock)
        time_us, clock = shared.stamp_us(), shared.tick()
        record = Record(head.seq + 1, op.token, op.id, submit.verb, offset, inserted, clock, time_us, submit.of)
        version = version_after(head, record)
        more = [("bytes", f"{record.length - state.length:+d}")]
        if submit.verb == "restore":
            more.append(("of", str(submit.of)))
        more.append(("snapshot", f"{op.file}@{version.seq}"))
        if submit.verb != "restore":
            more.append(("text", shorten(submit.text)))
        shared.log(time_us, clock, submit.verb, _facts(op, version) + format_pairs(more))
        shared.emit(Begin(submit.op, op.id))
        op.stage = "persisting"

        def then() -> None:
            op.stage, op.version = "pushed", version
            op.push = Push(shared.identity.group, op.file, op.token, head, (record,), {})
            self._push(op)

        tokens = (op.token, op.token)
        shared.persist(
            op.file, head.seq, (record,), (version,), tokens, then, lambda reason: self._never_was(op, reason)
        )

    def _first_try(self, file: str, ids: tuple[str, ...]) -> tuple[str, Version] | None:
        """Return which of these ops is in the file's history, and the version it made; None if none is."""
        history = self._shared.history
        oldest = {id_.rpartition(":")[0]: _number(id_) for id_ in sorted(ids, key=_number, reverse=True)}
        for seq in range(self._shared.state(file).head.version.seq, 0, -1):
            record = history.record_at(file, seq)
            host = record.id.rpartition(":")[0]
            if record.id in ids:
                version = history.version_at(file, seq)
                assert version is not None
                return record.id, version
            if _number(record.id) < oldest.get(host, 0):
                del oldest[host]  # an author's ops stand in their order: further back none of these can be
                if not oldest:
                    return None
        return None

    def _new_id(self) -> str:
        """Return an op's id, in the moment in which it is logged: so the log tells which ids were given out."""
        identity = self._shared.identity
        identity.ops += 1
        return f"{identity.host}:{identity.ops}"

    def _push(self, op: Op) -> None:
        """Send the push to everybody but ourselves, and wait for the in-sync set's acks."""
        shared = self._shared
        op.acked = {shared.identity.replica}
        op.silent_ns, op.pushed_again = shared.now_ns + self.silence_ns, False
        missing = self._missing(op)
        self._send(op, missing | set(op.learners))
        self._drop(op, frozenset(missing - shared.members.keys()))
        self._go_on(op)

    def _send(self, op: Op, replicas: set[str]) -> None:
        assert op.push is not None
        own = self._shared.identity.replica
        for replica in sorted(replicas):
            if replica in self._shared.members and replica != own:
                self._shared.emit(SendReplica(replica, op.push))

    def _missing(self, op: Op) -> set[str]:
        return set(op.in_sync - op.acked)

    def _drop(self, op: Op, replicas: frozenset[str]) -> None:
        """Ask lockd to take replicas out of the in-sync set, once."""
        shared = self._shared
        if not replicas or replicas <= op.asked_to_drop:
            return
        op.asked_to_drop |= replicas
        shared.emit(Note(f"no ack for {op.id or op.file} of {self._names(set(replicas))}; asking lockd"))
        request = shared.request()
        self._by_request[request] = op
        op.unanswered = Drop(shared.identity.epoch, shared.session, request, op.file, op.token, tuple(sorted(replicas)))
        shared.tell_lockd(op.unanswered)

    def _go_on(self, op: Op) -> None:
        if not op.in_sync <= op.acked:
            return
        if self._shared.now_ns >= self._shared.lease_ns:
            op.silent_ns = self._shared.now_ns  # the next tick finds the lease renewed, or the session lost
            return
        op.silent_ns = None
        if op.stage == "settling":
            op.stage = "holding"
            if op.submit is None:
                self._release(op, self._shared.clock)
                self._forget(op)
            else:
                self._do(op)
        elif op.stage == "pushed":
            self._release(op, self._shared.clock, changed=True)
            self._finish(op, "ok", "")

    def _lease_lasts(self) -> bool:
        """Tell whether nobody else can have a lock that is kept, also where lockd's clock runs faster than ours."""
        shared = self._shared
        return shared.session != 0 and shared.now_ns < shared.lease_ns - self.silence_ns // _LEASE_MARGIN

    def _give_back(self, file: str, kept: Kept) -> None:
        """Release a lock that was kept; what the ops under it have left lockd knows."""
        shared, token = self._shared, kept.token
        del self._kept[file]
        epoch, session, acked = shared.identity.epoch, shared.session, tuple(sorted(kept.acked))
        release = Release(epoch, session, 0, file, token, kept.version, {}, False, acked, confirm=False, keep=False)
        shared.tell_lockd_one_way(release)

    def _release(
        self, op: Op, clock: Clock, changed: bool = False, confirm: bool = False, failed: bool = False
    ) -> None:
        """Give the lock back, with a clock for the next holders; one that may be kept is kept."""
        shared, kept = self._shared, op.kept
        assert op.version is not None
        request, keep = 0, False
        if kept:
            keep = not (kept.recalled or confirm or failed or self._left)
            if op.acked:
                kept.in_sync, kept.version, kept.acked = op.in_sync, op.version, op.acked
            else:
                op.acked = kept.acked  # a read, or a change that never was: the file is as the op before has left it
            if keep:
                kept.busy = False
            else:
                del self._kept[op.file]
        if confirm:
            request = shared.request()
            self._by_request[request] = op
        release = Release(
            shared.identity.epoch,
            shared.session,
            request,
            op.file,
            op.token,
            op.version,
            clock,
            changed,
            tuple(sorted(op.acked)),
            confirm,
            keep,
        )
        if confirm:
            op.unanswered = release
            shared.tell_lockd(release)
        else:
            shared.tell_lockd_one_way(release)

    def _names(self, replicas: set[str]) -> str:
        return ", ".join(sorted(self._shared.host_of(replica) for replica in replicas))

    # Ends

    def _fail(self, op: Op, reason: str, release: bool = True) -> None:
        """End an op that cannot go on; give its lock back where it has one and may."""
        if release and op.token:
            shared, pushed = self._shared, op.stage == "pushed"
            if op.stage == "settling":
                op.acked = set()
            # An op that did not happen leaves the clock of what it has settled, or none.
            settled = shared.state(op.file).head.clock if op.acked else {}
            self._release(op, shared.clock if pushed else settled, changed=pushed, failed=True)
        retry = op.submit.retry if op.submit and not op.looked else ()
        if retry:
            op.id = retry[-1]  # of which nothing more is known than before
        self._finish(op, "unknown" if op.stage == "pushed" or retry else "failed", reason)

    def _never_was(self, op: Op, reason: str) -> None:
        """End an op whose line is in no log: its id is told to nobody, the next start may give it out again."""
        op.id = ""
        self._fail(op, reason)

    def _finish(self, op: Op, outcome: Outcome, reason: str) -> None:
        self._forget(op)
        if outcome != "ok":
            verb = op.submit.verb if op.submit else "settling"
            what = op.id or f"{verb} of {op.file}"
            self._shared.emit(Note(f"{what} ended {outcome}: {reason}"))
        if op.submit is not None:
            version = op.version or self._shared.state(op.file).head.version
            self._shared.emit(Finished(op.submit.op, op.id, outcome, version, reason))

    def _forget(self, op: Op) -> None:
        self._ops = [other for other in self._ops if other is not op]
        self._by_request = {request: other for request, other in self._by_request.items() if other is not op}


def _is_of(record: Record, submit: Submit) -> bool:
    """Tell whether a record can be what an op made."""
    if record.verb != submit.verb:
        return False
    if submit.verb == "restore":
        return record.of == submit.of
    change = record.offset, record.inserted
    lengths = (record.offset,) if submit.verb == "write" else (record.offset + 1, record.offset)
    return any(splice(submit.verb, submit.text, length) == change for length in lengths)


def _number(id_: str) -> int:
    return int(id_.rpartition(":")[2])


def _facts(op: Op, version: Version) -> str:
    return format_op(op.file, op.id, op.token, version.seq, version.hash)
