"""Numbers in, figures out: what the heads carry, what steering does, and how sure either is.

Nothing here computes a statistic, shows or saves. NaN means "not measured": a gap, never a 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from ivlens import traces
from ivlens.errors import FigureError
from ivlens.points import Point, interval_text, read_accuracies, read_points
from ivlens.style import BLACK, BLUE, DIVERGING, GREY, LEFT, NOT_MEASURED, lay_out, pixels, safe, tick_step
from ivlens.style import WIDTHS as WIDTHS
from ivlens.style import Width as Width

_BESIDE_GRID = 88
"""Pixels for the colour bar, its numbers and its title."""


def head_heatmap(
    aie: ArrayLike,
    *,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    title: str | None = None,
    unit: str = "probability",
    bound: float | None = None,
    marked: Iterable[tuple[int, int]] = (),
    width: Width = "page",
) -> go.Figure:
    """Layers down, heads across, one colour a head.

    Args:
        aie: `[layer head]`; NaN where a head was not measured.
        low, high: The interval of each head, `[layer head]`; shown on hover.
        unit: Of the effect: `probability` or `nats`.
        bound: The colours run from -bound to bound; panels side by side get the same. Default: largest |aie|.
        marked: Heads to outline.

    Raises:
        FigureError: the shapes differ, a value is infinite, or a marked head is not in the grid.
    """
    grid = _grid(aie, "aie")
    lows, highs = _ends(grid, low, high)
    bound = _largest(grid) if bound is None else bound
    if not (math.isfinite(bound) and bound > 0):
        raise FigureError(f"bound is {bound}; it must be a finite number above 0")
    cell = _cell(grid.shape, width)
    gap = int(min(cell) >= 10)
    heatmap = go.Heatmap(
        z=grid,
        zmin=-bound,
        zmax=bound,
        colorscale=DIVERGING,
        xgap=gap,
        ygap=gap,
        text=_head_texts(grid, lows, highs, bound),
        hovertemplate="%{text}<extra></extra>",
    )
    figure = go.Figure(heatmap)
    _outline(figure, grid.shape, marked)
    # Not the colour bar's own title, which runs into its numbers when the bar is long.
    beside = {"x": 1, "xref": "paper", "xanchor": "left", "xshift": _BESIDE_GRID - 20, "y": 0.5, "yref": "paper"}
    figure.add_annotation(text=f"AIE ({safe(unit, 24)})", textangle=-90, showarrow=False, **beside)
    _lay_out_grid(figure, grid.shape, cell, title, width)
    return figure


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
    figure = go.Figure()
    for kind in traces.kinds(points):
        texts = [f"{kind.name}, layer {point.at:g}: {point}" for point in kind.points]
        figure.add_trace(traces.band(kind))
        figure.add_trace(traces.line(kind, [point.at for point in kind.points], texts))
    figure.add_traces(traces.baselines(baselines or {}, first, last))
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
    kinds = traces.kinds(points)
    counts = sorted({point.at for point in points})
    figure = go.Figure()
    for index, kind in enumerate(kinds):
        # Side by side, so that the intervals of two kinds do not hide each other.
        aside = 0.08 * (index - (len(kinds) - 1) / 2)
        places = [counts.index(point.at) + aside for point in kind.points]
        texts = [f"{kind.name}, n = {point.at:g}: {point}" for point in kind.points]
        line = traces.line(kind, places, texts)
        figure.add_trace(line.update(error_y=traces.error_bars(kind.points)))
    figure.add_traces(traces.baselines(baselines or {}, -0.3, len(counts) - 0.7))
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
        error_x=traces.error_bars(points),
        customdata=[f"{safe(point.at)}: {point}" for point in points],
        hovertemplate="%{customdata}<extra></extra>",
    )
    figure = go.Figure(bars)
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


def _lay_out_grid(
    figure: go.Figure, shape: tuple[int, ...], cell: tuple[float, float], title: str | None, width: Width
) -> None:
    layers, heads = shape
    figure.update_xaxes(title_text="head", tick0=0, dtick=tick_step(heads, width), range=[-0.5, heads - 0.5])
    figure.update_yaxes(title_text="layer", tick0=0, dtick=tick_step(layers, width), range=[layers - 0.5, -0.5])
    figure.update_xaxes(showgrid=False).update_yaxes(showgrid=False)
    lay_out(figure, title, width, height=round(layers * cell[1]))
    figure.update_layout(plot_bgcolor=NOT_MEASURED, margin_r=_BESIDE_GRID)


def _cell(shape: tuple[int, ...], width: Width) -> tuple[float, float]:
    """Pixels across and down. Cells of a large grid are square; those of a small one are wider than high."""
    across = (pixels(width) - LEFT - _BESIDE_GRID) / shape[1]
    return across, max(min(across, 28.0), 120 / shape[0])


def _outline(figure: go.Figure, shape: tuple[int, ...], marked: Iterable[tuple[int, int]]) -> None:
    for layer, head in marked:
        if not (0 <= layer < shape[0] and 0 <= head < shape[1]):
            raise FigureError(f"L{layer}H{head} is marked but the grid has {shape[0]} layers of {shape[1]} heads")
        box = {"x0": head - 0.5, "x1": head + 0.5, "y0": layer - 0.5, "y1": layer + 0.5}
        figure.add_shape(type="rect", line={"color": BLACK, "width": 1.5}, **box)


def _head_texts(grid: np.ndarray, low: np.ndarray, high: np.ndarray, bound: float) -> list[list[str]]:
    digits = min(max(3, 1 - math.floor(math.log10(bound))), 9)

    def text(layer: int, head: int) -> str:
        value = interval_text(grid[layer, head], low[layer, head], high[layer, head], digits)
        return f"L{layer}H{head}: {value}"

    layers, heads = grid.shape
    return [[text(layer, head) for head in range(heads)] for layer in range(layers)]


def _bar_range(points: list[Point], unit: str) -> list[float]:
    """From 0 or below to the longest interval, and room for the number behind it."""
    ends = [end for point in points for end in point[2:] if not math.isnan(end)]
    highest = max([*ends, 1.0 if unit == "accuracy" else 0.0])
    return [min([*ends, 0.0]) * 1.05, (highest or 1.0) * 1.15]


def _largest(grid: np.ndarray) -> float:
    measured = np.abs(grid[~np.isnan(grid)])
    return float(measured.max(initial=0)) or 1.0


def _grid(values: ArrayLike, name: str) -> np.ndarray:
    grid = np.asarray(values, dtype=float)
    if grid.ndim != 2 or not grid.size:
        raise FigureError(f"{name} is {grid.shape}; a heatmap needs (layer, head)")
    if np.isinf(grid).any():
        layer, head = np.argwhere(np.isinf(grid))[0]
        raise FigureError(f"{name} is infinite at L{layer}H{head}; draw finite numbers, or NaN for not measured")
    return grid


def _ends(grid: np.ndarray, low: ArrayLike | None, high: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Of the intervals of `grid`, NaN without any."""
    if low is None and high is None:
        return np.full(grid.shape, np.nan), np.full(grid.shape, np.nan)
    if low is None or high is None:
        raise FigureError("an interval needs both low and high; pass both or neither")
    lows, highs = _grid(low, "an interval"), _grid(high, "an interval")
    if not grid.shape == lows.shape == highs.shape:
        ends = f"{lows.shape} and {highs.shape}"
        raise FigureError(f"aie is {grid.shape} but its interval is {ends}; they must agree")
    return lows, highs
