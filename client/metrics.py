"""A client's figures as metrics. `collect` is called by the thread that serves them: it reads integers and copies."""

from collections.abc import Iterable
from itertools import islice
from typing import Final

from prometheus_client.metrics_core import Metric

from client.core import Client
from client.figures import Figures
from common.metrics import FILES_LABELLED_MAX, counter, counters, gauge, gauges, histogram, histograms

_NAME: Final = "lockstep_client_"


class ClientMetrics:
    """What a client tells at a scrape."""

    def __init__(self, core: Client) -> None:
        """Read from `core`."""
        self._core = core

    def collect(self) -> Iterable[Metric]:
        """Return all metrics as they are now."""
        core = self._core
        # Each of these copies is one step of the interpreter: the core cannot come in between.
        files, learning = core.files.copy(), core.learning
        yield gauges(_NAME + "info", "Who this client is: 1.", ["host"], [((core.host,), 1)])
        yield gauge(_NAME + "joined", "Whether a session with lockd is open: 1 or 0.", core.joined)
        yield gauge(_NAME + "files", "Files that this replica has.", len(files))
        versions = sum(state.head.version.seq for state in files.values())
        yield gauge(_NAME + "versions", "Versions that this replica has, of all files.", versions)
        about = "Files with which this replica is not in sync: it catches up with them."
        yield gauge(_NAME + "learning_files", about, len(learning))
        labelled = islice(files.items(), FILES_LABELLED_MAX)
        heads = [((file,), state.head.version.seq) for file, state in labelled]
        about = f"The newest version of a file here; of the first {FILES_LABELLED_MAX} files."
        yield gauges(_NAME + "version", about, ["file"], heads)
        yield from _counted(core.figures)


def _counted(figures: Figures) -> Iterable[Metric]:
    yield counters(_NAME + "ops", "Ops that have ended.", ["verb", "outcome"], figures.ops.items())
    yield histograms(_NAME + "op_seconds", "From an op's submission to its end.", "verb", figures.op_times.items())
    yield histogram(_NAME + "wait_seconds", "From the request for a lock to its grant.", figures.waits)
    yield counter(_NAME + "pushes_sent", "Pushes sent, counted per receiver.", figures.pushes_sent)
    yield counter(_NAME + "pushes_taken_in", "Pushes of others that were taken in and acked.", figures.pushes_taken_in)
    fenced = [((whose,), count) for whose, count in figures.pushes_fenced.items()]
    about = "Pushes refused as fenced: ours by others, theirs by this replica."
    yield counters(_NAME + "pushes_fenced", about, ["whose"], fenced)
    yield counter(_NAME + "pushed_bytes", "Bytes of pushes sent.", figures.bytes_pushed)
    yield counter(_NAME + "taken_in_bytes", "Bytes of pushes and fetched ops received.", figures.bytes_taken_in)
    yield histogram(_NAME + "sync_seconds", "Syncs of the data directory to the disk.", figures.syncs)
    yield counter(_NAME + "catch_ups_begun", "Files that it began to catch up with.", figures.catch_ups_begun)
    yield counter(_NAME + "catch_ups_finished", "Files with which it came in sync by that.", figures.catch_ups_finished)
    yield counter(_NAME + "fetched_ops", "Ops fetched from other replicas.", figures.ops_fetched)
    yield counter(_NAME + "undone_ops", "Ops undone, since the group does not have them.", figures.undone)
    yield counter(_NAME + "sessions_lost", "Sessions lost.", figures.sessions_lost)
    yield counter(_NAME + "log_lines", "Lines put into events.log.", figures.log_lines)
    yield counter(_NAME + "malformed_messages", "Messages that were dropped unread.", figures.malformed)
