"""In which form does every experiment say what it found? One tidy table, a line for each number with its interval.

Lines of one `part` are of one measure; `at` is what is varied, and `kind` tells what stands beside each other, such as
chosen and random heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ivlens.measures import Interval, interval
from ivlens.steering.verdict import above_random

if TYPE_CHECKING:
    import pandas as pd

FINDINGS = ("part", "at", "kind", "value", "low", "high", "draws", "queries")
Line = dict[str, Any]
CHOSEN, RANDOM, NONE = "chosen", "random", "none"
"""Kinds of heads, as figures know them."""


@dataclass(frozen=True)
class Found:
    """The table of an experiment, to look numbers up in."""

    table: pd.DataFrame

    def __call__(self, part: str, at: str, kind: str = CHOSEN) -> Interval:
        """One number with its interval; NaN where it is not there."""
        lines = self.table.query("part == @part and at == @at and kind == @kind")
        if lines.empty:
            return Interval(torch.nan, torch.nan, torch.nan)
        return Interval(*(float(lines.iloc[0][name]) for name in ("value", "low", "high")))

    def values(self, part: str, kind: str = CHOSEN) -> dict[str, float]:
        """The numbers of a part by what is varied, in their order."""
        lines = self.table.query("part == @part and kind == @kind")
        return dict(zip(lines["at"], lines["value"].astype(float), strict=True))


ABLE, ASKED, SAME = "accuracy unsteered", "prompts that show the task", "the most frequent answer to all"


def caution(found: Found) -> str:
    """What is to be said first where a model is right no more often than with one answer to all queries."""
    able, same = found(ABLE, ASKED, NONE), found(ABLE, SAME, NONE)
    if not able.low <= same.mean:  # Nor where it was not measured.
        return ""
    return (
        f"The model does not clearly do this task ({able.text(2)} right by greedy match where it is shown, "
        f"{same.mean:.2f} with the most frequent answer), so what follows says little."
    )


def share(part: str, at: str, kind: str, values: Tensor) -> Line:
    """A line of a share or probability: over queries and, where there are several, over draws."""
    return _line(part, at, kind, values, interval(values.double().cpu(), within=(0.0, 1.0)))


def difference(part: str, at: str, kind: str, values: Tensor) -> Line:
    """A line of a difference of two shares, query by query; it is no share of successes where it is 0 or 1.

    A part whose name begins with "accuracy" is of right answers and wrong ones.
    """
    values = values.double().cpu()
    several = values.dim() == 2 and values.shape[1] > 1
    groups, of_answers = None if several else torch.arange(len(values)), part.startswith("accuracy")
    found = interval(values, groups, within=(-1.0, 1.0), of_answers=of_answers)
    return _line(part, at, kind, values, found)


def beyond(part: str, at: str, values: Tensor, random: Tensor) -> Line:
    """A line of how far something is above draws of its control; see `verdict.above_random`."""
    found, _ = above_random(values.double().cpu(), random.double().cpu())
    return _line(part, at, CHOSEN, random, found)


def number(part: str, at: str, kind: str, value: float, *, queries: int = 0) -> Line:
    """A line of a number that has no interval."""
    return dict(zip(FINDINGS, (part, at, kind, value, torch.nan, torch.nan, 1, queries), strict=True))


def _line(part: str, at: str, kind: str, values: Tensor, found: Interval) -> Line:
    draws = values.shape[1] if values.dim() == 2 else 1
    return dict(zip(FINDINGS, (part, at, kind, *found, draws, len(values)), strict=True))
