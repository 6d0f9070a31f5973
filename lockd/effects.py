"""What lockd's core asks its driver to do, and what it keeps durably.

Effects are done in their order. A Persist stands before everything that tells of it, so nobody hears of a
change that a crash could take back.
"""

from dataclasses import dataclass as mutable_dataclass
from dataclasses import field

from common.grantlog import GrantLine
from common.messages import FromLockd
from common.values import Value


class ReplicaSeen(Value, frozen=True):
    """A replica id, the host it keeps for ever, and its newest start."""

    replica: str
    name: str
    host: str
    start_count: int
    incarnation: str


class SessionOpened(Value, frozen=True):
    """A session begins; `replica` is "" for a client without one."""

    session: int
    name: str
    replica: str


class SessionEnded(Value, frozen=True):
    """A session is over."""

    session: int


class InSyncChanged(Value, frozen=True):
    """The in-sync set of a file, whole."""

    file: str
    replicas: tuple[str, ...]


Change = ReplicaSeen | SessionOpened | SessionEnded | InSyncChanged


@mutable_dataclass(slots=True)
class Durable:
    """What lockd knows at its start: `epoch` is the new one, already on disk."""

    group: str
    epoch: int
    last_session: int = 0
    replicas: dict[str, ReplicaSeen] = field(default_factory=dict)
    in_sync: dict[str, tuple[str, ...]] = field(default_factory=dict)


class Persist(Value, frozen=True):
    """Make these changes durable, all or nothing, before the effects behind this one."""

    changes: tuple[Change, ...]


class Send(Value, frozen=True):
    """Send to the client that `route`, the driver's, leads to."""

    route: bytes
    message: FromLockd


class LogGrant(Value, frozen=True):
    """Append one line to grants.log."""

    line: GrantLine


class Note(Value, frozen=True):
    """Write one line to lockd.log."""

    text: str


Effect = Persist | Send | LogGrant | Note
