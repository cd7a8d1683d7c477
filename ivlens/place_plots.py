"""At which layer and what length does a vector work? Accuracies of every place that was tried.

Numbers in, figures out. NaN means "not measured": a gap, never a 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ivlens import traces
from ivlens.errors import FigureError
from ivlens.head_plots import cell_gap, outlines
from ivlens.notebook import Figure
from ivlens.style import LEFT, NOT_MEASURED, SEQUENTIAL, Width, lay_out, pixels, tick_step

_COLUMNS = ("layer", "scale", "share", "accuracy", "probability", "chosen")
_BESIDE = 78
"""Pixels for the colour bar, its numbers and its title."""
_DOWN, _NUMBER = 24.0, 21
"""Pixels of a row, and what a cell needs across for its number."""


def steering_heatmap(frame: pd.DataFrame, *, title: str | None = None, width: Width = "page") -> go.Figure:
    """Accuracy with a vector added at every layer (across) and every scale (down); the chosen place is outlined.

    Args:
        frame: Columns `layer`, `scale`, `share` (of the residual stream's length), `accuracy`, `probability` and
            `chosen`; one row a place.

    Raises:
        FigureError: a column is missing, there is no row, a place comes twice, or an accuracy is outside [0, 1].
    """
    _check(frame)
    layers, scales = sorted(set(frame["layer"])), sorted(set(frame["scale"]))
    table: Any = frame.set_index(["scale", "layer"])
    accuracies = table["accuracy"].unstack("layer").reindex(index=scales, columns=layers).to_numpy(float)
    across = (pixels(width) - LEFT - _BESIDE) / len(layers)
    gap = cell_gap(min(across, _DOWN))
    cells = go.Heatmap(
        z=accuracies,
        x=layers,
        zmin=0.0,
        zmax=1.0,
        colorscale=SEQUENTIAL,
        xgap=gap,
        ygap=gap,
        colorbar={"title": {"text": "accuracy (share of prompts)", "side": "right"}, "dtick": 0.25},
        customdata=[[_text(layer, scale, table) for layer in layers] for scale in scales],
        hovertemplate="%{customdata}<extra></extra>",
    )
    figure = Figure(cells)
    if across >= _NUMBER:
        figure.add_trace(traces.cell_numbers(accuracies, size=min(9.0, across / 2.5), first=int(layers[0])))
    places = [
        (scales.index(row["scale"]), layers.index(row["layer"])) for row in frame.to_dict("records") if row["chosen"]
    ]
    for box in outlines(accuracies.shape, (across, _DOWN), places):
        figure.add_shape({**box, "x0": box["x0"] + layers[0], "x1": box["x1"] + layers[0]})
    figure.update_xaxes(title_text="layer steered", dtick=tick_step(len(layers), width), tick0=0, showgrid=False)
    names = [f"{scale:g}" for scale in scales]
    figure.update_yaxes(title_text="scale", tickvals=list(range(len(scales))), ticktext=names, showgrid=False, ticks="")
    lay_out(figure, title, width, height=round(_DOWN * len(scales)))
    return figure.update_layout(plot_bgcolor=NOT_MEASURED)


def _check(frame: pd.DataFrame) -> None:
    missing = [column for column in _COLUMNS if column not in frame.columns]
    if missing:
        raise FigureError(f"the table has no column {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}")
    if frame.empty:
        raise FigureError("the table has no rows; there is nothing to draw")
    if frame.duplicated(["layer", "scale"]).any():
        raise FigureError("the table has several rows for one layer and scale; keep one of them")
    values = frame["accuracy"].to_numpy(float)
    if ((values < 0) | (values > 1)).any():
        raise FigureError("an accuracy is outside 0 to 1; pass shares, not percent")


def _text(layer: int, scale: float, table: Any) -> str:
    if (scale, layer) not in table.index:
        return f"layer {layer}, scale {scale:g}: not tried"
    row = table.loc[(scale, layer)]
    share = "" if math.isnan(row["share"]) else f" ({row['share']:.2g} of the residual stream's length)"
    value = (
        "not tried"
        if np.isnan(row["accuracy"])
        else f"accuracy {row['accuracy']:.3f}, P(answer) {row['probability']:.3f}"
    )
    return f"layer {layer}, scale {scale:g}{share}: {value}"
