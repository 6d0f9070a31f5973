"""Fencing at the user's own resource: refusals, crashes at every step, and processes that race and are killed."""

import errno
import fcntl
import os
import pickle
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from random import Random
from typing import Final, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.fencing import TOKEN_MAX, Fenced, FencedContent, FencedFile, ResourceBusy, TokenUnreadable, fence
from common.tokens import make_token
from tests.crashing_disk import DATA, CrashingDisk, Writing, new_disk
from tests.fencing_race import Kind, Outcome, race
from tests.group import until

OLD, NEW, NEWER = make_token(1, 27), make_token(1, 30), make_token(2, 1)


@pytest.fixture
def counter(tmp_path: Path) -> FencedFile:
    """Give a test a file that is not there yet."""
    return FencedFile(tmp_path / "counter")


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    """Give a test a database, in autocommit mode, as far as the user sees it."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        yield connection


# The file


def test_content_is_replaced_under_equal_and_larger_tokens(counter: FencedFile) -> None:
    assert counter.read(OLD) == b""
    counter.write(OLD, b"1")
    counter.write(OLD, b"2")
    assert counter.update(NEW, lambda content: content + b"!") == b"2!"
    assert (counter.read(NEWER), counter.path.read_bytes()) == (b"2!", b"2!")
    assert sorted(os.listdir(counter.path.parent)) == ["counter", "counter.token", "counter.token.lock"]
    assert Path(f"{counter.path}.token").read_text() == "2.1\n"


@pytest.mark.parametrize("call", ["read", "write"])
def test_a_smaller_token_is_refused_once_a_larger_was_seen(counter: FencedFile, call: str) -> None:
    counter.write(OLD, b"old")
    if call == "read":
        counter.read(NEW)
    else:
        counter.write(NEW, b"new")
    content = counter.path.read_bytes()
    assert refusal(lambda: counter.read(OLD)) == (OLD, NEW)
    assert refusal(lambda: counter.write(OLD, b"late")) == (OLD, NEW)
    assert refusal(lambda: counter.update(OLD, lambda _: b"late")) == (OLD, NEW)
    assert refusal(lambda: FencedFile(counter.path).write(OLD, b"late")) == (OLD, NEW)
    assert counter.path.read_bytes() == content


def test_a_refusal_names_both_tokens_and_travels_between_processes() -> None:
    fenced = pickle.loads(pickle.dumps(Fenced("a\x1b", OLD, NEW)))
    assert str(fenced) == "a\\u001b: the token 1.27 is fenced by 1.30; the lock was lost: acquire it again"
    assert (fenced.resource, fenced.token, fenced.promised) == ("a\x1b", OLD, NEW)


def test_readers_of_a_shared_lock_do_not_fence_each_other_but_the_writer_before_them(counter: FencedFile) -> None:
    counter.write(OLD, b"old")
    assert counter.read(NEWER, shared=True) == counter.read(NEW, shared=True) == b"old"
    with pytest.raises(Fenced):
        counter.write(OLD, b"late")


def test_an_update_keeps_no_larger_token_waiting_and_is_refused_after_it(counter: FencedFile) -> None:
    def overtaken(content: bytes) -> bytes:
        FencedFile(counter.path, wait=0).write(NEW, b"new")
        return content + b"late"

    with pytest.raises(Fenced):
        counter.update(OLD, overtaken)
    assert counter.path.read_bytes() == b"new"


def test_an_update_whose_function_fails_changes_nothing(counter: FencedFile) -> None:
    counter.write(OLD, b"seven")
    with pytest.raises(ValueError):
        counter.update(NEW, lambda content: b"%d" % int(content))
    assert counter.read(NEW) == b"seven"


@pytest.mark.parametrize("token", [0, -1, TOKEN_MAX + 1])
def test_what_cannot_be_a_token_is_wrong_use(counter: FencedFile, connection: sqlite3.Connection, token: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(ValueError, match="a token is an integer from 1"):
        counter.read(token)
    with pytest.raises(ValueError, match="a token is an integer from 1"):
        counter.write(token, b"")
    with pytest.raises(ValueError, match="a token is an integer from 1"):
        fence(connection, "a", token)
    assert not counter.path.exists()


def test_the_largest_token_has_63_bits(counter: FencedFile, connection: sqlite3.Connection) -> None:
    counter.write(TOKEN_MAX, b"last")
    connection.execute("BEGIN IMMEDIATE")
    fence(connection, "a", TOKEN_MAX)
    assert refusal(lambda: counter.write(TOKEN_MAX - 1, b"")) == (TOKEN_MAX - 1, TOKEN_MAX)
    assert refusal(lambda: fence(connection, "a", TOKEN_MAX - 1)) == (TOKEN_MAX - 1, TOKEN_MAX)


@pytest.mark.parametrize("text", ["", "1", "30", "1.x", "1.\u0663", "1.30\n1.31\n", "99999999999.1"])
def test_a_damaged_token_stops_everything(counter: FencedFile, text: str) -> None:
    counter.write(NEW, b"content")
    Path(f"{counter.path}.token").write_text(text)
    with pytest.raises(TokenUnreadable, match="holds no token"):
        counter.read(NEWER)
    with pytest.raises(TokenUnreadable, match="holds no token"):
        counter.write(NEWER, b"")
    assert counter.path.read_bytes() == b"content"


def test_a_symbolic_link_leads_to_the_same_promise(counter: FencedFile) -> None:
    link = counter.path.with_name("link")
    link.symlink_to("counter")
    FencedFile(link).write(NEW, b"new")
    with pytest.raises(Fenced):
        counter.write(OLD, b"late")
    assert link.is_symlink()
    assert counter.path.read_bytes() == b"new"


def test_permissions_stay_and_leftovers_of_the_killed_go(counter: FencedFile) -> None:
    counter.path.write_bytes(b"old")
    counter.path.chmod(0o640)
    leftover = Path(f"{counter.path}.token.new")
    leftover.symlink_to("elsewhere")
    counter.write(OLD, b"new")
    assert stat.S_IMODE(counter.path.stat().st_mode) == 0o640
    assert not leftover.is_symlink()
    assert not counter.path.with_name("elsewhere").exists()


def test_a_call_waits_for_another_and_says_when_it_takes_too_long(counter: FencedFile) -> None:
    counter.write(OLD, b"old")
    with open(f"{counter.path}.token.lock", "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ResourceBusy, match="may be stopped"):
            FencedFile(counter.path, wait=0).write(NEW, b"new")
    counter.write(OLD, b"still the largest")


def test_a_full_disk_leaves_the_old_content_and_the_larger_token() -> None:
    disk = new_disk()
    content = FencedContent(DATA / "counter", disk)
    content.write(OLD, b"old")
    disk.room = 10
    with pytest.raises(OSError) as full:
        content.write(NEW, b"new" * 100)
    assert full.value.errno == errno.ENOSPC
    disk.room = None
    with pytest.raises(Fenced):
        content.read(OLD)
    assert content.read(NEW) == b"old"
    content.write(NEW, b"new")
    assert set(disk.contents(DATA)) == {"counter", "counter.token"}


@given(st.lists(st.tuples(st.sampled_from(["read", "share", "write"]), st.integers(1, 6)), max_size=30))
def test_the_largest_token_and_the_last_write_accepted_are_all_there_is_to_it(calls: list[tuple[str, int]]) -> None:
    disk, promised, held = new_disk(), 0, b""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for number, (call, token) in enumerate(calls):
            expected = None if token >= promised or call == "share" else (token, promised)
            promised = max(promised, token)
            connection.execute("BEGIN IMMEDIATE")
            assert refusal(partial(fence, connection, "counter", token, shared=call == "share")) == expected
            connection.execute("COMMIT" if expected is None else "ROLLBACK")
            content = FencedContent(DATA / "counter", disk)
            if call == "write":
                assert refusal(partial(content.write, token, b"%d" % number)) == expected
                held = b"%d" % number if expected is None else held
            else:
                assert refusal(partial(content.read, token, shared=call == "share")) == expected
            assert disk.contents(DATA).get("counter", b"") == held
            assert content.read(1, shared=True) == held


def refusal(call: Callable[[], object]) -> tuple[int, int] | None:
    """Make a call; return the token refused and the one promised if it is refused, else None."""
    try:
        call()
    except Fenced as fenced:
        return fenced.token, fenced.promised
    return None


# Crashes

STORY: Final = (OLD, OLD, NEW, NEWER)
"""The tokens of the writes that crash; each writes a text about itself."""


class Reckless(FencedContent):
    """A fence that touches the content first: the crashes must show it."""

    def write(self, token: int, data: bytes) -> None:
        """Replace, then promise."""
        self._replace(self._path, data)
        self._promise(token, shared=False)


def text_of(number: int) -> bytes:
    """Return what the write of that number writes; its token can be told from it."""
    return b"%d\n" % number * 50


def crashes(kind: type[FencedContent], chance: Random) -> list[str]:
    """Crash the story at every call that changes the disk; tell what is wrong on those that come up again."""
    wrong: list[str] = []
    done = 0
    disk = new_disk()

    def judge(writing: Writing | None) -> None:
        for power in (False, True, True, True):
            left = disk.fork(writing, chance.randint(0, len(writing[2])) if writing else 0)
            wrong.extend(judged(left.cut_power(chance) if power else left, done))

    disk.before = judge
    content = kind(DATA / "counter", disk)
    for token in STORY:
        content.write(token, text_of(done + 1))
        done += 1
        judge(None)
    return wrong


def judged(left: CrashingDisk, done: int) -> list[str]:
    """Tell what is wrong on a disk after a crash, `done` writes having returned."""
    wrong: list[str] = []
    found = left.contents(DATA).get("counter", b"")
    texts = [b"", *[text_of(number) for number in range(1, len(STORY) + 1)]]
    if found not in texts[done : done + 2]:
        wrong.append(f"after {done} writes there is {found[:20]!r}")
        return wrong
    token = (0, *STORY)[texts.index(found)]
    content = FencedContent(DATA / "counter", left)
    if token and refusal(lambda: content.write(token - 1, b"late")) is None:
        wrong.append(f"{token - 1} was accepted after {token}")
    content.write(NEWER, b"after all")
    if content.read(NEWER) != b"after all":
        wrong.append("no write is possible after the crash")
    return wrong


@pytest.mark.parametrize("seed", range(10))
def test_whatever_the_crash_the_content_is_whole_and_older_tokens_are_refused(seed: int) -> None:
    assert crashes(FencedContent, Random(seed)) == []


def test_a_fence_that_writes_before_it_promises_is_found_out() -> None:
    assert any("was accepted after" in problem for problem in crashes(Reckless, Random(0)))


# SQLite


def test_a_smaller_token_is_refused_in_the_database(connection: sqlite3.Connection) -> None:
    connection.row_factory = lambda _cursor, _row: None
    for token in (OLD, OLD, NEW):
        connection.execute("BEGIN IMMEDIATE")
        fence(connection, "jobs", token)
        connection.execute("COMMIT")
    connection.execute("BEGIN IMMEDIATE")
    fence(connection, "another resource", OLD)
    assert refusal(lambda: fence(connection, "jobs", OLD)) == (OLD, NEW)
    fence(connection, "jobs", OLD, shared=True)


def test_a_promise_goes_with_its_transaction(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    fence(connection, "jobs", NEW)
    connection.execute("ROLLBACK")
    connection.execute("BEGIN IMMEDIATE")
    fence(connection, "jobs", OLD)


@pytest.mark.parametrize("isolation_level", ["DEFERRED", "IMMEDIATE", None])
def test_without_a_transaction_nothing_is_protected_and_that_is_said(
    isolation_level: Literal["DEFERRED", "IMMEDIATE"] | None,
) -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=isolation_level)) as connection:
        with pytest.raises(sqlite3.ProgrammingError, match="BEGIN IMMEDIATE"), connection:
            fence(connection, "jobs", NEW)
        connection.execute("BEGIN IMMEDIATE")
        fence(connection, "jobs", NEW)


# Processes

HOLDER: Final = """
import sys
from client.fencing import Fenced, FencedFile
fenced = FencedFile(sys.argv[1])
number = int(fenced.read(int(sys.argv[2])))
print("read", flush=True)
sys.stdin.readline()
try:
    fenced.write(int(sys.argv[2]), b"%d" % (number + 1))
