"""Guidance steers where it says, and holds the student to the teacher by the divergence that its settings say."""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
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

from ivlens.errors import IvlensError
from ivlens.models import lora
from ivlens.models.lora import Adapter
from ivlens.patching.activations import differentiable_answer_logits, with_answers
from ivlens.prompts.tokens import Tokens
from ivlens.shapes import Head
from ivlens.training.guidance import GUIDANCE, Guidance, Guide, keep_z, steer_answers
from ivlens.training.loop import Training, finetune
from ivlens.training.methods import Lora

pytestmark = pytest.mark.numeric

HEADS = (Head(1, 2), Head(0, 3), Head(1, 0))
TOKENS, BARE = small_tokens(), small_tokens(seed=1)


@pytest.fixture
def model() -> HookedTransformer:
    return small_model()


def some_vectors(n: int = 1) -> Tensor:
    return torch.randn(n, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def guide_of(
    model: HookedTransformer, guidance: Guidance, *, vectors: Tensor | None = None, without: tuple[Adapter, ...] = ()
) -> Guide:
    """Steers after the first block; the teacher is the model without these adapters, or without any."""
    return Guide(
        guidance=guidance,
        vectors=some_vectors() if vectors is None else vectors,
        layer=0,
        heads=HEADS,
        teacher=lambda: lora.silenced(model, *without),
    )


def run(
    model: HookedTransformer, guide: Guide, adapter: Adapter, *, progress: float = 0.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    with lora.attached(model, adapter):
        return guide.run(model, TOKENS, BARE, progress=progress, generator=generator)


def gradients(loss: Tensor, adapter: Adapter) -> list[Tensor]:
    return list(torch.autograd.grad(loss, adapter.parameters(), retain_graph=True, materialize_grads=True))


def with_adapters(model: HookedTransformer, *adapters: Adapter) -> HookedTransformer:
    """A model of its own, in which they are merged."""
    merged = copy.deepcopy(model)
    for adapter in adapters:
        lora.merge(merged, adapter)
    return merged


def steered_alone(model: HookedTransformer, tokens: Tokens, row: int, vector: Tensor) -> Tensor:
    """Logits of one unpadded prompt; the vector is added behind the first block, one answer-predicting token a time."""
    prompt, answer = alone(tokens, row)
    ids = torch.cat([prompt, answer[:-1]])[None]
    resid = model(ids, stop_at_layer=1)
    for place in range(len(answer)):
        resid[0, len(prompt) - 1 + place] += vector
    return model(resid, start_at_layer=1)[0, len(prompt) - 1 :]


def divergence(p: Tensor, q: Tensor) -> list[float]:
    """KL[p || q] of logits, one token a time."""
    p, q = p.softmax(-1), q.softmax(-1)
    return [
        sum(a * math.log(a / b) for a, b in zip(one.tolist(), other.tolist(), strict=True))
        for one, other in zip(p, q, strict=True)
    ]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


# Where it steers


@pytest.mark.parametrize("kind", ["llama", "gpt2", "alibi", "local"])
def test_the_vector_is_added_where_answer_tokens_are_predicted_and_nowhere_else(kind: str) -> None:
    model, vectors = small_model(kind), some_vectors(6)
    plain = differentiable_answer_logits(model, TOKENS)
    with steer_answers(model, TOKENS, vectors, 0):
        logits = differentiable_answer_logits(model, TOKENS)
    assert {int(length) for length in TOKENS.answer_mask.sum(1)} == {1, 2, 3}
    for row, vector in enumerate(vectors):
        expected = steered_alone(model, TOKENS, row, vector)
        assert float((expected - logits_alone(model, TOKENS, row)).abs().max()) > 0.1
        torch.testing.assert_close(logits[row, : len(expected)], expected, rtol=0, atol=1e-11)
    ids, mask = with_answers(TOKENS)
    before = model(ids, attention_mask=mask.long(), stop_at_layer=1)
    with steer_answers(model, TOKENS, vectors, 0):
        after = model(ids, attention_mask=mask.long(), stop_at_layer=1)
    assert torch.equal(after[:, :-3], before[:, :-3])
    assert torch.equal(after[:, -3:], before[:, -3:] + vectors[:, None])
    assert torch.equal(differentiable_answer_logits(model, TOKENS), plain)


def test_steering_and_watching_leave_no_hooks_behind_even_on_an_exception(model: HookedTransformer) -> None:
    seen: list[int] = []
    model.add_hook("blocks.0.hook_resid_post", lambda resid, hook: seen.append(1))
    with (
        pytest.raises(ZeroDivisionError),
        steer_answers(model, TOKENS, some_vectors(6), 0),
        keep_z(model, TOKENS, HEADS),
    ):
        raise ZeroDivisionError
    run(model, guide_of(model, GUIDANCE["fv"]), fresh_adapter(model))
    assert len(seen) == 3, "a hook of the user's own must stay: student, steered teacher, watched teacher"
    model.reset_hooks()
    assert all(not point.fwd_hooks and not point._forward_hooks for point in model.hook_dict.values())


def test_s_falls_from_one_to_zero() -> None:
    progress = (0.0, 0.2, 0.25, 0.5, 0.6, 0.75, 0.99, 1.0)
    falls = {
        name: [Guidance(schedule=name).strength(done) for done in progress] for name in ("linear", "steps", "constant")
    }
    assert falls["linear"] == pytest.approx([1 - done for done in progress])
    assert falls["steps"] == [1.0, 1.0, 0.75, 0.5, 0.5, 0.25, 0.25, 0.0]
    assert falls["constant"] == [1.0] * 8


# What it adds to the loss


OFF = {
    "s = 0": (Guidance(kl=0.0), 1.0),
    "unsteered": (Guidance(kl=0.0, student=False), 0.0),
    "zero vector": (Guidance(kl=0.0, vector="zero"), 0.0),
}


@pytest.mark.parametrize("form", OFF)
def test_without_steering_and_divergence_the_step_is_the_plain_step_bit_for_bit(
    model: HookedTransformer, form: str
) -> None:
    guidance, progress = OFF[form]
    adapter = trained_adapter(model).requires_grad_()
    vectors = some_vectors() * (guidance.vector != "zero")
    logits, penalty = run(model, guide_of(model, guidance, vectors=vectors), adapter, progress=progress)
    with lora.attached(model, adapter):
        plain = differentiable_answer_logits(model, TOKENS)
    assert torch.equal(logits, plain) and penalty.item() == 0.0
    slopes = gradients(logits.logsumexp(-1).sum() + penalty, adapter)
    assert all(map(torch.equal, slopes, gradients(plain.logsumexp(-1).sum(), adapter)))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["unsteered", "zero vector"])
def test_a_training_that_is_not_guided_is_the_plain_training_bit_for_bit(model: HookedTransformer, form: str) -> None:
    guidance = OFF[form][0]
    vectors = some_vectors() * (guidance.vector != "zero")
    found = []
    for guide in (None, guide_of(model, guidance, vectors=vectors)):
        adapter = fresh_adapter(model)
        with lora.attached(model, adapter):
            training = Training(steps=4, batch=4, warmup=0)
            steps = list(finetune(model, adapter, small_examples(), training, method=Lora(), guide=guide))
        found.append((steps, adapter.parameters()))
    assert found[0][0] == found[1][0]
    assert all(map(torch.equal, found[0][1], found[1][1]))


@pytest.mark.slow
def test_the_teacher_is_asked_only_where_it_counts(model: HookedTransformer) -> None:
    def refuse() -> AbstractContextManager[Any]:
        raise ZeroDivisionError

    for name, guidance in GUIDANCE.items():
        guide = replace(guide_of(model, guidance), teacher=refuse)
        if name == "iv-steer":
            assert run(model, guide, fresh_adapter(model))[1].item() == 0.0
        else:
            with pytest.raises(ZeroDivisionError):
                run(model, guide, fresh_adapter(model))


AT_THE_TEACHER = {
    "iv": (Guidance(), 0.0),
    "iv, reverse": (Guidance(reverse=True), 0.0),
    "iv, temperature 2": (Guidance(temperature=2.0), 0.0),
    "iv, constant": (Guidance(schedule="constant"), 0.7),
    "kl": (GUIDANCE["kl"], 0.7),
    "general": (Guidance(vector="general", schedule="constant"), 0.7),
    "iv-general": (GUIDANCE["iv-general"], 0.7),
    "iv-general-bare": (GUIDANCE["iv-general-bare"], 0.7),
    "heads": (Guidance(kl=0.0, student=False, heads=1.0), 0.7),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", AT_THE_TEACHER)
def test_the_gradient_vanishes_at_the_teacher(model: HookedTransformer, form: str) -> None:
    guidance, progress = AT_THE_TEACHER[form]
    vectors = {"zero": torch.zeros(1, 20, dtype=torch.float64), "general": some_vectors(4)}.get(guidance.vector)
    guide = guide_of(model, guidance, vectors=vectors)
    fresh, trained = fresh_adapter(model).requires_grad_(), trained_adapter(model).requires_grad_()
    _, penalty = run(model, guide, fresh, progress=progress)
    near = rounding.of_forward(model, small_tokens().prompts)
    assert abs(penalty.item()) < near
    assert all(float(slope.abs().max()) < near for slope in gradients(penalty, fresh))
    _, penalty = run(model, guide, trained, progress=progress)
    assert penalty.item() > 1e-4
    assert max(float(slope.abs().max()) for slope in gradients(penalty, trained)) > 1e-4


def test_away_from_the_teacher_a_steered_student_is_pulled(model: HookedTransformer) -> None:
    adapter = fresh_adapter(model).requires_grad_()
    for guidance, progress in ((Guidance(), 0.5), (GUIDANCE["iv-kl"], 0.0)):
        _, penalty = run(model, guide_of(model, guidance), adapter, progress=progress)
        assert penalty.item() > 1e-4
        assert max(float(slope.abs().max()) for slope in gradients(penalty, adapter)) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["base", "previous"])
@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(kl=0.3),
        Guidance(kl=0.3, reverse=True),
        Guidance(kl=0.3, temperature=2.0),
        Guidance(kl=0.3, reverse=True, temperature=0.5),
        Guidance(kl=0.3, student=False),
        Guidance(kl=0.3, schedule="steps"),
    ],
    ids=str,
)
def test_the_divergence_is_its_formula_over_answer_tokens_of_prompts_run_alone(
    model: HookedTransformer, guidance: Guidance, teacher: str
) -> None:
    earlier, adapter = trained_adapter(model, seed=1), trained_adapter(model, seed=2)
    guide = guide_of(model, guidance, without=(adapter,) if teacher == "previous" else ())
    with lora.attached(model, earlier):
        logits, penalty = run(model, guide, adapter, progress=0.3)
    student, other = with_adapters(model, earlier, adapter), with_adapters(model, *[earlier][: teacher == "previous"])
    s = 0.0 if not guidance.student else 0.75 if guidance.schedule == "steps" else 0.7
    found = []
    for row in range(len(TOKENS)):
        p = steered_alone(other, TOKENS, row, guide.vectors[0])
        q = steered_alone(student, TOKENS, row, s * guide.vectors[0])
        torch.testing.assert_close(logits[row, : len(q)], q, rtol=0, atol=1e-11)
        p, q = p / guidance.temperature, q / guidance.temperature
        found += divergence(q, p) if guidance.reverse else divergence(p, q)
    expected = 0.3 * guidance.temperature**2 * mean(found)
    assert len(found) == 12 and expected > 0.01
    assert penalty.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("bare", [False, True])
