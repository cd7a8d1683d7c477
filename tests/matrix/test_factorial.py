"""Effects are those of a slow count, over tasks; levels are measured; what is kept is read again."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ivlens.errors import IvlensError, RunError
from ivlens.forgetting.study import Study
from ivlens.matrix import run_factorial
from ivlens.matrix.factorial import FACTORS, KEPT, LOST, Factorial, LearnedTask, Trained, cell_name
from ivlens.matrix.factorial_tables import cell_table
from ivlens.matrix.main_effects import MEAN, main_effects

NAMES = ["a", "b", "c"]
LEVELS = list(itertools.product((False, True), repeat=3))


def made_up(seed: int, sizes: dict[tuple[bool, ...], int] | None = None) -> pd.DataFrame:
    """Units of cells of several sizes and spreads."""
    generator = np.random.default_rng(seed)
    lines = []
    for number, key in enumerate(LEVELS):
        for _ in range((sizes or {}).get(key, 2 + number % 3)):
            value = generator.normal(0.3 * key[0] - 0.1 * key[2], 0.1 + 0.1 * number)
            lines.append(dict(zip(NAMES, key, strict=True)) | {"value": value})
    return pd.DataFrame(lines).sample(frac=1, random_state=seed)


def slow(units: pd.DataFrame, place: int) -> tuple[float, float, float, float]:
    """Value, bounds and p, cell by cell in plain Python."""
    cells: dict[tuple[bool, ...], list[float]] = {key: [] for key in LEVELS}
    for line in units.to_dict("records"):
        cells[line["a"], line["b"], line["c"]].append(line["value"])
    strata = []
    for key in LEVELS:
        upper = tuple(True if at == place else level for at, level in enumerate(key))
        if not key[place] and len(cells[key]) > 1 and len(cells[upper]) > 1:
            strata.append((cells[key], cells[upper]))
    value = sum(statistics.mean(upper) - statistics.mean(lower) for lower, upper in strata) / len(strata)
    variances = [
        (statistics.variance(cell) / len(cell) / len(strata) ** 2, len(cell)) for pair in strata for cell in pair
    ]
    total = sum(variance for variance, _ in variances)
    freedom = total**2 / sum(variance**2 / (n - 1) for variance, n in variances)
    t = stats.t(freedom)
    half = t.ppf(0.975) * math.sqrt(total)
    return value, value - half, value + half, 2 * t.sf(abs(value) / math.sqrt(total))


@pytest.mark.parametrize("sizes", [None, {(True, True, True): 0}, {(False, True, False): 1, (True, True, False): 5}])
def test_effects_are_those_of_a_slow_count(sizes: Any) -> None:
    units = made_up(0, sizes)
    found: Any = main_effects(units, NAMES).set_index("factor")
    for place, name in enumerate(NAMES):
        line = found.loc[name]
        assert [line["value"], line["low"], line["high"], line["p"]] == pytest.approx(slow(units, place), rel=1e-12)


def test_an_effect_of_tasks_that_do_not_differ_is_exact_and_others_are_none() -> None:
    lines = [dict(zip(NAMES, key, strict=True)) | {"value": 0.25 * key[1]} for key in LEVELS for _ in range(2)]
    found: Any = main_effects(pd.DataFrame(lines), NAMES).set_index("factor")
    assert found[["value", "low", "high", "p"]].loc["b"].tolist() == [0.25, 0.25, 0.25, 0.0]
    assert found[["value", "p"]].loc["a"].tolist() == [0.0, 1.0]
    assert found["value"][MEAN] == 0.125


def test_a_stratum_that_lacks_a_cell_is_left_out() -> None:
    found: Any = main_effects(made_up(1, {(True, True, True): 0, (False, False, False): 1}), NAMES).set_index("factor")
    assert found["strata"].to_dict() == {MEAN: 6, "a": 2, "b": 2, "c": 2}
    none: Any = main_effects(made_up(1, {key: 0 for key in LEVELS if key[0]}), NAMES).set_index("factor")
    assert none["strata"]["a"] == 0 and math.isnan(none["value"]["a"]) and none["strata"]["b"] == 2


def test_what_is_not_a_table_of_units_is_refused() -> None:
    units = made_up(0)
    with pytest.raises(IvlensError, match="no column d; it has"):
        main_effects(units, [*NAMES, "d"])
    with pytest.raises(IvlensError, match="not finite"):
        main_effects(units.assign(value=np.nan), NAMES)


@pytest.mark.slow
def test_intervals_cover_what_they_say_where_cells_are_small_and_unlike() -> None:
    """Half of the cells do not vary at all, as tasks that a model can do already."""
    generator, missed, draws = np.random.default_rng(0), 0, 400
    keys = pd.DataFrame([dict(zip(NAMES, key, strict=True)) for key in LEVELS for _ in range(3)])
    for _ in range(draws):
        line: Any = main_effects(keys.assign(value=generator.normal(0, np.where(keys["a"], 0.01, 0.3))), NAMES).iloc[1]
        missed += not line["low"] <= 0 <= line["high"]
    assert missed / draws <= 0.075


METHODS = ("lora", "lora+iv-general", "lora+iv-general-random")


def factorial(seeds: tuple[int, ...] = (0, 1)) -> Factorial:
    generator = np.random.default_rng(3)
    tasks = tuple(
        LearnedTask(name=f"task {number}", **dict(zip(FACTORS, key, strict=True)), accuracy=0.5, share=0.1, queries=9)
        for number, key in enumerate(LEVELS * 2)
    )
    lost = {(task.name, method): generator.uniform(0, 1, 2) for task in tasks for method in METHODS}
    return Factorial(
        tasks=tasks,
        trained=tuple(
            Trained(
                task=task,
                method=method,
                seed=seed,
                loss=1.0,
                learned=0.5,
                lost={
                    name: float(value + 0.1 * (seed - np.mean(seeds))) for name, value in zip(LOST, values, strict=True)
                },
            )
            for (task, method), values in lost.items()
            for seed in seeds
        ),
        origin={"command": "python -m ivlens", "settings": {"name": "made-up"}},
    )


def test_seeds_are_averaged_within_tasks() -> None:
    two, five = factorial((0, 1)).effects(), factorial((0, 1, 2, 3, 4)).effects()
    pd.testing.assert_frame_equal(two, five)


def test_p_values_are_corrected_for_the_factors_and_methods_of_a_measure_and_controls_are_not_tested() -> None:
    effects: Any = factorial().effects()
    told: Any = effects[(effects["factor"] != MEAN) & effects["method"].isin(METHODS[:2])]
    assert told["adjusted"].notna().all() and effects["adjusted"].notna().sum() == len(told) == 12
    for _, own in told.groupby("measure"):
        order = sorted(own["p"])
        stepped = list(itertools.accumulate((min(1.0, p * (6 - at)) for at, p in enumerate(order)), max))
        assert sorted(own["adjusted"]) == pytest.approx(stepped)


def test_what_vectors_have_over_random_ones_is_the_difference_task_by_task() -> None:
    found = factorial()
    means = found.table().pivot(index="task", columns=["measure", "method"], values="value")
    effects: Any = found.effects().set_index(["measure", "method", "factor"])
    for measure in LOST:
        difference = (means[measure, METHODS[1]] - means[measure, METHODS[2]]).mean()
        assert effects["value"][measure, f"{METHODS[1]} - {METHODS[2]}", MEAN] == pytest.approx(difference)


def test_effects_of_what_the_model_cannot_do_are_those_of_a_table_of_it_alone() -> None:
    found = factorial()
    table = found.table()
    own = table[(table["measure"] == "IP lost") & (table["method"] == "lora") & ~table["able"]]
    alone: Any = found.effects(unable=True).query("measure == 'IP lost' and method == 'lora'").drop(columns="adjusted")
    expected = main_effects(own, ["labels", "long"])
    pd.testing.assert_frame_equal(alone[list(expected)].reset_index(drop=True), expected)


def test_a_cell_has_the_mean_of_its_tasks_and_a_table_names_those_that_have_none() -> None:
    found = factorial()
    two = [one.name for one in found.tasks if (one.able, one.labels, one.long) == (True, False, True)]
    values = [
        statistics.mean(one.lost["GP lost"] for one in found.trained if (one.task, one.method) == (name, "lora"))
        for name in two
    ]
    cells = found.cells().query("measure == 'GP lost' and method == 'lora'").set_index("cell")
    line = cells.loc["can, function, long"]
    told = [line[name] for name in ("value", "low", "high", "tasks")]
    assert told == pytest.approx([statistics.mean(values), min(values), max(values), 2])
    assert cell_table(found).note == "Cells without tasks: none."
    kept = (found.tasks[0], found.tasks[6])
    some = tuple(one for one in found.trained if one.task in {task.name for task in kept})
    assert cell_table(replace(found, tasks=kept, trained=some)).note.count(";") == 5


@pytest.mark.slow
def test_the_figure_has_a_point_for_every_cell_measure_and_method() -> None:
    figure: Any = factorial().figures()["cells"]
    assert sum(len(trace.x) for trace in figure.data if trace.mode == "markers") >= 8 * 2 * 3
    assert sorted(figure.layout.yaxis.ticktext) == sorted(cell_name(*key) for key in LEVELS)


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    found = factorial()
    found.write(tmp_path)
    assert Factorial.read(tmp_path) == found
    (tmp_path / KEPT).write_text((tmp_path / KEPT).read_text().replace('"seed": 0', '"seed": "none"', 1))
    with pytest.raises(RunError, match=r"factorial\.json is no factorial \(.*seed.*run it again"):
        Factorial.read(tmp_path)
    with pytest.raises(RunError, match="is no factorial"):
        Factorial.read(tmp_path / "nowhere")
    replace(found, trained=found.trained[1:]).write(tmp_path)
    with pytest.raises(RunError, match="not every task with every method and seed once"):
        Factorial.read(tmp_path)
    replace(found, trained=tuple(replace(one, lost={"GP": 0.0}) for one in found.trained)).write(tmp_path)
    with pytest.raises(RunError, match="measures that are not GP lost, IP lost"):
        Factorial.read(tmp_path)


PLAN = """
tasks = ["class-letter", "next-two-reworded"]
general = ["antonym", "capitalize"]
methods = ["lora"]
seeds = [0]
train_prompts = 30
lora = { rank = 2 }
training = { steps = 3, batch = 4 }
evaluation = { queries = 3, few_shot_queries = 2, shots = 3, probe_prompts = 3, clean_prompts = 4, top = 3 }
"""


@pytest.mark.long
def test_every_task_is_learned_alone_and_its_levels_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_factorial.export, "export", lambda *_: None)
    (tmp_path / "plan.toml").write_text(PLAN)
    out = tmp_path / "out"
    run_factorial.main([str(tmp_path / "plan.toml"), "--out", str(out), "--dry-run"])
    assert not out.exists() and "2 tasks x 1 methods x 1 seeds: about" in capsys.readouterr().err
    run_factorial.main([str(tmp_path / "plan.toml"), "--out", str(out)])
    found, written = Factorial.read(out), (out / KEPT).read_bytes()
    labelled, known = found.tasks
    assert (labelled.able, labelled.labels, labelled.long, labelled.queries) == (False, True, False, 45)
    assert (known.able, known.labels, known.long, known.accuracy) == (True, False, True, 1.0)
    assert "class-letter (0.00)" in capsys.readouterr().out
    for one in found.trained:
        lines = Study.read(out / one.task).evaluations.query("measure == 'instruction accuracy'")
        before, after = (lines[lines["stage"] == stage]["value"].mean() for stage in (0, 1))
        assert one.lost["GP lost"] == pytest.approx(before - after)
        assert one.loss == Study.read(out / one.task).steps["loss"].iloc[0] > 0
    trained = {path: path.stat().st_mtime_ns for path in out.glob("*/cells/*/*")}
    (out / KEPT).unlink()
    run_factorial.main([str(tmp_path / "plan.toml"), "--out", str(out)])
    assert (out / KEPT).read_bytes() == written
    assert len(trained) > 4 and trained == {path: path.stat().st_mtime_ns for path in out.glob("*/cells/*/*")}


def test_a_plan_that_is_not_there_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_factorial.main(["no-such-plan", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("ivlens: there is no built-in study and no file 'no-such-plan'")
