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


def write_page(directories: Sequence[Path], path: Path | None = None) -> Path:
    """Draw the run in `directories` as a page; return where it is: timeline.html in the first of them unless told.

    Raises NoRun, CommandError.
    """
    return _write(path or directories[0] / "timeline.html", as_page(_read(directories)))


def write_svg(directories: Sequence[Path], path: Path | None = None) -> Path:
    """Draw the run as an SVG; return where it is: timeline.svg in the first directory unless told.

    Raises NoRun, CommandError.
    """
    picture = _read(directories)
    if len(picture.marks) > MARKS_MAX:
        raise refused(
            f"--svg: the run has {len(picture.marks)} events, and more than {MARKS_MAX} are no picture to look at; "
            "leave --svg out for a page"
        )
    return _write(path or directories[0] / "timeline.svg", as_svg(picture))


def _read(directories: Sequence[Path]) -> Picture:
    places = find(directories)
    with open_run(directories) as evidence:
        title = f"Lockstep: {', '.join([path.resolve().name for path in directories])}"
        return draw(title, evidence, read_notes(places))


def _write(path: Path, text: str) -> Path:
    new = path.with_name(f"{path.name}.new")
    try:
        new.write_text(text, encoding="utf-8")
        os.replace(new, path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise refused(f"{path} cannot be written ({error.strerror}); make room, or choose another --output") from None
    return path
