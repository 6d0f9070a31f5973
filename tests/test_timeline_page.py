"""The page that scripts/timeline makes, in a headless Chromium, as a person uses it. Left out where there is none."""

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.clock import Clock, happens_before_or_equal
from common.eventlog import HEADER, parse_event
from scripts.benchmark.chromium import Browser, find_chromium
from scripts.picture.write import write_page
from tests.evidence import NOTES, Group, good_group, write_run

if find_chromium() is None:
    pytest.skip("there is no Chromium here, so the page of scripts/timeline was not opened", allow_module_level=True)

DEADLINE_S = 10.0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do a real run of five clients on two files."""
    directory = tmp_path_factory.mktemp("page") / "run"
    command = [sys.executable, "-P", "-m", "scripts.launcher", "--clients", "5", "--ops", "200", "--delay", "0..0"]
    done = subprocess.run(
        [*command, "--file", "a.txt", "--file", "b.txt", "--run-dir", "run"],
        cwd=directory.parent,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "timeline   run/timeline.html" in done.stdout
    return directory


@pytest.fixture
def page(browser: Browser, run: Path) -> Iterator[Browser]:
    """Open the run's page; afterwards it has neither complained nor asked for anything."""
    browser.resize(1280, 800)
    browser.open(run / "timeline.html")
    yield browser
    only(browser, run / "timeline.html")


def only(browser: Browser, page: Path) -> None:
    """Hold that nothing was asked for but the page itself, and nothing went wrong in it."""
    assert browser.errors == []
    assert browser.requests == [page.resolve().as_uri()]


def until(browser: Browser, condition: str) -> None:
    """Wait until a JavaScript expression is true."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not browser.run(condition):
        assert time.monotonic() < deadline_s, f"never true: {condition}"


def clocks_of(run: Path) -> dict[tuple[str, int], Clock]:
    """Return the clock of every event, by whose it is and which: read from the logs, by nothing of the page."""
    clocks: dict[tuple[str, int], Clock] = {}
    for log in sorted(run.glob("*/events.log")):
        for line in log.read_text("utf-8").removeprefix(HEADER).splitlines():
            event = parse_event(line)
            clocks[event.host, event.clock[event.host]] = event.clock
    return clocks


LIT = """
(() => {
  const { lit, run } = timeline;
  const name = (mark) => [run.hosts[run.marks.host[mark]], run.marks.count[mark]];
  return Object.fromEntries(Object.entries(lit()).map(([how, marks]) => [how, marks.map(name)]));
})()
"""


def lit(browser: Browser) -> dict[str, set[tuple[str, int]]]:
    found: dict[str, list[list[Any]]] = browser.run(LIT)
    return {how: {(host, count) for host, count in events} for how, events in found.items()}


def place_of(browser: Browser, mark: int) -> tuple[float, float]:
    """Return where a mark stands in the viewport."""
    x, y, left, top = browser.run(
        "(() => { const box = document.getElementById('diagram').getBoundingClientRect();"
        f" return [...timeline.placeOf({mark}), box.left, box.top]; }})()"
    )
    return x + left, y + top


def near(browser: Browser, mark: int) -> None:
    """Zoom in around a mark, as far as it goes, and choose nothing."""
    browser.run(f"timeline.select({mark})")
    for _ in range(25):
        browser.type("+")
        browser.run(f"timeline.select({mark})")
    browser.run("timeline.select(-1)")
    browser.run(f"timeline.view.reveal({mark}), timeline.draw()")


@pytest.mark.parametrize("axis", ["network", "logical"])
def test_a_click_lights_exactly_the_past_and_the_future_of_an_event(page: Browser, run: Path, axis: str) -> None:
    clocks = clocks_of(run)
    chance = random.Random(axis)
    if axis == "logical":
        page.type("t")
    total: int = page.run("timeline.run.marks.lane.length")
    assert total == len(clocks)
    for mark in chance.sample(range(total), 6):
        near(page, mark)
        assert lit(page) == {"past": set(), "future": set(), "itself": set(), "concurrent": set()}
        page.click(*place_of(page, mark))
        seen = lit(page)
        (chosen,) = seen["itself"]
        expected = tuple(
            page.run(f"[timeline.run.hosts[timeline.run.marks.host[{mark}]], timeline.run.marks.count[{mark}]]")
        )
        assert chosen == expected
        own = clocks[chosen]
        others = {name: clock for name, clock in clocks.items() if name != chosen}
        past = {name for name, clock in others.items() if happens_before_or_equal(clock, own)}
        future = {name for name, clock in others.items() if happens_before_or_equal(own, clock)}
        assert seen["past"] == past
        assert seen["future"] == future
        assert seen["concurrent"] == others.keys() - past - future
        told = page.run("document.querySelector('#panel .counts').textContent")
        assert told == f"{len(past)} before {len(future)} after {len(others) - len(past) - len(future)} concurrent"


def test_what_is_lit_looks_otherwise_than_what_is_plain(page: Browser) -> None:
    """Chosen, an event's surroundings are drawn anew: colours of what is concurrent fade."""
    page.type("0")
    before = page.run("document.getElementById('diagram').toDataURL()")
    page.run("timeline.select(40), timeline.draw()")
    assert page.run("document.getElementById('diagram').toDataURL()") != before


