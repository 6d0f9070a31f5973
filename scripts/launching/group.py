"""A run under way: lockd and the clients, from the first process to the end of the last.

Theory of operation. One thread waits for whatever comes first: a line of a child, the end of one, a signal.
The run goes through its stages in order: lockd ready, group complete, all ops done, replicas equal. A signal, or
the end of lockd, breaks it off in any of them; a client's end does not, the others go on. However it went, the
clients are ended next, and lockd last: each is asked first, and killed when it does not obey.
"""

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, assert_never

from common.errors import EXIT_CRASHED, EXIT_REFUSED, CommandError, refused
from scripts.launching.agreement import disagreement
from scripts.launching.herd import Ears, Herd
from scripts.launching.plan import Plan
from scripts.launching.processes import Child
from scripts.launching.reports import OpBegan, OpEnded, Report, describe, parse_report
from scripts.launching.view import Row, View

LOCKD_S: Final = 20.0
"""How long lockd may take until it is ready, in seconds."""
GATHER_S: Final = 60.0
"""How long the clients may take until each of them sees the whole group."""
GATHER_AFTER_LOSS_S: Final = 5.0
"""How long they may still take when one has died before that: those that did not see it wait in vain."""
AGREE_S: Final = 10.0
"""How long the replicas may take until they are equal, once all ops are done."""
STOP_S: Final = 10.0
"""How long a process may take to end when it is asked to."""

_LOOK_S: Final = 0.02
_ENDS_IN_ORDER: Final = (0, 4, 128 + signal.SIGTERM, -signal.SIGTERM)
"""How a client ends that was asked to: all done, some ops unknown, some not begun, or it was not up yet."""


@dataclass(slots=True)
class Ending:
    """How a run ended. `newest` has the highest seq seen of each file."""

    finished: bool = False
    stopped_by: int | None = None
    left: list[str] = field(default_factory=list)
    newest: dict[str, int] = field(default_factory=dict)
    has_begun: bool = False
    problem: CommandError | None = None
    """Why it has not begun, unless somebody stopped it before."""


def client_command(plan: Plan, data: Path, endpoint: str, ops: int, *, group: int | None = None) -> list[str]:
    """Return the arguments of Python for a client that does `ops` of the plan's ops, or none, and then serves.

    It begins when `group` replicas are up, all of the plan's unless told.
    """
    arguments = [f"--data={data}", f"--name={data.name}", f"--lockd={endpoint}", f"--durability={plan.durability}"]
    if not ops:
        return ["client", "serve", *arguments]
    group = plan.clients if group is None else group
    arguments += [f"--ops={ops}", f"--delay={plan.delay}", f"--group={group}", "--report", "--stay"]
    arguments += [f"--file={file}" for file in plan.files]
    if plan.lines is not None:
        arguments.append(f"--lines={plan.lines}")
    if plan.seed is not None:
        arguments.append(f"--seed={plan.seed}")
    return ["client", "run", *arguments]


