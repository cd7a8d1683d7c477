"""What a model writes under a vector is scored at the place that was chosen by greedy match."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from transformer_lens import HookedTransformer

import ivlens
from ivlens.analysis import audit_tables
from ivlens.analysis.audit import Audit, _with_score
from ivlens.prompts.builders import zero_shot
from ivlens.steering.trials import VALUES

pytestmark = [pytest.mark.numeric, pytest.mark.slow]

SMALL: dict[str, Any] = {"shots": 3, "clean_prompts": 6, "prompts": 4}
AUDITED = {**SMALL, "top": 2, "draws": 6, "other_tasks": 0}


TASK = ivlens.task("next-two")  # Of answers of two words one may be right.


@pytest.fixture(scope="module")
def both(lab: HookedTransformer) -> dict[str, Audit]:
    return {score: ivlens.audit(lab, TASK, score=score, **AUDITED) for score in ("greedy-match", "f1")}


def lines(found: Audit) -> pd.DataFrame:
    return found.measures.set_index("measure")


@pytest.mark.long
def test_a_table_says_of_which_score_each_accuracy_is(both: dict[str, Audit]) -> None:
    assert set(both["greedy-match"].measures["score"]) == {"greedy-match"}
    scored = lines(both["f1"])["score"]
    assert all(scored[name] == ("greedy-match" if name.endswith(", scale 1") else "f1") for name in scored.index)
    assert both["f1"].vector.heads == both["greedy-match"].vector.heads
    pd.testing.assert_frame_equal(both["f1"].places, both["greedy-match"].places)
    pd.testing.assert_frame_equal(both["f1"].draws, both["greedy-match"].draws)


def test_accuracies_are_those_of_asking_the_model_and_the_steered_model(
    both: dict[str, Audit], lab: HookedTransformer
) -> None:
    found, prompts = both["f1"], zero_shot(TASK.split(shots=3).evaluation)
    bare = ivlens.ask(lab, prompts)
    with ivlens.steered(lab, found.vector):
        steered = ivlens.ask(lab, prompts)
    for name, replies in (("zero-shot", bare), ("steered", steered)):
        for score, one in both.items():
            line = lines(one).loc[name]
            assert tuple(line[list(VALUES[:3])]) == pytest.approx(replies.score(score))  # type: ignore[arg-type]
            assert line["probability"] == pytest.approx(replies.probability.mean)
    assert lines(found).loc["steered", "accuracy"] != lines(both["greedy-match"]).loc["steered", "accuracy"]


def test_other_columns_stay_and_controls_have_intervals(both: dict[str, Audit]) -> None:
    ours, theirs = (lines(both[score]) for score in ("f1", "greedy-match"))
    same = [*VALUES[3:]]
    pd.testing.assert_frame_equal(ours[same], theirs[same])
    random = ours.loc["steered, random"]
    assert 0 <= random["accuracy_low"] < random["accuracy"] < random["accuracy_high"] <= 1


def test_what_is_shown_says_which_score_it_is(both: dict[str, Audit]) -> None:
    found, usual = both["f1"], both["greedy-match"]
    assert audit_tables.sentence(found).startswith("Zero-shot accuracy (f1): ")
    assert audit_tables.sentence(usual).startswith("Zero-shot accuracy: ")
    note = audit_tables.audit_tables(found)[0].note
    assert note.startswith("Accuracy is f1 of the replies that the model writes: under a vector at the place\n")
    assert "greedy match" not in audit_tables.audit_tables(usual)[0].note
    titles = {name: figure.layout.title.text for name, figure in found.figures().items()}
    assert "Accuracy (f1): " in titles["measures"]
    # Accuracies of another score are no baseline of greedy matches.
    for name in ("steering", "heads"):
        assert "accuracy (greedy-match)" in titles[name]
        assert len(found.figures()[name].data) < len(usual.figures()[name].data)


def test_runs_of_before_have_greedy_matches(both: dict[str, Audit]) -> None:
    old = both["greedy-match"].measures.drop(columns="score")
    assert _with_score(old)["score"].unique().tolist() == ["greedy-match"]
    assert _with_score(both["f1"].measures) is both["f1"].measures
