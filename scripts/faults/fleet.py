"""lockd and clients that may end at any time: they are started again on their directories, and nothing is forgotten.

Theory of operation. One thread waits for whatever comes first: a line of a process, the end of one, a signal, a
moment that somebody asked for. A process that has ended is started again unless it is held down, or its work is over.
What each client is told of its ops goes into outcomes.jsonl; an op under way at a client's end is unknown.
"""

import heapq
import itertools
import json
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, assert_never

from client.control import Order, encode_order
from client.directory import connect
from common.errors import EXIT_CRASHED, EXIT_OK, EXIT_REFUSED, EXIT_UNKNOWN
from scripts.faults.network import Network
from scripts.faults.outcomes import Outcomes
from scripts.faults.schedule import LOCKD
from scripts.launching.agreement import disagreement
from scripts.launching.group import client_command
from scripts.launching.herd import Ears, Herd
from scripts.launching.plan import OPS_MAX, Plan
from scripts.launching.processes import Child
from scripts.launching.reports import OpBegan, OpEnded, parse_report
from scripts.launching.view import View

STOP_S: Final = 10.0
"""How long a process may take to end when it is asked to."""
_AGAIN_S: Final = 0.2
"""After so long a process that gave up is started again."""
_AWAKE_S: Final = 0.03
"""How long a process that wakes up takes to read what has come meanwhile."""
_LOOK_S: Final = 0.05
_IDLE_S: Final = 1.0
_IN_ORDER: Final = (EXIT_OK, EXIT_UNKNOWN, 128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGKILL)
"""How a process ends that was told to, or was killed."""
_TRACE: Final = b"Traceback (most recent call last)"


@dataclass(eq=False, slots=True)
class Member:
    """One process's place in the group, over all its lives.

    `ops_left` is how many ops are still to end ok or unknown, None for a client that works until it is told to end.
    `holders` are how many faults keep it from being started; with `excuses` it may give up by itself, as on a full
    disk. It is started again not before `again_s`. A retired client only serves.
    """

    name: str
    ops_left: int | None = None
    starts: int = 0
    holders: int = 0
    excuses: int = 0
    again_s: float = 0.0
    is_ready: bool = False
    is_complete: bool = False
    is_done: bool = False
    is_retired: bool = False
    doing: OpBegan | None = None


