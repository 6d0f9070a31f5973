"""The verdict of scripts/check on what a simulated group left behind, built from memory."""

from collections.abc import Callable

from client.loose import loose
from common.clock import tick
from common.eventlog import Event, parse_event
from common.grantlog import parse_grant
from common.records import Version
from scripts.verdict.evidence import Asked, Client, EventLine, Evidence, Grants, Journal, LockLine, Snapshots
from scripts.verdict.finding import Finding
from scripts.verdict.properties import judge
from tests.sim.group import Group
from tests.sim.processes import Directory

_HEADER_LINES = 2


def judge_group(group: Group) -> tuple[Finding, ...]:
    """Judge every property."""
    return judge(evidence_of(group))


def evidence_of(group: Group) -> Evidence:
    """Return what the group left, as scripts/check would read it from files."""
    lines = [LockLine(number, parse_grant(text), text) for number, text in enumerate(group.lockd.grants, 1)]
    outcomes = [finished.outcome for actor in group.actors for _, finished in actor.done]
    outcomes += ["unknown" for actor in group.actors for _ in range(actor.unknown)]
    gone = tuple(actor.plan.name for actor in group.actors if actor.gone)
    # Where an op was cut off by its client's leaving, whether it happened is for the verdict to find out.
    calm = not gone and all(outcome == "ok" for outcome in outcomes) and not group.plan.faults
    asked = Asked(len(group.actors), len(outcomes), group.plan.files, stopped=not calm, left=gone)
    clients = [_client_of(actor.directory) for actor in group.actors]
    left = next(actor.directory for actor in group.actors if not actor.gone)
    hosts = {client.host for client in clients}
    # Where a copy goes on as the host of what was lost, the log that counts is the copy's.
    losts = [lost for actor in group.actors for lost in actor.lost if lost.host not in hosts]
    clients += [_log_of(lost, left) for lost in losts]
    return Evidence(clients, Grants("lockd/grants.log", lines), asked)


def _lines_of(directory: Directory) -> list[EventLine]:
    return [
        EventLine(number, parse_event(text), text) for number, text in enumerate(directory.lines, 1 + _HEADER_LINES)
    ]


def _log_of(lost: Directory, left: Directory) -> Client:
    """Return a wiped directory as it would be had it come back: what others know of it has to fit its log.

    What never came to the others is undone in it, and its log tells so.
    """
    lines = _lines_of(lost)
    shared: dict[str, int] = {}
    told = [
        ("apply" if event.verb == "undo" else "undo", event)
        for event in loose([line.event for line in reversed(lines)], lost.journal)
    ]
    for file, state in lost.journal.states().items():
        shared[file] = 0
        for seq in range(state.head.version.seq, 0, -1):
            version = lost.journal.version_at(file, seq)
            if version == left.journal.version_at(file, seq):
                shared[file] = max(seq, shared[file])
            else:
                told += [("undo", line.event) for line in lines if _tells(line.event, file, version)][-1:]
    for verb, event in told:
        last = lines[-1].event
        values = {**event.values, "from": last.host}
        true = Event(last.time_us, last.host, tick(last.clock, last.host), verb, values)
        lines.append(EventLine(lines[-1].number + 1, true))
    return _client(f"{lost.name}, wiped", lost, lines, shared)


def _tells(event: Event, file: str, version: Version | None) -> bool:
    assert version is not None
    values = event.values
    made = event.verb not in ("read", "undo") and values["file"] == file
    return made and values["hash"] == version.hash[:6].hex()


def _client_of(directory: Directory) -> Client:
    newest = {file: state.head.version.seq for file, state in directory.journal.states().items()}
    return _client(directory.name, directory, _lines_of(directory), newest)


def _client(name: str, directory: Directory, lines: list[EventLine], newest: dict[str, int]) -> Client:
    """Return a directory up to the `newest` version of each file."""
    journal = directory.journal
    journals = {}
    for file, seq in newest.items():
        versions = [journal.version_at(file, each) for each in range(1, seq + 1)]
        journals[file] = Journal(
            [journal.record_at(file, each) for each in range(1, seq + 1)],
            [version.hash for version in versions if version is not None],
        )
    content: Callable[[str, int], bytes] = journal.content
    files = {file: content(file, seq) for file, seq in newest.items()}
    return Client(name, lines, journals, files, Snapshots(newest, content), directory.host)
