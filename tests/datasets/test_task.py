"""Task files are read as they are, or refused in a sentence."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ivlens.datasets.task import Pair, Task, read_task, task, tasks
from ivlens.errors import TaskError, TaskWarning


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_a_list_of_pairs_is_a_task_named_after_its_file(tmp_path: Path) -> None:
    found = read_task(written(tmp_path, [{"input": " hot ", "output": "cold"}, {"input": "up", "output": "down"}]))
    assert found == Task(name="mine", pairs=(Pair("hot", "cold"), Pair("up", "down")))


def test_all_of_a_list_of_outputs_are_right_and_the_first_of_a_list_of_inputs_is_asked(tmp_path: Path) -> None:
    content = [{"input": ["hot", "warm"], "output": [" cold", "cool", "cold"]}, {"input": "up", "output": ["down"]}]
    found = read_task(written(tmp_path, content)).pairs
    assert found == (Pair("hot", "cold", ("cool",)), Pair("up", "down"))
    assert found[0].outputs == ("cold", "cool") and found[1].outputs == ("down",)


def test_numbers_are_answers_as_they_are_written(tmp_path: Path) -> None:
    found = read_task(written(tmp_path, [{"input": 1, "output": 0.5}, {"input": "1 + 1", "output": [2, "two"]}]))
    assert found.pairs == (Pair("1", "0.5"), Pair("1 + 1", "2", ("two",)))


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([{"input": "a", "output": "b"}]), encoding="utf-8-sig")
    assert read_task(path).pairs == (Pair("a", "b"),)


def test_an_object_carries_instructions_and_a_statement(tmp_path: Path) -> None:
    content = {
        "name": "capitals",
        "instructions": ["Name the capital."],
        "statement": "The capital of {input} is",
        "pairs": [{"input": "France", "output": "Paris"}],
    }
    found = read_task(written(tmp_path, content))
    assert (found.name, found.instructions) == ("capitals", ("Name the capital.",))
    assert found.statement == "The capital of {input} is"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not JSON: .* at line 1, column 2"),
        ("[" * 100_000, "nested too deeply"),
        (3, "is no JSON object; write one, or a list of them: an input"),
        ([], "'pairs' is empty"),
        ({"name": "x"}, "'pairs' is missing; add it"),
        ({"pairs": []}, "'pairs' is empty"),
        ({"pairs": 3}, "'pairs' is 3, but input should be a valid list"),
        ({"pairs": [], "shots": 5}, "unknown key 'shots'; known are name, instructions, statement and pairs"),
        ([{"input": "a", "output": True}], "json, entry 1: 'output' is true; write text, a number or a list of texts"),
        ([{"input": "a", "output": {"b": 1}}], """'output' is {"b": 1}; write text"""),
        ([{"input": "a", "output": [["b"]]}], r"""'output' is \[\["b"\]\]; write text"""),
        ([{"input": "  ", "output": "b"}], "entry 1: 'input' is empty; fill it in"),
        ([{"input": "a", "output": []}], "'output' is empty"),
        ([{"input": "a", "output": None}], "'output' is empty"),
        ([{"input": "a", "output": [" ", "b"]}], "'output' is empty; fill it in"),
        ('[{"input": "a", "output": "\\ud800"}]', "'output' has half a character in it"),
        ('[{"input": "a", "output": NaN}]', "'output' is empty"),
        (["a"], """entry 1 is no JSON object; write one such as {"input": "hot", "output": "cold"}"""),
        (
            [{"input": "a"}],
            r"mine.json has 'input', which do not tell .*; known are an input \(input, question, .*--columns",
        ),
        (
            [{"frage": "a", "antwort": "b"}],
            "has 'frage', 'antwort', which do not tell input and output; known are an in",
        ),
        ({"pairs": [{"input": "a", "output": "b"}], "statement": "is"}, "without {input}; write {input} where"),
        ({"pairs": [{"input": "a", "output": "b"}], "instructions": "Do it."}, "'instructions' is .*valid list"),
        ({"pairs": [{"input": "a", "output": "b"}], "instructions": [" "]}, "has an empty instruction"),
        ({"pairs": [{"input": "a", "output": "b"}], "name": " "}, "a task needs a name"),
    ],
)
def test_a_bad_file_is_refused_in_a_sentence(tmp_path: Path, content: object, sentence: str) -> None:
    with pytest.raises(TaskError, match=sentence):
        read_task(written(tmp_path, content))


def test_bytes_that_are_no_text_and_folders_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(b'[{"input": "\xff"}]')
    with pytest.raises(TaskError, match="is not UTF-8 text"):
        read_task(path)
    with pytest.raises(TaskError, match="cannot be read"):
        read_task(tmp_path)


def test_an_unknown_name_is_refused_with_a_near_one() -> None:
    with pytest.raises(TaskError, match="no built-in task and no file 'antonyms'; did you mean antonym"):
        task("antonyms")
    with pytest.raises(TaskError, match="`ivlens tasks` lists"):
        task("/nowhere/at/all.json")


def test_repeated_pairs_count_once(tmp_path: Path) -> None:
    pair = {"input": "a", "output": "b"}
    assert read_task(written(tmp_path, [pair, pair])).pairs == (Pair("a", "b"),)


@pytest.mark.parametrize("total", [1, 200])
def test_all_outputs_that_an_input_is_given_count_aloud(total: int, tmp_path: Path) -> None:
    pairs = [{"input": f"w{i}", "output": "x"} for i in range(total)] + [{"input": "w0", "output": "y"}]
    sentence = f"1 of {total} inputs are given several outputs, such as 'w0' 'x', 'y': all of them count as right"
    with pytest.warns(TaskWarning, match=sentence):
        found = read_task(written(tmp_path, pairs))
    assert len(found.pairs) == total and found.pairs[0] == Pair("w0", "x", ("y",))
    assert not any(pair.also for pair in found.pairs[1:])


@pytest.mark.parametrize("unusable", [{"input": "c"}, {"input": "", "output": "d"}, {"input": "c", "output": None}, 3])
def test_entries_that_cannot_be_asked_are_left_out_aloud(unusable: object, tmp_path: Path) -> None:
    content = [{"input": "a", "output": "b"}, unusable, unusable, {"input": "e", "output": "f"}]
    with pytest.warns(TaskWarning, match=r"json: 2 of 4 entries are left out: entry 2.*\(the first of them\)$"):
        found = read_task(written(tmp_path, content))
    assert found.pairs == (Pair("a", "b"), Pair("e", "f"))


def test_keys_that_are_not_read_are_named(tmp_path: Path) -> None:
    with pytest.warns(TaskWarning, match="read are 'input', 'output'; not read are 'id', 'label'"):
        found = read_task(written(tmp_path, [{"id": 3, "input": "a", "label": "c", "output": "b"}]))
    assert found.pairs == (Pair("a", "b"),)


def test_the_parts_of_a_split_share_no_pair_and_lose_none() -> None:
    whole = Task(name="t", pairs=tuple(Pair(f"i{i}", f"o{i}") for i in range(53)))
    parts = whole.split(shots=10, seed=3)
    assert sorted(pair for part in parts for pair in part) == sorted(whole.pairs)
    assert sum(map(len, parts)) == 53
    assert parts == whole.split(shots=10, seed=3)
    assert parts != whole.split(shots=10, seed=4)


@pytest.mark.parametrize("shots", [0, 1, 5, 10])
def test_the_smallest_task_still_has_every_part(shots: int) -> None:
    pairs = tuple(Pair(f"i{i}", f"o{i}") for i in range(shots + 10))
    parts = Task(name="t", pairs=pairs).split(shots=shots)
    assert len(parts.mean) > shots
    assert min(len(part) for part in parts[1:]) >= 2
    assert sum(map(len, parts)) == len(pairs)
    with pytest.raises(TaskError, match=f"has {shots + 9} pairs, but {shots} shots need at least {shots + 10}"):
        Task(name="t", pairs=pairs[:-1]).split(shots=shots)


def test_the_digest_tells_tasks_apart() -> None:
    one = Task(name="t", pairs=(Pair("a", "b"),))
    assert one.digest == Task(name="other", pairs=(Pair("a", "b"),)).digest
    assert one.digest != Task(name="t", pairs=(Pair("a", "c"),)).digest
    assert one.digest != Task(name="t", pairs=(Pair("a", "b"),), statement="{input} is").digest
    assert one.digest != Task(name="t", pairs=(Pair("a", "b", ("c",)),)).digest


def test_the_digest_of_a_task_with_one_right_output_each_is_that_of_its_pairs_alone() -> None:
    content = [[["a", "b"]], [], None]
    assert Task(name="t", pairs=(Pair("a", "b"),)).digest == hashlib.sha256(json.dumps(content).encode()).hexdigest()


def test_a_pair_may_have_another_answer_for_the_statement(tmp_path: Path) -> None:
    entries = [
        {"input": "a: Rome b: Paris", "output": "b", "knowledge": "Paris"},
        {"input": "a: Oslo b: Bonn", "output": "a", "knowledge": ""},
        {"input": "a: Rome b: Paris", "output": "B"},
    ]
    with pytest.warns(TaskWarning, match="several outputs"):
        found = read_task(written(tmp_path, entries))
    assert found.pairs == (Pair("a: Rome b: Paris", "b", ("B",), "Paris"), Pair("a: Oslo b: Bonn", "a"))
    first, second = found.pairs
    assert (first.stated, second.stated) == (Pair("a: Rome b: Paris", "Paris"), second)
    assert first != Pair(*first, first.also) and "knowledge='Paris'" in repr(first)
    assert pickle.loads(pickle.dumps(first)).stated == first.stated == copy.deepcopy(first).stated
    without = Task(name="mine", pairs=(Pair(*first, first.also), second))
    assert found.digest != without.digest


def test_pairs_of_python_are_a_task() -> None:
    found = Task.from_pairs([("a", "b"), ("c", ["d", "e"]), (1, 2.5), ["a", "b"]], name="t", instructions="Do it.")
    assert found.pairs == (Pair("a", "b"), Pair("c", "d", ("e",)), Pair("1", "2.5"))
    assert (found.instructions, found.statement) == (("Do it.",), None)
    assert Task.from_pairs({"a": "b", "c": ("d", "e")}, name="t").pairs == found.pairs[:2]
    assert Task.from_pairs(found.pairs, name="t", instructions=["Do it."]) == found
    said = Task.from_pairs([("a", "b")], name="t", statement="{input} is")
    assert said == Task(name="t", pairs=(Pair("a", "b"),), statement="{input} is")


def test_pairs_without_an_output_are_left_out_aloud() -> None:
    with pytest.warns(
        TaskWarning, match="task 't': 1 of 2 pairs are left out: pair 2: its output is empty; fill it in"
    ):
        assert Task.from_pairs([("a", "b"), ("c", None)], name="t").pairs == (Pair("a", "b"),)


def test_two_columns_of_a_table_are_a_task() -> None:
    frame = pd.DataFrame({"word": ["a", None, "b"], "size": [1, 2, np.nan], "many": [["x", "y"], ["z"], ["w"]]})
    with pytest.warns(TaskWarning, match="2 of 3 pairs are left out: pair 2: its input is empty"):
        found = Task.from_frame(frame, input="word", output="size")
    assert found == Task(name="word-size", pairs=(Pair("a", "1"),))  # Not 1.0, which pandas makes of it.
    several = Task.from_frame(frame[::2], input="word", output="many", name="t", instructions=("Do it.",))
    assert several.pairs == (Pair("a", "x", ("y",)), Pair("b", "w")) and several.instructions == ("Do it.",)
    twice = pd.DataFrame([["a", "b", "c"]], columns=["word", "size", "size"])
    assert Task.from_frame(twice, input="word", output="size").pairs == (Pair("a", "b"),)


@pytest.mark.slow
def test_every_built_in_task_can_be_audited() -> None:
    assert "antonym" in tasks()
    for name in tasks():
        found = task(name)
        assert found.name == name
        found.split(shots=10)


def test_a_pair_unpacks_into_its_sides_and_keeps_its_other_outputs() -> None:
    pair, same = Pair("a", "b", ["c"]), Pair("a", "b", ("c",))
    given, output = pair
    assert (given, output, pair.also, pair.outputs) == ("a", "b", ("c",), ("b", "c"))
    assert pair == same and hash(pair) == hash(same) and len({pair, same, Pair("a", "b")}) == 2
    assert pair != Pair("a", "b") and Pair("a", "b") == ("a", "b")
    assert pickle.loads(pickle.dumps(pair)) == copy.deepcopy(pair) == pair
    assert repr(pair) == "Pair(input='a', output='b', also=('c',))"
