"""Which weights can be adapted, where are they, and what matrix is each one?

A weight of queries has `heads * d_head` outputs as PEFT sees it; TransformerLens keeps it by head. In a
TransformerBridge a weight is that of a linear layer of transformers, or of the bridge's own part of a fused one.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ivlens.checkpoints.quantised import is_quantised
from ivlens.errors import IvlensError, ModelError
from ivlens.models.origin import is_bridge, model_name

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer
    from transformer_lens.model_bridge import TransformerBridge

Target = Literal["W_Q", "W_K", "W_V", "W_O", "W_in", "W_gate", "W_out"]
TARGETS: tuple[Target, ...] = get_args(Target)

_COMPONENTS: dict[str, str] = {
    "W_Q": "q",
    "W_K": "k",
    "W_V": "v",
    "W_O": "o",
    "W_in": "in",
    "W_gate": "gate",
    "W_out": "out",
}
"""As a TransformerBridge calls the linear layers."""


def weight_name(layer: int, target: str) -> str:
    return f"blocks.{layer}.{'attn' if target in ('W_Q', 'W_K', 'W_V', 'W_O') else 'mlp'}.{target}"


def locate(model: HookedTransformer, name: str) -> tuple[nn.Module, str]:
    """The module that multiplies by a weight, and the parameter's own name.

    Under grouped-query attention keys and values are `_W_K`, `_W_V`. In a bridge it is a linear layer's `weight`, below
    layers of PEFT where there are any.

    Raises:
        IvlensError: the model has no such weight, or has it in fewer bits than can be added to.
    """
    if is_bridge(model):
        layer: Any = component(model, name)._original_component
        return getattr(layer, "base_layer", layer), "weight"
    if model.cfg.load_in_4bit:
        raise IvlensError(
            f"the weights of {model_name(model)} are in 4 bits, to which an update cannot be added exactly; load the "
            "model in 16 or 32 bits to train, attach or merge an adapter"
        )
    path, weight = name.rsplit(".", 1)
    try:
        module = model.get_submodule(path)
    except AttributeError:
        module = nn.Module()
    for own in (f"_{weight}", weight):
        if own in module._parameters or is_adapted(module, own):
            return module, own
    raise _missing(model, name)


def component(bridge: TransformerBridge, name: str) -> nn.Module:
    """The bridge's wrapper of the linear layer that multiplies by a weight.

    Raises:
        IvlensError: it has no such layer (experts have none), or one whose weights are quantised.
    """
    path, target = name.rsplit(".", 1)
    try:
        found = bridge.get_submodule(f"{path}.{_COMPONENTS[target]}")
    except (AttributeError, KeyError):
        found = nn.Module()
    layer = found._modules.get("_original_component")
    linear: Any = getattr(layer, "base_layer", layer)
    weight = getattr(linear, "weight", None)
    # As they have them, quantised or not; a router of experts has none of both.
    sizes = [size for size in ("in_features", "nx") if hasattr(linear, size)]
    if not isinstance(weight, Tensor) or not sizes:
        raise _missing(bridge, name)
    if is_quantised(linear):
        raise IvlensError(
            f"{name} of {bridge.cfg.model_name} is quantised ({type(weight).__name__}, {weight.dtype}), so that a "
            "merge would not be exact; load the checkpoint in 16 or 32 bits to train, attach or merge an adapter"
        )
    return found


# By bridge: names of weights whose layer is run by a forward pass.
_REACHED: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


@torch.no_grad()
def refuse_unreached(bridge: TransformerBridge, names: Collection[str]) -> None:
    """Raises ModelError where a bridge computes without one of these weights: an update there would be nothing."""
    if bridge not in _REACHED or not _REACHED[bridge].issuperset(names):
        reached = _REACHED.setdefault(bridge, set())
        with ExitStack() as stack:
            for name in names:
                layer: Any = component(bridge, name)._original_component
                stack.callback(layer.register_forward_hook(lambda *_, name=name: reached.add(name)).remove)
            bridge(torch.zeros(1, 2, dtype=torch.long, device=bridge.cfg.device))
    missed = [name for name in names if name not in _REACHED[bridge]]
    if missed:
        raise ModelError(
            f"{bridge.cfg.model_name} ({bridge.cfg.architecture}) runs without the layer of {missed[0]}, so that an "
            "adapter there would do nothing; choose other targets, or load the checkpoint with backend='hooked'"
        )


def _missing(model: Any, name: str) -> IvlensError:
    return IvlensError(
        f"{model_name(model)} has no weight {name!r}; choose targets that it has (W_gate is in gated models only)"
    )


def matrix_shape(model: HookedTransformer, name: str) -> tuple[int, int]:
    """Inputs and outputs of a weight seen as one matrix."""
    module, weight = locate(model, name)
    shape = getattr(module, weight).shape
    if len(shape) == 2:
        return (shape[1], shape[0]) if isinstance(module, nn.Linear) else (shape[0], shape[1])
    if weight.endswith("W_O"):
        return shape[0] * shape[1], shape[2]
    return shape[1], shape[0] * shape[2]


def as_weight(matrix: Float[Tensor, "d_in d_out"], weight: Tensor, module: nn.Module | None = None) -> Tensor:
    """A matrix in the shape of the weight: by head for attention; outputs first in the `nn.Linear` of a bridge."""
    if weight.dim() == 2:
        return matrix.T if isinstance(module, nn.Linear) else matrix
    n_heads, rows, columns = weight.shape
    if len(matrix) == rows:
        return rearrange(matrix, "d_model (head d_head) -> head d_model d_head", head=n_heads)
    assert matrix.shape == (n_heads * rows, columns)
    return rearrange(matrix, "(head d_head) d_model -> head d_head d_model", head=n_heads)


def as_matrix(weight: Tensor, module: nn.Module, own: str) -> Float[Tensor, "d_in d_out"]:
    """The other way around: a weight of a module, by its own name there, as a matrix, inputs first."""
    if weight.dim() == 2:
        return weight.T if isinstance(module, nn.Linear) else weight
    if own.endswith("W_O"):
        return rearrange(weight, "head d_head d_model -> (head d_head) d_model")
    return rearrange(weight, "head d_model d_head -> d_model (head d_head)")


def is_adapted(module: nn.Module, weight: str) -> bool:
    """Is an adapter attached to it?"""
    return parametrize.is_parametrized(module, weight)
