"""What an Inspection tells, one group at a time: members, locks, why each waiter waits, figures and faults."""

import itertools

import pytest

from common.histogram import BUCKETS, Histogram, quantile_us, since
from common.limits import (
    FAULTS_KEPT_MAX,
    INSPECT_LOCKS_MAX,
    INSPECT_MEMBERS_MAX,
    INSPECT_NAMES_MAX,
    INSPECT_ROUTES_MAX,
    INSPECT_WAITERS_MAX,
)
from common.messages import (
    Acquire,
    Drop,
    Goodbye,
    Grant,
    Head,
    Inspect,
    Inspection,
    LockState,
    Mode,
    Ping,
    Refused,
    ReplicaState,
    Report,
)
from common.records import EMPTY, Version
from common.tokens import make_token
from lockd import inspection as inspection_module
from lockd.effects import Durable, ReplicaSeen, Send, SessionOpened
from tests.test_lockd_core import EPOCHS, FIRST, GROUP, TTL_NS, Desk, Guest, S, replica_id

MS = 1_000_000


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.begin()
    return desk


_routes = itertools.count()


def inspected(desk: Desk, lock: str = "") -> Inspection:
    """Return what is told to somebody without a session."""
    route = f"somebody-{next(_routes)}".encode()
    (answer,) = desk.core.handle(route, Inspect(9, lock), desk.now_ns)
    assert isinstance(answer, Send)
    assert isinstance(answer.message, Inspection)
    assert (answer.route, answer.message.request) == (route, 9)
    return answer.message


def _goodbye(desk: Desk, guest: Guest) -> Goodbye:
    return Goodbye(desk.core.epoch, guest.session)


def lock_of(desk: Desk, name: str) -> LockState:
    (lock,) = inspected(desk, name).locks
    return lock


def whys(desk: Desk, name: str) -> list[tuple[str, str]]:
    return [(waiter.host, waiter.why) for waiter in lock_of(desk, name).queue]


def count_of(inspection: Inspection, what: str, kind: str = "") -> int:
    (count,) = [each.count for each in inspection.counts if (each.what, each.kind) == (what, kind)]
    return count


# Members


def test_members_are_replicas_and_whoever_has_or_wants_a_lock(desk: Desk) -> None:
    a, idle, locker = desk.join("a"), desk.join("idle", plain=True), desk.join("locker", plain=True)
    a.granted("f")
    assert [member.host for member in inspected(desk).members] == ["a"]
    locker.granted("job", kind="plain")
    seen = inspected(desk)
    assert [(each.host, each.replica, each.session) for each in seen.members] == [
        ("a", replica_id("a"), a.session),
        ("locker", "", locker.session),
    ]
    assert (seen.replicas, seen.others) == (1, 2), "idle and locker"
    assert idle.session not in {each.session for each in seen.members}


def test_a_member_has_its_lease_its_connection_and_when_it_was_heard_of(desk: Desk) -> None:
    a = desk.join("a", start_count=7)
    a.granted("job", kind="plain")
    desk.pass_time(S)
    (member,) = inspected(desk).members
    assert (member.start_count, member.connected, member.seen_ms, member.lease_ms) == (7, True, 1000, 2000)
    desk.disconnect(a)
    (member,) = inspected(desk).members
    assert (member.connected, member.seen_ms, member.lease_ms) == (False, 1000, 2000), "it keeps its whole lease"
    holder = lock_of(desk, "job").holders[0]
    assert (holder.connected, holder.seen_ms, holder.lease_ms, holder.held_us) == (False, 1000, 2000, 1_000_000)


