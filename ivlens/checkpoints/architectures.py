"""How is a Hugging Face architecture told to TransformerLens?

One function an architecture turns the checkpoint's configuration into HookedTransformerConfig fields.
TransformerLens' own table goes by the path's name, ignores `head_dim` and `n_inner` and caps some contexts, so
it is not used; its weight converters are. What a converter would drop in silence (biases, scaled rotations) is
refused here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from ivlens.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens import HookedTransformerConfig
    from transformers import PretrainedConfig, PreTrainedModel

Fields = dict[str, Any]


class NotComputedError(ModelError):
    """A configuration asks for what TransformerLens' HookedTransformer does not compute; a bridge may."""


_BY_BRIDGE = "backend='bridge' may compute it"


def hooked_fields(config: PretrainedConfig, architecture: str) -> Fields:
    """The fields of a HookedTransformerConfig that computes what this checkpoint computes.

    Raises:
        ModelError: the configuration asks for something that TransformerLens does not compute.
    """
    translate, _ = ARCHITECTURES[architecture]
    fields = translate(config)
    for name in ("n_layers", "n_heads", "d_head", "d_model", "d_mlp", "n_ctx", "rotary_dim"):
        value = fields.get(name, 1)
        if type(value) is not int or value < 1:
            raise ModelError(f"{name} comes out as {value!r} from config.json; it needs a whole number of at least 1")
    if fields.get("rotary_dim", 1) > fields["d_head"]:
        raise ModelError(
            f"rotary_dim comes out as {fields['rotary_dim']} from config.json, for {fields['d_head']} in all"
        )
    fields |= {"original_architecture": architecture, "d_vocab": config.vocab_size, "init_weights": False}
    from transformer_lens.utilities.activation_functions import SUPPORTED_ACTIVATIONS

    if fields["act_fn"] not in SUPPORTED_ACTIVATIONS:
        raise NotComputedError(
            f"the activation {fields['act_fn']!r} is not supported; "
            f"HookedTransformer computes {', '.join(sorted(SUPPORTED_ACTIVATIONS))}; {_BY_BRIDGE}"
        )
    return fields


def hooked_weights(hf: PreTrainedModel, cfg: HookedTransformerConfig) -> dict[str, Tensor]:
    """The checkpoint's weights under TransformerLens' names, sharing the checkpoint's memory where it can be."""
    from transformer_lens.pretrained import weight_conversions

    _, converter = ARCHITECTURES[str(cfg.original_architecture)]
    embed: Any = hf.get_input_embeddings()
    kept = embed.weight
    if converter == "convert_gemma_weights":  # Multiplies embeddings, which 16 bits would round.
        embed.weight = nn.Parameter(kept.float(), requires_grad=False)
    weights = getattr(weight_conversions, converter)(hf, cfg)
    embed.weight = kept
    return {name: weight.detach() for name, weight in weights.items()}


def _common(c: PretrainedConfig) -> Fields:
    heads = c.num_attention_heads
    return {
        "d_model": c.hidden_size,
        "n_heads": heads,
        "d_head": getattr(c, "head_dim", None) or c.hidden_size // heads,
        "n_layers": c.num_hidden_layers,
        "n_ctx": c.max_position_embeddings,
    }


def _gpt2(c: PretrainedConfig) -> Fields:
    _refuse(c, add_cross_attention=False)
    return _common(c) | {
        "d_mlp": c.n_inner or 4 * c.n_embd,
        "act_fn": c.activation_function,
        "eps": c.layer_norm_epsilon,
        "use_attn_scale": c.scale_attn_weights,
        "scale_attn_by_inverse_layer_idx": c.scale_attn_by_inverse_layer_idx,
        "normalization_type": "LN",
    }


def _gptj(c: PretrainedConfig) -> Fields:
    return _common(c) | {
        "d_mlp": c.n_inner or 4 * c.n_embd,
        "act_fn": c.activation_function,
        "eps": c.layer_norm_epsilon,
        "normalization_type": "LN",
        "parallel_attn_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": c.rotary_dim or c.n_embd // c.n_head,
        "rotary_adjacent_pairs": True,
    }


