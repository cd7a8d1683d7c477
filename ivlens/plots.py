"""Numbers in, figures out: what the heads carry, what steering does, and how sure either is.

Nothing here computes a statistic, shows or saves. NaN means "not measured": a gap, never a 0. Whatever text
comes in (task names, baselines) is shown as it is, never read as markup.
"""

from __future__ import annotations

import html
import itertools
import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from ivlens.errors import FigureError

Width = Literal["column", "page"]
"""Of a two-column paper: 3.5 or 7 inches at 96 pixels an inch, with text of 8 points in both."""

WIDTHS: dict[Width, int] = {"column": 336, "page": 672}
_FONT = 10.67  # 8 points.
_LEFT, _TOP, _BOTTOM = 48, 12, 44
_BESIDE_GRID = 88
"""Pixels for the colour bar, its numbers and its title."""

# Okabe & Ito, "Color Universal Design" (2008); yellow is left out as too pale for lines on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREY = "#6E6E6E"
_NOT_MEASURED = "#D0D0D0"
_STYLES = {
    "chosen": ("#0072B2", "circle"),
    "random": (_GREY, "square"),
    "bottom": ("#D55E00", "diamond"),
    "other-task": ("#009E73", "triangle-up"),
    "none": ("#000000", "x"),
}
# ColorBrewer RdBu, which colour-blind readers tell apart; white is exactly 0.
_DIVERGING = (
    (0.0, "#053061"),
    (0.125, "#2166AC"),
    (0.25, "#4393C3"),
    (0.375, "#92C5DE"),
    (0.5, "#FFFFFF"),
    (0.625, "#F4A582"),
    (0.75, "#D6604D"),
    (0.875, "#B2182B"),
    (1.0, "#67001F"),
)


class _Point(NamedTuple):
    """One checked row of a table."""

    at: Any
    """The layer, the number of heads, or the name of the measure."""
    heads: str
    value: float
    low: float
    high: float


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
    if (low is None) != (high is None):
        raise FigureError("an interval needs both low and high; pass both or neither")
    lows, highs = (np.full(grid.shape, np.nan) if end is None else _grid(end, "an interval") for end in (low, high))
    if not grid.shape == lows.shape == highs.shape:
        ends = f"{lows.shape} and {highs.shape}"
        raise FigureError(f"aie is {grid.shape} but its interval is {ends}; they must agree")
    bound = _largest(grid) if bound is None else bound
    if not (math.isfinite(bound) and bound > 0):
        raise FigureError(f"bound is {bound}; it must be a finite number above 0")
    cell = _cell(grid.shape, width)
    gap = int(min(cell) >= 10)
    heatmap = go.Heatmap(
        z=grid,
        zmin=-bound,
        zmax=bound,
        colorscale=_DIVERGING,
        xgap=gap,
        ygap=gap,
        text=_head_texts(grid, lows, highs, bound),
        hovertemplate="%{text}<extra></extra>",
    )
    figure = go.Figure(heatmap)
    _outline(figure, grid.shape, marked)
    # Not the colour bar's own title, which runs into its numbers when the bar is long.
    beside = {"x": 1, "xref": "paper", "xanchor": "left", "xshift": _BESIDE_GRID - 20, "y": 0.5, "yref": "paper"}
    figure.add_annotation(text=f"AIE ({_safe(unit, 24)})", textangle=-90, showarrow=False, **beside)
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
    kinds = _kinds(_accuracies(frame, "layer"))
    layers = [point.at for _, points, _ in kinds for point in points]
    figure = go.Figure()
    for name, points, style in kinds:
        texts = [f"{name}, layer {point.at:g}: {_interval(*point[2:])}" for point in points]
        figure.add_trace(_band(points, style, name))
        figure.add_trace(_line([point.at for point in points], points, style, name, texts))
    figure.add_traces(_baselines(baselines or {}, min(layers), max(layers)))
    step = _step(int(max(layers) - min(layers)) + 1, width)
    figure.update_xaxes(title_text="layer steered", tick0=0, dtick=step)
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
    kinds = _kinds(_accuracies(frame, "n_heads"))
    counts = sorted({point.at for _, points, _ in kinds for point in points})
    figure = go.Figure()
    for index, (name, points, style) in enumerate(kinds):
        # Side by side, so that the intervals of two kinds do not hide each other.
        aside = 0.08 * (index - (len(kinds) - 1) / 2)
        places = [counts.index(point.at) + aside for point in points]
        texts = [f"{name}, n = {point.at:g}: {_interval(*point[2:])}" for point in points]
        line = _line(places, points, style, name, texts)
        figure.add_trace(line.update(error_y=_error_bars(points)))
    figure.add_traces(_baselines(baselines or {}, -0.3, len(counts) - 0.7))
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
    points = _points(frame, at="measure", value="value")
    places = list(range(len(points)))
    bars = go.Bar(
        x=[point.value for point in points],
        y=places,
        orientation="h",
        width=0.6,
        marker={"color": "#56B4E9"},
        error_x=_error_bars(points),
        customdata=[f"{_safe(point.at)}: {_interval(*point[2:])}" for point in points],
        hovertemplate="%{customdata}<extra></extra>",
    )
    figure = go.Figure(bars)
    for place, point in enumerate(points):
        missing = math.isnan(point.value)
        end = 0 if missing else np.nanmax([0, point.value, point.high])
        text = {"text": "not measured" if missing else f"{point.value:.2f}", "font_color": _GREY}
        figure.add_annotation(x=end, y=place, showarrow=False, xanchor="left", xshift=4, **text)
    names = [_safe(point.at, limit=20 if width == "column" else 36) for point in points]
    figure.update_yaxes(tickvals=places, ticktext=names, showgrid=False, ticks="")
    figure.update_yaxes(range=[len(points) - 0.4, -0.6])
    figure.update_xaxes(title_text=_safe(unit), range=_bar_range(points, unit))
    _lay_out(figure, title, width, height=24 * len(points))
    return figure


