"""Which figures does a study have, and which of its numbers are in them?

Numbers are means over tasks in every cell, then over seeds with Student's 95 % interval. A figure whose numbers were
not measured is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import pandas as pd

from ivlens.forgetting import metrics
from ivlens.forgetting.plan import Plan
from ivlens.plots.methods import Form, method_dots, trade_off
from ivlens.plots.stage_heatmaps import accuracy_heatmaps, aie_heatmaps
from ivlens.plots.stages import stage_panels
from ivlens.plots.style import BLACK, GREY

if TYPE_CHECKING:
    import plotly.graph_objects as go

Frame = Any
"""A `pd.DataFrame`; the annotations of pandas lose track of it at the first selection."""
CELL = ["method", "seed", "stage"]
GRIDS_SHOWN = 3
"""Methods whose AIE is drawn: the first without guidance, and the first ones with."""
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
_DEPENDENCE = {"sufficiency": "change of P(answer)", "necessity": "loss of P(answer)", "shift": "KL (nats)"}
_CHOSEN, _RANDOM = "#0072B2", GREY
_SIDES = {
    "chosen heads, before": (_CHOSEN, "circle-open"),
    "chosen heads, after": (_CHOSEN, "circle"),
    "random heads, before": (_RANDOM, "square-open"),
    "random heads, after": (_RANDOM, "square"),
}
_RECOVERY = {
    "base": (BLACK, "circle-open"),
    "tuned": ("#D55E00", "circle"),
    "tuned + base vector": (_CHOSEN, "diamond"),
    "tuned + base vector, scale 1": ("#56B4E9", "diamond-open"),
    "tuned + random vector": (GREY, "square"),
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


def figures(found: Findings, summary: Frame) -> dict[str, go.Figure]:
    """Every figure of a study and its summary by file name, those whose numbers were measured."""
    drawn = {
        "accuracy": _accuracy(found),
        "r-matrix": _r_matrix(found),
        "instruction-knowledge": _instruction_knowledge(found),
        "dependence": _dependence(found),
        "drift": _drift(found),
        "aie": _aie(found),
        "methods": _methods(found, summary),
        "trade-off": _trade_off(found, summary),
        "recovery": _recovery(found),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _accuracy(found: Findings) -> go.Figure | None:
    learned = metrics.with_stages(found.evaluations).query("kind == 'sequence' and measure == 'accuracy'")
    lines = {"tasks learned so far": learned[learned["stage"] >= learned["learned"]]}
    general = found.evaluations[found.evaluations["kind"] == "general"]
    lines |= {
        f"general tasks, {label} ({name})": general[general["measure"] == _GENERAL[name]]
        for name, label in (("GP", "instruction"), ("IP", "few-shot"))
    }
    title = _title(found, "Accuracy by stage, mean over tasks")
    return _by_stage({name: _cells(own) for name, own in lines.items()}, title, "accuracy", bounds=_SHARE)


def _instruction_knowledge(found: Findings) -> go.Figure | None:
    """Of the same tasks: those that have a statement, where any has."""
    general = found.evaluations[found.evaluations["kind"] == "general"]
    stated = general[(general["measure"] == "knowledge probability") & general["value"].notna()]["task"].unique()
    chosen = general[general["task"].isin(stated)] if len(stated) else general
    lines = {name: _cells(chosen[chosen["measure"] == name]) for name in _KNOWLEDGE}
    count = chosen["task"].nunique()
    what = f"Instruction and knowledge, {count} general {'task' if count == 1 else 'tasks'}"
    if len(stated):
        what += " with a statement"
    return _by_stage(lines, _title(found, what), "P(answer), accuracy", bounds=_SHARE, pale=_PALE)


def _drift(found: Findings) -> go.Figure | None:
    cosine = found.evaluations.query("kind == 'probe' and measure == 'cosine' and heads == 'chosen'")
    own = _cells(cosine)
    methods = list(dict.fromkeys(own["method"]))
    lines = {"this method": own}
    for other in methods[:1] if len(methods) > 1 else []:
        first = own[own["method"] == other]
        lines[other] = pd.concat([first.assign(method=method) for method in methods[1:]])
    title = _title(found, "Cosine of the vectors with the base model's", cosine)
    # Never so narrow that a vector which hardly moves seems to have moved far.
    bounds = min(0.9, own["value"].min() - 0.05), 1.02
    return _by_stage(lines, title, "cosine", bounds=bounds, pale=dict.fromkeys(methods[:1], ""))


def _by_stage(
    lines: Mapping[str, Frame],
    title: str,
    unit: str,
    *,
    bounds: tuple[float, float],
    pale: Mapping[str, str] | None = None,
) -> go.Figure | None:
    """Lines that were measured, from a number for each cell and stage."""
    measured = [own.assign(line=name) for name, own in lines.items() if own["value"].notna().any()]
    if not measured:
        return None
    table = metrics.over_seeds(pd.concat(measured, ignore_index=True), ["method", "line", "stage"])
    table = table.rename(columns={"method": "panel"})
    return stage_panels(table, unit=unit, bounds=bounds, pale=pale, title=title)


def _r_matrix(found: Findings) -> go.Figure:
    chosen = metrics.with_stages(found.evaluations).query("kind == 'sequence' and measure == 'accuracy'")
    places = set(zip(chosen["task"], chosen["learned"], strict=True))
    if len(places) > len(set(chosen["task"])):  # Each seed has an order of its own.
        chosen = chosen.sort_values(["learned", "stage"], kind="stable")
        chosen = chosen.assign(task=[f"learned in stage {number}" for number in chosen["learned"]])
    by_seed = chosen.groupby(["method", "stage", "task"], sort=False)["value"]
    table = by_seed.agg(value="mean", low="min", high="max").reset_index().rename(columns={"method": "panel"})
    title = _title(found, "Accuracy on every task after every stage, mean over seeds", interval=False)
    return accuracy_heatmaps(table, title=title)


def _dependence(found: Findings) -> go.Figure | None:
    probes = found.evaluations[found.evaluations["kind"] == "probe"]
    sides = []
    for side, stage in (("before", 0), ("after", _last(found))):
        for heads in ("chosen", "random"):
            own = probes[(probes["stage"] == stage) & (probes["heads"] == heads)]
            sides.append(own[own["measure"].isin(_DEPENDENCE)].assign(line=f"{heads} heads, {side}"))
    title = _title(found, "Dependence on the base model's vector", probes)
    return _dots(pd.concat(sides), _DEPENDENCE, _SIDES, title, zero=True)


def _recovery(found: Findings) -> go.Figure | None:
    probes, last = found.evaluations[found.evaluations["kind"] == "probe"], _last(found)
    panels, parts = {"with the instruction": "instruction", "query alone": "zero-shot"}, []
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
    title = _title(found, "Accuracy with the base model's vector added", probes)
    return _dots(pd.concat(parts), dict.fromkeys(panels, "accuracy"), _RECOVERY, title)


def _dots(
    chosen: Frame,
    units: Mapping[str, str],
    looks: Mapping[str, tuple[str, str]],
    title: str,
    *,
    zero: bool = False,
) -> go.Figure | None:
    """Measures that were measured, from a number for each probe, cell and line."""
    by = ["method", "measure", "line"]
    cells = chosen.groupby([*by, "seed"], sort=False, as_index=False)["value"].mean()
    table: Frame = metrics.over_seeds(cells, by).rename(columns={"measure": "panel", "line": "kind"})
    table = table[table.groupby("panel")["value"].transform(lambda values: values.notna().any())]
    if table.empty:
        return None
    order = [panel for panel in units if panel in set(table["panel"])]
    table = table.sort_values("panel", key=lambda names: names.map(order.index), kind="stable")
    return method_dots(table, units=units, looks=looks, zero=zero, title=title)


def _methods(found: Findings, summary: Frame) -> go.Figure:
    chosen = summary[summary["measure"].isin(_SUMMARY)].rename(columns={"measure": "panel"})
    chosen = chosen[chosen.groupby("panel")["value"].transform(lambda values: values.notna().any())].assign(kind="")
    order = list(_SUMMARY)
    chosen = chosen.sort_values("panel", key=lambda names: names.map(order.index), kind="stable")
    baselines = {name: _base(found, measure) for name, measure in _GENERAL.items()}
    title = _title(found, "After the last stage (dashed: base model)")
    return method_dots(chosen, units=_SUMMARY, baselines=baselines, title=title)


def _trade_off(found: Findings, summary: Frame) -> go.Figure:
    parts = []
    for name, measure in (("learned", "learned"), ("kept", "GP")):
        own = summary[summary["measure"] == measure].set_index("method")[["value", "low", "high"]]
        parts.append(own.rename(columns={"value": name, "low": f"{name}_low", "high": f"{name}_high"}))
    table = pd.concat(parts, axis=1).reset_index()
    axes = ("accuracy on new tasks, each right after its stage", "accuracy on general tasks after the last stage (GP)")
    title = _title(found, "Learned against kept (numbers: weight of the guidance)")
    forms = _forms(found.plan, list(table["method"]))
    return trade_off(table, forms, axes=axes, base=_base(found, _GENERAL["GP"]), title=title)


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
    return min((re.sub(r"(?<=\w)[-_]?[0-9.]+$", "", name) for name in names), key=len) if len(own) > 1 else names[0]


def _aie(found: Findings) -> go.Figure | None:
    methods = list(dict.fromkeys(found.grids["method"]))
    shown = [method for method in methods if "+" not in method][:1]
    shown += [method for method in methods if "+" in method][: GRIDS_SHOWN - len(shown)]
    by = ["method", "seed", "layer", "head"]
    chosen = found.grids[found.grids["method"].isin(shown)].rename(columns={"aie": "value"})
    if chosen["value"].isna().all():
        return None
    means = chosen.groupby([*by, "stage"], sort=False)["value"].mean().unstack("stage")
    sides = {"before": means[0], "after": means[_last(found)], "difference": means[_last(found)] - means[0]}
    table = pd.concat([side.rename("value").reset_index().assign(side=name) for name, side in sides.items()])
    table = metrics.over_seeds(table, ["method", "side", "layer", "head"]).rename(columns={"method": "panel"})
    table = table.sort_values("panel", key=lambda names: names.map(shown.index), kind="stable")
    title = _title(found, "AIE before the first and after the last stage", chosen)
    return aie_heatmaps(table, title=title)


def _cells(chosen: Frame) -> Frame:
    """Mean over tasks, of each cell and stage."""
    return chosen.groupby(CELL, sort=False, as_index=False)["value"].mean()


def _last(found: Findings) -> int:
    return int(found.evaluations["stage"].max())


def _base(found: Findings, measure: str) -> float:
    chosen = found.evaluations.query("kind == 'general' and stage == 0 and measure == @measure")
    return float(chosen["value"].mean())


def _title(found: Findings, what: str, probes: Frame | None = None, *, interval: bool = True) -> str:
    """Figure, model, study, and what its numbers and intervals are over."""
    counts = {"probe": 0 if probes is None else probes["task"].nunique(), "seed": found.evaluations["seed"].nunique()}
    over = [f"{count} {name}{'s' if count > 1 else ''}" for name, count in counts.items() if count]
    if interval:
        over.append("95 % intervals" if counts["seed"] > 1 else "no intervals")
    return f"{what}: {Path(found.plan.model).name}, study {found.plan.name}; {', '.join(over)}"
