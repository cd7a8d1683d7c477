"""How much do a model's outputs depend on an instruction vector?

*Sufficiency*: what adding the vector to a query without instruction does for the answer. *Necessity*: what ablating the
vector's heads takes from the answer to an instructed query. *Shift*: how far taking the vector away moves the next
token. Each stands beside as many random heads. Instruction probability and knowledge probability, `P(answer |
instruction, query)` and `P(answer | statement)`, are those of Jiang et al. 2024, arXiv:2406.12227.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.analysis.probes import Probe
from ivlens.errors import IvlensError
from ivlens.measures import Interval, interval, mean_bounds
from ivlens.patching import interventions
from ivlens.patching.interventions import Change, Outcomes
from ivlens.prompts.choices import GREEDY_MATCH, Score
from ivlens.prompts.tokens import Tokens
from ivlens.replies.inquiry import score_replies
from ivlens.shapes import Residual

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

DEPENDENCE = ("measure", "heads", "n_heads", "value", "low", "high", "n")
Key = tuple[str, str]
"""A measure, and `chosen`, `random`, `unscaled` (the chosen heads' vector at scale 1), `own` or nothing."""
PerPrompt = Float[Tensor, "prompt *draw"]
"""A number a query, or one for each draw of random heads."""

_PROPORTIONS = {
    *("instruction accuracy", "knowledge accuracy", "zero-shot accuracy"),
    *("steered instruction accuracy", "steered zero-shot accuracy"),
    *("few-shot accuracy", "steered few-shot accuracy"),
}
"""Means of successes; all else are differences, probabilities or nats."""
_SUCCESSES = ("(exact)", "(first-word)", "(contains)")
"""Ends of the names of scores of replies that are right or wrong."""
_UNMEASURED = Interval(torch.nan, torch.nan, torch.nan)


@dataclass(frozen=True, kw_only=True)
class Dependence:
    """What was measured on every prompt, of random heads for each draw; prompts are independent queries."""

    values: Mapping[Key, PerPrompt]
    """By measure and heads, a row a query in the same order for every model; empty: not measured."""
    task: str
    n_heads: int
    seed: int
    is_difference: bool = False

    def to_frame(self) -> pd.DataFrame:
        """One line a measure and kind of heads, with a 95 % interval over queries; NaN where not measured."""
        lines = []
        for (measure, heads), values in self.values.items():
            proportion = self._is_proportion(measure, heads)
            is_change = self.is_difference or measure.startswith(("sufficiency", "necessity"))
            of_answers = is_change and "accuracy" in measure
            found = summarise(values, proportion=proportion, within=self._range(measure), of_answers=of_answers)
            lines.append((measure, heads, self.n_heads if heads else 0, *found, len(values)))
        return pd.DataFrame(lines, columns=list(DEPENDENCE))

    def minus(self, other: Dependence) -> Dependence:
        """The change from `other` to this, query by query.

        Raises:
            IvlensError: they are not of the same probe.
        """
        same = (self.task, self.n_heads, self.values.keys()) == (other.task, other.n_heads, other.values.keys())
        if not same or any(len(values) != len(other.values[key]) for key, values in self.values.items()):
            raise IvlensError("the two are not of the same probe; measure both models with one probe")
        values = {key: values - other.values[key] for key, values in self.values.items()}
        return Dependence(values=values, task=self.task, n_heads=self.n_heads, seed=self.seed, is_difference=True)

    def value(self, measure: str, heads: str = "") -> float:
        """Mean over queries; NaN where not measured.

        Raises:
            IvlensError: there is no such measure; those that there are, are named.
        """
        if (measure, heads) not in self.values:
            known = ", ".join(" of ".join(filter(None, (key[0], key[1] and f"{key[1]} heads"))) for key in self.values)
            raise IvlensError(f"there is no measure {measure!r} of heads {heads!r}; there are {known}")
        return float(self.values[measure, heads].mean())

    def _range(self, measure: str) -> tuple[float, float]:
        """What the mean of a measure cannot leave."""
        if measure == "shift":
            return (-math.inf, math.inf) if self.is_difference else (0.0, math.inf)
        is_level = measure.endswith("probability") or measure in _PROPORTIONS
        # Differences of probabilities, necessity and sufficiency among them, and differences of these.
        most = 1.0 if is_level or not self.is_difference else 2.0
        return (0.0, 1.0) if is_level and not self.is_difference else (-most, most)

    def _is_proportion(self, measure: str, heads: str) -> bool:
        return (measure in _PROPORTIONS or measure.endswith(_SUCCESSES)) and not self.is_difference

    def __repr__(self) -> str:
        kind = "change of dependence" if self.is_difference else "dependence"
        names = ("sufficiency", "necessity", "shift")
        both = [f"{n} {self.value(n, 'chosen'):+.3f} (random {self.value(n, 'random'):+.3f})" for n in names]
        return f"Dependence({kind} on {self.n_heads} heads of {self.task}: {', '.join(both)})"


def measure(model: HookedTransformer, probe: Probe) -> pd.DataFrame:
    """All measures of a model with their intervals; see `per_prompt` for what they are.

    Returns:
        Columns `measure`, `heads` (`chosen`, `random`, `unscaled`, or nothing), `n_heads`, `value`, `low`, `high`,
        `n` (queries).
    """
    return per_prompt(model, probe).to_frame()


def per_prompt(
    model: HookedTransformer, probe: Probe, *, own: Residual | None = None, score: Score = GREEDY_MATCH
) -> Dependence:
    """Put a probe to a model.

    By name, each of them positive when the model depends on the vector:
    - `sufficiency`: P(y | x; +vector) - P(y | x) on zero-shot prompts, in [-1, 1];
    - `necessity`: P(y | c, x) - P(y | c, x; heads ablated by their mean over other tasks) on instructed prompts;
    - `shift`: KL[P(. | c, x) || P(. | c, x; -vector)] of the next token, in nats;
    - `instruction`, `knowledge`, `zero-shot`: P(y | c, x), P(y | statement of x) and P(y | x);
    - `steered instruction`, `steered zero-shot`: with the vector added;
    - `few-shot`, `steered few-shot`: the same with demonstrations, where the probe has such prompts.

    P is of the answer's first token (`... probability`; plain `sufficiency` and `necessity`); with `accuracy` in the
    name, 1 where greedy decoding writes the whole answer. Changes are made at the last prompt token only. Vectors are
    as long as their scale says; where that is not 1, `unscaled` is the same with the vector at scale 1.

    Args:
        own: What the same heads write in this model, at the scale at which it is to be added; measured as `own`.
        score: Of replies that the unchanged model writes, unless it is greedy match: `instruction accuracy (contains)`
            and so on stand beside the others then, which stay greedy matches.

    Raises:
        ShapeMismatch: the model has another shape than the one that the probe was prepared of.
        ModelError: activations are NaN or infinite.
    """
    kinds = ["chosen", *["random"] * len(probe.random)]
    more = {"unscaled": probe.unscaled, "own": own}
    vectors = [*probe.vectors, *(vector for vector in more.values() if vector is not None)]
    with_more = [*kinds, *(kind for kind, vector in more.items() if vector is not None)]
    added = [Change(added=vector) for vector in vectors]
    taken = [Change(added=-vector) for vector in vectors]
    ablated = [Change(ablated=heads) for heads in probe.sets]
    n, both = len(kinds), len(vectors)
    without = range(1 + n, 1 + n + both)
    zero_shot = _run(model, probe, probe.zero_shot, added)
    instructed = _run(model, probe, probe.instructed, [*ablated, *taken, *added], shifted=without)
    values: dict[Key, PerPrompt] = {}
    stated = _run(model, probe, probe.statement, [])
    unchanged = {"instruction": instructed, "knowledge": stated, "zero-shot": zero_shot}
    steered = {"zero-shot": (zero_shot, 1), "instruction": (instructed, 1 + n + both)}
    if probe.few_shot is not None:
        unchanged["few-shot"] = _run(model, probe, probe.few_shot, added)
        steered["few-shot"] = unchanged["few-shot"], 1
    for name, found in unchanged.items():
        values[f"{name} probability", ""] = found.probability[:, 0]
        values[f"{name} accuracy", ""] = found.match[:, 0].to(found.probability.dtype)
    values |= _against(zero_shot, 1, with_more, names=("sufficiency", "sufficiency accuracy"))
    values |= _against(instructed, 1, kinds, names=("necessity", "necessity accuracy"), sign=-1)
    values |= _by_heads("shift", instructed.shift[:, without.start : without.stop], with_more)
    for name, (found, start) in steered.items():
        values |= _by_heads(f"steered {name} probability", found.probability[:, start : start + both], with_more)
        values |= _by_heads(f"steered {name} accuracy", found.match[:, start : start + both], with_more)
    if score != GREEDY_MATCH:
        for name, prompts in probe.prompts.items():
            replied = score_replies(model, prompts, score) if prompts else torch.zeros(0)
            values[f"{name} accuracy ({score})", ""] = replied
    return Dependence(values=values, task=probe.task, n_heads=len(probe.heads), seed=probe.seed)


def recovery(base: Dependence, tuned: Dependence) -> pd.DataFrame:
    """How much of the accuracy that fine-tuning cost comes back when the base model's vector is added?

    By kind of prompt (`instruction`, `zero-shot`), columns as those of `measure`: `lost ... accuracy`, base minus
    tuned; `regained ... accuracy`, tuned with the vector minus tuned without; and `share regained ...`, the second over
    the instructed accuracy that was lost, NaN unless the interval of that loss is above 0.

    Raises:
        IvlensError: they are not of the same probe.
    """
    lost = {key: -values for key, values in tuned.minus(base).values.items()}
    lines = []

    def add(measure: str, heads: str, found: Interval, n: int) -> None:
        lines.append((measure, heads, tuned.n_heads if heads else 0, *found, n))

    gone = lost["instruction accuracy", ""]
    for kind in ("instruction", "zero-shot"):
        own = lost[f"{kind} accuracy", ""]
        add(f"lost {kind} accuracy", "", summarise(own, within=(-1.0, 1.0), of_answers=True), len(own))
        for heads in (heads for measure, heads in tuned.values if measure == f"steered {kind} accuracy"):
            steered, plain = tuned.values[f"steered {kind} accuracy", heads], tuned.values[f"{kind} accuracy", ""]
            back = steered - (plain[:, None] if steered.dim() == 2 else plain)
            add(f"regained {kind} accuracy", heads, summarise(back, within=(-1.0, 1.0), of_answers=True), len(back))
            share = _share(back, gone) if len(back) == len(gone) else _UNMEASURED
            add(f"share regained {kind}", heads, share, min(len(back), len(gone)))
    return pd.DataFrame(lines, columns=list(DEPENDENCE))


def pooled(found: Sequence[Dependence], measure: str, heads: str = "") -> tuple[Interval, int]:
    """Mean over tasks, each of which counts the same, and how many queries they have together.

    The interval is over the queries of all tasks and over draws of random heads; other tasks are another question.
    """
    parts = [values.double() for one in found if len(values := one.values[measure, heads])]
    n = sum(map(len, parts))
    if not n:
        return _UNMEASURED, 0
    weighted = torch.cat([values * (n / (len(parts) * len(values))) for values in parts])
    return summarise(weighted, proportion=measure in _PROPORTIONS), n


def summarise(
    values: PerPrompt,
    *,
    proportion: bool = False,
    within: tuple[float, float] | None = None,
    of_answers: bool = False,
) -> Interval:
    """Mean over queries, and over draws where there are several, with its interval; Wilson's of successes.

    Args:
        proportion: Values are successes.
        within: What the mean cannot leave, of other values.
        of_answers: Other values are differences of right answers and wrong ones.
    """
    within = (0.0, 1.0) if proportion else within
    # A difference that happens to be 0 or 1 everywhere is no proportion: groups keep it from being taken for one.
    groups = None if proportion else torch.arange(len(values))
    return interval(values, groups, within=within, of_answers=of_answers and not proportion)


def _run(
    model: HookedTransformer,
    probe: Probe,
    tokens: Tokens | None,
    changes: list[Change],
    *,
    shifted: Sequence[int] = (),
) -> Outcomes:
    """Without prompts, outcomes of none."""
    if tokens is None:
        nothing = torch.zeros(0, 1 + len(changes))
        return Outcomes(probability=nothing, match=nothing.bool(), shift=nothing)
    return interventions.run_changes(model, tokens, changes, layer=probe.layer, z=probe.z, shifted=shifted)


def _against(
    found: Outcomes, start: int, kinds: list[str], *, names: tuple[str, str], sign: int = 1
) -> dict[Key, PerPrompt]:
    """Changed minus unchanged, times `sign`: probability, then accuracy."""
    match = found.match.to(found.probability.dtype)
    both = {}
    for name, values in zip(names, (found.probability, match), strict=True):
        both |= _by_heads(name, sign * (values[:, start : start + len(kinds)] - values[:, :1]), kinds)
    return both


def _by_heads(name: str, values: Tensor, kinds: list[str]) -> dict[Key, PerPrompt]:
    """Column by column the kind of heads; those of random draws stay together."""
    values = values if values.is_floating_point() else values.float()
    at = {kind: [column for column, one in enumerate(kinds) if one == kind] for kind in kinds}
    return {(name, kind): values[:, own] if kind == "random" else values[:, own[0]] for kind, own in at.items()}


def _share(back: PerPrompt, gone: Float[Tensor, " prompt"]) -> Interval:
    """Ratio of the two means, by the delta method: each query's, and each draw's, part in it.

    The interval stays within 0 and 1 where the ratio does.
    """
    if len(gone) < 2 or not float(mean_bounds(gone)[0]) > 0:
        return _UNMEASURED
    back, gone = back.double(), gone.double()
    share = float(back.mean() / gone.mean())
    lost = gone[:, None] if back.dim() == 2 else gone
    return summarise(share + (back - share * lost) / gone.mean(), within=(min(0.0, share), max(1.0, share)))
