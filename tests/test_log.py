"""client log: the lines that it shows, in what order, and what it does with logs that are damaged or hostile."""

import itertools
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given

import client.cli
from client.event_logs import LINE_BYTES_MAX, EventLog, EventLogs, parse_head
from client.log import Complaints
from client.merge import Head
from client.why import Index, shortest_chain
from common.clock import concurrent
from common.eventlog import parse_event
from common.printing import printable
from scripts.benchmark.event_logs import write_event_logs
from tests.group import WITHIN_S, Done, Group, until
from tests.histories import BEGIN_US, History, before, event, histories, in_causal_order, write_log
from tests.test_launch import Launch

Shown = Callable[..., Done]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shown:
    """Give a function that runs `client log` in this process."""
    monkeypatch.delenv("LOCKSTEP_DATA", raising=False)

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["client", "log", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            client.cli.main()
        out, err = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Done(ended.value.code, out.encode(), err)

    return run


def heads_of(done: Done) -> list[Head]:
    assert (done.code, done.err) == (0, ""), done
    return [parse_head(line) for line in done.out.splitlines()]


# A real run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the tests one run of four clients on two files."""
    place = tmp_path_factory.mktemp("launch")
    ops = ("--clients", "4", "--ops", "60", "--file", "notes.txt", "--file", "my plans.txt")
    with Launch(*ops, "--delay", "0..0.01", "--run-dir", "run", cwd=place) as launch:
        assert launch.end().code == 0
    return place / "run"


def logged(run_dir: Path) -> list[Head]:
    paths = sorted(run_dir.glob("*/events.log"))
    return [parse_head(line) for path in paths for line in path.read_bytes().splitlines()[2:]]


def test_a_real_run_is_shown_whole_and_in_causal_order(run_dir: Path, shown: Shown) -> None:
    heads = heads_of(shown(run_dir))
    assert sorted(head.line for head in heads) == sorted(head.line for head in logged(run_dir))
    assert in_causal_order(heads)
    parts = [shown(*sorted(run_dir.glob("client-*"), reverse=True)), shown("--data", run_dir)]
    assert [part.out for part in parts] == [b"".join([head.line + b"\n" for head in heads])] * 2


FILTERS: dict[str, Callable[[Head, dict[str, str], dict[str, Head]], bool]] = {
    "--client client-1": lambda head, values, ops: head.host == "client-1",
    "--client client-1 --client client-3": lambda head, values, ops: head.host in ("client-1", "client-3"),
    "--file my+plans.txt": lambda head, values, ops: values["file"] == "my plans.txt",
    "--file my+plans.txt --file notes.txt": lambda head, values, ops: True,
    "--op client-2:3": lambda head, values, ops: values["id"] == "client-2:3",
    "--op apply": lambda head, values, ops: values["verb"] == "apply",
    "--causes client-1:4": lambda head, values, ops: before(head, ops["client-1:4"]),
    "--concurrent-with client-0:5": lambda head, values, ops: concurrent(head.clock, ops["client-0:5"].clock),
    "--client client-2 --op write --causes client-3:9": lambda head, values, ops: (
        head.host == "client-2" and values["verb"] == "write" and before(head, ops["client-3:9"])
    ),
}


@pytest.mark.parametrize("typed", FILTERS)
def test_filters_show_what_they_say(run_dir: Path, shown: Shown, typed: str) -> None:
    told: dict[bytes, dict[str, str]] = {}
    ops: dict[str, Head] = {}
    for head in logged(run_dir):
        line = parse_event(head.line.decode())
        told[head.line] = {**line.values, "verb": line.verb}
        if line.verb not in ("apply", "undo"):
            ops[line.values["id"]] = head
    wanted = {head.line for head in logged(run_dir) if FILTERS[typed](head, told[head.line], ops)}
    heads = heads_of(shown(run_dir, *[word.replace("+", " ") for word in typed.split()]))
    assert {head.line for head in heads} == wanted
    assert in_causal_order(heads)


def test_since_takes_a_time_its_beginning_or_how_long_ago(tmp_path: Path, shown: Shown) -> None:
    lines = [event("a", {"a": count}, BEGIN_US + count * 1_000_000) for count in range(1, 6)]
    write_log(tmp_path / "a", lines)
    moment = lines[2].time.decode()
    for since, count in ((moment, 3), (moment[:-1], 3), (moment[:19], 3), (moment[:13], 5), (moment[:4] + "-", 5)):
        assert len(heads_of(shown(tmp_path, "--since", since))) == count, since
    now_us = time.time_ns() // 1000
    write_log(tmp_path / "a", [event("a", {"a": 1}, now_us - 3600_000_000), event("a", {"a": 2}, now_us)])
    assert [head.count for head in heads_of(shown(tmp_path, "--since", "30m"))] == [2]


def test_json_tells_the_same(run_dir: Path, shown: Shown) -> None:
    heads = heads_of(shown(run_dir))
    lines = shown(run_dir, "--json").out.splitlines()
    for head, line in zip(heads, lines, strict=True):
        told, its = json.loads(line), parse_event(head.line.decode())
        assert told.pop("time") == head.time.decode()
        assert (told.pop("host"), told.pop("clock"), told.pop("verb")) == (its.host, its.clock, its.verb)
        assert type(told["seq"]) is int
        numbers = {"seq": int(its.values["seq"])}
        if "bytes" in its.values:
            numbers["bytes"] = int(its.values["bytes"])
        assert told == its.values | numbers


def test_a_client_that_lost_its_directory_is_one_client(tmp_path: Path, shown: Shown) -> None:
    write_log(tmp_path / "a", [event("anna", {"anna": 1}, 1)])
    write_log(tmp_path / "b", [event("anna#2", {"anna#2": 1}, 2), event("anna-x", {"anna-x": 1, "anna#2": 1}, 3)])
    assert [head.host for head in heads_of(shown(tmp_path, "--client", "anna"))] == ["anna", "anna#2"]
    assert [head.host for head in heads_of(shown(tmp_path, "--client", "anna#2"))] == ["anna#2"]


def test_a_copied_directory_is_shown_once(run_dir: Path, tmp_path: Path, shown: Shown) -> None:
    shutil.copytree(run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("socket"))
    shutil.copytree(tmp_path / "run/client-1", tmp_path / "run/copy")
    assert shown(tmp_path / "run").out == shown(run_dir).out
    assert shown(run_dir, run_dir, run_dir / "client-1").out == shown(run_dir).out


# Why


@given(histories())
def test_why_shows_the_shortest_chain(tmp_path_factory: pytest.TempPathFactory, history: History) -> None:
    if not history.heads:
        return
    place = tmp_path_factory.mktemp("why")
    for log in range(4):
        write_log(place / str(log), history.of(log))
    op = history.heads[-1]
    chain = shortest_chain(Index(EventLogs([place]).new(), Complaints()), op)

    def causes(head: Head) -> list[Head]:
        past = [other for other in history.heads if before(other, head)]
        return [cause for cause in past if not any(before(cause, other) for other in past)]

    events = [link.event for link in chain]
    assert events[-1] == op
    assert all(isinstance(one, Head) for one in events)
    heads = [one for one in events if isinstance(one, Head)]
    assert not causes(heads[0])
    assert all(first in causes(second) for first, second in itertools.pairwise(heads))
    # As many steps as it takes the slow way.
    reached, steps = [op], 1
    while all(causes(head) for head in reached):
        reached, steps = [cause for head in reached for cause in causes(head)], steps + 1
    assert len(heads) == steps
    assert all(link.led for link in chain[:-1])
    assert not chain[-1].led


def test_why_says_in_words_how_one_led_to_the_next(tmp_path: Path, shown: Shown) -> None:
    write_log(tmp_path / "a", [event("a", {"a": 1}, 1, id="a:1")])
    applied = event("b", {"a": 1, "b": 1}, 2, "apply", id="a:1")
    write_log(tmp_path / "b", [applied, event("b", {"a": 1, "b": 2}, 3, id="b:1")])
    write_log(tmp_path / "c", [event("c", {"a": 1, "b": 2, "c": 1}, 4, "read", id="c:1")])
    done = shown(tmp_path, "--why", "c:1")
    assert [line for line in done.out.decode().splitlines() if line.startswith("  ")] == [
        "  ↳ a sent the change that b took in",
        "  ↳ b's next event",
        "  ↳ b handed the lock of notes.txt on to c",
    ]
    told = [json.loads(line) for line in shown(tmp_path, "--why", "c:1", "--json").out.splitlines()]
    assert [one["led"] is None for one in told] == [False, False, False, True]


def test_why_begins_with_a_lost_event_only_where_no_chain_is_whole(tmp_path: Path, shown: Shown) -> None:
    write_log(tmp_path / "b", [event("b", {"b": 1, "x": 5}, 2, id="b:1")])
    done = shown(tmp_path, "--why", "b:1")
    assert done.out.decode().splitlines()[0] == "x's event 5, which no log here has"
    assert json.loads(shown(tmp_path, "--why", "b:1", "--json").out.splitlines()[0]) == {
        "host": "x", "count": 5, "lost": True, "led": "what x knew came to b with the lock of notes.txt",
    }  # fmt: skip
    write_log(tmp_path / "a", [event("a", {"a": 1}, 1), event("a", {"a": 2}, 1)])
    write_log(tmp_path / "b", [event("b", {"a": 2, "b": 1, "x": 5}, 2, id="b:1")])
    assert [head.split()[1] for head in shown(tmp_path, "--why", "b:1").out.decode().splitlines()[::2]] == [
        "a",
        "a",
        "b",
    ]


# What is wrong


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("", "no data directory: name one, give --data DIR, or set LOCKSTEP_DATA"),
        ("nowhere", "nowhere: no such directory"),
        ("a/events.log", "a/events.log: it is no directory"),
        (". --client a/b", "--client 'a/b': it is no client's name"),
        (". --file ../x", "--file '../x': a file's name has no empty part"),
        (". --op writes", "--op 'writes': it is an op's id, like anna:7, or one of read, write"),
        (". --since soon", "--since 'soon': it is a time as in the logs, or its beginning"),
        (". --since 2026-13", "--since '2026-13': it is a time"),
        (". --causes a", "--causes 'a': an op's id reads like anna:7"),
        (". --causes a:9", "--causes a:9: no log here has the op's own event; is the log of a given"),
        (". --concurrent-with a:9", "--concurrent-with a:9: no log here has the op's own event; is the log of a given"),
        (". --why a:9", "--why a:9: no log here has the op's own event; is the log of a given"),
        (". --op a:9", "--op a:9: no log here tells of this op"),
        (". --why a:1 --follow", "--why shows a chain as it is"),
        (". --op a:9 --op", "option '--op' requires an argument"),
    ],
)
def test_wrong_use_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: Shown, typed: str, line: str
) -> None:
    write_log(tmp_path / "a", [event("a", {"a": 1}, 1)])
    monkeypatch.chdir(tmp_path)
    done = shown(*typed.split())
    assert (done.code, done.out, done.err.count("\n")) == (2, b"", 1)
    assert done.err.startswith(f"client: {line}")


