"""Locks keep what they protect: a number that processes increment, which are killed, and stopped past their lease."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.counter_campaign import Notes, Plan, campaign, judge
from tests.counter_worker import NOBODY

STOPPED = Plan(processes=3, rounds=40, stop=True, ttl="500ms", lock_delay="100ms")


def test_no_increment_is_lost_or_doubled(tmp_path: Path) -> None:
    outcome = campaign(tmp_path, Plan(processes=8, rounds=200))
    assert (outcome.problems, outcome.number, outcome.done) == ((), 200, 200)


def test_no_increment_is_lost_or_doubled_when_processes_are_killed(tmp_path: Path) -> None:
    plan = Plan(processes=5, rounds=60, kill=True, survives=20, ttl="1s", lock_delay="500ms")
    outcome = campaign(tmp_path, plan)
    assert (outcome.problems, outcome.number) == ((), 60)
    assert outcome.deaths


def test_no_increment_is_lost_when_holders_are_stopped_past_their_lease_and_tokens_are_checked(tmp_path: Path) -> None:
    outcome = campaign(tmp_path, replace(STOPPED, fenced=True))
    assert (outcome.problems, outcome.number, outcome.done) == ((), 40, 40)
    assert outcome.stops
    assert outcome.refused


def test_increments_are_lost_when_holders_are_stopped_past_their_lease_and_nobody_checks_tokens(tmp_path: Path) -> None:
    outcome = campaign(tmp_path, STOPPED)
    assert outcome.stops
    assert any(problem.endswith(" was done and is lost") for problem in outcome.problems)


def test_no_increment_of_a_command_is_lost_or_doubled_when_wrappers_are_killed_or_stopped(tmp_path: Path) -> None:
    plan = Plan(4, 12, kill=True, stop=True, survives=6, ttl="1s", lock_delay="600ms", command=True, kill_grace="200ms")
    outcome = campaign(tmp_path, plan)
    assert (outcome.problems, outcome.number) == ((), 12)
    assert outcome.stops
    assert outcome.losses


CHAIN = {"a:0": (1, NOBODY), "b:0": (2, "a:0"), "a:1": (3, "b:0")}


def test_the_judge_accepts_a_chain_with_what_was_cut_short_in_it_or_not() -> None:
    notes = Notes({**CHAIN, "c:0": (3, "b:0"), "d:0": (1, NOBODY)}, done={"a:0", "b:0"}, refused={"d:0"})
    assert list(judge(3, "a:1", notes)) == []
    assert list(judge(3, "c:0", notes)) == []
    assert list(judge(0, NOBODY, Notes({}, set(), set()))) == []


@pytest.mark.parametrize(
    ("number", "last", "more", "done", "refused", "problem"),
    [
        (4, "a:1", {}, set(), set(), "a:1 made the number 3, and it counts as 4"),
        (4, "c:0", {"c:0": (4, "b:0")}, set(), set(), "b:0 made the number 2, and it counts as 3"),
        (3, "a:1", {"a:0": (1, "x:7")}, set(), set(), "nobody has tried x:7"),
        (3, "a:1", {"b:0": (2, NOBODY)}, set(), set(), "the first increment made the number 2"),
        (3, "a:1", {"c:0": (3, "b:0")}, {"c:0"}, set(), "c:0 was done and is lost"),
        (3, "a:1", {}, set(), {"b:0"}, "b:0 was refused and counts"),
    ],
)
def test_the_judge_rejects_what_must_not_be(
    number: int, last: str, more: dict[str, tuple[int, str]], done: set[str], refused: set[str], problem: str
) -> None:
    assert list(judge(number, last, Notes({**CHAIN, **more}, done, refused))) == [problem]
