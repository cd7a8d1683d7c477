"""How does a vector become a control vector of llama.cpp, repeng and EasySteer, and come back?

A GGUF file with one float32 tensor `direction.N` a layer. N counts as here: all three add `direction.N` to the residual
stream after block N, counted from 0 (llama.cpp: `build_cvec(cur, il)` behind the block's MLP; repeng: `layer_ids`;
EasySteer: the first number in the name of vLLM's module, to whose output it is added). llama.cpp has no place for
`direction.0` and refuses a file with one. llama.cpp and repeng add a direction at every token, EasySteer at those that
a request names. EasySteer takes no file whose name does not end in `.gguf`, or has a `|` in it.

Files are read and written by the `gguf` package, after `gguf_files` has held their header against them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.errors import IvlensError
from ivlens.storage import gguf_files
from ivlens.storage.atomic_files import reason, refuse_unusual, replacing

LARGEST = 2**26
"""Bytes of a file; one float32 direction after each of 128 blocks of width 16,384 makes 2^23."""
ARCHITECTURE = "controlvector"
_HINT, _NAME = f"{ARCHITECTURE}.model_hint", "general.name"
_BOUNDS = gguf_files.Bounds(entries=4096, listed=2**17)
_FLOATS = (np.float16, np.float32, np.float64)


class ControlVector(NamedTuple):
    """Directions by the block that they are added after, counted from 0."""

    directions: Mapping[int, Float[Tensor, " d_model"]]
    model: str
    """`controlvector.model_hint`: repeng writes the configuration's model_type, such as `llama`."""
    name: str
    """`general.name`; empty where there is none."""


def write_control_vector(path: Path, vector: ControlVector, *, of_easysteer: bool = False) -> None:
    """Write a GGUF file of version 3, whole or not at all.

    Args:
        of_easysteer: EasySteer alone is to read it.

    Raises:
        IvlensError: a direction after block 0, which llama.cpp has no place for, a name that EasySteer would refuse,
            or the package is missing.
    """
    if of_easysteer:
        _check_name(path)
    elif min(vector.directions) < 1:
        raise IvlensError(
            "llama.cpp has no place for a vector after block 0 and refuses the whole file; choose a layer from 1 on, "
            "or the form easysteer, which has one"
        )
    gguf = gguf_files.package()
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


def _check_name(path: Path) -> None:
    if path.suffix.lower() != ".gguf" or "|" in str(path):
        raise IvlensError(f"EasySteer would refuse {path}: it takes files that end in .gguf, with no | in their path")


def read_control_vector(path: Path) -> ControlVector:
    """Read a control vector.

    Raises:
        IvlensError: no GGUF file, not of a control vector, quantised, its header says what it does not hold, or the
            package is missing.
    """
    gguf = gguf_files.package()
    try:
        refuse_unusual(path, LARGEST)
        gguf_files.read_header(path, _BOUNDS)
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


def _layer(name: str) -> int:
    before, _, number = name.partition(".")
    if before != "direction" or not (number.isascii() and number.isdigit() and len(number) < 6):
        raise ValueError(f"tensor {name[:40]!r} is no direction of a layer")
    return int(number)


def _direction(data: np.ndarray) -> Tensor:
    if data.dtype.type not in _FLOATS or data.ndim != 1 or not len(data):
        raise ValueError(f"a direction of shape {data.shape} and type {data.dtype}, which is no float32 vector")
    return torch.from_numpy(np.array(data, data.dtype.newbyteorder("=")))
