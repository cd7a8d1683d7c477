"""An adapter is the update that its factors say, on every weight, attached or merged, and leaves no trace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from checkpoints import random_hooked
from conftest import random_tokens
from torch import Tensor
from torch.nn.utils import parametrize
from transformer_lens import HookedTransformer

from ivlens.errors import IvlensError, ShapeMismatch
from ivlens.models import lora
from ivlens.models.hooked import weight_digest
from ivlens.models.lora import Adapter, Factors, LoraConfig
from ivlens.models.weights import TARGETS, Target, locate
from ivlens.patching import sweep

pytestmark = pytest.mark.numeric

TOKENS = torch.randint(4, 120, (3, 12), generator=torch.Generator().manual_seed(0))
# No two widths alike, so that a transposed or misplaced update cannot fit by chance.
WIDTHS = {"d_head": 6, "d_model": 20, "d_mlp": 28}
KINDS = ("gpt2", "llama", "neox", "softcap", "qknorm")


def model_of(kind: str) -> HookedTransformer:
    return random_hooked(kind, **WIDTHS)


@pytest.fixture
def model() -> HookedTransformer:
    """Llama-shaped: 4 query heads over 2 key and value heads, a gated MLP."""
    return model_of("llama")


def targets_of(model: HookedTransformer) -> tuple[Target, ...]:
    return tuple(target for target in TARGETS if target != "W_gate" or model.cfg.gated_mlp)


def random_adapter(
    model: HookedTransformer,
    *targets: Target,
    rank: int = 3,
    layers: tuple[int, ...] | None = None,
    seed: int = 0,
    alpha: float = 4.0,
) -> Adapter:
    """Factors in float64, `B` too large to be overlooked."""
    config = LoraConfig(rank=rank, alpha=alpha, targets=targets or targets_of(model), layers=layers)
    start = lora.fresh(model, config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    factors = {
        name: Factors(a.double(), torch.randn(b.shape, generator=generator, dtype=torch.float64) * 0.3)
        for name, (a, b) in start.factors.items()
    }
    return Adapter(factors=factors, scale=config.scale)


def logits(model: HookedTransformer) -> Tensor:
    with torch.no_grad():
        return model(TOKENS)


def weights(model: HookedTransformer) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def assert_untouched(model: HookedTransformer, before: dict[str, Tensor]) -> None:
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    assert not any(weight.requires_grad for weight in model.parameters())


def assert_close(one: Tensor, other: Tensor, tolerance: float = 1e-11) -> None:
    one, other = one.detach(), other.detach()
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance * max(1.0, float(other.abs().max())))


def assert_moved(one: Tensor, other: Tensor) -> None:
    assert float((one - other).abs().max()) > 0.1, "the adapter does nothing: the comparison would be empty"


@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_adapter_changes_nothing(kind: str) -> None:
    model = model_of(kind)
    base = logits(model)
    fresh = lora.fresh(model, LoraConfig(targets=targets_of(model)))
    assert fresh.is_nothing() and not random_adapter(model).is_nothing()
    with lora.attached(model, fresh):
        assert torch.equal(logits(model), base)
    lora.merge(model, fresh)
    assert torch.equal(logits(model), base)


def test_a_fresh_adapter_follows_its_seed(model: HookedTransformer) -> None:
    one, same, other = (lora.fresh(model, LoraConfig(), seed=seed) for seed in (1, 1, 2))
    assert all(map(torch.equal, one.parameters(), same.parameters()))
    assert not any(torch.equal(a, b) for a, b in zip(one.parameters()[::2], other.parameters()[::2], strict=True))
    a = one.factors["blocks.0.attn.W_Q"].A
    assert 0.9 < float(a.abs().max()) * 20**0.5 <= 1, "uniform up to 1 / sqrt(inputs)"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", TARGETS)
def test_attaching_equals_merging_bit_for_bit_on_every_weight(kind: str, target: Target) -> None:
    model = model_of(kind)
    if target not in targets_of(model):
        with pytest.raises(IvlensError, match=rf"random-{kind} has no weight 'blocks.0.mlp.W_gate'"):
            lora.fresh(model, LoraConfig(targets=(target,)))
        return
    base, adapter = logits(model), random_adapter(model, target)
    with lora.attached(model, adapter):
        attached, digest = logits(model), weight_digest(model)
    assert_moved(attached, base)
    lora.merge(model, adapter)
    assert torch.equal(logits(model), attached) and weight_digest(model) == digest


@pytest.mark.parametrize("kind", KINDS)
def test_the_update_of_each_head_is_its_own_rows_of_the_factors(kind: str) -> None:
    model = model_of(kind)
    adapter, before = random_adapter(model), weights(model)
    lora.merge(model, adapter)
    changed = weights(model)
    for name, factors in adapter.factors.items():
        own = name if name in before else name.replace("W_", "_W_")
        assert_close(changed.pop(own), before[own] + slow_update(name, factors, adapter.scale, before[own].shape))
    assert all(torch.equal(weight, before[name]) for name, weight in changed.items())


def slow_update(name: str, factors: Factors, scale: float, shape: torch.Size) -> Tensor:
    """One head and one component of the rank at a time."""
    update = torch.zeros(shape, dtype=torch.float64)
    for a, b in zip(factors.A, factors.B.T, strict=True):
        if len(shape) == 2:
            update += scale * torch.outer(a, b)
            continue
        width = shape[1] if name.endswith("W_O") else shape[2]
        for head in range(shape[0]):
            part = slice(head * width, (head + 1) * width)
            update[head] += scale * (torch.outer(a[part], b) if name.endswith("W_O") else torch.outer(a, b[part]))
    return update


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_gradients_are_those_of_the_weights_carried_to_the_factors(kind: str) -> None:
    model, adapter = model_of(kind), random_adapter(model_of(kind)).requires_grad_()
    with lora.attached(model, adapter):
        loss(model).backward()
    assert all(weight.grad is None for weight in model.parameters())
    merged = model_of(kind)
    lora.merge(merged, adapter)
    merged.requires_grad_(True)
    loss(merged).backward()
    for name, (a, b) in adapter.factors.items():
        module, own = locate(merged, name)
        by_weight = as_matrix(getattr(module, own).grad, name)
        assert_close(a.grad, adapter.scale * (by_weight @ b).T, 1e-9)
        assert_close(b.grad, adapter.scale * by_weight.T @ a.T, 1e-9)
        assert a.grad.abs().max() > 0 and b.grad.abs().max() > 0


def as_matrix(weight: Tensor, name: str) -> Tensor:
    """Inputs and outputs of a weight, heads one after the other."""
    if weight.dim() == 2:
        return weight
    return weight.flatten(0, 1) if name.endswith("W_O") else weight.transpose(0, 1).flatten(1)


def loss(model: HookedTransformer) -> Tensor:
    return model(TOKENS).log_softmax(-1)[:, -1, 5].sum()


@pytest.mark.slow
def test_gradients_equal_finite_differences(model: HookedTransformer) -> None:
    adapter = random_adapter(model, "W_Q", "W_V", "W_gate").requires_grad_()
    step, generator = 1e-6, torch.Generator().manual_seed(3)
    with lora.attached(model, adapter):
        slopes = torch.autograd.grad(loss(model), adapter.parameters())
        with torch.no_grad():
            for factor, slope in zip(adapter.parameters(), slopes, strict=True):
                direction = torch.randn(factor.shape, generator=generator, dtype=torch.float64)
                factor += step * direction
                ahead = loss(model)
                factor -= 2 * step * direction
                behind = loss(model)
                factor += step * direction
                assert_close((ahead - behind) / (2 * step), (slope * direction).sum(), 1e-6)


def test_an_attached_adapter_leaves_no_trace(model: HookedTransformer) -> None:
    before, base = weights(model), logits(model)
    held = {name: id(weight) for name, weight in model.named_parameters()}
    with lora.attached(model, random_adapter(model), random_adapter(model, "W_V", seed=1)) as same:
        assert same is model
        assert_moved(logits(model), base)
    assert_untouched(model, before)
    assert torch.equal(logits(model), base)
    assert {name: id(weight) for name, weight in model.named_parameters()} == held


def test_an_exception_takes_the_adapter_off(model: HookedTransformer) -> None:
    before = weights(model)
    with pytest.raises(KeyboardInterrupt), lora.attached(model, random_adapter(model)):
        raise KeyboardInterrupt
    assert_untouched(model, before)


def test_taking_one_adapter_off_leaves_the_others(model: HookedTransformer) -> None:
    one, two, before = random_adapter(model, "W_Q", "W_V"), random_adapter(model, "W_V", "W_O", seed=1), weights(model)
    with lora.attached(model, two):
        only_two = logits(model)
    lora.attach(model, one, two)
    lora.detach(model, one)
    assert torch.equal(logits(model), only_two)
    lora.detach(model, one)
    lora.detach(model, two)
    assert_untouched(model, before)


def test_stacking_equals_attaching_all(model: HookedTransformer) -> None:
    one = random_adapter(model, "W_Q", "W_V", rank=2)
    two = random_adapter(model, "W_V", "W_out", rank=5, seed=1, alpha=1.0)
    three = random_adapter(model, "W_K", "W_V", rank=1, seed=2, layers=(1,))
    with lora.attached(model, one, two, three):
        expected = logits(model)
    stacked = lora.stack([one, two, three])
    assert len(stacked.factors["blocks.1.attn.W_V"].A) == 2 + 5 + 1
    assert len(stacked.factors["blocks.0.mlp.W_out"].A) == 5
    with lora.attached(model, stacked):
        assert_close(logits(model), expected)
    assert_moved(expected, logits(model))


def test_silencing_gives_the_base_model_and_ends_with_the_block(model: HookedTransformer) -> None:
    base, one, two = logits(model), random_adapter(model), random_adapter(model, "W_V", seed=1)
    with lora.attached(model, two):
        only_two = logits(model)
    with lora.attached(model, one, two):
        both = logits(model)
        with lora.silenced(model):
            assert torch.equal(logits(model), base)
        with lora.silenced(model, one):
            assert torch.equal(logits(model), only_two)
            with lora.silenced(model):
                assert torch.equal(logits(model), base)
            assert torch.equal(logits(model), only_two)
        with pytest.raises(ZeroDivisionError), lora.silenced(model):
            raise ZeroDivisionError
        assert torch.equal(logits(model), both)


def test_a_merged_adapter_leaves_the_old_bits(model: HookedTransformer) -> None:
    before, base, adapter = weights(model), logits(model), random_adapter(model)
    with lora.merged(model, adapter):
        assert_moved(logits(model), base)
        assert not any(parametrize.is_parametrized(module) for module in model.modules())
    assert_untouched(model, before)
    with pytest.raises(ZeroDivisionError), lora.merged(model, adapter):
        raise ZeroDivisionError
    assert_untouched(model, before)


def test_the_digest_counts_attached_adapters_as_merged_in_their_order(model: HookedTransformer) -> None:
    one, two, base = random_adapter(model, "W_Q", "W_K"), random_adapter(model, "W_K", seed=1), weight_digest(model)
    with lora.attached(model, one, two):
        attached = weight_digest(model)
        with lora.silenced(model):
            assert weight_digest(model) == base
    assert weight_digest(model) == base != attached
    lora.merge(model, one)
    lora.merge(model, two)
    assert weight_digest(model) == attached


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_hooks_and_sweeps_see_the_adapted_model(kind: str) -> None:
    model = model_of(kind)
    adapter, tokens = random_adapter(model), random_tokens()
    shape = (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head)
    z = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    _, base = sweep.sweep(model, tokens, z)
    with lora.attached(model, adapter), torch.no_grad():
        _, cache = model.run_with_cache(TOKENS)
        _, swept = sweep.sweep(model, tokens, z)
        _, looped = sweep.loop(model, tokens, z)
    lora.merge(model, adapter)
    with torch.no_grad():
        _, expected = model.run_with_cache(TOKENS)
    assert all(torch.equal(cache[name], expected[name]) for name in expected)
    assert torch.equal(swept, sweep.sweep(model, tokens, z)[1])
    assert_close(swept, looped)
    assert float((swept - base).abs().max()) > 1e-3, "the adapter must move the effects"


def test_in_half_precision_the_update_is_rounded_once(model: HookedTransformer) -> None:
    half = random_hooked("llama", dtype=torch.bfloat16, **WIDTHS)
    adapter = random_adapter(half, "W_in")
    before = weights(half)["blocks.0.mlp.W_in"]
    update = lora.update_matrix(adapter.factors["blocks.0.mlp.W_in"], adapter.scale)
    lora.merge(half, adapter)
    assert torch.equal(half.blocks[0].mlp.W_in, (before.float() + update.float()).bfloat16())
    assert not torch.equal(half.blocks[0].mlp.W_in, before + update.bfloat16()), "rounded twice"


SLIPS: dict[str, tuple[Callable[[HookedTransformer], object], str]] = {
    "rank": (lambda _: LoraConfig(rank=0), r"rank is 0; it must be 1 or more"),
    "alpha": (lambda _: LoraConfig(alpha=-1.0), r"alpha is -1.0; it must be a number above 0"),
    "alpha-nan": (lambda _: LoraConfig(alpha=float("nan")), r"alpha is nan; it must be a number above 0"),
    "no-target": (lambda _: LoraConfig(targets=()), r"targets are \(\); name some of W_Q, W_K"),
    "target-twice": (lambda _: LoraConfig(targets=("W_Q", "W_Q")), r"targets are .*, each once"),
    "no-layer": (lambda m: lora.fresh(m, LoraConfig(layers=(0, 3))), r"there is no layer 3: the model has 3, counted"),
    "layer-from-the-end": (lambda m: lora.fresh(m, LoraConfig(layers=(-1,))), r"there is no layer -1"),
    "no-weight": (
        lambda m: lora.attach(m, Adapter(factors={"blocks.9.attn.W_Q": Factors(*FLAT)}, scale=1.0)),
        r"random-llama has no weight 'blocks.9.attn.W_Q'; choose targets that it has",
    ),
    "nothing-to-stack": (lambda _: lora.stack([]), r"there are no adapters to stack; give at least one"),
}
FLAT = (torch.ones(1, 20), torch.ones(24, 1))


@pytest.mark.parametrize("case", SLIPS)
def test_slips_are_told_in_a_sentence(case: str, model: HookedTransformer) -> None:
    slip, sentence = SLIPS[case]
    with pytest.raises(IvlensError, match=sentence):
        slip(model)


def test_an_adapter_of_another_model_is_refused_with_both_shapes(model: HookedTransformer) -> None:
    before, other = weights(model), random_adapter(model_of("gpt2"), "W_Q", "W_K")
    sentence = (
        r"A \(3, 20\) and B \(24, 3\) for blocks.0.attn.W_K, but random-llama needs \(rank, 20\) and \(12, rank\)"
    )
    for use in (lora.attach, lora.merge):
        with pytest.raises(ShapeMismatch, match=sentence):
            use(model, other)
    with pytest.raises(ShapeMismatch, match=sentence), lora.attached(model, random_adapter(model), other):
        raise AssertionError("was attached")
    assert_untouched(model, before)


def test_ranks_that_do_not_meet_and_nan_are_refused(model: HookedTransformer) -> None:
    name = "blocks.0.attn.W_Q"
    uneven = Adapter(factors={name: Factors(torch.ones(2, 20), torch.ones(24, 3))}, scale=1.0)
    with pytest.raises(ShapeMismatch, match=r"A \(2, 20\) and B \(24, 3\)"):
        lora.attach(model, uneven)
    damaged = random_adapter(model)
    damaged.factors[name].B[0, 0] = torch.nan
    with pytest.raises(IvlensError, match=rf"NaN or infinity for {name}; train or save it again"):
        lora.merge(model, damaged)


def test_an_adapter_is_attached_once(model: HookedTransformer) -> None:
    before, adapter = weights(model), random_adapter(model)
    with pytest.raises(IvlensError, match=r"attached already; detach it first"):
        lora.attach(model, adapter, adapter)
    assert_untouched(model, before)
    with lora.attached(model, adapter), pytest.raises(IvlensError, match=r"attached already; detach it first"):
        lora.attach(model, adapter)


def test_merging_under_an_attached_adapter_is_refused_and_merges_nothing(model: HookedTransformer) -> None:
    before = weights(model)
    with lora.attached(model, random_adapter(model, "W_out")):
        expected = logits(model)
        with pytest.raises(IvlensError, match=r"blocks.0.mlp.W_out has an adapter attached; detach it before merging"):
            lora.merge(model, random_adapter(model, seed=1))
        assert torch.equal(logits(model), expected)
    assert_untouched(model, before)


def test_an_adapter_says_what_it_is(model: HookedTransformer) -> None:
    assert repr(random_adapter(model, "W_Q", "W_in", rank=2)) == "Adapter(6 weights, W_Q, W_in, rank [2], scale 2)"
    assert LoraConfig(rank=16, alpha=8.0, rank_stabilised=True).scale == 2
