"""The verdict: a good run passes every property, and each damage is caught by its property, at its place."""

import json
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from client.effects import Persist
from client.journal import Journal as ReplicaJournal
from client.journal_format import OP_HEAD_BYTES, read_op
from common.clock import Clock, concurrent, merge, tick
from common.eventlog import HEADER, Event, format_event, format_pairs
from common.grantlog import GrantEvent, GrantLine, format_grant
from common.records import EMPTY, Record, Version, splice
from common.tokens import format_token, make_token, parse_token
from common.wire import version_after
from scripts import checker
from scripts.verdict import history
from scripts.verdict.causality import concurrent_pairs
from scripts.verdict.evidence import (
    Asked,
    Client,
    EventLine,
    Evidence,
    Flaw,
    Grants,
    Journal,
    LockLine,
    Snapshots,
    Told,
)
from scripts.verdict.facts import gather
from scripts.verdict.finding import Finding
from scripts.verdict.load import NoRun, open_run
from scripts.verdict.properties import PROPERTIES, judge

Verb = Literal["read", "write", "update", "restore"]
NAMES = ("client-0", "client-1", "client-2")
NOTES, PLANS = "notes.txt", "deep/plans.txt"


# A group of clients, by hand


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


# Good runs


def test_a_good_run_passes_every_property() -> None:
    group = good_group()
    findings = judge(replace(group.evidence(), told=group.told()))
    assert [finding.name for finding in findings if finding.ok] == list(PROPERTIES), findings
    assert found(good_group().evidence())["complete"].detail == "10 of 10 ops by 3 clients, each once"
    assert "1 of 21 pairs of ops on different files" in found(good_group().evidence())["clocks"].detail


def test_a_good_run_by_hand_passes_and_states_its_ops() -> None:
    evidence = replace(good_group().evidence(by_hand=True), grants=None)
    assert wrong(evidence) == {}
    asked = good_group().evidence().asked
    assert wrong(replace(evidence, asked=asked)) == {"tokens": "lockd/grants.log: it is missing"}
    assert found(evidence)["complete"].detail == "10 ops by 3 clients, each once"
    assert "no grants.log" in found(evidence)["tokens"].detail


def test_a_run_without_an_op_passes() -> None:
    assert wrong(Group().evidence(by_hand=True)) == {}


def test_reads_before_the_first_change_pass() -> None:
    group = Group()
    group.do(0, "read")
    group.do(1, "write", text="one")
    group.do(2, "read")
    assert wrong(group.evidence()) == {}