def test_rehearsal_reads_one_answer_token_in_a_run_of_its_own(model: HookedTransformer, bare: bool) -> None:
    guidance = Guidance(kl=0.3, rehearsal=True, bare=bare, temperature=2.0)
    adapter, guide = trained_adapter(model), guide_of(model, guidance)
    logits, penalty = run(model, guide, adapter, progress=0.3)
    with lora.attached(model, adapter):
        plain = differentiable_answer_logits(model, TOKENS)
    torch.testing.assert_close(logits, plain, rtol=0, atol=1e-11, msg="the task is learned unsteered")
    student, tokens, found = with_adapters(model, adapter), BARE if bare else TOKENS, []
    for row in range(len(tokens)):
        p = steered_alone(model, tokens, row, guide.vectors[0])[:1] / 2
        q = steered_alone(student, tokens, row, 0.7 * guide.vectors[0])[:1] / 2
        found += divergence(p, q)
    assert penalty.item() == pytest.approx(0.3 * 2.0**2 * mean(found), rel=1e-9)


def test_heads_are_compared_at_answer_predicting_tokens_of_prompts_run_alone(model: HookedTransformer) -> None:
    adapter = trained_adapter(model)
    guide = guide_of(model, Guidance(kl=0.0, heads=0.4, student=False))
    found, zs = [], {}
    _, penalty = run(model, guide, adapter)
    for row in range(len(TOKENS)):
        prompt, answer = alone(TOKENS, row)
        ids = torch.cat([prompt, answer[:-1]])[None]
        for name, one in (("student", with_adapters(model, adapter)), ("teacher", model)):
            cache = one.run_with_cache(ids)[1]
            zs[name] = [cache["z", head.layer][0, len(prompt) - 1 :, head.head] for head in HEADS]
        for own, wanted in zip(zs["student"], zs["teacher"], strict=True):
            found += [float(((a - b) ** 2).sum()) for a, b in zip(own, wanted, strict=True)]
    assert len(found) == 3 * 12 and mean(found) > 0.1
    assert penalty.item() == pytest.approx(0.4 * mean(found), rel=1e-9)


