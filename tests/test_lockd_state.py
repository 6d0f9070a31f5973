"""lockd's state on disk: what was written is there after a restart, all or nothing, and for one lockd alone."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lockd.effects import InSyncChanged, LeasesGiven, ReplicaSeen, SessionEnded, SessionOpened
from lockd.state import State, StateError

INCARNATION = "5" * 16
ALICE = ReplicaSeen("a" * 16, "alice", "alice", 1, "1" * 16)
AGAIN = ReplicaSeen("a" * 16, "alice", "alice", 2, "2" * 16)
OTHER = ReplicaSeen("b" * 16, "alice", "alice#2", 1, "3" * 16)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def state(path: Path) -> Iterator[State]:
    state = State.open(path)
    yield state
    state.close()


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def test_a_new_state_knows_nothing_and_begins_with_epoch_1(state: State) -> None:
    durable = state.begin()
    assert (durable.epoch, durable.last_session, durable.replicas, durable.in_sync) == (1, 0, {}, {})
    assert len(durable.group) == 16


def test_each_start_has_a_larger_epoch_and_the_same_group(path: Path) -> None:
    groups = set()
    for epoch in (1, 2, 3):
        state = State.open(path)
        durable = state.begin()
        assert durable.epoch == epoch
        groups.add(durable.group)
        state.close()
    assert len(groups) == 1


def test_what_was_written_is_there_after_a_restart(path: Path) -> None:
    state = State.open(path)
    state.begin()
    state.write((ALICE, SessionOpened(1, "alice", ALICE.replica, INCARNATION)))
    state.write((InSyncChanged("notes.txt", (OTHER.replica, ALICE.replica)),))
    state.write((OTHER, AGAIN, SessionOpened(2, "bob", "", INCARNATION), SessionEnded(2)))
    state.write((InSyncChanged("plans.txt", (ALICE.replica,)),))
    state.write((InSyncChanged("plans.txt", (ALICE.replica, OTHER.replica)),))
    state.close()
    state = State.open(path)
    durable = state.begin()
    state.close()
    assert durable.epoch == 2
    assert durable.last_session == 2
    assert durable.replicas == {seen.replica: seen for seen in (AGAIN, OTHER)}
    assert durable.in_sync == {
        "notes.txt": (OTHER.replica, ALICE.replica),
        "plans.txt": (ALICE.replica, OTHER.replica),
    }


def test_sessions_outlive_their_lockd_until_they_end(path: Path, state: State) -> None:
    state.begin()
    state.write((SessionOpened(1, "alice", "", INCARNATION), SessionOpened(2, "bob", "", INCARNATION)))
    state.write((SessionEnded(2),))
    state.close()
    again = State.open(path)
    assert again.begin().sessions == {1: SessionOpened(1, "alice", "", INCARNATION)}
    again.close()


def test_of_changes_that_cannot_be_made_none_is(path: Path, state: State) -> None:
    state.begin()
    state.write((SessionOpened(1, "alice", "", INCARNATION),))
    with pytest.raises(StateError, match="cannot be written"):
        state.write((InSyncChanged("notes.txt", (ALICE.replica,)), SessionOpened(1, "bob", "", INCARNATION)))
    state.write((SessionOpened(2, "bob", "", INCARNATION),))
    state.close()
    assert rows(path, "SELECT file FROM in_sync") == []
    assert rows(path, "SELECT session, name FROM sessions ORDER BY session") == [(1, "alice"), (2, "bob")]


def test_one_lockd_at_a_time_has_it(path: Path, state: State) -> None:
    with pytest.raises(StateError, match="is in use by another lockd; choose another --data"):
        State.open(path)
    state.begin()
    with pytest.raises(StateError, match="in use"):
        State.open(path)
    state.close()
    State.open(path).close()


@pytest.mark.parametrize("content", [b"my notes\n" * 100, b"\0" * 4096, b"SQLite format 3\0" + b"?" * 5000])
def test_another_file_is_no_state(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(StateError, match=r"state .*(is damaged, or no lockd.s state|cannot be opened)"):
        State.open(path)
    assert path.read_bytes() == content


def test_a_database_of_another_program_is_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE songs (name TEXT)")
    with pytest.raises(StateError, match=r"no lockd.s state"):
        State.open(path)
    assert rows(path, "SELECT name FROM sqlite_master") == [("songs",)]
    assert rows(path, "PRAGMA journal_mode") == [("delete",)]


def test_a_newer_format_is_refused(path: Path, state: State) -> None:
    state.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE meta SET value = 5 WHERE key = 'format'")
    with pytest.raises(StateError, match="has format 5, this lockd reads 4"):
        State.open(path)


def test_a_state_of_the_format_before_is_taken_on_and_does_not_know_what_leases_were_given(path: Path) -> None:
    state = State.open(path)
    state.begin()
    state.write((SessionOpened(1, "alice", "", INCARNATION),))
    state.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM meta WHERE key IN ('ttl_ns', 'lock_delay_ns')")
        connection.execute("UPDATE meta SET value = 3 WHERE key = 'format'")
    for leases in (LeasesGiven(0, 0), LeasesGiven(3, 2)):
        state = State.open(path)
        durable = state.begin()
        assert (durable.leases, list(durable.sessions)) == (leases, [1])
        state.write((LeasesGiven(3, 2),))
        state.close()
    assert rows(path, "SELECT value FROM meta WHERE key = 'format'") == [(4,)]


def test_a_folder_in_its_place_is_told(path: Path) -> None:
    path.mkdir()
    with pytest.raises(StateError, match="cannot be opened"):
        State.open(path)
