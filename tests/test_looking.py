"""client members, locks, status, why and top, as real processes; top under a pseudo-terminal."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from client.operator import Operator, inspect
from common.errors import EXIT_OK, EXIT_REFUSED, EXIT_WRONG_USE
from common.messages import Acquire, Grant
from common.wire import encode
from tests.group import Group, refusal, until

SCRIPT: Final = "<script>alert(1)</script>"
HOSTILE: Final = "\u202e[red]x[/red][link=http:x]y"
SHOWN: Final = "\\u202e[red]x[/red][link=http:x]y"
SEQUENCE: Final = re.compile(r"\x1b\[(H|K|J|[0-9;]*m|\?1049[hl]|\?25[hl])")
"""All that top may say to a terminal."""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    """Give tests that change nothing one group: lockd, two clients, three files."""
    with Group(tmp_path_factory.mktemp("up")) as group:
        group.lockd()
        group.serving("a")
        group.serving("b")
        for file in ("notes.txt", SCRIPT, HOSTILE):
            group.op("a", "write", "x", file=file)
            group.ok("recall", file)
        until(lambda: not any(lock.holders for lock in inspect(group.endpoint).locks), "the locks are given back")
        yield group


def lines_of(group: Group, *arguments: str) -> list[str]:
    return group.ok(*arguments).decode().splitlines()


def json_of(group: Group, *arguments: str) -> dict[str, object]:
    values = json.loads(group.ok(*arguments, "--json"))
    assert isinstance(values, dict)
    return values


# Once


def test_members(up: Group) -> None:
    head, *rows = lines_of(up, "members")
    assert head.split("  ")[0] == "MEMBER"
    assert [row.split()[:3] for row in rows] == [["a", "replica", "up"], ["b", "replica", "up"]]
    members = json_of(up, "members")["members"]
    assert isinstance(members, list)
    assert [member["host"] for member in members] == ["a", "b"]
    assert members[0]["files"]["notes.txt"] == {"standing": "in sync", "behind": 0}


def test_locks_show_hostile_names_as_text(up: Group) -> None:
    _, *rows = lines_of(up, "locks")
    assert [row.split("  ")[0] for row in rows] == [SCRIPT, "notes.txt", SHOWN]
    out = up.ok("locks", "--json")
    assert out.isascii()
    assert {lock["lock"] for lock in json.loads(out)["locks"]} == {SCRIPT, HOSTILE, "notes.txt"}
    assert lines_of(up, "why", HOSTILE)[0].startswith(f"{SHOWN} is clean at version 1 (")


def test_status(up: Group) -> None:
    text = "\n".join(lines_of(up, "status"))
    assert "sessions  2 replicas, 0 without" in text
    assert "files     3, 0 unclean, of 0 the newest version is absent" in text
    values = json_of(up, "status")
    assert (values["epoch"], values["files"], values["unclean"]) == (1, 3, 0)
    counts = values["counts"]
    assert isinstance(counts, dict)
    assert counts["grants"] == {"exclusive": 3, "shared": 0}


def test_why_tells_holder_and_waiters_in_order(up: Group) -> None:
    with Operator(up.endpoint, "holder") as holder, Operator(up.endpoint, "next-one") as waiter:
        token = holder.ask(
            Acquire(holder.epoch, holder.session, 5, "job", "plain", "exclusive", 60_000, 0, 0, 0, False), Grant
        ).token
        for request in (5, 6):
            acquire = Acquire(waiter.epoch, waiter.session, request, "job", "plain", "shared", 60_000, 0, 0, 0, False)
            waiter._socket.send(encode(acquire))
        kind, holds, *waits = until(
            lambda: lines if len(lines := lines_of(up, "why", "--name", "who", "job")) == 4 else [], "two wait"
        )
        assert kind == "job is a lock without a file"
        assert holds.startswith(f"holder holds it exclusively under token 1.{token & 0xFFFF} for ")
        assert "; its connection is up, it was heard of " in holds
        assert re.fullmatch(r"1\. next-one \(shared\) waits .* for holder's exclusive hold; it is next", waits[0])
        assert re.fullmatch(r"2\. next-one \(shared\) waits .* for its turn: 1 other asked before it", waits[1])
        members = "\n".join(lines_of(up, "members"))
        assert re.search(r"^holder +no replica +up", members, re.MULTILINE), "who holds a lock is a member"
        assert "next-one" in members
    assert until(lambda: "nothing is known of job" in lines_of(up, "why", "job")[0], "job is free")


def test_why_names_who_alone_has_the_newest_version(group: Group) -> None:
    group.lockd("--ttl", "1s")
    alone = group.serving("a")
    group.op("a", "write", "x")
    alone.stop()
    group.serving("b")
    group.start("client", "read", "notes.txt", "--data", "b")
    lines = until(lambda: lines if len(lines := lines_of(group, "why", "notes.txt")) > 4 else [], "b waits")
    absent = "only absent clients hold the newest version: a; start one"
    assert absent in lines
    assert re.fullmatch(rf"1\. b \(shared\) waits .*: {absent}", lines[-1])
    row = next(line for line in lines_of(group, "members") if line.startswith("a "))
    assert row.split()[:3] == ["a", "replica", "absent"]
    assert row.endswith("  notes.txt")


def test_they_need_no_data_directory_and_make_none(up: Group) -> None:
    before = sorted(path.name for path in up.path().iterdir())
    environment = {"LOCKSTEP_DATA": "nowhere"}
    for command in ("members", "locks", "status"):
        done = up.client(command, environment=environment)
        assert (done.code, done.err) == (EXIT_OK, "")
    assert sorted(path.name for path in up.path().iterdir()) == before


def test_a_data_directory_says_where_lockd_is(up: Group) -> None:
    done = up.client("members", "--data", "a", environment={"LOCKSTEP_LOCKD": ""})
    assert (done.code, done.out.count(b"\n")) == (EXIT_OK, 3)


def test_where_nobody_listens_all_say_so(tmp_path: Path, group: Group) -> None:
    group.endpoint = "tcp://127.0.0.1:1"
    children = [group.start("client", *words) for words in (["members"], ["locks"], ["status"], ["why", "x"], ["top"])]
    for child in children:
        done = child.end()
        assert done.code == EXIT_REFUSED
        assert refusal(done) == (
            "lockd at tcp://127.0.0.1:1 cannot be reached (Connection refused); start lockd, or set --lockd"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["why"], "missing argument 'NAME'; see client why --help"),
        (["why", ""], "NAME '': a lock's name cannot be empty"),
        (["why", "a\nb"], "NAME 'a\\nb': a lock's name holds no line breaks or other control characters"),
        (["members", "x"], "got unexpected extra argument(s) (x); see client members --help"),
        (["locks", "--lockd", "here"], "--lockd here: an endpoint reads tcp://HOST:PORT or ipc://PATH"),
        (["top", "--interval", "soon"], "--interval: a duration reads like 3s, 500ms or 1.5m, not 'soon'"),
        (["top", "--interval", "1ms"], "--interval 1ms: it is at least 100ms and at most 1h"),
    ],
)
def test_wrong_use(group: Group, arguments: list[str], line: str) -> None:
    done = group.client(*arguments)
    assert (done.code, refusal(done)) == (EXIT_WRONG_USE, line)


def test_who_looks_on_leaves_nothing_at_lockd(up: Group) -> None:
    """No session, so nothing durable, no line in lockd.log, and the name of a live client is no hindrance."""
    log = up.path("lockd", "lockd.log")
    before = log.read_bytes()
    for command in ("members", "locks", "status"):
        assert up.client(command, "--name", "a").code == EXIT_OK
    assert log.read_bytes() == before


# Again and again


def test_top_prints_frames_where_stdout_is_no_terminal(up: Group) -> None:
    child = up.start("client", "top", "--interval", "100ms")
    until(lambda: child.out.count(b"MEMBER") >= 3, "three frames")
    done = child.stop(signal.SIGINT)
    assert (done.code, done.err) == (EXIT_OK, "")
    text = done.out.decode()
    assert "\x1b" not in text
    assert SHOWN in text
    assert HOSTILE not in text


def test_top_prints_a_line_of_json_each_time(up: Group) -> None:
    child = up.start("client", "top", "--json", "--interval", "100ms")
    until(lambda: child.out.count(b"\n") >= 3, "three lines")
    done = child.stop()
    assert (done.code, done.err) == (EXIT_OK, "")
    frames = [json.loads(line) for line in done.out.splitlines()]
    assert [frame["rates"]["since_start"] for frame in frames[:3]] == [True, False, False]
    assert all(len(frame["members"]) == 2 for frame in frames)


def test_top_ends_when_nobody_reads_it_any_more(up: Group) -> None:
    read, write = os.pipe()
    child = up.start("client", "top", "--interval", "100ms", stdout=write)
    os.close(write)
    assert os.read(read, 1)
    os.close(read)
    done = child.end()
    assert (done.code, done.err) == (EXIT_OK, "")


class Terminal:
    """`client top` on a pseudo-terminal of its own."""

    def __init__(self, group: Group, columns: int, rows: int) -> None:
        self._master, self._slave = pty.openpty()
        self.resize(columns, rows)
        self.before = termios.tcgetattr(self._slave)
        command = [sys.executable, "-P", "-m", "client", "top", "--interval", "100ms", "--lockd", group.endpoint]
        self._process = subprocess.Popen(
            command,
            cwd=group.directory,
            env={**os.environ, "TERM": "xterm"},
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no thread here
        )
        self.text = ""
        self._bytes = b""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(25)
        os.close(self._master)
        os.close(self._slave)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(max(self._slave, 0), termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def read(self) -> str:
        """Return all that was written so far."""
        while select.select([self._master], [], [], 0)[0]:
            self._bytes += os.read(self._master, 65536)
        # The terminal puts a carriage return before every line feed.
        self.text = self._bytes.decode("utf-8", "ignore").replace("\r\r\n", "\r\n")
        return self.text

    def screen(self) -> list[str]:
        """Return the lines of the newest frame that is whole."""
        frames = [frame for frame in self.read().split("\x1b[H")[1:] if "\x1b[J" in frame]
        return SEQUENCE.sub("", frames[-1]).split("\r\n") if frames else []

    def shows(self, text: str) -> list[str]:
        """Wait for a frame with `text` in it; return its lines."""

        def found() -> list[str]:
            lines = self.screen()
            return lines if any(text in line for line in lines) else []

        return until(found, f"{text!r} is shown, not {self.screen()}")

    def end(self) -> int:
        """Wait for its end; return its exit code. The terminal must be as it was."""
        until(lambda: (self.read() is None) or self._process.poll() is not None, "top ends")
        self.read()
        assert self.text.startswith("\x1b[?1049h\x1b[?25l")
        assert self.text.endswith("\x1b[?25h\x1b[?1049l")
        assert termios.tcgetattr(self._slave) == self.before
        rest = SEQUENCE.sub("", self.text)
        assert rest.replace("\r\n", "").isprintable(), "nothing else was said to the terminal"
        return self._process.wait(25)


def test_top_on_a_terminal_follows_its_size_and_ends_with_q(up: Group) -> None:
    with Terminal(up, 80, 24) as terminal:
        lines = terminal.shows(SHOWN)
        assert len(lines) <= 24
        assert max(map(len, lines)) <= 80
        assert any(line.startswith(SCRIPT) for line in lines)
        assert lines[4].startswith("MEMBER")
        terminal.resize(46, 9)
        lines = until(
            lambda: lines if len(lines := terminal.screen()) <= 9 and max(map(len, lines)) <= 46 else [],
            "a small frame",
        )
        assert lines[4].startswith("MEMBER  LINK")
        terminal.press(b"q")
        assert terminal.end() == EXIT_OK


@pytest.mark.parametrize("how", ["ctrl-c", "SIGINT", "SIGTERM"])
def test_top_gives_the_terminal_back_however_it_ends(up: Group, how: str) -> None:
    with Terminal(up, 80, 24) as terminal:
        terminal.shows("MEMBER")
        if how == "ctrl-c":
            terminal.press(b"\x03")
        else:
            terminal.send(signal.Signals[how])
        assert terminal.end() == EXIT_OK


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT])
def test_top_gives_the_terminal_back_before_a_signal_ends_it(up: Group, number: signal.Signals) -> None:
    with Terminal(up, 80, 24) as terminal:
        terminal.shows("MEMBER")
        terminal.send(number)
        assert terminal.end() == 128 + number


@pytest.mark.parametrize("command", ["members", "status"])
def test_a_closed_stdout_ends_nothing_in_a_traceback(up: Group, command: str) -> None:
    line = f'exec "$0" -P -m client {command} --lockd {up.endpoint} >&-'
    done = subprocess.run(["sh", "-c", line, sys.executable], stderr=subprocess.PIPE, timeout=25, check=False)
    assert (done.returncode, done.stderr) == (EXIT_OK, b"")


def test_top_goes_on_over_a_restart_of_lockd(group: Group) -> None:
    lockd = group.lockd("--ttl", "1s")
    group.serving("a")
    group.op("a", "write", "x")
    with Terminal(group, 80, 24) as terminal:
        terminal.shows("epoch 1,")
        lockd.stop(signal.SIGKILL)
        lines = terminal.shows("does not answer since 1 s")
        assert any(line.startswith("notes.txt") for line in lines), "what was known last stays to be seen"
        group.lockd("--ttl", "1s", "--bind", group.endpoint)
        lines = terminal.shows("epoch 2,")
        terminal.shows("q ends")
        terminal.press(b"q")
        assert terminal.end() == EXIT_OK


def test_top_in_lines_says_that_lockd_is_silent_and_goes_on(group: Group) -> None:
    lockd = group.lockd("--ttl", "1s")
    plain = group.start("client", "top", "--interval=100ms")
    as_json = group.start("client", "top", "--interval=100ms", "--json")
    each = [(plain, b"MEMBER", "{}\n"), (as_json, b'"members"', '{{"trouble": "{}"}}\n')]
    until(lambda: all(frame in child.out for child, frame, _ in each), "a frame of each")
    lockd.send(signal.SIGSTOP)
    for child, _, said in each:
        child.says(said.format(f"lockd at {group.endpoint} does not answer since 1 s"))
    frames = [child.out.count(frame) for child, frame, _ in each]
    lockd.send(signal.SIGCONT)
    until(
        lambda: all(child.out.count(frame) > count for (child, frame, _), count in zip(each, frames, strict=True)),
        "lockd answers both again",
    )
    assert [child.stop(signal.SIGINT).code for child, _, _ in each] == [EXIT_OK, EXIT_OK]
