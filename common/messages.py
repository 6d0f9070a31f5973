"""The messages, one frozen struct each and one union per direction. PROTOCOL.md tells their story.

Every message but Hello and Stale names the epoch of the lockd it was meant for or comes from, or, between
replicas, a token, which holds one. A `request` is a number that its sender does not use twice in a session.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta

from common.clock import Clock
from common.histogram import BUCKETS
from common.records import Record, Version
from common.values import Hash, Moment, Number, Part

Kind = Literal["file", "plain"]
Mode = Literal["exclusive", "shared"]
Cause = Literal["request", "wait", "deadlock", "lost"]
"""Why something is refused: for what it asks, or who asks; no grant in time; the wait would never end; the lock that it
builds on is lost."""


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
    """A lock without a file that a client holds, and has not begun to give back; `owner`, `limit` and `sticky` as in
    its Acquire and Grant."""

    lock: str
    token: Number
    mode: Mode
    owner: Number
    limit: Number
    sticky: bool


# Parts of an Inspection

ReplicaStanding = Literal["in sync", "learner", "absent"]
"""A replica's part in a file: a live member of its in-sync set, a live one outside of that, or an absent member."""
Reason = Literal["grace", "disconnected", "absent", "learning", "learner", "delay", "holder", "turn"]
"""Why a waiter has to wait: lockd has started anew and waits for others; its connection is down; the in-sync set is
absent; it is not in the in-sync set; it comes next, when a learner before it has caught up, when the lock delay is
over, or when the holders let go; or others come before it."""


class MemberState(Part, frozen=True):
    """A session, or a replica without one (`session` is 0). Its `replica` is "" for a client without one.

    `seen_ms` ago it was heard of last, None where this lockd never did. Its lease has `lease_ms` left. `in_sync` and
    `learning` count the files with which it is in sync, or not; of the latter it is `behind` versions at the most, as
    far as it has told (None: of one it has not). For the newest versions of `needed`, and of `needed_left_out`
    more files, it has to come back.
    """

    name: str
    host: str
    replica: str
    session: Number
    start_count: Number
    connected: bool
    seen_ms: Number | None
    lease_ms: Number
    in_sync: Number
    learning: Number
    behind: Number | None
    needed: tuple[str, ...]
    needed_left_out: Number


class HolderState(Part, frozen=True):
    """A hold. `seen_ms` and `lease_ms` are of its session, as in a MemberState.

    One that is `sticky` may be kept unused until somebody else wants the lock.
    """

    host: str
    token: Number
    mode: Mode
    held_us: Number
    connected: bool
    seen_ms: Number
    lease_ms: Number
    sticky: bool


class WaiterState(Part, frozen=True):
    """A place in a queue, and why it has to wait."""

    host: str
    mode: Mode
    waited_us: Number
    why: Reason


class ReplicaState(Part, frozen=True):
    """A replica of a file, and how many acknowledged versions it lacks, as far as it has told; None: unknown.

    `seen_ms` ago it was heard of last, None of one that is absent.
    """

    host: str
    standing: ReplicaStanding
    behind: Number | None
    seen_ms: Number | None


class LockState(Part, frozen=True):
    """A lock. A file is `clean` at its `version`; of an unclean one that is the newest known to be acknowledged.

    `replicas` has the in-sync set, and the live replicas outside of it. `limit` is a semaphore's, else 0. Of the last
    holders some were lost, and may not have heard of it: `delay_ms` from now they have.
    """

    lock: str
    kind: Kind
    limit: Number
    delay_ms: Number
    clean: bool
    version: Version | None
    holders: tuple[HolderState, ...]
    holders_left_out: Number
    queue: tuple[WaiterState, ...]
    queue_left_out: Number
    replicas: tuple[ReplicaState, ...]
    replicas_left_out: Number


class Count(Part, frozen=True):
    """How often something has happened since lockd's start, and of which kind, "" where there is one."""

    what: str
    kind: str
    count: Number


class Spread(Part, frozen=True):
    """How long something took since lockd's start: the counts of a common.histogram without the zeros at its end."""

    what: str
    counts: Annotated[tuple[Number, ...], Meta(max_length=BUCKETS)]
    sum_us: Number


class Fault(Part, frozen=True):
    """Something out of the ordinary; the text may hold any name."""

    time_us: Moment
    text: str


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
    """Ask for a lock; answered by Grant or Refused. `wait_ms` bounds the wait in the queue; 0 is a try.

    `owner` is who in the client asks, a thread or a task, which waits for one lock at a time: whom a deadlock is found
    by; 0 tells nothing of that. With a `limit` a lock without a file is a semaphore, taken shared by so many at once.
    `converts` is the token of a hold to be turned into one of this mode, else 0. A `sticky` hold may be kept unused.
    """

    epoch: Number
    session: Number
    request: Number
    lock: str
    kind: Kind
    mode: Mode
    wait_ms: Number
    owner: Number
    limit: Number
    converts: Number
    sticky: bool


