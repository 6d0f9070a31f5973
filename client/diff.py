"""The unified diff of two versions."""

import difflib
import re
from collections.abc import Iterator
from typing import Final

from client.history import Archive, VersionName
from client.seek import common_length

CONTEXT_LINES: Final = 3
_HUNK: Final = re.compile(rb"@@ -(\d+)((?:,\d+)?) \+(\d+)((?:,\d+)?) @@\n")


def diff(archive: Archive, first: VersionName, second: VersionName) -> Iterator[bytes]:
    """Yield the lines, each with its newline, that turn `first` into `second`; none if they are equal.

    Two versions of one file agree up to the least offset of the ops between them, which is not compared: so
    neighbours in a file of 100 MiB cost reading one of them. Raises HistoryError, before the first line.
    """
    agreed = archive.agreed_bytes(first.file, first.seq, second.seq) if first.file == second.file else 0
    old = archive.content(first.file, first.seq)
    rest = archive.content(second.file, second.seq, agreed)
    same = common_length(old[agreed:], rest)
    if agreed + same == len(old) and same == len(rest):
        return iter(())
    begin = _line_before(old, agreed + same)
    old_lines = _lines(old[begin:])
    new_lines = _lines(old[begin:agreed] + rest if begin <= agreed else rest[begin - agreed :])
    return _shifted(old_lines, new_lines, old.count(b"\n", 0, begin), first, second)


def _line_before(content: bytes, position: int) -> int:
    """Return where the context begins of a difference at `position`."""
    for _ in range(CONTEXT_LINES + 1):
        position = content.rfind(b"\n", 0, position)
        if position < 0:
            break
    return position + 1


def _lines(content: bytes) -> list[bytes]:
    """Return the lines with their newlines; \\r and the like are no line's end."""
    lines = content.split(b"\n")
    last = lines.pop()
    return [line + b"\n" for line in lines] + ([last] if last else [])


def _shifted(
    old: list[bytes], new: list[bytes], skipped: int, first: VersionName, second: VersionName
) -> Iterator[bytes]:
    """Yield the diff of the lines behind the first `skipped` ones, with the whole files' line numbers."""
    names = str(first).encode(), str(second).encode()
    for line in difflib.diff_bytes(difflib.unified_diff, old, new, *names, n=CONTEXT_LINES):
        hunk = _HUNK.fullmatch(line)
        if hunk:
            old_start, old_count, new_start, new_count = hunk.groups()
            yield b"@@ -%d%s +%d%s @@\n" % (
                int(old_start) + skipped,
                old_count,
                int(new_start) + skipped,
                new_count,
            )
        elif line.endswith(b"\n"):
            yield line
        else:
            yield line + b"\n\\ No newline at end of file\n"
