"""The evidence of a run, made by hand: a group as a plain model, and changes of what it leaves."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from msgspec import structs

from client.effects import Persist
from client.journal import Journal as ReplicaJournal
from common.clock import Clock, merge, tick
from common.eventlog import HEADER, Event, format_event, format_pairs
from common.grantlog import GrantEvent, GrantLine, format_grant
from common.records import EMPTY, Record, Version, splice
from common.tokens import format_token, make_token
from common.wire import version_after
from scripts import checker
from scripts.verdict.evidence import (
    Asked,
    Client,
    EventLine,
    Evidence,
    Grants,
    Journal,
    LockLine,
    Snapshots,
    Told,
)
from scripts.verdict.finding import Finding
from scripts.verdict.properties import judge

Verb = Literal["read", "write", "update", "restore"]
NAMES = ("client-0", "client-1", "client-2")
NOTES, PLANS = "notes.txt", "deep/plans.txt"


@dataclass
class Replica:
    """A client of the model."""

    name: str
    clock: Clock = field(default_factory=dict)
    lines: list[EventLine] = field(default_factory=list)
    records: dict[str, list[Record]] = field(default_factory=dict)
    hashes: dict[str, list[bytes]] = field(default_factory=dict)
    ops: int = 0

    def version(self, file: str) -> Version:
        if not self.records.get(file):
            return EMPTY
        newest = self.records[file][-1]
        return Version(newest.seq, newest.token, self.hashes[file][-1])


@dataclass
class Doing:
    """An op between its grant and its release."""

    replica: Replica
    verb: Verb
    file: str
    token: int
    record: Record | None
    waiting: list[Replica]


class Group:
    """lockd and its clients as a plain model: every rule of the op path, nothing that could fail."""

    def __init__(self, *names: str) -> None:
        self.replicas = [Replica(name) for name in names or NAMES]
        self.locks: list[LockLine] = []
        self.held: dict[str, list[Doing]] = {}
        self.writers: dict[str, Clock] = {}
        self.readers: dict[str, Clock] = {}
        self.time_us = 1_800_000_000_000_000
        self.counter = 0
        self.done = 0

    def begin(self, index: int, verb: Verb, file: str = NOTES, text: str = "", of: int = 0) -> Doing:
        """Grant the lock, tick, log and apply at the author."""
        replica = self.replicas[index]
        assert not self.held.get(file) or all(d.verb == verb == "read" for d in self.held[file])
        self.counter += 1
        self.done += 1
        replica.ops += 1
        of = of if verb == "restore" else 0
        doing = Doing(replica, verb, file, make_token(1, self.counter), None, [])
        self.held.setdefault(file, []).append(doing)
        self._lock_line("grant", doing)
        clock = merge(replica.clock, self.writers.get(file, {}))
        if verb != "read":
            clock = merge(clock, self.readers.get(file, {}))
        clock = tick(clock, replica.name)
        head, op_id = replica.version(file), f"{replica.name}:{replica.ops}"
        replica.records.setdefault(file, [])
        replica.hashes.setdefault(file, [])
        if verb == "read":
            self._log(replica, clock, verb, file, op_id, head, token=doing.token)
            return doing
        content = replay(replica.records[file])
        if verb == "restore":
            offset, inserted = 0, replay(replica.records[file][:of])
        else:
            offset, inserted = splice(verb, text, len(content))
        doing.record = Record(head.seq + 1, doing.token, op_id, verb, offset, inserted, clock, self.time_us + 1, of)
        more = (("of", str(of)),) if verb == "restore" else (("text", text),)
        version = version_after(head, doing.record)
        snapshot = ("snapshot", f"{file}@{version.seq}")
        self._log(replica, clock, verb, file, op_id, version, snapshot, *more, token=doing.token)
        self._keep(replica, file, doing.record)
        doing.waiting = [other for other in self.replicas if other is not replica]
        return doing

    def apply(self, doing: Doing, replica: Replica) -> None:
        """Have one replica take the op in."""
        assert doing.record is not None
        doing.waiting.remove(replica)
        self._keep(replica, doing.file, doing.record)
        clock = tick(merge(replica.clock, doing.record.clock), replica.name)
        version, origin = replica.version(doing.file), ("from", doing.replica.name)
        self._log(replica, clock, "apply", doing.file, doing.record.id, version, origin, token=doing.token)

    def end(self, doing: Doing) -> None:
        """Have the rest take the op in, and release the lock."""
        for replica in list(doing.waiting):
            self.apply(doing, replica)
        self.held[doing.file].remove(doing)
        self._lock_line("release", doing)
        if doing.verb == "read":
            self.readers[doing.file] = merge(self.readers.get(doing.file, {}), doing.replica.clock)
        else:
            self.writers[doing.file] = merge(self.writers.get(doing.file, {}), doing.replica.clock)
            self.readers[doing.file] = {}

    def do(self, index: int, verb: Verb, file: str = NOTES, text: str = "", of: int = 0) -> None:
        """Do a whole op."""
        self.end(self.begin(index, verb, file, text, of))

    def evidence(self, *, by_hand: bool = False) -> Evidence:
        """Return what the run has left so far."""
        files = tuple(sorted({file for replica in self.replicas for file in replica.records}))
        asked = None if by_hand else Asked(len(self.replicas), self.done, files)
        return Evidence(
            [self._client(replica) for replica in self.replicas],
            Grants("lockd/grants.log", self.locks),
            asked,
        )

    def copy(self, index: int, name: str) -> Replica:
        """Copy a replica's directory, and have a client of another name go on with the copy beside it."""
        origin = self.replicas[index]
        records = {file: list(records) for file, records in origin.records.items()}
        hashes = {file: list(hashes) for file, hashes in origin.hashes.items()}
        copy = Replica(name, origin.clock, list(origin.lines), records, hashes, origin.ops)
        self.replicas.append(copy)
        return copy

    def told(self) -> list[Told]:
        """Return what the clients were told of their ops, all of them ok, in the order in which they ended."""
        lines = [line.event for replica in self.replicas for line in replica.lines]
        ops = {event.values["token"]: event for event in lines if event.verb not in ("apply", "undo")}
        told: list[Told] = []
        for entry in self.locks:
            lock = entry.line
            if lock.event != "release":
                continue
            event = ops[format_token(lock.token)]
            values = event.values
            told.append(
                Told(
                    len(told) + 1,
                    lock.client,
                    values["id"],
                    event.verb,
                    lock.lock,
                    "ok",
                    2 * event.time_us - 1,
                    2 * lock.time_us,
                    int(values["seq"]),
                    values["hash"],
                )
            )
        return told

    def _client(self, replica: Replica) -> Client:
        return Client(
            replica.name,
            replica.lines,
            {file: Journal(records, replica.hashes[file]) for file, records in replica.records.items()},
            {file: replay(records) for file, records in replica.records.items()},
            Snapshots(
                {file: len(records) for file, records in replica.records.items()},
                lambda file, seq: replay(replica.records[file][:seq]),
            ),
            replica.name,
        )

    def _keep(self, replica: Replica, file: str, record: Record) -> None:
        version = version_after(replica.version(file), record)
        replica.records.setdefault(file, []).append(record)
        replica.hashes.setdefault(file, []).append(version.hash)

    def _log(
        self,
        replica: Replica,
        clock: Clock,
        verb: str,
        file: str,
        op_id: str,
        version: Version,
        *more: tuple[str, str],
        token: int,
    ) -> None:
        self.time_us += 1
        replica.clock = clock
        values = {"file": file, "id": op_id, "token": format_token(token), "seq": str(version.seq)}
        values |= {"hash": version.hash.hex()[:12], **dict(more)}
        event = Event(self.time_us, replica.name, clock, verb, values)
        replica.lines.append(EventLine(len(replica.lines) + 3, event))

    def _lock_line(self, event: GrantEvent, doing: Doing) -> None:
        mode = "shared" if doing.verb == "read" else "exclusive"
        line = GrantLine(self.time_us, event, doing.file, mode, doing.token, doing.replica.name)
        self.locks.append(LockLine(len(self.locks) + 1, line))


