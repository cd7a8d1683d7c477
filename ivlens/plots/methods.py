"""How do methods compare? Points with their intervals, methods down, and what learning costs against what is kept.

Numbers in, figures out. NaN means "not measured": a gap, never a 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ivlens.errors import FigureError
from ivlens.plots import marks
from ivlens.plots.layout import RIGHT, arrange, decimal_step, finish, legend_height
from ivlens.plots.marks import Point, axis_range, read_points
from ivlens.plots.notebook import Figure
from ivlens.plots.style import (
    BLACK,
    GREY,
    LEFT,
    REFERENCE,
    Look,
    Width,
    break_text,
    is_narrow,
    lay_out,
    method_looks,
    pixels,
    safe,
    text_width,
)
from ivlens.plots.style import looks as find_looks
from ivlens.tables import interval_text

_LONGEST, _LONGEST_NARROW = 34, 26
"""Letters of a method's name, on a page and in a column."""
_NAME_SIZE = 9.0
"""Of the letters beside a point."""

_SHORTEST = 1e-5
"""Of an interval that is more than what processors round differently."""


class _Name(NamedTuple):
    """What stands beside a point, and on which side of it."""

    text: str
    side: str


class Form(NamedTuple):
    """One point of a trade-off."""

    method: str
    kind: str
    """Forms of one kind are joined."""
    strength: float
    """The order along the line, and the text at the point where a kind has several."""


def method_dots(
    frame: pd.DataFrame,
    *,
    units: Mapping[str, str],
    looks: Mapping[str, Look] | None = None,
    baselines: Mapping[str, float] | None = None,
    zero: bool = False,
    title: str | None = None,
    width: Width = "page",
) -> go.Figure:
    """Methods down, a panel for each measure, a point with its interval for each kind of number.

    Args:
        frame: Columns `panel`, `method`, `kind`, `value`, `low`, `high`; one row for a kind of a method in a panel.
        units: Of each panel, under its axis.
        looks: Of each kind, those on top first; kinds that are not named follow. Where there is one kind, each
            method is drawn as it is everywhere.
        baselines: Of a panel: what the model had before; dashed.
        zero: 0 is on every axis, as for effects, of which 0 means none.

    Raises:
        FigureError: a column is missing, a value is infinite, or two rows are of one point.

    >>> frame = pd.DataFrame({"panel": "AP", "method": ["lora", "ewc"], "kind": "plain", "value": [0.5, 0.6]})
    >>> figure = plots.method_dots(frame.assign(low=0.4, high=0.7), units={"AP": "accuracy"})
    >>> list(figure.data[0].x), figure.layout.xaxis.title.text
    ([0.5, 0.6], 'accuracy')
    """
    missing = {"panel", "method", "kind"} - set(frame.columns)
    if missing:
        raise FigureError(f"the table has no column {', '.join(sorted(missing))}; it has {', '.join(frame.columns)}")
    methods, names = list(dict.fromkeys(frame["method"])), list(dict.fromkeys(frame["panel"]))
    kinds = _kinds(frame, looks or {})
    shown = [safe(method, _LONGEST_NARROW if is_narrow(width) else _LONGEST) for method in methods]
    left = round(max(map(text_width, shown), default=0)) + 16
    high = max(22, 8 * len(kinds) + 8) * len(methods)
    across = 2 if is_narrow(width) else len(names)
    panels = arrange(
        names, width=width, height=max(high, 70), across=across, gap=(18, 56 if across < len(names) else 0), left=left
    )
    for place, name in zip(panels.places, names, strict=True):
        own: Any = frame[frame["panel"] == name]
        points = read_points(own, at="method", value="value", heads="kind")
        _draw(panels.figure, place, name, points, methods, kinds)
        base = (baselines or {}).get(name, math.nan)
        if not math.isnan(base):
            panels.figure.add_shape(
                type="line",
                x0=base,
                x1=base,
                y0=-0.5,
                y1=len(methods) - 0.5,
                line=REFERENCE,
                row=place[0],
                col=place[1],
            )
        low, top = axis_range([*points, Point("", "", base, base, base)], zero=zero)
        unit = "<br>".join(break_text(units.get(name, ""), panels.size[0]))
        ticks = {"tick0": 0, "dtick": decimal_step(low, top, panels.size[0])}
        panels.figure.update_xaxes(range=[low, top], title_text=unit, row=place[0], col=place[1], **ticks)
    figure = panels.figure.update_yaxes(range=[len(methods) - 0.5, -0.5], showticklabels=False, ticks="")
    figure.update_yaxes(tickvals=list(range(len(methods))), ticktext=shown).update_yaxes(showticklabels=True, col=1)
    figure.update_xaxes(tickangle=0, zeroline=True, zerolinecolor=GREY, zerolinewidth=1)
    return finish(panels, title)