def _neox(c: PretrainedConfig) -> Fields:
    _refuse(c, attention_bias=True)
    return (
        _common(c)
        | _rotary(c)
        | {
            "d_mlp": c.intermediate_size,
            "act_fn": c.hidden_act,
            "eps": c.layer_norm_eps,
            "normalization_type": "LN",
            "parallel_attn_mlp": c.use_parallel_residual,
        }
    )


def _opt(c: PretrainedConfig) -> Fields:
    _refuse(
        c,
        do_layer_norm_before=True,
        word_embed_proj_dim=c.hidden_size,
        enable_bias=True,
        layer_norm_elementwise_affine=True,
        _remove_final_layer_norm=False,
    )
    return _common(c) | {
        "d_mlp": c.ffn_dim,
        "act_fn": c.activation_function,
        "eps": 1e-5,
        "normalization_type": "LN",
    }


def _gated(c: PretrainedConfig) -> Fields:
    """What Llama, Mistral, Qwen and Phi-3 share: RMSNorm, rotary positions, a gated MLP, grouped queries."""
    return _unturned(c) | _rotary(c)


def _unturned(c: PretrainedConfig) -> Fields:
    return _common(c) | {
        "d_mlp": c.intermediate_size,
        "act_fn": getattr(c, "hidden_activation", None) or c.hidden_act,
        "eps": c.rms_norm_eps,
        "n_key_value_heads": c.num_key_value_heads,
        "normalization_type": "RMS",
        "gated_mlp": True,
        "final_rms": True,
    }


def _llama(c: PretrainedConfig) -> Fields:
    _refuse(c, attention_bias=False, mlp_bias=False)
    return _ungrouped(_gated(c))


def _mistral(c: PretrainedConfig) -> Fields:
    return _gated(c) | _windows(c)


def _qwen3(c: PretrainedConfig) -> Fields:
    _refuse(c, attention_bias=False)
    return _ungrouped(_gated(c)) | _windows(c) | {"use_qk_norm": True}


def _phi3(c: PretrainedConfig) -> Fields:
    return _ungrouped(_gated(c)) | _windows(c)


def _gemma2(c: PretrainedConfig) -> Fields:
    _refuse(c, attention_bias=False, use_bidirectional_attention=None)
    return (
        _gated(c)
        | _windows(c)
        | {
            "attn_scale": c.query_pre_attn_scalar**0.5,
            # 0 switches a cap off in TransformerLens as None does in transformers.
            "attn_scores_soft_cap": c.attn_logit_softcapping or -1.0,
            "output_logits_soft_cap": c.final_logit_softcapping or -1.0,
            "use_normalization_before_and_after": True,
        }
    )


def _gemma3(c: PretrainedConfig) -> Fields:
    _refuse(c, attention_bias=False, use_bidirectional_attention=False)
    _refuse(c, attn_logit_softcapping=None, final_logit_softcapping=None)
    rope: Mapping[str, Any] = c.rope_parameters
    turns = {kind: _turns(c, rope[kind]) for kind in set(c.layer_types) & rope.keys()}
    wide = turns.get("full_attention") or turns["sliding_attention"]
    near = turns.get("sliding_attention", wide)
    if near.get("rotary_scaling_factor", 1.0) != 1.0:
        raise NotComputedError(f"scaled rotations of sliding attention are not supported; {_BY_BRIDGE}")
    return (
        _unturned(c)
        | _windows(c)
        | wide
        | {
            "rotary_base_local": near["rotary_base"],
            "attn_scale": c.query_pre_attn_scalar**0.5,
            "use_normalization_before_and_after": True,
            "use_qk_norm": True,
        }
    )


