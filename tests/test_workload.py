"""The random workload: a seed repeats it, a name makes it another, and its texts can be written."""

from itertools import islice
from pathlib import Path

import pytest

from client.workload import Choice, Workload, parse_delay, read_lines
from common.errors import EXIT_WRONG_USE, CommandError
from common.names import text_problem

FILES = ["notes.txt", "plans.txt", "deep/list.txt"]


def choices(name: str, seed: str | None, lines: list[str], count: int = 300) -> list[Choice]:
    workload = Workload(name, seed, (0.5, 2.0), FILES, lines)
    return [workload.next() for _ in range(count)]


def test_the_same_seed_and_name_make_the_same_choices() -> None:
    assert choices("a", "7", ["x", "y"]) == choices("a", "7", ["x", "y"])


@pytest.mark.parametrize(("name", "seed"), [("b", "7"), ("a", "8"), ("a", None)])
def test_another_name_or_seed_makes_others(name: str, seed: str | None) -> None:
    assert choices(name, seed, []) != choices("a", "7", [])


def test_without_a_seed_no_two_runs_are_the_same() -> None:
    assert choices("a", None, []) != choices("a", None, [])


def test_every_op_every_file_and_the_whole_range_of_pauses_come_up() -> None:
    found = choices("a", "7", [])
    assert {choice.verb for choice in found} == {"read", "write", "update"}
    assert {choice.file for choice in found} == set(FILES)
    pauses = sorted(choice.delay_ns for choice in found)
    assert 500_000_000 <= pauses[0] < 600_000_000
    assert 1_900_000_000 < pauses[-1] <= 2_000_000_000


def test_a_text_names_the_client_and_its_op_and_a_read_has_none() -> None:
    for number, choice in enumerate(choices("client-3", "7", []), 1):
        if choice.verb == "read":
            assert choice.text == ""
        else:
            assert "client-3" in choice.text
            assert choice.text.endswith(f" {number}")
        assert text_problem(choice.text) is None


def test_texts_are_taken_from_the_lines() -> None:
    found = {choice.text for choice in choices("a", "7", ["x", "y"])}
    assert found == {"", "x", "y"}


def test_a_pause_of_nothing_is_nothing() -> None:
    workload = Workload("a", "7", (0.0, 0.0), FILES, [])
    assert all(workload.next().delay_ns == 0 for _ in range(20))


@pytest.mark.parametrize(
    ("text", "range_s"), [("0.0..0.2", (0.0, 0.2)), ("5..10", (5, 10)), ("0..0", (0, 0)), ("1.5", (1.5, 1.5))]
)
def test_a_delay_reads_from_to(text: str, range_s: tuple[float, float]) -> None:
    assert parse_delay(text) == range_s


@pytest.mark.parametrize("text", ["5..1", "-1..1", "a..b", "", "..", "1..", "1..nan", "nan..nan", "0..inf", "1...2"])
def test_another_delay_is_wrong_use(text: str) -> None:
    with pytest.raises(CommandError, match=r"--delay .*A\.\.B") as raised:
        parse_delay(text)
    assert raised.value.code == EXIT_WRONG_USE


def test_lines_that_can_be_no_text_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes("first\r\n\n   \nzwölf\x00\nlast".encode())
    assert read_lines(path) == ["first", "last"]


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "no line of text"), (b"\n \n", "no line of text"), (b"ok\n\xff\n", "byte 3")]
)
def test_a_file_without_lines_of_text_is_wrong_use(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "lines"
    path.write_bytes(content)
    with pytest.raises(CommandError, match=f"--lines .*{reason}") as raised:
        read_lines(path)
    assert raised.value.code == EXIT_WRONG_USE


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_path_that_cannot_be_read_is_wrong_use(tmp_path: Path, name: str) -> None:
    with pytest.raises(CommandError, match=r"--lines .*cannot be read") as raised:
        read_lines(tmp_path / name)
    assert raised.value.code == EXIT_WRONG_USE


def test_a_stream_has_no_end() -> None:
    workload = Workload("a", "7", (0.0, 0.0), FILES, ["x"])
    assert len(list(islice(iter(workload.next, None), 1000))) == 1000
