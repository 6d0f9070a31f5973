"""scripts/export: what ShiViz, TSViz and Perfetto are given, of runs that went well and of others."""

import itertools
import json
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.merge import Head
from scripts.exporting.__main__ import main
from scripts.exporting.shiviz import LOST_MAX, Mended, TooManyLost
from tests.histories import History, event, histories, write_log
from tests.shiviz import Rejected, draw, draw_in_time
from tests.test_launch import Launch, Run

Exported = Callable[..., tuple[str, list[str]]]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the tests one run without faults."""
    place = tmp_path_factory.mktemp("calm")
    with Launch("--clients=3", "--ops=40", "--delay=0..0.01", "--run-dir=run", cwd=place) as launch:
        assert launch.end().code == 0
    return place / "run"


@pytest.fixture
def killed(chaos: Run) -> Path:
    """Give a test the run in which clients and lockd were killed and stopped."""
    assert chaos.code == 0
    return chaos.directory


@pytest.fixture
def exported(capfd: pytest.CaptureFixture[str]) -> Exported:
    """Give a function that exports; it returns the file, and what was told."""

    def run(*arguments: object) -> tuple[str, list[str]]:
        assert main([str(argument) for argument in arguments]) == 0
        out, err = capfd.readouterr()
        return out, err.splitlines()

    return run


def events_of(run_dir: Path) -> int:
    return sum(len(path.read_bytes().splitlines()) - 2 for path in run_dir.glob("client-*/events.log"))


# ShiViz and TSViz


def test_a_calm_run_needs_no_mending(calm: Path, exported: Exported) -> None:
    text, told = exported("--shiviz", calm)
    assert told == []
    assert len(draw(text)) == events_of(calm)
    assert draw_in_time(text) > 0


def test_a_run_with_kills_and_stops_is_taken(killed: Path, exported: Exported) -> None:
    text, _ = exported("--shiviz", killed)
    assert len(draw(text)) >= events_of(killed)
    assert draw_in_time(text) > 0


@pytest.fixture
def damaged(calm: Path, tmp_path: Path) -> Path:
    """Give a test the calm run, to damage it."""
    shutil.copytree(calm, tmp_path / "run", ignore=shutil.ignore_patterns("socket"))
    return tmp_path / "run"


def test_a_log_that_lost_its_end_is_mended_and_told(damaged: Path, exported: Exported) -> None:
    log = damaged / "client-1/events.log"
    data = log.read_bytes()
    log.write_bytes(data[: len(data) // 2])
    with pytest.raises(Rejected):
        draw("".join(path.read_text() for path in sorted(damaged.glob("client-*/events.log"))))
    text, told = exported("--shiviz", damaged)
    draw_in_time(text)
    assert [line.partition(" ")[2] for line in told][:1] == [f"{log}: the last line is torn, and left out"]
    (line,) = told[1:]
    found = re.fullmatch(r"scripts/export: client-1: (\d+) events that no log here has, put back as lost: .*", line)
    assert found is not None
    assert len(re.findall(r" lost$", text, re.MULTILINE)) == int(found[1])


def test_a_log_that_is_gone_is_put_back(damaged: Path, exported: Exported) -> None:
    (damaged / "client-2/events.log").unlink()
    text, told = exported("--shiviz", damaged)
    assert ("client-2", 1) in draw(text)
    draw_in_time(text)
    lost = text.count(" lost\n")
    assert told == [f"scripts/export: client-2: {lost} events that no log here has, put back as lost: 1-{lost}"]


def test_lines_that_do_not_read_are_put_back_too(damaged: Path, exported: Exported) -> None:
    log = damaged / "client-0/events.log"
    lines = log.read_bytes().split(b"\n")
    lines[4] = b"\x1b[31mnonsense"
    log.write_bytes(b"\n".join(lines))
    text, told = exported("--shiviz", damaged)
    draw_in_time(text)
    assert told == [
        f"scripts/export: {log}:5: a line is left out: it does not read: time host clock verb key=value ...",
        "scripts/export: client-0: 1 event that no log here has, put back as lost: 3",
    ]


def test_a_copied_directory_stands_once(damaged: Path, exported: Exported) -> None:
    text, _ = exported("--shiviz", damaged)
    shutil.copytree(damaged / "client-0", damaged / "copy")
    assert exported("--shiviz", damaged) == (text, [])


@given(histories(), st.data())
def test_whatever_is_lost_the_file_is_taken(history: History, data: st.DataObject) -> None:
    kept: list[Head] = [head for head in history.heads if data.draw(st.booleans())]
    text = "".join(Mended().lines(kept))
    if kept:
        graph = draw(text)
        known = Counter[str]()
        for head in kept:
            for host, count in head.clock.items():
                known[host] = max(known[host], count)
        assert len(graph) == known.total(), "what is known of is there, and nothing else"


@given(histories(), st.data())
def test_in_any_order_the_file_is_taken(history: History, data: st.DataObject) -> None:
    heads = data.draw(st.permutations([*history.heads, *history.heads[:2]]))
    if heads:
        draw("".join(Mended().lines(heads)))


def test_hosts_that_javascript_would_find_elsewhere_get_another_name(tmp_path: Path, exported: Exported) -> None:
    write_log(tmp_path / "a", [event("constructor", {"constructor": 1}, 1)])
    write_log(tmp_path / "b", [event("b", {"b": 1, "constructor": 1}, 2)])
    text, told = exported("--shiviz", tmp_path)
    assert draw(text) == {("constructor.client", 1): set(), ("b", 1): {("constructor.client", 1)}}
    assert "constructor.client" in told[0]


def test_a_clock_beyond_all_reason_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    head = event("b", {"a": LOST_MAX + 1, "b": 1}, 1)
    with pytest.raises(TooManyLost):
        list(Mended().lines([head]))
    write_log(tmp_path / "b", [head])
    assert main(["--shiviz", str(tmp_path)]) == 1
    assert "it is damaged" in capfd.readouterr().err


def test_what_a_text_holds_neither_ends_a_line_nor_acts_on_a_terminal(tmp_path: Path, exported: Exported) -> None:
    write_log(tmp_path / "a", [event("a", {"a": 1}, 1)])
    with (tmp_path / "a/events.log").open("ab") as log:
        log.write(event("a", {"a": 2}, 2).line + ' text="\x1b[2J\u2028x <script>alert(1)</script>"\n'.encode())
    text, _ = exported("--shiviz", tmp_path)
    assert len(draw(text)) == 2
    assert all(line.isprintable() for line in text.split("\n"))


GOOD = r"""(?<timestamp>\d+) (?<host>\S+) (?<clock>\{[^}]*\}) (?<event>.*)

