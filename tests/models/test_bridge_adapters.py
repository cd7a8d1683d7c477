"""An adapter on a TransformerBridge is computed by PEFT's layers, and is what merging makes of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
from bridges import EACH_ARCHITECTURE, NOT_IN_FLOAT64, random_bridge
from checkpoints import filled
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import ivlens
from ivlens.checkpoints.checkpoint import quiet_transformers
from ivlens.errors import IvlensError, ModelError, ShapeMismatch
from ivlens.forward.output_path import output_path
from ivlens.models import lora
from ivlens.models.bridge import check_bridge
from ivlens.models.hooked import weight_digest
from ivlens.models.lora import Adapter, LoraConfig
from ivlens.models.peft import read_adapter, write_adapter
from ivlens.models.weights import TARGETS, locate, matrix_shape

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]

TOKENS = torch.randint(4, 120, (2, 10), generator=torch.Generator().manual_seed(0))


def targets_of(bridge: TransformerBridge) -> tuple[Any, ...]:
    found = []
    for target in TARGETS:
        try:
            locate(bridge, f"blocks.0.{'attn' if target in ('W_Q', 'W_K', 'W_V', 'W_O') else 'mlp'}.{target}")
            found.append(target)
        except IvlensError:
            assert target in ("W_gate", "W_in", "W_out")
    return tuple(found)


def random_adapter(bridge: TransformerBridge, *, seed: int = 0, **config: Any) -> Adapter:
    config = {"rank": 3, "alpha": 4.0, "targets": targets_of(bridge), **config}
    start = lora.fresh(bridge, LoraConfig(**config), seed=seed)
    return filled(start, 0.3, seed=seed)


def log_probs(bridge: Any) -> Tensor:
    return bridge(TOKENS, attention_mask=torch.ones_like(TOKENS)).log_softmax(-1)


def parameters(bridge: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in bridge.named_parameters()}


def assert_near(one: Tensor, other: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(one.detach(), other.detach(), rtol=0, atol=tolerance)


@pytest.mark.long
@pytest.mark.parametrize("name", EACH_ARCHITECTURE)
def test_attaching_is_merging_on_every_architecture_and_leaves_no_trace(name: str) -> None:
    dtype = torch.float32 if name in NOT_IN_FLOAT64 else torch.float64
    bridge = random_bridge(name, dtype)
    check_bridge(bridge)
    before, base, digest = parameters(bridge), log_probs(bridge).detach(), weight_digest(bridge)
    one, two = random_adapter(bridge), random_adapter(bridge, seed=1, rank=2, targets=("W_V", "W_O"))
    with torch.no_grad(), lora.attached(bridge, one, two):
        check_bridge(bridge)
        both = log_probs(bridge)
        path = [output_path(bridge, layer).weight for layer in range(3)] if name in ("llama-gqa", "neox") else []
        with lora.silenced(bridge):
            assert torch.equal(log_probs(bridge), base)
        with lora.silenced(bridge, one):
            only_two = log_probs(bridge)
        lora.detach(bridge, one)
        assert torch.equal(log_probs(bridge), only_two)
    assert {key: weight.shape for key, weight in bridge.named_parameters()} == {k: w.shape for k, w in before.items()}
    assert all(torch.equal(weight, before[key]) for key, weight in bridge.named_parameters())
    assert not any(type(module).__module__.startswith("peft.") for module in bridge.modules())
    assert weight_digest(bridge) == digest
    # Norms and softmax are float32 in most models.
    tolerance = 1e-3 if dtype == torch.float32 else 1e-4
    with torch.no_grad(), lora.merged(bridge, lora.stack([one, two])):
        assert_near(log_probs(bridge), both, tolerance)
        for layer, weight in enumerate(path):
            assert_near(output_path(bridge, layer).weight, weight, 1e-12)
    with torch.no_grad(), lora.merged(bridge, two):
        assert_near(log_probs(bridge), only_two, tolerance)
    assert torch.equal(log_probs(bridge), base)
    assert float((both - only_two).abs().max()) > 0.1 and float((only_two - base).abs().max()) > 0.1, "does nothing"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "neox", "llama-gqa", "phi3", "gpt-bigcode"])
def test_gradients_are_those_of_the_merged_weights(name: str) -> None:
    bridge = random_bridge(name, torch.float64).requires_grad_(False)
    adapter = random_adapter(bridge).requires_grad_()
    with lora.attached(bridge, adapter):
        log_probs(bridge)[:, -1, 5].sum().backward()
    assert not any(weight.grad is not None for weight in bridge.parameters())
    slopes = {key: (a.grad, b.grad) for key, (a, b) in adapter.factors.items()}
    with lora.merged(bridge, adapter.requires_grad_(False)):
        weights = {key: getattr(*locate(bridge, key)).requires_grad_() for key in adapter.factors}
        found = torch.autograd.grad(log_probs(bridge)[:, -1, 5].sum(), list(weights.values()))
        bridge.requires_grad_(False)
    for (key, (a, b)), slope in zip(adapter.factors.items(), found, strict=True):
        slope = slope.T if isinstance(locate(bridge, key)[0], nn.Linear) else slope
        for own, wanted in zip(
            slopes[key], (adapter.scale * (slope @ b).T, adapter.scale * slope.T @ a.T), strict=True
        ):
            assert own is not None
            assert_near(own, wanted, 1e-5 * max(1.0, float(wanted.abs().max())))
            assert wanted.abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama-gqa", "neox", "qwen2", "phi3"])
def test_a_bridge_with_an_adapter_is_pefts_own_model(
    family: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    """What PEFT saved of its own model, attached to a bridge, merged into one on the way in, and written again."""
    with quiet_transformers():
        theirs = AutoModelForCausalLM.from_pretrained(folders(family), dtype=torch.float64)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules="all-linear")
    adapted = peft.get_peft_model(theirs, config).double().eval()
    generator = torch.Generator().manual_seed(3)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.3, generator=generator)
    adapted.save_pretrained(tmp_path / "one")
    with torch.no_grad():
        wanted = adapted(TOKENS).logits.log_softmax(-1)
    bridge = ivlens.load(folders(family), dtype="float64", backend="bridge")
    adapter = read_adapter(tmp_path / "one", bridge)
    with torch.no_grad(), lora.attached(bridge, adapter):
        assert_near(log_probs(bridge), wanted, 1e-4)
    write_adapter(adapter, tmp_path / "two", bridge)
    merged = ivlens.load(folders(family), dtype="float64", backend="bridge", adapter=tmp_path / "two")
    with torch.no_grad():
        assert_near(log_probs(merged), wanted, 1e-4)


@pytest.mark.slow
def test_layers_of_an_architecture_that_is_not_listed_are_found_by_the_bridges_names(tmp_path: Path) -> None:
    bridge = random_bridge("gpt-neo", torch.float64)
    adapter = random_adapter(bridge)
    write_adapter(adapter, tmp_path, bridge)
    config = peft.PeftConfig.from_pretrained(str(tmp_path))
    names = {f"transformer.h.0.{part}" for part in ("attn.attention.q_proj", "attn.attention.out_proj", "mlp.c_fc")}
    assert all(any(name.endswith(target) for target in config.target_modules) for name in names)
    again = read_adapter(tmp_path, bridge)
    assert again.factors.keys() == adapter.factors.keys()
    with pytest.raises(IvlensError, match="is a BloomForCausalLM, of which ivlens does not know PEFT's names"):
        write_adapter(random_adapter(random_bridge("bloom")), tmp_path / "other", random_bridge("bloom"))


@pytest.mark.slow
def test_what_cannot_be_adapted_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    bridge = random_bridge("mixtral")
    with pytest.raises(IvlensError, match=r"tiny has no weight 'blocks\.0\.mlp\.W_in'; choose targets that it has"):
        lora.fresh(bridge, LoraConfig(targets=("W_in",)))
    bridge = random_bridge("llama-gqa")
    adapter = random_adapter(bridge)
    with pytest.raises(IvlensError, match="attached already; detach it first"):
        lora.attach(bridge, adapter, adapter)
    with lora.attached(bridge, adapter), pytest.raises(IvlensError, match="has an adapter attached; detach it before"):
        lora.merge(bridge, adapter)
    with pytest.raises(ShapeMismatch, match=r"for blocks.0.attn.W_Q, but tiny needs \(rank, 32\) and \(24, rank\)"):
        lora.attach(bridge, random_adapter(random_bridge("gpt2")))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        ModelError, match=r"by PEFT, which is not installed; install it with pip install 'ivlens\[peft\]'"
    ):
        lora.attach(bridge, adapter)
    assert not any(type(module).__module__.startswith("peft.") for module in bridge.modules())


def test_a_layer_that_a_bridge_runs_without_takes_no_adapter() -> None:
    bridge = random_bridge("llama-gqa")
    adapter = random_adapter(bridge)
    attn = bridge.blocks[1].attn
    vars(attn.v)["forward"] = lambda x, *_: attn.v.hook_out(x @ attn.v._original_component.weight.T)
    with pytest.raises(ModelError, match=r"runs without the layer of blocks\.1\.attn\.W_V, .* choose other targets"):
        lora.attach(bridge, adapter)


def test_quantised_weights_take_no_adapter_since_a_merge_would_not_be_exact() -> None:
    bridge = random_bridge("llama-gqa")
    layer = bridge.blocks[0].attn.q._original_component
    layer.weight = nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    sentence = (
        r"blocks\.0\.attn\.W_Q of tiny is quantised \(Parameter, torch\.float8_e4m3fn\), so that a merge would not"
    )
    with pytest.raises(IvlensError, match=sentence):
        lora.fresh(bridge, LoraConfig())


def test_a_fused_layers_parts_have_shapes_of_their_own() -> None:
    bridge = random_bridge("gpt-bigcode")
    names = [f"blocks.0.attn.{target}" for target in ("W_Q", "W_K", "W_V", "W_O")]
    assert [matrix_shape(bridge, name) for name in names] == [(32, 32), (32, 8), (32, 8), (32, 32)]