class Group:
    """lockd and the clients of one run."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        """Run `plan` in `directory`."""
        self.rows = {name: Row(asked) for name, asked in plan.shares().items()}
        self._plan, self._directory = plan, directory
        self._ending = Ending()
        self._endpoint = ""
        self._complete: set[str] = set()
        self._done: set[str] = set()
        self._calls = 0
        self._lockd_is_lost = False
        self._is_stopping = False
        self._gather_until_s = 0.0

    def run(self, open_view: Callable[[], View], heading: str) -> Ending:
        """Do the run and return how it ended; no process of it is left."""
        self._herd = Herd(Ears(self._hear, self._lose, self._called))
        view: View | None = None
        try:
            self._start("lockd", ["lockd", "--bind=tcp://127.0.0.1:*", f"--data={self._directory / 'lockd'}"])
            self._view = view = open_view()  # while lockd starts: rich takes its time to import
            view.tell(heading)
            self._go_through()
        finally:
            self._herd.close()
            if view is not None:
                view.close()
        return self._ending

    # The stages

    def _go_through(self) -> None:
        finished = self._begin() and self._until(self._all_done) and self._agree()
        self._is_stopping = True
        self._stop([child for name, child in self._herd.up.items() if name != "lockd"])
        self._stop([child for name, child in self._herd.up.items() if name == "lockd"])
        self._ending.left.sort(key=list(self.rows).index)
        self._ending.finished = finished and not self._ending.left

    def _begin(self) -> bool:
        """Start everything; return whether all clients that are left see the whole group."""
        if not self._until(lambda: bool(self._endpoint), LOCKD_S):
            if not self._is_broken_off:
                self._ending.problem = refused(
                    f"lockd was not ready within {LOCKD_S:g} s; is this machine busy? try again"
                )
            return False
        self._ending.has_begun = True
        try:
            for name, row in self.rows.items():
                self._start(name, client_command(self._plan, self._directory / name, self._endpoint, row.asked))
        except OSError as error:
            self._view.tell(f"launch: no more processes can be started ({error.strerror}); try fewer --clients")
            return False
        self._gather_until_s = time.monotonic() + GATHER_S
        while not self._until(self._all_complete, 0.1):
            if self._is_broken_off:
                return False
            if time.monotonic() > self._gather_until_s:
                late = ", ".join(name for name in self._living() if name not in self._complete)
                self._view.tell(f"launch: {late}: still waiting for the group to be complete; the run ends")
                return False
        return True

    def _agree(self) -> bool:
        """Wait until all replicas are equal; return whether they are."""
        problem = ""

        def agreed() -> bool:
            nonlocal problem
            problem = disagreement([self._directory / name for name in self._living()])
            return not problem

        if self._until(agreed, AGREE_S, _LOOK_S):
            return True
        if not self._is_broken_off:
            self._view.tell(f"launch: the replicas are not equal after {AGREE_S:g} s: {problem}")
        return False

    def _stop(self, children: Sequence[Child]) -> None:
        """Ask the processes to end, and kill those that do not; at once at the second Ctrl-C."""
        names = {child.name for child in children}
        for child in children:
            if not child.ended:
                child.end()
                if child.name in self.rows:
                    self.rows[child.name].state = "ending"
        if self._until(lambda: names.isdisjoint(self._herd.up), STOP_S):
            return
        for child in children:
            if not child.ended:
                if not self._is_broken_off:
                    self._view.tell(f"launch: {child.name} does not end within {STOP_S:g} s; it is killed")
                child.end(signal.SIGKILL)
        while not names.isdisjoint(self._herd.up):
            self._step(1.0)

    # Waiting

    @property
    def _is_broken_off(self) -> bool:
        if self._is_stopping:
            return self._calls > 1
        return self._calls > 0 or self._lockd_is_lost

    def _until(self, condition: Callable[[], bool], seconds: float = float("inf"), look_s: float = 1.0) -> bool:
        """Go on until the condition is met, and return True; False after `seconds`, or when broken off."""
        deadline_s = time.monotonic() + seconds
        while not condition():
            left_s = deadline_s - time.monotonic()
            if self._is_broken_off or left_s <= 0:
                return False
            self._step(min(left_s, look_s))
        return True

    def _step(self, seconds: float) -> None:
        """Wait until something happens, for `seconds` at most, and take it in."""
        self._herd.step(min(seconds, self._view.tick()))
        self._view.tick()

    def _called(self, number: int) -> None:
        self._calls += 1
        if self._ending.stopped_by is None:
            self._ending.stopped_by = number
            name = signal.Signals(number).name
            self._view.tell(f"launch: {name}: ending every process in order; once more kills them at once")

    # The processes

    def _start(self, name: str, arguments: list[str]) -> None:
        self._herd.start(Child(name, arguments, self._directory / f"{name}.err"))

    def _living(self) -> list[str]:
        return [name for name in self.rows if name in self._herd.up]

    def _all_complete(self) -> bool:
        return self._complete.issuperset(self._living())

    def _all_done(self) -> bool:
        return self._done.issuperset(self._living())

    def _hear(self, child: Child, line: bytes) -> None:
        if child.name != "lockd":
            self._take(child.name, parse_report(line))
        elif line.startswith(b"ready "):
            self._endpoint = line.decode().split()[1]

    def _take(self, name: str, report: Report | None) -> None:
        row = self.rows[name]
        match report:
            case None:
                pass
            case "ready":
                row.state = "waiting for the group"
                if not row.asked:
                    row.state = "serving"
                    self._complete.add(name)
                    self._done.add(name)
            case "complete":
                row.state = "pausing"
                self._complete.add(name)
            case "done":
                row.state = "serving"
                self._done.add(name)
            case OpBegan(file=file):
                row.state = f"working on {file}"
            case OpEnded(file=file, seq=seq):
                row.state = "ending" if self._is_stopping else "pausing"
                row.last = describe(report)
                if report.outcome != "failed":  # what never happened is tried again
                    row.done += 1
                newest = self._ending.newest
                newest[file] = max(newest.get(file, 0), seq)
                self._view.op(name, report)
            case _:
                assert_never(report)

    def _lose(self, child: Child) -> None:
        """Take in that a process is over, and tell of it unless it was asked to end, and did so in order."""
        if child.name == "lockd":
            if not child.is_told_to_end:
                self._lockd_is_lost = True
                if self._ending.has_begun:
                    self._view.tell(f"launch: lockd died, and the run ends: {child.tell_end()}")
                else:
                    code = EXIT_REFUSED if child.exit_code == EXIT_REFUSED else EXIT_CRASHED
                    self._ending.problem = CommandError(code, f"lockd did not start: {child.tell_end()}")
            elif child.exit_code not in (0, -signal.SIGTERM):
                self._view.tell(f"launch: lockd did not end in order: {child.tell_end()}")
            return
        if child.is_told_to_end and child.exit_code in _ENDS_IN_ORDER:
            self.rows[child.name].state = "ended"
            return
        self.rows[child.name].state = f"died: {child.tell_end()}"
        self._ending.left.append(child.name)
        self._gather_until_s = min(self._gather_until_s, time.monotonic() + GATHER_AFTER_LOSS_S)
        how = "did not end in order" if child.is_told_to_end else f"died after {self.rows[child.name].done} ops"
        self._view.tell(f"launch: {child.name} {how}: {child.tell_end()}")
