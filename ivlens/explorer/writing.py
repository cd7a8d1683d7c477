"""Which tokens does the mean output of every head speak for, and which against?

Read as `InstructionVector.top_tokens` reads a vector: as if what a head writes were the whole final residual stream,
through the final norm and the unembedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ivlens.errors import ModelError
from ivlens.explorer.contents import Writing
from ivlens.patching.activations import path_to_residual, unembed
from ivlens.shapes import Head, MeanZ

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

PLACES = 8
"""Tokens of either end that are kept."""


@torch.no_grad()
def read_writing(model: HookedTransformer, mean_z: MeanZ, *, places: int = PLACES) -> Writing | None:
    """What the mean output of every head writes; None where it has no way to the residual stream by weights alone."""
    cfg, found = model.cfg, []
    z = mean_z.to(cfg.device)
    places = min(places, cfg.d_vocab_out)
    for layer in range(cfg.n_layers):
        heads = [Head(layer, number) for number in range(cfg.n_heads)]
        try:
            written = torch.stack([z[head] @ path_to_residual(model, head, z) for head in heads])
        except ModelError:  # Of a bridge; vectors of it are refused for the same reason.
            return None
        logits = unembed(model, written.to(cfg.dtype)).float().cpu()
        found.append((logits.topk(places), logits.topk(places, largest=False)))
    top, bottom = (torch.stack([ends[side].indices for ends in found]) for side in (0, 1))
    ids = sorted({*top.flatten().tolist(), *bottom.flatten().tolist()})
    return Writing(
        top=top,
        top_logits=torch.stack([ends[0].values for ends in found]),
        bottom=bottom,
        bottom_logits=torch.stack([ends[1].values for ends in found]),
        texts={token: token_text(model, token) for token in ids},
    )


def token_text(model: HookedTransformer, token: int) -> str:
    """What is shown of a token; of a part of a letter, which has no text, the tokenizer's own name."""
    tokenizer: Any = model.tokenizer
    text = str(tokenizer.decode([token]))
    return str(tokenizer.convert_ids_to_tokens(token)) if "\ufffd" in text else text
