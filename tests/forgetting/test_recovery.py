"""What comes back by stage: the numbers of the table of evaluations, with intervals, and a gap where there is none."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ivlens.forgetting import recovery, tables
from ivlens.forgetting.method_run import EVALUATIONS
from ivlens.forgetting.plan import Plan
from ivlens.plots.style import LOOKS

METHODS = ("lora", "lora+iv", "lora+kl", "ewc")
TASKS = ("antonym", "singular-plural")
ASKED = (
    ("zero-shot accuracy", ""),
    ("steered zero-shot accuracy", "chosen"),
    ("steered zero-shot accuracy", "own"),
    ("steered zero-shot accuracy", "random"),
    ("instruction accuracy", ""),
    ("steered instruction accuracy", "chosen"),
    ("few-shot accuracy", ""),
    ("cosine", "chosen"),
)


def evaluations(seeds=(0, 1, 2), asked=ASKED, bounds=False) -> pd.DataFrame:
    """Every line has a number of its own; general tasks have others than the probes."""
    rows = []
    for (m, method), seed, stage, (n, task), (k, key) in itertools.product(
        enumerate(METHODS), seeds, range(3), enumerate(TASKS), enumerate(asked)
    ):
        value = 0.9 - 0.1 * stage - 0.01 * k - 0.003 * m - 0.05 * n + 0.02 * seed * (stage > 0)
        rows.append((method, seed, stage, task, "probe", *key, value, 20))
    for method, seed, stage in itertools.product(METHODS, seeds, range(3)):
        for task, value in (("antonym", 0.5), ("singular-plural", 0.7), ("synonym", 0.1)):
            rows.append((method, seed, stage, task, "general", "few-shot accuracy", "", value - 0.1 * stage, 8))
        if bounds:
            for kind, end in (("probe low", 0.4), ("probe high", 1.0)):
                rows.append((method, seed, stage, "", kind, "steered zero-shot accuracy", "chosen", end, 40))
    return pd.DataFrame(rows, columns=list(EVALUATIONS))


class Findings:
    """What a study hands over."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.evaluations, self.grids = table, pd.DataFrame()
        self.plan = Plan(name="tiny", tasks=("class-letter", "kind-form"), methods=METHODS)
        self.recovery, self.summary, self.unmeasured = recovery.by_stage(table), pd.DataFrame(), {}
        self.similarity = recovery.similarity(table)


def line(table: pd.DataFrame, prompts: str, vector: str, method: str = "lora") -> pd.DataFrame:
    own = table[(table["method"] == method) & (table["prompts"] == prompts) & (table["vector"] == vector)]
    return own.set_index("stage")


@pytest.mark.slow
def test_a_number_is_the_mean_over_probes_and_its_interval_is_over_seeds():
    frame = evaluations()
    found = line(recovery.by_stage(frame), "query alone", "base vector", "lora+kl")
    assert list(found.index) == [0, 1, 2]
    for stage in range(3):
        own = frame.query("method == 'lora+kl' and stage == @stage and kind == 'probe'")
        own = own[(own["measure"] == "steered zero-shot accuracy") & (own["heads"] == "chosen")]
        by_seed = own.groupby("seed")["value"].mean().to_numpy()
        half = stats.t.ppf(0.975, 2) * by_seed.std(ddof=1) / math.sqrt(3)
        told = found.loc[stage]
        assert told["value"] == pytest.approx(by_seed.mean()) and told["n"] == 3
        assert (told["low"], told["high"]) == pytest.approx((by_seed.mean() - half, by_seed.mean() + half))


@pytest.mark.slow
def test_of_one_seed_the_interval_is_the_one_that_was_kept():
    table = recovery.by_stage(evaluations(seeds=(4,), bounds=True))
    assert line(table, "query alone", "base vector")[["low", "high"]].to_numpy().tolist() == [[0.4, 1.0]] * 3
    assert line(table, "query alone", "own vector")[["low", "high"]].isna().all(axis=None), "none was kept"
    text = [
        cell
        for part in next(tables.recovery_tables(Findings(evaluations((4,), bounds=True)), ["lora"])).parts
        for cell in part
    ]
    assert text[0][2] == "0.86 [0.40, 1.00]"


