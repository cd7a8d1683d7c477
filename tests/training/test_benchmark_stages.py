"""Benchmarks' files become stages as they are, or are refused in a sentence; nothing else comes of any file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmark_folders import ANY_TEXT, FILES, VALUES, instructions, o_lora, questions, sentences, trace, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import ivlens.lab
from ivlens.datasets.task import Pair, TaskWarning, read_task, task
from ivlens.errors import TaskError
from ivlens.lab.sequences import SEQUENCES, TASKS
from ivlens.models import loader
from ivlens.prompts.template import Prompt
from ivlens.prompts.tokens import tokenize
from ivlens.training.benchmark_stages import stage
from ivlens.training.stages import Stage


def queries(prompts: tuple[Prompt, ...]) -> list[str]:
    return [prompt.query.input for prompt in prompts]


# What becomes of the formats


def test_a_trace_folder_is_read_as_it_is(tmp_path: Path):
    found = stage(trace(tmp_path / "FOMC"), seed=0)
    assert found.name == "FOMC"
    assert found.train[2] == Prompt(text="train 2?\nAnswer:", answer=" yes 2", query=Pair("train 2?\nAnswer:", "yes 2"))
    assert [len(part) for part in (found.train, found.validation, found.test)] == [6, 6, 6]
    assert queries(found.validation)[0] == "eval 0?\nAnswer:"
    assert found.bare == found.train


@pytest.mark.parametrize(
    ("prompt", "answer", "continued"),
    [("A:", "x", " x"), ("A: ", "x", "x"), ("A:\n", "x", "x"), ("A:", " x", " x"), ("A:", "\nx", "\nx")],
)
def test_a_word_has_one_space_before_it(tmp_path: Path, prompt: str, answer: str, continued: str):
    entries = [{"prompt": f"{i} {prompt}", "answer": answer} for i in range(3)]
    assert {one.answer for one in stage(trace(tmp_path / "x", train=entries), seed=0).train} == {continued}


def test_the_answer_is_a_word_of_the_model_wherever_the_space_stands(tmp_path: Path):
    model = loader.load_without_adapters("lab")
    tokens = AutoTokenizer.from_pretrained(ivlens.lab.MODEL)
    for seam in ("Q: big\nA:", "Q: big\nA: "):
        entries = [{"prompt": seam.replace("big", word), "answer": "small"} for word in ("big", "old", "hot")]
        found = stage(trace(tmp_path / str(len(seam)), train=entries), seed=0)
        assert tokens.convert_ids_to_tokens(tokenize(model, found.train).answers[0].tolist()) == [" small"]


def test_an_o_lora_folder_is_asked_with_its_options(tmp_path: Path):
    found = stage(o_lora(tmp_path / "SC" / "IMDB"), seed=0)
    assert found.name == "IMDB"
    assert found.train[1].text == (
        "Answer with one of these options: good, bad, neither.\nTitle: train\nText: 1\nAnswer:"
    )
    assert found.bare[1].text == "Title: train\nText: 1\nAnswer:"
    assert {prompt.answer for prompt in found.test} == {" good", " bad", " neither"}


def test_where_dev_and_test_are_one_file_some_training_prompts_validate(tmp_path: Path):
    folder = o_lora(tmp_path / "CB", train=sentences("train", 40), dev=sentences("test"))
    with pytest.warns(TaskWarning, match="8 of 40 training prompts were left out or validate, and 8 .* in place of 6"):
        found = stage(folder, seed=0)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [32, 8, 6]
    assert set(queries(found.train)) | set(queries(found.validation)) == {
        one["sentence"].strip() for one in sentences("train", 40)
    }


def test_what_is_tested_is_not_trained_on(tmp_path: Path):
    folder = trace(tmp_path / "x", train=questions("train", 10) + questions("test", 2) + questions("eval", 1))
    with pytest.warns(TaskWarning, match="3 of 13 training prompts were left out"):
        found = stage(folder, seed=0)
    assert queries(found.train) == [one["prompt"] for one in questions("train", 10)]


def test_a_super_natural_instructions_file_is_split(tmp_path: Path):
    found = stage(write(tmp_path / "task001_x.json", instructions(20)), seed=0)
    assert found.name == "task001_x"
    assert [len(part) for part in (found.train, found.validation, found.test)] == [12, 3, 5]
    number = found.test[0].query.input.removeprefix("Question ")
    assert found.test[0].text == f"Answer the question.\nQ: Question {number}\nA:"
    assert found.test[0].answer == f" first {number}"
    assert found.bare[0].text == f"Q: {found.train[0].query.input}\nA:"


def test_definitions_and_outputs_may_be_plain_texts_and_an_input_may_stand_twice(tmp_path: Path):
    content = instructions(12) | {"Definition": "Answer it."}
    content["Instances"] += [{"input": "Question 3", "output": "another"}, {"input": "New", "output": "plain"}]
    found = stage(write(tmp_path / "x.json", content), seed=0)
    pairs = {prompt.query for part in (found.train, found.validation, found.test) for prompt in part}
    assert len(pairs) == 13
    assert {Pair("Question 3", "first 3", ("second", "another")), Pair("New", "plain")} <= pairs
    assert found.train[0].text.startswith("Answer it.\n")


@pytest.mark.slow
def test_names_and_task_files_are_stages_of_their_tasks(tmp_path: Path):
    assert stage("antonym", seed=4) == Stage.of_task(task("antonym"), seed=4)
    for name in (names[0] for names in SEQUENCES.values()):
        assert stage(name, seed=4) == Stage.of_task(read_task(TASKS / f"{name}.json"), seed=4)
    mine = {"instructions": ["Do it."], "pairs": [{"input": f"i{i}", "output": "o"} for i in range(9)]}
    path = write(tmp_path / "mine.json", mine)
    assert stage(str(path), seed=4) == stage(path, seed=4) == Stage.of_task(read_task(path), seed=4)


@pytest.mark.parametrize("made", [trace, o_lora])
def test_a_limit_draws_training_prompts_and_leaves_the_rest(tmp_path: Path, made: Callable[..., Path]):
    folder = made(tmp_path / "x", train=questions("t", 50) if made is trace else sentences("t", 50))
    whole, some = stage(folder, seed=1), stage(folder, seed=1, limit=10)
    assert len(some.train) == 10
    assert [prompt for prompt in whole.train if prompt in some.train] == list(some.train)
    assert queries(some.bare) == queries(some.train)
    assert (some.validation, some.test) == (whole.validation, whole.test)
    assert some == stage(folder, seed=1, limit=10) != stage(folder, seed=2, limit=10)
    assert whole == stage(folder, seed=1, limit=50)
    with pytest.raises(TaskError, match="limit is 1; training needs 2 prompts or more"):
        stage(folder, seed=1, limit=1)


# What is refused


@pytest.mark.parametrize(
    ("part", "content", "sentence"),
    [
        ("train", "{", "train.json is not JSON: Expecting property name"),
        ("train", "[" * 100_000, "nested too deeply"),
        ("train", "1" * 5000, "is not JSON: Exceeds the limit"),
        ("train", [], "of no known format; a TRACE folder has train.json, eval.json and test.json"),
        ("train", [{"question": "a"}], "of no known format"),
        ("eval", [3], "eval.json, entry 1: it is no JSON object; write an object"),
        ("eval", [], "eval.json is no list of entries"),
        ("eval", {"prompt": "a", "answer": "b"}, "eval.json is no list of entries"),
        ("eval", [{"prompt": "a"}], "eval.json, entry 1: 'answer' is missing; add it"),
        ("eval", [{"prompt": " ", "answer": "b"}], "entry 1: 'prompt' is empty; fill it in"),
        ("test", [{"prompt": "a", "answer": 3}], "entry 1: 'answer' is a number, but should be text"),
        ("test", '[{"prompt": "a", "answer": "\\ud800"}]', "'answer' has half a character in it"),
        ("test", questions("test", 1), "has 1 test prompts of its own and needs 2; add some"),
        ("train", questions("train", 1), "has 1 train prompts of its own and needs 2"),
    ],
)
def test_a_bad_trace_folder_is_refused_in_a_sentence(tmp_path: Path, part: str, content: object, sentence: str):
    with pytest.raises(TaskError, match=sentence):
        stage(trace(tmp_path / "x", **{part: content}), seed=0)


@pytest.mark.parametrize(
    ("part", "content", "sentence"),
    [
        ("labels", {}, "labels.json: 'labels' is an object, but should be text or a list of texts"),
        ("labels", [], "labels.json: 'labels' is empty"),
        ("labels", [1], "labels.json: 'labels' is a number"),
        ("labels", ["much", "less"], r"entry 1: 'label' is 'good', which is not in labels.json \(much, less\)"),
        ("train", [{"sentence": "a", "label": None}], "'label' is null, but should be text"),
        ("dev", [{"sentence": "", "label": "good"}], "dev.json, entry 1: 'sentence' is empty"),
    ],
)
def test_a_bad_o_lora_folder_is_refused_in_a_sentence(tmp_path: Path, part: str, content: object, sentence: str):
    with pytest.raises(TaskError, match=sentence):
        stage(o_lora(tmp_path / "x", **{part: content}), seed=0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"Definition": []}, "'Definition' is empty; fill it in"),
        ({"Definition": [" "]}, "has an empty instruction"),
        ({"Definition": 3}, "'Definition' is a number, but should be text or a list of texts"),
        ({"Instances": []}, "'Instances' is empty"),
        ({"Instances": {}}, "'Instances' is an object"),
        ({"Instances": [{"input": "a"}]}, "'Instances', entry 1: 'output' is missing"),
        ({"Instances": [{"input": "a", "output": []}]}, "entry 1: 'output' is empty"),
        ({"Instances": [{"input": "a", "output": [""]}]}, "with an empty side"),
        ({"Instances": [{"input": "a", "output": ["b"]}] * 9}, "has 1 pairs, but a stage needs at least 6"),
    ],
)
def test_a_bad_instructions_file_is_refused_in_a_sentence(tmp_path: Path, changes: dict[str, Any], sentence: str):
    with pytest.raises(TaskError, match=sentence):
        stage(write(tmp_path / "x.json", instructions() | changes), seed=0)


def test_what_is_not_there_is_refused_with_a_near_name(tmp_path: Path):
    with pytest.raises(TaskError, match="there is no task, file or folder 'kind-langauge'; did you mean kind-language"):
        stage("kind-langauge", seed=0)
    with pytest.raises(TaskError, match=r"give a task's name or a path: a TRACE folder has train\.json"):
        stage("/nowhere/at/all", seed=0)
    for strange in ("x" * 5000, "\0", ""):
        with pytest.raises(TaskError):
            stage(strange, seed=0)
    with pytest.raises(TaskError, match=r"train\.json cannot be read \(No such file"):
        stage(tmp_path, seed=0)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path):
    folder = trace(tmp_path / "x")
    (folder / "eval.json").unlink()
    os.mkfifo(folder / "eval.json")
    with pytest.raises(TaskError, match=r"eval\.json cannot be read \(it is no file\)"):
        stage(folder, seed=0)
    with pytest.raises(TaskError, match=r"eval\.json cannot be read \(it is no file\)"):
        stage(folder / "eval.json", seed=0)


def test_bytes_that_are_no_text_and_files_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.json"
    path.write_bytes(b'{"Definition": "\xff"}')
    with pytest.raises(TaskError, match="is not UTF-8 text"):
        stage(path, seed=0)
    write(path, instructions())
    monkeypatch.setattr("ivlens.storage.json_files.LARGEST_TEXT", 100)
    with pytest.raises(TaskError, match="bytes, and may have 100"):
        stage(path, seed=0)


# Nothing but a stage or a refusal comes of any file


def either(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TaskWarning)
        try:
            found = stage(path, seed=0)
        except TaskError as error:
            assert str(error).encode()
        else:
            assert found.digest and min(map(len, (found.train, found.validation, found.test))) >= 2


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(FILES)
def test_any_file_is_a_stage_or_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "any.json"
    path.write_bytes(content)
    either(path)


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from(["train", "eval", "dev", "test", "labels"]), FILES, st.booleans())
def test_any_file_in_a_folder_is_a_stage_or_refused(tmp_path: Path, part: str, content: bytes, of_trace: bool):
    folder = (trace if of_trace else o_lora)(tmp_path / "x")
    (folder / f"{part}.json").write_bytes(content)
    either(folder)


@pytest.mark.slow
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.fixed_dictionaries({"input": VALUES | ANY_TEXT, "output": VALUES | ANY_TEXT}), max_size=8), VALUES)
def test_any_instances_are_a_stage_or_refused(tmp_path: Path, instances: list[Any], definition: object):
    content = instructions() | {"Definition": definition}
    content["Instances"] += instances
    either(write(tmp_path / "x.json", content))


def test_entries_that_cannot_be_asked_are_left_out_of_a_stage_aloud(tmp_path: Path):
    folder = o_lora(tmp_path / "x", train=[*sentences("train", 9), {"sentence": "Unlabelled.", "label": "-"}])
    with pytest.warns(TaskWarning, match=r"1 of 10 entries are left out: entry 10: 'label' is '-', which is not in"):
        assert len(stage(folder, seed=0).train) == 9
