"""How probable is an answer, how often is it right, how far are two distributions apart, and how sure is that?

Tensors in, numbers out. Probabilities are computed in float32 at least, whatever the model's precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import special
from torch import Tensor

from ivlens.errors import IvlensError
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
    rows = logits.reshape(-1, logits.shape[-1])
    # A million numbers stay in a processor's cache while it passes over them again and again.
    parts = rows.split(max(1, 2**20 // rows.shape[1])) if rows.device.type == "cpu" else [rows]
    return chosen - torch.cat([part.logsumexp(-1) for part in parts]).reshape(chosen.shape)


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
    logits: Float[Tensor, "*#batch vocab"], other: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """KL[softmax(logits) || softmax(other)] in nats, at least 0."""
    p, q = full_precision(logits).log_softmax(-1), full_precision(other).log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)


def mean_bounds(
    values: Float[Tensor, "sample *rest"],
    groups: Int[Tensor, " sample"] | None = None,
    *,
    confidence: float = 0.95,
) -> tuple[Float[Tensor, "*rest"], Float[Tensor, "*rest"]]:
    """Bounds of a confidence interval of the mean over independent samples.

    On each side the wider of Student's and of Hall's, which takes the samples' skewness into account; at most twice
    Student's, as the skewness of few is uncertain itself. The percentile bootstrap covers 0.74 to 0.92 of a nominal
    0.95 at 5 to 16 samples; this one 0.92 and more at 16, log-normal ones included.
    Source: Hall 1992, "On the removal of skewness by transformation", J. R. Stat. Soc. B 54, here with the unbiased
    skewness and Student's quantile.

    Args:
        groups: Samples of one group (prompts with the same query, say) are averaged first, since they are no
            independent evidence.

    Returns:
        Lower and upper bound; NaN where there are fewer than two independent samples.
    """
    if not 0 < confidence < 1:
        raise IvlensError(f"confidence is {confidence!r}; it must lie between 0 and 1, such as 0.95")
    means = (values if groups is None else group_means(values, groups)).double().cpu()
    n, mean = len(means), means.mean(0)
    if n < 2:
        return torch.full_like(mean, torch.nan), torch.full_like(mean, torch.nan)
    deviations = means - mean
    spread = deviations.square().mean(0).sqrt()
    # Samples that are all the same have no skewness, and the interval is the point itself.
    flat = spread <= 1e-12 * means.abs().amax(0)
    cubed = torch.where(flat, 0.0, (deviations / torch.where(flat, 1.0, spread)).pow(3).mean(0))
    skewness = cubed * math.sqrt(n * (n - 1)) / (n - 2) if n > 2 else torch.zeros_like(mean)
    half = torch.full_like(mean, student_quantile((1 + confidence) / 2, n - 1))
    error = torch.where(flat, 0.0, means.std(0)) / math.sqrt(n)
    below, above = (torch.clamp(sign * _without_skewness(sign * half, skewness, n), half, 2 * half) for sign in (1, -1))
    return mean - below * error, mean + above * error


def _without_skewness(t: Float[Tensor, "*rest"], skewness: Float[Tensor, "*rest"], n: int) -> Float[Tensor, "*rest"]:
    """The studentised mean at which Hall's transformation of it is `t`; `t` itself where there is no skewness."""
    skewed = skewness.abs() > 1e-6
    safe = torch.where(skewed, skewness, 1.0)
    inner = 1 + safe * (t / math.sqrt(n) - safe / (6 * n))
    root = inner.sign() * inner.abs().pow(1 / 3)
    return torch.where(skewed, math.sqrt(n) * 3 / safe * (root - 1), t)


