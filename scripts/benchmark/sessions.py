"""Many idle sessions and many held locks: what they cost lockd, and whether their end holds others up."""

import gc
import os
import signal
import time
from pathlib import Path
from typing import Final

from client import Lock, LockClient
from scripts.benchmark.figures import Row, percentile
from scripts.benchmark.group import Group
from scripts.benchmark.processes import Child, NotMeasured, Stage, stage
from scripts.benchmark.sampling import Effort

_CROWDS: Final = 4
_LOCK_DELAY_S: Final = 2.0
"""lockd's, as it is by default."""
_HELD_UP_MS: Final = 50.0
_DOWN_S: Final = 3.0
"""Idle sessions of killed clients are over in less, and thousands of them."""
_MARGIN_S: Final = 1.0


class _Crowds:
    """The processes with the sessions; each has an equal part of them."""

    def __init__(self, place: Stage, group: Group, sessions: int) -> None:
        self.each = sessions // _CROWDS
        self._place = place
        self._group = group
        self._started = 0
        self.children: list[Child] = []

    def open(self, count: int) -> None:
        """Start so many more of them, and wait until their sessions are open."""
        new = []
        for number in range(self._started, self._started + count):
            name = f"crowd-{number}"
            new.append(self._place.python(name, "scripts.benchmark.crowd", self._group.endpoint, name, str(self.each)))
        self._started += count
        for child in new:
            child.line("ready")
        self.children += new

    def lock(self, each: int) -> None:
        """Have each session take so many locks."""
        self._tell(f"lock {each}", "locked")

    def answered(self) -> int:
        """Return how many pings lockd has answered. Raises NotMeasured where a session was lost."""
        counts = [line.split() for line in self._tell("count", "count")]
        lost = sum(int(lost) for *_, lost in counts)
        if lost:
            raise NotMeasured(f"{lost} sessions were lost: this machine is too slow, or too busy, for so many")
        return sum(int(answered) for _, answered, _ in counts)

    def half(self) -> list[Child]:
        """Return half of them; they are not asked for anything any more."""
        half, self.children = self.children[: _CROWDS // 2], self.children[_CROWDS // 2 :]
        return half

    def _tell(self, order: str, answer: str) -> list[str]:
        said = [child.out.stat().st_size for child in self.children]
        for child in self.children:
            assert child.process.stdin is not None
            child.process.stdin.write(f"{order}\n".encode())
            child.process.stdin.flush()
        return [child.line(answer, since) for child, since in zip(self.children, said, strict=True)]


def measure(effort: Effort) -> list[Row]:
    """Return what idle sessions and held locks cost, in memory and time, and how long their end holds up a grant."""
    count, each, ttl_s = effort.sessions, effort.locks // effort.sessions, effort.session_ttl_s
    half = count // 2
    with stage() as place:
        group = Group(place, f"{ttl_s:g}s")
        crowds = _Crowds(place, group, count)
        empty_kib = group.lockd.memory_kib("VmRSS")
        with LockClient(group.endpoint) as client:
            lock = client.lock("worker")
            _cycles(lock, effort.cycles_s / 4)  # to warm up
            alone = _cycles(lock, effort.cycles_s)
            began_s = time.monotonic()
            crowds.open(_CROWDS)
            opened_s = time.monotonic() - began_s
            idle_kib = group.lockd.memory_kib("VmRSS")
            share, ping_us = _keepalives(group, crowds, effort.cycles_s)
            idle = _cycles(lock, effort.cycles_s)

            before = _cycles(lock, _DOWN_S)
            killed = crowds.half()
            for child in killed:
                child.process.kill()
            downs = _ended(group, lock, _DOWN_S, half)

            crowds.open(_CROWDS // 2)
            unlocked_kib = group.lockd.memory_kib("VmRSS")
            crowds.lock(each)
            locked_kib = group.lockd.memory_kib("VmRSS")
            crowds.answered()
            locked = _cycles(lock, effort.cycles_s)

            window_s = ttl_s + _LOCK_DELAY_S + _MARGIN_S
            before_lease = _cycles(lock, window_s)
            stopped = crowds.half()
            _stop_together(stopped, ttl_s)
            leases = _ended(group, lock, window_s, half)
            crowds.answered()
            for child in stopped:
                child.process.kill()
    per_lock = (locked_kib - unlocked_kib) * 1024 / (count * each)
    idly = f"beside {count:,} idle sessions"
    held = f"beside {count:,} sessions that hold {count * each:,} locks"
    return [
        Row(
            f"{count:,} sessions open",
            f"sessions opened per second, by {_CROWDS} processes at once: each is durable before it is told",
            count / opened_s,
            "/s",
        ),
        Row("lockd alone", "resident, with no session but one", empty_kib / 1024, "MiB"),
        Row("idle session", f"resident, {idly}: more, per session", (idle_kib - empty_kib) / count, "KiB"),
        Row("held lock", f"resident, {held}: more, per lock", per_lock, "B"),
        Row("keepalives", f"CPU time of lockd {idly}, ttl {ttl_s:g}s, per second", 100 * share, "% of a core"),
        Row("a keepalive", "the same, per ping and its answer", ping_us, "µs"),
        *_beside("idle", idly, idle, alone),
        *_beside("locked", held, locked, alone),
        _longest(f"{half:,} clients killed", "idle, and their connections down at once", downs, before),
        _longest(
            f"{half:,} leases over",
            f"of stopped clients, with {half * each:,} locks, which are free {_LOCK_DELAY_S:g} s later",
            leases,
            before_lease,
        ),
    ]


def _beside(name: str, where: str, cycles: list[float], alone: list[float]) -> list[Row]:
    """Return the rows of a client's cycles against those without the crowds."""
    rows = []
    for percent in (50, 99):
        measured, limit = percentile(cycles, percent), percentile(alone, percent)
        rows.append(
            Row(
                f"{name}: acquire + release p{percent}",
                f"of one client {where}, against the same without them",
                measured,
                "µs",
                limit,
                measured / limit,
            )
        )
    return rows


def _longest(name: str, how: str, cycles: list[float], before: list[float]) -> Row:
    compared = f"{how}: another client's longest acquire + release meanwhile, against the longest in as long before"
    return Row(f"held up: {name}", compared, max(cycles) / 1000, "ms", max(before) / 1000, None, _HELD_UP_MS)


def _cycles(lock: Lock, duration_s: float) -> list[float]:
    """Acquire and release for so long; return how long each time took, in microseconds."""
    took_us = []
    gc.collect()
    gc.disable()  # else some of the longest times are our own
    try:
        end_ns = time.monotonic_ns() + int(duration_s * 1e9)
        before_ns = time.monotonic_ns()
        while before_ns < end_ns:
            lock.acquire()
            lock.release()
            now_ns = time.monotonic_ns()
            took_us.append((now_ns - before_ns) / 1000)
            before_ns = now_ns
    finally:
        gc.enable()
    return took_us


def _keepalives(group: Group, crowds: _Crowds, duration_s: float) -> tuple[float, float]:
    """Return lockd's CPU seconds per second while it answers nothing but pings, and its microseconds per ping."""
    answered, used_s, began_s = crowds.answered(), _cpu_s(group.lockd), time.monotonic()
    time.sleep(duration_s)
    used_s, took_s = _cpu_s(group.lockd) - used_s, time.monotonic() - began_s
    return used_s / took_s, used_s * 1e6 / (crowds.answered() - answered)


def _cpu_s(child: Child) -> float:
    """Return the CPU seconds that a process has used, in and for it."""
    fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _stop_together(children: list[Child], ttl_s: float) -> None:
    """Stop these so that the leases of all their sessions end at once.

    Stopped for so long that all their pings are due, they send them together as they go on: then they are stopped.
    """
    for sign, pause_s in ((signal.SIGSTOP, ttl_s * 0.4), (signal.SIGCONT, ttl_s * 0.2), (signal.SIGSTOP, 0.0)):
        for child in children:
            child.process.send_signal(sign)
        time.sleep(pause_s)


def _ended(group: Group, lock: Lock, duration_s: float, sessions: int) -> list[float]:
    """Acquire and release for so long, while so many sessions end. Raises NotMeasured where they do not."""
    log = group.data("lockd") / "lockd.log"
    start = log.stat().st_size
    took_us = _cycles(lock, duration_s)
    with log.open("rb") as lines:
        lines.seek(start)
        ended = sum(b" is over: " in line for line in lines)
    if ended != sessions:
        raise NotMeasured(f"{ended} sessions ended within {duration_s:g} s, not {sessions}")
    return took_us
