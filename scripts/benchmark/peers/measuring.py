"""The same workloads for us and for our peers, in turn, round by round, so that what disturbs one disturbs all.

A hand-off is counted only where the owner changes: a system whose clients keep the lock to themselves for many turns
is not quick at handing it on. Where a system has several settings all are measured, and its best one is told.
"""

import itertools
import math
import sys
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from scripts.benchmark.figures import Row, jain, median
from scripts.benchmark.group import Group, tell
from scripts.benchmark.peers import packages
from scripts.benchmark.peers.address import Address
from scripts.benchmark.peers.servers import PEERS
from scripts.benchmark.processes import Child, NotMeasured, Stage, stage
from scripts.benchmark.sampling import Effort

_TAKER: Final = "scripts.benchmark.peers.taker"
_SOON_NS: Final = 200_000_000
_MEMBERS: Final = 8


@dataclass(frozen=True, slots=True)
class System:
    """A way to lock that we compare."""

    label: str
    peer: str
    """Whose server it uses: one of PEERS, or ours."""
    settings: Mapping[str, str]
    """Settings of the client to measure it at, and how they are told; the first is the default."""


_TCP, _UNIX = "TCP", "Unix socket"
OURS: Final = System("Lockstep", "lockstep", {"lockstep": _TCP, "lockstep-unix": _UNIX})
OURS_STICKY: Final = System("Lockstep, sticky", "lockstep", {"lockstep-sticky": ""})
"""The same lock, kept when it is given back, so that the same client takes it again without asking: for one alone."""

REDIS_LOCK: Final = System(
    "redis-py Lock",
    "redis",
    {
        "redis-lock-100-ms": "sleep 0.1",
        "redis-lock-5-ms": "sleep 0.005",
        "redis-lock-1-ms": "sleep 0.001",
        "redis-lock-1-ms-unix": f"sleep 0.001, {_UNIX}",
    },
)
SYSTEMS: Final = (
    REDIS_LOCK,
    System("Redis BLPOP", "redis", {"redis-blpop": _TCP, "redis-blpop-unix": _UNIX}),
    System("PostgreSQL advisory lock", "postgres", {"postgres": _TCP, "postgres-unix": _UNIX}),
    System("etcd lock", "etcd", {"etcd": ""}),
    System("kazoo Lock", "zookeeper", {"zookeeper-kazoo": ""}),
)


@dataclass(frozen=True, slots=True)
class Workload:
    """What clients, one per process, do for some time: take a lock and give it back at once."""

    name: str
    told: str
    clients: int
    locks: int

    @property
    def is_handed_on(self) -> bool:
        """Tell whether clients wait for each other."""
        return self.clients > self.locks


@dataclass(frozen=True, slots=True)
class Turn:
    """What one system did in one round."""

    per_s: float
    """Grants per second; where a lock is handed on, those alone whose owner is not the one before."""
    shares: Sequence[int]
    """Grants by client."""
    p50_us: float
    """From one grant of a client to its next, in microseconds: the median of all; infinite where no client had two."""


@dataclass(slots=True)
class Outcome:
    """What came of it."""

    rows: list[Row] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    """Peers that are not installed, and how to get them."""
    problems: dict[str, str] = field(default_factory=dict)
    """What is installed and could not be measured, and why."""


def workloads(effort: Effort) -> list[Workload]:
    """Return all of them, in order."""
    return [
        Workload("alone", "one client alone", 1, 1),
        *[Workload(f"hand-offs, {crowd} clients", f"{crowd} clients on one lock", crowd, 1) for crowd in effort.crowds],
        Workload(f"{_MEMBERS} locks", f"{_MEMBERS} clients, each on a lock of its own", _MEMBERS, _MEMBERS),
    ]


def measure_peers(names: Sequence[str], effort: Effort, outcome: Outcome) -> None:
    """Measure these peers and us; add to the outcome what is known so far. Raises NotMeasured where we cannot be."""
    programs = _find(names, outcome)
    if not programs:
        return
    with stage(tied=True) as place:
        addresses = {"lockstep": serve_ours(place)} | _serve(place, programs, outcome)
        systems = [OURS, OURS_STICKY, *[system for system in SYSTEMS if system.peer in addresses]]
        todo = workloads(effort)
        _say("warming up")
        _take_turns(systems, addresses, todo[0], effort.peer_s, {}, outcome)
        for number, workload in enumerate(todo, 1):
            turns: dict[str, list[Turn]] = {}
            for round_number in range(1, effort.peer_rounds + 1):
                _say(f"{workload.name} ({number} of {len(todo)}), round {round_number} of {effort.peer_rounds}")
                _take_turns(systems, addresses, workload, effort.peer_s, turns, outcome)
            outcome.rows += rows_of(workload, systems, turns)


