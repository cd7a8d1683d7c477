"""Cells that another run of the plan has done are taken over, to the same tables; of another plan, or damaged, none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from small import small_plan
from transformer_lens import HookedTransformer

import ivlens
from ivlens.errors import RunError
from ivlens.forgetting import method_run
from ivlens.training.loop import Training

pytestmark = pytest.mark.slow

PLAN = small_plan(methods=("lora", "replay"), training=Training(steps=2, batch=4, warmup=1))
ONE, OTHER = PLAN.with_changes(methods=("lora",)), PLAN.with_changes(methods=("replay",))
TABLES = ("evaluations.parquet", "steps.parquet", "aie.parquet")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, lab: HookedTransformer) -> Path:
    """The whole plan, and each method by itself."""
    folder = tmp_path_factory.mktemp("runs")
    for name, plan in {"whole": PLAN, "one": ONE, "other": OTHER}.items():
        ivlens.study(plan, out=folder / name, model=lab)
    return folder


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Methods and stages that are trained."""
    found, learn = [], method_run._learn

    def count(run: method_run.MethodRun, number: int, *more: object) -> None:
        found.append(f"{run.method} {number}")
        learn(run, number, *more)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(method_run, "_learn", count)
    return found


def test_runs_of_one_plan_are_put_together_without_training(
    runs: Path, tmp_path: Path, lab: HookedTransformer, learned: list[str]
) -> None:
    ivlens.study(PLAN, out=tmp_path / "both", model=lab, taken_from=[runs / "one", runs / "other"])
    assert learned == []
    for name in TABLES:
        assert (tmp_path / "both" / name).read_bytes() == (runs / "whole" / name).read_bytes()


def test_what_the_other_run_has_not_done_or_not_as_it_wrote_it_is_computed(
    runs: Path, tmp_path: Path, lab: HookedTransformer, learned: list[str]
) -> None:
    ivlens.study(PLAN, out=tmp_path / "more", model=lab, taken_from=[runs / "one"])
    assert learned == ["replay 1"]
    learned.clear()
    damaged = tmp_path / "more" / "cells" / "lora-0" / "stage-1.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    ivlens.study(ONE, out=tmp_path / "again", model=lab, taken_from=[tmp_path / "more"])
    assert learned == ["lora 1"]
    assert (tmp_path / "again" / "evaluations.parquet").read_bytes() == (
        runs / "one" / "evaluations.parquet"
    ).read_bytes()


def test_runs_of_another_plan_are_refused(runs: Path, tmp_path: Path, lab: HookedTransformer) -> None:
    longer = replace(PLAN, training=replace(PLAN.training, steps=3))
    with pytest.raises(RunError, match=r"training\.steps is 3 here but 2 in that run; cells can be taken over from"):
        ivlens.study(longer, out=tmp_path / "longer", model=lab, taken_from=[runs / "one"])
    with pytest.raises(RunError, match="is not the run of a study; give the --out of one"):
        ivlens.study(PLAN, out=tmp_path / "none", model=lab, taken_from=[tmp_path / "nothing"])
