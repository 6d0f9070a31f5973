"""What a run left behind, as plain data. load.py reads it from files; a simulation builds it in memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from common.eventlog import Event
from common.grantlog import GrantLine
from common.records import Record

PropertyName = Literal[
    "complete", "outcomes", "tokens", "hash chain", "replay", "snapshots", "clocks", "timestamps", "logs"
]


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something that could not be read, `where` it is, and the property that it spoils."""

    name: PropertyName
    where: str
    what: str


@dataclass(frozen=True, slots=True)
class EventLine:
    """A line of an event log that reads; `number` counts from 1, the header's two lines included."""

    number: int
    event: Event
    raw: str = ""


@dataclass(frozen=True, slots=True)
class LockLine:
    """A line of lockd's grants.log that reads; `number` counts from 1."""

    number: int
    line: GrantLine
    raw: str = ""


@dataclass(frozen=True, slots=True)
class Journal:
    """The ops on one file that a replica holds, in their order, and the hash of each op's version."""

    records: Sequence[Record]
    hashes: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Snapshots:
    """Versions as the product's own reader shows them.

    `newest` has each file's newest seq; `content(file, seq)` gives the bytes of any version from 0 to that,
    and raises ValueError, in words, where it cannot.
    """

    newest: Mapping[str, int]
    content: Callable[[str, int], bytes]


@dataclass(frozen=True, slots=True)
class Client:
    """One client's data directory. `name` stands for it in findings; `host` is what its journal remembers.

    `files` has what lies in files/, by its name from there. `refused` and `fenced` count the lines of client.log
    that tell of others' late pushes refused, and of own ones that others refused.
    """

    name: str
    lines: Sequence[EventLine]
    journals: Mapping[str, Journal]
    files: Mapping[str, bytes]
    snapshots: Snapshots | None
    host: str = ""
    refused: int = 0
    fenced: int = 0


@dataclass(frozen=True, slots=True)
class Told:
    """What a client was told of one op, by line `number` of outcomes.jsonl.

    Times are microseconds of one clock; `ended_us` is None, and `id` "", where the client was gone before the end.
    `beside` is what the run did beside what it was asked for.
    """

    number: int
    client: str
    id: str
    verb: str
    file: str
    outcome: Literal["ok", "failed", "unknown"]
    began_us: int
    ended_us: int | None
    seq: int = 0
    hash: str = ""
    beside: bool = False


@dataclass(frozen=True, slots=True)
class Grants:
    """lockd's grants.log; `name` stands for it in findings."""

    name: str
    lines: Sequence[LockLine]


@dataclass(frozen=True, slots=True)
class Asked:
    """What run.json says was asked for, and how the run ended. `left` are clients that died or left early.

    `faults` are the kinds of faults that there were on purpose; then `ops` may be 0: as many as the time allowed.
    """

    clients: int
    ops: int
    files: tuple[str, ...]
    finished: bool = True
    stopped: bool = False
    left: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of a run.

    Without `asked` it was made by hand; without `grants` no lockd is known; without `told`, what was told of each op.
    """

    clients: Sequence[Client]
    grants: Grants | None = None
    asked: Asked | None = None
    flaws: Sequence[Flaw] = field(default=())
    told: Sequence[Told] | None = None
