"""What does every head attend to, from every token of a prompt?

Weights are kept to hundredths, which is what is shown of them. From the last token all of them are kept: 1,024 heads on
200 tokens are 200 KB. From the other tokens there are a hundred times as many, most of them 0.00: these are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8, UInt16
from torch import Tensor

from ivlens.errors import ModelError
from ivlens.forward.makers import forward_of
from ivlens.models.hooked import model_name
from ivlens.prompts.tokens import Tokens

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

HUNDREDTHS = 100


@dataclass(frozen=True, kw_only=True)
class Attention:
    """The attention of every head on one prompt, in hundredths."""

    last: UInt8[np.ndarray, "layer head pos"]
    """From the last token."""
    counts: UInt8[np.ndarray, "layer head pos"]
    """How many weights are kept from each token: of rounded ones that sum to 1 there are at most 200."""
    keys: UInt16[np.ndarray, " kept"]
    """To which token each of them is, in the order of `counts`."""
    weights: UInt8[np.ndarray, " kept"]

    def row(self, layer: int, head: int, token: int) -> UInt8[np.ndarray, " pos"]:
        """From one token to all; weights that are left out are 0."""
        n_tokens = self.last.shape[2]
        if token == n_tokens - 1:
            return self.last[layer, head]
        at = np.ravel_multi_index((layer, head, token), self.counts.shape)
        start, count = int(self.counts.ravel()[:at].sum(dtype=np.int64)), int(self.counts[layer, head, token])
        found = np.zeros(n_tokens, dtype=np.uint8)
        found[self.keys[start : start + count]] = self.weights[start : start + count]
        return found

    def thinned(self, least: int) -> Attention:
        """Without the weights below `least` hundredths that are not from the last token."""
        kept = self.weights >= least
        ends = np.cumsum(self.counts.ravel(), dtype=np.int64)
        before = np.concatenate([[0], np.cumsum(kept)])
        counts = np.diff(before[ends], prepend=0).astype(np.uint8).reshape(self.counts.shape)
        return Attention(last=self.last, counts=counts, keys=self.keys[kept], weights=self.weights[kept])


@torch.no_grad()
def read_attention(model: HookedTransformer, tokens: Tokens) -> list[Attention]:
    """The attention of all heads on every prompt, each run alone and without pads.

    Raises:
        ModelError: the model does not show its attention.
    """
    return [_read_prompt(model, ids[mask][None]) for ids, mask in zip(tokens.prompts, tokens.mask, strict=True)]


def _read_prompt(model: HookedTransformer, ids: Tensor) -> Attention:
    n_layers, found = model.cfg.n_layers, dict[int, Attention]()

    def keep(pattern: Float[Tensor, "1 head pos key"], hook: object, *, layer: int) -> None:
        # Layer by layer: patterns of long prompts are large. Beside keys of tokens some attentions have a sink.
        found[layer] = compact([to_hundredths(pattern[0, :, :, : ids.shape[1]])])

    names = (f"blocks.{layer}.attn.hook_pattern" for layer in range(n_layers))
    hooks: list[Any] = [(name, partial(keep, layer=layer)) for layer, name in enumerate(names)]
    forward_of(model).run(ids, torch.ones_like(ids, dtype=torch.bool), hooks)
    if len(found) < n_layers:
        raise ModelError(
            f"{model_name(model)} does not show the attention of {n_layers - len(found)} of its {n_layers} layers; "
            "load the Hugging Face model with attn_implementation='eager'"
        )
    parts = [found[layer] for layer in range(n_layers)]
    return Attention(
        last=np.concatenate([part.last for part in parts]),
        counts=np.concatenate([part.counts for part in parts]),
        keys=np.concatenate([part.keys for part in parts]),
        weights=np.concatenate([part.weights for part in parts]),
    )


def to_hundredths(weights: Float[Tensor, "*rows"]) -> UInt8[np.ndarray, "*rows"]:
    """Rounded as two decimals are printed."""
    return np.rint(weights.float().cpu().numpy().astype(np.float64) * HUNDREDTHS).astype(np.uint8)


def compact(patterns: Sequence[UInt8[np.ndarray, "head pos key"]]) -> Attention:
    """Patterns of all layers without their zeros."""
    n_heads, n_tokens, _ = patterns[0].shape
    found = [np.nonzero(pattern[:, :-1]) for pattern in patterns]
    counts = np.zeros((len(patterns), n_heads, n_tokens), dtype=np.uint8)
    for layer, pattern in enumerate(patterns):
        counts[layer, :, :-1] = np.count_nonzero(pattern[:, :-1], axis=2)
    return Attention(
        last=np.stack([pattern[:, -1] for pattern in patterns]),
        counts=counts,
        keys=np.concatenate([keys for *_, keys in found]).astype(np.uint16),
        weights=np.concatenate([pattern[:, :-1][at] for pattern, at in zip(patterns, found, strict=True)]),
    )