def trade_off(
    frame: pd.DataFrame,
    forms: Sequence[Form],
    *,
    axes: tuple[str, str],
    base: float = math.nan,
    title: str | None = None,
    width: Width = "page",
) -> go.Figure:
    """What is kept against what is learned, a point with both intervals for each method; up and to the right is better.

    Args:
        frame: Columns `method`, `learned`, `learned_low`, `learned_high`, `kept`, `kept_low`, `kept_high`.
        forms: What each method is; the points of a kind are joined in the order of their strength.
        axes: Names of the two axes.
        base: What the base model had, of what is to be kept; dashed.

    Raises:
        FigureError: a column is missing, or a method comes twice.

    >>> from ivlens.plots.methods import Form
    >>> names = ["learned", "learned_low", "learned_high", "kept", "kept_low", "kept_high"]
    >>> frame = pd.DataFrame([[0.9, 0.8, 1.0, 0.3, 0.2, 0.4]], columns=names).assign(method="lora")
    >>> figure = plots.trade_off(frame, [Form("lora", "plain", 0.0)], axes=("learned", "kept"))
    >>> figure.data[0].name, list(figure.data[0].x), figure.layout.yaxis.title.text
    ('plain', [0.9], 'kept')
    """
    across, up = (
        read_points(_rename(frame, name), at="method", value="value", heads=None) for name in ("learned", "kept")
    )
    at = {x.at: (x, y) for x, y in zip(across, up, strict=True)}
    kinds = list(dict.fromkeys(form.kind for form in forms))
    shown = sorted((form for form in forms if form.method in at), key=lambda form: form.strength)
    ends = axis_range(across), axis_range([*up, Point("", "", base, base, base)])
    height = 220 if is_narrow(width) else 330
    names = _name_points(shown, at, ends, (pixels(width) - LEFT - RIGHT, height))
    in_legend = not {form.kind for form in shown} <= {name.text for name in names.values()}
    figure = Figure()
    for kind, look in method_looks(kinds).items():
        curve = _curve(kind, [form for form in shown if form.kind == kind], at, look, names)
        figure.add_trace(curve.update(showlegend=in_legend))
    if not math.isnan(base):
        text: Any = {"annotation_text": "base model", "annotation_position": "top left"}
        figure.add_hline(base, line=REFERENCE, annotation_font_color=GREY, **text)
    kept = break_text(axes[1], float(height))
    figure.update_xaxes(title_text=safe(axes[0]), range=ends[0])
    figure.update_yaxes(title_text="<br>".join(kept), range=ends[1])
    sides = LEFT + RIGHT + 14 * (len(kept) - 1)
    lay_out(figure, title, width, height=height, below=legend_height(kinds, width, sides=sides) if in_legend else 0)
    return figure


def _kinds(frame: pd.DataFrame, looks: Mapping[str, Look]) -> dict[str, Look]:
    found = dict.fromkeys(frame["kind"])
    return {kind: look for kind, look in looks.items() if kind in found} | find_looks(
        kind for kind in found if kind not in looks
    )


