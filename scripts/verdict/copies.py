"""Directories that were copied, or that count anew: whose the lines of an event log are.

A data directory may be copied. lockd lets the copy go on as another replica, with a host of its own; its log begins
with the lines that it was copied with. These are its origin's, and count there alone, as far as both logs are the
same from their first line on. What differs is the copy's own, and two logs that tell of one host are wrong. It is the
same where a copy has taken its origin's place, under its host: the longer log is the one that goes on.

A directory goes on under another host, too, where its newest events were lost. Then no log goes on with its former
host: what others know of that may be more than is told anywhere.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from scripts.verdict.evidence import Client


def own_host(client: Client) -> str:
    """Return the host under which a client goes on."""
    return client.host or (client.lines[-1].event.host if client.lines else "")


def owners(clients: Sequence[Client]) -> dict[str, Client]:
    """Return whose the lines of each host are: its client's, or else, where that is not here, who has most of them."""
    found: dict[str, tuple[tuple[bool, int], Client]] = {}
    for client in clients:
        for host, count in Counter(line.event.host for line in client.lines).items():
            rank = (host == own_host(client), count)
            if host not in found or rank > found[host][0]:
                found[host] = rank, client
    return {host: client for host, (_, client) in found.items()}


def owner_by_line(client: Client, by_host: Mapping[str, Client]) -> Iterator[Client]:
    """Yield whose each line of a client's log is: its own, but for those of other owners that both logs begin with."""
    same: dict[str, int] = {}
    for index, line in enumerate(client.lines):
        host = line.event.host
        if host not in same:
            same[host] = 0 if by_host[host] is client else _same_lines(client, by_host[host])
        yield by_host[host] if index < same[host] else client


def _same_lines(client: Client, other: Client) -> int:
    """Count the lines with which both logs begin."""
    pairs = zip(client.lines, other.lines, strict=False)
    return next(
        (index for index, (one, its) in enumerate(pairs) if one != its), min(len(client.lines), len(other.lines))
    )
