"""Every number in the tables of docs/study.md is in the records that figures/numbers keeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ivlens.forgetting import recovery
from ivlens.forgetting.study import Study

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
MEASURES = ("learned", "AP", "GP", "GP, unguided", "IP")
RECOVERED = (
    ("instruction", "no vector"),
    *(("query alone", vector) for vector in ("no vector", "base vector", "own vector", "random heads")),
    ("instruction", "base vector"),
    ("cosine", "own vector"),
)


def told(rows: Any) -> str:
    if not len(rows) or rows.iloc[0]["value"] != rows.iloc[0]["value"]:
        return "not measured"
    row = rows.iloc[0]
    return f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def method_lines(study: Study) -> Iterator[str]:
    table: Any = study.summary
    for method in dict.fromkeys(table["method"]):
        own = table[table["method"] == method]
        cells = [told(own[own["measure"] == measure]) for measure in MEASURES]
        kept = told(own[own["measure"] == "GP kept"]) if "+" in method else ""
        yield f"| `{method}` | {' | '.join(cells)} | {kept} |"


def recovery_lines(study: Study) -> Iterator[str]:
    table: Any = study.recovery
    table = table[table["method"] == "lora"]
    for stage in sorted(set(table["stage"])):
        own = table[table["stage"] == stage]
        cells = [told(own[(own["prompts"] == prompts) & (own["vector"] == vector)]) for prompts, vector in RECOVERED]
        yield f"| {stage} | {' | '.join(cells)} |"


@pytest.mark.long
@pytest.mark.parametrize("name", ["lab-func", "lab-trace", "lab-long", "lab-func-methods"])
def test_the_tables_of_the_document_are_those_of_the_record(name: str):
    study = Study.read(ROOT / "figures" / "numbers" / name)
    lines = [*method_lines(study), *([] if name == "lab-func-methods" else recovery_lines(study))]
    assert lines and "\n".join(lines[: len(set(study.summary["method"]))]) in TEXT
    assert [line for line in lines if line not in TEXT] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("smollm2-func", "lora"),
        ("smollm2-func", "all"),
        ("lab-func", "lora"),
        ("lab-long", "lora"),
        ("lab-trace", "lora"),
    ],
)
def test_correlations_in_the_page_of_studies_are_those_of_the_runs(name: str, method: str) -> None:
    lines: Any = recovery.correlations(Study.read(ROOT / "figures" / "numbers" / name).similarity)
    assert told(lines[lines["method"] == method]) in (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
