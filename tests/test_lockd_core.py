"""lockd's core, one message at a time: sessions, queues, in-sync sets; and its queue beside a dumb model."""

import gc
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.clock import Clock
from common.grantlog import GrantLine
from common.limits import ANSWERS_KEPT_MAX, LOCKS_MAX, WAITERS_MAX
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
    Head,
    Held,
    Hello,
    Here,
    InSync,
    Kind,
    Learn,
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
from common.records import EMPTY, Version
from common.tokens import format_token, make_token
from lockd.core import Lockd
from lockd.effects import (
    Change,
    Durable,
    Effect,
    ForgetAcked,
    InSyncChanged,
    KeepLeft,
    LogGrant,
    Persist,
    Rebuilt,
    ReplicaSeen,
    Send,
    SessionEnded,
    SessionOpened,
)
from lockd.locks import Hold

S = 1_000_000_000
TTL_NS = 3 * S
GROUP = "0123456789abcdef"
EPOCHS = {1: ("1" * 16, 0), 2: ("2" * 16, 0)}
FIRST = Version(1, make_token(1, 1), bytes([1] * 16))
SECOND = Version(2, make_token(1, 2), bytes([2] * 16))

Kept = TypeVar("Kept")


def claimed(lock: str, token: int, mode: Mode) -> Held:
    return Held(lock, token, mode, owner=0, limit=0, sticky=False)


def replica_id(name: str) -> str:
    return f"{name.encode().hex():0<16}"


class Desk:
    """lockd's core with clients that say what a test makes them say; time stands still until it is moved."""

    def __init__(self, durable: Durable | None = None, lock_delay_ns: int = 0, ttl_ns: int = TTL_NS) -> None:
        self.core = Lockd(durable or Durable(GROUP, 1, {1: EPOCHS[1]}), ttl_ns, lock_delay_ns)
        self.now_ns = 1_000 * S
        self.effects: list[Effect] = []
        self._inboxes: defaultdict[bytes, list[FromLockd]] = defaultdict(list)

    def send(self, route: bytes, message: ToLockd) -> None:
        self._take(self.core.handle(route, message, self.now_ns))

    def begin(self) -> None:
        self._take(self.core.begin(self.now_ns))

    def disconnect(self, guest: "Guest") -> None:
        self._take(self.core.disconnected(guest.route, self.now_ns))

    def pass_time(self, duration_ns: int) -> None:
        """Let time pass, the timer ringing when the core wants it to."""
        end_ns = self.now_ns + duration_ns
        while (deadline_ns := self.core.deadline_ns()) is not None and deadline_ns <= end_ns:
            self.now_ns = max(self.now_ns, deadline_ns)
            self._take(self.core.handle_timer(self.now_ns))
        self.now_ns = end_ns

    def take(self, route: bytes) -> list[FromLockd]:
        """Return what was sent along `route` since the last time."""
        return self._inboxes.pop(route, [])

    def join(self, name: str, **hello: object) -> "Guest":
        guest = Guest(self, name)
        guest.hello(**hello)  # type: ignore[arg-type]
        guest.welcome()
        return guest

    def changes(self) -> list[Change]:
        return [change for effect in self.effects if isinstance(effect, Persist) for change in effect.changes]

    def lines(self) -> list[GrantLine]:
        return [effect.line for effect in self.effects if isinstance(effect, LogGrant)]

    def _take(self, effects: list[Effect]) -> None:
        self.effects += effects
        for effect in effects:
            if isinstance(effect, Send):
                self._inboxes[effect.route].append(effect.message)


@dataclass(eq=False)
class Guest:
    """A client at the desk."""

    desk: Desk
    name: str
    incarnation: str = ""
    session: int = 0
    requests: int = 0
    seen: list[FromLockd] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.incarnation = self.incarnation or f"{self.name.encode().hex():f<16}"

    @property
    def route(self) -> bytes:
        return self.incarnation.encode()

    @property
    def replica(self) -> str:
        return replica_id(self.name)

    def hello(
        self,
        *,
        replica: str | None = None,
        start_count: int = 1,
        heads: dict[str, Head] | None = None,
        group: str = "",
        epoch: int = 0,
        highest_token: int = 0,
        plain: bool = False,
        own_host: str = "",
        held: tuple[Held, ...] = (),
        epoch_id: str = "",
        changes: int = 0,
        count: int = 0,
        reads: dict[str, Clock] | None = None,
        hosts: tuple[str, ...] = (),
    ) -> None:
        self.requests += 1
        part = ReplicaHello(
            replica or self.replica,
            start_count,
            "tcp://127.0.0.1:1",
            heads or {},
            "disk",
            own_host,
            count,
            reads or {},
            hosts,
        )
        self.desk.send(
            self.route,
            Hello(
                self.requests,
                self.name,
                self.incarnation,
                None if plain else part,
                group,
                epoch,
                epoch_id,
                changes,
                highest_token,
                held,
            ),
        )

    def welcome(self) -> Welcome:
        welcome = self.got(Welcome)
        self.session = welcome.session
        return welcome

    def say(self, kind: type, *values: object) -> None:
        """Send a message that names epoch and session."""
        self.desk.send(self.route, kind(self.desk.core.epoch, self.session, *values))

    def acquire(
        self, lock: str, mode: Mode = "exclusive", kind: Kind = "file", wait_ms: int = 10_000, request: int = 0
    ) -> int:
        if not request:
            self.requests += 1
        self.say(Acquire, request or self.requests, lock, kind, mode, wait_ms, 0, 0, 0, False)
        return request or self.requests

    def want(
        self,
        lock: str,
        mode: Mode = "exclusive",
        *,
        wait_ms: int = 600_000,
        owner: int = 1,
        limit: int = 0,
        converts: int = 0,
        sticky: bool = False,
        request: int = 0,
    ) -> int:
        """Ask for a lock without a file; return the request."""
        if not request:
            self.requests += 1
        self.say(Acquire, request or self.requests, lock, "plain", mode, wait_ms, owner, limit, converts, sticky)
        return request or self.requests

    def have(self, lock: str, mode: Mode = "exclusive", *, owner: int = 1, limit: int = 0, sticky: bool = False) -> int:
        """Acquire a lock without a file that is free; return the token."""
        self.want(lock, mode, owner=owner, limit=limit, sticky=sticky)
        return self.got(Grant).token

    def give(self, lock: str, token: int) -> Released:
        """Release a lock without a file; return the answer."""
        self.requests += 1
        self.say(Release, self.requests, lock, token, EMPTY, {}, False, (), True, False)
        return self.got(Released)

    def granted(self, lock: str, mode: Mode = "exclusive", kind: Kind = "file") -> Grant:
        """Acquire a lock that is free."""
        self.acquire(lock, mode, kind)
        return self.got(Grant)

    def release(
        self,
        grant: Grant,
        version: Version = EMPTY,
        acked: tuple["Guest", ...] = (),
        clock: Clock | None = None,
        changed: bool = False,
        confirm: bool = False,
    ) -> None:
        self.requests += 1
        replicas = tuple([guest.replica for guest in acked])
        self.say(
            Release, self.requests, grant.lock, grant.token, version, clock or {}, changed, replicas, confirm, False
        )

    def got(self, kind: type[Kept]) -> Kept:
        """Return the one message of a kind that came since the last time."""
        (message,) = self.all(kind)
        return message

    def all(self, kind: type[Kept]) -> list[Kept]:
        self.seen += self.desk.take(self.route)
        found: list[Kept] = [message for message in self.seen if isinstance(message, kind)]
        self.seen = [message for message in self.seen if not isinstance(message, kind)]
        return found

    def forget(self) -> None:
        self.desk.take(self.route)
        self.seen = []


@pytest.fixture
def desk() -> Desk:
    return Desk()


