"""A comparison scores what both models write, beside their greedy matches and under names of their own."""

from __future__ import annotations

from typing import Any

import pytest
from transformer_lens import HookedTransformer

import ivlens
from ivlens.analysis.comparison import Comparison
from ivlens.analysis.comparison_tables import comparison_tables
from ivlens.models import lora
from ivlens.prompts.builders import instructed, statements, zero_shot

pytestmark = [pytest.mark.numeric, pytest.mark.slow]

TASK = ivlens.task("next-two")  # Of answers of two words one may be right.
SMALL: dict[str, Any] = {"shots": 3, "clean_prompts": 6, "prompts": 4, "queries": 8, "draws": 2, "heads": "L3H3"}


@pytest.fixture(scope="module")
def adapter(lab: HookedTransformer) -> lora.Adapter:
    made = lora.fresh(lab, lora.LoraConfig(rank=2))
    for factors in made.factors.values():
        factors.B[:] = 0.08
    return made


@pytest.fixture(scope="module")
def found(lab: HookedTransformer, adapter: lora.Adapter) -> Comparison:
    return ivlens.compare(lab, adapter, TASK, score="f1", **SMALL)


def test_abilities_are_those_of_asking_each_model(
    found: Comparison, lab: HookedTransformer, adapter: lora.Adapter
) -> None:
    pairs = TASK.split(shots=3).evaluation[:8]
    told = statements(TASK, pairs)
    asked = {"instruction": instructed(TASK, pairs), "knowledge": told, "zero-shot": zero_shot(pairs)}
    seen = set()
    for name, prompts in asked.items():
        lines = found.measures[found.measures["measure"] == f"{name} accuracy (f1)"].set_index("model")
        if not prompts:
            assert lines["value"].isna().all()
            continue
        before = ivlens.ask(lab, prompts).scores("f1")
        with lora.merged(lab, adapter):
            after = ivlens.ask(lab, prompts).scores("f1")
        wanted = {"base": before, "tuned": after, "difference": after - before}
        for model, values in wanted.items():
            assert lines.loc[model, "value"] == pytest.approx(float(values.mean()), abs=1e-6)
            seen.add(round(float(values.mean()), 6))
    assert len(seen) >= 3, "they differ: else this shows little"


def test_the_table_says_of_which_score_an_accuracy_is(found: Comparison) -> None:
    table = comparison_tables(found)[0]
    labels = [line[0] for line in table.parts[0]]
    assert "accuracy with the instruction" in labels and "accuracy (f1) with the instruction" in labels
    assert "Accuracy without a score in brackets is greedy match." in table.note.splitlines()


def test_greedy_match_adds_no_line(lab: HookedTransformer, adapter: lora.Adapter) -> None:
    found = ivlens.compare(lab, adapter, TASK, **SMALL)
    assert not found.measures["measure"].str.contains("(", regex=False).any()
    assert "brackets" not in comparison_tables(found)[0].note
