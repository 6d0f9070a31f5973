"""Histories of processes that tell each other what they know, made up by hypothesis: honest vector clocks."""

from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from client.event_logs import parse_head
from client.merge import Head
from common.clock import Clock, happens_before_or_equal, merge, tick
from common.eventlog import HEADER, format_event, format_pairs

BEGIN_US = 1_800_000_000_000_000


@dataclass(frozen=True)
class History:
    """Events in an order in which they may have happened, each with the number of the log that has it."""

    heads: list[Head]
    logs: list[int]

    def of(self, log: int) -> list[Head]:
        """Return the lines of one log."""
        return [head for head, its in zip(self.heads, self.logs, strict=True) if its == log]


def event(host: str, clock: Clock, time_us: int, verb: str = "write", **values: str) -> Head:
    """Return an event's line, read."""
    told = {"file": "notes.txt", "id": f"{host}:{clock[host]}", "token": "1.1", "seq": "1", "hash": "0" * 12}
    return parse_head(format_event(time_us, host, clock, verb, format_pairs((told | values).items())).encode())


@st.composite
def histories(draw: st.DrawFn, processes: int = 4, events: int = 24) -> History:
    """Draw a history: at each event a process has heard of some earlier ones. Some begin anew as name#2."""
    names = [f"p{number}" for number in range(draw(st.integers(1, processes)))]
    clocks: list[Clock] = [{} for _ in names]
    times = [0] * len(names)
    heads: list[Head] = []
    logs: list[int] = []
    for _ in range(draw(st.integers(0, events))):
        log = draw(st.integers(0, len(names) - 1))
        if "#" not in names[log] and clocks[log] and draw(st.integers(0, 9)) == 0:
            names[log] += "#2"
        clock = clocks[log]
        for heard in draw(st.lists(st.sampled_from(heads), max_size=3)) if heads else ():
            clock = merge(clock, heard.clock)
        clocks[log] = tick(clock, names[log])
        times[log] += draw(st.integers(0, 3))
        heads.append(event(names[log], clocks[log], BEGIN_US + times[log]))
        logs.append(log)
    return History(heads, logs)


def before(first: Head, second: Head) -> bool:
    """Tell whether an event happens before another, by both whole clocks."""
    return first.clock != second.clock and happens_before_or_equal(first.clock, second.clock)


def in_causal_order(heads: list[Head]) -> bool:
    """Tell whether none comes before one that happens before it."""
    return not any(before(later, head) for place, head in enumerate(heads) for later in heads[place + 1 :])


def write_log(directory: Path, heads: list[Head]) -> None:
    """Make a data directory with an event log of these lines."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "events.log").write_bytes(HEADER.encode() + b"".join([head.line + b"\n" for head in heads]))
