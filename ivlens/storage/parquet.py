"""How is a table kept in a file, and read from one that nobody vouches for?

Tables are parquet with a checksum a page. One flipped bit can make pyarrow abort (an exception of its own that nothing
catches), and no check of ours in front of it could know of which. So pyarrow reads in a bounded process, which adds up
what a file says before it is unfolded (a small file may unfold to any size: a run of equal values is written once), and
hands a table on, as Arrow's stream, once Arrow has found it whole.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from ivlens.bounded_process import Answer, BoundedProcess, serve
from ivlens.errors import RunError

if TYPE_CHECKING:
    import pandas as pd

LARGEST = 2**30
"""Bytes of a file, and of what it unfolds to."""
_SECONDS, _BYTES_A_SECOND = 5.0, 20e6
_MEMORY = 2**29


def arrow_process(module: str) -> BoundedProcess:
    """One for pyarrow, whose own allocators would reserve more than they use."""
    return BoundedProcess(module, ARROW_DEFAULT_MEMORY_POOL="system", MALLOC_ARENA_MAX="1")


_PROCESS = arrow_process(__name__)

start = _PROCESS.start
"""Begin the process that reads, so that it is ready when it is needed."""


def to_bytes(frame: pd.DataFrame) -> bytes:
    """A table as the content of a parquet file, without row labels."""
    import pyarrow.parquet as pq  # Not at once, and pandas not at all: the bounded process need not wait for them.

    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), sink, write_page_checksum=True)
    return sink.getvalue()


def read_table(path: Path, *, columns: Sequence[str] = (), remedy: str) -> pd.DataFrame:
    """Read a table; its checksums are verified.

    Raises:
        RunError: it is missing, damaged, would unfold to too much, or lacks one of `columns`.
    """
    from ivlens.storage.atomic_files import reason

    try:
        frame = _read_flat(path).to_pandas()
    except FileNotFoundError:
        raise RunError(f"{path.parent} has no {path.name}; {remedy}") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise RunError(f"{path} cannot be read ({reason(error)}); {remedy}") from error
    check_columns(frame, columns, path, remedy)
    return frame


def check_columns(frame: pd.DataFrame, columns: Sequence[str], path: Path, remedy: str) -> None:
    """Raises RunError where the table lacks a column."""
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise RunError(f"{path} lacks the column {', '.join(missing)}; {remedy}")


class Names(NamedTuple):
    """A parquet file but for its values."""

    columns: list[str]
    rows: int


def read_names(path: Path) -> Names:
    """Columns and number of rows of a parquet file; raises as `read_columns`."""
    said, _ = _ask(path, {"wanted": "names"}, memory=_MEMORY)
    return Names(said["columns"], said["rows"])


def _read_flat(path: Path) -> pa.Table:
    """Columns of numbers and texts, all that there are; a small file unfolds to no more than a large one could mean.

    Raises:
        OSError: there is no such file, or it is too large.
        ValueError: it is damaged, has other columns, or would unfold to too much.
    """
    most = min(LARGEST, 2**26 + 32 * path.stat().st_size)
    return _table(path, {"wanted": "flat", "most": most}, memory=_MEMORY + 3 * most)


def read_columns(path: Path, columns: Sequence[str], *, most: int, most_text: int) -> pa.Table:
    """Some columns, which may hold lists and objects of texts; raises as `_read_flat`.

    Args:
        most: Bytes that these columns may unfold to, by what the file says of them.
        most_text: Bytes of their texts.
    """
    asked = {"wanted": "columns", "columns": list(columns), "most": most, "most_text": most_text}
    return _table(path, asked, memory=_MEMORY + most)


def _table(path: Path, asked: dict[str, Any], *, memory: int) -> pa.Table:
    return from_stream(_ask(path, asked, memory=memory)[1])


def _ask(path: Path, asked: dict[str, Any], *, memory: int) -> Answer:
    from ivlens.storage.atomic_files import refuse_unusual  # Whose imports the bounded process need not wait for.

    refuse_unusual(path, LARGEST)
    return ask_about(_PROCESS, path, asked, memory=memory + 2 * path.stat().st_size)


def ask_about(process: BoundedProcess, path: Path, asked: dict[str, Any], *, memory: int, name: str = "") -> Answer:
    """What a process that is asked about a file answers, in a time by its size.

    Args:
        name: Of the file, to begin the sentence about it with.

    Raises:
        ValueError: the file is damaged or too much, or has ended the process.
    """
    seconds = _SECONDS + path.stat().st_size / _BYTES_A_SECOND
    found = process.ask({**asked, "path": str(path.resolve())}, seconds=seconds, memory=memory)
    if found is None:
        raise ValueError(f"to read {name or 'it'} ends the process that does, or takes more time or memory than it may")
    if "reason" in found[0]:
        raise ValueError(f"{name} {found[0]['reason']}".lstrip())
    return found


def to_stream(table: pa.Table) -> bytes:
    """A table on its way between processes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def from_stream(content: bytes) -> pa.Table:
    return pa.ipc.open_stream(pa.py_buffer(content)).read_all()


