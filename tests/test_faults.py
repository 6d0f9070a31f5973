"""Real processes that are killed, stopped and cut off; what they acknowledged is there, and nothing else happened."""

import json
import re
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest

from common.clock import happens_before_or_equal
from common.errors import EXIT_CRASHED, EXIT_OK, EXIT_REFUSED, EXIT_UNKNOWN
from common.eventlog import parse_event
from common.grantlog import GrantLine, parse_grant
from scripts.checker import as_lines, check
from tests.group import Child, Group, until

NAMES = ("a", "b", "c")
WORK = ("run", "--delay", "0..0", "--report", "--stay")


def works(group: Group, name: str, *options: str) -> Child:
    """Start a client that does ops without a pause."""
    return group.start("client", *WORK, "--data", name, *options)


def ended(child: Child) -> list[dict[str, object]]:
    """Return what a working client has told of the ops that it has ended."""
    told = [json.loads(line) for line in child.out.decode().splitlines() if line.startswith("{") and line.endswith("}")]
    return [event for event in told if event["event"] == "end"]


def have_done(workers: list[Child], ops: int) -> bool:
    """Tell whether each has ended so many ops."""
    return all(len(ended(worker)) >= ops for worker in workers)


def grants(group: Group) -> list[GrantLine]:
    text = group.path("lockd", "grants.log").read_text()
    return [parse_grant(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def log(group: Group, name: str) -> str:
    path = group.path(name, "lockd.log" if name == "lockd" else "client.log")
    return path.read_text() if path.exists() else ""


def passes_the_check(group: Group, *clients: str) -> None:
    findings = check([group.path(name) for name in (*clients, "lockd")])
    assert all(finding.ok for finding in findings), as_lines(findings)


def acknowledged_is_there(group: Group, children: list[Child], names: tuple[str, ...]) -> None:
    """Hold every change that was told to be ok against every replica's history."""
    for name in names:
        ids = {
            each["id"]: each["seq"] for each in json.loads(group.ok("snapshots", "notes.txt", "--data", name, "--json"))
        }
        for child in children:
            for event in ended(child):
                if event["verb"] != "read" and event["outcome"] == "ok":
                    assert ids.get(event["id"]) == event["seq"], (name, event)


def test_a_holder_that_stands_still_past_its_lease_is_refused_by_all_and_goes_on(group: Group) -> None:
    group.lockd("--ttl", "500ms")
    clients = [group.serving(name) for name in ("a", "b")]
    slow = group.start(
        "client", "run", "--ops", "3", "--seed", "3", "--delay", "0..0", "--stall", "1500ms", "--data", "slow"
    )
    until(lambda: " notes.txt " in str(grants(group)) or "slow" in {line.client for line in grants(group)}, "it holds")
    until(lambda: any(line.event == "expiry" and line.client == "slow" for line in grants(group)), "its lease ends")
    group.op("a", "write", "meanwhile")
    done = slow.end()
    assert done.code == EXIT_UNKNOWN
    assert b" unknown " in done.out
    for name in ("a", "b"):
        assert re.search(
            r"refused a push of slow to notes\.txt: its token 1\.\d+ is fenced by 1\.\d+", log(group, name)
        )
    assert re.search(r"[ab] refused our push to notes\.txt: 1\.\d+ is fenced by 1\.\d+", log(group, "slow"))
    events = [parse_event(line) for line in group.path("slow", "events.log").read_text().splitlines()[2:]]
    undone = {event.values["id"] for event in events if event.verb == "undo"}
    kept = json.loads(group.ok("snapshots", "notes.txt", "--data", "a", "--json"))
    assert undone and undone.isdisjoint(each["id"] for each in kept)
    assert group.ok("write", "notes.txt", "after", "--data", "slow").startswith(b"ok notes.txt@")
    for process in clients:
        assert process.stop().code == EXIT_OK
    passes_the_check(group, "a", "b", "slow")


def test_a_killed_holder_is_out_of_the_way_in_a_fraction_of_its_lease(group: Group) -> None:
    group.lockd("--ttl", "20s")
    a = group.serving("a")
    group.op("a", "write", "first")
    options = ("--ops", "1", "--seed", "3", "--delay", "0..0", "--stall", "60s", "--group", "2")
    victim = group.start("client", "run", *options, "--data", "victim")
    lines = group.path("victim", "events.log")
    until(lambda: lines.exists() and " id=victim:1 " in lines.read_text(), "it holds the lock")
    victim.stop(signal.SIGKILL)
    group.op("a", "write", "next")
    until(lambda: any(line.event == "expiry" for line in grants(group)), "the lock is taken from the dead")
    assert group.client("read", "notes.txt", "--data", "victim").out == b"first\nnext\n"
    a.stop()
    passes_the_check(group, "a", "victim")


def test_lockd_is_killed_again_and_again_and_its_clients_go_on(group: Group) -> None:
    lockd = group.lockd("--ttl", "2s")
    bind = group.endpoint
    workers = [works(group, name, "--ops", "400") for name in NAMES]
    for rounds in range(1, 4):
        until(partial(have_done, workers, 40 * rounds), "they work")
        lockd.stop(signal.SIGKILL)
        lockd = group.lockd("--ttl", "2s", "--bind", bind)
    for worker in workers:
        worker.says('"event": "done"')
    acknowledged_is_there(group, workers, NAMES)
    for worker in workers:
        assert worker.stop().code in (EXIT_OK, EXIT_UNKNOWN)
    lockd.stop()
    passes_the_check(group, *NAMES)
    assert "waiting, 2 s at the most, for the sessions of a, b, c" in log(group, "lockd")


@pytest.mark.parametrize("durability", ["disk", "memory"])
def test_everybody_is_killed_at_once_and_nothing_acknowledged_is_lost(group: Group, durability: str) -> None:
    lockd, bind = group.lockd("--ttl", "500ms"), group.endpoint
    workers: list[Child] = []
    for _ in range(2):
        now = [works(group, name, "--ops", "100000", "--durability", durability) for name in NAMES]
        workers += now
        until(partial(have_done, now, 20), "they work")
        for process in (*now, lockd):
            process.send(signal.SIGKILL)
        for process in (*now, lockd):
            process.end()
        lockd = group.lockd("--ttl", "500ms", "--bind", bind)
    clients = [group.serving(name, "--durability", durability) for name in NAMES]
    for name in NAMES:
        group.op(name, "write", f"{name} is back")
    acknowledged_is_there(group, workers, NAMES)
    for process in clients:
        assert process.stop().code == EXIT_OK
    assert len({group.path(name, "files", "notes.txt").read_bytes() for name in NAMES}) == 1
    lockd.stop()
    passes_the_check(group, *NAMES)


def test_where_only_the_lost_have_the_newest_version_an_operator_may_give_it_up(group: Group) -> None:
    group.lockd("--ttl", "500ms")
    a, b = group.serving("a"), group.serving("b")
    group.op("a", "write", "of both")
    b.stop(signal.SIGKILL)
    group.op("a", "write", "of a alone")
    a.stop(signal.SIGKILL)
    until(lambda: "session 1 of a is over" in log(group, "lockd"), "a is missed")
    group.serving("b")
    told = group.client("write", "notes.txt", "no", "--data", "b", "--wait", "200ms")
    assert told.code == EXIT_REFUSED
    assert "only absent clients hold the newest version of notes.txt: a; start one of them" in told.err
    assert group.client("give-up", "notes.txt", "--of", "b").code == EXIT_REFUSED
    assert group.ok("give-up", "notes.txt", "--of", "a") == b"ok notes.txt goes on from 1 replica\n"
    group.op("b", "write", "of b")
    group.serving("a")
    until(lambda: group.path("a", "files", "notes.txt").read_bytes() == b"of both\nof b\n", "a learns")


def test_ops_that_only_the_absent_could_serve_end_when_they_return(group: Group) -> None:
    group.lockd("--ttl", "500ms")
    a, b = group.serving("a"), group.serving("b")
    b.stop(signal.SIGKILL)
    group.op("a", "write", "of a alone")
    a.stop(signal.SIGKILL)
    waiting = group.start("client", "write", "notes.txt", "then", "--data", "b", "--wait", "25s")
    until(lambda: "joined as b" in log(group, "b").rpartition("was told to end")[2], "b is back")
    group.serving("a")
    done = waiting.end()
    assert (done.code, done.err) == (EXIT_OK, "")
    assert group.path("a", "files", "notes.txt").read_bytes() == b"of a alone\nthen\n"


def test_a_lockd_that_lost_its_state_is_rebuilt_from_the_replicas(group: Group) -> None:
    lockd, bind = group.lockd("--ttl", "500ms"), group.endpoint
    clients = [group.serving(name) for name in NAMES]
    group.op("a", "write", "one")
    assert group.op("a", "read").content == b"one\n"
    for process in (*clients, lockd):
        process.stop()
    shutil.rmtree(group.path("lockd"))
    empty = group.lockd("--ttl", "500ms", "--bind", bind)
    told = group.client("read", "notes.txt", "--data", "a")
    assert told.code == EXIT_REFUSED and "has lockd lost its state? start it with --rebuild" in told.err
    empty.stop()
    again = group.start("lockd", "--ttl", "500ms", "--bind", bind, "--data", "lockd", "--rebuild", "3")
    clients = [group.start("client", "serve", "--data", name) for name in NAMES]
    assert again.ready().endswith("epoch 2")
    for process in clients:
        process.ready()
    group.op("b", "write", "two")
    assert group.op("c", "read").content == b"one\ntwo\n"
    read, written = [
        next(event for line in lines if (event := parse_event(line)).verb == verb and event.host == name)
        for name, verb in (("a", "read"), ("b", "write"))
        for lines in [group.path(name, "events.log").read_text().splitlines()[2:]]
    ]
    assert happens_before_or_equal(read.clock, written.clock), "the read of a is known of from its log"
    for process in (*clients, again):
        assert process.stop().code == EXIT_OK
    refused = group.start("lockd", "--bind", bind, "--data", "lockd", "--rebuild", "3").end()
    assert refused.code == EXIT_REFUSED and "holds the state of a group" in refused.err


def test_a_retry_by_its_id_is_done_once(group: Group) -> None:
    group.lockd()
    a = group.serving("a")
    first = group.ok("write", "notes.txt", "one", "--data", "a")
    group.op("a", "write", "two")
    assert group.ok("write", "notes.txt", "one", "--data", "a", "--retry", "a:9", "--retry", "a:1") == first
    assert group.ok("write", "notes.txt", "one", "--data", "b", "--retry", "a:1") == first
    assert group.ok("update", "notes.txt", "new", "--data", "a", "--retry", "a:9").startswith(b"ok notes.txt@3 ")
    assert group.op("a", "read").content == b"one\ntwo --- new\n"
    wrong = group.client("write", "notes.txt", "one", "--data", "a", "--retry", "one")
    assert (wrong.code, wrong.err) == (2, "client: --retry one: an op's id reads like anna:7\n")
    assert a.stop().code == EXIT_OK


def test_a_read_of_a_file_that_somebody_has_spoiled_fails_and_the_client_goes_on(group: Group) -> None:
    group.lockd()
    a = group.serving("a")
    group.op("a", "write", "one")
    file, outside = group.path("a", "files", "notes.txt"), group.path("outside")
    outside.write_text("not one\n")
    file.unlink()
    file.symlink_to(outside)
    read = group.client("read", "notes.txt", "--data", "a")
    assert read.code == EXIT_REFUSED and "links are not followed" in read.err
    file.unlink()
    assert group.op("a", "read").content == b"one\n"
    assert a.stop().code == EXIT_OK


def test_a_client_whose_directory_is_deleted_ends(group: Group) -> None:
    group.lockd("--ttl", "500ms")
    a, b = group.serving("a"), group.serving("b")
    group.op("a", "write", "one")
    shutil.rmtree(group.path("b"))
    ended = b.end()
    assert ended.code == EXIT_CRASHED and "b/events.log was deleted while this client ran" in ended.err
    group.op("a", "write", "two")
    assert a.stop().code == EXIT_OK


def test_a_wiped_directory_is_a_new_replica_and_the_old_one_is_missed_by_nobody(group: Group) -> None:
    group.lockd("--ttl", "500ms")
    a, b = group.serving("a"), group.serving("b")
    group.op("a", "write", "one")
    b.stop(signal.SIGKILL)
    shutil.rmtree(group.path("b"))
    group.op("a", "write", "two")
    group.serving("b")
    assert group.op("b", "read").content == b"one\ntwo\n"
    line = Path(group.path("b", "events.log")).read_text().splitlines()[2]
    assert parse_event(line).host == "b#2"
    a.stop()


def test_a_copy_of_a_living_clients_directory_is_another_replica(group: Group) -> None:
    lockd = group.lockd()
    clients = [group.serving(name) for name in ("a", "b")]
    group.op("a", "write", "one")
    group.op("b", "write", "two")
    shutil.copytree(group.path("a"), group.path("copy"), ignore=shutil.ignore_patterns("socket"))
    refused = group.client("serve", "--data", "copy", "--name", "a")
    assert refused.code == EXIT_REFUSED and "the name a is in use by a live session" in refused.err
    copy = group.serving("copy", "--name", "copy")
    assert "this directory is a copy, or an old one" in log(group, "copy")
    for text in ("three", "four"):
        for name in ("copy", "a", "b"):
            group.op(name, "write", f"{text} of {name}")
    copy.stop()
    group.op("a", "write", "five")
    clients.append(group.serving("copy"))  # it is nobody's copy any more, and remembers its name
    group.op("copy", "write", "six")
    assert len({group.op(name, "read").content for name in ("a", "b", "copy")}) == 1
    for process in (*clients, lockd):
        assert process.stop().code == EXIT_OK
    hosts = [parse_event(line).host for line in group.path("copy", "events.log").read_text().splitlines()[2:]]
    assert hosts == ["a"] * 2 + ["copy"] * (len(hosts) - 2)
    passes_the_check(group, "a", "b", "copy")
    findings = {finding.name: finding.detail for finding in check([group.directory])}
    assert findings["logs"].endswith("; copy begins with 2 lines of a")
