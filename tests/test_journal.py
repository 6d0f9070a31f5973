"""The replica's storage: one contract for Journal and its double, and what only the one with a disk can suffer."""

import errno
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.journal import Durability, FatalStorageError, Journal, StorageError
from client.journal_database import FileOps
from client.plainfiles import OPEN_FILES_MAX
from common.records import EMPTY
from common.wire import encode_record
from tests.doubles import MemoryJournal
from tests.stories import (
    FILE,
    STEPS,
    UNHURRIED,
    Edit,
    Step,
    Storage,
    Story,
    after_power_cuts,
    plain,
    syncing_every,
    tell,
    tell_and_keep_states,
)

ROOT = Path(__file__).resolve().parent.parent
DURABILITIES: tuple[Durability, ...] = ("disk", "memory")


def open_journal(directory: Path, durability: Durability = "memory") -> Journal:
    """Open a journal of which nothing is to be repaired."""
    journal, notes = Journal.open(directory, durability)
    assert notes == ()
    return journal


@contextmanager
def each_storage(kind: str) -> Iterator[Storage]:
    """Make an empty storage of a kind, and take it away."""
    if kind == "double":
        yield MemoryJournal()
        return
    durability: Durability = "disk" if kind == "disk" else "memory"
    with (
        tempfile.TemporaryDirectory() as directory,
        closing(open_journal(Path(directory), durability)) as journal,
    ):
        yield journal


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """An empty journal in tmp_path."""
    with closing(open_journal(tmp_path)) as journal:
        yield journal


# The contract


@pytest.mark.parametrize("kind", ["disk", "memory", "double"])
@UNHURRIED
@given(steps=STEPS)
def test_every_version_of_a_random_history_is_told_right(kind: str, steps: list[Step]) -> None:
    with each_storage(kind) as storage:
        story = tell(storage, [*steps, Step(0, ())])
        story.assert_told_by(storage)


@pytest.mark.parametrize("kind", ["memory", "double"])
@UNHURRIED
@given(steps=STEPS, seq=st.integers(0, 30), bytes_max=st.integers(0, 1000))
def test_records_after_end_with_the_one_that_passes_the_limit(
    kind: str, steps: list[Step], seq: int, bytes_max: int
) -> None:
    with each_storage(kind) as storage:
        story = tell(storage, [*steps, Step(0, ())])
        seq = min(seq, story.head)
        records, more = storage.records_after(FILE, seq, bytes_max)
        assert records == tuple(story.records[seq : seq + len(records)])
        assert more == (seq + len(records) < story.head)
        sizes = [len(encode_record(record)) for record in records]
        assert sum(sizes[:-1]) <= bytes_max
        assert not more or sum(sizes) > bytes_max


@pytest.mark.parametrize("kind", ["disk", "memory", "double"])
def test_a_file_that_is_not_there_is_empty(kind: str) -> None:
    with each_storage(kind) as storage:
        assert storage.states() == {}
        assert storage.read(FILE) == b""
        assert storage.tail(FILE, 10) == (0, b"")
        assert storage.version_at(FILE, 0) == EMPTY
        assert storage.version_at(FILE, 1) is None
        assert storage.records_after(FILE, 0, 100) == ((), False)
        assert storage.change_to(FILE, 0) == (0, b"")


@pytest.mark.parametrize("kind", ["disk", "memory", "double"])
def test_files_are_apart(kind: str) -> None:
    with each_storage(kind) as storage:
        stories = [Story(name) for name in ("a", "b/c", "b/d")]
        for turn in range(9):
            story = stories[turn % 3]
            storage.write(story.write(f"line {turn}"))
        for story in stories:
            story.assert_told_by(storage)


@pytest.mark.parametrize("kind", ["disk", "memory", "double"])
def test_a_malformed_op_is_refused_and_changes_nothing(kind: str) -> None:
    with each_storage(kind) as storage:
        story = tell(storage, [Step(0, (Edit("write", "one"),))])
        ahead = story.copy()
        ahead.contents[-1] += b"bytes that the storage has not got\n"
        with pytest.raises(StorageError, match="malformed"):
            storage.write(ahead.write("two"))
        story.assert_told_by(storage)


