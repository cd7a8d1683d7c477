"""Files of other formats are tasks to audit, read as they are, or refused in a sentence."""

from __future__ import annotations

import csv
import io
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from benchmark_folders import FILES, instructions, o_lora, questions, sentences, trace, write
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ivlens.bounded_process import BoundedProcess
from ivlens.datasets import arrow_streams
from ivlens.datasets.task import Pair, task
from ivlens.errors import TaskError, TaskWarning
from ivlens.prompts.builders import instructed
from ivlens.prompts.template import find_template

ROWS = [("hot", "cold"), ("up", "down"), ("a, b", 'say "c"'), ("d;e", "f\tg")]
CELLS = st.text(st.characters(codec="utf-8"), max_size=4)
QUICK = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def table(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


# TRACE, O-LoRA, Super-NaturalInstructions


def asked(part: str) -> list[dict[str, Any]]:
    head = "Which stance? A. dovish, B. hawkish.\nText: "
    return [{"prompt": f"{head}{part} {i}.\nStance:", "answer": "AB"[i % 2]} for i in range(6)]


def test_the_instruction_of_trace_is_what_all_prompts_begin_with(tmp_path: Path) -> None:
    found = task(trace(tmp_path / "FOMC", test=asked("test")))
    assert found.name == "FOMC"
    assert found.instructions == ("Which stance? A. dovish, B. hawkish.",)
    assert found.pairs[1] == Pair("Text: test 1.\nStance:", "B")
    assert len(found.pairs) == 6


@pytest.mark.parametrize("first", ["sep=;\n", "SEP=;\r\n"])
def test_the_line_that_excel_writes_above_a_table_is_no_line_of_it(first: str, tmp_path: Path) -> None:
    found = task(table(tmp_path / "mine.csv", f"{first}input;output\nhot;cold\nup;down\n", "utf-8-sig"))
    assert found.pairs == (Pair("hot", "cold"), Pair("up", "down"))


def test_traces_own_prompts_come_back_under_the_plain_template(tmp_path: Path) -> None:
    found = task(trace(tmp_path / "FOMC", test=asked("test")))
    texts = [prompt.text for prompt in instructed(found, found.pairs, template=find_template("plain"))]
    assert texts == [one["prompt"] for one in asked("test")]


def test_prompts_of_trace_that_share_no_line_have_no_instruction(tmp_path: Path) -> None:
    found = task(trace(tmp_path / "x", test=questions("test")))
    assert found.instructions == ()
    assert found.pairs[0] == Pair("test 0?\nAnswer:", "yes 0")
    same = [{"prompt": "One line.\n", "answer": "a"}, {"prompt": "One line.\nand more", "answer": "b"}]
    assert task(trace(tmp_path / "y", test=same)).pairs == (Pair("One line.\n", "a"), Pair("One line.\nand more", "b"))


def test_o_loras_labels_are_the_instruction(tmp_path: Path) -> None:
    found = task(o_lora(tmp_path / "SC" / "IMDB"))
    assert (found.name, found.instructions) == ("IMDB", ("Answer with one of these options: good, bad, neither.",))
    assert found.pairs[2] == Pair("Title: test\nText: 2", "neither")


def test_one_file_of_a_benchmark_is_a_task_too(tmp_path: Path) -> None:
    train = task(trace(tmp_path / "FOMC") / "train.json")
    assert train.name == "FOMC-train" and train.pairs[3] == Pair("train 3?\nAnswer:", "yes 3")
    dev = task(o_lora(tmp_path / "CB", dev=sentences("dev", 9)) / "dev.json")
    assert dev.name == "CB-dev" and len(dev.pairs) == 9


def test_super_natural_instructions_are_a_task_with_its_definition(tmp_path: Path) -> None:
    found = task(write(tmp_path / "task001_x.json", instructions(20)))
    assert (found.name, found.instructions) == ("task001_x", ("Answer the question.",))
    assert found.pairs[4] == Pair("Question 4", "first 4", ("second",)) and len(found.pairs) == 20
    content = instructions(2)
    content["Instances"] += [{"input": "Question 0", "output": "third"}, {"input": "Question 9"}]
    with pytest.warns(TaskWarning, match="'Instances': 1 of 4 entries are left out: entry 4: 'output' is missing"):
        assert task(write(tmp_path / "x.json", content)).pairs[0].outputs == ("first 0", "second", "third")


def test_a_folder_of_no_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"test\.json cannot be read .*; a TRACE folder has train\.json"):
        task(tmp_path)
    write(tmp_path / "test.json", [{"question": "a"}])
    with pytest.raises(TaskError, match="is of no known format"):
        task(tmp_path)


