"""python -m tests.sim: run many seeds, or one again."""

import sys
from functools import partial

from tests.sim.campaign import carry_out, parser_of, read
from tests.sim.rules import RULES
from tests.sim.run import run_seed


def main() -> int:
    """Run the command; return its exit code."""
    parser = parser_of("tests.sim")
    parser.add_argument("--calm", action="store_true", help="without faults")
    parser.add_argument("--never-keep", action="store_true", help="no client keeps a lock; so with --rules")
    options = read(parser)
    keep = not (options.never_keep or options.rules)
    return carry_out(options, partial(run_seed, calm=options.calm, keep=keep, events=options.events), RULES)


if __name__ == "__main__":
    sys.exit(main())
