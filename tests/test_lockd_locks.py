"""lockd's core: locks without a file, one message at a time."""

from itertools import pairwise

import pytest

from common.limits import SEMAPHORE_MAX
from common.messages import Cancel, Grant, Ping, Refused
from tests.test_lockd_core import Desk, Guest


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
