"""--metrics of lockd and clients: what a scrape tells, hostile file names, bad addresses; and README's alerts."""

import re
import select
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import zmq
from prometheus_client.parser import text_string_to_metric_families

from client.disk import Timed
from common.errors import EXIT_OK, EXIT_REFUSED, EXIT_WRONG_USE
from common.grantlog import parse_grant
from common.histogram import Histogram
from common.messages import Fenced, FromReplica, Push
from common.metrics import CONNECTIONS_MAX, histogram
from common.records import EMPTY
from common.sockets import caller
from common.tokens import make_token
from common.wire import decode, encode
from tests.group import Child, Group, refusal, until

HOSTILE: Final = '\u202e<script>alert("1\\2")</script>{x="y"} 3'
README: Final = Path(__file__).resolve().parent.parent / "README.md"
NOWHERE: Final = ("127.0.0.1:0",)

Labels = frozenset[tuple[str, str]]


class Scrape:
    """All samples of one scrape."""

    def __init__(self, child: Child) -> None:
        """Scrape a process whose ready line tells where."""
        match = re.search(r", metrics on (http://\S+/metrics)\n", child.out.decode())
        assert match is not None, child.out
        with urlopen(match[1], timeout=25) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=")
            self.text: str = answer.read().decode()
        self.families = list(text_string_to_metric_families(self.text))
        self.samples: dict[str, dict[Labels, float]] = {}
        for family in self.families:
            for sample in family.samples:
                self.samples.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value

    def one(self, name: str, **labels: str) -> float:
        """Return the value of one sample."""
        return self.samples[name][frozenset(labels.items())]


def serving(group: Group, data: str) -> Child:
    return group.serving(data, "--metrics", *NOWHERE)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Group, Child, Child]]:
    """Give tests one group that has done four ops: lockd and a client with metrics, and one without."""
    with Group(tmp_path_factory.mktemp("up")) as group:
        lockd = group.lockd("--metrics", *NOWHERE)
        client = serving(group, "a")
        group.serving("b")
        group.op("a", "write", "x")
        group.op("b", "write", "y", file=HOSTILE)
        group.op("a", "read")
        group.op("b", "read")
        yield group, lockd, client


def test_lockd_tells_its_figures(up: tuple[Group, Child, Child]) -> None:
    group, lockd, _ = up
    scrape = Scrape(lockd)
    assert scrape.one("lockstep_lockd_grants_total", mode="exclusive") == 2
    assert scrape.one("lockstep_lockd_grants_total", mode="shared") == 1
    assert scrape.one("lockstep_lockd_epoch") == 1
    assert scrape.one("lockstep_lockd_sessions", replica="yes") == 2
    assert scrape.one("lockstep_lockd_in_sync_live_min") == 2
    assert scrape.one("lockstep_lockd_op_seconds_count") == 3
    assert scrape.one("lockstep_lockd_kept_ops_total") == 1, "a read under the lock of the write before"
    assert scrape.one("lockstep_lockd_recalls_total") == 1, "and then another wanted it"
    assert scrape.one("lockstep_lockd_persist_seconds_count") >= 4, "two sessions, two files"
    assert scrape.one("lockstep_lockd_received_bytes_total") > 0
    until(lambda: group.path("lockd", "grants.log").read_text().count("event=grant") == 3, "the lines are written")
    grants = [line for line in group.path("lockd", "grants.log").read_text().splitlines() if "event=grant" in line]
    waited_ms = [float(dict(parse_grant(line).more)["waited_ms"]) for line in grants]
    assert scrape.one("lockstep_lockd_wait_seconds_sum") == pytest.approx(sum(waited_ms) / 1e3, abs=1e-5)


def test_a_client_tells_its_figures(up: tuple[Group, Child, Child]) -> None:
    group, _, client = up
    scrape = Scrape(client)
    assert scrape.one("lockstep_client_ops_total", verb="write", outcome="ok") == 1
    assert scrape.one("lockstep_client_ops_total", verb="read", outcome="ok") == 1
    assert scrape.one("lockstep_client_op_seconds_count", verb="read") == 1
    assert scrape.one("lockstep_client_info", host="a") == 1
    assert scrape.one("lockstep_client_joined") == 1
    assert (scrape.one("lockstep_client_files"), scrape.one("lockstep_client_versions")) == (2, 2)
    assert scrape.one("lockstep_client_pushes_sent_total") == 1
    assert scrape.one("lockstep_client_pushes_taken_in_total") == 1
    assert scrape.one("lockstep_client_pushed_bytes_total") > 50
    assert scrape.one("lockstep_client_taken_in_bytes_total") > 50
    assert scrape.one("lockstep_client_sync_seconds_count") > 0
    lines = group.path("a", "events.log").read_text().splitlines()
    assert scrape.one("lockstep_client_log_lines_total") == len(lines) - 2, "but for the two of the header"


