"""The signals that ask a process to end, as it waits for something."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from common.stopping import Stop
from tests.group import WITHIN_S


@pytest.fixture
def stop() -> Iterator[Stop]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stop = Stop()
    yield stop
    stop.close()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_breaks_off_a_wait_and_prevents_the_next(stop: Stop, number: signal.Signals) -> None:
    read, write = os.pipe()
    assert stop.wait_for(lambda: 7) == 7
    later = threading.Timer(0.05, os.kill, (os.getpid(), number))
    later.start()
    assert stop.wait_for(lambda: os.read(read, 1)) is None
    later.join(WITHIN_S)
    assert stop.caught == number
    assert stop.wait_for(lambda: 7) is None
    assert os.read(stop.descriptor, 9) == bytes([number])
    os.close(read)
    os.close(write)


def test_a_signal_between_waits_only_counts(stop: Stop) -> None:
    signal.raise_signal(signal.SIGTERM)
    assert stop.caught == signal.SIGTERM
