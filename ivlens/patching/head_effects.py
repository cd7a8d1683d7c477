"""What every head did on every prompt, its mean with an interval, and the table that it is kept in."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ivlens.errors import IvlensError, ShapeMismatch
from ivlens.measures import familywise_p_values, group_means, largest_by_chance, mean_bounds
from ivlens.patching.settings import Settings
from ivlens.shapes import Cie, Head, HeadGrid, MeanZ
from ivlens.tables import interval_text

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from ivlens.plots.style import Width


# Columns of a table of effects.
EFFECTS = ("prompt", "query", "layer", "head", "cie", "baseline")


@dataclass(frozen=True, kw_only=True)
class HeadEffects:
    """Causal indirect effects (CIE) of every head on every prompt, and what they were measured with.

    >>> effects
    HeadEffects(antonym on lab: 25 prompts, 6x8 heads, probability; top L3H3 +0.45...)
    >>> effects.cie.shape, effects.baseline.shape, effects.mean_z.shape
    (torch.Size([25, 6, 8]), torch.Size([25]), torch.Size([6, 8, 16]))
    """

    cie: Cie
    """Patched minus unpatched, per prompt: probability (`prob`) or nats (`nll`)."""
    baseline: Float[Tensor, " prompt"]
    """Unpatched probability (`prob`) or log-likelihood in nats (`nll`) of the answer."""
    queries: Int[Tensor, " prompt"]
    """Prompts of one number ask the same query; they are drawn together when intervals are computed."""
    mean_z: MeanZ
    """What was patched in."""
    settings: Settings
    task: str
    task_digest: str
    model: str
    model_digest: str

    @property
    def aie(self) -> HeadGrid:
        """Average indirect effect (AIE): the mean over queries, each query being the mean over its prompts.

        >>> effects.aie.shape, round(float(effects.aie[3, 3]), 2)
        (torch.Size([6, 8]), 0.45)
        """
        return group_means(self.cie, self.queries).mean(0)

    @property
    def unit(self) -> str:
        """Of every effect: `probability`, of which all lie in [-1, 1], or `nats`.

        >>> effects.unit
        'probability'
        """
        return self.settings.unit

    def interval(self, confidence: float = 0.95) -> tuple[HeadGrid, HeadGrid]:
        """The interval of the AIE, over queries (see `measures.mean_bounds`).

        Returns:
            Lower and upper bound of every head; NaN where there is only one query.

        >>> low, high = effects.interval(0.95)
        >>> low.shape, bool((low <= high).all())
        (torch.Size([6, 8]), True)
        """
        low, high = mean_bounds(self.cie, self.queries, confidence=confidence)
        return (low.clamp(min=-1), high.clamp(max=1)) if self.unit == "probability" else (low, high)

    def p_values(self) -> HeadGrid:
        """Of each head's AIE against 0, corrected for all heads: Holm's steps (see `measures.familywise_p_values`).

        Queries are what was drawn. Fewer than six cannot tell any head from 0.

        >>> effects.p_values().shape, float(effects.p_values()[3, 3]) < 0.01
        (torch.Size([6, 8]), True)
        """
        return self._p_values.clone()

    @cached_property
    def _p_values(self) -> HeadGrid:
        """Computed once: every sentence and figure asks which heads are clear of 0."""
        return familywise_p_values(self.cie, self.queries, seed=self.settings.seed)

    def clear(self, level: float = 0.05) -> list[Head]:
        """Heads whose AIE is clear of 0, the largest first; with a chance of `level` that any of them carries nothing.

        >>> effects.clear()
        [L3H3]
        """
        p_values = self.p_values()
        return [head for head in self.ranked() if float(p_values[head]) <= level]

    def chance(self) -> float | None:
        """How large the largest |AIE| gets by chance in 95 of 100 cases; None where some head is clear of 0.

        >>> print(effects.chance())
        None
        """
        return None if self.clear() else largest_by_chance(self.cie, self.queries, seed=self.settings.seed)

    def ranked(self) -> list[Head]:
        """All heads, the largest AIE first; equal ones by address.

        >>> len(effects.ranked()), effects.ranked()[0]
        (48, L3H3)
        """
        return rank_heads(self.aie)

    def top(self, k: int = 10) -> list[Head]:
        """The k heads of largest AIE. Never report their AIE on the prompts that chose them as their effect.

        >>> effects.top(2)
        [L3H3, L3H4]
        """
        return self._first(self.ranked(), k)

    def bottom(self, k: int = 10) -> list[Head]:
        """The k heads of smallest AIE, the smallest first: a control.

        >>> effects.bottom(48)[-1]
        L3H3
        """
        return self._first(self.ranked()[::-1], k)

    def _first(self, heads: list[Head], k: int) -> list[Head]:
        if not 1 <= k <= len(heads):
            raise IvlensError(f"k is {k}, but the model has {len(heads)} heads; take 1 to {len(heads)}")
        return heads[:k]

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, **others: Any) -> HeadEffects:
        """What `to_frame` made; `others` are the fields that a table does not hold.

        Args:
            frame: In whichever order its lines are.

        Raises:
            IvlensError: not one line for every prompt and head.
            ShapeMismatch: `mean_z` is of other heads.

        >>> names = ("mean_z", "settings", "task", "task_digest", "model", "model_digest")
        >>> others = {name: getattr(effects, name) for name in names}
        >>> again = ivlens.HeadEffects.from_frame(effects.to_frame().sample(frac=1), **others)
        >>> bool((again.cie == effects.cie).all())
        True
        """
        cie, grid = cie_of(frame), tuple(others["mean_z"].shape[:2])
        if cie.shape[1:] != grid:
            raise ShapeMismatch(
                f"the table of effects is of {tuple(cie.shape[1:])} layers and heads, but mean_z of {grid}; run again"
            )
        return cls(cie=cie, baseline=of_prompts(frame, "baseline"), queries=of_prompts(frame, "query"), **others)

    def to_frame(self) -> pd.DataFrame:
        """One line per prompt and head: `prompt`, `query`, `layer`, `head`, `cie`, `baseline`.

        >>> effects.to_frame()[["prompt", "query", "layer", "head"]].tail(2)
              prompt  query  layer  head
        1198      24      8      5     6
        1199      24      8      5     7
        """
        return table_of(self.cie, self.queries, self.baseline)

    def how_many_clear(self) -> str:
        """In words, how many heads are clear of 0.

        >>> effects.how_many_clear()
        '1 of 48 heads is clear of 0 (p ≤ 0.05 after Holm)'
        """
        if (queries := len(self.queries.unique())) < 6:
            return f"{queries} queries cannot tell any head from 0; 6 can"
        clear, heads = len(self.clear()), math.prod(self.cie.shape[1:])
        return f"{clear} of {heads} heads {'is' if clear == 1 else 'are'} clear of 0 (p ≤ 0.05 after Holm)"

    def figure(self, *, marked: Sequence[Head] = (), note: str = "", width: Width = "page") -> go.Figure:
        """Heatmap of the AIE, layers down and heads across; `marked` heads are outlined.

        Args:
            note: Put behind the title.

        >>> figure = effects.figure(marked=effects.top(3))
        >>> figure.data[0].z.shape, len(figure.layout.shapes)
        ((6, 8), 3)
        """
        from ivlens.plots import head_heatmap

        low, high = self.interval()
        return head_heatmap(
            self.aie.cpu().numpy(),
            low=low.cpu().numpy(),
            high=high.cpu().numpy(),
            unit=self.unit,
            chance=self.chance(),
            marked=marked,
            title=". ".join(
                filter(None, (f"AIE of every head of {self.model}, {self.task}", self.how_many_clear(), note))
            ),
            width=width,
        )

    def __repr__(self) -> str:
        low, high = self.interval()
        best = [
            f"{head} {interval_text(float(self.aie[head]), float(low[head]), float(high[head]), sign='+')}"
            for head in self.top(min(3, self.aie.numel()))
        ]
        return (
            f"HeadEffects({self.task} on {self.model}: {len(self.cie)} prompts, {self.cie.shape[1]}x"
            f"{self.cie.shape[2]} heads, {self.unit}; top {', '.join(best)})"
        )

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The figure where plotly has a renderer for notebooks, and one line of text everywhere; then images' texts."""
        figure: Any = self.figure()
        bundle = figure._repr_mimebundle_()
        return {"text/plain": repr(self), **bundle}, figure.alternatives(bundle)


