"""lockd's figures as metrics. `collect` is called by the thread that serves them: it reads integers and copies."""

from collections.abc import Iterable
from typing import Final

from prometheus_client.metrics_core import Metric

from common.metrics import FILES_LABELLED_MAX, Labels, counter, counters, gauge, gauges, histogram
from common.moments import SteadyClock
from lockd.core import Lockd
from lockd.figures import Figures
from lockd.locks import Lock

_NAME: Final = "lockstep_lockd_"


class LockdMetrics:
    """What a lockd tells at a scrape."""

    def __init__(self, core: Lockd, clock: SteadyClock) -> None:
        """Read from `core`, whose time is `clock`'s."""
        self._core, self._clock = core, clock

    def collect(self) -> Iterable[Metric]:
        """Return all metrics as they are now."""
        core = self._core
        # Each of these copies is one step of the interpreter: the core cannot come in between.
        locks, live = list(core.locks.values()), frozenset(core.live_replicas)
        yield gauge(_NAME + "epoch", "The epoch in force.", core.epoch)
        yield gauge(_NAME + "start_time_seconds", "When this lockd began, since 1970.", core.figures.since_ns / 1e9)
        sessions: list[tuple[Labels, float]] = [(("yes",), len(live)), (("no",), len(core.sessions) - len(live))]
        yield gauges(_NAME + "sessions", "Open sessions, by whether they have a replica.", ["replica"], sessions)
        yield gauge(_NAME + "waiters", "Requests that stand in queues.", core.waiters)
        yield self._oldest_wait(locks)
        yield gauge(_NAME + "locks_held", "Locks that are held.", sum(1 for lock in locks if lock.holds))
        yield from _files(locks, live)
        yield from _counted(core.figures)

    def _oldest_wait(self, locks: list[Lock]) -> Metric:
        firsts = [next(iter(list(lock.queue.values())), None) for lock in locks if lock.queue]
        oldest_ns = min([waiter.since_ns for waiter in firsts if waiter is not None], default=None)
        waited_s = 0.0 if oldest_ns is None else max(0, self._clock.now_ns() - oldest_ns) / 1e9
        return gauge(_NAME + "oldest_wait_seconds", "How long the first of all queues has waited; 0: nobody.", waited_s)


def _files(locks: list[Lock], live: frozenset[str]) -> Iterable[Metric]:
    files = [(lock.name, lock.file) for lock in locks if lock.file is not None]
    standings: list[tuple[Labels, float]] = []
    least, lost = 0 if not files else len(live), 0
    for place, (name, file) in enumerate(files):
        members = file.in_sync
        up = sum(1 for replica in members if replica in live)
        least, lost = min(least, up), lost + (not up)
        if place < FILES_LABELLED_MAX:
            standings += [((name, "live"), up), ((name, "absent"), len(members) - up)]
    unclean = sum(1 for _, file in files if file.clean is None)
    yield gauge(_NAME + "files", "Files that lockd knows.", len(files))
    yield gauge(_NAME + "files_unclean", "Files that their next holder has to settle first.", unclean)
    yield gauge(_NAME + "files_absent", "Files whose newest version only absent clients have.", lost)
    yield gauge(_NAME + "in_sync_live_min", "Live members of the in-sync set that has the fewest.", least)
    about = f"Members of a file's in-sync set; of the first {FILES_LABELLED_MAX} files."
    yield gauges(_NAME + "in_sync_replicas", about, ["file", "standing"], standings)
    unlabelled = max(0, len(files) - FILES_LABELLED_MAX)
    yield gauge(_NAME + "files_unlabelled", "Files without a time series of their own.", unlabelled)


def _counted(figures: Figures) -> Iterable[Metric]:
    def by_kind(values: dict[str, int]) -> list[tuple[Labels, float]]:
        return [((kind,), count) for kind, count in values.items()]

    yield counters(_NAME + "grants", "Locks granted.", ["mode"], by_kind(figures.grants))
    yield counter(_NAME + "unclean_grants", "Grants whose holder has to settle the file first.", figures.unclean_grants)
    yield counters(_NAME + "expiries", "Locks lost by their holders.", ["reason"], by_kind(figures.expiries))
    yield histogram(_NAME + "wait_seconds", "From the request for a lock to its grant.", figures.waits)
    yield histogram(_NAME + "hold_seconds", "From a grant to its end.", figures.holds)
    yield histogram(_NAME + "op_seconds", "From the request for a lock to its release.", figures.ops)
    yield histogram(_NAME + "persist_seconds", "Durable changes of the state.", figures.persists)
    yield counter(_NAME + "kept_ops", "Ops done later under a lock that was kept.", figures.kept_ops)
    yield counter(_NAME + "settles", "Times that lockd asked a client to settle a file.", figures.settles)
    yield counter(_NAME + "recalls", "Locks that were kept unused, and asked back.", figures.recalls)
    yield counter(_NAME + "sessions_opened", "Sessions opened.", figures.sessions_opened)
    ended = by_kind(figures.sessions_ended)
    yield counters(_NAME + "sessions_ended", "Sessions that are over.", ["reason"], ended)
    yield counter(_NAME + "drops", "Replicas taken out of in-sync sets.", figures.drops)
    yield counter(_NAME + "admissions", "Replicas taken into in-sync sets.", figures.admissions)
    yield counters(_NAME + "refusals", "Requests refused.", ["what"], by_kind(figures.refusals))
    yield counter(_NAME + "stale_messages", "Messages that named another epoch.", figures.stale)
    yield counter(_NAME + "malformed_messages", "Messages that were dropped unread.", figures.malformed)
    yield counter(_NAME + "received_bytes", "Bytes of messages received.", figures.bytes_in)
    yield counter(_NAME + "sent_bytes", "Bytes of messages sent.", figures.bytes_out)
