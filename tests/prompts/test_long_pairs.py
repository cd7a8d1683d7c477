"""Pairs too long for the context are left out, as few of them as do, and aloud."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import WORD_TEMPLATE

import ivlens
from ivlens.datasets.task import Pair, Task
from ivlens.errors import PromptError, TaskWarning
from ivlens.prompts.builders import few_shot, instructed
from ivlens.prompts.long_pairs import leave_out_long
from ivlens.prompts.tokens import tokenize

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


def words(n: int, start: int = 0) -> str:
    return " ".join(f"w{(start + i) % 100}" for i in range(n))


def uneven(n: int = 40) -> Task:
    """Pairs of 1 to 20 words, in no order of length, and one document of hundreds."""
    sizes = [1 + (7 * i) % 20 for i in range(n)]
    pairs = [Pair(words(size, i), f"w{i + 50}") for i, size in enumerate(sizes)]
    return Task(name="uneven", pairs=(*pairs[:9], Pair(words(500), "w1"), *pairs[9:]), instructions=("w100 w101",))


def fits(model: HookedTransformer, pairs: tuple[Pair, ...], shots: int) -> bool:
    """Whether every prompt can be tokenized that asks for one of the longest pairs with the others shown."""
    longest = sorted(pairs, key=lambda pair: len(pair.input.split()))[-shots - 1 :]
    task = Task(name="x", pairs=pairs, instructions=("w100 w101",))
    try:
        tokenize(
            model,
            [
                *few_shot(longest, longest, shots=shots, generator=np.random.default_rng(0), template=WORD_TEMPLATE),
                *instructed(task, longest, template=WORD_TEMPLATE),
            ],
        )
    except PromptError:
        return False
    return True


@pytest.mark.parametrize("shots", [0, 1, 3, 5])
def test_as_few_as_do_are_left_out(tiny: HookedTransformer, shots: int) -> None:
    whole = uneven()
    with pytest.warns(
        TaskWarning, match=rf"task 'uneven': \d+ of 41 pairs are left out, .* with {shots} demonstrations"
    ):
        found = leave_out_long(tiny, whole, shots=shots, template=WORD_TEMPLATE)
    left_out = [pair for pair in whole.pairs if pair not in found.pairs]
    assert [pair for pair in whole.pairs if pair in found.pairs] == list(found.pairs), "in their order"
    assert fits(tiny, found.pairs, shots)
    shortest = min(left_out, key=lambda pair: len(pair.input.split()))
    assert not fits(tiny, (*found.pairs, shortest), shots)
    assert leave_out_long(tiny, found, shots=shots, template=WORD_TEMPLATE) is found


def test_where_half_would_go_the_shots_are_too_many(tiny: HookedTransformer) -> None:
    pairs = tuple(Pair(words(30, i), f"w{i}") for i in range(40))
    task = Task(name="long", pairs=pairs)
    with pytest.raises(
        PromptError, match=r"too many pairs of task 'long' are .* with 10 .*; use (\d+) shots or"
    ) as said:
        leave_out_long(tiny, task, shots=10, template=WORD_TEMPLATE)
    most = int(str(said.value).split("; use ")[1].split()[0])
    assert fits(tiny, pairs, most) and not fits(tiny, pairs, most + 1)
    assert leave_out_long(tiny, task, shots=most, template=WORD_TEMPLATE) is task


@pytest.mark.slow
def test_one_long_document_does_not_end_a_measurement(tiny: HookedTransformer, word_task: Task) -> None:
    few = {"shots": 3, "clean_prompts": 40, "prompts": 6, "template": WORD_TEMPLATE}
    longer = dataclasses.replace(word_task, pairs=(*word_task.pairs, Pair(words(500), "w1")))
    with pytest.warns(TaskWarning, match="task 'words': 1 of 41 pairs are left out"):
        found = ivlens.indirect_effects(tiny, longer, **few)
    assert found.cie.equal(ivlens.indirect_effects(tiny, word_task, **few).cie)


@pytest.mark.slow
def test_the_labs_tasks_are_asked_whole(lab: HookedTransformer) -> None:
    usual = ivlens.Settings()
    for name in ivlens.tasks():
        whole = ivlens.task(name)
        assert leave_out_long(lab, whole, shots=usual.shots, template=usual.template) is whole
