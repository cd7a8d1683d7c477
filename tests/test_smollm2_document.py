"""Tables and commands of docs/smollm2.md are those of the numbers that are kept, and these those of the runs."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from benchmark_modules import benchmark

from ivlens.errors import IvlensError

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "smollm2.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def findings() -> Iterator[ModuleType]:
    with benchmark("real_findings") as module:
        yield module


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


def test_the_tables_and_commands_of_the_document_are_those_of_the_numbers(
    findings: ModuleType, runs: dict[str, dict]
) -> None:
    assert findings.written(TEXT, findings.tables(runs)) == TEXT
    assert findings.command(findings.WHOLE.name, runs[findings.WHOLE.name]) in TEXT


def test_another_number_is_another_document(findings: ModuleType, runs: dict[str, dict]) -> None:
    other = copy.deepcopy(runs)
    other["present-past-shuffled-demonstrations"]["measures"]["few-shot"]["accuracy"] += 0.1
    assert findings.written(TEXT, findings.tables(other)) != TEXT
    with pytest.raises(IvlensError, match=r"smollm2\.md has no <!-- ways -->"):
        findings.written("", {"ways": ""})


@pytest.mark.slow
def test_the_numbers_are_those_of_the_run_folder(findings: ModuleType, runs: dict[str, dict]) -> None:
    found, kept = (dict(leaves(run)) for run in (findings.keep(findings.WHOLE), runs[findings.WHOLE.name]))
    assert found == pytest.approx(kept, abs=2e-5)


def test_an_interval_that_was_not_measured_is_said_to_be_so(findings: ModuleType) -> None:
    line = {"accuracy": 0.5, "accuracy_low": 0.25, "accuracy_high": 0.75}
    assert findings.told(line) == "0.50 [0.25, 0.75]"
    assert findings.told(None) == findings.told({"accuracy": None}) == "not measured"
    assert findings.told({"accuracy": 0.5, "accuracy_low": None, "accuracy_high": None}) == "0.50"
