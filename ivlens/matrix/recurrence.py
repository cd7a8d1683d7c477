"""Which heads are among the top of more audits than chance would have it?

Heads of one address are compared within models of one shape. That is a question about a model and what was tuned from
it; of models that were trained apart, the same address means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from ivlens.analysis.audit import Audit
from ivlens.measures import interval
from ivlens.shapes import Head
from ivlens.steering.verdict import MOST_FREQUENT

RECURRING = ("layers", "heads", "head", "top", "audits", "chance", "tasks", "models", "clear", "aie", "low", "high")
OUTCOMES = ("zero-shot", "instructed", "few-shot", MOST_FREQUENT, "steered", "steered, random")
"""Accuracies of each audit that a matrix shows."""


@dataclass(frozen=True, kw_only=True)
class AuditedHeads:
    """What a matrix keeps of one audit."""

    model: str
    task: str
    aie: np.ndarray
    """`[layer head]`."""
    unit: str
    top: tuple[Head, ...]
    """The heads of largest AIE, as many as its vector has."""
    clear: frozenset[Head]
    """Heads whose AIE is clear of 0, after Holm."""
    accuracies: dict[str, float]
    """Of `OUTCOMES`."""

    @property
    def shape(self) -> tuple[int, int]:
        layers, heads = self.aie.shape
        return layers, heads

    @classmethod
    def of(cls, found: Audit, *, model: str) -> AuditedHeads:
        """Of an audit.

        Args:
            model: What the matrix calls it.
        """
        measured = dict(zip(found.measures["measure"], found.measures["accuracy"], strict=True))
        return cls(
            model=model,
            task=found.vector.task,
            aie=found.effects.aie.double().cpu().numpy(),
            unit=found.effects.unit,
            top=tuple(found.effects.top(len(found.vector.heads))),
            clear=frozenset(found.effects.clear()),
            accuracies={name: float(measured.get(name, float("nan"))) for name in OUTCOMES},
        )


def find_recurring(audits: Sequence[AuditedHeads]) -> pd.DataFrame:
    """Every head that is among the top of two audits or more of models of its shape: a line of `RECURRING`.

    `top` of `audits` have it among their top; `chance` is how many heads would be in so many or more, if every audit
    drew its own at random. `tasks` and `models` count those among whose top it is, `clear` the audits where its AIE is
    clear of 0. `aie` is the mean over the audits, `low` and `high` its interval: audits are what was drawn.
    """
    lines = []
    for shape in dict.fromkeys(one.shape for one in audits):
        own = [one for one in audits if one.shape == shape]
        chance = expect_by_chance([len(one.top) for one in own], int(np.prod(shape)))
        for head in sorted({head for one in own for head in one.top}):
            having = [one for one in own if head in one.top]
            found = interval(torch.tensor([one.aie[head] for one in own]))
            named = {"tasks": {one.task for one in having}, "models": {one.model for one in having}}
            counts = {name: len(those) for name, those in named.items()}
            counts["clear"] = sum(head in one.clear for one in own)
            about = {"layers": shape[0], "heads": shape[1], "head": str(head), "top": len(having), "audits": len(own)}
            about |= {"chance": chance[len(having)], "aie": found.mean, "low": found.low, "high": found.high, **counts}
            lines += [about] if len(having) > 1 else []
    table = pd.DataFrame(lines, columns=list(RECURRING))
    return table.sort_values(["top", "aie"], ascending=False, kind="stable", ignore_index=True)


def expect_by_chance(sizes: Sequence[int], n_heads: int) -> list[float]:
    """How many heads are in 0, 1, 2, ... or more of sets of such sizes that are drawn at random, on average."""
    exactly = np.ones(1)
    for size in sizes:
        share = size / n_heads
        exactly = np.convolve(exactly, [1 - share, share])
    return (n_heads * exactly[::-1].cumsum()[::-1]).tolist()
