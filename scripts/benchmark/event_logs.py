"""Event logs of a group that never was, as one that works on one file would have left them: of any size."""

import random
from pathlib import Path
from typing import Final

from common.eventlog import HEADER, format_time

_BEGIN_US: Final = 1_800_000_000_000_000
_OP_US: Final = 1_000
_PIECE_LINES: Final = 500


def write_event_logs(directory: Path, clients: int, events: int) -> None:
    """Make `directory`/client-N/events.log for each client, `events` lines each: its own ops, and those it took over.

    Every op is a write of `notes.txt` that all others apply, so a clock soon counts every client.
    """
    choose = random.Random(0)
    names = [f"client-{number}" for number in range(clients)]
    order = sorted(range(clients), key=names.__getitem__)
    clocks = [[0] * clients for _ in names]
    ops = [0] * clients
    lock = [0] * clients
    waiting: list[list[str]] = [[HEADER] for _ in names]
    for name in names:
        (directory / name).mkdir(parents=True)

    def tick(client: int, brought: list[int], time_us: int, rest: str) -> None:
        clock = [max(pair) for pair in zip(clocks[client], brought, strict=True)]
        clock[client] += 1
        clocks[client] = clock
        text = ",".join([f'"{names[other]}":{clock[other]}' for other in order if clock[other]])
        waiting[client].append(f"{format_time(time_us)} {names[client]} {{{text}}} {rest}\n")

    for seq in range(1, events + 1):
        author = choose.randrange(clients)
        name = names[author]
        ops[author] += 1
        time_us = _BEGIN_US + seq * _OP_US
        op = f"file=notes.txt id={name}:{ops[author]} token=1.{seq} seq={seq} hash={seq:012x}"
        tick(author, lock, time_us, f'write {op} bytes=+22 snapshot=notes.txt@{seq} text="line {seq}"')
        lock = clocks[author]
        for other in range(clients):
            if other != author:
                tick(other, lock, time_us + choose.randrange(1, _OP_US), f"apply {op} from={name}")
        if seq % _PIECE_LINES == 0 or seq == events:
            for name, lines in zip(names, waiting, strict=True):
                with (directory / name / "events.log").open("a") as log:
                    log.write("".join(lines))
                lines.clear()
