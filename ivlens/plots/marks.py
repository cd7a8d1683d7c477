"""Which numbers of a table can be drawn, and how: lines and bands by kind of heads, error bars, numbers in cells?

Each number comes with its interval; NaN means "not measured".
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ivlens.errors import FigureError
from ivlens.plots.style import BLACK, LOOKS, NAMES, UNSTEERED, WHITE, Look, looks, safe, text_width
from ivlens.tables import interval_text

_DARK = 0.5
"""Between -1 and 1, values of whose colour black does not stand out."""


Box = tuple[float, float, float, float]
"""Left, lower, right and upper end."""


class Kind(NamedTuple):
    """The points of one kind of heads, and how they look wherever they are drawn."""

    name: str
    """Safe to show."""
    points: list[Point]
    look: Look

    @property
    def colour(self) -> str:
        return self.look.colour


def kinds(points: Sequence[Point]) -> list[Kind]:
    """The points by kind of heads, those that every figure knows first."""
    found = dict.fromkeys(point.heads for point in points)
    ordered = [kind for kind in LOOKS if kind in found] + [kind for kind in found if kind not in LOOKS]
    return [
        Kind(NAMES.get(kind, safe(kind, 24)), [point for point in points if point.heads == kind], look)
        for kind, look in looks(ordered).items()
    ]


def line(kind: Kind, x: list[Any], texts: list[str]) -> go.Scatter:
    """The values at `x`, with `texts` on hover."""
    return go.Scatter(
        x=x,
        y=[point.value for point in kind.points],
        mode="lines+markers",
        line={"color": kind.colour, "dash": kind.look.dash, "width": 1.5},
        marker={"symbol": kind.look.symbol, "size": 6},
        name=kind.name,
        legendgroup=kind.name,
        text=texts,
        hovertemplate="%{text}<extra></extra>",
    )


def band(kind: Kind) -> go.Scatter:
    """The interval as polygons, one for each stretch of layers without a gap."""
    xs, ys = [], []
    for measured, stretch in itertools.groupby(kind.points, lambda point: not math.isnan(sum(point[2:]))):
        there = list(stretch) if measured else []
        back = there[::-1]
        xs += [point.at for point in there + back] + [None]
        ys += [point.high for point in there] + [point.low for point in back] + [None]
    return go.Scatter(
        x=xs,
        y=ys,
        mode="lines",
        line={"width": 0, "color": kind.colour},
        fill="toself",
        opacity=0.2,
        legendgroup=kind.name,
        showlegend=False,
        hoverinfo="skip",
    )


def baselines(values: Mapping[str, float], first: Any, last: Any) -> list[go.Scatter]:
    """A level line from `first` to `last` for each value, with the value in its name."""
    others = itertools.cycle(("longdashdot", "dashdot"))
    lines = []
    for name, value in values.items():
        label = f"{NAMES.get(name, safe(name))} {'(not measured)' if math.isnan(value) else f'{value:.2f}'}"
        stroke = {"color": BLACK, "dash": UNSTEERED.get(name) or next(others), "width": 1}
        ends = {"x": [first, last], "y": [value, value]}
        lines.append(go.Scatter(**ends, mode="lines", line=stroke, name=label, hoverinfo="name"))
    return lines


def dots(kind: Kind, y: list[float], texts: list[str], *, size: float) -> go.Scatter:
    """The values and their intervals at the heights `y`, with `texts` on hover."""
    return go.Scatter(
        x=[point.value for point in kind.points],
        y=y,
        mode="markers",
        marker={"color": kind.colour, "symbol": kind.look.symbol, "size": size},
        error_x=error_bars(kind.points) | {"color": kind.colour, "width": 0},
        name=kind.name,
        legendgroup=kind.name,
        text=texts,
        hovertemplate="%{text}<extra></extra>",
    )


def error_bars(points: Sequence[Point]) -> dict[str, Any]:
    """From each value to the ends of its interval."""
    # An interval may miss its value by rounding; plotly draws a negative bar the wrong way round. NaN stays NaN: a bar
    # of no length would say that the value is certain. In a list it would become null, which plotly takes for 0.
    above = np.array([max(point.high - point.value, 0.0) for point in points])
    below = np.array([max(point.value - point.low, 0.0) for point in points])
    return {"array": above, "arrayminus": below, "symmetric": False, "thickness": 1, "width": 3}


def cell_numbers(grid: np.ndarray, *, size: float, first: int = 0) -> go.Scatter:
    """The values of a heatmap in its cells, black on pale ones and white on dark ones (plotly's own are grey).

    Args:
        grid: Between -1 and 1, on a scale that is white at 0; NaN stays empty.
        first: Number of the first column.
    """
    rows, columns = np.nonzero(~np.isnan(grid))
    values = grid[rows, columns]
    return go.Scatter(
        x=columns + first,
        y=rows,
        mode="text",
        text=[f"{value + 0.0:.2f}".replace("-", "−") for value in np.round(values, 2)],
        textfont={"size": size, "color": np.where(np.abs(values) < _DARK, BLACK, WHITE)},
        hoverinfo="skip",
        showlegend=False,
    )


def axis_range(points: Sequence[Point], *, zero: bool = False) -> list[float]:
    """Around the values and their intervals."""
    ends = [end for point in points for end in point[2:] if not math.isnan(end)] + ([0.0] if zero else [])
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    room = 0.08 * (max(high - low, 0.2 * max(abs(low), abs(high))) or 1.0)
    return [low - room, high + room]


def place_names(
    names: Sequence[str],
    at: Iterable[np.ndarray],
    edges: tuple[np.ndarray, np.ndarray],
    *,
    size: float,
    points: Iterable[np.ndarray],
    bars: Sequence[Box] = (),
) -> list[str | None]:
    """On which side of its point each name touches no name before it, no point and no bar; None: on none.

    All in pixels, from left to right and from below to above.

    Args:
        at: The point of each name.
        edges: The lower left corner of the plot and its upper right one, which no name crosses.
        size: Of the letters.
        points: All that are drawn.
        bars: Whatever else is in the way.
    """
    taken = [*bars, *((x - 3, y - 3, x + 3, y + 3) for x, y in points)]
    found: list[str | None] = []
    for name, (x, y) in zip(names, at, strict=True):
        half = text_width(name, size) / 2
        boxes = {
            side: (x + across - half, y + up - 5, x + across + half, y + up + 5)
            for side, (across, up) in _sides(half).items()
        }
        free = (side for side, box in boxes.items() if _is_inside(box, edges) and not _touches(box, taken))
        found.append(next(free, None))
        taken += [boxes[side] for side in found[-1:] if side]
    return found


def _sides(half: float) -> dict[str, tuple[float, float]]:
    """Where the middle of a name is, seen from its point, as plotly calls it; `half` is half of its width."""
    sides = {"top center": (0.0, 10.0), "bottom center": (0.0, -10.0)}
    sides |= {"middle right": (half + 7, 0.0), "middle left": (-half - 7, 0.0)}
    sides |= {"top right": (half + 5, 10.0), "bottom right": (half + 5, -10.0)}
    return sides | {"top left": (-half - 5, 10.0), "bottom left": (-half - 5, -10.0)}


def _is_inside(box: Box, edges: tuple[np.ndarray, np.ndarray]) -> bool:
    (left, low), (right, high) = edges
    return bool(left <= box[0] and low <= box[1] and box[2] <= right and box[3] <= high)


def _touches(box: Box, others: Sequence[Box]) -> bool:
    return any(box[0] < one[2] and one[0] < box[2] and box[1] < one[3] and one[1] < box[3] for one in others)


class Point(NamedTuple):
    """One row of a table."""

    at: Any
    """The layer, the number of heads, or the name of the measure."""
    heads: str
    """The kind of heads; empty where the table has none."""
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return interval_text(self.value, self.low, self.high)


def read_points(frame: pd.DataFrame, *, at: str, value: str, heads: str | None = None) -> list[Point]:
    """The rows of a table with columns `at`, `heads`, `value`, `low` and `high`, in their order.

    Raises:
        FigureError: a column is missing, a value is infinite, there is no row, or two rows are of one point.
    """
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
    points = [Point(*row) for row in zip(frame[at].tolist(), map(str, kinds), *numbers, strict=True)]
    for key, count in Counter((point.at, point.heads) for point in points).items():
        if count > 1:
            raise FigureError(f"the table has {count} rows for {at} {' '.join(map(str, key))}; keep one of them")
    return points


def read_accuracies(frame: pd.DataFrame, across: str) -> list[Point]:
    """The points of a column of accuracies, in the order of the numbers in the column `across`.

    Raises:
        FigureError: as for `read_points`, or a value is no accuracy, or `across` holds no number.
    """
    points = read_points(frame, at=across, value="accuracy", heads="heads")
    for point in points:
        if not isinstance(point.at, (int, float)) or math.isnan(point.at):
            raise FigureError(f"{across} is {point.at!r} in a row; it must be a number")
        if point.value < 0 or point.value > 1:
            raise FigureError(f"an accuracy is {point.value:g}; pass shares between 0 and 1, not percent")
    return sorted(points, key=lambda point: point.at)
