"""Vectors of several kinds are held beside each other at one layer and length, on queries that made none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from conftest import WORD_TEMPLATE

import ivlens
from ivlens.attribution.vector_comparison import (
    HEAD_SUM,
    MEAN_DIFFERENCE,
    OWN_PLACE,
    RANDOM,
    TRAINED,
    WEIGHED,
    best_of_layers,
    with_wrong_outputs,
)
from ivlens.datasets.task import Pair
from ivlens.errors import IvlensError
from ivlens.patching.activations import mean_z
from ivlens.prompts.builders import few_shot, zero_shot
from ivlens.prompts.tokens import tokenize
from ivlens.random_streams import Stream, open_stream
from ivlens.steering.search import search_places
from ivlens.vectors.head_writing import write_vector

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

SHORT: dict[str, Any] = {"shots": 4, "clean_prompts": 8, "prompts": 6}


@pytest.mark.parametrize("moved", [0, 2, 5, 10])
def test_so_many_pairs_have_another_ones_output(moved: int) -> None:
    pairs = [Pair(f"a{i}", f"b{i}") for i in range(10)]
    found = with_wrong_outputs(pairs, moved, seed=0)
    assert sum(new != old for new, old in zip(found, pairs, strict=True)) == moved
    assert [pair.input for pair in found] == [pair.input for pair in pairs]
    assert sorted(pair.output for pair in found) == sorted(pair.output for pair in pairs)


@pytest.mark.slow
def test_every_kind_is_of_one_length_and_the_head_sum_is_what_it_says(lab: HookedTransformer) -> None:
    table: Any = ivlens.compare_vectors(
        lab, "antonym", counts=[8, 500], wrong=[0.0, 0.48, 0.5], top=3, draws=2, steps=10, queries=12, **SHORT
    )
    kinds = [HEAD_SUM, MEAN_DIFFERENCE, TRAINED, WEIGHED, OWN_PLACE, RANDOM]
    split = ivlens.task("antonym").split(shots=4)
    # Shares that move as many outputs are one.
    cells = [len({round(share * pairs) for share in (0.0, 0.48, 0.5)}) for pairs in (8, len(split.mean))]
    assert cells[0] == 2 and table["vector"].tolist() == kinds * sum(cells)
    assert sorted(set(table["pairs"])) == [8, len(split.mean)] and (table["queries"] == 12).all()
    assert (table[table["vector"] == HEAD_SUM]["gain"] == 0).all() and table[table["vector"] != OWN_PLACE][
        "layer"
    ].nunique() == 1
    assert ((table["accuracy_low"] <= table["accuracy"]) & (table["accuracy"] <= table["accuracy_high"])).all()
    line = table[(table["pairs"] == 8) & (table["wrong"] == 0.0) & (table["vector"] == HEAD_SUM)].iloc[0]
    pairs, drawn = split.mean[:8], open_stream(0, Stream.CLEAN_PROMPTS)
    z = mean_z(lab, tokenize(lab, few_shot(pairs, pairs, shots=4, generator=drawn)))
    effects = ivlens.indirect_effects(lab, "antonym", **SHORT)
    vector, whole = (write_vector(lab, means, effects.top(3)) for means in (z, effects.mean_z))
    assert line["cosine"] == pytest.approx(float(torch.cosine_similarity(vector, whole, dim=0)), abs=1e-5)
    steered = ivlens.InstructionVector(
        vector=vector * line["norm"] / vector.norm(),
        heads=(),
        layer=int(line["layer"]),
        mean_z=None,
        settings=None,
        task="",
        task_digest="",
        model="",
        model_digest="",
    )
    with ivlens.steered(lab, steered):
        assert ivlens.ask(lab, zero_shot(split.evaluation[:12])).accuracy.mean == line["accuracy"]


@pytest.mark.numeric
def test_the_best_of_all_layers_is_the_best_of_those_that_are_searched_one_by_one(tiny: HookedTransformer) -> None:
    pairs = [Pair(f"w{i}", f"w{i + 50}") for i in range(12)]
    validation = tokenize(tiny, zero_shot(pairs, template=WORD_TEMPLATE))
    drawn = torch.randn(3, tiny.cfg.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    slow = []
    for layer, vector in enumerate(drawn):
        tried = search_places(tiny, validation, vector[None], layer=layer)
        place = tried.best()
        cell = tried.cell(0, place)
        slow.append((float(tried.accuracy[cell]), float(tried.probability[cell]), -layer, place))
    assert best_of_layers(tiny, validation, drawn, memory=2**30) == max(slow)[-1]


def test_what_cannot_be_compared_is_refused(lab: HookedTransformer) -> None:
    for wrong, said in (
        ({"counts": [2]}, "counts has 2; vectors need 3 pairs or more"),
        ({"wrong": [1.5]}, "wrong has 1.5; it must be a share, from 0 to 1"),
    ):
        with pytest.raises(IvlensError, match=said):
            ivlens.compare_vectors(lab, "antonym", **wrong, **SHORT)
