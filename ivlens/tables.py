"""How are tables and texts that came from files shown, in a terminal and on a page?

As they are, whatever markup is in them.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ivlens.errors import shorten

if TYPE_CHECKING:
    import rich.table


UNMEASURED = "not measured"
INTERVAL = "95 % interval"
"""Heads the column of the intervals of the one before."""
_PROSE = 24
"""Letters: a cell of more is a text, whose words may stand in several lines."""
_BETWEEN = 2
"""Letters between columns."""


Line = tuple[str, ...]


class Table(NamedTuple):
    """A table as it is shown, every cell a text."""

    heading: str
    columns: Line
    """The first stands over the names of the lines."""
    parts: tuple[list[Line], ...]
    """Lines, with a rule between the parts."""
    note: str = ""


def folded(text: str) -> str:
    """Lines that are too long for a terminal of 80 columns, in several."""
    return "\n".join(
        textwrap.fill(line, 80, break_long_words=False, break_on_hyphens=False) for line in text.split("\n")
    )


def print_table(table: Table, *, justify: Any = "right") -> None:
    """The columns and lines of a table; its heading and its note are left to the caller.

    A table that is wider than the terminal is folded: the columns that do not fit follow below, beside the same names.
    """
    from rich.console import Console

    console = Console()
    headings = [plain(column) for column in table.columns]
    widths = _widths(table, headings)
    if sum(widths) + _BETWEEN * (len(widths) - 1) > console.width:
        cells = _widths(table, [""] * len(headings))
        headings = [_stack(one, width) for one, width in zip(headings, cells, strict=True)]
        widths = _widths(table, headings)
    for number, columns in enumerate(_fold(table.columns, widths, console.width)):
        if number:
            console.print()
        console.print(_text_table(table, [0, *columns], headings, widths, justify))


def _stack(heading: str, width: int) -> str:
    """The words of a heading one above the other, so that it is as wide as what stands below."""
    longest = max(map(len, heading.split()), default=1)
    return heading if heading == INTERVAL else "\n".join(textwrap.wrap(heading, max(width, longest)))


def _widths(table: Table, headings: Sequence[str]) -> list[int]:
    from rich.cells import cell_len

    rows = [*(heading.split("\n") for heading in headings)]
    for part in table.parts:
        for line in part:
            rows = [[*row, plain(cell)] for row, cell in zip(rows, line, strict=True)]
    return [max(map(cell_len, row)) for row in rows]


def _fold(columns: Line, widths: Sequence[int], width: int) -> list[list[int]]:
    """Which columns stand beside each other, the names of the lines in front of each; an interval by its value."""
    folded: list[list[int]] = [[]]
    for at in range(1, len(widths)):
        own = [at, *([at + 1] if columns[at + 1 : at + 2] == (INTERVAL,) else [])]
        taken = sum(min(widths[one], _PROSE) + _BETWEEN for one in {*folded[-1], *own})
        if folded[-1] and columns[at] != INTERVAL and widths[0] + taken > width:
            folded.append([])
        folded[-1].append(at)
    return folded


def _text_table(
    table: Table, columns: Sequence[int], headings: Sequence[str], widths: Sequence[int], justify: Any
) -> rich.table.Table:
    import rich.table
    from rich import box
    from rich.text import Text

    shown = rich.table.Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for at in columns:
        is_prose = widths[at] > _PROSE
        side = justify if at and not is_prose else "left"
        shown.add_column(Text(headings[at]), justify=side, overflow="fold", no_wrap=not is_prose)
    for part in table.parts:
        for line in part:
            shown.add_row(*(Text(plain(shorten(line[at]))) for at in columns))
        shown.add_section()
    return shown


def table_html(table: Table) -> str:
    """The columns and lines of a table, for a notebook."""
    return html_table(table.columns, [line for part in table.parts for line in part])


def plain(text: object) -> str:
    """One line of printable text; control characters and the like as Python writes them (`\\x1b`, `\\n`)."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in str(text))


def safe(text: object) -> str:
    """The same for a page."""
    return html.escape(plain(text))


def html_table(header: Sequence[object], lines: Iterable[Sequence[object]], *, texts: bool = False) -> str:
    """A table whose first column holds names, and whose other columns hold numbers, or `texts`."""
    left = ' style="text-align:left"'
    aside = [left, *[left if texts else ""] * (len(header) - 1)]
    head = "".join(f"<th{side}>{safe(cell)}</th>" for side, cell in zip(aside, header, strict=True))
    rows = ["".join(f"<td{side}>{safe(cell)}</td>" for side, cell in zip(aside, line, strict=True)) for line in lines]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def bounds_text(low: float, high: float, style: str) -> str:
    """As `[0.031, 0.055]`, numbers in a style of `format`; nothing where there are none, as of a single query."""
    return "" if math.isnan(low) or math.isnan(high) else f"[{low:{style}}, {high:{style}}]"


def interval_text(value: float, low: float, high: float, digits: int = 3, sign: str = "") -> str:
    """As `0.042 [0.031, 0.055]`; with the sign `+` as `+0.042 [+0.031, +0.055]`."""
    if math.isnan(value):
        return "not measured"
    style = f"{sign}.{digits}f"
    return f"{value:{style}} {bounds_text(low, high, style)}".rstrip()
