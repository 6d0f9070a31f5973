"""The ZeroMQ sockets as Lockstep sets them up: what cannot be sent is told, and connections can be made anew."""

from collections.abc import Iterator

import pytest
import zmq

from common.limits import FRAME_BYTES_MAX
from common.sockets import caller, connect, fan, listener
from tests.group import WITHIN_S

WITHIN_MS = int(WITHIN_S * 1000)


class Network:
    """Sockets in one context, closed together."""

    def __init__(self) -> None:
        self.context = zmq.Context[zmq.Socket[bytes]]()
        self._sockets: list[zmq.Socket[bytes]] = []

    def keep(self, socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
        self._sockets.append(socket)
        return socket

    def bound(self) -> tuple[zmq.Socket[bytes], str]:
        """Return a listener and where it listens."""
        socket = self.keep(listener(self.context))
        socket.bind("tcp://127.0.0.1:*")
        endpoint = socket.get(zmq.LAST_ENDPOINT)
        assert isinstance(endpoint, bytes)
        return socket, endpoint.rstrip(b"\0").decode()

    def caller(self, name: bytes) -> zmq.Socket[bytes]:
        return self.keep(caller(self.context, name))

    def fan(self) -> zmq.Socket[bytes]:
        return self.keep(fan(self.context))


@pytest.fixture
def network() -> Iterator[Network]:
    network = Network()
    yield network
    network.context.destroy(linger=0)


def received(socket: zmq.Socket[bytes]) -> list[bytes]:
    assert socket.poll(WITHIN_MS), "nothing came"
    return socket.recv_multipart()


def test_a_caller_is_known_by_its_id_and_gets_its_answer(network: Network) -> None:
    lockd, endpoint = network.bound()
    client = network.caller(b"client")
    client.connect(endpoint)
    client.send(b"hello")
    assert received(lockd) == [b"client", b"hello"]
    lockd.send_multipart([b"client", b"welcome"], zmq.NOBLOCK)
    assert received(client) == [b"welcome"]


def test_what_nobody_can_get_is_told(network: Network) -> None:
    lockd, _ = network.bound()
    with pytest.raises(zmq.ZMQError) as raised:
        lockd.send_multipart([b"nobody", b"welcome"], zmq.NOBLOCK)
    assert raised.value.errno == zmq.EHOSTUNREACH


def test_a_frame_over_the_limit_does_not_come_in(network: Network) -> None:
    lockd, endpoint = network.bound()
    large, good = network.caller(b"large"), network.caller(b"good")
    monitor = network.keep(large.get_monitor_socket(zmq.EVENT_DISCONNECTED))
    large.connect(endpoint)
    large.send(bytes(FRAME_BYTES_MAX + 1))
    assert monitor.poll(WITHIN_MS), "lockd does not hang up"
    good.connect(endpoint)
    good.send(b"hello")
    assert received(lockd) == [b"good", b"hello"]


def test_a_fan_reaches_many_each_under_its_own_id(network: Network) -> None:
    replicas = [network.bound() for _ in range(3)]
    client = network.fan()
    for number, (_, endpoint) in enumerate(replicas):
        connect(client, endpoint, b"me.%d" % number, b"replica.%d" % number)
    for number, (replica, _) in enumerate(replicas):
        client.send_multipart([b"replica.%d" % number, b"push"], zmq.NOBLOCK)
        assert received(replica) == [b"me.%d" % number, b"push"]
        replica.send_multipart([b"me.%d" % number, b"ack"], zmq.NOBLOCK)
        assert received(client) == [b"replica.%d" % number, b"ack"]


def test_a_replica_that_left_and_came_back_is_reached_at_once(network: Network) -> None:
    """Both views may come in one batch; with the ids used before, libzmq would end this very process."""
    replica, endpoint = network.bound()
    client = network.fan()
    for number in range(50):
        own, theirs = b"me.%d" % number, b"replica.%d" % number
        connect(client, endpoint, own, theirs)
        client.send_multipart([theirs, b"push"], zmq.NOBLOCK)
        assert received(replica) == [own, b"push"]
        client.disconnect(endpoint)
