"""The lines of events.log, grants.log and the logs for people: what is written reads back, and ShiViz reads it too."""

import re
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.clock import Clock, parse_clock
from common.diagnostics import Diagnostics
from common.eventlog import (
    _PLAIN_KEYS,
    HEADER,
    VERBS,
    Event,
    format_event,
    format_op,
    format_pairs,
    format_time,
    format_value,
    parse_event,
    parse_pairs,
    parse_time,
    shorten,
)
from common.grantlog import GrantEvent, GrantLine, format_grant, parse_grant
from common.limits import LOG_TEXT_LENGTH_MAX
from common.tokens import make_token

TIMES = st.integers(0, 250_000_000_000 * 1_000_000)
HOSTS = st.from_regex(r"[A-Za-z0-9._-]{1,10}(#[1-9])?", fullmatch=True)
CLOCKS = st.dictionaries(HOSTS, st.integers(1, 1 << 62), max_size=4)
TEXTS = st.text(st.characters(exclude_categories=()), max_size=30) | st.sampled_from(
    ["", " ", '"', "\\", '\\"', "a=b", "}", "\n", "\r\n", "\u2028", "\x85", "\xa0", "\u3000", "ä 🙂", "\ud800", "{}"]
)
# Not the keys of numbers, hosts and ids, whose values need no JSON string.
KEYS = st.from_regex(r"[a-z_]{1,8}", fullmatch=True).filter(lambda key: key not in _PLAIN_KEYS)
PAIRS = st.dictionaries(KEYS, TEXTS, max_size=5).map(lambda values: tuple(values.items()))

# ShiViz matches its expression with JavaScript's flags "gm"; there a dot stops at four characters.
SHIVIZ = re.compile(
    HEADER.splitlines()[0].replace("(?<", "(?P<").replace(".*)", r"[^\n\r\u2028\u2029]*)"), re.MULTILINE
)


@given(TIMES, HOSTS, CLOCKS, st.sampled_from(VERBS), PAIRS)
def test_an_event_reads_back(
    time_us: int, host: str, clock: Clock, verb: str, pairs: tuple[tuple[str, str], ...]
) -> None:
    line = format_event(time_us, host, clock, verb, format_pairs(pairs))
    assert parse_event(line) == Event(time_us, host, clock, verb, dict(pairs))
    assert line.isprintable()


@given(TIMES, HOSTS, CLOCKS, st.sampled_from(VERBS), PAIRS)
def test_shiviz_takes_every_line_as_one_event(
    time_us: int, host: str, clock: Clock, verb: str, pairs: tuple[tuple[str, str], ...]
) -> None:
    line = format_event(time_us, host, clock, verb, format_pairs(pairs))
    text = f"{line}\n{line}\n"
    matches = list(SHIVIZ.finditer(text))
    assert [match[0] for match in matches] == [line, line]
    assert matches[0]["host"] == host
    assert parse_clock(matches[0]["clock"]) == clock
    assert matches[0]["event"].split(" ")[0] == verb


def test_the_header_is_shivizs_expression_and_an_empty_line() -> None:
    assert HEADER == r"(?<timestamp>\S+) (?<host>\S+) (?<clock>\{[^}]*\}) (?<event>.*)" + "\n\n"
    assert SHIVIZ.groups == 4


