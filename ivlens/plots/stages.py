"""What changes from stage to stage? Lines with their intervals, one panel a method.

Numbers in, figures out. Stage 0 is the base model. NaN means "not measured": a gap, never a 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from ivlens.errors import FigureError
from ivlens.plots import marks
from ivlens.plots.layout import Panels, arrange, finish, step
from ivlens.plots.marks import Point, read_points
from ivlens.plots.style import COLOURS, GREY, Width, safe

_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "x")


def stage_panels(
    frame: pd.DataFrame,
    *,
    unit: str,
    bounds: tuple[float, float] | None = None,
    pale: Mapping[str, str] | None = None,
    title: str | None = None,
    width: Width = "page",
) -> go.Figure:
    """Lines by stage; all panels share their axes.

    Args:
        frame: Columns `panel`, `line`, `stage`, `value`, `low`, `high`; one row for each stage of a line of a panel.
        unit: Of `value`; the title of its axis.
        bounds: Of the axis; as wide as the values unless given.
        pale: Lines that are dotted and without a band, and the line whose colour each takes; grey if there is none.

    Raises:
        FigureError: a column is missing, a value is infinite, or two rows are of one stage of a line.

    >>> frame = pd.DataFrame({"panel": "GP", "line": "lora", "stage": [0, 1, 2], "value": [1.0, 0.6, 0.4]})
    >>> figure = plots.stage_panels(frame.assign(low=0.3, high=1.0), unit="accuracy", bounds=(0.0, 1.0))
    >>> [list(trace.x) for trace in figure.data if trace.name == "lora"]
    [[0, 1, 2]]
    """
    drawn = _read(frame)
    lines = list(dict.fromkeys(frame["line"].map(str)))
    panels, pale = arrange(list(drawn), width=width), pale or {}
    in_legend = set[str]()
    for place, points in zip(panels.places, drawn.values(), strict=True):
        for line in lines:
            kind = _kind(line, points, lines, pale)
            if kind.points:
                _draw(panels.figure, place, kind, pale=line in pale, named=line not in in_legend)
                in_legend.add(line)
    every = [point for points in drawn.values() for point in points]
    _axes(panels, int(max(point.at for point in every)), unit, bounds or _bounds(every))
    return finish(panels, title)


def _read(frame: pd.DataFrame) -> dict[str, list[Point]]:
    if "panel" not in frame.columns:
        raise FigureError(f"the table has no column panel; it has {', '.join(map(str, frame.columns))}")
    if frame.empty:
        raise FigureError("the table has no rows; there is nothing to draw")
    found = {}
    for name, rows in frame.groupby("panel", sort=False):
        points = read_points(rows, at="stage", value="value", heads="line")
        found[str(name)] = sorted(points, key=lambda point: point.at)
    return found


def _kind(line: str, points: Sequence[Point], lines: Sequence[str], pale: Mapping[str, str]) -> marks.Kind:
    """A line looks the same in every panel."""
    strong = [name for name in lines if name not in pale]
    like = pale.get(line, line)
    index = strong.index(like) if like in strong else None
    colour = GREY if index is None else COLOURS[index % len(COLOURS)]
    symbol = _SYMBOLS[(index or 0) % len(_SYMBOLS)]
    return marks.Kind(safe(line), [point for point in points if point.heads == line], colour, symbol)


def _draw(figure: go.Figure, place: tuple[int, int], kind: marks.Kind, *, pale: bool, named: bool) -> None:
    row, column = place
    texts = [f"{kind.name}, stage {point.at:g}: {point}" for point in kind.points]
    line = marks.line(kind, [point.at for point in kind.points], texts).update(showlegend=named)
    if pale:
        line.update(mode="lines", line={"dash": "dot", "width": 1.2})
    else:
        line.update(marker_size=4)
        figure.add_trace(marks.band(kind), row=row, col=column)
    figure.add_trace(line, row=row, col=column)


def _axes(panels: Panels, last: int, unit: str, bounds: tuple[float, float]) -> None:
    figure = panels.figure
    room = 0.03 * max(1, last)
    ends = [-room, last + room]
    figure.update_xaxes(range=ends, tick0=0, dtick=step(last, panels.size[0]), matches="x", showticklabels=False)
    figure.update_yaxes(range=list(bounds), nticks=6, matches="y", showticklabels=False)
    figure.update_layout(xaxis_matches=None, yaxis_matches=None)  # An axis that matched itself would be warned of.
    for row, column in panels.places:
        if panels.is_lowest((row, column)):
            figure.update_xaxes(title_text="stage", showticklabels=True, row=row, col=column)
        if column == 1:
            figure.update_yaxes(showticklabels=True, title_text=safe(unit, 30), row=row, col=column)


def _bounds(points: Sequence[Point]) -> tuple[float, float]:
    """Around the values; an interval may leave it, so that one of few seeds does not flatten every line."""
    values = [point.value for point in points if not math.isnan(point.value)] or [0.0]
    room = 0.08 * (max(values) - min(values) or 1.0)
    return min(values) - room, max(values) + room
