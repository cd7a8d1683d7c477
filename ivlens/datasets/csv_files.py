"""Which pairs does a table of text hold, and where are its columns?

Lines are parsed by Python's csv module rather than by pandas, which fills short lines up and does not say on which line
of the file a row stands: both are needed to refuse a table in a sentence that names the line.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from ivlens.datasets.entries import Pair
from ivlens.datasets.records import INPUTS, OUTPUTS, Columns, read_records
from ivlens.errors import TaskError
from ivlens.storage.json_files import read_text

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}


def read_csv(path: Path, columns: Columns | None = None) -> tuple[list[Pair], tuple[str, ...]]:
    """Entries of a table with commas, semicolons or tabs between its cells, quoted as RFC 4180 has it.

    The first line is a header if `columns` are asked for, or if two of its cells have common names. Without a header
    there must be two columns.

    Raises:
        TaskError: it cannot be read, has lines of different lengths, or lacks a column.
    """
    # Excel's own first line, which tells what stands between cells.
    lines = _lines(re.sub(r"\Asep=[,;\t]\r?\n", "\n", read_text(path, kind="CSV"), flags=re.IGNORECASE), path)
    head = [cell.strip() for cell in lines[0][1]]
    small = {cell.casefold() for cell in head}
    has_header = columns is not None or bool(small & {*INPUTS, "instruction"} and small & {*OUTPUTS})
    if not has_header and len(head) == 2:
        head = ["input", "output"]
    else:
        lines = lines[1:]
    # Of two columns of one name the first.
    records = [dict(zip(reversed(head), reversed(cells), strict=True)) for _, cells in lines]
    numbers = [number for number, _ in lines]
    return read_records(records, str(path), columns, names=head, unit="line", numbers=numbers)


def _lines(text: str, path: Path) -> list[tuple[int, list[str]]]:
    """Number and cells of every line that is not empty, cut at the delimiter that gives all lines equally many."""
    parsed = {sign: _parse(text, sign, path) for sign in DELIMITERS}
    widths = {sign: {len(cells) for _, cells in lines} for sign, lines in parsed.items()}
    if not parsed[","]:
        raise TaskError(f"{path} is empty; write one pair a line, with a comma between input and output")
    even = [sign for sign, found in widths.items() if len(found) == 1 and max(found) > 1]
    if even:
        return parsed[min(even, key=lambda sign: max(widths[sign]) != 2)]
    # Of a file of semicolons alone nothing is left where these stand between cells.
    sign = max((sign for sign in DELIMITERS if parsed[sign]), key=lambda sign: len(parsed[sign][0][1]))
    wanted = len(parsed[sign][0][1])
    if wanted == 1:
        raise TaskError(f"{path} has one column; write two, with a comma, semicolon or tab between")
    number, cells = next((number, cells) for number, cells in parsed[sign] if len(cells) != wanted)
    raise TaskError(
        f"{path}: line {number} has {len(cells)} cells, but the first line has {wanted} (with a {DELIMITERS[sign]} "
        "between); put cells that contain one in double quotes"
    )


def _parse(text: str, delimiter: str, path: Path) -> list[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise TaskError(f"{path}: line {reader.line_num} is no CSV ({error}); mend it") from error
