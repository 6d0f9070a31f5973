"""scripts/chaos: which faults come, the proxy and the disks that bring them about, and small runs to their verdict."""

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import CommandError
from common.eventlog import parse_time
from scripts.faults import __main__ as command
from scripts.faults import namespaces
from scripts.faults.disks import Limited, Mounted
from scripts.faults.outcomes import Outcomes
from scripts.faults.proxy import Proxy
from scripts.faults.schedule import KINDS, LOCKD, Fault, draw_faults
from scripts.launching.reports import OpBegan, OpEnded
from scripts.picture.write import read_picture
from scripts.verdict.load import open_run

COMMAND = (sys.executable, "-P", "-m", "scripts.faults")
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LOCKSTEP"))}
CLIENTS = [f"client-{number}" for number in range(4)]
WITHIN_S = 50.0


# Which faults


def drawn(seed: str, number: int = 300, **more: bool) -> list[Fault]:
    faults = draw_faults(seed, CLIENTS, KINDS, 1.0, disks=[CLIENTS[3], LOCKD], **more)
    return list(itertools.islice(faults, number))


def test_a_seed_draws_the_same_faults_again() -> None:
    assert drawn("1") == drawn("1") != drawn("2")


def test_every_kind_comes_as_often_as_any_other() -> None:
    counts = Counter(fault.kind for fault in drawn("1", 10 * len(KINDS)))
    assert counts == dict.fromkeys(KINDS, 10)
    assert {fault.kind for fault in drawn("1", len(KINDS))} == set(KINDS)


def test_faults_come_in_order_few_at_once_and_one_at_a_victim() -> None:
    faults = drawn("1", peers=True)
    for before, fault in itertools.pairwise(faults):
        assert before.begin_s <= fault.begin_s
    for fault in faults:
        together = [other for other in faults if other.begin_s <= fault.begin_s < other.end_s]
        assert len(together) <= 3
        assert len({other.victim for other in together}) == len(together)
    assert faults[99].begin_s < 5 * 60, "a hundred in five minutes"


def test_faults_are_at_whom_they_can_be() -> None:
    for fault in drawn("1", peers=True):
        assert (fault.victim == LOCKD) == fault.kind.startswith("lockd-")
        assert fault.kind != "disk" or fault.victim == CLIENTS[3]
        assert bool(fault.links) == (fault.kind in ("partition", "one-way", "delay"))
        assert all(fault.victim in link and link[0] != link[1] for link in fault.links)
        if fault.kind == "one-way":
            assert not {link[::-1] for link in fault.links} & set(fault.links)
        assert fault.victim in str(fault)
        assert fault.kind != "pause" or fault.lasts_s > 1.0, "longer than the lease"
        assert fault.aim_s is None or fault.kind in ("kill", "pause")
        assert not fault.wakes_late or fault.kind == "pause"
    assert any(LOCKD not in link for fault in drawn("1", peers=True) for link in fault.links)
    assert all(LOCKD in link for fault in drawn("1") for link in fault.links), "without peers"


# What brings them about


