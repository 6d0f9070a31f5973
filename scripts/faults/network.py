"""The network of a run: where lockd and the clients are, and which ways between them are cut."""

from collections import Counter
from typing import Final, Protocol

from scripts.faults.proxy import Proxy
from scripts.faults.schedule import LOCKD, Kind


class Network(Protocol):
    """What the processes of a run are connected by."""

    kinds: frozenset[Kind]
    """Which faults it can bring about."""
    peers: bool
    """Whether the ways between clients can be cut."""
    bind: str
    """Where lockd is to listen."""
    proxy: Proxy | None
    """The part of it that has to be given time, if it has one."""

    def inside(self, name: str) -> list[str]:
        """Return the command that runs a command at the place of this process."""

    def lockd_at(self, endpoint: str) -> None:
        """Take in where lockd listens."""

    def endpoint(self, client: str) -> str:
        """Return where this client finds lockd."""

    def cut(self, sender: str, receiver: str) -> None:
        """Let nothing more pass from the one to the other; to be mended as often as cut."""

    def mend(self, sender: str, receiver: str) -> None:
        """Take one cut back."""

    def delay(self, client: str, seconds: float) -> None:
        """Let everything between a client and lockd come so late."""

    def reset(self, client: str) -> None:
        """Break a client's connections to lockd."""

    def close(self) -> None:
        """Leave nothing behind."""


class Loopback:
    """All on 127.0.0.1, with a proxy between each client and lockd. Clients reach one another directly."""

    kinds: frozenset[Kind] = frozenset(("partition", "one-way", "reset", "delay"))
    peers = False
    bind = "tcp://127.0.0.1:*"

    def __init__(self, clients: list[str]) -> None:
        """Open the proxy's ports."""
        self.proxy: Proxy | None = None
        self._ways: Final = Proxy()
        self.proxy = self._ways
        self._endpoints = {client: self._ways.open(client) for client in clients}
        self._cuts: Counter[tuple[str, str]] = Counter()

    def inside(self, name: str) -> list[str]:
        """Return the command that runs a command at the place of this process."""
        return []

    def lockd_at(self, endpoint: str) -> None:
        """Take in where lockd listens."""
        self.bind = endpoint
        self._ways.lead_to(endpoint)

    def endpoint(self, client: str) -> str:
        """Return where this client finds lockd."""
        return self._endpoints[client]

    def cut(self, sender: str, receiver: str) -> None:
        """Let nothing more pass from the one to the other."""
        self._cuts[sender, receiver] += 1
        self._set(sender, receiver)

    def mend(self, sender: str, receiver: str) -> None:
        """Take one cut back."""
        self._cuts[sender, receiver] -= 1
        self._set(sender, receiver)

    def _set(self, sender: str, receiver: str) -> None:
        up = receiver == LOCKD
        self._ways.block(sender if up else receiver, up=up, blocked=self._cuts[sender, receiver] > 0)

    def delay(self, client: str, seconds: float) -> None:
        """Let everything between a client and lockd come so late."""
        self._ways.delay(client, seconds)

    def reset(self, client: str) -> None:
        """Break a client's connections to lockd."""
        self._ways.reset(client)

    def close(self) -> None:
        """Close the proxy's ports."""
        self._ways.close()


class Direct:
    """All on 127.0.0.1, with nothing between. No way can be cut."""

    kinds: frozenset[Kind] = frozenset()
    peers = False
    bind = "tcp://127.0.0.1:*"
    proxy: Proxy | None = None

    def inside(self, name: str) -> list[str]:
        """Return the command that runs a command at the place of this process."""
        return []

    def lockd_at(self, endpoint: str) -> None:
        """Take in where lockd listens; it is to listen there again."""
        self.bind = endpoint

    def endpoint(self, client: str) -> str:
        """Return where this client finds lockd."""
        return self.bind

    def cut(self, sender: str, receiver: str) -> None:
        """Not here."""
        raise NotImplementedError

    def mend(self, sender: str, receiver: str) -> None:
        """Not here."""
        raise NotImplementedError

    def delay(self, client: str, seconds: float) -> None:
        """Not here."""
        raise NotImplementedError

    def reset(self, client: str) -> None:
        """Not here."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is left of it."""
