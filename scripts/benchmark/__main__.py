"""The command `scripts/bench`."""

import argparse
import io
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Final

from common.errors import CommandError
from scripts.benchmark import growth, limits, locks, merged_logs, ops, recovery, sessions, startup, timeline
from scripts.benchmark.figures import Row
from scripts.benchmark.peers.measuring import Outcome, measure_peers
from scripts.benchmark.peers.servers import PEERS
from scripts.benchmark.processes import NotMeasured
from scripts.benchmark.sampling import FULL, QUICK, Effort
from scripts.benchmark.table import as_json, as_table
from scripts.parsing import Parser

MEASUREMENTS: Final[dict[str, Callable[[Effort], list[Row]]]] = {
    "limits": limits.measure,
    "lock": locks.measure_lock,
    "handoffs": locks.measure_hand_offs,
    "sessions": sessions.measure,
    "op": ops.measure_op,
    "working": ops.measure_working,
    "history": growth.measure_history,
    "size": growth.measure_size,
    "disk": growth.measure_disk,
    "wire": growth.measure_wire,
    "startup": startup.measure,
    "recovery": recovery.measure_recovery,
    "log": merged_logs.measure,
    "timeline": timeline.measure_timeline,
}

_TIME_S: Final = {False: 720, True: 120}
"""After so many seconds what is left is given up; by quick or not."""

_PEERS_TIME_S: Final = {False: 1800, True: 300}
"""The same where peers are measured."""


class _TimeUp(Exception):
    """The time for the whole run is over."""


def measure(names: Sequence[str], effort: Effort) -> tuple[list[Row], dict[str, str]]:
    """Make the measurements; return their rows, and why others could not be made."""
    rows: list[Row] = []
    problems: dict[str, str] = {}
    for place, name in enumerate(names):
        print(f"measuring {name} ({place + 1} of {len(names)})", file=sys.stderr, flush=True)
        try:
            rows += MEASUREMENTS[name](effort)
        except (NotMeasured, CommandError, OSError) as error:
            problems[name] = str(error) or type(error).__name__
        except _TimeUp:
            problems |= dict.fromkeys(names[place:], "the time for the whole run was over")
            break
    return rows, problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, or 1 where something could not be measured."""
    parser = Parser(
        prog="scripts/bench",
        description="Measure Lockstep against the limits of this machine, in the same run; a bound that is missed is "
        "told in its row. Exit code 1 only where something could not be measured.",
    )
    parser.add_argument("--quick", action="store_true", help="a short version, in a minute or so")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=MEASUREMENTS,
        help=f"make only these: {', '.join(MEASUREMENTS)} [default: all]",
    )  # fmt: skip
    parser.add_argument(
        "--peers", metavar="PEER,...", type=_peers,
        help=f"measure other lock services beside ours instead, those of {', '.join(PEERS)} that are installed; or all",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.peers and options.only:
        parser.error("--peers measures other things than --only picks from: give one of them")
    signal.signal(signal.SIGALRM, _time_up)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGHUP, _stop)
    effort = QUICK if options.quick else FULL
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # a bare environment cannot print ≤
    if options.peers:
        signal.alarm(_PEERS_TIME_S[options.quick])
        outcome = _measure_peers(options.peers, effort)
        signal.alarm(0)
        problems = outcome.problems
        table = as_table(outcome.rows, "ours", "theirs") if outcome.rows else ""
        shown = as_json(outcome.rows, problems, outcome.absent) if options.json else table
        for name, way in outcome.absent.items():
            print(f"scripts/bench: {name} is not installed: {way}", file=sys.stderr)
    else:
        signal.alarm(_TIME_S[options.quick])
        rows, problems = measure(options.only or [*MEASUREMENTS], effort)
        signal.alarm(0)
        shown = as_json(rows, problems) if options.json else as_table(rows)
    if shown:
        print(shown)
    for name, problem in problems.items():
        print(f"scripts/bench: {name} was not measured: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _measure_peers(names: Sequence[str], effort: Effort) -> Outcome:
    """Measure us and these peers; what ends it early becomes a problem of the outcome."""
    outcome = Outcome()
    try:
        measure_peers(names, effort, outcome)
    except (NotMeasured, CommandError, OSError) as error:
        outcome.problems["Lockstep"] = str(error) or type(error).__name__
    except _TimeUp:
        outcome.problems["the rest"] = "the time for the whole run was over"
    return outcome


def _peers(text: str) -> list[str]:
    """Return the names in a list with commas. Raises argparse.ArgumentTypeError."""
    names = [*PEERS] if text == "all" else text.split(",")
    for name in names:
        if name not in PEERS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(PEERS)}, nor all")
    return [*dict.fromkeys(names)]


def _time_up(number: int, frame: FrameType | None) -> None:
    raise _TimeUp


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