# The follow-up's form, term by term: one prompt a time, one position a time, one number a time


def read_alone(
    model: HookedTransformer, row: int, *, added: Tensor | None = None, layer: int = 0
) -> tuple[Tensor, list[list[float]], int]:
    """Logits and the heads' `z` of one unpadded prompt with its answer; and where its first answer token is predicted.

    The vector is added to what the block's attention writes, at that place alone.
    """
    prompt, answer = alone(TOKENS, row)
    place, ids = len(prompt) - 1, torch.cat([prompt, answer[:-1]])[None]
    block = model.blocks[layer]
    outputs: dict[str, Tensor] = {}

    def keep(z: Tensor, hook: Any) -> None:
        outputs[hook.name] = z.detach()

    names = [f"blocks.{one}.attn.hook_z" for one in range(model.cfg.n_layers)]
    resid = model.run_with_hooks(ids, stop_at_layer=layer, fwd_hooks=[(name, keep) for name in names])
    with model.hooks(fwd_hooks=[(name, keep) for name in names]):
        normed = block.ln1(resid)
        resid = resid + block.attn(normed, normed, normed)
        if added is not None:
            resid[0, place] += added
        resid = resid + block.mlp(block.ln2(resid))
        logits = model(resid, start_at_layer=layer + 1)[0]
    return logits, [outputs[names[head.layer]][0, place, head.head].tolist() for head in HEADS], place