@st.composite
def groups(draw: st.DrawFn) -> Group:
    """Draw a run: ops of idle clients on files whose locks are free, their applies in any order."""
    group = Group(*[f"client-{index}" for index in range(draw(st.integers(1, 4)))])
    doing: list[Doing] = []
    for _ in range(draw(st.integers(0, 40))):
        goes_on: bool = draw(st.booleans())
        if doing and goes_on:
            op = draw(st.sampled_from(doing))
            if op.waiting:
                group.apply(op, draw(st.sampled_from(op.waiting)))
            else:
                doing.remove(op)
                group.end(op)
            continue
        index = draw(st.integers(0, len(group.replicas) - 1))
        file = draw(st.sampled_from(["a", "b", "c"]))
        verb: Verb = draw(st.sampled_from(["read", "write", "update", "restore"]))
        if any(op.replica is group.replicas[index] for op in doing):
            continue
        if any(op.file == file and (op.verb, verb) != ("read", "read") for op in doing):
            continue
        seq = group.replicas[index].version(file).seq
        doing.append(group.begin(index, verb, file, draw(st.text("xyz é", max_size=5)), seq // 2))
    for op in doing:
        group.end(op)
    return group


@settings(max_examples=150, deadline=None)
@given(groups())
def test_any_good_run_passes(group: Group) -> None:
    assert wrong(replace(group.evidence(), told=group.told())) == {}


@settings(max_examples=50, deadline=None)
@given(groups())
def test_concurrent_pairs_are_counted_as_by_comparing_all(group: Group) -> None:
    ops = gather(group.evidence()).ops
    pairs = [(one, two) for i, one in enumerate(ops) for two in ops[:i] if one.file != two.file]
    expected = sum(concurrent(one.clock, two.clock) for one, two in pairs)
    assert concurrent_pairs(ops) == (expected, len(pairs))
    for i, one in enumerate(ops):
        for two in ops[:i]:
            if one.file == two.file and (one.verb, two.verb) != ("read", "read"):
                assert not concurrent(one.clock, two.clock)


# 1. complete


def test_a_missing_op_is_caught() -> None:
    evidence = good_group().evidence()
    assert evidence.asked is not None
    more = replace(evidence, asked=replace(evidence.asked, ops=11))
    assert wrong(more) == {"complete": "run.json: only 10 of 11 ops were done (client-0 4, client-1 3, client-2 3)"}
    fewer = replace(evidence, asked=replace(evidence.asked, ops=8))
    assert wrong(fewer)["complete"].startswith("run.json: 10 of 8 ops were done")


def test_an_op_done_twice_is_caught() -> None:
    evidence = good_group().evidence()
    change_line(evidence, 0, 5, with_values(id="client-0:1"))
    assert wrong(evidence) == {
        "complete": "client-0/events.log:5: the op client-0:1 is done a second time, after client-0/events.log:3"
    }


def test_anothers_op_is_caught() -> None:
    evidence = good_group().evidence()
    change_line(evidence, 0, 5, with_values(id="client-9:1"))
    assert wrong(evidence)["complete"].startswith("client-0/events.log:5: client-0 did the op client-9:1")


def test_an_op_on_another_file_is_caught() -> None:
    evidence = good_group().evidence()
    assert evidence.asked is not None
    evidence = replace(evidence, asked=replace(evidence.asked, files=(NOTES,)))
    assert list(wrong(evidence)) == ["complete"]
    assert "deep/plans.txt, which run.json does not name" in wrong(evidence)["complete"]


def test_a_client_that_died_is_reported() -> None:
    evidence = good_group().evidence()
    assert evidence.asked is not None
    died = replace(evidence, asked=replace(evidence.asked, ops=12, left=("client-2",)))
    assert wrong(died) == {"complete": "run.json: client-2 died or left early; 10 of 12 ops were done"}


def test_a_run_that_the_user_stopped_may_be_short() -> None:
    evidence = good_group().evidence()
    assert evidence.asked is not None
    asked = replace(evidence.asked, ops=12, finished=False, stopped=True)
    assert wrong(replace(evidence, asked=asked)) == {}
    assert found(replace(evidence, asked=asked))["complete"].detail == "10 of 12 ops; stopped by the user"


def test_a_run_that_never_finished_is_caught() -> None:
    evidence = good_group().evidence()
    assert evidence.asked is not None
    unfinished = replace(evidence, asked=replace(evidence.asked, finished=False))
    assert list(wrong(unfinished)) == ["complete"]
    short = replace(evidence, asked=replace(evidence.asked, clients=4))
    assert wrong(short) == {"complete": "run.json: 4 clients asked for, 3 left a data directory"}


# 2. tokens


def test_tokens_that_do_not_rise_are_caught() -> None:
    evidence = good_group().evidence()
    lines = lock_lines(evidence)
    first, third = lines[0], lines[2]
    lines[0] = replace(first, line=structs.replace(first.line, token=third.line.token))
    lines[2] = replace(third, line=structs.replace(third.line, token=first.line.token))
    assert wrong(evidence)["tokens"].startswith("lockd/grants.log:1: grants are missing or out of order before 1.2")
    lines[0], lines[2] = first, replace(third, line=structs.replace(third.line, token=first.line.token))
    assert wrong(evidence)["tokens"] == ("lockd/grants.log:3: the token 1.1 is not larger than 1.1 before it")


@pytest.mark.parametrize("mode", ["exclusive", "shared"])
def test_overlapping_holds_are_caught(mode: str) -> None:
    evidence = good_group().evidence()
    lines = lock_lines(evidence)
    if mode == "exclusive":
        del lines[1]  # the release of the first write
        expected = (
            "lockd/grants.log:3: notes.txt is granted to client-1, exclusive, "
            "while client-0 holds it under 1.1, exclusive"
        )
    else:
        (index,) = [i for i, entry in enumerate(lines) if entry.line.token == make_token(1, 3)][1:]
        del lines[index]  # the release of the first read
        expected = (
            f"lockd/grants.log:{index + 2}: notes.txt is granted to client-2, exclusive, "
            "while client-0 holds it under 1.3, shared"
        )
    assert wrong(evidence) == {"tokens": expected}


def test_a_release_of_what_is_not_held_is_caught() -> None:
    evidence = good_group().evidence()
    lines = lock_lines(evidence)
    again = replace(lines[1], number=3)
    lines.insert(2, again)
    assert wrong(evidence)["tokens"] == ("lockd/grants.log:3: release of notes.txt under 1.1, which was let go before")
    lines[2] = replace(again, line=structs.replace(again.line, event="expiry", token=make_token(1, 99)))
    assert wrong(evidence)["tokens"].endswith("expiry of notes.txt under 1.99, which was never granted")


def test_a_release_by_another_client_is_caught() -> None:
    evidence = good_group().evidence()
    lines = lock_lines(evidence)
    lines[1] = replace(lines[1], line=structs.replace(lines[1].line, client="client-2"))
    assert wrong(evidence)["tokens"].startswith("lockd/grants.log:2: release by client-2, exclusive, of what")


def test_a_hold_may_be_open_at_the_end_only_where_the_run_did_not_end_in_order() -> None:
    evidence = good_group().evidence()
    lock_lines(evidence).pop()
    assert "ends too early: " in wrong(evidence)["tokens"]
    assert wrong(replace(evidence, asked=None)) == {}


def test_an_op_under_anothers_token_is_caught() -> None:
    evidence = good_group().evidence()
    lines = lock_lines(evidence)
    for index in (0, 1):
        lines[index] = replace(lines[index], line=structs.replace(lines[index].line, client="client-2"))
    assert wrong(evidence) == {
        "tokens": "client-0/events.log:3: client-0 used the token 1.1 on notes.txt, "
        "but it was granted to client-2 on notes.txt"
    }


def test_a_change_under_a_shared_lock_is_caught() -> None:
    evidence = good_group().evidence()
    lines = lock_lines(evidence)
    for index in (0, 1):
        lines[index] = replace(lines[index], line=structs.replace(lines[index].line, mode="shared"))
    assert wrong(evidence) == {"tokens": "client-0/events.log:3: a write under 1.1, which was granted shared"}


def test_a_token_that_was_never_granted_is_caught() -> None:
    evidence = good_group().evidence()
    change_line(evidence, 0, 5, with_values(token="1.77"))
    assert wrong(evidence) == {"tokens": "client-0/events.log:5: the token 1.77 was never granted"}


def test_a_journal_whose_tokens_fall_is_caught() -> None:
    evidence = good_group().evidence()
    change_record(evidence, 1, NOTES, 1, token=make_token(1, 50))
    assert wrong(evidence)["tokens"] == "client-1/journal: notes.txt@2: the token 1.2 comes after 1.50"


def test_swapped_tokens_of_two_lines_are_caught() -> None:
    evidence = good_group().evidence()
    update = change_line(evidence, 0, 7, lambda event: event).event.values["token"]
    read = change_line(evidence, 0, 5, with_values(token=update)).event.values["token"]
    change_line(evidence, 0, 7, with_values(token=read))
    assert set(wrong(evidence)) == {"tokens", "hash chain", "timestamps"}
    assert wrong(evidence)["tokens"].startswith("client-0/events.log:5: a read under")


def test_a_stale_read_is_caught() -> None:
    evidence = good_group().evidence()
    head = change_line(evidence, 0, 3, lambda event: event).event.values["hash"]
    change_line(evidence, 0, 5, with_values(seq="1", hash=head))
    assert wrong(evidence)["tokens"] == (
        "client-0/events.log:5: a read under 1.3 of version 1, when 2 was there under 1.2"
    )


# 3. hash chain


def test_a_changed_op_breaks_the_chain() -> None:
    evidence = good_group().evidence()
    change_record(evidence, 1, NOTES, 3, inserted=b" --- tHree\n")
    assert wrong(evidence)["hash chain"] == (
        "client-1/journal: notes.txt@3: its hash does not follow from the op and the hash before"
    )


def test_a_changed_hash_breaks_the_chain() -> None:
    evidence = good_group().evidence()
    hashes = evidence.clients[0].journals[NOTES].hashes
    assert isinstance(hashes, list)
    hashes[2] = bytes(16)
    assert wrong(evidence)["hash chain"].startswith("client-0/journal: notes.txt@3: its hash does not follow")


def test_a_missing_op_breaks_the_chain() -> None:
    evidence = good_group().evidence()
    for part in (evidence.clients[2].journals[NOTES].records, evidence.clients[2].journals[NOTES].hashes):
        assert isinstance(part, list)
        del part[1]
    assert wrong(evidence)["hash chain"].startswith("client-2/journal: notes.txt@2: the op there has seq 3")


def test_journals_that_disagree_are_caught() -> None:
    evidence = good_group().evidence()
    journal = evidence.clients[2].journals[PLANS]
    assert isinstance(journal.records, list) and isinstance(journal.hashes, list)
    version = EMPTY
    for index, record in enumerate(list(journal.records)):
        journal.records[index] = structs.replace(record, time_us=record.time_us + 1)
        version = version_after(version, journal.records[index])
        journal.hashes[index] = version.hash
    assert wrong(evidence)["hash chain"].startswith("client-2/journal: deep/plans.txt@1: its hash is ")
    assert "but client-0 has" in wrong(evidence)["hash chain"]


@pytest.mark.parametrize(
    ("key", "value"), [("hash", "0123456789ab"), ("seq", "4"), ("token", "1.1"), ("id", "client-0:1")]
)
def test_a_line_that_differs_from_the_journal_is_caught(key: str, value: str) -> None:
    evidence = good_group().evidence()
    change_line(evidence, 0, 6, with_values(**{key: value}))
    assert wrong(evidence)["hash chain"].startswith("client-0/events.log:6: ")


def test_a_line_of_a_version_that_nobody_has_is_caught() -> None:
    evidence = good_group().evidence()
    change_line(evidence, 0, 6, with_values(seq="77"))
    assert wrong(evidence)["hash chain"] == "client-0/events.log:6: no journal has notes.txt@77"


def test_an_undone_op_is_no_damage() -> None:
    group = good_group()
    replica, version = group.replicas[0], Version(6, 0, bytes(range(16)))
    group.begin(0, "read")  # its grant stands for the op's
    group.done -= 1
    line = replica.lines.pop()
    token = make_token(1, group.counter)
    group.locks[-1] = replace(group.locks[-1], line=structs.replace(group.locks[-1].line, mode="exclusive"))
    replica.clock = dict(line.event.clock)
    for clock, verb in ((replica.clock, "write"), (tick(replica.clock, "client-0"), "undo")):
        group._log(replica, clock, verb, NOTES, "client-0:5", version, ("from", "client-0"), token=token)
    assert wrong(replace(group.evidence(), asked=None)) == {}
    assert found(group.evidence())["complete"].detail.endswith("each once, 1 undone")


def come_back(index: int, *verbs: str) -> tuple[list[int], dict[str, str]]:
    """Let a client tell more of notes.txt@4, which client-0 made; return which lines tell of it, and what is wrong."""
    group = good_group()
    replica = group.replicas[index]
    record, version = replica.records[NOTES][3], Version(4, 0, replica.hashes[NOTES][3])
    for verb in verbs:
        clock = tick(replica.clock, replica.name)
        group._log(replica, clock, verb, NOTES, record.id, version, ("from", "client-0"), token=record.token)
    lines = [line.number for line in replica.lines if line.event.values["id"] == record.id]
    return lines, wrong(replace(group.evidence(), asked=None))


@pytest.mark.parametrize("index", [0, 2])
def test_an_op_that_was_undone_may_come_again(index: int) -> None:
    assert come_back(index, "undo", "apply", "undo", "apply")[1] == {}


@pytest.mark.parametrize("index", [0, 2])
def test_an_op_that_comes_twice_without_an_undo_is_caught(index: int) -> None:
    (first, second), said = come_back(index, "apply")
    log = f"client-{index}/events.log"
    assert said == {"hash chain": f"{log}:{second}: apply of client-0:3, which was not undone since {log}:{first}"}


@pytest.mark.parametrize("index", [0, 2])
def test_an_op_that_is_undone_twice_is_caught(index: int) -> None:
    (_, first, second, _), said = come_back(index, "undo", "undo", "apply")
    log = f"client-{index}/events.log"
    assert said == {"hash chain": f"{log}:{second}: undo of client-0:3, which was not there again since {log}:{first}"}


# Journals that do not have what their logs tell of


def cut(replica: Replica, file: str, newest: int) -> None:
    """Take a file's ops behind version `newest` out of a journal, and out of the file."""
    del replica.records[file][newest:], replica.hashes[file][newest:]


def log_again(group: Group, index: int, line: Event, verb: str, origin: str) -> None:
    """Have a client log something of the op that a line tells of."""
    replica, values = group.replicas[index], line.values
    records = [record for other in group.replicas for record in other.records[values["file"]]]
    made = next((record.clock for record in records if record.id == values["id"]), replica.clock)
    clock = tick(merge(replica.clock, made), replica.name)
    version = Version(int(values["seq"]), 0, bytes.fromhex(values["hash"]))
    token = parse_token(values["token"])
    group._log(replica, clock, verb, values["file"], values["id"], version, ("from", origin), token=token)


def log_what_is_true(group: Group, index: int, lines: int, said: int | None = None) -> None:
    """Have a client say, at its start, that what its last `lines` tell is not so; of so many it has `said` it."""
    replica = group.replicas[index]
    for line in [line.event for line in replica.lines[: -lines - 1 : -1]][:said]:
        log_again(group, index, line, "apply" if line.verb == "undo" else "undo", replica.name)


def evidences(group: Group) -> dict[str, Evidence]:
    """Return what a group has left as a run of each kind."""
    evidence = group.evidence()
    assert evidence.asked is not None
    faults = replace(evidence.asked, faults=("kill",))
    return {
        "by hand": replace(evidence, asked=None),
        "in order": evidence,
        "under faults": replace(evidence, asked=faults),
        "stopped": replace(evidence, asked=replace(evidence.asked, stopped=True)),
        "stopped under faults": replace(evidence, asked=replace(faults, stopped=True, finished=False)),
    }


ALL = (0, 1, 2)
KINDS = list(evidences(Group("client-0")))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("replicas", [(0,), (0, 1), ALL])
def test_the_newest_op_lost_where_it_was_made_is_caught(replicas: tuple[int, ...], kind: str) -> None:
    """Others have taken it in, so it was in its author's journal before."""
    group = good_group()
    group.do(0, "write", text="lost")
    for index in replicas:
        cut(group.replicas[index], NOTES, 5)
    said = wrong(evidences(group)[kind])["hash chain"]
    if (replicas, kind) == (ALL, "in order"):
        assert said == "client-0/events.log:11: no journal has notes.txt@6"
    else:
        assert said == (
            "client-0/events.log:11: write of client-0:5, which client-0/journal does not have as notes.txt@6, "
            "though no line undoes it"
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("replicas", [(0,), (1,), (2,), (0, 2), ALL])
@pytest.mark.parametrize("newest", [0, 1, 2, 3, 4])
def test_older_ops_lost_with_all_behind_them_are_caught(newest: int, replicas: tuple[int, ...], kind: str) -> None:
    group = good_group()
    for index in replicas:
        cut(group.replicas[index], NOTES, newest)
    said = wrong(evidences(group)[kind])["hash chain"]
    assert said.startswith(f"client-{replicas[0]}/events.log:")
    assert said.endswith((", though no line undoes it", f": no journal has notes.txt@{newest + 1}"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_op_lost_before_a_read_or_another_files_op_is_caught(kind: str) -> None:
    for next_one in (partial(Group.do, verb="read"), partial(Group.do, verb="write", file=PLANS)):
        group = good_group()
        group.do(0, "write", text="lost")
        next_one(group, 1)
        cut(group.replicas[1], NOTES, 5)
        assert "apply of client-0:5, which client-1/journal" in wrong(evidences(group)[kind])["hash chain"]


def test_an_undo_of_what_is_still_there_is_caught() -> None:
    group = good_group()
    (line,) = [line.event for line in group.replicas[1].lines if line.event.verb == "restore"]
    log_again(group, 1, line, "undo", "client-0")
    assert wrong(group.evidence(by_hand=True)) == {}, "a kill may have come between"
    group.do(1, "read")
    assert wrong(group.evidence(by_hand=True)) == {
        "hash chain": "client-1/events.log:10: undo of client-1:3, which client-1/journal still has as notes.txt@5"
    }


def test_a_lost_op_is_caught_on_disk(tmp_path: Path) -> None:
    group = good_group()
    group.do(0, "write", text="lost")
    for replica in group.replicas:
        cut(replica, NOTES, 5)
    said = wrong_on_disk(write_run(group, tmp_path, by_hand=True))
    assert said.keys() == {"hash chain"}
    assert said["hash chain"].startswith("client-0/events.log:11: write of client-0:5, which client-0/journal does not")


# What a kill leaves between a line and its change


def test_an_op_that_a_kill_left_without_its_change_is_no_damage() -> None:
    group = good_group()
    killed_amid_an_op(group)
    assert wrong(group.evidence(by_hand=True)) == {}
    assert found(group.evidence(by_hand=True))["complete"].detail.endswith(", 1 undone")
    assert wrong(group.evidence())["hash chain"] == "client-0/events.log:11: no journal has notes.txt@6"


def test_an_op_whose_lock_was_released_was_in_its_authors_journal() -> None:
    group = Group("client-0")
    group.do(0, "write", text="one")
    group.do(0, "write", text="lost")
    cut(group.replicas[0], NOTES, 1)
    evidence = group.evidence(by_hand=True)
    assert wrong(evidence) == {"hash chain": "client-0/events.log:4: no journal has notes.txt@2"}
    assert wrong(replace(evidence, grants=None)) == {}, "so looks what a kill has left, too"


@pytest.mark.parametrize("index", [1, 2])
def test_an_op_taken_in_whose_change_a_kill_stopped_is_no_damage(index: int) -> None:
    group = good_group()
    group.do(0, "write", text="new")
    cut(group.replicas[index], NOTES, 5)
    assert wrong(group.evidence(by_hand=True)) == {}
    assert f"client-{index} is behind" in found(group.evidence(by_hand=True))["replay"].detail
    assert "hash chain" in wrong(group.evidence()), "in a run that ended in order nobody was killed"


def returning_group(told: int) -> Group:
    """client-1 dies with an op of its own; the others make two more; it comes back, and is killed as it takes these in.

    It has `told` so many lines then: of its undo, and of the two.
    """
    group = good_group()
    lost = group.begin(1, "write", text="lost")
    group._lock_line("expiry", lost)
    group.held[NOTES].remove(lost)
    gone = group.replicas.pop(1)
    group.do(0, "write", text="new")
    group.do(1, "write", text="newer")
    group.replicas.insert(1, gone)
    lines = [("undo", gone.lines[-1].event)]
    lines += [("apply", line.event) for line in group.replicas[0].lines[-2:]]
    for verb, line in lines[:told]:
        log_again(group, 1, line, verb, "client-0")
    return group


@pytest.mark.parametrize(("told", "said"), [(told, said) for told in range(4) for said in range(told + 1)])
def test_lines_without_their_change_may_be_many_and_the_next_start_tells_of_them(told: int, said: int) -> None:
    group = returning_group(told)
    log_what_is_true(group, 1, told, said)
    for kind in ("stopped", "stopped under faults"):
        evidence = evidences(group)[kind]
        assert evidence.asked is not None
        evidence = replace(evidence, asked=replace(evidence.asked, left=("client-1",)))
        assert wrong(evidence) == {}
        assert "notes.txt@6 is unknown to the others" in found(evidence)["replay"].detail


@pytest.mark.parametrize("amid", ["of another", "a read", "said too little"])
def test_lines_of_more_than_one_change_are_caught(amid: str) -> None:
    group = returning_group(2)
    if amid == "said too little":
        log_what_is_true(group, 1, 2, 1)
    if amid == "a read":
        group.do(1, "read", PLANS)
    else:
        log_again(group, 1, group.replicas[0].lines[-1].event, "apply", "client-2")
    evidence = evidences(group)["stopped"]
    assert evidence.asked is not None
    said = wrong(replace(evidence, asked=replace(evidence.asked, left=("client-1",))))["hash chain"]
    assert said.startswith("client-1/events.log:1")


def test_an_op_passed_on_undone_and_taken_in_again_may_be_stopped_by_a_kill() -> None:
    group = good_group()
    group.do(0, "write", text="again")
    line = group.replicas[0].lines[-1].event
    cut(group.replicas[0], NOTES, 5)
    log_again(group, 0, line, "undo", "client-1")
    assert wrong(group.evidence(by_hand=True)) == {}
    log_again(group, 0, line, "apply", "client-1")
    assert wrong(group.evidence(by_hand=True)) == {}


# 4. replay


def test_a_changed_byte_of_a_replica_is_caught() -> None:
    evidence = good_group().evidence()
    client = evidence.clients[1]
    content = client.files[NOTES]
    changed = content[:5] + b"X" + content[6:]
    evidence = change_client(evidence, 1, replace(client, files={**client.files, NOTES: changed}))
    assert wrong(evidence) == {
        "replay": "client-1/files/notes.txt: differs from version 5 replayed, first at byte 5, line 2"
    }


def test_a_missing_file_is_caught_unless_it_is_empty() -> None:
    group = good_group()
    group.do(0, "read", "empty.txt")
    evidence = group.evidence()
    assert wrong(evidence) == {}
    client = evidence.clients[2]
    evidence = change_client(evidence, 2, replace(client, files={}))
    assert wrong(evidence)["replay"].startswith("client-2/files/deep/plans.txt: it is missing; version 2 has")


def test_an_extra_file_is_caught() -> None:
    evidence = good_group().evidence()
    client = evidence.clients[2]
    evidence = change_client(evidence, 2, replace(client, files={**client.files, "notes.txt~": b""}))
    assert wrong(evidence) == {"replay": "client-2/files/notes.txt~: no op made this file"}


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


def test_a_replica_that_is_behind_is_named() -> None:
    evidence = behind(good_group().evidence(), 2)
    assert evidence.asked is not None
    assert wrong(evidence)["replay"] == "client-2/journal: behind: deep/plans.txt is at version 1 of 2"
    left = replace(evidence, asked=replace(evidence.asked, left=("client-2",)))
    assert list(wrong(left)) == ["complete"]
    assert found(left)["replay"].detail.endswith("; client-2 is behind (deep/plans.txt@1 of 2)")
    assert wrong(replace(evidence, asked=None)) == {}


def test_a_client_that_died_with_an_op_nobody_heard_of_is_named() -> None:
    group = good_group()
    group.begin(2, "write", text="lost")
    evidence = group.evidence()
    assert evidence.asked is not None
    left = replace(evidence, asked=replace(evidence.asked, left=("client-2",)))
    assert list(wrong(left)) == ["complete"]
    assert found(left)["replay"].detail.endswith("; client-2 is behind (notes.txt@6 is unknown to the others)")


def test_an_op_of_a_dead_client_that_others_undid_is_no_damage() -> None:
    group = good_group()
    lost = group.begin(2, "write", text="lost")
    assert lost.record is not None
    other = group.replicas[0]
    group.apply(lost, other)
    undone = other.version(NOTES)
    other.records[NOTES].pop()
    other.hashes[NOTES].pop()
    clock = tick(other.clock, other.name)
    origin = ("from", "client-1")
    group._log(other, clock, "undo", NOTES, lost.record.id, undone, origin, token=lost.token)
    group.held[NOTES].clear()
    group._lock_line("expiry", lost)
    group.replicas.pop()
    group.do(1, "write", text="goes on")
    evidence = group.evidence()
    dead = replace(evidence, clients=[*evidence.clients, group._client(lost.replica)])
    assert dead.asked is not None
    dead = replace(dead, asked=replace(dead.asked, clients=3, left=("client-2",)))
    assert list(wrong(dead)) == ["complete"]
    assert found(dead)["replay"].detail.endswith("; client-2 is behind (notes.txt@6 is unknown to the others)")


def test_an_op_that_is_not_what_it_says_is_caught() -> None:
    evidence = good_group().evidence()
    change_line(evidence, 0, 3, with_values(text="won"))
    assert wrong(evidence) == {"replay": "client-0/events.log:3: text=won, but the journals have one"}
    evidence = good_group().evidence()
    for index in range(3):
        change_record(evidence, index, NOTES, 5, inserted=b"else\n")
    assert "client-1/events.log" in wrong(evidence)["replay"]
    assert wrong(evidence)["replay"].endswith("it does not bring version 2 back")
    evidence = good_group().evidence()
    for index in range(3):
        change_record(evidence, index, NOTES, 2, offset=99)
    assert wrong(evidence)["replay"] == "client-0/journal: notes.txt@2: it starts at byte 99 of 4"


# 5. snapshots


def show_wrongly(client: Client, wrong_seq: int) -> Client:
    shown = client.snapshots
    assert shown is not None

    def content(file: str, seq: int) -> bytes:
        return shown.content(file, seq) if seq != wrong_seq else b"else\n"

    return replace(client, snapshots=replace(shown, content=content))


def test_a_wrong_snapshot_is_caught() -> None:
    evidence = good_group().evidence()
    evidence = change_client(evidence, 1, show_wrongly(evidence.clients[1], 3))
    assert list(wrong(evidence)) == ["snapshots"]
    assert wrong(evidence)["snapshots"].startswith("client-1/snapshots: notes.txt@3 differs from version 3")


def test_a_snapshot_that_cannot_be_shown_is_caught() -> None:
    evidence = good_group().evidence()
    client = evidence.clients[1]
    assert client.snapshots is not None

    def content(file: str, seq: int) -> bytes:
        raise ValueError("a page is gone")

    evidence = change_client(evidence, 1, replace(client, snapshots=replace(client.snapshots, content=content)))
    assert wrong(evidence) == {"snapshots": "client-1/snapshots: deep/plans.txt@1 cannot be shown: a page is gone"}


def test_snapshots_that_end_early_are_caught() -> None:
    evidence = good_group().evidence()
    client = evidence.clients[1]
    assert client.snapshots is not None
    shown = replace(client.snapshots, newest={PLANS: 2})
    evidence = change_client(evidence, 1, replace(client, snapshots=shown))
    assert wrong(evidence) == {"snapshots": "client-1/snapshots: notes.txt is shown up to version 0, the journal has 5"}


def test_a_line_that_names_another_snapshot_is_caught() -> None:
    evidence = good_group().evidence()
    change_line(evidence, 0, 3, with_values(snapshot="notes.txt@2"))
    assert wrong(evidence) == {"snapshots": "client-0/events.log:3: snapshot=notes.txt@2, but the op is at notes.txt@1"}


def test_of_a_long_history_a_sample_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "SNAPSHOT_BYTES_MAX", 100)
    group = Group("client-0", "client-1")
    for number in range(500):
        group.do(number % 2, "write", text=str(number))
    evidence = group.evidence()
    assert found(evidence)["snapshots"].detail.startswith("253 of 1000 versions shown (a sample)")
    for seq in (1, 500):
        damaged = change_client(evidence, 1, show_wrongly(evidence.clients[1], seq))
        assert list(wrong(damaged)) == ["snapshots"]


# Ops that the group went on without


def lose(group: Group, index: int, file: str = NOTES, *, ops: int = 1, event: GrantEvent | None = "expiry") -> Replica:
    """Let a client do ops that nobody takes in, lose each one's lock, and be gone: the group goes on without it."""
    for _ in range(ops):
        doing = group.begin(index, "write", file, "lost")
        group.held[file].remove(doing)
        if event:
            group._lock_line(event, doing)
    return group.replicas.pop(index)


def lost_group(*, ops: int = 1, event: GrantEvent | None = "expiry") -> Group:
    """client-1 ends with ops that nobody else has, where the others have one more."""
    group = good_group()
    gone = lose(group, 1, ops=ops, event=event)
    group.do(0, "write", text="meanwhile")
    group.replicas.insert(1, gone)
    return group


def without_grants(evidence: Evidence) -> Evidence:
    return replace(evidence, grants=None)


BEHIND = "; client-1 is behind (notes.txt@5 of 6, with {} that the group does not have: undoes {} when it is back)"


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 1, 0), (1, 0)])
@pytest.mark.parametrize("ops", [1, 2])
def test_a_client_that_the_group_went_on_without_is_named_as_behind(ops: int, order: tuple[int, ...]) -> None:
    evidence = lost_group(ops=ops).evidence(by_hand=True)
    evidence = replace(evidence, clients=[evidence.clients[index] for index in order])
    for each in (evidence, without_grants(evidence)):
        assert wrong(each) == {}
        said = BEHIND.format("1 op", "it") if ops == 1 else BEHIND.format("2 ops", "them")
        assert found(each)["replay"].detail.endswith(said)
        assert found(each)["hash chain"].detail.endswith("the same in every journal as far as they are shared")


def test_what_the_group_went_on_without_is_told_by_client_and_file() -> None:
    group = good_group()
    first = lose(group, 0)
    first_plans = group.begin(0, "write", PLANS, "lost")
    group._lock_line("expiry", first_plans)
    group.held[PLANS].remove(first_plans)
    second = group.replicas.pop(0)
    group.do(0, "write", text="meanwhile")
    group.do(0, "write", PLANS, "meanwhile")
    group.replicas += [first, second]
    said = found(group.evidence(by_hand=True))
    assert [finding for finding in said.values() if not finding.ok] == []
    assert said["replay"].detail.endswith(
        "; client-0 is behind (deep/plans.txt@2 of 3, notes.txt@5 of 6, with 1 op that the group does not have: undoes "
        "it when it is back); client-1 is behind (deep/plans.txt@2 of 3, with 1 op that the group does not have: "
        "undoes it when it is back, notes.txt@5 of 6)"
    )


def test_an_op_that_the_group_went_on_without_may_have_been_undone_by_another() -> None:
    group = good_group()
    lost = group.begin(1, "write", text="lost")
    group.apply(lost, group.replicas[0])
    line = group.replicas[0].lines[-1].event
    group._lock_line("expiry", lost)
    group.held[NOTES].remove(lost)
    gone = group.replicas.pop(1)
    cut(group.replicas[0], NOTES, 5)
    log_again(group, 0, line, "undo", "client-2")
    group.do(1, "write", text="meanwhile")
    group.replicas.insert(1, gone)
    assert wrong(group.evidence(by_hand=True)) == {}


def test_after_a_run_in_order_nobody_is_behind() -> None:
    assert {"hash chain", "replay", "snapshots"} <= set(wrong(lost_group().evidence()))
    stopped = evidences(lost_group())["stopped"]
    assert wrong(stopped) == {}
    assert found(stopped)["replay"].detail.endswith(BEHIND.format("1 op", "it"))


@pytest.mark.parametrize("event", ["release", None])
@pytest.mark.parametrize("ops", [1, 2])
def test_an_op_that_only_one_has_and_whose_lock_was_not_lost_is_caught(ops: int, event: GrantEvent | None) -> None:
    group = lost_group(ops=1, event=event)
    if ops == 2:
        group = good_group()
        kept = lose(group, 1)
        group.replicas.insert(1, kept)
        kept = lose(group, 1, event=event)
        group.do(0, "write", text="meanwhile")
        group.replicas.insert(1, kept)
    assert "hash chain" in wrong(group.evidence(by_hand=True))


@pytest.mark.parametrize("changes", [{"lock": PLANS}, {"client": "client-0"}, {"token": make_token(1, 12)}])
def test_an_op_that_only_one_has_under_anothers_lost_lock_is_caught(changes: dict[str, str | int]) -> None:
    evidence = lost_group().evidence(by_hand=True)
    lines = lock_lines(evidence)
    (index,) = [index for index, entry in enumerate(lines) if entry.line.event == "expiry"]
    lines[index] = replace(lines[index], line=structs.replace(lines[index].line, **changes))
    assert "hash chain" in wrong(evidence)


def test_an_op_that_only_one_has_and_whose_lock_was_released_once_is_caught() -> None:
    evidence = lost_group().evidence(by_hand=True)
    lines = lock_lines(evidence)
    (expiry,) = [entry for entry in lines if entry.line.event == "expiry"]
    lines.append(LockLine(len(lines) + 1, structs.replace(expiry.line, event="release")))
    assert "hash chain" in wrong(evidence)


@pytest.mark.parametrize("counter", [10, 11])
def test_a_group_that_went_on_under_no_newer_token_is_caught(counter: int) -> None:
    """The lost op has token 1.11."""
    group = good_group()
    gone = lose(group, 1)
    assert gone.records[NOTES][-1].token == make_token(1, 11)
    group.counter = counter - 1
    group.do(0, "write", text="meanwhile")
    group.replicas.insert(1, gone)
    evidence = group.evidence(by_hand=True)
    for each in (evidence, without_grants(evidence)):
        assert "hash chain" in wrong(each)


def test_a_lost_op_that_another_has_taken_in_is_no_damage() -> None:
    group = good_group()
    lost = group.begin(1, "write", text="lost")
    group.apply(lost, group.replicas[2])
    group._lock_line("expiry", lost)
    group.held[NOTES].remove(lost)
    second, third = group.replicas.pop(1), group.replicas.pop(1)
    group.do(0, "write", text="meanwhile")
    group.replicas += [second, third]
    evidence = group.evidence(by_hand=True)
    assert wrong(evidence) == {}
    behind = "notes.txt@5 of 6, with 1 op that the group does not have: undoes it when it is back"
    assert found(evidence)["replay"].detail.count(behind) == 2
    assert "hash chain" in wrong(without_grants(evidence)), "nothing tells that its lock expired"
    group.replicas[1].lines = []
    group.locks = [entry for entry in group.locks if entry.line.event != "expiry"]
    assert "hash chain" in wrong(group.evidence(by_hand=True)), "its lock did not expire"


def test_an_op_of_the_group_at_another_place_is_caught() -> None:
    """What differs has the id of an op that others have."""
    evidence = lost_group().evidence(by_hand=True)
    change_record(evidence, 1, NOTES, 6, id="client-0:5")
    journal = evidence.clients[1].journals[NOTES]
    assert isinstance(journal.hashes, list)
    journal.hashes[5] = version_after(Version(5, 0, journal.hashes[4]), journal.records[5]).hash
    for each in (evidence, without_grants(evidence)):
        assert "hash chain" in wrong(each)


def test_a_damaged_journal_is_caught_below_and_in_what_only_it_has() -> None:
    for seq in (3, 6):
        evidence = lost_group().evidence(by_hand=True)
        change_record(evidence, 1, NOTES, seq, inserted=b"else\n")
        for each in (evidence, without_grants(evidence)):
            assert wrong(each)["hash chain"].startswith(f"client-1/journal: notes.txt@{seq}: its hash does not follow")


@pytest.mark.parametrize(("outcome", "fits"), [("unknown", True), ("ok", False)])
def test_an_op_that_was_ok_is_not_lost(outcome: Literal["ok", "unknown"], fits: bool) -> None:
    group = lost_group()
    record, hash_ = group.replicas[1].records[NOTES][5], group.replicas[1].hashes[NOTES][5].hex()[:12]
    told = Told(99, "client-1", record.id, "write", NOTES, outcome, 2 * record.time_us - 1, 2 * record.time_us)
    told = replace(told, seq=6, hash=hash_)
    said = wrong(replace(group.evidence(by_hand=True), told=[*group.told(), told]))
    assert (said == {}) == fits
    assert fits or {"outcomes", "hash chain"} <= set(said)


@pytest.mark.parametrize(("event", "fits"), [("expiry", True), ("release", False)])
def test_a_version_that_a_read_gave_out_is_not_lost(event: GrantEvent, fits: bool) -> None:
    group = good_group()
    gone = lose(group, 1)
    group.do(0, "write", text="meanwhile")
    group.replicas.insert(1, gone)
    read = group.begin(1, "read")
    group._lock_line(event, read)
    group.held[NOTES].remove(read)
    evidence = group.evidence(by_hand=True)
    assert ("hash chain" not in wrong(evidence)) == fits
    assert "hash chain" in wrong(without_grants(evidence)), "nothing tells that its lock was lost"


def test_what_only_one_has_is_judged_by_its_own_journal() -> None:
    evidence = lost_group().evidence(by_hand=True)
    client = evidence.clients[1]
    theirs = replace(client, files={**client.files, NOTES: evidence.clients[0].files[NOTES]})
    said = wrong(change_client(evidence, 1, theirs))
    assert list(said) == ["replay"]
    assert said["replay"].startswith("client-1/files/notes.txt: differs from version 6 replayed")
    said = wrong(change_client(evidence, 1, show_wrongly(client, 6)))
    assert list(said) == ["snapshots"]
    assert said["snapshots"].startswith("client-1/snapshots: notes.txt@6 differs from version 6 replayed")


def test_a_lost_op_is_told_on_disk(tmp_path: Path) -> None:
    run = write_run(lost_group(), tmp_path / "run", by_hand=True)
    assert wrong_on_disk(run) == {}


# 6. clocks


def test_a_cut_line_is_caught() -> None:
    for number in range(3, 10):
        evidence = good_group().evidence()
        change_line(evidence, 0, number, None)
        expected = f"client-0/events.log:{number + 1}: client-0 counts {number - 1} where {number - 2} is next"
        assert wrong(evidence)["clocks"] == expected


def test_a_cut_last_line_is_caught() -> None:
    for index in range(3):
        evidence = good_group().evidence()
        last = evidence.clients[index].lines[-1]
        change_line(evidence, index, last.number, None)
        assert wrong(evidence), last


def with_clock(**changes: int) -> Callable[[Event], Event]:
    """Set components of a clock; `client_0` stands for client-0, and 0 takes it out."""

    def change(event: Event) -> Event:
        clock = {**event.clock, **{host.replace("_", "-"): count for host, count in changes.items()}}
        return replace(event, clock={host: count for host, count in clock.items() if count})

    return change


def test_a_clock_that_falls_back_is_caught() -> None:
    evidence = good_group().evidence()
    change_line(evidence, 0, 6, with_clock(client_1=1))
    assert wrong(evidence)["clocks"].startswith("client-0/events.log:6: the clock falls back from 2 to 1")


def test_an_apply_without_its_ops_clock_is_caught() -> None:
    evidence = good_group().evidence()
    change_line(evidence, 0, 4, with_clock(client_1=1))
    assert wrong(evidence)["clocks"] == ("client-0/events.log:4: apply of client-1:1 without that op's clock")


def test_a_clock_that_names_no_event_is_caught() -> None:
    evidence = good_group().evidence()
    last = evidence.clients[2].lines[-1].number
    change_line(evidence, 2, last, with_clock(client_1=50))
    assert wrong(evidence) == {
        "clocks": f"client-2/events.log:{last}: it knows event 50 of client-1, "
        f"which has only {len(evidence.clients[1].lines)}"
    }


def test_a_clock_that_skips_what_an_event_knew_is_caught() -> None:
    group = Group()
    group.do(0, "write", text="one")
    evidence = group.evidence()
    change_line(evidence, 2, 3, with_clock(client_1=1))
    change_line(evidence, 1, 3, with_clock(client_0=1))
    assert list(wrong(evidence)) == ["clocks"]
    assert wrong(evidence)["clocks"].startswith("client-2/events.log:3: its clock holds more")
    change_line(evidence, 2, 3, with_clock(client_0=0))
    assert wrong(evidence)["clocks"] == (
        "client-2/events.log:3: it knows event 1 of client-1, but not what that knew (client-1/events.log:3)"
    )


def test_an_op_that_ignores_its_lock_is_caught() -> None:
    group = Group()
    read = group.begin(0, "read")
    group.end(read)
    group.readers[NOTES] = {}
    group.do(1, "write", text="one")
    assert wrong(group.evidence()) == {
        "clocks": "client-1/events.log:3: its clock is not after that of the read before it (client-0/events.log:3)"
    }


def test_a_read_that_ignores_the_change_it_saw_is_caught() -> None:
    group = Group("client-0", "client-1")
    write = group.begin(0, "write", text="one")
    group.end(write)
    evidence = group.evidence()
    client = evidence.clients[1]
    group.writers[NOTES] = {}
    group.replicas[1].clock = {}
    group.replicas[1].lines.clear()
    group.do(1, "read")
    assert client.lines is group.replicas[1].lines
    assert wrong(group.evidence())["clocks"].startswith("client-1/events.log:3: its clock is not after that of")


def test_changes_that_are_concurrent_are_caught() -> None:
    group = Group("client-0", "client-1")
    group.do(0, "write", text="one")
    group.writers[NOTES] = {}
    group.replicas[1].clock = {}
    group.replicas[1].lines.clear()
    group.do(1, "write", text="two")
    assert wrong(group.evidence())["clocks"] == ("client-1/events.log:3: its clock is not after that of notes.txt@1")


def test_a_clock_that_knows_more_than_its_lock_brought_is_caught() -> None:
    group = Group()
    group.do(0, "write", text="one")
    plan = group.begin(2, "write", PLANS, "two")
    group.writers[NOTES] = merge(group.writers[NOTES], plan.replica.clock)  # of the other lock
    group.do(1, "write", text="three")
    group.end(plan)
    assert wrong(group.evidence()) == {
        "clocks": "client-1/events.log:4: its clock holds more than what client-1 knew and its lock brought"
    }


def test_a_record_with_another_clock_is_caught() -> None:
    evidence = good_group().evidence()
    for index in range(3):
        change_record(evidence, index, NOTES, 1, clock={"client-0": 1, "client-1": 1})
    assert wrong(evidence)["clocks"] == "client-0/events.log:3: the journals have another clock for client-0:1"


def test_hosts_whose_logs_are_elsewhere_are_named() -> None:
    evidence = good_group().evidence(by_hand=True)
    evidence = replace(evidence, clients=evidence.clients[:2])
    assert wrong(evidence) == {}
    assert "; no log here of client-2; " in found(evidence)["clocks"].detail


def test_a_host_in_two_logs_is_caught() -> None:
    evidence = good_group().evidence()
    lines = evidence.clients[0].lines[1:]
    client = replace(evidence.clients[0], name="copy", lines=lines, journals={}, files={}, snapshots=None)
    evidence = replace(evidence, clients=[*evidence.clients, client])
    assert wrong(evidence)["clocks"] == f"copy/events.log:{lines[0].number}: client-0 is in client-0/events.log:3 too"


# Copies, and hosts that count anew


def copied_group() -> Group:
    """client-0 with three lines, a copy of it beside it, and a copy of that; then ops at all of them.

    copy-1's log: 3-5 of client-0 · 6 write · 7-8 apply · 9 read · 10 apply; copy-2's: 3-5 of client-0 · 6-7 of copy-1 ·
    8 write · 9 apply.
    """
    group = Group("client-0", "client-1")
    group.do(0, "write", text="one")
    group.do(1, "write", text="two")
    group.do(0, "read")
    group.copy(0, "copy-1")
    group.do(2, "write", text="three")
    group.do(0, "update", text="four")
    group.copy(2, "copy-2")
    group.do(3, "write", text="five")
    group.do(2, "read")
    group.do(0, "write", text="six")
    return group


def by_hand(group: Group, *but: str) -> Evidence:
    """Return what a run by hand has left, without some clients' directories."""
    evidence = group.evidence(by_hand=True)
    return replace(evidence, clients=[client for client in evidence.clients if client.name not in but])


def lines_of(evidence: Evidence, client: int) -> list[EventLine]:
    lines = evidence.clients[client].lines
    assert isinstance(lines, list)
    return lines


def test_copies_beside_their_originals_pass_and_their_lines_count_once() -> None:
    group = copied_group()
    evidence = replace(group.evidence(), told=group.told())
    assert wrong(evidence) == {}
    assert wrong(replace(evidence, clients=evidence.clients[::-1])) == {}
    findings = found(evidence)
    assert findings["complete"].detail == "8 of 8 ops by 4 clients, each once"
    assert findings["clocks"].detail == "20 events of 4 hosts"
    logs, *copies = findings["logs"].detail.split("; ")
    assert logs.startswith("28 lines of 4 event logs, ")
    assert copies == [
        "copy-1 begins with 3 lines of client-0",
        "copy-2 begins with 3 lines of client-0",
        "copy-2 begins with 2 lines of copy-1",
    ]


def test_a_copy_that_has_done_nothing_passes() -> None:
    group = Group("client-0", "client-1")
    group.do(0, "write", text="one")
    group.copy(0, "copy")
    assert wrong(group.evidence()) == {}
    assert found(group.evidence())["logs"].detail.endswith("; copy begins with 1 line of client-0")


@pytest.mark.parametrize("turned", [False, True])
def test_the_directory_whose_place_its_copy_has_taken_is_the_copys_begin(turned: bool) -> None:
    group = Group("client-0", "client-1")
    group.do(0, "write", text="one")
    group.do(1, "read")
    left = deepcopy(group.evidence().clients[0])
    group.do(1, "write", text="two")
    group.do(0, "write", text="three")
    evidence = by_hand(group)
    clients = [*evidence.clients, replace(left, name="left")]
    evidence = replace(evidence, clients=clients[::-1] if turned else clients)
    assert wrong(evidence) == {}
    assert found(evidence)["logs"].detail.endswith("; left begins with 1 line of client-0")


def test_a_copy_without_its_original_tells_of_it_as_far_as_it_goes() -> None:
    evidence = by_hand(copied_group(), "client-0")
    assert wrong(evidence) == {}
    assert found(evidence)["clocks"].detail == "16 events of 4 hosts; no log here of 4 newest events of client-0"
    assert found(evidence)["logs"].detail.endswith(" of grants.log; copy-2 begins with 5 lines of copy-1")


CHANGES_OF_A_COPY: dict[str, Callable[[Event], Event] | None] = {
    "its text": with_values(text="other"),
    "its time": lambda event: replace(event, time_us=event.time_us - 1),
    "its host": lambda event: replace(event, host="client-1"),
    "cut out": None,
}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("number", [3, 4, 5])
@pytest.mark.parametrize("change", CHANGES_OF_A_COPY)
def test_a_copied_line_that_is_not_the_originals_is_caught(change: str, number: int, turned: bool) -> None:
    evidence = by_hand(copied_group(), "copy-2")
    change_line(evidence, 2, number, CHANGES_OF_A_COPY[change])
    if turned:
        evidence = replace(evidence, clients=evidence.clients[::-1])
    found_wrong = wrong(evidence)
    if change in ("its text", "its time"):
        assert found_wrong["clocks"] == f"copy-1/events.log:{number}: client-0 is in client-0/events.log:3 too"
        assert found_wrong["complete"].startswith("copy-1/events.log:")
    elif change == "its host":
        assert found_wrong["clocks"].startswith("copy-1/events.log:")
    elif number < 5:
        assert found_wrong["clocks"] == f"copy-1/events.log:{number + 1}: client-0 is in client-0/events.log:3 too"
    else:
        assert found_wrong == {}  # so looks a copy that was made before this read


def test_copied_lines_are_compared_as_they_stand() -> None:
    evidence = by_hand(copied_group(), "copy-2")
    lines = lines_of(evidence, 2)
    lines[1] = replace(lines[1], raw="the same, written otherwise")
    assert wrong(evidence)["clocks"] == "copy-1/events.log:4: client-0 is in client-0/events.log:3 too"


def test_a_copy_whose_lines_do_not_tell_of_all_it_holds_is_caught() -> None:
    evidence = by_hand(copied_group(), "copy-2")
    del lines_of(evidence, 2)[1:3]
    assert wrong(evidence) == {
        "logs": "copy-1/journal: notes.txt@2: its op client-1:1 has no line in copy-1/events.log"
    }


def test_a_copied_line_that_the_original_does_not_have_is_caught() -> None:
    evidence = by_hand(copied_group(), "copy-2")
    del lines_of(evidence, 0)[2:]
    assert wrong(evidence)["clocks"] == "copy-1/events.log:5: client-0 is in client-0/events.log:3 too"


def test_a_line_of_the_original_behind_the_copys_own_is_caught() -> None:
    evidence = by_hand(copied_group(), "copy-2")
    lines_of(evidence, 2)[4] = lines_of(evidence, 0)[4]
    assert wrong(evidence)["clocks"] == "copy-1/events.log:7: client-0 is in client-0/events.log:3 too"


def test_a_copy_that_counts_on_as_its_original_is_caught() -> None:
    evidence = by_hand(copied_group(), "copy-2")
    for number in range(6, 11):
        change_line(evidence, 2, number, lambda event: replace(event, host="client-0"))
    evidence = change_client(evidence, 2, replace(evidence.clients[2], host="client-0"))
    assert {"complete", "clocks"} <= wrong(evidence).keys()


def test_a_copys_clock_begins_with_what_it_was_copied_with() -> None:
    evidence = by_hand(copied_group(), "copy-2")
    change_line(evidence, 2, 6, with_clock(**{"client-1": 1}))
    assert wrong(evidence)["clocks"] == "copy-1/events.log:6: the clock falls back from 2 to 1 for client-1"


def test_a_copys_time_begins_where_it_was_copied() -> None:
    evidence = by_hand(copied_group(), "copy-2")
    early_us = lines_of(evidence, 2)[2].event.time_us - 5
    change_line(evidence, 2, 6, lambda event: replace(event, time_us=early_us))
    assert wrong(evidence)["timestamps"] == "copy-1/events.log:6: 5 µs before the line before it"


def anew_group(*, lost: int = 1) -> Group:
    """client-0 has lost its newest events, as many reads, when client-1 knew of them; it goes on as client-0#2.

    Its log: 3 apply · 4 update of client-0 · 5 apply of client-0#2 · 6 write · 7 apply.
    """
    group = Group("client-0", "client-1")
    group.do(1, "write", text="one")
    group.do(0, "update", text="two")
    replica = group.replicas[0]
    clock = replica.clock
    for _ in range(lost):
        group.do(0, "read")
    del replica.lines[2:]
    replica.clock, replica.name = clock, "client-0#2"
    group.do(1, "write", text="three")
    group.do(0, "write", text="four")
    group.do(1, "update", text="five")
    return group


@pytest.mark.parametrize(("lost", "events"), [(1, "1 newest event"), (2, "2 newest events")])
def test_a_host_that_has_lost_its_newest_events_goes_on_under_another_name(lost: int, events: str) -> None:
    evidence = by_hand(anew_group(lost=lost))
    assert wrong(evidence) == {}
    assert found(evidence)["clocks"].detail == f"10 events of 3 hosts; no log here of {events} of client-0"
    assert found(evidence)["complete"].detail == "5 ops by 2 clients, each once"


def test_a_host_that_goes_on_has_lost_nothing() -> None:
    group = anew_group()
    group.replicas[0].name = "client-0"
    evidence = by_hand(group)
    del lines_of(evidence, 0)[2:]
    assert wrong(evidence)["clocks"] == "client-1/events.log:5: it knows event 3 of client-0, which has only 2"


@pytest.mark.parametrize(("number", "next_one"), [(3, "client-0 counts 2 where 1"), (5, "client-0#2 counts 2 where 1")])
def test_each_host_of_a_log_is_counted_on_its_own(number: int, next_one: str) -> None:
    evidence = by_hand(anew_group())
    change_line(evidence, 0, number, None)
    assert wrong(evidence)["clocks"] == f"client-0#2/events.log:{number + 1}: {next_one} is next"


def test_a_former_hosts_op_without_its_line_is_caught() -> None:
    evidence = by_hand(anew_group(lost=0))
    lines_of(evidence, 0)[1] = replace(lines_of(evidence, 0)[0], number=4)
    assert (
        wrong(evidence)["logs"] == "client-0#2/journal: notes.txt@2: its op client-0:1 has no line in its author's log"
    )


def test_a_former_host_that_comes_again_is_caught() -> None:
    evidence = by_hand(anew_group())
    change_line(evidence, 0, 7, lambda event: replace(event, host="client-0", clock={**event.clock, "client-0": 3}))
    assert wrong(evidence)["clocks"] == "client-0#2/events.log:7: client-0 comes again, after client-0#2"


# 7. timestamps


def test_time_that_runs_back_is_caught() -> None:
    evidence = good_group().evidence()
    line = change_line(evidence, 0, 5, lambda event: event)
    change_line(evidence, 0, 6, lambda event: replace(event, time_us=line.event.time_us - 7))
    assert wrong(evidence) == {"timestamps": "client-0/events.log:6: 7 µs before the line before it"}


def test_lockds_time_that_runs_back_is_caught() -> None:
    evidence = good_group().evidence()
    lines = lock_lines(evidence)
    lines[6] = replace(lines[6], line=structs.replace(lines[6].line, time_us=lines[5].line.time_us - 7))
    assert wrong(evidence) == {"timestamps": "lockd/grants.log:7: 7 µs before the line before it"}


def test_a_record_of_another_time_is_caught() -> None:
    evidence = good_group().evidence()
    change_line(evidence, 0, 3, lambda event: replace(event, time_us=event.time_us - 7))
    assert wrong(evidence) == {"timestamps": "client-0/events.log:3: the journals have another time for notes.txt@1"}


@pytest.mark.parametrize(("number", "cause"), [(4, "client-1:1 itself"), (5, "the grant of 1.3")])
def test_an_effect_stamped_before_its_cause_is_caught(number: int, cause: str) -> None:
    evidence = good_group().evidence()
    before = lines_of(evidence, 0)[number - 4].event
    change_line(evidence, 0, number, lambda event: replace(event, time_us=before.time_us))
    assert re.fullmatch(rf"client-0/events\.log:{number}: \d+ µs before {cause}", wrong(evidence)["timestamps"])


# 8. logs


def test_an_apply_without_its_source_is_caught() -> None:
    evidence = good_group().evidence()
    change_line(
        evidence,
        0,
        4,
        lambda event: replace(event, values={k: v for k, v in event.values.items() if k != "from"}),
    )
    assert wrong(evidence) == {"logs": "client-0/events.log:4: the line has no from"}


@pytest.mark.parametrize("key", ["file", "id", "token", "seq", "hash"])
def test_a_line_without_a_value_is_caught(key: str) -> None:
    evidence = good_group().evidence()
    change_line(
        evidence,
        0,
        4,
        lambda event: replace(event, values={k: v for k, v in event.values.items() if k != key}),
    )
    assert wrong(evidence)["logs"] == f"client-0/events.log:4: the line has no {key}"
    evidence = good_group().evidence()
    if key in ("token", "seq", "hash"):
        change_line(evidence, 0, 4, with_values(**{key: "x"}))
        assert wrong(evidence)["logs"].startswith("client-0/events.log:4: ")


def test_an_op_without_its_authors_line_is_caught() -> None:
    group = Group()
    group.do(0, "write", text="one")
    evidence = group.evidence()
    change_line(evidence, 0, 3, None)
    assert wrong(evidence)["logs"] == (
        "client-0/journal: notes.txt@1: its op client-0:1 has no line in its author's log"
    )


@pytest.mark.parametrize("seq", [1, 2])
def test_an_op_without_a_line_in_its_replicas_log_is_caught(seq: int) -> None:
    group = Group()
    group.do(0, "write", text="one")
    group.do(0, "write", text="two")
    evidence = group.evidence()
    change_line(evidence, 2, 2 + seq, None)
    assert wrong(evidence)["logs"] == (
        f"client-2/journal: notes.txt@{seq}: its op client-0:{seq} has no line in client-2/events.log"
    )


def test_a_flaw_spoils_its_property_alone() -> None:
    flaws = [Flaw("logs", "client-0/events.log:9", "the last line is torn"), Flaw("logs", "x", "y")]
    evidence = replace(good_group().evidence(), flaws=flaws)
    assert wrong(evidence) == {"logs": "client-0/events.log:9: the last line is torn (and 1 more problem)"}


# 9. outcomes


def told_otherwise(number: int, **changes: object) -> dict[str, str]:
    """Return what is wrong with a good run in which one line of outcomes.jsonl, or a new one, tells otherwise.

    The lines: 1 write notes@1 · 2 write @2 · 3, 4 reads of @2 · 5 update @3 · 6 write plans@1 · 7 update notes@4 ·
    8 restore @5 · 9 write plans@2 · 10 read plans@2.
    """
    group = good_group()
    told = group.told()
    if number > len(told):
        told.append(replace(told[-1], number=number, **changes))  # type: ignore[arg-type]
    else:
        told[number - 1] = replace(told[number - 1], **changes)  # type: ignore[arg-type]
    return wrong(replace(group.evidence(), told=told))


def test_what_was_told_is_counted() -> None:
    group = good_group()
    told = group.told()
    told.append(Told(11, "client-2", "", "read", NOTES, "unknown", 0, None))
    told.append(Told(12, "client-2", "client-2:9", "write", NOTES, "unknown", 0, 1))
    told.append(Told(13, "client-2", "", "write", NOTES, "failed", 0, 1))
    told[1] = replace(told[1], outcome="unknown")
    evidence = replace(group.evidence(), told=told)
    clients = [replace(client, refused=number) for number, client in enumerate(evidence.clients)]
    evidence = replace(evidence, clients=clients)
    assert wrong(evidence) == {}
    assert found(evidence)["outcomes"].detail == (
        "9 ok, 1 failed, 3 unknown (1 happened, 1 not, 1 read); 3 late pushes refused"
    )
    assert "outcomes" not in found(group.evidence())


def test_a_lost_op_is_caught() -> None:
    said = told_otherwise(11, id="client-2:9", verb="write", file=NOTES, seq=6)
    assert said == {"outcomes": "outcomes.jsonl:11: client-2:9 was ok as notes.txt@6, but is not in the history"}


def test_an_op_at_another_place_than_told_is_caught() -> None:
    said = told_otherwise(2, seq=3)
    assert said == {"outcomes": "outcomes.jsonl:2: client-1:1 was ok as notes.txt@3, but stands as notes.txt@2"}
    said = told_otherwise(2, hash="0" * 12)
    assert said["outcomes"].endswith("notes.txt@2 with hash=000000000000, which is not in the history")


def test_a_read_of_what_is_not_in_the_history_is_caught() -> None:
    said = told_otherwise(3, hash="0123456789ab")
    assert said["outcomes"].startswith("outcomes.jsonl:3: client-2:1 was ok at notes.txt@2 with hash=0123456789ab")
    assert "which is not in the history" in told_otherwise(3, seq=9)["outcomes"]
    assert "no journal has that file" in told_otherwise(3, file="other.txt")["outcomes"]


@pytest.mark.parametrize("name", ["client", "verb", "version", "hash"])
def test_an_op_that_was_told_otherwise_than_logged_is_caught(name: str) -> None:
    """What was told is in the history; only the line of its client says otherwise."""
    group = good_group()
    told = group.told()
    first = told[0]
    said = {
        "client": lambda: told_otherwise(2, client="client-0"),
        "verb": lambda: told_otherwise(2, verb="update"),
        "version": lambda: told_otherwise(3, seq=first.seq, hash=first.hash),
        "hash": lambda: wrong(replace(read_with_another_hash(group, "0" * 12), told=told)),
    }[name]()
    assert f" was told with the {name} " in said["outcomes"]


def read_with_another_hash(group: Group, hash_: str) -> Evidence:
    evidence = group.evidence()
    number = next(line.number for line in lines_of(evidence, 2) if line.event.verb == "read")
    change_line(evidence, 2, number, with_values(hash=hash_))
    return evidence


def test_an_op_that_was_told_and_has_no_line_is_caught() -> None:
    group = good_group()
    evidence = replace(group.evidence(), told=group.told())
    lines = lines_of(evidence, 2)
    assert lines.pop().event.verb == "read"
    assert wrong(evidence)["outcomes"] == "outcomes.jsonl:10: client-2:3 was ok, but the log of client-2 has no line"


def test_an_op_that_failed_and_happened_is_caught() -> None:
    said = told_otherwise(5, outcome="failed")
    assert said == {"outcomes": "outcomes.jsonl:5: client-2:2 failed, but stands in the history as notes.txt@3"}


def test_an_op_that_nobody_asked_for_is_caught() -> None:
    group = good_group()
    told = group.told()
    del told[1]
    said = wrong(replace(group.evidence(), told=told))
    assert said == {"outcomes": "client-0/journal: notes.txt@2: nobody asked for its op client-1:1, by outcomes.jsonl"}


@pytest.mark.parametrize(("changes", "fits"), [({}, True), ({"verb": "update"}, False), ({"file": PLANS}, False)])
def test_an_op_that_was_cut_off_may_have_happened_once(changes: dict[str, str], fits: bool) -> None:
    """The last op of client-1 on notes.txt, its third, was cut off; and another one of it before."""
    said = told_otherwise(8, outcome="unknown", id="", ended_us=None, seq=0, hash="", **changes)
    assert (said == {}) == fits, said


def test_an_op_cut_off_before_another_was_told_is_not_a_later_one() -> None:
    group = good_group()
    told = group.told()
    told[7] = replace(told[7], outcome="unknown", id="", ended_us=None, began_us=told[5].began_us - 1)
    assert "nobody asked for its op client-1:3" in wrong(replace(group.evidence(), told=told))["outcomes"]


def told_of_one_that_was_wiped(cut_off: int, **changes: object) -> dict[str, str]:
    """Return what is wrong where client-1 loses its directory after two of its four writes, and one is cut off."""
    group = Group("client-0", "client-1", "client-1#2")
    for index in (1, 1, 2, 2):
        group.do(index, "write", text="one more")
    told = [replace(one, client="client-1") for one in group.told()]
    assert [one.id for one in told] == ["client-1:1", "client-1:2", "client-1#2:1", "client-1#2:2"]
    told[cut_off] = replace(told[cut_off], outcome="unknown", id="", ended_us=None, seq=0, hash="")
    told[cut_off] = replace(told[cut_off], **changes)  # type: ignore[arg-type]
    return wrong(replace(group.evidence(), told=told))


@pytest.mark.parametrize("cut_off", range(4))
def test_a_client_that_lost_its_directory_may_be_cut_off_before_and_after(cut_off: int) -> None:
    assert told_of_one_that_was_wiped(cut_off) == {}
    assert "nobody asked for its op client-1" in told_of_one_that_was_wiped(cut_off, verb="update")["outcomes"]
    assert "nobody asked for its op client-1" in told_of_one_that_was_wiped(cut_off, client="client-0")["outcomes"]


def test_an_op_cut_off_after_the_directory_was_lost_is_not_one_of_before() -> None:
    late = 1 << 60
    assert "its op client-1:2, by" in told_of_one_that_was_wiped(1, began_us=late)["outcomes"]
    assert "its op client-1#2:1, by" in told_of_one_that_was_wiped(2, began_us=0)["outcomes"]


def test_an_op_told_twice_is_caught() -> None:
    said = told_otherwise(11, id="client-1:1")
    assert said == {"outcomes": "outcomes.jsonl:11: client-1:1 was told before, by outcomes.jsonl:2"}


def test_an_op_that_happened_twice_is_caught() -> None:
    group = good_group()
    evidence = replace(group.evidence(), told=group.told())
    for index in range(3):
        change_record(evidence, index, NOTES, 3, id="client-1:1")
    said = wrong(evidence)["outcomes"]
    assert said == "client-0/journal: notes.txt@3: client-1:1 happened a second time, after notes.txt@2"


def test_a_read_of_an_old_version_is_caught() -> None:
    late = good_group().told()[4].ended_us
    assert late is not None
    said = told_otherwise(3, began_us=late + 1, ended_us=late + 2)
    assert said["outcomes"].startswith("outcomes.jsonl:3: client-2:1 (read notes.txt@2, outcomes.jsonl:3) began after")
    assert said["outcomes"].endswith("(update notes.txt@3, outcomes.jsonl:5), but saw an older version")


def test_a_read_of_what_had_not_begun_is_caught() -> None:
    early = good_group().told()[1].began_us
    said = told_otherwise(3, began_us=early - 2, ended_us=early - 1)
    assert said["outcomes"].startswith("outcomes.jsonl:2: client-1:1 (write notes.txt@2, outcomes.jsonl:2) began after")
    assert said["outcomes"].endswith("(read notes.txt@2, outcomes.jsonl:3), but is not behind it")


def test_changes_against_real_time_are_caught() -> None:
    late = good_group().told()[7].ended_us
    assert late is not None
    said = told_otherwise(5, began_us=late + 1, ended_us=late + 2)
    assert said["outcomes"].startswith(
        "outcomes.jsonl:5: client-2:2 (update notes.txt@3, outcomes.jsonl:5) began after"
    )
    # Of an unknown op nobody knows the end, but it has a begin.
    assert told_otherwise(5, outcome="unknown", began_us=late + 1, ended_us=late + 2) == said
    assert told_otherwise(5, outcome="unknown", ended_us=late + 2) == {}


# Runs with faults


def under_faults(evidence: Evidence, told: list[Told] | None = None) -> Evidence:
    assert evidence.asked is not None
    return replace(evidence, asked=replace(evidence.asked, faults=("kill", "pause")), told=told)


def killed_amid_an_op(group: Group) -> None:
    """Let client-0 be killed between an op's line and its record."""
    doing = group.begin(0, "write", text="lost")
    cut(group.replicas[0], NOTES, doing.replica.version(NOTES).seq - 1)
    group._lock_line("expiry", doing)
    group.held[NOTES].remove(doing)
    group.done -= 1


def lone_line(group: Group, *, undone: bool = True) -> None:
    """Let client-0 be killed between an op's line and its record, start again, and do another op."""
    killed_amid_an_op(group)
    if undone:
        log_what_is_true(group, 0, 1)
    group.do(0, "write", text="after that")


def test_a_line_that_a_kill_left_alone_is_no_damage_under_faults() -> None:
    group = good_group()
    lone_line(group)
    told = [*group.told(), Told(99, "client-0", "", "write", NOTES, "unknown", 1, None)]
    evidence = under_faults(group.evidence(), told)
    assert evidence.asked is not None
    evidence = replace(evidence, asked=replace(evidence.asked, ops=12))
    assert wrong(evidence) == {}
    assert found(evidence)["complete"].detail == (
        "12 of 12 ops by 3 clients, each once, under 2 kinds of faults, 1 undone"
    )
    assert wrong(replace(group.evidence(), asked=None)) == {}, "by hand, a client may be killed"


def test_a_line_that_a_kill_left_alone_is_undone_before_another_op() -> None:
    group = good_group()
    lone_line(group, undone=False)
    assert wrong(under_faults(group.evidence()))["hash chain"].startswith("client-0/events.log:11: ")
    assert wrong(replace(group.evidence(), asked=None))["hash chain"].startswith("client-0/events.log:11: ")


def test_a_line_that_no_kill_can_have_left_is_caught_under_faults_too() -> None:
    evidence = under_faults(good_group().evidence())
    change_line(evidence, 0, 6, with_values(id="client-2:77"))
    expected = "client-0/events.log:6: id=client-2:77, but client-0/journal: notes.txt@3 has client-2:2"
    assert wrong(evidence)["hash chain"] == expected
    assert wrong(replace(evidence, asked=None))["hash chain"] == expected


def test_ops_that_were_not_done_under_faults_are_caught() -> None:
    group = good_group()
    evidence = under_faults(group.evidence(), group.told()[:-1])
    assert wrong(evidence) == {"complete": "run.json: 9 of 10 ops were done or are unknown"}
    beside = [*group.told(), replace(group.told()[-1], number=11, id="client-2:9", beside=True)]
    assert "complete" not in wrong(under_faults(group.evidence(), beside))
    asked = under_faults(group.evidence()).asked
    assert asked is not None
    asked = replace(asked, ops=0)
    by_time = replace(group.evidence(), asked=asked)
    assert wrong(by_time) == {}
    more = replace(by_time, asked=replace(asked, clients=4))
    assert wrong(more)["complete"].startswith("run.json: 4 clients asked for, 3 left")
    unfinished = replace(by_time, asked=replace(asked, finished=False))
    assert wrong(unfinished)["complete"].startswith("run.json: the run has not finished")


def test_a_replica_that_is_behind_after_all_was_mended_is_caught() -> None:
    evidence = under_faults(behind(good_group().evidence(), 2))
    assert wrong(evidence)["replay"] == "client-2/journal: behind: deep/plans.txt is at version 1 of 2"


def test_a_run_under_faults_that_was_stopped_may_end_unequal() -> None:
    group = good_group()
    group.begin(2, "write", text="lost")
    evidence = under_faults(behind(group.evidence(), 1))
    assert evidence.asked is not None
    stopped = replace(evidence, asked=replace(evidence.asked, finished=False, stopped=True))
    assert wrong(stopped) == {}
    assert found(stopped)["complete"].detail.endswith("; stopped by the user")


def test_of_branches_as_long_the_one_of_the_newer_token_counts() -> None:
    group = good_group()
    lost = group.begin(0, "write", text="lost")
    group._lock_line("expiry", lost)
    group.held[NOTES].remove(lost)
    mine = group.replicas.pop(0)
    group.do(0, "write", text="kept")
    group.replicas.insert(0, mine)
    evidence = under_faults(group.evidence())
    assert evidence.asked is not None
    stopped = replace(evidence, asked=replace(evidence.asked, finished=False, stopped=True))
    assert wrong(stopped) == {}
    assert "client-0 is behind (notes.txt@6 is unknown to the others" in found(stopped)["replay"].detail


def test_what_a_killed_lockd_had_granted_ends_by_a_line_of_the_next_one() -> None:
    group = good_group()
    doing = group.begin(0, "read")
    group.held[NOTES].remove(doing)
    group.done -= 1
    group.replicas[0].lines.pop()
    group.replicas[0].clock = dict(group.replicas[0].lines[-1].event.clock)
    assert "never let go" in wrong(under_faults(group.evidence()))["tokens"]
    group._lock_line("expiry", doing)
    assert wrong(under_faults(group.evidence())) == {}


def test_a_read_that_lost_its_lock_need_not_be_before_the_next_change() -> None:
    group = good_group()
    doing = group.begin(0, "read")
    group._lock_line("expiry", doing)
    group.held[NOTES].remove(doing)
    group.do(1, "write", text="did not hear of that read")
    assert wrong(under_faults(group.evidence())) == {}
    lines = lock_lines(under_faults(group.evidence()))
    (index,) = [index for index, entry in enumerate(lines) if entry.line.event == "expiry"]
    lines[index] = replace(lines[index], line=structs.replace(lines[index].line, event="release"))
    said = wrong(under_faults(group.evidence()))
    assert "its clock is not after that of the read before it" in said["clocks"]


# Real files


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


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A good run on disk, with a file that was only ever read."""
    group = good_group()
    group.do(1, "read", "empty.txt")
    (tmp_path / "run").mkdir()
    return write_run(group, tmp_path / "run")


def everything_in(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(directory)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in directory.rglob("*")
        if path.is_file()
    }


def wrong_on_disk(*directories: Path) -> dict[str, str]:
    return {finding.name: finding.detail for finding in checker.check(directories) if not finding.ok}


def replace_in(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def cut_line(path: Path, number: int) -> bytes:
    """Take a line out of a file; return it."""
    lines = path.read_bytes().splitlines(keepends=True)
    line = lines.pop(number - 1)
    path.write_bytes(b"".join(lines))
    return line


def test_a_run_on_disk_is_read_as_it_was_made(run: Path) -> None:
    group = good_group()
    group.do(1, "read", "empty.txt")
    made = group.evidence()
    with open_run([run]) as evidence:
        assert evidence.flaws == []
        assert evidence.asked == made.asked
        assert evidence.told == group.told()
        assert evidence.grants is not None and made.grants is not None
        assert [entry.line for entry in evidence.grants.lines] == [entry.line for entry in made.grants.lines]
        assert [entry.number for entry in evidence.grants.lines] == [entry.number for entry in made.grants.lines]
        for read, client in zip(evidence.clients, made.clients, strict=True):
            assert (read.name, read.host) == (client.name, client.host)
            assert [(line.number, line.event) for line in read.lines] == [
                (line.number, line.event) for line in client.lines
            ]
            assert read.journals == client.journals
            assert read.files == client.files
            assert read.snapshots is not None and client.snapshots is not None
            assert read.snapshots.newest == client.snapshots.newest
            for file, newest in read.snapshots.newest.items():
                for seq in range(newest + 1):
                    assert read.snapshots.content(file, seq) == client.snapshots.content(file, seq)


def test_the_check_writes_nothing(run: Path) -> None:
    before = everything_in(run)
    assert wrong_on_disk(run) == {}
    assert everything_in(run) == before


def test_a_journal_that_a_kill_left_is_read(run: Path) -> None:
    group = good_group()
    group.do(1, "read", "empty.txt")
    data = run / "client-1"
    events = (data / "events.log").read_bytes()
    shutil.rmtree(data)
    journal = write_journal(group.replicas[1], run / "open")
    try:
        shutil.copytree(run / "open", data)
    finally:
        journal.close()
        shutil.rmtree(run / "open")
    (data / "events.log").write_bytes(events)
    log = data / "journal" / "1.ops"
    whole = log.read_bytes()
    change = whole[whole.index(b"\n") + 1 :]
    for length in range(0, len(change), 17):
        log.write_bytes(whole + change[:length])
        before = everything_in(run)
        assert wrong_on_disk(run) == {}, length
        assert everything_in(run) == before


def test_data_directories_may_be_given_one_by_one_and_as_parents(run: Path, tmp_path: Path) -> None:
    (run / "run.json").unlink()
    one = run / "client-1"
    elsewhere = tmp_path / "elsewhere" / "somebody"
    elsewhere.parent.mkdir()
    shutil.move(one, elsewhere)
    assert wrong_on_disk(run / "client-0", elsewhere, run / "client-2", run / "lockd") == {}
    assert wrong_on_disk(run, elsewhere.parent, run / "lockd") == {}
    findings = {f.name: f for f in checker.check([run / "client-0", elsewhere, run / "client-2"])}
    assert all(finding.ok for finding in findings.values())
    assert "no grants.log" in findings["tokens"].detail
    assert findings["complete"].detail == "11 ops by 3 clients, each once"
    (elsewhere / "files" / "x").touch()
    assert wrong_on_disk(run, elsewhere) == {"replay": "somebody/files/x: no op made this file"}


def test_directories_of_one_name_are_told_apart(run: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first = (run / "client-0").rename(tmp_path / "a" / "data")
    second = (run / "client-1").rename(tmp_path / "b" / "data")
    with open_run([first, second]) as evidence:
        assert [client.name for client in evidence.clients] == [str(first), str(second)]


@pytest.mark.parametrize("what", ["nothing", "a file", "an empty directory", "two runs"])
def test_what_is_no_run_is_refused(run: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    directories = {
        "nothing": [tmp_path / "none"],
        "a file": [run / "run.json"],
        "an empty directory": [tmp_path / "empty"],
        "two runs": [run, tmp_path / "again"],
    }[what]
    (tmp_path / "empty").mkdir()
    shutil.copytree(run, tmp_path / "again")
    with pytest.raises(NoRun), open_run(directories):
        pass
    assert checker.main([str(path) for path in directories]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1 and output.err.startswith("scripts/check: ")


def test_the_command_prints_a_line_per_property(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checker.main([str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[0] for line in lines] == ["✔"] * len(PROPERTIES)
    assert [line[2:].split("  ")[0] for line in lines] == list(PROPERTIES)
    replace_in(run / "client-0" / "files" / NOTES, b"one", b"oNe")
    assert checker.main(["--json", str(run)]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is False
    assert {p["name"]: p["ok"] for p in said["properties"]}["replay"] is False


@pytest.mark.parametrize("arguments", [[], ["--nonsense"], ["--json"]])
def test_wrong_use_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        checker.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


# Damage on disk: what, and which property names which place


def cut_log_line(run: Path) -> None:
    cut_line(run / "client-0" / "events.log", 5)


def cut_last_line(run: Path) -> None:
    cut_line(run / "client-0" / "events.log", len((run / "client-0" / "events.log").read_bytes().splitlines()))


def tear_last_line(run: Path) -> None:
    path = run / "client-2" / "events.log"
    path.write_bytes(path.read_bytes()[:-9])


def change_header(run: Path) -> None:
    replace_in(run / "client-2" / "events.log", b"(?<timestamp>", b"(?<time>")


def break_line(run: Path) -> None:
    replace_in(run / "client-0" / "events.log", b" apply ", b" Apply ")


def not_utf8(run: Path) -> None:
    replace_in(run / "client-0" / "events.log", b"text=one", b"text=\xff\xfe")


def remove_log(run: Path) -> None:
    (run / "client-1" / "events.log").unlink()


def break_grant(run: Path) -> None:
    replace_in(run / "lockd" / "grants.log", b"event=grant", b"event=gift")


def swap_tokens(run: Path) -> None:
    path = run / "lockd" / "grants.log"
    data = path.read_bytes().replace(b"token=1.1 ", b"token=9.9 ").replace(b"token=1.2 ", b"token=1.1 ")
    path.write_bytes(data.replace(b"token=9.9 ", b"token=1.2 "))


def change_replica(run: Path) -> None:
    replace_in(run / "client-2" / "files" / NOTES, b"half", b"hAlf")


def add_file(run: Path) -> None:
    (run / "client-2" / "files" / "a\nb").touch()


def link_file(run: Path) -> None:
    (run / "client-2" / "files" / "link").symlink_to(run / "run.json")


def remove_journal(run: Path) -> None:
    shutil.rmtree(run / "client-1" / "journal")


def spoil_journal(run: Path) -> None:
    (run / "client-1" / "journal" / "2.ops").write_bytes(b"no log at all\n" * 100)


def spoil_meta(run: Path) -> None:
    (run / "client-1" / "journal" / "meta").write_bytes(b"{}")


def tear_in_two(run: Path) -> None:
    log = run / "client-1" / "journal" / "1.ops"
    data = log.read_bytes()
    log.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])


def tear_size(run: Path) -> None:
    """Have the first op's entry, a part of the first change, go on beyond the end of the log."""
    log = run / "client-1" / "journal" / "1.ops"
    data = bytearray(log.read_bytes())
    struct.pack_into("<I", data, data.index(b"\n") + 1, 1 << 20)
    log.write_bytes(data)


def bury_change(run: Path) -> None:
    """Put what could have been torn by a crash before the last change."""
    log = run / "client-1" / "journal" / "1.ops"
    data = log.read_bytes()
    at = data.index(b"\n") + 1
    while (after := at + int(struct.unpack_from("<I", data, at)[0])) < len(data):
        at = after
    log.write_bytes(data[:at] + (1 << 20).to_bytes(4, "little") + b"torn" + data[at:])


def change_op(run: Path, id_: str, change: Callable[[bytearray, int, int, int], None]) -> None:
    """Change the entry of an op, given where it, its record, and what it removed begin; then mend its checksum."""
    for log in (run / "client-1" / "journal").glob("*.ops"):
        data = bytearray(log.read_bytes())
        named = data.find(bytes([0xA0 + len(id_)]) + id_.encode())
        if named < 0:
            continue
        start = data.index(b"\n") + 1
        while start + struct.unpack_from("<I", data, start)[0] <= named:
            start += struct.unpack_from("<I", data, start)[0]
        end = start + struct.unpack_from("<I", data, start)[0]
        record = start + OP_HEAD_BYTES
        op = read_op(bytes(data[start:record]), start)
        assert op is not None
        change(data, start, record, op.removed_at)
        struct.pack_into("<I", data, record - 4, zlib.crc32(data[start + 8 : record - 4]))
        struct.pack_into("<I", data, start + 4, zlib.crc32(data[start + 8 : end]))
        log.write_bytes(data)
        return
    raise AssertionError(id_)


def change_inserted(run: Path) -> None:
    def change(data: bytearray, start: int, record: int, removed: int) -> None:
        at = data.index(b"one\n", record)
        data[at : at + 3] = b"oNe"

    change_op(run, "client-0:1", change)


def change_hash(run: Path) -> None:
    def change(data: bytearray, start: int, record: int, removed: int) -> None:
        data[record - 32 : record - 16] = bytes(16)

    change_op(run, "client-2:2", change)


def change_type(run: Path) -> None:
    def change(data: bytearray, start: int, record: int, removed: int) -> None:
        data[record + 1] = 0xC0

    change_op(run, "client-2:2", change)


def change_removed(run: Path) -> None:
    def change(data: bytearray, start: int, record: int, removed: int) -> None:
        data[removed] ^= 1

    change_op(run, "client-1:3", change)


def spoil_outcome(run: Path) -> None:
    replace_in(run / "outcomes.jsonl", b'"ok"', b'"good"')


def cut_outcome(run: Path) -> None:
    cut_line(run / "outcomes.jsonl", 2)


def tear_outcome(run: Path) -> None:
    path = run / "outcomes.jsonl"
    path.write_bytes(path.read_bytes()[:-9])


def spoil_run_json(run: Path) -> None:
    (run / "run.json").write_text("[]", encoding="utf-8")


def wait_for_more(run: Path) -> None:
    replace_in(run / "run.json", b'"ops": 11', b'"ops": 12')


DAMAGES: list[tuple[Callable[[Path], None], str, str]] = [
    (cut_log_line, "clocks", "client-0/events.log:5: client-0 counts 4 where 3 is next"),
    (cut_last_line, "logs", "client-0/journal: deep/plans.txt@2: its op client-0:4 has no line"),
    (tear_last_line, "logs", "client-2/events.log:"),
    (change_header, "logs", "client-2/events.log:1: "),
    (break_line, "logs", "client-0/events.log:4: the line cannot be read: "),
    (not_utf8, "logs", "client-0/events.log:3: the line cannot be read: "),
    (remove_log, "logs", "client-1/events.log: it cannot be read: no such file"),
    (break_grant, "logs", "lockd/grants.log:1: the line cannot be read: the event 'gift' is unknown"),
    (swap_tokens, "tokens", "lockd/grants.log:1: grants are missing or out of order before 1.2"),
    (change_replica, "replay", "client-2/files/notes.txt: differs from version 5 replayed"),
    (add_file, "replay", "client-2/files/a\\nb: no op made this file"),
    (link_file, "replay", "client-2/files/link: it is not a plain file"),
    (remove_journal, "hash chain", "client-1/journal: it is missing"),
    (spoil_journal, "hash chain", "client-1/journal: 2.ops: its first line is b'no log at all'"),
    (spoil_meta, "hash chain", "client-1/journal: "),
    (tear_in_two, "hash chain", "client-1/journal: 1.ops: notes.txt is damaged at byte "),
    (tear_size, "hash chain", "client-1/journal: 1.ops: notes.txt is damaged at byte 40: the log goes on behind that"),
    (bury_change, "hash chain", "client-1/journal: 1.ops: notes.txt is damaged at byte 929: the log goes on behind"),
    (change_inserted, "hash chain", "client-1/journal: notes.txt@1: its hash does not follow"),
    (change_hash, "hash chain", "client-1/journal: notes.txt@3: its hash does not follow"),
    (change_type, "hash chain", "client-1/journal: notes.txt@3 cannot be read: "),
    (change_removed, "snapshots", "client-1/snapshots: "),
    (spoil_outcome, "outcomes", "outcomes.jsonl:1: the line cannot be read: the outcome 'good' is unknown"),
    (cut_outcome, "outcomes", "client-0/journal: notes.txt@2: nobody asked for its op client-1:1"),
    (tear_outcome, "outcomes", "outcomes.jsonl:11: the line cannot be read: "),
    (spoil_run_json, "complete", "run.json: it cannot be read: "),
    (wait_for_more, "complete", "run.json: only 11 of 12 ops were done"),
]


@pytest.mark.parametrize(("damage", "name", "detail"), DAMAGES)
def test_damage_on_disk_is_caught(run: Path, damage: Callable[[Path], None], name: str, detail: str) -> None:
    damage(run)
    said = wrong_on_disk(run)
    assert said[name].startswith(detail)


def test_any_damaged_byte_ends_in_findings(tmp_path: Path) -> None:
    group = Group("client-0", "client-1")
    group.do(0, "write", text="one")
    group.do(1, "update", text="two")
    group.do(0, "read")
    (tmp_path / "good").mkdir()
    good = write_run(group, tmp_path / "good")
    files = sorted(path.relative_to(good) for path in good.rglob("*") if path.is_file())

    @settings(max_examples=150, deadline=None)
    @given(st.sampled_from(files), st.integers(0, 1 << 20), st.integers(1, 255), st.integers(1, 64))
    def damage(file: Path, position: int, by: int, width: int) -> None:
        data = (good / file).read_bytes()
        changed = bytearray(data)
        start = position % len(data)
        changed[start : start + width] = bytes([byte ^ by for byte in changed[start : start + width]])
        (good / file).write_bytes(changed)
        try:
            findings = checker.check([good])
        finally:
            (good / file).write_bytes(data)
        assert len(findings) == len(PROPERTIES)
        assert all("\n" not in finding.detail for finding in findings)

    damage()
    assert wrong_on_disk(good) == {}
