"""What is tried is bounded by the sweep's work, counted from sizes, and what is counted is what is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

import pytest
import torch
from conftest import WORD_TEMPLATE, random_tokens
from transformer_lens import HookedTransformer

from ivlens.datasets.task import Task
from ivlens.patching.effects import indirect_effects
from ivlens.patching.head_effects import HeadEffects
from ivlens.prompts.tokens import Tokens
from ivlens.steering import controls, rows, search, trial_plan, trials
from ivlens.steering.search import NEIGHBOURS, SCALES, Place, Tried, count_coarse, search_in_stages
from ivlens.steering.trial_plan import Sizes, TrialPlan, count_replies, count_work, plan_trials

pytestmark = pytest.mark.numeric

# Layers, heads of each, width.
MODELS = {"SmolLM2-135M": (30, 9, 576), "gpt2": (12, 12, 768), "7B": (32, 32, 4096), "lab": (6, 8, 128)}
COUNTS = (1, 2, 5, 10, 20, 50, 100)


def sizes_of(name: str, *, answers: Sequence[int] = (1,), **changes: Any) -> Sizes:
    """Of an audit with its usual options, on a task of many pairs."""
    n_layers, n_heads, d_model = MODELS[name]
    usual: dict[str, Any] = {
        "counts": tuple(count for count in COUNTS if count <= n_layers * n_heads),
        "top": 10,
        "draws": 20,
        "other_tasks": 3,
        "ranking": 25,
        "validation": tuple(islice(cycle(answers), 25)),
        "evaluation": tuple(islice(cycle(answers), 100)),
    }
    return Sizes(n_layers=n_layers, n_heads=n_heads, d_model=d_model, **usual | changes)


@pytest.mark.parametrize("answers", [(1,), (1, 2, 1)])
@pytest.mark.parametrize("name", ["SmolLM2-135M", "gpt2", "7B"])
def test_trials_take_no_more_than_three_times_the_sweeps_work(name: str, answers: tuple[int, ...]) -> None:
    sizes = sizes_of(name, answers=answers)
    plan = plan_trials(sizes)
    assert count_work(plan, sizes) <= 3 * sizes.sweep
    everything = TrialPlan(counts=sizes.counts, draws=20)
    assert count_work(everything, sizes) > 3 * sizes.sweep and not plan.is_whole
    assert plan.draws >= 5 and plan.layer_draws == 5 and {1, 10} <= set(plan.counts)


def test_the_sweeps_work_is_a_row_for_every_head_and_prompt_through_every_layer() -> None:
    assert sizes_of("SmolLM2-135M").sweep == 25 * (30 * 9) * 30


def test_of_small_models_nothing_is_left_out() -> None:
    sizes = sizes_of("lab")
    plan = plan_trials(sizes)
    assert count_work(plan, sizes) > 3 * sizes.sweep
    assert plan == TrialPlan(counts=(1, 2, 5, 10, 20), draws=20) and plan.is_whole and plan.record() == {}


@pytest.mark.parametrize("name", ["SmolLM2-135M", "gpt2", "7B"])
def test_replies_take_no_more_than_trials_may(name: str) -> None:
    sizes = sizes_of(name, reply=40 + 32)
    plan = plan_trials(sizes)
    assert count_replies(plan, sizes) <= 3 * sizes.sweep < count_replies(TrialPlan(counts=(10,), draws=20), sizes)
    assert plan.reply_prompts is not None and plan.reply_prompts >= 15
    trials_alone = plan_trials(sizes_of(name))
    assert "reply_prompts" not in trials_alone.record()
    assert plan == replace(trials_alone, reply_prompts=plan.reply_prompts, reply_draws=plan.reply_draws)
    said = trial_plan.describe(plan.record())
    assert f"of random heads and 1 of other controls to {plan.reply_prompts} evaluation prompts" in said


def test_replies_alone_may_be_what_is_left_out() -> None:
    few = plan_trials(sizes_of("lab", reply=1000))
    assert few.is_whole and set(few.record()) == {"reply_prompts", "reply_draws"}
    said = trial_plan.describe(few.record())
    assert said.startswith("To keep trials near 3 times the work of the AIE: replies under the vector, ")
    assert plan_trials(sizes_of("lab", reply=20)).record() == {}


def test_draws_that_were_asked_for_are_drawn() -> None:
    assert plan_trials(sizes_of("gpt2", draws=200)).draws == 200
    assert plan_trials(sizes_of("gpt2", draws=3)).draws == 3


def test_less_is_left_out_where_less_is_enough() -> None:
    plans = [plan_trials(sizes_of("SmolLM2-135M", ranking=prompts)) for prompts in (1000, 100, 25)]
    assert plans[0].is_whole
    assert plans[1].layer_draws == 5 and plans[1].draws == 20
    assert plans[1].stride <= plans[2].stride == 3 and plans[2].layer_prompts is not None


def test_what_is_left_out_is_said_in_one_line() -> None:
    plan = plan_trials(sizes_of("SmolLM2-135M"))
    said = trial_plan.describe(plan.record())
    assert "\n" not in said and said.startswith("To keep trials near 3 times the work of the AIE: ")
    assert f"{plan.draws} draws of random ones" in said and f"on {plan.first} validation prompts" in said
    # What is left out at first, and nothing else.
    begun = TrialPlan(counts=(1, 10), draws=20, layer_draws=5, task_prompts=25)
    assert "validation" not in trial_plan.describe(begun.record())


@pytest.fixture(scope="module")
def effects(tiny: HookedTransformer, word_task: Task) -> HeadEffects:
    return indirect_effects(tiny, word_task, template=WORD_TEMPLATE, shots=3, clean_prompts=12, prompts=6)


def lengths(tokens: Tokens) -> tuple[int, ...]:
    return tuple(tokens.answer_mask.sum(1).tolist())


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens that rows carry, call by call."""
    found: list[int] = []
    original = rows.steer_rows

    def steer_rows(model: Any, tokens: Tokens, vectors: Any, layers: Sequence[int], **others: Any) -> Any:
        found.append(len(layers) * tokens.answers.numel())
        return original(model, tokens, vectors, layers, **others)

    for module in (rows, search, trials):
        monkeypatch.setattr(module, "steer_rows", steer_rows)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("floor", [0, trial_plan.FLOOR])