PUBLISHED = GUIDANCE["fv-published"]


def published_by_hand(student: HookedTransformer, previous: HookedTransformer, vector: Tensor) -> dict[str, Any]:
    """The terms of arXiv:2502.11019's code before weights and thresholds: floats, and a list of one per head."""
    first, total, distances = [], 0.0, [0.0] * len(HEADS)
    for row in range(len(TOKENS)):
        new, own, place = read_alone(student, row)
        old = read_alone(previous, row, added=vector)[0]
        each = divergence(new / 2, old / 2)
        assert len(each) == int(TOKENS.mask[row].sum() + TOKENS.answer_mask[row].sum()) - 1
        first.append(each[place])
        total += sum(each)
        for head, (a, b) in enumerate(zip(own, read_alone(previous, row)[1], strict=True)):
            distances[head] += sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)
    n = len(TOKENS)
    return {"first": mean(first), "all": total / n, "heads": [distance / n for distance in distances]}


def test_the_published_form_is_its_terms_by_hand(model: HookedTransformer) -> None:
    earlier, adapter = trained_adapter(model, seed=1), trained_adapter(model, seed=2)
    student, previous = with_adapters(model, earlier, adapter), with_adapters(model, earlier)
    guide = guide_of(model, PUBLISHED, vectors=2 * some_vectors(), without=(adapter,))
    terms = published_by_hand(student, previous, guide.vectors[0])
    assert terms["first"] > 0.1 and terms["all"] > 0.1 and min(terms["heads"]) > 0.01, "all of them count"
    with lora.attached(model, earlier):
        logits, penalty = run(model, guide, adapter, progress=0.3)
    for row in range(len(TOKENS)):
        plain = logits_alone(student, TOKENS, row)
        torch.testing.assert_close(logits[row, : len(plain)], plain, rtol=0, atol=1e-11, msg="the student is unsteered")
    expected = 20 * terms["first"] + 0.1 * terms["all"] + sum(terms["heads"])
    assert penalty.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_what_is_not_above_its_threshold_adds_nothing_each_term_and_each_head_alone(model: HookedTransformer) -> None:
    adapter = trained_adapter(model, seed=2).requires_grad_()
    guide = guide_of(model, PUBLISHED)
    terms = published_by_hand(with_adapters(model, adapter), model, guide.vectors[0])
    first, total, heads = terms["first"], terms["all"], terms["heads"]
    assert first < total and len(set(heads)) == 3
    low, middle, high = sorted(heads)
    for changes, expected in (
        ({"heads": 0.0, "kl_ignored": first * 0.999}, 20 * first + 0.1 * total),
        ({"heads": 0.0, "kl_ignored": first * 1.001}, 0.1 * total),
        ({"heads": 0.0, "kl_ignored": total * 1.001}, 0.0),
        ({"kl": 0.0, "kl_everywhere": 0.0, "heads_ignored": low * 0.999}, low + middle + high),
        ({"kl": 0.0, "kl_everywhere": 0.0, "heads_ignored": low * 1.001}, middle + high),
        ({"kl": 0.0, "kl_everywhere": 0.0, "heads_ignored": high * 1.001}, 0.0),
    ):
        penalty = run(model, guide_of(model, replace(PUBLISHED, **changes)), adapter)[1]
        assert penalty.item() == pytest.approx(expected, rel=1e-9, abs=0), changes
        assert any(bool(slope.any()) for slope in gradients(penalty, adapter)) == (expected > 0), changes


