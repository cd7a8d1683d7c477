"""What every layer did on every prompt at a site and some positions, its mean with an interval, and its table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ivlens.errors import IvlensError
from ivlens.measures import familywise_p_values, group_means, largest_by_chance, mean_bounds
from ivlens.patching.settings import Settings
from ivlens.shapes import Head
from ivlens.tables import interval_text

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from transformer_lens import HookedTransformer

    from ivlens.plots.style import Width

Grid = Float[Tensor, "layer column"]


class Place(NamedTuple):
    """A layer and what stands across in a grid of effects: a position, or a part of the model."""

    layer: int
    column: str

    def __str__(self) -> str:
        return f"L{self.layer} {self.column}"

    __repr__ = __str__


def head_columns(model: HookedTransformer) -> tuple[str, ...]:
    """Names of a model's heads as columns."""
    return _head_names(model.cfg.n_heads)


def _head_names(n_heads: int) -> tuple[str, ...]:
    return tuple(f"H{head}" for head in range(n_heads))


@dataclass(frozen=True, kw_only=True)
class SiteEffects:
    """Effects of every layer on every prompt, by head or by position, with the statistics of `HeadEffects`.

    >>> sites
    SiteEffects(mlp_out, antonym on lab: 25 prompts, 6 layers x 2 (query, last), probability; top L...)
    >>> sites.effects.shape, sites.mean.shape  # [prompt layer column], [layer column]
    (torch.Size([25, 6, 2]), torch.Size([6, 2]))
    """

    effects: Float[Tensor, "prompt layer column"]
    """Per prompt: patched minus unpatched probability (`prob`) or nats (`nll`). NaN: there is no such effect."""
    baseline: Float[Tensor, " prompt"]
    """Unpatched probability or log-likelihood of the answer; of `logit_attribution`, the logit that the parts make."""
    queries: Int[Tensor, " prompt"]
    """Prompts of one number ask the same query; they are drawn together when intervals are computed."""
    site: str
    """What was patched, or what is told apart."""
    columns: tuple[str, ...]
    """Positions or parts, in their order; `H0`, `H1` and so on of heads."""
    unit: str
    """`probability`, of which all effects lie in [-1, 1], `nats` or `logit`."""
    settings: Settings
    task: str
    task_digest: str
    model: str
    model_digest: str

    @property
    def mean(self) -> Grid:
        """Average indirect effect (AIE): the mean over queries, each query being the mean over its prompts.

        >>> bool((sites.mean.abs() <= 1).all())
        True
        """
        return group_means(self.effects, self.queries).mean(0)

    def interval(self, confidence: float = 0.95) -> tuple[Grid, Grid]:
        """The interval of the mean, over queries (see `measures.mean_bounds`).

        Returns:
            Lower and upper bound; NaN where there is only one query.

        >>> low, high = sites.interval(0.9)
        >>> bool((low <= high).all())
        True
        """
        low, high = mean_bounds(self.effects, self.queries, confidence=confidence)
        return (low.clamp(min=-1), high.clamp(max=1)) if self.unit == "probability" else (low, high)

    def p_values(self) -> Grid:
        """Of each mean against 0, corrected for all of the grid: Holm's steps (see `measures.familywise_p_values`).

        Queries are what was drawn. Fewer than six cannot tell anything from 0.

        >>> sites.p_values().shape
        torch.Size([6, 2])
        """
        found = torch.full(self.effects.shape[1:], torch.nan, dtype=torch.float64)
        there = self._measured()
        found[there] = familywise_p_values(self.effects.cpu()[:, there], self.queries.cpu(), seed=self.settings.seed)
        return found

    def clear(self, level: float = 0.05) -> list[Head] | list[Place]:
        """Where the mean is clear of 0, the largest first; with a chance of `level` that nothing is anywhere of it.

        >>> len(sites.clear()) <= 12
        True
        """
        p_values = self.p_values()
        return [self._place(*at) for at in self._ranked() if float(p_values[at]) <= level]  # pyright: ignore

    def chance(self) -> float | None:
        """How large the largest |mean| gets by chance in 95 of 100 cases; None where some mean is clear of 0.

        >>> sites.chance() is None or sites.chance() > 0
        True
        """
        if self.clear():
            return None
        return largest_by_chance(self.effects.cpu()[:, self._measured()], self.queries.cpu(), seed=self.settings.seed)

    def top(self, k: int = 10) -> list[Head] | list[Place]:
        """The k heads, or layers and columns, of largest mean; equal ones by address.

        Raises:
            IvlensError: there are fewer.

        >>> len(sites.top(3)), sites.top(1)[0].column in ("query", "last")
        (3, True)
        """
        found = self._ranked()
        if not 1 <= k <= len(found):
            raise IvlensError(f"k is {k}, but there are {len(found)} effects; take 1 to {len(found)}")
        return [self._place(*at) for at in found[:k]]  # pyright: ignore

    @property
    def of_heads(self) -> bool:
        """Whether a column is a head.

        >>> sites.of_heads
        False
        """
        return self.columns == _head_names(len(self.columns))

    def to_frame(self) -> pd.DataFrame:
        """One line per prompt, layer and column: `prompt`, `query`, `layer`, `column`, `effect`, `baseline`.

        >>> sites.to_frame()[["prompt", "query", "layer", "column"]].tail(2)
             prompt  query  layer column
        298      24      8      5  query
        299      24      8      5   last
        """
        import pandas as pd

        prompt, layer, column = np.indices(self.effects.shape).reshape(3, -1)
        return pd.DataFrame(
            {
                "prompt": prompt,
                "query": self.queries.cpu().numpy()[prompt],
                "layer": layer,
                "column": np.array(self.columns)[column],
                "effect": self.effects.cpu().numpy().reshape(-1),
                "baseline": self.baseline.cpu().numpy()[prompt],
            }
        )

    def how_many_clear(self) -> str:
        """In words, how many means are clear of 0.

        >>> sites.how_many_clear().endswith("clear of 0 (p ≤ 0.05 after Holm)")
        True
        """
        if (queries := len(self.queries.unique())) < 6:
            return f"{queries} queries cannot tell any effect from 0; 6 can"
        clear, total = len(self.clear()), int(self._measured().sum())
        return f"{clear} of {total} {'is' if clear == 1 else 'are'} clear of 0 (p ≤ 0.05 after Holm)"

    def figure(self, *, note: str = "", width: Width = "page") -> go.Figure:
        """Heatmap of the means, layers down, heads or positions across.

        Args:
            note: Put behind the title.

        >>> sites.figure().data[0].z.shape
        (6, 2)
        """
        from ivlens.plots import head_heatmap

        low, high = self.interval()
        title = f"{self.site} of {self.model}, {self.task}"
        return head_heatmap(
            self.mean.cpu().numpy(),
            low=low.cpu().numpy(),
            high=high.cpu().numpy(),
            unit=self.unit,
            chance=self.chance(),
            title=". ".join(filter(None, (title, self.how_many_clear(), note))),
            columns=() if self.of_heads else self.columns,
            measure="mean" if self.unit == "logit" else "AIE",
            width=width,
        )

    def _measured(self) -> Bool[Tensor, "layer column"]:
        return ~self.effects.isnan().any(0).cpu()

    def _ranked(self) -> list[tuple[int, int]]:
        means = self.mean.cpu().nan_to_num(nan=-math.inf)
        order = torch.argsort(means.flatten(), descending=True, stable=True)[: int(self._measured().sum())]
        return [divmod(at, means.shape[1]) for at in order.tolist()]

    def _place(self, layer: int, column: int) -> Head | Place:
        return Head(layer, column) if self.of_heads else Place(layer, self.columns[column])

    def __repr__(self) -> str:
        (low, high), means = self.interval(), self.mean
        best = [
            f"{self._place(*at)} {interval_text(float(means[at]), float(low[at]), float(high[at]), sign='+')}"
            for at in self._ranked()[:3]
        ]
        across = "heads" if self.of_heads else f"({', '.join(self.columns)})"
        return (
            f"SiteEffects({self.site}, {self.task} on {self.model}: {len(self.effects)} prompts, "
            f"{self.effects.shape[1]} layers x {len(self.columns)} {across}, {self.unit}; top {', '.join(best)})"
        )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """The figure where plotly has a renderer for notebooks, and one line of text everywhere."""
        return {"text/plain": repr(self), **self.figure()._repr_mimebundle_()}
