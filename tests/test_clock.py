"""Vector clocks and tokens, beside the dumb things that they are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.clock import Clock, concurrent, format_clock, happens_before_or_equal, merge, parse_clock, tick
from common.tokens import EPOCH_MAX, format_token, make_token, parse_token, token_epoch

HOSTS = ("a", "b", "b#2", "client-10", "client-9")
CLOCKS = st.dictionaries(st.sampled_from(HOSTS), st.integers(1, 4))


def counts(clock: Clock) -> tuple[int, ...]:
    """Return the clock as a vector with a place for every host."""
    return tuple([clock.get(host, 0) for host in HOSTS])


@given(CLOCKS, CLOCKS)
def test_merge_is_the_componentwise_maximum(first: Clock, second: Clock) -> None:
    before = dict(first), dict(second)
    merged = merge(first, second)
    assert counts(merged) == tuple(map(max, counts(first), counts(second)))
    assert 0 not in merged.values()
    assert (first, second) == before


@given(CLOCKS, st.sampled_from(HOSTS))
def test_a_tick_is_one_more_of_one_host(clock: Clock, host: str) -> None:
    before = dict(clock)
    ticked = tick(clock, host)
    assert counts(ticked) == tuple([count + (each == host) for each, count in zip(HOSTS, counts(clock), strict=True)])
    assert clock == before
    assert happens_before_or_equal(clock, ticked) and not happens_before_or_equal(ticked, clock)


@given(CLOCKS, CLOCKS)
def test_the_order_is_that_of_vectors(first: Clock, second: Clock) -> None:
    pairs = list(zip(counts(first), counts(second), strict=True))
    before, after = all(x <= y for x, y in pairs), all(x >= y for x, y in pairs)
    assert happens_before_or_equal(first, second) == before
    assert concurrent(first, second) == concurrent(second, first) == (not before and not after)


@given(CLOCKS)
def test_a_clock_reads_back(clock: Clock) -> None:
    text = format_clock(clock)
    assert parse_clock(text) == clock
    assert " " not in text and text == format_clock(dict(reversed(list(clock.items()))))


def test_a_clock_is_written_in_the_order_of_hosts() -> None:
    assert format_clock({"b": 2, "a": 10}) == '{"a":10,"b":2}'
    assert format_clock({}) == "{}"


@pytest.mark.parametrize(
    "text", ["", "[]", "1", '{"a":0}', '{"a":-1}', '{"a":1.0}', '{"a":true}', '{"a":"1"}', '{"a":1', "{a:1}"]
)
def test_what_is_no_clock_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_clock(text)


EPOCHS = st.integers(1, EPOCH_MAX)
COUNTERS = st.integers(1, (1 << 40) - 1)


@given(EPOCHS, COUNTERS, EPOCHS, COUNTERS)
def test_tokens_are_ordered_by_epoch_then_counter(epoch: int, counter: int, later: int, other: int) -> None:
    first, second = make_token(epoch, counter), make_token(later, other)
    assert (first < second) == ((epoch, counter) < (later, other))
    assert token_epoch(first) == epoch
    assert parse_token(format_token(first)) == first < 1 << 63


def test_a_token_is_written_with_a_dot() -> None:
    assert format_token(make_token(3, 42)) == "3.42"
    assert format_token(0) == "0.0"


@pytest.mark.parametrize(
    "text",
    ["", "1", "1.", ".1", "1.-1", "-1.1", "1.1.1", "1,1", "a.b", "1. 1", "².1", f"{EPOCH_MAX + 1}.1", f"1.{1 << 40}"],
)
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_token(text)
