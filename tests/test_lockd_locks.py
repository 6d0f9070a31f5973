"""lockd's core: locks without a file, one message at a time."""

from itertools import pairwise

import pytest

from common.limits import SEMAPHORE_MAX
from common.messages import (
    Break,
    Broken,
    CallBack,
    CalledBack,
    Cancel,
    Goodbye,
    Grant,
    Held,
    Inspect,
    Inspection,
    InUse,
    LockState,
    Lost,
    Mode,
    Ping,
    Recall,
    Refused,
    Release,
    Released,
    Resume,
    Welcome,
)
from common.records import EMPTY
from common.tokens import make_token
from lockd import deadlocks
from lockd.effects import Durable, LeasesGiven, Note, Persist, SessionOpened
from lockd.locks import Hold, Lock
from lockd.shared import Shared
from tests.test_lockd_core import EPOCHS, GROUP, TTL_NS, Desk, Guest, S


@pytest.fixture
def desk() -> Desk:
    return Desk()


def plain(desk: Desk, names: str) -> list[Guest]:
    """Return clients without a replica, one per letter."""
    return [desk.join(name, plain=True) for name in names]


def holders(desk: Desk, lock: str) -> list[tuple[str, str]]:
    """Return who holds a lock, and in which mode."""
    known = desk.core.locks.get(lock)
    return [(desk.core.sessions[hold.session].name, hold.mode) for hold in known.holds.values()] if known else []


# Conversions


def test_an_upgrade_comes_before_all_who_wait(desk: Desk) -> None:
    a, b, c, d = plain(desk, "abcd")
    first, second = a.have("door", "shared"), b.have("door", "shared")
    c.want("door")
    d.want("door", "shared")
    request = a.want("door", converts=first)
    assert not a.all(Grant)
    b.give("door", second)
    grant = a.got(Grant)
    assert (grant.request, grant.mode, holders(desk, "door")) == (request, "exclusive", [("a", "exclusive")])
    assert not a.give("door", first).current, "one hold has one token"
    a.give("door", grant.token)
    assert c.got(Grant).token > grant.token
    assert not d.all(Grant)
    assert [(line.event, line.client) for line in desk.lines()][2:5] == [
        ("release", "b"),
        ("release", "a"),
        ("grant", "a"),
    ]


def test_a_downgrade_lets_readers_in_at_once(desk: Desk) -> None:
    a, b, c, d = plain(desk, "abcd")
    token = a.have("door")
    b.want("door", "shared")
    c.want("door")
    d.want("door", "shared")
    a.want("door", "shared", converts=token)
    assert (a.got(Grant).mode, b.got(Grant).mode) == ("shared", "shared")
    assert not c.all(Grant)
    assert not d.all(Grant), "it would overtake a writer"


def test_a_conversion_into_the_same_mode_waits_for_nobody(desk: Desk) -> None:
    a, b, c = plain(desk, "abc")
    tokens = [guest.have("door", "shared") for guest in (a, b)]
    c.want("door")
    for guest, token in zip((a, b), tokens, strict=True):
        guest.want("door", "shared", converts=token)
        assert guest.got(Grant).mode == "shared"


def test_upgrades_that_nobody_can_tell_to_be_deadlocked_go_in_their_order(desk: Desk) -> None:
    a, b, c = plain(desk, "abc")
    first, second, third = (guest.have("door", "shared", owner=0) for guest in (a, b, c))
    for guest, token in ((a, first), (b, second)):
        guest.want("door", owner=0, converts=token)
    c.give("door", third)
    b.give("door", second)
    assert b.got(Refused).cause == "lost"
    assert a.got(Grant).mode == "exclusive"


def test_a_hold_is_converted_by_one_request_at_a_time(desk: Desk) -> None:
    a, b = plain(desk, "ab")
    token, other = a.have("door", "shared"), b.have("door", "shared")
    a.want("door", converts=token)
    a.want("door", owner=2, converts=token)
    assert "is being converted already" in a.got(Refused).reason
    b.give("door", other)
    a.give("door", a.got(Grant).token)
    assert not desk.core.locks


def test_what_converts_a_hold_is_refused_when_that_is_no_more(desk: Desk) -> None:
    a, b = plain(desk, "ab")
    request = a.want("door", "shared")
    token = a.got(Grant).token
    b.have("door", "shared")
    a.want("door", converts=token)
    a.say(Cancel, request)
    assert a.got(Refused).cause == "lost"
    a.want("door", converts=token)
    assert "is not held under token 1.1" in a.got(Refused).reason
    assert holders(desk, "door") == [("b", "shared")]


def test_a_cancelled_conversion_is_answered_and_the_hold_stays(desk: Desk) -> None:
    a, b = plain(desk, "ab")
    token, other = a.have("door", "shared"), b.have("door", "shared")
    request = a.want("door", converts=token)
    a.say(Cancel, request)
    assert (a.got(Refused).request, holders(desk, "door")) == (request, [("a", "shared"), ("b", "shared")])
    b.give("door", other)
    request = a.want("door", converts=token)
    a.say(Cancel, request)
    assert a.got(Grant).mode == "exclusive", "it was under way, and stands"
    assert holders(desk, "door") == [("a", "exclusive")]


# Semaphores


