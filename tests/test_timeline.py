"""scripts/timeline: what the picture of a run shows, worked out of runs made by hand, and real ones with faults."""

import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.dom import minidom

import pytest

from common.clock import happens_before_or_equal
from common.eventlog import format_time
from common.tokens import format_token, make_token
from scripts.picture.model import LOCKD, Mark, Picture, draw
from scripts.picture.notes import apart, read_notes
from scripts.picture.page import as_page
from scripts.picture.svg import as_svg
from scripts.picture.write import write, write_page
from scripts.verdict.load import find, open_run
from tests.evidence import NOTES, PLANS, Group, good_group, write_run

_DATA = re.compile(r'<script type="application/json" id="run">(.*?)</script>', re.DOTALL)


def picture_of(directory: Path) -> Picture:
    with open_run([directory]) as evidence:
        return draw("a run", evidence, read_notes(find([directory])))


def data_of(page: str) -> Any:
    found = _DATA.search(page)
    assert found is not None
    return json.loads(found[1])


def lockd_says(directory: Path, *lines: str) -> None:
    (directory / "lockd" / "lockd.log").write_text("".join([line + "\n" for line in lines]))


def client_says(directory: Path, name: str, *lines: str) -> None:
    (directory / name / "client.log").write_text("".join([line + "\n" for line in lines]))


def moment(picture_origin_us: int, after_us: int) -> str:
    return format_time(picture_origin_us + after_us)


def test_every_event_is_drawn_once_in_its_lane_and_in_an_order_that_respects_happens_before(tmp_path: Path) -> None:
    group = good_group()
    picture = picture_of(write_run(group, tmp_path))
    assert picture.lanes == [LOCKD, "client-0", "client-1", "client-2"]
    lines = {(line.event.host, line.event.clock[line.event.host]) for one in group.replicas for line in one.lines}
    assert {(mark.event.host, mark.count) for mark in picture.marks} == lines
    assert len(picture.marks) == len(lines)
    for place, mark in enumerate(picture.marks):
        assert picture.lanes[mark.lane] == picture.hosts[mark.host] == mark.event.host
        for other in picture.marks[place + 1 :]:
            assert not happens_before_or_equal(other.event.clock, mark.event.clock)


def test_logical_time_is_the_length_of_the_longest_chain_that_led_to_an_event(tmp_path: Path) -> None:
    picture = picture_of(write_run(good_group(), tmp_path))

    def longest(mark: Mark) -> int:
        before = [
            one
            for one in picture.marks
            if one is not mark and happens_before_or_equal(one.event.clock, mark.event.clock)
        ]
        return 1 + max([longest(one) for one in before], default=0)

    assert [mark.at.depth for mark in picture.marks] == [longest(mark) for mark in picture.marks]


def test_the_components_that_rose_give_each_clock_again(tmp_path: Path) -> None:
    picture = picture_of(write_run(good_group(), tmp_path))
    clocks: dict[int, dict[int, int]] = {}
    for mark in picture.marks:
        clock = {**clocks.get(mark.host, {}), **dict(mark.changed), mark.host: mark.count}
        clocks[mark.host] = clock
        assert {picture.hosts[host]: count for host, count in clock.items()} == mark.event.clock


def test_each_op_sends_an_arrow_to_whoever_took_it_in(tmp_path: Path) -> None:
    picture = picture_of(write_run(good_group(), tmp_path))
    applied = [number for number, mark in enumerate(picture.marks) if mark.event.verb == "apply"]
    syncs = [arrow for arrow in picture.arrows if arrow.kind == "sync"]
    assert sorted(arrow.target_mark for arrow in syncs) == applied
    for arrow in syncs:
        op, taken = picture.marks[arrow.source_mark], picture.marks[arrow.target_mark]
        assert op.event.values["id"] == taken.event.values["id"] == arrow.label
        assert (arrow.source, arrow.target) == (op.lane, taken.lane)
        assert op.at.depth < taken.at.depth


