"""The command `scripts/chaos`: a group works while its processes, network and disks fail; then the verdict."""

import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from common.errors import CommandError, end_with, open_standard_streams, wrong_use
from common.moments import parse_duration
from scripts.faults import namespaces
from scripts.faults.chaos import Chaos, Wanted
from scripts.faults.disks import Disks, open_disks
from scripts.faults.network import Loopback, Network
from scripts.faults.schedule import KINDS, LOCKD, Kind
from scripts.faults.shown import conclude
from scripts.launcher import Parser, joined, near
from scripts.launching import plan as plans
from scripts.launching.plan import Plan
from scripts.launching.record import RunRecord
from scripts.launching.view import Paper
from scripts.verdict.finding import counted

_PROGRAM: Final = "chaos"
_DEFAULT: Final = Plan(clients=5, ops=0, delay="0.0..0.1")
_MINUTES: Final = 1.0
_MINUTES_MAX: Final = 7 * 24 * 60.0
_OF_THE_NETWORK: Final[frozenset[Kind]] = frozenset(("partition", "one-way", "reset", "delay"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 all ✔, 1 some ✘, 2 wrong use, 3 refused, 128+n a signal."""
    open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        return chaos(*read_wanted(sys.argv[1:] if arguments is None else arguments))
    except CommandError as error:
        end_with(_PROGRAM, error)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def read_wanted(arguments: Sequence[str]) -> tuple[Wanted, str | None, str]:
    """Return what the command line asks for, its --run-dir and its --network. Raises CommandError."""
    options = _parser().parse_args(joined(arguments))
    if options.ops is not None and options.minutes is not None:
        raise wrong_use("--ops and --minutes: one of the two says when it is over")
    seed = os.urandom(4).hex() if options.seed is None else options.seed
    plans.check_seed(seed)
    plans.check_delay(options.delay)
    plan = replace(_DEFAULT, seed=seed, delay=options.delay, durability=plans.parse_durability(options.durability))
    if options.file:
        plan = replace(plan, files=tuple(dict.fromkeys(options.file)))
        plans.check_files(plan.files)
    if options.clients is not None:
        plan = replace(plan, clients=plans.parse_clients(options.clients))
    minutes = None
    if options.ops is not None:
        plan = replace(plan, ops=plans.parse_ops(options.ops))
    else:
        minutes = _MINUTES if options.minutes is None else _parse_minutes(options.minutes)
    try:
        ttl_s = parse_duration(options.ttl) / 1e9
    except ValueError as error:
        raise wrong_use(f"--ttl {options.ttl}: {error}") from None
    if not 0.1 <= ttl_s <= 60:
        raise wrong_use(f"--ttl {options.ttl}: it is 100 ms to 60 s here")
    if options.network not in ("auto", "loopback", "namespaces"):
        raise wrong_use(f"--network {options.network}: it is auto, loopback or namespaces")
    return (
        Wanted(plan, _parse_kinds(options.faults), seed, options.ttl, ttl_s, minutes),
        options.run_dir,
        options.network,
    )


def chaos(wanted: Wanted, run_dir: str | None, network_name: str) -> int:
    """Do the run and judge it; return the exit code. Raises CommandError."""
    clients, view = list(wanted.plan.shares()), Paper()
    with ExitStack() as stack:
        stack.callback(view.close)
        network, why_not = _open_network(network_name, clients)
        stack.callback(network.close)
        left_out = [kind for kind in wanted.kinds if kind in _OF_THE_NETWORK and kind not in network.kinds]
        wanted = replace(wanted, kinds=tuple([kind for kind in wanted.kinds if kind not in left_out]))
        if not wanted.kinds:
            raise wrong_use(f"--faults: this network cannot bring about {', '.join(left_out)}; try another --network")
        record = RunRecord.begin(run_dir, wanted.plan, {"faults": list(wanted.kinds), "ttl": wanted.ttl})
        names = {"disk": clients[-1], "lockd-disk": LOCKD}
        disks = open_disks(record.directory, [name for kind, name in names.items() if kind in wanted.kinds])
        stack.callback(disks.close)
        for line in (*_heading(wanted, record.directory, network, disks), why_not):
            if line:
                view.tell(line)
        if left_out:
            view.tell(f"left out, for this network cannot bring it about: {', '.join(left_out)}")
        ending = Chaos(wanted, record.directory, network, disks, view).run()
    return conclude(ending, record)


def _open_network(name: str, clients: list[str]) -> tuple[Network, str]:
    """Return the network, and a line where it is not what would be best."""
    if name == "loopback":
        return Loopback(clients), ""
    if namespaces.are_here():
        return namespaces.Namespaces(clients), ""
    if name == "namespaces":
        raise wrong_use("--network namespaces: they need root and the command ip; try --network loopback")
    return Loopback(clients), "ways between clients are not cut: that needs network namespaces, and those need root"


def _parse_kinds(text: str) -> tuple[Kind, ...]:
    if text == "all":
        return KINDS
    wanted = text.split(",")
    for word in wanted:
        if word not in KINDS:
            raise wrong_use(f"--faults {text}: {word!r} is none of {', '.join(KINDS)}")
    return tuple([kind for kind in KINDS if kind in wanted])


def _parse_minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        raise wrong_use(f"--minutes {text}: a number is wanted, like 5 or 0.5") from None
    if not 0 < minutes <= _MINUTES_MAX:
        raise wrong_use(f"--minutes {text}: more than 0, and at most a week")
    return minutes


def _parser() -> Parser:
    parser = Parser(
        "scripts/chaos",
        description="Have clients work while processes, network and disks fail; then mend all, and judge the run.",
        epilog="Exit code: 0 all ✔, 1 some ✘, 2 wrong use, 3 refused, 130 and 143 stopped by a signal.",
        allow_abbrev=False,
    )
    parser.add_argument("--clients", metavar="N", help=f"how many client processes [default: {_DEFAULT.clients}]")
    parser.add_argument("--ops", metavar="M", help="until so many ops are done, in total")
    parser.add_argument("--minutes", metavar="X", help=f"or for so many minutes [default: {_MINUTES:g}]")
    parser.add_argument(
        "--faults",
        metavar="KIND,...",
        default="all",
        help=f"which faults, out of {', '.join(KINDS)}, or all [default: %(default)s]",
    )
    parser.add_argument("--seed", metavar="S", help="draw the same faults and ops again [default: drawn anew]")
    parser.add_argument(
        "--ttl", metavar="TIME", default="1s", help="the sessions' lease, as in 500ms or 1s [default: %(default)s]"
    )
    parser.add_argument(
        "--file", metavar="NAME", action="append", help=f"a file to work on; repeats [default: {_DEFAULT.files[0]}]"
    )
    parser.add_argument(
        "--delay",
        metavar="A..B",
        default=_DEFAULT.delay,
        help="pause before each op, in seconds [default: %(default)s]",
    )
    parser.add_argument(
        "--network",
        metavar="auto|loopback|namespaces",
        default="auto",
        help="namespaces can cut clients off from one another, and need root; loopback has a proxy before lockd; "
        "auto takes what is there [default: %(default)s]",
    )
    parser.add_argument(
        "--run-dir", metavar="DIR", help="where everything lies, new or empty [default: runs/<UTC time>]"
    )
    parser.add_argument(
        "--durability",
        metavar="disk|memory",
        default="disk",
        help="what acknowledged ops survive: with memory a kill, but not always a power cut [default: %(default)s]",
    )
    return parser


def _heading(wanted: Wanted, directory: Path, network: Network, disks: Disks) -> list[str]:
    plan = wanted.plan
    amount = counted(plan.ops, "op")
    if wanted.minutes is not None:
        amount = "1 minute" if wanted.minutes == 1 else f"{wanted.minutes:g} minutes"
    on = "in network namespaces" if network.peers else "on loopback, through a proxy"
    clients, files = counted(plan.clients, "client"), ", ".join(plan.files)
    lines = [f"{clients}, {amount} on {files}, ttl {wanted.ttl}, seed {wanted.seed}, {on}", f"in {near(directory)}"]
    if disks.names:
        lines.append(f"a full disk is {disks.how}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
