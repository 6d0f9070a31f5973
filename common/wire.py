"""Messages and records as bytes, and back: the one module that knows msgpack.

A message is one ZeroMQ frame: a msgpack array of the protocol's version, the message's number and its
fields in the order of its dataclass. `decode` raises WireError and nothing else, whatever the bytes.
"""

import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from operator import attrgetter
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgpack

from common import messages
from common.clock import Clock
from common.names import endpoint_problem, file_name_problem, is_host, is_op_id
from common.records import Record, Version, chain

PROTOCOL_VERSION: Final = 1

_CODES: Final[dict[int, type]] = {
    1: messages.Hello,
    2: messages.Goodbye,
    3: messages.Ping,
    4: messages.Acquire,
    5: messages.Cancel,
    6: messages.Release,
    7: messages.Drop,
    8: messages.Report,
    33: messages.Welcome,
    34: messages.Pong,
    35: messages.Grant,
    36: messages.Refused,
    37: messages.Released,
    38: messages.InSync,
    39: messages.View,
    40: messages.Learn,
    41: messages.Admitted,
    42: messages.Settle,
    43: messages.Stale,
    44: messages.Ended,
    65: messages.Push,
    66: messages.Fetch,
    97: messages.Ack,
    98: messages.Fenced,
    99: messages.Fetched,
}
"""A message's number never changes and is never used again."""

Read = Callable[[Any], Any]
Message = TypeVar("Message")


class WireError(ValueError):
    """Bytes that are no message of this protocol, in words."""


def encode(message: object) -> bytes:
    """Return the frame of a message."""
    code, values_of, writers = _WRITERS[type(message)]
    values = [PROTOCOL_VERSION, code, *values_of(message)]
    for place, write in writers:
        values[place] = write(values[place])
    return _pack(values)


def decode(frame: bytes, expected: type[Message]) -> Message:
    """Return the message in `frame`, one of the union `expected`. Raises WireError."""
    try:
        values = _unpack(frame)
        if type(values) is not list or len(values) < 2:
            raise WireError("it is not a message")
        if values[0] != PROTOCOL_VERSION:
            raise WireError(f"it speaks version {values[0]!r} of the protocol, this is {PROTOCOL_VERSION}")
        code = values[1]
        entry = _READERS.get(code) if type(code) is int else None
        if entry is None:
            raise WireError(f"it has the unknown number {code!r}")
        kind, read = entry
        if kind not in _members(expected):
            raise WireError(f"a {kind.__name__} does not belong here")
        message: Message = read(values[2:])
        return message
    except WireError:
        raise
    except Exception as error:  # msgpack raises many kinds, and no bytes may stop a process
        raise WireError(f"it cannot be decoded ({type(error).__name__})") from error


def encode_record(record: Record) -> bytes:
    """Return the record's one encoding, the same on the wire and under the hash, for ever."""
    return _pack(_write_record(record))


def version_after(previous: Version, record: Record) -> Version:
    """Return the version that `record` makes out of `previous`."""
    return Version(record.seq, record.token, chain(previous.hash, encode_record(record)))


_packer: Final = msgpack.Packer(use_bin_type=True)


def _pack(value: object) -> bytes:
    packed: bytes = _packer.pack(value)
    return packed


def _unpack(data: bytes) -> Any:
    return msgpack.unpackb(data, raw=False, strict_map_key=True)


# Readers: one for each kind of field, made once from the dataclasses' annotations.


_INTEGER_END: Final = 1 << 63


