"""While an adapter is trained nothing as large as a weight is made, and outputs and gradients are those of the sum."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from checkpoints import filled, random_hooked
from torch import Tensor
from transformer_lens import HookedTransformer
from transformers import AutoModelForCausalLM

import ivlens
from ivlens.checkpoints.checkpoint import quiet_transformers
from ivlens.models import attachment, lora
from ivlens.models.hooked import lay_out
from ivlens.models.lora import Adapter, Factors, LoraConfig
from ivlens.models.peft import read_adapter
from ivlens.models.weights import TARGETS, locate

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]

TOKENS = torch.randint(4, 120, (3, 12), generator=torch.Generator().manual_seed(0))
# No two widths alike, so that a transposed or misplaced update cannot fit by chance.
WIDTHS = {"d_head": 6, "d_model": 20, "d_mlp": 28}
KINDS = ("gpt2", "llama", "neox", "softcap", "qknorm")
FLAGS = ("use_attn_result", "use_split_qkv_input", "use_attn_in", "ungroup_grouped_query_attention")


def random_adapter(model: HookedTransformer, *, seed: int = 0, rank: int = 3) -> Adapter:
    """On every weight, in float64, `B` too large to be overlooked."""
    targets = tuple(target for target in TARGETS if target != "W_gate" or model.cfg.gated_mlp)
    start = lora.fresh(model, LoraConfig(rank=rank, alpha=4.0, targets=targets), seed=seed)
    return filled(start, 0.3, seed=seed)


def logits(model: HookedTransformer) -> Tensor:
    return model(TOKENS, attention_mask=torch.ones_like(TOKENS)).log_softmax(-1)


def gradients(out: Tensor, wanted: list[Tensor]) -> list[Tensor]:
    weights = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(9))
    return list(torch.autograd.grad((out * weights).sum(), wanted))


def assert_close(one: Tensor, other: Tensor, tolerance: float = 1e-10) -> None:
    one, other = one.detach(), other.detach()
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance * max(1.0, float(other.abs().max())))


def summed(model: HookedTransformer, adapters: list[Adapter]) -> tuple[Tensor, list[Tensor]]:
    """Outputs, and the factors' gradients, of a model whose weights are the sums, carried over from the weights'."""
    for adapter in adapters:
        lora.merge(model, adapter)
    places = {name: locate(model, name) for adapter in adapters for name in adapter.factors}
    weights = [getattr(module, own).requires_grad_() for module, own in places.values()]
    out = logits(model)
    by_name = dict(zip(places, gradients(out, weights), strict=True))
    found = []
    for adapter in adapters:
        for name, (a, b) in adapter.factors.items():
            slope = as_matrix(by_name[name], name)
            found += [adapter.scale * (slope @ b).T, adapter.scale * slope.T @ a.T]
    return out, found


def as_matrix(weight: Tensor, name: str) -> Tensor:
    """Inputs and outputs of a weight, heads one after the other."""
    if weight.dim() == 2:
        return weight
    return weight.flatten(0, 1) if name.endswith("W_O") else weight.transpose(0, 1).flatten(1)


@pytest.fixture
def no_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Tensor:
        raise AssertionError("a weight was summed with its update")

    monkeypatch.setattr(attachment.Update, "added_to", refuse)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_training_multiplies_beside_the_weights_to_the_sums_outputs_and_gradients(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_hooked(kind, **WIDTHS)
    old, new = random_adapter(model), random_adapter(model, seed=1, rank=2).requires_grad_()
    out, slopes = summed(random_hooked(kind, **WIDTHS), [old, new])
    with lora.attached(model, old, new):
        monkeypatch.setattr(attachment.Update, "added_to", None)
        found = logits(model)
        own = gradients(found, new.parameters())
        with torch.no_grad(), lora.silenced(model, new):
            only_old = logits(model)
        monkeypatch.undo()
    assert_close(found, out)
    for one, other in zip(own, slopes[len(old.parameters()) :], strict=True):
        assert_close(one, other)
        assert one.abs().max() > 0
    merged = random_hooked(kind, **WIDTHS)
    lora.merge(merged, old)
    assert_close(only_old, logits(merged))
    assert not any("forward" in vars(module) for module in model.modules()), "a trace"


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_see_what_they_see_in_the_merged_model(kind: str) -> None:
    """Hooks on what an update reads and on what it writes change what comes behind them, as they do there."""
    model, adapter = random_hooked(kind, **WIDTHS), random_adapter(random_hooked(kind, **WIDTHS))
    merged = random_hooked(kind, **WIDTHS)
    lora.merge(merged, adapter)
    points = ["ln1.hook_normalized", "attn.hook_q", "attn.hook_v", "attn.hook_z", "mlp.hook_pre", "mlp.hook_post"]
    points += ["mlp.hook_pre_linear"] if model.cfg.gated_mlp else []
    found: list[list[tuple[str, Tensor]]] = []
    for one in (model, merged):
        seen: list[tuple[str, Tensor]] = []

        def change(activation: Tensor, hook: Any, seen: list[tuple[str, Tensor]] = seen) -> Tensor:
            seen.append((hook.name, activation.detach()))
            return 0.9 * activation + 0.1

        with one.hooks(fwd_hooks=[(f"blocks.{layer}.{point}", change) for layer in range(3) for point in points]):
            if one is model:
                with lora.attached(model, adapter.requires_grad_()):
                    seen.append(("", logits(model).detach()))
            else:
                seen.append(("", logits(merged)))
        found.append(seen)
    ours, theirs = (dict(seen) for seen in found)
    assert ours.keys() == theirs.keys() and len(ours) == 3 * len(points) + 1
    for name, activation in theirs.items():
        assert_close(ours[name], activation)


@pytest.mark.parametrize("flag", FLAGS)
def test_flags_that_split_products_by_head_change_no_number(flag: str) -> None:
    model, adapter = random_hooked("llama", **WIDTHS), random_adapter(random_hooked("llama", **WIDTHS))
    out, slopes = summed(random_hooked("llama", **WIDTHS), [adapter])
    setattr(model.cfg, flag, True)
    if flag == "use_attn_in":
        model.cfg.ungroup_grouped_query_attention = True
    with lora.attached(model, adapter.requires_grad_()):
        found = logits(model)
        own = gradients(found, adapter.parameters())
    assert_close(found, out)
    for one, other in zip(own, slopes, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layout_in_memory_changes_no_bit_and_the_backward_pass_keeps_no_copy_of_a_weight(kind: str) -> None:
    model = random_hooked(kind, **{**WIDTHS, "d_model": 40, "d_mlp": 1500}, n_ctx=64)
    before, held = logits(model), {name: id(weight) for name, weight in model.named_parameters()}
    values = {name: weight.clone() for name, weight in model.named_parameters()}
    lay_out(model)
    assert all(torch.equal(weight, values[name]) for name, weight in model.named_parameters())
    assert {name: id(weight) for name, weight in model.named_parameters()} == held
    assert torch.equal(logits(model), before)
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    largest = {weight.numel() for weight in model.parameters() if weight.numel() > 4000}
    kept: list[Tensor] = []
    with (
        lora.attached(model, random_adapter(model).requires_grad_()),
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor),
    ):
        model(TOKENS[:1, :4])
    copies = [one.shape for one in kept if one.numel() in largest and one.untyped_storage().data_ptr() not in own]
    assert not copies and any(one.untyped_storage().data_ptr() in own for one in kept)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama-gqa", "neox", "phi3", "qwen2", "opt", "gemma2", "olmo2"])
def test_outputs_and_gradients_are_those_of_peft_on_the_same_checkpoint(
    family: str, folders: Callable[[str], Path], tmp_path: Path, no_sums: None
) -> None:
    with quiet_transformers():
        theirs = AutoModelForCausalLM.from_pretrained(folders(family), dtype=torch.float64, attn_implementation="eager")
    targets = [name for name, part in theirs.named_modules() if is_linear(part) and "head" not in name]
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules=targets)
    adapted = peft.get_peft_model(theirs, config).double().eval()
    factors = {name: weight for name, weight in adapted.named_parameters() if "lora_" in name}
    generator = torch.Generator().manual_seed(3)
    for factor in factors.values():
        factor.data.normal_(0, 0.3, generator=generator)
    adapted.save_pretrained(tmp_path / "adapter")
    model = ivlens.load(folders(family), dtype="float64")
    adapter = read_adapter(tmp_path / "adapter", model).requires_grad_()
    with lora.attached(model, adapter):
        ours = logits(model)
        slopes = dict(zip(names_of(adapter), gradients(ours, adapter.parameters()), strict=True))
    wanted = adapted(TOKENS, attention_mask=torch.ones_like(TOKENS)).logits.log_softmax(-1)
    assert_close(ours, wanted, 2e-5)  # Norms and softmax of transformers are float32 in places.
    theirs_by_size = sum(float(slope.square().sum()) for slope in gradients(wanted, list(factors.values())))
    # Weights of a fused layer share an `A`: the gradient of a shared one is their sum.
    shared: dict[tuple[str, bytes], Tensor] = {}
    for name, factor in zip(names_of(adapter), adapter.parameters(), strict=True):
        layer = name.rsplit(".", 1)[0].rsplit(".", 1)[0]
        key = (layer if name.endswith("A") else name, factor.detach().numpy().tobytes())
        shared[key] = shared.get(key, torch.zeros(())) + slopes[name]
    ours_by_size = sum(float(slope.square().sum()) for slope in shared.values())
    assert ours_by_size == pytest.approx(theirs_by_size, rel=1e-3)


def is_linear(part: torch.nn.Module) -> bool:
    return isinstance(part, torch.nn.Linear) or type(part).__name__ == "Conv1D"


def names_of(adapter: Adapter) -> list[str]:
    return [f"{name}.{part}" for name in adapter.factors for part in Factors._fields]


def test_in_16_bits_the_update_beside_a_weight_is_not_rounded_with_it() -> None:
    """An update too small for the weight's dtype is lost in a merge, and trained none the less."""
    half = random_hooked("llama", dtype=torch.bfloat16, **WIDTHS)
    adapter = random_adapter(random_hooked("llama", **WIDTHS))
    tiny = Adapter(factors={name: Factors(a, b * 1e-5) for name, (a, b) in adapter.factors.items()}, scale=1.0)
    assert lora.lost_to_rounding(half, tiny) > 0.9
    x = torch.randn(2, 3, 20, dtype=torch.bfloat16)
    factors = tiny.factors["blocks.0.attn.W_Q"]
    behind = attachment.Update(tiny, factors).added_behind(torch.zeros(2, 3, 24, dtype=torch.bfloat16), x)
    exact = (x.double() @ factors.A.T) @ factors.B.T
    torch.testing.assert_close(behind.double(), exact, rtol=2**-8, atol=0)


def test_an_exception_in_a_pass_leaves_sums_where_they_were() -> None:
    model = random_hooked("llama", **WIDTHS)
    adapter = random_adapter(model).requires_grad_()

    def stop(activation: Tensor, hook: object) -> None:
        raise KeyboardInterrupt

    with lora.attached(model, adapter):
        summed_up = model.blocks[1].attn.W_Q.detach().clone()
        with pytest.raises(KeyboardInterrupt), model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", stop)]):
            logits(model)
        assert torch.equal(model.blocks[1].attn.W_Q, summed_up)
        assert not any("forward" in vars(block.ln1) for block in model.blocks)
        one = partial(logits, model)
        assert torch.equal(one(), one())
