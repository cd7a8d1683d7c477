"""How does a vector become a control vector of llama.cpp and repeng, and come back?

A GGUF file with one float32 tensor `direction.N` a layer. N counts as here: llama.cpp and repeng add `direction.N` to
the residual stream after block N, counted from 0 (`build_cvec(cur, il)` behind the block's MLP; repeng's `layer_ids`).
llama.cpp has no place for `direction.0` and refuses a file with one. Both add a direction at every token.

Files are read and written by the `gguf` package. It follows a list of 2^60 entries in a file of 40 bytes to its end, so
that lists and counts are held against the file before it is handed one.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.errors import IvlensError
from ivlens.storage.atomic_files import reason, refuse_unusual, replacing

LARGEST = 2**26
"""Bytes of a file; one float32 direction after each of 128 blocks of width 16,384 makes 2^23."""
ARCHITECTURE = "controlvector"
_HINT, _NAME = f"{ARCHITECTURE}.model_hint", "general.name"
_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_MOST_ENTRIES, _MOST_LISTED = 4096, 2**17
# Bytes of a value by GGUF's number of its type; texts and lists apart.
_SIZES = dict(enumerate([1, 1, 2, 2, 4, 4, 4, 1])) | {10: 8, 11: 8, 12: 8}
_TEXT, _LIST = 8, 9
_FLOATS = (np.float16, np.float32, np.float64)


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
        IvlensError: a direction after block 0, which llama.cpp has no place for, or the package is missing.
    """
    if min(vector.directions) < 1:
        raise IvlensError(
            "llama.cpp has no place for a vector after block 0 and refuses the whole file; choose a layer from 1 on"
        )
    gguf = _package()
    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, ARCHITECTURE)
        try:
            writer.add_string(_HINT, vector.model)
            writer.add_string(_NAME, vector.name)
            writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vector.directions))
            for layer, direction in sorted(vector.directions.items()):
                writer.add_tensor(f"direction.{layer}", direction.detach().float().cpu().contiguous().numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def read_control_vector(path: Path) -> ControlVector:
    """Read a control vector.

    Raises:
        IvlensError: no GGUF file, not of a control vector, quantised, its header says what it does not hold, or the
            package is missing.
    """
    gguf = _package()
    try:
        refuse_unusual(path, LARGEST)
        _refuse_endless(path.read_bytes())
        with np.errstate(over="raise"):  # An offset beyond 2^64 must not come round to the file's beginning.
            file = gguf.GGUFReader(path)
        fields = {key: field.contents() for key, field in file.fields.items()}
        if fields.get("general.architecture") != ARCHITECTURE:
            raise IvlensError(
                f"{path} is a GGUF file of {fields.get('general.architecture')!r}, not of a control vector; give one "
                "that repeng or llama.cpp's cvector-generator wrote"
            )
        directions = {_layer(tensor.name): _direction(tensor.data) for tensor in file.tensors}
    except (OSError, ValueError, TypeError, LookupError, ArithmeticError, struct.error) as error:
        raise IvlensError(f"{path} is no readable GGUF control vector ({reason(error)}); write it again") from error
    if len({len(direction) for direction in directions.values()}) != 1:
        raise IvlensError(f"{path} has no directions, or of several widths; write it again")
    return ControlVector(dict(sorted(directions.items())), *(str(fields.get(key, "")) for key in (_HINT, _NAME)))


def _package() -> Any:
    if find_spec("gguf") is None:
        raise IvlensError("the package gguf is not installed; run: pip install 'ivlens[gguf]'")
    import gguf

    return gguf


def _refuse_endless(content: bytes) -> None:
    """Raise ValueError for counts and lists that are no control vector's, or that the file cannot hold."""
    magic, version, n_tensors, n_fields = struct.unpack_from("<4sIQQ", content)
    if magic != _MAGIC:
        raise ValueError("it does not begin with GGUF")
    if version not in _VERSIONS or max(n_tensors, n_fields) > _MOST_ENTRIES:
        raise ValueError(f"version {version}, {n_tensors} tensors, {n_fields} fields")
    place, listed = struct.calcsize("<4sIQQ"), 0
    for _ in range(n_fields):
        place = _end(content, place, _TEXT)
        (kind,), length, place = struct.unpack_from("<I", content, place), 1, place + 4
        if kind == _LIST:
            (kind, length), place = struct.unpack_from("<IQ", content, place), place + 12
            listed += length
            if length > len(content) - place:
                raise ValueError(f"a list of {length} values behind its end")
            if kind == _LIST or listed > _MOST_LISTED:
                raise ValueError(f"lists of lists, or of {listed} values; a control vector has none")
        for _ in range(length):
            place = _end(content, place, kind)


def _end(content: bytes, place: int, kind: int) -> int:
    """Where a value ends that begins at a place."""
    size = 8 + struct.unpack_from("<Q", content, place)[0] if kind == _TEXT else _SIZES.get(kind)
    if size is None:
        raise ValueError(f"a value of the unknown type {kind}")
    if size > len(content) - place:
        raise ValueError(f"a value of {size} bytes behind its end")
    return place + size


def _layer(name: str) -> int:
    before, _, number = name.partition(".")
    if before != "direction" or not (number.isascii() and number.isdigit() and len(number) < 6):
        raise ValueError(f"tensor {name[:40]!r} is no direction of a layer")
    return int(number)


def _direction(data: np.ndarray) -> Tensor:
    if data.dtype.type not in _FLOATS or data.ndim != 1 or not len(data):
        raise ValueError(f"a direction of shape {data.shape} and type {data.dtype}, which is no float32 vector")
    return torch.from_numpy(np.array(data, data.dtype.newbyteorder("=")))