def rank_heads(aie: HeadGrid) -> list[Head]:
    """All heads, the largest AIE first; equal ones by address."""
    order = torch.argsort(aie.flatten(), descending=True, stable=True).tolist()
    return [Head(*divmod(index, aie.shape[1])) for index in order]


def table_of(cie: Cie, queries: Int[Tensor, " prompt"], baseline: Float[Tensor, " prompt"]) -> pd.DataFrame:
    """Effects as a table of `EFFECTS`, one line per prompt and head."""
    import pandas as pd

    axes = np.indices(cie.shape).reshape(3, -1)
    return pd.DataFrame(
        {
            "prompt": axes[0],
            "query": queries.cpu().numpy()[axes[0]],
            "layer": axes[1],
            "head": axes[2],
            "cie": cie.cpu().numpy().reshape(-1),
            "baseline": baseline.cpu().numpy()[axes[0]],
        }
    )


def cie_of(frame: pd.DataFrame) -> Cie:
    """The effects in a table, in whichever order its lines are.

    Raises:
        IvlensError: it has not one line for every prompt and head, or columns of another kind than numbers.
    """
    axes = [frame[axis].to_numpy() for axis in ("prompt", "layer", "head")]
    kinds = "".join(frame[name].dtype.kind for name in EFFECTS)
    if not len(frame) or not re.fullmatch("i{4}ff", kinds):
        raise IvlensError(f"the table of effects has {len(frame)} lines of kinds {kinds}; run the audit again")
    shape = tuple(int(axis.max()) + 1 for axis in axes)
    order = np.lexsort(axes[::-1])
    # Sizes first: a number of a damaged file may be of any size.
    if len(frame) != math.prod(shape) or not np.array_equal(np.stack(axes)[:, order], np.indices(shape).reshape(3, -1)):
        n_prompts, n_layers, n_heads = shape
        raise IvlensError(
            f"the table of effects has {len(frame)} lines, but {n_prompts} prompts of {n_layers}x{n_heads} heads "
            "need one each; run the audit again"
        )
    return torch.tensor(frame["cie"].to_numpy()[order]).reshape(shape)


def of_prompts(frame: pd.DataFrame, column: str) -> Shaped[Tensor, " prompt"]:
    """What every prompt of a table of effects has but once: its `query`, its `baseline`."""
    per_prompt = frame.sort_values(["prompt", "layer", "head"]).drop_duplicates("prompt")
    return torch.tensor(np.asarray(per_prompt[column]))
