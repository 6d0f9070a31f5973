"""python -m tests.sim: run many seeds, or one again."""

import argparse
import sys
import time

from tests.sim.rules import RULES, seeds_until_caught
from tests.sim.run import SimulationFailed, run_seed

_PROGRESS_S = 5.0


def main() -> int:
    """Run the command; return its exit code: 0 all passed, 1 one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, metavar="N", help="how many seeds to run: 1000, for the rules 10000")
    parser.add_argument("--first", type=int, default=0, metavar="S", help="the first of them")
    parser.add_argument("--seed", type=int, metavar="S", help="run this seed alone")
    parser.add_argument("--events", type=int, default=50, metavar="N", help="how many of a failed one's last to show")
    parser.add_argument("--calm", action="store_true", help="without faults")
    parser.add_argument("--never-keep", action="store_true", help="no client keeps a lock when it is done")
    parser.add_argument("--rules", action="store_true", help="leave out each safety rule: how many seeds notice?")
    options = parser.parse_args()
    if options.seeds is not None and (options.seeds < 1 or options.seed is not None):
        parser.error("--seeds is at least 1, and not for one --seed alone")
    if options.rules:
        return _leave_rules_out(options.seeds or 10000)
    options.seeds = options.seeds or 1000
    if options.seed is not None:
        options.first, options.seeds = options.seed, 1
    began = shown = time.process_time()
    ops = steps = 0
    for done, seed in enumerate(range(options.first, options.first + options.seeds), 1):
        try:
            figures = run_seed(seed, calm=options.calm, keep=not options.never_keep, events=options.events)
        except SimulationFailed as failure:
            print(failure)
            return 1
        ops, steps = ops + figures.ops, steps + figures.steps
        now = time.process_time()
        if now - shown > _PROGRESS_S or done == options.seeds:
            shown = now
            rate = done / (now - began)
            print(f"{done} seeds, {ops} ops, {steps} steps: all ✔, {rate:.0f} seeds/s", flush=True)
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
