"""What is lost when heads are ablated: each head of a vector alone, and all of them together?

An AIE says how far a head raises P(answer) on a corrupted prompt. It does not say that the model needs the head: others
may carry the task as well. So heads are taken away from prompts that show the task, in writing or by demonstrations,
beside as many heads drawn at random. Ablated is the last prompt token, by a mean over prompts of other tasks.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch

from ivlens.datasets.task import Task, TaskWarning, tasks
from ivlens.datasets.task import task as find_task
from ivlens.errors import PromptError, TaskError
from ivlens.measures import interval
from ivlens.patching.interventions import Change, Outcomes, run_changes
from ivlens.prompts.builders import cycled, few_shot, instructed
from ivlens.prompts.chat import Layout
from ivlens.prompts.template import Prompt
from ivlens.prompts.tokens import Tokens, tokenize
from ivlens.random_streams import Stream, open_stream
from ivlens.shapes import Head, MeanZ
from ivlens.steering.controls import draw_heads, draw_other_tasks
from ivlens.steering.trials import VALUES, summary

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

NECESSITY = (
    *("prompt", "heads", "ablated", "n_heads", "draws"),
    *VALUES,
    *("necessity", "necessity_low", "necessity_high"),
)


OTHER_TASKS = 10
"""Whose prompts give the means in the place of ablated heads, unless tasks are given."""
OTHER_PROMPTS = 100


class Asked(NamedTuple):
    """Prompts that show the task, and what ablated heads put out instead."""

    tokens: Tokens
    z: MeanZ
    """Mean head output over prompts of the same form that show other tasks."""


class _Variant(NamedTuple):
    """What one line of the table is of."""

    heads: str
    """`none`, `chosen` or `random`."""
    sets: list[tuple[Head, ...]]
    """What is ablated; several where it was drawn."""


def measure_necessity(
    model: HookedTransformer, asked: Mapping[str, Asked], heads: Sequence[Head], *, draws: int, seed: int = 0
) -> pd.DataFrame:
    """What the model makes of prompts with heads ablated, `NECESSITY`.

    Lines are, for each kind of prompt: `none` ablated, each of the `chosen` heads, one `random` head, all `chosen`
    heads together, and as many `random` ones. `ablated` names the chosen ones. `necessity` is P(answer) lost, of the
    first answer token, in [-1, 1]. Intervals are over queries, and over draws where heads were drawn; these are not
    among the chosen, unless fewer others are left than are wanted.

    Args:
        asked: By kind of prompt, such as `instructed`.
        draws: Heads, and sets of as many heads as are chosen, that are drawn at random.

    Raises:
        ShapeMismatch: the means are from a model of other heads.
        ModelError: activations are NaN or infinite.
    """
    lines = []
    for prompt, (tokens, z) in asked.items():
        variants = list(_variants(tuple(heads), tuple(z.shape[:2]), draws=draws, seed=seed))
        changes = [Change(ablated=one) for variant in variants for one in variant.sets]
        found, start = run_changes(model, tokens, changes, layer=0, z=z), 1
        for variant in variants:
            columns = range(start, start + len(variant.sets))
            lines.append({"prompt": prompt, **_line(variant, found, columns)})
            start += len(variant.sets)
    return pd.DataFrame(lines, columns=list(NECESSITY))


def _variants(heads: tuple[Head, ...], grid: tuple[int, ...], *, draws: int, seed: int) -> Iterable[_Variant]:
    def drawn(k: int) -> _Variant:
        return _Variant("random", [tuple(one) for one in draw_heads(grid, k, draws=draws, seed=seed, apart=heads)])

    yield _Variant("none", [()])
    yield from (_Variant("chosen", [(head,)]) for head in heads)
    yield drawn(1)
    if len(heads) > 1:
        yield _Variant("chosen", [heads])
        yield drawn(len(heads))


def _line(variant: _Variant, found: Outcomes, columns: range) -> dict[str, Any]:
    left = found.probability[:, list(columns)]
    lost = found.probability[:, :1] - left
    # In groups of one: a loss that happens to be 0 or 1 everywhere is no share of successes.
    necessity = interval(lost, torch.arange(len(lost)), within=(-1.0, 1.0))
    return {
        "heads": variant.heads,
        "ablated": "" if variant.heads == "random" else " ".join(map(str, variant.sets[0])),
        "n_heads": len(variant.sets[0]),
        "draws": len(variant.sets),
        **summary(found.match[:, list(columns)], left),
        **dict(zip(NECESSITY[-3:], necessity, strict=True)),
    }


def other_prompts(
    model: HookedTransformer,
    task: Task,
    others: Sequence[Task] | None = None,
    *,
    template: Layout,
    seed: int,
    shots: int = 0,
) -> list[Prompt]:
    """Prompts that show other tasks, as many of each; none where no other task can be asked.

    Args:
        others: Ten built-in ones unless given.
        shots: Demonstrations, in place of the instruction, which 0 asks for.
    """
    built_in = others is None
    if others is None:
        others = [find_task(name) for name in draw_other_tasks(task, tasks(), draws=len(tasks()), seed=seed)]
    usable = [other for other in others if task.name != other.name and task.digest != other.digest]
    usable = [other for other in usable if shots or other.instructions][: OTHER_TASKS if built_in else None]
    share = max(1, OTHER_PROMPTS // max(1, len(usable)))
    generator = open_stream(seed, Stream.ABLATION_PROMPTS)
    asked: list[Prompt] = []
    for other in usable:
        pairs = cycled([other.pairs[i] for i in generator.permutation(len(other.pairs))], share)
        try:
            prompts = (
                few_shot(pairs, other.pairs, shots=shots, generator=generator, template=template)
                if shots
                else instructed(other, pairs, template=template)
            )
            tokenize(model, prompts)
        except (TaskError, PromptError) as error:
            warnings.warn(f"left out of the means for ablation: {error}", TaskWarning, stacklevel=3)
            continue
        asked += prompts
    return asked