def _find(names: Sequence[str], outcome: Outcome) -> dict[str, Path]:
    """Return where those of the peers are whose server is installed here, and have their clients installed."""
    programs: dict[str, Path] = {}
    for name in names:
        program = PEERS[name].find()
        if program is None:
            outcome.absent[name] = f"no server; on Debian: apt install {PEERS[name].package}"
        else:
            programs[name] = program
    if programs and not packages.are_installed():
        _say("installing their Python clients")
        try:
            packages.install()
        except packages.NotInstalled as reason:
            outcome.absent |= dict.fromkeys(programs, str(reason))
            return {}
    return programs


def serve_ours(place: Stage) -> Address:
    """Start lockd; return where it serves. Raises NotMeasured."""
    group = Group(place, binds=(Address(0, place.directory).lockd,))
    return Address(int(group.endpoint.rpartition(":")[2]), place.directory)


def _serve(place: Stage, programs: Mapping[str, Path], outcome: Outcome) -> dict[str, Address]:
    """Start the peers' servers; return where they serve."""
    addresses: dict[str, Address] = {}
    for name, program in programs.items():
        _say(f"starting {name}")
        try:
            addresses[name] = PEERS[name].serve(place, program)
        except (NotMeasured, OSError) as error:
            outcome.problems[name] = str(error)
    return addresses


def _take_turns(
    systems: Sequence[System],
    addresses: Mapping[str, Address],
    workload: Workload,
    duration_s: float,
    turns: dict[str, list[Turn]],
    outcome: Outcome,
) -> None:
    """Have each system do the workload once, at each setting that can matter to it."""
    for system in systems:
        for setting in settings_of(system, workload):
            what = f"{system.label} {system.settings[setting]}".strip()
            if what in outcome.problems:
                continue
            try:
                turn = take_turn(setting, addresses[system.peer], workload, duration_s)
                turns.setdefault(setting, []).append(turn)
            except (NotMeasured, OSError) as error:
                if system is OURS:
                    raise
                outcome.problems[what] = f"{workload.name}: {error}"
                turns.pop(setting, None)


def settings_of(system: System, workload: Workload) -> list[str]:
    """Return the settings to measure: how long redis-py sleeps matters only where clients wait for each other."""
    settings = [*system.settings]
    if system is OURS_STICKY and workload.clients > 1:
        return []
    return settings[-2:] if system is REDIS_LOCK and not workload.is_handed_on else settings


def take_turn(setting: str, address: Address, workload: Workload, duration_s: float) -> Turn:
    """Have new clients do the workload; return what they did. Raises NotMeasured."""
    with stage() as place:
        lock = f"bench-{time.monotonic_ns()}"  # none that any client had before
        variables = {} if setting in (*OURS.settings, *OURS_STICKY.settings) else {"PYTHONPATH": str(packages.PACKAGES)}
        takers: list[Child] = []
        for number in range(workload.clients):
            grants = str(place.directory / f"{number}.grants")
            where = (str(address.port), str(address.directory))
            arguments = (setting, *where, f"{lock}-{number % workload.locks}", grants)
            takers.append(place.python(f"{setting}-{number}", _TAKER, *arguments, variables=variables))
        for taker in takers:
            taker.line("ready")
        start_ns = time.monotonic_ns() + _SOON_NS
        end_ns = start_ns + int(duration_s * 1e9)
        for taker in takers:
            tell(taker, start_ns, end_ns)
        for taker in takers:
            taker.finish()
        grants_ns = []
        for number in range(workload.clients):
            own = array("q")
            own.frombytes((place.directory / f"{number}.grants").read_bytes())
            grants_ns.append(own)
    return turn_of(grants_ns, workload, duration_s)


def turn_of(grants_ns: Sequence[Sequence[int]], workload: Workload, duration_s: float) -> Turn:
    """Return what clients did whose grants came at these moments."""
    between = [after - before for own in grants_ns for before, after in itertools.pairwise(own)]
    shares = [*map(len, grants_ns)]
    counted = changes(grants_ns) if workload.is_handed_on else sum(shares)
    return Turn(counted / duration_s, shares, median(between) / 1000 if between else math.inf)


