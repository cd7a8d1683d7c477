"""What a study's summary says is what a person would compute from its table by hand."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ivlens.errors import IvlensError
from ivlens.forgetting import metrics
from ivlens.forgetting.method_run import EVALUATIONS

TASKS = ("first", "second", "third")
# Accuracy on each task (columns) after each stage (rows), row 0 being the base model.
R = [
    [0.90, 0.10, 0.20],
    [0.80, 0.15, 0.10],
    [0.85, 0.60, 0.30],
    [0.50, 0.40, 0.70],
]
Line = tuple[Any, ...]


def sequence(r: Sequence[Sequence[float]], *, measure: str = "accuracy", **cell: Any) -> list[Line]:
    where = {"method": "lora", "seed": 0} | cell
    return [
        (where["method"], where["seed"], stage, task, "sequence", measure, "", value, 10)
        for stage, row in enumerate(r)
        for task, value in zip(TASKS, row, strict=False)
    ]


def general(values: Mapping[str, Sequence[float]], *, measure: str, **cell: Any) -> list[Line]:
    """By task, a value a stage."""
    where = {"method": "lora", "seed": 0} | cell
    return [
        (where["method"], where["seed"], stage, task, "general", measure, "", value, 10)
        for task, row in values.items()
        for stage, value in enumerate(row)
    ]


def cell(r: Sequence[Sequence[float]], gp: Mapping[str, Sequence[float]], **where: Any) -> list[Line]:
    """Everything that is measured of a cell; few-shot accuracy is half of the instructed one."""
    half = {task: [value / 2 for value in row] for task, row in gp.items()}
    lines = sequence(r, **where) + sequence(r, measure="trained accuracy", **where)
    lines += general(gp, measure="instruction accuracy", **where) + general(half, measure="few-shot accuracy", **where)
    for measure in ("knowledge accuracy", "instruction probability", "knowledge probability"):
        lines += general(gp, measure=measure, **where)
    return lines


def table(lines: Iterable[Line]) -> pd.DataFrame:
    return pd.DataFrame(list(lines), columns=list(EVALUATIONS))


def of(frame: pd.DataFrame, measure: str, method: str = "lora") -> Any:
    (row,) = frame[(frame["method"] == method) & (frame["measure"] == measure)].to_dict("records")
    return row


GP = {"a": [0.9, 0.8, 0.6, 0.5], "b": [0.7, 0.7, 0.3, 0.1], "c": [0.8, 0.4, 0.4, 0.3]}


def test_r_has_a_row_a_stage_and_the_tasks_in_the_order_in_which_they_are_learned() -> None:
    lines = sequence(R) + sequence(R[::-1], seed=1) + sequence(R[::-1], measure="probability")
    found = metrics.r_matrix(table(reversed(lines)).sort_values("stage", kind="stable")[::-1], "lora", 0)
    assert list(found.index) == [0, 1, 2, 3] and set(found.columns) == set(TASKS)
    found = metrics.r_matrix(table(lines), "lora", 0)
    assert list(found.columns) == list(TASKS) and found.to_numpy().tolist() == R


def test_the_order_of_a_cell_is_what_its_column_says() -> None:
    frame = table(sequence(R) + sequence(R, seed=1))
    # With seed 1 the third task was the first one to be learned.
    places = {
        (seed, task): number for seed, own in ((0, TASKS), (1, TASKS[::-1])) for number, task in enumerate(own, 1)
    }
    frame["learned"] = [places[key] for key in zip(frame["seed"], frame["task"], strict=True)]
    shuffled = frame.sample(frac=1.0, random_state=0)
    assert metrics.r_matrix(shuffled, "lora", 0).to_numpy().tolist() == R
    found = metrics.r_matrix(shuffled, "lora", 1)
    assert list(found.columns) == list(TASKS[::-1]) and found.to_numpy().tolist() == [row[::-1] for row in R]
    # Its last task is the first of the list, which cannot have been forgotten.
    assert metrics.forgetting(found) == pytest.approx(((0.30 - 0.70) + (0.60 - 0.40)) / 2)
    pd.testing.assert_frame_equal(
        metrics.with_stages(frame.drop(columns="learned"))[["seed", "learned"]],
        frame[["seed"]].assign(learned=[TASKS.index(task) + 1 for task in frame["task"]]),
    )


def test_a_task_whose_sibling_guides_is_not_unguided() -> None:
    families = {"a": "first", "b": "first", "c": "second"}
    found = metrics.cells(table(cell(R, GP)), guided=["b"], families=families).set_index("measure")["value"]
    assert found["GP, guided"] == pytest.approx(0.1) and found["GP, unguided"] == pytest.approx(0.3)
    found = metrics.cells(table(cell(R, GP)), guided=["b"], families={"a": "b"}).set_index("measure")["value"]
    assert found["GP, unguided"] == pytest.approx(0.3), "a task that is in no family is one by its own name"


def test_unseen_wordings_are_told_apart_by_what_guides_have_seen() -> None:
    lines: list[Line] = []
    for seed, method in itertools.product(range(3), ("lora", "lora+iv")):
        by = 0.1 * (1 + seed) * (method == "lora+iv")
        unseen = {task: [*row[:3], row[3] / 2 + by] for task, row in GP.items()}
        where = {"method": method, "seed": seed}
        lines += cell(R, GP, **where) + general(unseen, measure="unseen wording accuracy", **where)
    about: dict[str, Any] = {"guided": ["b"], "families": {"a": "first", "b": "first", "c": "second"}}
    found = metrics.summary(table(lines), reference="lora+iv", **about)
    for method, by in (("lora", 0.0), ("lora+iv", 0.2)):
        assert of(found, "GP, reworded, guided", method)["value"] == pytest.approx(0.05 + by)
        assert of(found, "GP, reworded, unguided", method)["value"] == pytest.approx(0.15 + by)
        assert of(found, "GP, guided", method)["value"] == pytest.approx(0.1), "in the wordings that guides see"
    for name, wanted in zip(metrics.BY_WORDING, (0.0, 0.2, 0.0, 0.2), strict=True):
        row = of(found, f"{name} over lora", "lora+iv")
        assert row["value"] == pytest.approx(wanted) and row["n"] == 3
    every = metrics.comparisons(table(lines), "lora+iv", measures=metrics.BY_WORDING, **about)
    assert list(every["measure"]) == ["GP, unguided", *(name for name in metrics.BY_WORDING if name != "GP, unguided")]
    assert "GP, guided over lora" not in set(metrics.summary(study())["measure"]), "where no wording is kept back"


def test_average_performance_is_the_mean_of_the_last_row() -> None:
    assert metrics.average_performance(pd.DataFrame(R)) == pytest.approx((0.50 + 0.40 + 0.70) / 3)


def test_forgetting_is_the_fall_from_the_best_of_the_sequence_and_never_of_the_base_model() -> None:
    # The base model's 0.90 on the first task was not learned; the last task cannot have been forgotten.
    assert metrics.forgetting(pd.DataFrame(R)) == pytest.approx(((0.85 - 0.50) + (0.60 - 0.40)) / 2)
    grew = [[0.9, 0.9], [0.2, 0.1], [0.6, 0.8]]
    assert metrics.forgetting(pd.DataFrame(grew)) == pytest.approx(0.2 - 0.6), "a task may be done better later"


def test_forgetting_of_a_single_stage_is_not_measured() -> None:
    assert math.isnan(metrics.forgetting(pd.DataFrame([[0.9], [0.5]])))


def test_every_measure_of_a_cell_is_what_is_computed_by_hand() -> None:
    found = metrics.cells(table(cell(R, GP)), guided=["b"]).set_index("measure")["value"]
    gp, before = (0.5 + 0.1 + 0.3) / 3, (0.9 + 0.7 + 0.8) / 3
    expected = {
        "AP": (0.50 + 0.40 + 0.70) / 3,
        "F": (0.35 + 0.20) / 2,
        "learned": (0.80 + 0.60 + 0.70) / 3,
        "GP": gp,
        "GP change": gp - before,
        "IP": gp / 2,
        "IP change": (gp - before) / 2,
        "knowledge accuracy": gp,
        "GP, guided": 0.1,
        "GP, unguided": (0.5 + 0.3) / 2,
    }
    for measure, value in expected.items():
        assert found[measure] == pytest.approx(value), measure
    assert found["trained AP"] == found["AP"] and found["trained F"] == found["F"]


def test_tasks_without_a_statement_do_not_count_and_none_with_one_is_not_measured() -> None:
    lines = [line for line in cell(R, GP) if line[5] != "knowledge accuracy"]
    some = {"a": [0.9, 0.8, 0.6, 0.5], "b": [math.nan] * 4, "c": [0.7, 0.4, 0.4, 0.3]}
    found = metrics.cells(table(lines + general(some, measure="knowledge accuracy"))).set_index("measure")["value"]
    assert found["knowledge accuracy"] == pytest.approx(0.4)
    assert found["knowledge accuracy change"] == pytest.approx(0.4 - 0.8)
    none = {task: [math.nan] * 4 for task in some}
    frame = table(lines + general(none, measure="knowledge accuracy"))
    assert math.isnan(of(metrics.summary(frame), "knowledge accuracy")["value"])
    assert of(metrics.summary(frame), "knowledge accuracy")["n"] == 0


def test_probes_are_averaged_over_tasks_by_measure_and_heads() -> None:
    lines = cell(R, GP)
    for stage, value in enumerate([0.5, 0.4, 0.3, 0.2]):
        for task, more in (("a", 0.0), ("b", 0.2)):
            lines += [("lora", 0, stage, task, "probe", "sufficiency", "chosen", value + more, 5)]
            lines += [("lora", 0, stage, task, "probe", "sufficiency", "random", value / 10 + more, 5)]
            lines += [("lora", 0, stage, task, "probe", "zero-shot accuracy", "", value, 5)]
    found = metrics.cells(table(lines)).set_index("measure")["value"]
    assert found["probe: sufficiency, chosen heads"] == pytest.approx(0.2 + 0.1)
    assert found["probe: sufficiency, chosen heads change"] == pytest.approx(0.2 - 0.5)
    assert found["probe: sufficiency, random heads"] == pytest.approx(0.02 + 0.1)
    assert found["probe: zero-shot accuracy"] == pytest.approx(0.2)
    assert found["GP"] == pytest.approx(0.3), "probes are no general tasks"


def changed(r: Sequence[Sequence[float]], by: float) -> list[list[float]]:
    return [*map(list, r[:-1]), [value + by for value in r[-1]]]


def lowered(gp: Mapping[str, Sequence[float]], to: float) -> dict[str, list[float]]:
    """Every task ends at one accuracy."""
    return {task: [*row[:-1], to] for task, row in gp.items()}


# After the last stage: GP by method and seed (the base model has 0.8), and how far AP is from R's.
ENDS = {"lora": (0.30, 0.20, 0.40), "lora+kl": (0.50, 0.35, 0.45), "lora+iv": (0.60, 0.50, 0.40)}
SHIFTS = {"lora": (0.00, 0.01, 0.03), "lora+kl": (-0.02, 0.00, 0.02), "lora+iv": (-0.01, 0.03, 0.02)}


def study() -> pd.DataFrame:
    lines = []
    for seed in range(3):
        for method, ends in ENDS.items():
            lines += cell(changed(R, SHIFTS[method][seed]), lowered(GP, ends[seed]), method=method, seed=seed)
    return table(lines)


@pytest.mark.slow
def test_values_are_means_over_seeds_with_students_interval() -> None:
    found = of(metrics.summary(study()), "GP", "lora+iv")
    values = np.array(ENDS["lora+iv"])
    low, high = stats.t.interval(0.95, 2, loc=values.mean(), scale=values.std(ddof=1) / math.sqrt(3))
    assert (found["value"], found["low"], found["high"]) == pytest.approx((0.5, low, high))
    assert found["n"] == 3


@pytest.mark.slow
@pytest.mark.parametrize(("method", "other"), [("lora+iv", "lora"), ("lora+iv", "lora+kl"), ("lora+kl", "lora")])
def test_differences_are_paired_by_seed(method: str, other: str) -> None:
    found = metrics.summary(study())
    for measure, values in (("GP", ENDS), ("AP", SHIFTS), ("GP, unguided", ENDS)):
        difference = np.array(values[method]) - np.array(values[other])
        row = of(found, f"{measure} over {other}", method)
        low, high = stats.t.interval(0.95, 2, loc=difference.mean(), scale=stats.sem(difference))
        assert (row["value"], row["low"], row["high"]) == pytest.approx((difference.mean(), low, high)), measure
        assert row["n"] == 3
    assert of(found, f"IP over {other}", method)["value"] == pytest.approx(
        of(found, f"GP over {other}", method)["value"] / 2
    )
    forgotten = np.array(SHIFTS[other]) - np.array(SHIFTS[method])
    assert of(found, f"F over {other}", method)["value"] == pytest.approx(forgotten.mean())


@pytest.mark.slow
def test_any_two_methods_differ_by_what_is_computed_seed_by_seed() -> None:
    found = metrics.difference(study(), "lora+kl", "lora+iv").set_index("measure")
    difference = np.array(ENDS["lora+kl"]) - np.array(ENDS["lora+iv"])
    low, high = stats.t.interval(0.95, 2, loc=difference.mean(), scale=stats.sem(difference))
    assert tuple(found.loc["GP"]) == pytest.approx((difference.mean(), low, high, 3))
    assert found.loc["AP", "value"] == pytest.approx(np.mean(np.subtract(SHIFTS["lora+kl"], SHIFTS["lora+iv"])))
    with pytest.raises(IvlensError, match=r"^there is no method 'lora\+no' in this study; there are lora, "):
        metrics.difference(study(), "lora", "lora+no")


@pytest.mark.slow
def test_a_reference_is_held_against_every_other_method_and_corrected_for_all_of_that() -> None:
    frame, measures = study(), ("GP", "AP", "IP")
    found = metrics.comparisons(frame, "lora+iv", measures=measures)
    values = metrics.cells(frame).set_index(["method", "measure", "seed"])["value"].sort_index()
    p_values = {}
    for other, measure in itertools.product(("lora", "lora+kl"), measures):
        own, against = values["lora+iv", measure].to_numpy(), values[other, measure].to_numpy()
        row = found[(found["other"] == other) & (found["measure"] == measure)].iloc[0]
        p_values[other, measure] = stats.ttest_rel(own, against).pvalue
        assert row["p"] == pytest.approx(p_values[other, measure]) and row["n"] == 3
        assert row["value"] == pytest.approx((own - against).mean())
    assert len(found) == len(p_values) == 6
    below = 0.0
    for rank, (key, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        below = max(below, min(1.0, (6 - rank) * p))
        row = found[(found["other"] == key[0]) & (found["measure"] == key[1])].iloc[0]
        assert row["adjusted"] == pytest.approx(below)
    assert set(metrics.comparisons(frame, "lora")["measure"]) == set(metrics.DIFFERENCES)
    with pytest.raises(IvlensError, match=r"^there is no method 'no' in this study; there are lora, "):
        metrics.comparisons(frame, "no")


@pytest.mark.slow
def test_the_summary_has_the_p_of_every_difference_and_of_nothing_else() -> None:
    found = metrics.summary(study(), reference="lora")
    over = found["measure"].str.contains(" over ")
    assert found[~over]["p"].isna().all() and found[over]["p"].notna().all()
    iv, kl = np.array(ENDS["lora+iv"]), np.array(ENDS["lora+kl"])
    assert of(found, "GP over lora+kl", "lora+iv")["p"] == pytest.approx(stats.ttest_rel(iv, kl).pvalue)
    wanted = -of(found, "GP over lora", "lora+kl")["value"]
    assert of(found, "GP over lora+kl")["value"] == pytest.approx(wanted), "the reference is held against all"


def test_differences_that_do_not_vary_are_told_by_what_they_are() -> None:
    assert metrics.paired_p(np.array([0.0, 0.0, math.nan])) == 1.0
    assert metrics.paired_p(np.array([0.5, 0.5])) == 0.0
    assert math.isnan(metrics.paired_p(np.array([0.5, math.nan])))


@pytest.mark.slow
def test_no_method_is_compared_with_itself_and_plain_ones_with_none() -> None:
    found = metrics.summary(study())
    over = found[found["measure"].str.contains(" over ")]
    pairs = set(zip(over["method"], over["measure"].str.split(" over ").str[1], strict=True))
    assert pairs == {("lora+kl", "lora"), ("lora+iv", "lora"), ("lora+iv", "lora+kl")}


def test_a_method_is_compared_within_its_kind() -> None:
    lines = []
    for method, end in {"lora": 0.1, "ewc": 0.3, "ewc+kl": 0.4, "ewc+iv": 0.6, "lwf+iv": 0.5}.items():
        lines += cell(R, lowered(GP, end), method=method)
    found = metrics.summary(table(lines))
    assert of(found, "GP over ewc", "ewc+iv")["value"] == pytest.approx(0.3)
    assert of(found, "GP over ewc+kl", "ewc+iv")["value"] == pytest.approx(0.2)
    over = found[found["measure"].str.contains(" over |kept")]
    assert set(over["method"]) == {"ewc+kl", "ewc+iv"}, "lwf+iv has nothing to be compared with"


@pytest.mark.slow
def test_the_share_kept_is_of_what_the_unguided_method_loses_seed_by_seed() -> None:
    row = of(metrics.summary(study()), "GP kept", "lora+iv")
    kept = np.array([0.30 / 0.50, 0.30 / 0.60, 0.00 / 0.40])
    low, high = stats.t.interval(0.95, 2, loc=kept.mean(), scale=stats.sem(kept))
    assert (row["value"], row["low"], row["high"], row["n"]) == pytest.approx((kept.mean(), low, high, 3))


def test_where_nothing_was_lost_there_is_nothing_to_keep() -> None:
    lines = cell(R, lowered(GP, 0.8)) + cell(R, lowered(GP, 0.9), method="lora+iv")
    lines += cell(R, lowered(GP, 0.3), seed=1) + cell(R, lowered(GP, 0.8), method="lora+iv", seed=1)
    row = of(metrics.summary(table(lines)), "GP kept", "lora+iv")
    assert row["value"] == pytest.approx(1.0) and row["n"] == 1


def test_of_one_seed_there_is_no_interval() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = metrics.summary(table(cell(R, GP)))
    assert math.isnan(of(found, "AP")["low"]) and math.isnan(of(found, "AP")["high"]) and of(found, "AP")["n"] == 1


def test_a_summary_of_a_single_stage_has_no_forgetting() -> None:
    lines = cell([[0.1], [0.9]], {"a": [0.9, 0.5]})
    found = metrics.summary(table(lines))
    assert of(found, "AP")["value"] == 0.9 and math.isnan(of(found, "F")["value"]) and of(found, "F")["n"] == 0
