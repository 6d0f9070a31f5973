"""scripts/bench --peers: its arithmetic, and that each client that is measured does lock, at a real server."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.benchmark.peers import packages
from scripts.benchmark.peers.address import Address
from scripts.benchmark.peers.lockers import OPENINGS
from scripts.benchmark.peers.measuring import (
    OURS,
    OURS_STICKY,
    SYSTEMS,
    Turn,
    Workload,
    changes,
    rows_of,
    serve_ours,
    settings_of,
    take_turn,
    turn_of,
)
from scripts.benchmark.peers.servers import PEERS
from scripts.benchmark.processes import stage

_ALONE = Workload("alone", "one client alone", 1, 1)
_CROWD = Workload("crowd", "eight on one lock", 8, 1)
_PAIR = Workload("pair", "two on one lock", 2, 1)
_APART = Workload("apart", "eight on eight locks", 8, 8)

_CLIENTS = 3
_IN_AND_OUT = """
import os, sys
from pathlib import Path
from scripts.benchmark.peers.address import Address
from scripts.benchmark.peers.lockers import OPENINGS

setting, port, directory = sys.argv[1:]
acquire, release = OPENINGS[setting](Address(int(port), Path(directory)), "test")
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    acquire()
    os.close(os.open("inside", os.O_CREAT | os.O_EXCL))  # fails where another is inside
    os.unlink("inside")
    release()
