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
DIFFERENCES = (
    *((method, "lora") for method in ("lora+fv-published", "lwf", "replay-general", "lora+iv-general", "replay")),
    *((method, "lora") for method in ("lora+iv-general-random", "ewc", "lora+iv", "lora+kl", "olora")),
    ("lora+iv-general", "lora+iv-general-random"),
    ("lora+iv-general", "lora+kl"),
    ("lora+iv", "lora+kl"),
    ("replay-general", "lora+iv-general"),
)


def pick(frame: Any, **values: Any) -> Any:
    for column, value in values.items():
        frame = frame[frame[column] == value]
    return frame


def of_general(study: Study) -> Any:
    """Accuracy with demonstrations on the general tasks."""
    return pick(study.evaluations, kind="general", measure="few-shot accuracy").dropna(subset="value")


def method_lines(study: Study) -> Iterator[str]:
    table: Any = study.summary
    for method in study.plan.methods:
        own = pick(table, method=method).set_index("measure")
        cells = [f"{own.loc[measure, 'value']:{'+' * ('change' in measure)}.2f}" for measure in MEASURES]
        yield f"| `{method}` | {' | '.join(cells)} |"


def stage_lines(study: Study) -> Iterator[str]:
    """Its mean over the tasks after every stage, order by order."""
    means = of_general(study).groupby(["method", "seed", "stage"])["value"].mean()
    for method in study.plan.methods:
        orders = [" → ".join(f"{value:.2f}" for value in means[method, seed]) for seed in study.plan.seeds]
        yield f"| `{method}` | {' | '.join(orders)} |"


def task_lines(study: Study) -> Iterator[str]:
    """Of single tasks after every stage of plain training, over the orders."""
    table = pick(of_general(study), method="lora")
    for task in dict.fromkeys(table["task"]):
        own = pick(table, task=task).groupby("stage")["value"].mean()
        yield f"| {task} | {' | '.join(f'{value:.2f}' for value in own)} |"


def recovery_lines(study: Study, task: str) -> Iterator[str]:
    table = pick(study.evaluations, method="lora", kind="probe", task=task)
    for stage in sorted(set(table["stage"])):
        own = pick(table, stage=stage).groupby(["measure", "heads"])["value"].mean()
        names = [(f"{'steered ' * bool(vector)}{kind} accuracy", vector) for kind, vector in RECOVERED]
        cells = [f"{own[name]:.2f}" for name in (*names, ("cosine", "chosen"))]
        yield f"| {stage} | {' | '.join(cells)} |"


def difference_lines(study: Study) -> Iterator[str]:
    """After the last stage, one method minus another: over the tasks, each one's mean over orders; and by order."""
    table = of_general(study)
    last = pick(table, stage=int(table["stage"].max())).pivot_table(
        index=["seed", "task"], columns="method", values="value", sort=False
    )
    for method, other in DIFFERENCES:
        difference = last[method] - last[other]
        values = torch.tensor(difference.groupby("task", sort=False).mean().to_numpy())
        found = interval(values, torch.arange(len(values)), within=(-1.0, 1.0))
        orders = ", ".join(f"{value:+.2f}" for value in difference.groupby("seed").mean())
        yield f"| `{method}` minus `{other}` | {found.mean:+.2f} [{found.low:.2f}, {found.high:.2f}] | {orders} |"


def lines(study: Study) -> list[str]:
    probes = [line for task in study.plan.evaluation.probes for line in recovery_lines(study, task)]
    return [*method_lines(study), *stage_lines(study), *task_lines(study), *probes, *difference_lines(study)]


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
