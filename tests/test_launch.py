"""scripts/launch: real runs, small ones, from the first process to the verdict; and what is refused before."""

import fcntl
import json
import os
import pty
import re
import selectors
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from scripts import launcher
from scripts.launching.agreement import disagreement
from scripts.launching.plan import Plan
from scripts.launching.processes import Child
from scripts.launching.reports import OpBegan, OpEnded, describe, parse_report, printable
from scripts.launching.view import WAITING_BYTES_MAX, Paper
from scripts.picture.write import read_picture

DEADLINE_S = 20.0
COMMAND = (sys.executable, "-P", "-m", "scripts.launcher")
PROPERTIES = ("complete", "tokens", "hash chain", "replay", "snapshots", "clocks", "timestamps", "logs")
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LOCKSTEP"))}


# Running it


@dataclass(frozen=True)
class Run:
    """A run that is over."""

    code: int
    out: str
    error: str
    directory: Path

    @property
    def record(self) -> dict[str, Any]:
        """Return run.json."""
        record: dict[str, Any] = json.loads((self.directory / "run.json").read_bytes())
        return record

    @property
    def verdict(self) -> dict[str, str]:
        """Return the verdict's mark of each property."""
        return {line[2:12].strip(): line[0] for line in self.out.splitlines() if line[:2] in ("✔ ", "✘ ")}


class Launch:
    """A launcher under way; killed at the end of the context, with what it has started."""

    def __init__(self, *arguments: str, cwd: Path, terminal: bool = False) -> None:
        """Start it, on a terminal of its own where asked."""
        self.said = ""
        self._cwd = cwd
        self._errors = cwd / "launcher.err"
        with open(self._errors, "wb") as errors:
            if terminal:
                self._source, inside = pty.openpty()
                fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
                self.process = self._start(arguments, inside, inside, errors.fileno())
                os.close(inside)
            else:
                self._source, inside = os.pipe()
                self.process = self._start(arguments, subprocess.DEVNULL, inside, errors.fileno())
                os.close(inside)

    def _start(self, arguments: Sequence[str], stdin: int, stdout: int, stderr: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=self._cwd,
            env={**ENVIRONMENT, "TERM": "xterm"},
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave nothing behind."""
        self.process.kill()
        self.process.wait()
        os.close(self._source)

    def until(self, condition: Callable[[str], object]) -> None:
        """Read what it says until the condition on all that it has said is met."""
        deadline_s = time.monotonic() + DEADLINE_S
        while not condition(self.said):
            heard = self._read(deadline_s)
            assert heard, f"it ended, and said only:\n{self.said}\n{self._errors.read_text()}"
            self.said += heard

    def answer(self, text: str) -> None:
        """Type a line on its terminal."""
        os.write(self._source, text.encode() + b"\n")

    def end(self, run_dir: str = "run") -> Run:
        """Wait until it has ended by itself."""
        deadline_s = time.monotonic() + DEADLINE_S
        while heard := self._read(deadline_s):
            self.said += heard
        code = self.process.wait(DEADLINE_S)
        return Run(code, self.said, self._errors.read_text(), self._cwd / run_dir)

    def child(self, words: str) -> int:
        """Return the id of its child with these words in the command."""
        ((found, _),) = [(pid, command) for pid, command in self.children().items() if words in command]
        return found

    def children(self) -> dict[int, str]:
        """Return its children's commands."""
        pids = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return {int(pid): command_of(int(pid)) for pid in pids}

    def _read(self, deadline_s: float) -> str:
        with selectors.DefaultSelector() as selector:
            selector.register(self._source, selectors.EVENT_READ)
            if not selector.select(max(0.0, deadline_s - time.monotonic())):
                raise TimeoutError(f"nothing more in {DEADLINE_S} s after:\n{self.said}")
        try:
            return os.read(self._source, 65536).decode("utf-8", "replace")
        except OSError:  # so does a terminal end
            return ""


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def run(*arguments: str, cwd: Path) -> Run:
    with Launch("--run-dir=run", *arguments, cwd=cwd) as launch:
        return launch.end()


def op_lines(text: str, name: str = "client-") -> list[str]:
    return [line for line in text.splitlines() if re.match(rf"{name}\S* (read|write|update) ", line)]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of 2 clients on 2 files, with texts from a file."""
    cwd = tmp_path_factory.mktemp("small")
    (cwd / "lines.txt").write_text("plain\n\x1b[31mred [bold]markup\x1b[0m\n")
    files = ("--file=notes.txt", "--file=deep/a plan.txt")
    return run("--clients=2", "--ops=9", "--delay=0..0.01", "--seed=7", "--lines=lines.txt", *files, cwd=cwd)


@pytest.fixture(scope="session")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of more clients than ops, with --durability memory."""
    arguments = ("--clients=3", "--ops=1", "--delay=0..0", "--durability=memory")
    return run(*arguments, cwd=tmp_path_factory.mktemp("spread"))


# A whole run


def test_a_run_ends_in_a_verdict_that_is_all_good(small: Run) -> None:
    assert (small.code, small.error) == (0, "")
    assert small.verdict == dict.fromkeys(PROPERTIES, "✔")
    assert "9 of 9 ops" in small.out


def test_the_ops_are_split_over_the_clients(small: Run) -> None:
    assert len(op_lines(small.out, "client-0")) == 5
    assert len(op_lines(small.out, "client-1")) == 4


def test_run_json_says_what_was_asked_and_how_it_ended(small: Run) -> None:
    record = small.record
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record.pop("started"))
    assert record == {
        "version": 1,
        "clients": 2,
        "ops": 9,
        "files": ["notes.txt", "deep/a plan.txt"],
        "seed": "7",
        "delay": "0..0.01",
        "durability": "disk",
        "lines": "lines.txt",
        "finished": True,
        "left": [],
        "stopped": False,
    }


