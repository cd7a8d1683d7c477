"""Which entries does a parquet file hold?

It is read in a process of its own: see `parquet`.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from ivlens.datasets import arrow_tables
from ivlens.datasets.entries import Pair
from ivlens.datasets.records import Columns, find_form
from ivlens.errors import TaskError
from ivlens.storage import parquet
from ivlens.storage.atomic_files import LARGEST_TEXT, reason

MAX_UNFOLDED = 8 * LARGEST_TEXT
"""Bytes of the columns that are read."""


def read_parquet(path: Path, columns: Columns | None = None) -> tuple[list[Pair], tuple[str, ...]]:
    """The entries of a parquet file, and their instruction where all have the same.

    Raises:
        TaskError: it cannot be read, is too large, or has no such columns.
    """
    try:
        names, rows = parquet.read_names(path)
        arrow_tables.check_rows(rows, str(path))
        keys = find_form(names, columns, str(path)).keys
        table = parquet.read_columns(path, keys, most=MAX_UNFOLDED, most_text=LARGEST_TEXT)
    except (OSError, ValueError, pa.ArrowException, KeyError, TypeError) as error:
        raise TaskError(f"{path} cannot be read as parquet ({reason(error)}); save it again") from error
    return arrow_tables.read_table(table, {}, columns, str(path), names=names)
