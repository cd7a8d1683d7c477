"""Which rows of a table can be drawn? Checked, each with its interval; NaN means "not measured"."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ivlens.errors import FigureError


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


def interval_text(value: float, low: float, high: float, digits: int = 3) -> str:
    """As `0.042 [0.031, 0.055]`."""
    if math.isnan(value):
        return "not measured"
    if math.isnan(low) or math.isnan(high):
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


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
