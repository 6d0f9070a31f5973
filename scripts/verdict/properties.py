"""The properties of a good run. `judge` is the way in.

Each is a pure function from the facts to a short text of figures; one that does not hold raises Wrong, with
the first offending line of which log.
"""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Final

from common.limits import AHEAD_US_MAX
from common.records import Record
from common.tokens import format_token, token_epoch
from scripts.verdict.causality import clocks
from scripts.verdict.evidence import Asked, Evidence, PropertyName
from scripts.verdict.facts import OPS, Facts, Tick, author_of, gather, place
from scripts.verdict.finding import Finding, Wrong, counted
from scripts.verdict.history import hash_chain, replay, snapshots
from scripts.verdict.outcomes import outcomes
from scripts.verdict.tokens import tokens


def judge(evidence: Evidence) -> tuple[Finding, ...]:
    """Judge every property that the evidence tells of, in the order in which they are shown."""
    facts = gather(evidence)
    checks = {name: check for name, check in PROPERTIES.items() if name != "outcomes" or evidence.told is not None}
    return tuple([_judge_one(name, check, facts) for name, check in checks.items()])


def _judge_one(name: PropertyName, check: Callable[[Facts], str], facts: Facts) -> Finding:
    flaws = [flaw for flaw in (*facts.evidence.flaws, *facts.flaws) if flaw.name == name]
    if flaws:
        more = f" (and {counted(len(flaws) - 1, 'more problem')})" if flaws[1:] else ""
        return Finding(name, False, _one_line(f"{flaws[0].where}: {flaws[0].what}{more}"))
    try:
        return Finding(name, True, _one_line(check(facts)))
    except Wrong as wrong:
        return Finding(name, False, _one_line(str(wrong)))


def _one_line(text: str) -> str:
    """Escape what does not print: a damaged run has names and values of all kinds."""
    return text if text.isprintable() else "".join([c if c.isprintable() else ascii(c)[1:-1] for c in text])


def complete(facts: Facts) -> str:
    """Exactly the ops asked for were done, each once."""
    done: dict[str, Tick] = {}
    for op in facts.ops:
        first = done.setdefault(op.id, op)
        if first is not op:
            raise Wrong(op.where, f"the op {op.id} is done a second time, after {first.where}")
        if author_of(op.id) != op.host:
            raise Wrong(op.where, f"{op.host} did the op {op.id}, which is not its own")
    asked = facts.evidence.asked
    undone = f", {len(facts.undone)} undone" if facts.undone else ""
    if asked is None:
        return f"{counted(len(done), 'op')} by {counted(len(facts.logs), 'client')}, each once{undone}"
    for op in facts.ops:
        if asked.files and op.file not in asked.files:
            raise Wrong(op.where, f"an op on {op.file}, which run.json does not name")
    if asked.faults:
        return _under_faults(facts, asked, len(done)) + undone
    return _as_asked(facts, asked, len(done)) + undone


def _under_faults(facts: Facts, asked: Asked, done: int) -> str:
    """The logs have more than was told: what failed late, or was cut off; so it is counted by what was told."""
    figures = counted(done, "op")
    if facts.evidence.told is not None and asked.ops:
        done = sum(1 for told in facts.evidence.told if told.outcome != "failed" and not told.beside)
        figures = f"{done} of {counted(asked.ops, 'op')}"
    if asked.stopped:
        return f"{figures}; stopped by the user"
    if len(facts.logs) != asked.clients:
        raise Wrong(
            "run.json", f"{counted(asked.clients, 'client')} asked for, {len(facts.logs)} left a data directory"
        )
    if asked.ops and done != asked.ops:
        raise Wrong("run.json", f"{figures} were done or are unknown")
    if not asked.finished:
        raise Wrong("run.json", f"the run has not finished; {figures} were done")
    kinds = counted(len(asked.faults), "kind")
    return f"{figures} by {counted(asked.clients, 'client')}, each once, under {kinds} of faults"


def _as_asked(facts: Facts, asked: Asked, done: int) -> str:
    counts = Counter(op.client.name for op in facts.ops)
    by_client = ", ".join(f"{client.name} {counts[client.name]}" for client, _ in facts.logs)
    figures = f"{done} of {counted(asked.ops, 'op')}"
    if done > asked.ops:
        raise Wrong("run.json", f"{figures} were done ({by_client})")
    if asked.stopped:
        left = f"; left early: {', '.join(asked.left)}" if asked.left else ""
        return f"{figures}; stopped by the user{left}"
    if asked.left:
        raise Wrong("run.json", f"{', '.join(asked.left)} died or left early; {figures} were done")
    if len(facts.logs) != asked.clients:
        raise Wrong(
            "run.json", f"{counted(asked.clients, 'client')} asked for, {len(facts.logs)} left a data directory"
        )
    if done < asked.ops:
        raise Wrong("run.json", f"only {figures} were done ({by_client})")
    if not asked.finished:
        raise Wrong("run.json", f"the run has not finished; {figures} were done")
    return f"{figures} by {counted(asked.clients, 'client')}, each once"


