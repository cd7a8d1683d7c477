"""Every number about unseen instructions in docs/open_questions.md is in the record that figures/numbers keeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ivlens.forgetting import metrics
from ivlens.forgetting.study import Study

ROOT = Path(__file__).parents[2]
TEXT = ROOT / "docs" / "open_questions.md"
MEASURES = ("learned", *metrics.BY_WORDING)
FIRST = tuple(f"lora+iv-general{end}" for end in ("-none", "-linear", "-steps", "-short", "-random", "-random-heads"))
UNSEEN = ("GP, unseen wording, guided", "GP, unguided")


@pytest.fixture(scope="module")
def study() -> Study:
    return Study.read(ROOT / "figures" / "numbers" / "lab-wordings")


def bounds(row: Any, sign: str = "") -> str:
    return f"{row['value']:{sign}.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def method_lines(study: Study) -> Iterator[str]:
    table = study.summary.set_index(["method", "measure"])
    for method in study.plan.methods:
        cells = [bounds(table.loc[(method, measure)]) for measure in MEASURES]
        yield f"| `{method}` | {' | '.join(cells)} |"


def first_family(study: Study) -> pd.DataFrame:
    """What the plan says is looked at first: twelve differences, corrected for these."""
    lines: Any = study.evaluations
    own = lines[lines["method"].isin([study.plan.reference, *FIRST])]
    about = {"guided": study.guided, "families": study.families}
    return metrics.comparisons(own, str(study.plan.reference), measures=UNSEEN, **about)


def difference_lines(study: Study) -> Iterator[str]:
    table: Any = first_family(study)
    for other in FIRST:
        own = table[table["other"] == other].set_index("measure")
        cells = [bounds(own.loc[name], "+") + "*" * bool(own.loc[name, "adjusted"] < 0.05) for name in UNSEEN]
        yield f"| `{other}` | {' | '.join(cells)} |"


def test_the_tables_of_the_document_are_those_of_the_record(study: Study) -> None:
    text, lines = TEXT.read_text(encoding="utf-8"), [*method_lines(study), *difference_lines(study)]
    assert len(first_family(study)) == 12
    assert lines and [line for line in lines if line not in text] == []
