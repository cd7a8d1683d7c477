"""The tables of docs/lab_model.md on other shapes are those of the numbers that are kept."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from benchmark_modules import benchmark

from ivlens.lab import RECORD

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "lab_model.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shapes() -> Iterator[ModuleType]:
    with benchmark("lab_shapes") as module:
        yield module


def test_the_tables_are_those_of_the_numbers(shapes: ModuleType) -> None:
    kept = json.loads(shapes.KEPT.read_text(encoding="utf-8"))
    assert shapes.written(TEXT, shapes.tables(kept)) == TEXT
    other = copy.deepcopy(kept)
    other["lab-neox"]["study"]["lora"]["GP"]["accuracy"] += 0.1
    assert shapes.written(TEXT, shapes.tables(other)) != TEXT


def test_the_numbers_of_the_shipped_shape_are_those_of_its_record(shapes: ModuleType) -> None:
    record, kept = (json.loads(path.read_text(encoding="utf-8")) for path in (RECORD, shapes.KEPT))
    assert kept["lab"]["sha256"] == record["model"]["sha256"]
    assert kept["lab"]["abilities"] == {name: shapes._line(record["means"][name], "mean") for name in shapes.ABILITIES}
    assert list(kept) == list(shapes.LABS) and {one["shape"] for one in kept.values()} == {"llama", "gpt2", "neox"}
