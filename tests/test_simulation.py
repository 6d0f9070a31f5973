"""Whole groups under a seeded network: a thousand seeds pass, and with a safety rule taken out they do not.

More of them: python -m tests.sim --seeds N.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.histogram import Histogram
from lockd.figures import Loss
from lockd.locks import Hold, Lock
from lockd.shared import Shared
from tests.sim.__main__ import main
from tests.sim.rules import RULES, without
from tests.sim.run import SimulationFailed, run_seed

ROOT = Path(__file__).resolve().parent.parent
CHUNK = 100


def run_seeds(first: int, count: int) -> None:
    for seed in range(first, first + count):
        run_seed(seed)


@pytest.mark.parametrize("first", range(0, 1000, CHUNK))
def test_a_thousand_seeds_pass(first: int) -> None:
    run_seeds(first, CHUNK)


def test_so_do_seeds_without_faults_in_which_every_op_is_ok() -> None:
    for seed in range(300):
        run_seed(seed, calm=True)


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


CAUGHT = {
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


@pytest.mark.parametrize("rule", RULES)
def test_without_a_rule_a_seed_fails(rule: str) -> None:
    with (
        without(rule),
        pytest.raises(
            SimulationFailed,
            match=r"^seed \d+: Broken: .*\n(.*\n)?again: python -m tests\.sim --never-keep --seed \d+\n",
        ),
    ):
        run_seed(CAUGHT[rule] - 1, keep=False)


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


def test_the_command_says_how_to_see_a_failure_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["tests.sim", "--seeds", "3", "--first", "5"])
    assert main() == 0
    assert capsys.readouterr().out.startswith("3 seeds, ")
    monkeypatch.setattr("sys.argv", ["tests.sim", "--seeds", "100"])
    with without("an op is acknowledged by the whole in-sync set"):
        assert main() == 1
    assert "again: python -m tests.sim --seed " in capsys.readouterr().out
