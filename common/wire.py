"""Messages and records as bytes, and back: the one module that knows msgpack.

A message is one ZeroMQ frame: a byte with the protocol's version, then a msgpack array of the message's number
and its fields in their order. Types and ranges are checked by their annotations (msgspec), names by
common.names. `decode` raises WireError and nothing else, whatever the bytes.
"""

import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from msgspec import DecodeError, Struct
from msgspec.msgpack import Decoder, Encoder

from common.clock import Clock
from common.messages import FromLockd, FromReplica, Message, ToLockd, ToReplica
from common.names import endpoint_problem, file_name_problem, is_host, is_op_id
from common.records import Record, Version, chain
from common.values import Part

PROTOCOL_VERSION: Final = 4

Kind = TypeVar("Kind")
Check = Callable[[Any], None]


class WireError(ValueError):
    """Bytes that are no message of this protocol, in words."""


_VERSION: Final = bytes([PROTOCOL_VERSION])
_encode: Final = Encoder(order="deterministic").encode
_decode_record: Final = Decoder(Record).decode


def encode(message: Message) -> bytes:
    """Return the frame of a message."""
    return _VERSION + _encode(message)


def decode(frame: bytes, expected: type[Kind]) -> Kind:
    """Return the message in `frame`, one of the union `expected`. Raises WireError."""
    if frame[:1] != _VERSION:
        version = frame[0] if frame else "none"
        raise WireError(f"it speaks version {version} of the protocol, this is {PROTOCOL_VERSION}")
    decoded = _decoders.get(id(expected))  # unions are constants of a module; hashing one costs as much as decoding
    if decoded is None:
        decoded = _decoders[id(expected)] = Decoder(expected).decode
    try:
        message: Kind = decoded(frame[1:])
    except (DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"it cannot be decoded: {error}") from error
    check = _CHECKS.get(type(message))
    if check is not None:
        check(message)
    return message


def pack(value: Struct | Clock) -> bytes:
    """Return a value that lockd keeps in a file of its own, as msgpack."""
    return _encode(value)


def unpacker(kind: type[Kind]) -> Callable[[bytes], Kind]:
    """Return the reader of what `pack` made of values of one type. It raises DecodeError of msgspec."""
    return Decoder(kind).decode


def encode_record(record: Record) -> bytes:
    """Return the record's one encoding, the same on the wire and under the hash, for ever."""
    return _encode(record)


def decode_record(encoded: bytes) -> Record:
    """Return the record of which `encode_record` made these bytes. Raises WireError."""
    try:
        return _decode_record(encoded)
    except (DecodeError, UnicodeDecodeError) as error:
        raise WireError(f"it cannot be decoded: {error}") from error


def version_after(previous: Version, record: Record) -> Version:
    """Return the version that `record` makes out of `previous`."""
    return Version(record.seq, record.token, chain(previous.hash, _encode(record)))


# Checks of what a type cannot say, made once from the names and annotations of the fields.


def _is_identifier(text: str) -> bool:
    return len(text) == 16 and text.isascii() and text.isalnum()


def _checks(holds: Callable[[str], bool], problem: str) -> tuple[Check, Check]:
    """Return a check of one text, and one of many; what has passed is known, and costs a lookup from then on."""
    known: set[str] = set()

    def learn(texts: Iterable[str]) -> None:
        for text in texts:
            if not holds(text):
                raise WireError(problem)
            if len(known) >= _KNOWN_MAX:
                known.clear()
            known.add(text)

    def check(text: str) -> None:
        if text not in known:
            learn((text,))

    def check_all(texts: Iterable[str]) -> None:
        if not known.issuperset(texts):
            learn(texts)

    return check, check_all


def _op_id(text: str) -> None:
    if not is_op_id(text):
        raise WireError("an op id is malformed")


_KNOWN_MAX: Final = 4096
_host, _hosts = _checks(is_host, "a host's name is malformed")
_host_or_none, _ = _checks(lambda text: text == "" or is_host(text), "a host's name is malformed")
_identifier, _identifiers = _checks(_is_identifier, "an id is malformed")
_identifier_or_none, _ = _checks(lambda text: text == "" or _is_identifier(text), "an id is malformed")
_file, _ = _checks(lambda name: file_name_problem(name) is None, "a file's name is malformed")
_endpoint, _ = _checks(
    lambda text: len(text) <= 256 and not endpoint_problem(text, listening=False), "an endpoint is malformed"
)

_BY_NAME: Final[dict[str, Check]] = {
    "file": _file,
    "host": _host,
    "hosts": _hosts,
    "own_host": _host_or_none,
    "name": _host,
    "id": _op_id,
    "replica": _identifier_or_none,
    "group": _identifier_or_none,
    "incarnation": _identifier,
    "endpoint": _endpoint,
    "in_sync": _identifiers,
    "learners": _identifiers,
    "sources": _identifiers,
    "acked": _identifiers,
    "replicas": _identifiers,
}
"""Texts that are checked by what their field's name means."""


def _check_of(hint: Any, name: str) -> Check | None:
    """Return the check of a field's value, or None where its type says all."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint == Clock:
        return _hosts
    if hint in (str, tuple[str, ...]):
        return _BY_NAME.get(name)
    if isinstance(hint, type) and issubclass(hint, Part):
        return _fields_check(hint)
    if origin in (Union, types.UnionType):
        inner = [_check_of(argument, name) for argument in arguments if argument is not type(None)]
        return _optional(inner[0]) if len(inner) == 1 and inner[0] else None
    if origin is tuple and arguments[-1] is Ellipsis and (each := _check_of(arguments[0], "")):
        return _all(each)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return _map(_file, _check_of(arguments[1], ""))
    return None


def _fields_check(kind: type) -> Check | None:
    hints = get_type_hints(kind, include_extras=True)
    checks = [(name, check) for name, hint in hints.items() if (check := _check_of(hint, name))]

    def check_fields(value: Any) -> None:
        for name, check in checks:
            field = getattr(value, name)
            if field or field == "":  # where nothing is, nothing is malformed, but for a text
                check(field)

    return check_fields if checks else None


def _optional(inner: Check) -> Check:
    return lambda value: None if value is None else inner(value)


def _all(each: Check) -> Check:
    def check(values: Iterable[Any]) -> None:
        for value in values:
            each(value)

    return check


def _map(key: Check, item: Check | None) -> Check:
    def check(values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            key(name)
            if item:
                item(value)

    return check


_decoders: Final[dict[int, Callable[[bytes], Any]]] = {}
_CHECKS: Final[dict[type, Check]] = {
    kind: check
    for union in (ToLockd, FromLockd, ToReplica, FromReplica)
    for kind in get_args(union)
    if (check := _fields_check(kind))
}
