"""Clients that only lock beside lockd under a seeded network: seeds pass, and with a rule taken out they do not.

More of them: python -m tests.lock_sim --seeds N.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lock_sim.__main__ import main
from tests.lock_sim.rules import RULES, without
from tests.lock_sim.run import run_seed
from tests.sim.run import SimulationFailed

ROOT = Path(__file__).resolve().parent.parent
CHUNK = 100


@pytest.mark.parametrize("first", range(0, 400, CHUNK))
def test_hundreds_of_seeds_pass(first: int) -> None:
    for seed in range(first, first + CHUNK):
        figures = run_seed(seed)
        assert figures.ops and figures.grants


def test_a_seed_is_the_same_in_every_process() -> None:
    code = "from tests.lock_sim.run import run_seed; print([run_seed(seed) for seed in range(20)])"
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
"""Of each rule a seed that notices that it is left out: the first, by `python -m tests.lock_sim --rules`."""


@pytest.mark.parametrize("rule", RULES)
def test_without_a_rule_a_seed_fails(rule: str) -> None:
    with (
        without(rule),
        pytest.raises(SimulationFailed, match=r"^seed \d+: Broken: .*\nagain: python -m tests\.lock_sim --from \d+ "),
    ):
        run_seed(CAUGHT[rule] - 1)


def test_the_command_says_how_to_see_a_failure_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["tests.lock_sim", "--seeds", "3", "--from", "5"])
    assert main() == 0
    assert capsys.readouterr().out.startswith("3 seeds, ")
    monkeypatch.setattr("sys.argv", ["tests.lock_sim", "--seeds", "20"])
    with without("an exclusive hold is alone"):
        assert main() == 1
    assert "again: python -m tests.lock_sim --from " in capsys.readouterr().out