@cache
def _template() -> go.layout.Template:
    lines = {"linecolor": "#444444", "tickcolor": "#444444", "gridcolor": "#E5E5E5"}
    ticks = {"ticks": "outside", "ticklen": 3, "exponentformat": "e"}
    axis = {"automargin": True, "showline": True, "zeroline": False, "title_standoff": 6} | lines | ticks
    text = {"family": "Arial, Helvetica, Liberation Sans, sans-serif", "size": _FONT, "color": "#222222"}
    layout = {
        "font": text,
        "title": {"x": 0, "pad_l": 8, "yanchor": "bottom", "font_size": _FONT + 1.33},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": _COLOURS,
        "xaxis": axis | {"title_font_size": _FONT},
        "yaxis": axis | {"title_font_size": _FONT},
        "margin": {"l": _LEFT, "r": 12, "t": _TOP, "b": _BOTTOM},
        "legend": {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom", "tracegroupgap": 0},
        "hoverlabel": {"font": text, "bgcolor": "white"},
    }
    bar = {"outlinewidth": 0, "thickness": 10, "xpad": 8, "ypad": 0} | ticks
    return go.layout.Template(layout=layout, data={"heatmap": [{"colorbar": bar}]})


def _pixels(width: Width) -> int:
    if width not in WIDTHS:
        raise FigureError(f"width is {width!r}; it can be {' or '.join(WIDTHS)}")
    return WIDTHS[width]


def _lay_out(figure: go.Figure, title: str | None, width: Width, *, height: int, below: int = 0) -> None:
    """Size the figure for a plot of `height` pixels with `below` pixels of legend; break the title into lines."""
    # A letter of this font is about half as wide as high; a wide one must not be cut.
    lines = textwrap.wrap(title or "", int(_pixels(width) / (0.58 * _FONT)), max_lines=3, placeholder=" …")
    above, below = _TOP + 16 * len(lines), _BOTTOM + below
    height = above + height + below
    figure.update_layout(template=_template(), width=_pixels(width), height=height)
    figure.update_layout(margin={"t": above, "b": below})
    if lines:  # Anchored by the foot of the first line: plotly cuts it when anchored by its top.
        text = "<br>".join(_safe(line, 200) for line in lines)
        figure.update_layout(title={"text": text, "y": 1 - 18 / height})


def _lay_out_accuracy(figure: go.Figure, title: str | None, width: Width) -> None:
    figure.update_yaxes(title_text="accuracy (share of prompts)", range=[-0.02, 1.02], dtick=0.2)
    entries = len(list(figure.select_traces(lambda trace: trace.showlegend is not False)))
    rows = math.ceil(entries / (2 if width == "column" else 5))
    _lay_out(figure, title, width, height=180 if width == "column" else 260, below=19 * rows)


def _lay_out_grid(
    figure: go.Figure, shape: tuple[int, ...], cell: tuple[float, float], title: str | None, width: Width
) -> None:
    layers, heads = shape
    figure.update_xaxes(title_text="head", tick0=0, dtick=_step(heads, width), range=[-0.5, heads - 0.5])
    figure.update_yaxes(title_text="layer", tick0=0, dtick=_step(layers, width), range=[layers - 0.5, -0.5])
    figure.update_xaxes(showgrid=False).update_yaxes(showgrid=False)
    _lay_out(figure, title, width, height=round(layers * cell[1]))
    figure.update_layout(plot_bgcolor=_NOT_MEASURED, margin_r=_BESIDE_GRID)


def _cell(shape: tuple[int, ...], width: Width) -> tuple[float, float]:
    """Pixels across and down. Cells of a large grid are square; those of a small one are wider than high."""
    across = (_pixels(width) - _LEFT - _BESIDE_GRID) / shape[1]
    return across, max(min(across, 28.0), 120 / shape[0])


def _outline(figure: go.Figure, shape: tuple[int, ...], marked: Iterable[tuple[int, int]]) -> None:
    for layer, head in marked:
        if not (0 <= layer < shape[0] and 0 <= head < shape[1]):
            raise FigureError(f"L{layer}H{head} is marked but the grid has {shape[0]} layers of {shape[1]} heads")
        box = {"x0": head - 0.5, "x1": head + 0.5, "y0": layer - 0.5, "y1": layer + 0.5}
        figure.add_shape(type="rect", line={"color": "#000000", "width": 1.5}, **box)


def _head_texts(grid: np.ndarray, low: np.ndarray, high: np.ndarray, bound: float) -> list[list[str]]:
    digits = min(max(3, 1 - math.floor(math.log10(bound))), 9)

    def text(layer: int, head: int) -> str:
        value = _interval(grid[layer, head], low[layer, head], high[layer, head], digits)
        return f"L{layer}H{head}: {value}"

    layers, heads = grid.shape
    return [[text(layer, head) for head in range(heads)] for layer in range(layers)]


def _interval(value: float, low: float, high: float, digits: int = 3) -> str:
    if math.isnan(value):
        return "not measured"
    if math.isnan(low) or math.isnan(high):
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _kinds(points: list[_Point]) -> list[tuple[str, list[_Point], tuple[str, str]]]:
    """The points of each kind of head, known kinds first, under a name that is safe to show."""
    found = dict.fromkeys(point.heads for point in points)
    spare = itertools.cycle(zip(_COLOURS[3:6], ("star", "cross", "pentagon"), strict=True))
    ordered = [kind for kind in _STYLES if kind in found] + [kind for kind in found if kind not in _STYLES]
    return [
        (
            _safe(kind, 24),
            [point for point in points if point.heads == kind],
            _STYLES.get(kind) or next(spare),
        )
        for kind in ordered
    ]


def _line(x: list[Any], points: list[_Point], style: tuple[str, str], name: str, texts: list[str]) -> go.Scatter:
    colour, symbol = style
    return go.Scatter(
        x=x,
        y=[point.value for point in points],
        mode="lines+markers",
        line={"color": colour, "width": 1.5},
        marker={"symbol": symbol, "size": 6},
        name=name,
        legendgroup=name,
        text=texts,
        hovertemplate="%{text}<extra></extra>",
    )


def _band(points: list[_Point], style: tuple[str, str], name: str) -> go.Scatter:
    """The interval as polygons, one for each stretch of layers without a gap."""
    xs, ys = [], []
    for measured, stretch in itertools.groupby(points, lambda point: not math.isnan(sum(point[2:]))):
        there = list(stretch) if measured else []
        back = there[::-1]
        xs += [point.at for point in there + back] + [None]
        ys += [point.high for point in there] + [point.low for point in back] + [None]
    return go.Scatter(
        x=xs,
        y=ys,
        mode="lines",
        line={"width": 0, "color": style[0]},
        fill="toself",
        opacity=0.2,
        legendgroup=name,
        showlegend=False,
        hoverinfo="skip",
    )


def _baselines(baselines: Mapping[str, float], first: Any, last: Any) -> list[go.Scatter]:
    strokes = itertools.cycle([("#000000", "dash"), (_GREY, "dash"), ("#000000", "dot"), (_GREY, "dot")])
    lines = []
    for (name, value), (colour, dash) in zip(baselines.items(), strokes, strict=False):
        label = f"{_safe(name)} {'(not measured)' if math.isnan(value) else f'{value:.2f}'}"
        stroke = {"color": colour, "dash": dash, "width": 1}
        ends = {"x": [first, last], "y": [value, value]}
        lines.append(go.Scatter(**ends, mode="lines", line=stroke, name=label, hoverinfo="name"))
    return lines


def _error_bars(points: list[_Point]) -> dict[str, Any]:
    # An interval may miss its value by rounding; plotly draws a negative bar the wrong way round.
    above = [max(0.0, point.high - point.value) for point in points]
    below = [max(0.0, point.value - point.low) for point in points]
    return {"array": above, "arrayminus": below, "symmetric": False, "thickness": 1, "width": 3}


def _bar_range(points: list[_Point], unit: str) -> list[float]:
    """From 0 or below to the longest interval, and room for the number behind it."""
    ends = [end for point in points for end in point[2:] if not math.isnan(end)]
    highest = max([*ends, 1.0 if unit == "accuracy" else 0.0])
    return [min([*ends, 0.0]) * 1.05, (highest or 1.0) * 1.15]


def _step(count: int, width: Width) -> int:
    """Between ticks, so that numbers stand apart: at most 16 on a page, 10 in a column."""
    most = 10 if width == "column" else 16
    return next(step for step in itertools.chain((1, 2, 4, 5), itertools.count(8, 8)) if count <= most * step)


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


def _accuracies(frame: pd.DataFrame, across: str) -> list[_Point]:
    points = _points(frame, at=across, value="accuracy", heads="heads")
    for point in points:
        if not isinstance(point.at, (int, float)) or math.isnan(point.at):
            raise FigureError(f"{across} is {point.at!r} in a row; it must be a number")
        if point.value < 0 or point.value > 1:
            raise FigureError(f"an accuracy is {point.value:g}; pass shares between 0 and 1, not percent")
    return sorted(points, key=lambda point: point.at)


def _points(frame: pd.DataFrame, *, at: str, value: str, heads: str | None = None) -> list[_Point]:
    needed = [at, *([heads] if heads else []), value, "low", "high"]
    missing = [column for column in needed if column not in frame.columns]
    if missing:
        have = ", ".join(map(str, frame.columns)) or "no columns"
        raise FigureError(f"the table has no column {', '.join(missing)}; it has {have}")
    if frame.empty:
        raise FigureError("the table has no rows; there is nothing to draw")
    for column in (value, "low", "high"):
        if not pd.api.types.is_numeric_dtype(frame[column]) or np.isinf(frame[column].to_numpy(float)).any():
            raise FigureError(f"the column {column} must hold finite numbers, or NaN for not measured")
    kinds = frame[heads].tolist() if heads else [""] * len(frame)
    numbers = (frame[column].to_numpy(float).tolist() for column in (value, "low", "high"))
    points = [_Point(*row) for row in zip(frame[at].tolist(), map(str, kinds), *numbers, strict=True)]
    for key, count in Counter((point.at, point.heads) for point in points).items():
        if count > 1:
            raise FigureError(f"the table has {count} rows for {at} {' '.join(map(str, key))}; keep one of them")
    return points


def _safe(text: object, limit: int = 60) -> str:
    """As plotly shows it unchanged: it reads tags and entities, and in notebooks TeX between dollars."""
    shown = " ".join(str(text).split())
    shown = shown if len(shown) <= limit else f"{shown[: limit - 1]}…"
    return html.escape(shown, quote=False).replace("$", "&#36;")
