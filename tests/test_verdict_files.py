"""The verdict on directories: what is read from the disk, and damage there."""

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.journal_format import OP_HEAD_BYTES, read_op
from scripts import checker
from scripts.verdict.load import NoRun, open_run
from scripts.verdict.properties import PROPERTIES
from tests.evidence import NOTES, Group, good_group, write_journal, write_run, wrong_on_disk

# Real files


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A good run on disk, with a file that was only ever read."""
    group = good_group()
    group.do(1, "read", "empty.txt")
    (tmp_path / "run").mkdir()
    return write_run(group, tmp_path / "run")


def everything_in(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(directory)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in directory.rglob("*")
        if path.is_file()
    }


def replace_in(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def cut_line(path: Path, number: int) -> bytes:
    """Take a line out of a file; return it."""
    lines = path.read_bytes().splitlines(keepends=True)
    line = lines.pop(number - 1)
    path.write_bytes(b"".join(lines))
    return line


def test_a_run_on_disk_is_read_as_it_was_made(run: Path) -> None:
    group = good_group()
    group.do(1, "read", "empty.txt")
    made = group.evidence()
    with open_run([run]) as evidence:
        assert evidence.flaws == []
        assert evidence.asked == made.asked
        assert evidence.told == group.told()
        assert evidence.grants is not None and made.grants is not None
        assert [entry.line for entry in evidence.grants.lines] == [entry.line for entry in made.grants.lines]
        assert [entry.number for entry in evidence.grants.lines] == [entry.number for entry in made.grants.lines]
        for read, client in zip(evidence.clients, made.clients, strict=True):
            assert (read.name, read.host) == (client.name, client.host)
            assert [(line.number, line.event) for line in read.lines] == [
                (line.number, line.event) for line in client.lines
            ]
            assert read.journals == client.journals
            assert read.files == client.files
            assert read.snapshots is not None and client.snapshots is not None
            assert read.snapshots.newest == client.snapshots.newest
            for file, newest in read.snapshots.newest.items():
                for seq in range(newest + 1):
                    assert read.snapshots.content(file, seq) == client.snapshots.content(file, seq)


def test_the_check_writes_nothing(run: Path) -> None:
    before = everything_in(run)
    assert wrong_on_disk(run) == {}
    assert everything_in(run) == before


def test_a_journal_that_a_kill_left_is_read(run: Path) -> None:
    group = good_group()
    group.do(1, "read", "empty.txt")
    data = run / "client-1"
    events = (data / "events.log").read_bytes()
    shutil.rmtree(data)
    journal = write_journal(group.replicas[1], run / "open")
    try:
        shutil.copytree(run / "open", data)
    finally:
        journal.close()
        shutil.rmtree(run / "open")
    (data / "events.log").write_bytes(events)
    log = data / "journal" / "1.ops"
    whole = log.read_bytes()
    change = whole[whole.index(b"\n") + 1 :]
    for length in range(0, len(change), 17):
        log.write_bytes(whole + change[:length])
        before = everything_in(run)
        assert wrong_on_disk(run) == {}, length
        assert everything_in(run) == before


def test_data_directories_may_be_given_one_by_one_and_as_parents(run: Path, tmp_path: Path) -> None:
    (run / "run.json").unlink()
    one = run / "client-1"
    elsewhere = tmp_path / "elsewhere" / "somebody"
    elsewhere.parent.mkdir()
    shutil.move(one, elsewhere)
    assert wrong_on_disk(run / "client-0", elsewhere, run / "client-2", run / "lockd") == {}
    assert wrong_on_disk(run, elsewhere.parent, run / "lockd") == {}
    findings = {f.name: f for f in checker.check([run / "client-0", elsewhere, run / "client-2"])}
    assert all(finding.ok for finding in findings.values())
    assert "no grants.log" in findings["tokens"].detail
    assert findings["complete"].detail == "11 ops by 3 clients, each once"
    (elsewhere / "files" / "x").touch()
    assert wrong_on_disk(run, elsewhere) == {"replay": "somebody/files/x: no op made this file"}


def test_directories_of_one_name_are_told_apart(run: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first = (run / "client-0").rename(tmp_path / "a" / "data")
    second = (run / "client-1").rename(tmp_path / "b" / "data")
    with open_run([first, second]) as evidence:
        assert [client.name for client in evidence.clients] == [str(first), str(second)]


@pytest.mark.parametrize("what", ["nothing", "a file", "an empty directory", "two runs"])
def test_what_is_no_run_is_refused(run: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    directories = {
        "nothing": [tmp_path / "none"],
        "a file": [run / "run.json"],
        "an empty directory": [tmp_path / "empty"],
        "two runs": [run, tmp_path / "again"],
    }[what]
    (tmp_path / "empty").mkdir()
    shutil.copytree(run, tmp_path / "again")
    with pytest.raises(NoRun), open_run(directories):
        pass
    assert checker.main([str(path) for path in directories]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1 and output.err.startswith("scripts/check: ")


def test_the_command_prints_a_line_per_property(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checker.main([str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[0] for line in lines] == ["✔"] * len(PROPERTIES)
    assert [line[2:].split("  ")[0] for line in lines] == list(PROPERTIES)
    replace_in(run / "client-0" / "files" / NOTES, b"one", b"oNe")
    assert checker.main(["--json", str(run)]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is False
    assert {p["name"]: p["ok"] for p in said["properties"]}["replay"] is False


@pytest.mark.parametrize("arguments", [[], ["--nonsense"], ["--json"]])
def test_wrong_use_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        checker.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


# Damage on disk: what, and which property names which place


def cut_log_line(run: Path) -> None:
    cut_line(run / "client-0" / "events.log", 5)


def cut_last_line(run: Path) -> None:
    cut_line(run / "client-0" / "events.log", len((run / "client-0" / "events.log").read_bytes().splitlines()))


def tear_last_line(run: Path) -> None:
    path = run / "client-2" / "events.log"
    path.write_bytes(path.read_bytes()[:-9])


def change_header(run: Path) -> None:
    replace_in(run / "client-2" / "events.log", b"(?<timestamp>", b"(?<time>")


def break_line(run: Path) -> None:
    replace_in(run / "client-0" / "events.log", b" apply ", b" Apply ")


def not_utf8(run: Path) -> None:
    replace_in(run / "client-0" / "events.log", b"text=one", b"text=\xff\xfe")


def remove_log(run: Path) -> None:
    (run / "client-1" / "events.log").unlink()


def break_grant(run: Path) -> None:
    replace_in(run / "lockd" / "grants.log", b"event=grant", b"event=gift")


def swap_tokens(run: Path) -> None:
    path = run / "lockd" / "grants.log"
    data = path.read_bytes().replace(b"token=1.1 ", b"token=9.9 ").replace(b"token=1.2 ", b"token=1.1 ")
    path.write_bytes(data.replace(b"token=9.9 ", b"token=1.2 "))


def change_replica(run: Path) -> None:
    replace_in(run / "client-2" / "files" / NOTES, b"half", b"hAlf")


def add_file(run: Path) -> None:
    (run / "client-2" / "files" / "a\nb").touch()


def link_file(run: Path) -> None:
    (run / "client-2" / "files" / "link").symlink_to(run / "run.json")


def remove_journal(run: Path) -> None:
    shutil.rmtree(run / "client-1" / "journal")


def spoil_journal(run: Path) -> None:
    (run / "client-1" / "journal" / "2.ops").write_bytes(b"no log at all\n" * 100)


def spoil_meta(run: Path) -> None:
    (run / "client-1" / "journal" / "meta").write_bytes(b"{}")


def tear_in_two(run: Path) -> None:
    log = run / "client-1" / "journal" / "1.ops"
    data = log.read_bytes()
    log.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])


def tear_size(run: Path) -> None:
    """Have the first op's entry, a part of the first change, go on beyond the end of the log."""
    log = run / "client-1" / "journal" / "1.ops"
    data = bytearray(log.read_bytes())
    struct.pack_into("<I", data, data.index(b"\n") + 1, 1 << 20)
    log.write_bytes(data)


