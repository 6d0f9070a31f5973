"""What the commands of all simulations do: run many seeds, or one again, or leave out one rule after another."""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from tests.sim.run import Figures, SimulationFailed

_PROGRESS_S: Final = 5.0

Rule = tuple[type, str, Callable[..., object]]
"""Whose method is put in the place of which, to do without the rule."""
Rules = Mapping[str, Rule]
Run = Callable[[int], Figures]
"""Runs a seed. Raises SimulationFailed."""


@contextmanager
def without(rule: Rule) -> Iterator[None]:
    """Do without a rule."""
    owner, method, other = rule
    kept = getattr(owner, method)
    setattr(owner, method, other)
    try:
        yield
    finally:
        setattr(owner, method, kept)


def parser_of(name: str) -> argparse.ArgumentParser:
    """Return a parser with the options of every simulation."""
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description="Run many seeds, or one again.")
    parser.add_argument("--seeds", type=int, metavar="N", help="how many seeds to run: 1000, for the rules 10000")
    parser.add_argument("--first", type=int, default=0, metavar="S", help="the first of them")
    parser.add_argument("--seed", type=int, metavar="S", help="run this seed alone")
    parser.add_argument("--events", type=int, default=50, metavar="N", help="how many of a failed one's last to show")
    parser.add_argument("--rules", action="store_true", help="leave out each safety rule: how many seeds notice?")
    return parser


def read(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the options that were given."""
    options = parser.parse_args()
    if options.seeds is not None and (options.seeds < 1 or options.seed is not None):
        parser.error("--seeds is at least 1, and not for one --seed alone")
    options.seeds = options.seeds or (10000 if options.rules else 1000)
    if options.seed is not None:
        options.first, options.seeds = options.seed, 1
    return options


def carry_out(options: argparse.Namespace, run: Run, rules: Rules) -> int:
    """Run the seeds, or leave out the rules; return the exit code: 0 all is as it must be, 1 not so, 130 Ctrl-C."""
    seeds = range(options.first, options.first + options.seeds)
    try:
        return _leave_rules_out(seeds, run, rules) if options.rules else _run_all(seeds, run)
    except KeyboardInterrupt:
        return 130


def _run_all(seeds: range, run: Run) -> int:
    began = shown = time.process_time()
    ops = steps = 0
    for done, seed in enumerate(seeds, 1):
        try:
            figures = run(seed)
        except SimulationFailed as failure:
            print(failure)
            return 1
        ops, steps = ops + figures.ops, steps + figures.steps
        now = time.process_time()
        if now - shown > _PROGRESS_S or done == len(seeds):
            shown = now
            rate = done / (now - began)
            print(f"{done} seeds, {ops} ops, {steps} steps: all ✔, {rate:.0f} seeds/s", flush=True)
    return 0


def _leave_rules_out(seeds: range, run: Run, rules: Rules) -> int:
    missed = 0
    for name, rule in rules.items():
        caught = _seeds_until_caught(rule, seeds, run)
        missed += caught is None
        told = f"{caught[0]:6}  {name}: {caught[1][:100]}" if caught else f"  none  {name}: not in {len(seeds)} seeds"
        print(told, flush=True)
    return 1 if missed else 0


def _seeds_until_caught(rule: Rule, seeds: range, run: Run) -> tuple[int, str] | None:
    """Return how many seeds it takes to notice that a rule is missing, and how that shows; None if they do not."""
    with without(rule):
        for count, seed in enumerate(seeds, 1):
            try:
                run(seed)
            except SimulationFailed as failure:
                found = str(failure).partition("\n")[0].partition(": ")[2]
                if not found.startswith("Broken: "):
                    raise  # it is the way in which we do without the rule that fails
                return count, found
    return None
