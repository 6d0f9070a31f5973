"""A replica's storage is crashed at every call that changes the disk, and opened again.

`python -m tests.test_crashes` has every call fail, and takes more power cuts and more crashes of the opening itself.
"""

import argparse
import errno
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from client.disk import SYSTEM, Disk
from client.effects import Persist
from client.journal import Durability, Journal
from client.loose import loose
from client.storage_errors import FatalStorageError, StorageError
from common.eventlog import HEADER, format_event, format_op, format_pairs, parse_event
from tests.crashing_disk import DATA, CrashingDisk, Writing, new_disk
from tests.stories import Edit, Story, syncing_every

HOST = "client-2"
Kind = str
"""What crashes: `kill` leaves what was written, `power` takes what was not synced."""


class Replica:
    """A journal and its event log, driven as client.node does it, and what they have to hold."""

    def __init__(self, disk: Disk, durability: Durability, directory: Path = DATA) -> None:
        """Open the directory."""
        self.durability: Durability = durability
        self.journal, _ = Journal.open(directory, durability, disk)
        self.journal.begin_start()
        self.held: dict[str, Story] = {}
        self.coming: Story | None = None
        self.lines: list[str] = []
        self.appending = False
        self.durable_lines = 0
        self.refused = list[str]()

    def change(self, file: str, *edits: Edit, back: int = 0, own: bool = True, only_promise: bool = False) -> None:
        """Log and persist a change, as an op of ours or as one of another's; note what is durable then."""
        before = self.held.get(file, Story(file))
        after = before.copy()
        follows = after.follows
        change = after.change(*edits, back=back)
        if only_promise:
            after.follows = follows
            change = Persist(change.ticket, file, change.keep, (), (), after.promised, follows)
        for seq in range(before.head, change.keep, -1):
            self.log("undo", before, seq)
        for seq in range(change.keep + 1, after.head + 1):
            self.log(str(after.records[seq - 1].verb) if own else "apply", after, seq)
        self.coming = after
        try:
            self.journal.write(change)
        except StorageError as error:
            self.refused.append(error.reason)
            self.coming = None
            self.assert_holds(file)
            for seq in range(after.head, change.keep, -1):
                self.log("undo", after, seq)
        else:
            self.held[file] = after
            self.durable_lines = len(self.lines)
        self.coming = None

    def read(self, file: str) -> None:
        """Log and do a read."""
        if file not in self.held:
            self.change(file)  # it makes the file
        story = self.held.get(file)
        if story is None:
            return
        self.log("read", story, story.head)
        try:
            assert self.journal.read(file) == story.content
        except StorageError as error:
            self.refused.append(error.reason)

    def assert_holds(self, file: str) -> None:
        """Assert that memory and file are as they were, after a change that did not happen."""
        disk = disk_of(self.journal)
        fail, disk.fail = disk.fail, None
        state, held = self.journal.states().get(file), self.held.get(file)
        disk.fail = fail
        assert (state is not None) == (held is not None)
        found = disk.contents(DATA / "files").get(file, b"")
        assert found == (held.content if held else b"")
        if state is not None and held is not None:
            assert (state.head.version, state.head.follows, state.promised) == (
                held.versions[-1],
                held.follows,
                held.promised,
            )

    def log(self, verb: str, story: Story, seq: int) -> None:
        """Append a line to the event log."""
        count = len(self.lines) + 1
        op_id = f"{HOST}:{1000 + count}" if verb == "read" or not seq else story.records[seq - 1].id
        version = story.versions[seq]
        facts = format_op(story.file, op_id, version.token or 1, seq, version.hash) + format_pairs([("from", "x")])
        line = format_event(1_000_000 + 10 * count, HOST, {HOST: count, "other": 7}, verb, facts)
        self.lines.append(line)
        self.appending = True
        self.journal.events.append(line)
        self.appending = False


def disk_of(journal: Journal) -> CrashingDisk:
    """Return a journal's disk, which must be one that crashes."""
    assert isinstance(journal._disk, CrashingDisk)
    return journal._disk


