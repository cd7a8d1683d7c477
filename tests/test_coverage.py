"""Intervals cover the truth about as often as they say: simulated, for few and many samples, with draws crossed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch

from ivlens import measures
from ivlens.measures import Interval

pytestmark = pytest.mark.slow

REPEATS = 500
LEAST = {5: 0.90, 16: 0.92, 50: 0.92}
"""Of a nominal 0.95, by number of samples."""
NOISE = 2.5 * (0.92 * 0.08 / REPEATS) ** 0.5
"""How far below its coverage a simulation may end, at one in two hundred."""


class Truth(NamedTuple):
    """A distribution, and its mean."""

    draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
    mean: float


TRUTHS = {
    "normal": Truth(lambda generator, shape: generator.normal(1.0, 2.0, shape), 1.0),
    "lognormal": Truth(lambda generator, shape: generator.lognormal(0.0, 0.5, shape), float(np.exp(0.125))),
    "skewed lognormal": Truth(lambda generator, shape: generator.lognormal(0.0, 1.0, shape), float(np.exp(0.5))),
}


@pytest.mark.parametrize("n", LEAST)
@pytest.mark.parametrize("name", TRUTHS)
def test_the_mean_of_samples_is_covered(name: str, n: int) -> None:
    truth = TRUTHS[name]
    values = torch.as_tensor(truth.draw(np.random.default_rng(n), (n, REPEATS)))
    low, high = measures.mean_bounds(values)
    covered = float(((low <= truth.mean) & (truth.mean <= high)).double().mean())
    assert covered >= LEAST[n] - NOISE
    assert covered <= 0.99, "an interval that is never wrong says nothing"


@pytest.mark.parametrize("n", LEAST)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_share_is_covered(share: float, n: int) -> None:
    generator = np.random.default_rng(n)
    found = [measures.interval(torch.as_tensor(generator.random(n) < share).double()) for _ in range(REPEATS)]
    assert covered(found, share) >= LEAST[n] - NOISE
    assert all(0 <= one.low <= one.mean <= one.high <= 1 for one in found)


def covered(found: list[Interval], truth: float) -> float:
    return sum(one.low <= truth <= one.high for one in found) / len(found)


@pytest.mark.parametrize("draws", [5, 20])
@pytest.mark.parametrize("n", LEAST)
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_the_mean_over_samples_and_draws_is_covered(spread: float, n: int, draws: int) -> None:
    """Each sample and each draw has an effect of its own; both would be others another time."""
    generator, found = np.random.default_rng(n + draws), []
    for _ in range(REPEATS):
        of_samples = generator.normal(0, 1, (n, 1))
        of_draws = spread * generator.normal(0, 1, (1, draws))
        values = of_samples + of_draws + generator.normal(0, 1, (n, draws))
        found.append(measures.crossed_interval(torch.as_tensor(values)))
    assert covered(found, 0.0) >= LEAST[n] - NOISE


@pytest.mark.parametrize("draws", [5, 20])
@pytest.mark.parametrize("n", [16, 50])
def test_the_accuracy_of_random_draws_is_covered(n: int, draws: int) -> None:
    """Some draws hit and most miss: shares of right answers between 0 and 1, as of vectors of random heads."""
    generator, found, truth = np.random.default_rng(n * draws), [], 0.4
    for _ in range(REPEATS):
        share = generator.beta(0.8, 1.2, (1, draws))
        right = generator.random((n, draws)) < share
        found.append(measures.crossed_interval(torch.as_tensor(right).double(), within=(0.0, 1.0)))
    assert covered(found, truth) >= 0.90 - NOISE
    assert all(0 <= one.low <= one.high <= 1 for one in found)


def test_averaging_draws_first_would_not_cover() -> None:
    """What the crossed interval is for: over samples alone, five draws look certain."""
    generator, alone, crossed = np.random.default_rng(0), [], []
    for _ in range(REPEATS):
        right = generator.random((20, 5)) < generator.beta(0.8, 1.2, (1, 5))
        values = torch.as_tensor(right).double()
        alone.append(measures.interval(values.mean(1), torch.arange(20)))
        crossed.append(measures.crossed_interval(values, within=(0.0, 1.0)))
    assert covered(alone, 0.4) < 0.6 < 0.88 < covered(crossed, 0.4)


def test_draws_that_are_all_alike_are_as_sure_as_their_samples() -> None:
    found = measures.crossed_interval(torch.zeros(20, 5), within=(0.0, 1.0))
    assert found == measures.interval(torch.zeros(20))
    assert found.high > 0.1
    same = measures.crossed_interval(torch.full((4, 3), 0.25))
    assert same == Interval(0.25, 0.25, 0.25)
    assert np.isnan(measures.crossed_interval(torch.rand(1, 5)).low)