def test_a_penalty_that_is_not_a_number_is_no_zero_below_a_threshold(model: HookedTransformer) -> None:
    guide = guide_of(model, PUBLISHED, vectors=torch.full((1, 20), math.nan, dtype=torch.float64))
    assert math.isnan(run(model, guide, trained_adapter(model))[1].item())
    heads = guide_of(model, replace(PUBLISHED, kl=0.0, kl_everywhere=0.0))
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda resid, hook: resid * math.nan)]):
        assert math.isnan(run(model, heads, trained_adapter(model))[1].item())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize("places", ["answer", "first"])
@pytest.mark.parametrize("site", ["block", "attention"])
def test_vectors_are_added_at_the_site_and_places_that_are_said(kind: str, places: Any, site: Any) -> None:
    model, vectors = small_model(kind), some_vectors(6)
    ids, mask = with_answers(TOKENS)
    name = f"blocks.0.{'hook_resid_post' if site == 'block' else 'hook_attn_out'}"

    def kept() -> Tensor:
        return model.run_with_cache(ids, attention_mask=mask.long(), names_filter=name)[1][name]

    before = kept()
    seen: list[Tensor] = []
    with steer_answers(model, TOKENS, vectors, 0, site=site, places=places):
        model.run_with_hooks(
            ids, attention_mask=mask.long(), fwd_hooks=[(name, lambda one, hook: seen.append(one.clone()))]
        )
    width = TOKENS.answers.shape[1]
    for place in range(ids.shape[1]):
        is_steered = place == ids.shape[1] - width or (places == "answer" and place > ids.shape[1] - width)
        assert torch.equal(seen[0][:, place], before[:, place] + vectors * is_steered)


def test_the_forms_terms_add_up(model: HookedTransformer) -> None:
    adapter, fv = trained_adapter(model), GUIDANCE["fv"]
    whole, kl, heads = (
        run(model, guide_of(model, form), adapter)[1].item()
        for form in (fv, replace(fv, heads=0.0), replace(fv, kl=0.0))
    )
    assert kl > 0 and heads > 0
    assert whole == pytest.approx(kl + heads, rel=1e-12)


def test_the_adapters_are_back_when_the_teacher_is_done(model: HookedTransformer) -> None:
    earlier, adapter = trained_adapter(model, seed=1), trained_adapter(model, seed=2)
    with lora.attached(model, earlier, adapter):
        before = differentiable_answer_logits(model, TOKENS)
        for name in ("iv", "fv", "iv-general"):
            generator = torch.Generator().manual_seed(0)
            guide_of(model, GUIDANCE[name]).run(model, TOKENS, BARE, progress=0.0, generator=generator)
            assert torch.equal(differentiable_answer_logits(model, TOKENS), before)


# Which vectors


