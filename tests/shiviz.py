"""What ShiViz and TSViz demand of a file that is opened in them, as a checker of its own: it knows none of our code."""

import json
import re
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from typing import Final

Node = tuple[str, int]
"""An event: its host and its count."""

INHERITED: Final = frozenset(
    [
        "__defineGetter__", "__defineSetter__", "__lookupGetter__", "__lookupSetter__", "__proto__", "constructor",
        "hasOwnProperty", "isPrototypeOf", "propertyIsEnumerable", "toLocaleString", "toString", "valueOf",
    ]
)  # fmt: skip
"""What every JavaScript object has: both tools look hosts up in plain objects, and would find these."""


class Rejected(Exception):
    """ShiViz or TSViz would not draw this file."""


def parse(text: str, *groups: str) -> list[dict[str, str]]:
    """Read a file as the file dialogue does: parser expression, expression between runs, log."""
    expression, _, rest = text.partition("\n")
    delimiter, _, log = rest.partition("\n")
    if delimiter.strip():
        raise Rejected("its second line is not empty, so it would be cut into several runs")
    named = re.sub(r"\(\?<(\w+?)>", r"(?P<\1>", expression.strip())
    named = re.sub(r"(?<!\\)\.", r"[^\\n\\r\\u2028\\u2029]", named)  # JavaScript's dot
    try:
        pattern = re.compile(named, re.MULTILINE)
    except re.error as error:
        raise Rejected(f"its first line is no parser expression: {error}") from None
    for group in ("clock", "host", "event", *groups):
        if group not in pattern.groupindex:
            raise Rejected(f"the parser expression has no group {group}")
    found = [match.groupdict() for match in pattern.finditer(log.strip())]
    if not found:
        raise Rejected("the parser expression captures no event")
    return found


def read_clock(line: dict[str, str]) -> dict[str, int]:
    """Read one vector timestamp."""
    try:
        clock: dict[str, int] = json.loads(line["clock"])
    except ValueError as error:
        raise Rejected(f"a clock is no JSON: {error}") from None
    if line["host"] not in clock:
        raise Rejected(f"{line['host']} is missing from its own clock")
    if not INHERITED.isdisjoint(clock):
        raise Rejected("a host is named like what every object has")
    return {host: count for host, count in clock.items() if count != 0}


def draw(text: str) -> dict[Node, set[Node]]:
    """Return the graph that ShiViz makes: each event's parents. Raises Rejected."""
    hosts: defaultdict[str, list[dict[str, int]]] = defaultdict(list)
    for line in parse(text):
        hosts[line["host"]].append(read_clock(line))
    for host, clocks in hosts.items():
        clocks.sort(key=lambda clock: clock.get(host, 0))
        for expected, clock in enumerate(clocks, 1):
            if clock.get(host) != expected:
                raise Rejected(f"{host} counts {clock.get(host)} where {expected} is next")
    parents: dict[Node, set[Node]] = {}
    for host, clocks in hosts.items():
        known: dict[str, int] = {}
        for clock in clocks:
            node = host, clock[host]
            parents[node] = {(host, clock[host] - 1)} if clock[host] > 1 else set()
            known[host] = clock[host]
            for other, count in clock.items():
                if count > known.get(other, 0):
                    known[other] = count
                    if other not in hosts:
                        raise Rejected(f"a clock counts {other}, which has no event")
                    if not 1 <= count <= len(hosts[other]):
                        raise Rejected(f"a clock counts {count} of {other}, which has {len(hosts[other])}")
                    parents[node].add((other, count))
    try:
        TopologicalSorter(parents).prepare()
    except CycleError:
        raise Rejected("the graph has a cycle") from None
    return parents


def draw_in_time(text: str) -> int:
    """Return how many nanoseconds TSViz draws; it makes the same graph. Raises Rejected.

    It would take a host whose time runs back, too, but draw its line upwards.
    """
    stamps: list[str] = []
    newest: dict[str, str] = {}
    for line in parse(text, "timestamp"):
        stamp = line["timestamp"]
        if not stamp.isascii() or not stamp.isdigit():
            raise Rejected(f"the timestamp {stamp} is no number")
        if stamp < newest.get(line["host"], stamp):
            raise Rejected(f"time runs back at {line['host']}")
        newest[line["host"]] = stamp
        stamps.append(stamp)
    if len({(stamp[:3], len(stamp)) for stamp in stamps}) > 1:
        raise Rejected("it compares texts, and cuts three digits off: these differ in them")
    least, most = min(stamps), max(stamps)
    if int(most[3:]) >= 2**53:
        raise Rejected("what is left of a timestamp is too large for a double")
    draw(text)
    return int(most[3:]) - int(least[3:])
