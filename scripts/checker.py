"""scripts/check: judge a finished run from its files alone."""

import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from scripts.parsing import Parser, add_run_directories
from scripts.verdict.finding import Finding
from scripts.verdict.load import NoRun, open_run
from scripts.verdict.properties import PROPERTIES, judge

_NAME_WIDTH: Final = max(map(len, PROPERTIES)) + 2


def check(directories: Sequence[Path]) -> tuple[Finding, ...]:
    """Judge the run that left these directories. Raises NoRun."""
    with open_run(directories) as evidence:
        return judge(evidence)


def as_lines(findings: Sequence[Finding]) -> str:
    """Return one line per property."""
    return "\n".join(
        [f"{'✔' if finding.ok else '✘'} {finding.name:<{_NAME_WIDTH}}{finding.detail}" for finding in findings]
    )


def as_json(findings: Sequence[Finding]) -> str:
    """Return the findings as a JSON object."""
    properties = [{"name": finding.name, "ok": finding.ok, "detail": finding.detail} for finding in findings]
    ok = all(finding.ok for finding in findings)
    return json.dumps({"ok": ok, "properties": properties}, indent=2, ensure_ascii=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 all ✔, 1 some ✘, 2 no run there."""
    parser = Parser(
        prog="scripts/check",
        description="Judge a finished run from its files alone: one line per property, exit code 1 on any ✘.",
    )
    add_run_directories(parser)
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON object")
    options = parser.parse_args(arguments)
    try:
        findings = check(options.directories)
    except NoRun as problem:
        print(f"scripts/check: {problem}", file=sys.stderr)
        return 2
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # a bare environment cannot print ✔
    try:
        print(as_json(findings) if options.json else as_lines(findings), flush=True)
    except BrokenPipeError:  # whoever read it has seen enough; the exit code still tells
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0 if all(finding.ok for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
