"""Whether an op's cost follows the change: as the history grows, as the file grows, on disk and on the wire."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Final

from client.journal import Journal
from common.messages import Ack, Push
from common.wire import encode
from scripts.benchmark.figures import Row, against, median, p50_of, percentile, pooled
from scripts.benchmark.group import Group, Worker
from scripts.benchmark.limits import PEERS
from scripts.benchmark.processes import NotMeasured, memory_of, stage
from scripts.benchmark.samples import CHANGE_BYTES, FILE
from scripts.benchmark.sampling import Effort, interleave, timed

_CLIENTS: Final = 4
_MIB: Final = 1 << 20
_FRAME_BYTES: Final = 2
"""What ZeroMQ puts before a short frame on the wire: flags and length."""


def measure_history(effort: Effort) -> list[Row]:
    """Return the speed of the last tenth of a long history against the first, and what memory it takes."""
    with stage() as place:
        group = Group(place)
        replicas = group.serve(PEERS, "memory")
        with Worker(group, "memory", PEERS + 1) as worker:
            worker.write()
            times_us = [timed(worker.write) for _ in range(effort.history_ops)]
            acts = {"old": worker.write, "new": lambda: worker.write("new.txt")}
            turns = interleave(acts, replace(effort, rounds=effort.rounds * effort.block // 10, block=1))
        sizes = [memory_of(group.lockd, "lockd"), memory_of(replicas[0], "a replica")]
    tenth = len(times_us) // 10
    first, last = median(times_us[:tenth]), median(times_us[-tenth:])
    ops = f"{effort.history_ops:,} writes of one client, {PEERS} replicas listening"
    old, new = pooled(turns["old"]), pooled(turns["new"])
    rows = [
        _speeds("last tenth", f"{ops}: ops per second at the p50 of the last tenth, against the first", last, first),
        _speeds(
            "long history",
            f"after {ops}: ops per second at the p50, against a new file's, in turns",
            p50_of(old),
            p50_of(new),
        ),
        Row("long history, p99", f"{ops}: one write, p99 of all", percentile(times_us, 99), "µs"),
    ]
    return [*rows, *[Row(f"memory of {who}", f"after {ops}: {told}", mib, "MiB") for who, told, mib in sizes]]


def _speeds(name: str, compared: str, took_us: float, limit_us: float) -> Row:
    return Row(name, compared, 1e6 / took_us, "/s", 1e6 / limit_us, limit_us / took_us, 0.9, "least")


def measure_size(effort: Effort) -> list[Row]:
    """Return the cost of an append to files of several sizes."""
    names = {size: f"file-{size}" for size in effort.file_sizes}
    with stage() as place:
        group = Group(place)
        group.serve(PEERS, "memory")
        with Worker(group, "memory", PEERS + 1) as worker:
            for size, name in names.items():
                for start in range(0, size, _MIB):
                    worker.write(name, "x" * (min(_MIB, size - start) - 1))
            acts = {name: lambda name=name: worker.write(name) for name in names.values()}
            # Blocks of one: the files take turns op by op.
            blocks = interleave(acts, replace(effort, rounds=effort.rounds * effort.block // 10, block=1))
    smallest, *others = effort.file_sizes
    times = {name: pooled(samples) for name, samples in blocks.items()}
    return [
        against(
            f"append to {_size(size)}",
            f"a write of {CHANGE_BYTES} bytes to a file of {_size(size)} against one of {_size(smallest)}, p50s, "
            f"{PEERS} replicas listening, memory",
            times[names[size]],
            times[names[smallest]],
            wanted=1.2,
        )
        for size in others
    ]


def _size(size: int) -> str:
    return f"{size >> 20} MiB" if size >= _MIB else f"{size >> 10} KiB"


def measure_disk(effort: Effort) -> list[Row]:
    """Return the bytes that an op leaves in each replica's directory."""
    with stage() as place:
        group = Group(place)
        clients = group.run(_CLIENTS, effort.working_ops, "memory")
        homes = [group.data(f"client-{number}") for number in range(_CLIENTS)]
        running = max(bytes_below(home) for home in homes)
        for child in clients:
            child.finish(signal.SIGTERM)
        closed = max(bytes_below(home) for home in homes)
        changes = _head(homes[0])
    ops = _CLIENTS * effort.working_ops
    what = (
        f"the largest of {_CLIENTS} client directories after {ops} ops, {changes} of them {CHANGE_BYTES}-byte changes"
    )
    return [
        Row(
            f"disk per change, {state}",
            f"{what}: all bytes, {state}, by the changes alone ({size / ops:.0f} by all ops)",
            size / changes,
            "B",
            wanted=1024,
        )
        for state, size in (("running", running), ("closed", closed))
    ]


def bytes_below(directory: Path) -> int:
    """Return the bytes that a directory's files take on disk."""
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


def _head(home: Path) -> int:
    journal, _ = Journal.open(home, "memory")
    try:
        return journal.states()[FILE].head.version.seq
    finally:
        journal.close()


def measure_wire(effort: Effort) -> list[Row]:
    """Return the bytes of a push and its ack, with four clients in the clock, from a group that has worked."""
    with stage() as place:
        group = Group(place)
        clients = group.run(_CLIENTS, min(effort.working_ops, 250), "memory")
        for child in clients:
            child.finish(signal.SIGTERM)
        journal, _ = Journal.open(group.data("client-0"), "memory")
        try:
            head = journal.states()[FILE].head.version.seq
            record = next(
                (
                    record
                    for record in (journal.record_at(FILE, seq) for seq in range(head, 0, -1))
                    if record.verb == "write" and len(record.clock) == _CLIENTS
                ),
                None,
            )
            if record is None:
                raise NotMeasured(f"no write has {_CLIENTS} clients in its clock; do more ops")
            previous = journal.version_at(FILE, record.seq - 1)
            assert previous is not None
        finally:
            journal.close()
    push = len(encode(Push("0" * 16, FILE, record.token, previous, (record,), {}))) + _FRAME_BYTES
    ack = len(encode(Ack(FILE, record.token, record.seq))) + _FRAME_BYTES
    return [
        Row(
            "push + ack on the wire",
            f"a push of a {CHANGE_BYTES}-byte write ({push}) and its ack ({ack}) for one peer, {_CLIENTS} clients in "
            "the clock, ZeroMQ's frame heads included",
            push + ack,
            "B",
            wanted=2 * CHANGE_BYTES + 300,
        )
    ]
