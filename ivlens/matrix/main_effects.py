"""How much does each of several factors change an outcome, whatever the others are?

A factor has two levels, and units (tasks) are nested in the cells that the levels of all factors make. A factor's
effect is the mean, over the strata that the other factors make, of the difference between its two cells' means. Its
variance is the sum of those of the cells' means, each by its own units, and its degrees of freedom are Satterthwaite's:
cells need not be of one size, nor equally spread.
Source: Satterthwaite 1946, "An approximate distribution of estimates of variance components", Biometrics Bulletin 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from ivlens.errors import IvlensError
from ivlens.measures import student_quantile

EFFECTS = ("factor", "value", "low", "high", "p", "freedom", "strata", "units")
MEAN = "mean"
FEWEST = 2
"""Units of a cell: one says nothing of how units differ."""


class Cell(NamedTuple):
    """What the units of one combination of levels have."""

    mean: float
    variance: float
    """Of the mean."""
    units: int


def main_effects(units: pd.DataFrame, factors: Sequence[str]) -> pd.DataFrame:
    """The effect of every factor, its upper level minus its lower one, with Student's 95 % interval.

    Args:
        units: A line a unit: `value`, and a column of True and False for each factor. What was measured of a unit
            several times is averaged before.

    Returns:
        Columns `EFFECTS`; a line `mean`, over all cells of two units or more, then one a factor. `strata`: those in
        which both of its cells have two units or more; the others are left out. `p` is of the test against 0, not
        corrected; NaN where there is no stratum.

    Raises:
        IvlensError: a column is missing, or a value is not finite.
    """
    _refuse_unfit(units, factors)
    cells = {key: cell for key, cell in _cells(units, factors) if cell.units >= FEWEST}
    lines = [(MEAN, *_contrast({key: 1 / len(cells) for key in cells}, cells), len(cells))]
    for place, factor in enumerate(factors):
        both = [key for key in cells if key[place] and _other(key, place) in cells]
        weights = {key: 1 / len(both) for key in both} | {_other(key, place): -1 / len(both) for key in both}
        lines.append((factor, *_contrast(weights, cells), len(both)))
    frame: Any = pd.DataFrame(lines, columns=["factor", "value", "low", "high", "p", "freedom", "units", "strata"])
    return frame[list(EFFECTS)]


def _refuse_unfit(units: pd.DataFrame, factors: Sequence[str]) -> None:
    missing = [name for name in ("value", *factors) if name not in units]
    if missing:
        raise IvlensError(f"the table has no column {', '.join(missing)}; it has {', '.join(map(str, units.columns))}")
    if not np.isfinite(units["value"].to_numpy(float)).all():
        raise IvlensError("a unit's value is not finite; leave out what was not measured")


def _cells(units: pd.DataFrame, factors: Sequence[str]) -> Iterator[tuple[tuple[bool, ...], Cell]]:
    groups: Any = units.groupby(list(factors))["value"]
    for key, values in groups:
        n = len(values)
        variance = float(values.var(ddof=1)) / n if n > 1 else math.nan
        yield tuple(map(bool, key)), Cell(float(values.mean()), variance, n)


def _other(key: tuple[bool, ...], place: int) -> tuple[bool, ...]:
    """The cell that differs in one factor alone."""
    return (*key[:place], not key[place], *key[place + 1 :])


def _contrast(
    weights: dict[tuple[bool, ...], float], cells: dict[tuple[bool, ...], Cell]
) -> tuple[float, float, float, float, float, int]:
    """Weighted sum of cells' means: value, bounds, p, degrees of freedom, and of how many units."""
    if not weights:
        return math.nan, math.nan, math.nan, math.nan, math.nan, 0
    chosen = [(weight, cells[key]) for key, weight in weights.items()]
    value = sum(weight * cell.mean for weight, cell in chosen)
    parts = [(weight**2 * cell.variance, cell.units - 1) for weight, cell in chosen]
    variance, n = sum(part for part, _ in parts), sum(cell.units for _, cell in chosen)
    if variance == 0:
        return value, value, value, 1.0 if value == 0 else 0.0, math.nan, n
    freedom = variance**2 / sum(part**2 / own for part, own in parts)
    error = math.sqrt(variance)
    half = student_quantile(0.975, freedom) * error
    return value, value - half, value + half, float(2 * special.stdtr(freedom, -abs(value) / error)), freedom, n
