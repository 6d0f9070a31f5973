"""Messages and records as bytes: nothing is lost, nothing else is let in, and nothing ever moves."""

import functools
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.clock import Clock
from common.messages import FromLockd, FromReplica, Message, Push, ToLockd, ToReplica
from common.names import file_name_problem, is_host, is_op_id
from common.records import EMPTY, Record, Version, chain
from common.values import TIME_US_MAX, Hash, Moment, Number, Part
from common.wire import PROTOCOL_VERSION, WireError, decode, encode, encode_record, version_after

UNIONS: tuple[Any, ...] = (ToLockd, FromLockd, ToReplica, FromReplica)
KINDS = [kind for union in UNIONS for kind in get_args(union)]
NUMBER_OF: dict[str, int] = {kind.__name__: kind.__struct_config__.tag for kind in KINDS}
EVERYTHING: Any = Union[UNIONS]  # noqa: UP007 - made of a tuple

NUMBERS = st.integers(0, (1 << 63) - 1)
IDS = st.from_regex(r"[0-9a-f]{16}", fullmatch=True)
HOSTS = st.from_regex(r"[A-Za-z0-9._-]{1,12}(#[1-9][0-9]{0,3})?", fullmatch=True).filter(is_host)
CLOCKS = st.dictionaries(HOSTS, st.integers(1, (1 << 63) - 1), max_size=4)
FILES = st.text(min_size=1, max_size=20).filter(lambda name: file_name_problem(name) is None)

BY_NAME: dict[str, st.SearchStrategy[Any]] = {
    "file": FILES,
    "host": HOSTS,
    "name": HOSTS,
    "id": st.builds("{}:{}".format, HOSTS, st.integers(1, 10**15)).filter(is_op_id),
    "replica": IDS | st.just(""),
    "group": IDS | st.just(""),
    "incarnation": IDS,
    "own_host": HOSTS | st.just(""),
    "endpoint": st.sampled_from(["tcp://127.0.0.1:7461", "ipc:///tmp/x"]),
}


def values_of(hint: Any, name: str = "") -> st.SearchStrategy[Any]:
    """Return what a field of this annotation and name may hold."""
    if hint == Clock:
        return CLOCKS
    if name in BY_NAME and hint is str:
        return BY_NAME[name]
    simple: dict[Any, st.SearchStrategy[Any]] = {
        Number: NUMBERS,
        Moment: st.integers(0, TIME_US_MAX),
        Hash: st.binary(min_size=16, max_size=16),
        str: st.text(max_size=20),
        bytes: st.binary(max_size=50),
        bool: st.booleans(),
    }
    if hint in simple:
        return simple[hint]
    if get_origin(hint) is Annotated:
        return values_of(get_args(hint)[0], name)
    if isinstance(hint, type) and issubclass(hint, Part):
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


