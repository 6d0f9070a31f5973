"""What may be called how: clients, hosts, files, locks, texts. Each check returns the problem in words, or None."""

import re
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Final, TypeVar

from common.limits import (
    FILE_NAME_BYTES_MAX,
    FILE_NAME_PART_BYTES_MAX,
    LOCK_NAME_BYTES_MAX,
    NAME_LENGTH_MAX,
    TEXT_BYTES_MAX,
)

Answer = TypeVar("Answer")

_SEQ_DIGITS_MAX = 12
_REMEMBERED_MAX: Final = 4096
_REMEMBERED_LENGTH_MAX: Final = 512
"""Names that a check remembers, and the longest of them, in characters: strangers choose what is asked for."""
_CLIENT = re.compile(r"[A-Za-z0-9._-]+")
_HOST = re.compile(r"[A-Za-z0-9._-]+(#[1-9][0-9]{0,8})?")
_OP_ID = re.compile(r"[A-Za-z0-9._-]+(#[1-9][0-9]{0,8})?:[1-9][0-9]{0,18}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LINE_BREAK = re.compile(r"[\x00\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


def _remembered(check: Callable[[str], Answer]) -> Callable[[str], Answer]:
    """Return a check that remembers its newest answers, but for long names."""
    remembered = lru_cache(maxsize=_REMEMBERED_MAX)(check)

    @wraps(check)
    def answer(name: str) -> Answer:
        return remembered(name) if len(name) <= _REMEMBERED_LENGTH_MAX else check(name)

    return answer


def client_name_problem(name: str) -> str | None:
    """Tell what is wrong with a client's name."""
    if not name:
        return "a client's name cannot be empty"
    if len(name) > NAME_LENGTH_MAX:
        return f"a client's name has at most {NAME_LENGTH_MAX} characters"
    if not _CLIENT.fullmatch(name):
        return "a client's name holds only letters, digits, '.', '_' and '-'"
    return None


@_remembered
def is_host(host: str) -> bool:
    """Tell whether `host` can stand in a vector clock: a client's name, or name#2, name#3, ..."""
    return len(host) <= NAME_LENGTH_MAX + 10 and _HOST.fullmatch(host) is not None


def is_op_id(text: str) -> bool:
    """Tell whether `text` reads host:number."""
    return len(text) <= NAME_LENGTH_MAX + 30 and _OP_ID.fullmatch(text) is not None


@_remembered
def file_name_problem(name: str) -> str | None:
    """Tell what is wrong with a file's name: relative, UTF-8, parts without `..`, nothing empty."""
    if not name:
        return "a file's name cannot be empty"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "a file's name is valid UTF-8"
    if size > FILE_NAME_BYTES_MAX:
        return f"a file's name has at most {FILE_NAME_BYTES_MAX} bytes"
    if _CONTROL.search(name):
        return "a file's name holds no line breaks or other control characters"
    if name.startswith("/"):
        return "a file's name is relative to the replica; it cannot start with '/'"
    for part in name.split("/"):
        if part in ("", ".", ".."):
            return "a file's name has no empty part, '.' or '..'"
        if len(part.encode()) > FILE_NAME_PART_BYTES_MAX:
            return f"each part of a file's name has at most {FILE_NAME_PART_BYTES_MAX} bytes"
    return None


@_remembered
def lock_name_problem(name: str) -> str | None:
    """Tell what is wrong with the name of a lock without a file."""
    if not name:
        return "a lock's name cannot be empty"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "a lock's name is valid UTF-8"
    if size > LOCK_NAME_BYTES_MAX:
        return f"a lock's name has at most {LOCK_NAME_BYTES_MAX} bytes"
    if _CONTROL.search(name):
        return "a lock's name holds no line breaks or other control characters"
    return None


def parse_version(text: str) -> tuple[str, int]:
    """Read FILE@SEQ. Raises ValueError, in words."""
    file, at, seq = text.rpartition("@")
    if not at or not seq.isascii() or not seq.isdigit() or len(seq) > _SEQ_DIGITS_MAX:
        raise ValueError(f"{text!r}: a version reads FILE@SEQ, like notes.txt@42")
    if problem := file_name_problem(file):
        raise ValueError(f"FILE {file!r}: {problem}")
    return file, int(seq)


def text_problem(text: str) -> str | None:
    """Tell what is wrong with the TEXT of a write or update."""
    if _LINE_BREAK.search(text):
        return "a TEXT is one line: it holds no line break and no NUL"
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "a TEXT is valid UTF-8"
    if size > TEXT_BYTES_MAX:
        return f"a TEXT has at most {TEXT_BYTES_MAX} bytes"
    return None


def parse_address(text: str) -> tuple[str, int]:
    """Read HOST:PORT or [HOST]:PORT, where port 0 is a free one. Raises ValueError, in words."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not host or not host.isprintable() or " " in host:
        raise ValueError("an address reads HOST:PORT, as in 127.0.0.1:9464")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) < 65536):
        raise ValueError(f"{port!r} is no port; use 1 to 65535, or 0 for a free one")
    return host, int(port)


def endpoint_problem(endpoint: str, *, listening: bool) -> str | None:
    """Tell what is wrong with a ZeroMQ endpoint; only a listener may leave the port to the system, with `*`."""
    if endpoint.startswith("ipc://") and len(endpoint) > len("ipc://"):
        return None
    host, colon, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not endpoint.startswith("tcp://") or not colon or not host or "/" in host:
        return "an endpoint reads tcp://HOST:PORT or ipc://PATH"
    if ":" in host:
        return "HOST is a host's name or an IPv4 address; IPv6 is not there"
    if not _is_resolvable(host):
        return "HOST cannot be a host's name"
    if listening and port == "*":
        return None
    if not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
        return f"{port!r} is no port; use 1 to 65535" + (", or * for a free one" if listening else "")
    return None


def _is_resolvable(host: str) -> bool:
    """Tell whether a resolver can be asked for a host; for what is no domain name Python raises instead."""
    if host.isascii():  # as the codec "idna", which takes milliseconds to import
        return all(0 < len(part) < 64 for part in host.removesuffix(".").split("."))
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True
