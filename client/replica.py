"""The follower's core: what a replica does with pushes and fetches of others. No I/O.

Theory of operation. A replica promises tokens and follows one. A push below the promise is fenced. The first
push taken in under a newer token replaces everything behind the common prefix, by undo; under the followed
token a push only adds. A push that meets nothing we hold is promised alone, durably, and then we fetch what
we lack from its sender; an answer is taken in like a push of the token that its source follows. A learner
does the same from the sources that lockd names, and reports to lockd after everything it takes in.

Invariants:
- promised >= followed token, and both only rise;
- an event line stands before the durable write, and the durable write before the ack;
- we never ack what we do not hold durably under the token that is acked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from client.effects import Answer, FileState, Note, SendReplica
from client.shared import Shared
from common.clock import Clock, merge
from common.eventlog import format_op
from common.limits import FETCH_BYTES_MAX, FETCH_POINTS_MAX
from common.messages import Ack, Fenced, Fetch, Fetched, Push, Report
from common.records import EMPTY, Record, Version
from common.tokens import format_token, token_epoch
from common.wire import version_after

_TIME_US_MAX: Final = 253_402_300_800_000_000
"""The year 10000: what no op is stamped with."""
_RETRY_NS: Final = 1_000_000_000
"""A fetch that is not answered in this time is given up; the push or lockd brings the next."""


@dataclass(slots=True)
class Fetching:
    """A fetch under way."""

    request: int
    source: str
    since_ns: int


@dataclass(slots=True)
class Beginning:
    """The beginning of an answer that comes in parts: it cannot be taken in before the rest is here."""

    source: str
    previous: Version
    records: tuple[Record, ...]
    tip: Version


@dataclass(slots=True)
class Owed:
    """An ack that a push of `source` waits for while we fetch what came before it."""

    source: str
    route: bytes
    token: int
    tip: Version


class Follower:
    """The replica's side of replication, for all files."""

    def __init__(self, shared: Shared) -> None:
        """Work on the shared state."""
        self._shared = shared
        self._fetching: dict[str, Fetching] = {}
        self._owed: dict[str, Owed] = {}
        self._beginnings: dict[str, Beginning] = {}
        self.learning: set[str] = set()

    def push(self, route: bytes, source: str, push: Push) -> None:
        """Take in a push that `source` sent along `route`, or refuse it, or fetch what is missing."""
        shared = self._shared
        state = shared.state(push.file)
        if token_epoch(push.token) > shared.identity.epoch:
            shared.emit(Note(f"dropped a push of {shared.host_of(source)}: its token is of an epoch to come"))
            return
        if self._is_fenced(push.token, state):
            shared.emit(
                Note(
                    f"refused a push of {shared.host_of(source)} to {push.file}: its token "
                    f"{format_token(push.token)} is fenced by {format_token(state.promised)}"
                )
            )
            shared.emit(Answer(route, Fenced(push.file, push.token, state.promised)))
            return
        if problem := self._problem(push.token, push.previous, push.records, push.clock):
            shared.emit(Note(f"dropped a push of {shared.host_of(source)}: {problem}"))
            return
        versions = _chain(push.previous, push.records)
        tip = versions[-1] if versions else push.previous
        keep = self._common(push.file, push.token, push.previous, push.records, versions)
        if keep is None:
            self._owed[push.file] = Owed(source, route, push.token, tip)
            self._promise(push.file, push.token, lambda: self._fetch(push.file, source))
            return

        def taken() -> None:
            shared.emit(Answer(route, Ack(push.file, push.token, tip.seq)))
            self._report(push.file)

        cause = push.clock or (push.records[-1].clock if push.records else {})
        self._take(push.file, push.token, keep, push.records, versions, cause, source, taken)

    def _is_fenced(self, token: int, state: FileState) -> bool:
        return token < state.promised

    def _promise(self, file: str, token: int, then: Callable[[], None]) -> None:
        """Make a promise durable that comes without anything to hold; it follows nothing."""
        state = self._shared.state(file)
        if token == state.promised:
            then()
            return
        tokens = (token, state.head.follows)
        self._shared.persist(file, state.head.version.seq, (), (), tokens, then, self._failed(file))

    def fetched(self, source: str, answer: Fetched) -> None:
        """Take in the answer to our fetch, like a push of the token that its source follows.

        Of an answer in parts (`more`) that token is true of the whole alone. A part is like a push of its last op's
        token, for that holder had exactly this, and can be taken in as such if that is newer than what we follow, or
        goes on at our head. Any other part waits for the rest, or it would undo what the rest has as well.
        """
        shared = self._shared
        fetching = self._fetching.get(answer.file)
        if fetching is None or fetching.request != answer.request or fetching.source != source:
            return
        if token_epoch(answer.follows) > shared.identity.epoch:
            shared.emit(Note(f"dropped an answer of {shared.host_of(source)}: its token is of an epoch to come"))
            return
        if problem := self._problem(answer.follows, answer.previous, answer.records, {}):
            shared.emit(Note(f"dropped an answer of {shared.host_of(source)}: {problem}"))
            return
        del self._fetching[answer.file]
        shared.figures.ops_fetched += len(answer.records)
        state = shared.state(answer.file)
        previous, records, token = answer.previous, answer.records, answer.follows
        beginning = self._beginnings.pop(answer.file, None)
        if beginning is not None and beginning.source == source and beginning.tip == previous:
            previous, records = beginning.previous, beginning.records + records
        versions = _chain(previous, records)
        keep = None
        if answer.follows >= state.promised:
            keep = self._common(answer.file, answer.follows, previous, records, versions)
        if keep is None:
            self._pay(answer.file, source)
            return
        if answer.more and records:
            head, last = state.head, records[-1]
            goes_on = keep == head.version.seq < last.seq and last.token == head.follows
            if not (goes_on or last.token > head.follows):
                self._beginnings[answer.file] = Beginning(source, previous, records, versions[-1])
                self._fetch(answer.file, source)
                return
            token = last.token

        def taken() -> None:
            if answer.more:
                self._fetch(answer.file, source)
                return
            self._pay(answer.file, source)
            self._report(answer.file)

        cause = records[-1].clock if records else {}
        self._take(answer.file, token, keep, records, versions, cause, source, taken)

    def _pay(self, file: str, source: str) -> None:
        """Send the ack that we owe, or fetch from whom we owe it, if that was not whom we asked just now."""
        shared = self._shared
        owed = self._owed.get(file)
        if owed is None:
            return
        held = shared.history.version_at(file, owed.tip.seq)
        if shared.state(file).head.follows == owed.token and held is not None and held.hash == owed.tip.hash:
            del self._owed[file]
            shared.emit(Answer(owed.route, Ack(file, owed.token, owed.tip.seq)))
        elif owed.source == source:
            del self._owed[file]
        else:
            self._fetch(file, owed.source)

    def fetch(self, route: bytes, fetch: Fetch) -> None:
        """Answer another replica's fetch: what we hold behind the newest version that we share."""
        shared = self._shared
        if len(fetch.points) > FETCH_POINTS_MAX:
            shared.emit(Note(f"dropped a fetch of {fetch.file}: it has more than {FETCH_POINTS_MAX} points"))
            return
        state = shared.state(fetch.file)
        base = EMPTY
        for seq, found in fetch.points:
            version = shared.history.version_at(fetch.file, seq)
            if version is not None and version.hash == found:
                base = version
                break
        records, more = shared.history.records_after(fetch.file, base.seq, FETCH_BYTES_MAX)
        shared.emit(Answer(route, Fetched(fetch.file, fetch.request, state.head.follows, base, records, more)))

    def learn(self, file: str, sources: tuple[str, ...]) -> None:
        """Become, or stay, a learner of `file`, and fetch from a source unless a fetch is under way."""
        if file not in self.learning:
            self.learning.add(file)
            self._shared.figures.catch_ups_begun += 1
        if sources:
            # Who was asked and has not answered may be out of reach: the next one in turn.
            silent = self._fetching.get(file)
            turn = sources.index(silent.source) + 1 if silent and silent.source in sources else 0
            self._fetch(file, sources[turn % len(sources)])

    def admitted(self, file: str) -> None:
        """Take in that we are in the in-sync set of `file`."""
        if file in self.learning:
            self.learning.discard(file)
            self._shared.figures.catch_ups_finished += 1
            self._shared.emit(Note(f"in sync with {file} at {self._shared.state(file).head.version}"))

    def forget_session(self) -> None:
        """Take in that the session is lost: lockd will say anew what we have to learn."""
        self.learning.clear()
        self._fetching.clear()
        self._beginnings.clear()

    def report_all(self) -> None:
        """Tell lockd of every file that we still learn; it answers with sources or an admission."""
        for file in sorted(self.learning):
            self._report(file)

    def _common(
        self,
        file: str,
        token: int,
        previous: Version,
        records: tuple[Record, ...],
        versions: tuple[Version, ...],
    ) -> int | None:
        """Return up to which seq we keep what we have, or None where `previous` meets nothing of ours."""
        shared = self._shared
        head = shared.state(file).head
        at_head = previous.seq == head.version.seq
        held = head.version if at_head else shared.history.version_at(file, previous.seq)
        if held is None or held.hash != previous.hash:
            return None
        common = previous.seq
        if at_head:
            return common
        for record, version in zip(records, versions, strict=True):
            ours = head.version if record.seq == head.version.seq else None
            if ours is None and record.seq < head.version.seq:
                ours = shared.history.version_at(file, record.seq)
            if ours is None or ours.hash != version.hash:
                break
            common = record.seq
        if token > head.follows:
            return common
        # Under the followed token a push only adds: all it brings is held, or it goes on where we end.
        if not records or common == records[-1].seq:
            return head.version.seq
        return common if common == head.version.seq else None

    def _take(
        self,
        file: str,
        token: int,
        keep: int,
        records: tuple[Record, ...],
        versions: tuple[Version, ...],
        cause: Clock,
        source: str,
        taken: Callable[[], None],
    ) -> None:
        """Undo what stands behind `keep`, apply what is new, log both, and make it durable."""
        shared = self._shared
        state = shared.state(file)
        skip = keep - records[0].seq + 1 if records else 0
        new, new_versions = (records[skip:], versions[skip:]) if skip else (records, versions)
        nothing_new = not new and keep == state.head.version.seq and token == state.head.follows
        if nothing_new and (file in shared.files or not token):
            taken()  # and of a name that nobody has used yet no file is made: it may be forgotten again
            return
        if not self._fits(file, keep, new):
            shared.emit(Note(f"dropped ops of {shared.host_of(source)}: one begins behind the end of {file}"))
            return
        origin = f" from={shared.host_of(source)}"
        for seq in range(state.head.version.seq, keep, -1):
            undone = shared.history.record_at(file, seq)
            version = shared.history.version_at(file, seq)
            assert version is not None
            shared.clock = merge(shared.clock, cause)
            shared.log(shared.stamp_us(), shared.tick(), "undo", _facts(file, undone, version) + origin)
        for record, version in zip(new, new_versions, strict=True):
            shared.clock = merge(shared.clock, record.clock)
            shared.saw_time(record.time_us)
            shared.log(shared.stamp_us(), shared.tick(), "apply", _facts(file, record, version) + origin)
        if not new:
            shared.clock = merge(shared.clock, cause)

        def then() -> None:
            if undone := state.head.version.seq - keep:
                shared.figures.undone += undone
                shared.emit(Note(f"undid the newest {undone} of {file}, back to @{keep}: the others do not have them"))
            taken()

        tokens = (max(state.promised, token), token)
        shared.persist(file, keep, new, new_versions, tokens, then, self._failed(file))

    def _fits(self, file: str, keep: int, records: tuple[Record, ...]) -> bool:
        """Tell whether each op begins within the file as the one before leaves it."""
        state = self._shared.state(file)
        length = state.length
        if keep != state.head.version.seq:
            length = self._shared.history.record_at(file, keep).length if keep else 0
        for record in records:
            if record.offset > length:
                return False
            length = record.length
        return True

    def _problem(self, token: int, previous: Version, records: tuple[Record, ...], clock: Clock) -> str | None:
        """Tell what is wrong with ops that another replica sent, before anything of them is logged."""
        shared = self._shared
        if shared.knows_too_much(clock):
            return "it knows more of us than we do"
        before = previous
        for record in records:
            if record.seq != before.seq + 1:
                return "its ops do not follow each other"
            if not before.token <= record.token <= token:
                return "an op's token is out of order"
            if shared.knows_too_much(record.clock):
                return "it knows more of us than we do"
            if record.time_us > _TIME_US_MAX or (record.inserted and not record.inserted.endswith(b"\n")):
                return "an op is malformed"
            before = Version(record.seq, record.token, b"")
        return None

    def _fetch(self, file: str, source: str) -> None:
        shared = self._shared
        fetching = self._fetching.get(file)
        if fetching and shared.now_ns - fetching.since_ns < _RETRY_NS and fetching.source in shared.members:
            return
        if source not in shared.members:
            return
        points: list[tuple[int, bytes]] = []
        beginning = self._beginnings.get(file)
        if beginning is not None and beginning.source == source:
            points.append((beginning.tip.seq, beginning.tip.hash))
        seq, step = shared.state(file).head.version.seq, 1
        while seq > 0 and len(points) < FETCH_POINTS_MAX:
            version = shared.history.version_at(file, seq)
            assert version is not None
            points.append((seq, version.hash))
            seq, step = seq - step, step * 2
        request = shared.request()
        self._fetching[file] = Fetching(request, source, shared.now_ns)
        shared.emit(SendReplica(source, Fetch(shared.identity.group, file, request, tuple(points))))

    def _report(self, file: str) -> None:
        shared = self._shared
        if file in self.learning and shared.session:
            head = shared.state(file).head
            shared.tell_lockd(Report(shared.identity.epoch, shared.session, file, head.version, head.follows))

    def _failed(self, file: str) -> Callable[[str], None]:
        """Return what notes that a change of a file could not be taken in, unless that was so the last time."""

        def failed(reason: str) -> None:
            if self._shared.troubles.get(file) != reason:
                self._shared.emit(Note(f"nothing of {file} was taken in: {reason}"))

        return failed


def _chain(previous: Version, records: tuple[Record, ...]) -> tuple[Version, ...]:
    versions = []
    for record in records:
        previous = version_after(previous, record)
        versions.append(previous)
    return tuple(versions)


def _facts(file: str, record: Record, version: Version) -> str:
    return format_op(file, record.id, record.token, version.seq, version.hash)