# CSV


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("head", [None, ("input", "output"), ("Question", " ANSWER ")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_two_columns_are_pairs(tmp_path: Path, delimiter: str, head: Any, encoding: str) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([*([head] if head else []), *ROWS])
    found = task(table(tmp_path / "mine.csv", text.getvalue(), encoding))
    assert found.name == "mine" and found.pairs == tuple(Pair(*row) for row in ROWS)


def test_columns_are_found_by_their_names(tmp_path: Path) -> None:
    path = table(tmp_path / "mine.csv", "id,answer,question\n1,cold,hot\n\n2,down,up\n")
    with pytest.warns(TaskWarning, match="read are 'question', 'answer'; not read are 'id'"):
        assert task(path).pairs == (Pair("hot", "cold"), Pair("up", "down"))
    assert task(path, columns=("answer", "id")).pairs == (Pair("cold", "1"), Pair("down", "2"))
    path = table(tmp_path / "other.tsv", "country\tcapital\nFrance\tParis\n")
    assert task(path).pairs == (Pair("country", "capital"), Pair("France", "Paris"))
    assert task(path, columns=("country", "capital")).pairs == (Pair("France", "Paris"),)


def test_of_delimiters_that_fit_the_one_of_two_columns_is_taken(tmp_path: Path) -> None:
    path = table(tmp_path / "mine.csv", "hot;cold, cool, icy\nup;down, low, under\n")
    assert task(path).pairs == (Pair("hot", "cold, cool, icy"), Pair("up", "down, low, under"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty; write one pair a line"),
        ("\n  \n", "is empty"),
        ("hot\nup\n", "has one column; write two, with a comma, semicolon or tab between"),
        ("hot,cold\nup,down,left\n", r"line 2 has 3 cells, but the first line has 2 \(with a comma between\)"),
        ("hot;cold\nup\n", "line 2 has 1 cells, but the first line has 2"),
        ("hot,\nup,\n", "csv, line 1: 'output' is empty; fill it in"),
        (
            "id,country,capital\n1,a,b\n",
            "has 'id', 'country', 'capital', which do not tell .*--columns country,capital",
        ),
        ("input,output\n", "has no pairs"),
        (f"hot,{'x' * 200_000}\n", "line 1 is no CSV .*field larger than field limit"),
    ],
)
def test_a_bad_table_is_refused_in_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(TaskError, match=sentence):
        task(table(tmp_path / "mine.csv", text))


def test_a_table_that_is_no_text_or_lacks_a_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"is not UTF-8 text .*; save it as UTF-8 CSV"):
        task(table(tmp_path / "mine.csv", "hot,cold\n", "utf-16"))
    with pytest.raises(TaskError, match="has no column 'a'; it has 'b', 'c'"):
        task(table(tmp_path / "mine.csv", "b,c\nhot,cold\n"), columns=("a", "b"))


@pytest.mark.slow
@QUICK
@example([], b";")
@given(
    st.lists(st.tuples(*[st.text(st.characters(codec="utf-8"), max_size=4)] * 2), max_size=5), st.binary(max_size=40)
)
def test_any_table_is_a_task_or_refused(tmp_path: Path, rows: list[tuple[str, str]], content: bytes) -> None:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    for given_ in (text.getvalue().encode(), content):
        (tmp_path / "any.csv").write_bytes(given_)
        task_or_sentence(tmp_path / "any.csv")


@pytest.mark.slow
@QUICK
@given(st.sampled_from(["test", "labels"]), FILES, st.booleans())
def test_any_file_in_a_benchmarks_folder_is_a_task_or_refused(
    tmp_path: Path, part: str, content: bytes, of_trace: bool
) -> None:
    folder = (trace if of_trace else o_lora)(tmp_path / "x")
    (folder / f"{part}.json").write_bytes(content)
    task_or_sentence(folder)


def task_or_sentence(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TaskWarning)
        try:
            assert task(path).pairs
        except TaskError as error:
            assert str(error)


def test_columns_that_a_built_in_task_lacks_are_refused() -> None:
    with pytest.raises(TaskError, match=r"antonym.json has no column 'a'; it has 'input', 'output'"):
        task("antonym", columns=("a", "b"))


# Hugging Face data sets


@pytest.mark.slow
def test_a_saved_data_set_is_a_task(tmp_path: Path) -> None:
    words = {"id": [1, 2], "question": ["hot ", "up"], "answer": [["cold", "cool"], ["down"]]}
    Dataset.from_dict(words).save_to_disk(tmp_path / "words")
    with pytest.warns(TaskWarning, match="read are 'question', 'answer'; not read are 'id'"):
        found = task(tmp_path / "words")
    assert found.name == "words" and found.pairs == (Pair("hot", "cold", ("cool",)), Pair("up", "down"))
    assert task(tmp_path / "words", columns=("answer", "id")).pairs == (Pair("cold", "1"), Pair("down", "2"))
    with pytest.raises(TaskError, match="has no column 'nothing'; it has 'id', 'question', 'answer'"):
        task(tmp_path / "words", columns=("nothing", "id"))


@pytest.mark.slow
def test_what_is_not_read_of_a_parquet_file_is_named(tmp_path: Path) -> None:
    words = {"id": [1, 2], "question": ["hot", "up"], "answer": ["cold", "down"]}
    pd.DataFrame(words).to_parquet(tmp_path / "words.parquet")
    with pytest.warns(TaskWarning, match="read are 'question', 'answer'; not read are 'id'"):
        assert task(tmp_path / "words.parquet").pairs == (Pair("hot", "cold"), Pair("up", "down"))


def test_a_stream_that_ends_who_reads_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Dataset.from_dict({"input": ["a", "b"], "output": ["c", "d"]}).save_to_disk(tmp_path / "mine")
    monkeypatch.setattr(arrow_streams, "_PROCESS", BoundedProcess("ivlens.nothing"))  # It ends whatever it is asked.
    with pytest.raises(TaskError, match=r"to read data-00000-of-00001.arrow ends the process that does"):
        task(tmp_path / "mine")


def test_the_name_of_a_field_that_is_no_text_is_damage(tmp_path: Path) -> None:
    turns = [[{"role": "user", "content": word}, {"role": "assistant", "content": "x"}] for word in "ab"]
    Dataset.from_dict({"messages": turns}).save_to_disk(tmp_path / "mine")
    file = tmp_path / "mine" / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes().replace(b"content\0", b"\xf2ontent\0"))
    with pytest.raises(TaskError, match=r"mine: 'messages' is damaged \('utf-8' codec can't decode"):
        task(tmp_path / "mine")


