"""What does the base model's vector bring back, stage by stage, and what do the model's own and random heads' bring?

Accuracy on the probes of a study: queries alone, with the instruction and with demonstrations; without a vector, with
the base model's, with what the same heads write in the tuned model, and with those of random heads, each at the base
model's layer and scale. Queries alone are not the form that was trained.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ivlens.forgetting import metrics
from ivlens.forgetting.figures import (
    CELL,
    Findings,
    Frame,
    dots,
    figure_title,
    last_stage,
    some_methods,
)
from ivlens.forgetting.method_run import PROBE_BOUNDS
from ivlens.measures import Interval, student_quantile
from ivlens.plots.stages import stage_panels, stage_points
from ivlens.plots.style import LOOKS, NAMES, Width, hollow
from ivlens.tables import interval_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

CORRELATED = "Intervals are for other probes and for other stages and seeds: the sum of both variances."
BOUNDS = ("value", "low", "high")
SIMILARITY = ("method", "seed", "stage", "task", "cosine", "accuracy")
_ASKED = ("instruction accuracy", "few-shot accuracy")
RECOVERY = ("method", "prompts", "vector", "stage", "value", "low", "high", "n")
PROMPTS = {"query alone": "zero-shot", "instruction": "instruction", "demonstrations": "few-shot"}
"""What is asked, and what its measures are called."""
VECTORS = {"no vector": "", "base vector": "chosen", "own vector": "own", "random heads": "random"}
"""What is added, and whose measures they are."""
COSINE = "cosine"
"""Of the base model's vector and the tuned model's own; it stands among the prompts."""
_PANELS = {
    "query alone": "zero-shot",
    "instruction": NAMES["instructed"],
    "demonstrations": "few-shot",
    COSINE: "cosine, base and own",
}
_INSTRUCTED = "instruction in place of a vector"
_LOOKS = {
    "no vector": LOOKS["none"],
    "base vector": LOOKS["chosen"],
    "own vector": LOOKS["own"],
    "random heads": LOOKS["random"],
}

_AFTER = {
    "base": hollow(LOOKS["none"]),
    "tuned": LOOKS["none"],
    "tuned + base vector": LOOKS["chosen"],
    "tuned + base vector, scale 1": LOOKS["unscaled"],
    "tuned + random vector": LOOKS["random"],
}


def by_stage(evaluations: pd.DataFrame) -> pd.DataFrame:
    """Accuracy with each vector on each form of prompts, and the cosine of the vectors, after every stage.

    Means over probes and then over seeds with Student's 95 % interval, which ends where an accuracy or a cosine does;
    of one seed the interval over queries and over draws of random heads, where it was kept.

    Returns:
        Columns `method`, `prompts`, `vector`, `stage`, `value`, `low`, `high`, `n` (seeds); what was not measured has
        no row.
    """
    parts = [
        _one(evaluations, f"{'steered ' if heads else ''}{kind} accuracy", heads, prompts, vector)
        for prompts, kind in PROMPTS.items()
        for vector, heads in VECTORS.items()
    ]
    parts.append(_one(evaluations, "cosine", "chosen", COSINE, "own vector"))
    found = [part for part in parts if len(part)]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=list(RECOVERY))


def _one(evaluations: Frame, measure: str, heads: str, prompts: str, vector: str) -> Frame:
    lines = evaluations[(evaluations["measure"] == measure) & (evaluations["heads"] == heads)]
    probed = lines[lines["kind"] == "probe"].dropna(subset="value")
    if probed.empty and not heads:  # Older tables have demonstrations on other queries of the same tasks.
        tasks = evaluations[evaluations["kind"] == "probe"]["task"].unique()
        probed = lines[(lines["kind"] == "general") & lines["task"].isin(tasks)]
    cells = probed.groupby(CELL, sort=False, as_index=False)["value"].mean()
    table: Frame = metrics.over_seeds(cells, ["method", "stage"])
    if evaluations["seed"].nunique() == 1 and len(table):
        low, high = (lines[lines["kind"] == kind].set_index(["method", "stage"])["value"] for kind in PROBE_BOUNDS)
        at = pd.MultiIndex.from_frame(table[["method", "stage"]])
        table = table.assign(low=low.reindex(at).to_numpy(), high=high.reindex(at).to_numpy())
    table = metrics.clip_intervals(table, (-1.0 if prompts == COSINE else 0.0, 1.0))
    return table.assign(prompts=prompts, vector=vector)[list(RECOVERY)]


def similarity(evaluations: pd.DataFrame) -> pd.DataFrame:
    """How alike base and own vector are, and how well the task is done: a row for every probe after every stage.

    Accuracy is with the instruction or with demonstrations, whichever the base model is better at. Stage 0, where the
    vectors are one and the same, is left out.

    Returns:
        Columns `method`, `seed`, `stage`, `task`, `cosine`, `accuracy`.
    """
    of_probes: Frame = evaluations[evaluations["kind"] == "probe"]
    probes = of_probes.dropna(subset="value")
    asked = probes[(probes["heads"] == "") & probes["measure"].isin(_ASKED)]
    base = asked[asked["stage"] == 0].groupby("measure")["value"].mean()
    chosen = asked[asked["measure"] == base.idxmax()] if len(base) else asked
    cosines = probes[(probes["measure"] == COSINE) & (probes["heads"] == "chosen") & (probes["stage"] > 0)]
    each, place = cosines.rename(columns={"value": "cosine"}), [*CELL, "task"]
    both = each.merge(chosen.rename(columns={"value": "accuracy"})[[*place, "accuracy"]], on=place)
    return both[list(SIMILARITY)].reset_index(drop=True)


def correlations(points: pd.DataFrame) -> pd.DataFrame:
    """Correlation of cosine and accuracy by method, with an interval for other tasks and for other stages and seeds.

    Args:
        points: As `similarity` gives them.

    Returns:
        Columns `method` (and `all`, where there are several), `value`, `low`, `high`, `tasks`, `n` (points).
    """
    lines, by_method = [], list(points.groupby("method", sort=False))
    for method, own in [*by_method, *([("all", points)] if len(by_method) > 1 else [])]:
        columns = (own[name].to_numpy() for name in ("cosine", "accuracy", "task"))
        cells = own.groupby(["seed", "stage"]).ngroup().to_numpy()  # What a stage does, it does to all tasks.
        lines.append((method, *correlation(*columns, cells), own["task"].nunique(), len(own)))
    return pd.DataFrame(lines, columns=["method", "value", "low", "high", "tasks", "n"])


def figures(found: Findings, *, width: Width = "page") -> dict[str, go.Figure]:
    """By file name, what comes back stage by stage and after the last stage, where there are probes."""
    drawn = {
        "recovery-by-stage": _stage_by_stage(found, width),
        "recovery": _after_last(found, width),
        "similarity": _similarity(found, width),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _stage_by_stage(found: Findings, width: Width) -> go.Figure | None:
    """A row of panels a method: each form of prompts, and the cosine; None where there are no probes.

    What the instruction gives stands beside what vectors give to queries alone.
    """
    table: Frame = by_stage(found.evaluations)
    if table.empty:
        return None
    shown, left_out = some_methods(list(dict.fromkeys(table["method"])))
    table = table[table["method"].isin(shown)]
    instead = table[(table["prompts"] == "instruction") & (table["vector"] == "no vector")]
    table = pd.concat([table, instead.assign(prompts="query alone", vector=_INSTRUCTED)])
    order = {name: place for place, name in enumerate([*shown, *_PANELS])}
    table = table.sort_values(["method", "prompts"], key=lambda names: names.map(order), kind="stable")
    table = table.rename(columns={"method": "row", "vector": "line"}).assign(panel=table["prompts"].map(_PANELS))
    probes = found.evaluations[found.evaluations["kind"] == "probe"]
    what, has_bands = f"Recovery by stage: accuracy on probes with a vector added{left_out}", table["low"].notna().any()
    title = figure_title(found, what, probes, over_queries=bool(has_bands))
    pale = {_INSTRUCTED: "no vector"}
    return stage_panels(
        table, unit="accuracy, cosine", bounds=(-0.03, 1.03), looks=_LOOKS, pale=pale, title=title, width=width
    )


def _similarity(found: Findings, width: Width) -> go.Figure | None:
    """Of the methods that are shown, each with its correlation; the follow-up of the paper has such a figure."""
    points: Frame = similarity(found.evaluations)
    if points.empty:
        return None
    shown, left_out = some_methods(list(dict.fromkeys(points["method"])))
    points = points[points["method"].isin(shown)]
    names = {
        line["method"]: f"{line['method']}: r {interval_text(*(line[key] for key in BOUNDS), digits=2)}"
        for line in correlations(points).to_dict("records")
    }
    what = f"Accuracy against the cosine of the vectors{left_out}; r with 95 % intervals over tasks and stages"
    title = figure_title(found, what, points, interval=False)
    table = points.rename(columns={"cosine": "x", "accuracy": "y"})
    axes = ("cosine of the own vector and the base model's", "accuracy")
    return stage_points(table, names=names, axes=axes, title=title, width=width)


def _after_last(found: Findings, width: Width) -> go.Figure | None:
    probes, last = found.evaluations[found.evaluations["kind"] == "probe"], last_stage(found)
    panels, parts = {_PANELS[prompts]: PROMPTS[prompts] for prompts in ("instruction", "query alone")}, []
    for panel, kind in panels.items():
        plain, steered = f"{kind} accuracy", f"steered {kind} accuracy"
        for line, measure, heads, stage in (
            ("base", plain, "", 0),
            ("tuned", plain, "", last),
            ("tuned + base vector", steered, "chosen", last),
            ("tuned + base vector, scale 1", steered, "unscaled", last),
            ("tuned + random vector", steered, "random", last),
        ):
            own = probes[(probes["measure"] == measure) & (probes["heads"] == heads) & (probes["stage"] == stage)]
            parts.append(own.assign(line=line, measure=panel))
    title = figure_title(found, "Accuracy with the base model's vector added", probes)
    return dots(pd.concat(parts), dict.fromkeys(panels, "accuracy"), _AFTER, title, within=(0.0, 1.0), width=width)


def correlation(x: np.ndarray, y: np.ndarray, *groupings: np.ndarray) -> Interval:
    """Pearson's, with a 95 % interval for other groups of samples, by the jackknife over them on Fisher's scale.

    Variances over several groupings (by task, say, and by stage) are added, which counts twice what they share; degrees
    of freedom are those of the fewest groups. NaN where nothing varies, or a grouping is of a single group.
    """
    whole, variance, fewest = _fisher(x, y), 0.0, len(x)
    for groups in groupings:
        others = np.array([_fisher(x[groups != one], y[groups != one]) for one in np.unique(groups)])
        variance += (1 - 1 / len(others)) * np.square(others - np.mean(others)).sum()
        fewest = min(fewest, len(others))
    half = student_quantile(0.975, fewest - 1) * math.sqrt(variance) if fewest > 1 else math.nan
    return Interval(*np.tanh([whole, whole - half, whole + half]).tolist())


def _fisher(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < 3 or not (np.ptp(x) and np.ptp(y)):
        return math.nan
    return float(np.arctanh(np.clip(np.corrcoef(x, y)[0, 1], 1e-12 - 1, 1 - 1e-12)))
