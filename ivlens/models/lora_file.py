"""How is an adapter kept as it is, factor by factor, in one safetensors file?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch

from ivlens.errors import IvlensError
from ivlens.models.lora import Adapter, Factors, check_adapter, check_shapes
from ivlens.storage import atomic_files, tensor_files

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


FORMAT = "ivlens.adapter/1"


def save_adapter(adapter: Adapter, path: Path) -> None:
    """Write the factors as they are into one safetensors file; `peft.write_adapter` writes PEFT's form."""
    held = {
        f"{name}.{part}": getattr(factors, part).detach().cpu().contiguous()
        for name, factors in adapter.factors.items()
        for part in Factors._fields
    }
    atomic_files.write_whole(
        path, safetensors.torch.save(held, metadata={"format": FORMAT, "scale": repr(adapter.scale)})
    )


def load_adapter(path: Path, model: HookedTransformer) -> Adapter:
    """Read what `save` wrote, onto the model's device.

    Raises:
        IvlensError: not such a file.
        ShapeMismatch: it is of another model.
    """
    remedy = "delete it and run the same command again"
    shapes, metadata = tensor_files.read_header(path, remedy=remedy)
    if metadata.get("format") != FORMAT:
        raise IvlensError(
            f"{path} is of format {metadata.get('format')!r}, not {FORMAT!r}; give a file that save wrote"
        )
    names = {name.rpartition(".")[0] for name in shapes}
    if set(shapes) != {f"{name}.{part}" for name in names for part in Factors._fields}:
        raise IvlensError(f"{path} has tensors that make no pairs of A and B; {remedy}")
    for name in names:
        check_shapes(model, name, shapes[f"{name}.A"], shapes[f"{name}.B"])
    try:
        scale = float(metadata["scale"])
    except (KeyError, ValueError) as error:
        raise IvlensError(f"{path} does not say how strong its updates are; {remedy}") from error
    if not math.isfinite(scale):
        raise IvlensError(f"{path} says that its updates are {scale} times as strong; {remedy}")
    held, _ = tensor_files.read_tensors(path, remedy=remedy, device=model.cfg.device or "cpu", most=None)
    factors = {name: Factors(*(held[f"{name}.{part}"] for part in Factors._fields)) for name in sorted(names)}
    adapter = Adapter(factors=factors, scale=scale)
    check_adapter(model, adapter)
    return adapter
