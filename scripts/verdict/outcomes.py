"""Outcomes: what was ok is in the history, what failed is not, and versions follow real time (G4, G6).

An op is ok between its begin and its end. A change takes effect at one moment there, which makes its version; a read
sees the newest version of one moment. So whatever began after an op had ended comes after it: a change has a larger
seq, a read no smaller one. An op that is unknown may take effect at any time from its begin on, once or never.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from scripts.verdict.evidence import Told
from scripts.verdict.facts import Facts, author_of, hash_at, place
from scripts.verdict.finding import Wrong, counted

_FILE: Final = "outcomes.jsonl"


@dataclass(frozen=True, slots=True)
class _Effect:
    """An op that took effect: a change made version `seq`, a read saw it. `ended_us` is None where nobody knows."""

    told: Told
    seq: int
    ended_us: int | None

    def __str__(self) -> str:
        return f"{self.told.id or 'the op'} ({self.told.verb} {self.told.file}@{self.seq}, {_where(self.told)})"


@dataclass(eq=False, slots=True)
class _Nameless:
    """A change of which no id was told; its place among its client's ops is between these."""

    told: Told
    after: tuple[int, int]
    before: tuple[float, float] = (float("inf"), 0)


def outcomes(facts: Facts) -> str:
    """What each client was told agrees with the history that all have in the end."""
    told = facts.evidence.told or ()
    by_id: dict[str, Told] = {}
    for one in told:
        if one.id and by_id.setdefault(one.id, one) is not one:
            raise Wrong(_where(one), f"{one.id} was told before, by {_where(by_id[one.id])}")
    history = _history(facts)
    effects: list[_Effect] = []
    for one in told:
        if one.outcome == "ok":
            _is_there(facts, one, history)
            _is_logged(facts, one)
            effects.append(_Effect(one, one.seq, one.ended_us))
        elif one.outcome == "failed" and one.id in history:
            file, seq = history[one.id]
            raise Wrong(_where(one), f"{one.id} failed, but stands in the history as {file}@{seq}")
    happened = _unknown_that_happened(facts, told, by_id, history)
    _in_real_time(effects + happened)
    counts = Counter(one.outcome for one in told)
    reads = sum(1 for one in told if one.outcome == "unknown" and one.verb == "read")
    unknown = f"{counts['unknown']} unknown"
    if counts["unknown"]:
        unknown += (
            f" ({len(happened)} happened, {counts['unknown'] - reads - len(happened)} not, {counted(reads, 'read')})"
        )
    refused = sum(client.refused for client in facts.evidence.clients)
    late = counted(refused, "late push", "late pushes")
    return f"{counts['ok']} ok, {counts['failed']} failed, {unknown}; {late} refused"


def _where(told: Told) -> str:
    return f"{_FILE}:{told.number}"


def _history(facts: Facts) -> dict[str, tuple[str, int]]:
    """Return where each op of the final history stands: its file and seq."""
    history: dict[str, tuple[str, int]] = {}
    for file, (client, journal) in sorted(facts.newest.items()):
        for seq, record in enumerate(journal.records, 1):
            if record.id in history:
                first = "{}@{}".format(*history[record.id])
                raise Wrong(place(client, file, seq), f"{record.id} happened a second time, after {first}")
            history[record.id] = file, seq
    return history


def _is_there(facts: Facts, told: Told, history: dict[str, tuple[str, int]]) -> None:
    """What was ok is in the history as it was told."""
    if told.verb != "read":
        found = history.get(told.id)
        if found is None:
            raise Wrong(_where(told), f"{told.id} was ok as {told.file}@{told.seq}, but is not in the history")
        if found != (told.file, told.seq):
            file, seq = found
            raise Wrong(_where(told), f"{told.id} was ok as {told.file}@{told.seq}, but stands as {file}@{seq}")
    newest = facts.newest.get(told.file)
    if newest is None:
        if told.seq:
            raise Wrong(_where(told), f"{told.id} saw {told.file}@{told.seq}, but no journal has that file")
        return
    journal = newest[1]
    if told.seq > len(journal.records) or hash_at(journal, told.seq) != told.hash:
        what = f"{told.id} was ok at {told.file}@{told.seq} with hash={told.hash}"
        raise Wrong(_where(told), f"{what}, which is not in the history")


