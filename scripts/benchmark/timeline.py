"""How soon the page of a large run opens, and how smoothly it moves, in a headless Chromium."""

import json
import signal
import time
from pathlib import Path
from typing import Final

from scripts.benchmark.chromium import Browser, BrowserError, find_chromium
from scripts.benchmark.figures import Row, median
from scripts.benchmark.group import Group
from scripts.benchmark.processes import NotMeasured, stage
from scripts.benchmark.sampling import Effort
from scripts.picture.write import write_page

_CLIENTS: Final = 5
_EVENTS_PER_OP: Final = 3.6
"""A third of the ops are reads, which nobody takes in; a change is taken in by everybody else."""
_OPENS: Final = 3
_PAN_S: Final = 3.0
_STEP_PIXELS: Final = 7
_OPEN_S_MAX: Final = 3.0
_FRAMES_MIN: Final = 30
_TWO_FRAMES: Final = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
_COUNT_FRAMES: Final = """
(() => {
  window.frames_ = [];
  const note = (now) => { window.frames_.push(now); requestAnimationFrame(note); };
  requestAnimationFrame(note);
})()
"""


def measure_timeline(effort: Effort) -> list[Row]:
    """Return how long the page takes to open, and its frames per second while it is moved with the mouse."""
    if find_chromium() is None:
        raise NotMeasured("there is no Chromium here")
    with stage() as place:
        group = Group(place)
        ops = round(effort.events / _EVENTS_PER_OP / _CLIENTS)
        for child in group.run(_CLIENTS, ops, "memory", ("a.txt", "b.txt")):
            child.finish(signal.SIGTERM)
        began_s = time.monotonic()
        page = write_page([place.directory], place.directory / "timeline.html")
        drawn_s = time.monotonic() - began_s
        try:
            return [Row("timeline, drawn", "scripts/timeline on the run below", drawn_s, "s"), *_in_browser(page)]
        except BrowserError as error:
            raise NotMeasured(str(error)) from None


def _in_browser(page: Path) -> list[Row]:
    with Browser() as browser:
        opens_s = []
        for _ in range(_OPENS):
            began_s = time.monotonic()
            browser.open(page)
            browser.run(_TWO_FRAMES)
            opens_s.append(time.monotonic() - began_s)
        events = browser.run("timeline.run.marks.lane.length")
        what = f"a run of {events:,} events of {_CLIENTS} clients, {page.stat().st_size / 1e6:.0f} MB"
        rows = [
            Row(
                "timeline, open",
                f"{what}: from the address to its second frame",
                median(opens_s),
                "s",
                wanted=_OPEN_S_MAX,
            )
        ]
        browser.run(_COUNT_FRAMES)
        for name, keys in (("all in view", "0"), ("a tenth in view", "0++++++")):
            browser.type(keys)
            frames = _pan(browser)
            rows.append(
                Row(
                    f"timeline, {name}",
                    f"{what}: frames per second while the mouse drags it, {_PAN_S:g} s",
                    frames,
                    "/s",
                    wanted=_FRAMES_MIN,
                    bound="least",
                )
            )
        if browser.errors:
            raise NotMeasured(f"the page has errors: {json.dumps(browser.errors[:3])}")
        return rows


def _pan(browser: Browser) -> float:
    """Drag the diagram to and fro; return the frames per second."""
    x = 640.0
    browser.mouse("mousePressed", x, 500)
    browser.run("void (window.frames_.length = 0)")
    began_s = time.monotonic()
    step = _STEP_PIXELS
    while time.monotonic() - began_s < _PAN_S:
        x += step
        if not 300 < x < 1000:
            step = -step
        browser.mouse("mouseMoved", x, 500, button="left", buttons=1)
    frames: list[float] = browser.run("window.frames_")
    browser.mouse("mouseReleased", x, 500)
    if len(frames) < 2:
        raise NotMeasured("the page draws no frames")
    return (len(frames) - 1) / (frames[-1] - frames[0]) * 1000
