"""A run's picture, from its files into a file."""

import os
from collections.abc import Sequence
from pathlib import Path

from common.errors import refused
from scripts.picture.model import Picture, draw
from scripts.picture.notes import read_notes
from scripts.picture.page import as_page
from scripts.picture.svg import MARKS_MAX, as_svg
from scripts.verdict.load import find, open_run


def read_picture(directories: Sequence[Path]) -> Picture:
    """Read the run in `directories`, and work out what is drawn. Raises NoRun."""
    places = find(directories)
    with open_run(directories) as evidence:
        names = dict.fromkeys([path.resolve().name for path in directories])
        title = f"Lockstep: {', '.join(names)}"
        return draw(title, evidence, read_notes(places))


def write_page(directories: Sequence[Path], path: Path | None = None) -> Path:
    """Draw the run in `directories` as a page; return where it is: timeline.html in the first of them unless told.

    Raises NoRun, CommandError.
    """
    path = path or directories[0] / "timeline.html"
    write(path, as_page(read_picture(directories)))
    return path


def svg_of(picture: Picture) -> str:
    """Return the picture as an SVG. Raises CommandError where that would be too wide to look at."""
    if len(picture.marks) > MARKS_MAX:
        raise refused(
            f"--svg: the run has {len(picture.marks)} events, and more than {MARKS_MAX} are no picture to look at; "
            "leave --svg out for a page, which saves what is in view"
        )
    return as_svg(picture)


def write(path: Path, text: str) -> None:
    """Write a file as a whole or not at all. Raises CommandError."""
    new = path.with_name(f"{path.name}.new")
    try:
        new.write_text(text, encoding="utf-8")
        os.replace(new, path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise refused(f"{path} cannot be written ({error.strerror}); choose another --output") from None
