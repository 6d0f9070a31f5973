"""events.log on disk: what a crash leaves is repaired, and the counts go on where the last process ended."""

from contextlib import closing
from pathlib import Path

import pytest

from client.event_file import WAITING_BYTES_MAX, Carried, EventFile, LogEnd
from client.storage_errors import StorageError
from common.clock import Clock
from common.eventlog import HEADER, format_event, format_pairs
from tests.crashing_disk import DATA, new_disk

NOBODY = LogEnd("", {}, 0, 0)


def line(host: str, clock: Clock, verb: str, id: str, file: str = "notes.txt", text: str | None = None) -> str:
    values = [("file", file), ("id", id), ("token", "1.42")]
    if text is not None:
        values.append(("text", text))
    return format_event(1_000_000 + clock[host], host, clock, verb, format_pairs(values))


def log_of(path: Path, *lines: str, tail: str = "") -> Path:
    path.write_text(HEADER + "".join(f"{one}\n" for one in lines) + tail, "utf-8")
    return path


def opened(path: Path) -> tuple[LogEnd, list[str]]:
    """Open and close the log; return where it stood and what was repaired."""
    events, notes = EventFile.open(path)
    events.close()
    return events.end, notes


def test_a_new_log_has_the_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "events.log"
    assert opened(path) == (NOBODY, [])
    assert path.read_text() == HEADER
    assert opened(path) == (NOBODY, [])


def test_it_goes_on_behind_what_was_appended(tmp_path: Path) -> None:
    path = tmp_path / "events.log"
    first = line("a", {"a": 1, "b": 7}, "write", "a:1", text='ä = "x" \\')
    second = line("a", {"a": 2, "b": 9}, "apply", "b:3")
    events, _ = EventFile.open(path)
    events.append(first)
    events.append(second)
    events.sync()
    events.close()
    assert path.read_text("utf-8") == f"{HEADER}{first}\n{second}\n"
    assert opened(path) == (LogEnd("a", {"a": 2, "b": 9}, 1_000_002, 1), [])


def test_a_torn_last_line_goes(tmp_path: Path) -> None:
    whole = line("a", {"a": 1}, "write", "a:1")
    torn = line("a", {"a": 2}, "write", "a:2", text="not pushed yet")
    path = log_of(tmp_path / "events.log", whole, tail=torn)
    end, notes = opened(path)
    assert end == LogEnd("a", {"a": 1}, 1_000_001, 1)
    assert notes == [f"took away the last {len(torn)} bytes of events.log, which a crash cut off"]
    assert path.read_text() == f"{HEADER}{whole}\n"
    assert opened(path) == (end, [])


def test_wherever_a_crash_cuts_it_the_whole_lines_stay(tmp_path: Path) -> None:
    path = tmp_path / "events.log"
    lines = [line("a", {"a": count}, "update", f"a:{count}", text="ö\u2028 id=a:9 ") for count in (1, 2, 3)]
    whole = log_of(path, *lines).read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        end, _ = opened(path)
        count = max(0, whole[:cut].count(b"\n") - 2)
        assert end.ops == end.clock.get("a", 0) == count
        assert path.read_text("utf-8") == HEADER + "".join(f"{one}\n" for one in lines[:count])


@pytest.mark.parametrize("content", ["mine", "my own notes, longer than the header of an event log is\n" * 9])
def test_a_file_that_is_no_event_log_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "events.log"
    path.write_text(content)
    with pytest.raises(StorageError, match=r"events\.log is not an event log"):
        EventFile.open(path)
    assert path.read_text() == content


@pytest.mark.parametrize("last", ["", "hello", "2026-11-22T15:03:11.123456Z a {} write file=", "\x00\x01"])
def test_a_last_line_that_is_no_event_is_told_with_the_path(tmp_path: Path, last: str) -> None:
    path = log_of(tmp_path / "events.log", line("a", {"a": 1}, "write", "a:1"), last)
    before = path.read_bytes()
    with pytest.raises(StorageError, match=r"the last line of .*events\.log is no event"):
        EventFile.open(path)
    assert path.read_bytes() == before


def test_bytes_that_are_no_text_are_told_as_well(tmp_path: Path) -> None:
    path = tmp_path / "events.log"
    path.write_bytes(HEADER.encode() + b"\xff\xfe\n")
    with pytest.raises(StorageError, match=r"the last line of .*events\.log is no event"):
        EventFile.open(path)


def test_the_largest_own_op_counts_not_the_last(tmp_path: Path) -> None:
    """Two ops on two files: the first one waited for its lock, so the second was logged before it."""
    path = log_of(
        tmp_path / "events.log",
        line("a", {"a": 1}, "write", "a:1"),
        line("a", {"a": 2}, "write", "a:12", file="plans.txt"),
        line("a", {"a": 3}, "read", "a:11"),
        line("a", {"a": 4, "b": 1}, "apply", "b:99"),
    )
    assert opened(path)[0].ops == 12


def test_only_the_ids_of_own_ops_count(tmp_path: Path) -> None:
    path = log_of(
        tmp_path / "events.log",
        line("a", {"a": 1}, "restore", "a:7", file="a b = id=a:70 .txt"),
        line("a", {"a": 2}, "write", "a:8", text="looks like id=a:80 token=1.1"),
        line("a", {"a": 3, "aa": 1}, "apply", "aa:81"),
        line("a", {"a": 4, "a#2": 1}, "apply", "a#2:82"),
        line("a", {"a": 5, "b": 1}, "apply", "b:83"),
    )
    assert opened(path)[0].ops == 8


