"""How long a group stands still when a process fails, and how long a replica takes to catch up."""

import math
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from common.grantlog import parse_grant
from common.limits import FETCH_BYTES_MAX
from scripts.benchmark.figures import Row, median, p50_of
from scripts.benchmark.group import Group, Worker
from scripts.benchmark.limits import Limits
from scripts.benchmark.processes import PATIENCE_S, NotMeasured, Stage, stage
from scripts.benchmark.samples import FILE
from scripts.benchmark.sampling import Effort, interleave

_TTL: Final = "1s"
_TTL_MS: Final = 1000.0
_KILLED_MS: Final = 50.0
_WRITTEN_S: Final = 0.3
"""After so long grants.log has what lockd did."""


def measure_recovery(effort: Effort) -> list[Row]:
    """Return how long the next grant takes after the end of its holder, and of lockd; and what was missed."""
    with stage() as place:
        group = Group(place, _TTL)
        group.serve(2, "memory")
        with Worker(group, "memory", 3) as worker:
            worker.write()
            killed = [_after(place, group, worker, signal.SIGKILL, number) for number in range(effort.failures)]
            stopped = [_after(place, group, worker, signal.SIGSTOP, number) for number in range(effort.failures)]
            restarted = [_restart(group, worker) for _ in range(effort.failures)]
    compared = "the p50 of {} times, against {}".format
    return [
        _row("holder killed", compared(effort.failures, "the 50 ms that it may take"), killed, _KILLED_MS, 1.0),
        _row("holder stopped", compared(effort.failures, f"the ttl of {_TTL}"), stopped, _TTL_MS),
        _row("lockd killed, restarted", compared(effort.failures, f"the ttl of {_TTL}"), restarted, _TTL_MS),
        *_missed(effort),
    ]


def _row(name: str, compared: str, took_ms: list[float], bound_ms: float, wanted: float = 1.2) -> Row:
    p50_ms = median(took_ms)
    told = f"{name}: until the next grant, {compared}"
    return Row(f"{name} → next grant", told, p50_ms, "ms", bound_ms, p50_ms / bound_ms, wanted)


def _after(place: Stage, group: Group, worker: Worker, sign: signal.Signals, number: int) -> float:
    """Have a client stand still with the lock, and end or stop it; return the milliseconds to the next grant."""
    name = f"{sign.name}-{number}".lower()
    options = ("--ops", "1000", "--delay", "0..0", "--stall", "1h", "--file", FILE, "--group", "3")
    holder = group.client(name, "memory", "run", *options)
    events = group.data(name) / "events.log"
    changes = re.compile(rf" (write|update) file=\S+ id={name}:")
    _until(worker, lambda: events.exists() and changes.search(events.read_text()) is not None, f"{name} holds the lock")
    ended = worker.begin()
    _until(worker, lambda: False, "", seconds=0.05)  # its request is in the queue
    began_us = time.time_ns() // 1000
    holder.process.send_signal(sign)
    _until(worker, lambda: bool(ended), "the next op ends")
    took_ms = _next_grant(place.directory, began_us)
    holder.process.kill()
    holder.process.wait()
    return took_ms


def _restart(group: Group, worker: Worker) -> float:
    """Kill lockd and start it again; return the milliseconds to the next grant."""
    began_us = time.time_ns() // 1000
    group.restart()
    ended = worker.begin()
    _until(worker, lambda: bool(ended), "the next op ends")
    return _next_grant(group.data("lockd").parent, began_us)


def _next_grant(directory: Path, began_us: int) -> float:
    time.sleep(_WRITTEN_S)
    for line in (directory / "lockd" / "grants.log").read_text().splitlines():
        parsed = parse_grant(line)
        if parsed.event == "grant" and parsed.time_us >= began_us:
            return (parsed.time_us - began_us) / 1000
    raise NotMeasured("grants.log has no grant after that")


def _missed(effort: Effort) -> list[Row]:
    """Return how long a replica takes that missed many ops, against their bytes over raw ZeroMQ."""
    with stage() as place:
        group = Group(place, "60s")
        (late,) = group.serve(1, "memory")
        with Worker(group, "memory", 2) as worker:
            worker.write()
            late.finish(signal.SIGTERM)
            for _ in range(effort.missed_ops):
                worker.write()
            size = sum(path.stat().st_size for path in (group.data("worker") / "journal").glob("*.ops"))
            log = group.data("replica-0") / "client.log"
            known = log.read_text().count("in sync with")
            again = group.client("replica-0", "memory", "serve")
            again.line("ready")
            began_s = time.monotonic()
            _until(worker, lambda: log.read_text().count("in sync with") > known, "the replica is in sync")
            took_ms = (time.monotonic() - began_s) * 1000
        with Limits(place, answer_bytes=FETCH_BYTES_MAX) as limits:
            blocks = interleave({"raw": limits.round_trip}, effort, block=5)
    limit_ms = p50_of(blocks["raw"]) / 1000 * max(1, math.ceil(size / FETCH_BYTES_MAX))
    told = (
        f"a replica that missed {effort.missed_ops:,} ops, {size / 1e6:.1f} MB of journal: from ready to in sync, "
        "against so many bytes in raw round trips of 1 MiB"
    )
    return [Row(f"{effort.missed_ops:,} ops missed → in sync", told, took_ms, "ms", limit_ms, took_ms / limit_ms)]


def _until(worker: Worker, found: Callable[[], bool], what: str, seconds: float = PATIENCE_S) -> None:
    """Let the worker serve until `found`, or so long where nothing is to be found. Raises NotMeasured."""
    deadline = time.monotonic() + seconds
    while not found():
        if time.monotonic() > deadline:
            if not what:
                return
            raise NotMeasured(f"not within {seconds:g} s: {what}")
        worker.serve(0.002)
