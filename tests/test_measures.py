"""Probabilities, distances and intervals are what their definitions say."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import rounding
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from ivlens import measures
from ivlens.errors import IvlensError

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("vocab", [7, 2**18 + 1])  # Of the larger one, three rows are summed together.
def test_log_probs_equal_a_softmax(vocab: int) -> None:
    logits = torch.randn(4, 3, vocab, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 0, 1], [2, 2, 2]])
    expected = logits.softmax(-1).gather(-1, tokens[..., None])[..., 0].log()
    torch.testing.assert_close(
        measures.token_log_probs(logits, tokens),
        expected,
        rtol=0,
        atol=rounding.bound(vocab, size=4.0, dtype=torch.float64),
    )


def test_no_rows_have_no_log_probs() -> None:
    assert measures.token_log_probs(torch.zeros(0, 2, 7), torch.zeros(0, 2, dtype=torch.long)).shape == (0, 2)


def test_half_precision_logits_are_raised_before_the_softmax() -> None:
    logits = torch.tensor([[1000.0, 0.0]], dtype=torch.bfloat16)
    assert measures.token_log_probs(logits, torch.tensor([1])).item() == -1000.0


def test_pads_of_an_answer_count_for_nothing() -> None:
    logits = torch.log(torch.tensor([[[0.5, 0.5], [0.9, 0.1]], [[0.25, 0.75], [0.2, 0.8]]]))
    answers, mask = torch.tensor([[0, 0], [1, 1]]), torch.tensor([[True, False], [True, True]])
    found = measures.answer_log_prob(logits, answers, mask)
    assert found.tolist() == pytest.approx([math.log(0.5), math.log(0.75 * 0.8)])
    wrong_second = torch.tensor([[0, 1], [1, 0]])
    assert measures.greedy_match(logits, wrong_second, mask).tolist() == [True, False]


def test_kl_is_the_sum_that_defines_it_and_zero_on_itself() -> None:
    p, q = torch.tensor([[0.2, 0.3, 0.5], [0.4, 0.4, 0.2]], dtype=torch.float64)
    expected = sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
    assert measures.kl_divergence(p.log(), q.log()).item() == pytest.approx(expected, rel=1e-12)
    assert measures.kl_divergence(p.log(), p.log()).item() == 0.0


def test_bounds_agree_with_the_normal_interval_on_many_normal_samples() -> None:
    values = torch.as_tensor(np.random.default_rng(0).normal(3.0, 2.0, size=(400, 1)))
    low, high = measures.mean_bounds(values)
    half = 1.96 * float(values.std()) / math.sqrt(400)
    assert float(low) == pytest.approx(float(values.mean()) - half, abs=0.02)
    assert float(high) == pytest.approx(float(values.mean()) + half, abs=0.02)


def test_bounds_are_the_wider_of_students_and_halls_on_each_side() -> None:
    values = np.random.default_rng(5).exponential(1.0, size=12)
    n, mean, spread = 12, values.mean(), values.std(ddof=1)
    t = stats.t.ppf(0.975, n - 1)
    skewness = stats.skew(values, bias=False)

    def hall(at: float) -> float:
        # Hall's transformation of a studentised mean, whose inverse bounds the mean.
        return (
            at + skewness * at**2 / (3 * math.sqrt(n)) + skewness**2 * at**3 / (27 * n) + skewness / (6 * math.sqrt(n))
        )

    lowest, highest = (optimize.brentq(lambda at, end=end: hall(at) - end, -50, 50) for end in (t, -t))
    below, above = min(max(t, lowest), 2 * t), min(max(t, -highest), 2 * t)
    wanted = [mean - spread / math.sqrt(n) * below, mean + spread / math.sqrt(n) * above]
    low, high = measures.mean_bounds(torch.as_tensor(values)[:, None])
    assert [float(low), float(high)] == pytest.approx(wanted, rel=1e-9)
    assert high - mean > mean - low, "a long tail to the right may hide a larger mean"


def test_prompts_of_one_query_are_one_piece_of_evidence() -> None:
    values = torch.as_tensor(np.random.default_rng(2).normal(size=(20, 1)))
    groups = torch.arange(20)
    copied = values.repeat(5, 1), groups.repeat(5)
    torch.testing.assert_close(measures.mean_bounds(*copied), measures.mean_bounds(values, groups))
    low, high = measures.mean_bounds(copied[0])
    narrow = float(high - low)
    low, high = measures.mean_bounds(values)
    assert narrow < 0.6 * float(high - low)


def stepped_by_hand(values: np.ndarray) -> list[float]:
    """Step-down maxT of Westfall & Young, head by head over every way to choose signs."""
    n, m = values.shape
    ways = np.array(list(itertools.product([1.0, -1.0], repeat=n)))
    t = np.array([np.abs([stats.ttest_1samp(way * values[:, i], 0).statistic for way in ways]) for i in range(m)])
    observed, adjusted, before = t[:, 0], np.empty(m), 0.0
    left = set(range(m))
    for head in sorted(left, key=lambda i: -observed[i]):
        largest = t[sorted(left)].max(0)
        before = max(before, float((largest >= observed[head] - 1e-9).mean()))
        adjusted[head] = before
        left.remove(head)
    return adjusted.tolist()


@pytest.mark.slow
def test_familywise_p_values_are_those_of_flipping_signs_head_by_head() -> None:
    generator = np.random.default_rng(3)
    values = generator.normal(size=(7, 4)) + np.array([2.0, 0.0, 0.6, -1.5])
    values[:, 3] += 0.5 * values[:, 0]
    found = measures.familywise_p_values(torch.as_tensor(values).reshape(7, 2, 2))
    assert found.flatten().tolist() == pytest.approx(stepped_by_hand(values), abs=1e-12)
    assert float(found[0, 0]) == 1 / 64 and float(found[0, 1]) > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "uniform", "two points"])
@pytest.mark.parametrize("n", [6, 9])
def test_of_many_heads_that_carry_nothing_one_is_clear_in_a_twentieth_of_cases(kind: str, n: int) -> None:
    generator = torch.Generator().manual_seed(n)

    def noise() -> torch.Tensor:
        # Heads share a part of their noise, as those of one prompt do.
        drawn = torch.randn(n, 30, dtype=torch.float64, generator=generator)
        drawn = drawn if kind == "normal" else drawn.erf() if kind == "uniform" else drawn.sign() * (1 + 1e-3 * drawn)
        return drawn * (1 + 0.5 * torch.rand(n, 1, dtype=torch.float64, generator=generator))

    wrong = [bool((measures.familywise_p_values(noise()) <= 0.05).any()) for _ in range(400)]
    # Within what 400 cases tell: three standard errors above 0.05.
    assert sum(wrong) / len(wrong) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_a_head_that_carries_something_is_found_among_many() -> None:
    values = torch.randn(16, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values[:, 7] += 3
    found = measures.familywise_p_values(values)
    assert float(found[7]) <= 0.001 and int((found <= 0.05).sum()) == 1
    assert bool((found == measures.familywise_p_values(values.repeat(2, 1), torch.arange(16).repeat(2))).all())


def test_a_handful_of_samples_and_heads_without_any_effect_are_not_clear() -> None:
    assert float(measures.familywise_p_values(torch.ones(5, 1))) == 1 / 16
    assert measures.familywise_p_values(torch.zeros(9, 3)).tolist() == [1.0] * 3
    assert measures.familywise_p_values(torch.ones(1, 2)).tolist() == [1.0] * 2


def test_what_chance_gives_is_the_largest_mean_under_flipped_signs() -> None:
    values = np.random.default_rng(0).normal(size=(7, 3))
    ways = [np.abs(np.array(signs) @ values / 7).max() for signs in itertools.product((-1, 1), repeat=7)]
    found = measures.largest_by_chance(torch.as_tensor(values))
    assert found == pytest.approx(np.quantile(ways, 0.95, method="higher"))
    repeated = measures.largest_by_chance(torch.as_tensor(values).repeat(2, 1), torch.arange(7).repeat(2))
    assert repeated == pytest.approx(found)


def test_one_sample_has_no_interval() -> None:
    low, high = measures.mean_bounds(torch.ones(1, 2, 3))
    assert low.shape == (2, 3)
    assert bool(low.isnan().all())
    assert bool(high.isnan().all())
    assert all(math.isnan(number) for number in measures.interval(torch.zeros(0)))


@pytest.mark.parametrize("confidence", [95.0, 0.0, 1.0, -0.5, math.nan])
def test_a_confidence_that_is_none_is_refused(confidence: float) -> None:
    with pytest.raises(IvlensError, match=r"it must lie between 0 and 1, such as 0\.95"):
        measures.interval(torch.rand(5), confidence=confidence)


def test_equal_samples_have_an_interval_of_no_width() -> None:
    low, high = measures.mean_bounds(torch.full((5, 2), 0.25))
    assert low.tolist() == high.tolist() == [0.25, 0.25]


@pytest.mark.parametrize(("share", "value"), [(0.05, 1.0), (0.1, 1.0), (0.1, -1.0), (0.95, 1.0)])
def test_differences_of_answers_that_are_all_alike_are_no_certainty(share: float, value: float) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = value * (torch.rand(500, 20, generator=generator) < share).double()
    groups = torch.arange(20)
    covers = {True: 0, False: 0}
    for sample in drawn:
        for of_answers in covers:
            found = measures.interval(sample, groups, within=(-1.0, 1.0), of_answers=of_answers)
            covers[of_answers] += found.low <= value * share <= found.high
    assert covers[True] >= 0.93 * 500 and covers[False] < 0.9 * 500


def test_bounds_of_answers_that_are_all_alike_are_wilsons() -> None:
    most = measures.interval(torch.zeros(8)).high
    of_none = measures.interval(torch.zeros(8), torch.arange(8), of_answers=True)
    assert of_none == pytest.approx((0.0, -most, most))
    assert measures.interval(torch.ones(8, 3), of_answers=True) == pytest.approx((1.0, 1 - 2 * most, 1.0))
    mixed = torch.tensor([1.0, 0.0, -1.0, 0.0])
    assert measures.interval(mixed, torch.arange(4), of_answers=True) == measures.interval(mixed, torch.arange(4))


@given(successes=st.integers(0, 30), failures=st.integers(0, 30))
def test_a_proportion_gets_wilsons_interval(successes: int, failures: int) -> None:
    n = successes + failures
    if n == 0:
        return
    found = measures.interval(torch.tensor([1.0] * successes + [0.0] * failures))
    p, z = successes / n, 1.959963984540054
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert found.mean == pytest.approx(p)
    assert found.low == pytest.approx(max(0.0, centre - half), abs=1e-9)
    assert found.high == pytest.approx(min(1.0, centre + half), abs=1e-9)
    assert found[1:] == stats.binomtest(successes, n).proportion_ci(method="wilson")


@given(share=st.floats(0.5, 0.999), freedom=st.floats(1, 1000))
def test_students_quantile_is_that_of_scipys_stats(share: float, freedom: float) -> None:
    assert measures.student_quantile(share, freedom) == stats.t.ppf(share, freedom)


def step_down(p_values: list[float]) -> list[float]:
    """Holm's adjusted p-value as the smallest level at which his procedure rejects, one test after the other."""
    adjusted = []
    for own in p_values:
        before = [p for p in p_values if p < own]
        # Rejected is this test once it and every smaller one are: each at the level divided by those that are left.
        levels = [(len(p_values) - sum(q < p for q in p_values)) * p for p in {*before, own}]
        adjusted.append(min(1.0, max(levels)))
    return adjusted


@given(p_values=st.lists(st.floats(0, 1), max_size=9, unique=True) | st.lists(st.sampled_from([0.01, 0.02, 0.2])))
def test_holm_is_his_step_down_procedure(p_values: list[float]) -> None:
    assert measures.holm(p_values).tolist() == pytest.approx(step_down(p_values), rel=1e-12)


def test_holm_keeps_the_shape_and_passes_over_what_was_not_measured() -> None:
    grid = torch.tensor([[0.01, math.nan], [0.04, 0.03]], dtype=torch.float64)
    found = measures.holm(grid)
    assert found[0, 0] == pytest.approx(0.03) and math.isnan(found[0, 1])
    assert found[1].tolist() == pytest.approx([0.06, 0.06]), "0.04 times 1 would be below 0.03 times 2"
    assert measures.holm([]).shape == (0,)