"""


def test_a_hand_off_counts_where_the_owner_changes() -> None:
    assert changes([[1, 2, 7], [3, 6], [5]]) == 4  # owners 0 0 1 2 1 0
    assert changes([[1, 2, 3], []]) == 0


def test_a_turn_counts_hand_offs_on_one_lock_and_all_grants_elsewhere() -> None:
    grants_ns = [[1000, 2000, 7000], [3000, 6000]]
    assert turn_of(grants_ns, _PAIR, 0.5) == Turn(2 / 0.5, [3, 2], 3.0)  # owners 0 0 1 1 0
    assert turn_of(grants_ns, Workload("two apart", "", 2, 2), 0.5).per_s == 5 / 0.5


def test_a_system_is_told_at_its_best_setting_and_round_by_round() -> None:
    turns = {
        "lockstep": [Turn(150.0, [2, 2], 9.0)] * 3,
        "lockstep-unix": [Turn(300.0, [2, 2], 9.0), Turn(1000.0, [2, 2], 9.0), Turn(200.0, [3, 1], 9.0)],
        "redis-lock-100-ms": [Turn(900.0, [1, 1], 9.0), Turn(1.0, [1, 1], 9.0), Turn(1.0, [1, 1], 9.0)],
        "redis-lock-1-ms": [Turn(100.0, [4, 2], 9.0), Turn(500.0, [4, 2], 9.0), Turn(100.0, [4, 2], 9.0)],
    }
    fairness, tcp, redis, redis_fairness = rows_of(_CROWD, [OURS, OURS_STICKY, *SYSTEMS], turns)
    assert (fairness.measured, fairness.wanted, fairness.ok) == (1.0, 0.999, True)
    assert (redis.measured, redis.limit, redis.ratio, redis.wanted, redis.ok) == (300.0, 100.0, 2.0, 1.0, True)
    assert "by Unix socket, against redis-py Lock, sleep 0.001" in redis.compared
    assert (tcp.measured, tcp.limit, tcp.ratio) == (150.0, 300.0, 0.5)
    assert redis_fairness.measured == 1.0
    assert redis_fairness.limit == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("workload", "wanted"),
    [
        (_ALONE, {"redis-py Lock": 1.5, "again, sticky": 30.0}),
        (_PAIR, {"PostgreSQL advisory lock": 0.9}),
        (_CROWD, dict.fromkeys([system.label for system in SYSTEMS], 1.0)),
        (_APART, dict.fromkeys([system.label for system in SYSTEMS], 1.0)),
    ],
)
def test_what_is_wanted(workload: Workload, wanted: dict[str, float]) -> None:
    turns = {
        setting: [Turn(1.0, [1] * workload.clients, 1.0)]
        for system in (OURS, OURS_STICKY, *SYSTEMS)
        for setting in settings_of(system, workload)
    }
    rows = rows_of(workload, [OURS, OURS_STICKY, *SYSTEMS], turns)
    bounds = {
        row.name.removeprefix(f"{workload.name}: "): row.wanted
        for row in rows
        if row.ratio is not None and row.wanted is not None
    }
    assert bounds == wanted


def test_every_setting_of_a_system_can_be_opened() -> None:
    assert {setting for system in (OURS, OURS_STICKY, *SYSTEMS) for setting in system.settings} == {*OPENINGS}
    assert {system.peer for system in SYSTEMS} == {*PEERS}


def bench(tmp_path: Path, *arguments: str, path: str = os.defpath) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "scripts.benchmark", *arguments],
        env={"TMPDIR": str(tmp_path), "PATH": path, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=50,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--peers", "redis,mysql"), "'mysql' is not one of redis, postgres, etcd, zookeeper, nor all"),
        (("--peers", ""), "'' is not one of"),
        (("--peers", "all", "--only", "wire"), "--only"),
    ],
)
def test_wrong_use_is_one_line(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    run = bench(tmp_path, *arguments)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert said in run.stderr


def test_what_is_not_installed_is_told_and_is_no_failure(tmp_path: Path) -> None:
    run = bench(tmp_path, "--peers", "redis,etcd", "--json", path=str(tmp_path))
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    assert (told["rows"], told["not measured"], [*told["not installed"]]) == ([], {}, ["redis", "etcd"])
    first, second = run.stderr.splitlines()
    assert first == "scripts/bench: redis is not installed: no server; on Debian: apt install redis-server"
    assert second.startswith("scripts/bench: etcd is not installed: ")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(params=["lockstep", *PEERS])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[Address, list[str]]]:
    """Give the address of a server and the settings of its clients."""
    peer = request.param
    settings = [
        setting for system in (OURS, OURS_STICKY, *SYSTEMS) if system.peer == peer for setting in system.settings
    ]
    with stage() as place:
        if peer == "lockstep":
            yield serve_ours(place), settings
            return
        program = PEERS[peer].find()
        if program is None:
            pytest.skip(f"{peer} is not installed here: no {PEERS[peer].package}")
        if not packages.are_installed():
            pytest.skip("the peers' Python clients are not installed here: scripts/bench --peers would do so")
        yield PEERS[peer].serve(place, program), settings


def test_only_one_client_at_a_time_has_the_lock(served: tuple[Address, list[str]], tmp_path: Path) -> None:
    address, settings = served
    for setting in settings:
        go_in_and_out(setting, address, tmp_path)


def go_in_and_out(setting: str, address: Address, directory: Path) -> None:
    """Have clients take the lock by turns; fail where two had it at once, or one did not get it."""
    command = [sys.executable, "-P", "-c", _IN_AND_OUT, setting, str(address.port), str(address.directory)]
    clients = [
        subprocess.Popen(
            command,
            cwd=directory,
            env={"PATH": os.defpath, "PYTHONPATH": str(packages.PACKAGES)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(_CLIENTS)
    ]
    try:
        for client in clients:
            assert client.stdout is not None
            assert client.stdout.readline() == "ready\n", setting
        for client in clients:
            assert client.stdin is not None
            client.stdin.write("go\n")
            client.stdin.flush()
        for client in clients:
            client.communicate(timeout=30)
        assert [client.returncode for client in clients] == [0] * _CLIENTS, setting
    finally:
        for client in clients:
            client.kill()
            client.communicate()


def test_a_turn_has_grants_of_all_clients() -> None:
    with stage() as place:
        turn = take_turn("lockstep-unix", serve_ours(place), _PAIR, 0.2)
    assert len(turn.shares) == 2
    assert min(turn.shares) > 0
    assert turn.per_s > 0