except Fenced as refusal:
    raise SystemExit(f"{refusal.token} {refusal.promised}")
"""


def test_a_holder_stopped_between_read_and_write_is_refused_when_it_wakes_up(counter: FencedFile) -> None:
    counter.write(OLD, b"7")
    command = [sys.executable, "-P", "-c", HOLDER, str(counter.path), str(OLD)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"read\n"
        holder.send_signal(signal.SIGSTOP)
        until(lambda: Path(f"/proc/{holder.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "it stops")
        assert counter.update(NEW, lambda content: b"%d" % (int(content) + 1)) == b"8"
        holder.send_signal(signal.SIGCONT)
        _, said = holder.communicate(b"\n", 20)
    assert (holder.returncode, said.decode().strip()) == (1, f"{OLD} {NEW}")
    assert counter.path.read_bytes() == b"8"


@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_processes_that_race_and_are_killed_lose_nothing(tmp_path: Path, kind: Kind) -> None:
    outcome = race(tmp_path, kind, processes=4, deaths=40, seed=5)
    assert outcome.problems() == []
    assert outcome.noted
    assert outcome.refusals
    assert outcome.deaths >= 40


@pytest.mark.parametrize(
    ("lines", "noted", "problem"),
    [
        (["1 a", "3 a", "2 b"], [], "'2 b' was accepted after '3 a'"),
        (["1 a"], ["1 a", "2 b"], "'2 b' was noted and is lost"),
        (["1 a", "1 a"], ["1 a"], "1 lines were accepted twice"),
        (["1 a", "2 a", "3 a"], ["1 a"], "2 lines were not noted, but only 1 processes killed"),
    ],
)
def test_the_judge_of_the_race_rejects_what_must_not_be(lines: list[str], noted: list[str], problem: str) -> None:
    assert problem in Outcome(lines, noted, refusals=0, deaths=1).problems()
