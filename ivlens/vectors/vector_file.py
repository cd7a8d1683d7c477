"""What does a vector's file hold, and does it belong together? Nothing of it is used before it has been compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ivlens.errors import IvlensError, ShapeMismatch
from ivlens.patching.settings import Settings
from ivlens.shapes import Head
from ivlens.storage import atomic_files, tensor_files
from ivlens.vectors.head_writing import check_head, check_place

FORMAT = "ivlens.vector/1"


def read_fields(path: Path) -> dict[str, Any]:
    """Everything that makes an InstructionVector, by the names of its fields.

    Raises:
        IvlensError: not a safetensors file, of another format, or with tensors that do not belong together.
    """
    found, metadata = tensor_files.read_tensors(path, remedy="give one that InstructionVector.save wrote")
    if metadata.get("format") != FORMAT:
        raise IvlensError(
            f"{path} is of format {metadata.get('format')!r}, not {FORMAT!r}; give a file that "
            "InstructionVector.save wrote, or bring it in with `ivlens convert`"
        )
    try:
        written = {key: atomic_files.parse_record(metadata[key]) for key in ("heads", "layer", "settings", "versions")}
        settings = written["settings"]
        fields = {
            "vector": found["vector"],
            "heads": tuple(Head.parse(head) for head in written["heads"]),
            "layer": written["layer"],
            "scale": atomic_files.parse_record(metadata.get("scale", "1.0")),  # Files of before have none.
            "mean_z": found.get("mean_z"),
            "aie": found.get("aie"),
            "settings": None if settings is None else Settings.from_record(settings),
            **{key: metadata[key] for key in ("task", "task_digest", "model", "model_digest")},
            "versions": {str(name): str(version) for name, version in written["versions"].items()},
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IvlensError(f"{path} is no complete vector file ({error}); save the vector again") from error
    _check_tensors(fields, path)
    _check_place(fields, path)
    return fields


def _check_tensors(fields: Mapping[str, Any], path: Path) -> None:
    mean_z, aie = fields["mean_z"], fields["aie"]
    for what, (tensor, axes) in {
        "a vector": (fields["vector"], 1),
        "mean_z": (mean_z, 3),
        "an AIE grid": (aie, 2),
    }.items():
        if tensor is None:
            continue
        tensor_files.as_floats(tensor, path, what)
        if tensor.dim() != axes or not tensor.numel():
            raise ShapeMismatch(
                f"{path} holds {what} of shape {tuple(tensor.shape)}; needed are a vector [d_model], mean_z "
                "[layer, head, d_head] and AIE [layer, head]"
            )
    grid = None if mean_z is None else tuple(mean_z.shape[:2])
    if aie is not None and grid not in (None, tuple(aie.shape)):
        raise ShapeMismatch(f"{path} holds an AIE grid of {tuple(aie.shape)} for heads {grid}; save it again")
    if grid is None and fields["heads"]:
        raise IvlensError(f"{path} is no complete vector file (heads without mean_z); save the vector again")
    for head in fields["heads"]:
        check_head(head, grid or ())


def _check_place(fields: Mapping[str, Any], path: Path) -> None:
    layer, scale = fields["layer"], fields["scale"]
    if layer is not None and type(layer) is not int:
        raise IvlensError(f"{path} is to be added at layer {layer!r}, which is no whole number; save it again")
    if type(scale) not in (int, float) or not math.isfinite(scale):
        raise IvlensError(f"{path} has scale {scale!r}, which is no finite number; save the vector again")
    if layer is not None:
        check_place(layer, fields["mean_z"])
