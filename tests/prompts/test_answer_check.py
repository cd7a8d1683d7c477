"""What tokens cannot tell apart is said, with its share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ivlens.datasets.task import Task
from ivlens.errors import TaskWarning
from ivlens.patching.effects import ranking_prompts
from ivlens.patching.settings import Settings

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

SETTINGS = Settings(shots=2, prompts=4)
INPUTS = [f"in{i}" for i in range(20)]
ALONE = ["dog", "cat", "bird", "fish", "lion", "cow", "goat", "horse", "bear", "wolf", "fox", "duck", "hen", "pig"]


def task_of(alike: int) -> Task:
    """Twenty pairs, so many of them with answers of one and the same first token."""
    outputs = [f"{('big', 'small')[i % 2]} {ALONE[i // 2]}" for i in range(alike)]
    return Task.from_pairs(zip(INPUTS, [*outputs, *ALONE, *ALONE][: len(INPUTS)], strict=True), name="mine")


@pytest.mark.parametrize(("alike", "share"), [(4, "4 of 20 .* .20%."), (8, "8 of 20 .* .40%.")])
def test_answers_that_begin_alike_are_a_share_of_the_pairs(lab: HookedTransformer, alike: int, share: str) -> None:
    with pytest.warns(
        TaskWarning, match=rf"{share} have an answer whose first token begins other answers.*effect='nll'"
    ):
        ranking_prompts(lab, task_of(alike), SETTINGS)


def test_few_that_begin_alike_and_whole_answers_are_not_warned_of(lab: HookedTransformer) -> None:
    ranking_prompts(lab, task_of(0), SETTINGS)
    ranking_prompts(lab, task_of(8), Settings(shots=2, prompts=4, effect="nll"))


def test_equal_answers_are_no_different_ones(lab: HookedTransformer) -> None:
    """Labels stand many times in a task, and their first tokens tell them apart."""
    labels = Task.from_pairs(zip(INPUTS, ["dog", "cat"] * 10, strict=True), name="labels")
    ranking_prompts(lab, labels, SETTINGS)
