"""Every number in the tables of docs/real_forgetting.md is in the record that figures/numbers keeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ivlens.forgetting import tables
from ivlens.forgetting.study import Study
from ivlens.measures import interval

ROOT = Path(__file__).parents[2]
TEXT = ROOT / "docs" / "real_forgetting.md"
NUMBERS = ROOT / "figures" / "numbers" / "smollm2-func"
MEASURES = ("learned", "AP", "IP", "IP change", "IP, unguided", "knowledge accuracy")
RECOVERED = (
    *(("few-shot", vector) for vector in ("", "chosen", "own", "random", "unscaled")),
    *(("zero-shot", vector) for vector in ("", "chosen", "random")),
    *(("instruction", vector) for vector in ("", "chosen", "random")),
)


def pick(frame: Any, **values: Any) -> Any:
    for column, value in values.items():
        frame = frame[frame[column] == value]
    return frame


def only(frame: Any, **values: Any) -> float:
    return float(pick(frame, **values)["value"].item())


def method_lines(study: Study) -> Iterator[str]:
    table: Any = study.summary
    for method in study.plan.methods:
        cells = [
            f"{only(table, method=method, measure=measure):{'+' * ('change' in measure)}.2f}" for measure in MEASURES
        ]
        yield f"| `{method}` | {' | '.join(cells)} |"


def stage_lines(study: Study) -> Iterator[str]:
    """After every stage, accuracy with demonstrations on each general task, method by method."""
    table = pick(study.evaluations, kind="general", measure="few-shot accuracy").dropna(subset="value")
    for method in study.plan.methods:
        for stage in sorted(set(table["stage"])):
            own = pick(table, method=method, stage=stage)["value"]
            yield f"| `{method}` | {stage} | {own.mean():.2f} | {' | '.join(f'{value:.2f}' for value in own)} |"


def recovery_lines(study: Study, task: str) -> Iterator[str]:
    table = pick(study.evaluations, method="lora", kind="probe", task=task)
    for stage in sorted(set(table["stage"])):
        own = pick(table, stage=stage)
        names = {(kind, vector): f"{'steered ' * bool(vector)}{kind} accuracy" for kind, vector in RECOVERED}
        cells = [f"{only(own, measure=name, heads=vector):.2f}" for (_, vector), name in names.items()]
        yield f"| {stage} | {' | '.join(cells)} | {only(own, measure='cosine', heads='chosen'):.2f} |"


def difference_lines(study: Study) -> Iterator[str]:
    """Accuracy with demonstrations after the last stage, one method minus another, over the general tasks."""
    table = pick(study.evaluations, kind="general", measure="few-shot accuracy").dropna(subset="value")
    last = pick(table, stage=int(table["stage"].max())).pivot(index="task", columns="method", values="value")
    reference = "lora+iv-general"
    for other in (one for one in study.plan.methods if one != reference):
        values = torch.tensor((last[reference] - last[other]).to_numpy())
        found = interval(values, torch.arange(len(values)), within=(-1.0, 1.0))
        yield f"| `{reference}` minus `{other}` | {found.mean:+.2f} [{found.low:.2f}, {found.high:.2f}] |"


def lines(study: Study) -> list[str]:
    probes = [line for task in study.plan.evaluation.probes for line in recovery_lines(study, task)]
    return [*method_lines(study), *stage_lines(study), *probes, *difference_lines(study)]


@pytest.mark.slow
def test_the_tables_of_the_document_are_those_of_the_record() -> None:
    found, text = lines(Study.read(NUMBERS)), TEXT.read_text(encoding="utf-8")
    assert found and [line for line in found if line not in text] == []


@pytest.mark.slow
def test_what_was_not_asked_is_named_and_is_no_number() -> None:
    study = Study.read(NUMBERS)
    unable = study.unmeasured
    assert set(unable["instruction accuracy"]) == set(study.plan.general) - {"choose-first", "number-digits"}
    assert f"instruction accuracy: {', '.join(unable['instruction accuracy'])}" in tables.note(study)
    for measure, tasks in unable.items():
        of_these = study.evaluations["task"].isin(tasks) & (study.evaluations["measure"] == measure)
        assert study.evaluations[of_these & (study.evaluations["kind"] == "general")]["value"].isna().all()
