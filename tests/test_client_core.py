"""The client's core, one event at a time: its session, the holder's ops, and what a follower takes in."""

from dataclasses import dataclass, field, replace
from typing import TypeVar

import pytest

from client.core import Client
from client.effects import (
    Answer,
    Begin,
    Connect,
    Disconnect,
    Effect,
    Event,
    FileState,
    Finished,
    Flush,
    FromDaemon,
    FromPeer,
    Joined,
    JoinRefused,
    Leave,
    LockdConnected,
    LockdDisconnected,
    Log,
    Note,
    OpVerb,
    PeerAnswer,
    Persist,
    Persisted,
    PersistFailed,
    ReadFile,
    Reconnect,
    Remember,
    SendLockd,
    SendReplica,
    Submit,
    Timer,
)
from client.shared import Identity
from common.clock import Clock
from common.eventlog import Event as LogLine
from common.eventlog import parse_pairs
from common.limits import FETCH_POINTS_MAX
from common.messages import (
    Ack,
    Acquire,
    Admitted,
    Cancel,
    Drop,
    Ended,
    Fenced,
    Fetch,
    Fetched,
    FromLockd,
    FromReplica,
    Goodbye,
    Grant,
    Head,
    Hello,
    Here,
    InSync,
    Learn,
    Member,
    Mode,
    Ping,
    Pong,
    Probe,
    Push,
    Refused,
    Release,
    Released,
    Report,
    Resume,
    Settle,
    Stale,
    View,
    Welcome,
)
from common.records import EMPTY, Record, Version
from common.tokens import make_token
from common.wire import version_after
from tests.doubles import MemoryJournal

S = 1_000_000_000
TTL_NS = 3 * S
QUICK_NS = 60_000_000
"""So long after its welcome a session has sent its quick pings."""
EPOCH = 1
EPOCH_ID = "e" * 16
GROUP = "0123456789abcdef"
FILE = "f"

Kind = TypeVar("Kind")


def replica_id(name: str) -> str:
    return f"{name.encode().hex():0<16}"


def route_of(name: str) -> bytes:
    return (replica_id(name) + "f" * 16).encode()


def member(name: str, incarnation: str = "f" * 16) -> Member:
    return Member(replica_id(name), name, "tcp://127.0.0.1:1", incarnation)


def token(counter: int) -> int:
    return make_token(EPOCH, counter)


def write(previous: Version, counter: int, text: str, offset: int, clock: Clock | None = None) -> Record:
    clock = clock or {"b": previous.seq + 1}
    return Record(previous.seq + 1, token(counter), f"b:{counter}", "write", offset, text.encode(), clock, counter)


def history(*texts: str, counter: int = 1) -> tuple[tuple[Record, ...], tuple[Version, ...]]:
    """Return ops that write the texts, each under the next token, and the versions they make, EMPTY first."""
    records: list[Record] = []
    versions = [EMPTY]
    for number, text in enumerate(texts, counter):
        records.append(write(versions[-1], number, text, records[-1].length if records else 0))
        versions.append(version_after(versions[-1], records[-1]))
    return tuple(records), tuple(versions)


@dataclass
class Seat:
    """A client's core with its journal; persisting takes `persisting_ns`, and everything it asks for is kept."""

    journal: MemoryJournal = field(default_factory=MemoryJournal)
    now_ns: int = 1_000 * S
    effects: list[Effect] = field(default_factory=list)
    submitted: int = 0
    clock: Clock = field(default_factory=dict)
    last_time_us: int = 0
    log_full: bool = False
    persisting_ns: int = 0

    def __post_init__(self) -> None:
        self.identity = Identity("a", "a" * 16, replica_id("a"), 1, "tcp://127.0.0.1:9", "disk")
        states = self.journal.states()
        self.core = Client(self.identity, self.journal, states, self.clock, self.last_time_us)
        self.feed(LockdConnected())

    def feed(self, event: Event) -> None:
        effects = self.core.handle(event, self.now_ns)
        while effects:
            self.effects += effects
            last = effects[-1]
            assert not any(isinstance(effect, (Persist, Flush)) for effect in effects[:-1])
            if not isinstance(last, (Persist, Flush)):
                return
            self.now_ns += self.persisting_ns
            reason = "no room for the log" if self.log_full else self.journal.failing
            if reason and (self.log_full or isinstance(last, Persist)):
                # As the driver, which cuts the lines of what did not happen.
                self.effects = [effect for effect in self.effects if effect not in effects or type(effect) is not Log]
                outcome: Event = PersistFailed(last.ticket, reason)
            elif isinstance(last, Flush):
                outcome = Persisted(last.ticket)
            else:
                self.journal.write(last)
                outcome = Persisted(last.ticket)
            effects = self.core.handle(outcome, self.now_ns)

    def lockd(self, message: FromLockd) -> None:
        self.feed(FromDaemon(message))

    def peer(self, name: str, message: Push | Fetch) -> None:
        self.feed(FromPeer(route_of(name), message))

    def answer(self, name: str, message: FromReplica) -> None:
        self.feed(PeerAnswer(replica_id(name), message))

    def pass_time(self, duration_ns: int) -> None:
        """Let time pass, the timer ringing when the core wants it to."""
        end_ns = self.now_ns + duration_ns
        while (deadline_ns := self.core.deadline_ns()) is not None and deadline_ns <= end_ns:
            self.now_ns = max(self.now_ns, deadline_ns)
            self.feed(Timer())
        self.now_ns = end_ns

    # What it asked for

    def all(self, kind: type[Kind]) -> list[Kind]:
        """Return what it asked for since the last time: effects of a kind, or messages of a kind that it sent."""
        found: list[Kind] = []
        rest: list[Effect] = []
        for effect in self.effects:
            message = effect.message if isinstance(effect, (SendLockd, SendReplica, Answer)) else None
            if isinstance(effect, kind):
                found.append(effect)
            elif isinstance(message, kind):
                found.append(message)
            else:
                rest.append(effect)
        self.effects = rest
        return found

    def one(self, kind: type[Kind]) -> Kind:
        """Return the one of a kind."""
        (found,) = self.all(kind)
        return found

    def to(self) -> set[str]:
        """Return to which replicas it has sent since the last time."""
        return {effect.replica for effect in self.all(SendReplica)}

    def lines(self) -> list[tuple[str, Clock]]:
        """Return verb and clock of what it logged since the last time."""
        return [(line.verb, line.clock) for line in self.all(Log)]

    def forget(self) -> None:
        self.effects = []

    # What it does

    def join(self, *others: str, session: int = 1, time_us: int = 0) -> None:
        self.feed(Timer())
        self.welcome(self.one(Hello), *others, session=session, time_us=time_us)
        self.one(Joined)
        self.pass_time(QUICK_NS)
        self.forget()

    def welcome(self, hello: Hello, *others: str, session: int = 1, time_us: int = 0) -> None:
        members = (member("a"), *[member(name) for name in others])
        self.lockd(
            Welcome(
                EPOCH,
                EPOCH_ID,
                0,
                session,
                hello.request,
                GROUP,
                3000,
                "a",
                replica_id("a"),
                members,
                time_us,
                0,
                False,
            )
        )

    def submit(self, verb: OpVerb, text: str = "", of: int = 0, wait_ns: int = 10 * S) -> None:
        self.submitted += 1
        self.feed(Submit(self.submitted, verb, FILE, text, of, wait_ns))

    def grant(
        self,
        counter: int,
        *in_sync: str,
        learners: tuple[str, ...] = (),
        clean: Version | None = EMPTY,
        mode: Mode = "exclusive",
        clock: Clock | None = None,
    ) -> None:
        """Grant what it asked for last."""
        acquire = self.one(Acquire)
        members = tuple([replica_id(name) for name in ("a", *in_sync)])
        self.lockd(
            Grant(
                EPOCH,
                acquire.request,
                FILE,
                token(counter),
                mode,
                clock or {},
                clean,
                members,
                tuple([replica_id(name) for name in learners]),
                0,
                False,
            )
        )

    def push(
        self,
        counter: int,
        previous: Version,
        records: tuple[Record, ...] = (),
        name: str = "b",
        clock: Clock | None = None,
    ) -> None:
        self.peer(name, Push(GROUP, FILE, token(counter), previous, records, clock or {}))

    @property
    def head(self) -> Version:
        return self.core.head_of(FILE).head.version