def _draw(
    figure: go.Figure,
    place: tuple[int, int],
    panel: str,
    points: Sequence[Point],
    methods: Sequence[str],
    kinds: Mapping[str, Look],
) -> None:
    of_methods = method_looks(methods)
    for index, (kind, look) in enumerate(kinds.items()):
        own = [point for point in points if point.heads == kind]
        aside = 0.7 * ((index + 0.5) / len(kinds) - 0.5)
        name = safe(kind)
        each = [of_methods[point.at] if len(kinds) == 1 else look for point in own]
        colours = [one.colour for one in each]
        dots = go.Scatter(
            x=[point.value for point in own],
            y=[methods.index(point.at) + aside for point in own],
            mode="markers",
            marker={
                "color": colours,
                "symbol": [one.symbol for one in each],
                "size": 7,
                "line": {"color": colours, "width": 1.2},
            },
            error_x=_bars(own, GREY if len(kinds) == 1 else look.colour),
            name=name,
            legendgroup=name,
            showlegend=place == (1, 1) and len(kinds) > 1,
            text=[f"{safe(point.at)}, {safe(panel)}{', ' if name else ''}{name}: {point}" for point in own],
            hovertemplate="%{text}<extra></extra>",
        )
        figure.add_trace(dots, row=place[0], col=place[1])


def _bars(points: Sequence[Point], colour: str) -> dict[str, Any]:
    """Of an interval without length, as of a base model that every seed shares, only the point is drawn."""
    wide = [
        point if point.high - point.low > _SHORTEST else point._replace(low=math.nan, high=math.nan) for point in points
    ]
    return marks.error_bars(wide) | {"color": colour}


def _rename(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    return frame.rename(columns={name: "value", f"{name}_low": "low", f"{name}_high": "high"})


def _name_points(
    shown: Sequence[Form], at: Mapping[str, tuple[Point, Point]], ends: tuple[list[float], list[float]], size: Any
) -> dict[str, _Name]:
    """What stands beside a method's point: how strong a form of several is.

    Where no kind has several forms, its name; none of them, unless all of them find a place.

    Args:
        ends: Of both axes.
        size: Of the plot, in pixels.
    """
    counts = Counter(form.kind for form in shown)
    several = [form for form in shown if counts[form.kind] > 1]
    named = several or shown
    texts = [f"{form.strength:g}" if several else safe(form.kind, _LONGEST) for form in named]
    low, high = np.array(ends).T

    def place(*values: float) -> np.ndarray:
        return (np.array(values) - low) / (high - low) * size

    points = {method: place(x.value, y.value) for method, (x, y) in at.items()}
    bars = []
    for x, y in at.values():
        bars.append((*(place(x.low, y.value) - 1), *(place(x.high, y.value) + 1)))
        bars.append((*(place(x.value, y.low) - 1), *(place(x.value, y.high) + 1)))
    own, every = [points[form.method] for form in named], list(points.values())
    edges = np.zeros(2), np.array(size, float)
    sides = marks.place_names(texts, own, edges, size=_NAME_SIZE, points=every, bars=bars)
    if not several and None in sides:
        return {}
    named_at = zip(named, texts, sides, strict=True)
    return {form.method: _Name(text, side or "top right") for form, text, side in named_at}


def _curve(
    kind: str,
    own: Sequence[Form],
    at: Mapping[str, tuple[Point, Point]],
    look: Look,
    names: Mapping[str, _Name],
) -> go.Scatter:
    across, up = [at[form.method][0] for form in own], [at[form.method][1] for form in own]
    beside = [names.get(form.method, _Name("", "top right")) for form in own]
    return go.Scatter(
        x=[point.value for point in across],
        y=[point.value for point in up],
        mode=f"{'lines+' if len(own) > 1 else ''}markers+text",
        text=[name.text for name in beside],
        textposition=[name.side for name in beside],
        textfont={"size": _NAME_SIZE, "color": look.colour if len(own) > 1 else BLACK},
        line={"color": look.colour, "dash": look.dash, "width": 1.2},
        marker={"color": look.colour, "symbol": look.symbol, "size": 7},
        error_x=_bars(across, look.colour),
        error_y=_bars(up, look.colour),
        name=safe(kind, _LONGEST),
        customdata=[
            f"{safe(x.at)}: {interval_text(*x[2:])} learned, {interval_text(*y[2:])} kept"
            for x, y in zip(across, up, strict=True)
        ],
        hovertemplate="%{customdata}<extra></extra>",
    )