@pytest.mark.parametrize("kind", ["disk", "memory", "double"])
def test_starts_are_counted_under_one_replica_id(kind: str) -> None:
    with each_storage(kind) as storage:
        replica, count = storage.begin_start()
        assert (len(replica), count) == (16, 1)
        assert int(replica, 16) >= 0
        assert storage.begin_start() == (replica, 2)
        storage.set_meta({"host": "client-1", "epoch": 7, "replica_id": "0123456789abcdef"})
        assert storage.begin_start() == ("0123456789abcdef", 3)
        assert (storage.meta.get("host"), storage.meta.get("epoch")) == ("client-1", 7)
        assert storage.meta.get("name") is None


def test_the_double_fails_when_told() -> None:
    storage = MemoryJournal()
    story = tell(storage, [Step(0, (Edit("write", "one"),))])
    storage.failing = "the disk is full"
    with pytest.raises(StorageError, match="full"):
        storage.write(story.copy().write("two"))
    story.assert_told_by(storage)


# Reopened, and repaired


@pytest.mark.parametrize("durability", DURABILITIES)
@UNHURRIED
@given(steps=STEPS, more=STEPS)
def test_a_journal_goes_on_where_it_was_closed(durability: Durability, steps: list[Step], more: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as name, syncing_every(4):
        directory = Path(name)
        with closing(open_journal(directory, durability)) as journal:
            story = tell(journal, [*steps, Step(0, ())])
        assert sorted(path.name for path in directory.iterdir()) == ["files", "journal"]
        assert plain(directory) == story.content
        with closing(open_journal(directory, durability)) as journal:
            story.assert_told_by(journal)
            for step in more:
                journal.write(story.change(*step.edits, back=step.back))
            story.assert_told_by(journal)


def assert_repaired(directory: Path, before: bytes | None, story: Story) -> None:
    """Assert that a left directory, its file as it was `before` or gone, opens as the model, and with a note."""
    with tempfile.TemporaryDirectory() as name:
        cut = Path(name, "cut")
        shutil.copytree(directory, cut)
        (cut / "files" / FILE).unlink()
        if before is not None:
            (cut / "files" / FILE).write_bytes(before)
        repaired, notes = Journal.open(cut, "memory")  # as quick as repairs can be
        with closing(repaired):
            assert bool(notes) == ((before or b"") != story.content)
            assert plain(cut) == story.content
            story.assert_told_by(repaired)
        open_journal(cut).close()


@UNHURRIED
@given(steps=STEPS, sync=st.sampled_from((1, 2, 5)), mix=st.randoms(use_true_random=False))
def test_a_file_torn_by_a_power_cut_is_repaired(steps: list[Step], sync: int, mix: random.Random) -> None:
    """Its journal is whole, but the file may be a mixture of all that it was since the last sync, or gone."""
    with tempfile.TemporaryDirectory() as name, syncing_every(sync):
        directory = Path(name)
        with closing(open_journal(directory, "disk")) as journal:
            story, states = tell_and_keep_states(journal, directory, steps or [Step(0, ())])
            for before in (*after_power_cuts(states, mix), None):
                assert_repaired(directory, before, story)


@pytest.mark.parametrize(("last", "back"), [(Edit("write", "ten"), 2), (Edit("replace", "ten\n", 4), 2), (None, 1)])
def test_a_file_left_by_ops_that_were_taken_back_is_repaired(tmp_path: Path, last: Edit | None, back: int) -> None:
    """The journal has no trace of them, and may have as many ops as at the last sync, as long as then."""
    with closing(open_journal(tmp_path, "disk")) as journal, syncing_every(2):
        steps = [
            Step(0, (Edit("write", "one"), Edit("write", "two"))),
            Step(0, (Edit("replace", "six\n", 0),)),
            Step(back, (last,) if last else ()),
        ]
        story, states = tell_and_keep_states(journal, tmp_path, steps)
        assert len(states) == 3
        for before in states:
            assert_repaired(tmp_path, before, story)


def test_a_half_written_file_that_was_taken_back_is_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can say whether the half that was written, or what was put back, has reached the disk."""
    with syncing_every(1):
        with closing(open_journal(tmp_path, "disk")) as journal:
            story = tell(journal, [Step(0, (Edit("write", text),)) for text in ("one", "two")])
        with closing(open_journal(tmp_path, "disk")) as journal:
            with monkeypatch.context() as patch:
                patch.setattr(os, "pwrite", FullDisk(3, 1))
                with pytest.raises(StorageError, match="full"):
                    journal.write(story.copy().change(Edit("update", "three")))
            assert plain(tmp_path) == story.content
            for before in (b"one\ntwo --", b"one\ntwo "):
                assert_repaired(tmp_path, before, story)


@pytest.mark.parametrize("damage", ["shorter", "longer", "gone", "empty"])
def test_a_closed_file_that_somebody_changed_is_rebuilt(tmp_path: Path, damage: str) -> None:
    with closing(open_journal(tmp_path)) as journal:
        story = tell(journal, [Step(0, (Edit("write", str(n)),)) for n in range(300)])
    file = tmp_path / "files" / FILE
    if damage == "gone":
        file.unlink()
    else:
        wrong = {"shorter": story.content[1:], "longer": b"mine\n" + story.content, "empty": b""}
        file.write_bytes(wrong[damage])
    journal, notes = Journal.open(tmp_path, "disk")
    with closing(journal):
        assert notes == (f"files/{FILE} was brought back to version 300 from byte 0 on",)
        story.assert_told_by(journal)


@pytest.mark.parametrize("by", ["cut", "grown", "removed", "replaced"])
def test_a_live_file_that_somebody_changed_is_rebuilt_at_the_next_read(tmp_path: Path, by: str) -> None:
    with closing(open_journal(tmp_path)) as journal:
        story = tell(journal, [Step(0, (Edit("write", str(n)),)) for n in range(9)])
        file = tmp_path / "files" / FILE
        if by == "cut":
            os.truncate(file, 3)
        elif by == "grown":
            with file.open("ab") as opened:
                opened.write(b"mine\n")
        elif by == "removed":
            file.unlink()
        else:
            (tmp_path / "edited").write_bytes(b"x" * len(story.content))
            (tmp_path / "edited").rename(file)
        assert journal.read(FILE) == story.content
        assert plain(tmp_path) == story.content
        journal.write(story.write("more"))
        assert plain(tmp_path) == story.content
    open_journal(tmp_path).close()


def test_a_cut_file_is_repaired_before_an_op_needs_its_end(tmp_path: Path) -> None:
    with closing(open_journal(tmp_path)) as journal:
        story = tell(journal, [Step(0, (Edit("write", str(n)),)) for n in range(9)])
        os.truncate(tmp_path / "files" / FILE, 3)
        journal.write(story.change(Edit("update", "more")))
        story.assert_told_by(journal)


_CHILD = """
import sys
from pathlib import Path
from client.journal import Journal
from tests.stories import Edit, Story
journal, _ = Journal.open(Path(sys.argv[1]), sys.argv[2])
story = Story()
while True:
    verb = ("write", "update", "write", "restore")[story.tickets % 4]
    journal.write(story.change(Edit(verb, "a line", story.tickets // 2), back=story.tickets % 7 // 6))
    print(story.head, flush=True)
"""


@pytest.mark.parametrize("durability", DURABILITIES)
def test_what_was_written_outlives_a_kill(tmp_path: Path, durability: Durability) -> None:
    command = [sys.executable, "-P", "-c", _CHILD, str(tmp_path), durability]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        for _ in range(700):
            last = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split()
    journal, _ = Journal.open(tmp_path, durability)
    with closing(journal):
        content = journal.read(FILE)
        head = journal.states()[FILE].head.version.seq
        assert head in range(int(rest[-1]) if rest else last, 10**9) or head >= last - 1
        replayed = b""
        for seq in range(1, head + 1):
            record = journal.record_at(FILE, seq)
            replayed = replayed[: record.offset] + record.inserted
        assert content == plain(tmp_path) == replayed


# What the disk refuses


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


class FullDisk:
    """os.pwrite on a disk that fills up after so many bytes; it then fails so often."""

    def __init__(self, bytes_left: int, failures: int) -> None:
        """Begin with room for `bytes_left` bytes."""
        self._left = bytes_left
        self._failures = failures
        self._pwrite = os.pwrite

    def __call__(self, descriptor: int, data: Any, offset: int) -> int:
        """Write what there is room for."""
        if len(data) <= self._left or not self._failures:
            self._left -= len(data)
            return self._pwrite(descriptor, data, offset)
        if self._left > 0:
            written = self._pwrite(descriptor, data[: self._left], offset)
            self._left = 0
            return written
        self._failures -= 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


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


# What it costs


class Reads:
    """Counts the rows that seeks read."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        """Begin at 0."""
        self.total = 0
        for name in ("bounds", "length", "removed", "inserted"):
            patch.setattr(FileOps, name, self._counted(getattr(FileOps, name)))

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.total += 1
            return method(*arguments)

        return call


def test_an_append_reads_nothing(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    story = tell(journal, [Step(0, (Edit("write", "one"),))])
    reads = Reads(monkeypatch)
    queries: list[str] = []
    journal._database._connection.set_trace_callback(queries.append)
    monkeypatch.setattr(os, "pread", None)
    for number in range(600):
        journal.write(story.write(str(number)))
    assert reads.total == 0
    assert {query.split()[0] for query in queries} == {"BEGIN", "INSERT", "UPDATE", "COMMIT"}


def test_any_of_100_000_versions_is_found_in_a_few_reads(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    chance, total = random.Random(7), 100_000
    story, samples = Story(), dict[int, bytes]()
    chosen = {*range(1, total, 997), total - 1, total}
    while story.head < total:
        edits = []
        for _ in range(1000):
            dice = chance.random()
            verb = "write" if dice < 0.6 else "update" if dice < 0.98 else "replace"
            edits.append(Edit(verb, f"text {chance.random()}", max(len(story.content) - 300, 0)))
        first = story.head + 1
        journal.write(story.change(*edits))
        samples |= {seq: story.contents[seq] for seq in range(first, story.head + 1) if seq in chosen}
        story.contents[first:-1] = [b""] * (len(story.contents) - first - 1)  # they would fill the memory
    reads = Reads(monkeypatch)
    most = 0
    for seq, content in samples.items():
        reads.total = 0
        assert journal.content(FILE, seq) == content
        most = max(most, reads.total)
    assert most <= 400, most
    reads.total = 0
    offset, inserted = journal.change_to(FILE, 998)
    assert story.content[:offset] + inserted == samples[998]
    assert reads.total <= 800


def test_an_op_of_50_bytes_takes_no_more_than_450_on_disk(tmp_path: Path) -> None:
    count, story = 5000, Story()
    with closing(open_journal(tmp_path)) as journal:
        for _ in range(count):
            journal.write(story.change(Edit("write", "x" * 50)))
        assert (tmp_path / "journal-wal").stat().st_size <= 1 << 20
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert size / count <= 450


def test_descriptors_are_bounded(journal: Journal) -> None:
    stories = [Story(f"{number}.txt") for number in range(OPEN_FILES_MAX + 20)]
    before = len(os.listdir("/dev/fd"))
    for _ in range(2):
        for story in stories:
            journal.write(story.write("line"))
    assert len(os.listdir("/dev/fd")) - before <= OPEN_FILES_MAX
    for story in stories:
        story.assert_told_by(journal)