@pytest.fixture
def seat() -> Seat:
    """A client that has joined b and c."""
    seat = Seat()
    seat.join("b", "c")
    return seat


def with_history(*texts: str) -> tuple[Seat, tuple[Version, ...]]:
    """Return a client that has taken in these ops of b, and their versions."""
    seat = Seat()
    seat.join("b", "c")
    records, versions = history(*texts)
    for previous, record in zip(versions, records, strict=False):
        seat.push(record.seq, previous, (record,))
    seat.forget()
    return seat, versions


# The session


def test_a_session_begins_with_a_hello_and_connects_to_the_others() -> None:
    seat = Seat()
    seat.feed(Timer())
    hello = seat.one(Hello)
    assert (hello.name, hello.group, hello.epoch, hello.highest_token) == ("a", "", 0, 0)
    seat.welcome(hello, "b")
    assert seat.one(Remember) == Remember(replica_id("a"), "a", GROUP, EPOCH, EPOCH_ID, 0)
    assert [connect.member.host for connect in seat.all(Connect)] == ["b"]
    assert seat.one(Joined) == Joined()
    assert seat.core.joined


def test_a_hello_tells_of_heads_and_the_highest_token() -> None:
    seat, versions = with_history("one\n")
    seat.lockd(Ended(EPOCH, 1, "test"))
    seat.pass_time(0)
    hello = seat.one(Hello)
    assert hello.replica is not None
    assert hello.replica.heads[FILE].version == versions[1]
    assert (hello.highest_token, hello.epoch, hello.group) == (token(1), EPOCH, GROUP)


def test_a_hello_is_repeated_as_it_is_until_it_is_old() -> None:
    seat = Seat()
    seat.feed(Timer())
    seat.pass_time(2 * S)
    requests = [hello.request for hello in seat.all(Hello)]
    assert len(requests) == 3 and len(set(requests)) == 1
    seat.forget()
    seat.pass_time(1 * S)
    assert len(seat.all(Reconnect)) == 1 and not seat.all(Hello), "a connection can be dead and not say so"
    seat.feed(LockdConnected())
    assert seat.one(Hello).request != requests[0]


def test_a_welcome_to_an_older_hello_is_not_taken() -> None:
    seat = Seat()
    seat.feed(Timer())
    first = seat.one(Hello)
    seat.pass_time(3 * S)
    seat.welcome(first)
    assert not seat.core.joined
    seat.feed(LockdConnected())
    seat.welcome(first)
    assert not seat.core.joined


@pytest.mark.parametrize("late", ["the grant", "the disk"])
def test_no_op_is_acknowledged_behind_the_lease(late: str) -> None:
    seat = Seat()
    seat.join()
    seat.submit("write", "x")
    if late == "the grant":
        seat.now_ns += 60 * S
    else:
        seat.persisting_ns = 60 * S
    seat.grant(1)
    assert not seat.all(Finished)
    seat.feed(Timer())
    assert seat.one(Finished).outcome == "unknown"


def test_a_clock_that_knows_too_much_of_us_is_not_taken_over() -> None:
    seat = Seat()
    seat.join()
    seat.submit("write", "x")
    seat.grant(1, clock={"a": 1 << 62})
    assert seat.one(Finished).outcome == "failed"
    assert not seat.all(Log) and not seat.all(Persist)


def test_an_op_that_is_asked_for_again_is_unknown_until_it_was_looked_for() -> None:
    seat = Seat()
    seat.join()
    seat.feed(Submit(1, "write", FILE, "x", 0, S, ("b:3", "a:9")))
    seat.lockd(Refused(EPOCH, seat.one(Acquire).request, "no grant in time", "wait"))
    finished = seat.one(Finished)
    assert (finished.outcome, finished.id) == ("unknown", "a:9")


def test_a_probe_is_answered_at_once() -> None:
    seat = Seat()
    seat.join()
    seat.lockd(Probe(EPOCH, 1, 7))
    assert seat.one(Here) == Here(EPOCH, 1, 7)


@pytest.mark.parametrize("answered", [True, False])
def test_lockd_is_told_of_what_was_read(answered: bool) -> None:
    """Also of a read whose Release may have come: a lockd that is rebuilt has lost it."""
    seat = Seat()
    seat.join()
    seat.submit("read")
    seat.grant(1, mode="shared")
    (line,) = seat.all(Log)
    if answered:
        seat.lockd(Released(EPOCH, seat.one(Release).request, True))
    seat.lockd(Ended(EPOCH, 1, "a test"))
    seat.feed(Timer())
    hello = seat.all(Hello)[-1]
    assert hello.replica is not None and hello.replica.reads == {FILE: line.clock}


