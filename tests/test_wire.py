"""Messages and records as bytes: nothing is lost, nothing else is let in, and nothing ever moves."""

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import wire
from common.clock import Clock
from common.messages import Ack, Fetch, FromLockd, FromReplica, Grant, Hello, Ping, Push, ToLockd, ToReplica
from common.names import file_name_problem, is_host, is_op_id
from common.records import EMPTY, Record, Version, chain
from common.wire import PROTOCOL_VERSION, WireError, decode, encode, encode_record, version_after

UNIONS: tuple[Any, ...] = (ToLockd, FromLockd, ToReplica, FromReplica)
KINDS = [kind for union in UNIONS for kind in get_args(union)]
EVERYTHING: Any = Union[UNIONS]  # noqa: UP007 - made of a tuple

NUMBERS = st.integers(0, (1 << 63) - 1)
IDS = st.from_regex(r"[0-9a-f]{16}", fullmatch=True)
HOSTS = st.from_regex(r"[A-Za-z0-9._-]{1,12}(#[1-9][0-9]{0,3})?", fullmatch=True).filter(is_host)
CLOCKS = st.dictionaries(HOSTS, st.integers(1, (1 << 63) - 1), max_size=4)
FILES = st.text(min_size=1, max_size=20).filter(lambda name: file_name_problem(name) is None)

BY_NAME: dict[str, st.SearchStrategy[Any]] = {
    "file": FILES,
    "hash": st.binary(min_size=16, max_size=16),
    "host": HOSTS,
    "name": HOSTS,
    "id": st.builds("{}:{}".format, HOSTS, st.integers(1, 10**15)).filter(is_op_id),
    "replica": IDS | st.just(""),
    "group": IDS | st.just(""),
    "incarnation": IDS,
    "endpoint": st.sampled_from(["tcp://127.0.0.1:7461", "ipc:///tmp/x"]),
}


def values_of(hint: Any, name: str = "") -> st.SearchStrategy[Any]:
    """Return what a field of this annotation and name may hold."""
    if hint in (Clock, Mapping[str, int]):
        return CLOCKS
    if name in BY_NAME and hint in (str, bytes):
        return BY_NAME[name]
    simple: dict[Any, st.SearchStrategy[Any]] = {
        int: NUMBERS,
        str: st.text(max_size=20),
        bytes: st.binary(max_size=50),
        bool: st.booleans(),
    }
    if hint in simple:
        return simple[hint]
    if is_dataclass(hint):
        return messages_of(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, types.UnionType):
        return st.none() | values_of(arguments[0], name)
    if origin is tuple and arguments[-1] is Ellipsis:
        inner = IDS if arguments[0] is str else values_of(arguments[0])
        return st.lists(inner, max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*[values_of(argument) for argument in arguments])
    return st.dictionaries(FILES, values_of(arguments[1]), max_size=3)


def messages_of(kind: Any) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind)
    return st.builds(kind, *[values_of(hints[field.name], field.name) for field in fields(kind)])


MESSAGES = st.sampled_from(KINDS).flatmap(messages_of)
RECORDS = messages_of(Record)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_a_message_comes_back_as_it_was(kind: Any, data: st.DataObject) -> None:
    message = data.draw(messages_of(kind))
    decoded = decode(encode(message), kind)
    assert decoded == message
    assert encode(decoded) == encode(message)


def decoded_or_refused(frame: bytes) -> None:
    try:
        message = decode(frame, EVERYTHING)
    except WireError:
        return
    assert type(message) in KINDS


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_wire_error(frame: bytes) -> None:
    decoded_or_refused(frame)


@given(MESSAGES, st.data())
def test_a_damaged_message_is_a_message_or_a_wire_error(message: object, data: st.DataObject) -> None:
    frame = bytearray(encode(message))
    place = data.draw(st.integers(0, len(frame) - 1))
    frame[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    decoded_or_refused(bytes(frame))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.binary() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.sampled_from(sorted(wire._CODES)), st.lists(PLAIN, max_size=10))
def test_fields_of_any_type_are_a_message_or_a_wire_error(code: int, values: list[Any]) -> None:
    decoded_or_refused(msgpack.packb([PROTOCOL_VERSION, code, *values]))


@given(MESSAGES, st.data())
def test_a_field_of_another_type_is_refused(message: Any, data: st.DataObject) -> None:
    values = msgpack.unpackb(encode(message))
    place = data.draw(st.integers(2, len(values) - 1))
    values[place] = data.draw(st.sampled_from([-1, 1.5, [[]], {"": {}}, msgpack.Timestamp(1)]))
    with pytest.raises(WireError):
        decode(msgpack.packb(values), EVERYTHING)


@given(MESSAGES)
def test_every_truncated_frame_is_refused(message: object) -> None:
    frame = encode(message)
    for length in range(len(frame)):
        with pytest.raises(WireError):
            decode(frame[:length], EVERYTHING)
    with pytest.raises(WireError):
        decode(frame + b"\0", EVERYTHING)


