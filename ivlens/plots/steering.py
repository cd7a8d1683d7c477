"""What does the vector do, and with how many heads, and beside what? Accuracies and their intervals.

Numbers in, figures out. NaN means "not measured": a gap, never a 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ivlens.plots import marks
from ivlens.plots.marks import Point, read_accuracies, read_points
from ivlens.plots.notebook import Figure
from ivlens.plots.style import BLUE, GREY, Width, lay_out, safe, tick_step


def steering_by_layer(
    frame: pd.DataFrame,
    *,
    baselines: Mapping[str, float] | None = None,
    title: str | None = None,
    width: Width = "page",
) -> go.Figure:
    """Accuracy against the layer at which the vector is added; a line and its interval for each kind of head.

    Args:
        frame: Columns `layer`, `heads` (`chosen`, `random`, `bottom`, `other-task`, `none`), `accuracy`,
            `low`, `high`; one row for a layer and a kind of head.
        baselines: Accuracies without steering, such as `{"zero-shot": 0.1, "instructed": 0.9}`; drawn dashed.

    Raises:
        FigureError: a column is missing, a value is no accuracy, or two rows are of one layer and kind of head.
    """
    points = read_accuracies(frame, "layer")
    first, last = points[0].at, points[-1].at
    figure = Figure()
    for kind in marks.kinds(points):
        texts = [f"{kind.name}, layer {point.at:g}: {point}" for point in kind.points]
        figure.add_trace(marks.band(kind))
        figure.add_trace(marks.line(kind, [point.at for point in kind.points], texts))
    figure.add_traces(marks.baselines(baselines or {}, first, last))
    figure.update_xaxes(title_text="layer steered", tick0=0, dtick=tick_step(int(last - first) + 1, width))
    _lay_out_accuracy(figure, title, width)
    return figure


def accuracy_by_heads(
    frame: pd.DataFrame,
    *,
    baselines: Mapping[str, float] | None = None,
    title: str | None = None,
    width: Width = "page",
) -> go.Figure:
    """Accuracy against the number of heads in the vector, spaced evenly whatever they are (1, 2, 5, 10).

    Args:
        frame: Columns `n_heads`, `heads`, `accuracy`, `low`, `high`; one row for a number and a kind of head.
        baselines: As for `steering_by_layer`.

    Raises:
        FigureError: as for `steering_by_layer`.
    """
    points = read_accuracies(frame, "n_heads")
    kinds = marks.kinds(points)
    counts = sorted({point.at for point in points})
    figure = Figure()
    for index, kind in enumerate(kinds):
        # Side by side, so that the intervals of two kinds do not hide each other.
        aside = 0.08 * (index - (len(kinds) - 1) / 2)
        places = [counts.index(point.at) + aside for point in kind.points]
        texts = [f"{kind.name}, n = {point.at:g}: {point}" for point in kind.points]
        line = marks.line(kind, places, texts)
        figure.add_trace(line.update(error_y=marks.error_bars(kind.points)))
    figure.add_traces(marks.baselines(baselines or {}, -0.3, len(counts) - 0.7))
    ticks = {"tickvals": list(range(len(counts))), "ticktext": [f"{count:g}" for count in counts]}
    figure.update_xaxes(title_text="number of heads", **ticks)
    _lay_out_accuracy(figure, title, width)
    return figure


def measures_bars(
    frame: pd.DataFrame, *, unit: str = "accuracy", title: str | None = None, width: Width = "page"
) -> go.Figure:
    """A bar with its interval for each measure (zero-shot, instructed, steered, ...), the first on top.

    Args:
        frame: Columns `measure`, `value`, `low`, `high`; one row a measure.
        unit: What `value` is; the title of its axis.

    Raises:
        FigureError: a column is missing, a value is infinite, or a measure comes twice.
    """
    points = read_points(frame, at="measure", value="value")
    places = list(range(len(points)))
    bars = go.Bar(
        x=[point.value for point in points],
        y=places,
        orientation="h",
        width=0.6,
        marker={"color": BLUE},
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
    names = [safe(point.at, limit=20 if width == "column" else 36) for point in points]
    figure.update_yaxes(tickvals=places, ticktext=names, showgrid=False, ticks="")
    figure.update_yaxes(range=[len(points) - 0.4, -0.6])
    figure.update_xaxes(title_text=safe(unit), range=_bar_range(points, unit))
    lay_out(figure, title, width, height=24 * len(points))
    return figure


def _lay_out_accuracy(figure: go.Figure, title: str | None, width: Width) -> None:
    figure.update_yaxes(title_text="accuracy (share of prompts)", range=[-0.02, 1.02], dtick=0.2)
    entries = len(list(figure.select_traces(lambda trace: trace.showlegend is not False)))
    rows = math.ceil(entries / (2 if width == "column" else 5))
    lay_out(figure, title, width, height=180 if width == "column" else 260, below=19 * rows)


def _bar_range(points: list[Point], unit: str) -> list[float]:
    """From 0 or below to the longest interval, and room for the number behind it."""
    ends = [end for point in points for end in point[2:] if not math.isnan(end)]
    highest = max([*ends, 1.0 if unit == "accuracy" else 0.0])
    return [min([*ends, 0.0]) * 1.05, (highest or 1.0) * 1.15]
