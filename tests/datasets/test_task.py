"""Task files are read as they are, or refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ivlens.datasets.task import Pair, Task, TaskWarning, read_task, task, tasks
from ivlens.errors import TaskError


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_a_list_of_pairs_is_a_task_named_after_its_file(tmp_path: Path) -> None:
    found = read_task(written(tmp_path, [{"input": " hot ", "output": "cold"}, {"input": "up", "output": "down"}]))
    assert found == Task(name="mine", pairs=(Pair("hot", "cold"), Pair("up", "down")))


def test_of_a_list_of_accepted_texts_the_first_is_taken(tmp_path: Path) -> None:
    content = [{"input": ["hot", "warm"], "output": [" cold", "cool"]}, {"input": "up", "output": ["down"]}]
    assert read_task(written(tmp_path, content)).pairs == (Pair("hot", "cold"), Pair("up", "down"))


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
        (3, "is no JSON object; write an object, or a list"),
        ([], "'pairs' is empty"),
        ({"name": "x"}, "'pairs' is missing; add it"),
        ({"pairs": []}, "'pairs' is empty"),
        ({"pairs": 3}, "'pairs' is 3, but input should be a valid list"),
        ({"pairs": [], "shots": 5}, "unknown key 'shots'; known are name, instructions, statement and pairs"),
        ([{"input": "a", "output": "b", "label": "c"}], "unknown key 'label' of pair 1"),
        ([{"input": "a", "output": "b"}, {"input": "c"}], "'output' of pair 2 is missing; add it"),
        ([{"input": "a", "output": 7}], "'output' of pair 1 is 7, but input should be a valid string"),
        ([{"input": "  ", "output": "b"}], "'input' of pair 1 is empty; fill it in"),
        ([{"input": "a", "output": []}], r"'output' of pair 1 is \[\], but input should be a valid string"),
        ([{"input": "a", "output": [" ", "b"]}], "'output' of pair 1 is empty; fill it in"),
        (["a"], "pair 1 is no JSON object"),
        (
            [{"input": "a", "output": "b"}, {"input": "a", "output": "c"}],
            "'a' is given the outputs 'b', 'c', and so is every other input; keep one",
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


@pytest.mark.parametrize("total", [20, 200])
def test_contradictions_are_left_out_aloud_whatever_their_share(total: int, tmp_path: Path) -> None:
    pairs = [{"input": f"w{i}", "output": "x"} for i in range(total)] + [{"input": "w7", "output": "y"}]
    with pytest.warns(TaskWarning, match=f"'w7' is given the outputs 'x', 'y'; 1 of {total} inputs are left out: 'w7'"):
        found = read_task(written(tmp_path, pairs))
    assert len(found.pairs) == total - 1
    assert "w7" not in {pair.input for pair in found.pairs}


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


def test_every_built_in_task_can_be_audited() -> None:
    assert "antonym" in tasks()
    for name in tasks():
        found = task(name)
        assert found.name == name
        found.split(shots=10)
