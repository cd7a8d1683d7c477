"""What do heads write, and what becomes of it behind a norm whose scale is held?

A norm is not linear. With its scale held at what it is on a prompt, it is: what it makes of a sum is then the sum of
what it makes of the parts, so that every part of a residual stream has its share in a logit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.errors import ModelError
from ivlens.forward.makers import forward_of

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


def attention_writes(
    model: HookedTransformer, layer: int, z: Float[Tensor, "*batch head d_head"]
) -> Float[Tensor, "*batch d_model"]:
    """What attention adds to the residual stream where its heads have given outputs, bias and norm included."""
    path = forward_of(model).output_path(layer)
    out = torch.einsum("...hd,hdm->...m", z.to(path.weight), path.weight)
    bias = model.blocks[layer].attn.b_O
    out = out if bias is None else out + bias.to(out)
    if path.norm is not None:
        out = path.norm(out.reshape(1, -1, out.shape[-1])).reshape(out.shape)
    return path.scale * out


@dataclass(frozen=True, kw_only=True)
class HeldNorm:
    """A norm with its scale held at what it is on each of some prompts: a linear map of parts, and a bias."""

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    is_centred: bool
    """Whether the mean over the width is taken out first (LayerNorm; RMSNorm does not)."""
    scale: Float[Tensor, " prompt"]

    @classmethod
    def at(
        cls, norm: Callable[[Tensor], Tensor], resid: Float[Tensor, "prompt d_model"], *, name: str, dtype: torch.dtype
    ) -> HeldNorm:
        """What a norm does to given streams, read off its outputs: its parameters have other names in every model.

        Args:
            norm: Computes in `dtype`, whatever the streams are in.

        Raises:
            ModelError: the norm is not a LayerNorm or RMSNorm.
        """
        width = resid.shape[1]
        # Of mean 0, so that a LayerNorm leaves it as it is; where the width is odd, one place stays 0.
        probe = torch.tensor([1.0, -1.0], dtype=resid.dtype, device=resid.device).repeat(width // 2 + 1)[:width]
        probe[-1] *= (width + 1) % 2
        probes = torch.stack([torch.zeros_like(probe), torch.ones_like(probe), probe, probe.roll(1)])
        bias, level, one, other = norm(probes[None].to(dtype))[0].to(resid)
        is_centred = bool((level - bias).abs().max() < 1e-3 * (one - bias).abs().max())
        gain = torch.where(probe != 0, (one - bias) / probe, (other - bias) / probe.roll(1))
        held = cls(gain=gain, bias=bias, is_centred=is_centred, scale=torch.ones_like(resid[:, 0]))
        found, unscaled = norm(resid[None].to(dtype))[0].to(resid) - bias, held.of(resid[:, None])[:, 0]
        scale = (found * unscaled).sum(1) / unscaled.square().sum(1)
        error = float((scale[:, None] * unscaled - found).abs().max() / found.abs().max())
        if not error < max(1e-4, 8 * torch.finfo(dtype).eps):
            raise ModelError(f"{name} is neither a LayerNorm nor an RMSNorm (off by {error:.2g}): it has no parts")
        return cls(gain=gain, bias=bias, is_centred=is_centred, scale=scale)

    def of(self, parts: Float[Tensor, "prompt part d_model"]) -> Float[Tensor, "prompt part d_model"]:
        """What becomes of parts of the streams; the bias is nobody's."""
        if self.is_centred:
            parts = parts - parts.mean(-1, keepdim=True)
        return self.scale[:, None, None] * self.gain * parts
