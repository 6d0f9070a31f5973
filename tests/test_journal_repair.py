"""A journal that is opened again: closed, killed, cut off from power, or with a file that somebody changed."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.journal import Durability, Journal, StorageError
from tests.stories import (
    FILE,
    STEPS,
    UNHURRIED,
    Edit,
    FullDisk,
    Step,
    Story,
    after_power_cuts,
    go_on,
    open_journal,
    plain,
    syncing_every,
    tell,
    tell_and_keep_states,
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
                patch.setattr(os, "pwrite", FullDisk("files", 3, 1))
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
