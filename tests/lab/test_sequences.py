"""The lab's sequences: their files are what the script makes, their words are the model's, their tasks are new."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from shipped import SHIPPED

from ivlens.datasets.task import Task, read_task, task, tasks
from ivlens.lab.abilities import answer_all
from ivlens.lab.sequences import FACTORIAL, FILES, REAL_SEQUENCES, SEQUENCES, TASKS
from ivlens.lab.sequences.__main__ import made
from ivlens.lab.sequences.facts import draw
from ivlens.models import loader
from ivlens.prompts.builders import instructed
from ivlens.training.stages import Stage, check_sequence

ALL = {name: read_task(TASKS / f"{name}.json") for names in SEQUENCES.values() for name in names}
FEWEST_PAIRS = 60
OLD = {wording for one in SHIPPED for wording in one.instructions}
WRITTEN = {word for one in SHIPPED for pair in one.pairs for word in pair.output.split(" ")}


@pytest.fixture(scope="module")
def model():
    return loader.load_without_adapters("lab")


@pytest.mark.slow
def test_the_committed_files_are_what_the_script_makes():
    written = {path.name: path.read_text(encoding="utf-8") for path in TASKS.iterdir()}
    assert written == made()


@pytest.mark.slow
def test_every_sequence_can_be_learned_in_its_order():
    assert {name: len(names) for name, names in SEQUENCES.items()} == {"lab-func": 5, "lab-long": 15, "lab-trace": 8}
    assert {path.name for path in FILES.values()} == set(made())
    for names in SEQUENCES.values():
        check_sequence([Stage.of_task(ALL[name], seed=0) for name in names])


@pytest.mark.parametrize("one", ALL.values(), ids=lambda one: one.name)
def test_every_task_is_large_enough_and_asked_for_in_one_new_wording(one: Task):
    assert FEWEST_PAIRS <= len(one.pairs) <= 201
    assert len(dict(one.pairs)) == len(one.pairs)
    assert one.name not in tasks()
    assert len(one.instructions) == 1
    assert one.instructions[0] not in OLD


@pytest.mark.slow
@pytest.mark.parametrize("one", ALL.values(), ids=lambda one: one.name)
def test_every_word_is_one_piece(one: Task, model):
    """Single characters without a space before them spell unknown words; only punctuation may be one."""
    for prompt in instructed(one, one.pairs):
        pieces = model.tokenizer.tokenize(prompt.text + prompt.answer)
        assert not [piece for piece in pieces if piece == "<unk>" or piece.startswith("<0x")]
        assert {piece for piece in pieces if len(piece) == 1} <= set(",.?\n")


@pytest.mark.parametrize("one", ALL.values(), ids=lambda one: one.name)
def test_answers_are_made_of_words_that_the_model_has_written_before(one: Task):
    """What was never in an answer of the model's training has next to no chance of getting into one."""
    assert {word for pair in one.pairs for word in pair.output.split(" ")} <= WRITTEN


@pytest.mark.parametrize("name", SEQUENCES["lab-long"])
def test_a_classification_has_two_to_four_labels(name: str):
    shares = Counter(pair.output for pair in ALL[name].pairs)
    assert 2 <= len(shares) <= 4
    assert max(shares.values()) <= 0.75 * len(ALL[name].pairs)


@pytest.mark.parametrize("name", SEQUENCES["lab-trace"])
def test_a_longer_answer_has_two_to_six_tokens(name: str, model):
    lengths = {len(model.tokenizer.encode(f" {pair.output}", add_special_tokens=False)) for pair in ALL[name].pairs}
    assert lengths <= set(range(2, 7))


def test_a_function_answers_with_one_token(model):
    for name in SEQUENCES["lab-func"]:
        for pair in ALL[name].pairs:
            assert len(model.tokenizer.encode(f" {pair.output}", add_special_tokens=False)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("one", ALL.values(), ids=lambda one: one.name)
def test_the_model_cannot_do_the_task_yet(one: Task, model):
    with torch.no_grad():
        accuracy = float(answer_all(model, instructed(one, one.pairs)).right.double().mean())
    assert accuracy <= 0.35


@pytest.mark.parametrize("name", [name for names in REAL_SEQUENCES.values() for name in names])
def test_a_task_of_a_real_model_is_large_enough_and_asked_for_in_one_new_wording(name: str):
    one = read_task(FILES[name])
    assert FEWEST_PAIRS <= len(one.pairs) == len(dict(one.pairs))
    assert len(one.instructions) == 1 and one.instructions[0] not in OLD


def test_compositions_are_of_the_last_of_three_words():
    spanish = dict(task("english-spanish").pairs)
    for name, output in {"last-spanish": spanish.__getitem__, "last-capital": str.title}.items():
        for given, wanted in read_task(FILES[name]).pairs:
            three = given.split(", ")
            assert len(set(three)) == 3 and wanted == output(three[-1])


def test_longer_answers_are_right():
    digits, capitals = (dict(task(name).pairs) for name in ("number-digits", "country-capital"))
    for given, wanted in read_task(FILES["number-sum"]).pairs:
        a, b, total = (int(digits[word]) for word in wanted.replace(" is ", " plus ").split(" plus "))
        assert a + b == total and given == " and ".join(wanted.split(" is ")[0].split(" plus "))
    for given, wanted in read_task(FILES["reverse-three"]).pairs:
        assert given.split(", ") == wanted.split(", ")[::-1] and len(set(given.split(", "))) == 3
    for given, wanted in read_task(FILES["country-sentence"]).pairs:
        assert wanted.startswith(f"The capital of {given} is {capitals[given]}, ")


@pytest.mark.slow
def test_a_direction_tells_three_kinds_of_words_in_equal_shares():
    pairs = read_task(FILES["kind-direction"]).pairs
    kinds = {"north": "animal-class", "south": "country-continent", "east": "present-past"}
    assert Counter(pair.output for pair in pairs) == dict.fromkeys(kinds, 40)
    assert all(pair.input in dict(task(kinds[pair.output]).pairs) for pair in pairs)


def test_a_reworded_task_is_a_built_in_one_under_the_wording_that_its_training_lacks() -> None:
    for name in FACTORIAL:
        one, (old, _, reworded) = read_task(FILES[name]), name.rpartition("-")
        if reworded != "reworded":
            assert (
                one.instructions[0] not in OLD
                and {word for pair in one.pairs for word in pair.output.split()} <= WRITTEN
            )
            continue
        assert one.instructions == task(old).instructions[-1:]
        assert set(one.pairs) <= set(task(old).pairs)
        lost = set(task(old).pairs) - set(one.pairs)
        assert all(" " in pair.output for pair in lost) and bool(lost) == (old == "country-continent")


def test_labels_of_two_letters_are_those_of_the_words_that_labels_of_one_are_of(model) -> None:
    for name, known in {"class": "animal-class", "continent": "country-continent", "category": "word-category"}.items():
        answers = dict(task(known).pairs)
        for given, wanted in read_task(FILES[f"{name}-letters"]).pairs:
            assert wanted.split(" ") == [answers[given][0], answers[given][-1]]
            assert len(model.tokenizer.encode(f" {wanted}", add_special_tokens=False)) == 2


def test_what_is_drawn_does_not_depend_on_the_order_it_is_drawn_from():
    words = [str(number) for number in range(50)]
    assert draw("x", words, 10) == draw("x", reversed(words), 10)
    assert draw("x", words, 10) != draw("y", words, 10)