class Cancel(Message, frozen=True, tag=5):
    """Leave the queue, or give back the grant that is under way, for the Acquire numbered `request`.

    One that converts a hold is answered all the same: by Refused, or by the Grant that is under way, which stands.
    So is one that has not come, by Refused.
    """

    epoch: Number
    session: Number
    request: Number


class Release(Message, frozen=True, tag=6):
    """Give a lock back; final once sent. Answered by Released if `confirm`.

    For a file: the version left, the clock left, whether anything was changed, and the replicas that
    acked the version. A lock without a file leaves EMPTY and nobody. With `keep` an op is done under a sticky lock,
    which stays held.
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
    keep: bool


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


class Inspect(Message, frozen=True, tag=12):
    """Ask what lockd knows of the group, or of one `lock` (else ""); answered by Inspection.

    It changes nothing, so it needs no session and names no epoch.
    """

    request: Number
    lock: str


class InUse(Message, frozen=True, tag=13):
    """Answer to Recall: `owner` uses the lock now, and gives it back afterwards."""

    epoch: Number
    session: Number
    token: Number
    owner: Number


class Break(Message, frozen=True, tag=14):
    """An operator takes the lock away from who holds it under `token`; answered by Broken or Refused."""

    epoch: Number
    session: Number
    request: Number
    lock: str
    token: Number


class CallBack(Message, frozen=True, tag=15):
    """An operator asks the holders of a lock to give it back unless they use it; answered by CalledBack or Refused."""

    epoch: Number
    session: Number
    request: Number
    lock: str


ToLockd = (
    Hello
    | Goodbye
    | Ping
    | Acquire
    | Cancel
    | Release
    | Drop
    | Report
    | Resume
    | GiveUp
    | Here
    | Inspect
    | InUse
    | Break
    | CallBack
)

# lockd to client


class Welcome(Message, frozen=True, tag=33):
    """The session is open. `host` is the client's component in vector clocks, `view` the live replicas.

    `replica` is the replica id in force: another than the hello's where the data directory was a copy,
    "" without a replica. `time_us` is lockd's clock, in microseconds since 1970, as in every message. `epoch_id` was
    drawn at random when the epoch began; `changes` counts the changes of in-sync sets since then.
    Whether `held` of the hello are kept is still to be said, where they are `claimed`; else all of them are lost.
    For `lock_delay_ms` a lock whose holder's session was lost is granted to nobody.
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
    lock_delay_ms: Number
    claimed: bool


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
    If `sticky`, the holder may keep it when it is done, until a Recall.
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
    sticky: bool


class Refused(Message, frozen=True, tag=36):
    """A Hello, an Acquire or an operator's request was refused, definitely; nothing happened.

    `reason` is one line for people.
    """

    epoch: Number
    request: Number
    reason: str
    cause: Cause


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


class Recall(Message, frozen=True, tag=47):
    """Somebody wants a lock that you may keep: give it back now, or say InUse, and give it back afterwards."""

    epoch: Number
    lock: str
    token: Number


class Lost(Message, frozen=True, tag=48):
    """The lock that you held under `token` is yours no more; your session goes on."""

    epoch: Number
    lock: str
    token: Number
    reason: str


class Broken(Message, frozen=True, tag=49):
    """Answer to Break: `host` has lost the lock. Unless it says that it has stopped, nobody gets it for `delay_ms`."""

    epoch: Number
    request: Number
    host: str
    mode: Mode
    held_us: Number
    delay_ms: Number


class CalledBack(Message, frozen=True, tag=50):
    """Answer to CallBack: which `hosts` were asked to give the lock back, and which `others` hold it for use."""

    epoch: Number
    request: Number
    hosts: tuple[str, ...]
    others: tuple[str, ...]


class Inspection(Message, frozen=True, tag=46):
    """Answer to Inspect: what lockd knows at `time_us`, with the limits of common.limits.

    lockd is up since `since_us`. `replicas` and `others` count the sessions with and without a replica; of these only
    who holds a lock or waits for one is among the `members`. `files` counts those that lockd knows, `unclean` those
    that the next holder has to settle, `lost` those whose in-sync replicas are all absent. `locks` are those in use
    first. After its start lockd waits `grace_ms` at most for `expected`, and grants nothing.
    """

    epoch: Number
    request: Number
    time_us: Moment
    since_us: Moment
    group: str
    ttl_ms: Number
    grace_ms: Number
    expected: tuple[str, ...]
    replicas: Number
    others: Number
    files: Number
    unclean: Number
    lost: Number
    members: tuple[MemberState, ...]
    members_left_out: Number
    locks: tuple[LockState, ...]
    locks_left_out: Number
    counts: tuple[Count, ...]
    spreads: tuple[Spread, ...]
    faults: tuple[Fault, ...]


FromLockd = (
    Welcome
    | Pong
    | Grant
    | Refused
    | Released
    | InSync
    | View
    | Learn
    | Admitted
    | Settle
    | Stale
    | Ended
    | Probe
    | Recall
    | Lost
    | Broken
    | CalledBack
    | Inspection
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
