"""What lockd's core asks its driver to do, and what it keeps durably.

Effects are done in their order. A Persist stands before everything that tells of it, so nobody hears of a
change that a crash could take back.
"""

from dataclasses import dataclass as mutable_dataclass
from dataclasses import field

from common.clock import Clock
from common.grantlog import GrantLine
from common.messages import FromLockd
from common.records import Version
from common.values import Value


class ReplicaSeen(Value, frozen=True):
    """A replica id, the host it keeps for ever, and its newest start."""

    replica: str
    name: str
    host: str
    start_count: int
    incarnation: str


class SessionOpened(Value, frozen=True):
    """A session begins; `replica` is "" for a client without one, which only its `incarnation` can go on with."""

    session: int
    name: str
    replica: str
    incarnation: str


class SessionEnded(Value, frozen=True):
    """A session is over."""

    session: int


class InSyncChanged(Value, frozen=True):
    """The in-sync set of a file, whole."""

    file: str
    replicas: tuple[str, ...]


class Rebuilt(Value, frozen=True):
    """The state was lost: this is the group of its replicas, an epoch behind every one of theirs, and all their ids."""

    group: str
    epoch: int
    epochs: dict[int, tuple[str, int]]


class ForgetAcked(Value, frozen=True):
    """What in-sync sets have acked under this token, or an older one, counts no more: somebody has given it up."""

    token: int


class LeasesGiven(Value, frozen=True):
    """No client goes by a longer lease, or relies on a longer lock delay, than these."""

    ttl_ns: int
    lock_delay_ns: int


Change = Rebuilt | ForgetAcked | ReplicaSeen | SessionOpened | SessionEnded | InSyncChanged | LeasesGiven


@mutable_dataclass(slots=True)
class Durable:
    """What lockd knows at its start: `epoch` is the new one, already on disk.

    `epochs` are the random ids of all epochs, this one's too, and how often an in-sync set changed in each. `sessions`
    were open when the last lockd ended, `holds` (their grants) in force; `left` is what each lock's holders left. The
    last two are written behind: a power cut can take their ends. What `left` says was acked under `forgotten`, or an
    older token, does not count. With `rebuild` all this was lost: it is taken from that many replicas. `leases` are the
    longest that clients may still go by, 0 where that is not known.
    """

    group: str
    epoch: int
    epochs: dict[int, tuple[str, int]] = field(default_factory=dict)
    last_session: int = 0
    replicas: dict[str, ReplicaSeen] = field(default_factory=dict)
    in_sync: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sessions: dict[int, SessionOpened] = field(default_factory=dict)
    holds: list[GrantLine] = field(default_factory=list)
    left: dict[str, "KeepLeft"] = field(default_factory=dict)
    forgotten: int = 0
    rebuild: int = 0
    leases: LeasesGiven = field(default_factory=lambda: LeasesGiven(0, 0))


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


class KeepLeft(Value, frozen=True):
    """Keep what a lock's holders left, without waiting for the disk.

    The clocks of its writers and readers, and of a file the newest version that its whole in-sync set has taken in,
    and under which token.
    """

    lock: str
    writers: Clock
    readers: Clock
    acked: Version
    acked_token: int


class Note(Value, frozen=True):
    """Write one line to lockd.log."""

    text: str


Effect = Persist | Send | LogGrant | KeepLeft | Note


def synced_together(effects: list[Effect]) -> list[Effect]:
    """Return these effects with those Persists as one that can be: each costs a sync of the disk.

    A Persist only moves forward, and past Sends and Notes alone: what it stood before it stands before still, and
    what is written behind keeps its place among the durable changes.
    """
    together: list[Effect] = []
    place = -1
    for effect in effects:
        match effect:
            case Persist() if place >= 0:
                first = together[place]
                assert isinstance(first, Persist)
                together[place] = Persist(first.changes + effect.changes)
                continue
            case Persist():
                place = len(together)
            case LogGrant() | KeepLeft():
                place = -1
        together.append(effect)
    return together
