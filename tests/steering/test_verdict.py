"""A verdict is what its numbers come to, and a vector that is one more draw of random heads seldom works."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest
import torch
from scipy import stats

from ivlens.measures import Interval, interval
from ivlens.patching.settings import Settings
from ivlens.steering import verdict
from ivlens.steering.verdict import Gain, Verdict, above_random, difference, most_frequent_share, vector_gain

NONE = Interval(math.nan, math.nan, math.nan)
CLEAR, HIGH_NULL, NULL = Interval(0.5, 0.3, 0.7), Interval(0.1, -0.3, 0.5), Interval(0.02, -0.1, 0.1)


def gain(found: Interval, **changed: Any) -> Gain:
    return Gain(
        **{"probability": found, "high": found.high, "accuracy": 0.1, "is_above_none": True, "draws": 20} | changed
    )


def judged(**changed: Any) -> Verdict:
    given = {"abilities": {"few-shot": Interval(0.9, 0.7, 1.0)}, "share": 0.05, "gain": gain(CLEAR), "queries": 20}
    return Verdict(**given | {"n_heads": 3, "is_given": False, "is_greedy": False, "settings": Settings()} | changed)


@pytest.mark.parametrize(
    ("changed", "outcome"),
    [
        ({}, "works"),
        ({"gain": gain(NULL)}, "no better"),
        ({"gain": gain(CLEAR, is_above_none=False)}, "no better"),
        ({"gain": gain(HIGH_NULL)}, "cannot tell"),
        ({"gain": gain(NONE)}, "cannot tell"),
        ({"gain": None}, "cannot tell"),
        ({"abilities": {"few-shot": Interval(0.05, 0.01, 0.24)}}, "cannot do"),
        ({"abilities": {"few-shot": Interval(0.05, 0.01, 0.24)}, "gain": None}, "cannot do"),
        # Too few queries: it may be right on a third.
        ({"abilities": {"few-shot": Interval(0.1, 0.01, 0.35)}, "gain": gain(NULL)}, "cannot tell"),
        # One answer in nine of ten cases: what is left above it is little, and a half of that matters.
        ({"abilities": {"few-shot": Interval(0.88, 0.8, 0.93)}, "share": 0.9}, "cannot do"),
        ({"abilities": {"few-shot": Interval(0.95, 0.76, 0.99)}, "share": 0.9, "gain": gain(NULL)}, "cannot tell"),
        # Either kind of clean prompts will do.
        ({"abilities": {"few-shot": Interval(0.0, 0.0, 0.1), "instructed": Interval(0.9, 0.7, 1.0)}}, "works"),
        ({"abilities": {}}, "works"),
        ({"abilities": {}, "gain": gain(NULL)}, "cannot tell"),
        ({"share": math.nan, "gain": gain(NULL)}, "cannot tell"),
    ],
)
def test_the_outcome_is_of_both_questions(changed: dict[str, Any], outcome: str) -> None:
    assert judged(**changed).outcome == outcome


def test_a_verdict_says_its_numbers_and_what_to_try_next() -> None:
    assert judged().sentence == (
        "The vector works: few-shot accuracy 0.90 [0.70, 1.00] (most frequent answer alone: 0.05); the vector of 3 "
        "heads: zero-shot P(answer) +0.50 [+0.30, +0.70] beyond random heads (accuracy +0.10); 20 queries, 20 draws of "
        "random heads."
    )
    cannot = judged(abilities={"instructed": Interval(0.0, 0.0, 0.1)}, is_greedy=True)
    assert cannot.sentence.startswith(
        "The model does not do this task, so its heads say little: instructed accuracy 0.00"
    )
    assert cannot.advice == (
        "Next: --score contains, if the model answers in sentences; more shots (--shots 20); --template chat, if the "
        "model has one; another model."
    )
    null = judged(gain=gain(NULL), is_given=True)
    assert null.short.startswith("No better than random heads: zero-shot P(answer) +0.02 [-0.10, +0.10]")
    assert "3 given heads" in null.sentence and null.advice.startswith(
        "Next: heads ranked by AIE (without --heads); --cor"
    )
    asked = Settings(corruption="zero-shot", source="instruction")
    assert "--corruption" not in judged(gain=gain(NULL), settings=asked).advice
    assert judged(gain=gain(CLEAR, is_above_none=False)).short.startswith("No better than no vector: ")
    untried = judged(gain=None)
    assert (
        "no vector was tried; 20 queries." in untried.sentence
        and untried.advice == "Next: the vector, too (without --only)."
    )
    assert "--draws 20" in judged(gain=gain(NONE, draws=1)).advice
    assert "neither demonstrations nor an instruction" in judged(abilities={}, gain=gain(NULL)).sentence
    assert "--shots 10" in judged(abilities={}, gain=gain(NULL)).advice
    assert "more pairs" in judged(gain=gain(HIGH_NULL)).advice
    assert "lacks the share" in judged(share=math.nan, gain=gain(NULL)).advice
    # What is right in nine of ten cases is no matter of the score.
    assert "--score" not in judged(gain=gain(HIGH_NULL), is_greedy=True).advice
    shared = judged(are_apart=False).sentence
    assert shared.endswith(
        "random heads, the vector's own among them, since too few others are left: take fewer heads (--top)."
    )


def test_the_most_frequent_answer_is_counted() -> None:
    assert most_frequent_share(["a", "b", "a", "c"]) == 0.5 and math.isnan(most_frequent_share([]))


def test_the_difference_of_two_shares_is_newcombes() -> None:
    # Newcombe 1998, "Interval estimation for the difference between independent proportions", Stat. Med. 17, (a).
    one, other = (interval((torch.arange(n) < k).double()) for k, n in ((56, 70), (48, 80)))
    found = difference(one, other)
    assert found.mean == pytest.approx(0.2) and (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_a_vector_is_held_against_the_spread_of_draws_and_the_best_of_them() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen, random = torch.rand(40, generator=generator).double(), torch.rand(40, 20, generator=generator).double()
    random = random * 0.1 + torch.linspace(0, 0.3, 20).double()
    found, high = above_random(chosen, random)
    means = random.mean(0)
    spread = stats.t.ppf(0.975, 19) * math.sqrt(sum((float(m - means.mean())) ** 2 for m in means) / 19 * (21 / 20))
    apart = float(chosen.mean() - means.mean())
    assert found.mean == pytest.approx(apart)
    assert found.low == pytest.approx(min(apart - spread, float(chosen.mean() - means.max())))
    assert found.high >= high > found.mean
    # Of 39 draws the two best, of which one may be the one in twenty.
    twice = torch.cat([random[:, :19], random], dim=1) * 0.01
    twice[:, 0] = 1.0
    assert above_random(chosen, twice[:, :19])[0].low < 0
    assert math.isnan(above_random(chosen, random[:, :1])[0].low) and math.isnan(
        above_random(chosen[:1], random[:1])[0].low
    )


def two_kinds(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """A quarter of the sets holds a head that does something, as on the lab."""
    return 0.05 + 0.3 * (torch.rand(shape, generator=generator) < 0.25)


def rare(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return 0.01 + 0.5 * (torch.rand(shape, generator=generator) < 0.08)


def skewed(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return 0.05 * torch.empty(shape).exponential_(generator=generator)


def alike(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.full(shape, 0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "draws", "most"),
    [(two_kinds, 20, 0.05), (rare, 20, 0.05), (skewed, 20, 0.05), (alike, 20, 0.05), (two_kinds, 5, 0.1)],
)
def test_a_vector_that_is_one_more_draw_of_random_heads_seldom_works(kind: Any, draws: int, most: float) -> None:
    """P(answer) by query: of its set of heads, times of its query, with noise that is skewed as probabilities are."""
    generator, cases, queries = torch.Generator().manual_seed(1), 400, 12
    works = 0
    for _ in range(cases):
        of_set = kind((draws + 1,), generator)
        of_query = 0.5 + torch.rand(queries, 1, generator=generator)
        values = (of_set * of_query * torch.empty(queries, draws + 1).exponential_(generator=generator)).clamp(max=1)
        works += judged(gain=gain(above_random(values[:, 0], values[:, 1:])[0])).outcome == "works"
    assert works <= stats.binom.ppf(0.99, cases, most), works / cases


def tables(*, random: float, spread: float, chosen: float = 0.6) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    """Of an audit of 12 queries and four draws, as it keeps them."""
    each = [random + spread * at for at in (-1.5, -0.5, 0.5, 1.5)]
    rows = [("chosen", 0, chosen), *(("random", draw, value) for draw, value in enumerate(each))]
    by_query = [
        (query, heads, draw, True, value + 0.01 * (query % 3)) for heads, draw, value in rows for query in range(12)
    ]
    draws = [(heads, 3, draw, value + 0.01) for heads, draw, value in rows]
    values = ("probability", "probability_low", "probability_high", "accuracy")
    lines = {
        name: dict(zip(values, (value, value - width, value + width, value), strict=True))
        for name, value, width in (("steered", chosen, 0.1), ("steered, random", random, 0.1), ("zero-shot", 0.1, 0.1))
    }
    return (
        lines,
        pd.DataFrame(draws, columns=["heads", "n_heads", "draw", "probability"]),
        pd.DataFrame(by_query, columns=["query", "heads", "draw", "accuracy", "probability"]),
    )


def test_tables_of_before_give_a_verdict_with_a_wider_interval() -> None:
    for random, spread, better in ((0.1, 0.01, True), (0.3, 0.2, False), (0.59, 0.01, False)):
        lines, draws, by_query = tables(random=random, spread=spread)
        paired, apart = (vector_gain(lines, draws, table, n_heads=3) for table in (by_query, None))
        assert (paired.probability.low > 0) == (apart.probability.low > 0) == better
        assert apart.probability.low <= paired.probability.low and paired.draws == apart.draws == 4
        assert paired.probability.mean == pytest.approx(apart.probability.mean) == pytest.approx(0.6 - random)
    assert verdict.MATTERS == 0.25
