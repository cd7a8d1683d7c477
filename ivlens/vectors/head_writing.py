"""What do heads write into the residual stream, and are there such heads and layers?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING

import torch

from ivlens.errors import IvlensError, ShapeMismatch
from ivlens.models import hooked
from ivlens.patching.activations import check_mean_z, path_to_residual
from ivlens.shapes import Head, MeanZ, Residual

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


def write_vector(model: HookedTransformer, mean_z: MeanZ, heads: Sequence[Head]) -> Residual:
    """Sum over heads of what each adds to the residual stream, `b_O` left out; in float32 at least."""
    grid = (model.cfg.n_layers, model.cfg.n_heads)
    check_mean_z(model, mean_z, what="mean_z is", remedy="recompute it with mean_z(model, clean)")
    total = torch.zeros(model.cfg.d_model, dtype=mean_z.dtype, device=mean_z.device)
    for head in heads:
        check_head(head, grid)
        total += mean_z[head] @ path_to_residual(model, head, mean_z)
    return total


def check_head(head: Head, grid: tuple[int, ...]) -> None:
    """Raises IvlensError when a grid of layers by heads has no such head."""
    if not (0 <= head.layer < grid[0] and 0 <= head.head < grid[1]):
        raise IvlensError(f"there is no head {head}: the model has {grid[0]} layers of {grid[1]} heads, from 0")


def check_layer(layer: int, n_layers: int) -> None:
    """Raises IvlensError when there is no such layer."""
    if not isinstance(layer, Integral) or isinstance(layer, bool):
        raise IvlensError(f"layer is {layer!r}; it must be a whole number, from 0 to {n_layers - 1}")
    if not 0 <= layer < n_layers:
        raise IvlensError(f"there is no layer {layer}: the model has {n_layers} layers, counted from 0")


def check_place(layer: int, mean_z: MeanZ | None) -> None:
    """Raises IvlensError when there is no such layer, as far as the heads tell how many there are."""
    if mean_z is not None:
        check_layer(layer, len(mean_z))
    elif layer < 0:
        raise IvlensError(f"there is no layer {layer}: layers are counted from 0")


def check_scale(scale: float) -> None:
    """Raises IvlensError when a vector cannot be taken so many times."""
    if not isinstance(scale, Real) or not math.isfinite(scale):
        raise IvlensError(f"scale is {scale!r}; it must be a finite number")


def check_width(vector: Residual, origin: str, model: HookedTransformer, *, remedy: str) -> None:
    """Raises ShapeMismatch when a vector, of a model or task `origin`, is not as wide as the residual stream."""
    if len(vector) != model.cfg.d_model:
        raise ShapeMismatch(
            f"the vector of {origin} has width {len(vector)}, but {hooked.model_name(model)} has d_model "
            f"{model.cfg.d_model}; {remedy}"
        )
