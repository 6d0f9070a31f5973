"""scripts/launch: start lockd and N clients, show them at work, and end with the verdict on their run."""

import argparse
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NoReturn, TypeVar

from common.errors import EXIT_CRASHED, EXIT_OK, CommandError, end_with, open_standard_streams, wrong_use
from scripts.launching import plan as plans
from scripts.launching.group import Ending, Group
from scripts.launching.plan import DEFAULT, Plan
from scripts.launching.record import RunRecord
from scripts.launching.view import open_view

_PROGRAM: Final = "launch"
_Value = TypeVar("_Value")


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise CommandError."""
        raise wrong_use(f"{message.removeprefix('argument ')}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 all ✔, 1 some ✘, 2 wrong use, 3 refused, 128+n a signal."""
    open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")  # a bare environment cannot print ✔
    try:
        plan, run_dir, with_chaos = read_plan(sys.argv[1:] if arguments is None else arguments)
        if with_chaos:
            from scripts.faults.shown import show

            return show(plan, run_dir)
        return launch(plan, RunRecord.begin(run_dir, plan))
    except CommandError as error:
        end_with(_PROGRAM, error)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_CRASHED


def read_plan(arguments: Sequence[str]) -> tuple[Plan, str | None, bool]:
    """Return what the command line asks for, its --run-dir, and whether it is --chaos. Raises CommandError.

    On a terminal it asks for the number of clients and of ops if they are not given.
    """
    parser = _parser()
    options = parser.parse_args(joined(arguments))
    plan = replace(DEFAULT, delay=options.delay, lines=options.lines, seed=options.seed)
    if options.file:
        plan = replace(plan, files=tuple(dict.fromkeys(options.file)))
    if options.clients is not None:
        plan = replace(plan, clients=plans.parse_clients(options.clients))
    if options.ops is not None:
        plan = replace(plan, ops=plans.parse_ops(options.ops))
    plans.check_delay(plan.delay)
    plans.check_files(plan.files)
    if plan.lines is not None:
        plans.check_lines(plan.lines)
    if plan.seed is not None:
        plans.check_seed(plan.seed)
    plan = replace(plan, durability=plans.parse_durability(options.durability))
    if options.chaos:
        if options.ops is not None:
            raise wrong_use("--ops: with --chaos the clients work until all has been shown; leave it out")
        if plan.clients < 2:
            raise wrong_use("--clients 1: --chaos shows what one client does to others; ask for at least 2")
        delay = options.delay if options.delay != DEFAULT.delay else "0.0..0.0"
        return replace(plan, ops=0, delay=delay), options.run_dir, True
    if os.isatty(0) and os.isatty(1):
        if options.clients is None:
            plan = replace(plan, clients=_ask("How many clients?", plan.clients, plans.parse_clients))
        if options.ops is None:
            plan = replace(plan, ops=_ask("How many ops in total?", plan.ops, plans.parse_ops))
    return plan, options.run_dir, False


def launch(plan: Plan, record: RunRecord) -> int:
    """Do the run and judge it; return the exit code."""
    group = Group(plan, record.directory)
    ending = group.run(lambda: open_view(group.rows, plan.ops), _heading(plan, record.directory))
    record.end(finished=ending.finished, left=ending.left, stopped=ending.stopped_by is not None)
    if ending.problem is not None:
        raise ending.problem
    has_run = any(record.directory.glob("client-*/events.log"))
    if ending.stopped_by is not None and not has_run:
        print("\nstopped before a client was up: there is nothing to judge", flush=True)
        return 128 + ending.stopped_by
    is_good = ending.has_begun and judge_run(record.directory)
    if ending.has_begun:
        _tell_places(plan, record.directory, ending)
    if ending.stopped_by is not None:
        return 128 + ending.stopped_by
    return EXIT_OK if is_good else EXIT_CRASHED


