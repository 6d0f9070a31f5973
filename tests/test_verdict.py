"""The verdict: a good run passes every property, and each damage is caught by its property, at its place."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from common.clock import concurrent, merge, tick
from common.records import EMPTY, Version
from common.tokens import make_token
from common.wire import version_after
from scripts.verdict import history
from scripts.verdict.causality import concurrent_pairs
from scripts.verdict.evidence import Flaw
from scripts.verdict.facts import gather
from scripts.verdict.properties import PROPERTIES, judge
from tests.evidence import (
    NOTES,
    PLANS,
    Doing,
    Group,
    Verb,
    behind,
    change_client,
    change_line,
    change_record,
    found,
    good_group,
    lines_of,
    lock_lines,
    show_wrongly,
    with_clock,
    with_values,
    wrong,
)

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
