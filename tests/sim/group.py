"""A simulated group: what the plan asks for happens, until all is done and the group is at rest."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Final

from client.effects import Finished, Log, Persist, Submit
from common.eventlog import parse_event
from common.messages import GiveUp
from common.records import Version
from lockd import effects as lockd_effects
from tests.sim.faults import Injector
from tests.sim.network import Network
from tests.sim.plan import Absence, Plan, PlannedClient, PlannedOp
from tests.sim.processes import Broken, ClientProcess, Directory, Inconclusive, LockdProcess, ShortAnswers, World
from tests.sim.schedule import START_NS, Schedule
from tests.sim.watch import Watch

REST_NS_MAX: Final = 120 * 10**9
STEPS_MAX: Final = 100_000
"""A group that is not at rest after so much virtual time, or so many steps, never will be."""

_WAIT_NS: Final = 100 * 10**9
_AGAIN_NS: Final = 100_000_000


@dataclass(slots=True)
class Running:
    """An op under way, and the version that was acknowledged when it began."""

    op: PlannedOp
    seq: int


class Actor:
    """Does what the plan says one client does."""

    def __init__(self, group: "Group", plan: PlannedClient, directory: Directory, random: Random) -> None:
        self.plan = plan
        self.directory = directory
        self.process: ClientProcess | None = None
        self.gone = False
        self.waiting_to_start = True
        self.done: list[tuple[PlannedOp, Finished]] = []
        self.unknown = 0
        self.lost: list[Directory] = []
        self._group = group
        self._random = random
        self._todo = deque(plan.ops)
        self._absences = deque(plan.absences)
        self._running: dict[int, Running] = {}
        self._thinking = 0
        self._submitted = 0
        self._leaving = False
        self._leaving_soon = False

    @property
    def at_rest(self) -> bool:
        """Tell whether nothing of the plan is left to do."""
        if self.gone:
            return True
        todo = self._todo or self._running or self._thinking or self._leaving_soon or self.waiting_to_start
        return not todo and self.process is not None and self.process.joined

    def start(self) -> None:
        """Start the process; leave again when the plan says so."""
        group = self._group
        if self.directory.journal.failing:
            group.schedule.after(_AGAIN_NS, self.start)
            return
        self.waiting_to_start = False
        self.process = ClientProcess(
            group.world,
            group.lockd,
            self.directory,
            self._random,
            self.plan.clock_offset_ns,
            self._joined,
            self.plan.drift_ppm,
        )
        self._plan_leaving(amid=not self._todo)

    def start_again(self) -> None:
        """Start the process if it has died."""
        if self.process is None and not self.waiting_to_start:
            self.waiting_to_start = True
            self.start()

    def died(self) -> None:
        """Take in that the process is gone, and what it had begun with it."""
        self.process = None
        self.unknown += len(self._running)
        self._running.clear()

    def wipe(self) -> None:
        """Lose the directory."""
        self.lose(self._group.new_directory(self.plan.name))

    def lose(self, directory: Directory) -> None:
        """Have another directory from now on."""
        self.lost.append(self.directory)
        self.directory = directory

    def ask(self, op: PlannedOp) -> None:
        """Do an op beyond the plan."""
        self._todo.append(op)
        self._next()

    def wants(self, op: int) -> bool:
        """Tell whether an op under way is still wanted."""
        return self._running[op].op.wanted

    def finished(self, effect: Finished) -> None:
        """Take in an op's outcome, and go on."""
        running = self._running.pop(effect.op)
        if not running.op.wanted and effect.outcome == "ok":
            raise Broken(f"{effect.id} of {self.plan.name} ended ok, and nobody waited for it")
        if running.op.fails:
            if effect.outcome != "failed":
                raise Broken(f"{effect.id} of {self.plan.name} cannot have ended {effect.outcome}")
            if not self._leaving:
                self._next()
            return
        self.done.append((running.op, effect))
        if effect.outcome == "ok":
            self._check(running, effect)
            self._group.watch.acknowledge(running.op.file, effect.version)
        elif not self._leaving and not self._group.plan.faults:
            raise Broken(f"{effect.id} of {self.plan.name} ended {effect.outcome}: {effect.reason}")
        if not self._leaving:
            self._next()

    def _joined(self) -> None:
        for _ in range(self.plan.lanes):
            self._next()

    def _next(self) -> None:
        if self._todo:
            self._thinking += 1
            op = self._todo.popleft()
            self._group.schedule.after(op.think_ns, self._submit, op, self.process)

    def _submit(self, op: PlannedOp, process: ClientProcess | None) -> None:
        self._thinking -= 1
        if process is None or process is not self.process:
            if not self.gone:
                self._todo.append(op)
                if self.process is not None and self.process.joined:
                    self._next()
            return
        newest = self._group.watch.acknowledged.get(op.file)
        seq = newest.seq if newest else 0
        of = int(op.back * (seq + 1)) if op.verb == "restore" else 0
        self._submitted += 1
        self._running[self._submitted] = Running(op, seq)
        self._plan_leaving(amid=True)
        process.submit(Submit(self._submitted, op.verb, op.file, op.text, of, _WAIT_NS))

    def _check(self, running: Running, effect: Finished) -> None:
        """Check that the op saw what had been acknowledged before it began, and a read its version's bytes."""
        op, seq = running.op, effect.version.seq
        if seq < running.seq + (op.verb != "read"):
            raise Broken(f"{effect.id} ({op.verb}) ended at {op.file}@{seq}, behind {running.seq}")
        assert self.process is not None
        if op.verb == "read":
            if self.process.reads.pop(effect.op) != self.directory.journal.content(op.file, seq):
                raise Broken(f"{effect.id} read other bytes than {op.file}@{seq} has")

    def _plan_leaving(self, amid: bool) -> None:
        if self._absences and not self._leaving_soon and self._absences[0].amid <= amid:
            absence = self._absences.popleft()
            self._leaving_soon = True
            self._group.schedule.after(absence.after_ns, self._leave, absence)

    def _leave(self, absence: Absence) -> None:
        group = self._group
        if absence.away_ns is None and not group.can_spare(self._running.values()):
            group.schedule.after(_AGAIN_NS, self._leave, absence)
            return
        assert self.process is not None
        self._leaving_soon = False
        self._leaving = True
        self.process.leave()
        self._leaving = False
        self._running.clear()
        self.process = None
        if absence.away_ns is None:
            self.gone = True
            self._todo.clear()
        else:
            self.waiting_to_start = True
            group.schedule.after(absence.away_ns, self.start)