def test_locks_are_bars_that_never_lie_over_each_other_and_are_handed_on(tmp_path: Path) -> None:
    picture = picture_of(write_run(good_group(), tmp_path))
    holds = [hold for hold in picture.holds if hold.lock == NOTES]
    assert [format_token(hold.token) for hold in holds] == ["1.1", "1.2", "1.3", "1.4", "1.5", "1.6", "1.8"]
    assert {hold.over for hold in holds} == {"release"}
    for hold, after in itertools.pairwise(holds):
        if "exclusive" in (hold.mode, after.mode):
            assert hold.end.time <= after.begin.time
            assert hold.end.depth <= after.begin.depth
    handed = [(arrow.label, arrow.source, arrow.target) for arrow in picture.arrows if arrow.kind == "hand-off"]
    # Clients 0 and 2 read together; then 2 writes, which has to wait for 0.
    assert [pair[1:] for pair in handed if pair[0] == NOTES] == [(1, 2), (2, 1), (2, 3), (1, 3), (3, 1), (1, 2)]
    assert [pair[1:] for pair in handed if pair[0] == PLANS] == [(2, 1), (1, 3)]


def test_a_hold_without_an_end_lasts_until_the_end_and_one_that_expired_says_so(tmp_path: Path) -> None:
    group = good_group()
    held = group.begin(0, "write", text="never ends")
    lost = group.begin(1, "write", "other.txt", text="its lease runs out")
    line = group.locks[-1].line
    late = replace(group.locks[-1], number=len(group.locks) + 1)
    group.locks.append(
        replace(late, line=type(line)(line.time_us + 900, "expiry", line.lock, line.mode, line.token, line.client))
    )
    picture = picture_of(write_run(group, tmp_path))
    over = {hold.token: hold.over for hold in picture.holds}
    assert over[held.token] == "open"
    assert over[lost.token] == "expiry"


def test_a_late_push_is_a_red_arrow_to_whoever_refused_it(tmp_path: Path) -> None:
    group = good_group()
    late = group.begin(0, "write", text="late")
    takes_back(group, 0)
    directory = write_run(group, tmp_path)
    when = format_time(group.time_us + 50)
    token = format_token(late.token)
    client_says(
        directory,
        "client-1",
        f"{when} refused a push of client-0 to {NOTES}: its token {token} is fenced by 9.9",
        f"{when} refused a push of 0123456789abcdef to {NOTES}: its token 7.7 is fenced by 9.9",
        "a line that does not read",
    )
    picture = picture_of(directory)
    fenced = [arrow for arrow in picture.arrows if arrow.kind == "fenced"]
    assert [(arrow.source, arrow.target, arrow.label) for arrow in fenced] == [(1, 2, token)]
    assert not [arrow for arrow in picture.arrows if arrow.kind == "late"]
    assert picture.marks[fenced[0].source_mark].event.values["text"] == "late"
    kinds = [note.kind for note in picture.notes]
    assert kinds.count("fenced") == 2


def takes_back(group: Group, index: int) -> None:
    """Have a client undo the newest op on NOTES, which nobody else has."""
    group.replicas[index].records[NOTES].pop()
    group.replicas[index].hashes[NOTES].pop()


def test_no_arrow_leads_back_in_logical_time(tmp_path: Path) -> None:
    """Who refuses a late write may know of little: its events stand far to the left of that write."""
    group = good_group()
    doings = [group.begin(0, "write", f"other-{number}.txt", text="alone") for number in range(9)]
    assert len(doings) == 9
    late = group.begin(0, "write", text="late")
    takes_back(group, 0)
    directory = write_run(group, tmp_path)
    text = f"refused a push of client-0 to {NOTES}: its token {format_token(late.token)} is fenced by 9.9"
    client_says(directory, "client-2", f"{format_time(group.time_us)} {text}")
    arrows = picture_of(directory).arrows
    assert [arrow.kind for arrow in arrows if arrow.kind not in ("sync", "hand-off")] == ["fenced"]
    assert all(arrow.begin.depth <= arrow.end.depth for arrow in arrows)


def test_in_lockds_lane_no_hold_lies_over_another_but_readers(tmp_path: Path) -> None:
    """Also not where what was done under an expired lock is concurrent with what came after it."""
    group = good_group()
    group.begin(0, "write", text="its lease runs out")
    line = group.locks[-1].line
    expiry = type(line)(line.time_us + 1, "expiry", line.lock, line.mode, line.token, line.client)
    group.locks.append(replace(group.locks[-1], number=len(group.locks) + 1, line=expiry))
    group.held[NOTES].clear()
    takes_back(group, 0)
    group.time_us += 10
    group.do(1, "write", text="the next")
    group.do(2, "read")
    holds = [hold for hold in picture_of(write_run(group, tmp_path)).holds if hold.lock == NOTES]
    for number, hold in enumerate(holds):
        for after in holds[number + 1 :]:
            if "exclusive" in (hold.mode, after.mode):
                assert hold.served[1] <= after.served[0]


