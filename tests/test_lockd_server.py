"""lockd's driver over real sockets: what it makes durable together, and what it takes in before a lease may end."""

import fcntl
import os
import select
import signal
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client.operator import inspect
from common.messages import Acquire, Ended, FromLockd, Hello, Ping, Pong, ToLockd, Welcome
from common.moments import SteadyClock
from common.stopping import Stop
from common.wire import decode, encode
from common.zmtp import COMMAND, GREETING, Frames, framed, ready
from lockd.server import Server
from tests.group import WITHIN_S, Group, until

TTL_NS = 3_000_000_000
STORM = 256


class Dealer:
    """A client's connection. It sends without waiting for anything, and is read whenever it is asked."""

    def __init__(self, endpoint: str, name: str) -> None:
        host, port = endpoint.removeprefix("tcp://").split(":")
        self.name = name
        self.socket = socket.create_connection((host, int(port)))
        self.socket.sendall(GREETING + ready(b"DEALER", name.encode()))
        self.socket.setblocking(False)
        self.is_up = False
        self.came: list[FromLockd] = []
        self._frames = Frames()

    def hello(self) -> None:
        self.send(Hello(1, self.name, f"{self.name.encode().hex():f>16}", None, "", 0, "", 0, 0, ()))

    def send(self, message: ToLockd) -> None:
        self.socket.sendall(framed(encode(message)))

    def is_there(self) -> bool:
        """Tell whether the other side's kernel has all that was sent."""
        (unsent,) = struct.unpack("i", fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4)))
        return bool(unsent == 0)

    def read(self) -> bool:
        """Take in what has come; return whether the connection is still open."""
        try:
            while chunk := self.socket.recv(1 << 16):
                for flags, body in self._frames.feed(chunk):
                    self.is_up = True
                    if not flags & COMMAND:
                        self.came.append(decode(body, FromLockd))  # type: ignore[arg-type]
        except BlockingIOError:
            return True
        except ConnectionResetError:
            pass
        return False

    def all(self, kind: type) -> list[FromLockd]:
        self.read()
        return [message for message in self.came if isinstance(message, kind)]


