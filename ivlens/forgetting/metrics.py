"""How much was learned, how much was forgotten, and how sure is that? From a study's table of evaluations.

`R[i, j]` is the accuracy after stage i on the task that its cell learned in stage j, row 0 being the base model. Over N
stages: AP = mean_j R[N, j];  F = mean_{j<N} (max_{1<=i<N} R[i, j] - R[N, j]);  GP and IP: mean accuracy on general
tasks, which are never trained on, zero-shot with their instruction and with demonstrations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
from scipy import special

from ivlens.errors import IvlensError
from ivlens.forgetting.evaluation import UNSEEN
from ivlens.measures import holm, student_quantile

SUMMARY = ("method", "measure", "value", "low", "high", "n", "p")
DIFFERENCES = ("learned", "AP", "GP", "GP, unguided", "IP")
"""Measures in which a reference is held against the other methods, and is corrected for their number."""
COMPARED = ("AP", "F", "GP", "GP, unguided", "IP", "learned", "trained AP")
"""Measures in which methods are compared."""
BY_WORDING = ("GP, guided", "GP, reworded, guided", "GP, unguided", "GP, reworded, unguided")
"""Measures in which they are compared, too, where wordings are kept back: by what the guides have seen."""
PLAIN = "lora"
_GENERAL = {
    "GP": "instruction accuracy",
    "IP": "few-shot accuracy",
    "knowledge accuracy": "knowledge accuracy",
    "instruction probability": "instruction probability",
    "knowledge probability": "knowledge probability",
}
ALWAYS = (
    ("sequence", "accuracy"),
    ("sequence", "trained accuracy"),
    *(("general", name) for name in _GENERAL.values()),
)
"""Kinds and measures that a study has of every cell, stage and task; NaN where a task has no such prompts."""


def with_stages(evaluations: pd.DataFrame) -> pd.DataFrame:
    """The table with its column `learned`: the stage in which a task is learned in its cell; 0: in none.

    Tables of before have no such column; in them a cell's tasks stand in the order in which they are learned.
    """
    if "learned" in evaluations:
        return evaluations
    numbers: dict[tuple[Any, ...], int] = {}
    learned = evaluations[evaluations["kind"] == "sequence"]
    for cell, own in cast(Any, learned.groupby(["method", "seed"], sort=False)):
        numbers |= {(*cell, task): number for number, task in enumerate(dict.fromkeys(own["task"]), 1)}
    keys = zip(evaluations["method"], evaluations["seed"], evaluations["task"], strict=True)
    return evaluations.assign(learned=[numbers.get(key, 0) for key in keys])


def r_matrix(evaluations: pd.DataFrame, method: str, seed: int, *, measure: str = "accuracy") -> pd.DataFrame:
    """`R` of one cell: a row a stage from 0, a column a task in the order in which this cell learned them."""
    cell: Any = with_stages(_where(evaluations, method=method, seed=seed))
    chosen = _where(cell, kind="sequence", measure=measure)
    order = list(dict.fromkeys(chosen.sort_values("learned", kind="stable")["task"]))
    return chosen.pivot(index="stage", columns="task", values="value")[order]


def average_performance(r: pd.DataFrame) -> float:
    """AP: mean accuracy on all tasks after the last stage."""
    return float(r.iloc[-1].mean())


def forgetting(r: pd.DataFrame) -> float:
    """F: how far the tasks before the last have fallen from their best, on average; NaN for a single stage.

    Never of stage 0: what the base model could do was not learned in the sequence.
    """
    learned = r.iloc[1:, :-1].to_numpy()
    if len(learned) < 2:
        return float("nan")
    return float((learned[:-1].max(0) - learned[-1]).mean())


def cells(
    evaluations: pd.DataFrame, *, guided: Sequence[str] = (), families: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """One line a cell and measure (`method`, `seed`, `measure`, `value`), after the last stage.

    `... change` is from the base model. `GP, guided` is of the general tasks whose vectors guide, `GP, unguided` of
    those in whose family there is none of them; `GP, reworded, ...` in the wordings that are kept back, if any.

    Args:
        families: Of general tasks, by their names; one that is not in it is a family of its own.
    """
    family = families or {}
    seen = {family.get(task, task) for task in guided}
    unguided = {task for task in evaluations["task"].unique() if family.get(task, task) not in seen}
    lines, groups = [], cast(Any, with_stages(evaluations).groupby(["method", "seed"], sort=False))
    for (method, seed), cell in groups:
        for measure, value in _of_cell(cell, method, seed, {"guided": set(guided), "unguided": unguided}):
            lines.append((method, seed, measure, value))
    return pd.DataFrame(lines, columns=["method", "seed", "measure", "value"])


def _of_cell(cell: Any, method: str, seed: int, parts: Mapping[str, set[str]]) -> Iterator[tuple[str, float]]:
    for prefix, measure in (("", "accuracy"), ("trained ", "trained accuracy")):
        r = r_matrix(cell, method, seed, measure=measure)
        yield f"{prefix}AP", average_performance(r)
        yield f"{prefix}F", forgetting(r)
        yield f"{prefix}learned", float(np.diag(r.to_numpy()[1:]).mean())
    last = int(cell["stage"].max())
    general = _where(cell, kind="general")
    for name, measure in _GENERAL.items():
        by_stage = _where(general, measure=measure).groupby("stage")["value"].mean()
        yield name, float(by_stage[last])
        yield f"{name} change", float(by_stage[last] - by_stage[0])
    for form, measure in {"GP": _GENERAL["GP"], "IP": _GENERAL["IP"], "GP, reworded": UNSEEN}.items():
        asked = _where(general, measure=measure, stage=last)
        for name, tasks in parts.items() if len(asked) else ():
            yield f"{form}, {name}", float(asked[asked["task"].isin(tasks)]["value"].mean())
    yield from _of_probes(_where(cell, kind="probe"), last)


def _of_probes(probed: Any, last: int) -> Iterator[tuple[str, float]]:
    before, after = (
        _where(probed, stage=stage).groupby(["measure", "heads"], sort=False)["value"].mean() for stage in (0, last)
    )
    for (measure, heads), value in after.items():
        named = {"": "", "unscaled": ", scale 1", "own": ", own vector"}
        name = measure + named.get(heads, f", {heads} heads")
        yield f"probe: {name}", float(value)
        # A study that an older version began has not measured everything of the base model.
        yield f"probe: {name} change", float(value - before.get((measure, heads), np.nan))


def _where(frame: Any, **values: Any) -> Any:
    """The lines that have these values in their columns."""
    for column, value in values.items():
        frame = frame[frame[column] == value]
    return frame


def summary(
    evaluations: pd.DataFrame,
    *,
    guided: Sequence[str] = (),
    families: Mapping[str, str] | None = None,
    reference: str | None = None,
) -> pd.DataFrame:
    """Mean over seeds with Student's 95 % interval, and what each method has over the plain one of its kind.

    Beside the measures of `cells`, for every guided method: `... over METHOD`, the difference from the same method
    without guidance, and `... over METHOD+kl`, from plain distillation, each paired by seed; and `GP kept`, the
    share of the GP that the unguided method loses. Of the `reference`, if any, the difference from every other method.

    Returns:
        Columns `method`, `measure`, `value`, `low`, `high`, `n` (seeds) and `p`: of the paired t-test of a difference,
        not corrected for the number of differences; NaN of everything else.
    """
    found = cells(evaluations, guided=guided, families=families)
    table = _by_seed(found)
    lines: list[tuple[Any, ...]] = [(*key, *_interval(table[key].to_numpy()), np.nan) for key in table.columns]
    methods = list(dict.fromkeys(found["method"]))
    for method in methods:
        base = method.partition("+")[0]
        others = methods if method == reference else [base, f"{base}+kl"] if "+" in method else []
        for other in others:
            if other in methods and other != method:
                for measure, *found in _pair(table, method, other):
                    lines.append((method, f"{measure} over {other}", *found))
        if "+" in method and base in methods:
            lost = -table[base, "GP change"].to_numpy()
            kept = (table[method, "GP"] - table[base, "GP"]).to_numpy() / np.where(lost > 0, lost, np.nan)
            lines.append((method, "GP kept", *_interval(kept), np.nan))
    return pd.DataFrame(lines, columns=list(SUMMARY))


def difference(
    evaluations: pd.DataFrame,
    method: str,
    other: str,
    *,
    guided: Sequence[str] = (),
    families: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """How much one method has over another, paired by seed, with Student's 95 % interval.

    Returns:
        Columns `measure`, `value`, `low`, `high`, `n` (seeds).

    Raises:
        IvlensError: one of them is not in the table.
    """
    _refuse_unknown(evaluations, method, other)
    both: Any = evaluations[evaluations["method"].isin([method, other])]
    table = _by_seed(cells(both, guided=guided, families=families))
    found = [line[:-1] for line in _pair(table, method, other)]
    return pd.DataFrame(found, columns=["measure", "value", "low", "high", "n"])


def comparisons(
    evaluations: pd.DataFrame,
    reference: str,
    *,
    guided: Sequence[str] = (),
    families: Mapping[str, str] | None = None,
    measures: Sequence[str] = DIFFERENCES,
) -> pd.DataFrame:
    """How much a method has over each of the others, corrected for the number of differences that are looked at.

    All of these differences, other methods times measures, are one family: a difference whose `adjusted` is below 0.05
    is clear of 0 so that the chance of a single false one among them is at most that.

    Returns:
        Columns `other`, `measure`, `value`, `low`, `high`, `n` (seeds), `p` of the paired t-test and `adjusted`, Holm's
        p. Intervals are those of one difference alone.

    Raises:
        IvlensError: there is no such method.
    """
    _refuse_unknown(evaluations, reference)
    found = cells(evaluations, guided=guided, families=families)
    table, others = _by_seed(found), [one for one in dict.fromkeys(found["method"]) if one != reference]
    lines = [(other, *line) for other in others for line in _pair(table, reference, other) if line[0] in measures]
    frame = pd.DataFrame(lines, columns=["other", "measure", "value", "low", "high", "n", "p"])
    return frame.assign(adjusted=holm(frame["p"].to_numpy(float)))


def _refuse_unknown(evaluations: pd.DataFrame, *methods: str) -> None:
    known = list(dict.fromkeys(evaluations["method"]))
    for one in methods:
        if one not in known:
            raise IvlensError(f"there is no method {one!r} in this study; there are {', '.join(known)}")


def _by_seed(found: Any) -> Any:
    """A row a seed, a column a method and measure."""
    return found.pivot(index="seed", columns=["method", "measure"], values="value")


def _pair(table: Any, method: str, other: str) -> Iterator[tuple[str, float, float, float, int, float]]:
    by_wording = BY_WORDING if (method, BY_WORDING[1]) in table else ()
    for measure in dict.fromkeys((*COMPARED, *by_wording)):
        differences = (table[method, measure] - table[other, measure]).to_numpy()
        yield measure, *_interval(differences), paired_p(differences)


def paired_p(differences: np.ndarray) -> float:
    """p of the paired t-test that differences, one a seed, are 0 on average; NaN of fewer than two."""
    differences = differences[~np.isnan(differences)]
    n, mean = len(differences), float(differences.mean()) if len(differences) else 0.0
    if n < 2:
        return float("nan")
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * special.stdtr(n - 1, -abs(mean) / error))


def over_seeds(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean of `value` over seeds, one row a seed, with Student's 95 % interval, for each of what `by` tells apart.

    Returns:
        Columns `by`, `value`, `low`, `high`, `n` (seeds).
    """
    groups = frame.groupby(list(by), sort=False)["value"]
    lines = [(*key, *_interval(values.to_numpy(float))) for key, values in groups]  # pyright: ignore[reportGeneralTypeIssues]
    return pd.DataFrame(lines, columns=[*by, "value", "low", "high", "n"])


def clip_intervals(table: Any, within: tuple[Any, float]) -> Any:
    """Student's interval knows nothing of where a share or a cosine ends."""
    return table.assign(low=np.clip(table["low"], *within), high=np.clip(table["high"], *within))


def _interval(values: np.ndarray) -> tuple[float, float, float, int]:
    """Mean over seeds and Student's 95 % interval; of a single seed no interval."""
    values = values[~np.isnan(values)]
    if (n := len(values)) < 2:
        return float(values[0]) if n else float("nan"), float("nan"), float("nan"), n
    mean = float(values.mean())
    half = student_quantile(0.975, n - 1) * (float(values.std(ddof=1)) / math.sqrt(n))
    return mean, mean - half, mean + half, n