def test_as_many_as_the_limit_hold_a_semaphore_and_others_follow_in_their_order(desk: Desk) -> None:
    guests = plain(desk, "abcde")
    tokens = [guest.have("pool", "shared", limit=2) for guest in guests[:2]]
    for guest in guests[2:]:
        guest.want("pool", "shared", limit=2)
        assert not guest.all(Grant)
    guests[1].give("pool", tokens[1])
    guests[2].got(Grant)
    guests[0].give("pool", tokens[0])
    guests[3].got(Grant)
    assert not guests[4].all(Grant)


@pytest.mark.parametrize(
    ("limit", "mode", "converted", "reason"),
    [
        (3, "shared", False, "pool is a semaphore of 2 here, not a semaphore of 3; all who use it have to ask for"),
        (0, "exclusive", False, "pool is a semaphore of 2 here, not a lock without a limit; all who use it"),
        (2, "exclusive", False, "a semaphore is taken shared, by 1 to"),
        (2, "shared", True, "a semaphore is not converted"),
    ],
)
def test_all_agree_on_a_semaphore(desk: Desk, limit: int, mode: str, converted: bool, reason: str) -> None:
    a, b = plain(desk, "ab")
    token = a.have("pool", "shared", limit=2)
    asks = a if converted else b
    asks.want("pool", mode, limit=limit, converts=token if converted else 0)  # type: ignore[arg-type]
    assert reason in asks.got(Refused).reason
    assert holders(desk, "pool") == [("a", "shared")]


def test_a_lock_in_use_becomes_no_semaphore_and_a_limit_has_a_limit(desk: Desk) -> None:
    a, b = plain(desk, "ab")
    token = a.have("door")
    b.want("door", "shared", limit=2)
    assert "door is a lock without a limit here, not a semaphore of 2" in b.got(Refused).reason
    a.give("door", token)
    b.have("door", "shared", limit=2)
    b.want("hall", "shared", limit=SEMAPHORE_MAX + 1)
    assert "1 to 10000" in b.got(Refused).reason


# Deadlocks


def refused(guest: Guest) -> str:
    """Return the cycle that a client's newest request was refused for."""
    answer = guest.got(Refused)
    assert answer.cause == "deadlock"
    return answer.reason.removeprefix("deadlock: ")


def test_who_closes_a_cycle_of_two_is_refused_at_once_and_the_other_goes_on(desk: Desk) -> None:
    a, b = plain(desk, "ab")
    a.have("door")
    token = b.have("gate")
    a.want("gate")
    b.want("door")
    assert refused(b) == "b waits for door, held by a under token 1.1; a waits for gate, held by b under token 1.2"
    assert desk.core.figures.refusals["deadlock"] == 1
    assert desk.core.figures.faults[-1][1].endswith("held by b under token 1.2; b is refused")
    b.give("gate", token)
    a.got(Grant)
    assert not b.all(Grant)


def test_a_cycle_of_three_is_told_from_who_has_closed_it(desk: Desk) -> None:
    a, b, c = plain(desk, "abc")
    for guest, lock in ((a, "x"), (b, "y"), (c, "z\u202e")):
        guest.have(lock)
    b.want("x")
    a.want("z\u202e")
    c.want("y")
    assert refused(c) == (
        "c waits for y, held by b under token 1.2; b waits for x, held by a under token 1.1; "
        "a waits for z\\u202e, held by c under token 1.3"
    )


def test_a_cycle_through_readers_and_through_a_turn_in_a_queue(desk: Desk) -> None:
    a, b, c = plain(desk, "abc")
    a.have("door", "shared")
    b.have("gate")
    a.want("gate")
    c.want("door")
    assert not c.all(Refused), "b may still give the gate back"
    b.want("door", "shared")
    assert refused(b) == (
        "b waits for door, behind c; c waits for door, held shared by a under token 1.1; "
        "a waits for gate, held by b under token 1.2"
    )


def test_a_semaphore_is_in_a_cycle_when_none_of_its_holders_goes_on(desk: Desk) -> None:
    a, b, c = plain(desk, "abc")
    a.have("pool", "shared", limit=2)
    second = b.have("pool", "shared", limit=2)
    third = c.have("door")
    a.want("door")
    c.want("pool", "shared", limit=2)
    assert not c.all(Refused), "b goes on"
    b.want("door")
    assert "b waits for door, held by c under token 1.3; c waits for pool, of which b has one of 2, under" in refused(b)
    b.give("pool", second)
    c.got(Grant)
    c.give("door", third)
    a.got(Grant)


def test_the_second_of_two_upgrades_is_a_deadlock(desk: Desk) -> None:
    a, b = plain(desk, "ab")
    first, second = a.have("door", "shared"), b.have("door", "shared")
    a.want("door", converts=first)
    b.want("door", converts=second)
    assert refused(b) == (
        "b waits to upgrade door, held shared by a under token 1.1; "
        "a waits to upgrade door, held shared by b under token 1.2"
    )
    b.give("door", second)
    assert a.got(Grant).mode == "exclusive"


def test_owners_are_told_apart_where_two_of_a_client_are_in_a_cycle(desk: Desk) -> None:
    (a,) = plain(desk, "a")
    a.have("x", owner=1)
    a.have("y", owner=2)
    a.want("y", owner=1)
    a.want("x", owner=2)
    assert refused(a) == (
        "a (owner 2) waits for x, held by a (owner 1) under token 1.1; "
        "a (owner 1) waits for y, held by a (owner 2) under token 1.2"
    )