@pytest.mark.slow
def test_the_table_says_half_of_students_interval_though_it_ends_at_1():
    found = Findings(evaluations(asked=[("zero-shot accuracy", ""), ("steered zero-shot accuracy", "chosen")]))
    row = line(found.recovery, "query alone", "no vector").loc[1]
    high = Findings(found.evaluations.assign(value=found.evaluations["value"] + 0.99 - row["value"]))
    there = line(high.recovery, "query alone", "no vector").loc[1]
    assert there["high"] == 1.0 and there["low"] == pytest.approx(0.99 - (row["value"] - row["low"]))
    (table,) = tables.recovery_tables(high, ["lora"])
    assert table.parts[0][1][1] == f"0.990 ±{row['value'] - row['low']:.3f}"


@pytest.mark.slow
def test_the_title_says_whose_intervals_the_bands_of_one_seed_are():
    for bounds, said in ((False, "1 seed, no intervals"), (True, "1 seed, 95 % intervals over queries")):
        figure = recovery.figures(Findings(evaluations(seeds=(0,), bounds=bounds)))["recovery-by-stage"]
        assert figure.layout.title.text.replace("<br>", " ").endswith(said)


@pytest.mark.slow
def test_what_was_not_measured_is_a_gap_and_never_0():
    asked = [key for key in ASKED if key[1] != "own"]
    found = Findings(evaluations(asked=asked))
    assert line(found.recovery, "query alone", "own vector").empty
    (table,) = tables.recovery_tables(found, ["lora"])
    assert [row[3] for row in table.parts[0]] == ["not measured"] * 3
    figure = recovery.figures(found)["recovery-by-stage"]
    assert all(trace.xaxis == "x4" for trace in figure.data if trace.name == "own vector" and trace.yaxis == "y4")
    first = [trace for trace in figure.data if (trace.xaxis or "x") == "x"]
    assert "own vector" not in {trace.name for trace in first}


@pytest.mark.slow
def test_older_tables_have_demonstrations_on_the_same_general_tasks():
    table = recovery.by_stage(evaluations(asked=[key for key in ASKED if key[0] != "few-shot accuracy"]))
    assert line(table, "demonstrations", "no vector")["value"].tolist() == pytest.approx([0.6, 0.5, 0.4])
    own = line(recovery.by_stage(evaluations()), "demonstrations", "no vector")["value"]
    assert own[0] == pytest.approx(0.9 - 0.06 - 0.025), "the probe's own where it was asked"


@pytest.mark.slow
def test_the_figure_says_how_many_methods_it_leaves_out_and_draws_the_tables_numbers():
    found = Findings(evaluations())
    figure = recovery.figures(found)["recovery-by-stage"]
    assert "(3 of 4 methods)" in figure.layout.title.text.replace("<br>", " ")
    panels = [note.text for note in figure.layout.annotations]
    assert panels == ["zero-shot", "with the instruction", "few-shot", "cosine, base and own"] * 3
    sides = [axis.title.text for axis in figure.select_yaxes() if axis.title.text]
    assert sides == [f"{method}<br>accuracy, cosine" for method in METHODS[:3]]
    for row, method in enumerate(METHODS[:3]):
        for column, prompts in enumerate([*recovery.PROMPTS, recovery.COSINE]):
            axis = "x" if row + column == 0 else f"x{4 * row + column + 1}"
            for trace in figure.data:
                if (trace.xaxis or "x") == axis and trace.name in recovery.VECTORS:
                    assert trace.y == pytest.approx(line(found.recovery, prompts, trace.name, method)["value"])
    (beside,) = (trace for trace in figure.data if trace.name == recovery._INSTRUCTED and (trace.xaxis or "x") == "x")
    assert beside.y == pytest.approx(line(found.recovery, "instruction", "no vector")["value"])
    assert beside.line.dash == "dot" and beside.line.color == LOOKS["none"].colour


@pytest.mark.slow
def test_no_band_leaves_what_an_accuracy_can_be():
    frame = evaluations(seeds=(0, 1))
    frame.loc[frame["seed"] == 1, "value"] *= 0.1
    figure = recovery.figures(Findings(frame))["recovery-by-stage"]
    bands = [trace for trace in figure.data if trace.fill and trace.xaxis not in ("x4", "x8", "x12")]
    ends = np.array([y for band in bands for y in band.y if y is not None])
    assert len(ends) and ends.min() == 0 and ends.max() <= 1
    low, high = figure.layout.yaxis.range
    assert low < min(y for trace in figure.data for y in trace.y if y is not None) and high > 1


