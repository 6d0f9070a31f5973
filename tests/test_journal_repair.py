"""A journal that is opened again: closed, killed, cut off from power, or with a file that somebody changed."""

import errno
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.journal import Durability, Journal, StorageError
from tests.crashing_disk import DATA, CrashingDisk, new_disk
from tests.stories import (
    FILE,
    STEPS,
    UNHURRIED,
    Edit,
    Step,
    Story,
    go_on,
    open_journal,
    plain,
    syncing_every,
    tell,
)

ROOT = Path(__file__).resolve().parent.parent
DURABILITIES: tuple[Durability, ...] = ("disk", "memory")


@pytest.mark.parametrize("durability", DURABILITIES)
@UNHURRIED
@given(steps=STEPS, more=STEPS)
def test_a_journal_goes_on_where_it_was_closed(durability: Durability, steps: list[Step], more: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as name, syncing_every(4):
        directory = Path(name)
        with closing(open_journal(directory, durability)) as journal:
            story = tell(journal, [*steps, Step(0, ())])
        assert sorted(path.name for path in directory.iterdir()) == ["events.log", "files", "journal"]
        assert plain(directory) == story.content
        with closing(open_journal(directory, durability)) as journal:
            story.assert_told_by(journal)
            for step in more:
                journal.write(story.change(*step.edits, back=step.back))
            story.assert_told_by(journal)


@UNHURRIED
@given(steps=STEPS, sync=st.sampled_from((1, 2, 5)), chance=st.randoms(use_true_random=False))
def test_a_power_cut_takes_nothing_that_was_written(steps: list[Step], sync: int, chance: random.Random) -> None:
    """Of the file, which nobody has waited for, any part may be as it was at some time since it was synced."""
    disk = new_disk()
    with syncing_every(sync):
        journal, _ = Journal.open(DATA, "disk", disk)
        story = tell(journal, steps or [Step(0, ())])
        for _ in range(8):
            assert_repaired(disk.fork().cut_power(chance), story)


@pytest.mark.parametrize(("last", "back"), [(Edit("write", "ten"), 2), (Edit("replace", "ten\n", 4), 2), (None, 1)])
def test_a_file_left_by_ops_that_were_taken_back_is_repaired(last: Edit | None, back: int) -> None:
    """The journal has no trace of them, and may have as many ops as at the last sync, as long as then."""
    disk = new_disk()
    with syncing_every(2):
        journal, _ = Journal.open(DATA, "disk", disk)
        steps = [
            Step(0, (Edit("write", "one"), Edit("write", "two"))),
            Step(0, (Edit("replace", "six\n", 0),)),
            Step(back, (last,) if last else ()),
        ]
        story = tell(journal, steps)
        for seed in range(50):
            assert_repaired(disk.fork().cut_power(random.Random(seed)), story)


def fills_up_at(number: int) -> Callable[[str, int], int]:
    """Return what writes a part of that write, and fails at the next."""
    writes, answers = count(1), {number: -1, number + 1: errno.ENOSPC}
    return lambda call, _: answers.get(next(writes), 0) if call == "write" else 0


@pytest.mark.parametrize(("before", "file_write"), [(0, 3), (2, 2)])
def test_a_half_written_file_that_was_taken_back_is_repaired(before: int, file_write: int) -> None:
    """Nobody can say whether the half that was written, or what was put back, has reached the disk."""
    for seed in range(40):
        disk = new_disk()
        with syncing_every(1):
            journal, _ = Journal.open(DATA, "disk", disk)
            story = tell(journal, [Step(0, (Edit("write", str(number)),)) for number in range(before)])
            journal.close()
            journal, _ = Journal.open(DATA, "disk", disk)
            disk.fail = fills_up_at(file_write)
            with pytest.raises(StorageError, match="cannot write files/"):
                journal.write(story.copy().change(Edit("update" if before else "write", "three")))
        left = disk.fork().cut_power(random.Random(seed))
        journal, _ = Journal.open(DATA, "disk", left)
        assert left.contents(DATA / "files").get(FILE, b"") == story.content
        journal.write(story.write("there is room again"))
        story.assert_told_by(journal)


def assert_repaired(disk: CrashingDisk, story: Story) -> None:
    """Assert that what a crash has left opens as the model, and with a note if the file was not so."""
    before = disk.contents(DATA / "files").get(FILE)
    journal, notes = Journal.open(DATA, "disk", disk)
    assert bool(notes) == ((before or b"") != story.content)
    assert disk.contents(DATA / "files") == {FILE: story.content}
    story.assert_told_by(journal)


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
        assert journal.repairs == [f"files/{FILE} was brought back to version 9 from byte 0 on"]
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
from tests.stories import Story, go_on
journal, _ = Journal.open(Path(sys.argv[1]), sys.argv[2])
story = Story()
while True:
    journal.write(go_on(story))
    print(story.tickets, flush=True)
"""


@pytest.mark.parametrize("durability", DURABILITIES)
def test_what_was_written_outlives_a_kill(tmp_path: Path, durability: Durability) -> None:
    command = [sys.executable, "-P", "-c", _CHILD, str(tmp_path), durability]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        told = [child.stdout.readline() for _ in range(700)]
        child.send_signal(signal.SIGKILL)
        told += [line for line in child.stdout.read().splitlines(keepends=True) if line.endswith(b"\n")]
    story = Story()
    while story.tickets < int(told[-1]):
        go_on(story)
    journal, _ = Journal.open(tmp_path, durability)
    with closing(journal):
        if journal.states()[FILE].head.follows != story.follows:
            go_on(story)  # it was written, and killed before it could tell
        story.assert_told_by(journal)
