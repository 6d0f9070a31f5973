"""What a client counts: plain integers and histograms that its core and its driver raise. No I/O.

Counts only rise, from the process's start on; whoever wants rates reads them twice.
"""

from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from client.effects import OpVerb, Outcome
from common.histogram import Histogram

Fencing = Literal["ours", "theirs"]
"""A push refused as fenced: ours by another replica, or another's by this one."""

VERBS: Final[tuple[OpVerb, ...]] = get_args(OpVerb)
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)
FENCINGS: Final[tuple[Fencing, ...]] = get_args(Fencing)


@dataclass(slots=True)
class Figures:
    """All counts of one client; histograms are of microseconds.

    `ops` are those that have ended, `op_times` from submission to end, `waits` from the request for a lock to its
    grant. Pushes are counted per receiver, bytes as they go over the wire: what pushes bring to others, and what
    pushes and answers to fetches bring here. A catch-up is of one file. `undone` are ops taken back, because the group
    does not have them.
    """

    ops: dict[tuple[OpVerb, Outcome], int] = field(
        default_factory=lambda: {(verb, outcome): 0 for verb in VERBS for outcome in OUTCOMES}
    )
    op_times: dict[OpVerb, Histogram] = field(default_factory=lambda: {verb: Histogram() for verb in VERBS})
    waits: Histogram = field(default_factory=Histogram)
    pushes_sent: int = 0
    pushes_taken_in: int = 0
    pushes_fenced: dict[Fencing, int] = field(default_factory=lambda: dict.fromkeys(FENCINGS, 0))
    bytes_pushed: int = 0
    bytes_taken_in: int = 0
    syncs: Histogram = field(default_factory=Histogram)
    catch_ups_begun: int = 0
    catch_ups_finished: int = 0
    ops_fetched: int = 0
    undone: int = 0
    sessions_lost: int = 0
    log_lines: int = 0
    malformed: int = 0
