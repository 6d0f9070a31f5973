"""The running client's side of the local socket: orders in, reports out, never blocking the node."""

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

import zmq

from client.control import LINE_BYTES_MAX, Order, Report, decode_order, encode_begin, encode_report, not_done
from common.names import file_name_problem, text_problem

if TYPE_CHECKING:
    from client.effects import OpVerb
    from client.node import Result


WAIT_MS_MAX: Final = 1 << 53
"""Longer waits than that are cut, or the message to lockd could not hold them."""


class SubmitOp(Protocol):
    """Node.submit, as the desk uses it."""

    def __call__(
        self,
        verb: "OpVerb",
        file: str,
        done: "Callable[[Result], None]",
        *,
        text: str = "",
        of: int = 0,
        wait_ns: int,
        retry: tuple[str, ...] = (),
        begin: Callable[[str], bool] | None = None,
    ) -> None:
        """Ask for an op. With its lock, call `begin` with its id, and do it if that is True; call `done` at its end."""


@dataclass(slots=True)
class _Caller:
    """A connection: what it has said so far, what it has not taken yet, and how far its order has come."""

    connection: socket.socket
    said: bytearray = field(default_factory=bytearray)
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))
    retry: tuple[str, ...] = ()
    ordered: bool = False
    begun: bool = False
    hung_up: bool = False
    answered: bool = False


class OrderDesk:
    """Accepts connections on the listening socket and carries out one order for each."""

    def __init__(self, listening: socket.socket, poller: zmq.Poller, submit: SubmitOp) -> None:
        """Register with the node's poller."""
        self._listening, self._poller, self._submit = listening, poller, submit
        self._callers: dict[int, _Caller] = {}
        poller.register(listening.fileno(), zmq.POLLIN)

    def serve(self, ready: dict[Any, int]) -> None:
        """Go on with whatever the poller found ready."""
        if self._listening.fileno() in ready:
            self._accept()
        for descriptor in [number for number in ready if number in self._callers]:
            caller = self._callers[descriptor]
            if caller.unsent:
                self._send(caller)
            elif caller.ordered:
                self._take_back(caller)
            else:
                self._receive(caller)

    def close(self) -> None:
        """Hang up on everybody."""
        for caller in list(self._callers.values()):
            self._drop(caller)
        self._poller.unregister(self._listening.fileno())
        self._listening.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except OSError:
            return
        connection.setblocking(False)
        self._callers[connection.fileno()] = _Caller(connection)
        self._poller.register(connection.fileno(), zmq.POLLIN)

    def _receive(self, caller: _Caller) -> None:
        try:
            data = caller.connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        caller.said += data
        if caller.said.endswith(b"\n"):
            caller.ordered = True
            self._carry_out(caller)
        elif not data or len(caller.said) > LINE_BYTES_MAX:
            self._drop(caller)

    def _carry_out(self, caller: _Caller) -> None:
        def begin(id_: str) -> bool:
            if order.verb != "read" and not caller.hung_up:
                self._tell(caller, encode_begin(id_))
            caller.begun = not caller.hung_up
            return caller.begun

        def done(result: "Result") -> None:
            finished = result.finished
            self._answer(
                caller,
                Report(
                    finished.outcome,
                    finished.id,
                    finished.version.seq,
                    finished.version.hash.hex()[:12],
                    finished.reason,
                    result.content if finished.outcome == "ok" else b"",
                ),
            )

        try:
            order = decode_order(bytes(caller.said))
            verb = _verb(order)
        except ValueError as error:
            self._answer(caller, Report("failed", "", 0, "", str(error), b""))
            return
        caller.retry = order.retry
        wait_ms = min(max(0, order.wait_ms), WAIT_MS_MAX)
        self._submit(
            verb,
            order.file,
            done,
            text=order.text,
            of=order.of,
            wait_ns=wait_ms * 1_000_000,
            retry=order.retry,
            begin=begin,
        )

    def _take_back(self, caller: _Caller) -> None:
        """Take in that a caller wants nothing any more: an op that has not begun never will, and it is told so."""
        caller.hung_up = True
        if caller.begun:
            self._drop(caller)
        else:
            self._answer(caller, not_done(caller.retry, "it was taken back"))

    def _answer(self, caller: _Caller, report: Report) -> None:
        if not caller.answered:
            caller.answered = True
            self._tell(caller, encode_report(report))

    def _tell(self, caller: _Caller, said: bytes) -> None:
        if caller.connection.fileno() >= 0:
            caller.unsent = memoryview(bytes(caller.unsent) + said)
            self._send(caller)

    def _send(self, caller: _Caller) -> None:
        try:
            sent = caller.connection.send(caller.unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(caller)
            return
        caller.unsent = caller.unsent[sent:]
        if caller.unsent:
            self._poller.modify(caller.connection.fileno(), zmq.POLLOUT)
        elif caller.answered:
            self._drop(caller)
        else:
            self._poller.modify(caller.connection.fileno(), zmq.POLLIN)

    def _drop(self, caller: _Caller) -> None:
        caller.hung_up = True
        descriptor = caller.connection.fileno()
        if self._callers.pop(descriptor, None) is not None:
            self._poller.unregister(descriptor)
            caller.connection.close()


def _verb(order: Order) -> "OpVerb":
    problem = file_name_problem(order.file) or text_problem(order.text)
    if problem:
        raise ValueError(problem)
    match order.verb:
        case "read" | "write" | "update" | "restore":
            return order.verb
        case _:
            raise ValueError(f"the verb {order.verb!r} is unknown")
