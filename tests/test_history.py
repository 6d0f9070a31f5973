"""A data directory read by itself: live, killed, torn, closed, read-only."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import client.diff
import client.history
from client.history import (
    Archive,
    HistoryError,
    NoArchive,
    NoFile,
    NoVersion,
    Snapshot,
)
from client.journal import Journal
from tests.crashing_disk import DATA, new_disk
from tests.stories import (
    FILE,
    STEPS,
    UNHURRIED,
    Edit,
    Step,
    Story,
    plain,
    syncing_every,
    tell,
)

ROOT = Path(__file__).resolve().parent.parent


def assert_shows(archive: Archive, story: Story) -> None:
    """Assert that the archive shows every version as the model does."""
    assert archive.files() == {FILE: story.versions[-1]}
    assert archive.head(FILE) == story.versions[-1]
    assert [archive.content(FILE, seq) for seq in range(story.head + 1)] == story.contents
    assert list(archive.versions(FILE)) == [
        Snapshot(version, record.id, record.verb, record.time_us, len(after), len(after) - len(before), record.of)
        for version, record, before, after in zip(
            story.versions[1:], story.records, story.contents, story.contents[1:], strict=False
        )
    ]


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A directory, cleanly closed, whose file has the versions 0 to 42."""
    journal, _ = Journal.open(tmp_path / "data", "memory")
    with closing(journal):
        tell(journal, [Step(0, (Edit("write", f"line {n}"),)) for n in range(1, 43)])
    return tmp_path / "data"


def killed(directory: Path, copy: Path) -> Path:
    """Copy a live client's directory as a SIGKILL would leave it."""
    shutil.copytree(directory, copy)
    return copy


# Every state in which a directory may be