class Echo:
    """A server that says again what it hears, in a thread; and a proxy before it, which `until` gives time."""

    def __init__(self) -> None:
        """Open both."""
        self._server = socket.create_server(("127.0.0.1", 0))
        host, port = self._server.getsockname()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self.proxy = Proxy()
        self.endpoint = self.proxy.open("a")
        self.proxy.lead_to(f"tcp://{host}:{port}")

    def _serve(self) -> None:
        served: list[tuple[socket.socket, threading.Thread]] = []
        while True:
            connection, _ = self._server.accept()
            if connection.recv(1) == b"!":
                break
            thread = threading.Thread(target=self._echo, args=(connection,))
            thread.start()
            served.append((connection, thread))
        connection.close()
        for connection, thread in served:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()
            connection.close()

    def _echo(self, connection: socket.socket) -> None:
        try:
            while data := connection.recv(100):
                connection.sendall(data)
        except OSError:
            return

    def connect(self) -> socket.socket:
        """Return a connection through the proxy."""
        host, port = self.endpoint.removeprefix("tcp://").split(":")
        connection = socket.create_connection((host, int(port)))
        connection.sendall(b"-")
        connection.settimeout(0.01)
        return connection

    def hear(self, connection: socket.socket, seconds: float) -> bytes:
        """Return what comes back within this time, b"" if nothing does; raise OSError where it broke."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.proxy.work()
            try:
                heard = connection.recv(100)
            except TimeoutError:
                continue
            if not heard:
                raise ConnectionResetError
            return heard
        return b""

    def close(self) -> None:
        """End the server and the proxy."""
        self.proxy.close()
        with socket.create_connection(self._server.getsockname()) as last:
            last.sendall(b"!")
            self._thread.join()
        self._server.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.close()


@pytest.mark.parametrize("up", [True, False])
def test_the_proxy_holds_back_what_is_blocked_and_gives_it_when_the_way_is_free(echo: Echo, up: bool) -> None:
    with echo.connect() as connection:
        connection.sendall(b"one")
        assert echo.hear(connection, 5) == b"one"
        echo.proxy.block("a", up=up, blocked=True)
        connection.sendall(b"two")
        assert echo.hear(connection, 0.1) == b""
        echo.proxy.block("a", up=up, blocked=False)
        assert echo.hear(connection, 5) == b"two"


def test_the_proxy_delays(echo: Echo) -> None:
    with echo.connect() as connection:
        echo.hear(connection, 0.05)
        echo.proxy.delay("a", 0.15)
        began = time.monotonic()
        connection.sendall(b"late")
        assert echo.hear(connection, 5) == b"late"
        assert time.monotonic() - began >= 0.3, "both ways"


def test_the_proxy_breaks_connections_and_takes_new_ones(echo: Echo) -> None:
    with echo.connect() as connection:
        connection.sendall(b"one")
        assert echo.hear(connection, 5) == b"one"
        echo.proxy.reset("a")
        with pytest.raises(ConnectionResetError):
            echo.hear(connection, 5)
    with echo.connect() as connection:
        connection.sendall(b"two")
        assert echo.hear(connection, 5) == b"two"
    echo.proxy.lead_to("tcp://127.0.0.1:1")
    with echo.connect() as connection, pytest.raises(ConnectionResetError):
        echo.hear(connection, 5)


def test_a_limited_process_cannot_write_until_it_is_freed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "events.log").write_bytes(b"12345678")
    code = (
        "import sys; f = open('events.log', 'ab', buffering=0)\n"
        "for line in sys.stdin:\n"
        "    try: print(f.write(b'x'), flush=True)\n"
        "    except OSError as error: print(error.strerror, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path / "a", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def said() -> str:
        assert process.stdin and process.stdout
        process.stdin.write("\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    with process:
        assert said() == "1"
        disks = Limited(tmp_path, ["a"])
        disks.fill("a", process.pid)
        assert said() == os.strerror(27)
        disks.free("a", process.pid)
        assert said() == "1"
        disks.fill("a", None)
        disks.close()
        process.communicate()


def test_a_mounted_disk_is_full_and_leaves_its_files_behind(tmp_path: Path) -> None:
    try:
        disks = Mounted(tmp_path, ["a"])
    except OSError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    try:
        (tmp_path / "a" / "kept").write_bytes(b"kept")
        disks.fill("a", None)
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "a" / "lost").write_bytes(bytes(100_000))
        disks.free("a", None)
        (tmp_path / "a" / "more").write_bytes(bytes(100_000))
    finally:
        disks.close()
    assert (tmp_path / "a" / "kept").read_bytes() == b"kept"
    assert len((tmp_path / "a" / "more").read_bytes()) == 100_000
    assert not os.path.ismount(tmp_path / "a")


def test_what_was_told_is_on_record_as_the_verdict_reads_it(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "client-0").mkdir()
    (tmp_path / "client-0" / "events.log").touch()
    outcomes = Outcomes(tmp_path)
    outcomes.ended("client-0", OpEnded("client-0:1", "write", "f", 1, "ok", "", 1.0, 2, "x", "0" * 12, 5, 7))
    outcomes.ended("client-0", OpEnded("", "read", "f", 1, "failed", "no", 1.0, 2, "x", "0" * 12, 8, 9))
    outcomes.cut_off("client-0", OpBegan("update", "f", 10))
    outcomes.close()
    assert outcomes.counts == {"ok": 1, "failed": 1, "unknown": 1}
    with open_run([tmp_path]) as evidence:
        assert evidence.told is not None
        told = [(one.id, one.outcome, one.seq, one.began_us, one.ended_us) for one in evidence.told]
    assert told == [("client-0:1", "ok", 1, 5, 7), ("", "failed", 0, 8, 9), ("", "unknown", 0, 10, None)]


# Runs


def run_chaos(directory: Path, *arguments: str) -> tuple[int, str]:
    """Do a run in `directory`/run; return its exit code, and what it said."""
    done = subprocess.run(
        [*COMMAND, "--run-dir", "run", *arguments],
        cwd=directory,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert processes_of(directory) == []
    return done.returncode, done.stdout


def processes_of(directory: Path) -> list[str]:
    """Return the command lines of all processes that name the directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode("utf-8", "replace")
            where = os.readlink(path.with_name("cwd"))
        except OSError:
            continue
        if where == str(directory) and "--data=" in line:
            found.append(line)
    return found


