"""How do small multiples stand on a page? Panels of one size in rows, with a title each and one legend for all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ivlens.errors import FigureError
from ivlens.plots.notebook import Figure
from ivlens.plots.style import FONT, LEFT, Width, fit, is_narrow, lay_out, pixels, safe, text_width

RIGHT = 12
_TITLE = 18
"""Pixels above a panel for its title."""
_SMALLEST = 0.7
"""Of the size of other text: the size of a panel's title that is long."""
_KEY = 46
"""Pixels that the line before a name takes in the legend."""
_LINE, _ROW = 13, 18
"""Pixels of a line of text, and of a layer where there are few."""


class Panels(NamedTuple):
    """An empty figure and where its panels are."""

    figure: go.Figure
    places: list[tuple[int, int]]
    """Row and column of each panel, from 1."""
    size: tuple[float, float]
    """Of one panel, across and down, in pixels."""
    height: int
    """Of all panels and what is between them."""
    width: Width
    left: int
    right: int
    title_size: float
    """Of the panels' titles."""

    def is_lowest(self, place: tuple[int, int]) -> bool:
        """Is there no panel below?"""
        return (place[0] + 1, place[1]) not in self.places


class Rows(NamedTuple):
    """Where layers and what stands below them are, in rows."""

    at: dict[int | str, float]
    high: float
    """Pixels of a layer."""
    names: dict[float, str]
    """What stands beside rows: of layers every one, or as many as find room."""

    @property
    def foot(self) -> float:
        """Where the last row ends."""
        return max(self.at.values()) + max(0.6, _LINE / self.high / 2)


def place_rows(found: Sequence[int | str], most: float) -> Rows:
    """A row for each layer, together no higher than `most` pixels; what is no layer stands below, apart and named."""
    layers = sorted({one for one in found if isinstance(one, int)})
    others = list(dict.fromkeys(one for one in found if isinstance(one, str)))
    high = max(1.0, min(_ROW, (most - 1.5 * _LINE * len(others)) / max(1, len(layers))))
    gap, every = max(1.0, _LINE / high), next(step for step in (1, 2, 5, 10, 20, 50, 100) if step * high >= _LINE)
    at: dict[int | str, float] = {layer: float(number) for number, layer in enumerate(layers)}
    at |= {name: len(layers) - 1 + 1.5 * gap + gap * number for number, name in enumerate(others)}
    names = {at[layer]: str(layer) for layer in layers[::every]} | {at[name]: safe(name, 16) for name in others}
    return Rows(at, high, names)


def arrange(
    names: Sequence[str],
    *,
    width: Width = "page",
    height: int = 110,
    across: int | None = None,
    gap: tuple[int, int] = (14, 16),
    left: int = LEFT,
    right: int = RIGHT,
) -> Panels:
    """Panels by their titles, row after row.

    Args:
        height: Of a panel, in pixels.
        across: Panels in a row; as many as are readable unless given.
        gap: Between panels, across and down, in pixels, titles apart.

    Raises:
        FigureError: no names.
    """
    if not names:
        raise FigureError("there is nothing to draw; give at least one panel")
    across = min(across or _across(len(names), width), len(names))
    rows = math.ceil(len(names) / across)
    between = gap[1] + _TITLE
    inner, total = pixels(width) - left - right, rows * height + (rows - 1) * between
    places = [(index // across + 1, index % across + 1) for index in range(len(names))]
    wide = (inner - (across - 1) * gap[0]) / across
    # Titles that are too long are smaller before they are cut.
    longest = max(map(text_width, names))
    size = FONT * min(1.0, max(_SMALLEST, (wide + gap[0] - 4) / longest))
    figure = make_subplots(
        rows,
        across,
        specs=[[{} if (row, column) in places else None for column in _from_1(across)] for row in _from_1(rows)],
        subplot_titles=[fit(name, wide + gap[0] - 4, size) for name in names],
        horizontal_spacing=gap[0] / inner,
        vertical_spacing=between / total,
        figure=Figure(),
    )
    return Panels(figure, places, (float(wide), float(height)), total, width, left, right, size)


def finish(panels: Panels, title: str | None, *, below: int = 0) -> go.Figure:
    """The figure at its size, with its title above, and below the room that its legend and `below` pixels need."""
    figure = panels.figure
    entries: Any = figure.select_traces(lambda trace: trace.showlegend is not False and trace.type != "heatmap")
    names = [str(trace.name) for trace in entries]
    legend = legend_height(names, panels.width, sides=panels.left + panels.right)
    lay_out(figure, title, panels.width, height=panels.height, below=below + legend)
    raise_panels(figure, title, size=panels.title_size, l=panels.left, r=panels.right)
    return figure


def raise_panels(figure: go.Figure, title: str | None, *, size: float = FONT, **sides: int) -> None:
    """Room for the panels' own titles above a figure that `lay_out` has sized; `sides` are its other margins."""
    layout: Any = figure.layout  # What plotly's property is, its types do not say.
    height = layout.height + _TITLE
    figure.update_layout(height=height, margin={"t": layout.margin.t + _TITLE, **sides})
    if title:
        figure.update_layout(title_y=1 - 18 / height)
    figure.update_annotations(selector={"yanchor": "bottom"}, font_size=size)


def legend_height(names: Sequence[str], width: Width, *, grouped: bool = False, sides: int = LEFT + RIGHT) -> int:
    """Pixels of a legend under the plot, which is no wider than the plot.

    Args:
        grouped: Every entry has a group of its own: plotly then sets one behind the other, as wide as each is, where
            it otherwise stands them in columns as wide as the longest.
        sides: Pixels beside the plot.
    """
    across = pixels(width) - sides
    if grouped:
        rows, used = 1, 0.0
        for wide in (text_width(name) + _KEY for name in names):
            rows, used = (rows + 1, wide) if used and used + wide > across else (rows, used + wide)
        return 19 * rows
    longest = max(map(text_width, names), default=0) + _KEY
    return 19 * math.ceil(len(names) / max(1, int(across / longest)))


def tick_step(count: int, width: Width) -> int:
    """Between ticks, so that numbers stand apart: at most 16 on a page, 10 in a column."""
    most = 10 if is_narrow(width) else 16
    return next(step for step in itertools.chain((1, 2, 4, 5), itertools.count(8, 8)) if count <= most * step)


def step(last: int, across: float) -> int:
    """Between the numbers 0 to `last` on an axis of `across` pixels, so that they stand apart."""
    most = max(2, int(across / 20))
    return next(step for step in (1, 2, 3, 5, 10, 20, 50, last + 1) if last // step < most)


def decimal_step(low: float, high: float, across: float) -> float:
    """Between the numbers from `low` to `high` on an axis of `across` pixels, so that they stand apart."""
    finest = math.floor(math.log10(high - low)) - 2
    steps = ((first * 10.0**power, -power) for power in itertools.count(finest) for first in (1, 2, 5))
    return next(step for step, digits in steps if step * across >= (high - low) * _room(low, high, digits))


def _room(low: float, high: float, digits: int) -> float:
    """Pixels that the wider of two numbers takes, with what is between it and the next."""
    return max(text_width(f"{end:.{max(0, digits)}f}") for end in (low, high)) + 6


def _across(count: int, width: Width) -> int:
    """In a row; 3 or 4 on a page, whichever leaves fewer places empty."""
    if is_narrow(width):
        return min(2, count)
    return min(count, 4 if count < 4 or -count % 4 <= -count % 3 else 3)


def _from_1(count: int) -> range:
    return range(1, count + 1)
