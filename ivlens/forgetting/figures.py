"""Which figures does a study have, and which of its numbers are in them?

Numbers are means over tasks in every cell, then over seeds with Student's 95 % interval. A figure whose numbers were
not measured is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from ivlens.forgetting import metrics
from ivlens.forgetting.evaluation import UNSEEN
from ivlens.forgetting.plan import Plan
from ivlens.plots.methods import Form, method_dots, trade_off
from ivlens.plots.stage_heatmaps import accuracy_heatmaps, aie_heatmaps
from ivlens.plots.stages import stage_panels
from ivlens.plots.style import LOOKS, NAMES, Look, Width, hollow, method_looks, without_weight

if TYPE_CHECKING:
    import plotly.graph_objects as go

Frame = Any
"""A `pd.DataFrame`; the annotations of pandas lose track of it at the first selection."""
CELL = ["method", "seed", "stage"]
MOST_SHOWN = 3
"""Methods of a figure that has a row of panels for each."""
_GENERAL = {"GP": "instruction accuracy", "IP": "few-shot accuracy"}
_SHARE = (-0.03, 1.03)
"""Of an axis of accuracies or probabilities."""
_KNOWLEDGE = ("instruction probability", "knowledge probability", "instruction accuracy", "knowledge accuracy")
_PALE = {"instruction accuracy": "instruction probability", "knowledge accuracy": "knowledge probability"}
_SUMMARY = {
    "AP": "accuracy, learned tasks",
    "F": "accuracy forgotten",
    "GP": "accuracy, general tasks",
    "IP": "accuracy, few-shot",
}
_WORDINGS = {"learned": "accuracy, new tasks"} | dict.fromkeys(metrics.BY_WORDING, "accuracy, general tasks")
_BY_WORDING = "What the guides have seen and what not, after the last stage (dashed: base model, all tasks)"
_DEPENDENCE = {"sufficiency": "change of P(answer)", "necessity": "loss of P(answer)", "shift": "KL (nats)"}
_LINES = {
    "tasks learned so far": LOOKS["learned tasks"],
    f"general tasks, {NAMES['instructed']} (GP)": LOOKS["instructed"],
    "general tasks, few-shot (IP)": LOOKS["few-shot"],
    "instruction probability": LOOKS["instructed"],
    "knowledge probability": LOOKS["statement"],
}
_SIDES = {
    f"{heads} heads, {side}": look
    for heads in ("chosen", "random")
    for side, look in (("before", hollow(LOOKS[heads])), ("after", LOOKS[heads]))
}


@runtime_checkable
class Findings(Protocol):
    """What a `Study` holds, so far as it is drawn here."""

    @property
    def evaluations(self) -> Frame: ...
    @property
    def grids(self) -> Frame: ...
    @property
    def plan(self) -> Plan: ...


def figures(found: Findings, summary: Frame, *, width: Width = "page") -> dict[str, go.Figure]:
    """Every figure of a study and its summary by file name, those whose numbers were measured."""
    measures = set(summary["measure"])
    drawn = {
        "accuracy": _accuracy(found, width),
        "r-matrix": _r_matrix(found, width),
        "instruction-knowledge": _instruction_knowledge(found, width),
        "dependence": _dependence(found, width),
        "drift": _drift(found, width),
        "aie": _aie(found, width),
        "methods": _methods(found, summary, _SUMMARY, "After the last stage (dashed: base model)", width),
        "wordings": _methods(found, summary, _WORDINGS, _BY_WORDING, width)
        if metrics.BY_WORDING[1] in measures
        else None,
        "trade-off": _trade_off(found, summary, width),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _accuracy(found: Findings, width: Width) -> go.Figure | None:
    learned = metrics.with_stages(found.evaluations).query("kind == 'sequence' and measure == 'accuracy'")
    lines = {"tasks learned so far": learned[learned["stage"] >= learned["learned"]]}
    general = found.evaluations[found.evaluations["kind"] == "general"]
    lines |= {
        f"general tasks, {label} ({name})": general[general["measure"] == _GENERAL[name]]
        for name, label in (("GP", NAMES["instructed"]), ("IP", "few-shot"))
    }
    title = figure_title(found, "Accuracy by stage, mean over tasks")
    return _by_stage({name: _cells(own) for name, own in lines.items()}, title, "accuracy", bounds=_SHARE, width=width)


def _instruction_knowledge(found: Findings, width: Width) -> go.Figure | None:
    """Of the same tasks: those that have a statement, where any has."""
    general = found.evaluations[found.evaluations["kind"] == "general"]
    stated = general[(general["measure"] == "knowledge probability") & general["value"].notna()]["task"].unique()
    chosen = general[general["task"].isin(stated)] if len(stated) else general
    lines = {name: _cells(chosen[chosen["measure"] == name]) for name in _KNOWLEDGE}
    count = chosen["task"].nunique()
    what = f"Instruction and knowledge, {count} general {'task' if count == 1 else 'tasks'}"
    if len(stated):
        what += " with a statement"
    for name in ("instruction", "knowledge"):
        if all(lines[f"{name} {kind}"]["value"].isna().all() for kind in ("probability", "accuracy")):
            what += f" ({name}: not measured)"
    return _by_stage(lines, figure_title(found, what), "P(answer), accuracy", bounds=_SHARE, pale=_PALE, width=width)


def _drift(found: Findings, width: Width) -> go.Figure | None:
    cosine = found.evaluations.query("kind == 'probe' and measure == 'cosine' and heads == 'chosen'")
    own = _cells(cosine)
    methods = list(dict.fromkeys(own["method"]))
    lines = {method: own[own["method"] == method] for method in methods}
    looks, beside = method_looks(methods), f"{methods[0]}, beside the others" if methods else ""
    if len(methods) > 1:
        lines[beside] = pd.concat([lines[methods[0]].assign(method=method) for method in methods[1:]])
    title = figure_title(found, "Cosine of the vectors with the base model's", cosine)
    # Never so narrow that a vector which hardly moves seems to have moved far.
    bounds = min(0.9, own["value"].min() - 0.05), 1.02
    pale = {beside: methods[0]} if methods else {}
    return _by_stage(lines, title, "cosine", bounds=bounds, looks=looks, pale=pale, within=(-1.0, 1.0), width=width)


def _by_stage(
    lines: Mapping[str, Frame],
    title: str,
    unit: str,
    *,
    bounds: tuple[float, float],
    looks: Mapping[str, Look] = _LINES,
    pale: Mapping[str, str] | None = None,
    within: tuple[float, float] = (0.0, 1.0),
    width: Width,
) -> go.Figure | None:
    """Lines that were measured, from a number for each cell and stage; no interval leaves what a number can be."""
    measured = [own.assign(line=name) for name, own in lines.items() if own["value"].notna().any()]
    if not measured:
        return None
    table = metrics.over_seeds(pd.concat(measured, ignore_index=True), ["method", "line", "stage"])
    table = metrics.clip_intervals(table.rename(columns={"method": "panel"}), within)
    return stage_panels(table, unit=unit, bounds=bounds, looks=looks, pale=pale, title=title, width=width)


def _shares(summary: Frame) -> Frame:
    """Accuracies within 0 and 1; what is forgotten, a difference of them, within -1 and 1."""
    return metrics.clip_intervals(summary, (np.where(summary["measure"] == "F", -1.0, 0.0), 1.0))


def _r_matrix(found: Findings, width: Width) -> go.Figure:
    chosen = metrics.with_stages(found.evaluations).query("kind == 'sequence' and measure == 'accuracy'")
    places = set(zip(chosen["task"], chosen["learned"], strict=True))
    if len(places) > len(set(chosen["task"])):  # Each seed has an order of its own.
        chosen = chosen.sort_values(["learned", "stage"], kind="stable")
        chosen = chosen.assign(task=chosen["learned"])
    by_seed = chosen.groupby(["method", "stage", "task"], sort=False)["value"]
    table = by_seed.agg(value="mean", low="min", high="max").reset_index().rename(columns={"method": "panel"})
    title = figure_title(found, "Accuracy on every task after every stage, mean over seeds", interval=False)
    return accuracy_heatmaps(table, title=title, width=width)


def _dependence(found: Findings, width: Width) -> go.Figure | None:
    probes = found.evaluations[found.evaluations["kind"] == "probe"]
    sides = []
    for side, stage in (("before", 0), ("after", last_stage(found))):
        for heads in ("chosen", "random"):
            own = probes[(probes["stage"] == stage) & (probes["heads"] == heads)]
            sides.append(own[own["measure"].isin(_DEPENDENCE)].assign(line=f"{heads} heads, {side}"))
    title = figure_title(found, "Dependence on the base model's vector", probes)
    return dots(pd.concat(sides), _DEPENDENCE, _SIDES, title, zero=True, width=width)


def dots(
    chosen: Frame,
    units: Mapping[str, str],
    looks: Mapping[str, Look],
    title: str,
    *,
    zero: bool = False,
    within: tuple[float, float] = (-math.inf, math.inf),
    width: Width,
) -> go.Figure | None:
    """Measures that were measured, from a number for each probe, cell and line."""
    by = ["method", "measure", "line"]
    cells = chosen.groupby([*by, "seed"], sort=False, as_index=False)["value"].mean()
    table: Frame = metrics.clip_intervals(metrics.over_seeds(cells, by), within)
    table = table.rename(columns={"measure": "panel", "line": "kind"})
    table = table[table.groupby("panel")["value"].transform(lambda values: values.notna().any())]
    if table.empty:
        return None
    order = [panel for panel in units if panel in set(table["panel"])]
    table = table.sort_values("panel", key=lambda names: names.map(order.index), kind="stable")
    return method_dots(table, units=units, looks=looks, zero=zero, title=title, width=width)


def _methods(found: Findings, summary: Frame, units: Mapping[str, str], what: str, width: Width) -> go.Figure:
    chosen = _shares(summary)[summary["measure"].isin(units)].rename(columns={"measure": "panel"})
    chosen = chosen[chosen.groupby("panel")["value"].transform(lambda values: values.notna().any())].assign(kind="")
    order = list(units)
    chosen = chosen.sort_values("panel", key=lambda names: names.map(order.index), kind="stable")
    asked = {name: UNSEEN if "reworded" in name else _GENERAL.get(name.partition(",")[0]) for name in units}
    baselines = {name: _base(found, measure) for name, measure in asked.items() if measure}
    return method_dots(chosen, units=units, baselines=baselines, title=figure_title(found, what), width=width)


def _trade_off(found: Findings, summary: Frame, width: Width) -> go.Figure:
    parts = []
    for name, measure in (("learned", "learned"), ("kept", "GP")):
        own = _shares(summary)[summary["measure"] == measure].set_index("method")[["value", "low", "high"]]
        parts.append(own.rename(columns={"value": name, "low": f"{name}_low", "high": f"{name}_high"}))
    table = pd.concat(parts, axis=1).reset_index()
    axes = ("accuracy on new tasks, each right after its stage", "accuracy on general tasks after the last stage (GP)")
    forms = _forms(found.plan, list(table["method"]))
    numbers = " (numbers: weight of the guidance)" if len({form.kind for form in forms}) < len(forms) else ""
    title = figure_title(found, f"Learned against kept{numbers}")
    return trade_off(table, forms, axes=axes, base=_base(found, _GENERAL["GP"]), title=title, width=width)


def _forms(plan: Plan, methods: Sequence[str]) -> list[Form]:
    """Methods whose guidance differs in nothing but its weight (that of the heads, if any) are of one kind."""
    kinds: dict[object, list[tuple[str, float]]] = {}
    for method in methods:
        name, guidance = plan.parts(method)
        weight = "heads" if guidance and guidance.heads > 0 else "kl"
        # All at one weight; not 0, which rehearsal refuses.
        kind = (name, guidance and replace(guidance, **{weight: 1.0}), weight)
        kinds.setdefault(kind, []).append((method, getattr(guidance, weight, 0.0)))
    return [Form(method, _common(own), strength) for own in kinds.values() for method, strength in own]


def _common(own: Sequence[tuple[str, float]]) -> str:
    """The shortest name without the number at its end: `lora+iv` for `lora+iv-0.3` and `lora+iv-1`."""
    names = [name for name, _ in own]
    return min(map(without_weight, names), key=len) if len(own) > 1 else names[0]


def _aie(found: Findings, width: Width) -> go.Figure | None:
    methods = list(dict.fromkeys(found.grids["method"]))
    shown, left_out = some_methods(methods)
    by = ["method", "seed", "layer", "head"]
    chosen = found.grids[found.grids["method"].isin(shown)].rename(columns={"aie": "value"})
    if chosen["value"].isna().all():
        return None
    means = chosen.groupby([*by, "stage"], sort=False)["value"].mean().unstack("stage")
    sides = {"before": means[0], "after": means[last_stage(found)], "difference": means[last_stage(found)] - means[0]}
    table = pd.concat([side.rename("value").reset_index().assign(side=name) for name, side in sides.items()])
    table = metrics.over_seeds(table, ["method", "side", "layer", "head"]).rename(columns={"method": "panel"})
    table = table.sort_values("panel", key=lambda names: names.map(shown.index), kind="stable")
    title = figure_title(found, f"AIE before the first and after the last stage{left_out}", chosen)
    return aie_heatmaps(table, title=title, width=width)


def some_methods(methods: Sequence[str]) -> tuple[list[str], str]:
    """The first method without guidance and the first ones with, and how the figure says that it shows no more."""
    shown = [method for method in methods if "+" not in method][:1]
    shown += [method for method in methods if "+" in method][: MOST_SHOWN - len(shown)]
    shown += [method for method in methods if method not in shown][: MOST_SHOWN - len(shown)]
    return shown, f" ({len(shown)} of {len(methods)} methods)" if len(shown) < len(methods) else ""


def _cells(chosen: Frame) -> Frame:
    """Mean over tasks, of each cell and stage."""
    return chosen.groupby(CELL, sort=False, as_index=False)["value"].mean()


def last_stage(found: Findings) -> int:
    return int(found.evaluations["stage"].max())


def _base(found: Findings, measure: str) -> float:
    chosen = found.evaluations.query("kind == 'general' and stage == 0 and measure == @measure")
    return float(chosen["value"].mean())


def figure_title(
    found: Findings, what: str, probes: Frame | None = None, *, interval: bool = True, over_queries: bool = False
) -> str:
    """Figure, model, study, and what its numbers and intervals are over.

    Args:
        over_queries: Of a single seed, intervals over queries are drawn.
    """
    counts = {"probe": 0 if probes is None else probes["task"].nunique(), "seed": found.evaluations["seed"].nunique()}
    over = [f"{count} {name}{'s' if count > 1 else ''}" for name, count in counts.items() if count]
    if interval:
        of_one = "95 % intervals over queries" if over_queries else "no intervals"
        over.append("95 % intervals" if counts["seed"] > 1 else of_one)
    return f"{what}: {Path(found.plan.model).name}, study {found.plan.name}; {', '.join(over)}"
