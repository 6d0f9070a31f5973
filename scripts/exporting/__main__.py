"""The command `scripts/export`."""

import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from client.event_logs import EventLog
from client.merge import Merge
from common.printing import printable
from scripts.exporting.shiviz import Mended, TooManyLost
from scripts.exporting.trace import trace
from scripts.parsing import Parser, add_run_directories
from scripts.verdict.load import NoRun, find, open_run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 where a log is damaged too much, 2 no run there."""
    parser = Parser(
        prog="scripts/export",
        description="Write a run to stdout as other tools read it. What crashes have cut off is put back, and told.",
    )
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--shiviz", action="store_true", help="a log that ShiViz and TSViz open as a file")
    kinds.add_argument("--trace", action="store_true", help="a trace that Perfetto and chrome://tracing open")
    add_run_directories(parser)
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        for piece in _shiviz(options.directories) if options.shiviz else _trace(options.directories):
            sys.stdout.write(piece)
        sys.stdout.flush()
    except NoRun as problem:
        _tell(str(problem))
        return 2
    except TooManyLost as problem:
        _tell(str(problem))
        return 1
    except BrokenPipeError:  # whoever read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        _tell(f"{error.filename or 'stdout'}: {(error.strerror or str(error)).lower()}")
        return 1
    return 0


def _shiviz(directories: Sequence[Path]) -> Iterator[str]:
    merge, mended = Merge(), Mended()
    logs = [EventLog(path / "events.log", _left_out) for path in find(directories).clients.values()]
    for log in logs:
        merge.add(log.head)
    yield from mended.lines(merge.events())
    for log in logs:
        if log.torn:
            _tell(f"{log.path}: the last line is torn, and left out")
    for line in mended.told():
        _tell(line)


def _trace(directories: Sequence[Path]) -> Iterator[str]:
    with open_run(directories) as evidence:
        for flaw in evidence.flaws:
            if flaw.name == "logs":
                _tell(f"{flaw.where}: {flaw.what}")
        yield '{"displayTimeUnit":"ms","traceEvents":['
        between = "\n"
        for entry in trace(evidence):
            yield between + json.dumps(entry, separators=(",", ":"))
            between = ",\n"
        yield "\n]}\n"


def _left_out(path: Path, number: int, problem: str) -> None:
    _tell(f"{path}:{number}: a line is left out: {problem}")


def _tell(line: str) -> None:
    print(f"scripts/export: {printable(line)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
