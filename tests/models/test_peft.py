"""Adapters go to PEFT and come back as the same function; what PEFT could mean otherwise is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import rounding
import torch
from checkpoints import EACH_FAMILY
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformer_lens import HookedTransformer
from transformers import AutoModelForCausalLM, PreTrainedModel

from ivlens.checkpoints.architectures import ARCHITECTURES
from ivlens.errors import IvlensError, ShapeMismatch
from ivlens.models import hooked, loader, lora, peft_layout
from ivlens.models.loader import load
from ivlens.models.lora import Adapter, Factors, LoraConfig
from ivlens.models.peft import read_adapter, write_adapter
from ivlens.models.weights import TARGETS, Target, as_weight, locate
from ivlens.storage import tensor_files

TOKENS = torch.randint(4, 120, (2, 40), generator=torch.Generator().manual_seed(1))
# PEFT corrects fan_in_fan_out and says so, and asks transformers by an old name.
pytestmark = [
    pytest.mark.numeric,
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
FUSED = ("gpt2", "neox", "phi3")
ATTENTION = ("W_Q", "W_K", "W_V", "W_O")


@pytest.fixture
def llama(folders: Callable[[str], Path]) -> HookedTransformer:
    return loader.load_without_adapters(folders("llama-gqa"))


def transformers_model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def randomise(parameters: Iterator[tuple[str, Tensor]], size: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(7)
    for _, weight in parameters:
        weight.data.normal_(0, size, generator=generator)


def saved(folder: Path, out: Path, **settings: Any) -> Tensor:
    """A random adapter as PEFT saves it to `out`, and the log-probabilities of PEFT's model with it."""
    config = peft.LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6, **settings})
    model = peft.get_peft_model(transformers_model(folder), config)
    randomise((name, weight) for name, weight in model.named_parameters() if "lora_" in name)
    model.save_pretrained(out)
    return peft_log_probs(folder, out)


def peft_log_probs(folder: Path, adapter: Path) -> Tensor:
    model = peft.PeftModel.from_pretrained(transformers_model(folder), adapter).eval()
    with torch.no_grad():
        return model(TOKENS).logits.log_softmax(-1)


def log_probs(model: HookedTransformer, *adapters: Adapter) -> Tensor:
    with torch.no_grad(), lora.attached(model, *adapters):
        return model(TOKENS).log_softmax(-1)