def test_a_directory_without_an_event_log_is_refused(tmp_path: Path, shown: Shown) -> None:
    done = shown(tmp_path)
    assert done.code == 3
    assert f"{tmp_path}: no event log here" in done.err


def test_lines_that_do_not_read_are_left_out_and_told(tmp_path: Path, shown: Shown) -> None:
    lines = [event("a", {"a": count}, count) for count in (1, 2)]
    write_log(tmp_path / "a", lines)
    with (tmp_path / "a/events.log").open("ab") as log:
        log.write(b"nonsense \x1b[31m\n" + b"\xff" * 10 + b"\n" + event("a", {"a": 3}, 3).line + b"\n")
    done = shown(tmp_path)
    assert (done.code, len(done.out.splitlines())) == (1, 3)
    told, end = done.err.splitlines()
    assert told.startswith(f"client: {tmp_path}/a/events.log:5: a line is left out: it does not read")
    assert end.startswith("client: 2 lines that do not read were left out")


def test_why_tells_of_a_line_on_its_way_that_does_not_read(tmp_path: Path, shown: Shown) -> None:
    write_log(tmp_path / "a", [event("a", {"a": count}, count) for count in (1, 2)])
    path = tmp_path / "a/events.log"
    path.write_text(path.read_text().replace("id=a:1", "id"))
    done = shown(tmp_path, "--why", "a:2", "--json")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "a line that led to a:2 does not read" in done.err


