"""How far did fine-tuning move the heads that carry a task, and the vector that they write?

Effects of two models are compared on the same prompts. Whatever has an interval is resampled by query, the same
queries of both models together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from ivlens.datasets.task import Task
from ivlens.errors import IvlensError
from ivlens.forward.token_batches import batches
from ivlens.measures import group_means, mean_bounds
from ivlens.patching.activations import last_z, path_to_residual
from ivlens.patching.effects import clean_prompts
from ivlens.patching.head_effects import HeadEffects
from ivlens.patching.settings import Settings
from ivlens.random_streams import Stream, open_stream
from ivlens.shapes import Head

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

AIE = ("model", "layer", "head", "aie", "low", "high")
DRIFT = ("measure", "heads", "value", "low", "high", "n")
RESAMPLES = 2000

Written = Float[Tensor, "_ query d_model"]
"""What sets of heads write, one set a row, summed over the clean prompts of each query."""
Line = tuple[str, str, float, float, float, int]


def aie_table(base: HeadEffects, tuned: HeadEffects) -> pd.DataFrame:
    """AIE of every head of `base` and `tuned` and their `difference` (tuned minus base), with 95 % intervals.

    Raises:
        IvlensError: the two were not measured on the same prompts.
    """
    if base.cie.shape != tuned.cie.shape or not torch.equal(base.queries.cpu(), tuned.queries.cpu()):
        raise IvlensError("the effects of the two models are not of the same prompts; measure both with one task")
    queries = base.queries.cpu()
    before, after = base.cie.double().cpu(), tuned.cie.double().cpu()
    parts = []
    for name, cie in {"base": before, "tuned": after, "difference": after - before}.items():
        low, high = mean_bounds(cie, queries)
        layers, heads = np.indices(cie.shape[1:]).reshape(2, -1)
        values = {"aie": group_means(cie, queries).mean(0), "low": low, "high": high}
        flat = {key: value.reshape(-1).numpy() for key, value in values.items()}
        parts.append(pd.DataFrame({"model": name, "layer": layers, "head": heads, **flat}))
    return pd.concat(parts, ignore_index=True)


def head_drift(base: HeadEffects, tuned: HeadEffects, k: int) -> list[Line]:
    """Do the same heads carry the task?

    - `jaccard` of the k heads of largest AIE: shared ones over all of both; beside it what as many heads drawn at
      random would share on average.
    - `spearman`: rank correlation of all heads' AIE.

    Rankings of resampled queries are noisier than that of all: the intervals lean towards less agreement.
    """
    before, after = (group_means(e.cie.double().cpu(), e.queries.cpu()).flatten(1).numpy() for e in (base, tuned))
    n, n_heads = before.shape
    rows = open_stream(base.settings.seed, Stream.RESAMPLES).integers(n, size=(RESAMPLES, n))
    # All queries first, then the resampled ones; by sums rather than copies, since a model may have thousands of heads.
    weights = np.concatenate([np.ones((1, n)), np.stack([np.bincount(row, minlength=n) for row in rows])]) / n
    before, after = weights @ before, weights @ after
    overlap = [_jaccard(*grids, k) for grids in zip(before, after, strict=True)]
    correlation = _spearman(before, after).tolist()
    return [
        ("jaccard", "chosen", overlap[0], *_bounds(overlap[1:], n), n),
        ("jaccard", "random", chance_jaccard(n_heads, k), np.nan, np.nan, 0),
        ("spearman", "", correlation[0], *_bounds(correlation[1:], n), n),
    ]


def chance_jaccard(n_heads: int, k: int) -> float:
    """Mean Jaccard overlap of two sets of k of `n_heads` heads that are drawn independently."""
    shared = np.arange(k + 1)
    return float((stats.hypergeom.pmf(shared, n_heads, k, k) * shared / (2 * k - shared)).sum())


@torch.no_grad()
def write_by_query(model: HookedTransformer, task: Task, settings: Settings, sets: Sequence[Sequence[Head]]) -> Written:
    """The vector of each set of heads, by query of the clean prompts; in any direction the sum is the whole vector."""
    queries, tokens = clean_prompts(model, task, settings)
    z = torch.cat([last_z(model, batch) for batch in batches(tokens)]).double()
    # One mean for all: a norm on the heads' way has its scale there, so that the prompts' sum is the vector.
    mean = z.mean(0)
    total = torch.zeros(len(sets), int(queries.max()) + 1, model.cfg.d_model, dtype=torch.float64)
    for number, heads in enumerate(sets):
        parts = [z[:, head.layer, head.head] @ path_to_residual(model, head, mean) for head in heads]
        total[number].index_add_(0, queries.cpu(), torch.stack(parts).sum(0).cpu())
    return total


def vector_drift(base: Written, tuned: Written, *, seed: int = 0) -> list[Line]:
    """Cosine of the vectors of the two models, in [-1, 1].

    `own`: each model's own top heads; `base`: the base model's heads in both; `random`: the same random heads in both,
    averaged over draws.

    Args:
        base: Of the base model's heads, then of each draw of random ones.
        tuned: Of the same sets, and last of the tuned model's own heads.
    """
    n = base.shape[1]
    rows = torch.randint(n, (RESAMPLES, n), generator=torch.Generator().manual_seed(seed))
    counts = torch.nn.functional.one_hot(rows, n).sum(1).double()
    weights = torch.cat([torch.ones(1, n, dtype=torch.float64), counts])
    both = {"own": (base[:1], tuned[-1:]), "base": (base[:1], tuned[:1]), "random": (base[1:], tuned[1:-1])}
    lines = []
    for name, (before, after) in both.items():
        cosine = torch.cosine_similarity(weights @ before, weights @ after, dim=-1).mean(0)
        lines.append(("cosine", name, float(cosine[0]), *_bounds(cosine[1:].tolist(), n), n))
    return lines


def _jaccard(base: np.ndarray, tuned: np.ndarray, k: int) -> float:
    tops = [set(np.argsort(-grid, kind="stable")[:k].tolist()) for grid in (base, tuned)]
    return len(tops[0] & tops[1]) / len(tops[0] | tops[1])


def _spearman(base: np.ndarray, tuned: np.ndarray) -> np.ndarray:
    """Of every row; NaN where all heads have the same effect."""
    ranks = [stats.rankdata(grid, axis=1) for grid in (base, tuned)]
    before, after = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    with np.errstate(invalid="ignore"):
        return (before * after).sum(1) / np.sqrt((before**2).sum(1) * (after**2).sum(1))


def _bounds(values: Sequence[float], n: int) -> tuple[float, float]:
    if n < 2 or np.isnan(values).any():
        return np.nan, np.nan
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