def test_a_second_replica_of_the_name_counts_for_itself(tmp_path: Path) -> None:
    path = log_of(tmp_path / "events.log", line("a#2", {"a": 9, "a#2": 1}, "write", "a#2:3"))
    assert opened(path)[0] == LogEnd("a#2", {"a": 9, "a#2": 1}, 1_000_001, 3)


def test_the_newest_read_of_each_file_counts(tmp_path: Path) -> None:
    path = log_of(
        tmp_path / "events.log",
        line("a", {"a": 1}, "read", "a:1"),
        line("a", {"a": 2}, "read", "a:2", file="two words.txt"),
        line("a", {"a": 3, "b": 1}, "read", "a:3"),
        "1970-01-01T00:00:01.000004Z a {a: 4} read file=torn.txt id=a:4 token=1.1",
        line("a", {"a": 5, "b": 1}, "write", "a:5", text='looks like {"a":9} read file=f.txt id=a:9 '),
        line("a", {"a": 6, "b": 7}, "apply", "b:3"),
    )
    reads = opened(path)[0].reads
    assert reads == {"notes.txt": {"a": 3, "b": 1}, "two words.txt": {"a": 2}}


def test_a_full_disk_leaves_nothing_of_the_line() -> None:
    disk, path = new_disk(), DATA / "events.log"
    whole = line("a", {"a": 1}, "write", "a:1")
    events, _ = EventFile.open(path, disk)
    events.append(whole)
    disk.room = 10
    with pytest.raises(OSError, match="No space left"):
        events.append(line("a", {"a": 2}, "write", "a:2"))
    disk.room = None
    assert disk.contents(DATA)["events.log"].decode() == f"{HEADER}{whole}\n"
    events.append(line("a", {"a": 2}, "write", "a:2"))
    again, _ = EventFile.open(path, disk)
    assert again.end.ops == 2


# What a journal has carried


LINES = [line("a", {"a": count}, "write", f"a:{count}", text=f"text {count}") for count in range(1, 6)]
CARRIED = Carried(len(HEADER), [(len(HEADER), f"{LINES[0]}\n{LINES[1]}\n".encode())])


def mended(path: Path, content: str, carried: Carried) -> tuple[str, list[str]]:
    """Return what becomes of a log, and the notes; done again, nothing more does."""
    path.write_bytes(content.encode())
    events, told = EventFile.open(path, durable=True, carried=carried)
    events.close()
    events, notes = EventFile.open(path, durable=True, carried=carried)
    events.close()
    assert notes == []
    return path.read_text(), told


@pytest.mark.parametrize("left", ["", LINES[0] + "\n", LINES[0], "\0" * 300, LINES[0][:40] + "\0" * 200 + "\n"])
def test_lines_that_a_power_cut_took_come_back(tmp_path: Path, left: str) -> None:
    content, notes = mended(tmp_path / "events.log", HEADER + left, CARRIED)
    assert content == f"{HEADER}{LINES[0]}\n{LINES[1]}\n"
    assert notes[0].startswith("events.log got ")


@pytest.mark.parametrize(("left", "stay"), [(LINES[2], 1), ("\0" * len(LINES[2]), 0), ("", 0), (LINES[0], 0)])
def test_behind_them_stays_what_is_whole(tmp_path: Path, left: str, stay: int) -> None:
    log = f"{HEADER}{LINES[0]}\n{LINES[1]}\n"
    content, notes = mended(tmp_path / "events.log", f"{log}{LINES[2]}\n{left[:-2]}", CARRIED)
    assert content == f"{log}{LINES[2]}\n"
    assert len(notes) == bool(left)


def test_a_log_that_somebody_cut_is_left_as_it_is(tmp_path: Path) -> None:
    carried = Carried(5000, [(5000, LINES[3].encode() + b"\n")])
    assert mended(tmp_path / "events.log", f"{HEADER}{LINES[0]}\n", carried) == (f"{HEADER}{LINES[0]}\n", [])


def test_lines_wait_until_a_change_carries_them(tmp_path: Path) -> None:
    events, _ = EventFile.open(tmp_path / "events.log", durable=True)
    with closing(events):
        events.append(LINES[0])
        assert events.waiting_at == len(HEADER)
        assert events.waiting == LINES[0].encode() + b"\n"
        events.carry()
        events.append(LINES[1])
        assert (events.waiting_at, events.synced) == (len(HEADER) + len(LINES[0]) + 1, len(HEADER))
        events.sync()
        assert not events.waiting
        assert events.synced == (tmp_path / "events.log").stat().st_size
        for _ in range(2 * WAITING_BYTES_MAX // 1000):
            events.append(LINES[2] + "x" * 1000)
            assert len(events.waiting) <= WAITING_BYTES_MAX


def test_lines_of_what_did_not_happen_are_cut_off_again(tmp_path: Path) -> None:
    path = tmp_path / "events.log"
    for durable in (False, True):
        log, _ = EventFile.open(path, durable=durable)
        begin = log.size
        for count in (1, 2, 3):
            log.append(line("a", {"a": count}, "read", f"a:{count}"))
            if count == 1:
                kept, waiting = log.size, bytes(log.waiting)
        log.cut(kept)
        assert path.read_text() == HEADER + line("a", {"a": 1}, "read", "a:1") + "\n"
        assert log.waiting == waiting
        log.append(line("a", {"a": 2}, "read", "a:2"))
        assert (
            path.read_text()
            == HEADER + line("a", {"a": 1}, "read", "a:1") + "\n" + line("a", {"a": 2}, "read", "a:2") + "\n"
        )
        log.cut(begin)
        assert not log.waiting
        log.close()
        assert path.read_text() == HEADER