def test_the_work_that_is_counted_is_the_work_that_is_done(
    floor: int,
    tiny: HookedTransformer,
    word_task: Task,
    effects: HeadEffects,
    counted: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trial_plan, "FLOOR", floor)
    validation, evaluation = (random_tokens(6, vocab=100)[torch.arange(n) % 6] for n in (9, 30))
    assert len(set(lengths(evaluation))) > 1
    sizes = Sizes(
        n_layers=3,
        n_heads=4,
        d_model=tiny.cfg.d_model,
        counts=(1, 2, 5, 10),
        top=3,
        draws=8,
        other_tasks=1,
        ranking=6,
        validation=lengths(validation),
        evaluation=lengths(evaluation),
    )
    plan = plan_trials(sizes)
    assert plan.is_whole == (floor > 0)
    others = [Task(name="other", pairs=word_task.pairs[::-1])]
    candidates = controls.make_candidates(tiny, effects, plan=plan, top=3, others=others)
    found = trials.run_trials(tiny, candidates, validation=validation, evaluation=evaluation, top=3, plan=plan)
    done = sum(counted) * 3
    if plan.is_whole:
        # Fewer than eight places may be left around the best one.
        assert 0.75 * count_work(plan, sizes) <= done <= count_work(plan, sizes)
        return
    # The best place at scale 1 may be one of those that are tried at every layer, and the best of all places may leave
    # fewer than two others at scale 1 where there are three layers.
    at_top = [candidate for candidate in candidates if candidate.n_heads == 3]
    kinds = {kind: sum(one.kind == kind for one in at_top) for kind in {one.kind for one in at_top}}
    shown = len(at_top) + 3 * sum(plan.drawn_at_every_layer(kind, draws) for kind, draws in kinds.items())
    twice = (shown - len(found.shown_rows)) * 3 * sum(lengths(evaluation[: plan.layer_prompts]))
    assert found.validated.final is not None
    fewer = (5 * len(candidates) - int(found.validated.final.sum())) * 3 * sum(lengths(validation))
    assert done == count_work(plan, sizes) - twice - fewer and twice + fewer < 0.1 * done
    by_layer = found.by_layer(3).groupby("heads")["draws"].first()
    assert by_layer.to_dict() == {"chosen": 1, "random": 5, "low-AIE": 1, "gaussian": 1, "other-task": 1}
    assert set(found.by_layer(3)["prompts"]) == {10} and set(found.by_number()["prompts"]) == {30}
    assert set(found.by_number(unscaled=True)["n_heads"]) == {3}
    places = found.by_place(3)
    assert set(places["prompts"]) == {4, 9} and places["accuracy"].notna().all()
    assert places.loc[places["chosen"], "prompts"].tolist() == [9]


