"""Which faults come when: drawn from a seed alone, so that it can be drawn again. No I/O."""

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

LOCKD: Final = "lockd"

Kind = Literal[
    "kill",
    "pause",
    "term",
    "lockd-kill",
    "lockd-pause",
    "partition",
    "one-way",
    "reset",
    "delay",
    "disk",
    "lockd-disk",
]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

_LASTS: Final[dict[Kind, tuple[float, float]]] = {
    "kill": (0.0, 1.5),
    "pause": (1.1, 2.5),
    "term": (0.0, 0.5),
    "lockd-kill": (0.0, 1.5),
    "lockd-pause": (0.2, 2.0),
    "partition": (0.3, 2.5),
    "one-way": (0.3, 2.5),
    "reset": (0.0, 0.0),
    "delay": (0.5, 2.5),
    "disk": (0.5, 2.0),
    "lockd-disk": (0.3, 1.5),
}
"""How long each lasts, at least and at most, in times of the ttl: around that of a lease, on both sides."""
_GAP: Final = (0.1, 1.6)
"""From the begin of one to that of the next, in times of the ttl."""
_REST: Final = (0.5, 2.0)
"""How long a victim is left alone after it, likewise."""
_DELAY: Final = (0.02, 0.3)
"""How late a delayed message comes, likewise."""
_AIMED: Final = 0.7
"""How many of those that can be aimed at an op are."""
_AIM_S: Final = (0.0, 0.004)
"""From an op's begin: it takes about so long."""
_TOGETHER_MAX: Final = 3
"""How many faults there are at once, at the most."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: from `begin_s` after the run's begin, for `lasts_s`; times are seconds.

    `links` are the ways on which nothing passes, or late: from whom, to whom. With `aim_s` it waits for the begin of
    an op of its victim, and so long behind that. A victim that is stopped and `wakes_late` sees what came meanwhile
    before it sees the time.
    """

    kind: Kind
    victim: str
    begin_s: float
    lasts_s: float
    links: tuple[tuple[str, str], ...] = ()
    late_s: float = 0.0
    aim_s: float | None = None
    wakes_late: bool = False

    @property
    def end_s(self) -> float:
        """Return when it is to be over."""
        return self.begin_s + self.lasts_s

    def __str__(self) -> str:
        """Say what happens, and for how long."""
        lasts = f"{self.lasts_s:.1f} s"
        match self.kind:
            case "kill" | "lockd-kill":
                return f"kill -9 of {self.victim}, started again after {lasts}"
            case "term":
                return f"SIGTERM to {self.victim}, started again {lasts} after its end"
            case "pause" | "lockd-pause":
                return f"{self.victim} is stopped for {lasts}"
            case "partition":
                return f"{self.victim} is cut off from {_names(self._others())} for {lasts}"
            case "one-way":
                senders, receivers = {sender for sender, _ in self.links}, {receiver for _, receiver in self.links}
                return f"nothing from {_names(senders)} comes to {_names(receivers)} for {lasts}"
            case "reset":
                return f"the connection between {self.victim} and lockd breaks"
            case "delay":
                return f"all between {self.victim} and lockd is {self.late_s * 1000:.0f} ms late for {lasts}"
            case "disk" | "lockd-disk":
                return f"the disk of {self.victim} is full for {lasts}"

    def _others(self) -> set[str]:
        return {name for link in self.links for name in link} - {self.victim}


def draw_faults(
    seed: str,
    clients: Sequence[str],
    kinds: Collection[Kind],
    ttl_s: float,
    *,
    peers: bool = False,
    disks: Collection[str] = (),
) -> Iterator[Fault]:
    """Draw faults without end, in the order in which they begin.

    Each kind comes about as often as any other. A victim has one fault at a time, and a rest behind it. With
    `peers` the ways between clients can be cut too; `disks` are those whose disk can be filled.
    """
    chance = random.Random(f"faults/{seed}")
    drawn = [kind for kind in KINDS if kind in kinds]
    free_s = dict.fromkeys((*clients, LOCKD), 0.0)
    ends_s: list[float] = []
    bag: list[Kind] = []
    now_s = 0.0
    while True:
        if not bag:
            bag = chance.sample(drawn, len(drawn))
        now_s += chance.uniform(*_GAP) * ttl_s
        kind = bag.pop()
        victims = _victims(kind, clients, disks)
        ends_s = [end_s for end_s in ends_s if end_s > now_s]
        if len(ends_s) >= _TOGETHER_MAX:
            now_s = min(ends_s)
        now_s = max(now_s, min(free_s[name] for name in victims))
        victim = chance.choice([name for name in victims if free_s[name] <= now_s])
        fault = _draw(chance, kind, victim, clients, now_s, ttl_s, peers)
        ends_s.append(fault.end_s)
        free_s[victim] = fault.end_s + chance.uniform(*_REST) * ttl_s
        yield fault


def _victims(kind: Kind, clients: Sequence[str], disks: Collection[str]) -> list[str]:
    match kind:
        case "lockd-kill" | "lockd-pause" | "lockd-disk":
            return [LOCKD]
        case "disk":
            return [name for name in clients if name in disks]
        case _:
            return list(clients)


def _draw(
    chance: random.Random, kind: Kind, victim: str, clients: Sequence[str], now_s: float, ttl_s: float, peers: bool
) -> Fault:
    lasts_s = chance.uniform(*_LASTS[kind]) * ttl_s
    if kind == "delay":
        return Fault(kind, victim, now_s, lasts_s, _both(victim, [LOCKD]), chance.uniform(*_DELAY) * ttl_s)
    if kind in ("kill", "pause"):
        aim_s = chance.uniform(*_AIM_S) if chance.random() < _AIMED else None
        return Fault(kind, victim, now_s, lasts_s, aim_s=aim_s, wakes_late=kind == "pause" and chance.random() < _AIMED)
    if kind not in ("partition", "one-way"):
        return Fault(kind, victim, now_s, lasts_s)
    others = [name for name in clients if name != victim]
    sides = [[LOCKD]]
    if peers and others:
        sides += [others, [LOCKD, *others], [chance.choice(others)]]
    links = _both(victim, chance.choice(sides))
    if kind == "one-way":
        out = chance.random() < 0.5
        links = tuple([link for link in links if (link[0] == victim) == out])
    return Fault(kind, victim, now_s, lasts_s, links)


def _both(victim: str, others: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple([link for other in others for link in ((victim, other), (other, victim))])


def _names(names: Collection[str]) -> str:
    return ", ".join(sorted(names))
