"""Which pairs does a table of text hold, and where are its columns?

Lines are parsed by Python's csv module rather than by pandas, which fills short lines up and does not say on which line
of the file a row stands: both are needed to refuse a table in a sentence that names the line.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from ivlens.errors import TaskError
from ivlens.storage.json_files import read_text

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
INPUTS = ("input", "question", "query", "prompt", "source", "text", "sentence", "word", "x")
OUTPUTS = ("output", "answer", "response", "completion", "target", "label", "y")
"""Names of columns that are taken without being asked for, the first of them that is there."""

Columns = tuple[str, str]


def columns_of(names: Sequence[str], asked: Columns | None, where: str) -> tuple[int, int]:
    """Which of these columns are the input and the output: those asked for, else those of a common name.

    Raises:
        TaskError: there are none such.
    """
    if asked is not None:
        for name in asked:
            if name not in names:
                raise TaskError(f"{where} has no column {name!r}; it has {', '.join(map(repr, names))}")
        return names.index(asked[0]), names.index(asked[1])
    found = [next((name for name in known if name in names), None) for known in (INPUTS, OUTPUTS)]
    if found[0] is None or found[1] is None:
        raise TaskError(
            f"{where} has the columns {', '.join(map(repr, names))}, none of them of a common name such as 'input' and "
            "'output'; say which two to take, such as --columns question,answer"
        )
    return names.index(found[0]), names.index(found[1])


def read_csv(path: Path, columns: Columns | None = None) -> list[tuple[str, str]]:
    """Pairs of a table with commas, semicolons or tabs between its cells, quoted as RFC 4180 has it.

    The first line is a header if `columns` are asked for, or if two of its cells have common names. Without a header
    there must be two columns.

    Raises:
        TaskError: it cannot be read, has lines of different lengths, or lacks a column.
    """
    lines = _lines(read_text(path, kind="CSV"), path)
    head = [cell.strip() for cell in lines[0][1]]
    small = [cell.casefold() for cell in head]
    has_header = columns is not None or (any(n in small for n in INPUTS) and any(n in small for n in OUTPUTS))
    if has_header:
        at = columns_of(head if columns else small, columns, str(path))
    elif len(head) == 2:
        at = (0, 1)
    else:
        at = columns_of(head, None, str(path))
    pairs = [(number, cells[at[0]].strip(), cells[at[1]].strip()) for number, cells in lines[has_header:]]
    for number, given, wanted in pairs:
        if not given or not wanted:
            raise TaskError(f"{path}: line {number} has an empty cell; fill it in or drop the line")
    return [(given, wanted) for _, given, wanted in pairs]


def _lines(text: str, path: Path) -> list[tuple[int, list[str]]]:
    """Number and cells of every line that is not empty, cut at the delimiter that gives all lines equally many."""
    parsed = {sign: _parse(text, sign, path) for sign in DELIMITERS}
    widths = {sign: {len(cells) for _, cells in lines} for sign, lines in parsed.items()}
    if not parsed[","]:
        raise TaskError(f"{path} is empty; write one pair a line, with a comma between input and output")
    even = [sign for sign, found in widths.items() if len(found) == 1 and max(found) > 1]
    if even:
        return parsed[min(even, key=lambda sign: max(widths[sign]) != 2)]
    sign = max(DELIMITERS, key=lambda sign: len(parsed[sign][0][1]))
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
