"""What a study takes is counted from its tokens and a pace; a budget chooses as many seeds as fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from small import small_plan
from transformer_lens import HookedTransformer

import ivlens
from ivlens.cli.app import main
from ivlens.errors import StudyError
from ivlens.forgetting import preparation
from ivlens.forgetting.plan import Plan
from ivlens.forgetting.preparation import Cost, estimate_cost, general_tasks
from ivlens.prompts.tokens import tokenize
from ivlens.training import pace
from ivlens.training.benchmark_stages import stage
from ivlens.training.pace import Pace

PLAN = small_plan()


def cost(plan: Plan, lab: HookedTransformer, monkeypatch: pytest.MonkeyPatch, **seconds: float) -> Cost:
    found = Pace(**{"trained": 0.0, "read": 0.0, **seconds})
    monkeypatch.setattr(preparation, "measure_pace", lambda *given: found)
    return estimate_cost(plan, lab, general_tasks(plan))


@pytest.mark.slow
def test_training_is_its_steps_times_what_a_prompt_of_the_stage_is_padded_to(
    lab: HookedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = PLAN.with_changes(tasks=("class-letter", "continent-letter"))
    widths = []
    for name in plan.tasks:
        tokens = tokenize(lab, stage(name, seed=0, limit=8).train)
        widths.append(max(len(row[mask]) for row, mask in zip(tokens.prompts, tokens.mask, strict=True)))
    found = cost(plan, lab, monkeypatch, trained=2.0)
    assert found == Cost(once=0.0, seed=2.0 * 3 * 4 * sum(widths), measuring=0.0)


@pytest.mark.slow
def test_what_a_method_asks_of_a_step_counts(lab: HookedTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    def passes(method: str) -> float:
        return cost(PLAN.with_changes(methods=(method,)), lab, monkeypatch, trained=1.0).seed

    plain = passes("lora")
    wanted = {"ewc": 1, "lwf": 1.5, "lora+kl": 1.5, "lora+iv-steer": 1, "lora+iv-general": 2.5, "lora+fv": 2}
    assert {method: passes(method) / plain for method in wanted} == pytest.approx(wanted)
    assert passes("replay-general") > plain, "prompts with demonstrations are longer"
    both = PLAN.with_changes(methods=("lora", "lora+kl"))
    assert cost(both, lab, monkeypatch, trained=1.0).seed == pytest.approx(2.5 * plain)


@pytest.mark.slow
def test_what_is_drawn_once_is_measured_once(lab: HookedTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    each = cost(PLAN, lab, monkeypatch, read=1.0)
    once = cost(PLAN.with_changes(evaluation=replace(PLAN.evaluation, drawn="once")), lab, monkeypatch, read=1.0)
    assert each.once == 0 and once.once > 0
    assert each.seed == each.measuring == pytest.approx(once.once + once.seed)


def test_pace_is_positive_and_leaves_nothing_on_the_model(lab: HookedTransformer) -> None:
    found = pace.measure_pace(lab, stage("class-letter", seed=0, limit=8), PLAN.lora, PLAN.training)
    assert found.trained > 0 and found.read > 0
    assert not any(point.fwd_hooks for point in lab.hook_dict.values())


def test_as_many_seeds_as_fit_and_not_less_than_one() -> None:
    assert Cost(once=60.0, seed=120.0, measuring=30.0).seeds_within(300.0) == 2
    with pytest.raises(StudyError, match="one seed takes about 3 minutes here, and the budget is 2; give more, or"):
        Cost(once=60.0, seed=120.0, measuring=30.0).seeds_within(120.0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """Plans that the command would run, on a machine where a seed takes an hour."""
    found: list[Plan] = []

    def remember(plan: Plan, **given: object) -> None:
        found.append(plan)
        raise StudyError("asked")

    monkeypatch.setattr(preparation, "estimate_cost", lambda *given: Cost(once=600.0, seed=3600.0, measuring=900.0))
    monkeypatch.setattr(ivlens, "study", remember)
    return found


@pytest.mark.slow
def test_a_budget_chooses_the_seeds_and_the_cost_is_said(
    asked: list[Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["study", "lab-func", "--out", str(tmp_path / "run"), "--workers", "2"]
    assert main([*line, "--budget", "2h"]) == 2
    assert [plan.seeds for plan in asked] == [(0, 1, 2)], "2 workers have 4 hours"
    said = capsys.readouterr().err
    assert "3 methods x 3 seeds x 5 stages: about 1.6 h, 2 at once" in said and "25% of it measuring" in said
    assert main([*line, "--budget", "90 min", "--seeds", "0"]) == main([*line, "--budget", "soon"]) == 2
    said = capsys.readouterr().err
    assert "leave one out" in said and "'soon' is no time above 0" in said
    assert main([*line, "--dry-run"]) == 0
    assert len(asked) == 1 and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_long_study_says_its_cost_before_it_begins_and_no_other(
    asked: list[Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["study", "lab-func", "--seeds", "0", "--workers", "1", "--out", str(tmp_path / "run")]
    main(line)
    assert "3 methods x 1 seed x 5 stages: about 70 min" in " ".join(capsys.readouterr().err.split())
    main([*line, "--engine", "ray"])
    assert "about" not in capsys.readouterr().err, "the model need not be here"
    monkeypatch.setattr(preparation, "estimate_cost", lambda *given: Cost(once=1.0, seed=20.0, measuring=5.0))
    main(line)
    assert "about" not in capsys.readouterr().err
    monkeypatch.setattr(preparation, "estimate_cost", lambda *given: pytest.fail("it was said when it began"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(RECORD)
    main(line)
    assert [plan.seeds for plan in asked] == [(0,)] * 4


@pytest.mark.slow
def test_cells_that_are_fewer_than_the_workers_are_not_parted(
    asked: list[Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["study", "lab-func", "--out", str(tmp_path / "run"), "--workers", "8", "--dry-run"]
    assert main([*line, "--methods", "lora", "--seeds", "0"]) == 0
    assert "1 method x 1 seed x 5 stages: about 70 min, 1 at once" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_a_run_that_was_begun_keeps_its_seeds(asked: list[Plan], tmp_path: Path) -> None:
    record = tmp_path / "run" / "run.json"
    record.parent.mkdir()
    record.write_text(RECORD)
    assert main(["study", "lab-func", "--out", str(record.parent), "--budget", "9h"]) == 2
    assert [plan.seeds for plan in asked] == [(7, 8)]


RECORD = """{"command": "study", "settings": {"seeds": [7, 8]}, "sources": {}, "seed": 0, "versions": {},
"started": "2026-01-01T00:00:00Z"}"""