def test_who_waits_for_itself_is_refused(desk: Desk) -> None:
    (a,) = plain(desk, "a")
    a.have("door")
    a.want("door")
    assert refused(a) == "a waits for door, held by a under token 1.1"
    a.want("door", owner=2)
    assert not a.all(Refused), "another thread waits for its turn"


def test_a_long_cycle_is_told_in_part(desk: Desk) -> None:
    guests = plain(desk, "abcdefghijkl")
    for guest in guests:
        guest.have(f"l{guest.name}")
    for guest, behind in pairwise(guests):
        guest.want(f"l{behind.name}")
    guests[-1].want("la")
    assert refused(guests[-1]).endswith("; and so on, 12 waits in all")


def test_a_try_waits_for_nobody(desk: Desk) -> None:
    a, b = plain(desk, "ab")
    a.have("door")
    b.have("gate")
    a.want("gate")
    b.want("door", wait_ms=0)
    assert b.got(Refused).cause == "wait"
    assert desk.core.figures.refusals["deadlock"] == 0


def test_an_owner_waits_for_one_lock_at_a_time(desk: Desk) -> None:
    a, b = plain(desk, "ab")
    a.have("x")
    a.have("y")
    b.want("x")
    b.want("y")
    assert "this owner waits for x already" in b.got(Refused).reason
    b.want("y", owner=2)
    assert not b.all(Refused)


def test_what_another_owner_converts_is_given_back_by_that_one(desk: Desk) -> None:
    a, b, c = plain(desk, "abc")
    first, second = a.have("door", "shared", owner=1), b.have("door", "shared")
    c.have("gate")
    a.want("gate", owner=1)
    a.want("door", owner=2, converts=first)
    c.want("door")
    assert not c.all(Refused), "a's second owner has the door before"
    b.give("door", second)
    a.give("door", a.got(Grant).token)
    c.got(Grant)


def test_a_client_whose_connection_is_down_is_in_no_cycle_until_it_is_back(desk: Desk) -> None:
    a, b = plain(desk, "ab")
    a.have("x", owner=1)
    a.have("y", owner=2)
    b.have("z")
    b.have("w", owner=2)
    a.want("z", owner=1)
    a.want("w", owner=2)
    desk.disconnect(a)
    b.want("x")
    b.want("y", owner=2)
    assert not b.all(Refused)
    a.say(Ping, 90)
    assert [answer.cause for answer in a.all(Refused)] == ["deadlock", "deadlock"]
    assert not b.all(Refused)


def test_a_client_that_is_back_is_refused_the_wait_that_closes_a_cycle_now(desk: Desk) -> None:
    a, b, c = plain(desk, "abc")
    a.have("x", "shared", owner=1)
    b.have("z")
    a.want("z", owner=1)
    c.have("x", "shared", owner=1)
    b.want("x", wait_ms=60_000)
    assert refused(b)
    desk.disconnect(a)
    b.want("x")
    a.say(Ping, 90)
    assert refused(a).startswith("a waits for z, held by b")


def test_a_conversion_that_is_given_up_leaves_the_hold_to_an_owner_who_waits_for_itself(desk: Desk) -> None:
    a, b = plain(desk, "ab")
    first, second = a.have("door", "shared", owner=2), b.have("door", "shared")
    request = a.want("door", owner=1, converts=first)
    a.want("door", owner=2)
    assert not a.all(Refused), "the first owner has it before"
    a.say(Cancel, request)
    cancelled, deadlocked = a.all(Refused)
    assert (cancelled.request, deadlocked.cause) == (request, "deadlock")
    b.give("door", second)
    assert holders(desk, "door") == [("a", "shared")]


# Locks that are kept


def test_a_lock_is_kept_until_somebody_wants_it(desk: Desk) -> None:
    a, b, c = plain(desk, "abc")
    a.want("door", sticky=True)
    grant = a.got(Grant)
    assert grant.sticky
    b.want("door", sticky=True)
    c.want("door")
    recall = a.got(Recall)
    assert (recall.lock, recall.token) == ("door", grant.token)
    a.give("door", grant.token)
    assert not b.got(Grant).sticky, "c waits already"
    assert desk.core.figures.recalls == 1


def test_readers_keep_a_lock_together_and_all_of_them_are_asked(desk: Desk) -> None:
    a, b, c = plain(desk, "abc")
    tokens = [guest.have("door", "shared", sticky=True) for guest in (a, b)]
    assert not [*a.all(Recall), *b.all(Recall)]
    c.want("door")
    assert [guest.got(Recall).token for guest in (a, b)] == tokens
    a.give("door", tokens[0])
    assert not c.all(Grant)
    b.say(InUse, tokens[1], 5)
    assert not c.all(Grant)
    b.give("door", tokens[1])
    c.got(Grant)


def test_a_kept_lock_is_in_no_cycle_until_its_client_says_who_uses_it(desk: Desk) -> None:
    a, b = plain(desk, "ab")
    token = a.have("door", sticky=True)
    b.have("gate")
    a.want("gate", owner=7)
    b.want("door")
    assert not b.all(Refused)
    assert a.got(Recall).token == token
    a.say(InUse, token, 7)
    assert refused(b) == "b waits for door, held by a under token 1.1; a waits for gate, held by b under token 1.2"
    a.say(InUse, token, 7)
    a.say(InUse, token + 1, 7)
    assert holders(desk, "door") == [("a", "exclusive")]


