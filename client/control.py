"""One-shot commands carried out by the client that is up on the directory, over the local socket in it.

The request is one line of JSON. The answer is a line with the op's id when a change begins, and at its end one line of
JSON and then `bytes` bytes of content. Who hangs up before his op has begun takes it back.
"""

import json
import select
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Final

from common.names import is_op_id

VERSION: Final = 2
LINE_BYTES_MAX: Final = 8 * 1024 * 1024
TAKE_BACK_S: Final = 1.0
"""How long to wait for the word that an order was taken back, in seconds."""


@dataclass(frozen=True, slots=True)
class Order:
    """An op to do. `text` belongs to write and update, `of` to restore; it waits `wait_ms` for the lock.

    `retry` are the ids of its earlier tries.
    """

    verb: str
    file: str
    text: str
    of: int
    wait_ms: int
    retry: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """How the op ended: its outcome, its version and why; `content` is what a read saw."""

    outcome: str
    id: str
    seq: int
    hash: str
    reason: str
    content: bytes


def not_done(retry: tuple[str, ...], reason: str) -> Report:
    """Return what is known of an op that was not tried: of one whose earlier tries are unknown, no more than before."""
    return Report("unknown" if retry else "failed", retry[-1] if retry else "", 0, "", reason, b"")


def encode_order(order: Order) -> bytes:
    """Return the order's line."""
    return json.dumps({"version": VERSION, **asdict(order)}).encode() + b"\n"


def decode_order(line: bytes) -> Order:
    """Read an order. Raises ValueError, in words."""
    try:
        values = json.loads(line)
        if values.pop("version") != VERSION:
            raise ValueError(f"the order speaks another version than {VERSION}; use the same Lockstep")
        order = Order(**{**values, "retry": tuple(values["retry"])})
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("the order is malformed") from error
    texts = (order.verb, order.file, order.text)
    if any(type(text) is not str for text in texts) or any(type(n) is not int for n in (order.of, order.wait_ms)):
        raise ValueError("the order is malformed")
    if not 0 <= order.of < 1 << 40 or (order.of and order.verb != "restore"):
        raise ValueError("the order's version is malformed")
    if not all(type(id_) is str and is_op_id(id_) for id_ in order.retry):
        raise ValueError("the order's earlier tries are malformed")
    return order


def encode_begin(id_: str) -> bytes:
    """Return the line that tells the id of a change that begins."""
    return json.dumps({"version": VERSION, "id": id_}).encode() + b"\n"


def encode_report(report: Report) -> bytes:
    """Return the report's line and content."""
    head = {
        "version": VERSION,
        "outcome": report.outcome,
        "id": report.id,
        "seq": report.seq,
        "hash": report.hash,
        "reason": report.reason,
        "bytes": len(report.content),
    }
    return json.dumps(head).encode() + b"\n" + report.content


class Call:
    """An order to the client that is up. `id` is that of its op, "" as far as no change is known to have begun.

    `gone` tells that the client has hung up.
    """

    def __init__(self, connection: socket.socket, order: Order) -> None:
        """Use a connection to the client; it stays the caller's."""
        self._connection = connection
        self._unsent = memoryview(encode_order(order))
        self._came = bytearray()
        self.id = ""
        self.gone = False

    @property
    def given(self) -> bool:
        """Tell whether the whole order has left."""
        return not self._unsent

    def wait(self, wake: int | None = None, within_s: float | None = None) -> Report | None:
        """Give the order and wait for its report, `within_s` seconds, and until the descriptor `wake` is readable.

        None if it became so, the time is over, or the client went away (`gone`); then, without an id, no change has
        happened.
        """
        deadline = None if within_s is None else time.monotonic() + within_s
        return self._go_on([] if wake is None else [wake], deadline)

    def take_back(self) -> Report | None:
        """Have the op not happen if it has not begun; return its report, or None if none comes at once."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
            return self._go_on([], time.monotonic() + TAKE_BACK_S)
        return None

    def _go_on(self, wake: list[int], deadline: float | None) -> Report | None:
        connection, here = self._connection, self._connection.fileno()
        connection.setblocking(False)
        while True:
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            readable, writable, _ = select.select([here, *wake], [here] if self._unsent else [], [], left_s)
            if not readable and not writable:
                return None
            try:
                if writable:
                    self._unsent = self._unsent[connection.send(self._unsent) :]
                if here in readable:
                    data = connection.recv(1 << 20)
                    self._came += data
                    report = self._report()
                    self.gone = not data
                    if report is not None or self.gone:
                        return report
            except BlockingIOError:
                continue
            except OSError:
                self.gone = True
                return None
            if readable and here not in readable:
                return None

    def _report(self) -> Report | None:
        """Take in whole lines; return the report once it is whole."""
        while (end := self._came.find(b"\n") + 1) > 0:
            head = json.loads(self._came[:end])
            if "outcome" not in head:
                self.id = head["id"]
                del self._came[:end]
                continue
            content = bytes(self._came[end : end + head["bytes"]])
            if len(content) < head["bytes"]:
                return None
            return Report(head["outcome"], head["id"], head["seq"], head["hash"], head["reason"], content)
        return None


def ask(connection: socket.socket, order: Order) -> Report | None:
    """Give an order and wait for its report; None if the client went away without one."""
    return Call(connection, order).wait()
