"""What keeps a model of an architecture that ivlens has no translation of out, as far as its config.json tells?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Keep a model out of HookedTransformer alone.
EXPERTS, UNTRANSLATED = "its MLPs are mixtures of experts", "ivlens has no translation of its configuration"


_NO_HEADS = "its blocks are state spaces, recurrences or convolutions without attention heads"
_HYBRID = "state-space, recurrent or convolution blocks stand beside its attention heads, or in place of some"
# How many heads there are, as MPT and XGLM, too, have it.
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads", "attention_heads")
# How fields of such blocks begin, and kinds of models that have none of these.
_STATES = ("mamba_", "ssm_", "state_size", "conv_kernel", "conv_L_", "lru_", "linear_conv_", "time_mix_")
_RECURRENT = ("rwkv", "xlstm")


def why_not(config: Mapping[str, Any], architecture: str) -> str:
    """What keeps a model of an unknown architecture out, as far as its config.json tells."""
    experts = ("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok")
    has_heads = any(config.get(name) for name in _HEADS)
    if config.get("is_encoder_decoder"):
        return "it has an encoder and a decoder"
    if "vision_config" in config or "audio_config" in config:
        return "it reads more than text"
    if not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return "it is no causal language model"
    # Encoders tell apart two kinds of tokens, and may be told to be decoders.
    if config.get("use_bidirectional_attention") is True or (
        "type_vocab_size" in config and not config.get("is_decoder")
    ):
        return "it reads in both directions"
    if _has_states(config):
        return _HYBRID if config.get("num_attention_heads") else _NO_HEADS
    if any(config.get(name) for name in experts):
        return EXPERTS
    return UNTRANSLATED if has_heads else "it has no attention heads"


def _has_states(config: Mapping[str, Any]) -> bool:
    """Whether something else than attention carries information from token to token, in some of the blocks."""
    if str(config.get("model_type")).startswith(_RECURRENT) or any(name.startswith(_STATES) for name in config):
        return True
    kinds = [*map(str, config.get("layer_types") or ()), *map(str, config.get("block_types") or ())]
    return any("attention" not in kind or "linear" in kind for kind in kinds)