@pytest.fixture
def dealers() -> Iterator[Callable[[str, str], Dealer]]:
    made: list[Dealer] = []

    def make(endpoint: str, name: str) -> Dealer:
        made.append(Dealer(endpoint, name))
        return made[-1]

    yield make
    for dealer in made:
        dealer.socket.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A bound lockd, which serves when a test has it do so, until SIGUSR1."""
    stop = Stop((signal.SIGUSR1,))
    made = Server(stop, ["tcp://127.0.0.1:*"], tmp_path / "lockd", TTL_NS, 0)
    yield made
    made.close()
    stop.close()


def test_sessions_that_begin_together_cost_few_syncs(server: Server, dealers: Callable[[str, str], Dealer]) -> None:
    storm = [dealers(server.endpoints[0], f"c{number}") for number in range(STORM)]
    for dealer in storm:
        dealer.hello()
    until(lambda: all(dealer.is_there() for dealer in storm), "all that was sent has come")

    def end_when_all_are_welcome() -> None:
        try:
            until(lambda: all(dealer.all(Welcome) for dealer in storm), "all are welcome")
        finally:
            os.kill(os.getpid(), signal.SIGUSR1)

    watching = threading.Thread(target=end_when_all_are_welcome)
    watching.start()
    server.serve(lambda _: None, lambda _: None)
    watching.join()
    assert len(server.core.sessions) == STORM
    assert 0 < sum(server.core.figures.persists.counts) <= STORM // 16


def test_who_was_told_of_a_session_finds_it_again_behind_a_kill(
    group: Group, dealers: Callable[[str, str], Dealer]
) -> None:
    lockd = group.lockd("--ttl", "60s")
    storm = [dealers(group.endpoint, f"c{number}") for number in range(STORM)]
    for dealer in storm:
        until(lambda dealer=dealer: dealer.read() and dealer.is_up, "it is connected")  # type: ignore[misc]
    lockd.send(signal.SIGSTOP)
    for dealer in storm:
        dealer.hello()
    until(lambda: all(dealer.is_there() for dealer in storm), "all that was sent has come")
    lockd.send(signal.SIGCONT)
    assert select.select([dealer.socket for dealer in storm], [], [], WITHIN_S)[0], "nobody is welcome"
    lockd.stop(signal.SIGKILL)  # while others wait for theirs
    for dealer in storm:
        until(lambda dealer=dealer: not dealer.read(), "the connection is down")  # type: ignore[misc]
    welcome = {dealer.name for dealer in storm if dealer.all(Welcome)}
    group.lockd("--ttl", "60s")
    assert welcome
    assert welcome <= set(inspect(group.endpoint, "").expected)


class StandingClock(SteadyClock):
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        super().__init__()
        self.at_ns = time.time_ns()

    def now_ns(self) -> int:
        return self.at_ns


def test_a_ping_that_has_come_counts_before_the_lease_ends_however_late_it_is_read(
    server: Server, dealers: Callable[[str, str], Dealer]
) -> None:
    server.clock = clock = StandingClock()
    alive, silent = (dealers(server.endpoints[0], name) for name in ("alive", "silent"))

    def be_busy(_: str) -> None:
        """Within lockd's turn: both get a session, one says that it is alive, and then both leases are over."""
        for dealer in (alive, silent):
            dealer.hello()
            until(lambda dealer=dealer: server._take_in_all(0) or dealer.all(Welcome), "welcome")  # type: ignore[misc]
        (welcome,) = alive.all(Welcome)
        assert isinstance(welcome, Welcome)
        alive.send(Ping(welcome.epoch, welcome.session, 2))
        until(alive.is_there, "the ping has come")
        clock.at_ns += TTL_NS
        signal.raise_signal(signal.SIGUSR1)  # so that this turn is the last one

    server.serve(be_busy, lambda _: None)
    until(lambda: silent.all(Ended), "the lease of who said nothing is over")
    until(lambda: alive.all(Pong) or alive.all(Ended), "the other one is answered")
    assert not alive.all(Ended)


def test_who_sends_malformed_messages_only_is_closed(server: Server, dealers: Callable[[str, str], Dealer]) -> None:
    bad, good = (dealers(server.endpoints[0], name) for name in ("bad", "good"))
    for dealer in (bad, good):
        dealer.hello()
        until(lambda dealer=dealer: server._take_in_all(0) or dealer.all(Welcome), "welcome")  # type: ignore[misc]
    bad.socket.sendall(framed(b"") * 1000)
    until(lambda: server._take_in_all(0) or not bad.read(), "it is closed")
    while server._take_in_all(0):
        pass
    assert 100 <= server.core.figures.malformed < 1000
    assert {session.host: session.connected for session in server.core.sessions.values()} == {
        "bad": False,
        "good": True,
    }
    (welcome,) = good.all(Welcome)
    assert isinstance(welcome, Welcome)
    good.send(Ping(welcome.epoch, welcome.session, 2))
    until(lambda: server._take_in_all(0) or good.all(Pong), "the other one is answered")


def test_a_malformed_message_is_told_of_in_few_words(
    server: Server, dealers: Callable[[str, str], Dealer], tmp_path: Path
) -> None:
    bad = dealers(server.endpoints[0], "bad")
    mode: Any = "x" * 100_000
    bad.send(Acquire(1, 1, 1, "jobs", "plain", mode, 0, 0, 0, 0, False))
    until(lambda: server._take_in_all(0) and server.core.figures.malformed, "it has come")
    log = (tmp_path / "lockd" / "lockd.log").read_text()
    assert "dropped a message of 626164: it cannot be decoded: Invalid enum value 'xxx" in log
    assert all(len(line) < 300 for line in log.splitlines())