def test_events_that_clocks_count_and_no_log_has_are_told(tmp_path: Path) -> None:
    group = good_group()
    directory = write_run(group, tmp_path)
    assert picture_of(directory).missing == {}
    (directory / "client-1" / "events.log").write_text("")
    others = [line.event.clock for replica in group.replicas if replica.name != "client-1" for line in replica.lines]
    count = max(clock.get("client-1", 0) for clock in others)
    assert picture_of(directory).missing == {"client-1": count}
    done = timeline(directory)
    assert done.returncode == 0
    told = f"events of client-1 that no log here has, and that are not drawn: {count}"
    assert done.stderr == f"scripts/timeline: {told}\n"


def test_a_push_that_is_refused_but_whose_op_came_by_other_ways_is_only_late(tmp_path: Path) -> None:
    group = good_group()
    doing = group.begin(0, "write", text="came by other ways")
    group.end(doing)
    directory = write_run(group, tmp_path)
    token = format_token(doing.token)
    text = f"refused a push of client-0 to {NOTES}: its token {token} is fenced by 9.9"
    client_says(directory, "client-1", f"{format_time(group.time_us + 50)} {text}")
    arrows = [arrow for arrow in picture_of(directory).arrows if arrow.kind in ("late", "fenced")]
    assert [(arrow.kind, arrow.source, arrow.target) for arrow in arrows] == [("late", 1, 2)]


def test_a_crash_is_a_gap_from_the_last_sign_of_life_to_the_next_start(tmp_path: Path) -> None:
    group = good_group()
    directory = write_run(group, tmp_path)
    began_us, last_us = group.locks[0].line.time_us, group.time_us
    client_says(
        directory,
        "client-0",
        f"{format_time(began_us - 100)} start 1 of this directory, process 7",
        f"{format_time(last_us + 500)} start 2 of this directory, process 8",
        f"{format_time(last_us + 600)} ended in order",
        f"{format_time(last_us + 900)} start 3 of this directory, process 9",
    )
    lockd_says(
        directory,
        f"{format_time(began_us)} epoch 1 begins on tcp://127.0.0.1:1",
        f"{format_time(last_us + 10)} session 1 of client-2 is over: its lease of 1 s ran out",
        f"{format_time(last_us + 40)} session 2 of client-2 is open",
        f"{format_time(last_us + 50)} epoch 2 begins on tcp://127.0.0.1:1",
        f"{format_time(last_us + 60)} session 3 of client-1 is over: it said goodbye",
    )
    picture = picture_of(directory)
    spans = {(span.lane, span.kind, span.text): (span.begin.time, span.end.time) for span in picture.spans}
    own = [line.event.time_us for line in group.replicas[0].lines]
    origin = picture.origin_us
    assert spans == {
        (1, "down", "it ended without a word"): (own[-1] - origin, last_us + 500 - origin),
        (1, "down", "not running"): (last_us + 600 - origin, last_us + 900 - origin),
        (0, "down", "it ended without a word"): (last_us + 40 - origin, last_us + 50 - origin),
        (3, "apart", "its lease of 1 s ran out"): (last_us + 10 - origin, last_us + 40 - origin),
    }


def test_who_never_comes_back_is_apart_until_the_end_but_for_who_said_goodbye(tmp_path: Path) -> None:
    (tmp_path / "lockd.log").write_text(
        f"{format_time(1)} session 1 of a is over: its connection is down\n"
        f"{format_time(2)} session 2 of b is over: it said goodbye\n"
    )
    (tmp_path / "grants.log").touch()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "events.log").touch()
    notes = read_notes(find([tmp_path, tmp_path / "c"]))
    assert apart(notes.lockd, 9) == {"a": [(1, 9, "its connection is down")]}


def test_what_a_lane_took_back_is_struck_out_there_and_nowhere_else(tmp_path: Path) -> None:
    group = good_group()
    doing = group.begin(0, "write", text="undone")
    group.apply(doing, group.replicas[1])
    directory = write_run(group, tmp_path)
    log = directory / "client-0" / "events.log"
    text = log.read_text()
    last = text.splitlines()[-1]
    count = group.replicas[0].clock["client-0"]
    undo = re.sub(r" write ", " undo ", last).replace(f'"client-0":{count}', f'"client-0":{count + 1}')
    log.write_text(text + undo + "\n")
    marks = [mark for mark in picture_of(directory).marks if mark.struck]
    assert [(mark.event.host, mark.event.verb, mark.event.values["text"]) for mark in marks] == [
        ("client-0", "write", "undone")
    ]


