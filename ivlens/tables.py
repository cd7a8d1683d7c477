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
    return "\n".join(textwrap.fill(line, 80, break_long_words=False) for line in text.split("\n"))


def print_table(table: Table, *, justify: Any = "right") -> None:
    """The columns and lines of a table; its heading and its note are left to the caller."""
    from rich.console import Console

    Console().print(_text_table(table, justify))


def _text_table(table: Table, justify: Any) -> rich.table.Table:
    import rich.table
    from rich import box
    from rich.text import Text

    shown = rich.table.Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, column in enumerate(table.columns):
        shown.add_column(Text(plain(shorten(column))), justify=justify if number else "left", overflow="fold")
    for part in table.parts:
        for line in part:
            shown.add_row(*(Text(plain(shorten(cell))) for cell in line))
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


def interval_text(value: float, low: float, high: float, digits: int = 3) -> str:
    """As `0.042 [0.031, 0.055]`."""
    if math.isnan(value):
        return "not measured"
    if math.isnan(low) or math.isnan(high):
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
