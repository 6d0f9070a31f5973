"""Orders over the local socket: what is said, what odd callers get, and answers larger than the socket holds."""

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from client import control
from client.control import (
    LINE_BYTES_MAX,
    Call,
    Order,
    Report,
    ask,
    decode_order,
    encode_begin,
    encode_order,
    encode_report,
)
from client.directory import connect, listen
from client.effects import Finished, OpVerb, Outcome
from client.node import Result
from client.orders import WAIT_MS_MAX, OrderDesk
from common.limits import TEXT_BYTES_MAX
from common.records import Version
from tests.group import WITHIN_S, until

ORDER = Order("write", "notes.txt", "hello", 0, 10_000)
REPORT = Report("ok", "a:1", 3, "9f2c41d07ab3", "", b"")
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists)


# What is said


@settings(max_examples=40)
@given(
    st.builds(Order, st.text(), st.text(), st.text(), st.just(0), st.integers())
    | st.builds(Order, st.just("restore"), st.text(), st.text(), st.integers(0, (1 << 40) - 1), st.integers())
)
def test_an_order_is_one_line_and_reads_back(order: Order) -> None:
    line = encode_order(order)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode_order(line) == order


@settings(max_examples=40)
@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_other_bytes_are_told_in_words(line: bytes) -> None:
    with pytest.raises(ValueError):
        decode_order(line)


@pytest.mark.parametrize(
    "changed",
    [{"version": 3}, {"version": None}, {"text": 7}, {"of": "1"}, {"of": True}, {"wait_ms": 1.5}, {"more": 1}],
)
def test_an_order_that_is_nearly_right_is_told_in_words(changed: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="the order"):
        decode_order(json.dumps({**json.loads(encode_order(ORDER)), **changed}).encode())


def test_a_deep_order_is_told_in_words() -> None:
    with pytest.raises(ValueError, match="the order is malformed"):
        decode_order(b"[" * 1_000_000)


# Asking


def asked(answer: Callable[[socket.socket], object]) -> Report | None:
    """Return what `ask` makes of a client that takes the order, answers so and goes away."""

    def serve() -> None:
        with there:
            there.recv(65536)
            answer(there)

    here, there = socket.socketpair()
    client = threading.Thread(target=serve)
    client.start()
    try:
        with here:
            return ask(here, ORDER)
    finally:
        client.join(WITHIN_S)


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\0\n" * 2_000_000])
def test_a_report_comes_back_whole(content: bytes) -> None:
    report = replace(REPORT, content=content)
    assert asked(lambda there: there.sendall(encode_report(report))) == report


@pytest.mark.parametrize(
    "said", [b"", b"{", b'{"version": 1, "outcome"', encode_report(replace(REPORT, content=b"12345"))[:-1]]
)
def test_a_client_that_ends_before_it_has_answered_gives_no_report(said: bytes) -> None:
    assert asked(lambda there: there.sendall(said)) is None


def test_nor_does_one_that_never_took_the_order() -> None:
    here, there = socket.socketpair()
    with here:
        there.close()
        assert ask(here, ORDER) is None


def test_nor_does_one_that_has_hung_up_on_the_order() -> None:
    here, there = socket.socketpair()
    with here:
        here.sendall(b"unread, so that the end is a reset")
        there.close()
        assert ask(here, ORDER) is None


@pytest.mark.parametrize("end", [b"", encode_report(REPORT)[:9]])
def test_the_id_of_a_change_is_known_before_its_report(end: bytes) -> None:
    here, there = socket.socketpair()
    with here, there:
        there.sendall(encode_begin("a:1") + end)
        there.shutdown(socket.SHUT_WR)
        call = Call(here, ORDER)
        assert call.wait() is None
        assert (call.id, call.given) == ("a:1", True)


def test_who_takes_an_order_back_waits_a_moment_for_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "TAKE_BACK_S", 0.01)
    here, there = socket.socketpair()
    with here, there:
        call = Call(here, ORDER)
        assert call.take_back() is None
        assert there.recv(100) == b""


