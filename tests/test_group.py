"""Whole groups of real processes: by hand as in the README, with odd names, bad input, signals and lost partners."""

import json
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import zmq

from client.cli import main
from client.directory import take
from client.effects import Persist
from client.journal import FatalStorageError, Journal
from client.operator import inspect
from common.errors import EXIT_CRASHED, EXIT_OK, EXIT_REFUSED, EXIT_UNKNOWN
from common.eventlog import HEADER, Event, parse_event
from common.limits import FRAME_BYTES_MAX
from common.messages import Ack, Hello, Ping, Push, Release, ReplicaHello, Report, Welcome
from common.names import is_host
from common.records import EMPTY, Version
from common.wire import encode
from scripts.checker import as_lines, check
from tests.group import WITHIN_S, Child, Group, refusal, until

ENDINGS = (signal.SIGTERM, signal.SIGINT)
NAMES = ("a", "b", "c")


def events_of(group: Group, data: str) -> list[Event]:
    """Return the lines of a client's event log, as ShiViz's parser takes them."""
    text = group.path(data, "events.log").read_text("utf-8")
    assert text.startswith(HEADER)
    expression = re.compile(HEADER.partition("\n")[0].replace("(?<", "(?P<"))
    lines = text.removeprefix(HEADER).splitlines()
    for line in lines:
        match = expression.fullmatch(line)
        assert match is not None
        assert is_host(match["host"])
        assert match["host"] in json.loads(match["clock"])
    return [parse_event(line) for line in lines]


def own_counts(events: list[Event]) -> list[int]:
    return [event.clock[event.host] for event in events]


def content_of(group: Group, data: str, file: str = "notes.txt") -> bytes:
    return group.path(data, "files", file).read_bytes()


def noted(group: Group, data: str, text: str, times: int = 1) -> None:
    """Wait until a client, or lockd, has noted `text` in its log so many times."""
    log = group.path(data, "lockd.log" if data == "lockd" else "client.log")
    until(lambda: log.exists() and log.read_text("utf-8").count(text) >= times, f"{data} notes {text!r}")


def passes_the_check(group: Group, *clients: str) -> None:
    findings = check([group.path(name) for name in (*clients, "lockd")])
    assert all(finding.ok for finding in findings), as_lines(findings)


# By hand


def test_three_replicas_by_hand(group: Group) -> None:
    """Lockd in one terminal, three clients in others: every replica is the same plain text, every state is kept."""
    lockd = group.lockd()
    clients = [group.serving(name) for name in NAMES]
    assert [client.ready() for client in clients] == [f"ready {name} on {name}, durability disk" for name in NAMES]
    states, now = [b""], b""
    for number, (verb, text) in enumerate([("write", "one"), ("update", "1"), ("write", "two ü"), ("update", "2")]):
        data = NAMES[number % 3]
        out = group.ok(verb, "notes.txt", text, "--data", data).decode()
        now = now + f"{text}\n".encode() if verb == "write" else now[:-1] + f" --- {text}\n".encode()
        states.append(now)
        assert re.fullmatch(rf"ok notes\.txt@{len(states) - 1} [0-9a-f]{{12}} id={data}:\d+\n", out)
        assert [content_of(group, name) for name in NAMES] == [now] * 3
        assert group.op(NAMES[(number + 1) % 3], "read").content == now
    assert group.ok("restore", "notes.txt@3", "--data", "b").startswith(b"ok notes.txt@5 ")
    states.append(states[3])
    for name in NAMES:
        assert content_of(group, name) == states[3]
        assert group.ok("read", "notes.txt", "--data", name) == states[3]
    assert group.ok("show", "notes.txt@2", "--data", "a") == states[2]
    assert group.ok("diff", "notes.txt@4", "notes.txt@3", "--data", "b").endswith(
        b"-two \xc3\xbc --- 2\n+two \xc3\xbc\n"
    )
    assert len(json.loads(group.ok("snapshots", "notes.txt", "--data", "c", "--json"))) == len(states) - 1
    for process in (*clients, lockd):
        assert process.stop().code == EXIT_OK
    the_past_is_told(group, states)
    assert [content_of(group, name) for name in NAMES] == [states[3]] * 3
    passes_the_check(group, *NAMES)


