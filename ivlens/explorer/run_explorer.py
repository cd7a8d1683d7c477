"""Explore the heads of a model: in a notebook with the model at hand, or on a page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivlens.analysis.run_comparison import TunedModel, find_tuned_model
from ivlens.datasets.task import Task
from ivlens.datasets.task import task as find_task
from ivlens.errors import IvlensError, as_ivlens_error
from ivlens.explorer import encoding, page
from ivlens.explorer.contents import Bounded, Contents
from ivlens.explorer.measurement import (
    AskedPrompts,
    measure_heads,
    prompts_of_ones_own,
    prompts_of_task,
)
from ivlens.explorer.replies import kept_layers, reply_steered, reply_unsteered, strengths
from ivlens.measures import mean_bounds
from ivlens.models import hooked, loader
from ivlens.patching.effects import find_queries, measure_effects, task_mean_z
from ivlens.patching.head_effects import HeadEffects
from ivlens.patching.settings import Settings, parse_bytes
from ivlens.prompts.long_pairs import leave_out_long
from ivlens.prompts.template import Prompt
from ivlens.shapes import GIB
from ivlens.storage.atomic_files import write_whole
from ivlens.vectors.head_writing import check_layer, check_width, write_vector
from ivlens.vectors.instruction_vector import InstructionVector

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

    from ivlens.models.lora import Adapter

SHOWN = 3
"""Prompts of each kind whose attention is shown, and that the vector is added on."""
LIVE_ROOM = 8 * encoding.ROOM
"""Letters for attention in a notebook."""


@dataclass(frozen=True, kw_only=True)
class Explorer:
    """Every head of a model, to be clicked on: in the last line of a cell, or as a page.

    >>> explorer = ivlens.explore(model, task, effects)
    >>> explorer
    Explorer(antonym on lab: 6x8 heads, attention on 6 prompts)
    """

    contents: Contents
    """Everything that is shown, in full precision."""
    model: HookedTransformer
    vector: InstructionVector

    def to_html(self) -> str:
        """The page as text. Replies with the vector are generated now, at eight layers and every strength.

        >>> explorer.to_html().count("<script")
        2
        """
        return page.write_page(self.encoded())

    def save(self, path: str | Path) -> Path:
        """Write the page, whole or not at all; it needs nothing beside itself, and no network.

        Raises:
            IvlensError: the name does not end in .html, or the disk refuses.

        >>> explorer.save("heads.html").name
        'heads.html'
        """
        path = Path(path)
        if path.suffix.lower() != ".html":
            raise IvlensError(f"the page is to be written to {path}; give a name that ends in .html")
        write_whole(path, self.to_html().encode(errors="replace"))
        return path

    @as_ivlens_error()
    def encoded(self) -> encoding.Encoded:
        """What the page draws, replies with the vector included; as `Encoded.model_dump_json` writes it.

        >>> explorer.encoded().steering.scales[:3]
        [-4.0, -1.0, 0.5]
        """
        own = self.contents.steering
        steered = reply_steered(
            self.model,
            own.prompts,
            self.vector.vector,
            layers=kept_layers(self.model.cfg.n_layers, own.layer),
            scales=strengths(own.scale),
        )
        return encoding.encode(self.contents, steered=steered)

    def reply(self, layer: int, scale: float) -> encoding.EncodedReplies:
        """What the model replies with the vector added after a block, so many times; as the sliders show it.

        Raises:
            IvlensError: the model has no such layer.

        >>> explorer.reply(2, 4.0).replies
        ['...', '...', '...']
        """
        check_layer(layer, self.model.cfg.n_layers)
        found = reply_steered(
            self.model, self.contents.steering.prompts, self.vector.vector, layers=[layer], scales=[scale]
        )
        return encoding.encode_replies(found.replies[0][0], found.probability[0, 0])

    def __repr__(self) -> str:
        first = self.contents.models[0]
        layers, heads = first.aie.mean.shape
        names = " and ".join(model.name for model in self.contents.models)
        return (
            f"Explorer({self.contents.task} on {names}: {layers}x{heads} heads, attention on "
            f"{len(self.contents.shown)} prompts)"
        )

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The widget where anywidget is installed, and one line of text everywhere."""
        try:
            from ivlens.explorer.widget import HeadExplorer
        except ModuleNotFoundError:
            hint = "pip install 'ivlens[notebook]' shows it here; .save('heads.html') writes it as a page"
            return {"text/plain": f"{self!r}\n{hint}"}
        widget = HeadExplorer(encoding.encode(self.contents, room=LIVE_ROOM), self.reply)
        return widget._repr_mimebundle_(**options)


@as_ivlens_error()
def explore(
    model: HookedTransformer | str | Path,
    prompts: Task | str | Path | Sequence[Prompt],
    effects: HeadEffects | None = None,
    *,
    tuned: HookedTransformer | Adapter | str | Path | Sequence[str | Path] | None = None,
    vector: InstructionVector | None = None,
    shown: int = SHOWN,
    memory: int | str = 2 * GIB,
) -> Explorer:
    """Look at every head: what it attends to, does, writes, and what is lost without it; and add the vector.

    In a notebook the last line of a cell shows it (`pip install 'ivlens[notebook]'`); `save` writes it as a page.

    >>> found = ivlens.explore(model, task, effects, shown=1)
    >>> found.contents.models[0].lost.mean.shape, len(found.contents.shown)
    (torch.Size([6, 8]), 2)

    Args:
        model: Also by what `ivlens.load` takes: a name, a path.
        prompts: A task, also by its name or file: heads are patched on the prompts that the effects were measured on,
            and ablated on prompts of other pairs that show the task. Or prompts of one's own, on which all is measured.
        effects: Of that task on that model; measured first unless given. Prompts of one's own need them: their mean
            head outputs are what is patched in.
        tuned: What the model became by fine-tuning, as `ivlens.compare` takes it, to be shown beside it.
        vector: What the sliders add; by default what the ten heads of largest AIE write, a third of the way up.
        shown: Prompts of each kind whose attention is shown, and that the vector is added on.
        memory: What patching may take beside the weights, in bytes or such as "2GiB".

    Raises:
        IvlensError: effects of another model or task, a vector of another width, or `tuned` without a task.
        TaskError, PromptError, ModelError: the task, prompts or model cannot serve.
    """
    memory, model = parse_bytes(memory), loader.as_model(model)
    if shown < 1:
        raise IvlensError(f"shown is {shown}; it must be 1 or more")
    if isinstance(prompts, Task | str | Path):
        asked, sides = _of_task(model, find_task(prompts), effects, tuned, shown, memory)
    else:
        asked, sides = _of_prompts(model, prompts, effects, tuned)
    first = sides[0].effects
    vector = _find_vector(model, first) if vector is None else vector
    check_width(vector.vector, vector.model or vector.task, model, remedy="build the vector on this model")
    layer = model.cfg.n_layers // 3 if vector.layer is None else vector.layer
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
            z = task_mean_z(changed, task, settings, queries=queries)
            after = measure_effects(changed, task, z, settings, memory=memory, queries=queries)
        sides.append(_Side(other, after))
    return prompts_of_task(model, task, settings, queries, steered=shown), sides


def _of_prompts(
    model: HookedTransformer, prompts: Sequence[Prompt], effects: HeadEffects | None, tuned: Any
) -> tuple[AskedPrompts, list[_Side]]:
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
    return Bounded(changed.aie, low, high)
