"""Seeds of whole groups and of clients that only lock pass, and with a safety rule taken out they do not.

More of them: python -m tests.sim --seeds N, python -m tests.lock_sim --seeds N.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from common.histogram import Histogram
from lockd.figures import Loss
from lockd.locks import Hold, Lock
from lockd.shared import Shared
from tests.lock_sim import __main__ as lock_command
from tests.lock_sim import rules as lock_rules
from tests.lock_sim import run as locks
from tests.sim import __main__ as group_command
from tests.sim import rules as group_rules
from tests.sim.campaign import Rules, Run, without
from tests.sim.run import SimulationFailed, run_seed

ROOT = Path(__file__).resolve().parent.parent
CHUNK = 100

GROUPS_CAUGHT = {
    "only what is held durably is acked": 1,
    "an op is acknowledged by the whole in-sync set": 1,
    "an unclean file is settled before anything else": 25,
    "the silent are dropped, at the holder's request": 9,
    "a drop is lockd's, and durable": 1,
    "a read counts when its token was still current": 4,
    "a file's lock goes to a member of its in-sync set": 22,
    "first come, first served": 1,
    "the end of a holder's session leaves the file unclean": 2,
    "clean is what the whole set has acked": 94,
    "a restart of lockd leaves every file unclean": 18,
    "who is admitted is at the clean version": 1,
    "who is admitted follows the token that left it clean": 4083,
    "who has less than the whole set has acked is no member": 49,
    "a session whose process is alive keeps its place": 176,
    "an exclusive hold is alone": 1,
    "a token below the promise is refused": 137,
    "a promise is durable by itself": 25,
    "a promise alone follows nothing": 236,
    "a newer token's push replaces, even without an op": 236,
    "under the followed token a push only adds": 114,
    "an answer is a push of the token that its source follows": 5747,
}
"""Of each rule a seed that notices that it is left out: the first, by `python -m tests.sim --rules`."""
LOCKS_CAUGHT = {
    "the lease counts from when a message was sent": 64,
    "a lease that is not renewed ends": 1,
    "an idle hold goes back when it is recalled": 1,
    "one in use goes back when it is done": 14,
    "what nobody waits for goes back": 4,
    "what is granted to an abandoned wait goes back": 42,
    "what may be lost is said again": 264,
    "an answer proves nothing of an earlier connection": 3817,
    "a lost lock is granted behind the lock delay": 2,
    "so are all locks after a restart": 1,
    "nothing is granted before the claims are known": 1,
    "an exclusive hold is alone": 1,
    "who may keep a lock is asked for it": 1,
    "what is recalled, lost or taken over is said again": 928,
}
"""The same, by `python -m tests.lock_sim --rules`."""


@dataclass(frozen=True)
class Simulation:
    """A simulation: its package, its command, its rules, each with a seed that notices, and what runs such a seed."""

    name: str
    main: Callable[[], int]
    rules: Rules
    caught: Mapping[str, int]
    run: Run


GROUPS = Simulation("tests.sim", group_command.main, group_rules.RULES, GROUPS_CAUGHT, partial(run_seed, keep=False))
LOCKS = Simulation("tests.lock_sim", lock_command.main, lock_rules.RULES, LOCKS_CAUGHT, locks.run_seed)
both = pytest.mark.parametrize("simulation", [GROUPS, LOCKS], ids=lambda simulation: simulation.name)


def run_seeds(first: int, count: int) -> None:
    for seed in range(first, first + count):
        run_seed(seed)


@pytest.mark.parametrize("first", range(0, 500, CHUNK))
def test_hundreds_of_groups_pass(first: int) -> None:
    run_seeds(first, CHUNK)


def test_so_do_seeds_without_faults_in_which_every_op_is_ok() -> None:
    for seed in range(300):
        run_seed(seed, calm=True)


@pytest.mark.parametrize("first", range(0, 400, CHUNK))
def test_so_do_hundreds_of_clients_that_only_lock(first: int) -> None:
    for seed in range(first, first + CHUNK):
        figures = locks.run_seed(seed)
        assert figures.ops and figures.grants


@both
def test_a_seed_is_the_same_in_every_process(simulation: Simulation) -> None:
    code = f"from {simulation.name}.run import run_seed; print([run_seed(seed) for seed in range(20)])"
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


@pytest.mark.parametrize(
    ("simulation", "rule"),
    [pytest.param(each, rule, id=f"{each.name}-{rule}") for each in (GROUPS, LOCKS) for rule in each.rules],
)
def test_without_a_rule_a_seed_fails(simulation: Simulation, rule: str) -> None:
    again = rf"again: python -m {simulation.name}( --never-keep)? --seed \d+\n"
    with (
        without(simulation.rules[rule]),
        pytest.raises(SimulationFailed, match=rf"^seed \d+: Broken: .*\n(.*\n)?{again}"),
    ):
        simulation.run(simulation.caught[rule] - 1)


def lost_uncounted(shared: Shared, lock: Lock, hold: Hold, loss: Loss, now_ns: int) -> None:
    shared.log("expiry", lock, hold, now_ns)


@pytest.mark.parametrize(
    ("owner", "method", "other"), [(Histogram, "add", lambda *_: None), (Shared, "lose", lost_uncounted)]
)
def test_figures_that_miss_something_are_noticed(
    monkeypatch: pytest.MonkeyPatch, owner: type, method: str, other: object
) -> None:
    monkeypatch.setattr(owner, method, other)
    with pytest.raises(SimulationFailed, match=r"Broken: lockd's figures are "):
        run_seeds(0, 60)


@both
def test_the_command_says_how_to_see_a_failure_again(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [simulation.name, "--seeds", "3", "--first", "5"])
    assert simulation.main() == 0
    assert capsys.readouterr().out.startswith("3 seeds, ")
    monkeypatch.setattr("sys.argv", [simulation.name, "--seeds", "100"])
    with without(simulation.rules["an exclusive hold is alone"]):
        assert simulation.main() == 1
    assert f"again: python -m {simulation.name} --seed " in capsys.readouterr().out