def the_past_is_told(group: Group, states: list[bytes]) -> None:
    """Hold `show`, `diff` and `snapshots` on the three replicas against the states that there were."""
    for seq, state in enumerate(states):
        assert group.ok("show", f"notes.txt@{seq}", "--data", "abc"[seq % 3]) == state
    assert group.ok("diff", "notes.txt@1", "notes.txt@2", "--data", "c") == (
        b"--- notes.txt@1\n+++ notes.txt@2\n@@ -1 +1 @@\n-one\n+one --- 1\n"
    )
    assert group.ok("diff", "notes.txt@3", f"notes.txt@{len(states) - 1}", "--data", "c") == b""
    lines = group.ok("snapshots", "notes.txt", "--data", "a").decode().splitlines()
    listed = json.loads(group.ok("snapshots", "notes.txt", "--data", "b", "--json"))
    assert [line.split()[0] for line in lines] == [f"notes.txt@{seq}" for seq in range(1, len(states))]
    assert [item["seq"] for item in listed] == list(range(1, len(states)))
    assert [item["bytes"] for item in listed] == [len(state) for state in states[1:]]
    assert [item["verb"] for item in listed[-2:]] == ["update", "restore"]
    assert listed[-1]["of"] == 3
    assert listed[-1]["hash"].startswith(lines[-1].split()[2])


def test_one_shots_with_a_directory_of_their_own(group: Group) -> None:
    """They join as learners, catch up, do their op and leave, the first time and every other."""
    group.lockd()
    group.serving("a")
    group.op("a", "write", "one")
    group.op("a", "write", "two")
    assert group.ok("write", "notes.txt", "three", "--data", "own").endswith(b" id=own:1\n")
    assert content_of(group, "own") == content_of(group, "a") == b"one\ntwo\nthree\n"
    group.op("a", "write", "four")
    assert content_of(group, "own") == b"one\ntwo\nthree\n", "nobody is up on it"
    assert group.ok("read", "notes.txt", "--data", "own") == b"one\ntwo\nthree\nfour\n"
    assert group.ok("update", "notes.txt", "4", "--data", "own").startswith(b"ok notes.txt@5 ")
    assert content_of(group, "own") == content_of(group, "a") == b"one\ntwo\nthree\nfour --- 4\n"
    assert group.ok("show", "notes.txt@1", "--data", "own") == b"one\n"
    events = events_of(group, "own")
    assert [event.verb for event in events] == ["apply", "apply", "write", "apply", "read", "update"]
    assert own_counts(events) == [1, 2, 3, 4, 5, 6]


def test_a_one_shot_alone_makes_a_file_and_finds_it_again(group: Group) -> None:
    group.lockd()
    assert group.ok("read", "notes.txt", "--data", "own") == b""
    assert group.ok("update", "notes.txt", "nothing to update", "--data", "own").startswith(b"ok notes.txt@1 ")
    assert group.ok("read", "notes.txt", "--data", "own") == b""
    group.ok("write", "notes.txt", "text", "--data", "own")
    assert group.ok("read", "notes.txt", "--data", "own") == b"text\n"


def test_who_joins_later_needs_one_that_has_the_newest_version(group: Group) -> None:
    group.lockd()
    group.ok("write", "notes.txt", "text", "--data", "first")
    group.serving("second")
    done = group.client("read", "notes.txt", "--data", "second", "--wait", "300ms")
    assert "only absent clients hold the newest version of notes.txt: first" in refusal(done)
    assert done.code == EXIT_REFUSED
    group.serving("first")
    assert group.op("second", "read").content == b"text\n"


def test_four_runs_at_once_pass_the_check(group: Group) -> None:
    group.lockd()
    names = [f"client-{number}" for number in range(4)]
    options = ("--ops", "10", "--stay", "--delay", "0..0.02", "--file", "notes.txt", "--file", "a/b c.txt")
    clients = [group.start("client", "run", "--data", name, "--seed", "7", *options) for name in names]
    for client in clients:
        client.says("done: 10 ops")
    for client in clients:
        assert client.running
    for client in clients:
        done = client.stop()
        assert (done.code, done.err) == (EXIT_OK, "")
        assert len(done.out.decode().splitlines()) == 12
    passes_the_check(group, *names)
    ops = [event for name in names for event in events_of(group, name) if event.verb in ("read", "write", "update")]
    assert len(ops) == 40
    for file in ("notes.txt", "a/b c.txt"):
        assert len({content_of(group, name, file) for name in names}) == 1