def _integer(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _INTEGER_END:
        raise WireError("a number is out of range")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise WireError("a text was expected")
    return value


def _bytes(value: Any) -> bytes:
    if type(value) is not bytes:
        raise WireError("bytes were expected")
    return value


def _hash(value: Any) -> bytes:
    if type(value) is not bytes or len(value) != 16:
        raise WireError("a hash has 16 bytes")
    return value


def _boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise WireError("true or false was expected")
    return value


def _host(value: Any) -> str:
    if type(value) is not str or not is_host(value):
        raise WireError("a host's name is malformed")
    return value


def _identifier(value: Any) -> str:
    if type(value) is not str or len(value) != 16 or not value.isascii() or not value.isalnum():
        raise WireError("an id is malformed")
    return value


def _identifier_or_none(value: Any) -> str:
    return "" if value == "" else _identifier(value)


def _op_id(value: Any) -> str:
    if type(value) is not str or not is_op_id(value):
        raise WireError("an op id is malformed")
    return value


def _file(value: Any) -> str:
    if type(value) is not str or file_name_problem(value) is not None:
        raise WireError("a file's name is malformed")
    return value


def _endpoint(value: Any) -> str:
    if type(value) is not str or len(value) > 256 or endpoint_problem(value, listening=False):
        raise WireError("an endpoint is malformed")
    return value


def _clock(value: Any) -> Clock:
    if type(value) is not dict:
        raise WireError("a clock is a map")
    for host, count in value.items():
        if type(host) is not str or not is_host(host) or type(count) is not int or not 0 < count < 1 << 63:
            raise WireError("a clock is malformed")
    return value


_BY_NAME: Final[dict[str, Read]] = {
    "file": _file,
    "hash": _hash,
    "host": _host,
    "name": _host,
    "id": _op_id,
    "replica": _identifier_or_none,
    "group": _identifier_or_none,
    "incarnation": _identifier,
    "endpoint": _endpoint,
}
"""Fields that are checked by what their name means, beyond their type."""


def _reader(hint: Any, name: str) -> Read:
    if hint in (Clock, Mapping[str, int]):
        return _clock
    if name in _BY_NAME and hint in (str, bytes):
        return _BY_NAME[name]
    simple: dict[Any, Read] = {int: _integer, str: _text, bytes: _bytes, bool: _boolean}
    if hint in simple:
        return simple[hint]
    if is_dataclass(hint):
        return _dataclass_reader(hint)  # type: ignore[arg-type]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return _choice_reader(arguments)
    if origin in (Union, types.UnionType):
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        read = _reader(inner, name)
        return lambda value: None if value is None else read(value)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return _sequence_reader(_reader(arguments[0], "replica" if name in _REPLICAS else ""))
        return _tuple_reader([_reader(argument, "") for argument in arguments])
    assert origin is not None and issubclass(origin, Mapping), hint
    return _map_reader(_file, _reader(arguments[1], ""))


_REPLICAS: Final = ("in_sync", "learners", "sources", "acked", "replicas")


def _dataclass_reader(kind: type) -> Read:
    """Return what checks the list of a dataclass's values, and makes one of it; integers, the most, in line."""
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    count = len(names)
    integers = [place for place, name in enumerate(names) if hints[name] is int]
    readers = [(place, _reader(hints[name], name)) for place, name in enumerate(names) if hints[name] is not int]

    def read(values: Any) -> Any:
        if type(values) is not list:
            raise WireError(f"a {kind.__name__} is malformed")
        if len(values) != count:
            raise WireError(f"a {kind.__name__} has {count} fields, not {len(values)}")
        for place in integers:
            value = values[place]
            if type(value) is not int or not 0 <= value < _INTEGER_END:
                raise WireError("a number is out of range")
        for place, inner in readers:
            values[place] = inner(values[place])
        return kind(*values)

    return read


def _choice_reader(choices: tuple[str, ...]) -> Read:
    def read(value: Any) -> Any:
        if type(value) is not int or not 0 <= value < len(choices):
            raise WireError("a choice is out of range")
        return choices[value]

    return read


def _sequence_reader(inner: Read) -> Read:
    def read(value: Any) -> Any:
        if type(value) is not list:
            raise WireError("a list was expected")
        return tuple([inner(item) for item in value])

    return read


def _tuple_reader(inner: list[Read]) -> Read:
    def read(value: Any) -> Any:
        if type(value) is not list or len(value) != len(inner):
            raise WireError("a tuple is malformed")
        return tuple([reader(item) for reader, item in zip(inner, value, strict=True)])

    return read


def _map_reader(read_key: Read, read_value: Read) -> Read:
    def read(value: Any) -> Any:
        if type(value) is not dict:
            raise WireError("a map was expected")
        return {read_key(key): read_value(item) for key, item in value.items()}

    return read


# Writers: a function from a field's value to what msgpack takes; None where it takes the value itself.


def _writer(hint: Any) -> Read | None:
    if hint in (Clock, Mapping[str, int]):
        return lambda clock: dict(sorted(clock.items()))
    if is_dataclass(hint):
        return _dataclass_writer(hint)  # type: ignore[arg-type]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        numbers = {choice: number for number, choice in enumerate(arguments)}
        return numbers.__getitem__
    if origin in (Union, types.UnionType):
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        write = _writer(inner)
        return None if write is None else lambda value: None if value is None else write(value)
    if origin is tuple and arguments[-1] is Ellipsis:
        each = _writer(arguments[0])
        return None if each is None else lambda values: [each(value) for value in values]
    if origin is not None and origin is not tuple and issubclass(origin, Mapping):
        item = _writer(arguments[1])
        return None if item is None else lambda value: {key: item(inner) for key, inner in value.items()}
    return None


def _dataclass_writer(kind: type) -> Read:
    values_of, writers = _plan(kind, 0)

    def write(value: Any) -> list[Any]:
        values = list(values_of(value))
        for place, inner in writers:
            values[place] = inner(values[place])
        return values

    return write


def _plan(kind: type, start: int) -> tuple[Read, list[tuple[int, Read]]]:
    """Return what gets a dataclass's values, and the writers of those that need one, by place from `start`."""
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    places = [(place, _writer(hints[name])) for place, name in enumerate(names, start)]
    one = attrgetter(names[0])
    values_of = attrgetter(*names) if len(names) > 1 else lambda value: (one(value),)
    return values_of, [(place, write) for place, write in places if write is not None]


_write_record: Final = _dataclass_writer(Record)
_READERS: Final[dict[int, tuple[Any, Read]]] = {}
_WRITERS: Final[dict[type, tuple[int, Read, list[tuple[int, Read]]]]] = {}
for _code, _kind in _CODES.items():
    _READERS[_code] = (_kind, _dataclass_reader(_kind))
    _WRITERS[_kind] = (_code, *_plan(_kind, 2))

_unions: Final[dict[int, frozenset[type]]] = {}


def _members(union: Any) -> frozenset[type]:
    found = _unions.get(id(union))  # unions are constants of a module; hashing one costs as much as decoding
    if found is None:
        found = _unions[id(union)] = frozenset(get_args(union) or (union,))
    return found
