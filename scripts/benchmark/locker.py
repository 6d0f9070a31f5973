"""A client that only locks, as small as the protocol allows; as a program it takes part in the hand-offs.

`python -P -m scripts.benchmark.locker ENDPOINT NAME` says `ready`, reads "START END" (monotonic nanoseconds)
from stdin, takes and gives back one lock between them, and prints its waits, in microseconds, as JSON.
"""

import json
import os
import sys
import time
from typing import Final

import zmq

from common.messages import Acquire, FromLockd, Grant, Hello, Release, Welcome
from common.records import EMPTY
from common.sockets import caller, send
from common.wire import decode, encode
from scripts.benchmark.samples import LOCK

_WAIT_MS: Final = 10_000


class Locker:
    """A session without a replica."""

    def __init__(self, endpoint: str, name: str) -> None:
        """Open the session."""
        incarnation = os.urandom(8).hex()
        self._context = zmq.Context[zmq.Socket[bytes]]()
        self._socket = caller(self._context, incarnation.encode())
        self._socket.set(zmq.RCVTIMEO, _WAIT_MS + 1000)
        self._socket.connect(endpoint)
        self._request = 1
        self._socket.send(encode(Hello(1, name, incarnation, None, "", 0, "", 0, 0, ())))
        welcome = self._receive()
        assert isinstance(welcome, Welcome), welcome
        self._epoch, self._session = welcome.epoch, welcome.session

    def acquire(self) -> int:
        """Wait for the lock; return its token."""
        self._request += 1
        acquire = Acquire(
            self._epoch, self._session, self._request, LOCK, "plain", "exclusive", _WAIT_MS, 0, 0, 0, False
        )
        send(self._socket, encode(acquire))
        grant = self._receive()
        assert isinstance(grant, Grant), grant
        return grant.token

    def release(self, token: int) -> None:
        """Give the lock back, one-way."""
        release = Release(self._epoch, self._session, 0, LOCK, token, EMPTY, {}, False, (), False, False)
        send(self._socket, encode(release))

    def cycle(self) -> None:
        """Acquire and release."""
        self.release(self.acquire())

    def close(self) -> None:
        """Close the socket; lockd finds out by itself."""
        self._context.destroy(linger=500)

    def _receive(self) -> FromLockd:
        message: FromLockd = decode(self._socket.recv(), FromLockd)  # type: ignore[arg-type]
        return message


def _hand_over(endpoint: str, name: str) -> None:
    locker = Locker(endpoint, name)
    print("ready", flush=True)
    start_ns, end_ns = map(int, sys.stdin.readline().split())
    time.sleep(max(0.0, (start_ns - time.monotonic_ns()) / 1e9))
    waits_us = []
    while (began_ns := time.monotonic_ns()) < end_ns:
        token = locker.acquire()
        waits_us.append((time.monotonic_ns() - began_ns) / 1000)
        locker.release(token)
    print(json.dumps(waits_us))
    locker.close()


if __name__ == "__main__":
    _hand_over(sys.argv[1], sys.argv[2])
