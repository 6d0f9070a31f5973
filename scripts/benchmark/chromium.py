"""A headless Chromium, led over a pipe by the DevTools protocol: what opens our page in tests and measurements.

See https://chromedevtools.github.io/devtools-protocol/. Messages are JSON, each ended by a NUL; Chromium reads them
from descriptor 3 and writes to 4.
"""

import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

_FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--force-color-profile=srgb",
    "--remote-debugging-pipe",
)
_READ_BYTES: Final = 1 << 20


def find_chromium() -> str | None:
    """Return the path of a Chromium or Chrome that is installed here, if one is."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class BrowserError(Exception):
    """The browser refused a command, threw in a script, or did not answer in time."""


class Browser:
    """A browser with one page. A context: its end is the browser's.

    `requests` are the URLs that the page asked for, `errors` its console's errors, both since the last `open`.
    """

    def __init__(self, width: int = 1280, height: int = 800, *, timeout_s: float = 30.0) -> None:
        """Start it with a viewport of so many CSS pixels; no answer may take longer than `timeout_s` seconds."""
        program = find_chromium()
        if program is None:
            raise BrowserError("there is no Chromium here")
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._timeout_s, self._number, self._heard = timeout_s, 0, b""
        self._events: deque[dict[str, Any]] = deque(maxlen=1000)
        self._home = tempfile.TemporaryDirectory(prefix="lockstep-browser-", ignore_cleanup_errors=True)
        command = [program, *_FLAGS, f"--user-data-dir={self._home.name}", "about:blank"]
        their_in, self._out = os.pipe()
        self._in, their_out = os.pipe()
        try:
            self._process = subprocess.Popen(
                # The shell puts the pipes where Chromium looks for them.
                ["sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null', "sh", *command],
                stdin=their_in,
                stdout=their_out,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            os.close(their_in)
            os.close(their_out)
        self._session = ""
        target = next(one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)
        try:
            self._process.wait(self._timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        self._home.cleanup()

    def call(self, method: str, **parameters: Any) -> Any:
        """Have the browser do something, and return what it answers. Raises BrowserError."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        deadline_s = time.monotonic() + self._timeout_s
        while True:
            heard = self._hear(deadline_s)
            if heard is None:
                raise BrowserError(f"{method} has no answer")
            if heard.get("id") == self._number:
                if "error" in heard:
                    raise BrowserError(f"{method}: {heard['error']['message']}")
                return heard["result"]

    def resize(self, width: int, height: int, *, mobile: bool = False) -> None:
        """Give the viewport this size, in CSS pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def open(self, page: Path) -> None:
        """Open a file, and wait until its load is over."""
        self.requests.clear()
        self.errors.clear()
        self._events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        self._until(lambda: any(event["method"] == "Page.loadEventFired" for event in self._events))

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression; of a promise, what it comes to. Raises BrowserError."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise BrowserError(answer["exceptionDetails"].get("exception", {}).get("description", str(answer)))
        return answer["result"].get("value")

    def click(self, x: float, y: float) -> None:
        """Click with the mouse, at CSS pixels of the viewport."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.mouse(kind, x, y)

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """Have the mouse do one thing: mouseMoved, mousePressed, mouseReleased, mouseWheel."""
        button = "none" if kind in ("mouseMoved", "mouseWheel") else "left"
        parameters = {"button": button, "clickCount": 0 if button == "none" else 1, **more}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **parameters)

    def type(self, text: str) -> None:
        """Press the keys of a text, one after another; a newline is Enter."""
        for character in text:
            key = {"\n": "Enter"}.get(character, character)
            sent = "\r" if character == "\n" else character
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=sent)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def _until(self, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + self._timeout_s
        while not condition():
            if self._hear(deadline_s) is None:
                raise BrowserError("the browser does not come to an end")

    def _hear(self, deadline_s: float) -> dict[str, Any] | None:
        """Return the next message, None if none comes in time; events are kept."""
        while b"\0" not in self._heard:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([self._in], [], [], left_s)[0]:
                return None
            data = os.read(self._in, _READ_BYTES)
            if not data:
                raise BrowserError("the browser has ended")
            self._heard += data
        message, _, self._heard = self._heard.partition(b"\0")
        heard: dict[str, Any] = json.loads(message)
        if "method" in heard:
            self._events.append(heard)
            self._note(heard["method"], heard["params"])
        return heard

    def _note(self, method: str, told: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(told["exceptionDetails"].get("exception", told["exceptionDetails"])))
        elif method == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(told["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
            self.errors.append(str(told["args"]))
