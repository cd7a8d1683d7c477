"""Layer and scale are chosen together, on validation prompts, and a vector that is too short is found its length."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import pandas as pd
import pytest
import rounding
import torch
from conftest import WORD_TEMPLATE, random_tokens
from transformer_lens import HookedTransformer

import ivlens
from ivlens import plots
from ivlens.analysis import dependence, probes
from ivlens.datasets.task import Task
from ivlens.errors import FigureError, IvlensError
from ivlens.patching import activations
from ivlens.patching.settings import Settings
from ivlens.prompts.builders import zero_shot
from ivlens.prompts.tokens import tokenize
from ivlens.shapes import Head
from ivlens.steering import rows as steering_rows
from ivlens.steering.search import SCALES, Place, Tried, complete, search, search_places
from ivlens.steering.steered_model import steered
from ivlens.steering.universal_heads import universal_heads
from ivlens.steering.vector_building import instruction_vector

pytestmark = pytest.mark.numeric

PARTS = 10
"""Heads that each head of the lab model is split into."""
POSITIONS = 60
"""Tokens of the prompts that vectors are taken from, and a few more."""


def peak(layer: int, scale: float, asked: list[tuple[int, Place]]):
    """Tries whose best is at a place, falling off on all sides; notes what was asked."""

    def attempt(places: Sequence[tuple[int, Place]]) -> list[Tried]:
        asked.extend(places)
        far = [abs(one - layer) + 3 * abs(SCALES.index(factor) - SCALES.index(scale)) for _, (one, factor) in places]
        return [Tried(1 - 0.02 * distance, 0.5 - 0.01 * distance) for distance in far]

    return attempt


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("layer", [0, 3, 8, 11])
def test_the_best_place_is_found_without_trying_all(layer: int, scale: float) -> None:
    asked: list[tuple[int, Place]] = []
    found = search(peak(layer, scale, asked), vectors=1, n_layers=12)
    assert found.best() == Place(layer, scale)
    assert len(asked) == len(set(asked)) <= 2 * 12 + 8
    assert found.best(scale=1.0) == Place(layer, 1.0)


def test_every_vector_is_searched_in_the_same_way() -> None:
    asked: list[tuple[int, Place]] = []
    search(peak(5, 4.0, asked), vectors=3, n_layers=12)
    of_each = [{place for number, place in asked if number == vector} for vector in range(3)]
    assert of_each[0] == of_each[1] == of_each[2]


def test_what_is_given_is_not_searched() -> None:
    asked: list[tuple[int, Place]] = []
    assert search(peak(5, 4.0, asked), vectors=1, n_layers=12, layer=3).best() == Place(3, 4.0)
    assert {place.layer for _, place in asked} == {3}
    asked.clear()
    assert search(peak(5, 4.0, asked), vectors=1, n_layers=12, scale=2.0).best() == Place(5, 2.0)
    assert {place.scale for _, place in asked} == {2.0}
    with pytest.raises(IvlensError, match="there is no layer 12"):
        search(peak(5, 4.0, asked), vectors=1, n_layers=12, layer=12)
    with pytest.raises(IvlensError, match="scale is inf"):
        search(peak(5, 4.0, asked), vectors=1, n_layers=12, scale=float("inf"))


def test_a_picture_of_all_places_changes_no_choice() -> None:
    asked: list[tuple[int, Place]] = []
    attempt = peak(5, 4.0, asked)
    found = search(attempt, vectors=2, n_layers=12)
    before = found.best()
    complete(attempt, found)
    assert found.best() == before and not found.accuracy[0].isnan().any()
    assert found.accuracy[1].isnan().any() and len(asked) == len(set(asked))


@pytest.mark.slow
def test_places_are_what_steering_there_does(tiny: HookedTransformer, word_task: Task) -> None:
    tokens = random_tokens(6, 16, 4, vocab=100)
    settings = Settings(shots=3, clean_prompts=12, prompts=6, template=WORD_TEMPLATE)
    vector = instruction_vector(tiny, word_task, heads=[Head(0, 1), Head(2, 3)], layer=0, scale=1.0, settings=settings)
    found = search_places(tiny, tokens, vector.vector[None])
    tried = (~found.accuracy[0].isnan()).nonzero().tolist()
    assert len(tried) >= 3 + 2 * 2
    scores = {}
    for layer, column in tried:
        with steered(tiny, vector, layer=layer, scale=SCALES[column]):
            right, first = activations.score_answers(tiny, tokens)
        scores[Place(layer, SCALES[column])] = float(right.double().mean()), float(first.mean())
        assert float(found.accuracy[0, layer, column]) == scores[Place(layer, SCALES[column])][0]
        assert abs(float(found.probability[0, layer, column]) - float(first.mean())) < 1e-12
    assert found.best() == max(scores, key=lambda place: scores[place])


@pytest.fixture(scope="module")
def split_lab(lab: HookedTransformer) -> HookedTransformer:
    """The lab model with each head split into ten equal ones that write a tenth: the same function, shorter vectors."""
    cfg = deepcopy(lab.cfg)
    cfg.n_heads *= PARTS
    model = HookedTransformer(cfg, lab.tokenizer, move_to_device=False)
    weights = {}
    for name, weight in lab.state_dict().items():
        part = name.rsplit(".", 1)[-1].removeprefix("_")
        if part in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V"):
            weight = weight.repeat_interleave(PARTS, dim=0) / (PARTS if part == "W_O" else 1)
        weights[name] = weight
    model.load_state_dict({**model.state_dict(), **weights})
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def antonym() -> Task:
    return ivlens.task("antonym")


def parts_of(heads: Sequence[Head]) -> list[Head]:
    return [Head(head.layer, PARTS * head.head) for head in heads]


def test_the_split_model_computes_what_the_lab_model_does(
    lab: HookedTransformer, split_lab: HookedTransformer, antonym: Task
) -> None:
    tokens = tokenize(lab, zero_shot(antonym.pairs[:8]))
    ours, theirs = (activations.answer_logits(model, tokens) for model in (split_lab, lab))
    torch.testing.assert_close(
        ours.log_softmax(-1), theirs.log_softmax(-1), rtol=0, atol=rounding.of_forward(split_lab, tokens.prompts)
    )


@pytest.mark.slow
def test_a_vector_that_is_too_short_is_found_its_length(
    lab: HookedTransformer, split_lab: HookedTransformer, antonym: Task
) -> None:
    whole = instruction_vector(lab, antonym)
    short = instruction_vector(split_lab, antonym, heads=parts_of(whole.heads))
    near = rounding.bound(rounding.chain(split_lab.cfg, POSITIONS), size=float(whole.vector.abs().max()))
    torch.testing.assert_close(PARTS * short.vector, whole.vector, rtol=0, atol=near)
    assert short.scale in (8.0, 16.0)
    queries = zero_shot(antonym.split().evaluation)
    with steered(split_lab, short):
        chosen = ivlens.ask(split_lab, queries).accuracy.mean
    with steered(split_lab, short, scale=1.0):
        unscaled = ivlens.ask(split_lab, queries).accuracy.mean
    assert unscaled <= 0.3 and chosen >= 0.9


@pytest.mark.long
def test_the_audit_reports_the_chosen_length_beside_scale_1(
    lab: HookedTransformer, split_lab: HookedTransformer, antonym: Task, tmp_path: Path
) -> None:
    heads = parts_of(instruction_vector(lab, antonym, layer=2, scale=1.0).heads)
    found = ivlens.audit(
        split_lab, antonym, heads=heads, out=tmp_path / "run", prompts=4, clean_prompts=40, draws=2, other_tasks=0
    )
    assert found.accuracy("steered") >= 0.9 and found.accuracy("steered, scale 1") <= 0.3
    assert found.vector.scale in (8.0, 16.0) and f"scale {found.vector.scale:g}" in repr(found)
    assert found.accuracy("steered, gaussian") <= 0.5
    chosen = found.places[found.places["chosen"]]
    assert chosen[["layer", "scale"]].to_numpy().tolist() == [[found.vector.layer, found.vector.scale]]
    assert len(found.places) == 6 * len(SCALES) and found.places["accuracy"].notna().all()
    # The share is of the residual stream's length: a tenth of the lab model's own vector, as long as its layer's norm.
    tokens = tokenize(lab, zero_shot(antonym.split().validation))
    kept = []
    name = f"blocks.{found.vector.layer}.hook_resid_post"
    lab.run_with_hooks(
        tokens.prompts,
        attention_mask=tokens.mask.long(),
        fwd_hooks=[(name, lambda resid, hook: kept.append(resid[:, -1].norm(dim=-1).mean()))],
    )
    wanted = float(found.vector.added.norm() / kept[0])
    assert float(chosen["share"].iloc[0]) == pytest.approx(
        wanted, rel=rounding.bound(rounding.chain(lab.cfg, POSITIONS))
    )
    by_layer = found.steering.query("heads == 'chosen'")
    assert set(by_layer["scale"]) == {found.vector.scale}


@pytest.mark.slow
def test_dependence_is_measured_at_the_chosen_length_with_scale_1_beside_it(
    lab: HookedTransformer, split_lab: HookedTransformer, antonym: Task
) -> None:
    heads = parts_of(instruction_vector(lab, antonym, layer=2, scale=1.0).heads)
    vector = instruction_vector(split_lab, antonym, heads=heads, layer=2, scale=8.0)
    probe = probes.prepare(split_lab, antonym, vector, prompts=10, draws=2)
    assert probe.vectors.norm(dim=1).tolist() == pytest.approx(
        [float(vector.added.norm())] * 3, rel=rounding.bound(lab.cfg.d_model)
    )
    found = dependence.per_prompt(split_lab, probe)
    whole = dependence.per_prompt(
        split_lab, probes.prepare(split_lab, antonym, vector.at(2, scale=1.0), prompts=10, draws=2)
    )
    near = rounding.of_forward(split_lab, probe.zero_shot.prompts)
    for name in ("sufficiency", "shift", "steered zero-shot accuracy", "steered instruction probability"):
        torch.testing.assert_close(found.values[name, "unscaled"], whole.values[name, "chosen"], rtol=0, atol=near)
        assert (name, "unscaled") not in whole.values
    assert ("necessity", "unscaled") not in found.values, "ablation knows no length"
    assert found.value("sufficiency", "chosen") > 0.3 > found.value("sufficiency", "unscaled")
    back = dependence.recovery(found, found).query("heads == 'unscaled'")
    assert set(back["measure"]) == {
        *(f"regained {kind} accuracy" for kind in ("instruction", "zero-shot")),
        *(f"share regained {kind}" for kind in ("instruction", "zero-shot")),
    }


@pytest.mark.long
def test_universal_vectors_have_one_place_for_all_tasks(lab: HookedTransformer) -> None:
    tasks = [ivlens.task(name) for name in ("antonym", "english-french")]
    settings = Settings(clean_prompts=40, prompts=8)
    found = universal_heads(lab, tasks, settings)
    scores = {}
    for layer in range(6):
        for scale in SCALES:
            right, first = [], []
            for one, vector in zip(tasks, found.vectors, strict=True):
                tokens = tokenize(lab, zero_shot(one.split().validation))
                rows = steering_rows.steer_rows(lab, tokens, scale * vector[None], [layer])
                right.append(float(rows.match[:, 1].double().mean()))
                first.append(float(rows.first[:, 1].double().mean()))
            scores[layer, scale] = sum(right) / 2, sum(first) / 2
    best = max(value[0] for value in scores.values())
    assert scores[found.layer, found.scale][0] == best
    assert universal_heads(lab, tasks, settings, scale=1.0).scale == 1.0


def places(**changes: object) -> pd.DataFrame:
    rows = [
        {"layer": layer, "scale": scale, "share": 0.1 * scale, "accuracy": 0.1 * layer, "probability": 0.05}
        for layer in range(4)
        for scale in SCALES
    ]
    frame = pd.DataFrame(rows).assign(prompts=20, chosen=False)
    frame.loc[7, "chosen"] = True
    return frame.assign(**changes)


@pytest.mark.slow
def test_the_heat_map_shows_every_place_and_marks_the_chosen_one() -> None:
    figure = plots.steering_heatmap(places(), title="t")
    cells = figure.data[0]
    assert cells.z.shape == (6, 4) and list(cells.x) == [0, 1, 2, 3]
    assert cells.z[2].tolist() == pytest.approx([0, 0.1, 0.2, 0.3])
    (box,) = figure.layout.shapes
    assert (box.x0, box.x1, box.y0, box.y1) == (0.5, 1.5, 0.5, 1.5), "row 7 is of layer 1 and the second scale"
    assert (
        cells.customdata[1][1]
        == "layer 1, scale 1 (0.1 of the residual stream's length): accuracy 0.100, P(answer) 0.050"
    )
    gaps = places()
    gaps.loc[3, "accuracy"] = float("nan")
    assert "not tried" in plots.steering_heatmap(gaps).data[0].customdata[3][0]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (places().drop(columns="share"), "has no column share"),
        (places().iloc[:0], "has no rows"),
        (pd.concat([places(), places()]), "several rows for one layer and scale"),
        (places(accuracy=20.0), "outside 0 to 1"),
    ],
)
def test_tables_that_cannot_be_drawn_are_refused(frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(FigureError, match=message):
        plots.steering_heatmap(frame)
