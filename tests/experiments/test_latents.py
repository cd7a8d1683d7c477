"""Vectors are taken apart exactly, and heads are ablated in their order, as if one after the other."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
import rounding
import torch
from checkpoints import random_hooked
from conftest import random_tokens

import ivlens
from ivlens.datasets.task import Task
from ivlens.experiments import ablations, latents
from ivlens.experiments.findings import CHOSEN, FINDINGS, NONE, RANDOM, Found
from ivlens.experiments.latent_vectors import HEAD_SUM, make_latents, split_by_span
from ivlens.experiments.run_experiment import prepare
from ivlens.experiments.settings import ExperimentSettings
from ivlens.experiments.work import Work
from ivlens.prompts.builders import zero_shot
from ivlens.shapes import Head

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

ASKED: dict[str, Any] = {"top": 3, "draws": 2, "queries": 8, "shots": 4, "clean_prompts": 8, "prompts": 6}


@pytest.mark.parametrize("doubled", [False, True])
def test_the_part_in_a_span_is_the_nearest_point_of_it(doubled: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    span = torch.randn(4, 9, dtype=torch.float64, generator=generator)
    vector = torch.randn(9, dtype=torch.float64, generator=generator)
    # What is in the span already makes it no larger.
    inside, outside = split_by_span(vector, torch.cat([span, span[:2] + span[1:3]]) if doubled else span)
    weights = torch.linalg.lstsq(span.T, vector[:, None]).solution
    torch.testing.assert_close(inside, (span.T @ weights)[:, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(inside + outside, vector, rtol=0, atol=1e-12)
    assert float((span @ outside).abs().max()) < 1e-12


def test_the_whole_space_leaves_nothing_outside() -> None:
    inside, outside = split_by_span(torch.arange(5.0), torch.eye(5)[[2, 0, 1, 4, 3]])
    assert torch.equal(inside, torch.arange(5.0)) and float(outside.abs().max()) == 0


@pytest.mark.parametrize(("total", "steps"), [(1, [1]), (4, [1, 2, 3, 4]), (30, [1, 2, 3, 5, 10, 20, 30])])
def test_all_heads_are_the_last_step(total: int, steps: list[int]) -> None:
    assert ablations.counts(total) == steps


@pytest.mark.numeric
def test_heads_are_ablated_one_after_the_other_in_their_order(word_task: Task) -> None:
    """Held to whole passes of the model, with hooks that replace head after head."""
    model, tokens = random_hooked("llama"), random_tokens(n=3, width=9, vocab=100).first()
    work = Work(model=model, task=word_task, asked=ExperimentSettings(shots=2), memory=2**30)
    heads = [Head(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    z = torch.randn(*work.grid, model.cfg.d_head, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    orders = {"one": [heads[::-1]], "two": [heads, heads[::2] + heads[1::2]]}
    found = ablations._ablate(work, tokens, orders, z, [1, 3, 7])

    def replace(activation: torch.Tensor, hook: Any, *, gone: list[Head]) -> torch.Tensor:
        for head in gone:
            if head.layer == hook.layer():
                activation[:, -1, head.head] = z[head]
        return activation

    exact = rounding.of_forward(model, tokens.prompts)
    for kind, several in orders.items():
        for number, k in enumerate([1, 3, 7]):
            assert found[ablations.PROBABILITY][kind][number].shape == (3, len(several))
            for draw, order in enumerate(several):
                hooks: Any = [(lambda name: name.endswith("hook_z"), partial(replace, gone=order[:k]))]
                for row in range(3):
                    own = tokens.prompts[row, tokens.mask[row]]
                    logits = model.run_with_hooks(own[None], fwd_hooks=hooks)[0, -1]
                    slow = logits.softmax(-1)[tokens.answers[row, 0]]
                    fast = found[ablations.PROBABILITY][kind][number][row, draw]
                    torch.testing.assert_close(fast, slow, rtol=0, atol=exact)
    assert not torch.equal(*(found[ablations.PROBABILITY]["two"][1][:, draw] for draw in (0, 1)))


def _planted(by_step: dict[str, float], kind: str) -> list[tuple[Any, ...]]:
    return [(ablations.ACCURACY, at, kind, value, value, value, 1, 20) for at, value in by_step.items()]


def test_of_a_task_that_is_not_there_no_head_is_needed() -> None:
    lines = _planted({ablations.BARE: 0.2, ablations.NO_HEADS: 0.2}, NONE)
    lines += _planted({"1 head": 0.1}, ablations.BY_AIE)
    assert ablations.needed(Found(pd.DataFrame(lines, columns=list(FINDINGS))), ablations.BY_AIE) is None


def test_the_task_is_gone_where_a_tenth_of_what_prompts_add_is_left() -> None:
    lines = _planted({ablations.BARE: 0.2, ablations.NO_HEADS: 0.7}, NONE)
    lines += _planted({"1 head": 0.5, "2 heads": 0.26, "3 heads": 0.25, "5 heads": 0.9}, ablations.BY_AIE)
    lines += _planted({"1 head": 0.7, "5 heads": 0.3}, RANDOM)
    found = Found(pd.DataFrame(lines, columns=list(FINDINGS)))
    assert ablations.needed(found, ablations.BY_AIE) == 3
    assert ablations.needed(found, RANDOM) is None
    assert "after 3 heads in the order of AIE, never in the order of ablation, never at random" in (
        ablations.needed_sentence(found)
    )


@pytest.mark.slow
def test_vectors_and_patched_heads_are_those_that_one_steers_with(lab: HookedTransformer) -> None:
    work = prepare("latents", lab, "antonym", **ASKED)
    effects = ivlens.indirect_effects(lab, work.task, settings=work.settings)
    vector = ivlens.instruction_vector(lab, work.task, effects=effects, heads=effects.top(3))
    placed = make_latents(work, effects, effects.top(3)).placed[HEAD_SUM, CHOSEN]
    chosen = work.split.validation == work.task.split(shots=4).validation
    if chosen:
        assert placed.layers == [vector.layer]
        torch.testing.assert_close(placed.vectors[0], vector.added)
    told = Found(ivlens.experiment("latents", lab, "antonym", **ASKED).table)
    asked = zero_shot(work.split.evaluation)
    with ivlens.steered(lab, vector, site="distributed", scale=1.0):
        patched = ivlens.ask(lab, asked)
    assert told(latents.ACCURACY, latents.patched_name(3)).mean == patched.accuracy.mean
    assert told(latents.PROBABILITY, latents.patched_name(3)).mean == pytest.approx(patched.probability.mean, abs=1e-5)
    bare = ivlens.ask(lab, asked)
    assert told(latents.PROBABILITY, latents.BARE, NONE).mean == pytest.approx(bare.probability.mean, abs=1e-5)