def test_the_axis_switches_by_button_and_key(page: Browser) -> None:
    pressed = "[...document.querySelectorAll('[data-axis]')].map(b => [b.dataset.axis, b.getAttribute('aria-pressed')])"
    assert page.run(pressed) == [["network", "true"], ["logical", "false"]]
    page.run("document.querySelector('[data-axis=logical]').click()")
    assert page.run(pressed) == [["network", "false"], ["logical", "true"]]
    in_order = """timeline.run.arrows.filter(a => a.kind === "sync").every(
      (a) => timeline.placeOf(a.from)[0] < timeline.placeOf(a.to)[0])"""
    assert page.run(in_order)
    page.type("t")
    assert page.run(pressed) == [["network", "true"], ["logical", "false"]]
    there = page.run("[timeline.view.left, timeline.view.scale]")
    page.type("tt")
    assert page.run("[timeline.view.left, timeline.view.scale]") == there


@pytest.mark.parametrize("what", ["id", "token", "text"])
def test_a_search_finds_by_id_token_and_text(page: Browser, run: Path, what: str) -> None:
    events = [
        parse_event(line)
        for log in run.glob("*/events.log")
        for line in log.read_text("utf-8").removeprefix(HEADER).splitlines()
    ]
    sought = next(event for event in events if event.values.get("text")).values[what]
    values = [event.values.get(what, "") for event in events]
    expected = [value for value in values if value == sought or (what == "text" and sought in value)]
    page.type("/" + sought)
    until(page, f"document.getElementById('hits').textContent === '1 of {len(expected)}'")
    assert page.run("!document.getElementById('panel').hidden")
    page.type("\nn")
    until(page, f"document.getElementById('hits').textContent === '{min(2, len(expected))} of {len(expected)}'")
    assert page.run("document.getElementById('query').value") == sought


def test_a_search_for_nothing_that_is_there_says_so(page: Browser) -> None:
    page.type("/no such thing")
    until(page, "document.getElementById('hits').textContent === 'none'")


def test_the_panel_shows_the_line_the_diff_and_the_content_of_the_version(page: Browser, run: Path) -> None:
    log = next(log for log in sorted(run.glob("client-*/events.log")) if " write file=" in log.read_text("utf-8"))
    lines = log.read_text("utf-8").removeprefix(HEADER).splitlines()
    line = [line for line in lines if " write file=" in line][-1]
    event = parse_event(line)
    file, seq = event.values["file"], event.values["seq"]
    page.run(
        f"timeline.select(timeline.search('{event.values['id']}').find(m => timeline.lineOf(m).includes(' write ')))"
    )
    shown = subprocess.run(
        [sys.executable, "-P", "-m", "client", "show", f"{file}@{seq}", "--data", str(log.parent)],
        capture_output=True,
        timeout=30,
        check=True,
    ).stdout.decode()
    assert page.run("document.querySelector('#panel pre.content').textContent") == shown
    assert page.run("[...document.querySelectorAll('#panel pre')].at(-1).textContent") == line
    added = page.run("[...document.querySelectorAll('#panel .plus')].map(one => one.textContent)")
    assert added == [f"+ {event.values['text']}\n"]
    assert page.run("document.querySelectorAll('#panel .minus').length") == 0