def test_a_copied_directory_draws_its_lines_once(tmp_path: Path) -> None:
    group = good_group()
    group.copy(0, "copy")
    group.do(3, "write", text="the copy goes on")
    picture = picture_of(write_run(group, tmp_path))
    keys = [(mark.event.host, mark.count) for mark in picture.marks]
    assert len(keys) == len(set(keys))
    assert ("copy", group.replicas[3].clock["copy"]) in keys


def test_lines_that_do_not_read_are_left_out_and_the_rest_is_drawn(tmp_path: Path) -> None:
    directory = write_run(good_group(), tmp_path)
    log = directory / "client-1" / "events.log"
    whole = len(picture_of(directory).marks)
    log.write_text(log.read_text()[:-20])
    assert len(picture_of(directory).marks) == whole - 1
    log.write_bytes(log.read_bytes() + b"\xff\xfe nonsense\n")
    assert len(picture_of(directory).marks) == whole - 1


MOMENT = "2027-01-15T08:00:00.000000Z"


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("client-1/events.log", " token=1.2", ""),
        ("client-1/events.log", " token=1.2", " token=x"),
        ("client-1/events.log", " seq=2", " seq=two"),
        ("client-1/events.log", " file=notes.txt", ""),
        ("client-1/events.log", "Z client-1 {", "Z ghost {"),
        ("lockd/grants.log", "client=client-1", "client=client-1 waited_ms=nan"),
        ("lockd/grants.log", "client=client-1", "client=client-1 waited_ms=1e400"),
        ("lockd/grants.log", "client=client-1", "client=client-1 waited_ms=x"),
        ("client-0/client.log", "", f"{MOMENT} refused a push of x to f: its token 9.9.9 is fenced by 1.2\n"),
        ("client-0/client.log", "", f"{MOMENT} refused a push of x to f: its token ٣.٣ is fenced by 1.2\n"),
        ("lockd/lockd.log", "", "2027-02-31T08:00:00.000000Z session 5 of client-0 is over: x\n\x00\n"),
        ("faults.jsonl", "", '[]\nnull\n{"begin": 1}\n' + "[" * 100_000 + "\n"),
        ("faults.jsonl", "", f'{{"begin": "{MOMENT}", "end": "{MOMENT}", "victim": "lockd", "text": "\\ud800"}}\n'),
    ],
)
def test_of_what_is_damaged_the_rest_is_drawn(tmp_path: Path, name: str, old: str, new: str) -> None:
    directory = write_run(good_group(), tmp_path)
    path = directory / name
    text = path.read_text("utf-8") if path.exists() else ""
    assert old in text
    path.write_text(text.replace(old, new) if old else new, "utf-8")
    picture = picture_of(directory)
    assert len(picture.marks) > 15
    assert data_of(write_page([directory]).read_text("utf-8"))["lanes"] == picture.lanes
    minidom.parseString(as_svg(picture).encode("utf-8", "replace"))


def test_a_directory_whose_name_is_no_text_is_drawn(tmp_path: Path) -> None:
    directory = write_run(good_group(), tmp_path / "run\udcff")
    assert "\\u" in write_page([directory]).read_text("utf-8")
    write(directory / "timeline.svg", as_svg(picture_of(directory)))


def test_the_page_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    directory = write_run(good_group(), tmp_path)
    page = write_page([directory]).read_text("utf-8")
    assert page == (directory / "timeline.html").read_text("utf-8")
    assert not (directory / "timeline.html.new").exists()
    assert "default-src 'none'" in page
    outside = _DATA.sub("", page)
    assert not re.search(r'\b(src|href)="(?!data:,")', outside)
    assert "http" not in re.sub(r"http-equiv", "", outside)
    run = data_of(page)
    assert run["lanes"][0] == LOCKD
    assert run["histories"][NOTES]["ops"][0]["inserted"] == "one\n"


def test_no_text_of_a_run_ends_the_script_or_becomes_markup(tmp_path: Path) -> None:
    group = Group()
    hostile = "</script><script>alert(1)</script><!--\u2028 \u202e"
    group.do(0, "write", "<b>x.txt", text=hostile)
    directory = write_run(group, tmp_path / "<img src=x onerror=alert(1)>")
    page = write_page([directory]).read_text("utf-8")
    assert page.count("<script") == 2
    assert page.count("</script") == 2
    assert "<img" not in page
    assert "<b>x" not in page
    assert data_of(page)["histories"]["<b>x.txt"]["ops"][0]["inserted"] == hostile + "\n"


