"""What the client's core asks its driver to do, and what the driver tells it back.

Effects are done in their order; what an effect needs (a log line, a durable write) stands before what it
causes. A Persist is always the last of its list: its outcome comes back as Persisted or PersistFailed,
and only then does the core act on it.
"""

from typing import Literal, Protocol

from common.clock import Clock
from common.messages import FromLockd, FromReplica, Head, Member, ToLockd, ToReplica
from common.records import Record, Version
from common.values import Value

OpVerb = Literal["read", "write", "update", "restore"]
Outcome = Literal["ok", "failed", "unknown"]


class FileState(Value, frozen=True):
    """What a replica has durably for one file: its head and length in bytes, and its two tokens."""

    head: Head
    length: int
    promised: int


class History(Protocol):
    """What the core may read of its replica, at once and without changing anything."""

    def version_at(self, file: str, seq: int) -> Version | None:
        """Return the version `seq` (0 is EMPTY), or None where there is none."""

    def record_at(self, file: str, seq: int) -> Record:
        """Return the op that made version `seq`, from 1 to the head."""

    def records_after(self, file: str, seq: int, bytes_max: int) -> tuple[tuple[Record, ...], bool]:
        """Return the ops behind version `seq`, and whether more follow; ends with the one that passes bytes_max."""

    def change_to(self, file: str, seq: int) -> tuple[int, bytes]:
        """Return the (offset, inserted) that turns the head's content into version `seq`'s."""


# Effects


class SendLockd(Value, frozen=True):
    """Send to lockd."""

    message: ToLockd


class SendReplica(Value, frozen=True):
    """Send to a replica of the view."""

    replica: str
    message: ToReplica


class Answer(Value, frozen=True):
    """Send back to where a message of a replica came from; `route` is the driver's."""

    route: bytes
    message: FromReplica


class Connect(Value, frozen=True):
    """Open the connection to a replica, anew if its endpoint or incarnation changed."""

    member: Member


class Disconnect(Value, frozen=True):
    """Close the connection to a replica."""

    replica: str


class Log(Value, frozen=True):
    """Append one line to the event log, for the Persist or Flush that ends this list."""

    time_us: int
    host: str
    clock: Clock
    verb: str
    facts: str


class Persist(Value, frozen=True):
    """Make one change to a replica durable, all or nothing, then bring the file to it.

    Undo every version above `keep`, append `records` (their versions' hashes beside them), and set both
    tokens. With `keep` the head's seq and no records only the tokens change. A file that is not there yet is
    created, empty. `ticket` comes back in Persisted or PersistFailed.
    """

    ticket: int
    file: str
    keep: int
    records: tuple[Record, ...]
    hashes: tuple[bytes, ...]
    promised: int
    follows: int


class Flush(Value, frozen=True):
    """Tell, as for a Persist, whether every line before this is in the event log. The last of its list."""

    ticket: int


class Begin(Value, frozen=True):
    """Tell whoever wants this op that it begins, under this id. Stands behind its Log, before its Persist or Flush.

    Where nobody wants it any more the op does not happen: as if its line could not be written.
    """

    op: int
    id: str


class ReadFile(Value, frozen=True):
    """Read the file now and keep its content for the Finished of the same op."""

    op: int
    file: str


class Remember(Value, frozen=True):
    """Keep durably, beside the journal, who this replica is in which group, and the newest epoch seen."""

    replica: str
    host: str
    group: str
    epoch: int
    epoch_id: str
    changes: int


class Reconnect(Value, frozen=True):
    """Connect with lockd anew: what is sent along this connection is not answered."""


class Finished(Value, frozen=True):
    """An op has ended; `op` is the number its Submit had. `reason` is for people, empty when ok."""

    op: int
    id: str
    outcome: Outcome
    version: Version
    reason: str


class Joined(Value, frozen=True):
    """A session is open and ops can be done."""


class JoinRefused(Value, frozen=True):
    """lockd refused the hello, definitely."""

    reason: str


class Note(Value, frozen=True):
    """Write one line to the diagnostics."""

    text: str


Effect = (
    SendLockd
    | SendReplica
    | Answer
    | Connect
    | Disconnect
    | Log
    | Persist
    | Flush
    | Begin
    | ReadFile
    | Remember
    | Reconnect
    | Finished
    | Joined
    | JoinRefused
    | Note
)

# Events


class Submit(Value, frozen=True):
    """Do an op. `text` for a write or update, `of` for a restore; it waits for the lock for `wait_ns` at most.

    `retry` are the ids of earlier tries that ended unknown: where one of them happened, nothing is done again.
    """

    op: int
    verb: OpVerb
    file: str
    text: str
    of: int
    wait_ns: int
    retry: tuple[str, ...] = ()


class FromDaemon(Value, frozen=True):
    """A message of lockd came in."""

    message: FromLockd


class FromPeer(Value, frozen=True):
    """A message of another replica came in on our endpoint; answers go back along `route`."""

    route: bytes
    message: ToReplica


class PeerAnswer(Value, frozen=True):
    """A replica that we sent to has answered."""

    replica: str
    message: FromReplica


class Persisted(Value, frozen=True):
    """The Persist of this ticket is durable, and the file follows it."""

    ticket: int


class PersistFailed(Value, frozen=True):
    """The Persist or Flush of this ticket did not happen, in journal and file alike, nor are its lines in the log."""

    ticket: int
    reason: str


class LockdConnected(Value, frozen=True):
    """The connection with lockd is up, for the first time or again; what was sent before may be lost."""


class LockdDisconnected(Value, frozen=True):
    """The connection with lockd is down."""


class Leave(Value, frozen=True):
    """End the session in good order: ops in flight end first, as `failed` or `unknown`.

    `broken` says why where the process cannot go on: the journal has failed, so that nobody knows whether its last
    change happened.
    """

    broken: str = ""


class Timer(Value, frozen=True):
    """The deadline that the core named has come."""


Event = (
    Submit
    | FromDaemon
    | FromPeer
    | PeerAnswer
    | Persisted
    | PersistFailed
    | LockdConnected
    | LockdDisconnected
    | Leave
    | Timer
)
