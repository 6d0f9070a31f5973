"""One seed, from its plan to its verdict."""

from dataclasses import dataclass
from random import Random
from typing import Final

from tests.lock_sim.network import Network
from tests.lock_sim.processes import ClientProcess, LockdProcess
from tests.lock_sim.tasks import Locks, Task
from tests.lock_sim.world import World
from tests.sim.processes import Broken
from tests.sim.run import Figures, failure
from tests.sim.schedule import START_NS, Schedule

_MS: Final = 1_000_000
_FAULTS_END_NS: Final = 6_000 * _MS
_REST_NS: Final = 60_000 * _MS
"""So long after the last fault every wait has ended, with the longest of them, and leases and delays."""
_FAULTS: Final = (
    "break",
    "cut off",
    "pause",
    "crash",
    "lockd crash",
    "lockd pause",
    "power cut",
    "operator",
    "operator",
)
_EFFECTS: Final = 40


@dataclass(frozen=True, slots=True)
class LockFigures(Figures):
    """How much a seed had to do, and how much was granted in it."""

    grants: int


class Simulation:
    """lockd and its clients, and what befalls them."""

    def __init__(self, seed: int) -> None:
        """Draw all that the seed says."""
        random = Random(seed)
        self._random = Random(random.getrandbits(64))
        schedule = Schedule()
        self._ttl_ns = random.choice((500, 1000, 3000)) * _MS
        delay_ns = random.choice((50_000, 1 * _MS, 10 * _MS))
        delay_ns_max = random.choice((60 * _MS, 60 * _MS, 2 * self._ttl_ns))
        network = Network(schedule, Random(random.getrandbits(64)), delay_ns, delay_ns_max)
        self.world = World(schedule, network, random.choice((0, 0, 200, 2000)) * _MS)
        self.lockd = LockdProcess(self.world, self._ttl_ns)
        locks = ("a", "b", "c")[: random.randint(1, 3)]
        self._locks: Locks = dict.fromkeys(locks, 0) | ({"s": random.randint(1, 2)} if random.random() < 0.5 else {})
        self.clients: list[ClientProcess] = []
        self.tasks: list[Task] = []
        self._owners = 0
        for number in range(random.randint(2, 5)):
            schedule.after(int(random.random() * 300 * _MS), self._start, f"client-{number}")
        for _ in range(random.choice((0, 2, 4, 8))):
            at_ns = int(random.random() * _FAULTS_END_NS)
            # Not longer than a few leases, some of them only for a moment.
            lasts_ns = int(random.random() ** 2 * 3 * self._ttl_ns)
            schedule.after(at_ns, self._fault, random.choice(_FAULTS), lasts_ns, random.random())

    def run(self) -> LockFigures:
        """Run until all has come to rest. Raises Broken."""
        schedule, end_ns = self.world.schedule, START_NS + _FAULTS_END_NS
        self._run_until(end_ns, all_done=False)
        self._heal()
        self._run_until(end_ns + _REST_NS, all_done=True)
        for task in self.tasks:
            if not task.done:
                raise Broken(f"long after the last fault {task}")
        self._run_until(schedule.now_ns + 3 * self._ttl_ns + self.world.lock_delay_ns + 5_000 * _MS, all_done=False)
        self._check_rest()
        for client in list(self.clients):
            client.leave()
        self._run_until(schedule.now_ns + 1_000 * _MS, all_done=False)
        core = self.lockd.core
        if core.locks or core.sessions or core.waiters:
            raise Broken(f"all clients have left, and lockd has {list(core.locks)}, {core.waiters} waiters")
        elapsed_ns = schedule.now_ns - START_NS
        return LockFigures(self.world.ops, schedule.steps, self.world.network.carried, elapsed_ns, self.world.grants)

    def _run_until(self, end_ns: int, *, all_done: bool) -> None:
        world, schedule = self.world, self.world.schedule
        while schedule.now_ns < end_ns and schedule.step():
            world.check()
            if all_done and all(task.done for task in self.tasks):
                return

    def _start(self, name: str) -> None:
        client = ClientProcess(self.world, self.lockd, name, Random(self._random.getrandbits(64)))
        self.clients.append(client)
        for _ in range(self._random.choice((1, 1, 2, 3))):
            self._owners += 1
            random = Random(self._random.getrandbits(64))
            task = Task(client, self._owners, self._locks, self._random.choice((3, 10, 30)), random)
            client.tasks.append(task)
            self.tasks.append(task)

    def _end(self, client: ClientProcess) -> None:
        if client in self.clients:
            self.clients.remove(client)
            self.tasks = [task for task in self.tasks if task.client is not client]
            client.kill()

    # Faults

    def _fault(self, kind: str, lasts_ns: int, draw: float) -> None:
        schedule, lockd = self.world.schedule, self.lockd
        self.world.trace.append((schedule.now_ns, "fault", f"{kind} for {lasts_ns / _MS:.0f} ms"))
        client = self._random.choice(self.clients) if self.clients else None
        match kind:
            case "break" if client is not None:
                client.link_breaks()
            case "cut off" if client is not None:
                client.cut_off(lasts_ns, draw)
            case "pause" if client is not None and not client.paused:
                client.pause()
                schedule.after(lasts_ns, self._go_on, client)
            case "crash" if client is not None:
                self._end(client)
                schedule.after(lasts_ns, self._start, client.name)
            case "lockd crash" if lockd.alive and lockd.crash_in is None:
                lockd.crash_in = int(draw * _EFFECTS)
                schedule.after(lasts_ns, self._start_lockd)
            case "power cut" if lockd.alive and lockd.crash_in is None:
                lockd.kill(int(draw * 10))
                schedule.after(lasts_ns, self._start_lockd)
            case "lockd pause" if lockd.alive and not lockd.paused:
                lockd.pause()
                schedule.after(lasts_ns, self._let_lockd_go_on)
            case "operator":
                lockd.operate(draw)
            case _:
                pass

    def _go_on(self, client: ClientProcess) -> None:
        if client.alive and client.paused:
            client.go_on()

    def _start_lockd(self) -> None:
        if self.lockd.alive:
            if self.lockd.crash_in is None:
                return
            self.lockd.kill()
        self.lockd.start()

    def _let_lockd_go_on(self) -> None:
        if self.lockd.alive and self.lockd.paused:
            self.lockd.go_on()

    def _heal(self) -> None:
        """End every fault; whoever is at it finishes, and nobody begins anything."""
        self.world.calm = True
        self.world.network.calm_down()
        if not self.lockd.alive:
            self.lockd.start()
        self.lockd.crash_in = None
        self._let_lockd_go_on()
        for client in self.clients:
            self._go_on(client)
            client.cut_off(0, 0.5)

    def _check_rest(self) -> None:
        """Raise Broken unless lockd and the clients agree, and nobody waits."""
        core = self.lockd.core
        here = {(lock.name, token) for lock in core.locks.values() for token in lock.holds}
        there: set[tuple[str, int]] = set()
        for client in self.clients:
            if client.core.state != "joined":
                raise Broken(f"{client.name} has no session")
            if client.core.waits:
                raise Broken(f"{client.name} still waits: {list(client.core.waits.values())}")
            if most := [count for count in client.answers.values() if count != 1]:
                raise Broken(f"{client.name} has had {most} answers to a request")
            for hold in client.core.holds.values():
                if not hold.idle:
                    raise Broken(f"{client.name} holds {hold}, and no task does")
                there.add((hold.lock, hold.token))
        if here != there:
            raise Broken(f"lockd has the holds {sorted(here)}, its clients have {sorted(there)}")
        if core.waiters or any(lock.queue for lock in core.locks.values()):
            raise Broken(f"lockd has {core.waiters} waiters")
        if len(core.sessions) != len(self.clients):
            raise Broken(f"lockd has {len(core.sessions)} sessions, of {len(self.clients)} clients")


def run_seed(seed: int, *, events: int = 50) -> LockFigures:
    """Run a seed to its end. Raises SimulationFailed, which shows its last `events`."""
    simulation = Simulation(seed)
    try:
        return simulation.run()
    except Exception as error:
        raise failure("tests.lock_sim", seed, error, simulation.world.trace, events) from error
