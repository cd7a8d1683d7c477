"""How are tensors read from a file that nobody vouches for?

Nothing is ever unpickled by Python: a `.pt` is opened by `torch.load(weights_only=True)`, and only after its pickle,
read as a list, has shown to ask for nothing but plain tensors. No tensor is larger than the file that it is read from.
"""

from __future__ import annotations

import io
import json
import math
import pickletools
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from tokenize import TokenError
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ivlens.errors import IvlensError
from ivlens.storage.atomic_files import reason, refuse_unusual

LARGEST = 4 * 2**30
"""Bytes of a file of vectors or effects. Those of a model of 100 billion parameters stay below a tenth of it."""
_LARGEST_PICKLE = 2**20
_PLAIN = {
    *("collections OrderedDict", "torch._utils _rebuild_parameter", "torch._utils _rebuild_tensor_v2"),
    *(f"torch {kind}Storage" for kind in ("Half", "BFloat16", "Float", "Double")),
}
# What zipfile, torch and numpy raise for a file that is torn, or that says what it does not hold.
_BROKEN = (
    *(OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, NotImplementedError),
    *(AssertionError, SyntaxError, MemoryError, OverflowError, UnpicklingError, TokenError, zlib.error, struct.error),
)
# By the names that safetensors has for them.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Stored(NamedTuple):
    """A safetensors file but for its values."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]


def read_header(path: Path, *, remedy: str, error: type[IvlensError] = IvlensError) -> Stored:
    """Names, shapes and metadata of a safetensors file, whose tensors are not read.

    Args:
        remedy: What to do where it is damaged.

    Raises:
        IvlensError, or `error`: it is no safetensors file.
    """
    with _open(path, "cpu", remedy, error) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        return Stored(shapes, file.metadata() or {})


def read_tensors(
    path: Path,
    *,
    remedy: str,
    error: type[IvlensError] = IvlensError,
    device: str | torch.device = "cpu",
    most: int | None = LARGEST,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file of at most so many bytes; see `read_header`."""
    with _open(path, str(device), remedy, error, most) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def read_copies(path: Path, *, remedy: str, error: type[IvlensError] = IvlensError) -> dict[str, Tensor]:
    """Tensors of a safetensors file, each in memory of its own, which goes back as each is dropped; see `read_header`.

    Those of `read_tensors` are views of one mapping of the file, which stays until the last of them goes.
    """
    read_header(path, remedy=remedy, error=error)  # Whose lengths and places fit the file.
    held = {}
    with path.open("rb", buffering=0) as file:
        (length,) = struct.unpack("<Q", file.read(8))
        for name, entry in json.loads(file.read(length)).items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in _DTYPES:
                raise error(f"{path} holds {name} as {entry['dtype']}; save it in float32, bfloat16 or float16")
            first, last = entry["data_offsets"]
            content = torch.empty(last - first, dtype=torch.uint8)
            file.seek(8 + length + first)
            if _fill(file, content) < last - first:
                raise error(f"{path} has become shorter while it was read; {remedy}")
            held[name] = content.view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return held


def _fill(file: io.RawIOBase, content: Tensor) -> int:
    """Read into a tensor until it is full or the file ends; how many bytes were read. One call reads at most 2 GiB."""
    view, done = content.numpy().data, 0
    while done < len(view):
        read = file.readinto(view[done:])
        if not read:
            break
        done += read
    return done


