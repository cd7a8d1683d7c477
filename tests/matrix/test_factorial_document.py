"""The table of docs/open_questions.md about a task's properties is that of the numbers which figures/numbers keeps."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ivlens.forgetting.plan import read_plan
from ivlens.matrix.factorial import FACTORS, KEPT, LOST, Factorial
from ivlens.matrix.main_effects import MEAN
from ivlens.storage.run_record import plain

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "figures" / "numbers" / "lab-factorial"
TEXT = (ROOT / "docs" / "open_questions.md").read_text(encoding="utf-8")
METHODS = ("lora", "lora+iv-general", "lora+iv-general - lora+iv-general-random")


def told(line: Any) -> str:
    text = f"{line['value']:.2f} [{line['low']:.2f}, {line['high']:.2f}]".replace("-0.00", "0.00")
    if line["factor"] != MEAN:
        text = text if text.startswith("-") else f"+{text}"
    return text if line["adjusted"] != line["adjusted"] else f"{text}, p {line['adjusted']:.3f}"


def table_lines(found: Factorial) -> Iterator[str]:
    effects = found.effects()
    for measure, called in LOST.items():
        for factor, name in {MEAN: "mean of the cells", **FACTORS}.items():
            own = effects[(effects["measure"] == measure) & (effects["factor"] == factor)].set_index("method")
            cells = [told({**own.loc[method], "factor": factor}) for method in METHODS]
            yield f"| {called}: {name} | {' | '.join(cells)} |"


def test_the_table_of_the_document_is_that_of_the_record() -> None:
    assert "\n".join(table_lines(Factorial.read(FOLDER))) in TEXT


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
