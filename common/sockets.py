"""Every ZeroMQ option that Lockstep relies on, in one place; none is left at its default by accident."""

from typing import Any, Final

import zmq
from zmq.backend import Socket

from common.limits import FRAME_BYTES_MAX, QUEUE_MESSAGES_MAX

_send: Final[Any] = Socket.send
_FRAMES_MAX: Final = 3
_LAST: Final = int(zmq.NOBLOCK)
_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)


def _configure(socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    socket.set(zmq.LINGER, 0)
    socket.set(zmq.SNDHWM, QUEUE_MESSAGES_MAX)
    socket.set(zmq.RCVHWM, QUEUE_MESSAGES_MAX)
    socket.set(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)
    socket.set(zmq.RECONNECT_IVL, 20)
    socket.set(zmq.RECONNECT_IVL_MAX, 500)
    socket.set(zmq.TCP_KEEPALIVE, 1)
    socket.set(zmq.IPV6, 0)
    return socket


def listener(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    """Return a ROUTER to bind: what cannot be sent is an error to see, never dropped in silence."""
    socket = _configure(context.socket(zmq.ROUTER))
    socket.set(zmq.ROUTER_MANDATORY, 1)
    return socket


def caller(context: zmq.Context[zmq.Socket[bytes]], routing_id: bytes) -> zmq.Socket[bytes]:
    """Return a DEALER to connect to lockd; `routing_id` is unique to this start of the process."""
    socket = _configure(context.socket(zmq.DEALER))
    socket.set(zmq.ROUTING_ID, routing_id)
    return socket


def fan(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    """Return a ROUTER that connects to many listeners, each by `connect`."""
    return listener(context)


def send(socket: zmq.Socket[bytes], *frames: bytes) -> None:
    """Send one message, of a ROUTER the route and a frame, without waiting.

    Raises zmq.Again when the queue is full, ZMQError when the peer is unknown.
    Like `receive`, it calls pyzmq's core past its convenience layer, which costs more than the work itself.
    """
    if len(frames) == 2:
        _send(socket, frames[0], _MORE)
    _send(socket, frames[-1], _LAST)


def receive(socket: zmq.Socket[bytes], *, routed: bool = True, wait: bool = False) -> list[bytes]:
    """Return the frames of the next message, of a ROUTER's (`routed`) two at least, and three at most.

    No message of ours has more; the others, a stranger's, are let go.

    Raises zmq.Again when there is none (`wait`: within RCVTIMEO).
    """
    flags = 0 if wait else _LAST
    frames: list[bytes] = []
    if routed:
        frames.append(socket.recv(flags))
        flags = _LAST
    # A Frame knows whether it is the last: cheaper than to ask the socket.
    frame = socket.recv(flags, copy=False)
    frames.append(frame.bytes)
    while frame.more:
        frame = socket.recv(_LAST, copy=False)
        if len(frames) < _FRAMES_MAX:
            frames.append(frame.bytes)
    return frames


def connect(socket: zmq.Socket[bytes], endpoint: str, own: bytes, theirs: bytes) -> None:
    """Connect a `fan`: messages to `theirs` go to `endpoint`, from this moment on, and come there from `own`.

    Both must be new with every connection. An earlier one under the same ids may not be gone yet: libzmq then
    ends this process for `theirs`, and the listener is deaf to `own`.
    """
    socket.set(zmq.ROUTING_ID, own)
    socket.set(zmq.CONNECT_ROUTING_ID, theirs)
    socket.connect(endpoint)