def test_it_shows_what_a_read_saw_and_no_control_characters(small: Run) -> None:
    reads = [line for line in op_lines(small.out) if " read " in line]
    assert reads and all("saw " in line for line in reads)
    assert r"\u001b[31mred [bold]markup" in small.out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", small.out)


def test_the_run_directory_holds_what_belongs_there(small: Run) -> None:
    assert {path.name for path in small.directory.iterdir()} == {
        "run.json",
        "timeline.html",
        "lockd",
        "client-0",
        "client-1",
    }


def test_the_places_that_it_names_are_there(small: Run) -> None:
    cwd = small.directory.parent
    places = small.out.partition("\nlogs ")[2]
    for pattern in ("run/client-*/events.log", "run/lockd/grants.log", "run/client-*/files/notes.txt"):
        assert pattern in places
        assert list(cwd.glob(pattern))
    commands = [line.removeprefix("snapshots").strip() for line in places.splitlines() if " --data " in line]
    assert len(commands) == 2
    for command in commands:
        told = subprocess.run(
            shlex.split(command),
            check=False,
            cwd=cwd,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert (told.returncode, told.stderr) == (0, "")


def test_one_client_does_one_op_in_a_directory_named_after_the_time(tmp_path: Path) -> None:
    with Launch("--clients=1", "--ops=1", "--delay=0..0", cwd=tmp_path) as launch:
        ended = launch.end()
    assert (ended.code, ended.error) == (0, "")
    assert "1 of 1 op" in ended.out
    (directory,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ", directory.name)


def test_clients_without_an_op_are_replicas_all_the_same(spread: Run) -> None:
    assert spread.code == 0
    assert len(op_lines(spread.out)) == 1
    assert "by 3 clients" in spread.out
    assert all((spread.directory / f"client-{number}" / "events.log").exists() for number in range(3))


def test_what_memory_risks_is_said(small: Run, spread: Run) -> None:
    assert "a power cut can take acknowledged ops" in spread.out
    assert "power cut" not in small.out


# A run that does not go well


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_every_process_and_leaves_a_run_that_can_be_judged(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    with Launch("--run-dir=run", "--clients=2", "--ops=100000", cwd=tmp_path) as launch:
        launch.until(lambda said: len(op_lines(said)) >= 3)
        children = launch.children()
        assert len(children) == 3
        assert all(os.getsid(pid) == pid for pid in children), "a Ctrl-C would reach them"
        launch.process.send_signal(number)
        ended = launch.end()
    assert (ended.code, ended.error) == (code, "")
    assert ended.verdict == dict.fromkeys(PROPERTIES, "✔")
    assert (ended.record["stopped"], ended.record["finished"], ended.record["left"]) == (True, False, [])
    assert not any("run/" in command_of(pid) for pid in children)


def test_a_second_signal_kills_at_once(tmp_path: Path) -> None:
    with Launch("--run-dir=run", "--clients=2", "--ops=100000", cwd=tmp_path) as launch:
        launch.until(lambda said: len(op_lines(said)) >= 3)
        os.kill(launch.child("--name=client-1"), signal.SIGSTOP)  # now it cannot end in order
        launch.process.send_signal(signal.SIGINT)
        launch.until(lambda said: "once more kills" in said)
        launch.process.send_signal(signal.SIGINT)
        ended = launch.end()
    assert ended.code == 130
    assert "client-1 did not end in order: killed by SIGKILL" in ended.out
    assert ended.record["stopped"]
    assert "client-1" in ended.record["left"]


def test_a_client_that_dies_is_told_and_the_others_finish(tmp_path: Path) -> None:
    with Launch("--run-dir=run", "--clients=3", "--ops=24", cwd=tmp_path) as launch:
        launch.until(lambda said: op_lines(said, "client-1"))
        os.kill(launch.child("--name=client-1"), signal.SIGKILL)
        launch.until(lambda said: "launch: client-1 died after" in said)
        ended = launch.end()
    assert ended.code == 1
    assert "killed by SIGKILL" in ended.out
    assert len([line for line in op_lines(ended.out, "client-0") if " failed " not in line]) == 8
    assert len([line for line in op_lines(ended.out, "client-2") if " failed " not in line]) == 8
    assert (ended.record["left"], ended.record["finished"]) == (["client-1"], False)
    assert ended.verdict == {**dict.fromkeys(PROPERTIES, "✔"), "complete": "✘"}


def test_the_end_of_lockd_ends_the_run(tmp_path: Path) -> None:
    with Launch("--run-dir=run", "--clients=2", "--ops=100000", cwd=tmp_path) as launch:
        launch.until(op_lines)
        children = launch.children()
        os.kill(launch.child("-m lockd"), signal.SIGKILL)
        ended = launch.end()
    assert ended.code == 1
    assert "launch: lockd died, and the run ends: killed by SIGKILL" in ended.out
    assert ended.verdict["complete"] == "✘"
    assert (ended.record["finished"], ended.record["stopped"]) == (False, False)
    assert not any("run/" in command_of(pid) for pid in children)


def test_chaos_shows_three_faults_and_what_followed(chaos: Run) -> None:
    run = chaos
    assert run.code == 0, run.out + run.error
    assert re.search(r"kill -9 of client-2, (in the midst of|between)", run.out)
    assert "client-2 is started again on its directory" in run.out
    granted = re.search(r"(client-\d) is stopped \(SIGSTOP\) .* lockd grants it (1\.\d+) in its sleep", run.out)
    assert granted
    refused = re.findall(r"(client-\d) refused the write of (client-\d): its token (1\.\d+) is fenced by", run.out)
    assert refused and all(who != whose for who, whose, _ in refused)
    assert "kill -9 of lockd" in run.out
    assert re.search(r"lockd is back: its first grant is 2\.1, larger than all before", run.out)
    assert run.verdict == dict.fromkeys((*PROPERTIES, "outcomes"), "✔")
    assert run.record["faults"] == ["kill", "pause", "lockd-kill"]
    picture = read_picture([run.directory])
    fenced = {
        (picture.lanes[arrow.source], picture.lanes[arrow.target], arrow.label)
        for arrow in picture.arrows
        if arrow.kind == "fenced"
    }
    assert {(whose, who, token) for who, whose, token in refused} <= fenced
    down = {picture.lanes[span.lane] for span in picture.spans if span.kind == "down"}
    assert down >= {"client-2", "lockd"}


def test_no_process_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    with Launch("--run-dir=run", "--clients=2", "--ops=100000", cwd=tmp_path) as launch:
        launch.until(op_lines)
        ends = [os.pidfd_open(pid) for pid in launch.children()]
        launch.process.kill()
        launch.process.wait()
    with selectors.DefaultSelector() as selector:
        deadline_s = time.monotonic() + DEADLINE_S
        for end in ends:
            selector.register(end, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline_s - time.monotonic()))
            assert ready, f"{len(selector.get_map())} are still there"
            for key, _ in ready:
                selector.unregister(key.fd)
                os.close(key.fd)


def test_a_process_that_cannot_begin_is_told_with_its_last_line(tmp_path: Path) -> None:
    child = Child("client-7", ["scripts.no_such_module"], tmp_path / "client-7.err")
    with selectors.DefaultSelector() as selector:
        selector.register(child, selectors.EVENT_READ)
        assert selector.select(DEADLINE_S), "its stdout is still open"
    child.close()
    assert re.fullmatch(r"exit code 1: .*No module named scripts.no_such_module", child.tell_end())
    assert (tmp_path / "client-7.err").exists()


# On a terminal


def test_on_a_terminal_it_asks_and_shows_a_live_table(tmp_path: Path) -> None:
    with Launch("--run-dir=run", "--delay=0..0.05", cwd=tmp_path, terminal=True) as launch:
        launch.until(lambda said: "How many clients? [4] " in said)
        launch.answer("none")
        launch.until(lambda said: said.count("How many clients? [4] ") == 2)
        launch.answer("2")
        launch.until(lambda said: "How many ops in total? [40] " in said)
        launch.answer("5")
        ended = launch.end()
    assert (ended.code, ended.error) == (0, "")
    assert (ended.record["clients"], ended.record["ops"]) == (2, 5)
    assert "a number of clients is wanted" in ended.out
    assert "3/3" in ended.out
    assert "5/5 ops" in ended.out
    assert not op_lines(ended.out)
    assert "✔ complete" in ended.out


# What is refused


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in an empty directory, where nothing may have been made at the end."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ops", "0"], "--ops 0: at least 1 op is needed"),
        (["--ops", "-4"], "--ops -4: at least 1 op"),
        (["--ops", "four"], "--ops four: a number of ops is wanted"),
        (["--ops", "9" * 30], "at most 1000000000 ops"),
        (["--clients", "0"], "--clients 0: at least 1 client"),
        (["--clients", "-1"], "--clients -1: at least 1 client"),
        (["--clients=100000"], "--clients 100000: at most 256 clients"),
        (["--clients"], "--clients: expected one argument"),
        (["--delay", "5..1"], "--delay 5..1: A..B needs 0 <= A <= B"),
        (["--delay", "-1..1"], "--delay -1..1: A..B needs 0 <= A <= B"),
        (["--delay", "soon"], "--delay soon: a delay reads A..B"),
        (["--file", "../x"], "--file '../x': a file's name has no empty part, '.' or '..'"),
        (["--file", "/etc/x"], "--file '/etc/x': a file's name is relative"),
        (["--file", ""], "--file '': a file's name cannot be empty"),
        (["--file", "a\nb"], "--file 'a\\nb': a file's name holds no line breaks"),
        (["--file", "a", "--file", "a/b"], "--file a: it is a folder of --file a/b"),
        (["--lines", "missing.txt"], "--lines missing.txt: it cannot be read (No such file or directory)"),
        (["--lines", "."], "--lines .: it cannot be read"),
        (["--lines", os.devnull], "it is no plain file"),
        (["--durability", "paper"], "--durability paper: it is disk or memory"),
        (["--seed", "\udcff"], "it is not valid UTF-8"),
        (["--run-dir", ""], "--run-dir '': a directory's name cannot be empty"),
        (["--quickly", "3"], "unrecognized arguments: --quickly=3"),
        (["--op", "3"], "unrecognized arguments: --op=3"),
        (["notes.txt"], "unrecognized arguments: notes.txt"),
        (["--chaos", "--ops", "5"], "--ops: with --chaos the clients work until all has been shown"),
        (["--chaos", "--clients", "1"], "--clients 1: --chaos shows what one client does to others"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(
    arguments: list[str], said: str, empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        launcher.main(arguments)
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (2, "")
    assert told.err.startswith("launch: ") and told.err.count("\n") == 1
    assert said in told.err


def test_a_run_is_never_overwritten(small: Run) -> None:
    before = {path: path.read_bytes() for path in small.directory.rglob("*") if path.is_file()}
    again = run("--clients=1", "--ops=1", cwd=small.directory.parent)
    assert (again.code, again.out) == (3, "")
    assert again.error == "launch: --run-dir run: it is not empty, and a run is never overwritten; choose another one\n"
    assert {path: path.read_bytes() for path in small.directory.rglob("*") if path.is_file()} == before


def test_a_run_directory_that_cannot_be_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as ended:
        launcher.main(["--run-dir", "file/run"])
    assert ended.value.code == 3
    assert capsys.readouterr().err == "launch: file/run cannot be used (Not a directory); choose another --run-dir\n"


# The parts


@pytest.mark.parametrize(("clients", "ops"), [(4, 40), (4, 42), (3, 1), (1, 7), (16, 400)])
def test_shares_are_as_equal_as_can_be(clients: int, ops: int) -> None:
    shares = list(Plan(clients=clients, ops=ops).shares().values())
    assert (len(shares), sum(shares)) == (clients, ops)
    assert shares == sorted(shares, reverse=True)
    assert shares[0] - shares[-1] <= 1


def test_reports_are_read() -> None:
    end = {"event": "end", "id": "client-0:1", "verb": "read", "file": "f", "seq": 3, "outcome": "ok"}
    end |= {"reason": "", "ms": 1.25, "bytes": 9, "text": "x\x1b", "hash": "0" * 12, "began_us": 1, "ended_us": 2}
    read = parse_report(json.dumps(end).encode())
    assert read == OpEnded("client-0:1", "read", "f", 3, "ok", "", 1.25, 9, "x\x1b", "0" * 12, 1, 2)
    assert isinstance(read, OpEnded)
    assert describe(read) == r'read f@3 ok 1.2 ms  saw 9 bytes, last line: "x\u001b"'
    begin = b'{"event": "begin", "verb": "read", "file": "f", "began_us": 7}'
    assert parse_report(begin) == OpBegan("read", "f", 7)
    assert parse_report(b"ready client-0 on client-0, durability disk") == "ready"
    assert parse_report(b'{"event": "complete"}') == "complete"
    assert parse_report(b'{"event": "done"}') == "done"
    assert parse_report(b'{"event": "something new"}') is None
    assert parse_report(b"anything else") is None


def test_what_is_not_printable_goes() -> None:
    assert printable("a\tb\x1b[31mc\u202ed漢\n") == "a b[31mcd漢 "


def test_lines_never_wait_for_a_reader_and_what_is_left_out_is_counted() -> None:
    source, sink = os.pipe()
    try:
        paper = Paper(sink)
        for number in range(WAITING_BYTES_MAX // 8):
            paper.tell(f"line {number}")
            paper.tick()
        heard = b""
        while b"left out here" not in heard:
            heard += os.read(source, 65536)
            paper.tell("again")
            paper.tick()
        first, *rest = heard.decode().split("\n")
        assert first == "line 0"
        assert any(re.fullmatch(r"\(\d+ lines are left out here: nobody read them\)", line) for line in rest)
    finally:
        os.close(source)
        os.close(sink)


def test_replicas_that_differ_are_named(small: Run, spread: Run, tmp_path: Path) -> None:
    for source, name in ((small, "client-0"), (small, "client-1"), (spread, "client-2")):
        shutil.copytree(source.directory / name, tmp_path / name)
    assert disagreement([tmp_path / "client-0", tmp_path / "client-1"]) == ""
    assert disagreement([]) == ""
    odd = disagreement([tmp_path / "client-0", tmp_path / "client-2"])
    assert re.fullmatch(r"client-2 (holds|and client-0 hold) .*@\d+.*", odd)
    assert "client-9 cannot be read" in disagreement([tmp_path / "client-0", tmp_path / "client-9"])