def _answer(asked: dict[str, Any]) -> Answer:
    """In the bounded process: what a file holds."""
    import pyarrow.parquet as pq

    # From bytes, not from the path: pyarrow would take a folder called `shots=5` for a column.
    source = pa.BufferReader(Path(asked["path"]).read_bytes())
    metadata = pq.read_metadata(source)
    source.seek(0)
    schema = pq.read_schema(source)
    if asked["wanted"] == "names":
        return {"columns": schema.names, "rows": metadata.num_rows}, b""
    read = _unfold_flat if asked["wanted"] == "flat" else _unfold_columns
    # Without what the file says of pandas, which could have columns become others there.
    table = read(source, schema, metadata, asked).replace_schema_metadata(None)
    table.validate(full=True)
    return {}, to_stream(table)


def _unfold_flat(source: pa.BufferReader, schema: pa.Schema, metadata: Any, asked: dict[str, Any]) -> pa.Table:
    texts = {name: kind for name, kind in zip(schema.names, schema.types, strict=True) if _is_text(kind)}
    others = [kind for name, kind in zip(schema.names, schema.types, strict=True) if name not in texts]
    flat = all(pa.types.is_primitive(kind) or pa.types.is_null(kind) for kind in others)
    if not flat or metadata.num_columns != len(schema.names) or len(set(schema.names)) < len(schema.names):
        raise ValueError("it has columns of another kind than numbers and texts")
    chunks = list(_chunks(metadata, range(metadata.num_columns)))
    unfolded = sum(chunk.total_uncompressed_size for chunk in chunks) + 8 * metadata.num_rows * metadata.num_columns
    if unfolded > asked["most"] or {chunk.compression for chunk in chunks} - {"SNAPPY", "UNCOMPRESSED"}:
        raise ValueError(f"it says that it unfolds to {unfolded:,} bytes, or is compressed in another way than ours")
    table = _read(source, None, list(texts))
    for name, kind in texts.items():  # A long text of which every line has one would unfold to lines times its length.
        column = table[name].combine_chunks()
        longest = max((len(text.as_buffer()) for text in column.dictionary if text.is_valid), default=0)
        if longest * len(column) > asked["most"]:
            raise ValueError(f"its column {name} unfolds to {longest * len(column):,} bytes")
        table = table.set_column(table.schema.get_field_index(name), name, column.cast(kind))
    return table


def _unfold_columns(source: pa.BufferReader, schema: pa.Schema, metadata: Any, asked: dict[str, Any]) -> pa.Table:
    """Texts are read as numbers into the list of those that there are, and added up before they are unfolded."""
    columns = asked["columns"]
    leaves = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    wanted = [number for number, path in enumerate(leaves) if path.split(".")[0] in columns]
    said = sum(chunk.total_uncompressed_size + 8 * chunk.num_values for chunk in _chunks(metadata, wanted))
    if said > asked["most"]:
        raise ValueError(f"it says that it unfolds to {said:,} bytes, and may to {asked['most']:,}")
    folded = _read(source, columns, leaves)
    folded.validate(full=True)
    unfolded = sum(_length(leaf) for name in columns for chunk in folded[name].chunks for leaf in _leaves(chunk))
    if unfolded > asked["most_text"]:
        raise ValueError(f"it has {unfolded:,} bytes of text, and may have {asked['most_text']:,}")
    return _read(source, columns)


def _read(source: pa.BufferReader, columns: Sequence[str] | None, dictionaries: Sequence[str] = ()) -> pa.Table:
    import pyarrow.parquet as pq

    source.seek(0)
    file = pq.ParquetFile(source, read_dictionary=list(dictionaries), page_checksum_verification=True, pre_buffer=False)
    # In one thread: the stacks of others would count as memory.
    return file.read(columns, use_threads=False)


def _chunks(metadata: Any, columns: Sequence[int]) -> Iterator[Any]:
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    return (group.column(number) for group in groups for number in columns)


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
    import pyarrow.compute as pc

    if not _is_text(array.dictionary.type):
        return 0
    lengths = pc.call_function("binary_length", [array.dictionary])
    return pc.call_function("sum", [lengths.take(array.indices)]).as_py() or 0


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


if __name__ == "__main__":
    serve(_answer)