def test_a_wait_that_is_broken_off_loses_nothing_of_what_came() -> None:
    here, there = socket.socketpair()
    wake, awake = os.pipe()
    with here, there:
        call = Call(here, ORDER)
        os.write(awake, b"x")
        there.sendall(encode_begin("a:1")[:5])
        while call.wait(wake) is None and not call.given:
            pass
        there.sendall(encode_begin("a:1")[5:] + encode_report(REPORT))
        assert (call.wait(), call.id) == (REPORT, "a:1")
    os.close(wake)
    os.close(awake)


# The desk


@dataclass
class Submitted:
    """An op that the desk has asked for."""

    verb: OpVerb
    file: str
    done: Callable[[Result], None]
    text: str
    of: int
    wait_ns: int
    begin: Callable[[str], bool]

    def end(self, outcome: Outcome, content: bytes = b"", reason: str = "") -> None:
        version = Version(3, 1, bytes.fromhex("9f2c41d07ab3") + bytes(10))
        self.done(Result(Finished(1, "a:1", outcome, version, reason), len(content), content))


@dataclass
class Office:
    """A desk on a real socket, and a node that only writes down what it is asked to do."""

    directory: Path
    poller: zmq.Poller = field(default_factory=zmq.Poller)
    submitted: list[Submitted] = field(default_factory=list)
    callers: list[socket.socket] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.desk = OrderDesk(listen(self.directory), self.poller, self.submit)

    def submit(
        self,
        verb: OpVerb,
        file: str,
        done: Callable[[Result], None],
        *,
        text: str = "",
        of: int = 0,
        wait_ns: int,
        retry: tuple[str, ...] = (),
        begin: Callable[[str], bool] | None = None,
    ) -> None:
        assert begin is not None
        self.submitted.append(Submitted(verb, file, done, text, of, wait_ns, begin))

    def caller(self, said: bytes) -> socket.socket:
        caller = connect(self.directory)
        assert caller is not None
        self.callers.append(caller)
        caller.setblocking(False)
        self.say(caller, said)
        return caller

    def say(self, caller: socket.socket, said: bytes) -> None:
        while said:
            try:
                said = said[caller.send(said) :]
            except BlockingIOError:
                self.work()

    def work(self) -> None:
        self.desk.serve(dict(self.poller.poll(10)))

    def work_until(self, found: Callable[[], object], what: str) -> None:
        def step() -> object:
            self.work()
            return found()

        until(step, what)

    def heard(self, caller: socket.socket) -> bytes:
        """Let the desk work until it hangs up on the caller; return all that it has said."""
        parts: list[bytes] = []

        def over() -> bool:
            try:
                part = caller.recv(65536)
            except BlockingIOError:
                return False
            except ConnectionResetError:
                return True
            parts.append(part)
            return not part

        self.work_until(over, "the desk hangs up")
        return b"".join(parts)


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path)
    yield office
    office.desk.close()
    for caller in office.callers:
        caller.close()


def test_an_order_is_carried_out_and_reported(office: Office) -> None:
    order = Order("restore", "notes.txt", "", 7, 1500)
    caller = office.caller(encode_order(order))
    office.work_until(lambda: office.submitted, "the op")
    (op,) = office.submitted
    assert (op.verb, op.file, op.text, op.of, op.wait_ns) == ("restore", "notes.txt", "", 7, 1_500_000_000)
    op.end("ok")
    assert office.heard(caller) == encode_report(REPORT)


def test_an_order_may_come_in_pieces_and_be_as_long_as_a_text_may_be(office: Office) -> None:
    order = replace(ORDER, text="\x01" * TEXT_BYTES_MAX)
    line = encode_order(order)
    assert len(line) < LINE_BYTES_MAX
    caller = office.caller(line[:1])
    office.work()
    office.say(caller, line[1:])
    office.work_until(lambda: office.submitted, "the op")
    assert office.submitted[0].text == order.text


def test_a_large_answer_goes_out_as_the_caller_takes_it(office: Office) -> None:
    content = bytes(range(256)) * 20_000
    caller = office.caller(encode_order(replace(ORDER, verb="read", text="")))
    office.work_until(lambda: office.submitted, "the op")
    office.submitted[0].end("ok", content)
    assert office.heard(caller) == encode_report(replace(REPORT, content=content))


def test_only_a_read_that_is_ok_gives_a_content(office: Office) -> None:
    caller = office.caller(encode_order(replace(ORDER, verb="read", text="")))
    office.work_until(lambda: office.submitted, "the op")
    office.submitted[0].end("failed", b"stale", "its lock was lost")
    report = replace(REPORT, outcome="failed", reason="its lock was lost")
    assert office.heard(caller) == encode_report(report)