def test_a_run_of_one_op_and_texts_from_a_file(group: Group) -> None:
    group.lockd()
    group.path("lines").write_text("the only line\n")
    assert b"done: 1 ops" in group.ok("run", "--ops", "1", "--delay", "0", "--data", "a", "--lines", "lines")


# Bytes and names


@pytest.mark.parametrize(
    "file", ["notes.txt", "with a space", "zwölf/日本/ü.txt", "-dash", "a@b", "x" * 200, "…/'\"\\"]
)
def test_a_file_is_called_what_it_is_called(named: Group, file: str) -> None:
    named.ok("write", "--data", "up", "--", file, "text")
    assert content_of(named, "up", file) == b"text\n"
    assert named.op("up", "read", file=file).content == b"text\n"
    assert named.ok("show", "--data", "up", "--", f"{file}@1") == b"text\n"
    assert events_of(named, "up")[-1].values["file"] == file


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    """Give a group with a client that is up on `up`."""
    with Group(tmp_path_factory.mktemp("named")) as group:
        group.lockd()
        group.serving("up")
        yield group


def test_read_and_show_write_exactly_the_bytes(named: Group) -> None:
    """Empty, and three megabytes; carried out by the client that is up, or not."""
    assert named.ok("read", "empty", "--data", "up") == b""
    assert named.ok("show", "empty@0", "--data", "up") == b""
    line = "0123456789ä\t" * 80_000
    for _ in range(3):
        named.op("up", "write", line, "large")
    content = f"{line}\n".encode() * 3
    assert len(content) > 3_000_000
    for data in ("up", "own"):
        assert named.ok("read", "large", "--data", data) == content
        assert named.ok("show", "large@3", "--data", data) == content
        assert named.ok("show", "large@1", "--data", data) == content[: len(content) // 3]
    assert named.ok("update", "large", "end", "--data", "own").startswith(b"ok large@4 ")
    assert named.op("up", "read", file="large").content == content[:-1] + b" --- end\n"


@pytest.mark.parametrize("data", ["/".join(["deep" * 30] * 2), "with a space and ü"])
def test_a_directory_may_be_deep_or_oddly_named(group: Group, data: str) -> None:
    group.lockd()
    client = group.serving(data, "--name", "odd")
    assert group.ok("write", "notes.txt", "text", "--data", data).endswith(b" id=odd:1\n")
    assert group.ok("show", "notes.txt@1", "--data", str(group.path(data))) == b"text\n"
    assert client.stop().code == EXIT_OK
    assert not group.path(data, "socket").exists()
    assert group.ok("read", "notes.txt", "--data", data) == b"text\n"


def test_lockd_may_listen_at_several_places_and_over_ipc(group: Group) -> None:
    lockd = group.lockd("--bind", "tcp://127.0.0.1:*", "--bind", f"ipc://{group.path('lockd.ipc')}")
    tcp, ipc = lockd.ready().split()[1:3]
    group.serving("a", "--lockd", ipc)
    group.serving("b", "--lockd", tcp.replace("127.0.0.1", "localhost"))
    group.op("a", "write", "text")
    assert content_of(group, "b") == b"text\n"
    done = group.start("lockd", "--bind", ipc, "--data", "other").end()
    assert refusal(done, "lockd").startswith(
        f"cannot listen on {ipc} (Address already in use); is another lockd there?"
    )
    assert done.code == EXIT_REFUSED
    group.op("b", "write", "text")
    assert lockd.stop(signal.SIGKILL).code == -signal.SIGKILL
    assert group.path("lockd.ipc").exists(), "what a kill leaves"
    lockd = group.lockd("--bind", ipc)
    assert lockd.stop().code == EXIT_OK
    assert not group.path("lockd.ipc").exists()


# Bad input


class Strangers:
    """Sockets that belong to nobody in the group."""

    def __init__(self) -> None:
        self._context = zmq.Context[zmq.Socket[bytes]]()
        self._sockets: list[zmq.Socket[bytes]] = []

    def dealer(self, endpoint: str, name: bytes) -> zmq.Socket[bytes]:
        dealer = self._context.socket(zmq.DEALER)
        dealer.set(zmq.ROUTING_ID, name)
        dealer.connect(endpoint)
        self._sockets.append(dealer)
        return dealer

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture
def strangers() -> Iterator[Strangers]:
    strangers = Strangers()
    yield strangers
    strangers.close()


def say_over_tcp(endpoint: str, said: bytes) -> None:
    """Connect to an endpoint of ZeroMQ without speaking its protocol, or only its beginning, and hang up."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    with socket.create_connection((host, int(port)), WITHIN_S) as connection:
        connection.sendall(said)


GREETING = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL" + bytes(48)
RAW = (
    b"",
    b"GET / HTTP/1.1\r\n\r\n",
    Random(1).randbytes(3000),
    GREETING[:20],
    GREETING,
    GREETING + b"\x04\x19\x05READY",
    GREETING
    + b"\x04\x29\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\0"
    + b"\x02\xff\xff\xff\xff\0\0\0\0",
)


def frames(welcome: Welcome) -> list[list[bytes]]:
    """Return messages that no process may fall over: malformed ones, and well-formed ones out of place."""
    group = welcome.group
    push = encode(Push(group, "notes.txt", 0, EMPTY, (), {}))
    hello = encode(Hello(1, "stranger", "0" * 16, None, "0" * 16, 0, "", 0, 0, ()))
    far = Version(9, 1, bytes(16))
    return [
        [b""],
        [b"", b""],
        [b"a", b"b", b"c"],
        [Random(2).randbytes(200)],
        [b"\xc1"],
        [b"\x91" * 100_000],
        [push[:-1]],
        [push + b"\0"],
        [push],
        [encode(Push("0" * 16, "notes.txt", 1, EMPTY, (), {}))],
        [encode(Push(group, "notes.txt", 0, far, (), {}))],
        [encode(Ack("notes.txt", 1, 1))],
        [encode(Ping(welcome.epoch + 1, welcome.session, 1))],
        [encode(Ping(welcome.epoch, welcome.session, 1))],
        [encode(Ping(welcome.epoch, 1, 1))],
        [encode(Release(welcome.epoch, 1, 1, "notes.txt", 1, far, {"a": 1}, True, (), True, False))],
        [encode(Report(welcome.epoch, 1, "notes.txt", far, 1))],
        [hello],
        [hello[:-3]],
        [encode(Hello(1, "a", "0" * 16, None, "", 0, "", 0, 0, ()))],
        [
            encode(
                Hello(
                    1,
                    "b",
                    "0" * 16,
                    ReplicaHello("1" * 16, 1, "tcp://127.0.0.1:1", {}, "disk", "", 0, {}, ()),
                    "",
                    1 << 60,
                    "",
                    0,
                    0,
                    (),
                )
            )
        ],
        [encode(welcome)],
    ]


def test_bad_input_is_told_once_and_everybody_else_goes_on(group: Group, strangers: Strangers) -> None:
    lockd = group.lockd()
    clients = [group.serving(name) for name in ("a", "b")]
    group.op("a", "write", "one")
    welcome = group.welcome()
    replica = next(member.endpoint for member in welcome.view if member.host == "a")
    for data, endpoint in (("lockd", group.endpoint), ("a", replica)):
        for said in RAW:
            say_over_tcp(endpoint, said)
        first, second = strangers.dealer(endpoint, b"first stranger"), strangers.dealer(endpoint, b"second stranger")
        for message in frames(welcome):
            first.send_multipart(message)
            first.send_multipart(message)
        for name in (b"first stranger", b"second stranger"):
            second.send(b"neither")
            noted(group, data, f"dropped a message of {name.hex() if data == 'lockd' else repr(name)}: ")
        first.send(bytes(FRAME_BYTES_MAX + 1))
        group.op("b", "write", "two")
    assert content_of(group, "a") == content_of(group, "b") == b"one\ntwo\ntwo\n"
    assert group.ok("read", "notes.txt", "--data", "own") == b"one\ntwo\ntwo\n"
    for process in (*clients, lockd):
        done = process.stop()
        assert (done.code, done.err) == (EXIT_OK, "")
    for log, names in (
        (group.path("lockd", "lockd.log"), [b"first stranger".hex(), b"second stranger".hex()]),
        (group.path("a", "client.log"), ["b'first stranger'", "b'second stranger'"]),
    ):
        text = log.read_text()
        assert [text.count(f"dropped a message of {name}: ") for name in names] == [1, 1]
        assert "malformed messages were dropped" in text
    passes_the_check(group, "a", "b", "own")


def test_a_member_that_cannot_be_reached_holds_up_nobody(group: Group, strangers: Strangers) -> None:
    group.lockd("--ttl", "1s")
    group.serving("a")
    for number, endpoint in enumerate(("tcp://127.0.0.1:1", "tcp://\0:1", "ipc://" + "x" * 200)):
        replica = ReplicaHello(str(number) * 16, 1, endpoint, {}, "disk", "", 0, {}, ())
        dealer = strangers.dealer(group.endpoint, b"%d" % number)
        dealer.send(encode(Hello(1, f"odd-{number}", "0" * 16, replica, "", 0, "", 0, 0, ())))
        assert dealer.poll(int(WITHIN_S * 1000))
    assert group.op("a", "write", "text").seq == 1


# Signals


@pytest.mark.parametrize("number", ENDINGS)
def test_lockd_and_serve_end_well_and_start_again(group: Group, number: signal.Signals) -> None:
    for start in (1, 2):
        bind = ("--bind", group.endpoint) if group.endpoint else ()
        lockd, client = group.lockd(*bind), group.serving("a")
        assert lockd.ready().endswith(f" epoch {start}")
        assert group.op("a", "write", "text").seq == start
        for process in (client, lockd):
            done = process.stop(number)
            assert (done.code, done.err) == (EXIT_OK, "")
        assert not group.path("a", "socket").exists()
        lock = take(group.path("a"), "one-shot")
        assert lock is not None, "nobody has the directory"
        lock.release()


@pytest.mark.parametrize("number", ENDINGS)
def test_a_run_that_is_ended_early_says_by_what(group: Group, number: signal.Signals) -> None:
    group.lockd()
    client = group.start("client", "run", "--ops", "5", "--delay", "100..100", "--data", "a")
    client.ready()
    assert client.stop(number).code == 128 + number
    alone = group.start("client", "run", "--group", "2", "--data", "a")
    alone.ready()
    assert alone.stop(number).code == 128 + number
    staying = group.start("client", "run", "--ops", "1", "--delay", "0", "--data", "a", "--stay")
    staying.says("done: 1 ops")
    assert staying.stop(number).code == EXIT_OK
    assert not group.path("a", "socket").exists()


@pytest.mark.parametrize("command", ["serve", "run", "read"])
def test_a_client_that_finds_no_lockd_can_be_ended(group: Group, command: str) -> None:
    """Lockd takes connections, and says nothing."""
    lockd = group.lockd()
    lockd.send(signal.SIGSTOP)
    client = group.start("client", command, "--data", "a", *(["x"] if command == "read" else []))
    until(group.path("a", "events.log").exists, "it has begun")
    done = client.stop(signal.SIGTERM)
    err = "client: read x failed, nothing happened: ended by SIGTERM\n" if command == "read" else ""
    assert (done.code, done.out, done.err) == (EXIT_OK if command == "serve" else 128 + signal.SIGTERM, b"", err)
    assert not group.path("a").exists(), "it was never in the group"


@pytest.mark.parametrize("number", ENDINGS)
def test_a_one_shot_that_is_ended_before_it_has_done_anything_says_by_what(
    group: Group, number: signal.Signals
) -> None:
    lockd = group.lockd()
    group.ok("write", "notes.txt", "text", "--data", "first")
    client = group.start("client", "write", "notes.txt", "more", "--data", "second")
    noted(group, "second", "joined as second")
    done = client.stop(number)
    assert refusal(done) == f"write notes.txt failed, nothing happened: ended by {number.name}"
    assert done.code == 128 + number
    assert lockd.running
    assert group.ok("read", "notes.txt", "--data", "first") == b"text\n"


# Who has the directory


def test_serve_waits_for_a_one_shot(group: Group) -> None:
    group.lockd()
    lock = take(group.path("a"), "one-shot")
    assert lock is not None
    client = group.start("client", "serve", "--data", "a")
    path = group.path("a", "lock")
    until(lambda: has_open(client, path), "it looks at the lock")
    assert (client.running, client.out) == (True, b"")
    lock.release()
    assert client.ready() == "ready a on a, durability disk"


@pytest.mark.parametrize("command", ["serve", "run", "read"])
def test_who_waits_for_a_directory_can_be_ended(group: Group, command: str) -> None:
    lock = take(group.path("a"), "one-shot")
    assert lock is not None
    client = group.start("client", command, "--data", "a", *(["x"] if command == "read" else []))
    path = group.path("a", "lock")
    until(lambda: has_open(client, path), "it looks at the lock")
    done = client.stop(signal.SIGTERM)
    lock.release()
    err = "client: read x failed, nothing happened: ended by SIGTERM\n" if command == "read" else ""
    assert (done.code, done.out, done.err) == (EXIT_OK if command == "serve" else 128 + signal.SIGTERM, b"", err)


def has_open(child: Child, path: Path) -> bool:
    for descriptor in Path(f"/proc/{child.pid}/fd").iterdir():
        try:
            if descriptor.readlink() == path:
                return True
        except FileNotFoundError:
            continue
    return False


def test_one_shots_on_one_directory_take_turns(group: Group) -> None:
    group.lockd()
    children = [group.start("client", "write", "notes.txt", f"text {n}", "--data", "a") for n in range(4)]
    assert [(done.code, done.err) for done in [child.end() for child in children]] == [(EXIT_OK, "")] * 4
    assert sorted(content_of(group, "a").splitlines()) == [b"text %d" % n for n in range(4)]


def test_a_killed_client_can_be_started_again(group: Group) -> None:
    group.lockd("--ttl", "500ms")
    for start in range(1, 4):
        client = group.serving("a")
        group.op("a", "write", f"text {start}")
        client.stop(signal.SIGKILL)
        assert group.path("a", "socket").exists(), "what a kill leaves"
    assert group.ok("read", "notes.txt", "--data", "a") == b"text 1\ntext 2\ntext 3\n"


# Logs across restarts


def test_the_own_count_goes_on_without_a_gap(group: Group) -> None:
    lockd = group.lockd()
    other = group.serving("b")
    for start in range(3):
        client = group.serving("a")
        group.op("a", "write", "mine")
        group.op("b", "write", "theirs")
        group.op("a", "read")
        assert client.stop(signal.SIGKILL if start == 1 else signal.SIGTERM).code in (EXIT_OK, -signal.SIGKILL)
        if start == 1:
            with group.path("a", "events.log").open("ab") as log:
                log.write(b'2026-11-22T15:03:11.123456Z a {"a":99} write file=notes.txt id=a:9')
    events = events_of(group, "a")
    assert own_counts(events) == list(range(1, len(events) + 1))
    ids = [event.values["id"] for event in events if event.verb in ("read", "write")]
    assert ids == [f"a:{number}" for number in range(1, 7)]
    assert "which a crash cut off" in group.path("a", "client.log").read_text()
    times = [event.time_us for event in events]
    assert times == sorted(set(times))
    for process in (other, lockd):
        process.stop()
    passes_the_check(group, "a", "b")


# Lost partners


def pausing(
    group: Group, verb: str = "write", wait: str = "20s", stopped: str = ""
) -> tuple[Child, Child, Child, Child]:
    """Start lockd, a, b and an op that a carries out and that cannot end: b is stopped, or for a read lockd.

    A write would end once b is dropped, which takes two thirds of a lease.
    """
    stopped = stopped or ("b" if verb == "write" else "lockd")
    lockd = group.lockd("--ttl", "2500ms")
    a, b = group.serving("a"), group.serving("b")
    group.op("a", "write", "one")
    until(lambda: not has_connection(a), "that order is over")
    if stopped != "b":
        give_back(group)
    (b if stopped == "b" else lockd).send(signal.SIGSTOP)
    more = ["two"] if verb == "write" else []
    op = group.start("client", verb, "notes.txt", *more, "--data", "a", "--wait", wait)
    if stopped == "b":
        until(lambda: events_of(group, "a")[-1].values["seq"] == "2", "the op is logged, and so pushed")
    else:
        until(lambda: has_connection(a), "the order has come")
    return lockd, a, b, op


def give_back(group: Group) -> None:
    """Have the lock given back that is kept for the next op, so that this one needs lockd."""
    group.ok("recall", "notes.txt")
    until(lambda: not inspect(group.endpoint, "notes.txt").locks[0].holders, "the lock is free")


def has_connection(child: Child) -> bool:
    """Tell whether somebody is connected to the socket in the child's directory."""
    lines = Path(f"/proc/{child.pid}/net/unix").read_text().splitlines()
    own = set()
    for descriptor in Path(f"/proc/{child.pid}/fd").iterdir():
        try:
            own.add(os.readlink(descriptor))
        except FileNotFoundError:
            continue
    return any(f"socket:[{fields[6]}]" in own for fields in map(str.split, lines) if fields[5] == "03")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_change_under_way_is_unknown_when_its_client_ends(group: Group, number: signal.Signals) -> None:
    _, a, b, op = pausing(group)
    a.stop(number)
    done = op.end()
    assert done.code == EXIT_UNKNOWN
    line = refusal(done)
    assert line.startswith("write notes.txt (a:2) ended unknown, it may have happened: ")
    assert line.endswith("; again with --retry a:2 it is done once")
    b.send(signal.SIGCONT)
    assert group.ok("write", "notes.txt", "two", "--data", "b", "--retry", "a:2").startswith(b"ok notes.txt@2 ")
    assert group.op("b", "read").content == b"one\ntwo\n"


def test_a_change_that_has_not_begun_has_failed_when_its_client_is_killed(group: Group) -> None:
    _, a, _, op = pausing(group, stopped="lockd")
    a.stop(signal.SIGKILL)
    done = op.end()
    assert (
        refusal(done) == "write notes.txt failed, nothing happened: the client that is up on a ended before it answered"
    )
    assert done.code == EXIT_REFUSED


@pytest.mark.parametrize("number", ENDINGS)
def test_a_one_shot_that_is_ended_takes_back_what_has_not_begun(group: Group, number: signal.Signals) -> None:
    lockd, a, b, op = pausing(group, stopped="lockd")
    done = op.stop(number)
    assert refusal(done) == f"write notes.txt failed, nothing happened: ended by {number.name}"
    assert done.code == 128 + number
    lockd.send(signal.SIGCONT)
    noted(group, "a", "write of notes.txt ended failed: nobody waits for it any more")
    group.op("b", "write", "three")
    assert group.op("a", "read").content == b"one\nthree\n"
    for process in (a, b, lockd):
        process.stop()
    passes_the_check(group, "a", "b")


@pytest.mark.parametrize("number", ENDINGS)
def test_a_one_shot_that_is_ended_tells_the_id_of_what_has_begun(group: Group, number: signal.Signals) -> None:
    _, _, b, op = pausing(group)
    done = op.stop(number)
    assert refusal(done) == (
        f"write notes.txt (a:2) ended unknown, it may have happened: ended by {number.name}, "
        "while the client that is up on a goes on with it; again with --retry a:2 it is done once"
    )
    assert done.code == 128 + number
    b.send(signal.SIGCONT)
    assert group.ok("write", "notes.txt", "two", "--data", "b", "--retry", "a:2").startswith(b"ok notes.txt@2 ")
    assert group.op("a", "read").content == b"one\ntwo\n"


def test_a_one_shot_that_is_ended_says_that_its_client_does_not_answer(group: Group) -> None:
    _, a, _, op = pausing(group, stopped="lockd")
    a.send(signal.SIGSTOP)
    done = op.stop(signal.SIGINT)
    assert refusal(done) == (
        "write notes.txt ended unknown, it may have happened: ended by SIGINT, "
        "while the client that is up on a does not answer; look into client snapshots notes.txt --data a"
    )
    assert done.code == 128 + signal.SIGINT


@pytest.mark.parametrize("number", ENDINGS)
def test_a_one_shot_of_its_own_that_is_ended_tells_the_id_of_what_has_begun(
    group: Group, number: signal.Signals
) -> None:
    group.lockd("--ttl", "5s")
    _, c = group.serving("a"), group.serving("c")
    group.op("a", "write", "one")
    group.ok("read", "notes.txt", "--data", "b")
    c.send(signal.SIGSTOP)
    op = group.start("client", "write", "notes.txt", "two", "--data", "b")
    until(lambda: events_of(group, "b")[-1].verb == "write", "the op is logged")
    done = op.stop(number)
    assert refusal(done) == (
        "write notes.txt (b:2) ended unknown, it may have happened: this client was told to end; "
        "again with --retry b:2 it is done once"
    )
    assert done.code == 128 + number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_read_under_way_has_failed_when_its_client_ends(group: Group, number: signal.Signals) -> None:
    _, a, _, op = pausing(group, "read")
    a.stop(number)
    done = op.end()
    assert done.code == EXIT_REFUSED
    assert "nothing happened" in refusal(done)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_change_under_way_is_unknown_when_lockd_ends(group: Group, number: signal.Signals) -> None:
    lockd, a, b, op = pausing(group)
    assert lockd.stop(number).code in (EXIT_OK, -signal.SIGKILL)
    done = op.end()
    assert done.code == EXIT_UNKNOWN
    assert "the session was lost" in refusal(done)
    assert a.running
    b.send(signal.SIGCONT)
    group.lockd("--bind", group.endpoint)
    noted(group, "b", "joined as b", 2)
    assert group.op("b", "read").content == b"one\ntwo\n"


def test_what_waits_for_lockd_has_failed_when_it_ends(group: Group) -> None:
    lockd, a, _, op = pausing(group, "read", "500ms")
    lockd.stop(signal.SIGKILL)
    done = op.end()
    assert done.code == EXIT_REFUSED
    assert "nothing happened" in refusal(done)
    assert a.running


def test_a_one_shot_of_its_own_fails_when_lockd_ends(group: Group) -> None:
    lockd = group.lockd("--ttl", "1s")
    group.ok("write", "notes.txt", "one", "--data", "a")
    op = group.start("client", "write", "notes.txt", "two", "--data", "b", "--wait", "1s")
    noted(group, "b", "joined as b")
    lockd.stop()
    done = op.end()
    assert done.code == EXIT_REFUSED
    assert "nothing happened" in refusal(done)


def test_all_go_on_when_lockd_was_stalled_for_longer_than_a_lease(group: Group) -> None:
    """Everybody's old session ends and a new one begins in the same breath, so every peer is connected to anew."""
    lockd = group.lockd("--ttl", "300ms")
    clients = [group.serving(name) for name in NAMES]
    for turn in (1, 2):
        group.op("a", "write", "before")
        lockd.send(signal.SIGSTOP)
        for name in NAMES:
            noted(group, name, "session lost", turn)
        lockd.send(signal.SIGCONT)
        for name in NAMES:
            group.op(name, "write", "after")
    assert all(client.running for client in clients)
    until(lambda: len({content_of(group, name) for name in NAMES}) == 1, "all have the same")


def test_a_damaged_journal_ends_the_client_in_one_line(group: Group) -> None:
    group.lockd()
    client = group.serving("a")
    for text in ("one", "two", "three"):
        group.op("a", "write", text)
    log = group.path("a", "journal", "1.ops")
    data = log.read_bytes()
    second = data.rindex(b"a:2") - 20
    log.write_bytes(data[:second] + bytes(20) + data[second + 20 :])
    op = group.client("restore", "notes.txt@1", "--data", "a")
    assert op.code in (EXIT_REFUSED, EXIT_UNKNOWN)
    refusal(op)
    done = client.end()
    assert done.code == EXIT_CRASHED
    assert re.fullmatch(r"client: .*1\.ops is damaged: op 2 .*; mend that, then start again\n", done.err)


def test_a_one_shot_of_its_own_whose_disk_fails_tells_the_id_of_what_has_begun(
    group: Group, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In this process: no real disk can be had to fail in a sync."""

    def fail(journal: Journal, change: Persist) -> None:
        raise FatalStorageError("cannot bring 1.ops to the disk")

    group.lockd()
    monkeypatch.setattr(Journal, "write", fail)
    monkeypatch.setattr(
        sys, "argv", ["client", "write", "notes.txt", "one", "--data", str(group.path("a")), "--lockd", group.endpoint]
    )
    before = {number: signal.getsignal(number) for number in ENDINGS}
    with pytest.raises(SystemExit) as ended:
        main()
    for number, handler in before.items():
        signal.signal(number, handler)
    assert ended.value.code == EXIT_UNKNOWN
    assert capfd.readouterr().err == (
        "client: write notes.txt (a:1) ended unknown, it may have happened: cannot bring 1.ops to the disk; "
        "mend that, then start again; again with --retry a:1 it is done once\n"
    )


def test_a_run_that_gives_up_leaves_in_good_order(group: Group) -> None:
    """Otherwise those who wait for its acks would wait until its lease ran out."""
    group.lockd("--ttl", "30s")
    group.serving("a")
    group.op("a", "write", "one")
    done = group.client("run", "--ops", "1", "--delay", "0..0", "--file", "notes.txt/inside", "--data", "b")
    assert done.code == EXIT_REFUSED
    assert "failed 20 times" in done.err
    noted(group, "lockd", "of b is over: it said goodbye")