def _parser() -> Parser:
    parser = Parser(
        prog="scripts/launch",
        description="Start lockd and N clients that do M random ops in total, and judge what they leave.",
        epilog="Exit code: 0 all ✔, 1 some ✘, 2 wrong use, 3 refused, 130 and 143 stopped by a signal.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--clients", metavar="N", help=f"how many client processes [default: {DEFAULT.clients}, or asked for]"
    )
    parser.add_argument("--ops", metavar="M", help=f"how many ops in total [default: {DEFAULT.ops}, or asked for]")
    parser.add_argument(
        "--file",
        metavar="NAME",
        action="append",
        help=f"a file to work on; repeats, each op picks one [default: {DEFAULT.files[0]}]",
    )
    parser.add_argument(
        "--delay",
        metavar="A..B",
        default=DEFAULT.delay,
        help="random pause before each op, in seconds [default: %(default)s]",
    )
    parser.add_argument("--lines", metavar="PATH", help="take the texts from this file's lines [default: made up]")
    parser.add_argument("--seed", metavar="S", help="repeat the choices of a run [default: others each time]")
    parser.add_argument(
        "--chaos",
        action="store_true",
        help="show three faults: a client killed, a client stopped beyond its lease, lockd killed",
    )
    parser.add_argument(
        "--run-dir", metavar="DIR", help="where everything lies, new or empty [default: runs/<UTC time>]"
    )
    parser.add_argument(
        "--durability",
        metavar="disk|memory",
        default=DEFAULT.durability,
        help="disk: acknowledged is on disk; memory: in the system's cache [default: %(default)s]",
    )
    return parser


def joined(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with each option's value joined to it, for argparse takes `-1..2` for an option."""
    joined: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        value = None
        if argument.startswith("--") and "=" not in argument and argument not in ("--", "--help", "--chaos"):
            value = next(rest, None)
        joined.append(argument if value is None else f"{argument}={value}")
    return joined


def _ask(question: str, default: _Value, parse: Callable[[str], _Value]) -> _Value:
    while True:
        print(f"{question} [{default}] ", end="", flush=True)  # input() would ask on stderr
        line = sys.stdin.readline()
        if not line:
            print()
            raise wrong_use("the terminal gave no answer; give --clients N and --ops M")
        answer = line.strip()
        if not answer:
            return default
        try:
            return parse(answer)
        except CommandError as error:
            print(error)


# Before and after


def _heading(plan: Plan, directory: Path) -> str:
    clients = "1 client" if plan.clients == 1 else f"{plan.clients} clients"
    ops = "1 op" if plan.ops == 1 else f"{plan.ops} ops"
    warning = ": a power cut can take acknowledged ops" if plan.durability == "memory" else ""
    return f"{clients}, {ops} on {', '.join(plan.files)}, durability {plan.durability}{warning}, in {near(directory)}"


def judge_run(directory: Path) -> bool:
    """Print the verdict of scripts/check; return whether it is all ✔."""
    from scripts.checker import as_lines, check
    from scripts.verdict.load import NoRun

    print(flush=True)
    try:
        findings = check([directory])
    except NoRun as problem:
        print(f"✘ no verdict: {problem}")
        return False
    print(as_lines(findings))
    return all(finding.ok for finding in findings)


def _tell_places(plan: Plan, directory: Path, ending: Ending) -> None:
    """Print where the logs, files and snapshots are."""
    place = shlex.quote(near(directory))
    client = shlex.quote(near(Path(sys.executable).with_name("client")))
    logs = [f"{place}/client-*/events.log  {place}/lockd/grants.log"]
    logs += [f"{shlex.quote(near(errors))}  (stderr)" for errors in sorted(directory.glob("*.err"))]
    files = [f"{place}/client-*/files/{shlex.quote(file)}" for file in sorted(set(plan.files))]
    file = max(ending.newest, key=ending.newest.__getitem__, default=plan.files[0])
    first = f"{client} snapshots {shlex.quote(file)} --data {place}/client-0"
    snapshots = [first]
    if seq := ending.newest.get(file):
        snapshots.append(f"{client} show {shlex.quote(f'{file}@{seq}')} --data {place}/client-0")
    print()
    timeline = [tell_timeline(directory)]
    for title, lines in (("logs", logs), ("files", files), ("snapshots", snapshots), ("timeline", timeline)):
        for line in lines:
            print(f"{title:<11}{line}")
            title = ""
    print(end="", flush=True)


def tell_timeline(directory: Path) -> str:
    """Draw a run's picture; return where it is, or why there is none."""
    from scripts.picture.write import write_page
    from scripts.verdict.load import NoRun

    try:
        return shlex.quote(near(write_page([directory])))
    except (CommandError, NoRun, OSError) as problem:
        return f"not drawn: {problem}"


def near(path: Path) -> str:
    """Return the path as it is shortest: from here, or from the root."""
    absolute = os.path.abspath(path)
    relative = os.path.relpath(absolute)
    return min(relative, absolute, key=len)


if __name__ == "__main__":
    sys.exit(main())
