"""What carries the task beside the vector, and how many heads does it need?

Bare queries are answered with vectors of several kinds, and with heads patched at their own places; what is left to the
prompts that show the task tells what none of them carries. Then heads are ablated until the task is gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from ivlens.attribution.head_scores import ablation_means
from ivlens.experiments import ablations
from ivlens.experiments.findings import CHOSEN, NONE, RANDOM, Found, Line, beyond, difference, share
from ivlens.experiments.latent_vectors import (
    DIFFERENCE,
    HEAD_SUM,
    INSIDE,
    OUTSIDE,
    make_latents,
)
from ivlens.experiments.settings import STEPS
from ivlens.experiments.work import Question, Work
from ivlens.patching.activations import score_answers
from ivlens.patching.effects import indirect_effects
from ivlens.patching.head_effects import HeadEffects
from ivlens.patching.interventions import Change, run_changes
from ivlens.patching.pace import Pace
from ivlens.prompts.choices import Source
from ivlens.steering.necessity import OTHER_PROMPTS
from ivlens.steering.rows import steer_by_length
from ivlens.steering.search import NEIGHBOURS, SCALES, count_coarse

ACCURACY, PROBABILITY = "accuracy", "P(answer)"
OVER_CONTROL = "more than the control"
BARE, ALL_HEADS, OTHERS = "bare query", "all heads patched", "other-task"
SHOWN: dict[str, Source] = {"with demonstrations": "demonstrations", "with the instruction": "instruction"}
INSIDE_SHARE = "share of the squared length"

# Of each thing that is tried: whether each query is answered right, and P(answer), `[query draw]`.
Answered = dict[tuple[str, str], tuple[Tensor, Tensor]]


def _run(work: Work) -> Iterator[Line]:
    with work.tables.keeping("batches"):
        effects = indirect_effects(work.model, work.task, settings=work.settings, memory=work.memory)
    yield from work.lines("steering", partial(_steer, work, effects))
    yield from work.lines("ablation", partial(ablations.ablate_in_order, work, effects.ranked()))


def _steer(work: Work, effects: HeadEffects) -> Iterator[Line]:
    with work.tables.keeping("batches"):
        shown = _ask(work)
        patched = _patch(work, effects)
        latents = make_latents(work, effects, effects.top(work.asked.top))
        placed = latents.placed
        found = steer_by_length(
            work.model,
            work.bare(work.split.evaluation),
            torch.cat([one.vectors for one in placed.values()]),
            [layer for one in placed.values() for layer in one.layers],
            memory=work.memory,
        )
    sizes = [1, *(len(one.layers) for one in placed.values())]
    both = zip(*(values.double().cpu().split(sizes, dim=1) for values in (found.match, found.first)), strict=True)
    steered: Answered = dict(zip([(BARE, NONE), *placed], both, strict=True))
    yield from _lines(steered | patched | shown, shown)
    for kind, shares in latents.inside.items():
        line = share(INSIDE_SHARE, INSIDE, kind, shares)
        yield {**line, "draws": len(shares), "queries": 0}


def _lines(answered: Answered, shown: Answered) -> Iterator[Line]:
    for number, part in enumerate((ACCURACY, PROBABILITY)):
        values = {key: both[number] for key, both in answered.items()}
        for (name, kind), own in values.items():
            yield share(part, name, kind, own)
        for (name, kind), own in values.items():
            if kind != CHOSEN:
                continue
            control = values.get((name, RANDOM), values.get((name, OTHERS)))
            if control is None:  # Vectors that no heads write stand beside those that random heads do.
                control = values[HEAD_SUM, RANDOM]
            if control.shape[1] > 1:
                yield beyond(f"{part}, {OVER_CONTROL}", name, own[:, 0], control)
            else:
                yield difference(f"{part}, {OVER_CONTROL}", name, CHOSEN, own - control)
            for reference, _ in shown:
                yield difference(f"{part}, {_short(reference)}", name, CHOSEN, values[reference, NONE] - own)


def _short(reference: str) -> str:
    return f"less than {reference}"


def _ask(work: Work) -> Answered:
    """The prompts that show the task, in each way that there is."""
    found: Answered = {}
    for name, source in SHOWN.items():
        if source == "instruction" and not work.task.instructions:
            continue
        right, first = score_answers(work.model, work.shown(work.split.evaluation, source))
        found[name, NONE] = (right.double()[:, None], first.double()[:, None])
    return found


def patched_name(k: int) -> str:
    """What patching the first k heads is called."""
    return f"{k} heads patched"


def _patch(work: Work, effects: HeadEffects) -> Answered:
    """Heads put out on bare queries what they do on clean prompts, on average, all at once and each at its layer."""
    heads, total = effects.top(work.asked.top), len(effects.ranked())
    sets = [heads, *work.random_heads(heads), effects.ranked()]
    tokens, z = work.bare(work.split.evaluation), effects.mean_z
    found = run_changes(work.model, tokens, [Change(ablated=tuple(one)) for one in sets], layer=0, z=z)
    # Where all heads are patched, no others are left: the control is what they put out on other tasks.
    others = ablation_means(work.model, work.task, work.settings)
    other = run_changes(work.model, tokens, [Change(ablated=tuple(effects.ranked()))], layer=0, z=others)
    name = patched_name(len(heads))
    columns = {(name, CHOSEN): [1], (name, RANDOM): list(range(2, len(sets))), (ALL_HEADS, CHOSEN): [len(sets)]}
    if len(heads) == total:
        del columns[name, CHOSEN], columns[name, RANDOM]
    answered: Answered = {
        key: (found.match[:, at].double(), found.probability[:, at].double()) for key, at in columns.items()
    }
    return answered | {(ALL_HEADS, OTHERS): (other.match[:, 1:].double(), other.probability[:, 1:].double())}


def _cost(work: Work, pace: Pace) -> Mapping[str, float]:
    asked, (n_layers, n_heads) = work.asked, work.grid
    validation, queries = len(work.split.validation), len(work.split.evaluation)
    sweep = work.effects_seconds(pace)
    searched = (1 + asked.draws) * (count_coarse(n_layers, 1) + NEIGHBOURS)
    searched += (n_layers + 2 * (1 + asked.draws)) * len(SCALES)
    steps = len(ablations.counts(n_layers * n_heads))
    ablated = queries * (2 + asked.draws) * steps + OTHER_PROMPTS * 2 * steps
    pairs = min(asked.clean_prompts, len(work.split.mean))
    return {
        "AIE": sweep,
        "places of vectors": (searched * validation + 3 * (1 + asked.draws) * queries) * pace.row,
        "two trained vectors": 2 * STEPS * 3 * pairs * pace.row,
        "patching": (2 * queries + OTHER_PROMPTS) * pace.reading + (2 + asked.draws) * queries * 2 * pace.row,
        "ablating in order": sweep + (queries + OTHER_PROMPTS) * pace.reading + ablated * 2 * pace.row,
    }


def _verdict(found: Found) -> str:
    over = f"{PROBABILITY}, {OVER_CONTROL}"
    names = found.values(over)
    known = found.values(ACCURACY, NONE)
    reference = max((name for name in SHOWN if name in known), key=lambda name: known[name])
    best = max(names, key=lambda name: (found(ACCURACY, name).mean, name == HEAD_SUM))
    short = f"{ACCURACY}, {_short(reference)}"
    said = [
        f"{reference.capitalize()} {found(ACCURACY, reference, NONE).text(2)} are answered; with the head sum "
        f"{found(ACCURACY, HEAD_SUM).text(2)} of bare queries, {found(short, HEAD_SUM).text(2)} fewer, at a P(answer) "
        f"higher than with random heads' by {found(over, HEAD_SUM).text(2)}."
    ]
    if best != HEAD_SUM:
        said.append(f"On these queries {best} does most, {found(short, best).text(2)} fewer.")
    if OUTSIDE in names:
        said.append(
            f"The mean difference makes P(answer) {found(PROBABILITY, DIFFERENCE).text(2)}, its part inside the heads' "
            f"span {found(PROBABILITY, INSIDE).text(2)}, its part outside {found(PROBABILITY, OUTSIDE).text(2)}, which "
            f"is {found(over, OUTSIDE).text(2)} more than outside of random heads' span."
        )
    return " ".join([*said, ablations.needed_sentence(found)])


LATENTS = Question(
    sentence="What carries the task beside the vector of heads, what is left to demonstrations, and how many heads "
    "must be ablated until it is gone?",
    run=_run,
    cost=_cost,
    verdict=_verdict,
    figures={
        "steering": {ACCURACY: "accuracy", PROBABILITY: "probability"},
        "ablation": {
            ablations.ACCURACY: "accuracy",
            f"{ablations.ACCURACY}, {ablations.OTHERS}": "accuracy",
            ablations.PROBABILITY: "probability",
        },
    },
)
