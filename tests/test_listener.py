"""lockd's connections beside libzmq's and our own; and what comes from those who speak something else."""

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from client.zmtp import Connection, Disconnected
from common.limits import FRAME_BYTES_MAX
from common.zmtp import COMMAND, GREETING, Frames, WrongWire, command, framed, pong, properties, ready
from lockd.listener import Full, Listener, Unreachable

PATIENCE_S = 20.0
Event = tuple[bytes, list[bytes] | None]


class Served:
    """A listener on a free port, and what has come to it."""

    def __init__(self) -> None:
        self.wake = os.pipe()
        self.listener = Listener(self.wake[0])
        self.endpoint = self.listener.bind("tcp://127.0.0.1:*")
        self.came: list[Event] = []

    def until(self, holds: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < end, f"it did not come to be in time; {self.came[-3:]}"
            self.came += self.listener.events(0.005)

    def one(self) -> Event:
        self.until(lambda: self.came)
        return self.came.pop(0)

    def stranger(self) -> socket.socket:
        host, port = self.endpoint.removeprefix("tcp://").split(":")
        connection = socket.create_connection((host, int(port)))
        connection.settimeout(PATIENCE_S)
        return connection

    def dealer(self, route: bytes = b"somebody") -> socket.socket:
        """Return a connection that has begun as a DEALER does, and whose beginning was answered."""
        connection = self.stranger()
        connection.sendall(GREETING + ready(b"DEALER", route))
        read = b""

        def answered() -> bool:
            nonlocal read
            connection.setblocking(False)
            try:
                read += connection.recv(1000)
            except BlockingIOError:
                pass
            connection.settimeout(PATIENCE_S)
            return len(read) >= len(GREETING) + len(ready(b"ROUTER", b""))

        self.until(answered)
        assert read == GREETING + ready(b"ROUTER", b"")
        return connection


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.listener.close()
    for descriptor in made.wake:
        os.close(descriptor)


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context = zmq.Context[zmq.Socket[bytes]]()
    yield context
    context.destroy(linger=0)


@given(
    st.lists(st.binary(max_size=300) | st.binary(min_size=250, max_size=260), max_size=8),
    st.lists(st.integers(1, 40), min_size=1),
)
def test_frames_are_the_same_however_they_are_cut(messages: list[bytes], sizes: list[int]) -> None:
    stream = GREETING + ready(b"DEALER", b"x") + b"".join(map(framed, messages))
    frames, at, turn = Frames(), 0, 0
    found: list[tuple[int, bytes]] = []
    while at < len(stream):
        size = sizes[turn % len(sizes)]
        found += frames.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
    (flags, body), *rest = found
    assert flags == COMMAND
    assert properties(body) == {b"socket-type": b"DEALER", b"identity": b"x"}
    assert [message for _, message in rest] == messages


@pytest.mark.parametrize("cut", [0, 1, 64, 400])
def test_only_behind_ready_a_frame_may_be_long(cut: int) -> None:
    begun, message = GREETING + ready(b"DEALER", b"x" * 200), b"x" * 5000
    frames = Frames(5000)
    stream = begun + framed(message)
    assert [body for _, body in frames.feed(stream[:cut]) + frames.feed(stream[cut:])][1:] == [message]
    with pytest.raises(WrongWire, match="a frame of 5001 bytes, more than 5000"):
        frames.feed(b"\2" + struct.pack(">Q", 5001))
    with pytest.raises(WrongWire, match="a frame of 1025 bytes, more than 1024"):
        Frames().feed(GREETING + b"\6" + struct.pack(">Q", 1025))


@given(st.binary(max_size=100))
def test_whatever_comes_is_taken_apart_or_refused(stream: bytes) -> None:
    try:
        for _, body in Frames().feed(stream):
            properties(body)
    except WrongWire:
        pass
    assert pong(b"\4PING" + stream) == command(b"\4PONG" + stream[2:18])


def test_libzmq_and_we_understand_each_other(served: Served, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    dealer = context.socket(zmq.DEALER)
    dealer.set(zmq.ROUTING_ID, b"libzmq")
    dealer.set(zmq.RCVTIMEO, int(PATIENCE_S * 1000))
    dealer.connect(served.endpoint)
    for message in (b"", b"short", b"x" * 255, b"x" * 256, b"x" * 100_000):
        dealer.send(message)
        assert served.one() == (b"libzmq", [message])
        served.listener.send(b"libzmq", message)
        served.until(lambda: dealer.poll(0))
        assert dealer.recv() == message
    dealer.send_multipart([b"a", b"b", b"c", b"d", b"e"])
    assert served.one() == (b"libzmq", [b"a", b"b", b"c", b"e"]), "the parts beyond the third but the last are let go"
    dealer.close(linger=0)
    assert served.one() == (b"libzmq", None)
    with pytest.raises(Unreachable):
        served.listener.send(b"libzmq", b"too late")


def test_who_has_no_routing_id_gets_one(served: Served, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    dealers = [context.socket(zmq.DEALER) for _ in range(2)]
    for dealer in dealers:
        dealer.connect(served.endpoint)
        dealer.send(b"hello")
    routes = {served.one()[0], served.one()[0]}
    assert len(routes) == 2
    assert all(route[:1] == b"\0" for route in routes)
    for dealer in dealers:
        dealer.close(linger=0)


def test_who_comes_back_under_its_routing_id_takes_its_place(served: Served) -> None:
    first, second = served.dealer(), served.dealer()
    assert first.recv(1) == b"", "the first one is closed"
    second.sendall(framed(b"here"))
    assert served.one() == (b"somebody", [b"here"])
    served.listener.send(b"somebody", b"there")
    assert second.recv(100) == framed(b"there")
    second.close()
    assert served.one() == (b"somebody", None)
    assert not served.came, "the end of the first one is no end of whom the second one belongs to"
    first.close()


def test_the_end_of_a_connection_ends_no_other_one_that_has_its_descriptor_now(served: Served) -> None:
    older, newer = served.dealer(), served.stranger()
    newer.sendall(GREETING)
    served.until(lambda: len(served.listener._peers) == 2)
    for _ in range(5):
        served.came += served.listener.events(0.01)
    newer.sendall(ready(b"DEALER", b"somebody"))  # it takes the older one's place
    stranger = served.stranger()
    older.shutdown(socket.SHUT_RDWR)
    for _ in range(10):
        served.came += served.listener.events(0.01)
    assert len(served.listener._peers) == 2
    for each in (older, newer, stranger):
        each.close()


def test_a_heartbeat_is_answered(served: Served) -> None:
    connection = served.dealer()
    connection.sendall(command(b"\4PING\0\1context"))
    served.came += served.listener.events(0.05)
    served.until(lambda: True)
    assert connection.recv(100) == command(b"\4PONGcontext")
    connection.close()


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" + bytes(8) + b"\x7f\x01" + bytes(60),
        GREETING.replace(b"NULL\0", b"PLAIN"),
        GREETING + framed(b"no command"),
        GREETING + command(b"\5READY\x0bSocket-Type\0\0\1\0x"),
        GREETING + command(b"\7UNKNOWN"),
        GREETING + b"\6" + struct.pack(">Q", 1025),
        GREETING + b"\2" + struct.pack(">Q", FRAME_BYTES_MAX),
        GREETING + ready(b"DEALER", b"x" * 200).replace(b"\0\0\0\xc8", b"\0\0\0\xc7"),
        GREETING + ready(b"DEALER", b"x") + b"\2" + struct.pack(">Q", FRAME_BYTES_MAX + 1),
    ],
)
def test_what_is_no_zmtp_closes_its_own_connection_alone(served: Served, said: bytes) -> None:
    good, bad = served.dealer(b"good"), served.stranger()
    bad.sendall(said)
    bad.setblocking(False)

    def closed() -> bool:
        try:
            return not bad.recv(1000)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True

    served.until(closed)
    served.came.clear()
    good.sendall(framed(b"still here"))
    assert served.one() == (b"good", [b"still here"])
    good.close()
    bad.close()


def test_a_beginning_may_come_byte_by_byte(served: Served) -> None:
    connection = served.stranger()
    for byte in GREETING + ready(b"DEALER", b"slow") + framed(b"at last"):
        connection.sendall(bytes([byte]))
        served.came += served.listener.events(0)
    assert served.one() == (b"slow", [b"at last"])
    connection.close()


def test_who_never_reads_is_closed_and_holds_nobody_up(served: Served) -> None:
    deaf, other = served.dealer(b"deaf"), served.dealer(b"other")
    with pytest.raises(Full):  # noqa: PT012  (how many it takes is the system's to say)
        for _ in range(1000):
            served.listener.send(b"deaf", b"x" * 1_000_000)
    with pytest.raises(Unreachable):
        served.listener.send(b"deaf", b"once more")
    served.listener.send(b"other", b"quick")
    assert other.recv(100) == framed(b"quick")
    assert served.one() == (b"deaf", None)
    served.listener.send(b"other", b"quick again")
    assert other.recv(100) == framed(b"quick again")
    assert not served.came
    deaf.close()
    other.close()


def test_who_is_closed_and_back_already_is_not_told_of(served: Served) -> None:
    deaf = served.dealer(b"deaf")
    back = served.stranger()
    back.sendall(GREETING + ready(b"DEALER", b"deaf"))
    served.until(lambda: served.listener._strangers)
    # While what has come is served, the old connection is closed and the new one says whose it is.
    with pytest.raises(Full):  # noqa: PT012
        for _ in range(1000):
            served.listener.send(b"deaf", b"x" * 1_000_000)
    (stranger,) = served.listener._strangers.values()
    assert not served.listener._read(stranger)
    back.sendall(framed(b"here"))
    assert served.one() == (b"deaf", [b"here"])
    deaf.close()
    back.close()


@pytest.mark.parametrize("each", [command(b"\4PING\0\1context"), framed(b"question")], ids=["pings", "questions"])
def test_who_does_not_take_its_answers_is_not_read_until_it_does(served: Served, each: bytes) -> None:
    connection = served.dealer()
    connection.setblocking(False)
    (peer,) = served.listener._peers.values()
    for end in (connection, peer.socket):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    asked = each * 1000
    sent = answered = 0

    def ask() -> bool:
        """Send on and answer what comes; return whether nothing more is taken in."""
        nonlocal sent
        try:
            more = connection.send(asked[sent % len(asked) :])
        except BlockingIOError:
            more = 0
        sent += more
        events = list(served.listener.events(0))
        for route, _ in events:
            served.listener.send(route, b"answer" * 20)
        return not more and not events and len(peer.unsent) == unsent

    for _ in range(100_000):
        unsent = len(peer.unsent)
        if ask() and unsent:
            break
    else:
        pytest.fail("it is read without an end")
    assert 1 << 20 < len(peer.unsent) < 2 << 20
    frames = Frames()
    frames.feed(GREETING + ready(b"ROUTER", b""))

    def all_answered() -> bool:
        nonlocal answered
        while served.came:
            served.listener.send(served.came.pop()[0], b"answer" * 20)
        try:
            answered += len(frames.feed(connection.recv(1 << 20)))
        except BlockingIOError:
            pass
        return answered == sent // len(each)

    served.until(all_answered)
    connection.close()


def test_many_who_go_at_once_hold_up_nobody_who_stays(served: Served) -> None:
    modest = served.dealer(b"modest")
    many = [served.dealer(b"%d" % number) for number in range(300)]
    many[0].sendall(framed(b"last words"))
    for each in many:
        each.close()
    modest.sendall(framed(b"one"))
    served.came.clear()
    while (b"modest", [b"one"]) not in served.came:
        served.came += served.listener.events(PATIENCE_S)
    assert len(served.came) < len(many) / 2
    served.until(lambda: len(served.came) == len(many) + 2)
    assert served.came.index((b"0", [b"last words"])) < served.came.index((b"0", None))
    assert {route for route, parts in served.came if parts is None} == {b"%d" % number for number in range(300)}
    modest.close()


def test_who_sends_many_messages_at_once_waits_its_turn(served: Served) -> None:
    greedy, modest = served.dealer(b"greedy"), served.dealer(b"modest")
    many = [b"%d" % number for number in range(1000)]
    greedy.sendall(b"".join(map(framed, many)))
    modest.sendall(framed(b"one"))
    first: list[Event] = []
    while (b"modest", [b"one"]) not in first:
        first += served.listener.events(PATIENCE_S)
    assert len(first) <= 2 * 64 + 1
    while len(first) < len(many) + 1:
        first += served.listener.events(PATIENCE_S)  # at once, though nothing more comes over a socket
    assert [parts for route, parts in first if route == b"greedy"] == [[each] for each in many]
    greedy.sendall(b"".join(map(framed, many)))
    greedy.close()
    served.until(lambda: (b"greedy", None) in served.came)
    assert served.came == [*((b"greedy", [each]) for each in many), (b"greedy", None)]
    modest.close()


@pytest.mark.parametrize("kind", [socket.AF_INET, socket.AF_UNIX])
def test_who_takes_nothing_and_goes_is_told_of(served: Served, kind: int, tmp_path: Path) -> None:
    if kind == socket.AF_INET:
        deaf = served.dealer(b"deaf")
    else:
        served.listener.bind(f"ipc://{tmp_path}/here")
        deaf = socket.socket(socket.AF_UNIX)
        deaf.connect(f"{tmp_path}/here")
        deaf.sendall(GREETING + ready(b"DEALER", b"deaf"))
    deaf.sendall(framed(b"question") * 200)
    served.until(lambda: served.came)
    for _ in range(10):
        served.listener.send(b"deaf", b"x" * 1_000_000)
    deaf.close()
    served.until(lambda: (b"deaf", None) in served.came)
    assert not served.listener._left
    with pytest.raises(Unreachable):
        served.listener.send(b"deaf", b"too late")


def test_what_the_system_does_not_take_at_once_is_sent_later(served: Served) -> None:
    connection = served.dealer()
    message = os.urandom(8_000_000)
    served.listener.send(b"somebody", message)
    served.listener.send(b"somebody", b"behind it")
    frames = Frames()
    found: list[bytes] = []
    frames.feed(GREETING + ready(b"ROUTER", b""))
    connection.setblocking(False)

    def arrived() -> bool:
        try:
            found.extend([body for _, body in frames.feed(connection.recv(1 << 20))])
        except BlockingIOError:
            pass
        return len(found) == 2

    served.until(arrived)
    assert found == [message, b"behind it"]
    connection.close()


def test_a_path_that_somebody_listens_at_is_not_taken(tmp_path: Path, served: Served) -> None:
    endpoint = f"ipc://{tmp_path}/here"
    assert served.listener.bind(endpoint) == endpoint
    other = Listener(served.wake[0])
    with pytest.raises(OSError, match="Address already in use"):
        other.bind(endpoint)
    other.close()
    assert (tmp_path / "here").exists()
    left = tmp_path / "left"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(left))
    assert served.listener.bind(f"ipc://{left}") == f"ipc://{left}"


