"""What lockd writes behind: a kill takes nothing of it, wherever it comes; a power cut takes the end, and no more."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import CommandError
from common.grantlog import GrantEvent, GrantLine, format_grant
from common.records import EMPTY, Version
from common.tokens import make_token
from lockd.behind import Behind, grants_with_pending
from lockd.effects import KeepLeft

LEFT = KeepLeft("notes.txt", {"a": 3}, {"b": 1}, Version(4, make_token(1, 2), b"h" * 16), make_token(1, 3))


def killed(work: Callable[[], object]) -> None:
    """Do some work in a process that ends by a kill."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


def left(directory: Path) -> Behind:
    """Return what the next start finds, closed."""
    behind = Behind(directory)
    behind.close()
    return behind


def line(counter: int, event: GrantEvent = "grant") -> GrantLine:
    token = make_token(1, counter)
    return GrantLine(counter * 1000, event, "notes.txt", "exclusive", token, "client-0", (("held_ms", "0.100"),))


def text(*lines: GrantLine) -> str:
    return "".join([format_grant(each) + "\n" for each in lines])


def log(directory: Path) -> str:
    return (directory / "grants.log").read_text()


def test_what_is_pending_outlives_a_kill(tmp_path: Path) -> None:
    lines = [line(1), line(1, "release"), line(2)]

    def work() -> None:
        behind = Behind(tmp_path)
        for each in lines:
            behind.line(each)
        behind.keep(LEFT)

    killed(work)
    assert log(tmp_path) == ""
    assert grants_with_pending(tmp_path).decode() == text(*lines)
    again = left(tmp_path)
    assert log(tmp_path) == text(*lines)
    assert again.holds == [line(2)]
    assert again.left == {"notes.txt": LEFT}
    assert again.notes == ["lines of grants.log that were left pending, and are written now: 3"]
    for _ in range(3):  # a start that comes to nothing must leave to the next one what it found
        once_more = left(tmp_path)
        assert (log(tmp_path), once_more.notes, once_more.holds) == (text(*lines), [], [line(2)])


def test_what_was_pending_without_lines_does_not_count_again(tmp_path: Path) -> None:
    def leave(*counts: int) -> None:
        behind = Behind(tmp_path)
        for count in counts:
            behind.keep(KeepLeft("notes.txt", {"a": count}, {}, EMPTY, 0))

    def work() -> None:
        leave(1, 2)
        behind = Behind(tmp_path)
        behind.flush()
        behind.keep(KeepLeft("notes.txt", {"a": 3}, {}, EMPTY, 0))

    killed(work)
    assert left(tmp_path).left["notes.txt"].writers == {"a": 3}
    killed(lambda: leave(4))
    assert left(tmp_path).left["notes.txt"].writers == {"a": 4}


def test_a_kill_between_the_log_and_its_mark_writes_nothing_twice(tmp_path: Path) -> None:
    def work() -> None:
        behind = Behind(tmp_path)
        behind.line(line(1))
        behind.flush()
        behind.line(line(2))
        behind._begin = lambda base: None  # type: ignore[method-assign]
        behind.flush()

    killed(work)
    assert log(tmp_path) == text(line(1), line(2))
    again = left(tmp_path)
    assert log(tmp_path) == text(line(1), line(2))
    assert again.holds == [line(1), line(2)]


def test_a_kill_in_the_midst_of_the_log_is_made_whole(tmp_path: Path) -> None:
    def work() -> None:
        behind = Behind(tmp_path)
        behind.line(line(1))
        behind.flush()
        behind.line(line(2))
        with (tmp_path / "grants.log").open("a") as grants:
            grants.write(text(line(2))[:20])

    killed(work)
    assert grants_with_pending(tmp_path).decode() == text(line(1), line(2))
    left(tmp_path)
    assert grants_with_pending(tmp_path).decode() == text(line(1), line(2))
    assert log(tmp_path) == text(line(1), line(2))


def test_an_entry_that_was_not_finished_does_not_count(tmp_path: Path) -> None:
    def work() -> None:
        behind = Behind(tmp_path)
        behind.line(line(1))
        start = behind._end
        behind.line(line(2))
        behind._pending[start : start + 8] = bytes(8)  # its base, which is written last

    killed(work)
    left(tmp_path)
    assert log(tmp_path) == text(line(1))


def test_after_a_power_cut_the_log_is_taken_as_it_is(tmp_path: Path) -> None:
    def work() -> None:
        behind = Behind(tmp_path)
        behind.line(line(1))
        behind.flush()
        behind.line(line(2))
        behind._pending[4:8] = bytes(4)  # another boot's
        with (tmp_path / "grants.log").open("a") as grants:
            grants.write("time=20")

    killed(work)
    again = left(tmp_path)
    assert log(tmp_path) == text(line(1))
    assert again.holds == [line(1)]


def test_damaged_clocks_are_begun_anew(tmp_path: Path) -> None:
    behind = Behind(tmp_path)
    behind.keep(LEFT)
    behind.line(line(1))
    behind.close()
    assert left(tmp_path).left == {"notes.txt": LEFT}
    (tmp_path / "clocks").write_bytes(b"damaged" * 1000)
    damaged = left(tmp_path)
    assert damaged.left == {}
    assert "is damaged" in damaged.notes[0]
    assert left(tmp_path).notes == []


def test_many_lines_are_written_by_themselves_and_the_oldest_grant_is_found(tmp_path: Path) -> None:
    def work() -> None:
        behind = Behind(tmp_path)
        behind.line(line(1))
        for counter in range(2, 400):
            behind.keep(KeepLeft("notes.txt", {"a": counter}, {}, EMPTY, 0))
            behind.line(line(counter))
            behind.line(line(counter, "release"))

    killed(work)
    again = Behind(tmp_path)
    assert again.holds == [line(1)]
    assert again.left == {"notes.txt": KeepLeft("notes.txt", {"a": 399}, {}, EMPTY, 0)}
    assert log(tmp_path).count("\n") == 1 + 2 * 398
    again.line(line(1, "expiry"))
    again.close()
    assert left(tmp_path).holds == []


def test_a_clock_too_large_to_be_pending_is_kept_all_the_same(tmp_path: Path) -> None:
    behind = Behind(tmp_path)
    clock = {f"client-{number}": number + 1 for number in range(10_000)}
    behind.keep(KeepLeft("notes.txt", clock, {}, EMPTY, 0))
    behind.line(line(1))
    behind.close()
    assert left(tmp_path).left == {"notes.txt": KeepLeft("notes.txt", clock, {}, EMPTY, 0)}


def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    behind = Behind(tmp_path)
    behind.line(line(1))

    def full(descriptor: int, data: bytes, at: int) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lockd.behind.os.pwrite", full)
        with pytest.raises(
            CommandError, match=r"cannot be written \(No space left on device\); make room, start again"
        ):
            behind.close()
    left(tmp_path)
    assert log(tmp_path) == text(line(1))
