"""python -m tests.lock_sim: run many seeds, or one again."""

import argparse
import sys
import time

from tests.lock_sim.rules import RULES, seeds_until_caught
from tests.lock_sim.run import run_seed
from tests.sim.run import SimulationFailed

_PROGRESS_S = 5.0


def main() -> int:
    """Run the command; return its exit code: 0 all passed, 1 one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.lock_sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, metavar="N", help="how many seeds to run, 1000 unless told")
    parser.add_argument("--from", type=int, default=0, metavar="S", dest="first", help="the first of them")
    parser.add_argument("--events", type=int, default=50, metavar="N", help="how many of a failed one's last to show")
    parser.add_argument("--rules", action="store_true", help="leave out each safety rule: how many seeds notice?")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error("--seeds is at least 1")
    if options.rules:
        return _leave_rules_out(options.seeds)
    began = shown = time.process_time()
    ops = grants = steps = 0
    for done, seed in enumerate(range(options.first, options.first + options.seeds), 1):
        try:
            figures = run_seed(seed, options.events)
        except SimulationFailed as failure:
            print(failure)
            return 1
        ops, grants, steps = ops + figures.ops, grants + figures.grants, steps + figures.steps
        now = time.process_time()
        if now - shown > _PROGRESS_S or done == options.seeds:
            shown = now
            rate = done / (now - began)
            print(f"{done} seeds, {ops} ops, {grants} grants, {steps} steps: all ✔, {rate:.0f} seeds/s", flush=True)
    return 0


def _leave_rules_out(seeds: int) -> int:
    missed = 0
    for name in RULES:
        caught = seeds_until_caught(name, seeds)
        missed += caught is None
        told = f"{caught[0]:6}  {name}: {caught[1][:100]}" if caught else f"  none  {name}: not in {seeds} seeds"
        print(told, flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
