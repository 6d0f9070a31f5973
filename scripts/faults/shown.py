"""What a run with faults ends with on the terminal, counts and the verdict; and all of `scripts/launch --chaos`."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from common.errors import EXIT_CRASHED, EXIT_OK
from scripts.faults.run import Ending
from scripts.faults.schedule import KINDS
from scripts.faults.story import KINDS as SHOWN
from scripts.faults.story import TTL, Story
from scripts.launcher import judge_run, near, tell_timeline
from scripts.launching.plan import Plan
from scripts.launching.record import RunRecord
from scripts.launching.view import Paper


def show(plan: Plan, run_dir: str | None) -> int:
    """Do a run that shows three faults, and judge it; return the exit code. Raises CommandError."""
    record = RunRecord.begin(run_dir, plan, {"faults": list(SHOWN), "ttl": TTL})
    view = Paper()
    view.tell(f"{plan.clients} clients on {', '.join(plan.files)}, ttl {TTL}, in {near(record.directory)}")
    try:
        ending = Story(replace(plan, seed=plan.seed or record.directory.name), record.directory, view).run()
    finally:
        view.close()
    return conclude(ending, record)


def conclude(ending: Ending, record: RunRecord) -> int:
    """Put the end on record, and print the counts and the verdict; return the exit code. Raises CommandError."""
    came = {one.fault.kind for one in ending.injected}
    more = {"faults": [kind for kind in KINDS if kind in came]} if came else None
    record.end(finished=ending.finished, left=(), stopped=ending.stopped_by is not None, more=more)
    _tell_counts(ending)
    is_good = _has_run(record.directory) and judge_run(record.directory)
    for problem in ending.problems:
        print(f"✘ {problem}")
    place = near(record.directory)
    print(f"\nlogs       {place}/*/*.log  {place}/outcomes.jsonl", flush=True)
    if _has_run(record.directory):
        print(f"timeline   {tell_timeline(record.directory)}", flush=True)
    if ending.stopped_by is not None:
        return 128 + ending.stopped_by
    return EXIT_OK if is_good and ending.finished and not ending.problems else EXIT_CRASHED


def _has_run(directory: Path) -> bool:
    return any(directory.glob("client-*/events.log"))


def _tell_counts(ending: Ending) -> None:
    if ending.injected:
        injected = Counter(one.fault.kind for one in ending.injected)
        survived = Counter(one.fault.kind for one in ending.injected if one.survived)
        print(f"\n{'fault':<13}{'injected':>8}{'survived':>10}")
        for kind in KINDS:
            if injected[kind]:
                print(f"{kind:<13}{injected[kind]:>8}{survived[kind]:>10}")
        print(f"{'together':<13}{injected.total():>8}{survived.total():>10}")
    told = ", ".join(f"{number} {outcome}" for outcome, number in ending.counts.items())
    print(f"\nops        {told}", flush=True)
