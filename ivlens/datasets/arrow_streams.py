"""What does an Arrow stream hold that nobody vouches for, such as a file of `save_to_disk`?

Not by `datasets.load_from_disk`: it reads files outside of the folder where `state.json` names them, and unfolds what
is packed. Behind the checks that it would need in front of it, one call of pyarrow is all that is left to do; it is
made in a bounded process, as for parquet files, and hands on the columns that are asked for, found whole.

Only plain batches are read. Packed ones could unfold to any size, and the pyarrow package does not say that they are
packed before it has unfolded them: the message itself is asked
(https://arrow.apache.org/docs/format/Columnar.html#compression).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ivlens.bounded_process import Answer, serve
from ivlens.storage.parquet import arrow_process, ask_about, from_stream, to_stream

LARGEST = 2**29
"""Bytes of the columns that are read."""
_MEMORY = 2**29
_PROCESS = arrow_process(__name__)
# Fields by their numbers in Arrow's Message.fbs.
_HEADER, _COMPRESSION = 2, 3


def read_names(folder: Path, name: str) -> tuple[list[str], int]:
    """Columns and number of rows of a stream that lies in a folder; raises as `read_columns`."""
    said, _ = _ask(folder, name, {"wanted": "names"})
    return said["columns"], said["rows"]


def read_columns(folder: Path, name: str, columns: Sequence[str]) -> pa.Table:
    """Some columns of a stream that lies in a folder.

    Raises:
        OSError: it lies elsewhere, or cannot be read.
        ValueError: it is packed, damaged or too large, has dictionaries or no such columns, or is no stream.
    """
    _, content = _ask(folder, name, {"wanted": "columns", "columns": list(columns)})
    return from_stream(content)


def _ask(folder: Path, name: str, asked: dict[str, Any]) -> Answer:
    from ivlens.storage.atomic_files import refuse_unusual  # Whose imports the bounded process need not wait for.

    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise OSError(f"{name[:60]!r} is not in that folder")
    refuse_unusual(path, None)
    return ask_about(_PROCESS, path, asked, memory=_MEMORY + path.stat().st_size + 2 * LARGEST, name=name)


def _answer(asked: dict[str, Any]) -> Answer:
    """In the bounded process: what a stream holds."""
    with pa.memory_map(asked["path"]) as source:
        for message in pa.ipc.MessageReader.open_stream(source):
            if message.type not in ("schema", "record batch"):
                raise ValueError(f"has a {message.type} in it")
            if message.type == "record batch" and _is_packed(message.metadata.to_pybytes()):
                raise ValueError("is packed, as save_to_disk never writes it")
        source.seek(0)
        table = pa.ipc.open_stream(source).read_all()
        if asked["wanted"] == "names":
            return {"columns": table.column_names, "rows": len(table)}, b""
        table = table.select(asked["columns"]).replace_schema_metadata(None)
        if table.nbytes > LARGEST:
            raise ValueError(f"has {table.nbytes:,} bytes in these columns, and may have {LARGEST:,}")
        table.validate(full=True)
        return {}, to_stream(table)


def _is_packed(message: bytes) -> bool:
    """Whether the record batch of a flatbuffer, which Arrow has verified, says that its buffers are compressed."""
    table = int(struct.unpack_from("<I", message)[0])
    table = _field(message, table, _HEADER)
    table += int(struct.unpack_from("<I", message, table)[0])
    return _field(message, table, _COMPRESSION) != table


def _field(message: bytes, table: int, number: int) -> int:
    """Where a field of a flatbuffer's table stands; at the table itself where it is absent."""
    names = table - int(struct.unpack_from("<i", message, table)[0])
    size, slot = int(struct.unpack_from("<H", message, names)[0]), 4 + 2 * number
    return table + (int(struct.unpack_from("<H", message, names + slot)[0]) if slot < size else 0)


if __name__ == "__main__":
    serve(_answer)