def tell_story(replica: Replica, full_disk: bool = True) -> None:
    """Do everything that a replica does, on several files, with the index written behind many times."""
    replica.change("notes.txt", Edit("write", "one"))
    replica.change("notes.txt", Edit("write", "two"))
    replica.read("notes.txt")
    replica.change("plans/a.txt", Edit("update", "nothing there yet"), own=False)
    replica.read("empty.txt")
    replica.change("notes.txt", only_promise=True)
    replica.change("notes.txt", Edit("update", "more of it"))
    replica.change("notes.txt", Edit("write", "theirs"), Edit("update", "é" * 300), own=False)
    replica.change("notes.txt", back=1)
    replica.change("notes.txt", Edit("restore", at=1))
    replica.change("plans/a.txt", Edit("write", "theirs"), Edit("write", "again"), own=False)
    replica.change("plans/a.txt", Edit("write", "other"), back=2, own=False)
    for turn in range(6):
        replica.change("notes.txt", Edit("write", f"turn {turn}"), own=turn % 2 == 0)
        replica.read("plans/a.txt")
    replica.change("notes.txt", Edit("update", "synced, then taken back"), back=3, own=False)
    replica.change("empty.txt", only_promise=True)
    replica.change("empty.txt", Edit("write", "no longer"))
    replica.change("empty.txt", back=1, own=False)
    if full_disk:
        for room in (0, 400, 950, 1150, 1300):
            for file, edit in (("notes.txt", Edit("update", "x" * 500)), ("new.txt", Edit("write", "x" * 500))):
                with out_of_room(replica, room):
                    replica.change(file, edit)
    for file in ("new.txt", "empty.txt", "notes.txt"):
        replica.change(file, Edit("write", "there is room again"))
    replica.read("notes.txt")


class out_of_room:  # noqa: N801  it reads as what it does
    """A disk with so much room for the journal and the files; the event log, which stops the process, has it."""

    def __init__(self, replica: Replica, room: int) -> None:
        """Leave `room` bytes once the next op's lines are written."""
        self._replica = replica
        self._room = room
        self._write = replica.journal.write

    def __enter__(self) -> None:
        """Fill the disk when the journal is written."""

        def write(change: Persist) -> None:
            disk = disk_of(self._replica.journal)
            disk.room = self._room
            try:
                self._write(change)
            finally:
                disk.room = None

        self._replica.journal.write = write  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        """Make room again."""
        del self._replica.journal.write


# What has to hold after a crash


def open_again(disk: CrashingDisk, replica: Replica, kind: Kind) -> None:
    """Open what a crash has left, twice, and check it; then go on with it."""
    journal, _ = Journal.open(DATA, replica.durability, disk)
    with closing(journal):
        journal.begin_start()
        now = assert_held(disk, journal, replica)
        assert_lines(disk, journal, replica, kind)
        left = disk.contents(DATA)
        if replica.durability == "disk":  # what was told at this start holds, whatever comes next
            later = disk.fork().cut_power(Random(disk.changes))
            journal_later, _ = Journal.open(DATA, "disk", later)
            with closing(journal_later):
                assert journal_later.states() == journal.states()
                assert_held(later, journal_later, replica)
    again = disk.fork()
    journal, notes = Journal.open(DATA, replica.durability, again)
    with closing(journal):
        assert not notes
        found = again.contents(DATA)
        assert {name: found[name] for name in left if not name.startswith("journal")} == {
            name: content for name, content in left.items() if not name.startswith("journal")
        }
        for story in now:
            journal.write(story.write("it goes on"))
            story.assert_told_by(journal) if story.head < 9 else None
            assert again.contents(DATA / "files")[story.file] == story.content
    journal, notes = Journal.open(DATA, replica.durability, again)
    journal.close()
    assert not notes


