"""What this machine can do at best: raw ZeroMQ messages, a durable append."""

import os
from types import TracebackType
from typing import Final, Self

import zmq

from common.sockets import caller, listener
from scripts.benchmark.figures import Row, p50_of
from scripts.benchmark.processes import NotMeasured, Stage, stage
from scripts.benchmark.samples import ACK, ACQUIRE_FILE, GRANT_FILE, PUSH
from scripts.benchmark.sampling import Effort, interleave

PEERS: Final = 3
_RECEIVE_MS: Final = 10_000


class Limits:
    """The limits, each an act to be timed. A context: it closes what it opened; the stage ends the peers."""

    def __init__(self, place: Stage, request_bytes: int = ACQUIRE_FILE, answer_bytes: int = GRANT_FILE) -> None:
        """Start an echo that answers `request_bytes` with `answer_bytes`, and three that ack a push."""
        self._context = zmq.Context[zmq.Socket[bytes]]()
        self._asking = caller(self._context, b"bench")
        self._request = bytes(request_bytes)
        self._push = bytes(PUSH)
        self.echo = echo = place.python("raw-echo", "scripts.benchmark.raw", "echo", str(answer_bytes))
        self._asking.connect(echo.line("ready").split()[1])
        self._pushing = listener(self._context)
        port = self._pushing.bind_to_random_port("tcp://127.0.0.1")
        for number in range(PEERS):
            place.python(f"raw-ack-{number}", "scripts.benchmark.raw", "ack", str(ACK), f"tcp://127.0.0.1:{port}")
        for socket in (self._asking, self._pushing):
            socket.set(zmq.RCVTIMEO, _RECEIVE_MS)
        try:
            self._routes = [self._pushing.recv_multipart()[0] for _ in range(PEERS)]
        except zmq.Again:
            raise NotMeasured("the raw peers did not come up") from None
        self._line = b"x" * 199 + b"\n"
        self._file = os.open(place.directory / "append", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def round_trip(self) -> None:
        """Send an acquire's bytes and get a grant's, DEALER to ROUTER and back."""
        self._asking.send(self._request)
        self._asking.recv()

    def broadcast(self) -> None:
        """Send a push's bytes to three processes and get an ack's from each."""
        for route in self._routes:
            self._pushing.send_multipart((route, self._push))
        for _ in self._routes:
            self._pushing.recv_multipart()

    def op(self) -> None:
        """Send and get what a full op does, without the op: a round trip, then a broadcast."""
        self.round_trip()
        self.broadcast()

    def append(self) -> None:
        """Append a line of 200 bytes to a file and wait for the disk."""
        os.write(self._file, self._line)
        os.fdatasync(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.destroy(linger=0)
        os.close(self._file)


def measure(effort: Effort) -> list[Row]:
    """Return the limits themselves, which nothing is compared with."""
    with stage() as place, Limits(place) as limits:
        blocks = interleave({"round trip": limits.round_trip, "broadcast": limits.broadcast}, effort) | interleave(
            {"append": limits.append}, effort, block=20
        )
    told = {
        "round trip": f"DEALER, ROUTER, tcp loopback, {ACQUIRE_FILE} bytes there and {GRANT_FILE} back, p50",
        "broadcast": f"ROUTER to {PEERS} DEALERs, {PUSH} bytes to each, {ACK} back from each, p50",
        "append": "os.write of 200 bytes and fdatasync, p50",
    }
    return [Row(f"raw {name}", told[name], p50_of(blocks[name]), "µs") for name in blocks]