def _olmo2(c: PretrainedConfig) -> Fields:
    # The norms of queries and of keys are as wide as the residual stream in TransformerLens.
    _refuse(c, attention_bias=False, head_dim=c.hidden_size // c.num_attention_heads)
    return _ungrouped(_gated(c))


def _ungrouped(fields: Fields) -> Fields:
    """These converters want None where every head has its own keys and values."""
    same = fields["n_key_value_heads"] in (None, fields["n_heads"])
    return fields | {"n_key_value_heads": None if same else fields["n_key_value_heads"]}


def _windows(c: PretrainedConfig) -> Fields:
    """Sliding windows: all layers, or those that `layer_types` names."""
    window = getattr(c, "sliding_window", None)
    types = getattr(c, "layer_types", None) or ["sliding_attention"] * c.num_hidden_layers
    unknown = set(types) - {"sliding_attention", "full_attention"}
    if unknown:
        raise NotComputedError(
            f"layers of type {', '.join(sorted(unknown))} are not supported; only full and sliding attention"
        )
    if not window or "sliding_attention" not in types:
        return {}
    attn_types = ["local" if kind == "sliding_attention" else "global" for kind in types]
    return {"use_local_attn": True, "window_size": window, "attn_types": attn_types}


def _rotary(c: PretrainedConfig) -> Fields:
    return _turns(c, c.rope_parameters)


def _turns(c: PretrainedConfig, rope: Mapping[str, Any]) -> Fields:
    """One set of rotations; Gemma 3 has another one where attention slides."""
    kind = rope.get("rope_type", "default")
    d_head = _common(c)["d_head"]
    fields = {
        "positional_embedding_type": "rotary",
        "rotary_adjacent_pairs": False,
        "rotary_base": rope["rope_theta"],
        "rotary_dim": int(d_head * rope.get("partial_rotary_factor", 1.0)),
    }
    if kind == "llama3":
        return fields | {
            "use_NTK_by_parts_rope": True,
            "NTK_original_ctx_len": rope["original_max_position_embeddings"],
            "NTK_by_parts_low_freq_factor": rope["low_freq_factor"],
            "NTK_by_parts_high_freq_factor": rope["high_freq_factor"],
            "NTK_by_parts_factor": rope["factor"],
        }
    if kind == "linear" and c.model_type == "gemma3_text":
        return fields | {"rotary_scaling_factor": rope["factor"]}
    if kind != "default":
        raise NotComputedError(
            f"rotary scaling of type {kind!r} is not supported; only default and llama3 are; {_BY_BRIDGE}"
        )
    return fields


def _refuse(c: PretrainedConfig, **needed: Any) -> None:
    for name, value in needed.items():
        if getattr(c, name, value) != value:
            raise NotComputedError(
                f"{name} = {getattr(c, name)!r} in config.json is not supported; "
                f"HookedTransformer computes this architecture with {value!r} only; {_BY_BRIDGE}"
            )


ARCHITECTURES: dict[str, tuple[Callable[[PretrainedConfig], Fields], str]] = {
    "GPT2LMHeadModel": (_gpt2, "convert_gpt2_weights"),
    "GPTJForCausalLM": (_gptj, "convert_gptj_weights"),
    "GPTNeoXForCausalLM": (_neox, "convert_neox_weights"),
    "Gemma2ForCausalLM": (_gemma2, "convert_gemma_weights"),
    "Gemma3ForCausalLM": (_gemma3, "convert_gemma_weights"),
    "LlamaForCausalLM": (_llama, "convert_llama_weights"),
    "MistralForCausalLM": (_mistral, "convert_mistral_weights"),
    "OPTForCausalLM": (_opt, "convert_opt_weights"),
    # The converter of OLMo 2 itself does not know grouped queries; that of OLMo 3 reads the same weights.
    "Olmo2ForCausalLM": (_olmo2, "convert_olmo3_weights"),
    "Phi3ForCausalLM": (_phi3, "convert_phi3_weights"),
    "Qwen2ForCausalLM": (_mistral, "convert_qwen2_weights"),
    "Qwen3ForCausalLM": (_qwen3, "convert_qwen3_weights"),
}
"""Fields, and the name of TransformerLens' weight converter."""
