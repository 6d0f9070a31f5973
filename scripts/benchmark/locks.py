"""What a lock costs: one client alone, and many that hand one lock to each other."""

import time

from scripts.benchmark.figures import Row, against, jain, p50_of, percentile
from scripts.benchmark.group import Group, last_json, tell
from scripts.benchmark.limits import Limits
from scripts.benchmark.locker import Locker
from scripts.benchmark.processes import apart, stage
from scripts.benchmark.samples import ACQUIRE_PLAIN, GRANT_PLAIN
from scripts.benchmark.sampling import Effort, interleave


def measure_lock(effort: Effort) -> list[Row]:
    """Return acquire + release by one client against a raw round trip."""
    with stage() as place, Limits(place, ACQUIRE_PLAIN, GRANT_PLAIN) as limits:
        group = Group(place)
        locker = Locker(group.endpoint, "bench")
        with apart(group.lockd, limits.echo):
            blocks = interleave({"cycle": locker.cycle, "raw": limits.round_trip}, effort)
        locker.close()
    compared = (
        "acquire + release of one client alone, p50, against one raw round trip, p50; "
        "the client on one core, lockd and the raw echo on another"
    )
    return [against("acquire + release", compared, blocks["cycle"], blocks["raw"], wanted=1.5)]


def measure_hand_offs(effort: Effort) -> list[Row]:
    """Return the hand-offs of one lock among a few and many clients."""
    rows = []
    for crowd in effort.crowds:
        rows += _hand_offs(crowd, effort)
    return rows


def _hand_offs(crowd: int, effort: Effort) -> list[Row]:
    with stage() as place, Limits(place, ACQUIRE_PLAIN, GRANT_PLAIN) as limits:
        group = Group(place)
        before = interleave({"raw": limits.round_trip}, effort)
        lockers = [
            place.python(f"locker-{number}", "scripts.benchmark.locker", group.endpoint, f"locker-{number}")
            for number in range(crowd)
        ]
        for child in lockers:
            child.line("ready")
        start_ns = time.monotonic_ns() + 200_000_000
        for child in lockers:
            tell(child, start_ns, start_ns + int(effort.hand_off_s * 1e9))
        waits = [last_json(child.finish()) for child in lockers]
        after = interleave({"raw": limits.round_trip}, effort)
    everybody = [wait for own in waits for wait in own]
    raw_us = p50_of([*before["raw"], *after["raw"]])
    per_s = len(everybody) / effort.hand_off_s
    who = f"{crowd} clients on one lock"
    return [
        Row(
            f"hand-offs, {crowd} clients",
            f"{who}: hand-offs per second, against raw round trips per second before and after",
            per_s,
            "/s",
            1e6 / raw_us,
            per_s * raw_us / 1e6,
        ),
        Row(f"fairness, {crowd} clients", f"{who}: Jain's index of their grants", jain([*map(len, waits)]), ""),
        Row(f"wait p50, {crowd} clients", f"{who}: from acquire to grant", percentile(everybody, 50), "µs"),
        Row(f"wait p99, {crowd} clients", f"{who}: from acquire to grant", percentile(everybody, 99), "µs"),
    ]
