"""Explore the heads of a model: in a notebook with the model at hand, or on a page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivlens.analysis.run_comparison import TunedModel, find_tuned_model
from ivlens.datasets.task import Task
from ivlens.datasets.task import task as find_task
from ivlens.errors import IvlensError, PromptError, as_ivlens_error
from ivlens.explorer.contents import Bounded, Contents
from ivlens.explorer.explorer import Explorer
from ivlens.explorer.measurement import (
    AskedPrompts,
    measure_heads,
    prompts_of_ones_own,
    prompts_of_task,
)
from ivlens.explorer.replies import reply_unsteered
from ivlens.measures import mean_bounds
from ivlens.models import hooked, loader
from ivlens.patching.effects import find_queries, measure_effects, task_mean_z
from ivlens.patching.head_effects import HeadEffects
from ivlens.patching.settings import Settings, parse_bytes
from ivlens.prompts.builders import zero_shot
from ivlens.prompts.long_pairs import leave_out_long
from ivlens.prompts.template import Prompt
from ivlens.shapes import GIB
from ivlens.steering.steered_model import as_vector
from ivlens.vectors.head_writing import check_layer, check_width, write_vector
from ivlens.vectors.instruction_vector import InstructionVector

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

    from ivlens.models.lora import Adapter

SHOWN = 3
"""Prompts of each kind whose attention is shown, and that the vector is added on."""


@as_ivlens_error()
def explore(
    model: HookedTransformer | str | Path,
    prompts: Task | str | Path | Sequence[Prompt],
    effects: HeadEffects | None = None,
    *,
    tuned: HookedTransformer | Adapter | str | Path | Sequence[str | Path] | None = None,
    vector: InstructionVector | str | Path | None = None,
    shown: int = SHOWN,
    memory: int | str = 2 * GIB,
) -> Explorer:
    """Look at every head: what it attends to, does, writes, and what is lost without it; and add the vector.

    In a notebook the last line of a cell shows it (`pip install 'ivlens[notebook]'`); `save` writes it as a page.

    >>> own = ivlens.explore(model, ivlens.prompts.instructed(task, task.pairs[:3]), effects)
    >>> own.contents.models[0].cie.shape, len(own.contents.shown)
    (torch.Size([3, 6, 8]), 3)

    Args:
        model: Also by what `ivlens.load` takes: a name, a path.
        prompts: A task, also by its name or file: heads are patched on the prompts that the effects were measured on,
            and ablated on prompts of other pairs that show the task. Or prompts of one's own, on which all is measured.
        effects: Of that task on that model; measured first unless given. Prompts of one's own need them: their mean
            head outputs are what is patched in.
        tuned: What the model became by fine-tuning, as `ivlens.compare` takes it, to be shown beside it.
        vector: What the sliders add, also by the path of its file; by default what the ten heads of largest AIE write,
            a third of the way up.
        shown: Prompts of a task, of each kind, whose attention is shown, and that the vector is added on.
        memory: What patching may take beside the weights, in bytes or such as "2GiB".

    Raises:
        IvlensError: effects of another model or task, a vector of another width, or `tuned` without a task.
        TaskError, PromptError, ModelError: the task, prompts or model cannot serve.
    """
    memory, model = parse_bytes(memory), loader.as_model(model)
    if shown < 1:
        raise IvlensError(f"shown is {shown}; it must be 1 or more")
    if effects is not None and not isinstance(effects, HeadEffects):
        raise IvlensError(f"a {type(effects).__name__} is no effects; give what ivlens.indirect_effects returns")
    if isinstance(prompts, Sequence) and not isinstance(prompts, str):
        asked, sides = _of_prompts(model, prompts, effects, tuned)
    else:
        asked, sides = _of_task(model, find_task(prompts), effects, tuned, shown, memory)
    first = sides[0].effects
    vector = _find_vector(model, first) if vector is None else as_vector(vector)
    check_width(vector.vector, vector.model or vector.task, model, remedy="build the vector on this model")
    layer = model.cfg.n_layers // 3 if vector.layer is None else vector.layer
    check_layer(layer, model.cfg.n_layers)
    visible = asked.shown(model, shown)
    found = []
    for side in sides:
        with side.model.active(model) as one:
            found.append(measure_heads(one, asked, side.effects, visible, name=side.model.name, memory=memory))
    contents = Contents(
        task=first.task,
        task_digest=first.task_digest,
        unit=first.unit,
        models=tuple(found),
        change=_change(*(side.effects for side in sides)) if len(sides) == 2 else None,
        marked=vector.heads,
        corrupted=asked.corrupted,
        clean=asked.clean,
        shown=visible,
        steering=reply_unsteered(model, asked.steered, vector, layer, vector.scale),
    )
    return Explorer(contents=contents, model=model, vector=vector)


@dataclass(frozen=True)
class _Side:
    """One of the models that are shown."""

    model: TunedModel
    effects: HeadEffects


def _of_task(
    model: HookedTransformer, task: Task, effects: HeadEffects | None, tuned: Any, shown: int, memory: int
) -> tuple[AskedPrompts, list[_Side]]:
    settings = effects.settings if effects else Settings()
    task = leave_out_long(model, task, shots=settings.shots, template=settings.template)
    digest, queries = hooked.weight_digest(model), find_queries(model, task, settings)
    if effects is None:
        z = task_mean_z(model, task, settings, queries=queries)
        effects = measure_effects(model, task, z, settings, memory=memory, model_digest=digest, queries=queries)
    if (effects.model_digest, effects.task_digest) != (digest, task.digest):
        raise IvlensError(
            f"the effects are of task {effects.task!r} on {effects.model}, not of {task.name!r} on this model; measure "
            "them again"
        )
    sides = [_Side(TunedModel(model, hooked.model_name(model)), effects)]
    if tuned is not None:
        other = find_tuned_model(model, tuned)
        with other.active(model) as changed:
            other.check_reading(model, changed, zero_shot(task.pairs, template=settings.template))
            z = task_mean_z(changed, task, settings, queries=queries)
            after = measure_effects(changed, task, z, settings, memory=memory, queries=queries)
        sides.append(_Side(other, after))
    return prompts_of_task(model, task, settings, queries, steered=shown), sides


def _of_prompts(
    model: HookedTransformer, prompts: Sequence[Prompt], effects: HeadEffects | None, tuned: Any
) -> tuple[AskedPrompts, list[_Side]]:
    if not prompts:
        raise PromptError("there are no prompts; give at least one, or a task")
    wrong = next((one for one in prompts if not isinstance(one, Prompt)), None)
    if wrong is not None:
        raise IvlensError(
            f"a {type(wrong).__name__} is no prompt; give what ivlens.prompts.zero_shot(pairs) returns, or a task"
        )
    if effects is None:
        raise IvlensError("prompts of one's own need effects, whose mean head outputs are patched in; give effects=...")
    if tuned is not None:
        raise IvlensError("a tuned model is shown on a task; give the task in place of the prompts")
    if effects.model_digest != hooked.weight_digest(model):
        raise IvlensError(f"the effects are of {effects.model}, not of this model; measure them again")
    side = _Side(TunedModel(model, hooked.model_name(model)), effects)
    return prompts_of_ones_own(model, prompts, effects), [side]


def _find_vector(model: HookedTransformer, effects: HeadEffects) -> InstructionVector:
    """What the heads of largest AIE write, without a search for where it does most."""
    heads = tuple(effects.top(min(10, effects.aie.numel())))
    return InstructionVector(
        vector=write_vector(model, effects.mean_z, heads),
        heads=heads,
        layer=None,
        mean_z=effects.mean_z,
        aie=effects.aie,
        settings=effects.settings,
        **{key: getattr(effects, key) for key in ("task", "task_digest", "model", "model_digest")},
    )


def _change(before: HeadEffects, after: HeadEffects) -> Bounded:
    """Paired by query."""
    change = after.cie.double().cpu() - before.cie.double().cpu()
    changed = replace(before, cie=change)
    low, high = mean_bounds(change, before.queries.cpu())
    if before.unit == "probability":
        low, high = low.clamp(min=-2), high.clamp(max=2)
    return Bounded(changed.aie, low, high)
