"""lockd's core: locks without a file, one message at a time."""

import pytest

from common.limits import SEMAPHORE_MAX
from common.messages import Cancel, Grant, Refused
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
