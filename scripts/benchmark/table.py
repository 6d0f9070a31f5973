"""The figures as a table for people, and as JSON."""

import json
from collections.abc import Mapping, Sequence
from typing import Final

from scripts.benchmark.figures import Row

_OK: Final[dict[bool | None, str]] = {True: "ok", False: "missed", None: ""}


def as_table(rows: Sequence[Row], measured: str = "measured", limit: str = "limit") -> str:
    """Return a heading and one line per row, in columns; two of which may have other names."""
    head = ("name", measured, limit, "ratio", "wanted", "ok?", "compared")
    cells = [head, *[_cells(row) for row in rows]]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    return "\n".join([_line(line, widths) for line in cells])


def as_json(rows: Sequence[Row], problems: Mapping[str, str], absent: Mapping[str, str] | None = None) -> str:
    """Return rows, what could not be measured and, where that is asked for, what is not installed, as one object."""
    values: dict[str, object] = {"rows": [_values(row) for row in rows], "not measured": dict(problems)}
    if absent is not None:
        values["not installed"] = dict(absent)
    return json.dumps(values, indent=2, ensure_ascii=False)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    name, *numbers, compared = [
        cell.ljust(width) if column in (0, 5, 6) else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join([name, *numbers, compared]).rstrip()


def _cells(row: Row) -> tuple[str, ...]:
    wanted = "" if row.wanted is None else f"{'≤' if row.bound == 'most' else '≥'} {row.wanted:g}"
    return (
        row.name,
        _number(row.measured, row.unit),
        "" if row.limit is None else _number(row.limit, row.unit),
        "" if row.ratio is None else f"{row.ratio:.2f}",
        wanted,
        _OK[row.ok],
        row.compared,
    )


def _number(value: float, unit: str) -> str:
    shown = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{shown} {unit}".rstrip()


def _values(row: Row) -> dict[str, object]:
    return {
        "name": row.name,
        "compared": row.compared,
        "measured": row.measured,
        "unit": row.unit,
        "limit": row.limit,
        "ratio": row.ratio,
        "wanted": row.wanted,
        "bound": row.bound,
        "ok": row.ok,
    }
