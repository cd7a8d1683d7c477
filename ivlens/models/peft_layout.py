"""Which linear layer of a Hugging Face model holds which weight of a HookedTransformer?

PEFT names and adapts linear layers. Some of them hold several weights one after the other (GPT-2's `c_attn`,
Phi-3's `qkv_proj` and `gate_up_proj`) or head by head (NeoX' `query_key_value`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor, nn

from ivlens.errors import IvlensError
from ivlens.models import hooked, weights
from ivlens.models.origin import is_bridge
from ivlens.models.weights import Target

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer
    from transformer_lens.model_bridge import TransformerBridge


class Linear(NamedTuple):
    """One linear layer of a Hugging Face model."""

    path: str
    """As Hugging Face names it, such as `model.layers.0.self_attn.q_proj`."""
    layer: int
    weights: tuple[str, ...]
    """Names of the weights that it holds, such as `blocks.0.attn.W_Q`, in the order of its outputs."""
    by_head: bool
    """Do the outputs go head by head, and only then weight by weight?"""


class _Layout(NamedTuple):
    blocks: str
    linears: Mapping[str, tuple[Target, ...]]
    by_head: str = ""


_GATED = _Layout(
    "model.layers",
    {
        "self_attn.q_proj": ("W_Q",),
        "self_attn.k_proj": ("W_K",),
        "self_attn.v_proj": ("W_V",),
        "self_attn.o_proj": ("W_O",),
        "mlp.gate_proj": ("W_gate",),
        "mlp.up_proj": ("W_in",),
        "mlp.down_proj": ("W_out",),
    },
)
_LAYOUTS = {
    "GPT2LMHeadModel": _Layout(
        "transformer.h",
        {
            "attn.c_attn": ("W_Q", "W_K", "W_V"),
            "attn.c_proj": ("W_O",),
            "mlp.c_fc": ("W_in",),
            "mlp.c_proj": ("W_out",),
        },
    ),
    "GPTJForCausalLM": _Layout(
        "transformer.h",
        {
            "attn.q_proj": ("W_Q",),
            "attn.k_proj": ("W_K",),
            "attn.v_proj": ("W_V",),
            "attn.out_proj": ("W_O",),
            "mlp.fc_in": ("W_in",),
            "mlp.fc_out": ("W_out",),
        },
    ),
    "GPTNeoXForCausalLM": _Layout(
        "gpt_neox.layers",
        {
            "attention.query_key_value": ("W_Q", "W_K", "W_V"),
            "attention.dense": ("W_O",),
            "mlp.dense_h_to_4h": ("W_in",),
            "mlp.dense_4h_to_h": ("W_out",),
        },
        by_head="attention.query_key_value",
    ),
    "OPTForCausalLM": _Layout(
        "model.decoder.layers",
        {
            "self_attn.q_proj": ("W_Q",),
            "self_attn.k_proj": ("W_K",),
            "self_attn.v_proj": ("W_V",),
            "self_attn.out_proj": ("W_O",),
            "fc1": ("W_in",),
            "fc2": ("W_out",),
        },
    ),
    "Phi3ForCausalLM": _Layout(
        "model.layers",
        {
            "self_attn.qkv_proj": ("W_Q", "W_K", "W_V"),
            "self_attn.o_proj": ("W_O",),
            "mlp.gate_up_proj": ("W_gate", "W_in"),
            "mlp.down_proj": ("W_out",),
        },
    ),
} | dict.fromkeys(
    (
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Olmo2ForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
    ),
    _GATED,
)


def is_known(model: HookedTransformer) -> bool:
    """Has PEFT names for this model's weights, as far as ivlens knows?"""
    known = _architecture(model) in _LAYOUTS or (is_bridge(model) and not _has_fused(model))
    return known and not _is_folded(model)


def _architecture(model: HookedTransformer) -> str:
    cfg: Any = model.cfg
    return str(cfg.architecture if is_bridge(model) else cfg.original_architecture)


def _is_folded(model: HookedTransformer) -> bool:
    if is_bridge(model):
        return model.compatibility_mode
    return str(model.cfg.normalization_type).endswith("Pre")


def _has_fused(bridge: TransformerBridge) -> bool:
    """Is what the bridge calls queries, keys, values or gates a part of a larger layer?"""
    parts = [part for block in bridge.blocks for part in (block.attn, getattr(block, "mlp", nn.Module()))]
    return any(hasattr(part, "qkv") or type(part).__name__.startswith("Joint") for part in parts)


def _linears_of_bridge(bridge: TransformerBridge) -> list[Linear]:
    """Linear layers by the names that the bridge knows them by, where none of them is fused."""
    found = []
    for layer, block in enumerate(bridge.blocks):
        for target in weights.TARGETS:
            name = weights.weight_name(layer, target)
            with suppress(IvlensError):
                own = weights.component(bridge, name)
                part = getattr(block, name.split(".")[2])
                found.append(Linear(f"{block.name}.{part.name}.{own.name}", layer, (name,), by_head=False))
    return found


def linears(model: HookedTransformer) -> list[Linear]:
    """The linear layers of all blocks, in the model's order.

    Raises:
        IvlensError: an architecture without a layout, or weights that norms were folded into, on which the update
            of a checkpoint's weight would be another one.
    """
    architecture, name = _architecture(model), hooked.model_name(model)
    if is_bridge(model) and architecture not in _LAYOUTS and is_known(model):
        return _linears_of_bridge(model)
    if architecture not in _LAYOUTS:
        raise IvlensError(
            f"{name} is a {architecture}, of which ivlens does not know PEFT's names; it knows {', '.join(_LAYOUTS)}"
        )
    if _is_folded(model):
        raise IvlensError(
            f"the norms of {name} are folded into its weights, which a PEFT adapter does not fit; "
            "load the model with ivlens.load, or from_pretrained_no_processing"
        )
    blocks, parts, by_head = _LAYOUTS[architecture]
    return [
        Linear(
            f"{blocks}.{layer}.{part}",
            layer,
            tuple(weights.weight_name(layer, target) for target in targets),
            part == by_head,
        )
        for layer in range(model.cfg.n_layers)
        for part, targets in parts.items()
    ]


def shape(model: HookedTransformer, linear: Linear) -> tuple[int, int]:
    """Inputs and outputs of a linear layer."""
    shapes = [weights.matrix_shape(model, name) for name in linear.weights]
    return shapes[0][0], sum(d_out for _, d_out in shapes)


def outputs(model: HookedTransformer, linear: Linear) -> list[Int[Tensor, " d_out"]]:
    """Which outputs of a linear layer are those of each of its weights."""
    sizes = [weights.matrix_shape(model, name)[1] for name in linear.weights]
    if not linear.by_head:
        return list(torch.arange(sum(sizes)).split(sizes))
    by_head = rearrange(
        torch.arange(sum(sizes)),
        "(head weight d_head) -> weight (head d_head)",
        weight=len(sizes),
        head=model.cfg.n_heads,
    )
    return list(by_head)


def is_transposed(model: HookedTransformer) -> bool:
    """Does the checkpoint keep weights inputs first (PEFT's `fan_in_fan_out`)?"""
    return _architecture(model) == "GPT2LMHeadModel"
