"""python -m tests.lock_sim: run many seeds, or one again."""

import sys
from functools import partial

from tests.lock_sim.rules import RULES
from tests.lock_sim.run import run_seed
from tests.sim.campaign import carry_out, parser_of, read


def main() -> int:
    """Run the command; return its exit code."""
    options = read(parser_of("tests.lock_sim"))
    return carry_out(options, partial(run_seed, events=options.events), RULES)


if __name__ == "__main__":
    sys.exit(main())
