"""What every run with faults begins and ends with: the group comes up, and at the end its replicas become equal."""

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from scripts.faults.fleet import STOP_S, Fleet
from scripts.faults.record import FaultLog
from scripts.faults.schedule import LOCKD, Fault
from scripts.launching.plan import Plan
from scripts.launching.view import View

READY_S: Final = 20.0
"""How long lockd may take until it is ready, in seconds."""
GATHER_S: Final = 60.0
"""How long the clients may take until each of them sees the whole group."""
READ_S: Final = 120.0
"""How long a read may take, once nothing fails any more."""
AGREE_S: Final = 30.0
"""How long the replicas may take until they are equal, once all ops are done."""


@dataclass(slots=True)
class Injected:
    """A fault that has begun. `over_us` is when it ended, on the clock of the reports."""

    fault: Fault
    over_us: int | None = None
    survived: bool = False


@dataclass(slots=True)
class Ending:
    """How a run ended. `problems` are what is wrong with it beside what its files tell."""

    finished: bool = False
    stopped_by: int | None = None
    problems: list[str] = field(default_factory=list)
    injected: list[Injected] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


class Run(ABC):
    """One run; what comes between its begin and its end is for others to say."""

    def __init__(self, plan: Plan, fleet: Fleet, directory: Path, view: View) -> None:
        """Prepare it; `run` does it."""
        self._plan, self._fleet, self._directory, self._view = plan, fleet, directory, view
        self._faults = FaultLog(directory)
        self._ending = Ending()
        self._began_s = time.monotonic()

    def run(self) -> Ending:
        """Do the run and return how it ended; no process of it is left."""
        fleet, ending = self._fleet, self._ending
        try:
            ending.finished = self._begin() and self._work() and self._finish()
            fleet.end()
        finally:
            fleet.close()
            self._faults.close()
            ending.stopped_by = fleet.stopped_by
            ending.counts = fleet.outcomes.counts
            ending.problems += fleet.crashes
        return ending

    def _begin(self) -> bool:
        fleet = self._fleet
        fleet.start(LOCKD)
        if not fleet.until(lambda: fleet.lockd.is_ready, READY_S):
            return self._miss(f"lockd was not ready within {READY_S:g} s")
        for name in fleet.members:
            fleet.start(name)
        if not fleet.until(lambda: all(member.is_complete for member in fleet.members.values()), GATHER_S):
            return self._miss(f"the group was not complete within {GATHER_S:g} s")
        self._began_s = time.monotonic()
        return True

    @abstractmethod
    def _work(self) -> bool:
        """Have faults come while the group works, and end them all."""

    @abstractmethod
    def _finish(self) -> bool:
        """Let the ops come to an end, and everybody become equal."""

    def _retire(self) -> bool:
        """Have every client only serve."""
        return self._fleet.retire() or self._miss(f"not all clients came back within {3 * STOP_S:g} s")

    def _become_equal(self) -> bool:
        """Wait until all replicas are equal.

        An op that was cut off may be with one replica alone: whoever asks for the lock next settles that.
        """
        fleet = self._fleet
        for file in self._plan.files:
            for name in fleet.members:
                if problem := fleet.read(name, file, READ_S):
                    return self._miss(f"nothing fails any more, but {problem}")
        if problem := fleet.agree(AGREE_S):
            return self._miss(f"the replicas are not equal after {AGREE_S:g} s: {problem}")
        self._tell("all replicas are equal")
        return True

    def _miss(self, problem: str) -> bool:
        if not self._fleet.calls:
            self._ending.problems.append(problem)
            self._tell(f"✘ {problem}")
        return False

    def _tell(self, line: str) -> None:
        self._view.tell(f"{time.monotonic() - self._began_s:6.1f} s  {line}")
