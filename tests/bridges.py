"""Tiny random bridges of many architectures: what transformers and TransformerLens have, HookedTransformer or not."""

from __future__ import annotations

import json
import warnings
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import pytest
import torch
from checkpoints import FAMILIES, random_config, randomise, write_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from ivlens.checkpoints.checkpoint import quiet_transformers

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_GATED = {"intermediate_size": 48, "max_position_embeddings": 128, "num_key_value_heads": 2}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    rope = {"rope_type": kind, "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 32, **more}
    return {"model_type": "llama", **_GATED, "rope_parameters": rope}


_FIELDS: dict[str, dict[str, Any]] = {
    "gemma1": {"model_type": "gemma", **_GATED, "head_dim": 6},
    "olmo1": {"model_type": "olmo", **_GATED, "clip_qkv": 1.0},
    "olmo3": {"model_type": "olmo3", **_GATED, **_WINDOWS},
    "phi2": {"model_type": "phi", **_GATED, "num_key_value_heads": 4},
    "stablelm": {"model_type": "stablelm", **_GATED},
    "granite": {
        "model_type": "granite",
        **_GATED,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.4,
    },
    "mixtral": {"model_type": "mixtral", **_GATED, "num_local_experts": 4, "sliding_window": None},
    "qwen3-moe": {"model_type": "qwen3_moe", **_GATED, **_EXPERTS, "head_dim": 10},
    "gpt-oss": {
        "model_type": "gpt_oss",
        **_GATED,
        **_WINDOWS,
        "head_dim": 8,
        "num_local_experts": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    },
    "cohere": {"model_type": "cohere", **_GATED, "logit_scale": 0.25},
    "smollm3": {"model_type": "smollm3", **_GATED, "no_rope_layers": [1, 0, 1]},
    "starcoder2": {"model_type": "starcoder2", **_GATED, "sliding_window": 8},
    "glm4": {"model_type": "glm4", **_GATED, "head_dim": 8},
    "llama-yarn": _rope("yarn"),
    "llama-linear": _rope("linear"),
    "bloom": {"model_type": "bloom"},
    "falcon-alibi": {
        "model_type": "falcon",
        "alibi": True,
        "bias": True,
        "parallel_attn": False,
        "new_decoder_architecture": False,
    },
    "gpt-bigcode": {"model_type": "gpt_bigcode", "n_positions": 128, "n_inner": 48},
    "gpt-neo": {
        "model_type": "gpt_neo",
        "num_layers": 3,
        "attention_types": [[["global", "local", "global"], 1]],
        "window_size": 8,
        "max_position_embeddings": 128,
        "intermediate_size": 48,
    },
    "mpt": {"model_type": "mpt", "max_seq_len": 128, "expansion_ratio": 2},
}
MORE = tuple(_FIELDS)
ARCHITECTURES = (*FAMILIES, *MORE)
_QUICK = ("llama-gqa", "gpt2", "gemma3", "falcon-alibi", "gpt-neo")
EACH_ARCHITECTURE = [
    pytest.param(name, marks=() if name in _QUICK else pytest.mark.slow, id=name) for name in ARCHITECTURES
]
"""For tests of every architecture, of which `make quick` runs a few."""
# Of which no operation is done in float32 when the weights are float64.
IN_FLOAT64 = ("gpt2", "neox", "gpt-bigcode")
# Which compute in float32 at most: kernels of experts; masks that float32 cannot hold.
NOT_IN_FLOAT64 = ("mixtral", "qwen3-moe", "gpt-oss", "mpt")
# Whose attention counts columns by itself, so that rows are sequences of their own.
SIDE_BY_SIDE = ("gpt-neo", "mpt")


def random_bridge(name: str, dtype: torch.dtype = torch.float32, **overrides: Any) -> TransformerBridge:
    """A bridge to a random model of three layers of width 32 and four heads; `overrides` are fields of its config."""
    config = random_config(name, **{**_FIELDS.get(name, {}), **overrides})
    with quiet_transformers(), torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        randomise(model)
    return bridge_to(model.to(dtype).eval())


def bridge_to(model: Any) -> TransformerBridge:
    """A bridge to a model of transformers that was made without a folder."""
    from transformer_lens.model_bridge import TransformerBridge

    model.config.architectures = [type(model).__name__]
    dtype = next(model.parameters()).dtype
    with warnings.catch_warnings():
        # Of weights that TransformerLens would know how to process, and of rotations it does not name.
        warnings.simplefilter("ignore")
        return TransformerBridge.boot_transformers(
            "tiny", hf_model=model, tokenizer=_tokenizer(), dtype=dtype, device="cpu"
        )


@cache
def _tokenizer() -> Any:
    folder = Path(mkdtemp(prefix="words-"))
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return AutoTokenizer.from_pretrained(folder)