@pytest.mark.slow
def test_without_probes_there_is_no_table_and_no_figure():
    found = Findings(evaluations().query("kind == 'general'"))
    assert found.recovery.empty and list(found.recovery.columns) == list(recovery.RECOVERY)
    assert not recovery.figures(found) and not list(tables.recovery_tables(found, METHODS))


def test_accuracy_stands_beside_the_cosine_of_its_own_probe_and_stage():
    table = evaluations()
    points = recovery.similarity(table)
    assert len(points) == len(METHODS) * 3 * len(TASKS) * 2 and set(points["stage"]) == {1, 2}
    probes = table[table["kind"] == "probe"].set_index(["method", "seed", "stage", "task", "measure", "heads"])["value"]
    for row in points.itertuples():
        key = (row.method, row.seed, row.stage, row.task)
        # In the base model instructed accuracy is above that with demonstrations.
        assert (
            row.cosine == probes[*key, "cosine", "chosen"] and row.accuracy == probes[*key, "instruction accuracy", ""]
        )
    better = table.replace({"instruction accuracy": "few-shot accuracy", "few-shot accuracy": "instruction accuracy"})
    assert recovery.similarity(better)["accuracy"].equals(points["accuracy"]), "whatever it is called"
    assert recovery.similarity(table[table["kind"] == "general"]).empty


@pytest.mark.slow
def test_a_correlation_is_told_of_every_method_and_of_all_and_drawn_beside_its_points():
    found = Findings(evaluations())
    lines = recovery.correlations(found.similarity).set_index("method")
    assert list(lines.index) == [*METHODS, "all"] and lines.loc["all", "n"] == len(found.similarity)
    own = found.similarity.query("method == 'lora+iv'")
    assert lines.loc["lora+iv", "value"] == pytest.approx(np.corrcoef(own["cosine"], own["accuracy"])[0, 1])
    figure = recovery.figures(found)["similarity"]
    assert [len(trace.x) for trace in figure.data] == [12] * 3 and figure.data[0].name.startswith("lora: r ")
    assert list(figure.data[0].y) == list(found.similarity.query("method == 'lora'")["accuracy"])
    (table,) = tables.correlation_table(found)
    assert [row[0] for row in table.parts[0]] == [*METHODS, "all"]
    assert not list(tables.correlation_table(Findings(evaluations().query("kind == 'general'"))))


def test_a_correlation_has_the_jackknifes_interval_over_groups() -> None:
    generator = np.random.default_rng(0)
    groups = np.repeat(["a", "b", "c"], 5)
    x = generator.normal(size=15)
    y = x + generator.normal(size=15)
    found = recovery.correlation(x, y, groups)
    assert found.mean == pytest.approx(stats.pearsonr(x, y)[0])
    z = [math.atanh(stats.pearsonr(x[groups != one], y[groups != one])[0]) for one in "abc"]
    error = math.sqrt(2 / 3 * sum((one - sum(z) / 3) ** 2 for one in z))
    half = stats.t.ppf(0.975, 2) * error
    assert (found.low, found.high) == pytest.approx(tuple(np.tanh(math.atanh(found.mean) + np.array([-half, half]))))


@pytest.mark.slow
@pytest.mark.parametrize("groupings", [1, 2])
def test_the_interval_of_a_correlation_covers_that_of_other_groups(groupings: int) -> None:
    """Groups differ in both means, so that samples of one are no independent evidence."""
    generator, root = np.random.default_rng(1), np.linalg.cholesky([[1.0, 0.6], [0.6, 1.0]])
    groups, covered = (np.repeat(np.arange(4), 6), np.tile(np.arange(6), 4))[:groupings], 0
    for _ in range(400):
        found = generator.normal(size=(24, 2)) + sum(generator.normal(size=(6, 2))[group] for group in groups)
        _, low, high = recovery.correlation(*(found @ root.T).T, *groups)
        covered += low <= 0.6 <= high
    assert covered / 400 >= 0.93


def test_without_variation_or_a_second_group_there_is_no_correlation_or_no_interval() -> None:
    x, groups = np.arange(6.0), np.array(list("aabbcc"))
    assert all(map(math.isnan, recovery.correlation(x, np.ones(6), groups)))
    found = recovery.correlation(x, x[[1, 0, 2, 4, 3, 5]], np.full(6, "a"))
    assert found.mean > 0.8 and math.isnan(found.low) and math.isnan(found.high)
    assert recovery.correlation(x, 2 * x, groups) == pytest.approx((1.0, 1.0, 1.0))
