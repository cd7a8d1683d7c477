"""Tiny random models: Hugging Face checkpoints on disk, and HookedTransformers without one.

Every bias and every norm weight is random, and weights are large, so that a bias counted twice or a head left
out moves the output visibly.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM

from ivlens.checkpoints.checkpoint import quiet_transformers
from ivlens.models.adapter import Adapter, Factors

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

FAMILIES = (
    "llama",
    "llama-gqa",
    "llama3",
    "gpt2",
    "gptj",
    "neox",
    "qwen2",
    "qwen3",
    "mistral",
    "phi3",
    "opt",
    "gemma2",
    "gemma3",
    "olmo2",
)
_QUICK = ("llama-gqa", "gpt2", "gemma2", "phi3")
EACH_FAMILY = [pytest.param(name, marks=() if name in _QUICK else pytest.mark.slow, id=name) for name in FAMILIES]
"""For tests of every family, of which `make quick` runs a few."""
KINDS = ("gpt2", "llama", "neox", "alibi", "local", "softcap", "qknorm")
STD = 0.3
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
WORDS = (*SPECIAL, "Q", "A", ":", "\n", "->", ".", ",", *(f"w{i}" for i in range(109)))

_SIZES = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "vocab_size": len(WORDS)}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GATED = {"intermediate_size": 48, "max_position_embeddings": 128, "num_key_value_heads": 2}
_FIELDS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_GATED, "num_key_value_heads": 4, "rms_norm_eps": 1e-5},
    "llama-gqa": {"model_type": "llama", **_GATED, "head_dim": 6, "rope_theta": 500.0},
    "llama3": {
        "model_type": "llama",
        **_GATED,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 100.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "gpt2": {"model_type": "gpt2", "n_inner": 48, "n_positions": 128},
    "gptj": {"model_type": "gptj", "n_inner": 48, "n_positions": 128, "rotary_dim": 4},
    "neox": {
        "model_type": "gpt_neox",
        "intermediate_size": 48,
        "max_position_embeddings": 128,
        "rotary_pct": 0.5,
    },
    "qwen2": {"model_type": "qwen2", **_GATED},
    "qwen3": {"model_type": "qwen3", **_GATED, "head_dim": 10},
    "mistral": {"model_type": "mistral", **_GATED, "sliding_window": 8},
    "phi3": {"model_type": "phi3", **_GATED, "sliding_window": 8},
    "opt": {"model_type": "opt", "ffn_dim": 48, "max_position_embeddings": 128, "word_embed_proj_dim": 32},
    "gemma2": {
        "model_type": "gemma2",
        **_GATED,
        "head_dim": 6,
        "sliding_window": 8,
        "query_pre_attn_scalar": 10,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        **_GATED,
        "head_dim": 6,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "query_pre_attn_scalar": 10,
    },
    "olmo2": {"model_type": "olmo2", **_GATED},
}


def random_config(family: str, **overrides: Any) -> Any:
    """A small configuration; `overrides` are its fields, or all of those that a family has that is not listed here."""
    fields = {**_SIZES, **_IDS, **_FIELDS.get(family, {}), **overrides}
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def build(family: str, folder: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """Write config.json, model.safetensors and a word-level tokenizer; `overrides` are fields of config.json.

    Words are split at spaces and never joined: `w0` to `w108`, `Q A : -> . ,`. The tokenizer adds `<bos>` by
    itself for Llama, Mistral, Gemma and OPT, as theirs do; Qwen has no BOS token.
    """
    config = random_config(family, **overrides)
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        randomise(model)
    with quiet_transformers():
        model.save_pretrained(folder)
    write_tokenizer(folder, family)
    return folder


def randomise(model: torch.nn.Module) -> None:
    """Random weights of standard deviation 0.3, random biases, and norms around their neutral value."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            neutral = float(weight.ndim == 1 and bool((weight == 1).all()))
            weight.normal_(neutral, 0.1 if "ln" in name or "norm" in name else STD)


def write_tokenizer(folder: Path, family: str = "llama") -> None:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer.add_special_tokens(list(SPECIAL))
    if family.startswith("qwen"):
        # transformers replaces Qwen's splitting by its own, which only whole added words survive.
        tokenizer.add_tokens([AddedToken(word, normalized=False) for word in WORDS])
    if family.startswith(("llama", "mistral", "gemma", "opt")):
        tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", None, [("<bos>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    if not family.startswith("qwen"):
        special["bos_token"] = "<bos>"
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_byte_tokenizer(folder: Path) -> None:
    """A tokenizer that spells any text in bytes; put it over the one of a `build` with a `vocab_size` of 257."""
    letters = ["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<eos>", "eos_token": "<eos>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


_ROTARY = {
    "positional_embedding_type": "rotary",
    "normalization_type": "RMS",
    "gated_mlp": True,
    "act_fn": "silu",
}
_KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {"act_fn": "gelu_new"},
    "llama": {**_ROTARY, "n_key_value_heads": 2},
    "neox": {
        "act_fn": "gelu",
        "positional_embedding_type": "rotary",
        "rotary_dim": 4,
        "parallel_attn_mlp": True,
    },
    "alibi": {"act_fn": "gelu_fast", "positional_embedding_type": "alibi", "post_embedding_ln": True},
    "local": {
        **_ROTARY,
        "use_local_attn": True,
        "window_size": 5,
        "attn_types": ["local", "global"] * 8,
    },
    "softcap": {
        **_ROTARY,
        "n_key_value_heads": 2,
        "attn_scores_soft_cap": 2.0,
        "output_logits_soft_cap": 3.0,
        "use_normalization_before_and_after": True,
    },
    "qknorm": {**_ROTARY, "use_qk_norm": True},
}


def random_hooked(kind: str, dtype: torch.dtype = torch.float64, seed: int = 0, **overrides: Any) -> HookedTransformer:
    """A HookedTransformer without a checkpoint and without a tokenizer; `overrides` are fields of its cfg."""
    # TransformerLens 4 has no such class: tests of bridges import this file there.
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    sizes = {
        "n_layers": 3,
        "n_heads": 4,
        "d_model": 32,
        "d_head": 8,
        "d_mlp": 48,
        "n_ctx": 128,
        "d_vocab": 120,
    }
    fields = {**sizes, "normalization_type": "LN", "init_weights": False, **_KINDS[kind], **overrides}
    cfg = HookedTransformerConfig(**fields, model_name=f"random-{kind}", dtype=dtype, device="cpu")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*HookedTransformer.*", DeprecationWarning)
        model = HookedTransformer(cfg)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, weight in model.named_parameters():
            norm = name.rsplit(".", 2)[-2].startswith(("ln", "q_norm", "k_norm"))
            centre = float(norm and name.endswith(".w"))
            weight.data.normal_(centre, 0.1 if norm else STD)
    return model.eval().requires_grad_(False)


def filled(adapter: Adapter, size: float, *, seed: int) -> Adapter:
    """A fresh adapter with a random `B` of that size, so that it changes every weight visibly."""
    generator = torch.Generator().manual_seed(seed)
    factors = {
        name: Factors(a, torch.randn(b.shape, generator=generator, dtype=b.dtype) * size)
        for name, (a, b) in adapter.factors.items()
    }
    return Adapter(factors=factors, scale=adapter.scale)
