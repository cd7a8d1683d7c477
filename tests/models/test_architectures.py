"""Every architecture, through everything; and a sentence for every model that cannot be had."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import architectures
import pytest
import rounding
import torch
from bridges import ARCHITECTURES, IN_FLOAT64
from checkpoints import FAMILIES, build
from conftest import random_tokens
from transformer_lens import HookedTransformer
from transformers import AutoModelForCausalLM

import ivlens
import ivlens.models.hooked
from ivlens.checkpoints.architectures import ARCHITECTURES as TRANSLATED
from ivlens.checkpoints.checkpoint import quiet_transformers
from ivlens.errors import ModelError
from ivlens.patching.activations import last_z, path_to_residual
from ivlens.shapes import Head
from ivlens.vectors.head_writing import write_vector

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
]

RECORD = json.loads(architectures.RECORD.read_text(encoding="utf-8"))
DTYPES = {"load": torch.float32, "sweep": torch.float64, "steer": torch.float64, "lora": torch.float32}


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_says_what_the_code_gives(family: str, tmp_path: Path) -> None:
    found, written = architectures.measure(family, tmp_path), RECORD[family]
    for name, dtype in DTYPES.items():
        # Three layers of width 32 on 60 tokens (see `rounding.chain`), and logits up to about 10.
        near = rounding.bound(1200, size=10.0, dtype=dtype)
        assert found[name] <= near and written[name] <= near, name
    assert [found[name] for name in ("audit", "compare")] == [written["audit"], written["compare"]] == [True, True]


@pytest.mark.long
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_the_table_says_what_the_code_gives_on_a_bridge(family: str) -> None:
    found, written = architectures.measure_bridge(family), RECORD[family]
    near = 1e-9 if family in IN_FLOAT64 else 2e-5
    assert found["bridge"] <= near and written["bridge"] <= near
    assert found["rows"] == written["rows"]


def test_the_page_of_models_has_the_table_of_all_architectures() -> None:
    page = architectures.PAGE.read_text(encoding="utf-8")
    shown = page.partition(architectures.START)[2].partition(architectures.END)[0]
    assert list(RECORD) == list(ARCHITECTURES) == list(architectures.NAMES)
    assert shown == architectures.table(RECORD)


def attention_out(model: HookedTransformer, tokens: torch.Tensor) -> list[torch.Tensor]:
    """What attention adds to the residual stream at the last token, layer by layer."""
    kept: list[torch.Tensor] = []
    hooks = [
        (f"blocks.{layer}.hook_attn_out", lambda out, hook: kept.append(out[0, -1].clone()))
        for layer in range(model.cfg.n_layers)
    ]
    model.run_with_hooks(tokens, fwd_hooks=hooks)
    return kept


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2"])
def test_what_all_heads_write_on_one_prompt_is_what_attention_adds_to_the_stream(family: str, tmp_path: Path) -> None:
    model = ivlens.load(build(family, tmp_path / "tiny"), dtype="float64")
    tokens = random_tokens(n=1)
    z = last_z(model, tokens)[0]
    for layer, added in enumerate(attention_out(model, tokens.prompts)):
        heads = [Head(layer, head) for head in range(model.cfg.n_heads)]
        torch.testing.assert_close(write_vector(model, z, heads), added, rtol=0, atol=1e-12)
    without = z[2, 1] @ model.W_O[2, 1]
    passed_on = torch.allclose(z[2, 1] @ path_to_residual(model, Head(2, 1), z), without)
    assert passed_on == (family == "llama"), "the norm on the way must be there, or the test says nothing"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma2", "olmo2"])
def test_behind_a_norm_the_vector_points_where_heads_write_on_average(family: str, tmp_path: Path) -> None:
    model = ivlens.load(build(family, tmp_path / "tiny"), dtype="float64")
    prompts = [random_tokens(n=1, seed=seed) for seed in range(20)]
    z = torch.cat([last_z(model, tokens) for tokens in prompts])
    heads = [Head(1, 0), Head(1, 3)]
    alone = torch.stack([write_vector(model, one, heads) for one in z]).mean(0)
    assert torch.cosine_similarity(write_vector(model, z.mean(0), heads), alone, dim=0) > 0.9


@pytest.mark.slow
def test_rotary_frequencies_that_a_short_prompt_does_not_show_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in Llama 3.1: what is scaled turns once in thousands of tokens.
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 8192
    folder = build("llama", tmp_path / "tiny", hidden_size=64, rope_parameters=rope, max_position_embeddings=131072)
    ivlens.load(folder)
    translate = ivlens.models.hooked.hooked_fields
    monkeypatch.setattr(ivlens.models.hooked, "hooked_fields", lambda *a: translate(*a) | {"NTK_by_parts_factor": 8.2})
    with pytest.raises(ModelError, match=r"tiny as LlamaForCausalLM does not come out right: its rotary frequencies"):
        ivlens.load(folder)


def _rope(kind: str, **more: object) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, **more}}


FACTORS = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 64}
UNSUPPORTED: dict[str, tuple[str, dict[str, object], str]] = {
    "llama yarn": ("llama", _rope("yarn"), "rotary scaling of type 'yarn' is not supported; only default and llama3"),
    "llama dynamic": ("llama", _rope("dynamic"), "rotary scaling of type 'dynamic' is not supported"),
    "llama linear": ("llama", _rope("linear"), "rotary scaling of type 'linear' is not supported"),
    "phi3 longrope": ("phi3", _rope("longrope", **FACTORS), "rotary scaling of type 'longrope' is not supported"),
    "llama bias": ("llama", {"attention_bias": True}, r"attention_bias = True in config\.json is not supported"),
    "qwen3 bias": ("qwen3", {"attention_bias": True}, r"attention_bias = True in config\.json is not supported"),
    "gemma2 bias": ("gemma2", {"attention_bias": True}, r"attention_bias = True in config\.json is not supported"),
    "olmo2 bias": ("olmo2", {"attention_bias": True}, r"attention_bias = True in config\.json is not supported"),
    "olmo2 heads": ("olmo2", {"head_dim": 10}, r"head_dim = 10 in config\.json is not supported; .* with 8 only"),
    "gpt2 cross": ("gpt2", {"add_cross_attention": True}, r"add_cross_attention = True in config\.json is not"),
    "opt width": ("opt", {"word_embed_proj_dim": 16}, r"word_embed_proj_dim = 16 in config\.json is not supported"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", UNSUPPORTED)
def test_a_configuration_that_cannot_be_had_is_refused_by_its_name(case: str, tmp_path: Path) -> None:
    family, fields, sentence = UNSUPPORTED[case]
    with pytest.raises(ModelError, match=sentence):
        ivlens.load(build(family, tmp_path / "tiny", **fields), backend="hooked")


BY_BRIDGE: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True},
    "mistral": _rope("linear"),
    "mpt": {"model_type": "mpt", "max_seq_len": 128, "expansion_ratio": 2},
    "stablelm": {
        "model_type": "stablelm",
        "intermediate_size": 48,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    },
}


@pytest.mark.parametrize("family", BY_BRIDGE)
def test_what_no_hooked_transformer_computes_is_loaded_into_a_bridge(family: str, tmp_path: Path) -> None:
    folder = build(family, tmp_path / "tiny", **BY_BRIDGE[family])
    model = ivlens.load(folder)
    assert type(model).__name__ == "TransformerBridge"
    with quiet_transformers():
        theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    tokens = torch.randint(4, 100, (1, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (model(tokens) - theirs(tokens).logits).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("family", "fields", "sentence"),
    [
        # As many keys as fit the weights, but not the queries.
        ("stablelm", BY_BRIDGE["stablelm"] | {"num_key_value_heads": 3}, "transformers cannot run tiny as its config"),
        (
            "biogpt",
            {"model_type": "biogpt", "intermediate_size": 48, "max_position_embeddings": 128},
            r"has no bridge to tiny \(BioGptForCausalLM\): [^\[]*$",
        ),
        # TransformerLens 3.9 turns Cohere's queries as it turns Llama's.
        ("cohere", BY_BRIDGE["stablelm"] | {"model_type": "cohere"}, "as a TransformerBridge does not come out right"),
    ],
)
def test_a_bridge_that_would_compute_something_else_is_refused(
    family: str, fields: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=sentence):
        ivlens.load(build(family, tmp_path / "tiny", **fields))


HEADS = {"num_attention_heads": 4}
OTHERS: dict[str, tuple[dict[str, object], str]] = {
    "MixtralForCausalLM": ({**HEADS, "num_local_experts": 8}, "its MLPs are mixtures of experts"),
    "Qwen3MoeForCausalLM": ({**HEADS, "num_experts": 128}, "its MLPs are mixtures of experts"),
    "MambaForCausalLM": ({"state_size": 16}, "its blocks are state spaces, .* without attention heads"),
    "HeadlessForCausalLM": ({}, "it has no attention heads"),
    "T5ForConditionalGeneration": ({"num_heads": 4, "is_encoder_decoder": True}, "it has an encoder and a decoder"),
    "BartForConditionalGeneration": ({"is_encoder_decoder": True}, "it has an encoder and a decoder"),
    "BertForMaskedLM": (HEADS, "it is no causal language model"),
    "LlamaForSequenceClassification": (HEADS, "it is no causal language model"),
    "Gemma3ForConditionalGeneration": ({"vision_config": {}}, "it reads more than text"),
    "FalconForCausalLM": (HEADS, "ivlens has no translation of its configuration"),
}


@pytest.mark.parametrize("architecture", OTHERS)
def test_another_kind_of_model_is_refused_by_name_with_the_reason(architecture: str, tmp_path: Path) -> None:
    fields, reason = OTHERS[architecture]
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture], **fields}))
    with pytest.raises(
        ModelError, match=f"is a {architecture}, which is not supported: {reason}; ivlens reads"
    ) as caught:
        ivlens.load(tmp_path, backend="hooked")
    assert all(name in str(caught.value) for name in TRANSLATED)


@pytest.fixture(scope="module")
def effects() -> Callable[[str, str], torch.Tensor]:
    task, made = ivlens.task("antonym"), {}

    def measured(dtype: str, effect: str) -> torch.Tensor:
        if dtype not in made:
            made[dtype] = ivlens.load("lab", dtype=dtype)
        settings = {"clean_prompts": 20, "prompts": 10, "shots": 5}
        return ivlens.indirect_effects(made[dtype], task, effect=effect, **settings).aie

    return measured


@pytest.mark.slow
@pytest.mark.parametrize("effect", ["prob", "nll"])
@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.01), ("float16", 0.001)])
def test_aie_in_16_bits_is_within_the_stated_bounds_of_float32(
    dtype: str, bound: float, effect: str, effects: Callable[[str, str], torch.Tensor]
) -> None:
    """Of the largest AIE."""
    full = effects("float32", effect)
    assert full.abs().max() > 0.2
    assert (effects(dtype, effect) - full).abs().max() < bound * full.abs().max()