def test_every_prompt_draws_one_of_the_vectors_from_the_generator(model: HookedTransformer) -> None:
    vectors = some_vectors(4)
    guide = guide_of(model, Guidance(vector="general", kl=0.0), vectors=vectors)
    adapter = fresh_adapter(model)
    drawn, again, other = (run(model, guide, adapter, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(drawn, again) and not torch.equal(drawn, other)
    steered = []
    for vector in vectors:
        with steer_answers(model, TOKENS, vector.expand(6, -1), 0):
            steered.append(differentiable_answer_logits(model, TOKENS))
    used = set()
    for row in range(len(TOKENS)):
        closest = [float((drawn[row] - logits[row]).abs().max()) for logits in steered]
        assert sorted(closest)[0] < 1e-12 < 0.01 < sorted(closest)[1]
        used.add(closest.index(min(closest)))
    assert len(used) > 1, "each prompt draws anew"
    first = guide_of(model, Guidance(kl=0.0), vectors=vectors[:1])
    assert torch.equal(run(model, first, adapter, seed=0)[0], run(model, first, adapter, seed=1)[0])


REHEARSAL = {"schedule": "constant", "rehearsal": True, "kl": 1.0}
# Read in arXiv:2502.11019's code; see `ivlens.training.forms`.
THEIRS = {
    "source": "demonstrations",
    "taken_from": "base",
    "teacher": "previous",
    "site": "attention",
    "places": "first",
    "scale": 1.0,
    "student": False,
    "kl": 20.0,
    "kl_everywhere": 0.1,
    "kl_ignored": 0.1,
    "reverse": True,
    "temperature": 2.0,
    "temperature_squared": False,
    "heads": 1.0,
    "heads_summed": True,
    "heads_ignored": 0.01,
}
DIFFERS: dict[str, dict[str, Any]] = {
    "iv": {},
    "kl": {"vector": "zero"},
    "iv-random": {"vector": "random"},
    "iv-other": {"vector": "other"},
    "iv-steer": {"kl": 0.0},
    "iv-kl": {"student": False},
    "fv": {"student": False, "heads": 1.0},
    "fv-published": THEIRS,
    "fv-published-zero": {**THEIRS, "vector": "zero"},
    "fv-published-random": {**THEIRS, "vector": "random"},
    "iv-general": {"vector": "general", **REHEARSAL},
    "iv-general-random": {"vector": "general-random", **REHEARSAL},
    "iv-general-random-heads": {"vector": "general-random-heads", **REHEARSAL},
    "iv-general-bare": {"vector": "general", "bare": True, **REHEARSAL},
    "kl-bare": {"vector": "zero", "bare": True, **REHEARSAL},
}


def test_a_form_differs_from_iv_only_where_its_name_says_so() -> None:
    usual = asdict(Guidance())
    assert usual["kl"] == 0.05 and usual["schedule"] == "linear" and not usual["reverse"]
    for name, guidance in GUIDANCE.items():
        assert {key: value for key, value in asdict(guidance).items() if value != usual[key]} == DIFFERS[name]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kl": -0.1}, r"the guidance's kl is -0\.1; it must be 0 or more"),
        ({"kl": math.nan}, "the guidance's kl is nan; it must be 0 or more"),
        ({"heads": -1.0}, r"the guidance's heads is -1\.0; it must be 0 or more"),
        ({"temperature": 0.0}, r"the guidance's temperature is 0\.0; it must be above 0"),
        ({"temperature": math.inf}, "the guidance's temperature is inf"),
        ({"bare": True}, "the guidance is bare without rehearsal"),
        ({"rehearsal": True, "kl": 0.0}, "the guidance rehearses, but its kl is 0; give it a weight"),
        ({"scale": 0.0}, r"the guidance's scale is 0\.0; it must be above 0, or be left out"),
        ({"scale": math.nan}, "the guidance's scale is nan"),
        ({"vector": "tsak"}, "the guidance's vector is 'tsak'; choose of task, zero, random, other, general"),
        ({"schedule": "cosine"}, "the guidance's schedule is 'cosine'; choose of linear, steps, constant"),
        ({"kl_everywhere": -1.0}, r"the guidance's kl_everywhere is -1\.0; it must be 0 or more"),
        ({"heads_ignored": math.nan}, "the guidance's heads_ignored is nan; it must be 0 or more"),
        ({"rehearsal": True, "kl_everywhere": 0.1}, "the guidance rehearses, which reads one token alone; leave out"),
        ({"source": "both"}, "the guidance's source is 'both'; choose of demonstrations, instruction"),
        ({"taken_from": "last"}, "the guidance's taken_from is 'last'; choose of base, previous$"),
        ({"site": "mlp"}, "the guidance's site is 'mlp'; choose of block, attention"),
        ({"places": "last"}, "the guidance's places is 'last'; choose of answer, first"),
        ({"teacher": "last"}, "the guidance's teacher is 'last'; choose of base, previous"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the type checker of the tests, as users run it.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(IvlensError, match=sentence):
        Guidance(**settings)


def test_a_guide_that_compares_no_heads_is_refused(model: HookedTransformer) -> None:
    with pytest.raises(IvlensError, match="compares heads, but the guide has none; give it the top heads"):
        replace(guide_of(model, GUIDANCE["fv"]), heads=())
