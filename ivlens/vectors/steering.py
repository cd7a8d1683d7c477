"""Does adding the vector of a task make the model do the task, and at which layer?

Steering adds a vector to the residual stream after one block (`resid_post`) at the last prompt token: the site of the
evaluation of Todd et al. 2024, arXiv:2310.15213. The layer is chosen on validation pairs; a result at the chosen layer
is measured on evaluation pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.datasets.task import Task
from ivlens.errors import IvlensError, ModelError, ShapeMismatch
from ivlens.models import bridge, hooked
from ivlens.patching import branches
from ivlens.patching.block_forward import Rows
from ivlens.patching.branches import Answers, Junction
from ivlens.patching.effects import indirect_effects, task_mean_z
from ivlens.patching.head_effects import HeadEffects
from ivlens.patching.hooks import add_to_residual, run_hooked, set_head
from ivlens.patching.settings import Settings
from ivlens.prompts.builders import zero_shot
from ivlens.prompts.tokens import Tokens, tokenize
from ivlens.shapes import GIB, Head
from ivlens.vectors.head_writing import check_layer, write_vector
from ivlens.vectors.instruction_vector import InstructionVector, check_width

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Site = Literal["resid_post", "distributed"]


@contextmanager
def steered(
    model: HookedTransformer,
    vector: InstructionVector,
    *,
    scale: float = 1.0,
    layer: int | None = None,
    site: Site = "resid_post",
    position: int = -1,
    every_token: bool = False,
) -> Iterator[HookedTransformer]:
    """Steer every run inside the `with` block; leaves no trace, also on an exception.

    Args:
        scale: Factor of the vector; negative takes the task away.
        layer: After which block to add it; the vector's own layer by default.
        site: `resid_post`: add the vector at one layer. `distributed`: put each head's own mean output back at its own
            layer, that is, patch the heads (`scale` must be 1).
        position: Which token of what the model reads is steered; -1, the last prompt token, unless the answer is
            read along.
        every_token: While generating, steer at every new token, too. New tokens are told by the key-value cache, which
            `model.generate` uses unless told otherwise; without it every pass looks like a prompt.

    Raises:
        ShapeMismatch: the vector is from a model of other width or heads.
        IvlensError: no layer, or a scale that `distributed` does not know.
    """
    if site == "distributed":
        layers, hooks = _distributed_hooks(model, vector, scale, position)
    elif site == "resid_post":
        layers, hooks = _resid_hooks(model, vector, scale, layer, position)
    else:
        raise IvlensError(f"site is {site!r}; it must be 'resid_post' or 'distributed'")
    generating = {"continued": False}

    def note(block: torch.nn.Module, args: Any, kwargs: dict[str, Any], *, layer: int) -> None:
        generating["continued"] = _count_cached(kwargs, layer) > 0

    def unless_continued(hook_fn: Any, activation: Tensor, hook: Any) -> Tensor | None:
        return None if generating["continued"] and not every_token else hook_fn(activation, hook)

    handles = [
        model.blocks[layer].register_forward_pre_hook(partial(note, layer=layer), with_kwargs=True) for layer in layers
    ]
    try:
        with model.hooks(fwd_hooks=[(name, partial(unless_continued, hook_fn)) for name, hook_fn in hooks]):
            yield model
    finally:
        for handle in handles:
            handle.remove()


def _count_cached(kwargs: dict[str, Any], layer: int) -> int:
    """How many tokens a block finds in the key-value cache: TransformerLens' own, or in a bridge transformers'."""
    entry = kwargs.get("past_kv_cache_entry")
    if entry is not None:
        return entry.past_keys.shape[1]
    # Its name differs from version to version.
    caches = (value for value in kwargs.values() if hasattr(value, "get_seq_length"))
    return max((int(cache.get_seq_length(layer)) for cache in caches), default=0)


def _resid_hooks(
    model: HookedTransformer, vector: InstructionVector, scale: float, layer: int | None, position: int
) -> tuple[list[int], list[tuple[str, Any]]]:
    layer = vector.layer if layer is None else layer
    if layer is None:
        raise IvlensError("the vector has no layer yet; pass layer=..., or take vector.at(layer)")
    check_layer(layer, model.cfg.n_layers)
    check_width(vector, model, remedy="build the vector on this model")
    added = (scale * vector.vector).to(model.cfg.device, model.cfg.dtype)
    return [layer], [add_to_residual(layer, added, position)]


def _distributed_hooks(
    model: HookedTransformer, vector: InstructionVector, scale: float, position: int
) -> tuple[list[int], list[tuple[str, Any]]]:
    if scale != 1.0:
        raise IvlensError(f"site 'distributed' puts mean outputs back as they are; scale is {scale}, it must be 1")
    cfg, mean_z = model.cfg, vector.mean_z
    if mean_z is None:
        raise IvlensError(f"the vector of {vector.task} comes without its heads' mean outputs; take site='resid_post'")
    if tuple(mean_z.shape) != (cfg.n_layers, cfg.n_heads, cfg.d_head):
        raise ShapeMismatch(
            f"the vector of {vector.model} has mean_z {tuple(mean_z.shape)}, but {hooked.model_name(model)} has "
            f"heads {(cfg.n_layers, cfg.n_heads, cfg.d_head)} as (layer, head, d_head); build the vector on this model"
        )

    layers = sorted({head.layer for head in vector.heads})
    return layers, [set_head(head, mean_z[head], position) for head in vector.heads]


def steer_every_layer(
    model: HookedTransformer,
    tokens: Tokens,
    vectors: Float[Tensor, "vector d_model"],
    *,
    scale: float = 1.0,
    memory: int = 2 * GIB,
) -> Answers:
    """What becomes of the answers when each vector is added at each layer, in one pass per batch of prompts.

    Returns:
        Answers with rows: 0 unsteered, then 1 + layer * n_vectors + vector.

    Raises:
        ShapeMismatch: the vectors have another width than the residual stream.
    """
    if vectors.shape[1] != model.cfg.d_model:
        raise ShapeMismatch(
            f"the vectors have width {vectors.shape[1]}, but {hooked.model_name(model)} has d_model "
            f"{model.cfg.d_model}; build them on this model"
        )
    added = (scale * vectors).to(model.cfg.device, model.cfg.dtype)
    if bridge.is_bridge(model):
        last = tokens.prompts.shape[1] - 1
        rows = [[add_to_residual(layer, vector, last)] for layer in range(model.cfg.n_layers) for vector in added]
        return run_hooked(model, tokens, rows, description="steering layer by layer")

    def branch(junction: Junction, rows: range) -> Rows:
        steered_rows = junction.after.repeat(1, len(rows), 1, 1)
        steered_rows[:, :, 0] += added[rows.start : rows.stop]
        return steered_rows

    return branches.run_branches(
        model, tokens, branch, per_layer=len(vectors), memory=memory, description="steering at every layer"
    )


def instruction_vector(
    model: HookedTransformer,
    task: Task,
    *,
    heads: Sequence[Head] | None = None,
    effects: HeadEffects | None = None,
    layer: int | None = None,
    memory: int = 2 * GIB,
    settings: Settings | None = None,
    seed: int = 0,
) -> InstructionVector:
    """The instruction vector of a task, with the layer to add it at.

    Args:
        heads: The heads that write it; by default the ten of largest AIE.
        effects: Measured effects; their settings and mean outputs are used. Measured first if not given and `heads`
            is not given, either.
        layer: By default the one at which adding the vector to zero-shot prompts of the validation pairs
            is right most often.

    Raises:
        IvlensError: a head or layer that the model does not have, or effects of another task or model.
    """
    if effects is None and heads is None:
        effects = indirect_effects(model, task, seed=seed, memory=memory)
    settings = effects.settings if effects else settings or Settings(seed=seed)
    digest = hooked.weight_digest(model)
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
    if layer is None:
        pairs = task.split(shots=settings.shots, seed=settings.seed).validation
        tokens = tokenize(model, zero_shot(pairs, template=settings.template))
        layer = steer_every_layer(model, tokens, vector[None], memory=memory).best_layer(0, of=1)
    check_layer(layer, model.cfg.n_layers)
    if not bool(vector.isfinite().all()):
        raise ModelError("the vector is NaN or infinite; check the model's weights")
    return InstructionVector(
        vector=vector,
        heads=chosen,
        layer=layer,
        mean_z=z,
        aie=effects.aie if effects else None,
        settings=settings,
        task=task.name,
        task_digest=task.digest,
        model=hooked.model_name(model),
        model_digest=digest,
    )
