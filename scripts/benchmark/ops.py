"""What a full op costs: one working client with three replicas listening, and four that work at once."""

from pathlib import Path
from typing import Final

from client.node import Durability
from common.eventlog import parse_time
from scripts.benchmark.figures import Row, against, p50_of
from scripts.benchmark.group import Group, Worker
from scripts.benchmark.limits import PEERS, Limits
from scripts.benchmark.processes import NotMeasured, memory_of, stage
from scripts.benchmark.samples import CHANGE_BYTES, FILE
from scripts.benchmark.sampling import Effort, interleave

_OWN_VERBS = ("read", "write", "update", "restore")
_CLIENTS = 4
_DURABILITIES: Final[tuple[Durability, ...]] = ("memory", "disk")


def measure_op(effort: Effort) -> list[Row]:
    """Return one working client's full op in both durabilities."""
    return [row for durability in _DURABILITIES for row in _op(effort, durability)]


def _op(effort: Effort, durability: Durability) -> list[Row]:
    with stage() as place, Limits(place) as limits:
        group = Group(place)
        group.serve(PEERS, durability)
        # One after the other, as in an op: a round trip alone may stay on one core, where it costs a third as much.
        acts = {"raw op": limits.op}
        with Worker(group, durability, PEERS + 1) as worker:
            if durability == "disk":
                acts["append"] = limits.append
            timed = {"write": worker.write, "read": worker.read, "round trip": limits.round_trip, **acts}
            blocks = interleave(timed, effort, block=effort.block // 2)
    bounds = [blocks[name] for name in acts]
    who = f"one working client, {PEERS} replicas listening, {durability}"
    what = "a raw round trip and then a raw broadcast with acks"
    if durability == "disk":
        # The holder appends, then the replicas do, all at once: two durable appends in a row at least.
        bounds.append(blocks["append"])
        what += " + 2 durable appends"
    change = f"{who}: a write of {CHANGE_BYTES} bytes, p50, against {what}, p50"
    return [
        against(f"full op, {durability}", change, blocks["write"], *bounds, wanted=_wanted(durability)),
        against(
            f"full read, {durability}",
            f"{who}: a read, p50, against two raw round trips, p50",
            blocks["read"],
            blocks["round trip"],
            blocks["round trip"],
        ),
        Row(f"ops alone, {durability}", f"{who}: writes per second at the p50", 1e6 / p50_of(blocks["write"]), "/s"),
    ]


def _wanted(durability: Durability) -> float | None:
    return 2.5 if durability == "memory" else None


def measure_working(effort: Effort) -> list[Row]:
    """Return what four working clients do per second: on one file, and on four."""
    rows = []
    for durability in _DURABILITIES:
        for count in effort.working_files:
            rows += _working(effort, durability, count)
    return rows


def _working(effort: Effort, durability: Durability, count: int) -> list[Row]:
    files = [FILE, *[f"notes-{number}.txt" for number in range(1, count)]]
    ops = effort.working_ops if durability == "memory" else effort.working_ops // 4
    wanted = 1200 if durability == "memory" and count == 1 else None
    with stage() as place:
        group = Group(place)
        clients = group.run(_CLIENTS, ops, durability, files)
        sizes = [memory_of(group.lockd, "lockd"), memory_of(clients[0], "a working client")]
        logs = [group.data(f"client-{number}") / "events.log" for number in range(_CLIENTS)]
        per_s = rate(logs)
    on = f"{_CLIENTS} clients on {count} file{'s' if count > 1 else ''}, {durability}"
    rows = [
        Row(
            f"ops/s, {on}",
            f"{on}: reads, writes and updates at random, while all {_CLIENTS} work, by their event logs",
            per_s,
            "/s",
            wanted=wanted,
            bound="least",
        )
    ]
    if wanted is not None:
        after = f"after {_CLIENTS * ops:,} ops of {on}"
        rows += [Row(f"memory of {who}", f"{after}: {told}", mib, "MiB") for who, told, mib in sizes]
    return rows


def rate(logs: list[Path]) -> float:
    """Return the ops per second of these clients together, between the last one's first op and the first one's last."""
    moments = [own_moments(log) for log in logs]
    if not all(moments):
        raise NotMeasured("an event log holds no op of its client")
    start, end = max(own[0] for own in moments), min(own[-1] for own in moments)
    count = sum(start <= moment <= end for own in moments for moment in own)
    if end <= start:
        raise NotMeasured("the clients never worked at the same time; do more ops")
    return count / (end - start) * 1e6


def own_moments(log: Path) -> list[int]:
    """Return when a client's own ops were logged, in microseconds since 1970."""
    moments = []
    with log.open(encoding="utf-8") as lines:
        for line in lines:
            parts = line.split(" ", 4)
            if len(parts) == 5 and parts[3] in _OWN_VERBS:
                moments.append(parse_time(parts[0]))
    return moments
