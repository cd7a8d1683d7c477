"""Tables and commands of docs/smollm2.md are those of the numbers that are kept, and these those of the runs."""

from __future__ import annotations

import importlib.util
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "smollm2.md").read_text(encoding="utf-8")
WHOLE = "smollm2-present-past"
"""The run that figures are drawn from, of which all tables are kept."""


@pytest.fixture(scope="module")
def findings() -> ModuleType:
    spec = importlib.util.spec_from_file_location("real_findings", ROOT / "benchmarks" / "real_findings.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runs(findings: ModuleType) -> dict[str, dict]:
    return json.loads(findings.KEPT.read_text(encoding="utf-8"))


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every number of a run by where it stands; texts stand in the place itself."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if parts is not None:
        for key, part in parts:
            yield from leaves(part, f"{place}/{key}")
    elif isinstance(value, float):
        yield place, value
    else:
        yield f"{place}={value}", 0.0


def test_the_tables_of_the_document_are_those_of_the_numbers(findings: ModuleType, runs: dict[str, dict]) -> None:
    tables = list(findings.tables(runs))
    assert [table for table in tables if table not in TEXT] == []
    assert min(len(table.splitlines()) for table in tables) > 2


def test_the_command_of_every_run_is_in_the_document(findings: ModuleType, runs: dict[str, dict]) -> None:
    for name, run in runs.items():
        typed = shlex.join(run["typed"])
        task = next((task for task in findings.TASKS if f"/{task}.json" in typed and "tasks/" in typed), None)
        assert f"ivlens {typed.replace(task, '$task') if task else typed}\n" in TEXT, name
        assert run["finished"] or "--only" in run["typed"]


def test_the_numbers_are_those_of_the_run_folder(findings: ModuleType, runs: dict[str, dict]) -> None:
    found, kept = (dict(leaves(run)) for run in (findings.keep(ROOT / "figures" / "numbers" / WHOLE), runs[WHOLE]))
    assert found == pytest.approx(kept, abs=2e-5)


def test_an_interval_that_was_not_measured_is_said_to_be_so(findings: ModuleType) -> None:
    line = {"accuracy": 0.5, "accuracy_low": 0.25, "accuracy_high": 0.75}
    assert findings.told(line) == "0.50 [0.25, 0.75]"
    assert findings.told(None) == findings.told({"accuracy": None}) == "not measured"
    assert findings.told({"accuracy": 0.5, "accuracy_low": None, "accuracy_high": None}) == "0.50"