def _is_logged(facts: Facts, told: Told) -> None:
    """What was ok is in its client's log as it was told."""
    line, host = facts.authors.get(told.id), author_of(told.id)
    if line is None:
        if host in facts.by_host and host not in facts.former:
            raise Wrong(
                _where(told), f"{told.id} was ok, but the log of {facts.by_host[host][0].client.name} has no line"
            )
        return  # that log is not here, or has lost its end
    for name, said, logged in (
        ("client", told.client, host.partition("#")[0]),
        ("verb", told.verb, line.verb),
        ("version", f"{told.file}@{told.seq}", f"{line.file}@{line.seq}"),
        ("hash", told.hash, line.hash),
    ):
        if said != logged:
            raise Wrong(_where(told), f"{told.id} was told with the {name} {said}, {line.where} has {logged}")


def _unknown_that_happened(
    facts: Facts, told: Sequence[Told], by_id: dict[str, Told], history: dict[str, tuple[str, int]]
) -> list[_Effect]:
    """Return the unknown ops that are in the history, whose every other op must be ok.

    The client numbers its ops. So one that was cut off, and told no id, has one between those told before and after.
    A client that lost its directory is another host, which numbers anew.
    """
    nameless: defaultdict[str, list[_Nameless]] = defaultdict(list)
    last: dict[str, tuple[int, int]] = {}
    for one in sorted(told, key=lambda one: one.began_us):
        if one.id:
            last[one.client] = _order(one.id)
            for other in nameless[one.client]:
                other.before = min(other.before, last[one.client])
        elif one.outcome == "unknown" and one.verb != "read":
            nameless[one.client].append(_Nameless(one, last.get(one.client, (0, 0))))
    happened = []
    for id_, (file, seq) in sorted(history.items(), key=lambda item: _order(item[0])):
        found = by_id.get(id_)
        if found is not None and found.outcome == "ok":
            continue
        if found is None:
            client, journal = facts.newest[file]
            verb, order = journal.records[seq - 1].verb, _order(id_)
            waiting = nameless[author_of(id_).partition("#")[0]]
            for one_nameless in waiting:
                one = one_nameless.told
                if one_nameless.after < order < one_nameless.before and (one.file, one.verb) == (file, verb):
                    waiting.remove(one_nameless)
                    found = one
                    break
            else:
                raise Wrong(place(client, file, seq), f"nobody asked for its op {id_}, by {_FILE}")
        happened.append(_Effect(found, seq, None))
    return happened


def _in_real_time(effects: list[_Effect]) -> None:
    """What began after another op's end is behind it in its file's history."""
    by_file: defaultdict[str, list[_Effect]] = defaultdict(list)
    for effect in effects:
        by_file[effect.told.file].append(effect)
    for file in sorted(by_file):
        ended = sorted(
            [(effect.ended_us, effect.told.number, effect) for effect in by_file[file] if effect.ended_us is not None]
        )
        newest, place_ = None, 0
        for effect in sorted(by_file[file], key=lambda effect: effect.told.began_us):
            while place_ < len(ended) and ended[place_][0] < effect.told.began_us:
                if newest is None or ended[place_][2].seq > newest.seq:
                    newest = ended[place_][2]
                place_ += 1
            if newest is None or effect.seq > newest.seq:
                continue
            if effect.told.verb != "read":
                raise Wrong(_where(effect.told), f"{effect} began after the end of {newest}, but is not behind it")
            if effect.seq < newest.seq:
                raise Wrong(_where(effect.told), f"{effect} began after the end of {newest}, but saw an older version")


def _order(op_id: str) -> tuple[int, int]:
    """Return where an op stands among those of its client: by the number of its host, and its own."""
    host, _, number = op_id.rpartition(":")
    return _number(host.partition("#")[2]), _number(number)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0