@functools.cache
def messages_of(kind: Any) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind, include_extras=True)
    return st.builds(kind, *[values_of(hints[name], name) for name in kind.__struct_fields__])


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
def test_a_damaged_message_is_a_message_or_a_wire_error(message: Message, data: st.DataObject) -> None:
    frame = bytearray(encode(message))
    place = data.draw(st.integers(0, len(frame) - 1))
    frame[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    decoded_or_refused(bytes(frame))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.binary() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


def frame_of(values: object) -> bytes:
    """Return what another implementation would send."""
    return bytes([PROTOCOL_VERSION]) + bytes(msgpack.packb(values))


@given(st.sampled_from(sorted(NUMBER_OF.values())), st.lists(PLAIN, max_size=10))
def test_fields_of_any_type_are_a_message_or_a_wire_error(number: int, values: list[Any]) -> None:
    decoded_or_refused(frame_of([number, *values]))


@given(MESSAGES, st.data())
def test_a_field_of_another_type_is_refused(message: Any, data: st.DataObject) -> None:
    values = msgpack.unpackb(encode(message)[1:])
    place = data.draw(st.integers(1, len(values) - 1))
    values[place] = data.draw(st.sampled_from([-1, 1.5, [[]], {"": {}}, msgpack.Timestamp(1)]))
    with pytest.raises(WireError):
        decode(frame_of(values), EVERYTHING)


@given(MESSAGES)
def test_every_truncated_frame_is_refused(message: Message) -> None:
    frame = encode(message)
    for length in range(len(frame)):
        with pytest.raises(WireError):
            decode(frame[:length], EVERYTHING)
    with pytest.raises(WireError):
        decode(frame + b"\0", EVERYTHING)


@pytest.mark.parametrize(
    ("values", "expected", "problem"),
    [
        ([99, 1, 1, 1], ToLockd, "Invalid value 99"),
        ([3, 1, 1, 1], FromLockd, "Invalid value 3"),
        ([64], ToLockd, "Invalid value 64"),
        ([True, 1], ToLockd, "Expected `int`, got `bool`"),
        ([3, 1, 1], ToLockd, "Expected `array` of at least length 4, got 3"),
        ([3, 1, 1, 1, 1], ToLockd, "Expected `array` of at most length 3, got 4"),
        ([3, 1, 1, True], ToLockd, "Expected `int`, got `bool`"),
        ([3, 1, 1, 1 << 63], ToLockd, "Expected `int` <= 9223372036854775807"),
        ([4, 1, 1, 1, "f", "file", "none", 0, 0, 0, 0, False], ToLockd, "Invalid enum value 'none'"),
        ([97, "../f", 1, 1], FromReplica, "a file's name is malformed"),
        ([65, "", "f", 1, [0, 0, b"short"], [], {}], ToReplica, "Expected `bytes` of length >= 16"),
        ([65, "", "f", 1, [0, 0, bytes(16)], [], {"a b": 1}], ToReplica, "a host's name is malformed"),
        ([65, "", "f", 1, [0, 0, bytes(16)], [], {"a": 0}], ToReplica, "Expected `int` >= 1"),
        ([65, "", "f", 1, [0, 0, bytes(16)], [[1] * 9], {}], ToReplica, "Expected `str`, got `int`"),
        ([66, "", "f", 1, [[1, b"short"]]], ToReplica, "Expected `bytes` of length >= 16"),
        ([39, 1, [["0" * 16, "a b", "tcp://h:1", "0" * 16]]], FromLockd, "a host's name is malformed"),
        ([40, 1, "f", ["0" * 15]], FromLockd, "an id is malformed"),
        ([], ToLockd, "Expected `array` of at least length 1"),
        ({"1": 3}, ToLockd, "Expected `array`, got `object`"),
        (7, ToLockd, "Expected `array`, got `int`"),
    ],
)
def test_what_is_wrong_is_said_in_words(values: object, expected: Any, problem: str) -> None:
    with pytest.raises(WireError) as caught:
        decode(frame_of(values), expected)
    assert problem in str(caught.value)


def test_another_version_is_refused_in_words() -> None:
    for frame, version in ((b"\x01\x91\x03", "1"), (b"", "none")):
        with pytest.raises(WireError, match=f"it speaks version {version} of the protocol, this is 4"):
            decode(frame, EVERYTHING)


def test_frames_that_would_eat_memory_or_the_stack_are_refused() -> None:
    for frame in (b"\xdd\xff\xff\xff\xff", b"\x91" * 100_000, b"\xc6\xff\xff\xff\xff", b"\xdf\x7f\xff\xff\xff"):
        with pytest.raises(WireError):
            decode(bytes([PROTOCOL_VERSION]) + frame, EVERYTHING)


def test_every_message_has_a_number_of_its_own_for_ever() -> None:
    assert {number: name for name, number in NUMBER_OF.items()} == {
        **dict(
            enumerate(
                ["Hello", "Goodbye", "Ping", "Acquire", "Cancel", "Release", "Drop", "Report", "Resume", "GiveUp"], 1
            )
        ),
        11: "Here",
        **dict(enumerate(["Inspect", "InUse", "Break", "CallBack"], 12)),
        **dict(enumerate(["Welcome", "Pong", "Grant", "Refused", "Released", "InSync", "View", "Learn"], 33)),
        **dict(enumerate(["Admitted", "Settle", "Stale", "Ended", "Probe", "Inspection", "Recall", "Lost"], 41)),
        **dict(enumerate(["Broken", "CalledBack"], 49)),
        **dict(enumerate(["Push", "Fetch"], 65)),
        **dict(enumerate(["Ack", "Fenced", "Fetched"], 97)),
    }
    assert len(NUMBER_OF) == len(KINDS)


# Records

RECORD = Record(
    7, (3 << 40) + 42, "client-2:4", "update", 30, " --- ä\n".encode(), {"client-2": 5, "client-0": 3}, 1_700_000_000
)
GOLDEN = (
    "99"  # an array of nine
    "07"  # seq
    "cf000003000000002a"  # token
    "aa636c69656e742d323a34"  # id
    "a6757064617465"  # verb
    "1e"  # offset
    "c408202d2d2d20c3a40a"  # inserted
    "82a8636c69656e742d3003a8636c69656e742d3205"  # clock, hosts in order
    "ce6553f100"  # time_us
    "00"  # of
)


def test_a_record_is_encoded_so_for_ever() -> None:
    assert encode_record(RECORD).hex() == GOLDEN
    assert chain(EMPTY.hash, bytes.fromhex(GOLDEN)).hex() == "8832bd36d271778d833ff7423adbd602"
    assert version_after(EMPTY, RECORD) == Version(7, RECORD.token, chain(EMPTY.hash, bytes.fromhex(GOLDEN)))


def test_a_record_is_the_same_on_the_wire_and_under_the_hash() -> None:
    push = Push("0" * 16, "f", 1, EMPTY, (RECORD,), {})
    assert encode_record(RECORD) in encode(push)


@given(RECORDS, st.randoms())
def test_the_order_of_a_clock_does_not_matter(record: Record, random: Any) -> None:
    hosts = list(record.clock.items())
    random.shuffle(hosts)
    values = [getattr(record, name) for name in Record.__struct_fields__]
    values[6] = dict(hosts)
    assert encode_record(Record(*values)) == encode_record(record)


@given(RECORDS, RECORDS)
def test_different_records_are_encoded_differently(first: Record, second: Record) -> None:
    assert (encode_record(first) == encode_record(second)) == (first == second)