def test_a_line_without_an_end_is_left_out(tmp_path: Path, shown: Shown) -> None:
    write_log(tmp_path / "a", [event("a", {"a": 1}, 1)])
    with (tmp_path / "a/events.log").open("ab") as log:
        log.write(event("a", {"a": 2}, 2).line[:-3])
    assert len(heads_of(shown(tmp_path))) == 1
    with (tmp_path / "a/events.log").open("ab") as log:
        log.write(b"x" * (LINE_BYTES_MAX + 100_000) + b"\n" + event("a", {"a": 3}, 3).line + b"\n")
    done = shown(tmp_path)
    assert (done.code, len(done.out.splitlines())) == (1, 2)
    assert "a/events.log:4: a line is left out: it has more than" in done.err


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "\x1b]0;x\x07\x1b[2J", "\x9b31m", "a\u202eb", "\u2028", "🔒"]
)
def test_what_a_log_holds_never_acts_on_the_terminal(tmp_path: Path, shown: Shown, text: str) -> None:
    head = event("a", {"a": 1}, 1)
    write_log(tmp_path / "a", [head])
    # As our own writer has it, and as it is.
    for raw in (json.dumps(text), f'"{text}"'):
        with (tmp_path / "a/events.log").open("wb") as log:
            log.write(head.line + f" text={raw}\n".encode())
        for arguments in ((), ("--json",), ("--why", "a:1")):
            done = shown(tmp_path, *arguments)
            assert done.out.decode().rstrip("\n").isprintable()
    assert json.loads(printable(f'"{text}"') if printable(text) != text else f'"{text}"') == text


