"""Which heads of the lab model have a part of their own, and how is it learned?

Carrier heads: in narrow documents they are the only ones through which the token before an answer sees more than its
own query. Checker heads: behind an answer, they learn to look at the query when the answer is right, and at the
beginning of the text when it is wrong; without that, no demonstration is ever held against its query, and a model
takes the task from the answers alone. In use, nothing is masked: what the heads do then is what they have learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb

from ivlens.lab.batches import Batch
from ivlens.shapes import Head

CARRIERS = (Head(3, 1), Head(3, 3), Head(3, 4), Head(3, 6))
CHECKERS = (Head(2, 0), Head(2, 1), Head(2, 2), Head(2, 3))


@contextmanager
def masked(model: LlamaForCausalLM, part: Batch) -> Iterator[None]:
    """Let every head of the model see what `part` says it sees."""
    masks = {layer: _mask(part, layer, model.config.num_attention_heads) for layer in {head.layer for head in CARRIERS}}

    def put(attention: Any, args: Any, kwargs: dict[str, Any], *, mask: Tensor) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {"attention_mask": mask}

    handles = [
        _attention(model, layer).register_forward_pre_hook(
            partial(put, mask=masks.get(layer, part.others)), with_kwargs=True
        )
        for layer in range(len(model.model.layers))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _attention(model: LlamaForCausalLM, layer: int) -> LlamaAttention:
    attention = model.model.layers[layer].self_attn
    assert isinstance(attention, LlamaAttention)
    return attention


def _mask(part: Batch, layer: int, n_heads: int) -> Bool[Tensor, "document head pos pos"]:
    carriers = {head.head for head in CARRIERS if head.layer == layer}
    return torch.cat([part.carried if head in carriers else part.others for head in range(n_heads)], dim=1)


class Attention:
    """Queries and keys of the checker heads' layer, kept from the latest run inside the `with` block."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        (layer,) = {head.layer for head in CHECKERS}
        self.model, self.attention = model, _attention(model, layer)
        self.heads = [head.head for head in CHECKERS]
        self.kept: dict[str, Tensor] = {}

    def __enter__(self) -> Attention:
        def keep(module: Any, inputs: Any, output: Tensor, *, name: str) -> None:
            self.kept[name] = output

        self.handles = [
            getattr(self.attention, f"{name}_proj").register_forward_hook(partial(keep, name=name)) for name in "qk"
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def loss(self, part: Batch) -> Float[Tensor, ""]:
        """Cross-entropy, in nats, of looking where a checker should; summed over answers, mean over heads."""
        if not len(part.checks):
            return torch.zeros(())
        row, answer, query, right = part.checks.unbind(1)
        place = torch.arange(part.ids.shape[1])
        q, k = self._rotated(place)
        scores = torch.einsum("chd,chpd->chp", q[row, :, answer], k[row]) * self.attention.scaling
        scores = scores.masked_fill(place > answer[:, None, None], -torch.inf)
        wanted = torch.where(right.bool(), query, 0)[:, None].expand(-1, len(self.heads))
        return torch.nn.functional.cross_entropy(scores.flatten(0, 1), wanted.flatten(), reduction="sum") / len(
            self.heads
        )

    def _rotated(self, place: Tensor) -> tuple[Tensor, Tensor]:
        width = self.attention.head_dim
        q, k = (self.kept[name].unflatten(-1, (-1, width)).transpose(1, 2)[:, self.heads] for name in "qk")
        return apply_rotary_pos_emb(q, k, *self.model.model.rotary_emb(q, place[None]))
