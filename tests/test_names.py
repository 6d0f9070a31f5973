"""What may be called how."""

import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.limits import NAME_LENGTH_MAX, TEXT_BYTES_MAX
from common.names import (
    client_name_problem,
    endpoint_problem,
    file_name_problem,
    is_host,
    is_op_id,
    lock_name_problem,
    parse_version,
    text_problem,
)

CHECKS = {
    "client": client_name_problem,
    "file": file_name_problem,
    "lock": lock_name_problem,
    "text": text_problem,
}


@pytest.mark.parametrize("name", ["client-0", "A.b_c-9", "x" * NAME_LENGTH_MAX, ".."])
def test_good_client_names(name: str) -> None:
    assert client_name_problem(name) is None
    assert is_host(name)


@pytest.mark.parametrize("name", ["", "a b", "a#2", "ä", "a\n", "a/b", "a:1", "x" * (NAME_LENGTH_MAX + 1)])
def test_bad_client_names(name: str) -> None:
    assert client_name_problem(name)


@pytest.mark.parametrize("host", ["a#2", "a#10", "x" * NAME_LENGTH_MAX + "#2"])
def test_good_hosts(host: str) -> None:
    assert is_host(host) and is_op_id(f"{host}:1")


@pytest.mark.parametrize("host", ["", "a#", "a#0", "a#02", "a#2#3", "a b", 'a"', "a\n", "#2"])
def test_bad_hosts(host: str) -> None:
    assert not is_host(host) and not is_op_id(f"{host}:1")


@pytest.mark.parametrize("text", ["a", "a:", "a:0", "a:01", "a:1:2", "a:1 ", ":1", "a:-1", "a:" + "9" * 20])
def test_bad_op_ids(text: str) -> None:
    assert not is_op_id(text)


@pytest.mark.parametrize(
    "name", ["a", "notes.txt", "folder/a b/c", "ä/🙂", ".hidden", "...", "a\\b", "x" * 200, "con", "-rf", "a\u00a0b"]
)
def test_good_file_names(name: str) -> None:
    assert file_name_problem(name) is None
    assert lock_name_problem(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/a",
        "../x",
        "a/../b",
        "a/..",
        "a//b",
        "a/",
        "./a",
        ".",
        "a\nb",
        "a\0",
        "\x7f",
        "\x85",
        "a\u2028",
        "\ud800",
        "ä" * 101,
        "a/" * 256 + "a",
    ],
)
def test_bad_file_names(name: str) -> None:
    assert file_name_problem(name)


@pytest.mark.parametrize("name", ["", "a\nb", "\0", "\udcff", "ä" * 257])
def test_bad_lock_names(name: str) -> None:
    assert lock_name_problem(name)


@pytest.mark.parametrize("check", [is_host, file_name_problem, lock_name_problem], ids=["host", "file", "lock"])
def test_what_strangers_ask_for_is_not_kept_without_a_bound(check: Callable[[str], object]) -> None:
    tracemalloc.start()
    try:
        for number in range(20_000):
            check(f"{number:x>500}")
        for number in range(20):
            check(f"{number:x>1000000}")
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 6_000_000


@pytest.mark.parametrize("name", ["/a", "../a", "a//b", "anything at all"])
def test_a_lock_without_a_file_may_be_called_what_no_file_may(name: str) -> None:
    assert lock_name_problem(name) is None


@pytest.mark.parametrize("text", ["", "a", "tab\there", "ä 🙂", 'a "quoted" \\ text', "x" * TEXT_BYTES_MAX, "\x1b[0m"])
def test_good_texts(text: str) -> None:
    assert text_problem(text) is None


@pytest.mark.parametrize(
    "text", ["a\nb", "\r", "\0", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029", "\udc80", "ä" * TEXT_BYTES_MAX]
)
def test_bad_texts(text: str) -> None:
    assert text_problem(text)


@given(st.text(max_size=40))
def test_a_good_text_is_one_line_to_whoever_splits_it(text: str) -> None:
    if text_problem(text) is None:
        assert len(text.splitlines()) <= 1


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
@given(name=st.text(st.characters(exclude_categories=()), max_size=30))
def test_a_problem_is_one_printable_line(check: Callable[[str], str | None], name: str) -> None:
    problem = check(name)
    assert problem is None or (problem.isprintable() and problem)


@pytest.mark.parametrize(
    ("text", "file", "seq"), [("notes.txt@42", "notes.txt", 42), ("a@b/c@0", "a@b/c", 0), ("x@007", "x", 7)]
)
def test_a_version_name_is_read(text: str, file: str, seq: int) -> None:
    assert parse_version(text) == (file, seq)


@pytest.mark.parametrize(
    "text", ["", "notes.txt", "notes.txt@", "@3", "notes.txt@-1", "notes.txt@³", "../x@1", "a\n@1", "a@" + "9" * 5000]
)
def test_what_names_no_version_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"FILE@SEQ|^FILE "):
        parse_version(text)


@pytest.mark.parametrize(
    "endpoint", ["tcp://127.0.0.1:7461", "tcp://a.b.:1", "tcp://bücher.example:1", "ipc://@a:b", "ipc:///run/[x]:1"]
)
def test_good_endpoints(endpoint: str) -> None:
    assert endpoint_problem(endpoint, listening=False) is None
    assert endpoint_problem(endpoint, listening=True) is None


@pytest.mark.parametrize("endpoint", ["tcp://[::1]:7461", "tcp://::1:7461", "tcp://[::]:1"])
def test_an_endpoint_of_ipv6_is_refused_in_words(endpoint: str) -> None:
    for listening in (False, True):
        assert "IPv6 is not there" in str(endpoint_problem(endpoint, listening=listening))


@pytest.mark.parametrize("host", ["a..b", ".", "x" * 64, "ä..b", "\udcff"])
def test_an_endpoint_that_no_resolver_is_asked_for_is_refused_in_words(host: str) -> None:
    for listening in (False, True):
        assert endpoint_problem(f"tcp://{host}:1", listening=listening) == "HOST cannot be a host's name"
