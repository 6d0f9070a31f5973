"""The messages, one frozen struct each and one union per direction. PROTOCOL.md tells their story.

Every message but Hello and Stale names the epoch of the lockd it was meant for or comes from, or, between
replicas, a token, which holds one. A `request` is a number that its sender does not use twice in a session.
"""

from collections.abc import Mapping
from typing import Literal

from common.clock import Clock
from common.records import Record, Version
from common.values import Hash, Number, Part

Kind = Literal["file", "plain"]
Mode = Literal["exclusive", "shared"]


class Message(Part, frozen=True):
    """A message: on the wire an array of its tag and its fields. A tag never changes and is never used again."""


class Head(Part, frozen=True):
    """The newest version of one file at a replica, the token its journal follows, and the newest op's clock."""

    version: Version
    follows: Number
    clock: Clock


class ReplicaHello(Part, frozen=True):
    """The replica's part of a hello. `start_count` counts the starts of this data directory, from 1.

    `own_host` is its component in vector clocks, "" before its first session, and `count` how far that has come.
    `reads` are, of the files that this process has read, its clocks at the last time. `hosts` are all components that
    it has heard of: a lockd that is rebuilt must not give them out again.
    """

    replica: str
    start_count: Number
    endpoint: str
    heads: Mapping[str, Head]
    durability: Literal["disk", "memory"]
    own_host: str
    count: Number
    reads: Mapping[str, Clock]
    hosts: tuple[str, ...]


class Member(Part, frozen=True):
    """A live replica as others reach it: its replica id, host, endpoint and incarnation."""

    replica: str
    host: str
    endpoint: str
    incarnation: str


class Held(Part, frozen=True):
    """A lock without a file that a client holds, and has not begun to give back."""

    lock: str
    token: Number
    mode: Mode


# Client to lockd


class Hello(Message, frozen=True, tag=1):
    """Open a session. `group`, `epoch` and `highest_token` are what the client has last seen; "" and 0 at first.

    `epoch_id` and `changes` are what that epoch's newest Welcome or InSync had: the epoch alone would fit a lockd on an
    old copy of its state too.
    `held` are its locks without a file: after a restart of lockd they are taken over, see Grant.
    """

    request: Number
    name: str
    incarnation: str
    replica: ReplicaHello | None
    group: str
    epoch: Number
    epoch_id: str
    changes: Number
    highest_token: Number
    held: tuple[Held, ...]


class Goodbye(Message, frozen=True, tag=2):
    """End the session; it needs no answer. Session 0 ends whatever a Hello before it has opened, in any epoch."""

    epoch: Number
    session: Number


class Ping(Message, frozen=True, tag=3):
    """Renew the lease and ask for the time."""

    epoch: Number
    session: Number
    request: Number


class Acquire(Message, frozen=True, tag=4):
    """Ask for a lock; answered by Grant or Refused. `wait_ms` bounds the wait in the queue; 0 is a try."""

    epoch: Number
    session: Number
    request: Number
    lock: str
    kind: Kind
    mode: Mode
    wait_ms: Number


class Cancel(Message, frozen=True, tag=5):
    """Leave the queue, or give back the grant that is under way, for the Acquire numbered `request`."""

    epoch: Number
    session: Number
    request: Number


class Release(Message, frozen=True, tag=6):
    """Give a lock back; final once sent. Answered by Released if `confirm`.

    For a file: the version left, the clock left, whether anything was changed, and the replicas that
    acked the version. A lock without a file leaves EMPTY and nobody.
    """

    epoch: Number
    session: Number
    request: Number
    lock: str
    token: Number
    version: Version
    clock: Clock
    changed: bool
    acked: tuple[str, ...]
    confirm: bool


class Drop(Message, frozen=True, tag=7):
    """The holder asks to take silent replicas out of the file's in-sync set; answered by InSync."""

    epoch: Number
    session: Number
    request: Number
    file: str
    token: Number
    replicas: tuple[str, ...]


class Report(Message, frozen=True, tag=8):
    """A learner tells how far it has come."""

    epoch: Number
    session: Number
    file: str
    version: Version
    follows: Number


class Resume(Message, frozen=True, tag=9):
    """The connection is a new one, the session the same; what the old one may have lost was said again before.

    Answered by a View, a Learn for each file that the replica has to learn, and a Pong.
    """

    epoch: Number
    session: Number
    request: Number


class GiveUp(Message, frozen=True, tag=10):
    """An operator accepts what the loss of all of a file's in-sync replicas takes; answered by InSync or Refused.

    `hosts` are all of them, by name: nobody gives up what he does not know of.
    """

    epoch: Number
    session: Number
    request: Number
    file: str
    hosts: tuple[str, ...]


class Here(Message, frozen=True, tag=11):
    """Answer to Probe: the session's process is alive."""

    epoch: Number
    session: Number
    request: Number


