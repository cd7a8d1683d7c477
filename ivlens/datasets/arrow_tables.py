"""Which entries does an Arrow table hold, of a data set of Hugging Face's or a parquet file?

Only columns of text, numbers, lists of text and conversations are looked at, and only after Arrow has found them
whole: what is damaged would end the process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from ivlens.datasets.entries import Pair
from ivlens.datasets.records import Columns, find_form, read_records
from ivlens.errors import TaskError
from ivlens.storage.atomic_files import LARGEST_TEXT, first_line

MAX_ROWS = 100_000
MAX_NESTED = 1_000_000
"""Texts in the lists of a column."""

Classes = Mapping[str, Any]
"""By column: the names of the classes that its numbers stand for."""


def read_table(
    table: pa.Table, classes: Classes, columns: Columns | None, where: str, *, names: Sequence[str] | None = None
) -> tuple[list[Pair], tuple[str, ...]]:
    """The entries of a table, and their instruction where all have the same.

    Args:
        names: Of all columns, where the table has only those that are read.

    Raises:
        TaskError: it is damaged or too large, or has no such columns.
    """
    check_rows(len(table), where)
    names = table.column_names if names is None else names
    keys = find_form(names, columns, where).keys
    for name in keys:
        _check(table.column(name), name, where)
    cells = [_cells(table.column(name), classes.get(name)) for name in keys]
    records = [dict(zip(keys, row, strict=True)) for row in zip(*cells, strict=True)]
    return read_records(records, where, columns, names=names, unit="row")


def check_rows(rows: int, where: str) -> None:
    """Raises a TaskError where a table has more rows than a task may have pairs."""
    if rows > MAX_ROWS:
        raise TaskError(f"{where} has {rows:,} rows; a task may have {MAX_ROWS:,} at most: give a part of it")


def _cells(column: pa.ChunkedArray, classes: Any) -> list[Any]:
    """Of classes the names; whole numbers as such, though pandas makes fractions of them where one is missing."""
    cells = column.to_pylist()
    if isinstance(classes, list):
        known = dict(enumerate(classes))
        return [known.get(cell) for cell in cells]
    if pa.types.is_floating(column.type) and all(cell is None or cell != cell or cell.is_integer() for cell in cells):
        return [None if cell is None or cell != cell else int(cell) for cell in cells]
    return cells


def _check(column: pa.ChunkedArray, name: str, where: str) -> None:
    """Before a value of a column is looked at: what Arrow finds wrong with it would end the process."""
    try:
        column.validate(full=True)
        _check_names(column.type)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise TaskError(f"{where}: {name!r} is damaged ({first_line(error)[:200]}); save it again") from error
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    flat = _is_text(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)
    if not flat and not _is_nested_text(kind):
        raise TaskError(f"{where}: {name!r} is of type {str(kind)[:60]}, no text; take another column")
    if column.nbytes > LARGEST_TEXT or (not flat and sum(map(_nested, column.chunks)) > MAX_NESTED):
        raise TaskError(
            f"{where}: {name!r} has {column.nbytes:,} bytes of text; a task may have {LARGEST_TEXT:,}, in lists of "
            f"{MAX_NESTED:,} at most: give a part of it"
        )


def _check_names(kind: pa.DataType) -> None:
    """Raises UnicodeDecodeError where the name of a field is no text, which Arrow looks at when it is asked for."""
    for field in (kind.field(number) for number in range(kind.num_fields)):
        _ = field.name
        _check_names(field.type)


def _nested(chunk: pa.Array) -> int:
    return len(chunk.flatten())


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_nested_text(kind: pa.DataType) -> bool:
    """A list of texts, or of objects of texts, as the turns of a conversation are."""
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return False
    inner = kind.value_type
    fields = [inner.field(number).type for number in range(inner.num_fields)]
    return _is_text(inner) or (pa.types.is_struct(inner) and all(map(_is_text, fields)))
