"""Whole groups under a seeded network: a thousand seeds pass, and with a safety rule taken out they do not.

More of them: python -m tests.sim --seeds N.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.holder import Holder, Op
from client.replica import Follower
from lockd.core import Lockd, Session
from lockd.locks import FileState, Lock, Waiter
from tests.sim.__main__ import main
from tests.sim.run import SimulationFailed, run_seed

ROOT = Path(__file__).resolve().parent.parent
CHUNK = 100


def run_seeds(first: int, count: int) -> None:
    for seed in range(first, first + count):
        run_seed(seed)


@pytest.mark.parametrize("first", range(0, 1000, CHUNK))
def test_a_thousand_seeds_pass(first: int) -> None:
    run_seeds(first, CHUNK)


def test_a_seed_is_the_same_in_every_process() -> None:
    code = "from tests.sim.run import run_seed; print([run_seed(seed) for seed in range(20)])"
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            timeout=50,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]


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


def drop_nobody(holder: Holder, op: Op, replicas: frozenset[str]) -> None:
    return


def leave_the_file_clean(lockd: Lockd, session: Session, why: str, now_ns: int) -> None:
    before = [(lock.file, lock.file.clean) for lock in lockd.locks.values() if lock.file]
    end_session(lockd, session, why, now_ns)
    for file, clean in before:
        file.clean = file.clean or clean


end_session = Lockd._end


def grant_to_a_learner(lockd: Lockd, lock: Lock) -> Waiter | None:
    return next(iter(lock.queue.values()), None)


def grant_to_the_last(lockd: Lockd, lock: Lock) -> Waiter | None:
    members = [(waiter, lockd.sessions[waiter.session].member) for waiter in lock.queue.values()]
    in_sync = lock.file.in_sync if lock.file else ()
    return next((waiter for waiter, member in reversed(members) if member and member.replica in in_sync), None)


def admit_wherever_it_is(lockd: Lockd, lock: Lock, file: FileState) -> None:
    lockd._admit(lock, [replica for replica in file.reports if replica in lockd._by_replica])


def let_all_in(lock: Lock, mode: str) -> bool:
    return True


RULES: list[tuple[type, str, Callable[..., object]]] = [
    (Follower, "_take", ack_without_holding),
    (Holder, "_missing", wait_for_no_ack),
    (Holder, "_settle", settle_without_waiting),
    (Holder, "_drop", drop_nobody),
    (Lockd, "_first", grant_to_a_learner),
    (Lockd, "_first", grant_to_the_last),
    (Lockd, "_end", leave_the_file_clean),
    (Lockd, "_admit_equals", admit_wherever_it_is),
    (Lock, "admits", let_all_in),
]


@pytest.mark.parametrize(("owner", "method", "without"), RULES, ids=[rule[2].__name__ for rule in RULES])
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