# Terminals, pipes, signals, memory


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-P", "-m", "client", "log", *map(str, arguments)]


def on_a_terminal(arguments: list[str], **environment: str) -> str:
    ours, theirs = pty.openpty()
    try:
        child = subprocess.Popen(
            arguments, stdout=theirs, stdin=subprocess.DEVNULL, env={**os.environ, "TERM": "xterm"} | environment
        )
        os.close(theirs)
        said = b""
        while True:
            try:
                more = os.read(ours, 4096)
            except OSError:  # the other end has closed
                break
            said += more
        assert child.wait(WITHIN_S) == 0
        return said.decode()
    finally:
        os.close(ours)


def test_colours_are_on_terminals_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_log(tmp_path / name, [event(name, {name: count}, count) for count in (1, 2)])
    said = on_a_terminal(command(tmp_path), NO_COLOR="")
    hosts = re.findall(r"Z \x1b\[(\d+)m(\w)\x1b\[0m \x1b\[2m\{", said)
    assert [host for _, host in hosts] == ["a", "b", "a", "b"]
    assert len(set(hosts)) == 2, "a colour each"
    assert len({colour for colour, _ in hosts}) == 2
    assert "\x1b" not in on_a_terminal(command(tmp_path), NO_COLOR="1")


def test_a_closed_pipe_ends_it_quietly(tmp_path: Path) -> None:
    write_event_logs(tmp_path / "run", 2, 2000)
    for arguments in ((), ("--json",), ("--follow",)):
        with subprocess.Popen(
            command(tmp_path / "run", *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            assert child.stderr is not None
            child.stdout.read(10)
            child.stdout.close()
            assert child.stderr.read() == b""
            child.wait(WITHIN_S)


def test_follow_shows_a_live_run_and_those_who_come_later(group: Group, tmp_path: Path) -> None:
    group.lockd()
    follower = group.start("client", "log", "--follow", str(tmp_path))
    group.serving("anna")
    group.op("anna", "write", "one")
    follower.says("text=one")
    group.serving("ben")
    for count in range(10):
        group.op(("anna", "ben")[count % 2], "write", f"line {count}")
    follower.says("line 9")

    def whole() -> list[bytes]:
        return sorted(line for path in tmp_path.glob("*/events.log") for line in path.read_bytes().splitlines()[2:])

    until(lambda: sorted(follower.out.splitlines()) == whole(), "all lines are shown")
    assert in_causal_order([parse_head(line) for line in follower.out.splitlines()])
    done = follower.stop(signal.SIGINT)
    assert (done.code, done.err) == (0, "")


def test_follow_takes_up_a_line_that_was_torn_and_gives_up_one_that_is_lost(group: Group, tmp_path: Path) -> None:
    first, second = event("a", {"a": 1}, 1), event("a", {"a": 2}, 2)
    write_log(tmp_path / "a", [first])
    follower = group.start("client", "log", "--follow", str(tmp_path / "a"))
    follower.says("id=a:1")
    with (tmp_path / "a/events.log").open("ab", buffering=0) as log:
        log.write(second.line[:30])
        log.write(second.line[30:] + b"\n")
        follower.says("id=a:2")
        log.write(event("a", {"a": 3, "x": 7}, 3).line + b"\n")
        follower.says("id=a:3")
    done = follower.stop(signal.SIGINT)
    assert (done.code, done.err) == (0, "")


def test_a_log_that_was_cut_goes_on_at_its_new_end(tmp_path: Path) -> None:
    first, second, other = event("a", {"a": 1}, 1), event("a", {"a": 2}, 2), event("a", {"a": 2}, 3)
    write_log(tmp_path, [first, second])
    log = EventLog(tmp_path / "events.log", lambda *wrong: pytest.fail(str(wrong)))
    assert [log.head(), log.head(), log.head()] == [first, second, None]
    write_log(tmp_path, [first])  # its client could not carry out the second, and took it back
    assert log.head() is None
    write_log(tmp_path, [first, other])
    assert [log.head(), log.head()] == [other, None]


@pytest.mark.parametrize("count", [1, 9])
def test_a_log_that_another_one_replaces_is_read_from_its_beginning(tmp_path: Path, count: int) -> None:
    """A client's directory was lost, and under the same name another replica began there."""
    old = [event("a", {"a": number}, number) for number in range(1, 6)]
    new = [event("a#2", {"a": 5, "a#2": number}, 10 + number) for number in range(1, count + 1)]
    write_log(tmp_path / "a", old)
    log = EventLog(tmp_path / "a/events.log", lambda *wrong: pytest.fail(str(wrong)))
    assert [log.head() for _ in range(6)] == [*old, None]
    write_log(tmp_path / "other", new)
    (tmp_path / "other/events.log").rename(tmp_path / "a/events.log")
    assert [log.head() for _ in range(count + 1)] == [*new, None]


def test_a_shorter_log_in_the_place_of_the_same_inode_is_known_by_its_beginning(tmp_path: Path) -> None:
    write_log(tmp_path, [event("a", {"a": number}, number) for number in range(1, 6)])
    log = EventLog(tmp_path / "events.log", lambda *wrong: pytest.fail(str(wrong)))
    while log.head():
        pass
    new = event("a#2", {"a": 5, "a#2": 1}, 10)
    write_log(tmp_path, [new])
    assert [log.head(), log.head()] == [new, None]


@pytest.mark.parametrize("count", ["99999999999999999999", "9" * 40])
def test_a_count_beyond_all_integers_is_left_out_in_words(tmp_path: Path, shown: Shown, count: str) -> None:
    write_log(tmp_path / "a", [event("a", {"a": 1}, 1)])
    with (tmp_path / "a/events.log").open("a") as log:
        log.write(event("a", {"a": 2}, 2).line.decode().replace('"a":2', f'"a":{count}') + "\n")
    for words in ((), ("--why", "a:1")):
        done = shown(str(tmp_path / "a"), *words)
        assert done.code == 1
        assert "Traceback" not in done.err


def peak_kib(*arguments: object) -> int:
    """Return the most memory that a child had, without what it had of ours before it began."""
    program = (
        "import sys\n"
        "from client.cli import app\n"
        "app(['log', *sys.argv[1:]], standalone_mode=False)\n"
        "print(*[line.split()[1] for line in open('/proc/self/status') if 'VmHWM' in line], file=sys.stderr)"
    )
    child = subprocess.run(
        [sys.executable, "-P", "-c", program, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=WITHIN_S,
        check=True,
    )
    return int(child.stderr)


def test_memory_does_not_grow_with_the_logs(tmp_path: Path) -> None:
    write_event_logs(tmp_path / "small", 8, 500)
    write_event_logs(tmp_path / "large", 8, 2000)
    assert peak_kib(tmp_path / "large") < 1.05 * peak_kib(tmp_path / "small")