@contextmanager
def _open(path: Path, device: str, remedy: str, error: type[IvlensError], most: int | None = None) -> Iterator[Any]:
    try:
        refuse_unusual(path, most)
        with safe_open(path, framework="pt", device=device) as file:
            yield file
    except (OSError, RuntimeError, SafetensorError) as fault:  # torch's, where a file is too large to be mapped.
        raise error(f"{path} is no readable safetensors file ({reason(fault)}); {remedy}") from fault


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The content of a safetensors file, the same for the same tensors: `save` puts metadata into any order."""
    content = save(dict(tensors), metadata=dict(metadata))
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # Tensors are to lie at multiples of 8.
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def read_torch(path: Path, stand_ins: Mapping[str, type] | None = None) -> Any:
    """What `torch.save` wrote: a tensor, or plain containers of tensors.

    Args:
        stand_ins: Classes to make of objects of other classes, by the full names of those. No code of theirs runs.

    Raises:
        IvlensError: not torch's zip format, damaged, asks for anything but plain tensors, or larger than it says.
    """
    stand_ins = stand_ins or {}
    try:
        refuse_unusual(path, LARGEST)
        with zipfile.ZipFile(path) as archive:
            _refuse_strange(archive, path, _PLAIN | {" ".join(name.rsplit(".", 1)) for name in stand_ins})
        trusted: list[Any] = [(kind, name) for name, kind in stand_ins.items()]
        with torch.serialization.safe_globals(trusted), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except zipfile.BadZipFile as fault:
        raise IvlensError(f"{path} is not of the form of torch.save since 1.6; load and save it again") from fault
    except _BROKEN as fault:
        raise IvlensError(f"{path} is truncated or damaged ({reason(fault)}); copy it again") from fault


def torch_bytes(content: Any) -> bytes:
    """What `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def read_numpy(path: Path) -> Tensor:
    """The array of a `.npy` file.

    Raises:
        IvlensError: not such a file, of another type than a floating-point number, or of another length than it says.
    """
    try:
        refuse_unusual(path, LARGEST)
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shape, dtype = _numpy_header(file)
            length = path.stat().st_size - file.tell()
        if dtype.kind == "f" and math.prod(shape) * dtype.itemsize != length:
            raise ValueError(f"it says {shape} of {dtype}, but holds {length:,} bytes")
        if dtype not in (np.float16, np.float32, np.float64):
            raise IvlensError(f"{path} is an array of {dtype}; save one of float32")
        array = np.load(path, allow_pickle=False)
    except _BROKEN as fault:
        raise IvlensError(f"{path} is no readable .npy file ({reason(fault)}); save it with numpy.save") from fault
    return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)))


def as_floats(tensor: Any, path: Path, what: str) -> Tensor:
    """The tensor, if it is one of finite floating-point numbers and no view of fewer numbers than it has.

    Raises:
        IvlensError: it is none.
    """
    if not isinstance(tensor, Tensor):
        raise IvlensError(f"{path} holds a {type(tensor).__name__} where {what} is needed; give another file")
    if tensor.dtype not in _FLOATS or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise IvlensError(f"{path} holds {what} as {tensor.dtype}, {tensor.layout}; save it as plain float32")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise IvlensError(f"{path} holds {what} of shape {tuple(tensor.shape)} without that many numbers; save a copy")
    if not bool(tensor.isfinite().all()):
        raise IvlensError(f"{path} holds {what} with NaN or infinity in it; compute it again")
    return tensor.detach()


def _refuse_strange(archive: zipfile.ZipFile, path: Path, known: set[str]) -> None:
    """Before anything is unpacked: is it as torch writes it, and does its pickle ask for known names alone?"""
    entries = archive.infolist()
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise IvlensError(f"{path} is a packed archive, as torch never writes it; load and save it again")
    if len({entry.filename for entry in entries}) < len(entries):
        raise ValueError("two entries have one name")
    pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
    if len(pickles) != 1 or pickles[0].file_size > _LARGEST_PICKLE:
        raise ValueError("it has no data.pkl of a usual size")
    for opcode, argument, _ in pickletools.genops(archive.read(pickles[0])):
        if opcode.name == "STACK_GLOBAL" or (opcode.name == "GLOBAL" and argument not in known):
            name = str(argument).replace(" ", ".")[:80]
            raise IvlensError(
                f"{path} is a pickle that asks for {name}, which ivlens never runs; save plain tensors with torch.save"
            )


def _numpy_header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version}")
    shape, _, dtype = readers[version](file)
    return shape, dtype
