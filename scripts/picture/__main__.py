"""scripts/timeline: draw a run as a space-time diagram, from its files alone."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from common.errors import EXIT_OK, EXIT_WRONG_USE, CommandError, end_with, refused
from scripts.launcher import Parser, near
from scripts.picture.model import Picture, draw
from scripts.picture.notes import read_notes
from scripts.verdict.load import NoRun, find, open_run

PAGE: Final = "timeline.html"


def write_page(run_dir: Path) -> Path:
    """Write RUN_DIR/timeline.html and return its path. Raises NoRun, CommandError."""
    from scripts.picture.page import as_page

    return _write(run_dir / PAGE, as_page(read_picture([run_dir])))


def read_picture(directories: Sequence[Path]) -> Picture:
    """Read what a run left, and work out its picture. Raises NoRun."""
    with open_run(directories) as evidence:
        title = f"Lockstep: {', '.join(path.resolve().name for path in directories)}"
        return draw(title, evidence, read_notes(find(directories)))


def _write(path: Path, text: str) -> Path:
    new = path.with_name(f"{path.name}.new")
    try:
        new.write_text(text, encoding="utf-8")
        os.replace(new, path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise refused(f"{path} cannot be written ({error.strerror}); make room, or choose another --output") from None
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 ok, 2 no run there, 3 it cannot be written."""
    try:
        parser = Parser(prog="scripts/timeline", description=__doc__)
        parser.add_argument("directories", nargs="+", metavar="RUN_DIR", type=Path)
        options = parser.parse_args(arguments)
        print(near(write_page(options.directories[0])))
    except NoRun as problem:
        print(f"scripts/timeline: {problem}", file=sys.stderr)
        return EXIT_WRONG_USE
    except CommandError as error:
        end_with("scripts/timeline", error)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
