"""What disk, system and people may do to a journal: it says so in words, and changes nothing."""

import errno
import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.journal import FatalStorageError, Journal, StorageError
from tests.stories import (
    FILE,
    STEPS,
    UNHURRIED,
    Edit,
    FullDisk,
    Step,
    Story,
    open_journal,
    plain,
    syncing_every,
    tell,
)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """An empty journal in tmp_path."""
    with closing(open_journal(tmp_path)) as journal:
        yield journal


@pytest.mark.parametrize("first", [b"x" * 5000, b"SQLite format 3\0" + b"x" * 5000])
def test_garbage_is_no_journal(tmp_path: Path, first: bytes) -> None:
    (tmp_path / "journal").write_bytes(first)
    with pytest.raises(StorageError, match=r"journal: it is (not a Lockstep journal|damaged)"):
        Journal.open(tmp_path, "disk")
    assert (tmp_path / "journal").read_bytes() == first


def test_another_programs_database_is_no_journal(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "journal")) as database:
        database.execute("CREATE TABLE mine (a)")
    with pytest.raises(StorageError, match="another program"):
        Journal.open(tmp_path, "disk")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    open_journal(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "journal")) as database:
        database.execute("PRAGMA user_version = 2")
    with pytest.raises(StorageError, match="has the format 2, and this Lockstep knows 1"):
        Journal.open(tmp_path, "disk")


def test_a_journal_that_lost_a_page_is_damaged(tmp_path: Path) -> None:
    with closing(open_journal(tmp_path)) as journal:
        tell(journal, [Step(0, (Edit("write", "x" * 100),)) for _ in range(100)])
    with (tmp_path / "journal").open("r+b") as opened:
        opened.seek(8 * 1024)
        opened.write(random.Random(1).randbytes(40 * 1024))
    with pytest.raises(StorageError, match="damaged"):
        Journal.open(tmp_path, "disk")


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot make"):
        Journal.open(tmp_path / "file" / "data", "disk")


def test_a_busy_journal_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.journal_database.BUSY_SECONDS", 0.0)
    with closing(open_journal(tmp_path)) as journal:
        story = tell(journal, [Step(0, (Edit("write", "one"),))])
        with closing(sqlite3.connect(tmp_path / "journal", isolation_level=None)) as shell:
            shell.execute("BEGIN IMMEDIATE")
            with pytest.raises(StorageError, match="another process"):
                journal.write(story.copy().write("two"))
        story.assert_told_by(journal)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/etc/passwd", path)])
def test_what_is_no_plain_file_is_refused(tmp_path: Path, journal: Journal, make: Callable[[Path], None]) -> None:
    make(tmp_path / "files" / FILE)
    with pytest.raises(StorageError, match=f"cannot open files/{FILE}"):
        journal.write(Story().write("one"))
    assert journal.states() == {}


def test_no_link_leads_out_of_files(tmp_path: Path, journal: Journal) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "files" / "out").symlink_to(outside, target_is_directory=True)
    (tmp_path / "files" / "dangling").symlink_to(tmp_path / "outside" / "made")
    for name in ("out/notes.txt", "out/deeper/notes.txt", "dangling"):
        with pytest.raises(StorageError, match="link"):
            journal.write(Story(name).write("one"))
    assert list(outside.iterdir()) == []


def test_a_file_in_the_way_of_a_directory_is_refused(tmp_path: Path, journal: Journal) -> None:
    journal.write(Story("a").write("one"))
    with pytest.raises(StorageError, match="not a directory"):
        journal.write(Story("a/b").write("one"))
    assert list(journal.states()) == ["a"]


def test_a_content_that_no_op_made_is_not_overwritten(tmp_path: Path, journal: Journal) -> None:
    (tmp_path / "files" / FILE).write_bytes(b"mine\n")
    with pytest.raises(StorageError, match="move it away"):
        journal.write(Story().write("one"))
    assert plain(tmp_path) == b"mine\n"


@UNHURRIED
@given(steps=STEPS, at=st.integers(0, 24), bytes_left=st.integers(0, 6), more=STEPS)
def test_a_disk_that_is_full_for_the_file_changes_nothing(
    steps: list[Step], at: int, bytes_left: int, more: list[Step]
) -> None:
    with tempfile.TemporaryDirectory() as name, syncing_every(3):
        directory, story, refusals = Path(name), Story(), list[str]()
        with closing(open_journal(directory)) as journal:
            for number, step in enumerate([*steps, Step(0, ())]):
                wanted = story.copy()
                change = wanted.change(*step.edits, back=step.back)
                with pytest.MonkeyPatch.context() as patch:
                    if number == at:
                        patch.setattr(os, "pwrite", FullDisk(bytes_left, 1))
                    try:
                        journal.write(change)
                        story = wanted
                    except StorageError as error:
                        refusals.append(error.reason)
                if story.tickets:
                    assert plain(directory) == story.content
                    story.assert_told_by(journal)
                else:
                    assert journal.states() == {}
                    assert not (directory / "files" / FILE).exists()
            assert refusals in ([], [f"cannot write files/{FILE}: the disk is full"])
            for step in more:
                journal.write(story.change(*step.edits, back=step.back))
            shutil.copytree(directory, directory / "killed")
        for closed in (directory, directory / "killed"):
            with closing(open_journal(closed)) as journal:
                if story.tickets:
                    story.assert_told_by(journal)


def test_a_write_that_can_neither_end_nor_be_taken_back_is_fatal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_journal(tmp_path)
    with closing(journal):
        story = tell(journal, [Step(0, (Edit("write", "one"),))])
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", FullDisk(2, 99))
            with pytest.raises(FatalStorageError, match="cannot be taken back"):
                journal.write(story.change(Edit("update", "two")))
        with pytest.raises(FatalStorageError):
            journal.write(story.copy().write("three"))
    repaired, notes = Journal.open(tmp_path, "memory")
    with closing(repaired):
        assert len(notes) == 1
        story.assert_told_by(repaired)


def test_a_file_that_cannot_be_synced_is_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with syncing_every(1), closing(open_journal(tmp_path, "disk")) as journal:
        story = tell(journal, [Step(0, (Edit("write", "one"),))])
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(FatalStorageError, match="to the disk"):
                journal.write(story.copy().write("two"))
    with closing(open_journal(tmp_path, "disk")) as journal:
        story.assert_told_by(journal)


def test_a_disk_that_is_full_for_the_journal_changes_nothing(journal: Journal, tmp_path: Path) -> None:
    story = tell(journal, [Step(0, (Edit("write", "one"),))])
    ((pages,),) = journal._database.rows("PRAGMA page_count")
    journal._database.rows(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageError, match="the disk is full"):
        journal.write(story.copy().write("x" * 100_000))
    with pytest.raises(StorageError, match="the disk is full"):
        journal.write(Story("new.txt").write("x" * 100_000))
    assert not (tmp_path / "files" / "new.txt").exists()
    story.assert_told_by(journal)
    journal._database.rows("PRAGMA max_page_count = 1000000")
    journal.write(story.write("two"))
    story.assert_told_by(journal)