def bury_change(run: Path) -> None:
    """Put what could have been torn by a crash before the last change."""
    log = run / "client-1" / "journal" / "1.ops"
    data = log.read_bytes()
    at = data.index(b"\n") + 1
    while (after := at + int(struct.unpack_from("<I", data, at)[0])) < len(data):
        at = after
    log.write_bytes(data[:at] + (1 << 20).to_bytes(4, "little") + b"torn" + data[at:])


def change_op(run: Path, id_: str, change: Callable[[bytearray, int, int, int], None]) -> None:
    """Change the entry of an op, given where it, its record, and what it removed begin; then mend its checksum."""
    for log in (run / "client-1" / "journal").glob("*.ops"):
        data = bytearray(log.read_bytes())
        named = data.find(bytes([0xA0 + len(id_)]) + id_.encode())
        if named < 0:
            continue
        start = data.index(b"\n") + 1
        while start + struct.unpack_from("<I", data, start)[0] <= named:
            start += struct.unpack_from("<I", data, start)[0]
        end = start + struct.unpack_from("<I", data, start)[0]
        record = start + OP_HEAD_BYTES
        op = read_op(bytes(data[start:record]), start)
        assert op is not None
        change(data, start, record, op.removed_at)
        struct.pack_into("<I", data, record - 4, zlib.crc32(data[start + 8 : record - 4]))
        struct.pack_into("<I", data, start + 4, zlib.crc32(data[start + 8 : end]))
        log.write_bytes(data)
        return
    raise AssertionError(id_)


def change_inserted(run: Path) -> None:
    def change(data: bytearray, start: int, record: int, removed: int) -> None:
        at = data.index(b"one\n", record)
        data[at : at + 3] = b"oNe"

    change_op(run, "client-0:1", change)


def change_hash(run: Path) -> None:
    def change(data: bytearray, start: int, record: int, removed: int) -> None:
        data[record - 32 : record - 16] = bytes(16)

    change_op(run, "client-2:2", change)


