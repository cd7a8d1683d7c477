"""The table of docs/open_questions.md about a task's properties is that of the numbers which figures/numbers keeps."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ivlens.forgetting.plan import read_plan
from ivlens.matrix.factorial import KEPT, Factorial
from ivlens.matrix.main_effects import MEAN
from ivlens.storage.run_record import plain

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "figures" / "numbers" / "lab-factorial"
TEXT = (ROOT / "docs" / "open_questions.md").read_text(encoding="utf-8")
GUIDED = "lora+iv-general"
COLUMNS = (
    ("GP lost", "lora"),
    ("GP lost", GUIDED),
    ("GP lost", f"{GUIDED} - {GUIDED}-random"),
    ("IP lost", "lora"),
    ("IP lost", GUIDED),
)
ROWS = {MEAN: "mean of the cells", "able": "can − cannot", "labels": "labels − function", "long": "long − short"}


def told(line: Any, *, signed: bool) -> str:
    sign = "+" if signed else ""
    text = f"{line['value']:{sign}.2f} [{line['low']:.2f}, {line['high']:.2f}]"
    return text if math.isnan(line["adjusted"]) else f"{text}, p {line['adjusted']:.2g}"


def table_lines(found: Factorial) -> Iterator[str]:
    for unable in (False, True):
        effects: Any = found.effects(unable=unable).set_index(["measure", "method", "factor"])
        for factor, name in ROWS.items():
            if unable and factor in (MEAN, "able"):
                continue
            cells = [told(effects.loc[(*column, factor)], signed=factor != MEAN) for column in COLUMNS]
            yield f"| {name}{', of what it cannot do' if unable else ''} | {' | '.join(cells)} |"


@pytest.mark.slow
def test_the_table_of_the_document_is_that_of_the_record() -> None:
    assert "\n".join(table_lines(Factorial.read(FOLDER))) in TEXT


def test_the_sentences_about_labels_are_those_of_the_records() -> None:
    found = Factorial.read(FOLDER)
    cells = found.cells().query("measure == 'GP lost' and method == 'lora'").set_index("cell")
    told = [f"{line['value']:.2f} ({{}}{line['low']:.2f} to {line['high']:.2f})" for _, line in cells.iterrows()]
    assert told[0].format("one token; single tasks ") in TEXT and told[1].format("two; ") in TEXT
    others = cells["value"].iloc[2:]
    assert f"every other kind {others.min():.2f} to {others.max():.2f}" in TEXT
    assert f"no other task more than {cells['high'].iloc[2:].max():.2f}" in TEXT
    words = Factorial.read(FOLDER.parent / "lab-word-labels").table().query("measure == 'GP lost'")
    for task, value in zip(words["task"], words["value"], strict=True):
        assert f"{task} {value:.2f}" in TEXT


def test_other_numbers_are_another_table(tmp_path: Path) -> None:
    record = json.loads((FOLDER / KEPT).read_text(encoding="utf-8"))
    other = copy.deepcopy(record)
    other["trained"][0]["lost"]["GP lost"] += 0.5
    (tmp_path / KEPT).write_text(json.dumps(other), encoding="utf-8")
    assert "\n".join(table_lines(Factorial.read(tmp_path))) not in TEXT


def test_the_record_is_of_the_built_in_plan() -> None:
    origin = Factorial.read(FOLDER).origin
    assert origin["settings"] == plain(read_plan("lab-factorial").record())
    assert f"{origin['command']} --out" in TEXT