def crossed_interval(
    values: Float[Tensor, "sample draw"], *, confidence: float = 0.95, within: tuple[float, float] | None = None
) -> Interval:
    """Mean over samples and draws (of random heads, say), both of which would be others another time.

    The variance of the mean is that of samples plus that of draws, less what both share; degrees of freedom are
    Satterthwaite's. With a single draw, `interval` over samples is the one to take.

    Args:
        within: Bounds that the mean cannot leave, such as 0 and 1 of a share.

    Returns:
        NaN bounds where there are fewer than two samples or draws.
    """
    values = values.double().cpu()
    (n, m), mean = values.shape, float(values.mean())
    if n < 2 or m < 2:
        return Interval(mean, torch.nan, torch.nan)
    by_sample, by_draw = values.mean(1), values.mean(0)
    rest = values - by_sample[:, None] - by_draw + mean
    of_samples, of_draws = float(by_sample.var()) / n, float(by_draw.var()) / m
    shared = float(rest.square().sum()) / ((n - 1) * (m - 1)) / (n * m)
    # Never below the larger part: the estimate of what both share is itself uncertain.
    variance = max(of_samples + of_draws - shared, of_samples, of_draws)
    if variance == 0:
        # Of successes that all are alike, the samples alone say how little that is.
        alike = bool(((values == 0) | (values == 1)).all())
        return interval(values[:, 0], confidence=confidence) if alike else Interval(mean, mean, mean)
    freedom = max(variance**2 / (of_samples**2 / (n - 1) + of_draws**2 / (m - 1)), min(n, m) - 1)
    half = student_quantile((1 + confidence) / 2, freedom) * math.sqrt(variance)
    return _clipped(Interval(mean, mean - half, mean + half), within)


def _clipped(found: Interval, within: tuple[float, float] | None) -> Interval:
    if within is None or math.isnan(found.low):
        return found
    return Interval(found.mean, max(found.low, within[0]), min(found.high, within[1]))


def group_means(values: Float[Tensor, "sample *rest"], groups: Int[Tensor, " sample"]) -> Float[Tensor, "group *rest"]:
    """Mean of the samples of every group, groups in ascending order."""
    return torch.stack([values[groups == group].mean(0) for group in groups.unique()])


