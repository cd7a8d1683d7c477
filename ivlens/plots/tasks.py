"""How alike are tasks? Their vectors' cosines and the heads that they share, as squares; heads that recur in audits.

Numbers in, figures out. NaN means "not measured": a gap, never a 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ivlens.errors import FigureError
from ivlens.plots import marks
from ivlens.plots.heads import bar_title, cell_gap, outlines
from ivlens.plots.notebook import Figure
from ivlens.plots.style import (
    BOTTOM,
    DIVERGING,
    EFFECTS,
    NOT_MEASURED,
    SEQUENTIAL,
    Width,
    is_narrow,
    lay_out,
    pixels,
    safe,
    text_width,
)

_LONGEST, _LONGEST_NARROW = 24, 17
"""Letters of a name, on a page and in a column."""
_BESIDE = 72
"""Pixels for the colour bar, its numbers and its title."""
_NOTE: dict[str, Any] = {"x": 1, "xref": "paper", "xanchor": "left", "xshift": _BESIDE - 20, "y": 0.5, "yref": "paper"}
_NOTE |= {"textangle": -90, "showarrow": False}
"""Where the unit stands: beside the colour bar, not as its own title, which runs into its numbers."""
_NUMBER = 22
"""Pixels across that a cell needs for its number."""


def similarity_heatmap(frame: pd.DataFrame, *, title: str | None = None, width: Width = "page") -> go.Figure:
    """Cosine of the instruction vectors of every two tasks; red: alike, blue: opposed, white: at right angles.

    Args:
        frame: A row and a column for each task, as `ivlens.vectors.similarity.similarity` makes it.

    Raises:
        FigureError: rows and columns are not the same tasks, or a value is infinite or outside [-1, 1].

    >>> from ivlens.vectors.similarity import similarity
    >>> figure = plots.similarity_heatmap(similarity([vector, -1 * vector]))
    >>> figure.data[0].z.round(3).tolist(), figure.layout.yaxis.ticktext
    ([[1.0, -1.0], [-1.0, 1.0]], ('antonym', '-1 antonym'))
    """
    return _square(frame, "cosine of the vectors", (-1.0, 1.0), DIVERGING, title, width)


def overlap_heatmap(frame: pd.DataFrame, *, title: str | None = None, width: Width = "page") -> go.Figure:
    """Jaccard overlap of the top heads of every two tasks: shared ones over all of both.

    Args:
        frame: A row and a column for each task, as `ivlens.vectors.similarity.overlap` makes it.

    Raises:
        FigureError: rows and columns are not the same tasks, or a value is infinite or outside [0, 1].

    >>> frame = pd.DataFrame([[1.0, 0.25], [0.25, 1.0]], index=["antonym", "plural"], columns=["antonym", "plural"])
    >>> figure = plots.overlap_heatmap(frame)
    >>> figure.data[0].zmin, figure.data[0].zmax, figure.data[0].customdata[0][1]
    (0.0, 1.0, 'antonym, plural: 0.250')
    """
    return _square(frame, "top heads shared (Jaccard)", (0.0, 1.0), SEQUENTIAL, title, width)


def recurrence_heatmap(
    aie: pd.DataFrame,
    *,
    marked: pd.DataFrame,
    unit: str = "probability",
    title: str | None = None,
    width: Width = "page",
) -> go.Figure:
    """AIE of heads that recur: heads down, audits across. It is coloured as in `head_heatmap`.

    Args:
        aie: A row for each head, a column for each audit; NaN where a model has other heads.
        marked: Of the same rows and columns, true where the head is among the top of the audit; these are outlined.
        unit: Of the effect: `probability` or `nats`.

    Raises:
        FigureError: there is no cell, the tables are not of one shape, or a value is infinite.

    >>> aie = pd.DataFrame([[0.3, 0.2], [-0.1, 0.1]], index=["L3H3", "L3H4"], columns=["antonym", "plural"])
    >>> figure = plots.recurrence_heatmap(aie, marked=aie > 0.1)
    >>> figure.data[0].customdata[1][0], len(figure.layout.shapes)
    ('L3H4, antonym: -0.100', 2)
    """
    grid = aie.to_numpy(float)
    if not grid.size or marked.shape != aie.shape or np.isinf(grid).any():
        raise FigureError(
            f"the tables have {aie.shape} and {marked.shape} cells; they need the same ones, of finite numbers or NaN"
        )
    bound = float(np.nanmax(np.abs(grid), initial=0.0)) or 1.0
    longest = _LONGEST_NARROW if is_narrow(width) else _LONGEST
    heads, audits = ([safe(name, longest) for name in names] for names in (aie.index, aie.columns))
    beside, below = (round(max(map(text_width, names))) + 14 for names in (heads, audits))
    across, down = (pixels(width) - beside - _BESIDE) / len(audits), 16.0
    figure = Figure(_cells(list(aie.index), list(aie.columns), grid, ((-bound, bound), EFFECTS), gap=cell_gap(across)))
    places = ((int(row), int(column)) for row, column in zip(*np.nonzero(marked.to_numpy(bool)), strict=True))
    for box in outlines(grid.shape, (across, down), places):
        figure.add_shape(box)
    step, ticks = math.ceil(11 / across), {"ticks": "", "showgrid": False, "automargin": False}
    shown = {"tickvals": list(range(len(audits)))[::step], "ticktext": audits[::step]}
    figure.update_xaxes(tickangle=0 if across >= below else -90, range=[-0.5, len(audits) - 0.5], **shown, **ticks)
    shown = {"tickvals": list(range(len(heads))), "ticktext": heads}
    figure.update_yaxes(range=[len(heads) - 0.5, -0.5], **shown, **ticks)
    room = (20 if across >= below else below) - BOTTOM + 4
    lay_out(figure, title, width, height=max(140, round(len(heads) * down)), below=room)
    figure.update_layout(plot_bgcolor=NOT_MEASURED, margin={"l": beside, "r": _BESIDE})
    return figure.add_annotation(text=bar_title(unit, None), **_NOTE)


def _square(
    frame: pd.DataFrame, unit: str, ends: tuple[float, float], scale: Any, title: str | None, width: Width
) -> go.Figure:
    names, grid = [str(name) for name in frame.index], _check(frame, ends)
    n, longest = len(names), _LONGEST_NARROW if is_narrow(width) else _LONGEST
    shown = [safe(name, longest) for name in names]
    beside = round(max(map(text_width, shown))) + 14
    across = (pixels(width) - beside - _BESIDE) / n
    # Cells are square; those of few tasks are wider than high, so that the figure fills its width.
    down = max(min(across, 44.0), 140 / n)
    figure = Figure(_cells(names, names, grid, (ends, scale), gap=cell_gap(across)))
    if across >= _NUMBER:
        figure.add_trace(marks.cell_numbers(grid, size=min(9.0, across / 2.7)))
    flat = across >= beside
    places = list(range(n))
    step = math.ceil(11 / across)  # So that names do not run into each other.
    ticks = {"tickvals": places[::step], "ticktext": shown[::step], "ticks": "", "showgrid": False, "automargin": False}
    figure.update_xaxes(tickangle=0 if flat else -90, range=[-0.5, n - 0.5], **ticks)
    figure.update_yaxes(range=[n - 0.5, -0.5], **ticks)
    lay_out(figure, title, width, height=round(n * down), below=(20 if flat else beside) - BOTTOM + 4)
    figure.update_layout(plot_bgcolor=NOT_MEASURED, margin={"l": beside, "r": _BESIDE})
    return figure.add_annotation(text=unit, **_NOTE)


def _cells(
    rows: list[str], columns: list[str], grid: np.ndarray, look: tuple[tuple[float, float], Any], gap: int
) -> go.Heatmap:
    def text(row: int, column: int) -> str:
        value = grid[row, column]
        number = "not measured" if math.isnan(value) else f"{value:.3f}"
        return f"{safe(rows[row])}, {safe(columns[column])}: {number}"

    (low, high), scale = look
    return go.Heatmap(
        z=grid,
        zmin=low,
        zmax=high,
        colorscale=scale,
        xgap=gap,
        ygap=gap,
        customdata=[[text(row, column) for column in range(len(columns))] for row in range(len(rows))],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _check(frame: pd.DataFrame, ends: tuple[float, float]) -> np.ndarray:
    rows, columns = list(map(str, frame.index)), list(map(str, frame.columns))
    if not rows or rows != columns:
        raise FigureError(
            f"the table has {len(rows)} rows and {len(columns)} columns; it needs the same tasks down and across"
        )
    grid = frame.to_numpy(float)
    low, high = ends
    outside = grid[~np.isnan(grid) & ~((low - 1e-6 <= grid) & (grid <= high + 1e-6))]
    if outside.size:
        raise FigureError(f"a value is {outside[0]:g}; it must lie between {low:g} and {high:g}, or be NaN")
    return grid
