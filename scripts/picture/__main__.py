"""scripts/timeline: draw a run as a space-time diagram, from its files alone."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from common.errors import EXIT_OK, EXIT_WRONG_USE, CommandError, end_with
from scripts.launcher import Parser, near
from scripts.parsing import add_run_directories
from scripts.picture.page import as_page
from scripts.picture.svg import MARKS_MAX
from scripts.picture.write import read_picture, svg_of, write
from scripts.verdict.load import NoRun

_PROGRAM: Final = "scripts/timeline"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 ok, 2 no run there, 3 it cannot be written or drawn."""
    try:
        options = _parser().parse_args(arguments)
        picture = read_picture(options.directories)
        path = options.output or options.directories[0] / ("timeline.svg" if options.svg else "timeline.html")
        write(path, svg_of(picture) if options.svg else as_page(picture))
        for host, count in picture.missing.items():
            print(
                f"{_PROGRAM}: events of {host} that no log here has, and that are not drawn: {count}", file=sys.stderr
            )
        print(near(path))
    except NoRun as problem:
        print(f"{_PROGRAM}: {problem}", file=sys.stderr)
        return EXIT_WRONG_USE
    except CommandError as error:
        end_with(_PROGRAM, error)
    return EXIT_OK


def _parser() -> Parser:
    parser = Parser(
        prog=_PROGRAM,
        description="Draw a run as a space-time diagram: one page that needs nothing else. Prints where it is.",
        allow_abbrev=False,
    )
    add_run_directories(parser)
    parser.add_argument(
        "--svg", action="store_true", help=f"an SVG in logical time instead, of up to {MARKS_MAX} events"
    )
    parser.add_argument(
        "--output", metavar="PATH", type=Path, help="where to write it [default: timeline.html in the first RUN_DIR]"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