def test_an_event_looks_like_this() -> None:
    line = format_event(
        parse_time("2026-11-22T15:03:11.123456Z"),
        "client-2",
        {"client-2": 5, "client-0": 3},
        "write",
        format_op("notes.txt", "client-2:4", make_token(1, 42), 42, bytes.fromhex("9f2c41d07ab3") + bytes(10))
        + format_pairs([("text", "two words"), ("empty", "")]),
    )
    assert line == (
        '2026-11-22T15:03:11.123456Z client-2 {"client-0":3,"client-2":5} '
        'write file=notes.txt id=client-2:4 token=1.42 seq=42 hash=9f2c41d07ab3 text="two words" empty=""'
    )


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("", "it does not read"),
        ("2026-11-22T15:03:11.123456Z a {} dance", "the verb 'dance' is unknown"),
        ("2026-11-22T15:03:11.123456Z a {} write file", "no key=value"),
        ("2026-11-22T15:03:11.123456Z a {} write file=a  id=b", "no key=value"),
        ('2026-11-22T15:03:11.123456Z a {} write file="a', "no key=value"),
        ("2026-11-22T15:03:11.123456Z a {} write file=a file=b", "stands twice"),
        ('2026-11-22T15:03:11.123456Z a {"a":0} write file=a', "integers from 1"),
        ("2026-11-22 15:03:11 a {} write file=a", "does not read"),
        ("2026-13-22T15:03:11.123456Z a {} write file=a", "month must be"),
        ('2026-11-22T15:03:11.123456Z a {} write text="\\x"', "escape"),
    ],
)
def test_what_is_no_event_is_refused_in_words(line: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_event(line)


@given(st.text(max_size=60))
def test_any_line_is_an_event_or_a_value_error(line: str) -> None:
    for text in (line, f"2026-11-22T15:03:11.123456Z a {{}} write {line}"):
        try:
            event = parse_event(text)
        except ValueError:
            continue
        assert event.verb in VERBS


@given(TIMES)
def test_a_time_reads_back_and_has_six_decimals(time_us: int) -> None:
    text = format_time(time_us)
    assert parse_time(text) == time_us
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", text)


@given(TIMES, TIMES)
def test_times_sort_as_texts(first: int, second: int) -> None:
    assert (format_time(first) < format_time(second)) == (first < second)


@given(TEXTS)
def test_a_value_ends_where_it_ends(value: str) -> None:
    written = format_value(value)
    assert parse_pairs(f" a={written} b=2") == {"a": value, "b": "2"}
    assert written.startswith('"') == (value == "" or bool(re.search(r'[\s"\\=]', value)) or not value.isprintable())


@given(st.text(max_size=300))
def test_a_text_is_cut_with_an_ellipsis(text: str) -> None:
    short = shorten(text)
    assert len(short) == min(len(text), LOG_TEXT_LENGTH_MAX)
    assert short == text or short == text[: LOG_TEXT_LENGTH_MAX - 1] + "…"


def test_a_note_is_one_line_of_a_bounded_length(tmp_path: Path) -> None:
    diagnostics = Diagnostics(tmp_path / "lockd.log")
    for text in ("short", "x" * 1_000_000, "two\nlines"):
        diagnostics.note(text)
    diagnostics.close()
    short, long, two = (line.partition(" ")[2] for line in (tmp_path / "lockd.log").read_text().splitlines())
    assert (short, two) == ("short", "'two\\nlines'")
    assert long == "x" * 3999 + "…"


GRANTS = st.builds(
    GrantLine,
    TIMES,
    st.sampled_from(get_args(GrantEvent)),
    TEXTS,
    st.sampled_from(["exclusive", "shared"]),
    st.builds(make_token, st.integers(1, 99), st.integers(1, 99)),
    HOSTS,
    st.dictionaries(st.sampled_from(["waited_ms", "queue", "held_ms"]), st.floats(0, 1e9).map("{:.3f}".format)).map(
        lambda more: tuple(more.items())
    ),
)


@given(GRANTS)
def test_a_grant_reads_back(line: GrantLine) -> None:
    text = format_grant(line)
    assert parse_grant(text) == line
    assert text.isprintable()


def test_a_grant_looks_like_this() -> None:
    line = GrantLine(
        parse_time("2026-11-22T15:03:11.123456Z"),
        "grant",
        "a b",
        "exclusive",
        make_token(1, 42),
        "client-2",
        (("waited_ms", "0.800"), ("queue", "3")),
    )
    assert format_grant(line) == (
        'time=2026-11-22T15:03:11.123456Z event=grant lock="a b" mode=exclusive token=1.42 '
        "client=client-2 waited_ms=0.800 queue=3"
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no key=value"),
        ("time=2026-11-22T15:03:11.123456Z event=grant", "the line has no lock"),
        ("time=2026-11-22T15:03:11.123456Z event=gift lock=a mode=shared token=1.1 client=a", "'gift' is unknown"),
        ("time=2026-11-22T15:03:11.123456Z event=grant lock=a mode=shared token=x client=a", "a token reads"),
    ],
)
def test_what_is_no_grant_is_refused_in_words(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_grant(text)
