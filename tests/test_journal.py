"""The replica's storage: one contract for Journal and its double, and what the one with a disk costs."""

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.journal import Durability, Journal, StorageError
from client.journal_log import OPEN_LOGS_MAX, OpsLog
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
    open_journal,
    tell,
)


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


# What it costs


class Reads:
    """Counts the entries that seeks read."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        """Begin at 0."""
        self.total = 0
        for name in ("bounds", "length", "removed", "inserted"):
            patch.setattr(OpsLog, name, self._counted(getattr(OpsLog, name)))

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.total += 1
            return method(*arguments)

        return call


def test_an_append_reads_nothing(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    story = tell(journal, [Step(0, (Edit("write", "one"),))])
    reads = Reads(monkeypatch)
    monkeypatch.setattr(os, "pread", None)
    for number in range(600):
        journal.write(story.write(str(number)))
    assert reads.total == 0


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


def test_an_op_of_50_bytes_takes_no_more_than_350_on_disk(tmp_path: Path) -> None:
    count, story = 5000, Story()
    with closing(open_journal(tmp_path)) as journal:
        for _ in range(count):
            journal.write(story.change(Edit("write", "x" * 50)))
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert size / count <= 350


def test_descriptors_are_bounded(journal: Journal) -> None:
    stories = [Story(f"{number}.txt") for number in range(OPEN_FILES_MAX + 20)]
    before = len(os.listdir("/dev/fd"))
    for _ in range(2):
        for story in stories:
            journal.write(story.write("line"))
    assert len(os.listdir("/dev/fd")) - before <= OPEN_FILES_MAX + OPEN_LOGS_MAX
    for story in stories:
        story.assert_told_by(journal)
