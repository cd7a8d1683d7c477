"""Each method has the property that defines it, and its penalty is what its formula says."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import jaxtyping
import pytest
import rounding
import torch
from small import (
    alone,
    fresh_adapter,
    logits_alone,
    small_examples,
    small_model,
    small_tokens,
    trained_adapter,
)
from torch import Tensor
from transformer_lens import HookedTransformer

from ivlens.datasets.task import Pair
from ivlens.errors import IvlensError
from ivlens.kept_batches import Tensors, keeping
from ivlens.models import lora, weights
from ivlens.models.lora import Adapter, Factors
from ivlens.patching.activations import differentiable_answer_logits
from ivlens.prompts.template import Prompt
from ivlens.prompts.tokens import Tokens
from ivlens.training.guidance import Guidance, Guide, steer_answers
from ivlens.training.loop import Examples, Step, Training, finetune
from ivlens.training.methods import METHODS, Ewc, History, Lora, Lwf, Method, Olora, Replay, ReplayGeneral, fisher

pytestmark = pytest.mark.numeric

TRAINING = Training(steps=5, batch=4, rate=0.02, warmup=1)


@pytest.fixture
def model() -> HookedTransformer:
    return small_model()


@pytest.fixture
def history(model: HookedTransformer) -> History:
    """Two stages, of 6 and of 4 prompts."""
    return History(
        adapters=(trained_adapter(model, seed=1), trained_adapter(model, seed=2)),
        prompts=tuple(
            tuple(Prompt(text=f"{stage}-{i}", answer="a", query=Pair(str(i), "a")) for i in range(n))
            for stage, n in enumerate((6, 4))
        ),
        tokens=(small_tokens(6, seed=1), small_tokens(4, seed=2)),
    )


def first_stage(history: History) -> History:
    return History(adapters=history.adapters[:1], prompts=history.prompts[:1], tokens=history.tokens[:1])


def train(
    model: HookedTransformer, method: Method, history: History | None = None, training: Training = TRAINING
) -> tuple[list[Step], Adapter]:
    """A stage on top of the earlier ones."""
    history = history or History()
    method.begin(model, history)
    adapter = fresh_adapter(model, seed=9)
    with lora.attached(model, *history.adapters, adapter):
        steps = list(finetune(model, adapter, small_examples(), training, method=method, seed=3))
    return steps, adapter.requires_grad_(False)


def penalty(model: HookedTransformer, method: Method, adapter: Adapter, history: History) -> Tensor:
    tokens = small_tokens()
    with lora.attached(model, *history.adapters, adapter):
        return method.penalty(model, adapter, tokens, differentiable_answer_logits(model, tokens))


def assert_same_training(one: tuple[list[Step], Adapter], other: tuple[list[Step], Adapter]) -> None:
    assert one[0] == other[0]
    for factor, same in zip(one[1].parameters(), other[1].parameters(), strict=True):
        assert torch.equal(factor, same)


# A new adapter per stage, and nothing else.


def test_plain_lora_adds_exactly_nothing(model: HookedTransformer, history: History) -> None:
    assert penalty(model, Lora(), trained_adapter(model), history).item() == 0.0
    assert [step.penalty for step in train(model, Lora(), history)[0]] == [0.0] * 5
    assert Lora().replayed(history, seed=0) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ewc", "olora", "replay"])
def test_in_a_first_stage_there_is_nothing_to_keep(model: HookedTransformer, name: str) -> None:
    method = METHODS[name]()
    assert_same_training(train(model, method), train(model, Lora()))
    assert method.replayed(History(), seed=0) == []


@pytest.mark.slow
@pytest.mark.parametrize("method", [Ewc(weight=0.0), Lwf(weight=0.0), Olora(weight=0.0)])
def test_with_a_weight_of_nothing_it_is_the_plain_training(
    model: HookedTransformer, history: History, method: Method
) -> None:
    assert_same_training(train(model, method, history), train(model, Lora(), history))


# EWC


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_fisher_is_the_mean_squared_gradient_of_one_answer_at_a_time(kind: str) -> None:
    model, tokens = small_model(kind), small_tokens(4)
    adapter = trained_adapter(model)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    found = fisher(model, adapter, tokens, samples=3)
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())
    assert not any(weight.requires_grad for weight in model.parameters())
    merged = copy.deepcopy(model)
    lora.merge(merged, adapter)
    generator = torch.Generator().manual_seed(0)
    assert found.keys() == adapter.factors.keys()
    for name, information in found.items():
        module, own = weights.locate(merged, name)
        flat = getattr(module, own).data.flatten()
        assert information.numel() == len(flat) and bool((information >= 0).all())
        for entry in torch.randint(len(flat), (4,), generator=generator).tolist():
            slopes = [slope(merged, getattr(module, own), entry, tokens, row) for row in range(3)]
            expected = sum(value**2 for value in slopes) / 3
            assert information.flatten()[entry].item() == pytest.approx(expected, rel=1e-5, abs=1e-10)


@torch.no_grad()
def slope(model: HookedTransformer, weight: Tensor, entry: int, tokens: Tokens, row: int, by: float = 1e-5) -> float:
    """Finite difference of the log-probability of the answer of one prompt, run alone and unpadded."""
    answer, values = alone(tokens, row)[1], []
    kept = weight.clone()
    for sign in (1, -1):
        weight.view(-1)[entry] = kept.view(-1)[entry] + sign * by
        log_probs = logits_alone(model, tokens, row).log_softmax(-1)
        values.append(sum(log_probs[i, token].item() for i, token in enumerate(answer)))
        weight.copy_(kept)
    return (values[0] - values[1]) / (2 * by)


def test_a_fisher_that_was_stopped_goes_on_from_the_prompts_that_it_has_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = small_model("llama"), small_tokens(5)
    adapter, kept, asked = trained_adapter(model), dict[str, Tensors](), list[str]()
    whole = fisher(model, adapter, tokens, samples=5)
    monkeypatch.setattr("ivlens.training.methods.count_at_once", lambda *_: 2)

    def keep(name: str, compute: Callable[[], Tensors]) -> Tensors:
        asked.append(name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        if name not in kept:
            kept[name] = compute()
        return kept[name]

    with pytest.raises(KeyboardInterrupt), keeping(keep):
        fisher(model, adapter, tokens, samples=5)
    first_two = dict(kept)
    with keeping(keep):
        found = fisher(model, adapter, tokens, samples=5)
    assert len(first_two) == 2 and len(kept) == 3 and asked[3:5] == asked[:2]
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    # Of another adapter nothing is taken.
    with keeping(keep):
        fisher(model, trained_adapter(model, seed=7), tokens, samples=5)
    assert len(kept) == 6


@pytest.mark.slow
def test_fishers_of_all_stages_are_summed_whether_seen_one_by_one_or_at_once(
    model: HookedTransformer, history: History
) -> None:
    adapter = trained_adapter(model, seed=4)
    one_by_one, at_once = Ewc(weight=3.0, samples=4), Ewc(weight=3.0, samples=4)
    one_by_one.begin(model, History())
    one_by_one.begin(model, first_stage(history))
    one_by_one.begin(model, history)
    at_once.begin(model, history)
    found = penalty(model, at_once, adapter, history)
    assert found.item() > 0.01 and torch.equal(found, penalty(model, one_by_one, adapter, history))
    first = fisher(model, history.adapters[0], history.tokens[0], samples=4)
    second = fisher(model, lora.stack(history.adapters), history.tokens[1], samples=4)
    latest = copy.deepcopy(model)
    for earlier in history.adapters:
        lora.merge(latest, earlier)
    moved = copy.deepcopy(latest)
    lora.merge(moved, adapter)
    expected = 0.0
    for name in adapter.factors:
        (module, own), (other, _) = weights.locate(latest, name), weights.locate(moved, name)
        change = getattr(other, own) - getattr(module, own)
        expected += 3.0 / 2 * float(((first[name] + second[name]) * change**2).sum())
    assert found.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.slow
def test_under_an_enormous_weight_nothing_moves_that_the_old_tasks_need(
    model: HookedTransformer, history: History
) -> None:
    training = Training(steps=40, batch=4, rate=0.02, warmup=0)
    _, plain = train(model, Lora(), history, training)
    _, kept = train(model, Ewc(weight=1e12), history, training)
    measured = Ewc(weight=2.0)
    measured.begin(model, history)
    # With a weight of 2 the penalty is the squared length of the change in the norm of the Fisher information.
    lengths = [penalty(model, measured, adapter, history).sqrt().item() for adapter in (kept, plain)]
    assert lengths[1] > 1
    assert lengths[0] < 1e-3 * lengths[1]


# LwF


def test_lwf_is_the_divergence_from_the_model_before_this_stage(model: HookedTransformer, history: History) -> None:
    tokens, adapter = small_tokens(), trained_adapter(model, seed=4)
    found = penalty(model, Lwf(weight=0.7, temperature=3.0), adapter, history)
    before, after = copy.deepcopy(model), copy.deepcopy(model)
    for earlier in history.adapters:
        lora.merge(before, earlier)
        lora.merge(after, earlier)
    lora.merge(after, adapter)
    divergences = []
    for row in range(len(tokens)):
        p, q = ((logits_alone(one, tokens, row) / 3.0).softmax(-1) for one in (before, after))
        divergences += (p * (p / q).log()).sum(-1).tolist()
    expected = 0.7 * 3.0**2 * sum(divergences) / len(divergences)
    assert expected > 0.05 and len(divergences) == 12
    assert found.item() == pytest.approx(expected, rel=1e-10)


def test_the_gradient_of_lwf_vanishes_at_the_teacher(model: HookedTransformer, history: History) -> None:
    for adapter, vanishes in ((fresh_adapter(model), True), (trained_adapter(model), False)):
        found = penalty(model, Lwf(), adapter.requires_grad_(), history)
        largest = max(float(g.abs().max()) for g in torch.autograd.grad(found, adapter.parameters()))
        near = rounding.of_forward(model, small_tokens().prompts)
        assert (abs(found.item()) < near and largest < near) if vanishes else (found.item() > 0.05 and largest > 0.01)


def test_under_guidance_the_steered_student_is_compared_with_the_unsteered_teacher(model: HookedTransformer) -> None:
    vector = torch.randn(1, model.cfg.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    guide = Guide(guidance=Guidance(kl=0.0), vectors=vector, layer=0, teacher=lambda: lora.silenced(model))
    examples, method, adapter = small_examples(), Lwf(), fresh_adapter(model)
    with lora.attached(model, adapter):
        whole = Training(steps=1, batch=6)
        step = next(finetune(model, adapter, examples, whole, method=method, guide=guide, seed=3))
    with steer_answers(model, examples.prompts, vector.expand(6, -1), 0), torch.no_grad():
        steered = differentiable_answer_logits(model, examples.prompts)
    expected = method.penalty(model, adapter, examples.prompts, steered).item()
    assert expected > 0.05
    assert step.penalty == pytest.approx(expected, rel=1e-10)


# O-LoRA


def test_olora_sums_absolute_products_of_old_and_new_rows(model: HookedTransformer, history: History) -> None:
    method, adapter = Olora(weight=0.3), trained_adapter(model, seed=4)
    method.begin(model, history)
    expected = 0.0
    for name, (new, _) in adapter.factors.items():
        for earlier in history.adapters:
            for row in new:
                for other in earlier.factors[name].A:
                    expected += 0.3 * abs(sum(a * b for a, b in zip(row.tolist(), other.tolist(), strict=True)))
    assert penalty(model, method, adapter, history).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.slow
def test_olora_ends_closer_to_orthogonal_than_without(model: HookedTransformer, history: History) -> None:
    training = Training(steps=40, batch=4, rate=0.02, warmup=0)
    cosines = [mean_cosine(train(model, method, history, training)[1].factors, history) for method in (Lora(), Olora())]
    assert cosines[0] > 0.1
    assert cosines[1] < 0.2 * cosines[0]


def mean_cosine(factors: Mapping[str, Factors], history: History) -> float:
    """Mean of |cosine| between every new row of `A` and every old one of the same weight."""
    found = []
    for name, (new, _) in factors.items():
        for earlier in history.adapters:
            old = earlier.factors[name].A
            found.append((new @ old.T / new.norm(dim=1)[:, None] / old.norm(dim=1)).abs().flatten())
    return float(torch.cat(found).mean())


# Replay


def test_replay_keeps_at_most_so_many_prompts_of_every_stage(history: History) -> None:
    found = Replay(memory=5).replayed(history, seed=0)
    assert len(set(found)) == len(found) == 9
    assert [sum(prompt in stage for prompt in found) for stage in history.prompts] == [5, 4]
    assert Replay(memory=5).replayed(history, seed=0) == found
    assert len({tuple(Replay(memory=2).replayed(history, seed=seed)) for seed in range(8)}) > 2
    # What was kept of a stage is kept for good.
    assert Replay(memory=5).replayed(first_stage(history), seed=0) == found[:5]


def test_replay_general_keeps_every_prompt_that_vectors_are_taken_from_and_none_of_a_stage(history: History) -> None:
    general = tuple(Prompt(text=f"general-{i}", answer="b", query=Pair(str(i), "b")) for i in range(7))
    with_general = History(adapters=history.adapters, prompts=history.prompts, tokens=history.tokens, general=general)
    assert ReplayGeneral().replayed(with_general, seed=0) == ReplayGeneral().replayed(with_general, seed=1)
    assert tuple(ReplayGeneral().replayed(with_general, seed=0)) == general
    assert Replay(memory=99).replayed(with_general, seed=0) == [prompt for stage in history.prompts for prompt in stage]
    with pytest.raises(IvlensError, match="replay-general has nothing to replay; give the history general prompts"):
        ReplayGeneral().replayed(history, seed=0)


@pytest.mark.parametrize(("share", "old"), [(0.25, 4), (0.1, 2), (0.5, 8), (0.9, 14)])
def test_every_batch_has_exactly_its_share_of_old_prompts(share: float, old: int) -> None:
    examples = small_examples(9, new=6, replayed=share)
    batches = [examples.rows(step, 16, 0) for step in range(12)]
    assert [int((rows >= 6).sum()) for rows in batches] == [old] * 12
    assert {len(rows) for rows in batches} == {16}
    assert {row for rows in batches for row in rows.tolist()} == set(range(9)), "all old prompts have their turn"
    new = [row for rows in batches for row in rows.tolist() if row < 6]
    epochs = [sorted(new[start : start + 6]) for start in range(0, len(new) - 5, 6)]
    assert epochs == [list(range(6))] * len(epochs), "replay does not disturb the epochs of the new prompts"
    again = [examples.rows(step, 16, 0) for step in range(12)]
    assert all((one == other).all() for one, other in zip(batches, again, strict=True))


def test_without_old_prompts_or_a_share_nothing_is_replayed() -> None:
    for examples in (small_examples(6, replayed=0.25), small_examples(6, new=4)):
        assert max(int(examples.rows(step, 16, 0).max()) for step in range(8)) == examples.new - 1


@pytest.mark.slow
def test_replayed_prompts_are_learned(model: HookedTransformer) -> None:
    prompts = small_tokens(9)
    examples = Examples(prompts=prompts, bare=prompts, new=6, replayed=0.5)
    adapter, losses = fresh_adapter(model), []
    for _ in range(2):
        with lora.attached(model, adapter), torch.no_grad():
            old = prompts[6:]
            log_probs = differentiable_answer_logits(model, old).log_softmax(-1)
            chosen = log_probs.gather(-1, old.answers[..., None])[..., 0]
            losses.append(-float((chosen * old.answer_mask).sum()))
        with lora.attached(model, adapter):
            list(finetune(model, adapter, examples, Training(steps=20, batch=6, rate=0.03), method=Replay()))
    assert losses[1] < 0.7 * losses[0]


# What no method can be


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("ewc", {"weight": -1.0}, r"ewc: weight is -1\.0; it must be 0 or more"),
        ("ewc", {"weight": math.inf}, "ewc: weight is inf"),
        ("ewc", {"samples": 0}, "ewc: samples is 0; it must be 1 or more"),
        ("lwf", {"weight": math.nan}, "lwf: weight is nan"),
        ("lwf", {"temperature": 0.0}, r"lwf: temperature is 0\.0; it must be a number above 0"),
        ("lwf", {"temperature": math.inf}, "lwf: temperature is inf"),
        ("olora", {"weight": -0.5}, r"olora: weight is -0\.5"),
        ("replay", {"share": 0.0}, r"replay: share is 0\.0; it must be between 0 and 1"),
        ("replay", {"share": 1.0}, r"replay: share is 1\.0"),
        ("replay", {"share": math.nan}, "replay: share is nan"),
        ("replay", {"memory": 0}, "replay: memory is 0; it must be 1 or more"),
        ("replay-general", {"share": 1.0}, r"replay-general: share is 1\.0; it must be between 0 and 1"),
    ],
)
def test_bad_settings_are_refused(
    name: str, settings: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(IvlensError, match=sentence):
        METHODS[name](**settings)


def test_methods_are_what_the_loop_asks_for() -> None:
    assert list(METHODS) == ["lora", "ewc", "lwf", "olora", "replay", "replay-general"]
    assert all(isinstance(method(), Method) for method in METHODS.values())
    assert repr(Ewc()) == "Ewc(weight=10000.0, samples=64)", "what it has seen is no setting"