ToLockd = Hello | Goodbye | Ping | Acquire | Cancel | Release | Drop | Report | Resume | GiveUp | Here

# lockd to client


class Welcome(Message, frozen=True, tag=33):
    """The session is open. `host` is the client's component in vector clocks, `view` the live replicas.

    `replica` is the replica id in force: another than the hello's where the data directory was a copy,
    "" without a replica. `time_us` is lockd's clock, in microseconds since 1970, as in every message. `epoch_id` was
    drawn at random when the epoch began; `changes` counts the changes of in-sync sets since then.
    """

    epoch: Number
    epoch_id: str
    changes: Number
    session: Number
    request: Number
    group: str
    ttl_ms: Number
    host: str
    replica: str
    view: tuple[Member, ...]
    time_us: Number


class Pong(Message, frozen=True, tag=34):
    """Answer to Ping and Resume."""

    epoch: Number
    request: Number
    time_us: Number


class Grant(Message, frozen=True, tag=35):
    """The lock is held under `token`. The mode is exclusive, even where shared was asked, if `clean` is None.

    `clean` is the version that every in-sync replica holds; without one the holder settles first.
    `in_sync` and `learners` are replica ids. A lock without a file has EMPTY and nobody. With request 0 it tells
    that a lock without a file, held under `token` before lockd started anew, is still held.
    """

    epoch: Number
    request: Number
    lock: str
    token: Number
    mode: Mode
    clock: Clock
    clean: Version | None
    in_sync: tuple[str, ...]
    learners: tuple[str, ...]
    time_us: Number


class Refused(Message, frozen=True, tag=36):
    """A Hello or Acquire was refused, definitely; nothing happened. `reason` is one line for people."""

    epoch: Number
    request: Number
    reason: str


class Released(Message, frozen=True, tag=37):
    """Answer to Release: was the token still current when it came?"""

    epoch: Number
    request: Number
    current: bool


class InSync(Message, frozen=True, tag=38):
    """Answer to Drop and GiveUp: the set now, durably; `current` tells whether the token still holds the lock.

    `changes` counts the epoch's changes of in-sync sets so far.
    """

    epoch: Number
    request: Number
    current: bool
    in_sync: tuple[str, ...]
    changes: Number


class View(Message, frozen=True, tag=39):
    """All live replicas, at each change."""

    epoch: Number
    members: tuple[Member, ...]


class Learn(Message, frozen=True, tag=40):
    """You are a learner of `file`: fetch it from one of `sources` (in-sync, live), then Report."""

    epoch: Number
    file: str
    sources: tuple[str, ...]


class Admitted(Message, frozen=True, tag=41):
    """You are in the in-sync set of `file` now."""

    epoch: Number
    file: str


class Settle(Message, frozen=True, tag=42):
    """`file` is unclean and somebody learns it: acquire it, settle and release."""

    epoch: Number
    file: str


class Stale(Message, frozen=True, tag=43):
    """A message named another epoch; lockd did nothing. `epoch` is the one in force."""

    epoch: Number


class Ended(Message, frozen=True, tag=44):
    """This session is over; every lock held in it is void."""

    epoch: Number
    session: Number
    reason: str


class Probe(Message, frozen=True, tag=45):
    """Another process says hello as this session's replica. Who answers with Here keeps its place."""

    epoch: Number
    session: Number
    request: Number


FromLockd = (
    Welcome | Pong | Grant | Refused | Released | InSync | View | Learn | Admitted | Settle | Stale | Ended | Probe
)

# Replica to replica


class Push(Message, frozen=True, tag=65):
    """The sync message: take in `records` behind the version `previous`, under `token`.

    Without records it settles: `previous` is the holder's head, and `clock` the holder's clock.
    With records each carries its own clock, and `clock` is empty. `group` keeps other groups' frames out.
    """

    group: str
    file: str
    token: Number
    previous: Version
    records: tuple[Record, ...]
    clock: Clock


class Ack(Message, frozen=True, tag=97):
    """The replica holds the version `seq` of the push under `token`, durably."""

    file: str
    token: Number
    seq: Number


class Fenced(Message, frozen=True, tag=98):
    """The push was refused: the replica has promised `promised`, a larger token."""

    file: str
    token: Number
    promised: Number


class Fetch(Message, frozen=True, tag=66):
    """Ask for what comes after the newest of `points` that you hold too; points are (seq, hash), newest first.

    Version 0 is always common and need not be named.
    """

    group: str
    file: str
    request: Number
    points: tuple[tuple[Number, Hash], ...]


class Fetched(Message, frozen=True, tag=99):
    """Answer to Fetch, to be taken in like a push of the token `follows`; `more` tells to fetch again."""

    file: str
    request: Number
    follows: Number
    previous: Version
    records: tuple[Record, ...]
    more: bool


ToReplica = Push | Fetch
FromReplica = Ack | Fenced | Fetched