1001 a {"a":1} one
1002 b {"a":1,"b":1} two
1003 a {"a":2} three
1004 a {"a":3,"b":1} four
"""

BAD: dict[str, tuple[str, str]] = {
    "no own count": ('{"a":2} three', '{"b":1} three'),
    "a gap": ('{"a":2} three', '{"a":4} three'),
    "a first event that is not 1": ('{"a":1,"b":1} two', '{"a":1,"b":2} two'),
    "a count that comes twice": ('{"a":2} three', '{"a":1} three'),
    "an unknown host": ('{"a":1,"b":1} two', '{"a":1,"b":1,"c":1} two'),
    "a count beyond the last": ('{"a":1,"b":1} two', '{"a":9,"b":1} two'),
    "a circle": ('{"a":1,"b":1} two', '{"a":3,"b":1} two'),
    "a torn clock": ('{"a":2} three', '{"a":2 three'),
    "a host like a property": ("b", "constructor"),
    "a delimiter": (".*)\n\n", ".*)\nx\n"),
    "no group": ("(?<clock>", "(?<clocks>"),
    "no event": (" a ", "a"),
}


@pytest.mark.parametrize("what", BAD)
def test_the_checker_rejects(what: str) -> None:
    assert len(draw(GOOD)) == 4
    with pytest.raises(Rejected):
        draw(GOOD.replace(" b ", "b").replace(" a ", "a") if what == "no event" else GOOD.replace(*BAD[what]))


@pytest.mark.parametrize(
    ("old", "new"),
    [("1003", "2026-11-22T15:03:11Z"), ("1003", "999"), ("1004", "2004"), ("1003", "1000"), ("timestamp", "time")],
)
def test_the_checker_rejects_times(old: str, new: str) -> None:
    assert draw_in_time(GOOD) == 3
    with pytest.raises(Rejected):
        draw_in_time(GOOD.replace(old, new))


# Perfetto

Entry = dict[str, Any]


def check_trace(entries: Sequence[Entry]) -> None:
    """Hold a trace to its format: what viewers drop in silence is an error here."""
    named = {(entry["pid"], entry["tid"]) for entry in entries if entry["name"] == "thread_name"}
    processes = {entry["pid"] for entry in entries if entry["name"] == "process_name"}
    slices: defaultdict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    flows: defaultdict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        assert type(entry["ts"]) is int and entry["ts"] >= 0
        assert entry["ph"] in ("M", "X", "i", "s", "f")
        if entry["ph"] == "M":
            continue
        assert entry["pid"] in processes
        assert (entry["pid"], entry["tid"]) in named
        if entry["ph"] == "X":
            assert type(entry["dur"]) is int and entry["dur"] > 0
            slices[entry["pid"], entry["tid"]].append((entry["ts"], entry["ts"] + entry["dur"]))
        elif entry["ph"] in ("s", "f"):
            flows[entry["id"]].append(entry)
    for lane in slices.values():
        lane.sort()
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(lane)), "slices overlap"
    for first, last in flows.values():
        assert sorted((first["ph"], last["ph"])) == ["f", "s"]
        assert first["name"] == last["name"]
        for end in (first, last):
            lane = slices[end["pid"], end["tid"]]
            assert any(begin <= end["ts"] < until for begin, until in lane), "an arrow has no slice to bind to"
        assert {end.get("bp") for end in (first, last) if end["ph"] == "f"} == {"e"}


@pytest.mark.parametrize("kind", ["calm", "killed"])
def test_a_trace_has_its_format(kind: str, request: pytest.FixtureRequest, exported: Exported) -> None:
    run: Path = request.getfixturevalue(kind)
    text, _ = exported("--trace", run)
    entries: list[Entry] = json.loads(text)["traceEvents"]
    check_trace(entries)
    names = {entry["args"]["name"] for entry in entries if entry["name"] == "process_name"}
    assert names == {path.name for path in run.iterdir() if path.is_dir()}
    drawn = Counter(entry["name"].split()[0] for entry in entries if entry["ph"] == "X")
    verbs = ("read", "write", "update", "restore", "apply", "undo")
    assert sum(drawn[verb] for verb in verbs) == events_of(run)
    grants = (run / "lockd/grants.log").read_text().count(" event=grant ")
    assert sum(count for name, count in drawn.items() if name.startswith("client-")) == grants
    sent = [entry for entry in entries if entry["ph"] == "s" and entry["name"] == "sync"]
    assert len(sent) == drawn["apply"]


def test_a_trace_of_logs_alone_has_no_locks(calm: Path, exported: Exported) -> None:
    text, _ = exported("--trace", *sorted(calm.glob("client-*")))
    entries: list[Entry] = json.loads(text)["traceEvents"]
    check_trace(entries)
    assert {entry["dur"] for entry in entries if entry["ph"] == "X"} == {1}


# What is wrong


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["."], "one of the arguments --shiviz --trace is required"),
        (["--shiviz", "--trace", "."], "not allowed with argument"),
        (["--shiviz"], "required: RUN_DIR"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], line: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    err = capfd.readouterr().err
    assert (ended.value.code, err.count("\n")) == (2, 1)
    assert line in err


def test_no_run_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--shiviz", str(tmp_path)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"scripts/export: {tmp_path}: no client's data directory here")
