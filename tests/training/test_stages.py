"""A stage parts a task so that nothing is tested on what was trained on."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivlens.datasets.task import Pair, Task, task
from ivlens.errors import TaskError
from ivlens.prompts.builders import instructed
from ivlens.prompts.template import DEFAULT, Prompt, Template
from ivlens.training.stages import Stage, check_sequence


def of(n: int, *, wordings: int = 1) -> Task:
    pairs = tuple(Pair(f"i{i}", f"o{i}") for i in range(n))
    return Task(name="t", pairs=pairs, instructions=tuple(f"Do {i}." for i in range(wordings)))


def queries(prompts: tuple[Prompt, ...]) -> list[Pair]:
    return [prompt.query for prompt in prompts]


@pytest.mark.slow
@settings(deadline=None)
@given(st.integers(6, 300), st.integers(0, 2**32 - 1))
def test_the_parts_share_no_query_lose_none_and_have_two_each(n: int, seed: int):
    stage = Stage.of_task(of(n), seed=seed)
    parts = [queries(stage.train), queries(stage.validation), queries(stage.test)]
    assert sorted(pair for part in parts for pair in part) == sorted(of(n).pairs)
    assert min(map(len, parts)) >= 2


def test_three_fifths_train_and_a_quarter_tests():
    stage = Stage.of_task(of(100), seed=0)
    assert [len(part) for part in (stage.train, stage.validation, stage.test)] == [60, 15, 25]


def test_prompts_are_those_of_the_general_tasks():
    one = task("antonym")
    stage = Stage.of_task(one, seed=0)
    assert list(stage.train) == instructed(one, queries(stage.train))
    assert {prompt.text.split("\n")[0] for prompt in stage.train} == set(one.instructions)
    assert set(stage.test) <= {prompt for word in one.instructions for prompt in _asked(one, word)}


def _asked(one: Task, wording: str) -> list[Prompt]:
    return instructed(dataclasses.replace(one, instructions=(wording,)), one.pairs)


def test_bare_prompts_ask_the_train_queries_without_the_instruction():
    stage = Stage.of_task(of(20), seed=3, template=Template(query="{input} ->"))
    assert [prompt.text for prompt in stage.bare] == [f"{pair.input} ->" for pair in queries(stage.train)]
    assert [prompt.text for prompt in stage.train] == [f"Do 0.\n{prompt.text}" for prompt in stage.bare]


def test_demonstrations_are_other_training_prompts_in_the_form_of_few_shot_prompts():
    stage = Stage.of_task(of(20), seed=3)
    found, pairs = stage.with_demonstrations(4, seed=5), queries(stage.train)
    assert [prompt.query for prompt in found] == pairs
    seen = set()
    for prompt in found:
        shown = tuple(Pair(*pair) for pair in re.findall(r"Q: (\w+)\nA: (\w+)\n\n", prompt.text))
        assert len(set(shown)) == 4 and set(shown) <= set(pairs) - {prompt.query}
        assert prompt == DEFAULT.render(prompt.query, demonstrations=shown)
        seen.add(shown)
    assert len(seen) > 1, "every prompt draws anew"
    assert found == stage.with_demonstrations(4, seed=5) != stage.with_demonstrations(4, seed=6)


def test_more_demonstrations_than_other_training_prompts_are_refused():
    stage = Stage.of_task(of(10), seed=0)
    assert len(stage.with_demonstrations(5, seed=0)) == 6
    with pytest.raises(TaskError, match="stage 't' has 6 training prompts, but 6 demonstrations and a query need more"):
        stage.with_demonstrations(6, seed=0)


def test_the_seed_decides_the_split_and_the_digest():
    one = of(30)
    assert Stage.of_task(one, seed=1) == Stage.of_task(one, seed=1)
    assert Stage.of_task(one, seed=1).digest == Stage.of_task(one, seed=1).digest
    assert Stage.of_task(one, seed=1).digest != Stage.of_task(one, seed=2).digest


@pytest.mark.parametrize("part", ["train", "validation", "test", "bare"])
def test_the_digest_covers_every_part(part: str):
    stage = Stage.of_task(of(30), seed=1)
    first, *others = getattr(stage, part)
    changed = dataclasses.replace(stage, **{part: (dataclasses.replace(first, text=f"{first.text}!"), *others)})
    assert changed.digest != stage.digest


def test_where_the_parts_of_a_prompt_stand_is_not_of_the_digest():
    one = Stage.of_task(of(30), seed=1)
    bare = tuple(dataclasses.replace(prompt, spans=()) for prompt in one.train)
    assert any(prompt.spans for prompt in one.train)
    assert dataclasses.replace(one, train=bare).digest == one.digest


def test_the_bos_token_is_of_the_digest_only_where_it_is_asked_for():
    # The digest that studies have in their records.
    usual = "92360a6e7845ca45ffd959a4c006d28270807b2c8a6ef44bf17348d39edc7ce3"
    assert Stage.of_task(of(30), seed=1).digest == usual
    assert Stage.of_task(of(30), seed=1, template=Template(bos="no")).digest != usual


def test_a_task_too_small_for_its_split_is_refused():
    Stage.of_task(of(6), seed=0)
    with pytest.raises(TaskError, match=r"task 't' has 5 pairs, but a stage needs at least 6 .*; add pairs"):
        Stage.of_task(of(5), seed=0)


def test_a_task_without_an_instruction_is_refused():
    with pytest.raises(TaskError, match="task 't' has no written instruction; add 'instructions'"):
        Stage.of_task(of(30, wordings=0), seed=0)


def test_an_input_that_stands_twice_is_refused():
    one = Task(name="t", pairs=(*of(10).pairs, Pair("i3", "another")), instructions=("Do.",))
    with pytest.raises(TaskError, match="has an input twice"):
        Stage.of_task(one, seed=0)


def test_a_stage_tests_nothing_that_it_trains_on():
    stage = Stage.of_task(of(30), seed=0)
    with pytest.raises(TaskError, match="in two of train, validation and test"):
        dataclasses.replace(stage, test=stage.train)
    with pytest.raises(TaskError, match="has 1 test prompts and needs 2"):
        dataclasses.replace(stage, test=stage.test[:1])
    with pytest.raises(TaskError, match="bare prompts of other queries"):
        dataclasses.replace(stage, bare=stage.bare[::-1])
    with pytest.raises(TaskError, match="a stage needs a name"):
        dataclasses.replace(stage, name=" ")


def test_a_sequence_names_every_task_once_and_at_least_one():
    stage = Stage.of_task(of(30), seed=0)
    check_sequence([stage, dataclasses.replace(stage, name="u")])
    with pytest.raises(TaskError, match="the sequence has no tasks; name at least one"):
        check_sequence([])
    with pytest.raises(TaskError, match="the sequence names 't' more than once"):
        check_sequence([stage, dataclasses.replace(stage, name="u"), stage])
