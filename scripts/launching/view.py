"""What people see of a run: plain lines, or a live table on a terminal.

Neither ever waits for a reader: a pager or a stopped terminal would stall the launcher, then the clients that
talk to it, and they would lose their sessions.
"""

import os
import select
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from scripts.launching.reports import OpEnded, describe, printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WAITING_BYTES_MAX: Final = 1024 * 1024
"""How much may wait for a reader; the lines that come then are left out, and counted."""
_WRITE_BYTES: Final = 4096
"""What a pipe that can be written takes without blocking, on Linux."""
_RETRY_S: Final = 0.05
_FRAME_S: Final = 0.1
_IDLE_S: Final = 60.0


@dataclass(slots=True)
class Row:
    """One client as it is shown."""

    asked: int
    done: int = 0
    state: str = "starting"
    last: str = ""


class View(Protocol):
    """Shows a run while it goes on."""

    def op(self, name: str, op: OpEnded) -> None:
        """Show that an op of the client `name` has ended."""

    def tell(self, line: str) -> None:
        """Show a line about the run."""

    def tick(self) -> float:
        """Show what is due; return after how many seconds to call again."""

    def close(self) -> None:
        """Show the rest, however long the reader takes."""


class Paper:
    """Lines on stdout."""

    def __init__(self, descriptor: int = 1) -> None:
        """Write to `descriptor`, stdout unless told."""
        self._descriptor = descriptor
        self._waiting = bytearray()
        self._left_out = 0
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def op(self, name: str, op: OpEnded) -> None:
        """Show that an op of the client `name` has ended."""
        self.tell(f"{name} {describe(op)}")

    def tell(self, line: str) -> None:
        """Show a line."""
        if len(self._waiting) >= WAITING_BYTES_MAX:
            self._left_out += 1
            return
        self._tell_left_out()
        self._waiting += printable(line).encode("utf-8", "replace") + b"\n"

    def tick(self) -> float:
        """Write what can be written without waiting."""
        while self._waiting:
            if not self._poll.poll(0):
                return _RETRY_S
            self._write()
        return _IDLE_S

    def close(self) -> None:
        """Write the rest."""
        self._tell_left_out()
        while self._waiting:
            self._write()

    def _tell_left_out(self) -> None:
        if self._left_out:
            self._waiting += f"({self._left_out} lines are left out here: nobody read them)\n".encode()
            self._left_out = 0

    def _write(self) -> None:
        try:
            written = os.write(self._descriptor, self._waiting[:_WRITE_BYTES])
        except OSError:
            self._waiting.clear()
            _forget_stdout()
        else:
            del self._waiting[:written]


class Screen:
    """A live table on a terminal: one row per client, and the progress of all."""

    def __init__(self, console: "Console", rows: Mapping[str, Row], ops: int) -> None:
        """Show `rows`, which their owner changes, and the progress towards `ops`."""
        from rich.live import Live

        self._console, self._rows, self._ops = console, rows, ops
        self._began_s = time.monotonic()
        self._drawn_s = 0.0
        self._poll = select.poll()
        self._poll.register(1, select.POLLOUT)
        self._live = Live(console=console, auto_refresh=False, get_renderable=self._draw)
        self._live.start(refresh=True)

    def op(self, name: str, op: OpEnded) -> None:
        """Leave it to the row."""

    def tell(self, line: str) -> None:
        """Show a line above the table."""
        from rich.text import Text

        try:
            self._console.print(Text(printable(line)))
        except OSError:
            _forget_stdout()

    def tick(self) -> float:
        """Draw a frame if one is due and the terminal takes it."""
        now_s = time.monotonic()
        left_s = self._drawn_s + _FRAME_S - now_s
        if left_s > 0:
            return left_s
        if self._poll.poll(0):
            try:
                self._live.refresh()
            except OSError:
                _forget_stdout()
        self._drawn_s = now_s
        return _FRAME_S

    def close(self) -> None:
        """Draw the last frame, and leave it on the screen."""
        try:
            self._live.stop()
        except OSError:
            _forget_stdout()

    def _draw(self) -> "RenderableType":
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2, 0, 0), expand=True)
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(no_wrap=True, max_width=32, overflow="ellipsis")
        table.add_column(no_wrap=True, ratio=1, overflow="ellipsis")
        # The total stands in the last of the terminal's lines, and the cursor below it.
        fit = max(1, self._console.height - 4)
        for name, row in list(self._rows.items())[:fit]:
            state = Text(printable(row.state), style="red" if row.state.startswith("died") else "cyan")
            table.add_row(name, f"{row.done}/{row.asked}", state, Text(printable(row.last)))
        if len(self._rows) > fit:
            table.add_row(f"… {len(self._rows) - fit} more", "", "", "")
        done = sum(row.done for row in self._rows.values())
        total = Table.grid(padding=(0, 2, 0, 0))
        bar = ProgressBar(self._ops, min(done, self._ops), width=min(40, self._console.width // 2))
        total.add_row(bar, f"{done}/{self._ops} ops", f"{time.monotonic() - self._began_s:.1f} s")
        return Group(table, total)


def open_view(rows: Mapping[str, Row], ops: int) -> View:
    """Return the live table where stdout is a terminal that can show it, else plain lines."""
    if not os.isatty(1):
        return Paper()
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal or console.is_dumb_terminal:
        return Paper()
    return Screen(console, rows, ops)


def _forget_stdout() -> None:
    """Nobody reads any more, or the terminal is gone: the run goes on, and what it says goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
