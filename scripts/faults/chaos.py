"""A run under faults: the group works, faults come and go, then all is mended and everybody becomes equal.

Theory of operation. The faults are drawn ahead, from the seed alone; each has a begin and an end, and both are done
at their moments while the fleet goes on. A fault has been survived once its victim, or with lockd anybody, has
done an op that began after the fault's end and was ok. At the end nothing is held down, stopped or cut any more.
"""

import itertools
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scripts.faults.disks import Disks
from scripts.faults.fleet import Fleet
from scripts.faults.network import Network
from scripts.faults.run import Injected, Run
from scripts.faults.schedule import LOCKD, Fault, Kind, draw_faults
from scripts.launching.plan import Plan
from scripts.launching.processes import Child
from scripts.launching.reports import OpBegan, OpEnded
from scripts.launching.view import View
from scripts.verdict.finding import counted

FINISH_S: Final = 120.0
"""How long the clients may take for the rest of their ops, once nothing fails any more."""
STALL_S: Final = 60.0
"""Without an op that is ok for so long the faults are ended: something does not come back."""
_STATUS_S: Final = 10.0
_AIM_S: Final = 0.3
"""How long a fault waits for its victim's next op, at the most."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What chaos is asked for: `plan.ops` in total, or for `minutes`."""

    plan: Plan
    kinds: tuple[Kind, ...]
    seed: str
    ttl: str
    ttl_s: float
    minutes: float | None