def replay(records: list[Record]) -> bytes:
    content = b""
    for record in records:
        content = content[: record.offset] + record.inserted
    return content


def good_group() -> Group:
    """Three clients, two files, every verb, two reads at a time, and ops on two files at a time.

    client-0's log:  3 write notes 1 · 4 apply notes 2 · 5 read notes 2 · 6 apply notes 3 · 7 update notes 4 ·
    8 apply plans 1 · 9 apply notes 5 · 10 write plans 2; the others' follow from that.
    """
    group = Group()
    group.do(0, "write", text="one")
    group.do(1, "write", text='two "and" a half')
    first, second = group.begin(0, "read"), group.begin(2, "read")
    group.end(second)
    group.end(first)
    group.do(2, "update", text="three")
    note, plan = group.begin(0, "update", text="four"), group.begin(1, "write", PLANS, "five")
    group.end(plan)
    group.end(note)
    group.do(1, "restore", of=2)
    group.do(0, "write", PLANS, "six")
    group.do(2, "read", PLANS)
    return group


def found(evidence: Evidence) -> dict[str, Finding]:
    return {finding.name: finding for finding in judge(evidence)}


def wrong(evidence: Evidence) -> dict[str, str]:
    return {finding.name: finding.detail for finding in judge(evidence) if not finding.ok}


