"""Can the model do the task, does the vector do more than random heads, and what to try next?

The model can do a task if its accuracy on clean prompts is clear of what giving the most frequent answer every time
would be. A vector does more than random heads if it is clear of them over queries and draws, and as one more draw
would not be: a vector that was itself drawn from theirs does so in at most one of twenty cases.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.measures import Interval, crossed_interval, student_quantile
from ivlens.prompts.template import Template

if TYPE_CHECKING:
    import pandas as pd

    from ivlens.patching.settings import Settings

Outcome = Literal["works", "no better", "cannot do", "cannot tell"]
_OUTCOMES: dict[Outcome, str] = {
    "works": "The vector works",
    "no better": "No better than random heads",
    "cannot do": "The model does not do this task, so its heads say little",
    "cannot tell": "Cannot tell whether heads carry this task",
}
MATTERS = 0.25
"""A difference that must not be missed: an interval with both 0 and this in it cannot tell."""
MOST_FREQUENT = "most frequent answer"
"""The line of a table of measures whose accuracy is that of one answer to all queries."""
ABOVE_RANDOM = "sufficiency above random"
"""The line of a comparison that tells how far the chosen heads' vector is above random ones."""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """By how much the query alone is answered better with the vector than with vectors of random heads."""

    probability: Interval
    """Of the answer, on average over draws. The interval is that of a vector which may be one more draw: see
    `above_random`. Accuracy does not decide: it is soon 1, or stays 0, with any vector."""
    high: float
    """Upper end of the interval without that, over queries and draws alone."""
    accuracy: float
    is_above_none: bool
    """Whether the answer is also more probable than without a vector."""
    draws: int
    """0: not known."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an audit, or a comparison of its base model, comes to.

    >>> audit.verdict
    Verdict(The vector works: few-shot accuracy ...; the vector of 2 heads: ... queries, ... draws of random heads.)
    """

    abilities: Mapping[str, Interval]
    """Accuracy by kind of clean prompts, so far as it was measured."""
    share: float
    """Of the most frequent answer among those of the queries; NaN where it is not known."""
    gain: Gain | None
    """None: no vector was tried."""
    queries: int
    n_heads: int
    """Of the vector."""
    is_given: bool
    """The heads were not ranked by their AIE."""
    is_greedy: bool
    """Accuracy is of greedy matches, and replies could have been scored instead."""
    settings: Settings
    are_apart: bool = True
    """Random heads are others than the vector's; where fewer are left than it has, they are drawn from all."""

    @property
    def outcome(self) -> Outcome:
        """First whether the model can do the task, then whether the vector does more than random heads.

        >>> audit.verdict.outcome
        'works'
        """
        able, better = _is_able(self.abilities, self.share), _is_better(self.gain)
        if able is False:
            return "cannot do"
        if better:
            return "works"
        return "no better" if able and better is False else "cannot tell"

    @property
    def short(self) -> str:
        """The outcome, and by how much.

        >>> audit.verdict.short
        'The vector works: zero-shot P(answer) +0... beyond random heads (accuracy +0...)'
        """
        return self._told + (f": {self._gained()}" if self.outcome in ("works", "no better") else "")

    @property
    def sentence(self) -> str:
        """The outcome, and the numbers that it rests on.

        >>> audit.verdict.sentence.split(":")[0]
        'The vector works'
        """
        able = ", ".join(f"{kind} accuracy {found.text(2)}" for kind, found in self.abilities.items())
        able = able or "neither demonstrations nor an instruction were tried"
        most = "not known" if math.isnan(self.share) else f"{self.share:.2f}"
        heads = f"{self.n_heads} {'given ' if self.is_given else ''}head{'s' if self.n_heads > 1 else ''}"
        tried = f"the vector of {heads}: {self._gained()}" if self.gain else "no vector was tried"
        draws = self.gain.draws if self.gain else 0
        beside = f", {draws} draw{'s' if draws > 1 else ''} of random heads" if draws else ""
        if not self.are_apart:
            beside += ", the vector's own among them, since too few others are left: take fewer heads (--top)"
        numbers = f"{able} (most frequent answer alone: {most}); {tried}; {self.queries} queries{beside}"
        return f"{self._told}: {numbers}."

    @property
    def advice(self) -> str:
        """What to try next, in the order in which it costs least.

        >>> audit.verdict.advice
        'Next: what is lost without these heads (necessity); another seed (--seed 1).'
        """
        return f"Next: {'; '.join(self._next())}."

    @property
    def _told(self) -> str:
        if self.outcome == "no better" and self.gain and self.gain.probability.low > 0:
            return "No better than no vector"
        return _OUTCOMES[self.outcome]

    def _gained(self) -> str:
        assert self.gain is not None
        mean, low, high = self.gain.probability
        ends = "" if math.isnan(low) else f" [{low:+.2f}, {high:+.2f}]"
        return f"zero-shot P(answer) {mean:+.2f}{ends} beyond random heads (accuracy {self.gain.accuracy:+.2f})"

    def _next(self) -> Iterator[str]:
        outcome, asked = self.outcome, self.settings
        if outcome == "works":
            yield from ("what is lost without these heads (necessity)", f"another seed (--seed {asked.seed + 1})")
        if self.gain is None:
            yield "the vector, too (without --only)"
        if outcome == "cannot tell":
            if self.gain and self.gain.draws == 1:
                yield "more random heads (--draws 20)"
            if not self.abilities:
                yield "a task with an instruction, or demonstrations (--shots 10)"
            elif math.isnan(self.share):
                yield "the same again, into a new folder: this one lacks the share of the most frequent answer"
            elif self.gain:
                yield "a task of more pairs"
        able = _is_able(self.abilities, self.share)
        if outcome in ("cannot do", "cannot tell") and self.is_greedy and not able:
            yield "--score contains, if the model answers in sentences"
        if outcome == "cannot do":
            yield f"more shots (--shots {2 * max(5, asked.shots)})"
            if isinstance(asked.template, Template):
                yield "--template chat, if the model has one"
            yield "another model"
        if outcome == "no better":
            if self.is_given:
                yield "heads ranked by AIE (without --heads)"
            if (asked.corruption, asked.source) != ("zero-shot", "instruction"):
                yield "--corruption zero-shot --source instruction"
            yield from (f"more prompts for the ranking (--prompts {2 * asked.prompts})", "more heads (--top)")

    def __repr__(self) -> str:
        return f"Verdict({self.sentence})"


