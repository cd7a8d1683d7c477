"""Two models beside each other: numbers in, figures out. NaN means "not measured": a gap, never a 0."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ivlens.errors import FigureError
from ivlens.plots import marks
from ivlens.plots.layout import legend_height, raise_panels
from ivlens.plots.marks import read_points
from ivlens.plots.notebook import Figure
from ivlens.plots.stage_heatmaps import aie_heatmaps
from ivlens.plots.style import (
    BLACK,
    GREY,
    LEFT,
    LOOKS,
    NAMES,
    REFERENCE,
    Look,
    Width,
    break_text,
    is_narrow,
    lay_out,
    pixels,
    safe,
)

MODELS = ("base", "tuned", "difference")
_SHOWN = {"base": "before", "tuned": "after"}
_SIDES = {**_SHOWN, "difference": "difference"}
_DEPENDENCE = {
    "sufficiency": ("sufficiency", "change of P(answer)"),
    "necessity": ("necessity", "loss of P(answer)"),
    "shift": ("shift", "KL (nats)"),
}
_ABILITIES = {
    "instruction probability": NAMES["instructed"],
    "knowledge probability": NAMES["statement"],
    "zero-shot probability": "zero-shot",
    "steered zero-shot probability": "zero-shot + vector",
}
_NAMED = 10
"""Heads whose names stand in the figure: those of largest effect."""
_NAME_SIZE = 8.5
_RANKS = {
    "top in both": Look(BLACK),
    "top before": LOOKS["before"],
    "top after": LOOKS["after"],
    "other heads": Look(GREY, "circle-open"),
}
Heads = Iterable[tuple[int, int]]


def aie_panels(
    frame: pd.DataFrame,
    shape: tuple[int, int],
    *,
    unit: str = "probability",
    chance: float | None = None,
    marked: Mapping[str, Heads] | None = None,
    title: str | None = None,
    width: Width = "page",
) -> go.Figure:
    """Heatmaps of the AIE before, after and of their difference; one colour bound, layers down, heads across.

    Args:
        frame: Columns `model` (`base`, `tuned`, `difference`), `layer`, `head`, `aie`, `low`, `high`.
        shape: Layers and heads.
        unit: Of the effect: `probability` or `nats`.
        chance: As for `head_heatmap`.
        marked: Heads to outline in the panel of a model.

    Raises:
        FigureError: a column is missing, a model lacks heads, or a value is infinite.

    >>> figure = plots.aie_panels(change.aie, (6, 8), marked={"base": effects.top(2)})
    >>> [panel.z.shape for panel in figure.data], len(figure.layout.shapes)
    ([(6, 8), (6, 8), (6, 8)], 2)
    """
    _check_heads(frame, shape)
    table = frame.rename(columns={"model": "side", "aie": "value"}).replace({"side": _SIDES}).assign(panel="")
    heads = {_SIDES[model]: chosen for model, chosen in (marked or {}).items()}
    return aie_heatmaps(table, unit=unit, chance=chance, marked=heads, title=title, width=width)


def aie_scatter(
    frame: pd.DataFrame,
    *,
    unit: str = "probability",
    marked: Mapping[str, Heads] | None = None,
    title: str | None = None,
    width: Width = "page",
) -> go.Figure:
    """AIE after against AIE before, a point a head; on the dashed line nothing changed.

    Args:
        frame: As for `aie_panels`.
        marked: The top heads of `base` and `tuned`; named and set apart.

    Raises:
        FigureError: a column is missing, or a model lacks heads.

    >>> figure = plots.aie_scatter(change.aie, marked={"base": [(3, 3)], "tuned": [(3, 3)]})
    >>> [(trace.name, len(trace.x)) for trace in figure.data[:2]]
    [('top in both', 1), ('other heads', 47)]
    """
    parts = [frame.query(f"model == {model!r}") for model in ("base", "tuned")]
    both = parts[0].merge(parts[1], on=["layer", "head"], suffixes=("_base", "_tuned"))
    if both.empty:
        raise FigureError("the table has no head of both models; there is nothing to draw")
    values = both[["aie_base", "aie_tuned"]].to_numpy(float)
    low, high = float(np.nanmin(values, initial=0)), float(np.nanmax(values, initial=0))
    room = 0.08 * (high - low or 1.0)
    ends = [low - room, high + room]
    down = 220 if is_narrow(width) else 300
    size = np.array([pixels(width) - LEFT - 12, down]) / (ends[1] - ends[0])
    edges = (ends[0] * size, ends[1] * size)
    names = _place_heads(_heads(both), values * size, edges, most=_NAMED // (1 + is_narrow(width)))
    figure = Figure()
    groups = {name: lines for name, lines in _by_rank(both, marked or {}).items() if lines}
    for name, lines in groups.items():
        figure.add_trace(_head_points(name, lines, names))
    figure.add_trace(go.Scatter(x=ends, y=ends, mode="lines", line=REFERENCE, showlegend=False, hoverinfo="skip"))
    figure.update_xaxes(title_text=f"AIE before ({safe(unit, 24)})", range=ends)
    figure.update_yaxes(title_text=f"AIE after ({safe(unit, 24)})", range=ends)
    lay_out(figure, title, width, height=down, below=legend_height(list(groups), width))
    return figure


def dependence_bars(frame: pd.DataFrame, *, title: str | None = None, width: Width = "page") -> go.Figure:
    """Sufficiency, necessity and shift before and after, each beside random heads, with intervals.

    Args:
        frame: Columns `measure`, `heads`, `model`, `vector`, `value`, `low`, `high`.

    Raises:
        FigureError: a column is missing, a value is infinite, or a line comes twice.

    >>> figure = plots.dependence_bars(change.measures)
    >>> [note.text for note in figure.layout.annotations][:3], list(figure.data[0].x)
    (['sufficiency', 'necessity', 'shift'], ['before', 'after'])
    """
    names, between = [name for name, _ in _DEPENDENCE.values()], 0.17 if is_narrow(width) else 0.1
    figure = make_subplots(1, 3, subplot_titles=names, horizontal_spacing=between, figure=Figure())
    for column, (measure, (_, unit)) in enumerate(_DEPENDENCE.items(), start=1):
        chosen = frame.query(f"measure == {measure!r} and model in ['base', 'tuned'] and vector == 'base'")
        points = read_points(chosen, at="model", value="value", heads="heads")
        for kind in marks.kinds(points):
            figure.add_trace(_bars(kind, [_SHOWN[point.at] for point in kind.points], column == 1), row=1, col=column)
        figure.update_yaxes(title_text=unit, title_standoff=2, rangemode="tozero", zeroline=True, row=1, col=column)
        if all(math.isnan(point.value) for point in points):
            figure.update_yaxes(showticklabels=False, row=1, col=column)
            _note_gap(figure, row=1, col=column, x=0.5, y=0.5, xref="x domain", yref="y domain")
    figure.update_layout(barmode="group", bargap=0.3)
    figure.update_xaxes(showgrid=False, ticks="", tickangle=0, tickfont_size=9.5 if is_narrow(width) else None)
    _lay_out_panels(figure, title, width, height=200, below=19)
    return figure


def ability_bars(frame: pd.DataFrame, *, title: str | None = None, width: Width = "page") -> go.Figure:
    """P(answer) with the instruction, as a plain statement, zero-shot and with the vector, before and after.

    Args:
        frame: As for `dependence_bars`.

    Raises:
        FigureError: as for `dependence_bars`.

    >>> figure = plots.ability_bars(change.measures)
    >>> [(bars.name, len(bars.x)) for bars in figure.data]
    [('before', 4), ('after', 4)]
    """
    figure, across = Figure(), (pixels(width) - LEFT) / len(_ABILITIES) - 8
    labels = {measure: "<br>".join(break_text(name, across)) for measure, name in _ABILITIES.items()}
    shown = frame.query(f"measure in {list(_ABILITIES)} and heads in ['', 'chosen'] and vector != 'tuned'")
    for model, name in _SHOWN.items():
        points = read_points(shown.query(f"model == {model!r}"), at="measure", value="value")
        kind = marks.Kind(name, points, LOOKS[name])
        figure.add_trace(_bars(kind, [labels[point.at] for point in points], True))
    measured = set(shown[shown["value"].notna()]["measure"])
    for measure in dict.fromkeys(shown["measure"]):
        if measure not in measured:
            _note_gap(figure, x=labels[measure], y=0.02, yanchor="bottom")
    figure.update_layout(barmode="group", bargap=0.3)
    figure.update_yaxes(title_text="P(answer), first token", range=[0, 1.02], dtick=0.2)
    figure.update_xaxes(showgrid=False, ticks="", tickangle=0)
    lay_out(figure, title, width, height=220, below=31)
    return figure


def _bars(kind: marks.Kind, names: list[str], in_legend: bool) -> go.Bar:
    texts = [
        f"{kind.name}, {name.replace('<br>', ' ')}: {point}" for name, point in zip(names, kind.points, strict=True)
    ]
    return go.Bar(
        x=names,
        y=[point.value for point in kind.points],
        marker={"color": kind.look.fill},
        error_y=marks.error_bars(kind.points),
        name=kind.name,
        legendgroup=kind.name,
        showlegend=in_legend,
        customdata=texts,
        hovertemplate="%{customdata}<extra></extra>",
    )


def _by_rank(both: pd.DataFrame, marked: Mapping[str, Heads]) -> dict[str, list[dict]]:
    """The lines of heads that are at the top of both models, of either, of none."""
    before, after = ({tuple(head) for head in marked.get(model, ())} for model in ("base", "tuned"))
    groups: dict[str, list[dict]] = {name: [] for name in _RANKS}
    names = list(_RANKS)
    for line in both.to_dict("records"):
        head = (line["layer"], line["head"])
        groups[names[2 * (head not in before) + (head not in after)]].append(line)
    return groups


def _heads(both: pd.DataFrame) -> list[str]:
    return [f"L{layer}H{head}" for layer, head in zip(both["layer"], both["head"], strict=True)]


def _place_heads(
    heads: list[str], points: np.ndarray, edges: tuple[np.ndarray, np.ndarray], *, most: int
) -> dict[str, str]:
    """On which side of its point a head is named, of the `most` of largest effect; others are named on hover."""
    order = np.argsort(-np.nan_to_num(np.abs(points).max(1)), kind="stable")[:most]
    found = marks.place_names([heads[at] for at in order], points[order], edges, size=_NAME_SIZE, points=points)
    return {heads[at]: side for at, side in zip(order, found, strict=True) if side}


def _head_points(name: str, lines: list[dict], names: Mapping[str, str]) -> go.Scatter:
    """Points of heads; `names` says which are named, and on which side."""
    many = len(lines) > 500
    look = _RANKS[name]
    heads = [f"L{line['layer']}H{line['head']}" for line in lines]
    values = [f"{line['aie_base']:.3f} → {line['aie_tuned']:.3f}" for line in lines]
    return go.Scatter(
        x=[line["aie_base"] for line in lines],
        y=[line["aie_tuned"] for line in lines],
        mode="markers+text",
        text=[head if head in names else "" for head in heads],
        textposition=[names.get(head, "top center") for head in heads],
        textfont={"size": _NAME_SIZE},
        marker={"color": look.colour, "symbol": look.symbol, "size": 3 if many else 6},
        name=name,
        customdata=[f"{head}: {value}" for head, value in zip(heads, values, strict=True)],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _check_heads(frame: pd.DataFrame, shape: tuple[int, int]) -> None:
    missing = [column for column in ("model", "layer", "head", "aie", "low", "high") if column not in frame.columns]
    if missing:
        raise FigureError(f"the table has no column {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}")
    for model in MODELS:
        found = list(frame["model"]).count(model)
        if found != shape[0] * shape[1]:
            raise FigureError(f"the table has {found} heads of {model!r}, but {shape[0]}x{shape[1]} are needed")


def _note_gap(figure: go.Figure, **where: Any) -> None:
    figure.add_annotation(text="not measured", font_color=GREY, textangle=-90, showarrow=False, **where)


def _lay_out_panels(
    figure: go.Figure, title: str | None, width: Width, *, height: int, below: int = 0, right: int = 12
) -> None:
    """As `lay_out`, with room for the panels' own titles above."""
    lay_out(figure, title, width, height=height, below=below)
    raise_panels(figure, title, r=right)
