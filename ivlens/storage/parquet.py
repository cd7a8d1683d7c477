"""How is a table kept in a file, and read from one that nobody vouches for?

Tables are parquet with a checksum a page. A small file may unfold to any size (a run of equal values is written once):
what a file says is added up before it is unfolded.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ivlens.errors import RunError
from ivlens.storage.atomic_files import reason, refuse_unusual

LARGEST = 2**30
"""Bytes of a file, and of what it unfolds to."""


def to_bytes(frame: pd.DataFrame) -> bytes:
    """A table as the content of a parquet file, without row labels."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), sink, write_page_checksum=True)
    return sink.getvalue()


def read_table(path: Path, *, columns: Sequence[str] = (), remedy: str) -> pd.DataFrame:
    """Read a table; its checksums are verified.

    Raises:
        RunError: it is missing, damaged, would unfold to more than `LARGEST` bytes, or lacks one of `columns`.
    """
    try:
        refuse_unusual(path, LARGEST)
        # From bytes, not from the path: pyarrow would take a folder called `shots=5` for a column.
        frame = _unfold(path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{path.parent} has no {path.name}; {remedy}") from None
    # pyarrow raises OSError for damage of most kinds; pandas the last three, for metadata of other columns.
    except (OSError, ValueError, pa.ArrowException, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} cannot be read ({reason(error)}); {remedy}") from error
    check_columns(frame, columns, path, remedy)
    return frame


def check_columns(frame: pd.DataFrame, columns: Sequence[str], path: Path, remedy: str) -> None:
    """Raises RunError where the table lacks a column."""
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise RunError(f"{path} lacks the column {', '.join(missing)}; {remedy}")


def _unfold(content: bytes) -> pd.DataFrame:
    source = pa.BufferReader(content)
    schema, metadata = pq.read_schema(source), pq.read_metadata(source)
    texts = {name: kind for name, kind in zip(schema.names, schema.types, strict=True) if _is_text(kind)}
    others = [kind for name, kind in zip(schema.names, schema.types, strict=True) if name not in texts]
    flat = all(pa.types.is_primitive(kind) or pa.types.is_null(kind) for kind in others)
    if not flat or metadata.num_columns != len(schema.names) or len(set(schema.names)) < len(schema.names):
        raise ValueError("it has columns of another kind than numbers and texts")
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    unfolded = sum(chunk.total_uncompressed_size for chunk in chunks) + 8 * metadata.num_rows * metadata.num_columns
    if unfolded > LARGEST or {chunk.compression for chunk in chunks} - {"SNAPPY", "UNCOMPRESSED"}:
        raise ValueError(f"it says that it unfolds to {unfolded:,} bytes, or is compressed in another way than ours")
    source.seek(0)
    table = pq.read_table(source, page_checksum_verification=True, read_dictionary=list(texts))
    for name, kind in texts.items():  # A long text of which every line has one would unfold to lines times its length.
        column = table[name].combine_chunks()
        longest = max((len(text.as_buffer()) for text in column.dictionary if text.is_valid), default=0)
        if longest * len(column) > LARGEST:
            raise ValueError(f"its column {name} unfolds to {longest * len(column):,} bytes")
        table = table.set_column(table.schema.get_field_index(name), name, column.cast(kind))
    return table.to_pandas()


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