def timestamps(facts: Facts) -> str:
    """Network time never runs back, in a process and from cause to effect; a record has its author's line's time."""
    spread_us = 0
    for _, ticks in facts.logs:
        for before, line in itertools.pairwise(ticks):
            if line.time_us < before.time_us:
                back_us = before.time_us - line.time_us
                raise Wrong(line.where, f"{back_us} µs before the line before it")
        if ticks:
            spread_us = max(spread_us, ticks[-1].time_us - ticks[0].time_us)
    _grants_rise(facts)
    for file, (_, longest) in sorted(facts.newest.items()):
        for record in longest.records:
            author = facts.authors.get(record.id)
            if author is not None and author.time_us != record.time_us:
                raise Wrong(author.where, f"the journals have another time for {file}@{record.seq}")
    _come_after_their_causes(facts)
    processes = counted(len(facts.by_host), "process", "processes")
    return f"never run back in {processes}, over {spread_us / 1e6:.3f} s"


def _come_after_their_causes(facts: Facts) -> None:
    """An op is stamped behind the grant of its token, and what is applied or undone behind the op."""
    grants = facts.evidence.grants
    lines = [entry.line for entry in grants.lines if entry.line.event == "grant"] if grants else []
    granted = {line.token: line.time_us for line in lines}
    for _, ticks in facts.logs:
        for line in ticks:
            author = facts.authors.get(line.id)
            if line.verb in OPS:
                cause_us, cause = granted.get(line.token), f"the grant of {format_token(line.token)}"
            else:
                cause_us, cause = author.time_us if author else None, f"{line.id} itself"
            if cause_us is not None and 0 < cause_us - line.time_us < AHEAD_US_MAX:
                raise Wrong(line.where, f"{cause_us - line.time_us} µs before {cause}")


def _grants_rise(facts: Facts) -> None:
    """lockd is a process too; an epoch is one start of it."""
    grants, epoch, last_us = facts.evidence.grants, 0, 0
    for entry in grants.lines if grants else ():
        if token_epoch(entry.line.token) > epoch:
            epoch, last_us = token_epoch(entry.line.token), 0
        if grants and entry.line.time_us < last_us:
            raise Wrong(f"{grants.name}:{entry.number}", f"{last_us - entry.line.time_us} µs before the line before it")
        last_us = entry.line.time_us


def logs(facts: Facts) -> str:
    """Every line reads, and no line is missing that a journal calls for."""
    here = set(facts.by_host) | {client.host for client in facts.evidence.clients if client.host}
    for _, ticks in facts.logs:
        for line in ticks:
            if line.verb == "apply" and not line.values.get("from"):
                raise Wrong(line.where, "the line has no from")
    for file, (client, longest) in sorted(facts.newest.items()):
        for seq, record in enumerate(longest.records, 1):
            if record.id not in facts.authors and author_of(record.id) in here and not _is_lost(facts, record):
                raise Wrong(place(client, file, seq), f"its op {record.id} has no line in its author's log")
    for client, ticks in facts.logs:
        told = {(line.file, line.seq, line.id) for line in ticks if line.verb not in ("read", "undo")}
        for file, journal in client.journals.items():
            for seq, record in enumerate(journal.records, 1):
                if (file, seq, record.id) not in told:
                    raise Wrong(place(client, file, seq), f"its op {record.id} has no line in {client.name}/events.log")
    grants = len(facts.evidence.grants.lines) if facts.evidence.grants else 0
    lines = sum(len(ticks) for _, ticks in facts.logs)
    event_logs = counted(len(facts.logs), "event log")
    figures = f"{counted(lines, 'line')} of {event_logs}, {counted(grants, 'line')} of grants.log"
    copies = Counter((line.client.name, line.owner.name) for _, ticks in facts.logs for line in ticks if line.is_copy)
    begin = [f"{name} begins with {counted(count, 'line')} of {owner}" for (name, owner), count in copies.items()]
    return "; ".join([figures, *begin])


def _is_lost(facts: Facts, record: Record) -> bool:
    """Tell whether an op is among the newest events of a former host, which no log tells."""
    host = author_of(record.id)
    return host in facts.former and record.clock.get(host, 0) > len(facts.by_host.get(host, ()))


PROPERTIES: Final[dict[PropertyName, Callable[[Facts], str]]] = {
    "complete": complete,
    "outcomes": outcomes,
    "tokens": tokens,
    "hash chain": hash_chain,
    "replay": replay,
    "snapshots": snapshots,
    "clocks": clocks,
    "timestamps": timestamps,
    "logs": logs,
}