def test_a_hostile_file_name_is_one_label_and_nothing_else(up: tuple[Group, Child, Child]) -> None:
    _, lockd, client = up
    assert Scrape(lockd).one("lockstep_lockd_in_sync_replicas", file=HOSTILE, standing="live") == 2
    scrape = Scrape(client)
    assert scrape.one("lockstep_client_version", file=HOSTILE) == 1
    assert len(scrape.samples["lockstep_client_version"]) == 2


def test_names_and_units_are_as_prometheus_wants_them(up: tuple[Group, Child, Child]) -> None:
    for child, prefix in zip(up[1:], ("lockstep_lockd_", "lockstep_client_"), strict=True):
        ours = [family for family in Scrape(child).families if family.name.startswith("lockstep_")]
        assert len(ours) > 20
        for family in ours:
            assert family.name.startswith(prefix)
            assert family.documentation.endswith((".", "0.", "1."))
            if family.type == "histogram":
                assert family.name.endswith("_seconds")


def test_histograms_count_upwards_to_all(up: tuple[Group, Child, Child]) -> None:
    scrape = Scrape(up[1])
    buckets = sorted(
        (float(dict(key)["le"]), value) for key, value in scrape.samples["lockstep_lockd_op_seconds_bucket"].items()
    )
    values = [value for _, value in buckets]
    assert values == sorted(values)
    assert buckets[-1] == (float("inf"), 3)


def test_a_histogram_s_buckets_hold_what_is_not_longer_than_they_say() -> None:
    durations = Histogram()
    for duration_us in (1, 15, 16, 17, 1000, 100_000_000):
        durations.add(duration_us)
    samples = {sample.labels.get("le"): sample.value for sample in histogram("x_seconds", "", durations).samples}
    assert (samples["1.6e-05"], samples["3.2e-05"], samples["0.001024"]) == (2, 4, 5)
    assert (samples["67.108864"], samples["+Inf"], samples[None]) == (5, 6, durations.sum_us / 1e6)


def test_syncs_are_timed(tmp_path: Path) -> None:
    syncs = Histogram()
    disk = Timed(syncs)
    with (tmp_path / "x").open("w") as file:
        disk.fsync(file.fileno())
        disk.fdatasync(file.fileno())
    assert sum(syncs.counts) == 2


def test_a_catch_up_and_a_drop_are_counted(group: Group) -> None:
    lockd = group.lockd("--metrics", *NOWHERE, "--ttl", "1s")
    group.serving("a")
    group.op("a", "write", "x")
    learner = serving(group, "b")
    until(lambda: Scrape(learner).one("lockstep_client_catch_ups_finished_total") == 1, "b has caught up")
    scrape = Scrape(learner)
    assert scrape.one("lockstep_client_catch_ups_begun_total") == 1
    assert scrape.one("lockstep_client_fetched_ops_total") == 1
    assert scrape.one("lockstep_client_learning_files") == 0
    assert Scrape(lockd).one("lockstep_lockd_admissions_total") == 1
    learner.stop()
    group.op("a", "write", "y")
    scrape = Scrape(lockd)
    assert scrape.one("lockstep_lockd_drops_total") == 1
    assert scrape.one("lockstep_lockd_sessions_ended_total", reason="goodbye") == 1