def counts_in(said: str) -> dict[str, tuple[int, int]]:
    """Return how many faults of each kind were injected, and survived."""
    words = [line.split() for line in said.splitlines()]
    return {line[0]: (int(line[1]), int(line[2])) for line in words if line and line[0] in KINDS and len(line) == 3}


def test_a_group_survives_every_kind_that_needs_no_rights(tmp_path: Path) -> None:
    code, said = run_chaos(
        tmp_path,
        "--clients=3",
        "--minutes=0.17",
        "--ttl=400ms",
        "--seed=7",
        "--network=loopback",
        "--file=a",
        "--file=b",
    )
    assert code == 0, said
    counts = counts_in(said)
    assert set(counts) == set(KINDS), said
    assert all(injected == survived for injected, survived in counts.values())
    assert "✘" not in said
    assert "✔ outcomes" in said
    assert said.count("  · ") == 1, "it lasts little longer than from one status to the next"
    told = [json.loads(line) for line in (tmp_path / "run" / "outcomes.jsonl").read_text().splitlines()]
    assert f"{sum(line['outcome'] == 'ok' for line in told)} ok" in said
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["finished"] and not run["stopped"] and run["faults"] == list(KINDS)
    faults = [json.loads(line) for line in (tmp_path / "run" / "faults.jsonl").read_text().splitlines()]
    assert len(faults) == sum(injected for injected, _ in counts.values())
    assert all(parse_time(fault["begin"]) <= parse_time(fault["end"]) for fault in faults)
    picture = read_picture([tmp_path / "run"])
    drawn = [(picture.lanes[span.lane], span.text) for span in picture.spans if span.kind == "fault"]
    assert sorted(drawn) == sorted((fault["victim"], fault["text"]) for fault in faults)


def test_one_of_a_kind_is_counted_as_one(tmp_path: Path) -> None:
    code, said = run_chaos(tmp_path, "--clients=1", "--ops=1", "--faults=kill", "--seed=1", "--network=loopback")
    assert code == 0, said
    assert said.startswith("1 client, 1 op on notes.txt, ")


@pytest.mark.skipif(not namespaces.are_here(), reason="network namespaces need root and the command ip")
def test_a_group_survives_being_cut_apart(tmp_path: Path) -> None:
    arguments = ("--clients=3", "--ops=120", "--ttl=400ms", "--seed=7", "--faults=partition,one-way")
    code, said = run_chaos(tmp_path, *arguments, "--network=namespaces")
    assert code == 0, said
    assert "120 of 120 ops" in said
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    pids = re.findall(r"^lockstep-([0-9]+)", listed, re.MULTILINE)
    assert all(Path("/proc", pid).exists() for pid in pids), "those of another run alone"


def test_ctrl_c_leaves_a_readable_run_and_no_process(tmp_path: Path) -> None:
    arguments = ("--run-dir=run", "--clients=3", "--minutes=5", "--seed=1", "--network=loopback", "--faults=pause,kill")
    with subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        heard = []
        for line in process.stdout:
            heard.append(line)
            if "is stopped for" in line:
                break
        process.send_signal(signal.SIGINT)
        heard += process.stdout.readlines()
        assert process.wait(WITHIN_S) == 130
    said = "".join(heard)
    assert "✔ complete" in said and "stopped by the user" in said, said
    assert "✘" not in said
    assert processes_of(tmp_path) == []
    assert json.loads((tmp_path / "run" / "run.json").read_text())["stopped"] is True


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--faults=kill,earthquake"], "--faults kill,earthquake: 'earthquake' is none of kill, pause, "),
        (["--ops=5", "--minutes=1"], "--ops and --minutes: one of the two"),
        (["--minutes=soon"], "--minutes soon: a number is wanted"),
        (["--minutes=0"], "--minutes 0: more than 0"),
        (["--ttl=1h"], "--ttl 1h: it is 100 ms to 60 s here"),
        (["--ttl=x"], "--ttl x: a duration reads like"),
        (["--network=tin cans"], "--network tin cans: it is auto, loopback or namespaces"),
        (["--clients=0"], "--clients 0: at least 1 client is needed"),
        (["--nonsense"], "see scripts/chaos --help"),
    ],
)
def test_wrong_use_is_one_line_before_anything_starts(arguments: list[str], problem: str) -> None:
    with pytest.raises(CommandError) as raised:
        command.read_wanted(arguments)
    assert raised.value.code == 2
    assert problem in str(raised.value)
