"""The verdict on runs with faults: what they leave is no damage, and damage is still found."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
from msgspec import structs

from common.clock import merge, tick
from common.eventlog import Event
from common.grantlog import GrantEvent
from common.records import Version
from common.tokens import make_token, parse_token
from common.wire import version_after
from scripts.verdict.evidence import Evidence, LockLine, Told
from tests.evidence import (
    NOTES,
    PLANS,
    Group,
    Replica,
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
    write_run,
    wrong,
    wrong_on_disk,
)

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