def changes(grants_ns: Sequence[Sequence[int]]) -> int:
    """Return how many of all clients' grants of one lock went to another client than the grant before."""
    owners = [owner for _, owner in sorted((at, owner) for owner, own in enumerate(grants_ns) for at in own)]
    return sum(before != after for before, after in itertools.pairwise(owners))


def rows_of(workload: Workload, systems: Sequence[System], turns: Mapping[str, Sequence[Turn]]) -> list[Row]:
    """Return the figures of one workload: ours against each other system's, each at its best setting."""

    def best_of(system: System) -> str | None:
        """Return the setting at which a system does the most."""
        measured = [setting for setting in settings_of(system, workload) if setting in turns]
        return max(measured, key=lambda setting: _per_s(turns[setting]), default=None)

    best_of_ours = best_of(OURS)
    assert best_of_ours is not None  # else NotMeasured was raised
    ours = turns[best_of_ours]
    rows: list[Row] = []
    if workload.is_handed_on:
        told = f"{workload.told}: Jain's index of our grants by client, the median round"
        rows.append(Row(f"{workload.name}, fairness", told, _fairness(ours), "", None, None, 0.999, "least"))
    if best_of_ours != "lockstep":
        told = f"{workload.told}: {OURS.label} by {_TCP}, against {OURS.settings[best_of_ours]}"
        by_tcp = turns["lockstep"]
        name = f"{workload.name}: {OURS.label}, {_TCP}"
        rows.append(Row(name, told, _per_s(by_tcp), "/s", _per_s(ours), _ratio(by_tcp, ours)))
    for system in systems:
        best = best_of(system)
        if system not in (OURS, OURS_STICKY) and best is not None:
            told = f"by {OURS.settings[best_of_ours]}, against {system.label}, {system.settings[best]}".rstrip(", ")
            rows += _against(workload, system, told, ours, turns[best])
    if sticky := turns.get("lockstep-sticky"):
        best = best_of(REDIS_LOCK)
        rows.append(_sticky(sticky, turns[best] if best else None))
    return rows


def _against(
    workload: Workload, system: System, against: str, ours: Sequence[Turn], theirs: Sequence[Turn]
) -> list[Row]:
    name = f"{workload.name}: {system.label}"
    wanted = _wanted(workload, system)
    what = "hand-offs to another client" if workload.is_handed_on else "acquire + release"
    rows = [
        Row(
            name,
            f"{workload.told}: {what}, {against}",
            _per_s(ours),
            "/s",
            _per_s(theirs),
            _ratio(ours, theirs),
            wanted,
            "least",
        )
    ]
    if workload.is_handed_on:
        told = f"Jain's index, {against}"
        rows.append(Row(f"{name}, fairness", told, _fairness(ours), "", _fairness(theirs)))
    elif workload.clients == 1:
        p50s = [median([turn.p50_us for turn in turns]) for turns in (ours, theirs)]
        told = f"{workload.told}: p50, {against}"
        rows.append(Row(f"{name}, p50", told, p50s[0], "µs", p50s[1], p50s[0] / p50s[1]))
    return rows


def _sticky(ours: Sequence[Turn], theirs: Sequence[Turn] | None) -> Row:
    name, told = "again, sticky", "one client alone takes a sticky lock again and again"
    measured = _per_s(ours)
    if theirs is None:
        return Row(name, told, measured, "/s")
    told += f": against {REDIS_LOCK.label}, which is never kept"
    limit = _per_s(theirs)
    return Row(name, told, measured, "/s", limit, _ratio(ours, theirs), 30.0, "least")


def _per_s(turns: Sequence[Turn]) -> float:
    return median([turn.per_s for turn in turns])


def _ratio(ours: Sequence[Turn], theirs: Sequence[Turn]) -> float:
    """Return our rate by theirs, each round's by that of the same round, then the median."""
    return median(
        [own.per_s / other.per_s if other.per_s else math.inf for own, other in zip(ours, theirs, strict=True)]
    )


def _wanted(workload: Workload, system: System) -> float | None:
    """Return the least ratio of our rate to theirs that is wanted."""
    if workload.clients == 1:
        return 1.5 if system is REDIS_LOCK else None
    if workload.clients == 2:
        return 0.9 if system.peer == "postgres" else None
    return 1.0


def _fairness(turns: Sequence[Turn]) -> float:
    return median([jain(turn.shares) for turn in turns])


def _say(text: str) -> None:
    print(f"peers: {text}", file=sys.stderr, flush=True)
