"""Rows as the lines of a table, by rich; whatever a cell holds is text to it, never markup."""

import io
from collections.abc import Iterable, Sequence
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.inspecting import Row

_FLEXIBLE: Final = frozenset({"MEMBER", "LOCK", "WHO", "WHAT", "NEEDED FOR"})
"""Columns that become narrower, with an ellipsis, where there is no room."""
_FLEXIBLE_MIN: Final = 8
_FIRST_TO_GO: Final = ("START", "EPOCH", "ROLE", "TOKEN", "MODE", "LEARNS", "IN SYNC", "SEEN", "FOR")
"""Columns that are left out, in this order, where that is not enough."""
_STYLES: Final = {"down": "red", "absent": "red", "unclean": "yellow", "holds": "green"}
"""How a cell looks that begins with this word, where a table is styled."""
_WIDTH_MAX: Final = 100_000


def table_lines(
    columns: Sequence[str], rows: Iterable[Row], width: int | None, *, styled: bool = False, height: int | None = None
) -> list[str]:
    """Return a table's lines, not wider than `width` cells and not more than `height`; None: as it comes.

    `styled` puts terminal colours in. A last column without a text in it is left out.
    """
    shown = list(rows)
    if shown and not any(row[-1] for row in shown):
        columns, shown = columns[:-1], [row[:-1] for row in shown]
    if width is not None:
        columns, shown = _as_fit(list(columns), shown, width)
    left_out = 0
    if height is not None and len(shown) > height - 1:
        kept = max(0, height - 2)
        left_out, shown = len(shown) - kept, shown[:kept]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        flexible = column in _FLEXIBLE
        head = Text(column, no_wrap=True, overflow="ellipsis")
        table.add_column(head, no_wrap=not flexible, overflow="ellipsis", min_width=1 if flexible else None)
    for row in shown:
        table.add_row(*[_cell(text, styled) for text in row])
    console = Console(
        file=io.StringIO(),
        width=width or _WIDTH_MAX,
        color_system="standard" if styled else None,
        force_terminal=styled,
        markup=False,
        emoji=False,
        highlight=False,
    )
    with console.capture() as capture:
        console.print(table)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    return [*lines, f"and {left_out} more rows"] if left_out else lines


def _as_fit(columns: list[str], rows: list[Row], width: int) -> tuple[list[str], list[Row]]:
    """Return the columns and cells that a width has room for."""
    for name in ("", *_FIRST_TO_GO):
        if name in columns:
            place = columns.index(name)
            columns, rows = [*columns[:place], *columns[place + 1 :]], [row[:place] + row[place + 1 :] for row in rows]
        needs = 0
        for place, column in enumerate(columns):
            widest = max([cell_len(column), *[cell_len(row[place]) for row in rows]])
            needs += 2 + (min(widest, _FLEXIBLE_MIN) if column in _FLEXIBLE else widest)
        if needs - 2 <= width:
            break
    return columns, rows


def _cell(text: str, styled: bool) -> Text:
    style = _STYLES.get(text.split(" ", maxsplit=1)[0].rstrip(","), "") if styled else ""
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def fit(line: str, width: int | None) -> str:
    """Return a line cut to `width` cells, with an ellipsis."""
    if width is None or cell_len(line) <= width:
        return line
    return set_cell_size(line, max(0, width - 1)) + "…"
