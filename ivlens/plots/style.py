"""How does every figure look: its size, its colours, its text?

Whatever text comes in (task names, baselines) is shown as it is, never read as markup.
"""

from __future__ import annotations

import html
import itertools
import textwrap
from functools import cache
from typing import Literal

import plotly.graph_objects as go

from ivlens.errors import FigureError

Width = Literal["column", "page"]
"""Of a two-column paper: 3.5 or 7 inches at 96 pixels an inch, with text of 8 points in both."""

WIDTHS: dict[Width, int] = {"column": 336, "page": 672}
FONT = 10.67  # 8 points.
LEFT, TOP, BOTTOM = 48, 12, 44
"""Margins in pixels."""

# Okabe & Ito, "Color Universal Design" (2008); yellow is left out as too pale for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
BLACK, GREY, BLUE = "#000000", "#6E6E6E", "#56B4E9"
NOT_MEASURED = "#D0D0D0"
# ColorBrewer RdBu, which colour-blind readers tell apart; white is exactly 0.
DIVERGING = (
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
# The half of the diverging scale that stands apart from the one of effects, turned round: white is 0.
SEQUENTIAL = tuple((1 - 2 * place, colour) for place, colour in reversed(DIVERGING) if place <= 0.5)


@cache
def template() -> go.layout.Template:
    """What plotly calls the defaults of a figure."""
    lines = {"linecolor": "#444444", "tickcolor": "#444444", "gridcolor": "#E5E5E5"}
    ticks = {"ticks": "outside", "ticklen": 3, "exponentformat": "e"}
    axis = {"automargin": True, "showline": True, "zeroline": False, "title_standoff": 6} | lines | ticks
    text = {"family": "Arial, Helvetica, Liberation Sans, sans-serif", "size": FONT, "color": "#222222"}
    layout = {
        "font": text,
        "title": {"x": 0, "pad_l": 8, "yanchor": "bottom", "font_size": FONT + 1.33},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": COLOURS,
        "xaxis": axis | {"title_font_size": FONT},
        "yaxis": axis | {"title_font_size": FONT},
        "margin": {"l": LEFT, "r": 12, "t": TOP, "b": BOTTOM},
        "legend": {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom", "tracegroupgap": 0},
        "hoverlabel": {"font": text, "bgcolor": "white"},
    }
    bar = {"outlinewidth": 0, "thickness": 10, "xpad": 8, "ypad": 0} | ticks
    return go.layout.Template(layout=layout, data={"heatmap": [{"colorbar": bar}]})


def pixels(width: Width) -> int:
    """The width of a figure.

    Raises:
        FigureError: there is no such width.
    """
    if width not in WIDTHS:
        raise FigureError(f"width is {width!r}; it can be {' or '.join(WIDTHS)}")
    return WIDTHS[width]


def lay_out(figure: go.Figure, title: str | None, width: Width, *, height: int, below: int = 0) -> None:
    """Size the figure for a plot of `height` pixels with `below` pixels of legend; break the title into lines."""
    # A letter of this font is about half as wide as high; a wide one must not be cut.
    lines = textwrap.wrap(title or "", int(pixels(width) / (0.58 * FONT)), max_lines=3, placeholder=" …")
    above, below = TOP + 16 * len(lines), BOTTOM + below
    height = above + height + below
    figure.update_layout(template=template(), width=pixels(width), height=height)
    figure.update_layout(margin={"t": above, "b": below})
    if lines:  # Anchored by the foot of the first line: plotly cuts it when anchored by its top.
        text = "<br>".join(safe(line, 200) for line in lines)
        figure.update_layout(title={"text": text, "y": 1 - 18 / height})


def tick_step(count: int, width: Width) -> int:
    """Between ticks, so that numbers stand apart: at most 16 on a page, 10 in a column."""
    most = 10 if width == "column" else 16
    return next(step for step in itertools.chain((1, 2, 4, 5), itertools.count(8, 8)) if count <= most * step)


def safe(text: object, limit: int = 60) -> str:
    """As plotly shows it unchanged: it reads tags and entities, and in notebooks TeX between dollars.

    Of a text longer than `limit` the middle is left out: names of methods and tasks often differ at their ends.
    """
    shown, end = " ".join(str(text).split()), (limit - 1) // 3
    shown = shown if len(shown) <= limit else f"{shown[: limit - 1 - end]}…{shown[len(shown) - end :]}"
    return html.escape(shown, quote=False).replace("$", "&#36;")
