"""`python -P -m scripts.benchmark.raw echo|ack ...`: the far end of the raw limits, until SIGTERM.

echo SIZE binds a ROUTER, says where, and answers each message with SIZE bytes. ack SIZE ENDPOINT connects
a DEALER, says hello with one message, and answers likewise. Both block in copying calls, as cheap as pyzmq is.
"""

import os
import sys

import zmq

from common.sockets import caller, listener


def echo(size: int) -> None:
    """Answer whoever asks."""
    socket = listener(zmq.Context[zmq.Socket[bytes]]())
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    print(f"ready tcp://127.0.0.1:{port}", flush=True)
    answer = bytes(size)
    while True:
        route, _ = socket.recv_multipart()
        socket.send_multipart((route, answer))


def ack(size: int, endpoint: str) -> None:
    """Answer the one we are connected to."""
    socket = caller(zmq.Context[zmq.Socket[bytes]](), os.urandom(8).hex().encode())
    socket.connect(endpoint)
    answer = bytes(size)
    while True:
        socket.send(answer)
        socket.recv()


if __name__ == "__main__":
    if sys.argv[1] == "echo":
        echo(int(sys.argv[2]))
    else:
        ack(int(sys.argv[2]), sys.argv[3])