def test_pushes_refused_as_fenced_and_malformed_messages_are_counted(group: Group) -> None:
    lockd = group.lockd("--metrics", *NOWHERE)
    client = serving(group, "a")
    group.op("a", "write", "x")
    seen = group.welcome()
    context = zmq.Context[zmq.Socket[bytes]]()
    try:
        peer = caller(context, b"0" * 32)
        peer.connect(seen.view[0].endpoint)
        peer.send(encode(Push(seen.group, "notes.txt", make_token(1, 0), EMPTY, (), {})))
        assert peer.poll(25_000)
        answer: FromReplica = decode(peer.recv(), FromReplica)  # type: ignore[arg-type]
        assert isinstance(answer, Fenced)
        peer.send(b"nonsense")
        stranger = caller(context, b"1" * 32)
        stranger.connect(group.endpoint)
        stranger.send(b"nonsense")
        until(lambda: Scrape(client).one("lockstep_client_malformed_messages_total") == 1, "the client has it")
        until(lambda: Scrape(lockd).one("lockstep_lockd_malformed_messages_total") == 1, "lockd has it")
    finally:
        context.destroy(linger=0)
    scrape = Scrape(client)
    assert scrape.one("lockstep_client_pushes_fenced_total", whose="theirs") == 1
    assert scrape.one("lockstep_client_pushes_fenced_total", whose="ours") == 0


def test_a_client_that_stood_still_has_lost_its_session(group: Group) -> None:
    lockd = group.lockd("--metrics", *NOWHERE, "--ttl", "500ms")
    client = serving(group, "a")
    client.send(signal.SIGSTOP)
    until(lambda: Scrape(lockd).one("lockstep_lockd_sessions_ended_total", reason="lease") == 1, "its lease runs out")
    client.send(signal.SIGCONT)
    until(lambda: Scrape(client).one("lockstep_client_sessions_lost_total") == 1, "it knows")
    until(lambda: Scrape(client).one("lockstep_client_joined") == 1, "it is back")


def test_a_file_that_only_absent_clients_have_is_told(group: Group) -> None:
    lockd = group.lockd("--metrics", *NOWHERE)
    alone = group.serving("a")
    group.op("a", "write", "x")
    assert Scrape(lockd).one("lockstep_lockd_files_absent") == 0
    alone.stop()
    until(lambda: Scrape(lockd).one("lockstep_lockd_files_absent") == 1, "a is gone")
    assert Scrape(lockd).one("lockstep_lockd_in_sync_live_min") == 0


def test_scrapes_do_no_harm_to_a_group_at_work(group: Group) -> None:
    lockd = group.lockd("--metrics", *NOWHERE)
    working = group.start(
        "client", "run", "--data", "a", "--ops", "300", "--delay", "0..0", "--metrics", *NOWHERE,
        *(word for number in range(40) for word in ("--file", f"f{number}")),
    )  # fmt: skip
    working.says("metrics on")
    scrapes, failures = 0, []

    def scrape() -> None:
        nonlocal scrapes
        try:
            while b"done: " not in working.out and working.running:
                Scrape(lockd)
                scrapes += 1
        except (HTTPError, ValueError) as error:
            failures.append(error)

    reader = threading.Thread(target=scrape)
    reader.start()
    done = working.end()
    reader.join()
    assert (done.code, done.err, failures) == (EXIT_OK, "", [])
    assert scrapes > 3
    last = Scrape(lockd)
    assert last.one("lockstep_lockd_op_seconds_count") + last.one("lockstep_lockd_kept_ops_total") == 300
    stopped = lockd.stop()
    assert (stopped.code, stopped.err) == (EXIT_OK, "")


def test_without_the_option_nothing_is_served_or_said(group: Group) -> None:
    assert "metrics" not in group.lockd().ready()


def test_a_reader_that_goes_away_is_let_go(group: Group) -> None:
    lockd = group.lockd("--metrics", *NOWHERE)
    match = re.search(r"http://127.0.0.1:(\d+)/", lockd.out.decode())
    assert match is not None
    for _ in range(5):
        for _ in range(4):  # no more than the server lets wait for it; others would come back a second later
            with socket.create_connection(("127.0.0.1", int(match[1]))) as reader:
                reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # its end is a reset
                reader.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        Scrape(lockd)
    done = lockd.stop()
    assert (done.code, done.err) == (EXIT_OK, "")


