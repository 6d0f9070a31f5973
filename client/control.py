"""One-shot commands carried out by the client that is up on the directory, over the local socket in it.

The request is one line of JSON, the answer one line of JSON and then `bytes` bytes of content.
"""

import json
import socket
from dataclasses import asdict, dataclass
from typing import Final

from common.names import is_op_id

VERSION: Final = 1
LINE_BYTES_MAX: Final = 8 * 1024 * 1024


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


def ask(connection: socket.socket, order: Order) -> Report | None:
    """Send an order and wait for its report; None if the client went away without one."""
    try:
        connection.sendall(encode_order(order))
        with connection.makefile("rb") as stream:
            line = stream.readline()
            if not line.endswith(b"\n"):
                return None
            head = json.loads(line)
            content = stream.read(head["bytes"])
    except OSError:
        return None
    if len(content) < head["bytes"]:
        return None
    return Report(head["outcome"], head["id"], head["seq"], head["hash"], head["reason"], content)
