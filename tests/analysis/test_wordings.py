"""The wording is chosen on validation pairs, and everything after it is asked in that wording."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import WORD_TEMPLATE
from transformer_lens import HookedTransformer

import ivlens
from ivlens.analysis import wordings
from ivlens.datasets.task import Task, task
from ivlens.errors import TaskError
from ivlens.models import lora
from ivlens.models.lora import LoraConfig
from ivlens.storage.run_tables import Tables

SMALL: dict[str, Any] = {"shots": 3, "clean_prompts": 4, "prompts": 3, "top": 2, "draws": 1}
VAGUE = "Write any word."


@pytest.fixture(scope="module")
def opposites() -> Task:
    """Of two vague wordings and, in the middle, one that the lab model follows."""
    whole = task("antonym")
    return dataclasses.replace(whole, pairs=whole.pairs[:40], instructions=(VAGUE, whole.instructions[0], VAGUE))


@pytest.mark.long
def test_the_wording_that_the_model_follows_is_the_best(
    lab: HookedTransformer, opposites: Task, tmp_path: Path
) -> None:
    ask: dict[str, Any] = {**SMALL, "source": "instruction", "instruction": "best", "other_tasks": 1}
    found = ivlens.audit(lab, opposites, out=tmp_path / "run", **ask)
    assert found.instructions is not None
    assert list(found.instructions["chosen"]) == [False, True, False]
    accuracy = list(found.instructions["accuracy"])
    assert accuracy[1] > 0.9 and accuracy[0] == accuracy[2] < 0.7
    assert set(found.instructions["prompts"]) == {len(opposites.split(shots=3).validation)}
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["settings"]["instruction"] == "best" and record["sources"]["task"]["digest"] == opposites.digest
    second = ivlens.audit(lab, opposites, **{**ask, "instruction": 2})
    one = dataclasses.replace(opposites, instructions=opposites.instructions[1:2])
    alone = ivlens.audit(lab, one, **{**ask, "instruction": "all"})
    for other in (second, alone):
        pd.testing.assert_frame_equal(found.measures, other.measures)
        assert torch.equal(found.vector.vector, other.vector.vector)
        assert found.vector.task_digest == other.vector.task_digest != opposites.digest
    again = ivlens.audit(lab, opposites, out=tmp_path / "run", **ask)
    assert again.instructions is not None
    pd.testing.assert_frame_equal(again.instructions, found.instructions)


def test_of_equally_accurate_wordings_the_more_probable_answers_win(tiny: HookedTransformer, word_task: Task) -> None:
    pairs = word_task.pairs[:7]
    found = wordings.try_wordings(tiny, word_task, pairs, template=WORD_TEMPLATE)
    assert list(found["wording"]) == ["w100 w101", "w102"] and list(found["number"]) == [1, 2]
    for line in found.to_dict("records"):
        first = []
        for pair in pairs:
            text = f"{line['wording']} \n Q : {pair.input} A :"
            logits = tiny(tiny.to_tokens(text, prepend_bos=True))[0, -1]
            first.append(float(logits.softmax(-1)[tiny.tokenizer.convert_tokens_to_ids(pair.output)]))
        assert line["probability"] == pytest.approx(sum(first) / len(first), rel=1e-6)
    assert found["accuracy"].nunique() == 1, "otherwise this test says nothing"
    assert found.loc[found["chosen"], "probability"].item() == found["probability"].max()


def test_the_best_wording_is_sought_on_no_more_pairs_than_layers_are(
    tiny: HookedTransformer, word_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables, settings = Tables(), ivlens.Settings(shots=3, template=WORD_TEMPLATE)
    monkeypatch.setattr(wordings, "MOST_VALIDATION", 3)
    wordings.choose_wording(tiny, word_task, "best", settings, score="greedy-match", tables=tables)
    assert set(tables.kept["instructions"]["prompts"]) == {3} and len(word_task.split(shots=3).validation) > 3


@pytest.mark.slow
def test_all_wordings_in_turn_are_the_default(tiny: HookedTransformer, word_task: Task) -> None:
    ask: dict[str, Any] = {**SMALL, "source": "instruction", "other_tasks": 0, "template": WORD_TEMPLATE}
    usual = ivlens.audit(tiny, word_task, **ask)
    same = ivlens.audit(tiny, word_task, **ask, instruction="all")
    pd.testing.assert_frame_equal(usual.measures, same.measures)
    assert usual.instructions is None and usual.vector.task_digest == word_task.digest


@pytest.mark.slow
def test_a_comparison_is_made_in_the_base_models_best_wording(tiny: HookedTransformer, word_task: Task) -> None:
    adapter = lora.fresh(tiny, LoraConfig(rank=2))
    for factors in adapter.factors.values():
        factors.B.fill_(0.3)
    ask: dict[str, Any] = {**SMALL, "queries": 3, "template": WORD_TEMPLATE}
    best = ivlens.compare(tiny, adapter, word_task, instruction="best", **ask)
    pairs = word_task.split(shots=3).validation
    found = wordings.try_wordings(tiny, word_task, pairs, template=WORD_TEMPLATE)
    number = int(found.loc[found["chosen"], "number"].item())
    same = ivlens.compare(tiny, adapter, word_task, instruction=number, **ask)
    pd.testing.assert_frame_equal(best.measures, same.measures)
    other = ivlens.compare(tiny, adapter, word_task, instruction=3 - number, **ask)
    assert not best.measures["value"].equals(other.measures["value"])


@pytest.mark.parametrize("choice", [0, 3, 99])
def test_a_wording_that_is_not_there_is_refused(tiny: HookedTransformer, word_task: Task, choice: int) -> None:
    with pytest.raises(TaskError, match=f"instruction is {choice}, but task 'words' has 2 wordings; give all, best or"):
        ivlens.audit(tiny, word_task, instruction=choice)


def test_the_last_wordings_are_kept_back(opposites: Task) -> None:
    seen, unseen = wordings.part_wordings(opposites, 1)
    assert (seen.instructions, unseen.instructions) == (opposites.instructions[:2], opposites.instructions[2:])
    assert seen.pairs == unseen.pairs == opposites.pairs
    seen, unseen = wordings.part_wordings(opposites, 0)
    assert (seen, unseen.instructions) == (opposites, ())
    with pytest.raises(TaskError, match=r"^wordings of task 'antonym': 3, kept back: 3; keep fewer back, so that one"):
        wordings.part_wordings(opposites, 3)
    bare = dataclasses.replace(opposites, instructions=())
    assert wordings.part_wordings(bare, 0)[0] == bare, "where none is kept back, none is needed"


def test_a_choice_without_wordings_is_refused(word_task: Task) -> None:
    bare = dataclasses.replace(word_task, instructions=())
    for choice in ("best", 1):
        with pytest.raises(TaskError, match="has 0 wordings; add instructions to it"):
            wordings.check_choice(bare, choice)
    wordings.check_choice(bare, "all")
