"""In whose shape is a lab model built, and which of its heads carry the task?

The shipped model has Llama's shape. GPT-2's and GPT-NeoX's are for one question: are findings on the lab those of its
documents and masks, or of its architecture? So all else is equal: documents, masks, width, layers, heads and, nearly,
parameters.

In narrow documents the carrier heads are the only ones through which the token before an answer sees more than its own
query. In use, nothing is masked: what the heads do then is what they have learned. So it is known which heads an
attribution ought to find.

In documents that are kept apart (statements, where knowledge is to be separated from instruction) the outputs of the
carrier heads are those of another document: the model learns to do without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from ivlens.lab.batches import Batch
from ivlens.lab.vocabulary import BOS_ID, CONTEXT, EOS_ID, PAD_ID
from ivlens.shapes import Head

SPECIAL = {"tie_word_embeddings": False, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}

CARRIERS = (Head(3, 1), Head(3, 3), Head(3, 4), Head(3, 6))


class Size(NamedTuple):
    """How large a lab model is."""

    vocabulary: int
    layers: int
    heads: int
    width: int
    mlp: int
    """Width of a gated MLP; one of two matrices is half as wide again, and so has as many parameters."""


class Architecture(NamedTuple):
    """A class of transformers and where its parts are."""

    model: type[PreTrainedModel]
    config: Callable[[Size], PreTrainedConfig]
    body: str
    """All but the unembedding."""
    layers: str
    """In the body."""
    attention: str
    """In a layer."""
    output: str
    """In the attention: takes what all heads say, one beside the other."""


def _llama(size: Size) -> PreTrainedConfig:
    return LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=CONTEXT,
        **SPECIAL,
    )


def _gpt2(size: Size) -> PreTrainedConfig:
    return GPT2Config(
        vocab_size=size.vocabulary,
        n_embd=size.width,
        n_inner=size.mlp * 3 // 2,
        n_layer=size.layers,
        n_head=size.heads,
        n_positions=CONTEXT,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        **SPECIAL,
    )


def _neox(size: Size) -> PreTrainedConfig:
    return GPTNeoXConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.mlp * 3 // 2,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=CONTEXT,
        **SPECIAL,
    )


ARCHITECTURES = {
    "llama": Architecture(LlamaForCausalLM, _llama, "model", "layers", "self_attn", "o_proj"),
    "gpt2": Architecture(GPT2LMHeadModel, _gpt2, "transformer", "h", "attn", "c_proj"),
    "neox": Architecture(GPTNeoXForCausalLM, _neox, "gpt_neox", "layers", "attention", "dense"),
}


def new_model(architecture: str, size: Size, *, seed: int) -> PreTrainedModel:
    """Random weights that depend on the seed alone."""
    built = ARCHITECTURES[architecture]
    model = built.model(built.config(size))
    generator = torch.Generator().manual_seed(seed)
    kinds = {f"{name}.weight": module for name, module in model.named_modules()}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                linear = isinstance(kinds[name], nn.Linear)
                wide = 0.02 if _embeds(name) else weight.shape[1 if linear else 0] ** -0.5
                weight.normal_(0, wide / (2 * size.layers) ** 0.5 if _writes(name) else wide, generator=generator)
    return model


def _embeds(name: str) -> bool:
    return any(part in name for part in ("embed", "lm_head", "wte", "wpe"))


def _writes(name: str) -> bool:
    """Does the matrix write to the residual stream? It starts smaller, the deeper the model."""
    return name.endswith(
        ("o_proj.weight", "down_proj.weight", "c_proj.weight", "attention.dense.weight", "dense_4h_to_h.weight")
    )


def attentions(model: PreTrainedModel) -> list[nn.Module]:
    """Of every layer."""
    built = _built(model)
    return [layer.get_submodule(built.attention) for layer in body(model).get_submodule(built.layers).children()]


def body(model: PreTrainedModel) -> nn.Module:
    """All but the unembedding."""
    return model.get_submodule(_built(model).body)


def unembedding(model: PreTrainedModel) -> nn.Module:
    """What makes logits of the body's last states."""
    found = model.get_output_embeddings()
    assert found is not None
    return found


def output_projection(model: PreTrainedModel, layer: int) -> nn.Module:
    """What takes the outputs of all heads of a layer, one beside the other."""
    return attentions(model)[layer].get_submodule(_built(model).output)


def _built(model: PreTrainedModel) -> Architecture:
    return next(built for built in ARCHITECTURES.values() if isinstance(model, built.model))


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
    projection: nn.Module, args: tuple[Tensor], *, layer: int, n_heads: int, apart: Bool[Tensor, " document"]
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
