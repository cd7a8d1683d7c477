"""How are the last numbers of a pass kept from being rounded to 16 bits?

A logit of 20 is off by as much as 0.06 in bfloat16, and by as much the next one: more than most heads do. So where
nothing is to be differentiated, logits are sums in float32, of weights and of a normed residual stream as they are.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.models.hooked import IN_16_BITS

# Weights of 16 bits that are widened at once.
AT_ONCE = 2**24


def is_rounding(weight: Tensor) -> bool:
    """Whether products with this weight are rounded to 16 bits, and nothing asks for their gradients."""
    return weight.dtype in IN_16_BITS and not torch.is_grad_enabled()


def product_in_float32(
    inputs: Float[Tensor, "*batch d_model"], weight: Float[Tensor, "d_model vocab"], bias: Tensor | None
) -> Float[Tensor, "*batch vocab"]:
    """What a product of 16-bit numbers is before it is rounded, without a copy of all weights in float32."""
    flat = inputs.reshape(-1, inputs.shape[-1])
    if flat.is_cuda and flat.dtype == weight.dtype and "dtype" in torch.ops.aten.mm.overloads():
        out = torch.mm(flat, weight, out_dtype=torch.float32)
    else:
        flat, out = flat.float(), torch.empty(len(flat), weight.shape[1], device=weight.device)
        size = max(1, AT_ONCE // len(weight))
        for first in range(0, weight.shape[1], size):
            out[:, first : first + size] = flat @ weight[:, first : first + size].float()
    if bias is not None:
        out += bias
    return out.unflatten(0, inputs.shape[:-1])