def most_frequent_share(answers: Iterable[str]) -> float:
    """Accuracy of giving to every query the answer that is right most often; NaN without queries."""
    counts = Counter(answers)
    return max(counts.values()) / counts.total() if counts else math.nan


def above_random(chosen: Float[Tensor, " query"], random: Float[Tensor, "query draw"]) -> tuple[Interval, float]:
    """How far a vector is above vectors of random heads, on the same queries.

    On each side the widest of three: the interval of the difference from their mean, over queries and draws; the one
    of a single case beside a small sample (Crawford & Howell 1998, Clin. Neuropsychol. 12), which takes the vector for
    one more draw; and what is left of the difference when the best draws (one of twenty) or the worst are beside it,
    which holds however the draws are distributed. With fewer than 19 draws the last is less than that promises: where
    draws are of two kinds, a further one would have its interval above 0 in up to one of ten cases.

    Returns:
        The interval, NaN bounds with a single draw; and the upper end of the first of the three.
    """
    chosen, random = chosen.double(), random.double()
    found = crossed_interval(chosen[:, None] - random, within=(-1.0, 1.0))
    return _beside_draws(found, float(chosen.mean()), random.mean(0)), found.high


def _beside_draws(found: Interval, value: float, draws: Float[Tensor, " draw"]) -> Interval:
    """An interval of the difference from the draws' mean, widened for a value that may be one more draw."""
    m = len(draws)
    if m < 2 or math.isnan(found.low):
        return found._replace(low=math.nan, high=math.nan)
    half = student_quantile(0.975, m - 1) * float(draws.std()) * math.sqrt(1 + 1 / m)
    ordered, number = draws.sort().values, max(1, (m + 1) // 20)
    best, worst = float(ordered[-number]), float(ordered[number - 1])
    low = min(found.low, found.mean - half, value - best)
    high = max(found.high, found.mean + half, value - worst)
    return found._replace(low=max(low, -1.0), high=min(high, 1.0))


def difference(one: Interval, other: Interval) -> Interval:
    """Of two means of which only the intervals are known: as if they were independent, so too wide where they are not.

    Source: Zou & Donner 2008, "Construction of confidence limits about effect measures", Stat. Med. 27.
    """
    mean = one.mean - other.mean
    below = math.hypot(one.mean - one.low, other.high - other.mean)
    above = math.hypot(one.high - one.mean, other.mean - other.low)
    return Interval(mean, mean - below, mean + above)


def _is_able(abilities: Mapping[str, Interval], share: float) -> bool | None:
    """None: not measured, or too few queries."""
    room = min(MATTERS, (1 - share) / 2)
    told = [_is_above(found.low, found.high, share, room) for found in abilities.values()]
    return True if True in told else None if None in told or not told else False


def _is_better(gain: Gain | None) -> bool | None:
    if gain is None:
        return None
    told = _is_above(gain.probability.low, gain.high, 0.0, MATTERS)
    return told and gain.is_above_none


def _is_above(low: float, high: float, bar: float, matters: float) -> bool | None:
    """Whether an interval is clear of a bar; None where it is not, but what matters is in it, too."""
    if math.isnan(low) or math.isnan(bar):
        return None
    return True if low > bar else None if high >= bar + matters else False


def read_abilities(lines: Mapping[str, Mapping[str, Any]]) -> dict[str, Interval]:
    """Accuracy on clean prompts, of a table of measures by name."""
    kinds = [kind for kind in ("few-shot", "instructed") if kind in lines and not math.isnan(lines[kind]["accuracy"])]
    return {kind: _read(lines[kind], "accuracy") for kind in kinds}


def vector_gain(
    lines: Mapping[str, Mapping[str, Any]], draws: pd.DataFrame, by_query: pd.DataFrame | None, *, n_heads: int
) -> Gain:
    """What the vector of an audit does beyond random heads.

    Args:
        lines: Of its table of measures, by name.
        draws: Every vector by itself.
        by_query: What the vector and random ones did query by query. Without it the interval is wider.
        n_heads: Of the vector.
    """
    own = draws.query("heads == 'random' and n_heads == @n_heads")["probability"].tolist()
    steered, random, alone = (lines[name] for name in ("steered", "steered, random", "zero-shot"))
    if by_query is not None:
        found, high = above_random(_by_draw(by_query, "chosen")[:, 0], _by_draw(by_query, "random"))
    else:
        pair = difference(_read(steered, "probability"), _read(random, "probability"))
        found, high = _beside_draws(pair, steered["probability"], torch.tensor(own, dtype=torch.float64)), pair.high
    return Gain(
        probability=found,
        high=high,
        accuracy=steered["accuracy"] - random["accuracy"],
        is_above_none=steered["probability"] > alone["probability"],
        draws=len(own),
    )


def _by_draw(frame: pd.DataFrame, heads: str) -> Float[Tensor, "query draw"]:
    own = frame[frame["heads"] == heads]
    return torch.tensor(own.pivot(index="query", columns="draw", values="probability").to_numpy(float))


def _read(line: Mapping[str, Any], name: str) -> Interval:
    return Interval(*(line[f"{name}{end}"] for end in ("", "_low", "_high")))
