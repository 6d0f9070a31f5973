"""Whole groups under a seeded network: a thousand seeds pass, and with a safety rule taken out they do not.

More of them: python -m tests.sim --seeds N.
"""

from collections.abc import Callable
from typing import Any

import pytest

from client.holder import Holder, Op
from client.replica import Follower
from lockd.core import Lockd
from lockd.locks import FileState, Lock, Waiter
from tests.sim.__main__ import main
from tests.sim.run import SimulationFailed, run_seed

CHUNK = 100


def run_seeds(first: int, count: int) -> None:
    for seed in range(first, first + count):
        run_seed(seed)


@pytest.mark.parametrize("first", range(0, 1000, CHUNK))
def test_a_thousand_seeds_pass(first: int) -> None:
    run_seeds(first, CHUNK)


def test_a_seed_is_the_same_every_time() -> None:
    assert run_seed(7) == run_seed(7)


# Rules taken out, one at a time


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
        holder._release(op, changed=False)
        holder._forget(op)


def grant_to_a_learner(lockd: Lockd, lock: Lock) -> Waiter | None:
    return next(iter(lock.queue.values()), None)


def admit_wherever_it_is(lockd: Lockd, lock: Lock, file: FileState) -> None:
    lockd._admit(lock, [replica for replica in file.reports if replica in lockd._by_replica])


def let_all_in(lock: Lock, mode: str) -> bool:
    return True


@pytest.mark.parametrize(
    ("owner", "method", "without"),
    [
        (Follower, "_take", ack_without_holding),
        (Holder, "_missing", wait_for_no_ack),
        (Holder, "_settle", settle_without_waiting),
        (Lockd, "_first", grant_to_a_learner),
        (Lockd, "_admit_equals", admit_wherever_it_is),
        (Lock, "admits", let_all_in),
    ],
    ids=lambda value: value.__name__ if callable(value) and not isinstance(value, type) else "",
)
def test_without_a_rule_a_seed_fails(
    monkeypatch: pytest.MonkeyPatch, owner: type, method: str, without: Callable[..., object]
) -> None:
    monkeypatch.setattr(owner, method, without)
    with pytest.raises(SimulationFailed, match=r"again: python -m tests\.sim --seed \d+\n"):
        run_seeds(0, 1000)


def test_the_command_says_how_to_see_a_failure_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["tests.sim", "--seeds", "3", "--first", "5"])
    assert main() == 0
    assert capsys.readouterr().out.startswith("3 seeds, ")
    monkeypatch.setattr(Holder, "_missing", wait_for_no_ack)
    monkeypatch.setattr("sys.argv", ["tests.sim", "--seeds", "100"])
    assert main() == 1
    assert "again: python -m tests.sim --seed " in capsys.readouterr().out
