"""What becomes of the answers under many steerings at once: every vector at every layer, or each at its own?

All rows share one pass: each leaves the unsteered run behind the block where its vector is added (see `branches`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.errors import ShapeMismatch
from ivlens.forward.rows import Rows
from ivlens.forward.token_batches import by_answer_length
from ivlens.models import hooked
from ivlens.patching import branches
from ivlens.patching.branches import Answers, Junction
from ivlens.prompts.tokens import Tokens
from ivlens.shapes import GIB
from ivlens.vectors.head_writing import check_layer

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


def steer_rows(
    model: HookedTransformer,
    tokens: Tokens,
    vectors: Float[Tensor, "row d_model"],
    layers: Sequence[int],
    *,
    memory: int = 2 * GIB,
    description: str = "steering",
) -> Answers:
    """What becomes of the answers under each of many steerings, in one pass per batch of prompts.

    Args:
        vectors: What is added at the last prompt token, one a row.
        layers: After which block each of them is added.
        memory: Bytes that may be taken beside the model's weights.

    Returns:
        Answers with rows: 0 unsteered, then 1 + i for the i-th vector.

    Raises:
        ShapeMismatch: the vectors have another width than the residual stream.
        IvlensError: there is no such layer.
    """
    if vectors.shape[1] != model.cfg.d_model:
        raise ShapeMismatch(
            f"the vectors have width {vectors.shape[1]}, but {hooked.model_name(model)} has d_model "
            f"{model.cfg.d_model}; build them on this model"
        )
    for layer in set(layers):
        check_layer(layer, model.cfg.n_layers)
    added = vectors.to(model.cfg.device, model.cfg.dtype)
    # Rows leave the unsteered run from the lowest layer up.
    order = sorted(range(len(layers)), key=lambda row: layers[row])
    counts = [sum(one == layer for one in layers) for layer in range(model.cfg.n_layers)]
    first = [sum(counts[:layer]) for layer in range(model.cfg.n_layers)]

    def branch(junction: Junction, rows: range) -> Rows:
        own = [order[first[junction.layer] + row] for row in rows]
        steered_rows = junction.after.repeat(1, len(rows), 1, 1)
        steered_rows[:, :, 0] += added[own].to(steered_rows.device)
        return steered_rows

    found = branches.run_branches(
        model,
        tokens,
        branch,
        counts=counts,
        inputs=[added[order]],
        memory=memory,
        description=description,
    )
    places = {row: place for place, row in enumerate(order, start=1)}
    return found.rows([0, *(places[row] for row in range(len(layers)))])


def steer_by_length(
    model: HookedTransformer,
    tokens: Tokens,
    vectors: Float[Tensor, "row d_model"],
    layers: Sequence[int],
    *,
    memory: int = 2 * GIB,
    description: str = "steering",
) -> Answers:
    """The same as `steer_rows`, prompts of each length of answers by themselves."""
    groups = by_answer_length(tokens)
    parts = [
        steer_rows(model, tokens[group], vectors, layers, memory=memory, description=description) for group in groups
    ]
    return Answers.joined(parts, dim=0).prompts(torch.cat(groups).argsort())


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
    n_layers = model.cfg.n_layers
    layers = [layer for layer in range(n_layers) for _ in vectors]
    description = "steering at every layer"
    return steer_rows(
        model, tokens, scale * vectors.repeat(n_layers, 1), layers, memory=memory, description=description
    )