def test_a_row_carries_no_longer_answer_than_its_prompt_has(tiny: HookedTransformer, counted: list[int]) -> None:
    tokens = random_tokens(7, vocab=100)
    vectors = torch.randn(4, tiny.cfg.d_model, generator=torch.Generator().manual_seed(0), dtype=tiny.cfg.dtype)
    apart = rows.steer_by_length(tiny, tokens, vectors, [0, 1, 2, 1])
    assert sum(counted) == 4 * int(tokens.answer_mask.sum())
    together = rows.steer_rows(tiny, tokens, vectors, [0, 1, 2, 1])
    assert torch.equal(apart.match, together.match)
    torch.testing.assert_close(apart.first, together.first)
    torch.testing.assert_close(apart.log_prob, together.log_prob)


def falling(layer: int, scale: float, asked: list[tuple[int, Place]], noise: float = 0.0):
    """Tries whose best is at a place, falling off on all sides; notes what was asked."""

    def attempt(places: Sequence[tuple[int, Place]]) -> list[Tried]:
        asked.extend(places)
        far = [abs(one - layer) + 3 * abs(SCALES.index(factor) - SCALES.index(scale)) for _, (one, factor) in places]
        return [Tried(1 - 0.02 * distance, 0.5 - 0.01 * distance + noise) for distance in far]

    return attempt


def test_every_vector_is_tried_at_as_many_places_in_each_stage() -> None:
    few: list[tuple[int, Place]] = []
    every: list[tuple[int, Place]] = []

    def uneven(places: Sequence[tuple[int, Place]]) -> list[Tried]:
        """Of every vector, another best place, at the edge and in the middle."""
        few.extend(places)
        best = [(0, 0.5), (11, 16.0), (5, 4.0)]
        return [
            Tried(0.0, 1 / (1 + abs(place.layer - best[n][0]) + abs(place.scale - best[n][1]))) for n, place in places
        ]

    found = search_in_stages(uneven, falling(5, 1.0, every), vectors=3, n_layers=12, stride=3)
    for asked, wanted in ((few, count_coarse(12, 3) + NEIGHBOURS), (every, 5)):
        assert [sum(number == vector for number, _ in asked) for vector in range(3)] == [wanted] * 3
        assert len(set(asked)) == len(asked)
    assert found.final is not None and found.final.sum((1, 2)).tolist() == [5, 5, 5]


def test_the_best_place_is_one_that_was_tried_on_all_prompts() -> None:
    """On a few prompts the probability is too high by much: what was tried there alone is never the best."""
    few: list[tuple[int, Place]] = []
    every: list[tuple[int, Place]] = []
    found = search_in_stages(
        falling(7, 4.0, few, noise=100.0), falling(7, 4.0, every), vectors=1, n_layers=12, stride=3
    )
    assert (0, found.best()) in every and found.best() == Place(7, 4.0)
    assert (0, found.best(scale=1.0)) in every
