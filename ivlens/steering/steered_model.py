"""Does adding the vector of a task make the model do the task?

Steering adds a vector, `scale` times, to the residual stream after one block (`resid_post`) at the last prompt token:
the site of the evaluation of Todd et al. 2024, arXiv:2310.15213. Layer and scale are chosen on validation pairs (see
`steering.search`); a result at the chosen place is measured on evaluation pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from ivlens.errors import IvlensError
from ivlens.forward.prompt_end import PromptEnds
from ivlens.models import loader
from ivlens.patching.activations import check_mean_z
from ivlens.patching.hooks import NamedHook, add_to_residual, set_head
from ivlens.vectors.head_writing import check_layer, check_scale, check_width
from ivlens.vectors.instruction_vector import InstructionVector

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Site = Literal["resid_post", "distributed"]


@contextmanager
def steered(
    model: HookedTransformer | str | Path,
    vector: InstructionVector | str | Path,
    *,
    scale: float | None = None,
    layer: int | None = None,
    site: Site = "resid_post",
    position: int | Sequence[int] = -1,
    every_token: bool = False,
) -> Iterator[HookedTransformer]:
    """Steer every run inside the `with` block; leaves no trace, also on an exception.

    Steered is a token of the prompt, whatever is read behind it: answers that ivlens reads along, pads, tokens that
    `model.generate` wrote. Tokens that one hands to the model oneself are all taken for the prompt. Of `with` blocks
    inside one another each adds its own vector; what is added at one place is summed.

    Args:
        model: Also by what `ivlens.load` takes: a name, a path; the block is given the model that was loaded.
        vector: Also by the path of its file.
        scale: Factor of the vector; negative takes the task away. By default the vector's own, which was chosen with
            its layer; with `distributed` 1, since the vector's own was chosen for adding the sum.
        layer: After which block to add it; the vector's own layer by default. `distributed` has no such block.
        site: `resid_post`: add the vector at one layer. `distributed`: put each head's own mean output, times `scale`,
            back at its own layer; with a scale of 1 that is to patch the heads.
        position: Which token of each prompt is steered, or which tokens, pads not counted; -1 is the last one.
        every_token: Steer at every token behind the first of them, too: those of the answer, and new ones while
            generating.

    Raises:
        ShapeMismatch: the vector is from a model of other width or heads.
        IvlensError: no layer, a scale that is not finite, `position` is no number and no numbers, or a prompt has no
            token there.

    >>> bare = ivlens.prompts.zero_shot(task.pairs[:20])
    >>> with ivlens.steered(model, vector):
    ...     steered = ivlens.ask(model, bare)
    >>> ivlens.ask(model, bare).accuracy.mean, steered.accuracy.mean
    (0.05, 1.0)
    """
    model, vector = loader.as_model(model), as_vector(vector)
    scale = scale if scale is not None else vector.scale if site == "resid_post" else 1.0
    check_scale(scale)
    if site == "distributed" and layer is not None:
        raise IvlensError(
            f"layer is {layer}, but site='distributed' puts each head's output back at its own layer; leave layer out"
        )
    if site == "distributed":
        layers, hooks = _distributed_hooks(model, vector, scale)
    elif site == "resid_post":
        layers, hooks = _resid_hooks(model, vector, scale, layer)
    else:
        raise IvlensError(f"site is {site!r}; it must be 'resid_post' or 'distributed'")
    ends = PromptEnds(model, positions=_positions(position), every_token=every_token)

    def steer(hook_fn: Any, activation: Tensor, hook: Any) -> Tensor | None:
        columns = ends.columns(*activation.shape[:2])
        return None if columns is None else hook_fn(activation, hook, at=columns.to(activation.device))

    named: list[Any] = [(name, partial(steer, hook_fn)) for name, hook_fn in hooks]
    with ends.followed(layers[0]), model.hooks(fwd_hooks=named):
        yield model


def _positions(position: int | Sequence[int]) -> tuple[int, ...]:
    found = tuple(position) if isinstance(position, Sequence) and not isinstance(position, str) else (position,)
    if not found or any(type(one) is not int for one in found):
        raise IvlensError(f"position is {position!r}; give the number of a token, such as -1, or several")
    return found  # pyright: ignore[reportReturnType]


def as_vector(vector: InstructionVector | str | Path) -> InstructionVector:
    """A vector that is given as such, or by its file; raises IvlensError for anything else."""
    if isinstance(vector, str | Path):
        return InstructionVector.load(vector)
    if not isinstance(vector, InstructionVector):
        raise IvlensError(
            f"a {type(vector).__name__} is no vector; give what ivlens.instruction_vector returns, or the path of its "
            "file"
        )
    return vector


def _resid_hooks(
    model: HookedTransformer, vector: InstructionVector, scale: float, layer: int | None
) -> tuple[list[int], list[NamedHook]]:
    layer = vector.layer if layer is None else layer
    if layer is None:
        raise IvlensError("the vector has no layer yet; pass layer=..., or take vector.at(layer)")
    check_layer(layer, model.cfg.n_layers)
    check_width(vector.vector, vector.model or vector.task, model, remedy="build the vector on this model")
    added = (scale * vector.vector).to(model.cfg.device, model.cfg.dtype)
    return [layer], [add_to_residual(layer, added)]


def _distributed_hooks(
    model: HookedTransformer, vector: InstructionVector, scale: float
) -> tuple[list[int], list[NamedHook]]:
    mean_z = vector.mean_z
    if mean_z is None or not vector.heads:
        raise IvlensError(f"the vector of {vector.task} comes without its heads' mean outputs; take site='resid_post'")
    check_mean_z(
        model, mean_z, what=f"the vector of {vector.model} has mean_z", remedy="build the vector on this model"
    )
    layers = sorted({head.layer for head in vector.heads})
    return layers, [set_head(head, scale * mean_z[head]) for head in vector.heads]
