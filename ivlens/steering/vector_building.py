"""What is the instruction vector of a task, and where is it to be added, how many times?

The heads are those of largest AIE unless given; layer and scale are chosen together on validation pairs (see `search`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from ivlens.datasets.task import Task
from ivlens.datasets.task import task as find_task
from ivlens.errors import IvlensError, ModelError, as_ivlens_error
from ivlens.models import hooked, loader
from ivlens.patching.effects import indirect_effects, task_mean_z
from ivlens.patching.head_effects import HeadEffects
from ivlens.patching.settings import Options, Settings, gather_options, parse_bytes, refuse_contradictions
from ivlens.prompts.builders import zero_shot
from ivlens.prompts.long_pairs import leave_out_long
from ivlens.prompts.tokens import tokenize
from ivlens.shapes import GIB
from ivlens.steering.head_choice import UNIVERSAL, Asked, choose_heads
from ivlens.steering.search import Place, search_places
from ivlens.vectors.head_writing import check_layer, check_scale, write_vector
from ivlens.vectors.instruction_vector import InstructionVector

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


@as_ivlens_error()
def instruction_vector(
    model: HookedTransformer | str | Path,
    task: Task | str | Path,
    *,
    heads: Asked | None = None,
    effects: HeadEffects | None = None,
    layer: int | None = None,
    scale: float | None = None,
    memory: int | str = 2 * GIB,
    settings: Settings | None = None,
    **options: Unpack[Options],
) -> InstructionVector:
    """The instruction vector of a task, with the layer to add it at and the scale to add it with.

    `[d_model]`, without `b_O`, in the unit of the residual stream. `settings` say how effects or mean outputs are
    measured where no effects are given; `memory`, in bytes or such as "2GiB", does not change the numbers. Source:
    Jiang et al. 2024, arXiv:2406.12227, after the function vector of Todd et al. 2024, arXiv:2310.15213.

    >>> one = ivlens.instruction_vector(model, task, effects=effects, heads=[ivlens.Head(3, 3)])
    >>> one.vector.shape, one.heads, one.mean_z.shape
    (torch.Size([128]), (L3H3,), torch.Size([6, 8, 16]))

    Args:
        model, task: Also by what `ivlens.load` and `ivlens.task` take: a name, a path.
        heads: The heads that write it, also as "L9H6,L3H2" or a file of heads; by default the ten of largest AIE.
        effects: Measured effects; their settings and mean outputs are used. Measured first if not given and `heads`
            is not given, either.
        settings: All options of the measurement at once.
        options: Fields of `Settings`, such as `shots=5`.
        layer, scale: By default the place at which adding the vector to zero-shot prompts of the validation pairs
            is right most often, of all layers and scales of 0.5 to 16 (see `steering.search`).

    Raises:
        IvlensError: a head or layer that the model does not have, effects of another task or model, or options that
            contradict the effects or the settings.
        ModelError: the model's weights make a vector of NaN or infinity.
    """
    settings, memory = _find_settings(effects, settings, options), parse_bytes(memory)
    task, model = find_task(task), loader.as_model(model)
    task = leave_out_long(model, task, shots=settings.shots, template=settings.template)
    named = choose_heads(heads, model)
    if layer is not None:
        check_layer(layer, model.cfg.n_layers)
    if effects is None and heads is None:
        effects = indirect_effects(model, task, settings=settings, memory=memory)
    digest = hooked.weight_digest(model)
    if effects is not None and (effects.model_digest, effects.task_digest) != (digest, task.digest):
        raise IvlensError(
            f"the effects are of task {effects.task!r} on {effects.model}, not of {task.name!r} on this model; measure "
            "them again"
        )
    if named == UNIVERSAL:
        raise IvlensError("heads is 'universal', which audits take; give the heads of ivlens.universal_heads(model)")
    chosen = named or (tuple(effects.top(10)) if effects else ())
    z = effects.mean_z if effects else task_mean_z(model, task, settings)
    vector = write_vector(model, z, chosen)
    if not bool(vector.isfinite().all()):
        raise ModelError("the vector is NaN or infinite; check the model's weights")
    if layer is None or scale is None:
        pairs = task.split(shots=settings.shots, seed=settings.seed).validation
        tokens = tokenize(model, zero_shot(pairs, template=settings.template))
        place = search_places(model, tokens, vector[None], layer=layer, scale=scale, memory=memory).best()
    else:
        check_scale(scale)
        place = Place(int(layer), float(scale))
    check_layer(place.layer, model.cfg.n_layers)
    check_scale(place.scale)
    return InstructionVector(
        vector=vector,
        heads=chosen,
        layer=place.layer,
        scale=place.scale,
        mean_z=z,
        aie=effects.aie if effects else None,
        settings=settings,
        task=task.name,
        task_digest=task.digest,
        model=hooked.model_name(model),
        model_digest=digest,
    )


def _find_settings(effects: HeadEffects | None, settings: Settings | None, options: Mapping[str, Any]) -> Settings:
    """Those of the effects, where there are any: what is given beside them must be the same."""
    if effects is None:
        return gather_options(Settings, settings, options)
    if settings is not None:
        refuse_contradictions("effects", effects.settings, settings.values())
    refuse_contradictions("effects", effects.settings, options)
    return gather_options(Settings, effects.settings, options)
