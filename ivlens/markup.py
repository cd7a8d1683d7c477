"""How is text that came from files shown, in a terminal and on a page? As it is, whatever markup is in it."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


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
