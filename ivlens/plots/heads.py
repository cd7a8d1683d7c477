"""What does every head carry, and what is lost without it? Effects as colours, intervals on hover or as bars.

Numbers in, figures out. NaN means "not measured": a gap, never a 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from plotly.subplots import make_subplots

from ivlens.errors import FigureError
from ivlens.plots.layout import legend_height, tick_step
from ivlens.plots.marks import error_bars, read_points
from ivlens.plots.notebook import Figure
from ivlens.plots.style import (
    BLACK,
    EFFECTS,
    GREY,
    LEFT,
    LOOKS,
    NAMES,
    NOT_MEASURED,
    Look,
    Width,
    break_text,
    is_narrow,
    lay_out,
    pixels,
    safe,
    text_width,
)
from ivlens.tables import interval_text

_MEASURES = {"AIE": Look(BLACK), "instructed": LOOKS["instructed"], "few-shot": LOOKS["few-shot"]}
PALE = 1 / 16
"""Share of the colours' bound at which `EFFECTS` has its palest colour beside white."""
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
    chance: float | None = None,
    marked: Iterable[tuple[int, int]] = (),
    columns: Sequence[str] = (),
    measure: str = "AIE",
    width: Width = "page",
) -> go.Figure:
    """Layers down, heads across, one colour a head; it grows with the square root of the effect.

    One large head would leave the others white on a linear scale; the numbers at the colour bar are those of effects.

    Args:
        aie: `[layer head]`; NaN where a head was not measured.
        low, high: The interval of each head, `[layer head]`; shown on hover.
        unit: Of the effect: `probability` or `nats`.
        bound: The colours run from -bound to bound; panels side by side get the same. Default: largest |aie|.
        chance: The largest |aie| that chance gives where no head carries anything; it is drawn pale, and told.
        marked: Heads to outline.
        columns: What stands across where it is not heads, such as `last` and `query` of positions.
        measure: What the colours are.

    Raises:
        FigureError: the shapes differ, a value is infinite, or a marked head is not in the grid.

    >>> figure = plots.head_heatmap([[0.1, -0.3], [0.0, float("nan")]], unit="nats", marked=[(0, 1)])
    >>> figure.data[0].zmin, figure.data[0].zmax, figure.data[0].text[1][1]
    (-0.3, 0.3, 'L1H1: not measured')
    """
    grid = _grid(aie, "aie")
    lows, highs = _ends(grid, low, high)
    bound = least_bound(_largest(grid), chance) if bound is None else bound
    if not (math.isfinite(bound) and bound > 0):
        raise FigureError(f"bound is {bound}; it must be a finite number above 0")
    if columns and len(columns) != grid.shape[1]:
        raise FigureError(f"there are {len(columns)} names of columns, but the grid has {grid.shape[1]}; name each")
    cell = _cell(grid.shape, width)
    gap = cell_gap(min(cell))
    heatmap = go.Heatmap(
        z=grid,
        zmin=-bound,
        zmax=bound,
        colorscale=EFFECTS,
        xgap=gap,
        ygap=gap,
        text=_head_texts(grid, lows, highs, bound, columns),
        hovertemplate="%{text}<extra></extra>",
    )
    figure = Figure(heatmap)
    for box in outlines(grid.shape, cell, marked):
        figure.add_shape(box)
    # Not the colour bar's own title, which runs into its numbers when the bar is long.
    beside = {"x": 1, "xref": "paper", "xanchor": "left", "xshift": _BESIDE_GRID - 20, "y": 0.5, "yref": "paper"}
    figure.add_annotation(text=bar_title(unit, chance, measure), textangle=-90, showarrow=False, **beside)
    _lay_out_grid(figure, grid.shape, cell, title, width)
    if columns:
        shown = [safe(name, 18) for name in columns]
        figure.update_xaxes(title_text="", tickvals=list(range(len(shown))), ticktext=shown)
    return figure