def change_line(evidence: Evidence, client: int, number: int, change: Callable[[Event], Event] | None) -> EventLine:
    """Change a line of a client's log, or cut it out."""
    lines = evidence.clients[client].lines
    assert isinstance(lines, list)
    (index,) = [index for index, line in enumerate(lines) if line.number == number]
    line: EventLine = lines[index]
    if change is None:
        del lines[index]
    else:
        lines[index] = replace(line, event=change(line.event))
    return line


def with_values(**values: str) -> Callable[[Event], Event]:
    return lambda event: replace(event, values={**event.values, **values})


def change_client(evidence: Evidence, index: int, changed: Client) -> Evidence:
    clients = list(evidence.clients)
    clients[index] = changed
    return replace(evidence, clients=clients)


def change_record(evidence: Evidence, client: int, file: str, seq: int, **changes: object) -> None:
    records = evidence.clients[client].journals[file].records
    assert isinstance(records, list)
    records[seq - 1] = structs.replace(records[seq - 1], **changes)


def lock_lines(evidence: Evidence) -> list[LockLine]:
    assert evidence.grants is not None and isinstance(evidence.grants.lines, list)
    return evidence.grants.lines


def behind(evidence: Evidence, index: int) -> Evidence:
    """Take the newest op on PLANS away from a client, with its line."""
    client = evidence.clients[index]
    journal = client.journals[PLANS]
    assert isinstance(journal.records, list) and isinstance(journal.hashes, list)
    journal.records.pop()
    journal.hashes.pop()
    lines = [line for line in client.lines if line.event.values["file"] != PLANS or line.event.values["seq"] == "1"]
    assert client.snapshots is not None
    snapshots = replace(client.snapshots, newest={**client.snapshots.newest, PLANS: 1})
    files = {**client.files, PLANS: replay(journal.records)}
    return change_client(evidence, index, replace(client, lines=lines, files=files, snapshots=snapshots))


def show_wrongly(client: Client, wrong_seq: int) -> Client:
    shown = client.snapshots
    assert shown is not None

    def content(file: str, seq: int) -> bytes:
        return shown.content(file, seq) if seq != wrong_seq else b"else\n"

    return replace(client, snapshots=replace(shown, content=content))


def with_clock(**changes: int) -> Callable[[Event], Event]:
    """Set components of a clock; `client_0` stands for client-0, and 0 takes it out."""

    def change(event: Event) -> Event:
        clock = {**event.clock, **{host.replace("_", "-"): count for host, count in changes.items()}}
        return replace(event, clock={host: count for host, count in clock.items() if count})

    return change


def lines_of(evidence: Evidence, client: int) -> list[EventLine]:
    lines = evidence.clients[client].lines
    assert isinstance(lines, list)
    return lines


def write_run(group: Group, directory: Path, *, by_hand: bool = False) -> Path:
    """Leave a run on disk as lockd, the clients and the launcher would."""
    evidence = group.evidence(by_hand=by_hand)
    for replica in group.replicas:
        data = directory / replica.name
        write_journal(replica, data).close()
        events = [line.event for line in replica.lines]
        text = "".join(
            [
                format_event(event.time_us, event.host, event.clock, event.verb, format_pairs(event.values.items()))
                + "\n"
                for event in events
            ]
        )
        (data / "events.log").write_text(HEADER + text, encoding="utf-8")
    (directory / "lockd").mkdir()
    text = "".join([format_grant(entry.line) + "\n" for entry in group.locks])
    (directory / "lockd" / "grants.log").write_text(text, encoding="utf-8")
    if evidence.asked is not None:
        run = {
            "version": 1,
            "seed": None,
            "delay": "0.0..0.2",
            "durability": "disk",
            **asdict(evidence.asked),
        }
        (directory / "run.json").write_text(json.dumps(run), encoding="utf-8")
        lines = [asdict(told) for told in group.told()]
        text = "".join([json.dumps(line) + "\n" for line in lines])
        (directory / "outcomes.jsonl").write_text(text, encoding="utf-8")
    return directory


def write_journal(replica: Replica, data: Path) -> ReplicaJournal:
    """Make the client's journal and files with the product's own code; it is still open."""
    journal, _ = ReplicaJournal.open(data, "memory")
    journal.set_meta({"host": replica.name})
    for ticket, (file, records) in enumerate(replica.records.items()):
        token = records[-1].token if records else 0
        journal.write(Persist(ticket, file, 0, tuple(records), tuple(replica.hashes[file]), token, token))
    return journal


def wrong_on_disk(*directories: Path) -> dict[str, str]:
    return {finding.name: finding.detail for finding in checker.check(directories) if not finding.ok}
