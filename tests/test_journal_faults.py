"""What disk, system and people may do to a journal: it says so in words, and changes nothing."""

import errno
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.history import Archive, HistoryError
from client.journal import FatalStorageError, Journal, StorageError
from client.journal_format import OP_HEAD_BYTES
from tests.crashing_disk import DATA, new_disk
from tests.stories import (
    FILE,
    STEPS,
    UNHURRIED,
    Edit,
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


@pytest.mark.parametrize("first", [b"", b"x" * 5000, b"SQLite format 3\0" + b"x" * 5000])
def test_a_file_in_its_place_is_no_journal(tmp_path: Path, first: bytes) -> None:
    (tmp_path / "journal").write_bytes(first)
    with pytest.raises(StorageError, match="journal is not a Lockstep journal"):
        Journal.open(tmp_path, "disk")
    assert (tmp_path / "journal").read_bytes() == first


def test_another_programs_directory_is_no_journal(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "today.md").write_bytes(b"mine")
    with pytest.raises(StorageError, match="journal is not a Lockstep journal"):
        Journal.open(tmp_path, "disk")


@pytest.mark.parametrize("part", ["meta", "1.ops"])
def test_a_newer_format_is_refused(tmp_path: Path, part: str) -> None:
    with closing(open_journal(tmp_path)) as journal:
        tell(journal, [Step(0, (Edit("write", "one"),))])
    path = tmp_path / "journal" / part
    changed = path.read_bytes().replace(b'"format": 2', b'"format": 3').replace(b"journal 2", b"journal 3")
    path.write_bytes(changed)
    with pytest.raises(StorageError, match="has the format 3, this Lockstep knows 2"):
        Journal.open(tmp_path, "disk")
    assert path.read_bytes() == changed


def test_a_journal_with_a_hole_is_damaged(tmp_path: Path) -> None:
    with closing(open_journal(tmp_path)) as journal:
        tell(journal, [Step(0, (Edit("write", "x" * 100),)) for _ in range(100)])
    with (tmp_path / "journal" / "1.ops").open("r+b") as opened:
        opened.seek(8 * 1024)
        opened.write(random.Random(1).randbytes(4 * 1024))
    (tmp_path / "journal" / "1.index").unlink()
    before = (tmp_path / "journal" / "1.ops").read_bytes()
    with pytest.raises(StorageError, match="damaged"):
        Journal.open(tmp_path, "disk")
    assert (tmp_path / "journal" / "1.ops").read_bytes() == before


@UNHURRIED
@given(steps=STEPS, sync=st.sampled_from((1, 2, 5)), chance=st.randoms(use_true_random=False))
def test_a_log_cut_anywhere_is_what_it_was_at_some_change(steps: list[Step], sync: int, chance: random.Random) -> None:
    """What a kill or a power cut takes from its end are whole changes; the index may be old, torn or gone."""
    with tempfile.TemporaryDirectory() as name, syncing_every(sync):
        directory = Path(name, "data")
        stories: list[tuple[int, Story]] = []
        with closing(open_journal(directory)) as journal:
            story = Story()
            for step in [Step(0, ()), *steps]:
                journal.write(story.change(*step.edits, back=step.back))
                stories.append((journal._files[FILE].last.end, story.copy()))
            log = (directory / "journal" / "1.ops").read_bytes()
            for _ in range(8):
                cut = Path(name, "cut")
                shutil.copytree(directory, cut)
                size = chance.randint(stories[0][0], len(log))
                torn = b"" if size == len(log) else bytes([log[size] ^ 1]) + chance.choice((b"", bytes(10), bytes(60)))
                (cut / "journal" / "1.ops").write_bytes(log[:size] + torn)
                index = cut / "journal" / "1.index"
                if index.exists() and chance.random() < 0.7:
                    index.write_bytes(index.read_bytes()[: chance.randint(0, index.stat().st_size)])
                told = [told for end, told in stories if end <= size][-1].copy()
                (cut / "files" / FILE).write_bytes(told.content)  # a log is on disk before the file that follows it
                with Archive.open(cut) as archive:
                    assert archive.files() == {FILE: told.versions[-1]}
                opened, _ = Journal.open(cut, "memory")
                with closing(opened):
                    told.assert_told_by(opened)
                    opened.write(told.write("more"))
                    told.assert_told_by(opened)
                with closing(open_journal(cut)) as opened:
                    told.assert_told_by(opened)
                shutil.rmtree(cut)


@UNHURRIED
@given(chance=st.randoms(use_true_random=False))
def test_a_damaged_index_does_no_harm(chance: random.Random) -> None:
    with tempfile.TemporaryDirectory() as name, syncing_every(4):
        directory = Path(name)
        with closing(open_journal(directory)) as journal:
            story = tell(journal, [Step(0, (Edit("write", str(n)),)) for n in range(20)])
        index = directory / "journal" / "1.index"
        data = bytearray(index.read_bytes())
        for at in range(start := chance.randrange(len(data)), min(len(data), start + chance.randint(1, 40))):
            data[at] = chance.randrange(256)
        index.write_bytes(data)
        with Archive.open(directory) as archive:
            assert [archive.content(FILE, seq) for seq in range(21)] == story.contents
        with closing(open_journal(directory)) as journal:
            story.assert_told_by(journal)
            journal.write(story.write("more"))
        with closing(open_journal(directory)) as journal:
            story.assert_told_by(journal)


@UNHURRIED
@given(chance=st.randoms(use_true_random=False), closed=st.booleans())
def test_a_changed_byte_of_a_log_is_told_or_does_no_harm(chance: random.Random, closed: bool) -> None:
    """Only what stands in the last change of a log that was not closed may be taken for what a crash cut off."""
    with tempfile.TemporaryDirectory() as name, syncing_every(4):
        directory = Path(name, "data")
        with closing(open_journal(directory)) as journal:
            story = tell(
                journal,
                [Step(0, (Edit(chance.choice(("write", "update")), str(n)),)) for n in range(chance.randint(1, 20))],
            )
            ops = journal._files[FILE]
            last = ops.op(story.head - 1).end if story.head > 1 else ops.op(1).record_at - OP_HEAD_BYTES
            shutil.copytree(directory, Path(name, "killed"))
        if not closed:
            directory = Path(name, "killed")
        log = directory / "journal" / "1.ops"
        data = bytearray(log.read_bytes())
        at = chance.randrange(len(data) if closed else last)
        data[at] ^= 1 << chance.randrange(8)
        log.write_bytes(data)
        (directory / "files" / FILE).unlink()
        try:
            with Archive.open(directory) as archive:
                assert [archive.content(FILE, seq) for seq in range(story.head + 1)] == story.contents
        except HistoryError:
            pass
        try:
            journal, _ = Journal.open(directory, "memory")
        except StorageError:
            assert log.read_bytes() == data
            return
        with closing(journal):
            try:
                story.assert_told_by(journal)
            except (StorageError, KeyError):
                return


def test_a_first_change_that_was_cut_off_never_was(tmp_path: Path) -> None:
    with closing(open_journal(tmp_path)) as journal:
        tell(journal, [Step(0, (Edit("write", "one"),))])
    path = tmp_path / "journal" / "1.ops"
    log = path.read_bytes()
    for size in (0, 5, log.index(b"\n"), log.index(b"\n") + 1, log.index(b"\n") + 60):
        path.write_bytes(log[:size])
        (tmp_path / "files" / FILE).write_bytes(b"")
        with closing(open_journal(tmp_path)) as journal:
            assert journal.states() == {}
            story = tell(journal, [Step(0, (Edit("write", "two"),))])
            story.assert_told_by(journal)
        with closing(open_journal(tmp_path)) as journal:
            story.assert_told_by(journal)


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot make"):
        Journal.open(tmp_path / "file" / "data", "disk")


def a_folder(path: Path) -> None:
    path.mkdir()
    (path / "mine").touch()


@pytest.mark.parametrize("make", [a_folder, os.mkfifo, lambda path: os.symlink("/etc/passwd", path)])
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


def test_an_empty_folder_gives_way_to_a_file(tmp_path: Path, journal: Journal) -> None:
    (tmp_path / "files" / "a").mkdir()
    journal.write(Story("a").write("one"))
    assert (tmp_path / "files" / "a").read_bytes() == b"one\n"
    (tmp_path / "files" / "full").mkdir()
    outside = tmp_path / "outside"
    (outside / "empty").mkdir(parents=True)
    (tmp_path / "files" / "full" / "link").symlink_to(outside, target_is_directory=True)
    with pytest.raises(StorageError, match="it is a directory"):
        journal.write(Story("full").write("one"))
    assert (outside / "empty").is_dir()


def test_a_first_op_that_fails_leaves_no_folder(tmp_path: Path, journal: Journal) -> None:
    (tmp_path / "journal" / "1.ops").mkdir()
    with pytest.raises(StorageError):
        journal.write(Story("a/b/c").write("one"))
    assert list((tmp_path / "files").iterdir()) == []


def test_a_content_that_no_op_made_is_not_overwritten(tmp_path: Path, journal: Journal) -> None:
    (tmp_path / "files" / FILE).write_bytes(b"mine\n")
    with pytest.raises(StorageError, match="move it away"):
        journal.write(Story().write("one"))
    assert plain(tmp_path) == b"mine\n"


@UNHURRIED
@given(steps=STEPS, at=st.integers(0, 24), room=st.integers(0, 600), more=STEPS)
def test_a_full_disk_changes_nothing(steps: list[Step], at: int, room: int, more: list[Step]) -> None:
    disk, story, refusals = new_disk(), Story(), set[str]()
    with syncing_every(3):
        journal, _ = Journal.open(DATA, "memory", disk)
        for number, step in enumerate([*steps, Step(0, ())]):
            wanted = story.copy()
            change = wanted.change(*step.edits, back=step.back)
            disk.room = room if number == at else None
            try:
                journal.write(change)
                story = wanted
            except StorageError as error:
                refusals.add(error.reason.partition(": ")[2])
            disk.room = None
            files = disk.contents(DATA / "files")
            if story.tickets:
                assert files == {FILE: story.content}
                story.assert_told_by(journal)
            else:
                assert not journal.states()
                assert not any(files.values())
        assert refusals <= {"the disk is full; make room"}
        for step in more:
            journal.write(story.change(*step.edits, back=step.back))
        for left in (disk.fork(), disk):
            opened, _ = Journal.open(DATA, "memory", left)
            if story.tickets or more:
                story.assert_told_by(opened)


def test_a_write_that_can_neither_end_nor_be_taken_back_is_fatal() -> None:
    disk = new_disk()
    journal, _ = Journal.open(DATA, "memory", disk)
    story, writes = tell(journal, [Step(0, (Edit("write", "one"),))]), count()
    disk.fail = lambda call, _: errno.EIO if call == "write" and next(writes) else 0
    with pytest.raises(FatalStorageError, match="cannot be taken back"):
        journal.write(story.change(Edit("update", "two")))
    disk.fail = None
    with pytest.raises(FatalStorageError):
        journal.write(story.copy().write("three"))
    repaired, notes = Journal.open(DATA, "memory", disk)
    assert len(notes) == 1
    story.assert_told_by(repaired)


def test_a_file_that_cannot_be_synced_is_fatal() -> None:
    disk = new_disk()
    with syncing_every(1):
        journal, _ = Journal.open(DATA, "disk", disk)
        story = tell(journal, [Step(0, (Edit("write", "one"),))])
        disk.fail = lambda call, _: errno.EIO if call == "fsync" else 0
        with pytest.raises(FatalStorageError, match="to the disk"):
            journal.write(story.copy().write("two"))
    disk.fail = None
    journal, _ = Journal.open(DATA, "disk", disk)
    story.assert_told_by(journal)
