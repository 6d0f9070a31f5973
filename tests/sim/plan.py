"""What one seed draws: clients, files, ops, absences, clocks and delays."""

from dataclasses import dataclass, replace
from random import Random
from typing import Final

from client.effects import OpVerb
from tests.sim.faults import Fault, draw_faults

_MS: Final = 1_000_000
_DELAY_NS_MAX: Final = 60 * _MS
_VERBS: Final[tuple[OpVerb, ...]] = ("read", "write", "update", "restore")
_TEXTS: Final = ("", "short", "zwölf Boxkämpfer", 'a "quoted" \\ text = 1', "long " * 40, "\t", "{}", "🙂")


@dataclass(frozen=True, slots=True)
class PlannedOp:
    """An op: a pause before it, and of a restore how far back it goes: 0 to 1 of what was acknowledged.

    A restore beyond that names a version that is not there, and has to fail. One that is not `wanted` is given up by
    who asked for it before it begins.
    """

    verb: OpVerb
    file: str
    text: str
    back: float
    think_ns: int
    wanted: bool = True

    @property
    def fails(self) -> bool:
        """Tell whether it cannot be done."""
        return self.verb == "restore" and self.back > 1


@dataclass(frozen=True, slots=True)
class Absence:
    """A client leaves so long after its start, or with `amid` after it began its next op.

    It comes back, or not at all where `away_ns` is None.
    """

    amid: bool
    after_ns: int
    away_ns: int | None


@dataclass(frozen=True, slots=True)
class PlannedClient:
    """A client: its start, how far its clock is off, its ops, how many of them at a time, and its absences.

    Its clock runs too fast by `drift_ppm` millionths.
    """

    name: str
    start_ns: int
    clock_offset_ns: int
    ops: tuple[PlannedOp, ...]
    lanes: int
    absences: tuple[Absence, ...]
    drift_ppm: int = 0

    @property
    def stays(self) -> bool:
        """Tell whether it never leaves."""
        return not self.absences


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole simulation."""

    seed: int
    files: tuple[str, ...]
    clients: tuple[PlannedClient, ...]
    delay_ns: int
    delay_ns_max: int
    ttl_ns: int
    fetch_bytes_max: int
    faults: tuple[Fault, ...] = ()
    usual: float = 0.97


def draw_plan(seed: int, *, calm: bool = False) -> Plan:
    """Draw the plan of a seed, the same for ever as long as this function stays. A `calm` one has no faults."""
    random = Random(seed)
    faulty = not calm
    files = ("a.txt", "b.txt", "folder/c.txt")[: random.randint(1, 3)]
    count = random.randint(1, 6)
    # With few ops per client many seeds run; some seeds have more.
    ops_max = random.choice((2, 4, 4, 8))
    think_ns = random.choice((0, 5, 50)) * _MS
    late = random.random() < 0.4
    leaving = count > 1 and random.random() < 0.35 and not faulty
    reads = random.choice((1, 1, 5))
    delay_ns = random.choice((50_000, 1 * _MS, 1 * _MS, 10 * _MS))
    clients = []
    for number in range(count):
        start_ns = random.randint(0, 300) * _MS if late and number else random.randint(0, 5) * _MS
        ops = tuple([_draw_op(random, files, reads, think_ns) for _ in range(random.randint(1, ops_max))])
        absences: tuple[Absence, ...] = ()
        if leaving and number and random.random() < 0.5:
            absences = _draw_absences(random, delay_ns)
        clients.append(
            PlannedClient(
                f"client-{number}",
                start_ns,
                random.randint(-300, 300) * _MS,
                ops,
                random.choice((1, 1, 1, 3)),
                absences,
                random.randint(-200, 200) if faulty else 0,
            )
        )
    fetch_bytes_max = random.choice((300, 1_000_000))
    if not faulty:
        return Plan(seed, files, tuple(clients), delay_ns, _DELAY_NS_MAX, 3_000 * _MS, fetch_bytes_max)
    if random.random() < 0.5:
        faults = draw_faults(random, count, 1_000 * _MS)
        if random.random() < 0.2:
            files = ("a", "a/b", "a/b/c")
            clients = [_with_names(random, client, files) for client in clients]
        return Plan(seed, files, tuple(clients), delay_ns, _DELAY_NS_MAX, 1_000 * _MS, fetch_bytes_max, faults)
    # A storm: few files, and messages under way for longer than a lease; so hand-overs cross with all that is late.
    clients = [replace(client, ops=tuple([replace(op, file="a.txt") for op in client.ops])) for client in clients]
    ttl_ns = 100 * _MS
    faults = draw_faults(random, count, ttl_ns)
    usual = random.choice((0.97, 0.8, 0.5))
    delay_ns = random.choice((1 * _MS, 10 * _MS))
    return Plan(seed, ("a.txt",), tuple(clients), delay_ns, 4 * ttl_ns, ttl_ns, fetch_bytes_max, faults, usual)


def _with_names(random: Random, client: PlannedClient, files: tuple[str, ...]) -> PlannedClient:
    """Have its ops go to files that are in each other's way; half of them come to nothing, and free the name again."""
    ops = [replace(op, file=random.choice(files), wanted=random.random() < 0.5) for op in client.ops]
    return replace(client, ops=tuple(ops))


def _draw_op(random: Random, files: tuple[str, ...], reads: int, think_ns: int) -> PlannedOp:
    verb = random.choices(_VERBS, (reads, 3, 2, 1))[0]
    text = random.choice(_TEXTS) if random.random() < 0.3 else f"line {random.randint(1, 999)}"
    back = random.random() if random.random() < 0.9 else 1000.0
    return PlannedOp(verb, random.choice(files), text, back, int(random.random() * 2 * think_ns))


def _draw_absences(random: Random, delay_ns: int) -> tuple[Absence, ...]:
    absences = []
    for _ in range(random.randint(1, 2)):
        # A process takes longer to start than its last messages are under way.
        away_ns = random.choice((None, _DELAY_NS_MAX, 100 * _MS, 1_500 * _MS))
        amid = random.random() < 0.7
        after_ns = int(random.random() * 6 * delay_ns) if amid else random.randint(0, 150) * _MS
        absences.append(Absence(amid, after_ns, away_ns))
        if away_ns is None:
            break
    return tuple(absences)