def test_idle_readers_never_take_what_clients_need(group: Group) -> None:
    """Connections beyond a bound are closed at once, and as soon as one has gone there is room again."""
    lockd = group.lockd("--metrics", *NOWHERE)
    match = re.search(r"http://127.0.0.1:(\d+)/", lockd.out.decode())
    assert match is not None
    address = "127.0.0.1", int(match[1])
    held: list[socket.socket] = []
    try:
        held += [socket.create_connection(address, 25) for _ in range(CONNECTIONS_MAX + 1)]
        closed, _, _ = select.select(held, [], [], 25)
        assert [one.recv(1) for one in closed] == [b""], "one too many is closed, before the others are for idleness"
        group.serving("a")
    finally:
        for one in held:
            one.close()
    until(lambda: _is_served(address), "there is room again")


def _is_served(address: tuple[str, int]) -> bool:
    with socket.create_connection(address, 25) as reader:
        reader.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        try:
            return reader.recv(15).startswith(b"HTTP/1.0 200")
        except ConnectionError:
            return False


def test_an_address_in_use_is_refused_before_anything_is_made(group: Group) -> None:
    group.lockd()
    made = sorted(path.name for path in group.path().iterdir())
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        for program, words in (
            ("lockd", ["--data", "x", "--bind", "tcp://127.0.0.1:*"]),
            ("client", ["serve", "--data", "x"]),
            ("client", ["run", "--data", "x"]),
        ):
            done = group.start(program, *words, "--metrics", address).end()
            assert done.code == EXIT_REFUSED
            assert refusal(done, program) == (
                f"cannot serve metrics on {address} (Address already in use); choose another --metrics"
            )
    assert sorted(path.name for path in group.path().iterdir()) == made


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("9464", "an address reads HOST:PORT, as in 127.0.0.1:9464"),
        (":9464", "an address reads HOST:PORT, as in 127.0.0.1:9464"),
        ("::1:9464", "an address reads HOST:PORT, as in 127.0.0.1:9464"),
        ("here:", "'' is no port; use 1 to 65535, or 0 for a free one"),
        ("here:65536", "'65536' is no port; use 1 to 65535, or 0 for a free one"),
        ("here:00099999", "'00099999' is no port; use 1 to 65535, or 0 for a free one"),
        ("here:http", "'http' is no port; use 1 to 65535, or 0 for a free one"),
    ],
)
def test_a_malformed_address_is_wrong_use(group: Group, address: str, problem: str) -> None:
    for program, words in (("lockd", ["--data", "x"]), ("client", ["serve", "--data", "x"])):
        done = group.start(program, *words, "--metrics", address).end()
        assert (done.code, refusal(done, program)) == (EXIT_WRONG_USE, f"--metrics {address}: {problem}")
    assert [path.name for path in group.path().iterdir()] == ["outputs"]


# README


def section() -> str:
    """Return README's section on metrics."""
    (found,) = re.findall(r"^## Metrics and alerts\n(.*?)^## ", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return str(found)


def rules() -> list[dict[str, str]]:
    """Return README's alerts, each with its keys and values."""
    (block,) = re.findall(r"```yaml\n(.*?)```", section(), re.DOTALL)
    return [
        dict(re.findall(r"^ *(\w+): *(.+)$", f"alert: {rule}", re.MULTILINE)) for rule in block.split("- alert: ")[1:]
    ]


def test_readme_has_the_five_alerts() -> None:
    assert len(rules()) == 5
    for rule in rules():
        assert rule.keys() >= {"alert", "expr", "for", "severity", "summary", "what"}, rule


def test_readme_s_alerts_use_metrics_and_labels_that_there_are(up: tuple[Group, Child, Child]) -> None:
    samples = Scrape(up[1]).samples | Scrape(up[2]).samples
    for rule in rules():
        used = re.findall(r"(lockstep_\w+)(?:\{([^}]*)\})?", rule["expr"])
        assert used, rule
        for name, matchers in used:
            assert name in samples, f"{rule['alert']} uses {name}"
            for label, value in re.findall(r'(\w+)(?:=|!=|=~|!~)"([^"]*)"', matchers):
                values = {dict(key).get(label) for key in samples[name]}
                assert value in values, f"{rule['alert']}: {name} has no {label} {value!r}, but {values}"


def test_readme_tells_of_every_metric_and_of_no_other(up: tuple[Group, Child, Child]) -> None:
    families = [*Scrape(up[1]).families, *Scrape(up[2]).families]
    ours = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in families
        if family.name.startswith("lockstep_")
    }
    told = set(re.findall(r"^\| `(lockstep_\w+)", section(), re.MULTILINE))
    assert told == ours
