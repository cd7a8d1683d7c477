"""Models that are not causal, or not made of attention heads, are refused by name with the reason, however given.

`make test-tl4` runs this file with TransformerLens 4.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from bridges import bridge_to
from checkpoints import random_hooked

import ivlens
from ivlens.checkpoints.checkpoint import quiet_transformers
from ivlens.errors import ModelError

HAS_HOOKED = int(version("transformer-lens").split(".")[0]) < 4
SIZES = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
MAMBA = {"mamba_d_state": 4, "use_mamba_kernels": False}
LINEAR = {f"linear_{what}": 2 for what in ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim")}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
BERT = {**SIZES, "num_attention_heads": 4, "intermediate_size": 48}

NO_HEADS = "its blocks are state spaces, recurrences or convolutions without attention heads"
HYBRID = "state-space, recurrent or convolution blocks stand beside its attention heads, or in place of some"
TWO_SIDES = "it has an encoder and a decoder"
KINDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "MambaForCausalLM": ("MambaConfig", {**SIZES, "state_size": 4}, NO_HEADS),
    "Mamba2ForCausalLM": (
        "Mamba2Config",
        {**SIZES, "state_size": 4, "num_heads": 4, "head_dim": 16, "n_groups": 1},
        NO_HEADS,
    ),
    "FalconMambaForCausalLM": ("FalconMambaConfig", {**SIZES, "state_size": 4}, NO_HEADS),
    "RwkvForCausalLM": ("RwkvConfig", {**SIZES, "attention_hidden_size": 32, "intermediate_size": 48}, NO_HEADS),
    "xLSTMForCausalLM": ("xLSTMConfig", {**SIZES, "num_heads": 4}, NO_HEADS),
    "JambaForCausalLM": (
        "JambaConfig",
        {**SIZES, **HEADS, **MAMBA, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2},
        HYBRID,
    ),
    "ZambaForCausalLM": (
        "ZambaConfig",
        {**SIZES, **HEADS, **MAMBA, "num_hidden_layers": 12, "n_mamba_heads": 2},
        HYBRID,
    ),
    "BambaForCausalLM": (
        "BambaConfig",
        {**SIZES, **HEADS, "attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 4},
        HYBRID,
    ),
    "RecurrentGemmaForCausalLM": ("RecurrentGemmaConfig", {**SIZES, **HEADS, "lru_width": 32}, HYBRID),
    "Lfm2ForCausalLM": (
        "Lfm2Config",
        {**SIZES, **HEADS, "layer_types": ["conv", "full_attention", "conv"]},
        HYBRID,
    ),
    "Qwen3NextForCausalLM": (
        "Qwen3NextConfig",
        {
            **SIZES,
            **HEADS,
            **LINEAR,
            **EXPERTS,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
        HYBRID,
    ),
    "FalconH1ForCausalLM": (
        "FalconH1Config",
        {**SIZES, **HEADS, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_state": 8, "mamba_d_head": 8},
        HYBRID,
    ),
    "T5ForConditionalGeneration": (
        "T5Config",
        {"vocab_size": 120, "d_model": 32, "num_layers": 2, "num_heads": 4, "d_kv": 8, "d_ff": 48},
        TWO_SIDES,
    ),
    "BertForMaskedLM": ("BertConfig", BERT, "it is no causal language model"),
    "BertLMHeadModel": ("BertConfig", BERT, "it reads in both directions"),
}
BUILT = ("MambaForCausalLM", "Mamba2ForCausalLM", "Lfm2ForCausalLM", "T5ForConditionalGeneration", "BertLMHeadModel")
"""Of these TransformerLens makes a bridge, which can be handed over."""


def tiny(architecture: str) -> Any:
    config, fields, _ = KINDS[architecture]
    with quiet_transformers(), torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(transformers, architecture)(getattr(transformers, config)(**fields)).eval()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Of kernels that are not installed.
@pytest.mark.parametrize("backend", ["hooked", "bridge"])
@pytest.mark.parametrize("architecture", KINDS)
def test_a_folder_of_another_kind_of_model_is_refused(architecture: str, backend: str, tmp_path: Path) -> None:
    if backend == "hooked" and not HAS_HOOKED:
        backend = "auto"
    tiny(architecture).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"is a {architecture}, which is not supported: {KINDS[architecture][2]}; ivl"):
        ivlens.load(tmp_path, backend=backend)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", BUILT)
def test_a_bridge_to_another_kind_of_model_is_refused(architecture: str, word_task: ivlens.Task) -> None:
    reason = {"T5ForConditionalGeneration": "an encoder and a decoder", "BertLMHeadModel": "bidirectional|both directi"}
    with quiet_transformers():
        bridge = bridge_to(tiny(architecture))
    for use in (ivlens.load, lambda model: ivlens.indirect_effects(model, word_task)):
        with pytest.raises(ModelError, match=f"tiny.*({reason.get(architecture, 'made of attention heads')})"):
            use(bridge)


@pytest.mark.skipif(not HAS_HOOKED, reason="TransformerLens 4 has no HookedTransformer")
def test_a_hooked_transformer_that_is_not_causal_is_refused(word_task: ivlens.Task) -> None:
    model = random_hooked("gpt2", attention_dir="bidirectional")
    for use in (ivlens.load, lambda model: ivlens.audit(model, word_task)):
        with pytest.raises(ModelError, match="has bidirectional attention; ivlens needs a causal model"):
            use(model)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("HookedEncoder", "reads in both directions"), ("HookedEncoderDecoder", "has an encoder and a decoder")],
)
def test_other_models_of_transformerlens_are_refused(kind: str, reason: str) -> None:
    other: Any = type(kind, (SimpleNamespace,), {})()
    with pytest.raises(ModelError, match=f"a {kind} {reason}; ivlens needs a causal language model"):
        ivlens.load(other)