class Group:
    """lockd and the plan's clients, and who watches them."""

    def __init__(self, plan: Plan, *, keep: bool) -> None:
        self.plan = plan
        self._random = random = Random(~plan.seed)
        self.schedule = Schedule()
        self.network = Network(self.schedule, random, plan.delay_ns, plan.delay_ns_max, plan.usual)
        # Whose messages are held back for long knows lockd's clock that badly.
        self.watch = Watch(None if plan.faults else plan.delay_ns_max // 1000 + 1000)
        self.world = World(self.schedule, self.network, self, keep)
        self.lockd = LockdProcess(self.world, plan.ttl_ns)
        self.actors = [Actor(self, client, self.new_directory(client.name), random) for client in plan.clients]
        self._by_name = {actor.plan.name: actor for actor in self.actors}
        self.copied = ""
        self.copies: list[Directory] = []
        self._injector = Injector(self, random)
        for actor in self.actors:
            self.schedule.after(actor.plan.start_ns, actor.start)

    def new_directory(self, name: str) -> Directory:
        """Return an empty directory."""
        directory = Directory(name, ShortAnswers(self._random.randbytes, self.plan.fetch_bytes_max))
        self.watch.directories.append(directory)
        return directory

    def copy_directory(self, directory: Directory, mark: str) -> Directory:
        """Return a copy of a directory as it is now; it counts as a replica once lockd has let it in."""
        copy = Directory(directory.name, ShortAnswers(self._random.randbytes, self.plan.fetch_bytes_max))
        directory.journal.copy_to(copy.journal)
        copy.lines = list(directory.lines)
        if mark == "copy":
            copy.name = f"{directory.name}-copy"
        return copy

    def start_beside(self, actor: Actor, copy: Directory) -> None:
        """Start a process on a copy of an actor's directory."""
        plan = replace(actor.plan, name=copy.name, ops=actor.plan.ops[:1], absences=())
        self.copies.append(copy)
        beside = Actor(self, plan, copy, self._random)
        self.actors.append(beside)
        self._by_name[copy.name] = beside
        beside.start()

    def run(self) -> None:
        """Run to the end of the plan, until the group is at rest, and then until every file is clean."""
        if self.plan.faults:
            last_ns = max(fault.at_ns + fault.lasts_ns for fault in self.plan.faults)
            self.schedule.after(last_ns, self.network.calm_down)
            self.schedule.after(last_ns + 6 * self.plan.ttl_ns, self.give_up_what_is_lost)
        self._until_rest()
        for file in self._unclean():
            actor = next(actor for actor in self.actors if not actor.gone)
            actor.ask(PlannedOp("read", file, "", 0, 0))
        self._until_rest()
        if self._unclean():
            raise Broken(f"{self._unclean()} are still unclean")
        self._check_equal()
        self._check_outcomes()
        self._check_figures()
        self.lockd.stop()

    def can_spare(self, running: Iterable[Running]) -> bool:
        """Tell whether every file has an in-sync replica that stays, so that a client with these ops may go."""
        stay = {actor.directory.replica for actor in self.actors if actor.plan.stays}
        in_sync = self.lockd.disk.in_sync
        return all(stay.intersection(replicas) for replicas in in_sync.values()) and all(
            each.op.file in in_sync for each in running
        )

    def give_up_what_is_lost(self) -> None:
        """Accept, as an operator, the loss of what only wiped replicas had; what was acknowledged must be there yet.

        It can come to that where a file is new, or where a holder had the others dropped and was wiped in that moment.
        """
        there = {actor.directory.replica for actor in self.actors}
        for file, members in list(self.lockd.disk.in_sync.items()):
            if there.isdisjoint(members):
                hosts = tuple([self.lockd.disk.replicas[replica].host for replica in members])
                self.lockd.operate(partial(GiveUp, self.lockd.disk.epoch, request=2, file=file, hosts=hosts))

    def can_lose(self, replica: str) -> bool:
        """Tell whether every file survives where this replica's directory is lost."""
        # What is copied, and has no session yet, may be too old to count.
        there = {each.directory.replica for each in self.actors if each.directory in self.watch.directories}
        there.discard(replica)
        return all(
            replica not in members or there.intersection(members) for members in self.lockd.disk.in_sync.values()
        )

    # What the world tells

    def joined(self, client: ClientProcess) -> None:
        self.network.names[client.peer_route] = client.name
        if client.directory in self.copies:
            self._check_copy(client)
        if client.directory not in self.watch.directories:
            self.watch.copied(client.directory)

    def _check_copy(self, client: ClientProcess) -> None:
        """Check that it did not take the place of a process that is alive."""
        for other in self.world.clients.values():
            if other is client or other.directory.replica != client.directory.replica:
                continue
            if other.core.joined:
                raise Broken(f"{client.name} has taken the place of {other.name}")
            # Two processes are one replica, and lockd could not know: whatever comes now may go wrong.
            raise Inconclusive

    def started(self, client: ClientProcess) -> None:
        self._injector.connect(client)

    def died(self, client: ClientProcess | None) -> None:
        if client is None:
            self.watch.lockd_died()
            self._injector.lockd_died()
            return
        actor = self._by_name[client.name]
        self._injector.cut(client)
        actor.died()
        if client.crash_in is None:  # no fault of ours ended it, so none will start it again
            self.schedule.after(_AGAIN_NS, actor.start_again)

    def reconnects(self, client: ClientProcess) -> None:
        self._injector.cut(client)

    def refused(self, client: ClientProcess, reason: str) -> None:
        if not self.plan.faults:
            raise Broken(f"{client.name} was refused: {reason}")
        client.kill()

    def lockd_stepped(self, lockd: LockdProcess, effects: list[lockd_effects.Effect]) -> None:
        self.watch.lockd_stepped(lockd, effects)

    def logged(self, client: ClientProcess, effect: Log) -> None:
        self.watch.logged(client, effect)

    def persisted(self, client: ClientProcess, effect: Persist) -> None:
        self.watch.persisted(client, effect)

    def met(self, client: ClientProcess, file: str, token: int) -> None:
        self.watch.met(client, file, token)

    def begins(self, client: ClientProcess, op: int) -> bool:
        return self._by_name[client.name].wants(op)

    def finished(self, client: ClientProcess, effect: Finished) -> None:
        self._by_name[client.name].finished(effect)

    # The end

    def _until_rest(self) -> None:
        end_ns = self.schedule.now_ns + REST_NS_MAX
        schedule, watch = self.schedule, self.watch
        while not self._at_rest():
            if not schedule.step() or schedule.now_ns > end_ns or schedule.steps > STEPS_MAX:
                raise Broken(f"the group does not come to rest: {self._why_not()}")
            watch.check()

    def _at_rest(self) -> bool:
        return (
            not self.network.in_flight
            and not self._injector.pending
            and all(actor.at_rest for actor in self.actors)
            and not self._why_not()
        )

    def _why_not(self) -> str:
        if not self.lockd.alive:
            return "lockd is down"
        live = {actor.directory.replica: actor for actor in self.actors if actor.process is not None}
        for lock in self.lockd.core.locks.values():
            assert lock.file is not None
            if lock.queue or not all(hold.sticky for hold in lock.holds.values()):
                return f"{lock.name} is held or wanted"
            if live and lock.file.clean is None and lock.file.astray:
                return f"{lock.name} is still to be settled"
            for replica, actor in live.items():
                if replica not in lock.file.in_sync:
                    return f"{actor.plan.name} is not in sync with {lock.name}"
        for actor in live.values():
            if actor.process is not None and actor.process.core.learning:
                return f"{actor.plan.name} thinks that it still learns"
            if actor.process is not None and actor.process.core.epoch != self.lockd.core.epoch:
                return f"{actor.plan.name} does not know that lockd has started anew"
        waiting = ", ".join(actor.plan.name for actor in self.actors if not actor.at_rest)
        return f"{waiting} are not done" if waiting else ""

    def _unclean(self) -> list[str]:
        locks = self.lockd.core.locks.values()
        return [lock.name for lock in locks if lock.file is not None and lock.file.clean is None]

    def _check_equal(self) -> None:
        """Check that all live replicas have what lockd thinks they have."""
        for lock in self.lockd.core.locks.values():
            assert lock.file is not None and lock.file.clean is not None
            for actor in self.actors:
                states = actor.directory.journal.states()
                seq = states[lock.name].head.version.seq if lock.name in states else 0
                version = actor.directory.journal.version_at(lock.name, seq)
                if actor.process is not None and version != lock.file.clean:
                    raise Broken(f"{actor.plan.name} is at {lock.name}{version}, the group at {lock.file.clean}")

    def _check_outcomes(self) -> None:
        """Check that what was told of every change is true of the history that is left."""
        journal = next(actor.directory.journal for actor in self.actors if not actor.gone)
        versions: dict[str, Version] = {}
        for file, state in journal.states().items():
            for seq in range(1, state.head.version.seq + 1):
                id_, version = journal.record_at(file, seq).id, journal.version_at(file, seq)
                if id_ in versions or version is None:
                    raise Broken(f"{id_} is in the history twice")
                versions[id_] = version
        for actor in self.actors:
            for op, effect in actor.done:
                found = versions.get(effect.id)
                if op.verb != "read" and effect.outcome == "ok" and found != effect.version:
                    raise Broken(f"{effect.id} ended ok at {op.file}{effect.version}, and is at {found}")
                # Of an old copy nobody knows which ids it has given out to what came to nothing.
                if effect.outcome == "failed" and found is not None and not self.copied:
                    raise Broken(f"{effect.id} ended failed, and is at {op.file}{found}")

    def _check_figures(self) -> None:
        """Check that what live clients have counted is what their logs tell of this life."""
        for actor in self.actors:
            process, directory = actor.process, actor.directory
            if process is None:
                continue
            events = [parse_event(line) for line in directory.lines[process.lines_before :]]
            # What a client undoes of its own accord at a start was no op of its journal.
            undone = sum(each.verb == "undo" and each.values["from"] != directory.host for each in events)
            figures = process.core.figures
            if figures.undone != undone:
                raise Broken(f"{actor.plan.name} has counted {figures.undone} ops undone, its log tells of {undone}")
            if figures.catch_ups_begun - figures.catch_ups_finished < len(process.core.learning):
                raise Broken(f"{actor.plan.name} learns more files than it has counted: {figures}")

    @property
    def elapsed_ns(self) -> int:
        """Return how much virtual time has passed."""
        return self.schedule.now_ns - START_NS
