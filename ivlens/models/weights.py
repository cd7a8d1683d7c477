"""Which weights can be adapted, where are they, and what matrix is each one?

A weight of queries has `heads * d_head` outputs as PEFT sees it; TransformerLens keeps it by head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ivlens.errors import IvlensError
from ivlens.models import bridge, hooked

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Target = Literal["W_Q", "W_K", "W_V", "W_O", "W_in", "W_gate", "W_out"]
TARGETS: tuple[Target, ...] = get_args(Target)


def weight_name(layer: int, target: str) -> str:
    return f"blocks.{layer}.{'attn' if target in ('W_Q', 'W_K', 'W_V', 'W_O') else 'mlp'}.{target}"


def locate(model: HookedTransformer, name: str) -> tuple[nn.Module, str]:
    """The module and the parameter's own name: under grouped-query attention keys and values are `_W_K`, `_W_V`.

    Raises:
        IvlensError: the model has no such weight, or is a TransformerBridge.
    """
    bridge.refuse_adapters(model)
    path, weight = name.rsplit(".", 1)
    try:
        module = model.get_submodule(path)
    except AttributeError:
        module = nn.Module()
    for own in (f"_{weight}", weight):
        if own in module._parameters or is_adapted(module, own):
            return module, own
    raise IvlensError(
        f"{hooked.model_name(model)} has no weight {name!r}; choose targets that it has "
        "(W_gate is in gated models only)"
    )


def matrix_shape(model: HookedTransformer, name: str) -> tuple[int, int]:
    """Inputs and outputs of a weight seen as one matrix."""
    module, weight = locate(model, name)
    shape = getattr(module, weight).shape
    if len(shape) == 2:
        return shape[0], shape[1]
    if weight.endswith("W_O"):
        return shape[0] * shape[1], shape[2]
    return shape[1], shape[0] * shape[2]


def as_weight(matrix: Float[Tensor, "d_in d_out"], weight: Tensor) -> Tensor:
    """A matrix in the shape of the weight: by head for attention."""
    if weight.dim() == 2:
        return matrix
    n_heads, rows, columns = weight.shape
    if len(matrix) == rows:
        return rearrange(matrix, "d_model (head d_head) -> head d_model d_head", head=n_heads)
    assert matrix.shape == (n_heads * rows, columns)
    return rearrange(matrix, "(head d_head) d_model -> head d_head d_model", head=n_heads)


def is_adapted(module: nn.Module, weight: str) -> bool:
    """Is an adapter attached to it?"""
    return parametrize.is_parametrized(module, weight)