def difference(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


def near(model: HookedTransformer, *adapters: Adapter) -> float:
    """As far apart as rounding brings two such models, with these adapters."""
    with lora.attached(model, *adapters):
        return rounding.of_forward(model, TOKENS)


def random_adapter(model: HookedTransformer, *targets: Target, rank: int = 3) -> Adapter:
    adapter = lora.fresh(model, LoraConfig(rank=rank, alpha=4.5, targets=targets), seed=2)
    randomise((name, both.B) for name, both in adapter.factors.items())
    return adapter


def targets_of(model: HookedTransformer) -> list[Target]:
    return [target for target in TARGETS if target != "W_gate" or model.cfg.gated_mlp]


def tampered(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> Path:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)
    return folder


def configured(folder: Path, **changes: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("family", EACH_FAMILY)
def test_an_adapter_of_all_linear_layers_means_here_what_it_means_in_peft(
    family: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    theirs = saved(folders(family), tmp_path, target_modules="all-linear")
    model = loader.load_without_adapters(folders(family))
    adapter = read_adapter(tmp_path, model)
    assert difference(log_probs(model, adapter), theirs) < near(model, adapter)
    assert difference(log_probs(model), theirs) > 1, "the adapter must move the outputs"


@pytest.mark.slow
@pytest.mark.parametrize("family", EACH_FAMILY)
def test_a_written_adapter_means_in_peft_what_it_means_here(
    family: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    model = loader.load_without_adapters(folders(family))
    adapter = random_adapter(model, *targets_of(model))
    write_adapter(adapter, tmp_path, model, base="someone/base")
    ours = log_probs(model, adapter)
    assert difference(peft_log_probs(folders(family), tmp_path), ours) < near(model, adapter)
    assert difference(log_probs(model), ours) > 1, "the adapter must move the outputs"


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "queries-and-values": ("llama-gqa", {"target_modules": ["q_proj", "v_proj"]}),
    "rank-stabilised": ("llama-gqa", {"target_modules": ["k_proj", "down_proj"], "use_rslora": True}),
    "patterns": (
        "llama-gqa",
        {
            "target_modules": ["q_proj", "v_proj", "up_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, "up_proj": 5},
            "alpha_pattern": {"v_proj": 3, r"model\.layers\.[02]\.mlp\.up_proj": 9},
        },
    ),
    "stabilised-patterns": (
        "qwen2",
        {"target_modules": ["q_proj", "v_proj"], "use_rslora": True, "rank_pattern": {"v_proj": 7}},
    ),
    "some-layers": ("mistral", {"target_modules": ["o_proj", "gate_proj"], "layers_to_transform": [0, 2]}),
    "one-layer": ("mistral", {"target_modules": ["o_proj"], "layers_to_transform": 1, "layers_pattern": "layers"}),
    "a-regular-expression": ("qwen3", {"target_modules": r".*\.[12]\..*(q|up)_proj"}),
    "less-some": ("llama", {"target_modules": "all-linear", "exclude_modules": ["mlp.up_proj", "o_proj"]}),
    "less-an-expression": ("llama", {"target_modules": ["q_proj", "k_proj"], "exclude_modules": r".*0.*q_proj"}),
    "fused-alone": ("gpt2", {"target_modules": ["c_attn"]}),
    "both-c_proj": ("gpt2", {"target_modules": ["c_proj"], "fan_in_fan_out": True}),
    "fused-by-head": ("neox", {"target_modules": ["query_key_value", "dense"], "rank_pattern": {"dense": 2}}),
    "fused-gate": ("phi3", {"target_modules": ["gate_up_proj"]}),
    "random-start": ("opt", {"target_modules": ["fc1", "out_proj"], "init_lora_weights": "gaussian"}),
    "with-dropout": ("gptj", {"target_modules": ["fc_in", "out_proj"], "lora_dropout": 0.1}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", VARIANTS)
def test_what_a_configuration_asks_for_is_done_as_peft_does_it(
    case: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    family, settings = VARIANTS[case]
    theirs = saved(folders(family), tmp_path / "theirs", **settings)
    model = loader.load_without_adapters(folders(family))
    adapter = read_adapter(tmp_path / "theirs", model)
    ours = log_probs(model, adapter)
    assert difference(ours, theirs) < near(model, adapter) < 1 < difference(log_probs(model), theirs)
    write_adapter(adapter, tmp_path / "ours", model)
    assert difference(peft_log_probs(folders(family), tmp_path / "ours"), ours) < near(model, adapter)


@pytest.mark.slow
@pytest.mark.parametrize("family", FUSED)
def test_a_written_fan_in_fan_out_says_nothing_here_as_in_peft(
    family: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    saved(folders(family), tmp_path, target_modules="all-linear")
    written = json.loads((tmp_path / "adapter_config.json").read_text())["fan_in_fan_out"]
    assert written == (family == "gpt2")
    configured(tmp_path, fan_in_fan_out=not written)
    model = loader.load_without_adapters(folders(family))
    with pytest.warns(UserWarning, match="fan_in_fan_out is set to"):
        theirs = peft_log_probs(folders(family), tmp_path)
    adapter = read_adapter(tmp_path, model)
    assert difference(log_probs(model, adapter), theirs) < near(model, adapter)


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_writing_and_reading_gives_the_same_factors_to_the_bit(
    family: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    model = loader.load_without_adapters(folders(family))
    adapter = random_adapter(model, *targets_of(model))
    write_adapter(adapter, tmp_path, model)
    again = read_adapter(tmp_path, model)
    assert again.factors.keys() == adapter.factors.keys() and again.scale == adapter.scale
    for name, both in adapter.factors.items():
        assert all(map(torch.equal, both, again.factors[name])), name


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "neox"])
def test_weights_of_a_fused_layer_share_A_when_read_and_stack_theirs_when_written(
    family: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    saved(folders(family), tmp_path, target_modules="all-linear")
    model = loader.load_without_adapters(folders(family))
    shared = read_adapter(tmp_path, model)
    write_adapter(shared, tmp_path, model)
    assert rank_of(tmp_path) == 4, "shared factors are not stacked"
    own = random_adapter(model, "W_Q", "W_V")
    write_adapter(own, tmp_path, model)
    assert rank_of(tmp_path) == 2 * 3
    assert difference(peft_log_probs(folders(family), tmp_path), log_probs(model, own)) < near(model, own)


def rank_of(folder: Path) -> int:
    return json.loads((folder / "adapter_config.json").read_text())["r"]


def test_an_adapter_on_some_layers_is_written_by_their_whole_names(
    llama: HookedTransformer, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = lora.fresh(llama, LoraConfig(rank=2, layers=(0, 2)))
    randomise((name, both.B) for name, both in adapter.factors.items())
    write_adapter(adapter, tmp_path, llama)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert "model.layers.2.self_attn.v_proj" in config["target_modules"]
    assert difference(peft_log_probs(folders("llama-gqa"), tmp_path), log_probs(llama, adapter)) < near(llama, adapter)


def test_factors_in_training_and_in_shared_memory_are_written(llama: HookedTransformer, tmp_path: Path) -> None:
    a, b = torch.ones(2, 32), torch.ones(32, 48)
    shared = {"blocks.0.attn.W_Q": Factors(a, b[:24, :2]), "blocks.0.attn.W_V": Factors(a, b.T[:12, :2])}
    adapter = Adapter(factors=shared, scale=1.0)
    for factor in (a, b):
        factor.requires_grad_()
    write_adapter(adapter, tmp_path, llama)
    again = read_adapter(tmp_path, llama)
    assert all(map(torch.equal, again.parameters(), adapter.parameters()))
    assert not any(factor.requires_grad for factor in again.parameters())


def test_weights_of_different_rank_are_written_with_their_own_alpha(
    llama: HookedTransformer, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    narrow, wide = random_adapter(llama, "W_Q", rank=2), random_adapter(llama, "W_out", rank=7)
    adapter = lora.stack([narrow, wide])
    write_adapter(adapter, tmp_path, llama)
    assert difference(peft_log_probs(folders("llama-gqa"), tmp_path), log_probs(llama, adapter)) < near(llama, adapter)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_factors_are_read_as_float32(dtype: torch.dtype, llama: HookedTransformer, tmp_path: Path):
    adapter = random_adapter(llama, "W_Q", "W_V")
    write_adapter(adapter, tmp_path, llama)
    tampered(tmp_path, lambda tensors: tensors.update({name: t.to(dtype) for name, t in tensors.items()}))
    for name, both in read_adapter(tmp_path, llama).factors.items():
        assert torch.equal(both.B, adapter.factors[name].B.to(dtype).float())


@pytest.mark.slow
def test_in_a_float64_model_the_update_is_computed_in_float64(folders: Callable[[str], Path], tmp_path: Path) -> None:
    model = loader.load_without_adapters(folders("llama"), dtype="float64")
    saved(folders("llama"), tmp_path, target_modules=["q_proj"])
    assert {factor.dtype for factor in read_adapter(tmp_path, model).parameters()} == {torch.float64}


CONFIGURATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "dora": (
        {"use_dora": True},
        r"use_dora = true is not supported \(DoRA rescales .*; merge the adapter with PEFT",
    ),
    "bias": ({"bias": "lora_only"}, r'bias = "lora_only" is not supported \(biases were trained'),
    "lora-bias": ({"lora_bias": True}, r"lora_bias = true is not supported"),
    "saved-modules": (
        {"modules_to_save": ["lm_head"]},
        r'modules_to_save = \["lm_head"\] .* \(whole modules',
    ),
    "replication": ({"layer_replication": [[0, 2]]}, r"layer_replication = \[\[0, 2\]\] is not supported"),
    "parameters": ({"target_parameters": ["experts"]}, r"target_parameters .* is not supported"),
    "tokens": ({"trainable_token_indices": [1]}, r"trainable_token_indices .* is not supported"),
    "unknown-of-later": ({"use_wonder": {"depth": 3}}, r"use_wonder .* is not supported"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, r"'pissa_niter_4' changed the base model.*weight_conversion"),
    "loftq": ({"init_lora_weights": "loftq"}, r"init_lora_weights = 'loftq' changed the base model"),
    "another-kind": ({"peft_type": "IA3"}, r'peft_type = "IA3" is not supported'),
    "classifier": ({"task_type": "SEQ_CLS"}, r'task_type = "SEQ_CLS" is not supported'),
    "no-rank": ({"r": 0}, r"r = 0 is not supported"),
    "a-word-for-rank": ({"r": "8"}, r'r = "8" is not supported'),
    "no-alpha": ({"lora_alpha": 0}, r"lora_alpha = 0 is not supported"),
    "alpha-nan": ({"alpha_pattern": {"q_proj": float("nan")}}, r"alpha_pattern = NaN is not supported"),
    "no-targets": ({"target_modules": None}, r"target_modules = null is not supported"),
    "foreign-targets": ({"target_modules": ["c_attn"]}, r"targets \['c_attn'\], none of which tiny has"),
    "broken-expression": ({"target_modules": "*proj"}, r"'\*proj' is not a regular expression"),
    "other-rank": (
        {"r": 5},
        r"A \(3, 32\) and B \(24, 3\) for .*0.self_attn.q_proj, but tiny at rank 5 needs \(5, 32\)",
    ),
    "more-targets": ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, r"asks for .*o_proj.lora_A.* \(6 are missing"),
    "fewer-targets": ({"target_modules": ["q_proj"]}, r"has .*v_proj.lora_A.weight, which nothing uses \(6 such\)"),
    "fewer-layers": ({"layers_to_transform": [0]}, r"has .*1.self_attn.q_proj.*, which nothing uses \(8 such\)"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_what_is_not_supported_is_refused_by_its_name(case: str, llama: HookedTransformer, tmp_path: Path) -> None:
    changes, sentence = CONFIGURATIONS[case]
    write_adapter(random_adapter(llama, "W_Q", "W_V"), tmp_path, llama)
    configured(tmp_path, **changes)
    with pytest.raises(IvlensError, match=sentence):
        read_adapter(tmp_path, llama)


Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "a-missing-pair": (lambda t: t.pop(f"{Q0}B.weight"), r"asks for .*0.self_attn.q_proj.lora_B.weight, which"),
    "an-unused-tensor": (
        lambda t: t.update({"base_model.model.lm_head.lora_A.weight": torch.ones(3, 32)}),
        r"changes lm_head \(base_model.model.lm_head.lora_A.weight\), outside of the blocks, .* nothing; merge the "
        r"adapter with PEFT \(merge_and_unload, save_pretrained\) and give the merged checkpoint in its place",
    ),
    "embeddings-saved-whole": (
        lambda t: t.update({"base_model.model.model.embed_tokens.weight": torch.ones(3, 32)}),
        r"changes model.embed_tokens \(base_model.model.model.embed_tokens.weight\), .* merge the adapter",
    ),
    "magnitudes": (lambda t: t.update({f"{Q0}magnitude_vector": torch.ones(24)}), r"magnitude_vector, which nothing"),
    "another-width": (
        lambda t: t.update({f"{Q0}A.weight": torch.ones(3, 64)}),
        r"has A \(3, 64\) and B \(24, 3\) for .*, but tiny at rank 3 needs \(3, 32\) and \(24, 3\)",
    ),
    "another-depth": (
        lambda t: t.update({f"{Q0}A.weight".replace(".0.", ".7."): torch.ones(3, 32)}),
        r"layers.7.self_attn.q_proj.lora_A.weight, which nothing uses",
    ),
    "nan": (lambda t: t[f"{Q0}B.weight"].fill_(torch.nan), r"NaN or infinity for blocks.0.attn.W_Q"),
    "infinite": (lambda t: t[f"{Q0}A.weight"][0].fill_(torch.inf), r"NaN or infinity for blocks.0.attn.W_Q"),
    "no-update": (
        lambda t: [tensor.zero_() for name, tensor in t.items() if "lora_B" in name],
        r"every update of the adapter in .* is zero, as before training; give a trained one",
    ),
    "whole-numbers": (
        lambda t: t.update({f"{Q0}A.weight": torch.ones(3, 32, dtype=torch.int8)}),
        r"q_proj is stored as torch.int8",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_cannot_be_the_adapter_are_refused(case: str, llama: HookedTransformer, tmp_path: Path) -> None:
    edit, sentence = TENSORS[case]
    write_adapter(random_adapter(llama, "W_Q", "W_V"), tmp_path, llama)
    with pytest.raises(IvlensError, match=sentence):
        read_adapter(tampered(tmp_path, edit), llama)


def test_an_adapter_of_another_model_is_refused_with_both_shapes(
    llama: HookedTransformer, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    write_adapter(random_adapter(llama, "W_Q"), tmp_path, llama)
    with pytest.raises(ShapeMismatch, match=r"B \(24, 3\) for .*, but tiny at rank 3 needs \(3, 32\) and \(32, 3\)"):
        read_adapter(tmp_path, loader.load_without_adapters(folders("llama")))


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (
        lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
        r"adapter_model.bin, a pickle, which ivlens never opens; save the adapter again",
    ),
    "no-tensors": (lambda f: (f / "adapter_model.safetensors").unlink(), r"there is no adapter_model.safetensors in"),
    "torn-tensors": (
        lambda f: (f / "adapter_model.safetensors").write_bytes((f / "adapter_model.safetensors").read_bytes()[:-40]),
        r"is no readable safetensors file .*; copy it again",
    ),
    "no-configuration": (lambda f: (f / "adapter_config.json").unlink(), r"there is no adapter_config.json in .* PEFT"),
    "no-json": (lambda f: (f / "adapter_config.json").write_text("{"), r"is not readable JSON .*; copy it again"),
    "no-object": (lambda f: (f / "adapter_config.json").write_text("[1]"), r"the content = \[1\] is not supported"),
    "nothing-in-it": (lambda f: (f / "adapter_config.json").write_text("{}"), r"adapter_config.json: \w+ is missing"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FILES)
def test_folders_that_are_not_whole_are_refused(case: str, llama: HookedTransformer, tmp_path: Path) -> None:
    edit, sentence = FILES[case]
    write_adapter(random_adapter(llama, "W_Q", "W_V"), tmp_path, llama)
    edit(tmp_path)
    with pytest.raises(IvlensError, match=sentence):
        read_adapter(tmp_path, llama)


def test_a_writer_that_is_stopped_leaves_no_adapter_to_believe(
    llama: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    adapter = random_adapter(llama, "W_Q")
    write_adapter(adapter, tmp_path, llama)
    before = (tmp_path / "adapter_model.safetensors").read_bytes()
    monkeypatch.setattr("safetensors.torch.save_file", stop)
    with pytest.raises(KeyboardInterrupt):
        write_adapter(random_adapter(llama, "W_V"), tmp_path, llama)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_model.safetensors"]
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == before


def test_a_folder_that_cannot_be_written_is_named(llama: HookedTransformer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IvlensError, match=r"cannot write .*file"):
        write_adapter(random_adapter(llama, "W_Q"), tmp_path / "file", llama)


def test_only_what_peft_has_a_place_for_is_written(llama: HookedTransformer, tmp_path: Path) -> None:
    strange = Adapter(factors={"unembed.W_U": Factors(torch.ones(1, 32), torch.ones(120, 1))}, scale=1.0)
    for adapter, what in ((strange, "unembed.W_U"), (Adapter(factors={}, scale=1.0), "no weight at all")):
        with pytest.raises(IvlensError, match=rf"the adapter is on {what}, which PEFT has no place for"):
            write_adapter(adapter, tmp_path, llama)
    assert not list(tmp_path.iterdir())


def test_models_without_a_layout_and_with_folded_norms_are_refused(llama: HookedTransformer, tmp_path: Path) -> None:
    adapter = random_adapter(llama, "W_Q")
    write_adapter(adapter, tmp_path, llama)
    llama.cfg.normalization_type = "RMSPre"
    with pytest.raises(IvlensError, match=r"the norms of tiny are folded into its weights.*ivlens.load"):
        read_adapter(tmp_path, llama)
    llama.cfg.original_architecture = "BloomForCausalLM"
    with pytest.raises(IvlensError, match=r"tiny is a BloomForCausalLM, of which ivlens does not know PEFT's names"):
        write_adapter(adapter, tmp_path, llama)


def test_every_architecture_that_is_loaded_has_a_layout() -> None:
    assert peft_layout._LAYOUTS.keys() == ARCHITECTURES.keys()


@pytest.mark.slow
def test_loading_with_an_adapter_merges_it_and_keeps_the_name(folders: Callable[[str], Path], tmp_path: Path) -> None:
    theirs = saved(folders("qwen2"), tmp_path, target_modules="all-linear")
    base, adapted = load(folders("qwen2")), load(folders("qwen2"), adapter=tmp_path)
    assert difference(log_probs(adapted), theirs) < near(adapted) < 1 < difference(log_probs(base), theirs)
    assert hooked.model_name(adapted) == hooked.model_name(base)
    assert hooked.weight_digest(adapted) != hooked.weight_digest(base)
    lora.merge(base, read_adapter(tmp_path, base))
    assert hooked.weight_digest(adapted) == hooked.weight_digest(base)
    assert not any(weight.requires_grad for weight in adapted.parameters())


@pytest.mark.slow
def test_what_16_bits_lose_of_an_update_is_said_and_recorded(folders: Callable[[str], Path], tmp_path: Path) -> None:
    model = load(folders("llama"), dtype="bfloat16")
    adapter = lora.fresh(model, lora.LoraConfig(rank=2))
    for factors in adapter.factors.values():
        factors.B.normal_(0, 2e-3, generator=torch.Generator().manual_seed(0))
    write_adapter(adapter, tmp_path / "small", model)
    errors, sizes = [], []
    for name, (a, b) in adapter.factors.items():
        module, own = locate(model, name)
        weight = getattr(module, own).double()
        update = as_weight(adapter.scale * (b.double() @ a.double()).T, weight)
        errors.append(((weight + update).bfloat16().double() - weight - update).square().sum())
        sizes.append(update.square().sum())
    lost = float((sum(errors) / sum(sizes)).sqrt())
    assert lora.lost_to_rounding(model, adapter) == pytest.approx(lost, rel=1e-3) and lost > 0.1
    said = f"{lost:.0%} of the update of small is lost to rounding in bfloat16"
    with pytest.warns(lora.ModelWarning, match=rf"{said} \(.*\); load in float32 to keep it"):
        merged = load(folders("llama"), adapter=tmp_path / "small", dtype="bfloat16")
    assert hooked.source(merged).stored == said
    assert hooked.source(load(folders("llama"), adapter=tmp_path / "small")).stored == ""


@pytest.mark.slow
def test_several_adapters_are_merged_from_left_to_right_as_peft_merges_them(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    """The second one was trained on the model with the first one in it."""
    base, first, second = folders("llama-gqa"), tmp_path / "first", tmp_path / "second"
    saved(base, first, target_modules=["q_proj", "down_proj"])
    saved(base, second, target_modules="all-linear", r=3, use_rslora=True)
    merged = peft.PeftModel.from_pretrained(transformers_model(base), first).merge_and_unload()
    with torch.no_grad():
        after_one = merged(TOKENS).logits.log_softmax(-1)
        merged = peft.PeftModel.from_pretrained(merged, second).merge_and_unload().eval()
        theirs = merged(TOKENS).logits.log_softmax(-1)
    ours = load(base, adapter=[first, second])
    assert difference(log_probs(ours), theirs) < near(ours) < 1 < difference(after_one, theirs)
    model, stacked = loader.load_without_adapters(base), load(base, adapter=[first])
    assert difference(log_probs(stacked), after_one) < near(stacked)
    both = lora.stack([read_adapter(folder, model) for folder in (first, second)])
    assert difference(log_probs(model, both), theirs) < near(model, both)


def test_of_several_adapters_the_one_that_cannot_be_merged_is_named(
    llama: HookedTransformer, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    write_adapter(random_adapter(llama, "W_Q"), tmp_path / "good", llama)
    write_adapter(random_adapter(llama, "W_Q"), tmp_path / "dora", llama)
    configured(tmp_path / "dora", use_dora=True)
    with pytest.raises(IvlensError, match=r"dora.adapter_config.json: use_dora = true"):
        load(tmp_path / "no-such-model", adapter=[tmp_path / "good", tmp_path / "dora"])


@pytest.mark.slow
def test_an_adapter_is_refused_by_its_header_before_any_tensor_is_read(
    llama: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_adapter(random_adapter(llama, "W_Q"), tmp_path, llama)
    tampered(tmp_path, lambda held: held.update({f"{Q0}A.weight": torch.ones(2**20, 32)}))
    monkeypatch.delattr(tensor_files, "read_tensors")
    with pytest.raises(ShapeMismatch, match=r"has A \(1048576, 32\) and B \(24, 3\) for .*0.self_attn.q_proj"):
        read_adapter(tmp_path, llama)


@pytest.mark.slow
def test_an_adapter_that_is_lost_in_rounding_is_refused(
    llama: HookedTransformer, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = lora.fresh(llama, LoraConfig(rank=2))
    randomise(((name, both.B) for name, both in adapter.factors.items()), size=1e-9)
    write_adapter(adapter, tmp_path, llama)
    with pytest.raises(IvlensError, match=r"changes no output of tiny in torch.bfloat16; load in float32"):
        load(folders("llama-gqa"), adapter=tmp_path, dtype="bfloat16")


@pytest.mark.slow
def test_an_adapter_that_overflows_is_refused(
    llama: HookedTransformer, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = lora.fresh(llama, LoraConfig(rank=2))
    randomise(((name, both.B) for name, both in adapter.factors.items()), size=5e37)
    write_adapter(adapter, tmp_path, llama)
    with pytest.raises(IvlensError, match=r"with the adapter in .* the model's outputs are NaN or infinite"):
        load(folders("llama-gqa"), adapter=tmp_path)


def test_a_model_that_is_there_already_takes_no_adapter_while_loading(llama: HookedTransformer, tmp_path: Path) -> None:
    write_adapter(random_adapter(llama, "W_Q"), tmp_path, llama)
    digest = hooked.weight_digest(llama)
    with pytest.raises(
        IvlensError, match=r"give the model's folder or hub id, or attach what ivlens.models.peft.read_adapter returns"
    ):
        load(llama, adapter=tmp_path)
    assert hooked.weight_digest(llama) == digest


def test_a_wrong_adapter_is_refused_before_the_model_is_read(tmp_path: Path) -> None:
    with pytest.raises(IvlensError, match=r"there is no adapter_config.json in"):
        load(tmp_path / "no-such-model", adapter=tmp_path)
