"""What does the vector do, and with how many heads, and beside what? Accuracies and their intervals.

Numbers in, figures out. NaN means "not measured": a gap, never a 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ivlens.errors import FigureError
from ivlens.plots import marks
from ivlens.plots.heads import cell_gap, outlines
from ivlens.plots.layout import legend_height, tick_step
from ivlens.plots.marks import Point, read_accuracies, read_points
from ivlens.plots.notebook import Figure
from ivlens.plots.style import (
    GREY,
    LEFT,
    NAMES,
    NOT_MEASURED,
    SEQUENTIAL,
    Look,
    Width,
    is_narrow,
    lay_out,
    pixels,
    safe,
)

KINDS = {kind: NAMES[kind] for kind in ("chosen", "random", "low-AIE", "gaussian", "other-task")}
"""Whose vector was added, as tables and figures call it."""
_WITH_BAND = ("chosen", "random")  # Where draws are drawn: bands of all would hide each other.
_PLACES = ("layer", "scale", "share", "accuracy", "probability", "chosen")
_BESIDE = 78  # Pixels for the colour bar, its numbers and its title.
_DOWN, _NUMBER = 24.0, 21  # Pixels of a row, and what a cell needs across for its number.


def steering_by_layer(
    frame: pd.DataFrame,
    *,
    draws: pd.DataFrame | None = None,
    baselines: Mapping[str, float] | None = None,
    title: str | None = None,
    width: Width = "page",
) -> go.Figure:
    """Accuracy against the layer at which the vector is added; a line and its interval for each kind of head.

    Args:
        frame: Columns `layer`, `heads` (`chosen`, `random`, `low-AIE`, `gaussian`, `other-task`), `accuracy`, `low`,
            `high`; one row for a layer and a kind of head.
        draws: Columns `layer`, `heads`, `accuracy`; a dash for every draw of a control. Bands are then of chosen and
            random heads alone.
        baselines: Accuracies without steering, such as `{"zero-shot": 0.1, "instructed": 0.9}`; drawn dashed.

    Raises:
        FigureError: a column is missing, a value is no accuracy, or two rows are of one layer and kind of head.

    >>> frame = audit.steering.rename(columns={"accuracy_low": "low", "accuracy_high": "high"})
    >>> figure = plots.steering_by_layer(frame, baselines={"zero-shot": 0.05})
    >>> [trace.name for trace in figure.data if trace.name]
    ['chosen heads', 'random heads', 'low-AIE heads', 'Gaussian', 'zero-shot 0.05']
    """
    points = read_accuracies(frame, "layer")
    first, last = points[0].at, points[-1].at
    figure = Figure()
    kinds = marks.kinds(points)
    for index, kind in enumerate(kinds):
        texts = [f"{kind.name}, layer {point.at:g}: {point}" for point in kind.points]
        if draws is None or kind.points[0].heads in _WITH_BAND:
            figure.add_trace(marks.band(kind))
        figure.add_trace(_named(marks.line(kind, [point.at for point in kind.points], texts), kind))
        if draws is not None:
            own = _drawn(draws, kind)
            at = [layer + _aside(index, kinds) for layer in own["layer"]]
            figure.add_trace(_draw_points(kind, at, own["accuracy"].tolist()))
    figure.add_traces(marks.baselines(baselines or {}, first, last))
    figure.update_xaxes(title_text="layer steered", tick0=0, dtick=tick_step(int(last - first) + 1, width))
    _lay_out_accuracy(figure, title, width)
    return figure


def steering_heatmap(frame: pd.DataFrame, *, title: str | None = None, width: Width = "page") -> go.Figure:
    """Accuracy with a vector added at every layer (across) and every scale (down); the chosen place is outlined.

    Args:
        frame: Columns `layer`, `scale`, `share` (of the residual stream's length), `accuracy`, `probability` and
            `chosen`; one row a place.

    Raises:
        FigureError: a column is missing, there is no row, a place comes twice, or an accuracy is outside [0, 1].

    >>> figure = plots.steering_heatmap(audit.places)
    >>> figure.data[0].z.shape, len(figure.layout.shapes)  # [scale layer], the chosen place
    ((6, 6), 1)
    """
    _check_places(frame)
    layers, scales = sorted(set(frame["layer"])), sorted(set(frame["scale"]))
    table: Any = frame.set_index(["scale", "layer"])
    accuracies = table["accuracy"].unstack("layer").reindex(index=scales, columns=layers).to_numpy(float)
    across = (pixels(width) - LEFT - _BESIDE) / len(layers)
    gap = cell_gap(min(across, _DOWN))
    cells = go.Heatmap(
        z=accuracies,
        x=layers,
        zmin=0.0,
        zmax=1.0,
        colorscale=SEQUENTIAL,
        xgap=gap,
        ygap=gap,
        colorbar={"dtick": 0.25},
        customdata=[[_place_text(layer, scale, table) for layer in layers] for scale in scales],
        hovertemplate="%{customdata}<extra></extra>",
    )
    figure = Figure(cells)
    if across >= _NUMBER:
        figure.add_trace(marks.cell_numbers(accuracies, size=min(9.0, across / 2.5), first=int(layers[0])))
    places = [
        (scales.index(row["scale"]), layers.index(row["layer"])) for row in frame.to_dict("records") if row["chosen"]
    ]
    beside = {"x": 1, "xref": "paper", "xanchor": "left", "xshift": _BESIDE - 20, "y": 0.5, "yref": "paper"}
    figure.add_annotation(text="accuracy", textangle=-90, showarrow=False, **beside)
    for box in outlines(accuracies.shape, (across, _DOWN), places):
        figure.add_shape({**box, "x0": box["x0"] + layers[0], "x1": box["x1"] + layers[0]})
    figure.update_xaxes(title_text="layer steered", dtick=tick_step(len(layers), width), tick0=0, showgrid=False)
    ticks = {"tickvals": list(range(len(scales))), "ticktext": [f"{scale:g}" for scale in scales], "ticks": ""}
    figure.update_yaxes(title_text="scale", showgrid=False, **ticks)
    lay_out(figure, title, width, height=round(_DOWN * len(scales)))
    return figure.update_layout(plot_bgcolor=NOT_MEASURED, margin_r=_BESIDE)


def accuracy_by_heads(
    frame: pd.DataFrame,
    *,
    draws: pd.DataFrame | None = None,
    baselines: Mapping[str, float] | None = None,
    title: str | None = None,
    width: Width = "page",
) -> go.Figure:
    """Accuracy against the number of heads in the vector, spaced evenly whatever they are (1, 2, 5, 10).

    Args:
        frame: Columns `n_heads`, `heads`, `accuracy`, `low`, `high`; one row for a number and a kind of head.
        draws: Columns `n_heads`, `heads`, `accuracy`; a dash for every draw of a control.
        baselines: As for `steering_by_layer`.

    Raises:
        FigureError: as for `steering_by_layer`.

    >>> frame = audit.heads.rename(columns={"accuracy_low": "low", "accuracy_high": "high"})
    >>> plots.accuracy_by_heads(frame).layout.xaxis.ticktext
    ('1', '2', '5', '10', '20')
    """
    points = read_accuracies(frame, "n_heads")
    kinds = marks.kinds(points)
    counts = sorted({point.at for point in points})
    figure = Figure()
    for index, kind in enumerate(kinds):
        aside = _aside(index, kinds)
        places = [counts.index(point.at) + aside for point in kind.points]
        texts = [f"{kind.name}, n = {point.at:g}: {point}" for point in kind.points]
        line = _named(marks.line(kind, places, texts), kind)
        figure.add_trace(line.update(error_y=marks.error_bars(kind.points)))
        if draws is not None:
            own = _drawn(draws, kind)
            own = own[own["n_heads"].isin(counts)]
            at = [counts.index(count) + aside for count in own["n_heads"]]
            figure.add_trace(_draw_points(kind, at, own["accuracy"].tolist()))
    figure.add_traces(marks.baselines(baselines or {}, -0.3, len(counts) - 0.7))
    ticks = {"tickvals": list(range(len(counts))), "ticktext": [f"{count:g}" for count in counts]}
    figure.update_xaxes(title_text="number of heads", **ticks)
    _lay_out_accuracy(figure, title, width)
    return figure


def _named(line: go.Scatter, kind: marks.Kind) -> go.Scatter:
    """A level line has its value in its name, as lines of the unsteered model have: others may lie on it."""
    values = {round(point.value, 2) for point in kind.points if not math.isnan(point.value)}
    return line.update(name=f"{kind.name} {values.pop():.2f}") if len(values) == 1 < len(kind.points) else line


def _aside(index: int, kinds: list[marks.Kind]) -> float:
    """Side by side, so that the intervals or draws of two kinds do not hide each other."""
    return 0.08 * (index - (len(kinds) - 1) / 2)


def _drawn(draws: pd.DataFrame, kind: marks.Kind) -> pd.DataFrame:
    """The draws of a control; the chosen heads were not drawn."""
    return draws.query("heads == @kind.points[0].heads and heads != 'chosen'")


def _draw_points(kind: marks.Kind, at: list[float], values: list[float]) -> go.Scatter:
    """Each draw by itself: a mean of a few may stand where none of them is."""
    return go.Scatter(
        x=at,
        y=values,
        mode="markers",
        marker={"color": kind.colour, "symbol": "line-ew-open", "size": 7, "opacity": 0.7},
        legendgroup=kind.name,
        showlegend=False,
        hovertemplate=f"{kind.name}, one draw: %{{y:.3f}}<extra></extra>",
    )


def measures_bars(
    frame: pd.DataFrame,
    *,
    unit: str = "accuracy",
    looks: Mapping[str, Look] | None = None,
    title: str | None = None,
    width: Width = "page",
) -> go.Figure:
    """A bar with its interval for each measure (zero-shot, instructed, steered, ...), the first on top.

    Args:
        frame: Columns `measure`, `value`, `low`, `high`; one row a measure.
        unit: What `value` is; the title of its axis.
        looks: Of measures that have a colour everywhere; the others are grey.

    Raises:
        FigureError: a column is missing, a value is infinite, or a measure comes twice.

    >>> frame = pd.DataFrame({"measure": ["zero-shot", "steered"], "value": [0.25, float("nan")]})
    >>> frame = frame.assign(low=[0.2, float("nan")], high=[0.3, float("nan")])
    >>> [note.text for note in plots.measures_bars(frame).layout.annotations]
    ['0.25', 'not measured']
    """
    points = read_points(frame, at="measure", value="value")
    places = list(range(len(points)))
    bars = go.Bar(
        x=[point.value for point in points],
        y=places,
        orientation="h",
        width=0.6,
        marker={"color": [(looks or {}).get(point.at, Look(NOT_MEASURED)).fill for point in points]},
        error_x=marks.error_bars(points),
        customdata=[f"{safe(point.at)}: {point}" for point in points],
        hovertemplate="%{customdata}<extra></extra>",
    )
    figure = Figure(bars)
    for place, point in enumerate(points):
        missing = math.isnan(point.value)
        end = 0 if missing else np.nanmax([0, point.value, point.high])
        text = {"text": "not measured" if missing else f"{point.value:.2f}", "font_color": GREY}
        figure.add_annotation(x=end, y=place, showarrow=False, xanchor="left", xshift=4, **text)
    names = [safe(point.at, limit=26 if is_narrow(width) else 36) for point in points]
    figure.update_yaxes(tickvals=places, ticktext=names, showgrid=False, ticks="")
    figure.update_yaxes(range=[len(points) - 0.4, -0.6])
    figure.update_xaxes(title_text=safe(unit), range=_bar_range(points, unit))
    lay_out(figure, title, width, height=24 * len(points))
    return figure


def _lay_out_accuracy(figure: go.Figure, title: str | None, width: Width) -> None:
    figure.update_yaxes(title_text="accuracy (share of prompts)", range=[-0.02, 1.02], dtick=0.2)
    entries: Any = figure.select_traces(lambda trace: trace.showlegend is not False)
    below = legend_height([str(trace.name) for trace in entries], width, grouped=True)
    lay_out(figure, title, width, height=180 if is_narrow(width) else 260, below=below)


def _bar_range(points: list[Point], unit: str) -> list[float]:
    """From 0 or below to the longest interval, and room for the number behind it."""
    ends = [end for point in points for end in point[2:] if not math.isnan(end)]
    highest = max([*ends, 1.0 if unit == "accuracy" else 0.0])
    return [min([*ends, 0.0]) * 1.05, (highest or 1.0) * 1.15]


def _check_places(frame: pd.DataFrame) -> None:
    missing = [column for column in _PLACES if column not in frame.columns]
    if missing:
        raise FigureError(f"the table has no column {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}")
    if frame.empty:
        raise FigureError("the table has no rows; there is nothing to draw")
    if frame.duplicated(["layer", "scale"]).any():
        raise FigureError("the table has several rows for one layer and scale; keep one of them")
    values = frame["accuracy"].to_numpy(float)
    if ((values < 0) | (values > 1)).any():
        raise FigureError("an accuracy is outside 0 to 1; pass shares, not percent")


def _place_text(layer: int, scale: float, table: Any) -> str:
    if (scale, layer) not in table.index:
        return f"layer {layer}, scale {scale:g}: not tried"
    row = table.loc[(scale, layer)]
    share = "" if math.isnan(row["share"]) else f" ({row['share']:.2g} of the residual stream's length)"
    value = (
        "not tried"
        if np.isnan(row["accuracy"])
        else f"accuracy {row['accuracy']:.3f}, P(answer) {row['probability']:.3f}"
    )
    return f"layer {layer}, scale {scale:g}{share}: {value}"
