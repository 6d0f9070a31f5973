"""The model of the protocol: with all rules it has no error, and each rule is missed when it is left out.

The larger instances: python -m tests.model.
"""

import re
from pathlib import Path

import pytest

from tests.model import tlc
from tests.model.__main__ import main
from tests.model.instances import QUICK, RULES, config

MODULE = Path(tlc.__file__).with_name("Lockstep.tla").read_text(encoding="utf-8")


def test_the_module_and_the_table_name_the_same_rules() -> None:
    assert set(re.findall(r'\bR\("(\w+)"\)', MODULE)) == {rule.name for rule in RULES}


def test_a_rule_is_left_out_alone() -> None:
    whole = config(QUICK[0])
    for rule in RULES:
        assert f'"{rule.name}"' in whole
        assert f'"{rule.name}"' not in config(rule.missed_in, rule)


def test_what_tlc_prints_is_understood() -> None:
    counts = "1,234 states generated, 56 distinct states found, 7 states left on queue.\n"
    complete = tlc.parse(
        f"Model checking completed. No error has been found.\n{counts}"
        "The depth of the complete state graph search is 9.\n",
        1.0,
    )
    assert (complete.generated, complete.distinct, complete.depth) == (1234, 56, 9)
    assert (complete.violated, complete.problem) == ("", "")
    violated = tlc.parse(f"Error: Invariant NoFork is violated.\nState 1: <Initial>\nState 2: <Next>\n{counts}", 1.0)
    assert (violated.violated, violated.steps, violated.problem) == ("NoFork", 1, "")
    assert tlc.parse("***Parse Error***\n", 1.0).problem == "***Parse Error***"
    assert tlc.parse("", 1.0).problem == "TLC ended without a result"


def test_without_java_one_line_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    assert main(["--quick"]) == 3
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        "python -m tests.model: no java is found: install a Java runtime, version 8 or newer"
    ]


def test_the_configurations_can_be_written(tmp_path: Path) -> None:
    assert main(["--quick", "--configs", str(tmp_path)]) == 0
    assert {path.stem for path in tmp_path.iterdir()} == {"all-1", *[f"without-{rule.name}" for rule in RULES]}


@pytest.mark.timeout(300)
def test_each_rule_is_needed_and_all_of_them_are_enough(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        tlc.find()
    except tlc.Missing as missing:
        pytest.skip(str(missing))
    code = main(["--quick"])
    assert code == 0, capsys.readouterr().out
