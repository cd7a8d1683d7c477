"""How does a vector become a control vector of llama.cpp and repeng, and come back?

A GGUF file with one float32 tensor `direction.N` a layer. N counts as here: llama.cpp and repeng add `direction.N` to
the residual stream after block N, counted from 0 (`build_cvec(cur, il)` behind the block's MLP; repeng's `layer_ids`).
llama.cpp has no place for `direction.0` and refuses a file with one. Both add a direction at every token.

Read here and not by the `gguf` package, which follows a list of 2^60 entries in a file of 40 bytes to its end.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.errors import IvlensError
from ivlens.storage.atomic_files import reason, refuse_unusual, write_whole

LARGEST = 2**26
"""Bytes of a file; one float32 direction after each of 128 blocks of width 16,384 makes 2^23."""
ARCHITECTURE = "controlvector"
_MAGIC, _VERSIONS, _ALIGNMENT = b"GGUF", (2, 3), 32
_TEXT, _LIST, _UINT32 = 8, 9, 4
# By GGUF's number of the type of a value; texts and lists apart.
_VALUES = dict(enumerate(["B", "b", "H", "h", "I", "i", "f", "?"])) | {10: "Q", 11: "q", 12: "d"}
_TENSORS = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 28: np.dtype("<f8")}
_MOST_AXES, _MOST_ENTRIES = 4, 4096


class ControlVector(NamedTuple):
    """Directions by the block that they are added after, counted from 0."""

    directions: Mapping[int, Float[Tensor, " d_model"]]
    model: str
    """`controlvector.model_hint`: repeng writes the configuration's model_type, such as `llama`."""
    name: str
    """`general.name`; empty where there is none."""


def write_control_vector(path: Path, vector: ControlVector) -> None:
    """Write a GGUF file of version 3, whole or not at all.

    Raises:
        IvlensError: a direction after block 0, which llama.cpp has no place for.
    """
    if min(vector.directions) < 1:
        raise IvlensError(
            "llama.cpp has no place for a vector after block 0 and refuses the whole file; choose a layer from 1 on"
        )
    texts = {"general.architecture": ARCHITECTURE, f"{ARCHITECTURE}.model_hint": vector.model}
    texts |= {"general.name": vector.name} if vector.name else {}
    count = struct.pack("<II", _UINT32, len(vector.directions))
    values = [_text(key) + struct.pack("<I", _TEXT) + _text(value) for key, value in texts.items()]
    values.append(_text(f"{ARCHITECTURE}.layer_count") + count)
    names, data = b"", b""
    for layer, direction in sorted(vector.directions.items()):
        held = direction.detach().cpu().numpy().astype("<f4").tobytes()
        names += _text(f"direction.{layer}") + struct.pack("<IQIQ", 1, len(direction), 0, len(data))
        data += _pad(held)
    header = _MAGIC + struct.pack("<IQQ", _VERSIONS[-1], len(vector.directions), len(values))
    write_whole(path, _pad(header + b"".join(values) + names) + data)


def read_control_vector(path: Path) -> ControlVector:
    """Read a control vector.

    Raises:
        IvlensError: no GGUF file, not of a control vector, quantised, or its header says what it does not hold.
    """
    try:
        refuse_unusual(path, LARGEST)
        file = _Cursor(path.read_bytes())
        fields, tensors = _header(file)
        if fields.get("general.architecture") != ARCHITECTURE:
            raise IvlensError(
                f"{path} is a GGUF file of {fields.get('general.architecture')!r}, not of a control vector; give one "
                "that repeng or llama.cpp's cvector-generator wrote"
            )
        alignment = fields.get("general.alignment", _ALIGNMENT)
        start = file.place + -file.place % alignment
        directions = {_layer(name): _tensor(file.content, start, stored) for name, stored in tensors.items()}
    except (OSError, ValueError, TypeError, struct.error, OverflowError, ZeroDivisionError) as error:
        raise IvlensError(f"{path} is no readable GGUF control vector ({reason(error)}); write it again") from error
    if len({len(direction) for direction in directions.values()}) != 1:
        raise IvlensError(f"{path} has no directions, or of several widths; write it again")
    texts = [fields.get(key, "") for key in (f"{ARCHITECTURE}.model_hint", "general.name")]
    return ControlVector(dict(sorted(directions.items())), *map(str, texts))


class _Stored(NamedTuple):
    shape: tuple[int, ...]
    kind: int
    offset: int


class _Cursor:
    """A place in the content of a file, behind which nothing is read."""

    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    def take(self, form: str) -> Any:
        values = struct.unpack_from(f"<{form}", self.content, self.place)
        self.place += struct.calcsize(f"<{form}")
        return values[0] if len(values) == 1 else values

    def text(self) -> str:
        length = self.take("Q")
        if length > len(self.content) - self.place:
            raise ValueError(f"a text of {length} bytes behind its end")
        self.place += length
        return self.content[self.place - length : self.place].decode()

    def value(self, kind: int) -> Any:
        """A text or a number; None for a list, which is passed over: a control vector has none."""
        if kind == _TEXT:
            return self.text()
        if kind in _VALUES:
            return self.take(_VALUES[kind])
        if kind != _LIST:
            raise ValueError(f"a value of the unknown type {kind}")
        inner, length = self.take("IQ")
        if length > len(self.content) - self.place:
            raise ValueError(f"a list of {length} values behind its end")
        if inner in _VALUES:
            self.place += length * struct.calcsize(_VALUES[inner])
        elif inner == _TEXT:
            for _ in range(length):
                self.text()
        else:
            raise ValueError("a list of lists")
        return None


def _header(file: _Cursor) -> tuple[dict[str, Any], dict[str, _Stored]]:
    if file.take("4s") != _MAGIC:
        raise ValueError("it does not begin with GGUF")
    version, n_tensors, n_fields = file.take("IQQ")
    if version not in _VERSIONS or max(n_tensors, n_fields) > _MOST_ENTRIES:
        raise ValueError(f"version {version}, {n_tensors} tensors, {n_fields} fields")
    fields, tensors = {}, {}
    for _ in range(n_fields):
        key = file.text()
        fields[key] = file.value(file.take("I"))
    for _ in range(n_tensors):
        name, n_axes = file.text(), file.take("I")
        if not 1 <= n_axes <= _MOST_AXES or name in tensors:
            raise ValueError(f"tensor {name[:40]!r} has {n_axes} axes, or is there twice")
        shape = tuple(file.take("Q") for _ in range(n_axes))
        tensors[name] = _Stored(shape, *file.take("IQ"))
    return fields, tensors


def _layer(name: str) -> int:
    before, _, number = name.partition(".")
    if before != "direction" or not (number.isascii() and number.isdigit() and len(number) < 6):
        raise ValueError(f"tensor {name[:40]!r} is no direction of a layer")
    return int(number)


def _tensor(content: bytes, start: int, stored: _Stored) -> Tensor:
    if stored.kind not in _TENSORS or len(stored.shape) != 1:
        raise ValueError(f"a direction of shape {stored.shape} and type {stored.kind}, which is no float32 vector")
    dtype = _TENSORS[stored.kind]
    first, size = start + stored.offset, math.prod(stored.shape) * dtype.itemsize
    if not 0 < size <= len(content) - first:
        raise ValueError(f"a direction of {size} bytes behind its end")
    return torch.from_numpy(np.frombuffer(content, dtype, stored.shape[0], first).astype(dtype.newbyteorder("=")))


def _text(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _pad(content: bytes) -> bytes:
    return content + bytes(-len(content) % _ALIGNMENT)
