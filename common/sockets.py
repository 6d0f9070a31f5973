"""Every ZeroMQ option that Lockstep relies on, in one place; none is left at its default by accident."""

import struct
from typing import Any, Final

import zmq
from zmq.backend import Socket

from common.limits import FRAME_BYTES_MAX, QUEUE_MESSAGES_MAX

_send: Final[Any] = Socket.send
_FRAMES_MAX: Final = 3
_EVENT: Final = struct.Struct("=HI")
_LAST: Final = int(zmq.NOBLOCK)
_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)


def _configure(socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    socket.set(zmq.LINGER, 0)
    socket.set(zmq.SNDHWM, QUEUE_MESSAGES_MAX)
    socket.set(zmq.RCVHWM, QUEUE_MESSAGES_MAX)
    socket.set(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)
    socket.set(zmq.RECONNECT_IVL, 5)
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


def receive(socket: zmq.Socket[bytes], *, routed: bool = True) -> list[bytes]:
    """Return the frames of the next message, of a ROUTER's (`routed`) two at least, and three at most.

    No message of ours has more; the others, a stranger's, are let go.

    Raises zmq.Again when there is none.
    """
    frames: list[bytes] = []
    if routed:
        frames.append(socket.recv(_LAST))
    # A Frame knows whether it is the last: cheaper than to ask the socket.
    frame = socket.recv(_LAST, copy=False)
    frames.append(frame.bytes)
    while frame.more:
        frame = socket.recv(_LAST, copy=False)
        if len(frames) < _FRAMES_MAX:
            frames.append(frame.bytes)
    return frames


def connections(socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    """Return the monitor of a caller, to poll: `states` reads from it."""
    return socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)


def states(monitor: zmq.Socket[bytes]) -> list[bool]:
    """Return how the connection changed since the last call: True for up, False for down."""
    return [event == zmq.EVENT_HANDSHAKE_SUCCEEDED for event, _ in _events(monitor)]


def _events(monitor: zmq.Socket[bytes]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    while True:
        try:
            frames = receive(monitor, routed=False)
        except zmq.Again:
            return found
        found.append(_EVENT.unpack(frames[0]))


def connect(socket: zmq.Socket[bytes], endpoint: str, own: bytes, theirs: bytes) -> None:
    """Connect a `fan`: messages to `theirs` go to `endpoint`, from this moment on, and come there from `own`.

    Both must be new with every connection. An earlier one under the same ids may not be gone yet: libzmq then
    ends this process for `theirs`, and the listener is deaf to `own`.
    """
    socket.set(zmq.ROUTING_ID, own)
    socket.set(zmq.CONNECT_ROUTING_ID, theirs)
    socket.connect(endpoint)