def test_classes_are_answered_by_their_names_and_the_test_split_is_taken(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    parts = {
        name: Dataset.from_dict({"text": [f"{name} {i}" for i in range(3)], "label": [1, 0, 1]}, features=features)
        for name in ("train", "test")
    }
    DatasetDict(parts).save_to_disk(tmp_path / "reviews")
    assert task(tmp_path / "reviews").pairs[:2] == (Pair("test 0", "good"), Pair("test 1", "bad"))
    assert task(tmp_path / "reviews" / "train").pairs[2] == Pair("train 2", "good")


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        ([None, " "], "mine, row 1: 'output' is empty; fill it in"),
        ([True, False], "'output' is of type bool, no text"),
        ([[], []], "'output' is of type list<.*>, no text|row 1: 'output' is empty"),
        ([{"text": "a"}] * 2, "'output' is of type struct<text: string>, no text"),
    ],
)
def test_a_column_of_no_text_is_refused(tmp_path: Path, column: list[Any], sentence: str) -> None:
    Dataset.from_dict({"input": ["x", "y"], "output": column}).save_to_disk(tmp_path / "mine")
    with pytest.raises(TaskError, match=sentence):
        task(tmp_path / "mine")


def test_an_unlabelled_split_is_refused(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    unlabelled = Dataset.from_dict({"text": ["a"], "label": [-1]}, features=features)
    unlabelled.save_to_disk(tmp_path / "mine")
    with pytest.raises(TaskError, match="row 1: 'label' is empty; fill it in"):
        task(tmp_path / "mine")


def test_rows_without_a_label_are_left_out_aloud_and_numbers_written_out(tmp_path: Path) -> None:
    Dataset.from_dict({"input": ["a", "b", "c"], "output": [3.0, None, 4.0]}).save_to_disk(tmp_path / "whole")
    with pytest.warns(TaskWarning, match="1 of 3 rows are left out: row 2: 'output' is empty"):
        assert task(tmp_path / "whole").pairs == (Pair("a", "3"), Pair("c", "4"))
    Dataset.from_dict({"input": ["a", "b"], "output": [0.5, 1.0]}).save_to_disk(tmp_path / "fractions")
    assert task(tmp_path / "fractions").pairs == (Pair("a", "0.5"), Pair("b", "1.0"))


def test_a_table_of_too_many_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ivlens.datasets.arrow_tables.MAX_ROWS", 1)
    features = Features({"input": Sequence(Value("string")), "output": Value("string")})
    Dataset.from_dict({"input": [["a"], ["b"]], "output": ["c", "d"]}, features=features).save_to_disk(tmp_path / "x")
    with pytest.raises(TaskError, match="has 2 rows; a task may have 1 at most: give a part of it"):
        task(tmp_path / "x")


def test_a_damaged_data_set_is_refused(tmp_path: Path) -> None:
    Dataset.from_dict({"input": ["a"], "output": ["b"]}).save_to_disk(tmp_path / "mine")
    (tmp_path / "mine" / "state.json").write_text("{}")
    with pytest.raises(TaskError, match="is no data set that save_to_disk wrote"):
        task(tmp_path / "mine")
    write(tmp_path / "none" / "dataset_dict.json", {"splits": []})
    with pytest.raises(TaskError, match="has no split test or validation or train"):
        task(tmp_path / "none")


def test_a_data_set_of_the_hub_without_the_net_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    for name in ("hf:nobody/no-such-set", "hf:nobody/no-such-set:plain@test"):
        with pytest.raises(TaskError) as caught:
            task(name)
        assert f"data set {name[3:]!r} cannot be had" in str(caught.value) and "go online" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ivlens.datasets.huggingface.find_spec", lambda name: None)
    with pytest.raises(TaskError, match=r"datasets is not installed; run: pip install 'ivlens\[datasets\]'"):
        task("hf:nobody/no-such-set")