class Chaos(Run):
    """One run."""

    def __init__(self, wanted: Wanted, directory: Path, network: Network, disks: Disks, view: View) -> None:
        """Prepare it; `run` does it."""
        super().__init__(wanted.plan, Fleet(wanted.plan, directory, network, wanted.ttl, view), directory, view)
        self._wanted, self._network, self._disks = wanted, network, disks
        self._fleet.on_op = self._take
        self._fleet.on_begin = self._aim
        self._aimed: dict[str, Fault] = {}
        self._under_way: dict[int, tuple[Injected, Callable[[], None], Callable[[], None]]] = {}
        self._numbers = itertools.count()

    # The stages

    def _work(self) -> bool:
        """Inject faults until all ops are done, or the time is over."""
        wanted, fleet = self._wanted, self._fleet
        fleet.last_ok_s = self._began_s
        over_s = self._began_s + (float("inf") if wanted.minutes is None else wanted.minutes * 60)
        faults = draw_faults(
            wanted.seed,
            list(fleet.members),
            wanted.kinds,
            wanted.ttl_s,
            peers=self._network.peers,
            disks=self._disks.names,
        )

        def next_one() -> None:
            fault = next(faults)
            fleet.at(self._began_s + fault.begin_s, lambda: self._inject_or_aim(fault))
            fleet.at(self._began_s + fault.begin_s, next_one)

        def tell() -> None:
            if time.monotonic() < over_s - _STATUS_S / 2:  # the end tells it too
                self._tell_status()
                fleet.at(time.monotonic() + _STATUS_S, tell)

        def stalled() -> bool:
            return time.monotonic() - fleet.last_ok_s > STALL_S

        next_one()
        fleet.at(self._began_s + _STATUS_S, tell)
        over = fleet.until(lambda: fleet.all_done() or stalled(), over_s - time.monotonic())
        fleet.forget_moments()
        self._aimed.clear()
        self._mend_all()
        if fleet.calls:
            return False
        self._tell_status()
        if over and stalled():
            return self._miss(f"no op has ended ok for {STALL_S:g} s, under faults")
        return True

    def _finish(self) -> bool:
        """Let everybody do the rest of its ops, and become equal."""
        fleet = self._fleet
        self._tell("all is mended: the rest of the ops, then everybody is to become equal")
        if self._wanted.minutes is None:
            if not fleet.until(lambda: fleet.all_done() and fleet.all_ready(), FINISH_S):
                late = ", ".join(name for name, member in fleet.members.items() if not member.is_done)
                return self._miss(f"without faults not all ops were done within {FINISH_S:g} s: {late}")
        elif not self._retire():
            return False
        if not self._become_equal():
            return False
        for injected in self._ending.injected:
            injected.survived = True  # its victim is up and equal
        return True

    # Faults

    def _inject_or_aim(self, fault: Fault) -> None:
        if fault.aim_s is None:
            self._inject(fault)
        else:
            self._aimed[fault.victim] = fault
            self._fleet.at(time.monotonic() + _AIM_S, lambda: self._inject_aimed(fault.victim))

    def _aim(self, name: str, op: OpBegan) -> None:
        if name in self._aimed:
            time.sleep(self._aimed[name].aim_s or 0.0)
            self._inject_aimed(name)

    def _inject_aimed(self, name: str) -> None:
        """Inject the fault that waited for an op, if it has not come yet."""
        if (fault := self._aimed.pop(name, None)) is not None:
            self._inject(fault)

    def _inject(self, fault: Fault) -> None:
        end = self._do(fault)
        if end is None:
            return
        injected, number = Injected(fault), next(self._numbers)
        self._ending.injected.append(injected)
        self._under_way[number] = injected, end, self._faults.begins(fault.victim, str(fault))
        self._tell(str(fault))
        self._fleet.at(time.monotonic() + fault.lasts_s, lambda: self._mend(number))

    def _mend(self, number: int) -> None:
        injected, end, over = self._under_way.pop(number)
        end()
        over()
        injected.over_us = time.monotonic_ns() // 1000

    def _mend_all(self) -> None:
        """End every fault now."""
        for number in list(self._under_way):
            self._mend(number)

    def _do(self, fault: Fault) -> Callable[[], None] | None:
        """Bring a fault about; return what ends it, or None where it cannot be."""
        fleet, victim = self._fleet, fault.victim
        child = fleet.child(victim)
        match fault.kind:
            case "kill" | "lockd-kill" | "term":
                if child is None:
                    return None
                fleet.hold_down(victim)
                child.end(signal.SIGTERM if fault.kind == "term" else signal.SIGKILL)
                return lambda: fleet.let_up(victim)
            case "pause" | "lockd-pause":
                if child is None:
                    return None
                child.send(signal.SIGSTOP)
                return lambda: fleet.wake(child, late=fault.wakes_late)
            case "partition" | "one-way":
                for sender, receiver in fault.links:
                    self._network.cut(sender, receiver)
                return lambda: self._mend_links(fault.links)
            case "reset":
                self._network.reset(victim)
                return _nothing
            case "delay":
                self._network.delay(victim, fault.late_s)
                return lambda: self._network.delay(victim, 0.0)
            case "disk" | "lockd-disk":
                return self._fill(victim, child)

    def _mend_links(self, links: Sequence[tuple[str, str]]) -> None:
        for sender, receiver in links:
            self._network.mend(sender, receiver)

    def _fill(self, victim: str, child: Child | None) -> Callable[[], None] | None:
        fleet = self._fleet
        member = fleet.member(victim)
        try:
            self._disks.fill(victim, child.pid if child else None)
        except OSError:
            return None
        member.excuses += 1

        def free() -> None:
            now = fleet.child(victim)
            self._disks.free(victim, now.pid if now else None)
            # What it stumbled over it may tell only in a moment.
            fleet.at(time.monotonic() + 2.0, excuse_no_more)

        def excuse_no_more() -> None:
            member.excuses -= 1

        return free

    # What happens

    def _take(self, name: str, op: OpEnded) -> None:
        if op.outcome != "ok":
            return
        for injected in self._ending.injected:
            if not injected.survived and injected.over_us is not None and op.began_us > injected.over_us:
                injected.survived = injected.fault.victim in (name, LOCKD)

    def _tell_status(self) -> None:
        counts = self._fleet.outcomes.counts
        told = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
        self._tell(f"· {told}; {counted(len(self._ending.injected), 'fault')}")


def _nothing() -> None:
    """Nothing is to be mended."""
