"""What goes wrong in a simulation: the seed draws it, and an Injector makes it happen."""

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final, Literal

from client.effects import LockdConnected, LockdDisconnected
from tests.sim.network import LOCKD, Link
from tests.sim.processes import ClientProcess, Directory
from tests.sim.schedule import START_NS

if TYPE_CHECKING:
    from tests.sim.group import Actor, Group

FaultKind = Literal[
    "crash",
    "wipe",
    "pause",
    "break",
    "cut",
    "isolate",
    "disk full",
    "lockd crash",
    "lockd pause",
    "lockd alone",
    "copy",
    "old copy",
]
KINDS: Final[tuple[FaultKind, ...]] = (
    "crash",
    "wipe",
    "pause",
    "break",
    "cut",
    "isolate",
    "disk full",
    "lockd crash",
    "lockd pause",
    "lockd alone",
    "copy",
    "old copy",
)
_MS: Final = 1_000_000
_RETRY_NS: Final = 50 * _MS
_EFFECTS: Final = 40
_CALM_NS: Final = 700 * _MS


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: when, on whom (numbers of clients), for how long; the draws decide what it is in detail."""

    kind: FaultKind
    at_ns: int
    lasts_ns: int
    who: int
    other: int
    draw: float


def draw_faults(random: Random, clients: int, ttl_ns: int) -> tuple[Fault, ...]:
    """Draw a seed's faults."""
    horizon_ns = random.choice((50 * _MS, 300 * _MS, 2 * ttl_ns))
    weights = [random.choice((0, 1, 3)) for _ in KINDS]
    if not any(weights):
        weights = [1] * len(KINDS)
    return tuple(
        [
            Fault(
                random.choices(KINDS, weights)[0],
                int(random.random() * horizon_ns),
                random.choice((1 * _MS, 40 * _MS, ttl_ns // 2, int(1.5 * ttl_ns), 3 * ttl_ns)),
                random.randrange(clients),
                random.randrange(clients),
                random.random(),
            )
            for _ in range(random.randint(1, 6))
        ]
    )


class Injector:
    """Makes a plan's faults happen, and keeps the clients' connections with lockd."""

    def __init__(self, group: "Group", random: Random) -> None:
        self._group = group
        self._random = random
        self._lockd_starts = 0
        self.pending = len(group.plan.faults)
        for fault in group.plan.faults:
            group.schedule.after(fault.at_ns, self._begin, fault)

    # Connections with lockd

    def connect(self, process: ClientProcess) -> None:
        """Connect a process that starts."""
        link = ("lockd", process.route, LOCKD)
        self._group.network.names[process.route] = process.name
        self._group.network.down.add(link)
        self._try(link, process)

    def cut(self, process: ClientProcess) -> None:
        """Break a process's connection with lockd; each end hears of it in its time, or lockd never."""
        group, random = self._group, self._random
        link = ("lockd", process.route, LOCKD)
        if link in group.network.down:
            return
        group.network.break_link(link, stays_down=True)
        if random.random() < 0.8:
            group.schedule.after(int(random.random() * 10 * _MS), self._tell_lockd, link, group.lockd.disk.epoch)
        if process.alive:
            heard_ns = int(random.random() * 4 * _MS)
            group.schedule.after(heard_ns, self._tell_client, process)
            # Not before it has heard: libzmq tells both in their order.
            group.schedule.after(heard_ns + int((0.1 + random.random()) * 20 * _MS), self._try, link, process)

    def _try(self, link: Link, process: ClientProcess) -> None:
        group = self._group
        if not process.alive:
            return
        if group.lockd.alive and group.network.is_open(process.name, "lockd"):
            group.network.mend(link)
            process.feed(LockdConnected())
        else:
            group.schedule.after(_RETRY_NS, self._try, link, process)

    def _tell_lockd(self, link: Link, epoch: int) -> None:
        group = self._group
        if link in group.network.down and group.lockd.disk.epoch == epoch:
            group.lockd.disconnected(link[1])

    def _tell_client(self, process: ClientProcess) -> None:
        process.feed(LockdDisconnected())

    # Faults

    def _begin(self, fault: Fault) -> None:
        group = self._group
        actor = group.actors[fault.who]
        other = group.actors[fault.other]
        process = actor.process
        group.world.trace.append((group.schedule.now_ns, "fault", fault))
        match fault.kind:
            case "crash" | "wipe":
                self._crash(fault, actor)
                return
            case "pause":
                if process is not None and process.alive and not process.paused:
                    process.pause()
                    group.schedule.after(fault.lasts_ns, self._go_on, process)
                    return
            case "break":
                if process is not None:
                    if fault.draw < 0.5:
                        self.cut(process)
                    elif other.process is not None:
                        group.network.break_link(("replica", process.peer_route, other.process.peer_route))
            case "cut":
                self._close([(actor.plan.name, other.plan.name), (other.plan.name, actor.plan.name)], fault)
                return
            case "isolate":
                names = [each.plan.name for each in group.actors] + ["lockd"]
                paths = [(actor.plan.name, name) for name in names] + [(name, actor.plan.name) for name in names]
                self._close(paths, fault)
                return
            case "lockd alone":
                self._close([(actor.plan.name, "lockd"), ("lockd", actor.plan.name)], fault)
                return
            case "disk full":
                actor.directory.journal.failing = "no room"
                group.schedule.after(fault.lasts_ns, self._make_room, actor)
                return
            case "copy" | "old copy":
                if actor.directory.host and not group.copied:
                    group.copied = fault.kind
                    copy = group.copy_directory(actor.directory, fault.kind)
                    group.schedule.after(fault.lasts_ns, self._start_copy, fault, actor, actor.directory, copy)
                    return
            case "lockd crash":
                if group.lockd.alive and group.lockd.crash_in is None:
                    group.lockd.crash_in = int(fault.draw * _EFFECTS)
                    group.schedule.after(fault.lasts_ns, self._start_lockd)
                    return
            case "lockd pause":
                if group.lockd.alive and not group.lockd.paused:
                    group.lockd.pause()
                    group.schedule.after(fault.lasts_ns, self._let_lockd_go_on)
                    return
        self.pending -= 1

    def _crash(self, fault: Fault, actor: "Actor") -> None:
        """Let a process end after some more effects; start it again later, perhaps with an empty directory."""
        group = self._group
        if actor.process is not None and actor.process.crash_in is None:
            actor.process.crash_in = int(fault.draw * _EFFECTS)
        group.schedule.after(fault.lasts_ns, self._end_crash, fault, actor)

    def _end_crash(self, fault: Fault, actor: "Actor") -> None:
        group = self._group
        if actor.process is not None:
            wiped = fault.kind == "wipe" and group.can_lose(actor.directory.replica)
            if wiped or actor.process.crash_in is not None:
                actor.process.crash_in = 0
                actor.process.kill()
        if fault.kind == "wipe" and actor.process is None and group.can_lose(actor.directory.replica):
            actor.wipe()
        group.schedule.after(int(self._random.random() * 100 * _MS), actor.start_again)
        self.pending -= 1

    def _start_copy(self, fault: Fault, actor: "Actor", directory: Directory, copy: Directory, tries: int = 20) -> None:
        """Start a process on a copied directory, beside the first one's or, if that can be lost, in its place."""
        group = self._group
        lockd, process = group.lockd, actor.process
        locks = lockd.core.locks.values()
        busy = any(each.process is not None and each.process.core.busy for each in group.actors)
        if not lockd.alive or busy or any(not lock.file or not lock.file.clean for lock in locks):
            # Not while an op may have happened of which lockd does not know yet.
            if tries:
                group.schedule.after(_RETRY_NS, self._start_copy, fault, actor, directory, copy, tries - 1)
                return
            self.pending -= 1
            return
        self.pending -= 1
        if actor.directory is not directory:
            return
        if fault.kind == "copy":
            if process and process.joined and group.plan.ttl_ns > 10 * group.plan.delay_ns_max and self._is_calm():
                group.start_beside(actor, copy)
        elif group.can_lose(directory.replica):
            if process is not None:
                process.crash_in = 0
                process.kill()
            actor.lose(copy)
            actor.start_again()

    def _is_calm(self) -> bool:
        """Tell whether no fault is under way, and none begins while a process may be asked whether it is alive."""
        now_ns = self._group.schedule.now_ns - START_NS
        faults = [fault for fault in self._group.plan.faults if fault.kind not in ("copy", "old copy")]
        return all(
            fault.at_ns > now_ns + _CALM_NS or fault.at_ns + fault.lasts_ns + _CALM_NS < now_ns for fault in faults
        )

    def _go_on(self, process: ClientProcess) -> None:
        self.pending -= 1
        if process.alive:
            process.go_on()

    def _make_room(self, actor: "Actor") -> None:
        self.pending -= 1
        actor.directory.journal.failing = ""

    def _close(self, paths: Iterable[tuple[str, str]], fault: Fault) -> None:
        """Close paths, at times in one direction only."""
        paths = [path for path in paths if path[0] != path[1]]
        if fault.draw < 0.4:
            paths = [path for path in paths if (path[0] < path[1]) == (fault.draw < 0.2)]
        for path in paths:
            self._group.network.close(*path)
        self._group.schedule.after(fault.lasts_ns, self._open, paths)

    def _open(self, paths: list[tuple[str, str]]) -> None:
        self.pending -= 1
        group = self._group
        for kind, opener, _ in group.network.open(paths, lambda: self._random.random() < 0.5):
            process = group.world.clients.get(opener)
            if kind == "lockd" and process is not None:
                self.cut(process)

    def lockd_died(self) -> None:
        """Break every connection with lockd."""
        for process in list(self._group.world.clients.values()):
            self.cut(process)

    def _start_lockd(self) -> None:
        self.pending -= 1
        lockd = self._group.lockd
        if lockd.alive:
            if lockd.crash_in is None:
                return
            lockd.kill()
        lockd.start()

    def _let_lockd_go_on(self) -> None:
        self.pending -= 1
        if self._group.lockd.alive:
            self._group.lockd.go_on()