@UNHURRIED
@given(steps=STEPS)
def test_a_directory_is_shown_live_killed_and_closed(steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as name, syncing_every(4):
        live, dead = Path(name, "live"), Path(name, "dead")
        journal, _ = Journal.open(live, "memory")
        with closing(journal):
            story = tell(journal, [*steps, Step(0, ())])
            with Archive.open(live) as archive:
                assert_shows(archive, story)
            with Archive.open(killed(live, dead)) as archive:
                assert_shows(archive, story)
        with Archive.open(live) as archive:
            assert_shows(archive, story)


@UNHURRIED
@given(steps=STEPS, sync=st.sampled_from((1, 2, 5)), mix=st.randoms(use_true_random=False))
def test_a_torn_or_missing_file_does_not_matter(steps: list[Step], sync: int, mix: Random) -> None:
    with tempfile.TemporaryDirectory() as name, syncing_every(sync):
        disk = new_disk()
        journal, _ = Journal.open(DATA, "disk", disk)
        story = tell(journal, steps or [Step(0, ())])
        for number in range(6):
            dead = Path(name, str(number))
            for path, content in disk.fork().cut_power(mix).contents(DATA).items():
                (dead / path).parent.mkdir(parents=True, exist_ok=True)
                (dead / path).write_bytes(content)
            with Archive.open(dead) as archive:
                assert_shows(archive, story)
                (dead / "files" / FILE).unlink(missing_ok=True)
                assert_shows(archive, story)


def test_pages_of_versions_go_on_where_they_ended(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.history, "PAGE_OPS", 7)
    with Archive.open(closed) as archive:
        assert [snapshot.version.seq for snapshot in archive.versions(FILE)] == list(range(1, 43))


def test_reading_a_closed_directory_leaves_nothing_in_it(closed: Path) -> None:
    def listing() -> list[tuple[str, int, int]]:
        return sorted((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in closed.rglob("*"))

    before = listing()
    with Archive.open(closed) as archive:
        assert len(archive.content(FILE, 42)) == len(plain(closed))
        assert listing() == before
    assert listing() == before


def test_a_client_that_starts_and_ends_meanwhile_is_seen(closed: Path) -> None:
    with Archive.open(closed) as archive:
        assert archive.head(FILE).seq == 42
        journal, _ = Journal.open(closed, "memory")
        with closing(journal):
            story = Story("new.txt")
            journal.write(story.write("one"))
            assert archive.content("new.txt", 1) == b"one\n"
        assert archive.content("new.txt", 1) == b"one\n"
        journal, _ = Journal.open(closed, "memory")
        with closing(journal):
            journal.write(story.write("two"))
        assert archive.content("new.txt", 2) == b"one\ntwo\n"


_STRANGER = """
import os, sys
from pathlib import Path
from client.history import Archive
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
with Archive.open(Path(sys.argv[1])) as archive:
    os.write(1, archive.content(sys.argv[2], int(sys.argv[3])))
"""


def shown_to_a_stranger(directory: Path) -> bytes:
    """Return version 1, read by a process that may not write there; root's rights it gives up."""
    directory.chmod(0o555)
    command = [sys.executable, "-P", "-c", _STRANGER, str(directory), FILE, "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shown = subprocess.run(command, capture_output=True, env=environment, check=False)
    directory.chmod(0o755)
    assert shown.stderr == b""
    return shown.stdout


def test_a_stranger_who_may_not_write_there_can_read() -> None:
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        live = Path(name, "live")
        journal, _ = Journal.open(live, "memory")
        with closing(journal):
            story = tell(journal, [Step(0, (Edit("write", "one"), Edit("update", "two")))])
            wanted = story.contents[1]
            assert shown_to_a_stranger(live) == wanted
            dead = killed(live, Path(name, "dead"))
        assert shown_to_a_stranger(live) == wanted
        assert shown_to_a_stranger(dead) == wanted


def test_a_reader_beside_a_busy_writer_sees_only_what_was_true(tmp_path: Path) -> None:
    chance, story = Random(3), Story()
    changes, allowed = [], {0: {b""}}
    for number in range(1500):
        edits = [
            Edit(chance.choice(("write", "update", "restore", "replace")), f"{number}", chance.randrange(10**6))
            for _ in range(chance.choice((1, 1, 1, 2)))
        ]
        changes.append(story.change(*edits, back=chance.choice((0, 0, 0, 0, 3))))
        for seq in range(max(story.head - 5, 0), story.head + 1):
            allowed.setdefault(seq, set()).add(story.contents[seq])
    journal, _ = Journal.open(tmp_path, "memory")
    failures: list[BaseException] = []

    def write_all() -> None:
        try:
            for change in changes:
                journal.write(change)
        except BaseException as error:  # noqa: BLE001 -- it is told below
            failures.append(error)

    with closing(journal), syncing_every(16):
        journal.write(changes.pop(0))
        writer = threading.Thread(target=write_all)
        with Archive.open(tmp_path) as archive:
            writer.start()
            looks = 0
            try:
                while writer.is_alive() or looks < 200:
                    head = archive.head(FILE).seq
                    seq = chance.randint(max(0, head - chance.choice((3, 1000))), head)
                    try:
                        content = archive.content(FILE, seq)
                    except NoVersion:
                        continue  # it was taken back meanwhile
                    assert content in allowed[seq], seq
                    looks += 1
            finally:
                writer.join()
        assert failures == []
    with Archive.open(tmp_path) as archive:
        assert_shows(archive, story)


@pytest.mark.parametrize("meanwhile", ["replace", "undo", "replace and sync", "undo and sync"])
def test_a_file_that_changes_under_a_reading_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    journal, _ = Journal.open(tmp_path, "memory")
    with closing(journal), Archive.open(tmp_path) as archive, syncing_every(1):
        story = tell(journal, [Step(0, (Edit("write", "one"),)), *[Step(0, (Edit("write", "two"),))] * 3])
        wanted = story.contents[2]
        read, readings = Archive._file_bytes, 0

        def read_late(archive: Archive, file: str, start: int, stop: int) -> bytes:
            nonlocal readings
            readings += 1
            if readings == 1:
                if meanwhile.startswith("replace"):
                    journal.write(story.change(Edit("replace", "anything else", 1)))
                else:
                    journal.write(story.change(back=2))
                    journal.write(story.change(Edit("write", "three"), Edit("write", "four")))
                if meanwhile.endswith("and sync"):
                    journal.write(story.write("five"))
                    journal.write(story.write("six"))
            return read(archive, file, start, stop)

        monkeypatch.setattr(Archive, "_file_bytes", read_late)
        assert archive.content(FILE, 2) == wanted
        assert readings > 1 or meanwhile.startswith("replace")


# What there is not


def test_what_there_is_not_is_named(closed: Path, tmp_path: Path) -> None:
    with pytest.raises(NoArchive, match="no client's data directory"):
        Archive.open(tmp_path / "nowhere")
    with Archive.open(closed) as archive:
        with pytest.raises(NoFile, match="no versions of other"):
            archive.content("other.txt", 0)
        with pytest.raises(NoFile):
            archive.versions("other.txt")
        with pytest.raises(NoFile):
            archive.head("other.txt")
        with pytest.raises(NoVersion, match=r"^notes.txt has versions 0 to 42, not 43$"):
            archive.content(FILE, 43)


def _write_newer(path: Path) -> None:
    path.mkdir()
    (path / "meta").write_text('{"format": 3, "meta": {}}')


def _write_foreign(path: Path) -> None:
    path.mkdir()
    (path / "meta").write_text('{"format": 2, "meta": {}}')
    (path / "1.ops").write_text("operations\n")


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (Path.touch, "not a Lockstep journal"),
        (_write_newer, "format 3"),
        (_write_foreign, r"1\.ops is not a Lockstep journal"),
        (Path.mkdir, "no client's data directory"),
    ],
)
def test_what_is_no_journal_is_refused(tmp_path: Path, make: Callable[[Path], None], problem: str) -> None:
    make(tmp_path / "journal")
    with pytest.raises(NoArchive, match=problem):
        Archive.open(tmp_path)


def test_a_damaged_journal_is_told(closed: Path) -> None:
    log = closed / "journal" / "1.ops"
    data = log.read_bytes()
    log.write_bytes(data[: len(data) // 2] + bytes(50) + data[len(data) // 2 + 50 :])
    (closed / "files" / FILE).unlink()
    with Archive.open(closed) as archive, pytest.raises(HistoryError, match="damaged"):
        archive.content(FILE, 42)
    (closed / "journal" / "1.index").unlink()
    with pytest.raises(NoArchive, match="damaged at byte"):
        Archive.open(closed)