def test_content_that_is_no_text_is_carried_as_it_is(tmp_path: Path) -> None:
    picture = picture_of(write_run(good_group(), tmp_path))
    journal = picture.histories[NOTES]
    records = list(journal.records)
    cut = type(records[0])(**{**_fields(records[0]), "inserted": b"\xff\n"})
    changed = replace(picture, histories={NOTES: replace(journal, records=[cut, *records[1:]])})
    assert data_of(as_page(changed))["histories"][NOTES]["ops"][0]["inserted"] == {"base64": "/wo="}


def _fields(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


def test_files_that_are_too_large_are_left_out_the_largest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = good_group()
    group.do(0, "write", "large.txt", text="x" * 500)
    picture = picture_of(write_run(group, tmp_path))
    monkeypatch.setattr("scripts.picture.page.CONTENT_BYTES_MAX", 400)
    histories = data_of(as_page(picture))["histories"]
    assert histories["large.txt"]["ops"] is None
    assert histories[NOTES]["ops"]


def test_the_svg_has_every_mark_and_shows_texts_as_texts(tmp_path: Path) -> None:
    group = good_group()
    group.do(0, "write", "<b>&.txt", text="<script>alert(1)</script>\x1b[31m")
    picture = picture_of(write_run(group, tmp_path))
    drawn = minidom.parseString(as_svg(picture))
    assert not drawn.getElementsByTagName("script")
    titles = [child.data for node in drawn.getElementsByTagName("title") for child in node.childNodes]  # type: ignore[union-attr]
    for mark in picture.marks:
        assert f"{mark.event.host}: {mark.text}" in titles
    classes = [node.getAttribute("class") for node in drawn.getElementsByTagName("path")]
    for kind in ("sync", "hand-off"):
        assert classes.count(kind) == sum(arrow.kind == kind for arrow in picture.arrows)
    assert "\x1b" not in as_svg(picture)


def timeline(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "scripts.picture", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_the_command_says_where_the_picture_is(tmp_path: Path) -> None:
    directory = write_run(good_group(), tmp_path / "run")
    done = timeline(directory)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()).resolve() == directory / "timeline.html"
    done = timeline("--svg", directory, "--output", tmp_path / "picture.svg")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "picture.svg").read_text().startswith("<svg")
    done = timeline(*[directory / name for name in ("client-0", "client-1", "lockd")])
    assert done.returncode == 0
    assert (directory / "client-0" / "timeline.html").is_file()


def test_the_command_tells_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    directory = write_run(good_group(), tmp_path / "run")
    for arguments, code, told in (
        ((tmp_path / "nothing",), 2, "no such file"),
        ((), 2, "RUN_DIR"),
        ((directory, "--png"), 2, "--png"),
        ((directory, "--output", tmp_path / "no" / "where.html"), 3, "cannot be written"),
    ):
        done = timeline(*arguments)
        assert done.returncode == code, done
        assert told in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""


def test_a_picture_of_too_many_events_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from common.errors import CommandError
    from scripts.picture import write as writing

    directory = write_run(good_group(), tmp_path)
    monkeypatch.setattr(writing, "MARKS_MAX", 10)
    with pytest.raises(CommandError, match="leave --svg out"):
        writing.svg_of(writing.read_picture([directory]))


def test_a_run_without_events_is_drawn_as_well(tmp_path: Path) -> None:
    (tmp_path / "client-0").mkdir()
    (tmp_path / "client-0" / "events.log").touch()
    picture = picture_of(tmp_path)
    assert (picture.marks, picture.arrows) == ([], [])
    assert data_of(as_page(picture))["lanes"] == [LOCKD, "client-0"]
    minidom.parseString(as_svg(picture))


def test_tokens_of_any_size_are_shown_as_they_are(tmp_path: Path) -> None:
    group = good_group()
    group.counter = (1 << 40) - 5
    doing = group.begin(0, "write", text="late in life")
    group.end(doing)
    assert doing.token == make_token(1, (1 << 40) - 4)
    run = data_of(as_page(picture_of(write_run(group, tmp_path))))
    assert run["holds"][-1]["token"] == f"1.{(1 << 40) - 4}"