def test_our_own_connection_meets_libzmqs_router(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    router = context.socket(zmq.ROUTER)
    router.set(zmq.RCVTIMEO, int(PATIENCE_S * 1000))
    port = router.bind_to_random_port("tcp://127.0.0.1")
    connection = Connection(f"tcp://127.0.0.1:{port}", b"me", PATIENCE_S)
    for message in (b"", b"short", b"x" * 256, b"x" * 100_000):
        connection.send(message)
        assert router.recv_multipart() == [b"me", message]
        router.send_multipart([b"me", message])
        received: list[bytes] = []
        while not received:
            received = connection.receive(1_000_000_000)
        assert received == [message]
    assert not connection.receive(0)
    router.send_multipart([b"me", b"two", b"parts"])

    def receive() -> None:
        while not connection.receive(1_000_000_000):
            pass

    with pytest.raises(Disconnected, match="more than one part"):
        receive()
    connection.close()
    router.close(linger=0)
    with pytest.raises(Disconnected, match="Connection refused"):
        Connection("tcp://127.0.0.1:1", b"me", 1.0)


@pytest.mark.parametrize("host", ["a..b", "x" * 64, "ä..b"])
def test_what_cannot_be_a_hosts_name_is_told_in_words(host: str) -> None:
    with pytest.raises(Disconnected, match="HOST cannot be a host's name"):
        Connection(f"tcp://{host}:1", b"me", 1.0)
