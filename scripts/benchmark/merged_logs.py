"""What `client log` takes for the logs of many clients: to its first line, for each line, and in memory."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from scripts.benchmark.event_logs import write_event_logs
from scripts.benchmark.figures import Row, median
from scripts.benchmark.processes import PATIENCE_S, NotMeasured, environment, stage
from scripts.benchmark.sampling import Effort

CLIENTS: Final = 64
_FIRST_LINE_MS: Final = 1000.0
_SMALLER: Final = 10
_PROGRAM: Final = """
import sys
from client.cli import app
app(["log", sys.argv[1]], standalone_mode=False)
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        print(line.split()[1], file=sys.stderr)
"""
"""Prints the logs, and then the most memory that it had, in KiB."""


def measure(effort: Effort) -> list[Row]:
    """Return the time to the first line, lines per second, and the memory for ten times as many lines."""
    events = effort.log_events
    what = f"client log on {CLIENTS} clients × {events:,} events"
    with stage() as place:
        large, small = place.directory / "large", place.directory / "small"
        write_event_logs(large, CLIENTS, events)
        write_event_logs(small, CLIENTS, events // _SMALLER)
        first_ms = median([_first_line_ms(large) for _ in range(effort.starts)])
        began_s = time.perf_counter()
        large_kib = _peak_kib(large)
        took_s = time.perf_counter() - began_s
        small_kib = _peak_kib(small)
    memory = f"{what}: memory at most, against a tenth of the events"
    return [
        Row(
            "client log → first line",
            f"{what}: from its start to its first line, against a second",
            first_ms,
            "ms",
            _FIRST_LINE_MS,
            first_ms / _FIRST_LINE_MS,
            1,
        ),
        Row("client log, lines/s", f"{what}: merged and written to nowhere", CLIENTS * events / took_s, "/s"),
        Row(
            "client log, memory",
            memory,
            large_kib / 1024,
            "MiB",
            small_kib / 1024,
            large_kib / small_kib,
            1.1,
        ),
    ]


def _first_line_ms(directory: Path) -> float:
    """Return how long the command takes to its first line, as a process of its own."""
    began_s = time.perf_counter()
    command = [sys.executable, "-P", "-m", "client", "log", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment()) as child:
        assert child.stdout is not None, "it was asked for"
        line = child.stdout.readline()
        took_s = time.perf_counter() - began_s
        child.kill()
    if not line.endswith(b"\n"):
        raise NotMeasured("client log printed nothing")
    return took_s * 1000


def _peak_kib(directory: Path) -> int:
    """Return the most memory that the command had by its end, in KiB."""
    command = [sys.executable, "-P", "-c", _PROGRAM, str(directory)]
    try:
        done = subprocess.run(
            command,
            check=True,
            timeout=2 * PATIENCE_S,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        return int(done.stderr)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired, ValueError) as error:
        raise NotMeasured(str(error)) from None
