"""An examination's numbers are those of generating on every prompt alone, and what cannot be asked is not measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rounding
import torch
from transformer_lens import HookedTransformer

import ivlens
from ivlens.datasets.task import Pair, Task, task
from ivlens.errors import IvlensError, TaskError
from ivlens.forgetting import evaluation
from ivlens.forgetting.evaluation import COLUMNS, find_able, prepare_evaluation
from ivlens.forgetting.plan import Evaluation
from ivlens.prompts.builders import few_shot, instructed, statements, zero_shot
from ivlens.prompts.template import Prompt
from ivlens.prompts.tokens import tokenize
from ivlens.training.benchmark_stages import stage
from ivlens.training.stages import Stage

pytestmark = pytest.mark.numeric

EVALUATION = Evaluation(queries=6, few_shot_queries=4, shots=3, seed=2)
GENERAL = ("antonym", "country-capital", "choose-first", "next-two")
LEARNED = ("class-letter", "english-german")
"""One that the model has not learned and one that it has, so that no answer can be counted for the wrong task."""


@pytest.fixture(scope="module")
def general() -> list[Task]:
    return [task(name) for name in GENERAL]


@pytest.fixture(scope="module")
def learned() -> list[Stage]:
    return [stage(name, seed=1, limit=5) for name in LEARNED]


@pytest.fixture(scope="module")
def found(lab: HookedTransformer, general: list[Task], learned: list[Stage]) -> pd.DataFrame:
    return prepare_evaluation(lab, learned, general, EVALUATION)(lab)


def drawn(general: Task) -> tuple[list[Prompt], list[Prompt], list[Prompt]]:
    """Instructed, few-shot and statement prompts of a general task."""
    generator = np.random.default_rng([EVALUATION.seed, 11])
    order = [general.pairs[i] for i in generator.permutation(len(general.pairs))]
    few = few_shot(order[:4], general.pairs, shots=3, generator=generator)
    return instructed(general, order[:6]), few, statements(general, order[:6])


def answered_alone(model: HookedTransformer, prompt: Prompt) -> tuple[bool, float]:
    """Does greedy decoding write the answer after this prompt alone? And the probability of its first token."""
    tokenizer: Any = model.tokenizer
    ids = tokenizer.encode(prompt.text, add_special_tokens=False)
    if model.cfg.default_prepend_bos:
        ids = [tokenizer.bos_token_id, *ids]
    answer = tokenizer.encode(prompt.text + prompt.answer, add_special_tokens=False)
    answer = answer[len(tokenizer.encode(prompt.text, add_special_tokens=False)) :]
    written, first = list(ids), 0.0
    for number in range(len(answer)):
        logits = model(torch.tensor([written]))[0, -1]
        if number == 0:
            first = float(logits.softmax(-1)[answer[0]])
        written.append(int(logits.argmax()))
    return written[len(ids) :] == answer, first


def value(found: pd.DataFrame, name: str, measure: str) -> tuple[float, int]:
    (line,) = found[(found["task"] == name) & (found["measure"] == measure)].to_dict("records")
    return line["value"], line["n"]


def assert_alone(
    model: HookedTransformer, found: pd.DataFrame, name: str, kind: str, prompts: list[Prompt], probability: bool
) -> None:
    alone = [answered_alone(model, prompt) for prompt in prompts]
    accuracy, n = value(found, name, f"{kind}accuracy")
    assert n == len(prompts)
    assert accuracy == sum(right for right, _ in alone) / n
    if probability:
        mean, n = value(found, name, f"{kind}probability")
        near = rounding.of_forward(model, model.to_tokens(prompts[0].text))  # In nats: relative to the probability.
        assert n == len(prompts) and mean == pytest.approx(sum(first for _, first in alone) / n, rel=near)


@pytest.mark.slow
def test_general_tasks_are_answered_as_by_generating_on_each_prompt_alone(
    found: pd.DataFrame, lab: HookedTransformer, general: list[Task]
) -> None:
    assert any(one.statement for one in general)
    for one in general:
        asked, few, told = drawn(one)
        assert_alone(lab, found, one.name, "instruction ", asked, True)
        assert_alone(lab, found, one.name, "few-shot ", few, False)
        if told:
            assert_alone(lab, found, one.name, "knowledge ", told, True)
    accuracies = found[found["measure"].str.endswith("accuracy")]["value"]
    assert accuracies.min() < 0.5 < accuracies.max(), "right and wrong answers are both needed here"


@pytest.mark.slow
def test_accuracies_are_of_the_score_that_is_asked_for(
    lab: HookedTransformer, general: list[Task], learned: list[Stage]
) -> None:
    # Bare queries, of whose answers of two words the lab writes one or both.
    bare = replace(learned[0], name="bare", test=tuple(zero_shot(task("next-two").pairs[:12])))
    usual, scored = (
        prepare_evaluation(lab, [bare], general[:1], replace(EVALUATION, score=score))(lab)
        for score in ("greedy-match", "f1")
    )
    asked = ivlens.ask(lab, bare.test)
    for one, score in ((usual, "greedy-match"), (scored, "f1")):
        assert value(one, "bare", "accuracy") == pytest.approx((asked.score(score).mean, 12))
    assert asked.score("f1").mean != asked.accuracy.mean
    is_probability = usual["measure"].str.endswith("probability")
    pd.testing.assert_frame_equal(scored[is_probability], usual[is_probability])


@pytest.mark.slow
def test_tasks_of_the_sequence_are_answered_as_by_generating_on_each_prompt_alone(
    found: pd.DataFrame, lab: HookedTransformer, learned: list[Stage]
) -> None:
    for one in learned:
        assert_alone(lab, found, one.name, "", list(one.test), True)
        assert_alone(lab, found, one.name, "trained ", list(one.train), False)


@pytest.mark.slow
def test_what_a_task_cannot_be_asked_is_not_measured_and_never_zero(
    lab: HookedTransformer, general: list[Task], learned: list[Stage]
) -> None:
    mute = Task(name="mute", pairs=general[0].pairs, instructions=general[0].instructions)
    # Between two tasks with statements, so that a slip by one would be seen.
    for order in ([general[0], mute, general[1]], [mute]):
        found = prepare_evaluation(lab, learned, order, EVALUATION)(lab)
        for measure in ("knowledge accuracy", "knowledge probability"):
            nothing, n = value(found, "mute", measure)
            assert np.isnan(nothing) and n == 0
        assert value(found, "mute", "instruction accuracy")[1] == 6
    told = drawn(general[1])[2]
    found = prepare_evaluation(lab, learned, [general[0], mute, general[1]], EVALUATION)(lab)
    assert_alone(lab, found, general[1].name, "knowledge ", told, True)


@pytest.mark.slow
def test_only_what_the_base_model_can_do_is_asked(lab: HookedTransformer, general: list[Task]) -> None:
    words = [pair.input for pair in general[0].pairs]
    senseless = Task(
        name="senseless",
        pairs=tuple(Pair(word, words[(7 * place) % len(words)]) for place, word in enumerate(words)),
        instructions=("Answer.",),
        statement="{input} is",
    )
    asked = replace(EVALUATION, queries=12, few_shot_queries=12, able_only=True)
    assert find_able(lab, [senseless, *general], EVALUATION) is None, "nobody asks"
    able = find_able(lab, [senseless, *general], asked)
    assert able is not None and able["instruction accuracy"] == able["few-shot accuracy"] == set(GENERAL)
    assert able["knowledge accuracy"] == {"antonym", "country-capital"}, "the others have no statement, or no sense"
    prepared = prepare_evaluation(lab, [], [general[0], senseless, *general[1:]], asked)
    every, some = prepared(lab), prepared.of_able(able)(lab)
    is_senseless = every["task"] == "senseless"
    assert some[is_senseless]["value"].isna().all() and not some[is_senseless]["n"].any()
    pd.testing.assert_frame_equal(some[~is_senseless], every[~is_senseless])
    assert not every[is_senseless]["value"].isna().any()


def test_what_a_statement_asks_for_is_compared_with_its_own_most_frequent_answer(
    lab: HookedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = tuple(Pair(f"query {number}", "ab"[number % 2], (), f"word {number}") for number in range(40))
    task = Task(name="letters", pairs=pairs, instructions=("Give the letter.",), statement="{input} is")
    scored = ("letters", torch.tensor([1.0] * 8 + [0.0] * 8), torch.zeros(16))
    monkeypatch.setattr(evaluation.PromptSet, "scores", lambda one, model: iter([scored]))
    able = find_able(lab, [task], replace(EVALUATION, able_only=True))
    # Half right: no more than by saying one of two letters, and much more than by any one of 40 words.
    assert able == {"instruction accuracy": set(), "few-shot accuracy": set(), "knowledge accuracy": {"letters"}}


def test_what_the_model_can_do_is_told_by_queries_that_are_not_reported(
    lab: HookedTransformer, general: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[evaluation.PromptSet] = []
    monkeypatch.setattr(evaluation.PromptSet, "scores", lambda one, model: iter(asked.append(one) or ()))
    find_able(lab, general, replace(EVALUATION, able_only=True))
    reported = [one for one in prepare_evaluation(lab, [], general, EVALUATION).prompt_sets if one.kind == "general"]
    assert len(asked) == len(reported) == 3
    for one, other in zip(asked, reported, strict=True):
        assert (one.accuracy, one.sizes) == (other.accuracy, other.sizes)
        assert not {prompt.query for prompt in one.prompts} & {prompt.query for prompt in other.prompts}


@pytest.mark.slow
def test_the_same_queries_are_asked_in_wordings_that_guides_see_and_in_those_that_are_kept_back(
    lab: HookedTransformer, general: list[Task], learned: list[Stage]
) -> None:
    prepared = prepare_evaluation(lab, learned, general, replace(EVALUATION, kept_back=2))
    texts = {one.accuracy: [prompt.text for prompt in one.prompts] for one in prepared.prompt_sets}
    found = prepared(lab)
    for place, one in enumerate(general):
        queries = [prompt.query for prompt in drawn(one)[0]]
        seen, unseen = replace(one, instructions=one.instructions[:4]), replace(one, instructions=one.instructions[4:])
        for form, told in (
            ("instruction ", instructed(seen, queries)),
            ("unseen wording ", instructed(unseen, queries)),
        ):
            assert texts[f"{form}accuracy"][6 * place : 6 * place + 6] == [prompt.text for prompt in told]
            assert_alone(lab, found, one.name, form, told, form == "instruction ")
        assert_alone(lab, found, one.name, "few-shot ", drawn(one)[1], False)
    with pytest.raises(TaskError, match="wordings of task 'antonym': 6, kept back: 6"):
        prepare_evaluation(lab, learned, general, replace(EVALUATION, kept_back=6))
    with pytest.raises(IvlensError, match="evaluation: kept_back is -1; it must be 0 or more"):
        replace(EVALUATION, kept_back=-1)


@pytest.mark.slow
def test_demonstrations_drawn_once_stand_before_all_queries_of_a_task(
    lab: HookedTransformer, general: list[Task], learned: list[Stage]
) -> None:
    once = replace(EVALUATION, demonstrations="task")
    found = prepare_evaluation(lab, learned, general, once)(lab)
    for one in general:
        few = evaluation._general(one, once, 0)[1]
        assert {prompt.query for prompt in few} == {prompt.query for prompt in drawn(one)[1]}
        (shown,) = {prompt.text.rpartition("Q: ")[0] for prompt in few}
        assert shown.count("Q: ") == 3
        assert not [prompt for prompt in few if f"Q: {prompt.query.input}\n" in shown]
        assert_alone(lab, found, one.name, "few-shot ", few, False)
    with pytest.raises(TaskError, match="has 80 pairs, but 3 demonstrations for all of 78 queries need 81"):
        prepare_evaluation(lab, learned, general[:1], replace(once, few_shot_queries=78))


@pytest.mark.slow
def test_of_the_learned_tasks_as_many_are_asked_as_are_wanted(
    lab: HookedTransformer, learned: list[Stage], general: list[Task]
) -> None:
    found = prepare_evaluation(lab, learned, general[:1], replace(EVALUATION, learned_queries=3))(lab)
    assert_alone(lab, found, learned[0].name, "", list(learned[0].test[:3]), True)
    assert_alone(lab, found, learned[0].name, "trained ", list(learned[0].train[:3]), False)


@pytest.mark.slow
def test_one_line_a_task_and_measure(found: pd.DataFrame) -> None:
    assert tuple(found.columns) == COLUMNS
    kinds = {kind: set(part["task"]) for kind, part in found.groupby("kind")}
    assert kinds == {"general": set(GENERAL), "sequence": set(LEARNED)}
    assert not found.duplicated(["task", "measure"]).any() and len(found) == 2 * 3 + 4 * 5
    assert list(dict.fromkeys(found[found["kind"] == "sequence"]["task"])) == list(LEARNED)
    assert found["value"].dropna().between(0, 1).all() and set(found["heads"]) == {""}


@pytest.mark.slow
def test_the_same_questions_are_asked_again(
    found: pd.DataFrame, lab: HookedTransformer, general: list[Task], learned: list[Stage]
) -> None:
    again = prepare_evaluation(lab, learned, general, EVALUATION)(lab)
    pd.testing.assert_frame_equal(again, found, check_exact=True)
    fewer = prepare_evaluation(lab, learned[:1], general[:2], EVALUATION)(lab)
    near = rounding.of_forward(lab, tokenize(lab, drawn(general[0])[0]).prompts)
    for name in GENERAL[:2]:
        same = value(fewer, name, "instruction probability"), value(found, name, "instruction probability")
        assert same[0] == pytest.approx(same[1], rel=near), "another task beside it changes nothing"


def test_tasks_that_cannot_be_asked_are_refused(lab: HookedTransformer, learned: list[Stage]) -> None:
    pairs = tuple(Pair(f"{i}", "one") for i in range(3))
    few = Task(name="few", pairs=pairs, instructions=("Count.",))
    with pytest.raises(TaskError, match="general task 'few' has 3 pairs, but 3 demonstrations and a query need more"):
        prepare_evaluation(lab, learned, [few], EVALUATION)
    bare = Task(name="bare", pairs=task("antonym").pairs)
    with pytest.raises(TaskError, match="task 'bare' has no written instruction"):
        prepare_evaluation(lab, learned, [bare], EVALUATION)
