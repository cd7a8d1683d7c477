"""What does an Arrow stream hold that nobody vouches for, such as a file of `save_to_disk`?

Not by `datasets.load_from_disk`: it reads files outside of the folder where `state.json` names them, and unfolds what
is packed. Behind the checks that it would need in front of it, one call of pyarrow is all that is left to do.

Only plain batches are read. Packed ones could unfold to any size, and the pyarrow package does not say that they are
packed before it has unfolded them: the message itself is asked
(https://arrow.apache.org/docs/format/Columnar.html#compression).
"""

from __future__ import annotations

import struct
from pathlib import Path

import pyarrow as pa

from ivlens.storage.atomic_files import refuse_unusual

# Fields by their numbers in Arrow's Message.fbs.
_HEADER, _COMPRESSION = 2, 3


def read_stream(folder: Path, name: str) -> pa.Table:
    """The table of a stream that lies in a folder; its buffers stay on the disk and are not yet validated.

    Raises:
        OSError: it lies elsewhere, or cannot be read.
        ValueError: it is packed, has dictionaries, or is no stream.
        pa.ArrowException: it is damaged.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise OSError(f"{name[:60]!r} is not in that folder")
    refuse_unusual(path, None)
    with pa.memory_map(str(path)) as source:
        for message in pa.ipc.MessageReader.open_stream(source):
            if message.type not in ("schema", "record batch"):
                raise ValueError(f"{name} has a {message.type} in it")
            if message.type == "record batch" and _is_packed(message.metadata.to_pybytes()):
                raise ValueError(f"{name} is packed, as save_to_disk never writes it")
        source.seek(0)
        return pa.ipc.open_stream(source).read_all()


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
