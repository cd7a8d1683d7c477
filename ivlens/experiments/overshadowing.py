"""What suppresses an instruction after fine-tuning: which part of the update, and from which layer on?

The update is merged one part at a time, and all but one, beside parts drawn at random, of equal rank and norm. Which
part does most is chosen on validation queries. Then the base model's activations are put into the tuned model at the
last token, layer by layer and at the heads that carry the task; the other way around, too. Last, heads' AIE before and
after: a head of negative AIE works against the task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from ivlens.attribution import site_sweep
from ivlens.attribution.site import Site, at_last, read_values
from ivlens.datasets.task import Task
from ivlens.datasets.task import task as find_task
from ivlens.experiments import update_parts
from ivlens.experiments.findings import CHOSEN, FINDINGS, NONE, RANDOM, Found, Line, beyond, difference, number, share
from ivlens.experiments.update_parts import AFTER, ALONE, BASE, BUT, TUNED
from ivlens.experiments.work import Question, Work
from ivlens.lab.sequences import FILES
from ivlens.models import lora
from ivlens.models.lora import Adapter
from ivlens.patching.activations import score_answers
from ivlens.patching.effects import indirect_effects
from ivlens.patching.head_effects import HeadEffects
from ivlens.patching.interventions import Change, run_changes
from ivlens.patching.pace import Pace
from ivlens.prompts.builders import instructed
from ivlens.prompts.tokens import Tokens, tokenize
from ivlens.shapes import Head

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

PROBABILITY, ACCURACY, LEARNED = "P(answer)", "accuracy", "learned task"
LOST, GAINED = "P(answer) lost to the part alone", "P(answer) regained without the part"
OVER_RANDOM = "more than to random parts"
PATCHED = {
    "into the tuned model": "P(answer) gained by the base model's activations",
    "into the base model": "P(answer) gained by the tuned model's activations",
}
HEADS_PATCHED = "P(answer) gained by the base model's heads"
AIE, NEGATIVE = "AIE", "heads of negative AIE, clear of 0"
CHOICE = "does most on validation queries"
BEFORE = "before"
SITES: Mapping[str, Site] = {"stream": "resid_post", "attention": "attn_out", "MLP": "mlp_out"}
FEW = 2
"""Random parts beside each part; the one that does most has all draws."""


def _run(work: Work) -> Iterator[Line]:
    with work.tables.keeping("base"):
        effects = indirect_effects(work.model, work.task, settings=work.settings, memory=work.memory)
    carriers = effects.top(work.asked.top)
    yield from _merge_parts(work, carriers)
    yield from work.lines("patched", partial(_patch, work, effects, carriers))
    yield from work.lines("aie", partial(_compare_effects, work, effects, carriers))


class _Answers(NamedTuple):
    """What the model makes of the prompts with some update merged, prompt by prompt."""

    first: Tensor
    right: Tensor
    learned: Tensor
    """Whether what was learned is answered right; of no prompts where that is not known."""
    chosen: float
    """Mean P(answer) of the validation queries."""


def _merge_parts(work: Work, carriers: Sequence[Head]) -> Iterator[Line]:
    update, draws = _update(work), work.asked.draws
    parts = update_parts.name_parts(update)
    ask = partial(_ask, work, cache(partial(_prompts, work)))
    none, whole = ask("nothing", lambda: update_parts.only(update, [])), ask("everything", lambda: update)
    for name, kind, own in ((BASE, NONE, none), (TUNED, AFTER, whole)):
        for way in (ALONE, BUT):
            yield from _shares(way, name, kind, [own])
    alone = {name: ask(f"only {name}", partial(update_parts.only, update, own)) for name, own in parts.items()}
    but = {name: ask(f"but {name}", partial(update_parts.all_but, update, own)) for name, own in parts.items()}
    single = [name for name, own in parts.items() if len(own) == 1]
    worst = min(single, key=lambda name: alone[name].chosen)
    needed = max(single, key=lambda name: but[name].chosen)
    yield number(CHOICE, worst, ALONE, none.chosen - alone[worst].chosen)
    yield number(CHOICE, needed, BUT, but[needed].chosen - whole.chosen)
    for name, own in parts.items():
        make = partial(update_parts.random_like, update_parts.only(update, own), seed=work.asked.seed)
        random = [
            ask(f"random {name} {draw}", partial(make, draw=draw))
            for draw in range(draws if name == worst else min(draws, FEW))
        ]
        yield from _shares(ALONE, name, CHOSEN, [alone[name]])
        yield from _shares(ALONE, name, RANDOM, random)
        yield from _shares(BUT, name, CHOSEN, [but[name]])
        lost = none.first - alone[name].first
        yield difference(LOST, name, CHOSEN, lost)
        yield beyond(f"{LOST}, {OVER_RANDOM}", name, lost, torch.stack([none.first - one.first for one in random], 1))
        yield difference(GAINED, name, CHOSEN, but[name].first - whole.first)
    yield from _leave_out_heads(work, ask, update, carriers, whole)


def _leave_out_heads(
    work: Work,
    ask: Callable[[str, Callable[[], Adapter]], _Answers],
    update: Adapter,
    carriers: Sequence[Head],
    whole: _Answers,
) -> Iterator[Line]:
    """All of the update but what it does to the heads that carry the task, or to as many others."""
    at, found = f"{len(carriers)} heads", dict[str, list[_Answers]]()
    for kind, sets in ((CHOSEN, [carriers]), (RANDOM, work.random_heads(carriers))):
        found[kind] = [
            ask(f"but heads {kind} {draw}", partial(update_parts.without_heads, work.model, update, heads))
            for draw, heads in enumerate(sets)
        ]
        yield from _shares(BUT, at, kind, found[kind])
    gained = {kind: torch.stack([one.first - whole.first for one in own], 1) for kind, own in found.items()}
    yield difference(GAINED, at, CHOSEN, gained[CHOSEN])
    yield difference(GAINED, at, RANDOM, gained[RANDOM])
    yield beyond(f"{GAINED}, more than without random heads' part", at, gained[CHOSEN][:, 0], gained[RANDOM])


def _shares(way: str, name: str, kind: str, found: Sequence[_Answers]) -> Iterator[Line]:
    for part, field in ((PROBABILITY, "first"), (ACCURACY, "right"), (LEARNED, "learned")):
        values = torch.stack([getattr(one, field) for one in found], 1)
        if len(values):
            yield share(f"{part}, {way}", name, kind, values)


def _ask(work: Work, prompts: Callable[[], Mapping[str, Tokens]], name: str, make: Callable[[], Adapter]) -> _Answers:
    """Kept under a name; the update is merged as long as the model is asked.

    Args:
        prompts: What it is asked, which is written once for all updates, and not at all where everything is kept.
    """

    def compute() -> pd.DataFrame:
        parts = []
        with lora.merged(work.model, make()):
            for group, tokens in prompts().items():
                right, first = score_answers(work.model, tokens)
                parts.append(pd.DataFrame({"group": group, "right": right.double(), "first": first.double()}))
        return pd.concat(parts, ignore_index=True)

    frame = work.tables.part(f"merged-{name.replace(' ', '-')}", compute)
    by_group = {
        group: {column: torch.tensor(own[column].to_numpy(float)) for column in ("first", "right")}
        for group, own in frame.groupby("group")
    }
    return _Answers(
        first=by_group["report"]["first"],
        right=by_group["report"]["right"],
        learned=by_group["learned"]["right"] if "learned" in by_group else torch.zeros(0),
        chosen=float(by_group["choose"]["first"].mean()),
    )


def _prompts(work: Work) -> dict[str, Tokens]:
    """Those that choose, those that are reported, and those of the task that was learned, where that is known."""
    found = {"choose": work.shown(work.split.validation), "report": work.shown(work.split.evaluation)}
    if work.asked.learned is not None:
        task = find_learned(work.asked.learned)
        pairs = task.pairs[: work.asked.queries]
        found["learned"] = tokenize(work.model, instructed(task, pairs, template=work.asked.template))
    return found


def find_learned(name: str) -> Task:
    """A task that was learned: one of a sequence that the lab learns, a built-in one, or a file."""
    return find_task(FILES.get(name, name))


def _update(work: Work) -> Adapter:
    assert work.update is not None
    return work.update()


def _tuned(work: Work) -> AbstractContextManager[HookedTransformer]:
    assert work.tuned is not None
    return work.tuned.active(work.model)


def _patch(work: Work, effects: HeadEffects, carriers: Sequence[Head]) -> Iterator[Line]:
    tokens = work.shown(work.split.evaluation)
    last = at_last(tokens)
    sites: dict[str, Site] = {
        name: site for name, site in SITES.items() if site != "mlp_out" or not work.model.cfg.attn_only
    }

    def read(model: HookedTransformer) -> dict[str, Tensor]:
        return {name: read_values(model, tokens, last, site) for name, site in sites.items()}

    def sweep(model: HookedTransformer, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        swept = {
            name: site_sweep.sweep(model, tokens, last, given[name], site, memory=work.memory)
            for name, site in sites.items()
        }
        return {name: found.cpu() for name, (_, found) in swept.items()}

    sets = [carriers, *work.random_heads(carriers)]
    base = read(work.model)
    with _tuned(work) as model, work.tables.keeping("tuned"):
        tuned, into_tuned = read(model), sweep(model, base)
        changes = [Change(ablated=tuple(heads)) for heads in sets]
        heads = run_changes(model, tokens, changes, layer=0, z=effects.mean_z).probability.double()
    with work.tables.keeping("base"):
        into_base = sweep(work.model, tuned)
    for part, found in zip(PATCHED.values(), (into_tuned, into_base), strict=True):
        for name, by_layer in found.items():
            for layer in range(by_layer.shape[1]):
                yield difference(part, f"layer {layer}", name, by_layer[:, layer, 0])
    gained, at = heads[:, 1:] - heads[:, :1], f"{len(carriers)} heads"
    yield difference(HEADS_PATCHED, at, CHOSEN, gained[:, :1])
    yield difference(HEADS_PATCHED, at, RANDOM, gained[:, 1:])
    yield beyond(f"{HEADS_PATCHED}, more than by random ones", at, gained[:, 0], gained[:, 1:])


def _compare_effects(work: Work, effects: HeadEffects, carriers: Sequence[Head]) -> Iterator[Line]:
    """AIE before and after, of the heads that carried the task and of those that work against it now."""
    with _tuned(work) as model, work.tables.keeping("tuned"):
        after = indirect_effects(model, work.task, settings=work.settings, memory=work.memory)
    against = {kind: _negative(one) for kind, one in ((BEFORE, effects), (AFTER, after))}
    shown = list(dict.fromkeys([*carriers, *against[AFTER][: len(carriers)]]))
    for kind, one in ((BEFORE, effects), (AFTER, after)):
        low, high = one.interval()
        for head in shown:
            values = (float(grid[head]) for grid in (one.aie, low, high))
            yield dict(zip(FINDINGS, (AIE, str(head), kind, *values, 1, len(one.queries.unique())), strict=True))
        yield number(NEGATIVE, "all heads", kind, float(len(against[kind])))
        yield number(NEGATIVE, "heads that carried the task", kind, float(len(set(carriers) & set(against[kind]))))


def _negative(effects: HeadEffects) -> list[Head]:
    """Heads whose AIE is clear of 0 and below, the lowest first."""
    return [head for head in effects.clear()[::-1] if float(effects.aie[head]) < 0]


def _cost(work: Work, pace: Pace) -> Mapping[str, float]:
    asked, (n_layers, _) = work.asked, work.grid
    parts = len(update_parts.name_parts(_update(work)))
    asks = 3 + asked.draws + parts * (2 + FEW) + asked.draws
    prompts = len(work.split.validation) + len(work.split.evaluation) + (asked.queries if asked.learned else 0)
    queries = len(work.split.evaluation)
    return {
        "AIE before and after": 2 * work.effects_seconds(pace),
        "parts of the update": asks * prompts * pace.reading,
        "patching": queries * (12 * pace.reading + (2 * len(SITES) * n_layers + 1 + asked.draws) * pace.row),
    }


def _verdict(found: Found) -> str:
    (worst,), (needed,) = (list(found.values(CHOICE, way)) for way in (ALONE, BUT))
    alone, but = (f"{PROBABILITY}, {way}" for way in (ALONE, BUT))
    gained, heads = PATCHED["into the tuned model"], next(iter(found.values(HEADS_PATCHED)))

    def told(part: str, at: str, kind: str = CHOSEN) -> str:
        return found(part, at, kind).text(2)

    half = (found(alone, BASE, NONE).mean - found(alone, TUNED, AFTER).mean) / 2
    layers = (layer for layer, value in found.values(gained, "stream").items() if value >= half)
    before, after = (found(NEGATIVE, "all heads", kind).mean for kind in (BEFORE, AFTER))
    return (
        f"Fine-tuning takes P(answer) from {told(alone, BASE, NONE)} to {told(alone, TUNED, AFTER)}. {worst} alone "
        f"takes {told(LOST, worst)} of it, {told(f'{LOST}, {OVER_RANDOM}', worst)} more than parts drawn at random. "
        f"Without {needed}, the rest leaves {told(but, needed)}; without what it does to {heads} that carried the task "
        f"{told(but, heads)}, to random heads {told(but, heads, RANDOM)}. Half of what was lost is back with the base "
        f"model's stream at the last token from {next(layers, 'no layer')} on; with the outputs of its {heads} that "
        f"carried the task P(answer) is {told(f'{HEADS_PATCHED}, more than by random ones', heads)} higher than with "
        f"random ones'. Heads of negative AIE, clear of 0: {after:.0f}, before {before:.0f}."
    )


OVERSHADOWING = Question(
    sentence="What suppresses the task after fine-tuning: which part of the update, from which layer on, and which "
    "heads?",
    run=_run,
    cost=_cost,
    verdict=_verdict,
    figures={
        "parts": {f"{PROBABILITY}, {way}": PROBABILITY for way in (ALONE, BUT)},
        "learned": {f"{LEARNED}, {way}": f"accuracy, {LEARNED}" for way in (ALONE, BUT)},
        "layers": dict.fromkeys(PATCHED.values(), "probability"),
    },
    needs_tuned=True,
    draw={"parts": update_parts.draw_parts, "learned": update_parts.draw_parts},
)
