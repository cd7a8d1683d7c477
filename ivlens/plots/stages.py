"""What changes from stage to stage? Lines with their intervals, one panel a method, or one row of panels.

Numbers in, figures out. Stage 0 is the base model. NaN means "not measured": a gap, never a 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pandas as pd
import plotly.graph_objects as go

from ivlens.errors import FigureError
from ivlens.plots import marks
from ivlens.plots.layout import Panels, arrange, finish, legend_height, step
from ivlens.plots.marks import Point, read_points
from ivlens.plots.notebook import Figure
from ivlens.plots.style import FONT, GREY, LEFT, Look, Width, is_narrow, lay_out, method_looks, safe
from ivlens.plots.style import looks as find_looks

_LONGEST = 60
"""Characters of a name in a legend."""
_FLAT = 0.08
"""Share of the axis: of a line that moves by less, the panel says where it stays."""


def stage_panels(
    frame: pd.DataFrame,
    *,
    unit: str,
    bounds: tuple[float, float] | None = None,
    looks: Mapping[str, Look] | None = None,
    pale: Mapping[str, str] | None = None,
    title: str | None = None,
    width: Width = "page",
) -> go.Figure:
    """Lines by stage; all panels share their axes.

    Args:
        frame: Columns `panel`, `line`, `stage`, `value`, `low`, `high`; one row for each stage of a line of a panel.
            With a column `row`, each of its names has a row of panels, and stands at its left.
        unit: Of `value`; the title of its axis.
        bounds: Of the axis; an interval that leaves them makes it longer.
        looks: Of each line; as its name says unless given.
        pale: Lines that are dotted and without a band, and the line whose colour each takes; grey if there is none.

    Raises:
        FigureError: a column is missing, a value is infinite, or two rows are of one stage of a line.

    >>> frame = pd.DataFrame({"panel": "GP", "line": "lora", "stage": [0, 1, 2], "value": [1.0, 0.6, 0.4]})
    >>> figure = plots.stage_panels(frame.assign(low=0.3, high=1.0), unit="accuracy", bounds=(0.0, 1.0))
    >>> [list(trace.x) for trace in figure.data if trace.name == "lora"]
    [[0, 1, 2]]
    """
    drawn = _read(frame)
    lines, rows = list(dict.fromkeys(frame["line"].map(str))), list(dict.fromkeys(row for row, _ in drawn))
    across = None if rows == [""] else _across(len(drawn) // len(rows), width)
    left = LEFT if across is None else LEFT + round(1.4 * FONT)
    panels, pale = arrange([panel for _, panel in drawn], width=width, across=across, left=left), pale or {}
    known = {**find_looks(lines), **(looks or {})}
    # A line that stands in one panel, whose title is its name, is named there.
    own_names = {line for line in lines if set(frame["panel"][frame["line"] == line]) == {line}}
    in_legend = set[str]()
    for place, points in zip(panels.places, drawn.values(), strict=True):
        for line in lines:
            kind = marks.Kind(safe(line), [point for point in points if point.heads == line], known[line])
            if kind.points:
                paler = known.get(pale[line], Look(GREY)) if line in pale else None
                named = line not in in_legend and line not in own_names
                _draw(panels.figure, place, kind, pale=paler, named=named)
                in_legend.add(line)
    every = [point for points in drawn.values() for point in points]
    low, high = _bounds(every, bounds)
    for place, points in zip(panels.places, drawn.values(), strict=True):
        _say_flat(panels.figure, place, points, pale, (low, high))
    units = [safe(unit, 30) if not row else f"{safe(row, 20)}<br>{safe(unit, 20)}" for row in rows]
    units = [unit for unit in units for _ in range(len(drawn) // len(rows) // across)] if across else units
    _axes(panels, int(max(point.at for point in every)), units, (low, high))
    return finish(panels, title)


def stage_points(
    frame: pd.DataFrame,
    *,
    axes: tuple[str, str],
    names: Mapping[str, str] | None = None,
    title: str | None = None,
    width: Width = "page",
) -> go.Figure:
    """Two measures of the same tasks against each other, a point for every stage.

    Args:
        frame: Columns `method`, which is the colour, `x` and `y`, and `task`, `stage` and `seed`, which hovering tells.
        axes: Names of the two axes.
        names: Of the methods, in the legend.

    Raises:
        FigureError: a column is missing, there are no rows, or a value is infinite.

    >>> frame = pd.DataFrame({"method": "lora", "x": [0.9, 0.6], "y": [0.8, 0.1], "task": "antonym", "stage": [1, 2]})
    >>> figure = plots.stage_points(frame.assign(seed=0), axes=("cosine", "accuracy"), names={"lora": "lora: r 1"})
    >>> figure.data[0].name, list(figure.data[0].y), figure.data[0].text[1]
    ('lora: r 1', [0.8, 0.1], 'antonym, stage 2, seed 0')
    """
    missing = [name for name in ("method", "x", "y", "task", "stage", "seed") if name not in frame.columns]
    if missing:
        raise FigureError(f"the table has no column {missing[0]}; it has {', '.join(map(str, frame.columns))}")
    if frame.empty or not frame[["x", "y"]].abs().lt(math.inf).to_numpy().all():
        raise FigureError("the table has no rows, or a value in it is infinite or NaN; there is nothing to draw")
    figure, legend = Figure(), list[str]()
    for method, look in method_looks(dict.fromkeys(frame["method"].map(str))).items():
        own = frame[frame["method"] == method]
        legend.append(safe((names or {}).get(method, method), _LONGEST))
        where = zip(own["task"], own["stage"], own["seed"], strict=True)
        dots = go.Scatter(
            x=own["x"].tolist(),
            y=own["y"].tolist(),
            mode="markers",
            marker={"color": look.colour, "symbol": look.symbol, "size": 6, "opacity": 0.75},
            name=legend[-1],
            showlegend=True,
            text=[f"{safe(str(task))}, stage {stage}, seed {seed}" for task, stage, seed in where],
            hovertemplate="%{text}: %{x:.2f}, %{y:.2f}<extra></extra>",
        )
        figure.add_trace(dots)
    figure.update_xaxes(title_text=safe(axes[0], 60))
    figure.update_yaxes(title_text=safe(axes[1], 60))
    lay_out(figure, title, width, height=220 if is_narrow(width) else 300, below=legend_height(legend, width))
    return figure


def _across(count: int, width: Width) -> int:
    """Of so many panels of a row, how many stand beside each other; in a column those of a row stand in several."""
    return count if not is_narrow(width) or count % 2 else 2


def _read(frame: pd.DataFrame) -> dict[tuple[str, str], list[Point]]:
    """By row and panel, every panel in every row; the points of one that was not measured are none."""
    if "panel" not in frame.columns:
        raise FigureError(f"the table has no column panel; it has {', '.join(map(str, frame.columns))}")
    if frame.empty:
        raise FigureError("the table has no rows; there is nothing to draw")
    frame = frame if "row" in frame.columns else frame.assign(row="")
    found = {(str(row), str(panel)): [] for row in frame["row"].unique() for panel in frame["panel"].unique()}
    for (row, panel), own in cast(Any, frame.groupby(["row", "panel"], sort=False)):
        points = read_points(own, at="stage", value="value", heads="line")
        found[str(row), str(panel)] = sorted(points, key=lambda point: point.at)
    return found


def _draw(figure: go.Figure, place: tuple[int, int], kind: marks.Kind, *, pale: Look | None, named: bool) -> None:
    row, column = place
    texts = [f"{kind.name}, stage {point.at:g}: {point}" for point in kind.points]
    line = marks.line(kind, [point.at for point in kind.points], texts).update(showlegend=named)
    if pale is not None:
        line.update(mode="lines", line={"color": pale.colour, "dash": "dot", "width": 1.2})
    else:
        line.update(marker_size=4)
        figure.add_trace(marks.band(kind), row=row, col=column)
    figure.add_trace(line, row=row, col=column)


def _say_flat(
    figure: go.Figure,
    place: tuple[int, int],
    points: Sequence[Point],
    pale: Mapping[str, str],
    bounds: tuple[float, float],
) -> None:
    """Between which values a panel's only line stays, where on this axis it cannot be seen to move.

    It stands under the line; where a pale one falls through there, at the foot of the panel.
    """
    own = [point for point in points if point.heads not in pale]
    values = [point.value for point in own if not math.isnan(point.value)]
    span = bounds[1] - bounds[0]
    if len({point.heads for point in own}) != 1 or len(values) < 2 or max(values) - min(values) > _FLAT * span:
        return
    text: Any = {"text": f"{min(values):.2f} to {max(values):.2f}", "font": {"size": 9, "color": GREY}}
    others = [point.value for point in points if point.heads in pale]
    crossed = any(value < min(values) for value in others)
    foot: Any = {"y": bounds[0], "yanchor": "bottom"}
    under: Any = {"y": min(values), "yanchor": "top", "yshift": -3}
    where: Any = {"x": own[-1].at, "xanchor": "right", **(foot if crossed else under)}
    figure.add_annotation(showarrow=False, row=place[0], col=place[1], **text, **where)


def _axes(panels: Panels, last: int, units: Sequence[str], bounds: tuple[float, float]) -> None:
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
            title = units[row - 1] if len(units) > 1 else units[0]
            figure.update_yaxes(showticklabels=True, title_text=title, row=row, col=column)


def _bounds(points: Sequence[Point], least: tuple[float, float] | None) -> tuple[float, float]:
    """Around the values and their intervals, and no narrower than `least`."""
    ends = [end for point in points for end in point[2:] if not math.isnan(end)] or [0.0]
    room = (0.08 if least is None else 0.02) * (max(ends) - min(ends) or 1.0)
    low, high = min(ends) - room, max(ends) + room
    return (low, high) if least is None else (min(low, least[0]), max(high, least[1]))
