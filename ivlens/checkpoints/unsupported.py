"""What keeps a model of an architecture that ivlens has no translation of out, as far as its config.json tells?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Keep a model out of HookedTransformer alone.
EXPERTS, UNTRANSLATED = "its MLPs are mixtures of experts", "ivlens has no translation of its configuration"


def why_not(config: Mapping[str, Any], architecture: str) -> str:
    """What keeps a model of an unknown architecture out, as far as its config.json tells."""
    experts = ("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok")
    if config.get("is_encoder_decoder"):
        return "it has an encoder and a decoder"
    if "vision_config" in config or "audio_config" in config:
        return "it reads more than text"
    if not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return "it is no causal language model"
    if any(config.get(name) for name in experts):
        return EXPERTS
    if not any(config.get(name) for name in ("num_attention_heads", "n_head", "num_heads")):
        return "it has no attention heads"
    return UNTRANSLATED