def assert_held(disk: CrashingDisk, journal: Journal, replica: Replica) -> list[Story]:
    """Assert that journal and files hold what was durable, or that with the change under way; return which."""
    states, files, found = journal.states(), disk.contents(DATA / "files"), list[Story]()
    coming = replica.coming
    for name in {*states, *replica.held}:
        held = replica.held.get(name)
        possible = [story for story in (held, coming) if story is not None and story.file == name]
        if name not in states:
            assert held is None, f"{name} is lost"
            continue
        state = states[name]
        heads = (state.head.version, state.head.follows, state.promised, state.length)
        told = [
            story
            for story in possible
            if heads == (story.versions[-1], story.follows, story.promised, len(story.content))
        ]
        assert told, (
            f"{name} is at {state}, not at {[(s.versions, s.promised, s.follows, s.content) for s in possible]}"
        )
        story = told[0].copy()
        assert journal.records_after(name, 0, 1 << 30)[0] == tuple(story.records)
        assert files.pop(name) == story.content
        found.append(story)
    assert not any(files.values()), f"no op made {files}"
    return found


def assert_lines(disk: CrashingDisk, journal: Journal, replica: Replica, kind: Kind) -> None:
    """Assert that the event log has the lines that it must have, whole and counted."""
    data = disk.contents(DATA)["events.log"].decode()
    assert data.startswith(HEADER) and data.endswith("\n")
    lines = data.removeprefix(HEADER).splitlines()
    events = [parse_event(line) for line in lines]
    assert [event.clock[HOST] for event in events] == list(range(1, len(lines) + 1))
    assert lines == replica.lines[: len(lines)]
    if kind == "kill":
        assert len(lines) >= len(replica.lines) - replica.appending
    if kind == "kill" or replica.durability == "disk":
        assert len(lines) >= replica.durable_lines
    # What the core will take back is of the change that the crash came into.
    assert len(list(loose(journal.events.newest(), journal))) <= max(0, len(lines) - replica.durable_lines)
    end = journal.events.end
    assert end.clock.get(HOST, 0) == data.count("\n") - 2
    own = [event for event in events if event.verb in ("read", "write", "update", "restore")]
    assert end.ops == max([int(event.values["id"].split(":")[1]) for event in own], default=0)


# The crashes


def crash_everywhere(durability: Durability, *, every: int = 1, cuts: int = 2, nested: int = 40, seed: int = 1) -> int:
    """Crash a story at each `every`-th change of the disk, and each `nested`-th opening at its own; count them."""
    kinds: list[Kind] = ["kill"] + (["power"] * cuts if durability == "disk" else [])
    disk, count = new_disk(), 0
    replica: Replica | None = None
    started = Replica.__new__(Replica)  # what holds before the first opening has ended
    started.held, started.lines, started.coming, started.appending = {}, [], None, False
    started.durable_lines, started.durability = 0, durability

    def crash(writing: Writing | None) -> None:
        nonlocal count
        if (disk.changes + seed) % every:
            return
        for number, kind in enumerate(kinds):
            count += 1
            chance = Random(f"{seed} {disk.changes} {number}")
            told = replica or started
            left = crashed(disk, writing, kind, chance)
            if count % nested == 0:
                left.before = crash_again(left, told, kind, chance)
            try:
                open_again(left, told, kind)
            except (AssertionError, OSError, StorageError, FatalStorageError) as error:
                # The story would take an error of the disk for its own.
                raise AssertionError(f"{kind} {number} at change {disk.changes} of the disk, seed {seed}") from error

    disk.before = crash
    with syncing_every(4):
        replica = Replica(disk, durability)
        tell_story(replica)
        assert replica.refused
        replica.journal.close()
    return count


def crash_again(left: CrashingDisk, told: "Replica", kind: Kind, chance: Random) -> Callable[[Writing | None], None]:
    """Return what crashes the opening of what a crash has left, and opens that."""
    return lambda writing: open_again(crashed(left, writing, kind, chance), told, kind)


def crashed(disk: CrashingDisk, writing: Writing | None, kind: Kind, chance: Random) -> CrashingDisk:
    """Return what a crash leaves before a call, or within a write."""
    part = chance.choice((0, chance.randint(0, len(writing[2])), len(writing[2]))) if writing else 0
    left = disk.fork(writing, part)
    return left.cut_power(chance) if kind == "power" else left