def test_a_try_waits_a_moment_for_what_is_kept_unused(desk: Desk) -> None:
    a, b = plain(desk, "ab")
    token = a.have("door", sticky=True)
    b.want("door", wait_ms=0)
    assert a.got(Recall).token == token
    assert not b.all(Refused)
    a.give("door", token)
    assert b.got(Grant).token > token


@pytest.mark.parametrize("how", ["is said to be in use", "comes back", "is not converted"])
def test_who_waits_for_a_lock_is_looked_at_together(how: str, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c = plain(desk, "abc")
    b.have("gate")
    mode: Mode = "shared" if how == "is not converted" else "exclusive"
    token = a.have("door", mode, sticky=how == "is said to be in use")
    if how == "is not converted":
        b.have("door", mode, owner=2)
        conversion = a.want("door", owner=2, converts=token)
    for owner in range(1, 31):
        c.want("door", owner=owner)
    a.want("gate")
    if how == "comes back":
        desk.disconnect(c)
    looks: list[str] = []
    reduce = deadlocks._reduce

    def count(shared: Shared, name: str) -> object:
        looks.append(name)
        return reduce(shared, name)

    monkeypatch.setattr(deadlocks, "_reduce", count)
    match how:
        case "is said to be in use":
            a.say(InUse, token, 1)
        case "comes back":
            c.say(Resume, 90)
        case _:
            a.say(Cancel, conversion)
    assert looks == ["door"]
    assert not c.all(Refused)


def test_who_only_stands_before_a_deadlocked_waiter_is_not_refused_for_it(desk: Desk) -> None:
    a, b, c = plain(desk, "abc")
    b.have("gate")
    token = a.have("door", sticky=True)
    c.want("door")
    a.want("gate")
    b.want("door")
    a.say(InUse, token, 1)
    assert refused(b).startswith("b waits for door, ")
    assert not [*a.all(Refused), *c.all(Refused)]


def test_a_try_is_refused_when_what_it_wants_is_said_to_be_in_use_and_at_once_from_then_on(desk: Desk) -> None:
    a, b, c = plain(desk, "abc")
    token = a.have("door", sticky=True)
    b.want("door", wait_ms=0)
    a.say(InUse, token, 1)
    assert b.got(Refused).reason == "no grant in time: door is held by a under token 1.1"
    c.want("door", wait_ms=0)
    assert c.got(Refused).cause == "wait"


@pytest.mark.parametrize("ttl_ns", [TTL_NS, S // 10])
def test_a_try_is_refused_when_nobody_answers_for_what_is_kept(ttl_ns: int) -> None:
    desk = Desk(ttl_ns=ttl_ns)
    a, b = plain(desk, "ab")
    a.have("door", sticky=True)
    b.want("door", wait_ms=0)
    moment_ns = min(S // 5, ttl_ns)
    desk.pass_time(moment_ns - 1)
    assert not b.all(Refused)
    desk.pass_time(1)
    assert b.got(Refused).cause == "wait"
    assert not desk.core.waiters


def test_a_try_waits_for_nobody_who_was_there_first_is_in_use_or_cannot_answer(desk: Desk) -> None:
    a, b, c, d = plain(desk, "abcd")
    a.have("door", sticky=True)
    b.want("door")
    c.want("door", wait_ms=0)
    assert c.got(Refused).cause == "wait", "b is before it"
    a.have("gate", "shared", sticky=True)
    b.want("gate", "shared", owner=2)
    c.want("gate", wait_ms=0)
    assert c.got(Refused).cause == "wait", "b's hold is not kept"
    d.have("hall", sticky=True)
    desk.disconnect(d)
    c.want("hall", wait_ms=0)
    assert c.got(Refused).cause == "wait", "d does not hear the recall"


def test_a_try_is_refused_as_late_where_a_wait_would_be_a_deadlock(desk: Desk) -> None:
    a, b = plain(desk, "ab")
    token = a.have("door", sticky=True)
    b.have("gate")
    b.want("door", wait_ms=0)
    a.want("gate", owner=2)
    a.say(InUse, token, 2)
    assert b.got(Refused).cause == "wait"
    assert not a.all(Refused), "b goes on, and gives the gate back"
    b.want("door")
    assert b.got(Refused).cause == "deadlock"


def test_nobody_is_refused_for_a_cycle_through_a_try(desk: Desk) -> None:
    a, b = plain(desk, "ab")
    token = a.have("door", sticky=True)
    b.have("gate")
    b.want("door", wait_ms=0)
    a.want("door", owner=2, converts=token)
    assert not a.got(Grant).sticky
    a.want("gate", owner=2)
    assert not [*a.all(Refused), *b.all(Refused)], "b will not wait for long"
    desk.pass_time(S // 5)
    assert b.got(Refused).cause == "wait"
    b.want("door")
    assert b.got(Refused).cause == "deadlock"


def test_a_try_to_upgrade_waits_a_moment_for_readers_who_keep_their_holds(desk: Desk) -> None:
    a, b, c = plain(desk, "abc")
    kept = a.have("door", "shared", sticky=True)
    token = b.have("door", "shared")
    b.want("door", wait_ms=0, converts=token)
    c.want("door", "shared")
    a.give("door", kept)
    assert b.got(Grant).mode == "exclusive"
    assert not c.all(Grant)


def test_a_recall_is_said_again_over_a_new_connection(desk: Desk) -> None:
    a, b = plain(desk, "ab")
    token = a.have("door", sticky=True)
    desk.disconnect(a)
    b.want("door")
    a.forget()
    a.say(Resume, 90)
    assert a.got(Recall).token == token
    a.give("door", token)
    b.got(Grant)


def test_an_operator_calls_back_what_is_kept_unused(desk: Desk) -> None:
    a, b, c = plain(desk, "abc")
    token = a.have("door", sticky=True)
    b.have("gate")
    c.say(CallBack, 90, "door")
    assert (c.got(CalledBack).hosts, a.got(Recall).token) == (("a",), token)
    c.say(CallBack, 91, "gate")
    assert c.got(CalledBack).others == ("b",)
    c.say(CallBack, 92, "hall")
    assert c.got(Refused).reason == "hall is held by nobody"


# Locks that are lost


def test_a_lost_lock_is_granted_to_nobody_for_the_lock_delay() -> None:
    desk = Desk(lock_delay_ns=2 * S)
    a, b = plain(desk, "ab")
    a.have("door")
    b.want("door")
    desk.disconnect(a)
    for _ in range(4):
        desk.pass_time(S)
        b.say(Ping, 90)
    (lock,) = inspected(desk, b)
    assert (lock.delay_ms, [each.why for each in lock.queue]) == (900, ["delay"])
    desk.pass_time(S * 9 // 10 - 1)
    assert not b.all(Grant)
    desk.pass_time(1)
    b.got(Grant)


def inspected(desk: Desk, guest: Guest) -> tuple[LockState, ...]:
    """Return what an Inspection tells of all locks."""
    guest.forget()
    desk.pass_time(S // 10)
    desk.send(guest.route, Inspect(1, ""))
    return guest.got(Inspection).locks


def test_who_says_goodbye_has_stopped() -> None:
    desk = Desk(lock_delay_ns=2 * S)
    a, b, c = plain(desk, "abc")
    token = a.have("door")
    a.have("gate")
    b.want("door")
    b.want("gate", owner=2)
    c.say(Break, 90, "door", token)
    assert not b.all(Grant)
    a.say(Goodbye)
    assert [grant.lock for grant in b.all(Grant)] == ["gate", "door"]


def test_a_reader_goes_with_lost_readers_and_a_lost_place_of_a_semaphore_stays_taken() -> None:
    desk = Desk(lock_delay_ns=2 * S)
    a, b, c = plain(desk, "abc")
    a.have("door", "shared")
    a.have("pool", "shared", limit=2)
    token = b.have("door", "shared")
    desk.pass_time(TTL_NS - 1)
    b.say(Ping, 90)
    c.say(Ping, 90)
    desk.pass_time(1)
    c.have("door", "shared")
    c.have("pool", "shared", limit=2, owner=2)
    b.want("pool", "shared", limit=2)
    b.want("door", converts=token, owner=2)
    assert not b.all(Grant)
    b.say(Cancel, b.requests)
    b.forget()
    desk.pass_time(2 * S)
    assert b.got(Grant).lock == "pool"


def test_what_an_operator_breaks_is_free_when_its_holder_has_stopped() -> None:
    desk = Desk(lock_delay_ns=2 * S)
    a, b, c = plain(desk, "abc")
    token = a.have("door", "shared")
    other = b.have("door", "shared")
    c.want("door")
    c.say(Break, 90, "door", token + 5)
    assert c.got(Refused).reason == "door is not held under token 1.6, but under 1.1, 1.2"
    c.say(Break, 91, "door", token)
    c.say(Break, 91, "door", token)
    first, again = c.all(Broken)
    assert first == again
    assert (first.host, first.delay_ms) == ("a", 5000)
    assert (a.got(Lost).token, holders(desk, "door")) == (token, [("b", "shared")])
    b.give("door", other)
    assert not c.all(Grant)
    assert not a.give("door", token).current
    c.got(Grant)


def test_what_an_operator_breaks_is_free_when_its_holder_cannot_go_on() -> None:
    desk = Desk(lock_delay_ns=2 * S)
    a, c = plain(desk, "ac")
    token = a.have("door")
    c.want("door")
    desk.pass_time(S)
    c.say(Break, 90, "door", token)
    desk.disconnect(a)
    for _ in range(3):
        desk.pass_time(S)
        c.say(Ping, 91)
    assert not c.all(Grant)
    desk.pass_time(S)
    c.got(Grant)


# Answers that are lost


def test_a_broken_lock_is_not_granted_again_to_who_has_not_heard_of_its_grant(desk: Desk) -> None:
    a, b = plain(desk, "ab")
    request = a.want("door")
    token = a.got(Grant).token
    desk.disconnect(a)
    b.say(Break, 90, "door", token)
    a.forget()
    a.want("door", request=request)
    assert (a.got(Refused).cause, a.all(Grant), a.all(Lost)) == ("lost", [], [])
    a.say(Resume, 91)
    assert a.got(Lost).token == token
    a.give("door", token)
    a.say(Resume, 92)
    assert not a.all(Lost)


@pytest.mark.parametrize("came", [True, False])
def test_a_cancelled_request_is_not_granted_when_it_is_said_again(desk: Desk, came: bool) -> None:
    a, b = plain(desk, "ab")
    request = 50
    if came:
        a.want("door", request=request)
        a.forget()
    desk.disconnect(a)
    a.say(Cancel, request)
    a.want("door", request=request)
    assert {refused.reason for refused in a.all(Refused)} == {"it was cancelled"}
    b.have("door")


def test_a_request_that_waits_stands_once_in_the_queue_however_often_it_is_said(desk: Desk) -> None:
    a, b = plain(desk, "ab")
    token = a.have("door")
    request = b.want("door")
    desk.disconnect(b)
    b.want("door", request=request)
    b.want("door", request=request)
    a.give("door", token)
    grant = b.got(Grant)
    b.want("door", request=request)
    assert b.got(Grant) == grant
    b.give("door", grant.token)
    assert not desk.core.locks


def test_refusals_are_said_again(desk: Desk) -> None:
    a, b = plain(desk, "ab")
    token = a.have("door")
    request = b.want("door", wait_ms=0)
    first = b.got(Refused)
    a.give("door", token)
    b.want("door", wait_ms=0, request=request)
    assert b.got(Refused) == first


def late(guest: Guest) -> str:
    """Return why a client was not granted a lock in time."""
    return guest.got(Refused).reason.removeprefix("no grant in time: ")


def test_who_comes_too_late_hears_what_was_in_its_way(desk: Desk) -> None:
    a, b, c, d = plain(desk, "abcd")
    token = a.have("door", "shared")
    b.want("door")
    c.want("door", "shared", wait_ms=0)
    assert late(c) == "door was wanted by others first"
    d.want("door", wait_ms=0)
    assert late(d) == "door is held by a under token 1.1"
    a.have("gate", "shared", owner=2)
    c.have("gate", "shared")
    a.want("gate", converts=make_token(1, 2), owner=2, wait_ms=0)
    assert late(a) == "gate is held by c under token 1.3", "not by the one who asks"
    for owner in (3, 4):
        a.have("pool", "shared", owner=owner, limit=2)
    b.want("pool", "shared", owner=2, limit=2, wait_ms=0)
    assert late(b) == "pool is held by a under token 1.4, a under token 1.5"
    a.give("door", token)
    b.got(Grant)


def test_a_reader_who_comes_too_late_waited_for_no_reader_who_was_lost() -> None:
    desk = Desk(lock_delay_ns=10 * S)
    a, b = plain(desk, "ab")
    a.have("door", "shared")
    stay(desk, b, TTL_NS)
    b.want("door", owner=2)
    c = desk.join("c", plain=True)
    c.want("door", "shared", wait_ms=0)
    assert late(c) == "door was wanted by others first"
    c.want("door", wait_ms=0)
    assert late(c) == "door was lost by its holder, and is kept free for the lock delay"


@pytest.mark.parametrize("of", ["acquire", "break", "callback"])
def test_a_refusal_repeats_no_name_of_any_length(of: str, desk: Desk) -> None:
    (a,) = plain(desk, "a")
    name = "door" * 100_000
    if of == "acquire":
        a.want(name, converts=make_token(1, 7))
    else:
        a.say(*((Break, 90, name, 7) if of == "break" else (CallBack, 90, name)))
    assert len(a.got(Refused).reason) < 500


# A restart of lockd


def restarted(lock_delay_ns: int = 0, *names: str, leases: LeasesGiven | None = None) -> Desk:
    """Return lockd in its second epoch; sessions of these clients, without replicas, were open, under these leases."""
    sessions = {
        number: SessionOpened(number, name, "", f"{name.encode().hex():f<16}") for number, name in enumerate(names, 1)
    }
    leases = leases or LeasesGiven(0, 0)
    desk = Desk(Durable(GROUP, 2, EPOCHS, len(names), {}, {}, sessions, leases=leases), lock_delay_ns)
    desk.begin()
    return desk


def had(lock: str, counter: int, mode: Mode = "exclusive", limit: int = 0, sticky: bool = False) -> Held:
    return Held(lock, make_token(1, counter), mode, 1, limit, sticky)


def test_of_many_sessions_that_are_missed_some_are_named() -> None:
    names = [f"c{number:02}" for number in range(12)]
    desk = restarted(0, *names)
    (waiting,) = [effect.text for effect in desk.effects if isinstance(effect, Note) and "waiting" in effect.text]
    assert waiting.endswith(f" for the sessions of {', '.join(names[:10])} and 2 more")
    desk.join(names[3], plain=True)
    desk.pass_time(TTL_NS)
    (fault,) = [text for _, text in desk.core.figures.faults if "not back" in text]
    assert fault == f"not back after lockd's start: {', '.join(names[:3] + names[4:11])} and 1 more"


def test_claims_are_kept_with_their_owner_limit_and_stickiness() -> None:
    desk = restarted(0, "a", "b", "c")
    a = desk.join("a", plain=True, held=(had("door", 1), had("gate", 2, sticky=True)))
    b = desk.join("b", plain=True, held=(had("pool", 3, "shared", 2), had("door", 4)))
    assert {grant.lock for grant in a.all(Grant)} == set()
    desk.join("c", plain=True, held=(had("pool", 5, "shared", 2), had("pool", 6, "shared", 2)))
    assert [grant.lock for grant in a.all(Grant)] == ["gate"]
    assert (a.got(Lost).token, b.all(Lost)[0].token) == (had("door", 1).token, had("pool", 3, "shared", 2).token)
    assert desk.core.locks["pool"].limit == 2
    b.want("gate")
    assert a.got(Recall).token == had("gate", 2).token
    a.say(InUse, had("gate", 2).token, 1)
    a.want("door")
    assert refused(a) == "a waits for door, held by b under token 1.4; b waits for gate, held by a under token 1.2"


@pytest.mark.parametrize(
    "held",
    [
        Held("door", 0, "exclusive", 1, 0, False),
        Held("door", 7, "exclusive", 1, 0, False),
        had("door", 1, "exclusive", 2),
        had("door", 1, "shared", SEMAPHORE_MAX + 1),
    ],
)
def test_what_nobody_can_have_been_granted_is_not_taken_over(held: Held) -> None:
    desk = restarted(0, "a")
    a = desk.join("a", plain=True, held=(held,))
    assert a.got(Lost).token == held.token
    assert not desk.core.locks
    a.have("door")


@pytest.mark.parametrize("token", [0, make_token(2, 99)])
def test_a_hold_is_counted_in_whatever_token_a_request_claims_to_convert(token: int) -> None:
    lock = Lock("door", "plain")
    lock.holds[0] = Hold(1, 1, 0, "exclusive", "exclusive", EMPTY, 0, 0, 0)
    assert not lock.admits("exclusive", token)


@pytest.mark.parametrize("how", ["hello", "resume"])
def test_who_is_not_told_what_became_of_its_claims_is_told_again(how: str) -> None:
    desk = restarted(0, "a", "b")
    a = Guest(desk, "a")
    a.hello(plain=True, held=(had("door", 1), had("gate", 1, "shared")))
    assert a.welcome().claimed
    desk.disconnect(a)
    desk.pass_time(S // 2)
    desk.join("b", plain=True, held=(had("gate", 2),))
    a.forget()
    if how == "hello":
        a.requests -= 1
        a.hello(plain=True, held=(had("door", 1), had("gate", 1, "shared")))
        assert a.welcome().claimed
    else:
        a.say(Resume, 90)
    assert (a.all(Grant)[0].token, a.all(Lost)[0].lock) == (had("door", 1).token, "gate")


def test_what_is_claimed_keeps_its_lease_and_can_be_given_back_or_converted() -> None:
    desk = restarted(0, "a", "b")
    a = desk.join("a", plain=True, held=(had("door", 1), had("gate", 2)))
    desk.disconnect(a)
    desk.pass_time(S)
    a.requests += 1
    a.say(Release, a.requests, "door", had("door", 1).token, EMPTY, {}, False, (), True, False)
    a.want("gate", "shared", converts=had("gate", 2).token)
    assert not [*a.all(Released), *a.all(Refused)]
    b = desk.join("b", plain=True)
    assert a.got(Released).current
    assert [(grant.lock, grant.mode) for grant in a.all(Grant)][-1] == ("gate", "shared")
    b.have("door")


def test_a_conversion_that_is_cancelled_before_it_is_looked_at_is_answered() -> None:
    desk = restarted(0, "a", "b")
    a = desk.join("a", plain=True, held=(had("door", 1, "shared"),))
    request = a.want("door", converts=had("door", 1).token)
    a.say(Cancel, request)
    assert (answer := a.got(Refused)).request == request and answer.cause == "wait"
    desk.join("b", plain=True)
    assert holders(desk, "door") == [("a", "shared")]


def test_who_claims_again_is_not_overtaken_before_it_hears_that_its_claims_are_lost() -> None:
    desk = restarted(0, "a")
    a = desk.join("a", plain=True, held=(had("door", 1), had("gate", 2)))
    desk.disconnect(a)
    b = desk.join("b", plain=True)
    b.want("door")
    b.want("gate", owner=2)
    a.forget()
    a.hello(plain=True, held=(had("door", 1), had("gate", 2)))
    assert not a.welcome().claimed
    assert {lost.token for lost in a.all(Lost)} == {had("door", 1).token, had("gate", 2).token}
    assert not b.all(Grant), "it may use them until it hears that, or its lease is over"
    a.say(Release, 0, "door", had("door", 1).token, EMPTY, {}, False, (), False, False)
    assert b.got(Grant).lock == "door"
    desk.pass_time(TTL_NS - 1)
    b.say(Ping, 90)
    assert not b.all(Grant)
    desk.pass_time(1)
    assert b.got(Grant).lock == "gate"


def test_when_all_are_back_nothing_is_held_up_when_the_time_for_that_is_over() -> None:
    desk = restarted(2 * S, "a")
    a = desk.join("a", plain=True)
    desk.pass_time(TTL_NS - 1)
    a.say(Ping, 90)
    desk.pass_time(1)
    a.have("door")
    assert not [text for _, text in desk.core.figures.faults if "not back" in text]


def test_what_is_kept_while_sessions_are_expected_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockd.queues.LOCKS_MAX", 2)
    desk = restarted(0, "a", "b")
    a = desk.join("a", plain=True)
    first = a.want("hall", owner=1)
    a.want("hall", owner=2)
    a.want("hall", owner=1, request=first)
    a.want("hall", owner=3)
    assert "keeps at most 2 requests until it grants" in a.got(Refused).reason
    desk.join("b", plain=True)
    assert a.got(Grant).request == first


def test_the_lock_delay_counts_from_when_the_claims_are_settled() -> None:
    desk = restarted(S, "a", "b")
    b = desk.join("b", plain=True)
    b.want("door")
    desk.pass_time(2 * S)
    desk.join("a", plain=True)
    desk.pass_time(S - 1)
    assert not b.all(Grant), "it has lost the lock just now, and may still be about to stop"
    desk.pass_time(1)
    b.got(Grant)


def test_nobody_is_granted_for_the_lock_delay_what_those_who_are_not_back_may_hold() -> None:
    desk = restarted(2 * S, "a", "b")
    b = desk.join("b", plain=True)
    b.want("door")
    desk.pass_time(TTL_NS - 1)
    b.say(Ping, 90)
    desk.pass_time(1)
    assert not b.all(Grant)
    b.want("gate", wait_ms=0, owner=2)
    assert "kept free for the lock delay" in b.got(Refused).reason
    (lock,) = inspected(desk, b)
    assert (lock.delay_ms, [each.why for each in lock.queue]) == (1900, ["delay"])
    desk.pass_time(2 * S)
    b.got(Grant)


def test_the_lock_delays_of_the_last_lockd_hold_over_its_restart() -> None:
    desk = restarted(2 * S, "b")
    b = desk.join("b", plain=True, held=(had("gate", 2),))
    assert b.got(Grant).lock == "gate", "what it has it keeps"
    b.want("door")
    desk.pass_time(2 * S - 1)
    b.say(Ping, 90)
    assert not b.all(Grant), "its holder may have been lost just before"
    desk.pass_time(1)
    assert b.got(Grant).lock == "door"


def given(desk: Desk) -> list[LeasesGiven]:
    """Return what lockd has kept of leases and lock delays since the last time."""
    kept = [change for change in desk.changes() if isinstance(change, LeasesGiven)]
    desk.effects = []
    return kept


def stay(desk: Desk, guest: Guest, duration_ns: int) -> None:
    """Let time pass, a client keeping its lease."""
    end_ns = desk.now_ns + duration_ns
    while desk.now_ns < end_ns:
        desk.pass_time(min(S // 2, end_ns - desk.now_ns))
        guest.say(Ping, 90)


LONGER = LeasesGiven(10 * S, 5 * S)
SHORTER = LeasesGiven(TTL_NS, 2 * S)


def test_longer_leases_of_the_last_lockd_are_waited_for_and_its_longer_lock_delay_too() -> None:
    desk = restarted(2 * S, "a", "b", leases=LONGER)
    assert given(desk) == [], "another lockd that starts now has to wait as long"
    b = desk.join("b", plain=True)
    b.want("door")
    stay(desk, b, 15 * S - 1)
    assert not b.all(Grant), "a may be cut off, hold it by its lease, and rely on the lock delay then"
    assert given(desk)[-1] == SHORTER
    stay(desk, b, 1)
    b.got(Grant)


def test_who_has_not_heard_of_its_new_session_may_go_by_its_longer_lease() -> None:
    desk = restarted(2 * S, "a", leases=LONGER)
    a = Guest(desk, "a")
    a.hello(plain=True, held=(had("door", 1),))
    b = desk.join("b", plain=True)
    b.want("door")
    stay(desk, b, 2 * S)
    a.requests -= 1
    a.hello(plain=True, held=(had("door", 1),))
    stay(desk, b, 13 * S - 1)
    assert not b.all(Grant)
    stay(desk, b, 1)
    b.got(Grant)


def test_who_has_heard_of_its_new_session_goes_by_its_shorter_lease() -> None:
    desk = restarted(2 * S, "a", leases=LONGER)
    a = desk.join("a", plain=True, held=(had("door", 1),))
    a.say(Ping, 90)
    b = desk.join("b", plain=True)
    b.want("door")
    stay(desk, b, 5 * S - 1)
    assert not b.all(Grant)
    stay(desk, b, 1)
    b.got(Grant)


def test_longer_leases_are_known_before_any_is_given_and_shorter_ones_when_no_other_is_left() -> None:
    desk = restarted(2 * S, leases=LeasesGiven(S, 9 * S))
    assert given(desk) == [LeasesGiven(TTL_NS, 9 * S)]
    desk.pass_time(TTL_NS + 7 * S - 1)
    assert given(desk) == []
    desk.pass_time(1)
    assert given(desk) == [SHORTER]


# Many at once


def test_sessions_that_end_together_end_with_one_change_of_the_state(desk: Desk) -> None:
    guests = [desk.join(f"c{number}", plain=True) for number in range(600)]
    guests[0].have("door")
    for guest in guests[1:]:
        guest.want("door")
    desk.effects = []
    desk.pass_time(TTL_NS)
    sizes = [len(effect.changes) for effect in desk.effects if isinstance(effect, Persist)]
    assert sizes == [125, 125, 125, 125, 100], "each counts twice, with its wait or hold"
    assert not desk.core.sessions and not desk.core.locks and not desk.core.waiters
    assert not [text for _, text in desk.core.figures.faults if "stalled" in text]


def test_waits_that_are_over_leave_no_timers(desk: Desk) -> None:
    a, b = plain(desk, "ab")
    token = a.have("door")
    for guest in (b, a) * 5000:
        guest.want("door", wait_ms=3_600_000)
        other = a if guest is b else b
        other.give("door", token)
        token = guest.got(Grant).token
    assert len(desk.core._shared.timers) < 3000


def test_who_takes_the_place_of_a_session_that_ends_in_the_same_moment_comes_in(desk: Desk) -> None:
    (early,) = plain(desk, "p")
    a = desk.join("a")
    late = Guest(desk, "p", early.incarnation, requests=early.requests)
    late.hello(replica=a.replica, start_count=2)
    assert not late.all(Welcome), "the older process may be alive"
    desk.pass_time(TTL_NS)
    assert late.welcome().replica == a.replica
    assert [session.name for session in desk.core.sessions.values()] == ["p"]
