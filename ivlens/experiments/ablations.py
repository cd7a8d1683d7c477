"""How many heads are needed? They are ablated one after the other, the first ones of a ranking first.

Ablated heads put out their mean over prompts of other tasks that show theirs in the same way. What is left of what
demonstrations add to bare queries tells when the task is gone. What the same ablations leave of *other* tasks' answers
tells whether it was this task that was taken, or any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, count
from typing import Any

from torch import Tensor

from ivlens.attribution.head_scores import ablation_means, score_heads
from ivlens.experiments.findings import NONE, RANDOM, Found, Line, beyond, share
from ivlens.experiments.work import Work
from ivlens.patching.activations import score_answers
from ivlens.patching.interventions import Change, run_changes
from ivlens.prompts.tokens import Tokens, tokenize
from ivlens.shapes import Head, MeanZ
from ivlens.steering.necessity import other_prompts

ACCURACY, PROBABILITY = "accuracy with heads ablated", "P(answer) with heads ablated"
OVER_RANDOM = "P(answer) lost, more than without random heads"
BY_AIE, BY_ABLATION = "by AIE", "by ablation"
"""Orders, beside random ones."""
BARE, NO_HEADS, OTHERS = "bare queries", "no heads", "other tasks"
LEFT = 0.1
"""Of what the task's prompts add to bare queries: where no more is left, the task is gone."""


def counts(total: int) -> list[int]:
    """How many heads are ablated: few, then ever larger steps, then all.

    >>> counts(48)
    [1, 2, 3, 5, 10, 20, 30, 48]
    """
    steps = chain.from_iterable((10**power * factor for factor in (1, 2, 3, 5)) for power in count())
    found = []
    for step in steps:
        if step >= total:
            return [*found, total]
        found.append(step)
    raise AssertionError


def ablate_in_order(work: Work, ranked: Sequence[Head]) -> Iterator[Line]:
    """Lines for the ranking by AIE, the one by ablation, and orders drawn at random."""
    steps, evaluation = counts(len(ranked)), work.split.evaluation
    with work.tables.keeping("batches"):
        z = ablation_means(work.model, work.task, work.settings)
        scores = score_heads(work.model, work.task, "ablation", work.settings, memory=work.memory)
        by_ablation: Any = scores.top(len(ranked))
        orders = {BY_AIE: [list(ranked)], BY_ABLATION: [by_ablation], RANDOM: work.random_orders()}
        found = _ablate(work, work.shown(evaluation), orders, z, steps)
        bare = score_answers(work.model, work.bare(evaluation))
        ours = {kind: orders[kind] for kind in (BY_AIE, BY_ABLATION)}
        others = _ablate(work, _other_tasks(work), ours, z, steps)
    for part, alone in zip((ACCURACY, PROBABILITY), bare, strict=True):
        yield share(part, BARE, NONE, alone)
        yield share(part, NO_HEADS, NONE, found[part][NONE][0])
        for kind in orders:
            for k, own in zip(steps, found[part][kind], strict=True):
                yield share(part, _name(k), kind, own)
        yield share(f"{part}, {OTHERS}", NO_HEADS, NONE, others[part][NONE][0])
        for kind in ours:
            for k, own in zip(steps, others[part][kind], strict=True):
                yield share(f"{part}, {OTHERS}", _name(k), kind, own)
    left = found[PROBABILITY]
    for kind in ours:
        for k, own, random in zip(steps[:-1], left[kind], left[RANDOM], strict=False):
            yield {**beyond(OVER_RANDOM, _name(k), -own[:, 0], -random), "kind": kind}


def _ablate(
    work: Work, tokens: Tokens, orders: Mapping[str, Sequence[Sequence[Head]]], z: MeanZ, steps: Sequence[int]
) -> dict[str, dict[str, list[Tensor]]]:
    """By part and order, at each step: `[query draw]`; and with no heads ablated."""
    several = [order for own in orders.values() for order in own]
    changes = [Change(ablated=tuple(order[:k])) for order in several for k in steps]
    found = run_changes(work.model, tokens, changes, layer=0, z=z)
    sizes = [1, *(len(own) * len(steps) for own in orders.values())]
    parts = {}
    for part, values in ((ACCURACY, found.match), (PROBABILITY, found.probability)):
        unchanged, *own = values.double().split(sizes, dim=1)
        by_step = (list(one.unflatten(1, (-1, len(steps))).unbind(2)) for one in own)
        parts[part] = {NONE: [unchanged], **dict(zip(orders, by_step, strict=True))}
    return parts


def _other_tasks(work: Work) -> Tokens:
    """Prompts that show other tasks in the same way: those that the means in place of ablated heads are over."""
    asked = work.asked
    shots = 0 if asked.source == "instruction" else asked.shots
    prompts = other_prompts(work.model, work.task, template=asked.template, seed=asked.seed, shots=shots)
    return tokenize(work.model, prompts)


def _name(k: int) -> str:
    return f"{k} head{'s' if k > 1 else ''}"


def needed(found: Found, kind: str) -> int | None:
    """The fewest ablated heads, of those tried, after which the task is gone; None where it never is."""
    bare, whole = (found(ACCURACY, at, NONE).mean for at in (BARE, NO_HEADS))
    if whole <= bare:  # Nothing is there that could go.
        return None
    for at, accuracy in found.values(ACCURACY, kind).items():
        if accuracy <= bare + LEFT * (whole - bare):
            return int(at.split()[0])
    return None


def needed_sentence(found: Found) -> str:
    """How many heads are needed, by each ranking and at random, and what is left of other tasks then."""
    said = {kind: needed(found, kind) for kind in (BY_AIE, BY_ABLATION, RANDOM)}
    words = {kind: "never" if k is None else f"after {_name(k)}" for kind, k in said.items()}
    sentence = (
        f"Ablated one after the other, heads leave at most {LEFT:.0%} of what the prompts add to bare queries "
        f"{words[BY_AIE]} in the order of AIE, {words[BY_ABLATION]} in the order of ablation, {words[RANDOM]} at random"
    )
    k = said[BY_ABLATION]
    if k is None:
        return f"{sentence}."
    other, cost = f"{ACCURACY}, {OTHERS}", found(OVER_RANDOM, _name(k), BY_ABLATION)
    return (
        f"{sentence}; the first {k} by ablation cost {cost.text(2)} more P(answer) than random ones, and leave "
        f"{found(other, _name(k), BY_ABLATION).text(2)} of other tasks' answers right, of "
        f"{found(other, NO_HEADS, NONE).text(2)}."
    )