@pytest.mark.parametrize("durability", ["disk", "memory"])
def test_a_crash_anywhere_leaves_what_was_durable(durability: Durability) -> None:
    assert crash_everywhere(durability, cuts=1) > 100


@pytest.mark.parametrize("durability", ["disk", "memory"])
def test_without_a_crash_the_disk_is_one_like_others(tmp_path: Path, durability: Durability) -> None:
    disk = new_disk()
    with syncing_every(4):
        for each, directory in ((disk, DATA), (SYSTEM, tmp_path)):
            replica = Replica(each, durability, directory)
            tell_story(replica, full_disk=False)
            assert not replica.refused
            replica.journal.close()
    ours, theirs = (
        disk.contents(DATA),
        {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()},
    )
    assert ours.pop("journal/meta") != theirs.pop("journal/meta"), "they are two replicas"
    assert ours == theirs


# The failures


def fail_everywhere(durability: Durability, code: int, *, every: int = 1, first: int = 1, calls: int = 1) -> int:
    """Have each `every`-th call fail, and those behind it, `calls` in all, or write a part before; count the runs."""
    last, number, runs = 1 << 30, first, 0
    while number <= last:
        disk = new_disk()
        runs += 1
        shortly = runs % 2

        def fail(call: str, now: int, at: int = number, shortly: int = shortly, disk: CrashingDisk = disk) -> int:
            nonlocal last
            last = now if now < at else 1 << 30
            if shortly and now == at:
                return -1 if call == "write" else 0
            if not at + shortly <= now < at + shortly + calls:
                return 0
            return code if code == errno.EIO or call in ("write", "mkdir") else 0

        disk.fail = fail
        try:
            tell_failing_story(disk, durability)
        except (AssertionError, OSError, StorageError, FatalStorageError) as error:
            raise AssertionError(f"errno {code} at call {number}, {calls} times, part {shortly}") from error
        number += every
    return runs


def tell_failing_story(disk: CrashingDisk, durability: Durability) -> None:
    """Tell the story until the process stops, if it does; then the disk is well again, and all is as it was told."""
    with syncing_every(4):
        try:
            replica = Replica(disk, durability)
        except (StorageError, FatalStorageError):
            disk.fail = None
            replica = Replica(disk, durability)
        try:
            tell_story(replica)
            replica.journal.close()
        except OSError:
            assert replica.appending
        except FatalStorageError as error:
            told = str(error)
            assert any(words in told for words in ("to the disk", "cannot be taken back", "cannot take back"))
        disk.fail = None
        kinds: list[Kind] = ["kill", *(["power"] if durability == "disk" else [])]
        for kind in kinds:
            left = disk.fork()
            if kind == "power":
                left.cut_power(Random(disk.changes))
            open_again(left, replica, kind)


@pytest.mark.parametrize("durability", ["disk", "memory"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("calls", [1, 1_000_000])
def test_a_call_that_fails_changes_nothing_or_stops_the_process(durability: Durability, code: int, calls: int) -> None:
    assert fail_everywhere(durability, code, every=5, calls=calls) > 70


def main() -> None:
    """Crash for longer than the tests do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--cuts", type=int, default=4)
    parser.add_argument("--nested", type=int, default=7)
    options = parser.parse_args()
    durabilities: tuple[Durability, ...] = ("disk", "memory")
    for durability in durabilities:
        for code, calls in ((errno.EIO, 1), (errno.EIO, 1 << 30), (errno.ENOSPC, 1), (errno.ENOSPC, 1 << 30)):
            runs = fail_everywhere(durability, code, calls=calls)
            print(f"{durability}: {runs} runs in which {calls} calls failed: {errno.errorcode[code]}", flush=True)
    for seed in range(options.first, options.first + options.seeds):
        for durability in durabilities:
            crashes = crash_everywhere(durability, cuts=options.cuts, nested=options.nested, seed=seed)
            print(f"seed {seed}, {durability}: {crashes} crashes", flush=True)


if __name__ == "__main__":
    main()
