"""The verdict of scripts/check on what a simulated group left behind, built from memory."""

from collections.abc import Callable

from common.eventlog import parse_event
from common.grantlog import parse_grant
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
    outcomes = [finished.outcome for actor in group.actors for finished in actor.done]
    gone = tuple(actor.plan.name for actor in group.actors if actor.gone)
    # Where an op was cut off by its client's leaving, whether it happened is for the verdict to find out.
    calm = not gone and all(outcome == "ok" for outcome in outcomes)
    asked = Asked(len(group.actors), len(outcomes), group.plan.files, stopped=not calm, left=gone)
    clients = [_client_of(actor.directory) for actor in group.actors]
    return Evidence(clients, Grants("lockd/grants.log", lines), asked)


def _client_of(directory: Directory) -> Client:
    lines = [
        EventLine(number, parse_event(text), text) for number, text in enumerate(directory.lines, 1 + _HEADER_LINES)
    ]
    journal = directory.journal
    newest = {file: state.head.version.seq for file, state in journal.states().items()}
    journals = {}
    for file, seq in newest.items():
        versions = [journal.version_at(file, each) for each in range(1, seq + 1)]
        journals[file] = Journal(
            [journal.record_at(file, each) for each in range(1, seq + 1)],
            [version.hash for version in versions if version is not None],
        )
    content: Callable[[str, int], bytes] = journal.content
    files = {file: content(file, seq) for file, seq in newest.items()}
    return Client(directory.name, lines, journals, files, Snapshots(newest, content), directory.host)
