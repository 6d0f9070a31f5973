"""What every test is held to, and the fixtures that more than one file uses."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.group import Group
from tests.test_launch import Launch, Run

# How long an example takes says more about the machine than about the code.
settings.register_profile("lockstep", deadline=None)
settings.load_profile("lockstep")

# A shell starts what it puts into the background deaf to these; our children are not to inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def _in_use() -> dict[str, list[str]]:
    own = f"/proc/{os.getpid()}"
    return {
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "processes": Path(f"{own}/task/{os.getpid()}/children").read_text().split(),
        "descriptors": sorted(os.listdir(f"{own}/fd")),
    }


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """Fail a test that leaves a thread, a process or a descriptor behind."""
    before = _in_use()
    yield
    assert _in_use() == before


@pytest.fixture(scope="session")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Give tests one run in which clients and lockd were killed and stopped."""
    with Launch("--chaos", "--clients=3", "--seed=1", "--run-dir=run", cwd=tmp_path_factory.mktemp("chaos")) as launch:
        return launch.end()


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    """Give a test a group of real processes, and end those that are left."""
    with Group(tmp_path) as group:
        yield group
