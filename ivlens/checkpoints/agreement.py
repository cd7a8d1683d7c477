"""Do config.json, weights and tokenizer of a checkpoint describe one model, as far as they can tell?

What transformers would take without a word and compute worse with is refused, or said where it may be right.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ivlens.errors import ModelError, ModelWarning, shorten

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

MOST_PARTS = 2**16
"""Layers, heads, experts, classes, and dimensions of a head: transformers makes something of each."""
# As configurations and GGUF files call them.
_COUNT = re.compile(r"(num|n)_\w*(layer|block|head|expert|label)\w*|(block|head|expert)_count\w*|head_dim")
_SHARE = ("partial_rotary_factor", "rotary_pct")
# What weights do not show: by any of its names.
_DECISIVE = (
    ("hidden_act", "hidden_activation", "activation_function"),
    ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"),
    ("rope_theta", "rotary_emb_base"),
    ("max_position_embeddings", "n_positions"),
)
_ROTATIONS = "rotary_emb.inv_freq"
# Buffers that older versions of transformers wrote beside the weights of GPT-2, GPT-J, GPT-Neo, Pythia and CodeGen.
_MASK = re.compile(r"\.(attn|attention)\.(bias|masked_bias|causal_mask)$")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")


def refuse_counts(config: Mapping[str, Any], where: str) -> None:
    """Raise a ModelError where there would be more of something than any model has, before transformers makes them."""
    for key, value in _entries(config):
        if key in _SHARE and value is not None and not (type(value) in (int, float) and 0 < value <= 1):
            raise ModelError(f"{where} says {key} = {value!r}; it must be a number above 0 and at most 1")
        if type(value) is int and value > MOST_PARTS and _COUNT.fullmatch(key):
            raise ModelError(
                f"{where} says {key} = {shorten(str(value), 40)}; at most {MOST_PARTS:,} are possible; copy it again"
            )


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values, also of objects within."""
    waiting = [config]
    while waiting:
        for key, value in waiting.pop().items():
            yield str(key), value
            if isinstance(value, dict):
                waiting.append(value)


def say_defaults(found: Mapping[str, Any], config: PretrainedConfig, where: str) -> None:
    """Warn of what decides how good a model is, that config.json leaves to transformers."""
    known = {key for key, _ in _entries(found)}
    used = {**vars(config), **(getattr(config, "rope_parameters", None) or {})}
    taken = {
        name: used[name]
        for names in _DECISIVE
        for name in names
        if used.get(name) is not None and known.isdisjoint(names)
    }
    if taken:
        listed = ", ".join(f"{name} = {value!r}" for name, value in taken.items())
        warnings.warn(
            f"{where} does not say {' and '.join(taken)}: transformers' default is taken ({listed}). A model that was "
            "trained with another is worse without an error; add what it was trained with",
            ModelWarning,
            stacklevel=2,
        )


def without_masks(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without the causal masks, and the numbers that fill them, that stand among old ones."""
    return {name: one for name, one in held.items() if not (one.dim() in (0, 4) and _MASK.search(name))}


def refuse_contradictions(held: Mapping[str, Tensor], config: PretrainedConfig, where: Path) -> None:
    """Raise a ModelError for weights that are no fractions, or an output that the configuration says is the input."""
    for name, weight in held.items():
        if name.endswith((".weight", ".bias")) and not weight.is_floating_point():
            raise ModelError(
                f"{where} holds {name} as {str(weight.dtype).removeprefix('torch.')}, which is no type of weights; "
                "save it in float32, bfloat16 or float16"
            )
    if not getattr(config, "tie_word_embeddings", False):
        return
    outputs = held.get("lm_head.weight", held.get("embed_out.weight"))
    inputs = next((weight for name, weight in held.items() if name.endswith(_EMBEDDINGS)), None)
    if outputs is not None and inputs is not None and not torch.equal(outputs, inputs):
        raise ModelError(
            f"config.json in {where} says tie_word_embeddings = true, but the weights have an lm_head of their own; "
            "set it to false, or give weights without one"
        )


def refuse_other_rotations(held: Mapping[str, Tensor], model: PreTrainedModel, where: Path) -> None:
    """Raise a ModelError where old weights, which hold their rotary frequencies, hold others than are computed."""
    computed = getattr(getattr(model.base_model, "rotary_emb", None), "inv_freq", None)
    for name, stored in held.items():
        if computed is not None and (
            stored.shape != computed.shape or not torch.allclose(stored.float(), computed.float(), rtol=0.02)
        ):
            raise ModelError(
                f"{name} in {where} has other rotary frequencies than config.json asks for; set rope_theta (and "
                "rope_scaling) to what the model was trained with"
            )


def rotations(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rotary frequencies among weights."""
    return {name: weight.clone() for name, weight in held.items() if name.endswith(_ROTATIONS)}


def say_other_bos(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, where: Path) -> None:
    """Warn where prompts begin with another token than the configuration says."""
    own, told = tokenizer.bos_token_id, getattr(config, "bos_token_id", None)
    if type(told) is int and own is not None and own != told and tokenizer("")["input_ids"][:1] == [own]:
        warnings.warn(
            f"the tokenizer in {where} begins prompts with token {own} ({tokenizer.bos_token!r}), but config.json says "
            f"bos_token_id = {told}; see which of them the model was trained with",
            ModelWarning,
            stacklevel=2,
        )


def refuse_misfits(found: Mapping[str, Any], folder: Path) -> None:
    """Raise a ModelError where transformers found weights that are lacking, or that have no place."""
    shapes = sorted(f"{name} as {tuple(a)}, not {tuple(b)}" for name, a, b in found["mismatched_keys"])
    for fault, names in (
        ("lack", sorted(found["missing_keys"])),
        ("have", shapes),
        ("have what config.json has no place for,", sorted(found["unexpected_keys"])),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(
                f"the weights in {folder} {fault} {names[0]}{more}; config.json and weights are not of one model"
            )