def test_the_lease_counts_from_the_send_time() -> None:
    seat = Seat()
    seat.feed(Timer())
    hello = seat.one(Hello)
    seat.now_ns += S // 2
    seat.welcome(hello)
    seat.pass_time(QUICK_NS)
    ping = seat.all(Ping)[-1]
    seat.now_ns += S // 4
    seat.lockd(Pong(EPOCH, ping.request, 0))
    seat.pass_time(TTL_NS - S // 4 - 1)
    assert seat.core.joined
    seat.pass_time(1)
    assert not seat.core.joined


def test_a_ping_goes_out_every_third_of_the_ttl(seat: Seat) -> None:
    for _ in range(4):
        seat.pass_time(S - 1)
        assert not seat.all(Ping)
        seat.pass_time(1)
        seat.lockd(Pong(EPOCH, seat.one(Ping).request, 0))
    assert seat.core.joined


@pytest.mark.parametrize("how", ["lease", "ended", "stale"])
def test_a_lost_session_voids_its_locks_and_the_next_one_begins(seat: Seat, how: str) -> None:
    seat.submit("write", "one")
    seat.grant(1, "b")
    seat.submit("write", "two")
    if how == "lease":
        seat.pass_time(TTL_NS)
    elif how == "ended":
        seat.lockd(Ended(EPOCH, 1, "its lease ran out"))
    else:
        seat.lockd(Stale(EPOCH + 1))
    assert [(end.op, end.outcome) for end in seat.all(Finished)] == [(1, "unknown")]
    assert not seat.all(Release)
    seat.pass_time(0)
    hello = seat.one(Hello)
    assert hello.epoch == EPOCH
    seat.forget()
    seat.welcome(hello, "b")
    assert len(seat.all(Acquire)) == 1, "what only waited for its lock waits on"


def test_what_belongs_to_another_session_or_epoch_is_not_taken(seat: Seat) -> None:
    seat.lockd(Ended(EPOCH, 99, "another"))
    seat.lockd(Stale(EPOCH))
    seat.lockd(Admitted(EPOCH + 1, FILE))
    assert seat.core.joined


def test_an_op_submitted_without_a_session_waits_for_it() -> None:
    seat = Seat()
    seat.submit("write", "one", wait_ns=5 * S)
    seat.now_ns += S
    seat.welcome(seat.one(Hello))
    assert seat.one(Acquire).wait_ms == 4_000


def test_an_op_without_a_session_fails_in_time() -> None:
    seat = Seat()
    seat.submit("write", "one", wait_ns=5 * S)
    seat.pass_time(5 * S)
    finished = seat.one(Finished)
    told = "no session with lockd in time: it is down, out of reach, stands still, or waits for other replicas "
    told += "(--rebuild); start it, or look into lockd.log"
    assert (finished.outcome, finished.reason) == ("failed", told)


def test_a_refused_hello_is_told(seat: Seat) -> None:
    seat.lockd(Ended(EPOCH, 1, "test"))
    seat.pass_time(0)
    seat.lockd(Refused(EPOCH, seat.one(Hello).request, "the name a is in use", "request"))
    assert seat.one(JoinRefused).reason == "the name a is in use"


def test_leaving_ends_every_op_and_those_that_come_later(seat: Seat) -> None:
    seat.submit("write", "one")
    seat.grant(1, "b")
    seat.submit("read")
    seat.feed(Leave())
    assert [(end.op, end.outcome) for end in seat.all(Finished)] == [(1, "unknown"), (2, "failed")]
    assert seat.one(Goodbye).session == 1
    assert seat.core.deadline_ns() is None
    seat.submit("read")
    assert seat.one(Finished).outcome == "failed"


def test_leaving_before_the_first_session_ends_what_waits_for_it() -> None:
    seat = Seat()
    seat.submit("write", "one")
    seat.feed(Leave())
    assert seat.one(Finished).outcome == "failed"
    assert seat.one(Goodbye).session == 0


def test_a_copied_directory_goes_on_under_its_new_replica_id() -> None:
    seat = Seat()
    seat.feed(Timer())
    hello = seat.one(Hello)
    seat.lockd(Welcome(EPOCH, EPOCH_ID, 0, 1, hello.request, GROUP, 3000, "a#2", "c" * 16, (), 0, 0, False))
    assert seat.one(Remember).replica == seat.identity.replica == "c" * 16
    assert seat.core.host == "a#2"


def test_the_view_connects_anew_where_an_incarnation_changed(seat: Seat) -> None:
    seat.lockd(View(EPOCH, (member("a"), member("b", "0" * 16), member("d"))))
    assert [connect.member.host for connect in seat.all(Connect)] == ["b", "d"]
    assert seat.one(Disconnect).replica == replica_id("c")


def test_network_time_is_lockds_by_the_round_trip_and_never_runs_back() -> None:
    seat = Seat(last_time_us=5_000_000_000_000_000)
    seat.feed(Timer())
    hello = seat.one(Hello)
    seat.now_ns += 2_000_000
    seat.welcome(hello, time_us=7_000_000_000_000_000)
    for expected_us in (7_000_000_000_001_000, 7_000_000_000_001_001):
        seat.submit("write", "one")
        seat.grant(expected_us % 10 + 1, clean=seat.head)
        assert seat.one(Log).time_us == expected_us
    late = Seat(last_time_us=8_000_000_000_000_000)
    late.join(time_us=7_000_000_000_000_000)
    late.submit("write", "one")
    late.grant(1)
    assert late.one(Log).time_us == 8_000_000_000_000_001


# The holder


def test_a_write_is_logged_then_durable_then_pushed_then_acked_then_released(seat: Seat) -> None:
    seat.submit("write", "one")
    seat.grant(1, "b", "c", clock={"c": 4})
    order = [type(effect) for effect in seat.effects if isinstance(effect, (Log, Begin, Persist, SendReplica))]
    assert order == [Log, Begin, Persist, SendReplica, SendReplica]
    assert seat.one(Begin) == Begin(seat.submitted, "a:1")
    assert seat.lines() == [("write", {"a": 1, "c": 4})]
    push = seat.all(Push)[0]
    assert (push.previous, push.token, push.clock) == (EMPTY, token(1), {})
    seat.answer("b", Ack(FILE, token(1), 1))
    assert not seat.all(Finished) and not seat.all(Release)
    seat.answer("c", Ack(FILE, token(1), 1))
    release = seat.one(Release)
    assert (release.version, release.changed, release.confirm) == (seat.head, True, False)
    assert set(release.acked) == {replica_id(name) for name in "abc"}
    assert (seat.one(Finished).outcome, release.clock) == ("ok", {"a": 1, "c": 4})
    assert seat.journal.read(FILE) == b"one\n"


def test_acks_of_another_token_version_or_file_do_not_count(seat: Seat) -> None:
    seat.submit("write", "one")
    seat.grant(2, "b")
    seat.answer("b", Ack(FILE, token(1), 1))
    seat.answer("b", Ack(FILE, token(2), 0))
    seat.answer("b", Ack("g", token(2), 1))
    seat.answer("c", Ack(FILE, token(2), 1))
    assert not seat.all(Finished)
    seat.answer("b", Ack(FILE, token(2), 1))
    assert set(seat.one(Release).acked) == {replica_id(name) for name in "abc"}


def test_a_learner_gets_the_push_and_nobody_waits_for_it(seat: Seat) -> None:
    seat.submit("write", "one")
    seat.grant(1, "b", learners=("c",))
    assert seat.to() == {replica_id("b"), replica_id("c")}
    seat.answer("b", Ack(FILE, token(1), 1))
    assert seat.one(Release).acked == (replica_id("a"), replica_id("b"))


def test_a_read_is_given_out_only_after_released(seat: Seat) -> None:
    seat.submit("read")
    seat.grant(1, "b", mode="shared", clock={"b": 1})
    assert seat.lines() == [("read", {"a": 1, "b": 1})]
    assert seat.one(Begin) == Begin(seat.submitted, "a:1")
    seat.one(ReadFile)
    release = seat.one(Release)
    assert (release.confirm, release.changed, release.version) == (True, False, EMPTY)
    assert not seat.all(Finished)
    assert FILE not in seat.journal.states(), "only now does lockd know of it"
    seat.lockd(Released(EPOCH, release.request, True))
    assert seat.one(Finished).outcome == "ok"
    assert FILE in seat.journal.states()


def test_a_read_whose_token_was_lost_fails(seat: Seat) -> None:
    seat.submit("read")
    seat.grant(1, mode="shared")
    seat.lockd(Released(EPOCH, seat.one(Release).request, False))
    assert seat.one(Finished).outcome == "failed"
    assert FILE not in seat.journal.states()


def test_acks_that_come_behind_the_lease_count_once_it_is_renewed(seat: Seat) -> None:
    seat.submit("write", "one")
    seat.grant(1, "b")
    seat.pass_time(2 * S)
    ping = seat.all(Ping)[-1]
    seat.now_ns = seat.core._shared.lease_ns
    seat.answer("b", Ack(FILE, token(1), 1))
    assert not seat.all(Finished)
    seat.lockd(Pong(EPOCH, ping.request, 0))
    seat.pass_time(0)
    assert seat.one(Finished).outcome == "ok"
    assert seat.one(Release).token == token(1)


def test_ops_that_were_held_back_together_go_on_one_after_another(seat: Seat) -> None:
    requests = []
    for file in ("f", "g"):
        seat.submitted += 1
        seat.feed(Submit(seat.submitted, "write", file, "x", 0, 10 * S))
        requests.append(seat.one(Acquire).request)
    members = (replica_id("a"), replica_id("b"))
    for counter, (file, request) in enumerate(zip("fg", requests, strict=True), 1):
        seat.lockd(Grant(EPOCH, request, file, token(counter), "exclusive", {}, None, members, (), 0, False))
    seat.pass_time(2 * S)
    ping = seat.all(Ping)[-1]
    seat.now_ns = seat.core._shared.lease_ns
    for counter, file in enumerate("fg", 1):
        seat.answer("b", Ack(file, token(counter), 0))
    assert not seat.lines()
    seat.lockd(Pong(EPOCH, ping.request, 0))
    seat.pass_time(0)
    assert [clock["a"] for _, clock in seat.lines()] == [1, 2]
    for counter, file in enumerate("fg", 1):
        seat.answer("b", Ack(file, token(counter), 1))
    assert [end.outcome for end in seat.all(Finished)] == ["ok", "ok"]


def test_update_and_restore_change_the_end() -> None:
    seat, versions = with_history("one\n", "two\n")
    seat.submit("update", "more")
    seat.grant(3, clean=versions[2])
    assert seat.journal.read(FILE) == b"one\ntwo --- more\n"
    seat.submit("restore", of=1)
    seat.grant(4, clean=seat.head)
    assert (seat.journal.read(FILE), seat.head.seq) == (b"one\n", 4)
    seat.submit("restore", of=0)
    seat.grant(5, clean=seat.head)
    seat.submit("update", "nothing")
    seat.grant(6, clean=seat.head)
    assert (seat.journal.read(FILE), seat.head.seq) == (b"", 6)


def test_an_op_that_did_not_happen_takes_and_leaves_no_clock() -> None:
    seat, versions = with_history("one\n")
    seat.submit("restore", of=9)
    seat.grant(2, clean=versions[1], clock={"c": 7})
    assert seat.one(Finished).reason == "f has versions 0 to 1, not 9"
    release = seat.one(Release)
    assert (release.clock, release.version, release.changed) == ({}, versions[1], False)
    seat.submit("write", "two")
    seat.grant(3, clean=versions[1])
    assert seat.lines() == [("write", {"a": 2, "b": 1})]


def test_an_unclean_file_is_settled_before_anything_else() -> None:
    seat, versions = with_history("one\n")
    seat.submit("read")
    seat.grant(2, "b", "c", clean=None, clock={"c": 7})
    push = seat.all(Push)[0]
    assert (push.previous, push.records, push.clock) == (versions[1], (), {"a": 1, "b": 1, "c": 7})
    assert not seat.all(Log)
    state = seat.journal.states()[FILE]
    assert (state.promised, state.head.follows) == (token(2), token(2))
    seat.answer("b", Ack(FILE, token(2), 1))
    assert not seat.all(ReadFile)
    seat.answer("c", Ack(FILE, token(2), 1))
    seat.one(ReadFile)
    assert set(seat.one(Release).acked) == {replica_id(name) for name in "abc"}


def test_an_op_that_fails_after_settling_leaves_the_clock_of_what_it_settled() -> None:
    seat, versions = with_history("one\n")
    seat.submit("restore", of=9)
    seat.grant(2, "b", clean=None, clock={"c": 7})
    seat.answer("b", Ack(FILE, token(2), 1))
    assert seat.one(Finished).outcome == "failed"
    release = seat.one(Release)
    assert (release.version, release.clock, release.changed) == (versions[1], {"b": 1}, False)
    assert set(release.acked) == {replica_id("a"), replica_id("b")}


def test_a_write_to_an_unclean_file_waits_for_acks_twice(seat: Seat) -> None:
    seat.submit("write", "one")
    seat.grant(1, "b", clean=None)
    seat.answer("b", Ack(FILE, token(1), 0))
    seat.answer("b", Ack(FILE, token(1), 0))
    assert seat.lines() == [("write", {"a": 1})]
    assert not seat.all(Finished)
    seat.answer("b", Ack(FILE, token(1), 1))
    assert seat.one(Finished).outcome == "ok"


def test_lockd_can_ask_for_a_settling(seat: Seat) -> None:
    seat.lockd(Settle(EPOCH, FILE))
    seat.lockd(Settle(EPOCH, FILE))
    seat.grant(1, "b", clean=None)
    seat.answer("b", Ack(FILE, token(1), 0))
    assert set(seat.one(Release).acked) == {replica_id("a"), replica_id("b")}
    assert not seat.all(Finished)
    seat.lockd(Settle(EPOCH, FILE))
    seat.grant(2, clean=EMPTY)
    assert seat.one(Release).token == token(2)
    assert not seat.all(Push)[1:]


def test_the_silent_are_pushed_to_again_and_then_dropped(seat: Seat) -> None:
    seat.submit("write", "one")
    seat.grant(1, "b", "c")
    seat.answer("b", Ack(FILE, token(1), 1))
    seat.forget()
    for _ in range(2):
        assert not seat.all(Drop)
        seat.pass_time(S)
        for ping in seat.all(Ping):
            seat.lockd(Pong(EPOCH, ping.request, 0))
    assert seat.to() == {replica_id("c")}
    drop = seat.one(Drop)
    assert drop.replicas == (replica_id("c"),)
    seat.lockd(InSync(EPOCH, drop.request, True, (replica_id("a"), replica_id("b")), 1))
    assert seat.one(Finished).outcome == "ok"


def test_who_leaves_the_view_is_dropped_at_once_and_the_answer_awaited(seat: Seat) -> None:
    seat.submit("write", "one")
    seat.grant(1, "b", "c")
    seat.lockd(View(EPOCH, (member("a"), member("b"))))
    drop = seat.one(Drop)
    seat.answer("b", Ack(FILE, token(1), 1))
    assert not seat.all(Finished)
    seat.lockd(View(EPOCH, (member("a"),)))
    assert not seat.all(Drop)
    seat.lockd(InSync(EPOCH, drop.request, True, (replica_id("a"), replica_id("b")), 1))
    assert seat.one(Finished).outcome == "ok"


def test_a_drop_that_comes_too_late_ends_the_op_unknown(seat: Seat) -> None:
    seat.submit("write", "one")
    seat.grant(1, "b", "d")
    seat.lockd(InSync(EPOCH, seat.one(Drop).request, False, (), 1))
    assert seat.one(Finished).outcome == "unknown"


def test_a_fenced_push_ends_the_op_unknown_and_a_fenced_settling_failed(seat: Seat) -> None:
    seat.submit("write", "one")
    seat.grant(1, "b")
    seat.answer("b", Fenced(FILE, token(1), token(2)))
    assert (seat.one(Finished).outcome, seat.one(Release).changed) == ("unknown", True)
    seat.submit("write", "two")
    seat.grant(3, "b", clean=None)
    seat.answer("b", Fenced(FILE, token(3), token(4)))
    release = seat.one(Release)
    assert (seat.one(Finished).outcome, release.acked, release.clock) == ("failed", (), {})


def test_a_grant_that_nobody_waits_for_goes_back(seat: Seat) -> None:
    seat.submit("write", "one", wait_ns=S)
    request = seat.one(Acquire).request
    for _ in range(3):
        seat.pass_time(S)
        for ping in seat.all(Ping):
            seat.lockd(Pong(EPOCH, ping.request, 0))
    assert seat.one(Finished).reason == (
        "lockd gave no answer in time: it is down, or stands still; look into lockd.log, and try again"
    )
    assert seat.one(Cancel).request == request
    seat.lockd(Grant(EPOCH, request, FILE, token(1), "exclusive", {}, EMPTY, (replica_id("a"),), (), 0, False))
    assert seat.one(Cancel).request == request
    assert not seat.all(Log)


def test_a_grant_that_this_replica_cannot_serve_fails() -> None:
    seat, versions = with_history("one\n", "two\n")
    seat.submit("write", "three")
    seat.grant(3, clean=versions[1])
    assert "try again" in seat.one(Finished).reason
    assert seat.one(Release).acked == ()
    seat.submit("write", "three")
    seat.grant(1, clean=versions[2])
    assert "promised the newer token 1.2" in seat.one(Finished).reason


def test_a_refused_lock_fails_the_op(seat: Seat) -> None:
    seat.submit("write", "one")
    seat.lockd(Refused(EPOCH, seat.one(Acquire).request, "no grant in time", "wait"))
    finished = seat.one(Finished)
    assert (finished.outcome, finished.reason, finished.id) == ("failed", "no grant in time", "")


@pytest.mark.parametrize("verb", ["read", "write"])
def test_an_op_that_finds_no_room_in_the_event_log_fails_and_its_id_is_told_to_nobody(seat: Seat, verb: OpVerb) -> None:
    seat.submit(verb, "" if verb == "read" else "one")
    seat.log_full = verb == "write"
    if verb == "read":
        seat.grant(1, mode="exclusive")  # which makes the file
        seat.lockd(Released(EPOCH, seat.one(Release).request, True))
        seat.forget()
        seat.log_full = True
        seat.submit("read")
    seat.grant(2, "b", mode="shared" if verb == "read" else "exclusive")
    finished = seat.one(Finished)
    assert (finished.outcome, finished.reason, finished.id) == ("failed", "no room for the log", "")
    assert not seat.all(Push)
    release = seat.one(Release)
    assert (release.clock, release.changed) == ({}, False)
    seat.forget()
    # What is in no log has never ticked.
    records, versions = history("b\n", counter=3)
    seat.push(3, EMPTY, records)
    assert not seat.lines() and not seat.all(Ack)
    seat.log_full = False
    seat.push(5, EMPTY, records)
    assert seat.one(Ack).seq == versions[1].seq
    assert seat.lines() == [("apply", {"a": 2 if verb == "read" else 1, "b": 1})]


def test_a_retry_finds_the_first_try_and_does_nothing_again() -> None:
    seat, versions = with_history("one\n", "two\n", "three\n")
    for ids, seq, text in ((("b:2",), 2, "two"), (("b:9", "b:1"), 1, "one"), (("z:1", "b:3"), 3, "three")):
        seat.submitted += 1
        seat.feed(Submit(seat.submitted, "write", FILE, text, 0, 10 * S, ids))
        seat.grant(10 + seq, "b", clean=versions[3])
        finished = seat.one(Finished)
        assert (finished.outcome, finished.id, finished.version) == ("ok", f"b:{seq}", versions[seq])
        release = seat.one(Release)
        assert (release.version, release.changed) == (versions[3], False)
        assert not seat.lines() and not seat.all(Push)
    for verb, text in (("write", "again"), ("update", "two")):
        seat.submitted += 1
        seat.feed(Submit(seat.submitted, verb, FILE, text, 0, 10 * S, ("b:2",)))  # type: ignore[arg-type]
        seat.grant(14, "b", clean=versions[3])
        finished = seat.one(Finished)
        assert (finished.outcome, finished.reason.split(",")[0]) == ("failed", "b:2 is another op")
    seat.submitted += 1
    seat.feed(Submit(seat.submitted, "write", FILE, "again", 0, 10 * S, ("b:4", "c:1")))
    seat.grant(20, clean=versions[3])
    finished = seat.one(Finished)
    assert (finished.outcome, finished.id, finished.version.seq) == ("ok", "a:1", 4)


def test_where_nobody_knows_whether_the_journal_has_it_an_op_ends_unknown(seat: Seat) -> None:
    seat.submit("write", "one")
    grant = Grant(
        EPOCH, seat.one(Acquire).request, FILE, token(1), "exclusive", {}, EMPTY, (replica_id("a"),), (), 0, False
    )
    assert isinstance(seat.core.handle(FromDaemon(grant), seat.now_ns)[-1], Persist)
    seat.feed(Leave("the disk has failed"))
    assert seat.one(Finished).outcome == "unknown"


def test_a_write_that_the_disk_refuses_fails_and_has_never_been(seat: Seat) -> None:
    seat.journal.failing = "the disk is full"
    seat.submit("write", "one")
    seat.grant(1, "b")
    finished = seat.one(Finished)
    assert (finished.outcome, finished.id, seat.lines(), seat.all(Push)) == ("failed", "", [], [])
    release = seat.one(Release)
    assert (release.version, release.changed) == (EMPTY, False)


def test_two_ops_of_one_client_go_on_side_by_side(seat: Seat) -> None:
    seat.submit("write", "one")
    first = seat.one(Acquire).request
    seat.submit("read")
    seat.grant(1, mode="shared")
    release = seat.one(Release)
    seat.lockd(Grant(EPOCH, first, FILE, token(2), "exclusive", {}, EMPTY, (replica_id("a"),), (), 0, False))
    seat.lockd(Released(EPOCH, release.request, True))
    assert [(end.op, end.outcome) for end in seat.all(Finished)] == [(1, "ok"), (2, "ok")]


# The follower


def test_a_push_is_logged_then_durable_then_acked(seat: Seat) -> None:
    records, versions = history("one\n")
    seat.push(1, EMPTY, records)
    order = [type(effect) for effect in seat.effects]
    assert order == [Log, Persist, Answer]
    assert seat.lines() == [("apply", {"a": 1, "b": 1})]
    assert seat.one(Ack) == Ack(FILE, token(1), 1)
    assert (seat.head, seat.journal.read(FILE)) == (versions[1], b"one\n")


def test_a_push_below_the_promise_is_fenced() -> None:
    seat, versions = with_history("one\n", "two\n")
    seat.push(1, versions[2], (write(versions[2], 1, "late\n", 8),))
    assert seat.one(Fenced) == Fenced(FILE, token(1), token(2))
    assert seat.head == versions[2]


def test_the_first_push_of_a_newer_token_undoes_to_the_common_prefix() -> None:
    seat, versions = with_history("one\n", "two\n", "three\n")
    seat.push(5, versions[1], clock={"b": 9})
    assert seat.lines() == [("undo", {"a": 4, "b": 9}), ("undo", {"a": 5, "b": 9})]
    assert seat.one(Ack) == Ack(FILE, token(5), 1)
    assert (seat.head, seat.journal.read(FILE)) == (versions[1], b"one\n")
    state = seat.core.head_of(FILE)
    assert (state.promised, state.head.follows, state.length) == (token(5), token(5), 4)


def test_what_is_common_stays_when_a_newer_push_brings_more() -> None:
    seat, versions = with_history("one\n", "two\n")
    other = write(versions[1], 5, "other\n", 4, {"c": 1})
    seat.push(5, EMPTY, (*history("one\n")[0], other))
    assert [verb for verb, _ in seat.lines()] == ["undo", "apply"]
    assert seat.journal.read(FILE) == b"one\nother\n"


def test_under_the_followed_token_a_push_only_adds() -> None:
    seat, versions = with_history("one\n")
    two = write(versions[1], 1, "two\n", 4)
    second = version_after(versions[1], two)
    seat.push(1, versions[1], (two,))
    seat.forget()
    seat.push(1, EMPTY, history("one\n")[0])
    assert (seat.head, seat.one(Ack)) == (second, Ack(FILE, token(1), 1))
    seat.push(1, versions[1])
    assert (seat.head, seat.one(Ack)) == (second, Ack(FILE, token(1), 1))
    seat.push(1, versions[1], (write(versions[1], 1, "fork\n", 4),))
    assert (seat.head, seat.all(Ack)) == (second, [])
    assert not seat.all(Log)


def test_a_push_that_meets_nothing_is_promised_alone_and_what_is_missing_fetched() -> None:
    seat, versions = with_history("one\n")
    records, wanted = history("one\n", "two\n", "three\n")
    seat.push(3, wanted[2], records[2:])
    state = seat.journal.states()[FILE]
    assert (state.promised, state.head.follows) == (token(3), token(1))
    fetch = seat.one(Fetch)
    assert fetch.points == ((1, versions[1].hash),)
    assert not seat.all(Ack)
    seat.answer("b", Fetched(FILE, fetch.request, token(3), versions[1], records[1:], False))
    assert seat.one(Ack) == Ack(FILE, token(3), 3)
    assert (seat.head, [verb for verb, _ in seat.lines()]) == (wanted[3], ["apply", "apply"])


def test_the_points_of_a_fetch_grow_apart_and_are_few() -> None:
    texts = [f"{number}\n" for number in range(100)]
    seat, versions = with_history(*texts)
    far = Version(500, token(200), bytes(16))
    seat.push(200, far)
    points = seat.one(Fetch).points
    assert [seq for seq, _ in points] == [100, 99, 97, 93, 85, 69, 37]
    assert len(points) <= FETCH_POINTS_MAX
    assert points[1][1] == versions[99].hash


def test_a_fetch_in_portions_goes_on_until_the_end(seat: Seat) -> None:
    records, versions = history("one\n", "two\n")
    seat.lockd(Learn(EPOCH, FILE, (replica_id("b"),)))
    first = seat.one(Fetch)
    seat.answer("b", Fetched(FILE, first.request, token(2), EMPTY, records[:1], True))
    second = seat.one(Fetch)
    assert second.points == ((1, versions[1].hash),)
    assert not seat.all(Report)
    seat.answer("b", Fetched(FILE, second.request, token(2), versions[1], records[1:], False))
    report = seat.one(Report)
    assert (report.version, report.follows) == (versions[2], token(2))


def test_an_answer_of_an_older_token_is_not_taken_and_the_owed_one_asked(seat: Seat) -> None:
    records, versions = history("one\n", "two\n", counter=4)
    seat.lockd(Learn(EPOCH, FILE, (replica_id("c"),)))
    first = seat.one(Fetch)
    seat.push(5, versions[1], records[1:])
    assert not seat.all(Fetch)
    seat.answer("c", Fetched(FILE, first.request, token(4), EMPTY, records[:1], False))
    assert seat.head == EMPTY
    (effect,) = [effect for effect in seat.effects if isinstance(effect, SendReplica)]
    assert effect.replica == replica_id("b")
    seat.answer("b", Fetched(FILE, seat.one(Fetch).request, token(5), EMPTY, records, False))
    assert seat.one(Ack) == Ack(FILE, token(5), 2)


def test_an_answer_that_nobody_waits_for_is_not_taken(seat: Seat) -> None:
    records, _ = history("one\n")
    seat.lockd(Learn(EPOCH, FILE, (replica_id("b"),)))
    fetch = seat.one(Fetch)
    seat.answer("b", Fetched(FILE, fetch.request + 1, token(1), EMPTY, records, False))
    seat.answer("c", Fetched(FILE, fetch.request, token(1), EMPTY, records, False))
    assert seat.head == EMPTY


def test_ops_that_do_not_follow_each_other_are_dropped(seat: Seat) -> None:
    records, versions = history("one\n", "two\n")
    seat.push(2, EMPTY, records[1:])
    seat.lockd(Learn(EPOCH, FILE, (replica_id("b"),)))
    seat.answer("b", Fetched(FILE, seat.one(Fetch).request, token(2), versions[1], records, False))
    assert seat.head == EMPTY
    assert sum("do not follow" in note.text for note in seat.all(Note)) == 2


def test_a_learner_makes_no_file_of_a_name_that_nobody_has_used_yet(seat: Seat) -> None:
    """Its first op may come to nothing: then the name may become a folder."""
    seat.lockd(Learn(EPOCH, FILE, (replica_id("b"),)))
    seat.answer("b", Fetched(FILE, seat.one(Fetch).request, 0, EMPTY, (), False))
    assert not seat.all(Persist) and not seat.journal.states()
    report = seat.one(Report)
    assert (report.version, report.follows) == (EMPTY, 0)


def test_a_learner_reports_what_it_takes_in_until_it_is_admitted(seat: Seat) -> None:
    seat.lockd(Learn(EPOCH, FILE, (replica_id("b"), replica_id("c"))))
    fetch = seat.one(Fetch)
    assert seat.core.learning == {FILE}
    seat.answer("b", Fetched(FILE, fetch.request, token(1), EMPTY, (), False))
    assert seat.one(Report).follows == token(1)
    records, _ = history("one\n", counter=2)
    seat.push(2, EMPTY, records)
    assert seat.one(Report).version == seat.head
    seat.pass_time(S)
    assert seat.one(Report).version == seat.head
    seat.lockd(Admitted(EPOCH, FILE))
    assert not seat.core.learning
    seat.pass_time(S)
    assert not seat.all(Report)


def test_a_fetch_that_is_not_answered_is_given_up_for_the_next(seat: Seat) -> None:
    for source in "bc":
        seat.lockd(Learn(EPOCH, FILE, (replica_id(source), replica_id("b"))))
    assert seat.to() == {replica_id("b")}
    for source in "cbc":  # each of them in turn
        seat.now_ns += S
        seat.lockd(Learn(EPOCH, FILE, (replica_id("b"), replica_id("c"))))
        assert seat.to() == {replica_id(source)}
    seat.lockd(View(EPOCH, (member("a"), member("b"))))
    seat.lockd(Learn(EPOCH, FILE, (replica_id("b"),)))
    seat.one(Fetch)


def test_a_fetch_is_answered_from_the_newest_common_point() -> None:
    seat, versions = with_history("one\n", "two\n", "three\n")
    records, _ = history("one\n", "two\n", "three\n")
    points = ((3, bytes(16)), (2, versions[2].hash), (1, versions[1].hash))
    seat.peer("c", Fetch(GROUP, FILE, 5, points))
    assert seat.one(Fetched) == Fetched(FILE, 5, token(3), versions[2], records[2:], False)
    seat.peer("c", Fetch(GROUP, "unknown", 6, ()))
    assert seat.one(Fetched) == Fetched("unknown", 6, 0, EMPTY, (), False)


def test_a_message_of_another_group_is_dropped(seat: Seat) -> None:
    records, _ = history("one\n")
    seat.peer("b", Push("f" * 16, FILE, token(1), EMPTY, records, {}))
    assert not seat.all(Ack) and seat.head == EMPTY
    seat.peer("b", Fetch("f" * 16, FILE, 1, ()))
    assert not seat.all(Fetched)


def test_a_push_that_the_disk_refuses_is_not_acked(seat: Seat) -> None:
    seat.journal.failing = "the disk is full"
    records, _ = history("one\n")
    seat.push(1, EMPTY, records)
    assert not seat.all(Ack) and seat.head == EMPTY
    for trouble in (f" (the last change of {FILE} here failed: the disk is full)", ""):
        seat.submit("read")
        request = seat.one(Acquire).request
        seat.lockd(Refused(EPOCH, request, "no grant in time: this replica is still catching up", "wait"))
        assert seat.one(Finished).reason == "no grant in time: this replica is still catching up" + trouble
        seat.journal.failing = ""
        seat.forget()
        seat.push(1, EMPTY, records)
        assert seat.one(Ack).seq == 1


def test_pushes_are_served_without_a_session(seat: Seat) -> None:
    seat.lockd(Ended(EPOCH, 1, "test"))
    records, _ = history("one\n")
    seat.push(1, EMPTY, records)
    assert seat.one(Ack).seq == 1


# A new connection


def test_over_a_new_connection_every_request_is_said_again(seat: Seat) -> None:
    seat.submit("write", "one")
    asked = seat.one(Acquire)
    seat.feed(LockdDisconnected())
    seat.submit("read")
    assert not seat.all(Acquire)
    seat.feed(LockdConnected())
    first, second = seat.all(Acquire)
    assert first == asked and second.mode == "shared"
    seat.one(Resume)


def test_a_release_is_said_again_until_an_answer_proves_that_it_came(seat: Seat) -> None:
    seat.submit("write", "one")
    seat.grant(1)
    release = seat.one(Release)
    seat.feed(LockdDisconnected())
    seat.feed(LockdConnected())
    assert seat.one(Release) == release
    resume = seat.one(Resume)
    seat.lockd(Pong(EPOCH, resume.request, 0))
    seat.feed(LockdConnected())
    # One answer is not enough: it may have overtaken the news of yet another connection.
    assert seat.one(Release) == release
    for _ in range(2):
        seat.lockd(Pong(EPOCH, seat.all(Resume)[-1].request if _ == 0 else 10_000, 0))
    seat.feed(LockdConnected())
    assert not seat.all(Release)


def test_a_read_and_a_drop_ask_again_until_they_are_answered(seat: Seat) -> None:
    seat.submit("read")
    seat.grant(1, mode="shared")
    seat.feed(LockdConnected())
    confirm, again = seat.all(Release)
    assert confirm.confirm and again == confirm
    seat.lockd(Released(EPOCH, confirm.request, True))
    assert seat.one(Finished).outcome == "ok"
    seat.submit("write", "one")
    seat.grant(2, "z")
    drop = seat.one(Drop)
    seat.feed(LockdConnected())
    assert seat.one(Drop) == drop
    seat.lockd(InSync(EPOCH, drop.request, True, (replica_id("a"),), 1))
    assert seat.one(Finished).outcome == "ok"
    seat.feed(LockdConnected())
    assert not seat.all(Drop)


def test_a_new_session_says_nothing_of_the_old_one_again(seat: Seat) -> None:
    seat.submit("write", "one")
    seat.grant(1)
    seat.one(Release)
    seat.lockd(Stale(EPOCH + 1))
    seat.feed(LockdDisconnected())
    seat.feed(LockdConnected())
    assert not seat.all(Release)
    assert seat.all(Hello)


def test_without_a_connection_no_hello_waits_in_line() -> None:
    seat = Seat()
    seat.forget()
    seat.feed(LockdDisconnected())
    seat.pass_time(10 * S)
    assert not seat.all(Hello)
    seat.feed(LockdConnected())
    seat.one(Hello)


# After a crash


def test_a_log_that_has_lost_its_end_is_told_and_not_counted_on() -> None:
    seat, _ = with_history("one\n")
    states = {FILE: FileState(Head(seat.head, token(1), {"a": 5, "b": 1}), 4, token(1))}
    identity = Identity("a", "a" * 16, replica_id("a"), 2, "tcp://127.0.0.1:9", "memory", "a", GROUP, ops=2)
    core = Client(identity, seat.journal, states, {"a": 3}, 0)
    (hello,) = core.handle(LockdConnected(), 1_000 * S)
    assert isinstance(hello, SendLockd) and isinstance(hello.message, Hello) and hello.message.replica
    assert hello.message.replica.count == 3
    welcome = Welcome(
        EPOCH, EPOCH_ID, 0, 1, hello.message.request, GROUP, 3000, "a#2", replica_id("a"), (), 0, 0, False
    )
    core.handle(FromDaemon(welcome), 1_000 * S)
    assert core._shared.tick() == {"a": 5, "a#2": 1, "b": 1}


def events_of(*told: tuple[str, Version], file: str = FILE) -> list[LogLine]:
    """Return lines that tell of versions, oldest first."""
    lines = []
    for count, (verb, version) in enumerate(told, 1):
        values = {"file": file, "id": "a:1", "token": "1.1", "seq": str(version.seq), "hash": version.hash[:6].hex()}
        lines.append(LogLine(count, "a", {"a": count}, verb, values))
    return lines


def lines_after(lines: list[LogLine], journal: MemoryJournal) -> list[LogLine]:
    """Return what a client that starts after these lines logs of them."""
    identity = Identity("a", "a" * 16, replica_id("a"), 2, "tcp://127.0.0.1:9", "disk", "a", GROUP)
    core = Client(identity, journal, journal.states(), lines[-1].clock, lines[-1].time_us, reversed(lines))
    (hello,) = core.handle(LockdConnected(), 1_000 * S)
    assert isinstance(hello, SendLockd) and isinstance(hello.message, Hello), "before it knows whose log it is"
    welcome = Welcome(EPOCH, EPOCH_ID, 0, 1, hello.message.request, GROUP, 3000, "a", replica_id("a"), (), 0, 0, False)
    effects = core.handle(FromDaemon(welcome), 1_000 * S)
    assert not [effect for effect in core.handle(Timer(), 1_000 * S) if isinstance(effect, Log)]
    told = [effect for effect in effects if isinstance(effect, Log)]
    return [
        LogLine(effect.time_us, effect.host, effect.clock, effect.verb, parse_pairs(effect.facts)) for effect in told
    ]


def start_after(lines: list[LogLine], journal: MemoryJournal) -> list[tuple[str, str, int]]:
    return [(line.verb, line.values["seq"], line.clock["a"]) for line in lines_after(lines, journal)]


def told_by(lines: list[LogLine]) -> list[str]:
    """Return the hashes of a file's versions that a log tells of; no line may tell what already is so."""
    told: list[str] = []
    for line in lines:
        if line.verb == "undo":
            assert told.pop() == line.values["hash"]
        else:
            told.append(line.values["hash"])
            assert int(line.values["seq"]) == len(told)
    return told


def test_lines_whose_change_never_came_into_the_journal_are_taken_back() -> None:
    seat, versions = with_history("one\n", "two\n")
    _, others = history("one\n", "other\n", "more\n")
    held = events_of(("apply", versions[1]), ("apply", versions[2]))
    assert start_after(held, seat.journal) == []
    # An own op, and then a whole batch: it was to undo version 2 and to apply two others.
    loose = events_of(("apply", versions[1]), ("apply", versions[2]), ("write", others[3]))
    assert start_after(loose, seat.journal) == [("undo", "3", 4)]
    batch = events_of(("apply", versions[2]), ("undo", versions[2]), ("apply", others[2]), ("apply", others[3]))
    assert start_after(batch, seat.journal) == [
        ("undo", "3", 5),
        ("undo", "2", 6),
        ("apply", "2", 7),
    ]


def test_a_start_that_was_cut_short_is_gone_on_with_by_the_next_ones() -> None:
    """Lines that say what is true may be cut off between any two, and so may those of the start after that."""
    seat, versions = with_history("one\n", "two\n", "three\n")
    _, others = history("one\n", "other\n", "more\n", "most\n")
    batch = [("undo", versions[3]), ("undo", versions[2]), *[("apply", others[seq]) for seq in (2, 3, 4)]]
    for length in range(len(batch) + 1):
        lines = events_of(*[("apply", version) for version in versions[1:]], *batch[:length])
        for first in range(length + 1):
            left = lines + lines_after(lines, seat.journal)[:first]
            for second in range(length - first + 1):
                again = left + lines_after(left, seat.journal)[:second]
                whole = again + lines_after(again, seat.journal)
                assert told_by(whole) == [version.hash.hex()[:12] for version in versions[1:]]
                assert len(whole) == len(lines) + length
                assert lines_after(whole, seat.journal) == []


def test_lines_that_come_after_a_start_said_what_is_true_can_be_loose_again() -> None:
    seat, versions = with_history("one\n")
    _, others = history("other\n")
    lines = events_of(("apply", versions[1]), ("undo", versions[1]), ("apply", others[1]))
    lines += lines_after(lines, seat.journal)
    lines += [replace(line, clock={"a": 6}) for line in events_of(("undo", versions[1]))]
    assert start_after(lines, seat.journal) == [("apply", "1", 7)]


def test_a_line_of_a_read_or_of_another_file_ends_what_can_be_loose() -> None:
    seat, versions = with_history("one\n")
    _, others = history("other\n")
    assert start_after(events_of(("write", others[1]), ("read", versions[1])), seat.journal) == []
    lines = [*events_of(("write", others[1])), *events_of(("write", others[1]), file="g")]
    assert [verb for verb, _, _ in start_after(lines, seat.journal)] == ["undo"]


def test_the_beginning_of_a_late_answer_undoes_nothing() -> None:
    """A member that was a learner when it asked must not lose, part by part, what it has acked since."""
    seat, versions = with_history("one\n", "two\n", "three\n")
    records, longer = history("one\n", "two\n", "three\n", "four\n")
    seat.lockd(Learn(EPOCH, FILE, (replica_id("b"),)))
    fetch = seat.one(Fetch)
    seat.lockd(Admitted(EPOCH, FILE))
    seat.answer("b", Fetched(FILE, fetch.request, token(9), EMPTY, records[:2], True))
    assert (seat.head, seat.lines()) == (versions[3], [])
    fetch = seat.one(Fetch)
    assert fetch.points[0] == (2, longer[2].hash)
    seat.answer("b", Fetched(FILE, fetch.request, token(9), longer[2], records[2:], False))
    assert seat.head == longer[4]
    assert [verb for verb, _ in seat.lines()] == ["apply"]
    assert seat.core.head_of(FILE).head.follows == token(9)


def test_a_part_newer_than_what_we_follow_undoes_at_once() -> None:
    """Who has missed very many ops, and has one to undo, need not keep all of them in memory before."""
    seat, versions = with_history("one\n", "mine\n")
    records: list[Record] = []
    longer = [versions[1]]
    for counter, text in enumerate(("two\n", "three\n", "four\n"), 3):
        records.append(write(longer[-1], counter, text, records[-1].length if records else 4))
        longer.append(version_after(longer[-1], records[-1]))
    seat.lockd(Learn(EPOCH, FILE, (replica_id("b"),)))
    for part, verbs in enumerate((["undo", "apply"], ["apply"], ["apply"])):
        more, fetch = part < 2, seat.one(Fetch)
        seat.answer("b", Fetched(FILE, fetch.request, token(9), longer[part], tuple(records[part : part + 1]), more))
        assert seat.head == longer[part + 1]
        assert [verb for verb, _ in seat.lines()] == verbs
        assert seat.core.head_of(FILE).head.follows == (token(3 + part) if more else token(9))


def test_a_part_that_goes_on_at_the_head_follows_its_last_ops_token() -> None:
    seat, _ = with_history("one\n")
    records, longer = history("one\n", "two\n", "three\n", "four\n")
    seat.lockd(Learn(EPOCH, FILE, (replica_id("b"),)))
    seat.answer("b", Fetched(FILE, seat.one(Fetch).request, token(9), EMPTY, records[:3], True))
    assert seat.head == longer[3]
    assert seat.core.head_of(FILE).head.follows == token(3)
    seat.answer("b", Fetched(FILE, seat.one(Fetch).request, token(9), longer[3], records[3:], False))
    assert seat.core.head_of(FILE).head.follows == token(9)
