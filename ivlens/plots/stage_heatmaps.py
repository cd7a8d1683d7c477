"""What is there at each stage, cell by cell? Accuracy of every task, and the AIE of every head before and after.

Numbers in, figures out. NaN means "not measured": a gap, never a 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ivlens.errors import FigureError
from ivlens.plots import marks
from ivlens.plots.heads import bar_title, cell_gap, head_heatmap, least_bound, outlines
from ivlens.plots.layout import Panels, arrange, finish, step
from ivlens.plots.style import (
    BLACK,
    EFFECTS,
    GREY,
    LEFT,
    NOT_MEASURED,
    SEQUENTIAL,
    Width,
    is_narrow,
    pixels,
    safe,
    text_width,
)

_BESIDE = 76
"""Pixels for the colour bar, its numbers and its title."""
_TALLEST = 700
"""Of all rows of panels, so that the figure with its title stands on a page of nine inches."""
SIDES = ("before", "after", "difference")


def accuracy_heatmaps(frame: pd.DataFrame, *, title: str | None = None, width: Width = "page") -> go.Figure:
    """`R` of each panel: stages down from 0, the base model; tasks across in the order in which they are learned.

    A cell is outlined where the stage is the one that learns the task. Tasks are numbered, and named under the figure
    unless their names are numbers: those of the stages that learn them.

    Args:
        frame: Columns `panel`, `stage`, `task`, `value`, `low`, `high`; tasks in their order. The ends are shown on
            hover, as what other seeds gave.

    Raises:
        FigureError: a column is missing, there is no row, or a cell comes twice.

    >>> cells = [(0, "a", 0.1), (0, "b", 0.2), (1, "a", 0.9), (1, "b", 0.3), (2, "a", 0.5), (2, "b", 0.8)]
    >>> frame = pd.DataFrame(cells, columns=["stage", "task", "value"]).assign(panel="lora", low=0.0, high=1.0)
    >>> plots.accuracy_heatmaps(frame).data[0].z.tolist()  # [stage task]
    [[0.1, 0.2], [0.9, 0.3], [0.5, 0.8]]
    """
    _check(frame, ("panel", "stage", "task", "value", "low", "high"))
    named = any(isinstance(task, str) for task in frame["task"])
    frame = frame if named else frame.assign(task=[f"task of stage {number}" for number in frame["task"]])
    tasks = list(dict.fromkeys(frame["task"]))
    rows = int(frame["stage"].to_numpy().max()) + 1
    panels = arrange(list(dict.fromkeys(frame["panel"])), width=width, height=max(90, 9 * rows), right=_BESIDE)
    boxes, line = list[dict[str, Any]](), {"color": BLACK, "width": 1}
    for place, (_, own) in zip(panels.places, frame.groupby("panel", sort=False), strict=True):
        cells = _accuracies(own, tasks, rows)
        panels.figure.add_trace(cells, row=place[0], col=place[1])
        if panels.size[0] / len(tasks) >= 28 and panels.size[1] / rows >= 13:
            numbers = marks.cell_numbers(np.asarray(cells.z), size=8.5, first=1)
            panels.figure.add_trace(numbers, row=place[0], col=place[1])
        drawn: Any = panels.figure.data[-1]
        for number in range(1, min(rows, len(tasks) + 1)):
            ends = {"x0": number - 0.5, "x1": number + 0.5, "y0": number - 0.5, "y1": number + 0.5}
            boxes.append({"type": "rect", "line": line, "xref": drawn.xaxis, "yref": drawn.yaxis, **ends})
    # All at once: plotly copies those that there are for each that is added.
    panels.figure.update_layout(coloraxis=_bar(SEQUENTIAL, 0.0, 1.0), shapes=boxes)
    _axes(panels, ("task" if named else "task of stage", 1, len(tasks)), ("stage", 0, rows - 1))
    _beside(panels.figure, "accuracy")
    if not named:
        return finish(panels, title)
    names = _number_lines(tasks, panels)
    figure = finish(panels, title, below=15 * names.count("<br>") + 20)
    under = {"x": 0, "xref": "paper", "xanchor": "left", "y": 0, "yref": "paper", "yanchor": "top", "yshift": -38}
    return figure.add_annotation(text=names, showarrow=False, align="left", **under)


def aie_heatmaps(
    frame: pd.DataFrame,
    *,
    unit: str = "probability",
    chance: float | None = None,
    marked: Mapping[str, Iterable[tuple[int, int]]] | None = None,
    title: str | None = None,
    width: Width = "page",
) -> go.Figure:
    """AIE of every head before, after, and the difference; a row of three for each panel, one colour bound for all.

    Args:
        frame: Columns `panel`, `side` (`before`, `after`, `difference`), `layer`, `head`, `value`, `low`, `high`.
        unit: Of the effect.
        chance: As for `head_heatmap`.
        marked: Heads to outline, by side.

    Raises:
        FigureError: a column is missing, there is no row, a head comes twice, or a marked one is not there.

    >>> frame = pd.DataFrame({"panel": "antonym", "side": ["before", "after", "difference"], "value": [0.4, 0.1, -0.3]})
    >>> figure = plots.aie_heatmaps(frame.assign(layer=0, head=0, low=-0.5, high=0.5))
    >>> len(figure.data), figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax
    (3, -0.4, 0.4)
    """
    _check(frame, ("panel", "side", "layer", "head", "value", "low", "high"))
    names = list(dict.fromkeys(frame["panel"]))
    shape = int(frame["layer"].to_numpy().max()) + 1, int(frame["head"].to_numpy().max()) + 1
    bound = least_bound(float(np.nanmax(np.abs(frame["value"].to_numpy(float)), initial=0)), chance) or 1.0
    panels = _triples(names, shape, width)
    cell = panels.size[0] / shape[1], panels.size[1] / shape[0]
    look = {"coloraxis": "coloraxis", "xgap": cell_gap(min(cell)), "ygap": cell_gap(min(cell))}
    of_side = [(name, side) for name in names for side in SIDES]
    for (row, column), (name, side) in zip(panels.places, of_side, strict=True):
        own: Any = frame[(frame["panel"] == name) & (frame["side"] == side)]
        grids = {end: _fill(own, ("layer", "head"), end, shape) for end in ("value", "low", "high")}
        one = head_heatmap(grids["value"], low=grids["low"], high=grids["high"], bound=bound).data[0]
        panels.figure.add_trace(one.update(look), row=row, col=column)
        for box in outlines(shape, cell, (marked or {}).get(side, ())):
            panels.figure.add_shape(box, row=row, col=column)
    panels.figure.update_layout(coloraxis=_bar(EFFECTS, -bound, bound))
    _axes(panels, ("head", 0, shape[1] - 1), ("layer", 0, shape[0] - 1))
    if is_narrow(width) and len(names) > 1:
        for row, name in enumerate(names, start=1):
            panels.figure.update_yaxes(title_text=f"{safe(name, 16)}, layer", row=row, col=1)
    _beside(panels.figure, bar_title(unit, chance))
    return finish(panels, title)


def _triples(names: list[str], shape: tuple[int, int], width: Width) -> Panels:
    """Three sides beside each other; below each other where a column is too narrow for so many heads."""
    stacked = is_narrow(width) and len(names) == 1 and shape[1] > 12
    across = pixels(width) - LEFT - _BESIDE if stacked else (pixels(width) - LEFT - _BESIDE - 28) / 3
    height = max(90, min(round(shape[0] * min(across / shape[1], 28)), _TALLEST // (1 if stacked else len(names))))
    if len(names) == 1 or is_narrow(width):  # The panel is named elsewhere: there is no room, or no need.
        titles = [*SIDES[:2], "change" if is_narrow(width) and not stacked else "difference"] * len(names)
    else:
        titles = [f"{name}: {side}" for name in names for side in SIDES]
    height = min(height, 220) if stacked else height
    return arrange(titles, width=width, height=height, across=1 if stacked else 3, right=_BESIDE)


def _accuracies(own: pd.DataFrame, tasks: list[str], rows: int) -> go.Heatmap:
    numbered = own.assign(task=[tasks.index(task) for task in own["task"]])
    value, low, high = (_fill(numbered, ("stage", "task"), end, (rows, len(tasks))) for end in ("value", "low", "high"))

    def text(stage: int, task: int) -> str:
        ends = low[stage, task], high[stage, task]
        number = "not measured" if math.isnan(value[stage, task]) else f"{value[stage, task]:.3f}"
        beside = "" if math.isnan(sum(ends)) else f" (seeds {ends[0]:.3f} to {ends[1]:.3f})"
        return f"{safe(tasks[task])}, stage {stage}: {number}{beside}"

    return go.Heatmap(
        z=value,
        x=list(range(1, len(tasks) + 1)),
        y=list(range(rows)),
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
        customdata=[[text(stage, task) for task in range(len(tasks))] for stage in range(rows)],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _fill(frame: pd.DataFrame, at: tuple[str, str], column: str, shape: tuple[int, int]) -> np.ndarray:
    """The numbers of a column at their places, NaN where there is none."""
    if frame.duplicated(list(at)).any():
        raise FigureError(f"the table has several rows for one {' and '.join(at)} of a panel; keep one of them")
    grid = np.full(shape, np.nan)
    grid[frame[at[0]].to_numpy(int), frame[at[1]].to_numpy(int)] = frame[column].to_numpy(float)
    return grid


def _axes(panels: Panels, across: tuple[str, int, int], down: tuple[str, int, int]) -> None:
    """Name, first and last number of what stands across and down."""
    figure = panels.figure
    (x, first_x, last_x), (y, first_y, last_y) = across, down
    figure.update_xaxes(range=[first_x - 0.5, last_x + 0.5], tick0=first_x, dtick=step(last_x, panels.size[0]))
    figure.update_yaxes(range=[last_y + 0.5, first_y - 0.5], tick0=first_y, dtick=step(last_y, panels.size[1] * 1.4))
    figure.update_xaxes(showgrid=False, showticklabels=False).update_yaxes(showgrid=False, showticklabels=False)
    figure.update_layout(plot_bgcolor=NOT_MEASURED)
    for row, column in panels.places:
        if panels.is_lowest((row, column)):
            figure.update_xaxes(title_text=x, showticklabels=True, row=row, col=column)
        if column == 1:
            figure.update_yaxes(title_text=y, showticklabels=True, row=row, col=column)


def _bar(scale: Any, low: float, high: float) -> dict[str, Any]:
    look = {"outlinewidth": 0, "thickness": 10, "xpad": 8, "ypad": 0, "ticks": "outside", "ticklen": 3}
    return {"colorscale": scale, "cmin": low, "cmax": high, "colorbar": look}


def _beside(figure: go.Figure, text: str) -> None:
    """Not the colour bar's own title, which runs into its numbers when the bar is long."""
    beside = {"x": 1, "xref": "paper", "xanchor": "left", "xshift": _BESIDE - 20, "y": 0.5, "yref": "paper"}
    figure.add_annotation(text=text, textangle=-90, showarrow=False, **beside)


def _number_lines(tasks: list[str], panels: Panels) -> str:
    """`1 first, 2 second, ...` in lines that fit."""
    most = pixels(panels.width) - panels.left
    lines = [""]
    for number, task in enumerate(tasks, 1):
        entry = f"{number} {' '.join(task.split())[:40]}{',' if number < len(tasks) else ''} "
        if text_width(lines[-1] + entry) > most:
            lines.append("")
        lines[-1] += entry
    coloured = "<br>".join(safe(line, 200) for line in lines)
    return f'<span style="color:{GREY}">{coloured}</span>'


def _check(frame: pd.DataFrame, columns: tuple[str, ...]) -> None:
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        have = ", ".join(map(str, frame.columns)) or "no columns"
        raise FigureError(f"the table has no column {', '.join(missing)}; it has {have}")
    if frame.empty:
        raise FigureError("the table has no rows; there is nothing to draw")
