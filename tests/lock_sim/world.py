"""What is true at every step, whatever happens: who may be inside a lock, and which tokens are granted.

A task is inside from the moment that it has a hold until it gives it back. Of one that is lost it has to be out within
the lock delay, counted from the end of the lease or from when the client heard of it, whichever comes first: so long
`client lock` may take to end its command. Without a lock delay it is out at once. Nothing that lockd grants may be in
conflict with who is inside.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from common.grantlog import GrantLine
from common.messages import Mode
from common.tokens import format_token
from tests.lock_sim.network import Network
from tests.sim.processes import Broken, Trace
from tests.sim.schedule import Schedule

if TYPE_CHECKING:
    from tests.lock_sim.processes import ClientProcess, LockdProcess


@dataclass(slots=True)
class Inside:
    """Who is inside a lock, and how; `converts` tells that the hold may be of another mode already."""

    client: str
    lock: str
    token: int
    mode: Mode
    limit: int


@dataclass(slots=True)
class Granted:
    """The newest grants of a lock: of any mode, and exclusive ones. `converted` has which token a grant converts."""

    newest: int = 0
    exclusive: int = 0
    converted: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class World:
    """All of a simulation."""

    schedule: Schedule
    network: Network
    lock_delay_ns: int
    trace: Trace = field(default_factory=lambda: deque(maxlen=5000))
    clients: dict[bytes, "ClientProcess"] = field(default_factory=dict)
    newest_token: int = 0
    granted: dict[str, Granted] = field(default_factory=dict)
    calm: bool = False
    ops: int = 0
    grants: int = 0

    def logged(self, lockd: "LockdProcess", line: GrantLine) -> None:
        """Take in a line of grants.log: tokens rise."""
        if line.event != "grant":
            return
        self.grants += 1
        if line.token <= self.newest_token:
            raise Broken(f"token {format_token(line.token)} is not above {format_token(self.newest_token)}")
        self.newest_token = line.token
        granted = self.granted.setdefault(line.lock, Granted())
        granted.newest = line.token
        if line.mode == "exclusive":
            granted.exclusive = line.token
        lock = lockd.core.locks.get(line.lock)
        hold = lock.holds.get(line.token) if lock else None  # None: its session has ended in the same moment
        if hold is not None and hold.converts:
            granted.converted[line.token] = hold.converts

    def inside(self) -> Iterator[Inside]:
        """Yield who is inside a lock now."""
        for client in self.clients.values():
            yield from client.inside()

    def check(self) -> None:
        """Raise Broken if somebody is inside a lock who must not be."""
        by_lock: dict[str, list[Inside]] = {}
        for one in self.inside():
            by_lock.setdefault(one.lock, []).append(one)
            if not one.limit:
                self._check_newest(one)
        for lock, all_inside in by_lock.items():
            limit = all_inside[0].limit or (
                1 if any(one.mode == "exclusive" for one in all_inside) else len(all_inside)
            )
            if len(all_inside) > limit:
                who = ", ".join(f"{one.client} {one.mode} under {format_token(one.token)}" for one in all_inside)
                raise Broken(f"too many are inside {lock}: {who}")

    def _check_newest(self, one: Inside) -> None:
        granted = self.granted[one.lock]
        newest = granted.newest if one.mode == "exclusive" else granted.exclusive
        if newest > one.token and granted.converted.get(newest) != one.token:
            raise Broken(
                f"{one.client} is inside {one.lock}, {one.mode} under {format_token(one.token)}, behind a grant of "
                f"{format_token(newest)}"
            )
