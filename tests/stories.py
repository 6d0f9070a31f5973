"""Histories of one file for the tests of the storage: a dumb model, and the changes that lead to each state."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st

import client.journal
from client.effects import FileState, Persist
from client.journal import Durability, Journal
from common.messages import Head
from common.records import EMPTY, Record, Verb, Version, splice
from common.tokens import make_token
from common.wire import version_after
from tests.doubles import MemoryJournal

FILE = "notes.txt"
UNHURRIED = settings(deadline=None, max_examples=60)
"""For tests that use the disk: how long that takes says nothing about the code."""
Storage = Journal | MemoryJournal


@dataclass(frozen=True, slots=True)
class Edit:
    """One op: `at` picks the version that a restore goes back to, or the byte where a replacement starts."""

    verb: Verb | str
    text: str = ""
    at: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One Persist: take back so many ops, then do these."""

    back: int
    edits: tuple[Edit, ...]


@dataclass
class Story:
    """One file as the storage has to have it; each list begins with version 0."""

    file: str = FILE
    contents: list[bytes] = field(default_factory=lambda: [b""])
    versions: list[Version] = field(default_factory=lambda: [EMPTY])
    records: list[Record] = field(default_factory=list)
    promised: int = 0
    follows: int = 0
    tickets: int = 0

    @property
    def head(self) -> int:
        """The newest seq."""
        return len(self.records)

    @property
    def content(self) -> bytes:
        """The newest content."""
        return self.contents[-1]

    def change(self, *edits: Edit, back: int = 0) -> Persist:
        """Take `back` ops back, do `edits`, and return the Persist that asks a storage for the same."""
        self.tickets += 1
        keep = max(self.head - back, 0)
        del self.contents[keep + 1 :], self.versions[keep + 1 :], self.records[keep:]
        self.promised, self.follows = make_token(1, self.tickets + 1), make_token(1, self.tickets)
        for edit in edits:
            self._do(edit)
        digests = tuple(version.hash for version in self.versions[keep + 1 :])
        records = tuple(self.records[keep:])
        return Persist(self.tickets, self.file, keep, records, digests, self.promised, self.follows)

    def write(self, text: str) -> Persist:
        """Append a line."""
        return self.change(Edit("write", text))

    def copy(self) -> "Story":
        """Return a copy that goes its own way."""
        lists = self.contents.copy(), self.versions.copy(), self.records.copy()
        return Story(self.file, *lists, self.promised, self.follows, self.tickets)

    def _do(self, edit: Edit) -> None:
        content, of, verb = self.content, 0, edit.verb
        if verb == "restore":
            of = edit.at % (self.head + 1)
            wanted = self.contents[of]
            offset = next(
                (at for at, (one, other) in enumerate(zip(content, wanted, strict=False)) if one != other),
                min(len(content), len(wanted)),
            )
            inserted = wanted[offset:]
        elif verb == "replace":
            offset, inserted, verb = edit.at % (len(content) + 1), edit.text.encode(), "update"
        else:
            offset, inserted = splice("write" if verb == "write" else "update", edit.text, len(content))
        seq = self.head + 1
        clock = {f"client-{host}": seq + host for host in range(4)}
        known: Verb = "write" if verb == "write" else "update" if verb == "update" else "restore"
        record = Record(
            seq, self.follows, f"client-2:{seq}", known, offset, inserted, clock, 1_766_000_000_000_000 + seq, of
        )
        self.records.append(record)
        self.versions.append(version_after(self.versions[-1], record))
        self.contents.append(content[:offset] + inserted)

    def assert_told_by(self, storage: Storage) -> None:
        """Assert that the storage tells every version, and all else, as this model does."""
        clock = self.records[-1].clock if self.records else {}
        head = Head(self.versions[-1], self.follows, clock)
        assert storage.states()[self.file] == FileState(head, len(self.content), self.promised)
        assert storage.read(self.file) == self.content
        assert storage.tail(self.file, 7) == (len(self.content), self.content[-7:])
        assert storage.version_at(self.file, self.head + 1) is None
        for seq, (version, content) in enumerate(zip(self.versions, self.contents, strict=True)):
            assert storage.version_at(self.file, seq) == version
            assert storage.content(self.file, seq) == content
            offset, inserted = storage.change_to(self.file, seq)
            assert self.content[:offset] + inserted == content
            assert offset == min(len(content), len(self.content)) or (inserted[:1] != self.content[offset : offset + 1])
            if seq:
                assert storage.record_at(self.file, seq) == self.records[seq - 1]


def tell(storage: Storage, steps: Sequence[Step]) -> Story:
    """Do the steps in a storage and in the model; return the model."""
    story = Story()
    for step in steps:
        storage.write(story.change(*step.edits, back=step.back))
    return story


def go_on(story: Story) -> Persist:
    """Return the next change of a history without end, always the same, with everything in it."""
    verb = ("write", "update", "write", "restore")[story.tickets % 4]
    return story.change(Edit(verb, "a line", story.tickets // 2), back=story.tickets % 7 // 6)


def open_journal(directory: Path, durability: Durability = "memory") -> Journal:
    """Open a journal of which nothing is to be repaired."""
    journal, notes = Journal.open(directory, durability)
    assert notes == ()
    return journal


def plain(directory: Path) -> bytes:
    """Return the plain file's bytes."""
    return (directory / "files" / FILE).read_bytes()


@contextmanager
def syncing_every(ops: int) -> Iterator[None]:
    """Sync the files so often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client.journal, "SYNC_OPS", ops)
        yield


_TEXTS = st.text("abcdefgh é", max_size=6)
_EDITS = st.one_of(
    st.builds(Edit, st.sampled_from(("write", "write", "update")), _TEXTS),
    st.builds(Edit, st.just("restore"), at=st.integers(0, 40)),
    st.builds(Edit, st.just("replace"), _TEXTS, st.integers(0, 200)),
)
STEPS = st.lists(
    st.builds(Step, st.sampled_from((0, 0, 0, 1, 2, 9)), st.lists(_EDITS, min_size=0, max_size=3).map(tuple)),
    max_size=25,
)
"""Short histories with everything in them: writes, updates, restores, wild replacements, undo, promises alone."""
