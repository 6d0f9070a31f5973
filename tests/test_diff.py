"""The unified diff of two versions."""

import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import client.diff
import client.history
from client.diff import diff
from client.history import (
    Archive,
    VersionName,
)
from client.journal import Journal
from client.journal_log import OpsLog
from tests.stories import (
    FILE,
    STEPS,
    UNHURRIED,
    Edit,
    Step,
    Story,
    tell,
)


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A directory, cleanly closed, whose file has the versions 0 to 42."""
    journal, _ = Journal.open(tmp_path / "data", "memory")
    with closing(journal):
        tell(journal, [Step(0, (Edit("write", f"line {n}"),)) for n in range(1, 43)])
    return tmp_path / "data"


def patched(old: bytes, lines: list[bytes]) -> bytes:
    """Apply a unified diff, believing each of its line numbers."""
    source = old.splitlines(keepends=True)
    result: list[bytes] = []
    taken = 0
    for line in lines:
        if line.startswith(b"@@"):
            start, _, count = line.split()[1][1:].partition(b",")
            first = int(start) - (count != b"0")
            result += source[taken:first]
            taken = first
        elif line.startswith((b"---", b"+++")) and not result and not taken and line.rstrip()[-2:-1] in b"@0123456789":
            continue
        elif line[:1] in b" -":
            assert source[taken] == line[1:]
            taken += 1
            result += [line[1:]] if line[:1] == b" " else []
        else:
            result.append(line[1:])
    return b"".join(result + source[taken:])


@UNHURRIED
@given(steps=STEPS, first=st.integers(0, 60), second=st.integers(0, 60))
def test_a_diff_turns_one_version_into_the_other(steps: list[Step], first: int, second: int) -> None:
    lines = [Step(step.back, tuple(edit for edit in step.edits if edit.verb != "replace")) for step in steps]
    with tempfile.TemporaryDirectory() as name:
        journal, _ = Journal.open(Path(name), "memory")
        with closing(journal):
            story = tell(journal, [*lines, Step(0, ())])
            first, second = first % (story.head + 1), second % (story.head + 1)
            with Archive.open(Path(name)) as archive:
                found = list(diff(archive, VersionName(FILE, first), VersionName(FILE, second)))
    old, new = story.contents[first], story.contents[second]
    assert bool(found) == (old != new)
    assert found[:2] == ([f"--- {FILE}@{first}\n".encode(), f"+++ {FILE}@{second}\n".encode()] if found else [])
    assert patched(old, found[2:]) == new


def test_a_diff_reads_as_people_know_it(closed: Path) -> None:
    journal, _ = Journal.open(closed, "memory")
    with closing(journal):
        story = Story("b.txt")
        journal.write(story.change(*[Edit("write", word) for word in ("one", "two", "three", "four", "five")]))
        journal.write(story.change(Edit("update", "six"), Edit("write", "seven")))
        journal.write(story.change(Edit("replace", "no newline", 8)))
    with Archive.open(closed) as archive:
        assert b"".join(diff(archive, VersionName("b.txt", 5), VersionName("b.txt", 7))).decode() == (
            "--- b.txt@5\n+++ b.txt@7\n@@ -2,4 +2,5 @@\n two\n three\n four\n-five\n+five --- six\n+seven\n"
        )
        assert b"".join(diff(archive, VersionName("b.txt", 2), VersionName("b.txt", 8))).decode() == (
            "--- b.txt@2\n+++ b.txt@8\n@@ -1,2 +1,3 @@\n one\n two\n+no newline\n\\ No newline at end of file\n"
        )
        other = b"".join(diff(archive, VersionName("b.txt", 1), VersionName(FILE, 1))).decode()
        assert other == f"--- b.txt@1\n+++ {FILE}@1\n@@ -1 +1 @@\n-one\n+line 1\n"


def test_a_diff_of_neighbours_in_a_large_file_compares_few_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, _ = Journal.open(tmp_path, "memory")
    with closing(journal):
        story = Story()
        journal.write(story.change(Edit("replace", "a line like any other\n" * 100_000), Edit("update", "new")))
    compared = []
    difference = client.diff.difflib.diff_bytes  # type: ignore[attr-defined]

    def counted(kind: object, old: list[bytes], new: list[bytes], *names: bytes, n: int) -> object:
        compared.append(len(old) + len(new))
        return difference(kind, old, new, *names, n=n)

    monkeypatch.setattr("client.diff.difflib.diff_bytes", counted)
    with Archive.open(tmp_path) as archive:
        lines = list(diff(archive, VersionName(FILE, 1), VersionName(FILE, 2)))
    assert lines[2] == b"@@ -99997,4 +99997,4 @@\n"
    assert compared == [8]


def test_versions_agree_without_being_read(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpsLog, "inserted", None)
    monkeypatch.setattr(OpsLog, "removed", None)
    with Archive.open(closed) as archive:
        assert archive.agreed_bytes(FILE, 42, 2) == len(b"line 1\nline 2\n")
        assert archive.agreed_bytes(FILE, 0, 42) == 0
