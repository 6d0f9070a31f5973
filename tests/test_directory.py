"""Who may use a data directory, and how the others reach that one."""

import os
import socket
import threading
from pathlib import Path

import pytest

from client import directory
from client.directory import DirectoryLock, Role, connect, listen, take
from common.errors import EXIT_REFUSED, CommandError
from tests.group import until

ROLES: tuple[Role, ...] = ("serve", "run", "one-shot")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody wait for a directory."""
    monkeypatch.setattr(directory, "PATIENCE_S", 0.0)


def held(path: Path, role: Role) -> DirectoryLock:
    lock = take(path, role)
    assert lock is not None
    return lock


class Taking:
    """A thread that takes a directory, and tells whom it has seen there."""

    def __init__(self, path: Path, role: Role) -> None:
        self._path, self._role = path, role
        self.lock: DirectoryLock | None = None
        self._thread = threading.Thread(target=self._take)
        self._thread.start()

    def _take(self) -> None:
        self.lock = take(self._path, self._role)

    @property
    def waits(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> DirectoryLock | None:
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.lock


@pytest.mark.parametrize("role", ROLES)
def test_a_free_directory_is_made_and_taken_again_and_again(tmp_path: Path, role: Role) -> None:
    path = tmp_path / "deep" / "er"
    for _ in range(3):
        held(path, role).release()
    assert [entry.name for entry in path.iterdir()] == ["lock"]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("holder", ["serve", "run"])
def test_nobody_gets_it_from_a_client_that_is_up(tmp_path: Path, holder: Role, role: Role) -> None:
    lock = held(tmp_path, holder)
    assert take(tmp_path, role) is None
    assert take(tmp_path, role) is None
    lock.release()
    held(tmp_path, role).release()


@pytest.mark.parametrize("role", ROLES)
def test_all_wait_for_a_one_shot(tmp_path: Path, role: Role) -> None:
    lock = held(tmp_path, "one-shot")
    waiting = Taking(tmp_path, role)
    lock_file = tmp_path / "lock"
    until(lambda: len(descriptors_of(lock_file)) == 2, "the second has opened the lock")
    assert waiting.waits
    lock.release()
    second = waiting.end()
    assert second is not None
    assert lock_file.read_text() == role
    second.release()


def descriptors_of(path: Path) -> list[str]:
    """Return the descriptors of this process that lead to `path`."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == str(path):
                found.append(name)
        except FileNotFoundError:
            continue  # that of the listing itself
    return found


@pytest.mark.usefixtures("impatient")
def test_a_one_shot_that_stays_is_told(tmp_path: Path) -> None:
    lock = held(tmp_path, "one-shot")
    with pytest.raises(CommandError, match="is in use by another command") as raised:
        take(tmp_path, "serve")
    assert raised.value.code == EXIT_REFUSED
    lock.release()


def test_a_killed_client_leaves_neither_lock_nor_role_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A one-shot has the lock already, and has not yet written its role over that of a client killed before."""
    (tmp_path / "lock").write_text("serve")
    lock = held(tmp_path, "one-shot")
    roles = [b"serve"]
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *how: roles.pop() if roles else pread(*how))
    waiting = Taking(tmp_path, "serve")
    until(lambda: not roles, "the second has read the role left behind")
    lock.release()
    second = waiting.end()
    assert second is not None
    second.release()


@pytest.mark.parametrize(
    ("name", "reason"), [("file", "it is not a directory"), ("file/below", "not a directory"), ("x" * 300, "too long")]
)
def test_what_is_no_directory_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CommandError, match=f"cannot be used .*{reason}.*; choose another --data") as raised:
        take(tmp_path / name, "serve")
    assert raised.value.code == EXIT_REFUSED
    assert connect(tmp_path / name) is None
    assert (tmp_path / "file").read_text() == "mine"


# A start that came to nothing


def started(path: Path) -> None:
    """Make what a client makes in its directory before it joins."""
    (path / "files").mkdir(exist_ok=True)
    (path / "journal").mkdir()
    for name in ("journal/meta", "events.log", "client.log"):
        (path / name).write_text("mine")


@pytest.mark.parametrize("role", ROLES)
def test_what_a_start_has_made_goes_with_it(tmp_path: Path, role: Role) -> None:
    path = tmp_path / "deep" / "er"
    lock = held(path, role)
    started(path)
    lock.release(keep=False)
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_before_stays(tmp_path: Path) -> None:
    for name in ("client.log", "note", "files"):
        (tmp_path / name).mkdir() if name == "files" else (tmp_path / name).write_text("before")
    lock = held(tmp_path, "serve")
    started(tmp_path)
    lock.release(keep=False)
    assert {entry.name for entry in tmp_path.iterdir()} == {"client.log", "note", "files"}


def test_what_came_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "new"
    lock = held(path, "serve")
    started(path)
    (path / "files" / "notes.txt").write_text("somebody's")
    lock.release(keep=False)
    assert [str(entry.relative_to(path)) for entry in path.rglob("*")] == ["files", "files/notes.txt"]


def test_a_directory_with_a_journal_is_left_alone(tmp_path: Path) -> None:
    lock = held(tmp_path, "serve")
    started(tmp_path)
    lock.release()
    held(tmp_path, "serve").release(keep=False)
    assert len(list(tmp_path.iterdir())) == 5


def test_who_waits_for_a_directory_that_goes_makes_it_anew(tmp_path: Path) -> None:
    path = tmp_path / "new"
    lock = held(path, "one-shot")
    waiting = Taking(path, "serve")
    until(lambda: len(descriptors_of(path / "lock")) == 2, "the second has opened the lock")
    started(path)
    lock.release(keep=False)
    second = waiting.end()
    assert second is not None
    assert (path / "lock").read_text() == "serve"
    assert take(path, "serve") is None
    second.release(keep=False)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made_leaves_none_above_it(tmp_path: Path) -> None:
    with pytest.raises(CommandError):
        take(tmp_path / "above" / ("x" * 300), "serve")
    assert list(tmp_path.iterdir()) == []


# The socket


@pytest.fixture(params=["short", "x" * 99 + "/" + "y" * 99, "with a space and ü"])
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Give a directory whose name is short, too long for a socket's path, or odd."""
    path = tmp_path / str(request.param)
    path.mkdir(parents=True)
    return path


def test_who_listens_is_reached(place: Path) -> None:
    with listen(place) as listening:
        caller = connect(place)
        assert caller is not None
        listening.setblocking(True)
        listening.settimeout(20)
        answerer, _ = listening.accept()
        with caller, answerer:
            caller.sendall(b"order")
            assert answerer.recv(100) == b"order"
    assert [entry.name for entry in place.iterdir()] == ["socket"]


def test_nobody_is_reached_where_nobody_listens(place: Path) -> None:
    assert connect(place) is None
    assert connect(place / "not there") is None
    listen(place).close()
    assert (place / "socket").exists(), "as a killed client leaves it"
    assert connect(place) is None
    listen(place).close()


def test_a_file_named_socket_is_no_socket(tmp_path: Path) -> None:
    (tmp_path / "socket").write_text("mine")
    assert connect(tmp_path) is None


def test_many_callers_may_wait(tmp_path: Path) -> None:
    with listen(tmp_path):
        callers = [connect(tmp_path) for _ in range(40)]
        assert all(isinstance(caller, socket.socket) for caller in callers)
        for caller in callers:
            assert caller is not None
            caller.close()
