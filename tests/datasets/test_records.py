"""Records under whatever keys people have them are tasks: JSON, JSONL, CSV and parquet alike."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ivlens.datasets.task import Pair, Task, task
from ivlens.errors import TaskError, TaskWarning

SHARED = Path(__file__).parents[3] / "shared"
Record = dict[str, Any]


def as_json(path: Path, records: list[Record]) -> Path:
    path = path.with_suffix(".json")
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def as_lines(path: Path, records: list[Record]) -> Path:
    path = path.with_suffix(".jsonl")
    # U+2028 is the end of a line to `str.splitlines`, and may stand in a JSON text.
    path.write_text("\n".join(json.dumps(one, ensure_ascii=False) for one in records) + "\n\n", encoding="utf-8")
    return path


def as_parquet(path: Path, records: list[Record]) -> Path:
    path = path.with_suffix(".parquet")
    pd.DataFrame(records).to_parquet(path, index=False)
    return path


def as_csv(path: Path, records: list[Record]) -> Path:
    path = path.with_suffix(".csv")
    pd.DataFrame(records).to_csv(path, index=False)
    return path


WRITERS = [as_json, as_lines, as_parquet]
every_form = pytest.mark.parametrize("write", [*WRITERS, as_csv])
every_nested_form = pytest.mark.parametrize("write", WRITERS)
Write = Callable[[Path, list[Record]], Path]


@every_form
@pytest.mark.parametrize(
    ("given", "right"), [("input", "output"), ("question", "answer"), ("Prompt", "Completion"), ("text", "label")]
)
def test_records_of_common_names_are_pairs(write: Write, given: str, right: str, tmp_path: Path) -> None:
    found = task(write(tmp_path / "mine", [{given: "h\u2028t", right: 3}, {given: "up", right: 4}]))
    assert found == Task(name="mine", pairs=(Pair("h\u2028t", "3"), Pair("up", "4")))


@every_form
def test_columns_name_the_keys_of_records(write: Write, tmp_path: Path) -> None:
    path = write(tmp_path / "mine", [{"input": "1", "country": "France", "capital": "Paris"}] * 2)
    assert task(path, columns=("country", "capital")).pairs == (Pair("France", "Paris"),)
    with pytest.raises(TaskError, match="has no column 'nation'; it has 'input', 'country', 'capital'"):
        task(path, columns=("nation", "capital"))


@every_form
def test_one_instruction_of_alpaca_is_the_tasks(write: Write, tmp_path: Path) -> None:
    records = [{"instruction": "Say the opposite.", "input": f"w{i}", "output": f"v{i}"} for i in range(3)]
    found = task(write(tmp_path / "mine", records))
    assert found.instructions == ("Say the opposite.",) and found.pairs[2] == Pair("w2", "v2")


@every_form
def test_several_instructions_of_alpaca_are_parts_of_their_inputs(write: Write, tmp_path: Path) -> None:
    records = [
        {"instruction": "Add.", "input": "1, 2", "output": "3"},
        {"instruction": "Name a colour.", "input": "", "output": "red"},
    ]
    with pytest.warns(TaskWarning, match="has 2 instructions: each is read as a part of its input, and the task has n"):
        found = task(write(tmp_path / "mine", records))
    assert found.pairs == (Pair("Add.\n1, 2", "3"), Pair("Name a colour.", "red")) and found.instructions == ()


def test_an_instruction_without_inputs_is_the_input(tmp_path: Path) -> None:
    records = [{"instruction": "Name a colour.", "response": "red"}]
    assert task(as_json(tmp_path / "mine", records)).pairs == (Pair("Name a colour.", "red"),)


def turns(*texts: str, system: str = "") -> list[Record]:
    said = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 4, texts, strict=False)]
    return [{"role": "system", "content": system}, *said] if system else said


@every_nested_form
def test_a_conversation_of_one_question_is_a_pair(write: Write, tmp_path: Path) -> None:
    records = [{"messages": turns(f"w{i}", f"v{i}", system="Say the opposite.")} for i in range(3)]
    found = task(write(tmp_path / "mine", records))
    assert found.instructions == ("Say the opposite.",) and found.pairs[1] == Pair("w1", "v1")
    records = [{"messages": turns("hot", "cold")}, {"messages": turns("up", "down", "left", "right")}]
    with pytest.warns(TaskWarning, match="1 of 2 .*: 'messages' has 2 questions and 2 answers; keep one of each"):
        found = task(write(tmp_path / "mine", records))
    assert found.pairs == (Pair("hot", "cold"),) and found.instructions == ()


def test_conversations_of_sharegpt_are_read(tmp_path: Path) -> None:
    said = [{"from": "human", "value": "hot"}, {"from": "gpt", "value": "cold"}]
    assert task(as_json(tmp_path / "mine", [{"conversations": said}])).pairs == (Pair("hot", "cold"),)
    for wrong in ([{"from": "tool", "value": "x"}], ["hot"], "hot"):
        with pytest.raises(
            TaskError, match=r"entry 1: 'conversations' (has a turn that is of none of|is no list of ob)"
        ):
            task(as_json(tmp_path / "mine", [{"conversations": wrong}]))


def test_json_lines_are_told_by_what_they_are(tmp_path: Path) -> None:
    lines = as_lines(tmp_path / "mine", [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}])
    assert task(lines.rename(tmp_path / "mine.json")).pairs == (Pair("a", "b"), Pair("c", "d"))


def test_a_line_that_was_cut_is_left_out_aloud(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"input": "a", "output": "b"}\n\n{"input": "c", "out')
    with pytest.warns(TaskWarning, match=r"1 of 2 lines are left out: line 3 is not JSON: Unterminated string"):
        assert task(tmp_path / "mine.jsonl").pairs == (Pair("a", "b"),)
    (tmp_path / "mine.jsonl").write_text("\n")
    with pytest.raises(TaskError, match="is empty; write one JSON object a line"):
        task(tmp_path / "mine.jsonl")


def test_a_sentence_with_its_label_needs_no_list_of_labels(tmp_path: Path) -> None:
    path = as_json(tmp_path / "mine", [{"sentence": "It is good.", "label": 1}])
    assert task(path).pairs == (Pair("It is good.", "1"),)


def test_labels_that_exclude_each_other_or_are_not_listed_are_left_out_aloud(tmp_path: Path) -> None:
    said = [("a", "yes"), ("b", "-"), ("c", "no"), ("a", "no"), ("d", "yes")]
    as_json(tmp_path / "test", [{"sentence": text, "label": label} for text, label in said])
    as_json(tmp_path / "labels", ["yes", "no"])  # pyright: ignore[reportArgumentType]
    with pytest.warns(TaskWarning) as caught:
        assert task(tmp_path).pairs == (Pair("c", "no"), Pair("d", "yes"))
    assert [str(one.message).partition(": ")[2] for one in caught] == [
        "1 of 5 entries are left out: entry 2: 'label' is '-', which is not in labels.json (yes, no); mend one of them",
        "1 of 3 sentences have two labels and are left out: 'a'",
    ]


# Parquet


@pytest.mark.slow
def test_a_parquet_file_that_would_unfold_without_end_is_refused(tmp_path: Path) -> None:
    rows, text = 50_000, "x" * 10_000
    for name, column in (("flat", pa.array([text] * rows)), ("nested", pa.array([[text]] * rows))):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"input": pa.array(["a"] * rows), "output": column}), path)
        assert path.stat().st_size < 200_000
        with pytest.raises(
            TaskError, match=r"cannot be read as parquet .it has 500,[0-9,]* bytes of text, and may have"
        ):
            task(path)


def test_a_parquet_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.parquet").write_bytes(b"PAR1 and more")
    with pytest.raises(TaskError, match=r"mine.parquet cannot be read as parquet \(.*\); save it again"):
        task(tmp_path / "mine.parquet")
    as_parquet(tmp_path / "mine", [{"country": "a", "capital": "b"}])
    with pytest.raises(TaskError, match="has 'country', 'capital', which do not tell input and output"):
        task(tmp_path / "mine.parquet")


def test_a_category_of_pandas_is_text(tmp_path: Path) -> None:
    frame = pd.DataFrame({"input": ["a", "b"], "label": pd.Categorical(["good", "bad"])})
    frame.to_parquet(tmp_path / "mine.parquet")
    assert task(tmp_path / "mine.parquet").pairs == (Pair("a", "good"), Pair("b", "bad"))


@pytest.mark.long
def test_reading_takes_time_in_proportion_to_the_file(tmp_path: Path) -> None:
    def seconds(n: int) -> float:
        records = [{"input": f"word {i}", "output": [f"v{i}", "x"], "id": i} for i in range(n)]
        path, start = as_json(tmp_path / "mine", [*records, *records]), time.process_time()
        with pytest.warns(TaskWarning):
            assert len(task(path).pairs) == n
        return time.process_time() - start

    seconds(1000)
    assert seconds(32_000) < 32 * seconds(4000)  # Eight times as many: what is quadratic takes 64 times as long.


# Files that others wrote


def shared(place: str) -> Path:
    if not (SHARED / place).exists():
        pytest.skip(f"{SHARED / place} is not there: other projects' files are not shipped")
    return SHARED / place


def quietly(path: Path) -> tuple[Task, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return task(path), [str(one.message) for one in caught]


@pytest.mark.long
def test_function_vectors_files_are_read() -> None:
    for path in sorted(shared("data/function_vectors").glob("*.json")):
        found, said = quietly(path)
        listed = json.loads(path.read_text(encoding="utf-8"))
        given = {str(one["input"]).strip() for one in listed}
        assert {pair.input for pair in found.pairs} == given
        assert len(said) == any(pair.also for pair in found.pairs)
        # Every output that the file gives is a right one of its input, and no other.
        right = {(str(one["input"]).strip(), str(one["output"]).strip()) for one in listed}
        assert right == {(pair.input, output) for pair in found.pairs for output in pair.outputs}


@pytest.mark.slow
def test_o_loras_folders_are_read() -> None:
    folders = sorted(path.parent for path in shared("data/olora").rglob("labels.json"))
    assert folders
    for folder in folders:
        listed = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
        for part in ("train", "dev", "test"):
            found, said = quietly(folder / f"{part}.json")
            assert {pair.output for pair in found.pairs} <= set(listed)
            entries = json.loads((folder / f"{part}.json").read_text(encoding="utf-8"))
            unlisted = sum(one["label"] not in listed for one in entries)
            assert any(f"{unlisted} of {len(entries)} entries are left out" in one for one in said) == bool(unlisted)


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("alpaca.json", 30),
        ("ambiguous-inputs.json", 61),
        ("lines.jsonl", 30),
        ("question-answer.json", 30),
        ("several-right-answers.json", 30),
    ],
)
def test_cases_that_people_report_are_read(name: str, pairs: int) -> None:
    assert len(quietly(shared(f"cases/{name}"))[0].pairs) == pairs
