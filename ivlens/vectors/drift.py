"""How far did fine-tuning move the heads that carry a task, and the vector that they write?

Effects of two models are compared on the same prompts. Intervals are over queries, the same ones of both models
together: of a cosine by the jackknife, of rankings by the bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.datasets.task import Task
from ivlens.errors import IvlensError
from ivlens.forward.memory import count_at_once
from ivlens.forward.token_batches import batches
from ivlens.kept_batches import keep_batch
from ivlens.measures import group_means, interval, mean_bounds
from ivlens.patching.activations import last_z, path_to_residual
from ivlens.patching.effects import Queries, clean_prompts
from ivlens.patching.head_effects import HeadEffects
from ivlens.patching.settings import Settings
from ivlens.prompts.tokens import Tokens
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
        if base.unit == "probability":
            most = 2.0 if name == "difference" else 1.0
            low, high = low.clamp(min=-most), high.clamp(max=most)
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

    Rankings of resampled queries are noisier than that of all, and agree less: an interval goes on each side as far as
    the percentile bootstrap, or its mirror image, whichever is wider. Where noise is as large as the effects, two grids
    that were measured apart agree less than the true ones do, which no interval tells.
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
        ("jaccard", "chosen", overlap[0], *_bounds(overlap, n, least=0.0), n),
        ("jaccard", "random", chance_jaccard(n_heads, k), np.nan, np.nan, 0),
        ("spearman", "", correlation[0], *_bounds(correlation, n, least=-1.0), n),
    ]


def chance_jaccard(n_heads: int, k: int) -> float:
    """Mean Jaccard overlap of two sets of k of `n_heads` heads that are drawn independently."""
    from scipy import stats  # Not at once: see `_spearman`.

    shared = np.arange(k + 1)
    return float((stats.hypergeom.pmf(shared, n_heads, k, k) * shared / (2 * k - shared)).sum())


@torch.no_grad()
def write_by_query(
    model: HookedTransformer,
    task: Task,
    settings: Settings,
    sets: Sequence[Sequence[Head]],
    *,
    queries: Queries | None = None,
) -> Written:
    """The vector of each set of heads, by query of the clean prompts; in any direction the sum is the whole vector."""
    numbers, tokens = clean_prompts(model, task, settings, queries=queries)
    parts = batches(tokens, most=count_at_once(model, tokens))
    z = torch.cat([_keep_z(model, batch) for batch in parts]).double()
    # One mean for all: a norm on the heads' way has its scale there, so that the prompts' sum is the vector.
    mean = z.mean(0)
    total = torch.zeros(len(sets), int(numbers.max()) + 1, model.cfg.d_model, dtype=torch.float64)
    for number, heads in enumerate(sets):
        parts = [z[:, head.layer, head.head] @ path_to_residual(model, head, mean) for head in heads]
        total[number].index_add_(0, numbers.cpu(), torch.stack(parts).sum(0).cpu())
    return total


def _keep_z(model: HookedTransformer, batch: Tokens) -> Float[Tensor, "prompt layer head d_head"]:
    def compute() -> dict[str, Tensor]:
        return {"z": last_z(model, batch)}

    return keep_batch("outputs", [batch.prompts, batch.mask], compute, device=model.cfg.device)["z"]


def vector_drift(base: Written, tuned: Written) -> list[Line]:
    """Cosine of the vectors of the two models, in [-1, 1].

    Noise of a few queries makes vectors less alike, resampling them twice so: the percentile bootstrap covers next to
    nothing of a cosine near 1. The jackknife's interval takes this bias away; it always holds the cosine as measured.

    `own`: each model's own top heads; `base`: the base model's heads in both; `random`: the same random heads in both,
    averaged over draws.

    Args:
        base: Of the base model's heads, then of each draw of random ones.
        tuned: Of the same sets, and last of the tuned model's own heads.
    """
    both = {"own": (base[:1], tuned[-1:]), "base": (base[:1], tuned[:1]), "random": (base[1:], tuned[1:-1])}
    return [("cosine", name, *_cosine(*pair), base.shape[1]) for name, pair in both.items()]


def _cosine(base: Written, tuned: Written) -> tuple[float, float, float]:
    """Mean over sets of heads, with its interval over queries and sets."""
    n = base.shape[1]
    totals = base.sum(1), tuned.sum(1)
    whole = torch.cosine_similarity(*totals, dim=-1)
    without = torch.cosine_similarity(totals[0][:, None] - base, totals[1][:, None] - tuned, dim=-1)
    # Tukey's pseudo-values: as many as queries, and their mean is free of the bias.
    pseudo = (n * whole[:, None] - (n - 1) * without).T
    _, low, high = interval(pseudo, torch.arange(n), within=(-1.0, 1.0))
    mean = float(whole.mean())
    return mean, min(low, mean) if n > 1 else low, max(high, mean) if n > 1 else high


def _jaccard(base: np.ndarray, tuned: np.ndarray, k: int) -> float:
    tops = [set(np.argsort(-grid, kind="stable")[:k].tolist()) for grid in (base, tuned)]
    return len(tops[0] & tops[1]) / len(tops[0] | tops[1])


def _spearman(base: np.ndarray, tuned: np.ndarray) -> np.ndarray:
    """Of every row; NaN where all heads have the same effect."""
    from scipy import stats  # Not at once: whoever reads a comparison does not wait for it.

    ranks = [stats.rankdata(grid, axis=1) for grid in (base, tuned)]
    before, after = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    with np.errstate(invalid="ignore"):
        return (before * after).sum(1) / np.sqrt((before**2).sum(1) * (after**2).sum(1))


def _bounds(values: Sequence[float], n: int, *, least: float) -> tuple[float, float]:
    """Of the first value, from resampled ones behind it; between `least` and 1."""
    if n < 2 or np.isnan(values).any():
        return np.nan, np.nan
    found, (low, high) = values[0], np.percentile(values[1:], [2.5, 97.5])
    return max(least, float(min(low, 2 * found - high))), min(1.0, float(max(high, 2 * found - low)))
