"""Branches: which journal of a file has the group's history, and whose journal ends with ops that it does not have.

A client logs an op and keeps it before it pushes it. Where its lock is lost before all have the op, the group may go on
without it: the push is fenced from then on. Who has the op undoes it when he is back; until then his journal ends with
it. That is no damage, but only as far as the evidence bears it out: else a journal that differs has diverged.
"""

from collections.abc import Collection, Iterable, Sequence

from common.records import Record
from common.tokens import format_token
from scripts.verdict.evidence import Client, Evidence, Journal


def newest_journals(
    clients: Iterable[Client], but: Collection[tuple[str, str]] = ()
) -> dict[str, tuple[Client, Journal]]:
    """Return each file's longest journal, and whose it is: of two as long, the one with the newer token.

    Those of the clients and files in `but` do not count.
    """
    newest: dict[str, tuple[Client, Journal]] = {}
    for client in clients:
        for file, journal in client.journals.items():
            best = newest.get(file)
            if (client.name, file) in but:
                continue
            if best is None or (len(journal.records), _token(journal)) > (len(best[1].records), _token(best[1])):
                newest[file] = (client, journal)
    return newest


def first_alone(journal: Journal, other: Journal) -> int:
    """Return the first version of `journal` that is not in `other`, or 0."""
    for seq, hash_ in enumerate(journal.hashes, 1):
        if seq > len(other.hashes) or other.hashes[seq - 1] != hash_:
            return seq
    return 0


def find_lost(evidence: Evidence, clients: Sequence[Client]) -> dict[tuple[str, str], int]:
    """Return, per client and file, the first of the ops whose lock was lost, and that the group does not have.

    Of two branches the group's is the one of the newer token: a push under an older one is fenced by then.
    """
    lost: dict[tuple[str, str], int] = {}
    for file in {file for client in clients for file in client.journals}:
        having = [client for client in clients if file in client.journals]
        group = max(
            [client.journals[file] for client in having],
            key=lambda journal: (_token(journal), len(journal.records)),
        )
        for client in having:
            seq = first_alone(client.journals[file], group)
            if seq and _went_on_without(evidence, client, file, seq, group):
                lost[client.name, file] = seq
    return lost


def _token(journal: Journal) -> int:
    return journal.records[-1].token if journal.records else 0


def _went_on_without(evidence: Evidence, client: Client, file: str, seq: int, group: Journal) -> bool:
    """Tell whether the group went on behind version `seq - 1` without what the client has from there on."""
    journal = client.journals[file]
    alone = journal.records[seq - 1 :]
    if seq > len(group.records) or group.records[seq - 1].token <= max(record.token for record in alone):
        return False
    ids = {record.id for record in alone}
    having = [other for other in evidence.clients if other is not client and _has(other, ids)]
    if having and (evidence.grants is None or not all(_has_just_that(one, client, file, seq, group) for one in having)):
        return False
    if any(told.id in ids and told.outcome == "ok" for told in evidence.told or ()):
        return False
    return _lost_their_locks(evidence, file, alone) and not _was_read(evidence, file, journal.hashes[seq - 1 :])


def _has(client: Client, ids: Collection[str]) -> bool:
    return any(record.id in ids for journal in client.journals.values() for record in journal.records)


def _has_just_that(other: Client, client: Client, file: str, seq: int, group: Journal) -> bool:
    """Tell whether another has taken in a holder's push, and nothing else, before the group went on without both."""
    own, its = client.journals[file], other.journals.get(file)
    if its is None or first_alone(its, group) != seq:
        return False
    ids = {record.id for record in own.records[seq - 1 :]}
    elsewhere = [j for name, j in other.journals.items() if name != file]
    return not any(record.id in ids for j in elsewhere for record in j.records) and all(
        one == another for one, another in zip(own.hashes[seq - 1 :], its.hashes[seq - 1 :], strict=False)
    )


def _lost_their_locks(evidence: Evidence, file: str, records: Iterable[Record]) -> bool:
    """Tell whether each op's lock expired: one that was released was given back, or its op acknowledged.

    Without a grants.log nothing tells.
    """
    if evidence.grants is None:
        return True
    lines = [entry.line for entry in evidence.grants.lines]
    released = {line.token for line in lines if line.event == "release"}
    expired = {(line.lock, line.token, line.client) for line in lines if line.event == "expiry"}
    return all(
        record.token not in released and (file, record.token, record.id.rpartition(":")[0]) in expired
        for record in records
    )


def _was_read(evidence: Evidence, file: str, hashes: Iterable[bytes]) -> bool:
    """Tell whether a read gave one of these versions out: whoever may read a version has had it acknowledged."""
    shown = tuple([hash_.hex() for hash_ in hashes])
    lines = [entry.line for entry in evidence.grants.lines] if evidence.grants else []
    lost = {format_token(line.token) for line in lines if line.event == "expiry"}
    for client in evidence.clients:
        for line in client.lines:
            values = line.event.values
            if line.event.verb == "read" and values.get("file") == file and values.get("token") not in lost:
                hash_ = values.get("hash", "")
                if hash_ and any(one.startswith(hash_) for one in shown):
                    return True
    return False