def test_hovering_shows_the_line_and_leaving_hides_it(page: Browser) -> None:
    near(page, 30)
    x, y = place_of(page, 30)
    page.mouse("mouseMoved", x, y)
    assert page.run("document.getElementById('tip').textContent === timeline.lineOf(30)")
    assert page.run("!document.getElementById('tip').hidden")
    page.mouse("mouseMoved", 5, 5)
    until(page, "document.getElementById('tip').hidden")


def test_mouse_and_keys_zoom_and_pan(page: Browser) -> None:
    state = "[timeline.view.left, timeline.view.scale]"
    left, scale = page.run(state)
    page.mouse("mouseWheel", 700, 400, deltaX=0, deltaY=-300)
    until(page, f"timeline.view.scale > {scale}")
    left, scale = page.run(state)
    page.mouse("mousePressed", 700, 700)
    page.mouse("mouseMoved", 600, 700, button="left", buttons=1)
    page.mouse("mouseReleased", 600, 700)
    until(page, f"timeline.view.left > {left}")
    assert page.run("document.getElementById('panel').hidden")
    page.type("0")
    until(page, f"timeline.view.scale < {scale}")
    page.type("d")
    assert page.run("document.documentElement.dataset.theme") in ("light", "dark")
    page.type("j")
    assert page.run("!document.getElementById('panel').hidden")


@pytest.mark.parametrize("chosen", [-1, 40])
def test_a_telephone_has_no_horizontal_scroll_bar(page: Browser, chosen: int) -> None:
    page.resize(375, 720, mobile=True)
    page.run(f"timeline.select({chosen})")
    assert page.run("window.innerWidth") == 375
    assert page.run("document.documentElement.scrollWidth") <= 375
    beyond = "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > 375.5)"
    assert page.run(f"{beyond}.map(e => e.outerHTML)") == []
    assert page.run("document.getElementById('diagram').clientHeight") > 200


def test_a_hostile_text_is_shown_as_a_text(browser: Browser, tmp_path: Path) -> None:
    group = Group()
    hostile = "<script>alert(1)</script><img src=x onerror=alert(1)>\x1b]0;gone\x07\x1b[31m \u202e"
    file = "<img src=x onerror=alert(1)>.txt"
    group.do(0, "write", file, text=hostile)
    group.do(1, "read", file)
    page = write_page([write_run(group, tmp_path / "<b>run")])
    browser.call("Page.addScriptToEvaluateOnNewDocument", source="window.alert = () => { window.harmed = true; };")
    browser.open(page)
    for mark in range(browser.run("timeline.run.marks.lane.length")):
        browser.run(f"timeline.select({mark})")
        x, y = place_of(browser, mark)
        browser.mouse("mouseMoved", x, y)
        assert browser.run("document.querySelectorAll('img, b').length") == 0
        assert browser.run("document.querySelectorAll('script').length") == 2
    shown = browser.run("(timeline.select(0), document.getElementById('panel').textContent)")
    assert "<script>alert(1)</script>" in shown
    assert "\\u{1b}[31m" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert not browser.run("!!window.harmed")
    only(browser, page)


def test_a_run_without_an_event_opens_as_well(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "client-0").mkdir()
    (tmp_path / "client-0" / "events.log").touch()
    page = write_page([tmp_path])
    browser.open(page)
    browser.type("t0+j/x")
    until(browser, "document.getElementById('hits').textContent === 'none'")
    only(browser, page)


def test_an_undone_version_and_an_unknown_file_say_so(browser: Browser, tmp_path: Path) -> None:
    group = good_group()
    group.do(0, "write", text="the last")
    directory = write_run(group, tmp_path)
    log = directory / "client-0" / "events.log"
    *lines, last = log.read_text("utf-8").splitlines(keepends=True)
    digest = parse_event(last.rstrip("\n")).values["hash"]
    log.write_text("".join(lines) + last.replace(digest, "0" * 12), "utf-8")
    browser.open(write_page([directory]))
    browser.run("timeline.select(timeline.search('the last')[0])")
    assert "not in the history" in browser.run("document.getElementById('panel').textContent")
    browser.run(f"delete timeline.run.histories['{NOTES}'], timeline.select(0)")
    assert "No journal here has" in browser.run("document.getElementById('panel').textContent")