def necessity_by_head(
    frame: pd.DataFrame, *, unit: str = "probability", title: str | None = None, width: Width = "page"
) -> go.Figure:
    """What each head raises on corrupted prompts (AIE), beside what is lost from clean ones when it is ablated.

    Args:
        frame: Columns `heads` (what is ablated), `measure` (`AIE`, or the kind of prompt that P(answer) is lost from),
            `value`, `low`, `high`; one row for heads and a measure. Heads stand below each other in their order.
        unit: Of the AIE: `probability` or `nats`.

    Raises:
        FigureError: a column is missing, a value is infinite, or two rows are of the same heads and measure.

    >>> rows = [("L3H3", "AIE", 0.45, 0.37, 0.54), ("L3H3", "instructed", 0.0, 0.0, 0.01)]
    >>> frame = pd.DataFrame(rows, columns=["heads", "measure", "value", "low", "high"])
    >>> figure = plots.necessity_by_head(frame)
    >>> [trace.name for trace in figure.data], figure.layout.xaxis2.title.text
    (['AIE', 'with the instruction'], 'P(answer) lost when ablated')
    """
    points = read_points(frame, at="heads", value="value", heads="measure")
    names = list(dict.fromkeys(point.at for point in points))
    measures = sorted(dict.fromkeys(point.heads for point in points), key=lambda measure: measure != "AIE")
    gap = 14 / (pixels(width) - LEFT)
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=gap, figure=Figure())
    called = {measure: NAMES.get(measure, safe(measure)) for measure in measures}
    beside = [measure for measure in measures if measure != "AIE"]
    for measure in measures:
        own = [point for point in points if point.heads == measure]
        # Side by side, so that the intervals of two kinds of prompt do not hide each other.
        aside = 0.0 if measure == "AIE" else 0.3 * (beside.index(measure) - (len(beside) - 1) / 2)
        colour, symbol, _ = _MEASURES.get(measure, Look(GREY, "square"))
        dots = go.Scatter(
            x=[point.value for point in own],
            y=[names.index(point.at) + aside for point in own],
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 6},
            error_x=error_bars(own),
            name=called[measure],
            text=[f"{safe(point.at)}, {called[measure]}: {point}" for point in own],
            hovertemplate="%{text}<extra></extra>",
        )
        figure.add_trace(dots, row=1, col=1 if measure == "AIE" else 2)
    shown = [safe(name, 18 if is_narrow(width) else 36) for name in names]
    figure.update_yaxes(range=[len(names) - 0.4, -0.6], tickvals=list(range(len(names))), ticktext=shown)
    figure.update_xaxes(zeroline=True, zerolinecolor=BLACK, zerolinewidth=1)
    across = (pixels(width) - max(map(text_width, shown)) - 40) / 2
    titles = ["<br>".join(break_text(text, across)) for text in (f"AIE ({unit})", "P(answer) lost when ablated")]
    for column, text in enumerate(titles, start=1):
        figure.update_xaxes(title_text=text, row=1, col=column)
    below = 13 * max(text.count("<br>") for text in titles) + legend_height(list(called.values()), width)
    lay_out(figure, title, width, height=max(80, 22 * len(names)), below=below)
    return figure


def least_bound(largest: float, chance: float | None) -> float:
    """Of the colours, such that what chance gives is no darker than the palest colour of the scale."""
    return largest if not chance else max(largest, chance / PALE)


def bar_title(unit: str, chance: float | None, measure: str = "AIE") -> str:
    """Beside the colour bar: the unit of the effects, and how large they get by chance."""
    return f"{safe(measure, 24)} ({safe(unit, 24)})" + ("" if chance is None else f", by chance ±{chance:.2g}")


def cell_gap(across: float) -> int:
    """Pixels between cells of so many; between small ones, gaps would be as plain as the cells."""
    return int(across >= 10)


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
    """Pixels across and down. Cells of a large grid are square; those of few heads are wider than high, and lower the
    more layers there are."""
    across = (pixels(width) - LEFT - _BESIDE_GRID) / shape[1]
    down = min(across, 28.0, max(12.0, 420 / shape[0])) if across > 28 else across
    return across, max(down, 120 / shape[0])


def outlines(
    shape: tuple[int, ...], cell: tuple[float, float], marked: Iterable[tuple[int, int]]
) -> Iterator[dict[str, Any]]:
    """A box around each marked head of a grid whose cells have so many pixels across and down.

    Raises:
        FigureError: a marked head is not in the grid.
    """
    # Around small cells rather than on their edges: the line would hide the colour.
    across, down = (0.5 + (1 / pixels if pixels < 10 else 0) for pixels in cell)
    line = {"color": BLACK, "width": 1.5 if min(cell) >= 10 else 1}
    for layer, head in marked:
        if not (0 <= layer < shape[0] and 0 <= head < shape[1]):
            raise FigureError(f"L{layer}H{head} is marked but the grid has {shape[0]} layers of {shape[1]} heads")
        # Not beyond the grid, where it would be cut off.
        left, top = max(head - across, -0.5), max(layer - down, -0.5)
        right, bottom = min(head + across, shape[1] - 0.5), min(layer + down, shape[0] - 0.5)
        ends = {"x0": left, "x1": right, "y0": top, "y1": bottom}
        yield {"type": "rect", "line": line, **ends}


def _head_texts(
    grid: np.ndarray, low: np.ndarray, high: np.ndarray, bound: float, columns: Sequence[str]
) -> list[list[str]]:
    digits = min(max(3, 1 - math.floor(math.log10(bound))), 9)

    def text(layer: int, head: int) -> str:
        value = interval_text(grid[layer, head], low[layer, head], high[layer, head], digits)
        return f"L{layer}{f' {safe(columns[head])}' if columns else f'H{head}'}: {value}"

    layers, heads = grid.shape
    return [[text(layer, head) for head in range(heads)] for layer in range(layers)]


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
