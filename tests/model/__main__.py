"""python -m tests.model: check the model with all rules, and that each rule is missed when it is left out."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tests.model import tlc
from tests.model.instances import FULL, QUICK, RULES, Instance, Rule, config

_SECONDS_MAX: Final = 900.0
_HEAD_ALL: Final = ("all rules", "generated", "distinct", "depth", "seconds", "result")
_HEAD_WITHOUT: Final = ("left out", "violated", "steps", "distinct", "seconds")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 all as it must be, 1 not so, 3 TLC cannot be run."""
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="of the instances with all rules only the smallest")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="so many runs at once, each on one core")
    parser.add_argument("--configs", type=Path, metavar="DIR", help="only write TLC's configurations into DIR")
    parser.add_argument("--traces", type=Path, metavar="DIR", help="write each counterexample into DIR")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error("--jobs is at least 1")
    instances = QUICK if options.quick else FULL
    if options.configs:
        for name, text in _configs(instances):
            _write(options.configs / f"{name}.cfg", text)
        return 0
    try:
        found = tlc.find()
    except tlc.Missing as missing:
        print(f"python -m tests.model: {missing}", file=sys.stderr)
        return 3
    # The long ones first: then no core is idle at the end.
    texts = list(_configs(instances))[::-1]
    with ThreadPoolExecutor(options.jobs) as pool:
        by_name = dict(pool.map(lambda named: _run(found, *named), texts))
    if options.traces:
        for name, result in by_name.items():
            if result.trace:
                _write(options.traces / f"{name}.txt", result.trace)
    good = [by_name[f"all-{number}"] for number, _ in enumerate(instances, 1)]
    _print_table(_HEAD_ALL, [_row_all(instance, result) for instance, result in zip(instances, good, strict=True)])
    print()
    caught = [by_name[f"without-{rule.name}"] for rule in RULES]
    _print_table(_HEAD_WITHOUT, [_row_without(rule, result) for rule, result in zip(RULES, caught, strict=True)])
    wrong = any(result.violated or result.problem for result in good) or not all(result.violated for result in caught)
    print("\n✘ not as it must be" if wrong else "\n✔ no error with all rules; each rule is missed when it is left out")
    return int(wrong)


def _configs(instances: tuple[Instance, ...]) -> Iterator[tuple[str, str]]:
    """Yield a name and TLC's configuration for each run."""
    for rule in RULES:
        yield f"without-{rule.name}", config(rule.missed_in, rule)
    for number, instance in enumerate(instances, 1):
        yield f"all-{number}", config(instance)


def _run(found: tlc.Tlc, name: str, text: str) -> tuple[str, tlc.Result]:
    """Check one configuration and say on stderr that it is done."""
    brief = name.startswith("without-") or name == "all-1"
    result = tlc.run(found, text, _SECONDS_MAX, brief=brief)
    print(f"{name}: {result.distinct:,} states in {result.seconds:.0f} s", file=sys.stderr, flush=True)
    return name, result


def _row_all(instance: Instance, result: tlc.Result) -> tuple[str, ...]:
    verdict = result.problem or "no error, complete"
    if result.violated:
        verdict = f"✘ {result.violated} after {result.steps} steps"
    counts = (result.generated, result.distinct, result.depth)
    return (str(instance), *[f"{count:,}" for count in counts], f"{result.seconds:.0f}", verdict)


def _row_without(rule: Rule, result: tlc.Result) -> tuple[str, ...]:
    violated = result.violated or f"✘ {result.problem or 'nothing'}"
    steps = str(result.steps) if result.violated else "-"
    return rule.name, violated, steps, f"{result.distinct:,}", f"{result.seconds:.0f}"


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