def change_type(run: Path) -> None:
    def change(data: bytearray, start: int, record: int, removed: int) -> None:
        data[record + 1] = 0xC0

    change_op(run, "client-2:2", change)


def change_removed(run: Path) -> None:
    def change(data: bytearray, start: int, record: int, removed: int) -> None:
        data[removed] ^= 1

    change_op(run, "client-1:3", change)


def spoil_outcome(run: Path) -> None:
    replace_in(run / "outcomes.jsonl", b'"ok"', b'"good"')


def cut_outcome(run: Path) -> None:
    cut_line(run / "outcomes.jsonl", 2)


def tear_outcome(run: Path) -> None:
    path = run / "outcomes.jsonl"
    path.write_bytes(path.read_bytes()[:-9])


def spoil_run_json(run: Path) -> None:
    (run / "run.json").write_text("[]", encoding="utf-8")


def wait_for_more(run: Path) -> None:
    replace_in(run / "run.json", b'"ops": 11', b'"ops": 12')


DAMAGES: list[tuple[Callable[[Path], None], str, str]] = [
    (cut_log_line, "clocks", "client-0/events.log:5: client-0 counts 4 where 3 is next"),
    (cut_last_line, "logs", "client-0/journal: deep/plans.txt@2: its op client-0:4 has no line"),
    (tear_last_line, "logs", "client-2/events.log:"),
    (change_header, "logs", "client-2/events.log:1: "),
    (break_line, "logs", "client-0/events.log:4: the line cannot be read: "),
    (not_utf8, "logs", "client-0/events.log:3: the line cannot be read: "),
    (remove_log, "logs", "client-1/events.log: it cannot be read: no such file"),
    (break_grant, "logs", "lockd/grants.log:1: the line cannot be read: the event 'gift' is unknown"),
    (swap_tokens, "tokens", "lockd/grants.log:1: grants are missing or out of order before 1.2"),
    (change_replica, "replay", "client-2/files/notes.txt: differs from version 5 replayed"),
    (add_file, "replay", "client-2/files/a\\nb: no op made this file"),
    (link_file, "replay", "client-2/files/link: it is not a plain file"),
    (remove_journal, "hash chain", "client-1/journal: it is missing"),
    (spoil_journal, "hash chain", "client-1/journal: 2.ops: its first line is b'no log at all'"),
    (spoil_meta, "hash chain", "client-1/journal: "),
    (tear_in_two, "hash chain", "client-1/journal: 1.ops: notes.txt is damaged at byte "),
    (tear_size, "hash chain", "client-1/journal: 1.ops: notes.txt is damaged at byte 40: the log goes on behind that"),
    (bury_change, "hash chain", "client-1/journal: 1.ops: notes.txt is damaged at byte 929: the log goes on behind"),
    (change_inserted, "hash chain", "client-1/journal: notes.txt@1: its hash does not follow"),
    (change_hash, "hash chain", "client-1/journal: notes.txt@3: its hash does not follow"),
    (change_type, "hash chain", "client-1/journal: notes.txt@3 cannot be read: "),
    (change_removed, "snapshots", "client-1/snapshots: "),
    (spoil_outcome, "outcomes", "outcomes.jsonl:1: the line cannot be read: the outcome 'good' is unknown"),
    (cut_outcome, "outcomes", "client-0/journal: notes.txt@2: nobody asked for its op client-1:1"),
    (tear_outcome, "outcomes", "outcomes.jsonl:11: the line cannot be read: "),
    (spoil_run_json, "complete", "run.json: it cannot be read: "),
    (wait_for_more, "complete", "run.json: only 11 of 12 ops were done"),
]


@pytest.mark.parametrize(("damage", "name", "detail"), DAMAGES)
def test_damage_on_disk_is_caught(run: Path, damage: Callable[[Path], None], name: str, detail: str) -> None:
    damage(run)
    said = wrong_on_disk(run)
    assert said[name].startswith(detail)


def test_any_damaged_byte_ends_in_findings(tmp_path: Path) -> None:
    group = Group("client-0", "client-1")
    group.do(0, "write", text="one")
    group.do(1, "update", text="two")
    group.do(0, "read")
    (tmp_path / "good").mkdir()
    good = write_run(group, tmp_path / "good")
    files = sorted(path.relative_to(good) for path in good.rglob("*") if path.is_file())

    @settings(max_examples=150, deadline=None)
    @given(st.sampled_from(files), st.integers(0, 1 << 20), st.integers(1, 255), st.integers(1, 64))
    def damage(file: Path, position: int, by: int, width: int) -> None:
        data = (good / file).read_bytes()
        changed = bytearray(data)
        start = position % len(data)
        changed[start : start + width] = bytes([byte ^ by for byte in changed[start : start + width]])
        (good / file).write_bytes(changed)
        try:
            findings = checker.check([good])
        finally:
            (good / file).write_bytes(data)
        assert len(findings) == len(PROPERTIES)
        assert all("\n" not in finding.detail for finding in findings)

    damage()
    assert wrong_on_disk(good) == {}
