"""What lockd counts: plain integers and histograms that its core raises as it decides. No I/O.

Counts only rise, from lockd's start on; whoever wants rates reads them twice. A count costs an addition: what is
read for people or machines is made of them by the reader.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from common.histogram import Histogram
from common.limits import FAULTS_KEPT_MAX

Ending = Literal["goodbye", "lease", "connection", "replaced", "absent"]
"""Why a session is over: it said so, its lease ran out, its connection stayed down, another took its place, or it
did not come back after a restart of lockd."""
Loss = Literal["session", "restart", "stop", "break"]
"""Why a lock is lost: with its holder's session, by a restart of lockd, as lockd ends, or by an operator."""
Refusal = Literal["hello", "acquire", "wait", "deadlock", "give-up", "break"]
"""What is refused: a session, a place in a queue, a lock that was not free in time, a wait that would never end, what
an operator asked."""

ENDINGS: Final[tuple[Ending, ...]] = get_args(Ending)
LOSSES: Final[tuple[Loss, ...]] = get_args(Loss)
REFUSALS: Final[tuple[Refusal, ...]] = get_args(Refusal)


@dataclass(slots=True)
class Figures:
    """All counts of one lockd, since `since_ns`; histograms are of microseconds.

    `waits` are from acquire to grant, `holds` from grant to end, `ops` from acquire to release; `kept_ops` came after
    those, under a lock that was kept, and took lockd no time. `settles` were asked for, and so were `recalls` of locks
    that may be kept; `unclean_grants` are followed by a settling. `drops` and `admissions` are of replicas, out of and
    into in-sync sets. `persists` are durable changes of the state. `faults` are the newest with their times: what is no
    ordinary life.
    """

    since_ns: int = 0
    grants: dict[str, int] = field(default_factory=lambda: {"exclusive": 0, "shared": 0})
    waits: Histogram = field(default_factory=Histogram)
    holds: Histogram = field(default_factory=Histogram)
    ops: Histogram = field(default_factory=Histogram)
    persists: Histogram = field(default_factory=Histogram)
    expiries: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LOSSES, 0))
    unclean_grants: int = 0
    settles: int = 0
    recalls: int = 0
    kept_ops: int = 0
    sessions_opened: int = 0
    sessions_ended: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ENDINGS, 0))
    drops: int = 0
    admissions: int = 0
    refusals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REFUSALS, 0))
    stale: int = 0
    malformed: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    faults: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=FAULTS_KEPT_MAX))

    def fault(self, now_ns: int, text: str) -> None:
        """Keep a fault among the newest."""
        self.faults.append((now_ns, text))

    def counts(self) -> Iterator[tuple[str, str, int]]:
        """Yield every count: what, of which kind ("" where there is one), how many."""
        for what, kinds in (
            ("grants", self.grants),
            ("expiries", self.expiries),
            ("sessions_ended", self.sessions_ended),
            ("refusals", self.refusals),
        ):
            for kind, count in kinds.items():
                yield what, kind, count
        for what in _SINGLE:
            yield what, "", getattr(self, what)

    def histograms(self) -> Iterator[tuple[str, Histogram]]:
        """Yield every histogram with its name."""
        for what in _HISTOGRAMS:
            yield what, getattr(self, what)


_SINGLE: Final = (
    "unclean_grants",
    "settles",
    "recalls",
    "kept_ops",
    "sessions_opened",
    "drops",
    "admissions",
    "stale",
    "malformed",
    "bytes_in",
    "bytes_out",
)
_HISTOGRAMS: Final = ("waits", "holds", "ops", "persists")