# Queues


def test_grants_come_in_the_order_of_requests(desk: Desk) -> None:
    a, b, c = desk.join("a"), desk.join("b"), desk.join("c")
    first = a.granted("f")
    b.acquire("f")
    c.acquire("f")
    a.release(first)
    second = b.got(Grant)
    assert not c.all(Grant)
    b.release(second)
    third = c.got(Grant)
    assert first.token < second.token < third.token


def test_readers_go_together_and_none_overtakes_a_waiting_writer(desk: Desk) -> None:
    a, b, c, d, e = (desk.join(name) for name in "abcde")
    first = a.granted("f", "shared")
    second = b.granted("f", "shared")
    c.acquire("f")
    d.acquire("f", "shared")
    e.acquire("f", "shared")
    assert not d.all(Grant)
    a.release(first)
    assert not c.all(Grant)
    b.release(second)
    third = c.got(Grant)
    assert not d.all(Grant)
    c.release(third)
    assert d.got(Grant).mode == e.got(Grant).mode == "shared"


def test_a_wait_ends_after_its_time_and_a_try_at_once(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    a.granted("f")
    request = b.acquire("f", wait_ms=0)
    refused = b.got(Refused)
    assert (refused.request, refused.reason) == (request, "no grant in time: f is held by a under token 1.1")
    b.acquire("f", wait_ms=500)
    desk.pass_time(S // 2 - 1)
    assert not b.all(Refused)
    desk.pass_time(1)
    b.got(Refused)


def test_a_wait_that_ends_lets_those_behind_go(desk: Desk) -> None:
    a, b, c = desk.join("a"), desk.join("b"), desk.join("c")
    a.granted("f", "shared")
    b.acquire("f", wait_ms=100)
    c.acquire("f", "shared")
    assert not c.all(Grant)
    desk.pass_time(S // 10)
    b.got(Refused)
    c.got(Grant)


def test_a_cancelled_wait_lets_those_behind_go(desk: Desk) -> None:
    a, b, c = desk.join("a"), desk.join("b"), desk.join("c")
    a.granted("f", "shared")
    request = b.acquire("f")
    c.acquire("f", "shared")
    b.say(Cancel, request)
    c.got(Grant)
    assert not b.all(Grant)


def test_a_cancelled_grant_goes_to_the_next_and_leaves_the_file_clean(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    request = a.acquire("f")
    b.acquire("f")
    a.say(Cancel, request)
    assert b.got(Grant).clean == EMPTY
    a.say(Cancel, request)
    assert [line.event for line in desk.lines()] == ["grant", "release", "grant"]


def test_a_repeated_request_gets_the_first_answer(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    request = a.acquire("f")
    first = a.got(Grant)
    a.acquire("f", request=request)
    assert a.got(Grant) == first
    waiting = b.acquire("f")
    b.acquire("f", request=waiting)
    a.release(first, confirm=True)
    b.got(Grant)
    released = a.got(Released)
    assert released.current
    a.say(Release, released.request, "f", first.token, EMPTY, {}, False, (), True, False)
    assert a.got(Released) == released


def test_only_so_many_answers_are_kept(desk: Desk) -> None:
    a = desk.join("a")
    for _ in range(ANSWERS_KEPT_MAX + 10):
        a.release(a.granted("f"))
    assert len(desk.core.sessions[a.session].answers) == ANSWERS_KEPT_MAX


def test_a_release_of_what_is_not_held_changes_nothing(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    grant = a.granted("f")
    b.release(grant, confirm=True)
    assert not b.got(Released).current
    a.release(grant)
    a.release(grant, confirm=True)
    assert not a.got(Released).current


def test_a_lock_without_a_file_is_forgotten_when_nobody_wants_it(desk: Desk) -> None:
    a = desk.join("a", plain=True)
    grant = a.granted("l", kind="plain")
    assert (grant.clean, grant.in_sync, grant.learners) == (EMPTY, (), ())
    a.release(grant)
    assert not desk.core.locks


@pytest.mark.parametrize("how", ["goodbye", "lease"])
def test_the_end_of_a_session_voids_its_locks_and_waits(desk: Desk, how: str) -> None:
    a, b = desk.join("a", plain=True), desk.join("b", plain=True)
    grant = a.granted("l", kind="plain")
    a.acquire("m", kind="plain")
    b.acquire("l", kind="plain", wait_ms=60_000)
    b.acquire("m", kind="plain", wait_ms=60_000)
    if how == "goodbye":
        a.say(Goodbye)
    else:
        desk.pass_time(TTL_NS - 1)
        b.say(Ping, 77)
        assert not b.all(Grant)
        desk.pass_time(1)
    assert [held.lock for held in b.all(Grant)] == ["l", "m"]
    a.got(Ended)
    assert ("l", grant.token) in [(line.lock, line.token) for line in desk.lines() if line.event == "expiry"]
    assert SessionEnded(a.session) in desk.changes()


def test_a_client_that_waits_and_leaves_is_skipped(desk: Desk) -> None:
    a, b, c = desk.join("a"), desk.join("b"), desk.join("c")
    grant = a.granted("f")
    b.acquire("f")
    c.acquire("f")
    b.say(Goodbye)
    a.release(grant)
    c.got(Grant)


def test_clocks_a_reader_is_handed_the_writers_and_a_writer_both(desk: Desk) -> None:
    a, b, c = desk.join("a"), desk.join("b"), desk.join("c")
    a.release(a.granted("f"), clock={"a": 1}, changed=True)
    read = b.granted("f", "shared")
    assert read.clock == {"a": 1}
    b.release(read, clock={"a": 1, "b": 1})
    assert c.granted("f", "shared").clock == {"a": 1}
    a.acquire("f")
    c.say(Goodbye)
    write = a.got(Grant)
    assert write.clock == {"a": 1, "b": 1}
    a.release(write, clock={"a": 2, "b": 1}, changed=True)
    assert b.granted("f", "shared").clock == {"a": 2, "b": 1}


def test_a_stop_logs_which_files_are_still_held(desk: Desk) -> None:
    grant = desk.join("a").granted("f")
    desk.join("b", plain=True).granted("door", kind="plain")
    desk.effects = list(desk.core.stop(desk.now_ns))
    assert [(line.event, line.token, line.client) for line in desk.lines()] == [("expiry", grant.token, "a")]


# Sessions


def test_a_message_of_another_epoch_is_stale(desk: Desk) -> None:
    a = desk.join("a")
    desk.send(a.route, Acquire(2, a.session, 9, "f", "file", "exclusive", 0, 0, 0, 0, False))
    assert a.got(Stale).epoch == 1
    assert not desk.core.locks


def test_a_message_of_a_session_that_is_not_open_or_not_its_own_is_told_so(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    desk.send(b.route, Ping(1, a.session, 9))
    assert b.got(Ended).session == a.session
    desk.send(b.route, Ping(1, 99, 9))
    assert b.got(Ended).session == 99
    a.say(Ping, 9)
    assert a.got(Pong).request == 9


def test_any_message_renews_the_lease(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    for number in range(5):
        desk.pass_time(TTL_NS - 1)
        a.say(Ping, number)
    assert not a.all(Ended)
    assert b.got(Ended).reason == "its lease of 3 s ran out"
    desk.pass_time(TTL_NS)
    a.got(Ended)


def test_a_stall_of_lockd_itself_is_forgiven(desk: Desk) -> None:
    a = desk.join("a")
    desk.now_ns += TTL_NS + 5 * S
    desk._take(desk.core.handle_timer(desk.now_ns))
    desk.pass_time(TTL_NS // 2 - 1)
    assert not a.all(Ended)
    desk.pass_time(1)
    a.got(Ended)


def test_thousands_of_ends_leave_room_for_others_between_them() -> None:
    desk = Desk(lock_delay_ns=2 * S)
    guests = [desk.join(f"g{number}", plain=True) for number in range(300)]
    for guest in guests:
        for lock in range(3):
            guest.granted(f"{guest.name}/{lock}", kind="plain")
    desk.now_ns += TTL_NS
    calls = 0
    while desk.core.sessions:
        before = len(desk.effects)
        desk._take(desk.core.handle_timer(desk.now_ns))
        lost = [effect for effect in desk.effects[before:] if isinstance(effect, LogGrant)]
        assert 0 < len(lost) <= 250
        assert sum(isinstance(effect, Persist) for effect in desk.effects[before:]) == 1
        calls += 1
    assert calls > 3
    assert len(desk.lines()) == 2 * 900
    # The locks come free together as well, when the lock delay is over: in parts again.
    desk.now_ns += 2 * S
    while left := len(desk.core.locks):
        desk._take(desk.core.handle_timer(desk.now_ns))
        assert left - 250 <= len(desk.core.locks) < left


def test_what_is_let_go_is_in_no_cycle(desk: Desk) -> None:
    """lockd never searches all its objects for cycles of garbage: it must leave none."""
    b = desk.join("b", plain=True)
    gc.collect()
    gc.disable()
    try:
        for name in ("a", "c", "d"):
            a = desk.join(name, plain=True)
            a.release(a.granted(f"x{name}", kind="plain"))
            a.granted(f"y{name}", kind="plain")
            b.acquire(f"y{name}", kind="plain", wait_ms=100)
            b.acquire(f"y{name}", "shared", kind="plain", wait_ms=0)
            desk.pass_time(S)
            b.say(Ping, 99)
            if name == "c":
                a.say(Goodbye)
            else:
                desk.disconnect(a)
            desk.pass_time(2 * S)
            b.say(Ping, 100)
            desk.pass_time(2 * S)
        desk.effects.clear()
        assert len(desk.core.sessions) == 1
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_a_repeated_hello_gets_the_same_session(desk: Desk) -> None:
    a = desk.join("a")
    a.requests -= 1
    a.hello()
    assert a.got(Welcome).session == a.session
    a.hello()
    assert a.got(Welcome).session == a.session + 1


def test_a_name_in_use_is_refused_and_free_afterwards(desk: Desk) -> None:
    a = desk.join("a")
    other = Guest(desk, "a", "0" * 16)
    other.hello(replica="f" * 16)
    assert "in use" in other.got(Refused).reason
    other.hello(plain=True)
    assert "in use" in other.got(Refused).reason
    a.say(Goodbye)
    other.hello(replica="f" * 16)
    assert other.got(Welcome).host == "a#2"


def test_a_replica_that_starts_again_takes_its_session_over_and_keeps_its_host(desk: Desk) -> None:
    a = desk.join("a")
    again = Guest(desk, "a", "0" * 16)
    desk.disconnect(a)
    again.hello(replica=a.replica, start_count=2)
    assert not again.all(Welcome), "the old connection may come back"
    desk.pass_time(S // 10)
    assert (again.got(Welcome).host, a.got(Ended).session) == ("a", a.session)
    moved = Guest(desk, "b", "1" * 16)
    moved.hello(replica=a.replica, start_count=3)
    assert not moved.all(Welcome)
    again.say(Goodbye)
    assert (moved.got(Welcome).host, again.got(Ended).reason) == ("a", "it said goodbye")
    moved.hello(replica=a.replica, start_count=3)
    assert (moved.got(Welcome).host, moved.got(Ended).reason) == ("a", "its client began a new session")
    moved.requests -= 2
    moved.hello(replica=a.replica, start_count=3)
    assert not moved.all(Welcome), "an older hello has come late"


def test_a_copied_directory_gets_an_id_of_its_own_and_takes_nothing_from_the_first(desk: Desk) -> None:
    a = desk.join("a")
    a.release(a.granted("f"), FIRST, (a,), changed=True)
    copy = Guest(desk, "a", "0" * 16)
    copy.hello(replica=a.replica, start_count=1, heads={"f": Head(FIRST, FIRST.token, {})})
    assert "in use" in copy.got(Refused).reason
    assert not a.all(Ended)
    copy.name = "b"
    copy.hello(replica=a.replica, start_count=1, heads={"f": Head(FIRST, FIRST.token, {})})
    welcome = copy.got(Welcome)
    assert (welcome.replica != a.replica, welcome.host) == (True, "b")
    assert not a.all(Ended)
    copy.hello(replica=a.replica, start_count=1)
    assert (copy.got(Welcome).replica, welcome.replica) == (welcome.replica, welcome.replica)


def test_who_claims_the_place_of_a_process_that_is_alive_runs_on_a_copy(desk: Desk) -> None:
    a = desk.join("a")
    copy = Guest(desk, "b", "0" * 16)
    copy.hello(replica=a.replica, start_count=2)
    copy.hello(replica=a.replica, start_count=2)
    probe = a.got(Probe)
    assert (probe.session, copy.all(Welcome)) == (a.session, [])
    a.say(Ping, 90)
    a.say(Here, probe.request - 1)
    assert not copy.all(Welcome), "they may have been under way for long"
    a.say(Here, probe.request)
    assert copy.welcome().replica != a.replica
    assert not a.all(Ended)


def test_who_does_not_answer_loses_its_place(desk: Desk) -> None:
    a = desk.join("a")
    again = Guest(desk, "a", "0" * 16)
    again.hello(replica=a.replica, start_count=2)
    desk.pass_time(S)
    a.say(Ping, 90)
    desk.pass_time(TTL_NS - 1)
    assert not again.all(Welcome)
    desk.pass_time(1)
    assert (again.got(Welcome).replica, a.got(Ended).session) == (a.replica, a.session)


def test_who_claims_a_place_and_goes_gets_none(desk: Desk) -> None:
    a = desk.join("a")
    for end in ("goodbye", "disconnect"):
        again = Guest(desk, "a", "0" * 16)
        again.hello(replica=a.replica, start_count=2)
        if end == "goodbye":
            desk.send(again.route, Goodbye(1, 0))
        else:
            desk.disconnect(again)
        desk.pass_time(S)
        assert not again.all(Welcome)
    a.say(Ping, 90)
    assert not a.all(Ended)


def test_an_old_copy_of_a_directory_is_not_in_sync(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    a.release(a.granted("f"), FIRST, (a, b), changed=True)
    b.say(Goodbye)
    old = Guest(desk, "b", "0" * 16)
    old.hello(replica=b.replica, start_count=2)
    assert old.welcome().replica != b.replica
    old.got(Learn)


def test_an_old_copy_of_a_directory_is_known_after_a_restart() -> None:
    desk = restarted("a", "b", left=KeepLeft("f", {}, {}, FIRST, FIRST.token))
    assert desk.join("a", start_count=1, heads={"f": Head(FIRST, FIRST.token, {})}).replica == replica_id("a")
    b = Guest(desk, "b")
    b.hello(start_count=1, heads={"f": Head(EMPTY, FIRST.token, {})})
    assert b.welcome().replica != b.replica


def test_a_host_that_has_lost_events_counts_anew_under_another_name(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    a.release(a.granted("f", "shared"), EMPTY, clock={"a": 7})
    a.say(Goodbye)
    for start, count, host in ((2, 7, "a"), (3, 6, "a#2")):
        b.say(Ping, 90)
        again = Guest(desk, "a", f"{count}" * 16)
        again.hello(replica=a.replica, start_count=start, count=count)
        welcome = again.welcome()
        assert (welcome.host, welcome.replica) == (host, a.replica)
        again.say(Goodbye)


def test_a_host_whose_journal_has_more_events_than_its_log_counts_anew(desk: Desk) -> None:
    a = desk.join("a")
    a.say(Goodbye)
    again = Guest(desk, "a", "7" * 16)
    heads = {"f": Head(EMPTY, 0, {"a": 4})}
    again.hello(replica=a.replica, start_count=2, count=3, heads=heads)
    assert again.welcome().host == "a#2"


def test_what_readers_left_comes_back_with_them() -> None:
    desk = restarted("a", "b")
    a, _ = desk.join("a", start_count=1), desk.join("b", start_count=1, count=7, reads={"f": {"a": 1, "b": 7}})
    assert a.granted("f").clock == {"a": 1, "b": 7}


@pytest.mark.parametrize("hello", [{"count": 6}, {"count": 9, "replica": "9" * 16}])
def test_a_read_is_believed_of_nobody_who_cannot_have_read(hello: dict[str, object]) -> None:
    desk = restarted("a", "b")
    a, _ = desk.join("a", start_count=1), desk.join("b", start_count=1, reads={"f": {"a": 1 << 62, "b": 7}}, **hello)
    desk.pass_time(TTL_NS)
    a.hello(start_count=1)
    a.welcome()
    assert a.granted("f").clock == {}


def test_hosts_are_given_out_once(desk: Desk) -> None:
    hosts = []
    b = desk.join("b")
    for start in range(1, 5):
        a = Guest(desk, "a", f"{start}" * 16)
        a.hello(start_count=start, count=0)
        hosts.append(a.welcome().host)
        a.release(a.granted("f", "shared"), EMPTY, clock={hosts[-1]: 3})
        a.say(Goodbye)
        b.say(Ping, 90)
    assert hosts == ["a", "a#2", "a#3", "a#4"]
    a = Guest(desk, "a", "9" * 16)
    a.hello(replica="9" * 16)
    assert a.welcome().host == "a#5"


def test_a_known_replica_is_not_refused_for_its_name(desk: Desk) -> None:
    a = desk.join("a")
    a.say(Goodbye)
    other = Guest(desk, "a", "9" * 16)
    other.hello(replica="9" * 16)
    assert other.welcome().host == "a#2"
    a.hello()
    assert a.welcome().host == "a"
    assert {member.host for member in other.got(View).members} == {"a", "a#2"}


def test_a_name_is_in_use_while_any_session_of_it_lives(desk: Desk) -> None:
    a = desk.join("a")
    a.say(Goodbye)
    other = Guest(desk, "a", "9" * 16)
    other.hello(replica="9" * 16)
    other.welcome()
    a.hello()
    a.welcome()
    other.say(Goodbye)
    third = Guest(desk, "a", "8" * 16)
    third.hello(replica="8" * 16)
    assert "the name a is in use" in third.got(Refused).reason
    a.say(Goodbye)
    third.hello(replica="8" * 16)
    assert third.welcome().host == "a#3"


def test_what_was_given_up_makes_nobody_an_old_copy() -> None:
    left = KeepLeft("f", {}, {}, SECOND, SECOND.token)
    durable = Durable(GROUP, 2, EPOCHS, 0, {}, {"f": (replica_id("a"),)}, left={"f": left}, forgotten=SECOND.token)
    seen = ReplicaSeen(replica_id("a"), "a", "a", 0, "0" * 16)
    durable.replicas[seen.replica] = seen
    a = Guest(Desk(durable), "a")
    a.hello(heads={"f": Head(FIRST, FIRST.token, {})})
    assert a.welcome().replica == seen.replica
    assert a.granted("f").clean is None


def test_a_blinking_connection_leaves_no_timers(desk: Desk) -> None:
    a = desk.join("a")
    for request in range(100, 200):
        desk.disconnect(a)
        a.say(Ping, request)
        desk.pass_time(S // 100)
    desk.pass_time(TTL_NS // 2)
    a.say(Ping, 200)
    desk.pass_time(TTL_NS - 1)
    assert len(desk.core._shared.timers) == 1


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        ({"group": "f" * 16}, "another group"),
        ({"epoch": 1, "epoch_id": "0" * 16}, "the epoch 1 that a has seen is not lockd's epoch 1"),
        ({"epoch": 1, "epoch_id": "1" * 16, "changes": 1}, "older than what a has seen"),
        ({"epoch": 2}, "older than what a has seen"),
        ({"highest_token": make_token(1, 1)}, "older than what a has seen"),
        ({"heads": {"f": Head(FIRST, FIRST.token, {})}}, "does not know its file f"),
    ],
)
def test_a_state_older_than_what_a_client_has_seen_is_refused(desk: Desk, seen: dict[str, object], reason: str) -> None:
    a = Guest(desk, "a")
    a.hello(**seen)  # type: ignore[arg-type]
    assert reason in a.got(Refused).reason
    assert not desk.core.sessions


def test_everybody_sees_who_comes_and_goes(desk: Desk) -> None:
    a = desk.join("a")
    b = desk.join("b")
    desk.join("c", plain=True)
    assert [member.host for member in a.got(View).members] == ["a", "b"]
    b.say(Goodbye)
    assert [member.host for member in a.got(View).members] == ["a"]


# Names


@pytest.mark.parametrize(
    ("lock", "kind", "reason"),
    [
        ("../x", "file", "no empty part"),
        ("/x", "file", "relative"),
        ("", "file", "cannot be empty"),
        ("a\nb", "file", "control"),
        ("", "plain", "cannot be empty"),
        ("x" * 600, "plain", "at most"),
    ],
)
def test_a_bad_name_is_refused(desk: Desk, lock: str, kind: Kind, reason: str) -> None:
    a = desk.join("a")
    a.acquire(lock, kind=kind)
    assert reason in a.got(Refused).reason
    assert not desk.core.locks


def test_a_name_is_of_one_kind(desk: Desk) -> None:
    a = desk.join("a")
    a.granted("f")
    a.granted("l", kind="plain")
    a.acquire("f", kind="plain")
    assert a.got(Refused).reason == "f is a file here"
    a.acquire("l")
    assert a.got(Refused).reason == "l is a lock without a file here"
    b = Guest(desk, "b")
    b.hello(heads={"l": Head(EMPTY, 0, {})})
    assert "is a lock without a file" in b.got(Refused).reason


def test_a_file_is_no_folder_of_another(desk: Desk) -> None:
    a = desk.join("a")
    a.granted("x/y")
    a.acquire("x")
    assert "x is a folder" in a.got(Refused).reason
    a.acquire("x/y/z")
    assert "x/y is a file" in a.got(Refused).reason
    a.granted("x/yz")


def test_a_client_without_a_replica_locks_no_file(desk: Desk) -> None:
    a = desk.join("a", plain=True)
    a.acquire("f")
    assert "without a replica" in a.got(Refused).reason


def test_locks_and_waiters_have_limits(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LOCKS_MAX > 1 < WAITERS_MAX
    monkeypatch.setattr("lockd.queues.LOCKS_MAX", 1)
    monkeypatch.setattr("lockd.queues.WAITERS_MAX", 1)
    monkeypatch.setattr("lockd.identities.SESSIONS_MAX", 1)
    a = desk.join("a")
    a.granted("f")
    a.acquire("g")
    assert "at most 1 locks" in a.got(Refused).reason
    a.acquire("f")
    a.acquire("f")
    assert "has 1 waiters" in a.got(Refused).reason
    b = Guest(desk, "b")
    b.hello()
    assert "at most 1 sessions" in b.got(Refused).reason


# In-sync sets


def test_a_new_file_begins_with_all_live_replicas_durably_before_its_first_grant(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    desk.effects = []
    grant = a.granted("f")
    assert set(grant.in_sync) == {a.replica, b.replica}
    kinds = [type(effect) for effect in desk.effects]
    assert kinds.index(Persist) < kinds.index(Send)
    assert desk.changes() == [InSyncChanged("f", grant.in_sync)]


def test_a_member_that_left_stays_until_a_holder_has_to_do_without_it(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    a.release(a.granted("f"), FIRST, (a, b), changed=True)
    b.say(Goodbye)
    grant = a.granted("f")
    assert set(grant.in_sync) == {a.replica, b.replica}
    a.say(Drop, 90, "f", grant.token, (b.replica,))
    assert a.got(InSync).in_sync == (a.replica,)
    assert desk.changes()[-1] == InSyncChanged("f", (a.replica,))


def test_when_all_go_off_the_first_one_back_can_go_on(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    a.release(a.granted("f"), FIRST, (a, b), changed=True)
    a.say(Goodbye)
    b.say(Goodbye)
    again = Guest(desk, "b", "0" * 16)
    again.hello(replica=b.replica, start_count=2, heads={"f": Head(FIRST, FIRST.token, {})})
    again.welcome()
    assert set(again.granted("f").in_sync) == {a.replica, b.replica}


def test_a_holder_whose_session_ends_leaves_the_file_unclean(desk: Desk) -> None:
    a, b, c = desk.join("a"), desk.join("b"), desk.join("c")
    a.granted("f")
    b.acquire("f", "shared")
    c.acquire("f", "shared")
    a.say(Goodbye)
    grant = b.got(Grant)
    assert (grant.mode, grant.clean) == ("exclusive", None)
    assert not c.all(Grant)
    b.release(grant, EMPTY, (a, b, c))
    shared = c.got(Grant)
    assert (shared.mode, shared.clean) == ("shared", EMPTY)


def test_a_reader_whose_session_ends_leaves_the_file_clean(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    a.granted("f", "shared")
    a.say(Goodbye)
    assert b.granted("f").clean == EMPTY


def test_a_release_that_not_all_have_acked_leaves_the_file_unclean(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    a.release(a.granted("f"), FIRST, (a,), changed=True)
    assert b.granted("f").clean is None


def test_a_release_of_the_version_granted_leaves_the_file_clean(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    a.release(a.granted("f"), FIRST, (a, b), changed=True)
    b.release(b.granted("f"), FIRST)
    assert a.granted("f").clean == FIRST


def test_a_restart_of_lockd_leaves_every_file_unclean() -> None:
    a = Guest(Desk(Durable(GROUP, 2, EPOCHS, 7, {}, {"f": (replica_id("a"),)})), "a")
    a.hello(
        group=GROUP,
        epoch=1,
        epoch_id=EPOCHS[1][0],
        highest_token=FIRST.token,
        heads={"f": Head(FIRST, FIRST.token, {"a": 5})},
    )
    assert a.welcome().session == 8
    grant = a.granted("f", "shared")
    assert (grant.mode, grant.clean, grant.clock) == ("exclusive", None, {"a": 5})
    assert format_token(grant.token) == "2.1"


def test_a_learner_gets_no_file_lock_before_it_is_admitted(desk: Desk) -> None:
    a = desk.join("a")
    grant = a.granted("f")
    b = desk.join("b")
    assert b.got(Learn).sources == (a.replica,)
    b.acquire("f")
    a.acquire("f")
    a.release(grant, FIRST, (a,), changed=True)
    assert b.got(Learn).sources == (a.replica,), "it stands first, so the others wait a moment for it"
    assert not a.all(Grant)
    assert not b.all(Grant)
    b.say(Report, "f", FIRST, FIRST.token)
    b.got(Admitted)
    assert set(b.got(Grant).in_sync) == {a.replica, b.replica}


def test_a_learner_that_does_not_catch_up_takes_a_tenth_of_the_time(desk: Desk) -> None:
    a = desk.join("a")
    grant = a.granted("f")
    b = desk.join("b")
    for _ in range(20):
        b.acquire("f", wait_ms=3_600_000)
    seq, held_ns, began_ns = 0, 0, desk.now_ns
    while desk.now_ns < began_ns + 20 * TTL_NS:
        a.acquire("f")
        seq += 1
        a.release(grant, Version(seq, grant.token, bytes(16)), (a,), changed=True)
        before_ns = desk.now_ns
        while not (grants := a.all(Grant)):
            desk.pass_time(TTL_NS // 30)
            for guest in (a, b):
                guest.say(Ping, 90)
        held_ns += desk.now_ns - before_ns
        grant = grants[0]
        desk.pass_time(TTL_NS // 30)
        for guest in (a, b):
            guest.say(Ping, 90)
    assert 0.09 < held_ns / (desk.now_ns - began_ns) < 0.12
    assert not b.all(Grant)


def test_many_learners_take_turns(desk: Desk) -> None:
    a = desk.join("a")
    grant = a.granted("f")
    learners = [desk.join(f"l{number}") for number in range(12)]
    for guest in learners:
        guest.acquire("f", wait_ms=3_600_000)
        guest.forget()
    seen, began_ns = [], desk.now_ns
    while desk.now_ns < began_ns + 40 * TTL_NS:
        a.acquire("f")
        a.release(grant, Version(grant.token, grant.token, bytes(16)), (a,), changed=True)
        waited = 0
        while not (grants := a.all(Grant)):
            waited += 1
            assert waited <= 10
            desk.pass_time(TTL_NS // 30)
            seen += [number for number, guest in enumerate(learners) if guest.all(Learn)]
            for guest in (a, *learners):
                guest.say(Ping, 90)
        grant = grants[0]
        desk.pass_time(TTL_NS // 30)
        seen += [number for number, guest in enumerate(learners) if guest.all(Learn)]
        for guest in (a, *learners):
            guest.say(Ping, 90)
    assert seen == [*range(12)]


def test_a_learner_that_stands_first_is_waited_for_only_once(desk: Desk) -> None:
    a = desk.join("a")
    grant = a.granted("f")
    b = desk.join("b")
    b.acquire("f")
    a.acquire("f")
    a.release(grant, FIRST, (a,), changed=True)
    assert not a.all(Grant)
    desk.pass_time(TTL_NS // 3)
    grant = a.got(Grant)
    assert not b.all(Grant)
    a.acquire("f")
    a.release(grant, FIRST)
    a.got(Grant)


def test_a_file_that_only_a_failed_op_has_named_is_forgotten(desk: Desk) -> None:
    a = desk.join("a")
    a.release(a.granted("docs"))
    assert desk.changes()[-1] == InSyncChanged("docs", ())
    a.granted("docs/x")


def test_of_a_forgotten_file_there_is_nothing_to_learn(desk: Desk) -> None:
    a = desk.join("a")
    grant = a.granted("docs")
    b = desk.join("b")
    b.got(Learn)
    b.say(Report, "docs", EMPTY, 0)
    a.release(grant)
    assert b.all(Admitted), "and this may be lost with a connection"
    desk.effects = []
    b.say(Report, "docs", EMPTY, 0)
    b.got(Admitted)
    assert not desk.changes()


def test_a_learner_is_admitted_only_at_the_clean_version_and_under_its_token(desk: Desk) -> None:
    a = desk.join("a")
    grant = a.granted("f")
    a.release(grant, FIRST, (a,), changed=True)
    b = desk.join("b")
    b.got(Learn)
    b.say(Report, "f", EMPTY, grant.token)
    assert b.got(Learn).sources == (a.replica,)
    b.say(Report, "f", FIRST, grant.token - 1)
    b.got(Learn)
    desk.effects = []
    b.say(Report, "f", FIRST, grant.token)
    b.got(Admitted)
    assert desk.changes() == [InSyncChanged("f", (a.replica, b.replica))]
    b.say(Report, "f", FIRST, grant.token)
    b.got(Admitted)


def test_a_learner_waits_for_a_free_lock_or_a_release_that_names_it(desk: Desk) -> None:
    a = desk.join("a")
    a.release(a.granted("f"), FIRST, (a,), changed=True)
    b, c = desk.join("b"), desk.join("c")
    grant = a.granted("f")
    d = desk.join("d")
    b.say(Report, "f", FIRST, grant.token)
    assert not b.all(Admitted)
    a.release(grant, SECOND, (a, c, d), changed=True)
    c.got(Admitted)
    assert not b.all(Admitted)
    assert not d.all(Admitted), "it may have acked in an earlier life"
    assert a.granted("f").in_sync == (a.replica, c.replica)


def test_a_replica_that_comes_back_with_the_newest_version_is_admitted_at_once(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    grant = a.granted("f")
    a.release(grant, FIRST, (a, b), changed=True)
    b.say(Goodbye)
    grant = a.granted("f")
    a.say(Drop, 90, "f", grant.token, (b.replica,))
    a.release(grant, FIRST)
    again = Guest(desk, "b", "0" * 16)
    again.hello(replica=b.replica, start_count=2, heads={"f": Head(FIRST, grant.token, {})})
    again.got(Admitted)
    assert not again.all(Learn)


def test_who_cannot_settle_is_not_asked_again_before_the_others(desk: Desk) -> None:
    a, b, h = desk.join("a"), desk.join("b"), desk.join("h")
    h.granted("f")
    desk.disconnect(a)
    h.say(Goodbye)
    assert (a.all(Settle), b.all(Settle)) == ([], [Settle(1, "f")])
    a.say(Ping, 90)
    b.release(b.granted("f"), EMPTY)  # nobody has acked: its disk is full
    assert not [*a.all(Settle), *b.all(Settle)]
    for guest in (a, b, a):
        desk.pass_time(TTL_NS // 3)
        assert guest.got(Settle).file == "f"
        assert not [*a.all(Settle), *b.all(Settle)]
        for each in (a, b):
            each.say(Ping, 90)
    a.release(a.granted("f"), EMPTY, (a, b, h))
    desk.pass_time(TTL_NS // 2)
    assert not [*a.all(Settle), *b.all(Settle)]


def test_a_live_member_is_asked_to_settle_for_a_learner(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    a.granted("f")
    a.say(Goodbye)
    assert b.got(Settle).file == "f"
    desk.join("c")
    assert not b.all(Settle)
    desk.join("d")
    assert not b.all(Settle)
    grant = b.granted("f")
    assert grant.clean is None
    b.release(grant, EMPTY, (a, b))
    assert b.granted("f").clean == EMPTY


def test_a_learner_hears_of_its_sources_when_one_comes_back(desk: Desk) -> None:
    a = desk.join("a")
    a.release(a.granted("f"), FIRST, (a,), changed=True)
    a.say(Goodbye)
    b = desk.join("b")
    assert b.got(Learn).sources == ()
    b.acquire("f", wait_ms=0)
    assert "only absent clients hold the newest version of f: a" in b.got(Refused).reason
    again = Guest(desk, "a", "0" * 16)
    again.hello(replica=a.replica, start_count=2, heads={"f": Head(FIRST, FIRST.token, {})})
    assert b.got(Learn).sources == (a.replica,)
    b.acquire("f", wait_ms=0)
    assert "still catching up" in b.got(Refused).reason


def test_a_holder_drops_the_silent_durably_and_they_learn_again(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    grant = a.granted("f")
    desk.effects = []
    a.say(Drop, 50, "f", grant.token, (a.replica, b.replica))
    answer = a.got(InSync)
    assert (answer.current, answer.in_sync) == (True, (a.replica,))
    assert isinstance(desk.effects[0], Persist)
    assert b.got(Learn).sources == (a.replica,)
    a.release(grant, FIRST, (a,), changed=True)
    assert a.granted("f").clean == FIRST


def test_nobody_but_the_holder_drops(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    grant = a.granted("f")
    b.say(Drop, 50, "f", grant.token, (a.replica,))
    assert b.got(InSync).current is False
    assert set(desk.core.locks["f"].file.in_sync) == {a.replica, b.replica}  # type: ignore[union-attr]


# The queue beside a dumb model


class Model:
    """A lock as two lists: who waits, in order, and who holds."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, Mode]] = []
        self.holding: list[tuple[int, Mode]] = []

    def ask(self, client: int, mode: Mode) -> None:
        self.waiting.append((client, mode))
        self._let_in()

    def leave(self, client: int) -> None:
        self.waiting = [entry for entry in self.waiting if entry[0] != client]
        self.holding = [entry for entry in self.holding if entry[0] != client]
        self._let_in()

    def _let_in(self) -> None:
        while self.waiting and (not self.holding or self.waiting[0][1] == "shared" == self.holding[0][1]):
            self.holding.append(self.waiting.pop(0))


MODES: tuple[Mode, ...] = ("exclusive", "shared")
WAYS_OUT = ("release or cancel", "cancel", "wait over")


@given(
    st.sampled_from(["file", "plain"]),
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(MODES), st.sampled_from(WAYS_OUT)), max_size=40),
)
def test_the_queue_does_what_two_lists_would(kind: Kind, steps: list[tuple[int, Mode, str]]) -> None:
    desk, model = Desk(), Model()
    guests = [desk.join(f"c{number}") for number in range(6)]
    asked: dict[int, int] = {}
    for number, mode, way_out in steps:
        guest = guests[number]
        if number not in asked:
            asked[number] = guest.acquire("l", mode, kind, 60_000)
            model.ask(number, mode)
        else:
            hold = next((hold for hold in _holds(desk) if hold.session == guest.session), None)
            if hold is not None and way_out == "release or cancel":
                guest.say(Release, 900, "l", hold.token, EMPTY, {}, False, (), False, False)
            elif hold is None and way_out == "wait over":
                desk.core._queues.wait_over(desk.core.sessions[guest.session], asked[number], desk.now_ns)
            else:
                guest.say(Cancel, asked[number])
            del asked[number]
            model.leave(number)
        lock = desk.core.locks.get("l")
        waiting = [(waiter.session, waiter.mode) for waiter in lock.queue.values()] if lock else []
        assert waiting == [(guests[each].session, mode) for each, mode in model.waiting]
        holding = sorted((hold.session, hold.mode) for hold in _holds(desk))
        assert holding == sorted((guests[each].session, mode) for each, mode in model.holding)
    tokens = [line.token for line in desk.lines() if line.event == "grant"]
    assert tokens == sorted(set(tokens))


def _holds(desk: Desk) -> list[Hold]:
    return list(desk.core.locks["l"].holds.values()) if "l" in desk.core.locks else []


# Connections that go down


def test_a_dead_holder_is_given_up_in_milliseconds_and_the_next_in_line_goes_on(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    a.granted("f")
    b.acquire("f")
    desk.disconnect(a)
    desk.pass_time(S // 50)
    assert not b.all(Grant)
    desk.pass_time(S // 50)
    grant = b.got(Grant)
    assert grant.clean is None
    assert [line.event for line in desk.lines()] == ["grant", "expiry", "grant"]


def test_a_client_that_comes_back_in_time_keeps_its_lock_and_its_whole_lease(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    grant = a.granted("f")
    b.acquire("f")
    desk.disconnect(a)
    desk.pass_time(S // 50)
    a.say(Resume, 90)
    a.got(Pong)
    desk.pass_time(2 * S)
    b.say(Ping, 91)
    a.release(grant, FIRST, (a, b), changed=True)
    assert b.got(Grant).clean == FIRST


def test_nothing_is_granted_to_a_client_that_is_cut_off_but_it_keeps_its_place(desk: Desk) -> None:
    a, b, c = desk.join("a"), desk.join("b"), desk.join("c")
    first = a.granted("f")
    b.acquire("f")
    c.acquire("f")
    desk.disconnect(b)
    a.release(first, FIRST, (a, b, c), changed=True)
    assert not b.all(Grant)
    second = c.got(Grant)
    a.acquire("f")
    b.say(Ping, 90)
    c.release(second, FIRST)
    b.got(Grant)
    assert not a.all(Grant)


def test_a_client_that_comes_back_is_served_at_once(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    grant = a.granted("f")
    b.acquire("f")
    desk.disconnect(b)
    a.release(grant)
    assert not b.all(Grant)
    b.say(Ping, 90)
    b.got(Grant)


def test_who_holds_a_lock_without_a_file_keeps_its_whole_lease(desk: Desk) -> None:
    a, b = desk.join("a", plain=True), desk.join("b", plain=True)
    a.granted("door", kind="plain")
    b.acquire("door", kind="plain")
    desk.disconnect(a)
    desk.pass_time(2 * S)
    b.say(Ping, 90)
    assert not b.all(Grant)
    desk.pass_time(S)
    b.got(Grant)


def test_over_a_new_connection_a_client_hears_again_what_the_old_one_may_have_lost(desk: Desk) -> None:
    a = desk.join("a")
    a.release(a.granted("f"), FIRST, (a,), changed=True)
    b = desk.join("b")
    b.forget()
    b.say(Resume, 90)
    assert [member.host for member in b.got(View).members] == ["a", "b"]
    assert b.got(Learn) == Learn(1, "f", (a.replica,))
    assert b.got(Pong).request == 90
    b.hello(replica=b.replica)
    b.forget()
    b.requests -= 1
    b.hello(replica=b.replica)
    b.got(Welcome)
    assert b.got(Learn).file == "f"


def test_a_request_that_is_said_again_gets_its_first_answer(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    grant = a.granted("f")
    a.acquire("f", request=grant.request)
    assert a.got(Grant) == grant
    a.say(Drop, 90, "f", grant.token, (b.replica,))
    first = a.got(InSync)
    a.say(Drop, 90, "f", grant.token, (b.replica,))
    assert a.got(InSync) == first
    a.release(grant, FIRST, (a,), changed=True, confirm=True)
    assert a.got(Released).current
    a.requests -= 1
    a.release(grant, FIRST, (a,), changed=True, confirm=True)
    assert a.got(Released).current
    assert [line.event for line in desk.lines()] == ["grant", "release"]


# A restart


def restarted(*names: str, holds: tuple[GrantLine, ...] = (), left: KeepLeft | None = None) -> Desk:
    """Return lockd in its second epoch; sessions of these replicas were open, all in sync with f."""
    replicas = tuple([replica_id(name) for name in names])
    seen = {
        replica: ReplicaSeen(replica, name, name, 0, "0" * 16) for name, replica in zip(names, replicas, strict=True)
    }
    sessions = {number: SessionOpened(number, name, replica_id(name), "0" * 16) for number, name in enumerate(names, 1)}
    lefts = {left.lock: left} if left else {}
    desk = Desk(Durable(GROUP, 2, EPOCHS, len(names), seen, {"f": replicas}, sessions, list(holds), lefts))
    desk.begin()
    return desk


def test_after_a_restart_nothing_is_granted_until_all_are_back() -> None:
    desk = restarted("a", "b")
    a = desk.join("a")
    a.acquire("f")
    assert not a.all(Grant)
    desk.pass_time(S)
    desk.join("b")
    grant = a.got(Grant)
    assert (grant.clean, set(grant.in_sync)) == (None, {replica_id("a"), replica_id("b")})
    assert SessionEnded(1) in desk.changes() and SessionEnded(2) in desk.changes()
    desk.pass_time(TTL_NS)
    assert desk.changes().count(SessionEnded(1)) == 1


def test_after_a_ttl_those_who_are_not_back_are_waited_for_no_more() -> None:
    desk = restarted("a", "b")
    a = desk.join("a")
    a.acquire("f")
    a.acquire("f", wait_ms=500)
    cancelled = a.acquire("f")
    a.say(Cancel, cancelled)
    for _ in range(3):
        desk.pass_time(TTL_NS // 3)
        a.say(Ping, 90)
    a.got(Grant)
    assert a.got(Refused).reason.startswith("no grant in time: f is held by a")
    assert SessionEnded(2) in desk.changes()


def test_who_said_goodbye_while_lockd_was_away_is_not_waited_for() -> None:
    desk = restarted("a", "b")
    a = desk.join("a")
    a.acquire("f")
    desk.send(b"b", Goodbye(1, 2))
    a.got(Grant)


def test_a_restart_ends_in_the_log_what_was_granted_before_it_and_keeps_the_clocks() -> None:
    before = GrantLine(999 * 1_000_000, "grant", "f", "exclusive", make_token(1, 7), "b", ())
    desk = restarted("a", holds=(before,), left=KeepLeft("f", {"b": 4}, {"c": 2}, EMPTY, 0))
    (line,) = desk.lines()
    assert (line.event, line.lock, line.mode, line.token, line.client) == (
        "expiry",
        "f",
        "exclusive",
        before.token,
        "b",
    )
    assert line.more == (("held_ms", "1000.000"),)
    assert desk.join("a").granted("f").clock == {"b": 4, "c": 2}


# Losses given up


def test_a_loss_is_given_up_only_where_it_is_one_and_by_who_knows_whose(desk: Desk) -> None:
    a, b, c = desk.join("a"), desk.join("b"), desk.join("c", plain=True)
    c.say(GiveUp, 90, "nowhere", ("a",))
    assert c.got(Refused).reason == "nowhere is no file of this group"
    grant = a.granted("f")
    a.say(Drop, 91, "f", grant.token, (b.replica,))
    a.release(grant, FIRST, (a,), changed=True)
    c.say(GiveUp, 92, "f", ("a",))
    assert c.got(Refused).reason == "nothing of f is lost: up, and in sync with it: a"
    a.say(Goodbye)
    c.say(GiveUp, 93, "f", ("b",))
    assert c.got(Refused).reason == "in sync with f, and absent: a; name these, and no others"
    c.say(GiveUp, 94, "f", ("a",))
    assert "no replica that is here has reported" in c.got(Refused).reason
    b.say(Report, "f", FIRST, 0)
    d = desk.join("d")
    d.say(Report, "f", SECOND, grant.token)
    b.forget()
    c.say(GiveUp, 95, "f", ("a",))
    assert c.got(InSync).in_sync == (d.replica,)
    assert InSyncChanged("f", (d.replica,)) in desk.changes()
    assert d.got(Admitted).file == "f"
    assert d.granted("f").clean is None


# A lost state


def test_a_lost_state_is_rebuilt_from_the_replicas() -> None:
    desk = Desk(Durable("f" * 16, 1, {1: EPOCHS[1]}, rebuild=3))
    desk.begin()
    desk.pass_time(TTL_NS)
    a, b, c = (Guest(desk, name) for name in "abc")
    new, newer, older = make_token(4, 2), make_token(4, 9), make_token(3, 1)
    heads = {
        a: {"f": Head(SECOND, new, {}), "g": Head(FIRST, older, {})},
        b: {"f": Head(FIRST, newer, {}), "g": Head(FIRST, older, {})},
        c: {"f": Head(FIRST, newer, {})},
    }
    for guest in (a, b, a):
        guest.hello(heads=heads[guest], group=GROUP, epoch=4, epoch_id="4" * 16, own_host=guest.name, start_count=2)
        assert desk.core.rebuilding and not guest.all(Welcome)
    stranger = Guest(desk, "s")
    stranger.hello()
    assert "waits for the replicas to rebuild it from" in stranger.got(Refused).reason
    stranger.hello(group=GROUP, epoch=1 << 62, own_host="s")
    assert "its epoch is" in stranger.got(Refused).reason
    stranger.hello(group="e" * 16, own_host="s")
    assert not stranger.all(Refused), "nobody can tell yet which group it is"
    stranger.hello(group=GROUP, epoch=4, epoch_id="5" * 16, own_host="s")
    assert "replicas of another group" in stranger.got(Refused).reason
    c.hello(heads=heads[c], group=GROUP, epoch=6, epoch_id="6" * 16, changes=3, own_host="c#2", start_count=2)
    assert not desk.core.rebuilding
    assert desk.changes()[1:4] == [
        Rebuilt(GROUP, 7, {4: ("4" * 16, 0), 6: ("6" * 16, 3), 7: ("1" * 16, 0)}),
        ForgetAcked(make_token(7, 0)),
        ReplicaSeen(a.replica, "a", "a", 2, a.incarnation),
    ]
    assert InSyncChanged("f", (b.replica, c.replica)) in desk.changes()
    assert InSyncChanged("g", (a.replica, b.replica)) in desk.changes()
    assert [guest.welcome().host for guest in (a, b, c)] == ["a", "b", "c#2"]
    assert {learn.file for learn in a.all(Learn)} == {"f"}
    assert (b.granted("f").clean, desk.core.epoch) == (None, 7)


def test_a_rebuild_waits_until_no_lease_of_the_lost_lockd_is_left() -> None:
    desk = Desk(Durable("f" * 16, 1, {1: EPOCHS[1]}, rebuild=1))
    desk.begin()
    a = Guest(desk, "a")
    a.hello(heads={"f": Head(FIRST, FIRST.token, {})}, group=GROUP, epoch=4, own_host="a")
    desk.pass_time(TTL_NS)
    assert desk.core.rebuilding and not a.all(Refused)
    a.hello(heads={"f": Head(SECOND, SECOND.token, {})}, group=GROUP, epoch=4, own_host="a")
    a.welcome()
    assert not desk.core.rebuilding


# Locks without a file over a restart


def plainly(counter: int, lock: str, mode: Mode, client: str) -> GrantLine:
    return GrantLine(999 * 1_000_000, "grant", lock, mode, make_token(1, counter), client, ())


def test_locks_without_a_file_are_taken_over_by_those_who_held_them() -> None:
    lines = [plainly(1, "door", "exclusive", "a"), plainly(2, "gate", "shared", "a"), plainly(3, "gate", "shared", "b")]
    lines.append(plainly(4, "hatch", "exclusive", "c"))
    desk = restarted("a", "b", "c", holds=tuple(lines))
    held = [claimed(line.lock, line.token, line.mode) for line in lines]  # type: ignore[arg-type]
    a, b = desk.join("a", held=(held[0], held[1])), desk.join("b", held=(held[2],))
    d = desk.join("d", plain=True)
    d.acquire("door", kind="plain")
    d.acquire("hatch", kind="plain")
    assert not d.all(Grant) and not desk.lines()
    desk.pass_time(TTL_NS - 1)
    for guest in (a, b, d):
        guest.say(Ping, 90)
    desk.pass_time(1)
    assert [(grant.request, grant.lock, grant.token) for grant in a.all(Grant)] == [
        (0, "door", held[0].token),
        (0, "gate", held[1].token),
    ]
    assert b.got(Grant).token == held[2].token
    assert d.got(Grant).lock == "hatch"
    assert [(line.event, line.lock) for line in desk.lines()] == [("expiry", "hatch"), ("grant", "hatch")]
    a.say(Release, 91, "door", held[0].token, EMPTY, {}, False, (), True, False)
    assert a.got(Released).current
    assert d.got(Grant).lock == "door"


def test_of_two_who_claim_a_lock_without_a_file_the_larger_token_has_it() -> None:
    desk = restarted("a", "b")
    older, newer = (
        claimed("door", make_token(1, 1), "exclusive"),
        claimed("door", make_token(1, 2), "exclusive"),
    )
    shared = claimed("gate", make_token(1, 3), "shared")
    a = desk.join(
        "a",
        held=(
            newer,
            claimed("gate", make_token(1, 4), "exclusive"),
            claimed("f", make_token(1, 9), "shared"),
        ),
    )
    b = desk.join(
        "b",
        held=(
            older,
            shared,
            claimed("", make_token(1, 5), "shared"),
            claimed("x", make_token(2, 5), "shared"),
        ),
    )
    assert {grant.lock for grant in a.all(Grant)} == {"door", "gate"}
    assert not b.all(Grant)
    late = desk.join("late", held=(claimed("window", make_token(1, 7), "exclusive"),))
    assert not late.all(Grant) and "window" not in desk.core.locks


def test_a_request_gets_its_grant_again_however_many_answers_came_after_it(desk: Desk) -> None:
    a = desk.join("a")
    grants = [a.granted(f"f{number}") for number in range(ANSWERS_KEPT_MAX + 5)]
    a.acquire("f0", request=grants[0].request)
    assert a.got(Grant) == grants[0]


def test_nothing_is_given_up_while_members_may_come_back() -> None:
    desk = restarted("a", "b")
    c = desk.join("c", plain=True)
    c.say(GiveUp, 90, "f", ("a", "b"))
    assert "waits for the others to come back" in c.got(Refused).reason


def test_after_a_rebuild_no_host_is_given_twice() -> None:
    desk = Desk(Durable("f" * 16, 1, rebuild=1))
    survivor = Guest(desk, "s")
    head = Head(FIRST, make_token(1, 1), {"anna": 3, "anna#2": 1, "s": 2})
    survivor.hello(heads={"f": head}, group=GROUP, epoch=1, own_host="anna#2", start_count=2, count=1)
    assert survivor.welcome().host == "anna#2"
    anna = Guest(desk, "anna")
    anna.hello()
    assert anna.welcome().host == "anna#3"
    b = Guest(desk, "s", "0" * 16)
    b.hello(replica=replica_id("other"))
    assert "in use by a live session" in b.got(Refused).reason


def test_a_host_that_two_survivors_have_had_stays_with_who_did_more() -> None:
    desk = Desk(Durable("f" * 16, 1, rebuild=2))
    old, new = Guest(desk, "old"), Guest(desk, "ben")
    old.hello(group=GROUP, epoch=1, own_host="ben", start_count=2, count=1, hosts=("ben", "old"))
    new.hello(group=GROUP, epoch=1, own_host="ben", start_count=2, count=5)
    assert (old.welcome().host, new.welcome().host) == ("old#2", "ben")


def test_after_a_rebuild_the_read_of_a_file_that_no_disk_had_room_for_comes_before_its_first_change() -> None:
    desk = Desk(Durable("f" * 16, 1, rebuild=2))
    a, b = Guest(desk, "a"), Guest(desk, "b")
    a.hello(group=GROUP, epoch=1, own_host="a", start_count=2, count=3, reads={"f": {"a": 3}})
    b.hello(group=GROUP, epoch=1, own_host="b", start_count=2)
    assert a.welcome().host == "a"
    assert a.granted("f").clock == {"a": 3}


def test_after_a_rebuild_a_host_that_has_lost_events_counts_anew_whoever_comes_first() -> None:
    desk = Desk(Durable("f" * 16, 1, rebuild=2))
    a, c = Guest(desk, "a"), Guest(desk, "c")
    a.hello(group=GROUP, epoch=1, own_host="a", start_count=2, count=10)
    c.hello(group=GROUP, epoch=1, own_host="c", start_count=2, heads={"f": Head(FIRST, make_token(1, 1), {"a": 15})})
    assert (a.welcome().host, c.welcome().host) == ("a#2", "c")
