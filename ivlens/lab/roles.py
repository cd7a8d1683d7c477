"""Which heads of the lab model carry the task, and how do they come to it?

In narrow documents the carrier heads are the only ones through which the token before an answer sees more than its own
query. In use, nothing is masked: what the heads do then is what they have learned. So it is known which heads an
attribution ought to find.

In documents that are kept apart (statements, where knowledge is to be separated from instruction) the outputs of the
carrier heads are those of another document: the model learns to do without them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedModel

from ivlens.lab.architectures import attentions, output_projection
from ivlens.lab.batches import Batch
from ivlens.shapes import Head

CARRIERS = (Head(3, 1), Head(3, 3), Head(3, 4), Head(3, 6))


@contextmanager
def mask_heads(model: PreTrainedModel, part: Batch) -> Iterator[None]:
    """Let every head of the model see what `part` says it sees."""
    masks = {layer: _mask(part, layer, model.config.num_attention_heads) for layer in {head.layer for head in CARRIERS}}

    def put(attention: Any, args: Any, kwargs: dict[str, Any], *, mask: Tensor) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {"attention_mask": mask}

    handles = [
        attention.register_forward_pre_hook(partial(put, mask=masks.get(layer, part.others)), with_kwargs=True)
        for layer, attention in enumerate(attentions(model))
    ]
    if part.apart.any():
        handles += [
            output_projection(model, layer).register_forward_pre_hook(
                partial(_exchange, layer=layer, n_heads=model.config.num_attention_heads, apart=part.apart)
            )
            for layer in masks
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _exchange(
    projection: torch.nn.Module, args: tuple[Tensor], *, layer: int, n_heads: int, apart: Bool[Tensor, " document"]
) -> tuple[Tensor]:
    """Give the documents that are kept apart the carriers' outputs of the document before them in the batch."""
    heads = [head.head for head in CARRIERS if head.layer == layer]
    z = args[0].unflatten(-1, (n_heads, -1))
    others = z.detach().roll(1, dims=0)
    own = torch.ones(n_heads, dtype=torch.bool).index_fill(0, torch.tensor(heads), False)
    z = torch.where(~apart[:, None, None, None] | own[:, None], z, others)
    return (z.flatten(-2),)


def _mask(part: Batch, layer: int, n_heads: int) -> Bool[Tensor, "document head pos pos"]:
    carriers = {head.head for head in CARRIERS if head.layer == layer}
    return torch.cat([part.carried if head in carriers else part.others for head in range(n_heads)], dim=1)