def test_who_has_left_is_absent_with_the_files_that_need_it(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    a.granted("f")
    b.granted("g")
    for guest in (a, b):
        desk.send(guest.route, _goodbye(desk, guest))
    desk.pass_time(2 * S)
    seen = inspected(desk)
    assert [(each.host, each.session, each.needed, each.seen_ms) for each in seen.members] == [
        ("a", 0, ("f", "g"), 2000),
        ("b", 0, ("f", "g"), 2000),
    ]
    assert (seen.files, seen.unclean, seen.lost) == (2, 2, 2)
    desk.join("a", start_count=2)
    live, absent = inspected(desk).members
    assert (live.session != 0, live.needed, absent.needed, absent.in_sync) == (True, (), (), 2)


def test_of_many_files_that_need_somebody_a_few_are_named(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    for number in range(4):
        b.granted(f"of-both-{number}")
    desk.send(b.route, _goodbye(desk, b))
    for number in range(9):
        a.granted(f"of-a-{number}")
    desk.send(a.route, _goodbye(desk, a))
    seen = inspected(desk)
    members = {each.host: each for each in seen.members}
    assert (len(members["a"].needed), members["a"].needed_left_out, members["a"].in_sync) == (INSPECT_NAMES_MAX, 3, 13)
    assert (members["b"].needed, members["b"].in_sync, members["b"].learning) == (
        tuple([f"of-both-{number}" for number in range(4)]),
        4,
        9,
    )
    assert members["b"].behind is None
    assert (seen.files, seen.lost) == (13, 13)


def test_who_has_not_been_here_since_the_start_was_never_heard_of() -> None:
    seen = ReplicaSeen(replica_id("a"), "a", "a", 3, "1" * 16)
    only_a_host = ReplicaSeen("2" * 16, "b", "b", 0, "")
    replicas = {each.replica: each for each in (seen, only_a_host)}
    desk = Desk(Durable(GROUP, 2, EPOCHS, 1, replicas, {"f": (seen.replica,)}))
    desk.begin()
    (member,) = inspected(desk).members
    assert (member.host, member.seen_ms, member.needed) == ("a", None, ("f",))


def test_a_wiped_replica_is_left_out_once_its_name_goes_on(desk: Desk) -> None:
    a = desk.join("a")
    desk.send(a.route, _goodbye(desk, a))
    assert [member.host for member in inspected(desk).members] == ["a"]
    desk.join("a", replica="9" * 16)
    assert [member.host for member in inspected(desk).members] == ["a#2"]


def test_a_learner_is_as_far_behind_as_it_has_told(desk: Desk) -> None:
    a = desk.join("a")
    a.release(a.granted("f"), FIRST, acked=(a,), changed=True)
    b = desk.join("b")
    assert lock_of(desk, "f").replicas == (ReplicaState("a", "in sync", 0, 0), ReplicaState("b", "learner", 1, 0))
    strayed = Version(1, make_token(1, 9), b"9" * 16)
    b.say(Report, "f", strayed, 0)
    assert lock_of(desk, "f").replicas[1].behind is None, "as many versions, but others"
    members = {member.host: (member.in_sync, member.learning, member.behind) for member in inspected(desk).members}
    assert members == {"a": (1, 0, 0), "b": (0, 1, None)}
    b.say(Report, "f", FIRST, FIRST.token)
    assert [each.standing for each in lock_of(desk, "f").replicas] == ["in sync", "in sync"]


def test_how_far_behind_nobody_knows_is_not_guessed() -> None:
    a, b = replica_id("a"), replica_id("b")
    desk = Desk(Durable(GROUP, 2, EPOCHS, 0, {a: ReplicaSeen(a, "a", "a", 1, "1" * 16)}, {"f": (a,)}))
    desk.begin()
    desk.join("b", heads={"f": Head(FIRST, FIRST.token, {})}, replica=b)
    lock = lock_of(desk, "f")
    assert (lock.clean, lock.version) == (False, None)
    assert lock.replicas == (ReplicaState("a", "absent", 0, None), ReplicaState("b", "learner", None, 0))


# Locks


def test_a_lock_has_its_holders_and_its_queue_in_order(desk: Desk) -> None:
    a, b, c = desk.join("a"), desk.join("b"), desk.join("c")
    first, second = a.granted("f", "shared"), b.granted("f", "shared")
    desk.pass_time(10 * MS)
    c.acquire("f")
    desk.pass_time(5 * MS)
    a.acquire("f", "shared")
    lock = lock_of(desk, "f")
    assert (lock.kind, lock.clean, lock.version) == ("file", True, EMPTY)
    assert [(each.host, each.token, each.mode, each.held_us) for each in lock.holders] == [
        ("a", first.token, "shared", 15_000),
        ("b", second.token, "shared", 15_000),
    ]
    assert [(each.host, each.mode, each.waited_us, each.why) for each in lock.queue] == [
        ("c", "exclusive", 5_000, "holder"),
        ("a", "shared", 0, "turn"),
    ]


def test_a_lock_that_nobody_has_used_is_not_there(desk: Desk) -> None:
    assert inspected(desk, "f").locks == ()


def test_whose_connection_is_down_waits_for_that(desk: Desk) -> None:
    a, b, c = desk.join("a"), desk.join("b"), desk.join("c")
    a.granted("f")
    b.acquire("f")
    c.acquire("f")
    desk.disconnect(b)
    assert whys(desk, "f") == [("b", "disconnected"), ("c", "holder")]


def test_a_learner_waits_until_it_has_caught_up_and_others_for_it(desk: Desk) -> None:
    a = desk.join("a")
    held = a.granted("f")
    b = desk.join("b")
    b.acquire("f", "shared")
    a.acquire("f", "shared")
    assert whys(desk, "f") == [("b", "learning"), ("a", "holder")]
    a.release(held, FIRST, acked=(a,), changed=True)
    assert whys(desk, "f") == [("b", "learning"), ("a", "learner")]


def test_where_all_of_the_in_sync_set_are_absent_waiters_wait_for_them(desk: Desk) -> None:
    a = desk.join("a")
    a.release(a.granted("f"), FIRST, acked=(a,), changed=True)
    b = desk.join("b")
    desk.send(a.route, _goodbye(desk, a))
    b.acquire("f")
    assert whys(desk, "f") == [("b", "absent")]
    assert inspected(desk).lost == 1


def test_after_a_start_waiters_wait_for_the_sessions_that_are_not_back() -> None:
    desk = Desk(Durable(GROUP, 2, EPOCHS, 5, sessions={5: SessionOpened(5, "b", "", "b" * 16)}))
    desk.begin()
    a = desk.join("a")
    a.acquire("f")
    desk.pass_time(S)
    seen = inspected(desk)
    assert (seen.grace_ms, seen.expected) == (TTL_NS // MS - 1000, ("b",))
    assert [(each.lock, each.kind, [(w.host, w.waited_us, w.why) for w in each.queue]) for each in seen.locks] == [
        ("f", "file", [("a", 1_000_000, "grace")])
    ]
    assert whys(desk, "f") == [("a", "grace")]
    desk.pass_time(2 * S)
    after = inspected(desk)
    assert (after.grace_ms, after.expected, count_of(after, "sessions_ended", "absent")) == (0, (), 1)
    assert after.faults[0].text == "not back after lockd's start: b"


def test_an_inspection_is_bounded_and_tells_what_it_leaves_out(desk: Desk) -> None:
    locker = desk.join("locker", plain=True)
    held = [locker.granted(f"lock-{number}", kind="plain") for number in range(INSPECT_LOCKS_MAX + 3)]
    seen = inspected(desk)
    assert (len(seen.locks), seen.locks_left_out) == (INSPECT_LOCKS_MAX, 3)
    for _ in range(INSPECT_WAITERS_MAX + 2):
        locker.acquire("lock-1", kind="plain")
    lock = lock_of(desk, "lock-1")
    assert (len(lock.queue), lock.queue_left_out) == (INSPECT_WAITERS_MAX, 2)
    for each in held:
        locker.release(each)
    for number in range(INSPECT_MEMBERS_MAX + 1):
        desk.join(f"c{number}")
    seen = inspected(desk)
    assert (len(seen.members), seen.members_left_out) == (INSPECT_MEMBERS_MAX, 2)


def test_locks_in_use_come_first(desk: Desk) -> None:
    a = desk.join("a")
    for name in "abc":
        a.release(a.granted(name), FIRST, acked=(a,), changed=True)
    a.granted("c", "shared")
    assert [lock.lock for lock in inspected(desk).locks] == ["c", "a", "b"]


def test_an_inspection_changes_nothing(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    a.granted("f")
    b.acquire("f")
    before = repr((desk.core.locks, desk.core.sessions)), desk.core.deadline_ns()
    desk.pass_time(S)
    desk.core.handle(a.route, Inspect(9, ""), desk.now_ns)
    inspected(desk)
    assert (repr((desk.core.locks, desk.core.sessions)), desk.core.deadline_ns()) == before
    desk.pass_time(TTL_NS - S)
    assert not desk.core.sessions, "to look on renews no lease"


def test_who_asks_again_at_once_is_not_answered(desk: Desk) -> None:
    """Or the answers of one that does not read them would pile up."""
    assert desk.core.handle(b"x", Inspect(1, ""), desk.now_ns)
    assert not desk.core.handle(b"x", Inspect(2, ""), desk.now_ns + 49 * MS)
    assert desk.core.handle(b"x", Inspect(3, ""), desk.now_ns + 50 * MS)
    told = [desk.core.handle(b"%d" % each, Inspect(1, ""), desk.now_ns + 51 * MS) for each in range(100)]
    assert len([one for one in told if one]) == INSPECT_ROUTES_MAX - 1, "x is one of them"


# Figures and faults


def figures_of(desk: Desk) -> dict[tuple[str, str], int]:
    return {(each.what, each.kind): each.count for each in inspected(desk).counts if each.count}


def test_grants_waits_holds_and_ops_are_counted(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    held = a.granted("f")
    b.acquire("f", "shared")
    desk.pass_time(3 * MS)
    a.release(held, FIRST, acked=(a, b), changed=True)
    desk.pass_time(2 * MS)
    b.release(b.got(Grant))
    seen = inspected(desk)
    assert (count_of(seen, "grants", "exclusive"), count_of(seen, "grants", "shared")) == (1, 1)
    sums = {each.what: (sum(each.counts), each.sum_us) for each in seen.spreads}
    assert sums["waits"] == (2, 3_000)
    assert sums["holds"] == (2, 3_000 + 2_000)
    assert sums["ops"] == (2, 3_000 + 5_000)


def test_a_lost_lock_a_lost_session_and_the_unclean_grant_behind_it_are_faults(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    a.granted("f")
    b.acquire("f")
    desk.disconnect(a)
    desk.pass_time(S // 10)
    seen = inspected(desk)
    assert [each.text for each in seen.faults] == [
        "session 1 of a is over: its connection is down",
        "a lost f, held under token 1.1",
        "b was granted f unclean, and settles it",
    ]
    assert count_of(seen, "expiries", "session") == 1
    assert count_of(seen, "sessions_ended", "connection") == 1
    assert count_of(seen, "unclean_grants") == 1


def test_drops_admissions_refusals_and_stale_messages_are_counted(desk: Desk) -> None:
    a, b = desk.join("a"), desk.join("b")
    held = a.granted("f")
    a.say(Drop, 50, "f", held.token, (b.replica,))
    a.release(held, FIRST, acked=(a,), changed=True)
    b.say(Report, "f", FIRST, FIRST.token)
    again = a.granted("f")
    b.acquire("f", wait_ms=0)
    b.say(Acquire, 51, "f", "plain", "shared", 0, 0, 0, 0, False)
    desk.send(a.route, Ping(7, a.session, 3))
    Guest(desk, "a", incarnation="9" * 16).hello(replica="8" * 16)
    assert again.in_sync == (a.replica, b.replica)
    assert b.all(Refused)
    counts = figures_of(desk)
    wanted = {
        ("drops", ""): 1,
        ("admissions", ""): 1,
        ("refusals", "wait"): 1,
        ("refusals", "acquire"): 1,
        ("refusals", "hello"): 1,
        ("stale", ""): 1,
    }
    assert {key: counts.get(key) for key in wanted} == wanted
    assert [each.text for each in inspected(desk).faults] == [
        "b left the in-sync set of f: a had no ack in time",
        "a is refused: the name a is in use by a live session; choose another with --name",
    ]


def test_only_the_newest_faults_are_kept(desk: Desk) -> None:
    desk.join("a")
    for number in range(FAULTS_KEPT_MAX + 5):
        Guest(desk, "a", incarnation=f"{number:016d}").hello(replica=f"{number:016d}")
    faults = inspected(desk).faults
    assert len(faults) == FAULTS_KEPT_MAX


@pytest.mark.parametrize("mode", ["exclusive", "shared"])
def test_what_a_restart_takes_is_counted(mode: Mode) -> None:
    desk = Desk()
    a = desk.join("a")
    a.granted("f", mode)
    replicas = {a.replica: ReplicaSeen(a.replica, "a", "a", 1, "1" * 16)}
    after = Desk(Durable(GROUP, 2, EPOCHS, 1, replicas, {"f": (a.replica,)}, holds=desk.lines()))
    after.begin()
    seen = inspected(after)
    assert count_of(seen, "expiries", "restart") == 1
    assert [each.text for each in seen.faults] == ["a lost f: lockd started anew"]


# Histograms


def test_a_histogram_tells_quantiles_to_a_factor_of_two() -> None:
    histogram = Histogram()
    for duration_us in [*range(1, 1001), -5, 0]:
        histogram.add(duration_us)
    assert histogram.sum_us == 500_500
    for part in (0.01, 0.5, 0.9, 0.99):
        found = quantile_us(histogram.counts, part)
        assert found is not None
        assert 1000 * part / 2 <= found <= 1000 * part * 2
    assert quantile_us([0] * BUCKETS, 0.5) is None
    histogram.add((1 << 63) - 1)
    assert histogram.counts[63] == 1


def test_two_readings_give_what_lies_between() -> None:
    histogram = Histogram()
    histogram.add(5)
    before = inspection_module._without_end(histogram.counts)
    histogram.add(5)
    histogram.add(1000)
    between = since(histogram.counts, before)
    assert sum(between) == 2
    assert between[(5).bit_length()] == between[(1000).bit_length()] == 1
