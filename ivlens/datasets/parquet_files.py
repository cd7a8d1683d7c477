"""Which entries does a parquet file hold?

A small file may unfold to any size: a run of equal texts is written once. Texts are read as numbers into the list of
those that there are, and added up before they are unfolded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ivlens.datasets import arrow_tables
from ivlens.datasets.entries import Pair
from ivlens.datasets.records import Columns, find_form
from ivlens.errors import TaskError
from ivlens.storage.atomic_files import LARGEST_TEXT, reason, refuse_unusual
from ivlens.storage.parquet import LARGEST

MAX_UNFOLDED = 8 * LARGEST_TEXT
"""Bytes of the columns that are read."""


def read_parquet(path: Path, columns: Columns | None = None) -> tuple[list[Pair], tuple[str, ...]]:
    """The entries of a parquet file, and their instruction where all have the same.

    Raises:
        TaskError: it cannot be read, is too large, or has no such columns.
    """
    try:
        refuse_unusual(path, LARGEST)
        source = pa.BufferReader(path.read_bytes())
        metadata = pq.read_metadata(source)
        arrow_tables.check_rows(metadata.num_rows, str(path))
        source.seek(0)
        names = pq.read_schema(source).names
        keys = find_form(names, columns, str(path)).keys
        table = _read_columns(source, metadata, keys)
    except (OSError, ValueError, pa.ArrowException, KeyError, TypeError) as error:
        raise TaskError(f"{path} cannot be read as parquet ({reason(error)}); save it again") from error
    return arrow_tables.read_table(table, {}, columns, str(path))


def _read_columns(source: pa.BufferReader, metadata: pq.FileMetaData, keys: tuple[str, ...]) -> pa.Table:
    """Raises ValueError where they would unfold to too much."""
    leaves = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    wanted = [number for number, path in enumerate(leaves) if path.split(".")[0] in keys]
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in wanted]
    said = sum(chunk.total_uncompressed_size + 8 * chunk.num_values for chunk in chunks)
    if said > MAX_UNFOLDED:
        raise ValueError(f"it says that it unfolds to {said:,} bytes, and may to {MAX_UNFOLDED:,}")
    source.seek(0)
    folded = pq.read_table(source, columns=list(keys), read_dictionary=leaves, page_checksum_verification=True)
    folded.validate(full=True)
    unfolded = sum(_length(leaf) for name in keys for chunk in folded[name].chunks for leaf in _leaves(chunk))
    if unfolded > LARGEST_TEXT:
        raise ValueError(f"it has {unfolded:,} bytes of text, and may have {LARGEST_TEXT:,}")
    source.seek(0)
    return pq.read_table(source, columns=list(keys), page_checksum_verification=True)


def _leaves(array: pa.Array) -> Iterator[pa.Array]:
    """The texts of an array, of lists of texts, and of lists of objects of them."""
    if pa.types.is_dictionary(array.type):
        yield array
    elif pa.types.is_nested(array.type):
        inner = array.flatten()
        for part in inner if isinstance(inner, list) else [inner]:
            yield from _leaves(part)


def _length(array: pa.DictionaryArray) -> int:
    """Bytes of the texts that an array stands for."""
    if not (pa.types.is_string(array.dictionary.type) or pa.types.is_large_string(array.dictionary.type)):
        return 0
    lengths = pc.call_function("binary_length", [array.dictionary])
    return pc.call_function("sum", [lengths.take(array.indices)]).as_py() or 0
