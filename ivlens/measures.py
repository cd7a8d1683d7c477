"""How probable is an answer, how often is it right, how far are two distributions apart, and how sure is that?

Tensors in, numbers out. Probabilities are computed in float32 at least, whatever the model's precision.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

from ivlens.random_streams import Stream, open_stream
from ivlens.tables import interval_text


class Interval(NamedTuple):
    """A mean over prompts and the bounds of its confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return self.text()

    def text(self, digits: int = 3) -> str:
        """As `0.042 [0.031, 0.055]`."""
        return interval_text(*self, digits=digits)


def full_precision(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 where it is already."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def token_log_probs(logits: Float[Tensor, "*batch vocab"], tokens: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Log-probability of one token per position, in nats."""
    logits = full_precision(logits)
    chosen = logits.gather(-1, tokens[..., None])[..., 0]
    return chosen - logits.logsumexp(-1)


def first_token_probability(
    logits: Float[Tensor, "prompt answer vocab"], answers: Int[Tensor, "prompt answer"]
) -> Float[Tensor, " prompt"]:
    """Probability of the answer's first token, in [0, 1]."""
    return token_log_probs(logits[:, 0], answers[:, 0]).exp()


def answer_log_prob(
    logits: Float[Tensor, "prompt answer vocab"],
    answers: Int[Tensor, "prompt answer"],
    mask: Bool[Tensor, "prompt answer"],
) -> Float[Tensor, " prompt"]:
    """Log-probability of the whole answer, teacher-forced, summed over its tokens, in nats."""
    return (token_log_probs(logits, answers) * mask).sum(-1)


def greedy_match(
    logits: Float[Tensor, "*batch answer vocab"],
    answers: Int[Tensor, "*#batch answer"],
    mask: Bool[Tensor, "*#batch answer"],
) -> Bool[Tensor, "*batch"]:
    """Would greedy decoding write the answer?

    Teacher forcing decides it exactly: as long as every token so far is right, decoding reads the same prefix.
    """
    return ((logits.argmax(-1) == answers) | ~mask).all(-1)


def kl_divergence(
    logits: Float[Tensor, "*batch vocab"], other: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """KL[softmax(logits) || softmax(other)] in nats, at least 0."""
    p, q = full_precision(logits).log_softmax(-1), full_precision(other).log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)


def bootstrap(
    values: Float[Tensor, "sample *rest"],
    groups: Int[Tensor, " sample"] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[Float[Tensor, "*rest"], Float[Tensor, "*rest"]]:
    """Bounds of the percentile bootstrap interval of the mean over samples.

    Args:
        groups: Samples of one group (prompts with the same query, say) are averaged first and drawn together,
            since they are no independent evidence.

    Returns:
        Lower and upper bound; NaN where there are fewer than two independent samples.
    """
    means = values if groups is None else group_means(values, groups)
    shape = means.shape[1:]
    if len(means) < 2:
        return torch.full(shape, torch.nan), torch.full(shape, torch.nan)
    flat = rearrange(full_precision(means).detach().cpu().numpy(), "sample ... -> sample (...)")
    with warnings.catch_warnings():
        # Samples that are all the same have no spread: scipy warns, and the interval is the point itself.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            (flat,),
            np.mean,
            axis=0,
            vectorized=True,
            confidence_level=confidence,
            n_resamples=resamples,
            method="percentile",
            batch=max(1, 2**24 // flat.size),
            rng=open_stream(seed, Stream.RESAMPLES),
        )
    bounds = result.confidence_interval
    return (
        torch.as_tensor(np.asarray(bounds.low)).reshape(shape),
        torch.as_tensor(np.asarray(bounds.high)).reshape(shape),
    )


def group_means(values: Float[Tensor, "sample *rest"], groups: Int[Tensor, " sample"]) -> Float[Tensor, "group *rest"]:
    """Mean of the samples of every group, groups in ascending order."""
    return torch.stack([values[groups == group].mean(0) for group in groups.unique()])


def interval(
    values: Float[Tensor, " sample"],
    groups: Int[Tensor, " sample"] | None = None,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean over samples with its bootstrap interval; Wilson's where every sample is 0 or 1.

    The bootstrap of twenty successes out of twenty is [1, 1]; Wilson's interval says how little that is.
    """
    values = full_precision(values if values.is_floating_point() else values.float())
    if not len(values):
        return Interval(torch.nan, torch.nan, torch.nan)
    mean = float(values.mean())
    if groups is None and bool(((values == 0) | (values == 1)).all()):
        wilson = stats.binomtest(int(values.sum()), len(values)).proportion_ci(confidence, method="wilson")
        return Interval(mean, float(wilson.low), float(wilson.high))
    low, high = bootstrap(values, groups, confidence=confidence, seed=seed)
    return Interval(mean, float(low), float(high))
