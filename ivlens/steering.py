"""Does adding the vector of a task make the model do the task?

Steering adds a vector, `scale` times, to the residual stream after one block (`resid_post`) at the last prompt token:
the site of the evaluation of Todd et al. 2024, arXiv:2310.15213. Layer and scale are chosen on validation pairs (see
`steering_search`); a result at the chosen place is measured on evaluation pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from ivlens import models, reruns
from ivlens.effects import HeadEffects, Settings, indirect_effects, task_mean_z
from ivlens.errors import IvlensError, ModelError, ShapeMismatch
from ivlens.prompt_end import PromptEnds
from ivlens.prompts import tokenize, zero_shot
from ivlens.shapes import GIB, Head
from ivlens.steering_search import Place, search_places
from ivlens.tasks import Task
from ivlens.vectors import InstructionVector, check_layer, check_scale, check_width, write_vector

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Site = Literal["resid_post", "distributed"]


@contextmanager
def steered(
    model: HookedTransformer,
    vector: InstructionVector,
    *,
    scale: float | None = None,
    layer: int | None = None,
    site: Site = "resid_post",
    position: int = -1,
    every_token: bool = False,
) -> Iterator[HookedTransformer]:
    """Steer every run inside the `with` block; leaves no trace, also on an exception.

    Steered is a token of the prompt, whatever is read behind it: answers that ivlens reads along, pads, tokens that
    `model.generate` wrote. Tokens that one hands to the model oneself are all taken for the prompt.

    Args:
        scale: Factor of the vector; negative takes the task away. By default the vector's own, which was chosen with
            its layer; with `distributed` 1, since the vector's own was chosen for adding the sum.
        layer: After which block to add it; the vector's own layer by default.
        site: `resid_post`: add the vector at one layer. `distributed`: put each head's own mean output, times `scale`,
            back at its own layer; with a scale of 1 that is to patch the heads.
        position: Which token of each prompt is steered, pads not counted; -1 is the last one.
        every_token: Steer at every token behind that one, too: those of the answer, and new ones while generating.

    Raises:
        ShapeMismatch: the vector is from a model of other width or heads.
        IvlensError: no layer, a scale that is not finite, or a prompt without a token at `position`.
    """
    scale = scale if scale is not None else vector.scale if site == "resid_post" else 1.0
    check_scale(scale)
    if site == "distributed":
        layers, hooks = _distributed_hooks(model, vector, scale)
    elif site == "resid_post":
        layers, hooks = _resid_hooks(model, vector, scale, layer)
    else:
        raise IvlensError(f"site is {site!r}; it must be 'resid_post' or 'distributed'")
    ends = PromptEnds(model, position=position, every_token=every_token)

    def steer(hook_fn: Any, activation: Tensor, hook: Any) -> Tensor | None:
        columns = ends.columns(*activation.shape[:2])
        return None if columns is None else hook_fn(activation, hook, at=columns.to(activation.device))

    named: list[Any] = [(name, partial(steer, hook_fn)) for name, hook_fn in hooks]
    with ends.followed(layers[0]), model.hooks(fwd_hooks=named):
        yield model


def _resid_hooks(
    model: HookedTransformer, vector: InstructionVector, scale: float, layer: int | None
) -> tuple[list[int], list[reruns.NamedHook]]:
    layer = vector.layer if layer is None else layer
    if layer is None:
        raise IvlensError("the vector has no layer yet; pass layer=..., or take vector.at(layer)")
    check_layer(layer, model.cfg.n_layers)
    check_width(vector, model, remedy="build the vector on this model")
    added = (scale * vector.vector).to(model.cfg.device, model.cfg.dtype)
    return [layer], [reruns.residual_added(layer, added)]


def _distributed_hooks(
    model: HookedTransformer, vector: InstructionVector, scale: float
) -> tuple[list[int], list[reruns.NamedHook]]:
    cfg, mean_z = model.cfg, vector.mean_z
    if mean_z is None or not vector.heads:
        raise IvlensError(f"the vector of {vector.task} comes without its heads' mean outputs; take site='resid_post'")
    if tuple(mean_z.shape) != (cfg.n_layers, cfg.n_heads, cfg.d_head):
        raise ShapeMismatch(
            f"the vector of {vector.model} has mean_z {tuple(mean_z.shape)}, but {models.model_name(model)} has "
            f"heads {(cfg.n_layers, cfg.n_heads, cfg.d_head)} as (layer, head, d_head); build the vector on this model"
        )
    layers = sorted({head.layer for head in vector.heads})
    return layers, [reruns.head_set(head, scale * mean_z[head]) for head in vector.heads]


def instruction_vector(
    model: HookedTransformer,
    task: Task,
    *,
    heads: Sequence[Head] | None = None,
    effects: HeadEffects | None = None,
    layer: int | None = None,
    scale: float | None = None,
    memory: int = 2 * GIB,
    settings: Settings | None = None,
    seed: int = 0,
) -> InstructionVector:
    """The instruction vector of a task, with the layer to add it at and the scale to add it with.

    Args:
        heads: The heads that write it; by default the ten of largest AIE.
        effects: Measured effects; their settings and mean outputs are used. Measured first if not given and `heads`
            is not given, either.
        layer, scale: By default the place at which adding the vector to zero-shot prompts of the validation pairs
            is right most often, of all layers and scales of 0.5 to 16 (see `steering_search`).

    Raises:
        IvlensError: a head or layer that the model does not have, or effects of another task or model.
    """
    if effects is None and heads is None:
        effects = indirect_effects(model, task, seed=seed, memory=memory)
    settings = effects.settings if effects else settings or Settings(seed=seed)
    digest = models.weight_digest(model)
    if effects is not None and (effects.model_digest, effects.task_digest) != (digest, task.digest):
        raise IvlensError(
            f"the effects are of task {effects.task!r} on {effects.model}, not of {task.name!r} on this model; measure "
            "them again"
        )
    chosen = tuple(Head(*head) for head in (heads if heads is not None else effects.top(10) if effects else ()))
    if not chosen:
        raise IvlensError("heads is empty; give at least one head, such as effects.top(10)")
    z = effects.mean_z if effects else task_mean_z(model, task, settings)
    vector = write_vector(model, z, chosen)
    if not bool(vector.isfinite().all()):
        raise ModelError("the vector is NaN or infinite; check the model's weights")
    if layer is None or scale is None:
        pairs = task.split(shots=settings.shots, seed=settings.seed).validation
        tokens = tokenize(model, zero_shot(pairs, template=settings.template))
        place = search_places(model, tokens, vector[None], layer=layer, scale=scale, memory=memory).best()
    else:
        place = Place(layer, float(scale))
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
        model=models.model_name(model),
        model_digest=digest,
    )
