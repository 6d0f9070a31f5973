"""The messages, one frozen dataclass each and one union per direction. PROTOCOL.md tells their story.

Every message but Hello and Stale names the epoch of the lockd it was meant for or comes from, or, between
replicas, a token, which holds one. A `request` is a number that its sender does not use twice in a session.
"""

from collections.abc import Mapping
from typing import Literal

from common.clock import Clock
from common.records import Record, Version
from common.values import dataclass

Kind = Literal["file", "plain"]
Mode = Literal["exclusive", "shared"]


@dataclass(frozen=True, slots=True)
class Head:
    """The newest version of one file at a replica, the token its journal follows, and the newest op's clock."""

    version: Version
    follows: int
    clock: Clock


@dataclass(frozen=True, slots=True)
class ReplicaHello:
    """The replica's part of a hello. `start_count` counts the starts of this data directory, from 1."""

    replica: str
    start_count: int
    endpoint: str
    heads: Mapping[str, Head]
    durability: Literal["disk", "memory"]


@dataclass(frozen=True, slots=True)
class Member:
    """A live replica as others reach it: its replica id, host, endpoint and incarnation."""

    replica: str
    host: str
    endpoint: str
    incarnation: str


# Client to lockd


@dataclass(frozen=True, slots=True)
class Hello:
    """Open a session. `group`, `epoch` and `highest_token` are what the client has last seen; "" and 0 at first."""

    request: int
    name: str
    incarnation: str
    replica: ReplicaHello | None
    group: str
    epoch: int
    highest_token: int


@dataclass(frozen=True, slots=True)
class Goodbye:
    """End the session; it needs no answer. Session 0 ends whatever a Hello before it has opened, in any epoch."""

    epoch: int
    session: int


@dataclass(frozen=True, slots=True)
class Ping:
    """Renew the lease and ask for the time."""

    epoch: int
    session: int
    request: int


@dataclass(frozen=True, slots=True)
class Acquire:
    """Ask for a lock; answered by Grant or Refused. `wait_ms` bounds the wait in the queue; 0 is a try."""

    epoch: int
    session: int
    request: int
    lock: str
    kind: Kind
    mode: Mode
    wait_ms: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Leave the queue, or give back the grant that is under way, for the Acquire numbered `request`."""

    epoch: int
    session: int
    request: int


@dataclass(frozen=True, slots=True)
class Release:
    """Give a lock back; final once sent. Answered by Released if `confirm`.

    For a file: the version left, the clock left, whether anything was changed, and the replicas that
    acked the version. A lock without a file leaves EMPTY and nobody.
    """

    epoch: int
    session: int
    request: int
    lock: str
    token: int
    version: Version
    clock: Clock
    changed: bool
    acked: tuple[str, ...]
    confirm: bool


@dataclass(frozen=True, slots=True)
class Drop:
    """The holder asks to take silent replicas out of the file's in-sync set; answered by InSync."""

    epoch: int
    session: int
    request: int
    file: str
    token: int
    replicas: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """A learner tells how far it has come."""

    epoch: int
    session: int
    file: str
    version: Version
    follows: int


ToLockd = Hello | Goodbye | Ping | Acquire | Cancel | Release | Drop | Report

# lockd to client


@dataclass(frozen=True, slots=True)
class Welcome:
    """The session is open. `host` is the client's component in vector clocks, `view` the live replicas.

    `replica` is the replica id in force: another than the hello's where the data directory was a copy,
    "" without a replica. `time_us` is lockd's clock, in microseconds since 1970, as in every message.
    """

    epoch: int
    session: int
    request: int
    group: str
    ttl_ms: int
    host: str
    replica: str
    view: tuple[Member, ...]
    time_us: int


@dataclass(frozen=True, slots=True)
class Pong:
    """Answer to Ping."""

    epoch: int
    request: int
    time_us: int


@dataclass(frozen=True, slots=True)
class Grant:
    """The lock is held under `token`. The mode is exclusive, even where shared was asked, if `clean` is None.

    `clean` is the version that every in-sync replica holds; without one the holder settles first.
    `in_sync` and `learners` are replica ids. A lock without a file has EMPTY and nobody.
    """

    epoch: int
    request: int
    lock: str
    token: int
    mode: Mode
    clock: Clock
    clean: Version | None
    in_sync: tuple[str, ...]
    learners: tuple[str, ...]
    time_us: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A Hello or Acquire was refused, definitely; nothing happened. `reason` is one line for people."""

    epoch: int
    request: int
    reason: str


@dataclass(frozen=True, slots=True)
class Released:
    """Answer to Release: was the token still current when it came?"""

    epoch: int
    request: int
    current: bool


@dataclass(frozen=True, slots=True)
class InSync:
    """Answer to Drop: the set as it is now, durably; `current` tells whether the token still holds the lock."""

    epoch: int
    request: int
    current: bool
    in_sync: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class View:
    """All live replicas, at each change."""

    epoch: int
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Learn:
    """You are a learner of `file`: fetch it from one of `sources` (in-sync, live), then Report."""

    epoch: int
    file: str
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Admitted:
    """You are in the in-sync set of `file` now."""

    epoch: int
    file: str


@dataclass(frozen=True, slots=True)
class Settle:
    """`file` is unclean and somebody learns it: acquire it, settle and release."""

    epoch: int
    file: str


@dataclass(frozen=True, slots=True)
class Stale:
    """A message named another epoch; lockd did nothing. `epoch` is the one in force."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Ended:
    """This session is over; every lock held in it is void."""

    epoch: int
    session: int
    reason: str


FromLockd = Welcome | Pong | Grant | Refused | Released | InSync | View | Learn | Admitted | Settle | Stale | Ended

# Replica to replica


@dataclass(frozen=True, slots=True)
class Push:
    """The sync message: take in `records` behind the version `previous`, under `token`.

    Without records it settles: `previous` is the holder's head, and `clock` the holder's clock.
    With records each carries its own clock, and `clock` is empty. `group` keeps other groups' frames out.
    """

    group: str
    file: str
    token: int
    previous: Version
    records: tuple[Record, ...]
    clock: Clock


@dataclass(frozen=True, slots=True)
class Ack:
    """The replica holds the version `seq` of the push under `token`, durably."""

    file: str
    token: int
    seq: int


@dataclass(frozen=True, slots=True)
class Fenced:
    """The push was refused: the replica has promised `promised`, a larger token."""

    file: str
    token: int
    promised: int


@dataclass(frozen=True, slots=True)
class Fetch:
    """Ask for what comes after the newest of `points` that you hold too; points are (seq, hash), newest first.

    Version 0 is always common and need not be named.
    """

    group: str
    file: str
    request: int
    points: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class Fetched:
    """Answer to Fetch, to be taken in like a push of the token `follows`; `more` tells to fetch again."""

    file: str
    request: int
    follows: int
    previous: Version
    records: tuple[Record, ...]
    more: bool


ToReplica = Push | Fetch
FromReplica = Ack | Fenced | Fetched