@pytest.mark.parametrize(
    ("values", "expected", "problem"),
    [
        ([2, 3, 1, 1, 1], ToLockd, "it speaks version 2 of the protocol, this is 1"),
        (["1", 3, 1, 1, 1], ToLockd, "it speaks version '1' of the protocol, this is 1"),
        ([1, 99, 1, 1, 1], ToLockd, "a Fetched does not belong here"),
        ([1, 3, 1, 1, 1], FromLockd, "a Ping does not belong here"),
        ([1, 64], ToLockd, "it has the unknown number 64"),
        ([1, True, 1], ToLockd, "it has the unknown number True"),
        ([1, 3, 1, 1], ToLockd, "a Ping has 3 fields, not 2"),
        ([1, 3, 1, 1, 1, 1], ToLockd, "a Ping has 3 fields, not 4"),
        ([1, 3, 1, 1, True], ToLockd, "a number is out of range"),
        ([1, 3, 1, 1, 1 << 63], ToLockd, "a number is out of range"),
        ([1, 4, 1, 1, 1, "f", 2, 0, 0], ToLockd, "a choice is out of range"),
        ([1, 97, "../f", 1, 1], FromReplica, "a file's name is malformed"),
        ([1, 97, "f", 1], FromReplica, "a Ack has 3 fields, not 2"),
        ([1, 65, "", "f", 1, [0, 0, b"short"], [], {}], ToReplica, "a hash has 16 bytes"),
        ([1, 65, "", "f", 1, [0, 0, bytes(16)], [], {"a b": 1}], ToReplica, "a clock is malformed"),
        ([1, 65, "", "f", 1, [0, 0, bytes(16)], [], {"a": 0}], ToReplica, "a clock is malformed"),
        ([1], ToLockd, "it is not a message"),
        ({"1": 3}, ToLockd, "it is not a message"),
        (7, ToLockd, "it is not a message"),
    ],
)
def test_what_is_wrong_is_said_in_words(values: object, expected: Any, problem: str) -> None:
    with pytest.raises(WireError) as caught:
        decode(msgpack.packb(values), expected)
    assert str(caught.value) == problem


def test_frames_that_would_eat_memory_or_the_stack_are_refused() -> None:
    for frame in (b"\xdd\xff\xff\xff\xff", b"\x91" * 100_000, b"\xc6\xff\xff\xff\xff", b"\xdf\x7f\xff\xff\xff"):
        with pytest.raises(WireError):
            decode(frame, EVERYTHING)


def test_every_message_has_a_number_of_its_own_for_ever() -> None:
    assert {code: kind.__name__ for code, kind in wire._CODES.items()} == {
        **dict(enumerate(["Hello", "Goodbye", "Ping", "Acquire", "Cancel", "Release", "Drop", "Report"], 1)),
        **dict(enumerate(["Welcome", "Pong", "Grant", "Refused", "Released", "InSync", "View", "Learn"], 33)),
        **dict(enumerate(["Admitted", "Settle", "Stale", "Ended"], 41)),
        **dict(enumerate(["Push", "Fetch"], 65)),
        **dict(enumerate(["Ack", "Fenced", "Fetched"], 97)),
    }
    assert set(wire._CODES.values()) == set(KINDS)
    assert {Hello, Ping, Grant, Push, Fetch, Ack} <= set(KINDS)


# Records

RECORD = Record(
    7, (3 << 40) + 42, "client-2:4", "update", 30, " --- ä\n".encode(), {"client-2": 5, "client-0": 3}, 1_700_000_000
)
GOLDEN = (
    "99"  # an array of nine
    "07"  # seq
    "cf000003000000002a"  # token
    "aa636c69656e742d323a34"  # id
    "01"  # verb
    "1e"  # offset
    "c408202d2d2d20c3a40a"  # inserted
    "82a8636c69656e742d3003a8636c69656e742d3205"  # clock, hosts in order
    "ce6553f100"  # time_us
    "00"  # of
)


def test_a_record_is_encoded_so_for_ever() -> None:
    assert encode_record(RECORD).hex() == GOLDEN
    assert chain(EMPTY.hash, bytes.fromhex(GOLDEN)).hex() == "1583b51ec5982bf76707bd9caa5512d0"
    assert version_after(EMPTY, RECORD) == Version(7, RECORD.token, chain(EMPTY.hash, bytes.fromhex(GOLDEN)))


def test_a_record_is_the_same_on_the_wire_and_under_the_hash() -> None:
    push = Push("0" * 16, "f", 1, EMPTY, (RECORD,), {})
    assert encode_record(RECORD) in encode(push)


@given(RECORDS, st.randoms())
def test_the_order_of_a_clock_does_not_matter(record: Record, random: Any) -> None:
    hosts = list(record.clock.items())
    random.shuffle(hosts)
    values = [getattr(record, field.name) for field in fields(Record)]
    values[6] = dict(hosts)
    assert encode_record(Record(*values)) == encode_record(record)


@given(RECORDS, RECORDS)
def test_different_records_are_encoded_differently(first: Record, second: Record) -> None:
    assert (encode_record(first) == encode_record(second)) == (first == second)