class Fleet:
    """The processes of a run, the network between them, and what the clients were told."""

    def __init__(self, plan: Plan, directory: Path, network: Network, ttl: str, view: View) -> None:
        """Begin without a process; whoever opens a fleet closes it."""
        self.members = {name: Member(name, share if plan.ops else None) for name, share in plan.shares().items()}
        for member in self.members.values():
            member.is_done = member.is_complete = member.ops_left == 0
        self.lockd = Member(LOCKD)
        self.view = view
        self.network = network
        self.stopped_by: int | None = None
        self.calls = 0
        self.crashes: list[str] = []
        self.outcomes = Outcomes(directory)
        self.on_op: Callable[[str, OpEnded], None] = lambda name, op: None
        self.on_begin: Callable[[str, OpBegan], None] = lambda name, op: None
        self.last_ok_s = time.monotonic()
        self._plan, self._directory, self._ttl = plan, directory, ttl
        self._moments: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._is_ending = False
        self._herd = Herd(Ears(self._said, self._ended, self._called))
        if network.proxy is not None:
            self._herd.watch(network.proxy)

    # Processes

    def child(self, name: str) -> Child | None:
        """Return the process that is up under this name, if one is."""
        return self._herd.up.get(name)

    def member(self, name: str) -> Member:
        """Return a client, or lockd."""
        return self.lockd if name == LOCKD else self.members[name]

    def start(self, name: str) -> None:
        """Start a process on its directory."""
        member, place = self.member(name), self._directory / name
        member.starts += 1
        member.is_ready = False
        if name == LOCKD:
            command = ["lockd", f"--bind={self.network.bind}", f"--data={place}", f"--ttl={self._ttl}"]
        else:
            plan = replace(self._plan, seed=f"{self._plan.seed}/{member.starts}")
            group = 1 if member.is_complete else plan.clients
            ops = OPS_MAX if member.ops_left is None else member.ops_left
            if member.is_retired or member.is_done:
                ops = 0
            command = client_command(plan, place, self.network.endpoint(name), ops, group=group)
        errors = name if member.starts == 1 else f"{name}.{member.starts}"
        child = Child(name, command, self._directory / f"{errors}.err", inside=self.network.inside(name))
        self._herd.start(child)

    def hold_down(self, name: str) -> None:
        """Do not start it again until it is let up as often."""
        self.member(name).holders += 1

    def let_up(self, name: str) -> None:
        """Take back one hold."""
        self.member(name).holders -= 1

    def wake(self, child: Child, *, late: bool) -> None:
        """Let a process that was stopped go on; if it wakes `late`, it sees its messages before it sees the time.

        Which of its threads is first decides that, and chance would decide which is. So all of them share a processor
        for a moment, and the one that looks at the clock comes last.
        """
        if not late or child.ended:
            child.send(signal.SIGCONT)
            return
        threads = [int(thread) for thread in os.listdir(f"/proc/{child.pid}/task")]
        processors = os.sched_getaffinity(child.pid)
        usual = os.sched_getscheduler(child.pid), os.sched_getparam(child.pid)
        for thread in threads:
            os.sched_setaffinity(thread, {min(processors)})
        # Without rights there is no way back from idle.
        os.sched_setscheduler(child.pid, os.SCHED_BATCH if os.geteuid() else os.SCHED_IDLE, os.sched_param(0))
        child.send(signal.SIGCONT)
        time.sleep(_AWAKE_S)
        if not child.ended:
            os.sched_setscheduler(child.pid, *usual)
            for thread in threads:
                os.sched_setaffinity(thread, processors)

    # Time

    def at(self, moment_s: float, do: Callable[[], None]) -> None:
        """Have something done at this moment of the monotonic clock."""
        heapq.heappush(self._moments, (moment_s, next(self._numbers), do))

    def forget_moments(self) -> None:
        """Do nothing more of what was to be done later."""
        self._moments.clear()

    def until(self, condition: Callable[[], bool], seconds: float = float("inf")) -> bool:
        """Go on until the condition is met, and return True; False after `seconds`, or when a signal came."""
        deadline_s, calls = time.monotonic() + seconds, self.calls
        while not condition():
            left_s = deadline_s - time.monotonic()
            if self.calls > calls or (self.calls and not self._is_ending) or left_s <= 0:
                return False
            self.step(min(left_s, _LOOK_S))
        return True

    def step(self, seconds: float) -> None:
        """Wait until something happens, for `seconds` at most, and take it in; then do what is due."""
        wait_s = min(seconds, _IDLE_S, self.view.tick())
        if self.network.proxy is not None:
            wait_s = min(wait_s, self.network.proxy.work())
        if self._moments:
            wait_s = min(wait_s, self._moments[0][0] - time.monotonic())
        self._herd.step(wait_s)
        now_s = time.monotonic()
        while self._moments and self._moments[0][0] <= now_s:
            heapq.heappop(self._moments)[2]()
        if not self._is_ending:
            for member in (self.lockd, *self.members.values()):
                if (
                    member.starts
                    and not member.holders
                    and member.name not in self._herd.up
                    and now_s >= member.again_s
                ):
                    self.start(member.name)
        self.view.tick()

    # The end

    def agree(self, seconds: float) -> str:
        """Wait until all replicas are equal; return "" then, else what is not, in words."""
        problem = ""

        def agreed() -> bool:
            nonlocal problem
            problem = disagreement([self._directory / name for name in self.members])
            return not problem

        return "" if self.until(agreed, seconds) else problem or "it was broken off"

    def retire(self) -> bool:
        """Tell every client at work to end, and have a replica that only serves in its place."""
        ending = [child for name in self.members if (child := self.child(name)) is not None]
        for member in self.members.values():
            member.is_retired = True
        for child in ending:
            child.end()
        return self.until(
            lambda: all(self.child(child.name) is not child for child in ending) and self.all_ready(), 3 * STOP_S
        )

    def read(self, name: str, file: str, seconds: float) -> str:
        """Have a client that is up read a file, as a command does; return "" if that is ok, else what is not."""
        connection = connect(self._directory / name)
        if connection is None:
            return f"{name} does not listen"
        with connection:
            began_us = time.monotonic_ns() // 1000
            connection.sendall(encode_order(Order("read", file, "", 0, round(seconds * 1000))))
            if not self.until(lambda: bool(select.select([connection], [], [], 0)[0]), seconds + _IDLE_S):
                return f"{name} gave no answer to a read of {file}"
            with connection.makefile("rb") as stream:
                line = stream.readline()
            if not line:
                return f"{name} hung up on a read of {file}"
        told = json.loads(line)
        ended_us = time.monotonic_ns() // 1000
        op = OpEnded(
            told["id"],
            "read",
            file,
            told["seq"],
            told["outcome"],
            told["reason"],
            0.0,
            told["bytes"],
            "",
            told["hash"],
            began_us,
            ended_us,
        )
        self.outcomes.ended(name, op, beside=True)
        return "" if op.outcome == "ok" else f"{name} could not read {file}: {op.reason}"

    def all_ready(self) -> bool:
        """Tell whether every client is up and has joined."""
        return all(name in self._herd.up and member.is_ready for name, member in self.members.items())

    def all_done(self) -> bool:
        """Tell whether every client has done its ops."""
        return all(member.is_done for member in self.members.values())

    def end(self) -> None:
        """End all processes in order, clients first; those that do not obey are killed."""
        self._is_ending = True
        self.forget_moments()
        self._end([child for name in self.members if (child := self.child(name)) is not None])
        self._end([child for child in [self.child(LOCKD)] if child is not None])

    def close(self) -> None:
        """Leave no process behind."""
        self._herd.close()
        self.outcomes.close()

    def _end(self, children: Sequence[Child]) -> None:
        for child in children:
            child.end()
            child.send(signal.SIGCONT)
        calls = self.calls
        if not self.until(lambda: all(child.name not in self._herd.up for child in children), STOP_S):
            for child in children:
                if not child.ended:
                    if self.calls == calls:
                        self.crashes.append(f"{child.name} did not end within {STOP_S:g} s")
                    child.send(signal.SIGKILL)
            while any(child.name in self._herd.up for child in children):
                self.step(1.0)

    # What happens

    def _called(self, number: int) -> None:
        self.calls += 1
        if self.stopped_by is None:
            self.stopped_by = number
            self.view.tell(
                f"{signal.Signals(number).name}: ending every process in order; once more kills them at once"
            )

    def _said(self, child: Child, line: bytes) -> None:
        if child.name == LOCKD:
            if line.startswith(b"ready "):
                self.lockd.is_ready = True
                self.network.lockd_at(line.decode().split()[1])
            return
        member, report = self.members[child.name], parse_report(line)
        match report:
            case None:
                pass
            case "ready":
                member.is_ready = True
            case "complete":
                member.is_complete = True
            case "done":
                member.is_done = True
            case OpBegan():
                member.doing = report
                self.on_begin(child.name, report)
            case OpEnded():
                member.doing = None
                self._count(member, report.outcome != "failed")
                self.outcomes.ended(child.name, report)
                if report.outcome == "ok":
                    self.last_ok_s = time.monotonic()
                self.on_op(child.name, report)
            case _:
                assert_never(report)

    def _count(self, member: Member, happened: bool) -> None:
        if member.ops_left is not None and happened:
            member.ops_left -= 1
            member.is_done |= member.ops_left == 0

    def _ended(self, child: Child) -> None:
        member = self.member(child.name)
        member.is_ready = False
        if member.doing is not None:
            self.outcomes.cut_off(child.name, member.doing)
            self._count(member, True)
            member.doing = None
        member.again_s = time.monotonic()
        if child.errors_hold(_TRACE):
            self.crashes.append(f"{child.name} crashed: {child.tell_end()}")
            self.view.tell(f"✘ {self.crashes[-1]}")
        elif not child.is_told_to_end:
            member.again_s += _AGAIN_S
            allowed = child.exit_code == EXIT_REFUSED or (member.excuses and child.exit_code == EXIT_CRASHED)
            if not allowed:
                self.crashes.append(f"{child.name} ended by itself: {child.tell_end()}")
                self.view.tell(f"✘ {self.crashes[-1]}")
            else:
                self.view.tell(f"          {child.name} gave up: {child.tell_end()}")
        elif child.exit_code not in _IN_ORDER:
            self.crashes.append(f"{child.name} did not end in order: {child.tell_end()}")
            self.view.tell(f"✘ {self.crashes[-1]}")
