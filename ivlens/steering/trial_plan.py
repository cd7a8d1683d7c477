"""What do trials try, and how much work is it?

The work is counted in token-block evaluations: rows, times the tokens that each carries, times layers. It is counted
from sizes alone, never by a clock, so that the same options try the same on every machine. Where all of it would be
more than three times the sweep over heads, and more than a laptop does in seconds, `plan_trials` leaves things out, one
after the other, until it is not. The vector and its controls are searched in one way whatever is left out; fewer draws
of controls are tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from ivlens.patching.settings import Settings
from ivlens.steering.search import FINALISTS, FINALISTS_AT_1, NEIGHBOURS, SCALES, count_coarse

SWEEPS = 3
"""How many times the sweep's work trials may take."""
FLOOR = 2 * 10**11
"""Multiply-adds below which nothing is left out: seconds on two cores, and more than the lab model needs."""
FEW_DRAWS = 5
"""Of every control but the random heads that the vector itself is held against, at most."""
KINDS = ("chosen", "random", "low-AIE", "gaussian")
OTHER_LAYER_DRAWS = 1
"""Of every control but random heads, at every layer, where draws are left out there; and of replies in the same way."""
USUAL_DRAWS = 20
"""Of random heads. Who asks for more means it: they are not made fewer."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the work depends on."""

    n_layers: int
    n_heads: int
    """Of every layer."""
    d_model: int
    counts: tuple[int, ...]
    """Numbers of heads that vectors are made of, `top` among them."""
    top: int
    draws: int
    other_tasks: int
    ranking: int
    """Tokens that the sweep carries for every head: one a prompt, or all of its answer's."""
    validation: tuple[int, ...]
    """Tokens of each prompt's answer."""
    evaluation: tuple[int, ...]
    reply: int = 0
    """Tokens of an evaluation prompt, on average, and of the longest reply to it; 0 where none are written."""

    @property
    def sweep(self) -> int:
        """Token-block evaluations of the sweep."""
        return self.ranking * self.n_heads * self.n_layers * self.n_layers

    @property
    def most(self) -> int:
        """Token-block evaluations that trials may take."""
        return max(SWEEPS * self.sweep, FLOOR // (12 * self.d_model**2))


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """What is tried."""

    counts: tuple[int, ...]
    """Numbers of heads, `top` among them."""
    draws: int
    """Sets of `top` random heads."""
    draws_beside: int = FEW_DRAWS
    """Sets of as many random heads for every other number of heads."""
    draws_other: int = FEW_DRAWS
    """Sets of heads of low AIE, and random directions."""
    layer_draws: int | None = None
    """Draws of random heads that are tried at every layer on evaluation prompts, and fewer of other controls; all
    unless given."""
    layer_prompts: int | None = None
    """Evaluation prompts that every layer, and scale 1, are tried on; all unless given."""
    task_prompts: int | None = None
    """Clean prompts that another task's vector is taken from; as many as the task's own unless given."""
    ablated_prompts: int | None = None
    """Of each kind, prompts that heads are ablated on behind the trials; all unless given."""
    stride: int = 1
    """Every how many layers the search begins with."""
    validation: int | None = None
    """Validation prompts; all unless given."""
    reply_prompts: int | None = None
    """Evaluation prompts that replies are written to under every vector; all unless given."""
    reply_draws: int = FEW_DRAWS
    """Of random heads under which replies are written."""
    first: int | None = None
    """Validation prompts that places are searched on, of which the best are tried on all of them; all unless given."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out of the trials themselves, replies aside."""
        return self.layer_draws is None

    def draws_of(self, kind: str, *, at_top: bool) -> int:
        """Candidates of a kind with so many heads; of other tasks there are as many as are asked for."""
        if kind == "chosen":
            return 1
        if kind == "random":
            return self.draws if at_top else min(self.draws, self.draws_beside)
        return min(self.draws, self.draws_other) if at_top else 0

    def drawn_at_every_layer(self, kind: str, draws: int) -> int:
        """How many of the draws of a kind are tried at every layer."""
        if self.layer_draws is None:
            return draws
        return min(draws, self.layer_draws if kind == "random" else OTHER_LAYER_DRAWS)

    def replied_draws(self, kind: str, draws: int) -> int:
        """Under how many of the draws of a kind replies are written."""
        few = self.reply_draws if kind == "random" or self.reply_prompts is None else OTHER_LAYER_DRAWS
        return min(draws, few)

    def of_tasks(self, settings: Settings) -> Settings:
        """How another task's vector is measured, for one that is measured in this way."""
        if self.task_prompts is None:
            return settings
        return replace(settings, clean_prompts=min(settings.clean_prompts, self.task_prompts))

    def record(self) -> dict[str, Any]:
        """What is left out, as `run.json` has it; nothing where nothing is."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        replies = {name: values.pop(name) for name in ("reply_prompts", "reply_draws") if name in values}
        return ({} if self.is_whole else values) | ({} if self.reply_prompts is None else replies)


class _Rung(NamedTuple):
    """What is made less at once. Numbers of heads beside `top` are `thinned` to every second one."""

    most: Mapping[str, int] = {}
    stride: int = 1
    thinned: bool = False


# In the order in which they are taken.
_RUNGS = (
    _Rung({"layer_draws": 5, "task_prompts": 25, "ablated_prompts": 50}),
    _Rung({"layer_prompts": 25}),
    _Rung({"draws_beside": 2}),
    _Rung(thinned=True),
    _Rung({"first": 8}, stride=2),
    _Rung({}, stride=3),
    _Rung({"layer_prompts": 15, "validation": 15, "first": 5}),
    _Rung({"layer_prompts": 10, "validation": 12, "first": 4}),
    _Rung({"draws_beside": 1, "draws_other": 2}, thinned=True),
    _Rung({"draws": 10}),
    _Rung({"draws": 5}),
)
# Prompts that replies are written to, and draws of random heads.
_REPLY_RUNGS = ((50, 3), (40, 2), (25, 2), (15, 2), (10, 1))


def plan_trials(sizes: Sizes) -> TrialPlan:
    """Everything, or as much of it as `Sizes.most` allows; replies may take as much again."""
    plan = TrialPlan(counts=tuple(sorted({*sizes.counts, sizes.top})), draws=sizes.draws)
    for rung in _RUNGS:
        if count_work(plan, sizes) <= sizes.most:
            break
        if "draws" not in rung.most or sizes.draws <= USUAL_DRAWS:
            plan = _step(plan, rung, sizes.top)
    for prompts, draws in _REPLY_RUNGS:
        if count_replies(plan, sizes) <= sizes.most:
            break
        plan = replace(plan, reply_prompts=min(prompts, len(sizes.evaluation)), reply_draws=draws)
    return plan


def _step(plan: TrialPlan, rung: _Rung, top: int) -> TrialPlan:
    beside = [count for count in plan.counts if count != top]
    counts = tuple(sorted([*beside[::2], top])) if rung.thinned else plan.counts
    less = {name: min(most, getattr(plan, name) or most) for name, most in rung.most.items()}
    return replace(plan, counts=counts, stride=max(plan.stride, rung.stride), **less)


def count_candidates(plan: TrialPlan, sizes: Sizes) -> int:
    """How many vectors are tried, at most: another task that cannot be asked is left out."""
    at_top = sum(plan.draws_of(kind, at_top=True) for kind in KINDS) + sizes.other_tasks
    return at_top + sum(plan.draws_of(kind, at_top=False) for kind in KINDS) * (len(plan.counts) - 1)


def count_replies(plan: TrialPlan, sizes: Sizes) -> int:
    """Token-block evaluations of the replies under vectors, at most: they end when they end."""
    drawn = {kind: plan.draws_of(kind, at_top=True) for kind in KINDS} | {"other-task": sizes.other_tasks}
    vectors = sum(plan.replied_draws(kind, draws) for kind, draws in drawn.items())
    return vectors * len(sizes.evaluation[: plan.reply_prompts]) * sizes.reply * sizes.n_layers


def count_work(plan: TrialPlan, sizes: Sizes) -> int:
    """Token-block evaluations of everything that is planned, at most: the best places may coincide."""
    at_top = {kind: plan.draws_of(kind, at_top=True) for kind in KINDS} | {"other-task": sizes.other_tasks}
    candidates = count_candidates(plan, sizes)
    layers = sizes.n_layers * sum(plan.drawn_at_every_layer(kind, draws) for kind, draws in at_top.items())
    places = min(count_coarse(sizes.n_layers, plan.stride) + NEIGHBOURS, len(SCALES) * sizes.n_layers)
    searched = (candidates - 1) * places + len(SCALES) * sizes.n_layers
    validation, evaluation = sizes.validation[: plan.validation], sizes.evaluation
    if plan.is_whole:
        # Answers are padded to the longest; every candidate is tried at scale 1, too.
        rows = searched * len(validation) * max(validation)
        rows += (2 * candidates + layers) * len(evaluation) * max(evaluation)
    else:
        rows = searched * sum(validation[: plan.first]) + candidates * sum(evaluation)
        rows += (sum(at_top.values()) + layers) * sum(evaluation[: plan.layer_prompts])
        if plan.first is not None:
            rows += candidates * (FINALISTS + FINALISTS_AT_1) * sum(validation)
    return rows * sizes.n_layers


_EVERY = {1: "layer", 2: "second layer", 3: "third layer"}


def describe(record: Mapping[str, Any]) -> str:
    """In one line, what was tried where not everything was, from a plan's record."""
    parts = _describe_trials(record) if "layer_draws" in record else []
    if "reply_prompts" in record:
        draws = f"{record['reply_draws']} draw{'s' if record['reply_draws'] > 1 else ''} of random heads"
        parts.append(
            f"replies under the vector, {draws} and {OTHER_LAYER_DRAWS} of other controls to {record['reply_prompts']} "
            "evaluation prompts"
        )
    return f"To keep trials near {SWEEPS} times the work of the AIE: {'; '.join(parts)}."


def _describe_trials(record: Mapping[str, Any]) -> list[str]:
    parts = [
        f"vectors of {', '.join(map(str, record['counts']))} heads, with {record['draws']} draws of random ones for "
        f"the vector's own number and {record['draws_beside']} for others"
    ]
    if "first" in record:
        every = f"all {record['validation']}" if "validation" in record else "all"
        parts.append(
            f"layer and scale from every {_EVERY[record['stride']]} on {record['first']} validation prompts, the best "
            f"{FINALISTS + FINALISTS_AT_1} places again on {every}"
        )
    where = f"{record['layer_prompts']} evaluation prompts" if "layer_prompts" in record else "evaluation prompts"
    parts.append(
        f"scale 1 and every layer on {where}, the latter with {record['layer_draws']} draws of random heads and "
        f"{OTHER_LAYER_DRAWS} of other controls"
    )
    parts.append(f"other tasks' vectors from {record['task_prompts']} prompts")
    if "ablated_prompts" in record:
        parts.append(f"heads ablated on {record['ablated_prompts']}")
    return parts