@pytest.mark.parametrize(
    "said",
    [
        b"\n",
        b"hello\n",
        b"[]\n",
        b"\xff\n",
        b"[" * 100_000 + b"\n",
        encode_order(replace(ORDER, verb="erase")),
        encode_order(replace(ORDER, file="../x")),
        encode_order(replace(ORDER, text="a\nb")),
        encode_order(replace(ORDER, text="a\0b")),
    ],
)
def test_a_malformed_order_fails_and_nothing_happens(office: Office, said: bytes) -> None:
    head = json.loads(office.heard(office.caller(said)))
    assert head["outcome"] == "failed"
    assert head["reason"]
    assert office.submitted == []


@pytest.mark.parametrize(("wait_ms", "wait_ns"), [(-5, 0), (10**1000, WAIT_MS_MAX * 1_000_000)])
def test_an_odd_wait_is_brought_into_bounds(office: Office, wait_ms: int, wait_ns: int) -> None:
    office.caller(encode_order(replace(ORDER, wait_ms=wait_ms)))
    office.work_until(lambda: office.submitted, "the op")
    assert office.submitted[0].wait_ns == wait_ns


def test_a_caller_that_says_too_much_or_hangs_up_is_dropped(office: Office) -> None:
    talker = office.caller(b"")
    with pytest.raises(ConnectionError):
        office.say(talker, b"x" * (LINE_BYTES_MAX + 1_000_000))
    office.caller(b"half an ord").close()
    office.work()
    caller = office.caller(encode_order(ORDER))
    office.work_until(lambda: office.submitted, "the op of the next one")
    office.submitted[0].end("ok")
    assert office.heard(caller) == encode_report(REPORT)


def test_a_caller_hears_the_id_of_its_change_when_it_begins(office: Office) -> None:
    caller = office.caller(encode_order(ORDER))
    office.work_until(lambda: office.submitted, "the op")
    assert office.submitted[0].begin("a:1")
    assert caller.recv(100) == encode_begin("a:1")
    office.work()
    office.submitted[0].end("ok")
    assert office.heard(caller) == encode_report(REPORT)


def test_a_read_has_nothing_to_say_before_its_report(office: Office) -> None:
    caller = office.caller(encode_order(replace(ORDER, verb="read", text="")))
    office.work_until(lambda: office.submitted, "the op")
    assert office.submitted[0].begin("a:1")
    office.submitted[0].end("ok")
    assert office.heard(caller) == encode_report(REPORT)


@pytest.mark.parametrize("gone", [False, True])
def test_an_op_that_has_not_begun_can_be_taken_back(office: Office, gone: bool) -> None:
    caller = office.caller(encode_order(ORDER))
    office.work_until(lambda: office.submitted, "the op")
    if gone:
        caller.close()
        office.work()
    else:
        caller.shutdown(socket.SHUT_WR)
        assert json.loads(office.heard(caller))["outcome"] == "failed"
    assert not office.submitted[0].begin("a:1")
    office.submitted[0].end("failed")


def test_the_op_of_a_caller_that_has_gone_goes_on_if_it_has_begun(office: Office) -> None:
    caller = office.caller(encode_order(ORDER))
    office.work_until(lambda: office.submitted, "the op")
    assert office.submitted[0].begin("a:1")
    caller.close()
    office.work()
    office.submitted[0].end("ok")


def test_an_op_whose_caller_cannot_be_told_that_it_begins_does_not(office: Office) -> None:
    office.caller(encode_order(ORDER)).close()
    office.work_until(lambda: office.submitted, "the op")
    assert not office.submitted[0].begin("a:1")


def test_at_its_end_the_desk_hangs_up_on_everybody(office: Office) -> None:
    ordered, silent = office.caller(encode_order(ORDER)), office.caller(b"")
    office.work_until(lambda: office.submitted, "the op")
    office.work()
    office.desk.close()
    for caller in (ordered, silent):
        caller.setblocking(True)
        assert caller.recv(100) == b""
    office.submitted[0].end("unknown")
    office.desk = OrderDesk(listen(office.directory), office.poller, office.submit)
