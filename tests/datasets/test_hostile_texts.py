"""Texts of a task that no prompt can hold are refused when the task is made, by file or in Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ivlens.cli.app import main
from ivlens.datasets.entries import LONGEST, Pair
from ivlens.datasets.task import Task, read_task
from ivlens.errors import TaskError

PAIR = Pair("hot", "cold")
PARTS: dict[str, Callable[[Any], Task]] = {
    "name": lambda text: Task(name=text, pairs=(PAIR,)),
    "input": lambda text: Task(name="a", pairs=(PAIR, Pair(text, "b"))),
    "output": lambda text: Task(name="a", pairs=(PAIR, Pair("a", text))),
    "another output": lambda text: Task(name="a", pairs=(PAIR, Pair("a", "b", (text,)))),
    "instruction": lambda text: Task(name="a", pairs=(PAIR,), instructions=("Do.", text)),
    "statement": lambda text: Task(name="a", pairs=(PAIR,), statement=f"{{input}}{text}"),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a\ud800", "has half a character in it .a lone surrogate.; mend it"),
        ("x" * (LONGEST + 1), "has 1,048,5[0-9]+ characters, and may have [0-9,]+; shorten it, or leave it out"),
    ],
    ids=["half", "long"],
)
def test_what_no_prompt_can_hold_is_refused(part: str, text: str, sentence: str) -> None:
    with pytest.raises(TaskError, match=sentence):
        PARTS[part](text)


@pytest.mark.parametrize("field", ["name", "instructions", "statement"])
def test_half_a_character_in_a_file_is_refused(field: str, tmp_path: Path) -> None:
    text = "{input} \ud800"
    content = {"pairs": [{"input": "a", "output": "b"}], field: [text] if field == "instructions" else text}
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(TaskError, match="has half a character in it"):
        read_task(tmp_path / "a.json")


@pytest.mark.slow
def test_a_table_shows_the_ends_of_long_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rich takes seconds for a megabyte of text."""
    pairs = [{"input": f"in{i}", "output": "y" * 10**6} for i in range(12)]
    content = {"instructions": ["x" * 10**6, *map(str, range(200))], "pairs": pairs}
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert main(["tasks", str(tmp_path / "a.json")]) == 0
    shown = capsys.readouterr().out
    assert len(shown) < 20_000
    assert "[1,000,000 characters]" in " ".join(shown.split()) and "and 151 more" in shown