def familywise_p_values(
    values: Float[Tensor, "sample *rest"], groups: Int[Tensor, " sample"] | None = None, *, seed: int = 0
) -> Float[Tensor, "*rest"]:
    """Of each mean's difference from 0, two-sided and corrected for all means that are looked at.

    Holm's steps, on how large the largest of all means' t gets when whole samples change their sign at random: all
    2^(n - 1) ways up to 14 samples, else 9,999 and the one that came. Exact, for any number of means however they
    depend on each other, where what carries nothing lies symmetric about 0; Student's test under Holm's correction gets
    up to three times the error that it promises of samples whose tails are light. Fewer than 6 samples cannot be clear.
    Source: Westfall & Young 1993, "Resampling-based multiple testing", algorithm 2.8.

    Args:
        groups: As for `mean_bounds`.
        seed: Of the signs.
    """
    means = (values if groups is None else group_means(values, groups)).double().cpu()
    samples = means.flatten(1)
    length = samples.norm(dim=0)
    # Student's t rises with this one, whose denominator no sign changes.
    samples = torch.where(length > 0, samples / length.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    found, order = samples.sum(0).abs().sort(descending=True, stable=True)
    # What is as far by another order of the same sums is as far.
    found, samples = found - 1e-9, samples[:, order]
    signs = _signs(len(samples), seed)
    reached = torch.zeros(len(found), dtype=torch.float64)
    for some in signs.split(1000):
        # Each step compares with the largest of the means that are left.
        largest = (some @ samples).abs().flip(1).cummax(1).values.flip(1)
        reached += (largest >= found).sum(0)
    stepped = (reached / len(signs)).cummax(0).values
    return torch.empty_like(stepped).scatter_(0, order, stepped).reshape(means.shape[1:])


def largest_by_chance(
    values: Float[Tensor, "sample *rest"],
    groups: Int[Tensor, " sample"] | None = None,
    *,
    level: float = 0.05,
    seed: int = 0,
) -> float:
    """How far from 0 the largest of all means gets, in all but a share `level` of cases, where none carries anything.

    By the signs of whole samples, as `familywise_p_values`, and of the means themselves rather than of their t.
    """
    means = (values if groups is None else group_means(values, groups)).double().cpu().flatten(1)
    largest = torch.cat([(some @ means).abs().amax(1) for some in _signs(len(means), seed).split(1000)])
    return float(largest.quantile(1 - level, interpolation="higher")) / len(means)


def _signs(n: int, seed: int) -> Float[Tensor, "flip sample"]:
    """Signs of samples, those that came first; of two opposite ways one."""
    if n <= 14:
        ways = torch.arange(2 ** max(n - 1, 0))[:, None]
        return 1.0 - 2.0 * (ways >> torch.arange(n) & 1).double()
    drawn = open_stream(seed, Stream.SIGNS).integers(0, 2, (9999, n))
    return torch.cat([torch.ones(1, n, dtype=torch.float64), 1.0 - 2.0 * torch.from_numpy(drawn).double()])


def interval(
    values: Float[Tensor, "sample *draw"],
    groups: Int[Tensor, " sample"] | None = None,
    *,
    confidence: float = 0.95,
    within: tuple[float, float] | None = None,
    of_answers: bool = False,
) -> Interval:
    """Mean over samples with its interval (see `mean_bounds`); Wilson's where every sample is 0 or 1.

    Where there are several draws, they are others another time, too: see `crossed_interval`.

    Args:
        within: Bounds that the mean cannot leave, such as 0 and 1 of a probability.
        of_answers: Samples are differences of right answers (1) and wrong ones (0), alike by chance where all are.
    """
    values = values.double()
    if not len(values):
        return Interval(torch.nan, torch.nan, torch.nan)
    if of_answers and bool((values == values.reshape(-1)[0]).all()):  # Of others a share, by Wilson, may be -1 or 1.
        mean, others = float(values.mean()), _wilson(0, len(values), confidence).high
        return Interval(mean, mean - others * max(0.0, 1 + mean), mean + others * max(0.0, 1 - mean))
    if values.dim() == 2 and values.shape[1] > 1:
        return crossed_interval(values, confidence=confidence, within=within)
    values = values.reshape(-1)
    mean = float(values.mean())
    if groups is None and bool(((values == 0) | (values == 1)).all()):
        return _wilson(int(values.sum()), len(values), confidence)
    return _clipped(Interval(mean, *map(float, mean_bounds(values, groups, confidence=confidence))), within)


def student_quantile(share: float, freedom: int | float) -> float:
    """Below which that share of Student's distribution lies; as `scipy.stats.t.ppf`, whose import takes longer."""
    return float(special.stdtrit(freedom, share))


def _wilson(successes: int, n: int, confidence: float) -> Interval:
    """Of a share of successes; as `scipy.stats.binomtest` has it, to the bit."""
    z, share = float(special.ndtri(0.5 + 0.5 * confidence)), successes / n
    whole = 2 * (n + z**2)
    middle, half = (2 * n * share + z**2) / whole, z / whole * math.sqrt(4 * n * share * (1 - share) + z**2)
    return Interval(share, 0.0 if successes == 0 else middle - half, 1.0 if successes == n else middle + half)


def holm(p_values: Sequence[float] | np.ndarray | Tensor) -> np.ndarray:
    """p-values of a family of tests, adjusted so that the chance of any false finding among them stays what it is said.

    The smallest of n is multiplied by n, the next one by n - 1 and so on; none becomes smaller than one before it, nor
    larger than 1. Source: Holm 1979, "A simple sequentially rejective multiple test procedure", Scand. J. Stat. 6.

    Args:
        p_values: All tests of the family, in any shape; NaN (not measured) stays NaN and does not count.

    Returns:
        In the same shape; what is below 0.05 is a finding at that level.
    """
    given = np.asarray(p_values, dtype=np.float64)
    flat, adjusted = given.reshape(-1), np.full(given.size, np.nan)
    n = int(np.count_nonzero(~np.isnan(flat)))
    order = np.argsort(flat, kind="stable")[:n]  # NaN is sorted last.
    adjusted[order] = np.minimum(np.maximum.accumulate(flat[order] * np.arange(n, 0, -1)), 1.0)
    return adjusted.reshape(given.shape)
