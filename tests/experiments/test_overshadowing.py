"""An update is taken apart exactly, and the part in which the forgetting was planted is found."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import pytest
import rounding
import torch
from checkpoints import random_hooked
from conftest import WORD_TEMPLATE

import ivlens
from ivlens import lora
from ivlens.datasets.task import Task
from ivlens.errors import IvlensError, ModelError, ModelWarning
from ivlens.experiments import overshadowing as study
from ivlens.experiments import update_parts
from ivlens.experiments.findings import CHOSEN, NONE, RANDOM, Found
from ivlens.experiments.run_experiment import prepare
from ivlens.models.lora import Adapter, LoraConfig
from ivlens.models.weights import TARGETS, locate
from ivlens.patching.activations import score_answers
from ivlens.patching.pace import Pace
from ivlens.shapes import Head
from ivlens.storage.run_tables import Tables

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

ASKED: dict[str, Any] = {"shots": 2, "clean_prompts": 4, "prompts": 4, "top": 2, "draws": 3, "queries": 5}
ASKED["template"] = WORD_TEMPLATE


def random_adapter(model: Any, *, targets: Any = ("W_Q", "W_V"), size: float = 0.02) -> Adapter:
    adapter, generator = lora.fresh(model, LoraConfig(rank=2, targets=targets)), torch.Generator().manual_seed(0)
    for factors in adapter.factors.values():
        factors.B.copy_(size * torch.randn(factors.B.shape, generator=generator, dtype=factors.B.dtype))
    return adapter


def weights(model: Any, names: Any) -> dict[str, torch.Tensor]:
    return {name: getattr(*locate(model, name)).detach().clone() for name in names}


def test_parts_are_every_matrix_every_layer_and_every_kind_of_matrix(tiny: HookedTransformer) -> None:
    adapter = random_adapter(tiny)
    parts = update_parts.name_parts(adapter)
    assert list(parts)[:2] == ["L0 W_Q", "L0 W_V"] and list(parts)[6:] == (
        ["layer 0", "layer 1", "layer 2", "all W_Q", "all W_V"]
    )
    assert parts["layer 1"] == ("blocks.1.attn.W_Q", "blocks.1.attn.W_V") and len(parts["all W_V"]) == 3
    one, others = (make(adapter, parts["layer 1"]) for make in (update_parts.only, update_parts.all_but))
    assert set(one.factors) | set(others.factors) == set(adapter.factors) and not set(one.factors) & set(others.factors)
    assert list(update_parts.name_parts(one)) == ["L1 W_Q", "L1 W_V"], "the whole of it is no part"


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_difference_of_two_checkpoints_is_the_update_between_them(kind: str) -> None:
    base, tuned = random_hooked(kind), random_hooked(kind)
    targets = tuple(name for name in TARGETS if name != "W_gate" or base.cfg.gated_mlp)
    adapter = random_adapter(base, targets=targets, size=0.3)
    lora.merge(tuned, adapter)
    found = update_parts.update_between(base, tuned)
    wanted, exact = weights(tuned, adapter.factors), weights(base, adapter.factors)
    with lora.merged(base, found):
        for name, own in weights(base, adapter.factors).items():
            torch.testing.assert_close(own, wanted[name], rtol=0, atol=1e-12)
            assert not torch.equal(own, exact[name])
    assert set(found.factors) == set(adapter.factors)


def test_what_lies_outside_of_the_matrices_is_said() -> None:
    base, tuned = random_hooked("llama"), random_hooked("llama")
    with pytest.raises(ModelError, match="no matrix of attention or MLP differs"):
        update_parts.update_between(base, tuned)
    lora.merge(tuned, random_adapter(base))
    with torch.no_grad():
        tuned.embed.W_E += 1.0
    with pytest.warns(ModelWarning, match=r"1 other weights of .* differ, too, such as embed\.W_E"):
        update_parts.update_between(base, tuned)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_without_heads_these_are_as_before_and_the_others_as_after(kind: str) -> None:
    model = random_hooked(kind)
    adapter = random_adapter(model, targets=("W_Q", "W_K", "W_V", "W_O", "W_in"), size=0.3)
    before, heads = weights(model, adapter.factors), [Head(0, 1), Head(2, 3), Head(2, 0)]
    with lora.merged(model, adapter):
        after = weights(model, adapter.factors)
    with lora.merged(model, update_parts.without_heads(model, adapter, heads)):
        found = weights(model, adapter.factors)
    shared = model.cfg.n_heads // (model.cfg.n_key_value_heads or model.cfg.n_heads)
    for name, own in found.items():
        layer, matrix = int(name.split(".")[1]), name.rsplit(".", 1)[1]
        gone = {head.head // (shared if matrix in ("W_K", "W_V") else 1) for head in heads if head.layer == layer}
        if matrix == "W_in":
            assert torch.equal(own, after[name])
            continue
        for head in range(len(own)):
            wanted = before if head in gone else after
            torch.testing.assert_close(own[head], wanted[name][head], rtol=0, atol=1e-12)
    assert all(factors.B.any() for factors in adapter.factors.values()), "the adapter itself stays"


def test_random_parts_have_the_norm_and_the_rank_of_what_they_stand_for(tiny: HookedTransformer) -> None:
    adapter = random_adapter(tiny)
    one, other = (update_parts.random_like(adapter, seed=0, draw=draw) for draw in (0, 1))
    for name, own in adapter.factors.items():
        dense = [lora.update_matrix(found.factors[name], found.scale) for found in (adapter, one, other)]
        assert [int(torch.linalg.matrix_rank(matrix)) for matrix in dense] == [2, 2, 2]
        norms = [float(matrix.norm()) for matrix in dense]
        assert norms[1:] == pytest.approx([norms[0]] * 2)
        assert update_parts.update_norm(own) * adapter.scale == pytest.approx(norms[0])
        assert abs(float(torch.cosine_similarity(dense[1].flatten(), dense[2].flatten(), dim=0))) < 0.9


@pytest.mark.numeric
def test_a_part_does_what_its_weights_do(tiny: HookedTransformer, word_task: Task) -> None:
    """Held to a model whose weights are added to by hand."""
    adapter = random_adapter(tiny, size=1.0)
    work = prepare("overshadowing", tiny, word_task, tuned=adapter, **ASKED)
    part = update_parts.only(adapter, ["blocks.1.attn.W_V"])
    found = study._ask(work, partial(study._prompts, work), "one", lambda: part)
    before = tiny.blocks[1].attn.W_V.detach().clone()
    (factors,) = part.factors.values()
    update = lora.update_matrix(factors, part.scale)
    try:
        for head in range(tiny.cfg.n_heads):
            tiny.blocks[1].attn.W_V.data[head] += update[:, head * tiny.cfg.d_head : (head + 1) * tiny.cfg.d_head]
        _, first = score_answers(tiny, work.shown(work.split.evaluation))
    finally:
        tiny.blocks[1].attn.W_V.data.copy_(before)
    exact = rounding.of_forward(tiny, work.shown(work.split.evaluation).prompts)
    torch.testing.assert_close(found.first, first, rtol=0, atol=exact)
    assert torch.equal(tiny.blocks[1].attn.W_V, before)


@pytest.mark.slow
def test_the_part_in_which_forgetting_was_planted_is_found(lab: HookedTransformer) -> None:
    """A large update of one matrix among small ones, on a model that can do the task."""
    adapter, planted = random_adapter(lab, size=1e-4), "blocks.1.attn.W_V"
    adapter.factors[planted].B.mul_(3e4)
    asked = {**ASKED, "template": ivlens.template("qa"), "source": "instruction", "queries": 10, "top": 3}
    found = ivlens.experiment("overshadowing", lab, "antonym", tuned=adapter, **asked)
    told, (alone, but) = Found(found.table), (f"{study.PROBABILITY}, {way}" for way in (study.ALONE, study.BUT))
    base, tuned = told(alone, study.BASE, NONE).mean, told(alone, study.TUNED, study.AFTER).mean
    assert base > 0.9 and tuned < base - 0.1
    assert list(told.values(study.CHOICE, study.ALONE)) == list(told.values(study.CHOICE, study.BUT)) == ["L1 W_V"]
    for part, same, none in ((alone, tuned, base), (but, base, tuned)):
        assert told(part, "L1 W_V").mean == pytest.approx(same, abs=0.01)
        assert told(part, "L4 W_Q").mean == pytest.approx(none, abs=0.01)
    assert told(study.LOST, "L1 W_V").mean == pytest.approx(base - told(alone, "L1 W_V").mean, abs=1e-6)
    # Whatever the last stream is, decides the answer.
    last = f"layer {lab.cfg.n_layers - 1}"
    assert told(study.PATCHED["into the tuned model"], last, "stream").mean == pytest.approx(base - tuned, abs=1e-4)
    assert told(study.PATCHED["into the base model"], last, "stream").mean == pytest.approx(tuned - base, abs=1e-4)
    # Nothing differs before the planted layer.
    assert told(study.PATCHED["into the tuned model"], "layer 0", "stream").mean == pytest.approx(0, abs=0.01)
    drawn = found.table[(found.table["at"] == "L1 W_V") & (found.table["kind"] == RANDOM)]
    assert set(drawn["draws"]) == {3} and told(study.HEADS_PATCHED, "3 heads", CHOSEN).low is not None
    assert found.verdict.startswith("Fine-tuning takes P(answer) from ") and "L1 W_V alone takes" in found.verdict


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The model does not clearly do this task")
def test_patching_between_models_is_that_of_donor_effects(tiny: HookedTransformer, word_task: Task) -> None:
    adapter = random_adapter(tiny, size=1.0)
    found = Found(ivlens.experiment("overshadowing", tiny, word_task, tuned=adapter, **ASKED).table)
    other = copy.deepcopy(tiny)
    lora.merge(other, adapter)
    work = prepare("overshadowing", tiny, word_task, tuned=adapter, **ASKED)
    tokens = work.shown(work.split.evaluation)
    layer, hook = 1, "blocks.1.hook_attn_out"
    cache: Any = {}

    def put(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        activation[:, -1] = cache[hook.name][:, -1]
        return activation

    slow, put_in = list[float](), [(hook, put)]
    for row in range(len(tokens)):
        own = tokens.prompts[row, tokens.mask[row]][None]
        _, cache = tiny.run_with_cache(own, names_filter=hook)
        patched, plain = (
            other.run_with_hooks(own, fwd_hooks=hooks)[0, -1].softmax(-1)[tokens.answers[row, 0]]
            for hooks in cast(Any, (put_in, []))
        )
        slow.append(float(patched - plain))
    fast = found(study.PATCHED["into the tuned model"], f"layer {layer}", "attention").mean
    assert fast == pytest.approx(sum(slow) / len(slow), abs=1e-10) and abs(fast) > 1e-8


@pytest.mark.filterwarnings("ignore:The model does not clearly do this task")
def test_what_lies_between_two_checkpoints_is_taken_once(
    tiny: HookedTransformer, word_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the forecast and for the work, which `--out` gives other tables than it had."""
    tuned, calls, between = copy.deepcopy(tiny), [], update_parts.update_between
    lora.merge(tuned, random_adapter(tiny, targets=("W_V",), size=1.0))
    monkeypatch.setattr(update_parts, "update_between", lambda *models: calls.append(models) or between(*models))
    work = prepare("overshadowing", tiny, word_task, tuned=tuned, **ASKED)
    assert not calls
    assert study.OVERSHADOWING.cost(work, Pace(reading=1.0, patching=1.0, token=1.0, row=1.0))
    lines = list(study._merge_parts(replace(work, tables=Tables()), [Head(0, 1), Head(1, 2)]))
    assert len(calls) == 1 and {line["at"] for line in lines} >= {"L0 W_V", "L2 W_V", "2 heads"}


def test_a_question_about_fine_tuning_needs_both_models(lab: HookedTransformer) -> None:
    with pytest.raises(IvlensError, match="overshadowing is about fine-tuning; give the model after it, too"):
        ivlens.experiment("overshadowing", lab, "antonym")
