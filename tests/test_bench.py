"""scripts/bench: its arithmetic is right and a small run works. What it measures is never asserted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.eventlog import HEADER, format_event, format_pairs
from scripts.benchmark.figures import Row, against, jain, median, p50_of, percentile, pooled, ratio_of
from scripts.benchmark.ops import own_moments, rate
from scripts.benchmark.processes import NotMeasured
from scripts.benchmark.sampling import QUICK, interleave
from scripts.benchmark.table import as_json, as_table

_FILE = (("file", "notes.txt"),)


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([7.0], 99, 7.0),
        ([3.0, 1.0, 2.0], 50, 2.0),
        ([1.0, 2.0, 3.0, 4.0], 50, 2.5),
        ([0.0, 10.0], 25, 2.5),
        ([1.0, 2.0, 3.0], 0, 1.0),
        ([1.0, 2.0, 3.0], 100, 3.0),
        ([float(n) for n in range(101)], 99, 99.0),
    ],
)
def test_percentiles(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1e9), min_size=1), st.floats(0, 100))
def test_a_percentile_lies_among_the_values(values: list[float], percent: float) -> None:
    assert min(values) <= percentile(values, percent) <= max(values)


def test_jain_is_one_where_all_have_the_same_and_one_of_n_where_one_has_all() -> None:
    assert jain([5, 5, 5, 5]) == pytest.approx(1)
    assert jain([9, 0, 0, 0]) == pytest.approx(1 / 4)
    assert jain([4, 2]) == pytest.approx(36 / 40)
    assert jain([0, 0]) == 1


def test_a_ratio_is_taken_block_by_block() -> None:
    # The second block is disturbed on both sides alike, the third's limit alone.
    measured = [[20.0, 20.0, 90.0], [200.0, 200.0], [20.0]]
    first, second = [[6.0], [60.0], [600.0]], [[4.0], [40.0], [400.0]]
    assert ratio_of(measured, first, second) == pytest.approx(2)
    assert p50_of(measured) == 20
    assert pooled(first) == [[6.0, 60.0, 600.0]]
    assert median(pooled(first)[0]) == 60


@pytest.mark.parametrize(
    ("row", "ok"),
    [
        (Row("a", "", 3, "µs", 2, 1.5, 1.5), True),
        (Row("a", "", 1, "µs", 2, 1.6, 1.5), False),
        (Row("a", "", 1300, "/s", wanted=1200, bound="least"), True),
        (Row("a", "", 1100, "/s", 1000, 0.8, 0.9, "least"), False),
        (Row("a", "", 1, "µs", 2, 0.5), None),
    ],
)
def test_a_bound_is_on_the_ratio_where_there_is_one(row: Row, ok: bool | None) -> None:
    assert row.ok is ok


def test_table_and_json_show_every_row() -> None:
    rows = [
        against("fast", "this against that", [[2.0]], [[1.0]], [[1.0]], wanted=0.5),
        Row("slow", "alone", 4321, "/s"),
    ]
    head, fast, slow = as_table(rows).splitlines()
    assert head.split() == ["name", "measured", "limit", "ratio", "wanted", "ok?", "compared"]
    assert fast.split() == ["fast", "2", "µs", "2", "µs", "1.00", "≤", "0.5", "missed", "this", "against", "that"]
    assert slow.split() == ["slow", "4,321", "/s", "alone"]
    told = json.loads(as_json(rows, {"wire": "no time"}))
    assert [row["name"] for row in told["rows"]] == ["fast", "slow"]
    assert told["rows"][0]["ok"] is False
    assert told["not measured"] == {"wire": "no time"}


def test_blocks_alternate_and_the_first_is_thrown_away() -> None:
    done: list[str] = []
    blocks = interleave({"a": lambda: done.append("a"), "b": lambda: done.append("b")}, QUICK, block=2)
    assert done == ["a", "a", "b", "b"] * (QUICK.rounds + 1)
    assert [len(block) for block in blocks["a"]] == [2] * QUICK.rounds


def event_log(path: Path, own_us: list[int]) -> Path:
    lines = [
        format_event(time_us, path.name, {path.name: n}, "write", format_pairs(_FILE))
        for n, time_us in enumerate(own_us, 1)
    ]
    lines.append(format_event(10**9, path.name, {path.name: 99}, "apply", format_pairs(_FILE)))
    path.write_text(HEADER + "".join([line + "\n" for line in lines]))
    return path


def test_ops_per_second_count_only_while_all_clients_work(tmp_path: Path) -> None:
    early = event_log(tmp_path / "early", [0, 1_000_000, 2_000_000, 3_000_000])
    late = event_log(tmp_path / "late", [1_000_000, 1_500_000, 2_000_000, 9_000_000])
    assert own_moments(early) == [0, 1_000_000, 2_000_000, 3_000_000]
    assert rate([early, late]) == pytest.approx(6 / 2)
    with pytest.raises(NotMeasured, match="same time"):
        rate([early, event_log(tmp_path / "never", [8_000_000])])
    with pytest.raises(NotMeasured, match="no op"):
        rate([early, event_log(tmp_path / "idle", [])])


def bench(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "scripts.benchmark", *arguments],
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=50,
        check=False,
    )


def test_a_small_run_measures_and_leaves_nothing_behind(tmp_path: Path) -> None:
    run = bench(tmp_path, "--quick", "--json", "--only", "wire")
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    assert told["not measured"] == {}
    (row,) = told["rows"]
    assert row["name"] == "push + ack on the wire"
    assert row["measured"] > 50
    assert list(tmp_path.iterdir()) == []


def test_wrong_use_is_one_line(tmp_path: Path) -> None:
    run = bench(tmp_path, "--only", "nothing")
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert "nothing" in run.stderr
