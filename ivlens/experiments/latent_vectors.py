"""Which vectors may carry a task, each at the layer and length at which it validates best, beside its control?

The mean difference of the stream is taken apart: what of it lies in the span of what the chosen heads write on average,
on clean prompts and on bare queries, and what lies outside. Heads that write behind the block where it is read have no
part in it, and are left out of the span.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.attribution.trained_vector import train_vector
from ivlens.attribution.vector_comparison import best_of_layers, mean_difference
from ivlens.experiments.findings import CHOSEN, RANDOM
from ivlens.experiments.settings import STEPS
from ivlens.experiments.work import Work
from ivlens.kept_batches import keep_batch
from ivlens.patching.activations import mean_z, path_to_residual
from ivlens.patching.effects import clean_prompts
from ivlens.patching.head_effects import HeadEffects
from ivlens.prompts.tokens import Tokens
from ivlens.shapes import Head, MeanZ, Residual
from ivlens.steering.controls import draw_heads, with_norm
from ivlens.steering.rows import steer_by_length
from ivlens.steering.search import Place, search_places
from ivlens.vectors.head_writing import write_vector

HEAD_SUM, TRAINED, DIFFERENCE = "head sum", "trained vector", "mean difference"
INSIDE, OUTSIDE = "inside the heads' span", "outside of it"
"""The two parts of the mean difference."""
Span = Float[Tensor, "written d_model"]


class Placed(NamedTuple):
    """Vectors as they are added, each behind a block of its own; several draws of a control."""

    vectors: Float[Tensor, "draw d_model"]
    layers: list[int]


class Latents(NamedTuple):
    """What was made, and how much of the mean difference is in the span of heads."""

    placed: dict[tuple[str, str], Placed]
    """By name and kind."""
    inside: dict[str, Tensor]
    """By kind of heads: the share of the mean difference's squared length inside their span."""


def make_latents(work: Work, effects: HeadEffects, heads: Sequence[Head]) -> Latents:
    """Head sum, trained vector and mean difference, its parts inside and outside of the heads' span, and controls."""
    model, validation = work.model, work.bare(work.split.validation)
    random = [write_vector(model, effects.mean_z, drawn) for drawn in work.random_heads(heads)]
    summed = write_vector(model, effects.mean_z, heads)
    sums = torch.cat([summed[None], with_norm(torch.stack(random), float(summed.norm()))])
    found = search_places(model, validation, sums, memory=work.memory)
    placed = _by_kind(HEAD_SUM, sums, [found.best(number) for number in range(len(sums))])
    clean, bare = clean_prompts(model, work.task, work.settings)[1], work.bare(work.split.mean)
    by_layer = mean_difference(model, clean, bare).to(summed)
    place = best_of_layers(model, validation, by_layer, memory=work.memory)
    difference = by_layer[place.layer]
    placed |= _by_kind(DIFFERENCE, difference[None], [place])
    trained = [
        _train(work, layer=at.layer, norm=abs(at.scale) * float(vector.norm()))
        for at, vector in ((found.best(0), summed), (place, difference))
    ]
    placed[TRAINED, CHOSEN] = _best(work, validation, trained)
    means = (effects.mean_z, mean_z(model, bare))
    parts, inside = _parts(work, means, heads, difference, place.layer)
    for name, vectors in parts.items():
        searched = search_places(model, validation, vectors, layer=place.layer, memory=work.memory)
        placed |= _by_kind(name, vectors, [searched.best(number) for number in range(len(vectors))])
    return Latents(placed, inside)


def split_by_span(vector: Residual, span: Span) -> tuple[Residual, Residual]:
    """The part of a vector in the span of others, and what is left of it: their sum is the vector."""
    wide = span.double().cpu()
    _, lengths, directions = torch.linalg.svd(wide, full_matrices=False)
    basis = directions[lengths > lengths.max() * max(wide.shape) * torch.finfo(torch.float64).eps]
    inside = (basis.T @ (basis @ vector.double().cpu())).to(vector)
    return inside, vector - inside


def _parts(
    work: Work, means: Sequence[MeanZ], heads: Sequence[Head], difference: Residual, layer: int
) -> tuple[dict[str, Float[Tensor, "draw d_model"]], dict[str, Tensor]]:
    """Both parts at the length of the whole, of the chosen heads and of as many random ones; none where none can."""
    earlier = [head for head in heads if head.layer <= layer]
    if not earlier:
        return {}, {}
    asked, grid = work.asked, (layer + 1, work.grid[1])
    sets = [earlier, *draw_heads(grid, len(earlier), draws=asked.draws, seed=asked.seed, apart=heads)]
    both = [split_by_span(difference, torch.stack(list(_written(work, means, one)))) for one in sets]
    inside, outside = (torch.stack(vectors) for vectors in zip(*both, strict=True))
    shares = (inside.double().norm(dim=1) / difference.double().norm()).square().cpu()
    length = float(difference.norm())
    return (
        {INSIDE: with_norm(inside, length), OUTSIDE: with_norm(outside, length)},
        {CHOSEN: shares[:1], RANDOM: shares[1:]},
    )


def _written(work: Work, means: Sequence[MeanZ], heads: Sequence[Head]) -> Iterator[Residual]:
    for z in means:
        yield from (z[head] @ path_to_residual(work.model, head, z) for head in heads)


def _by_kind(name: str, vectors: Tensor, places: Sequence[Place]) -> dict[tuple[str, str], Placed]:
    """The first one is the chosen one, the others are draws of its control."""
    scales = torch.tensor([place.scale for place in places], dtype=vectors.dtype, device=vectors.device)
    added, layers = scales[:, None] * vectors, [place.layer for place in places]
    found = {(name, CHOSEN): Placed(added[:1], layers[:1])}
    return found | ({(name, RANDOM): Placed(added[1:], layers[1:])} if len(added) > 1 else {})


def _train(work: Work, *, layer: int, norm: float) -> Placed:
    def compute() -> dict[str, Tensor]:
        found = train_vector(work.model, work.task, layer=layer, norm=norm, steps=STEPS, settings=work.settings)
        return {"vector": found.vector}

    known = [torch.tensor([layer, norm], dtype=torch.float64)]
    kept = keep_batch("trained vector", known, compute, device=work.model.cfg.device)
    return Placed(kept["vector"][None], [layer])


def _best(work: Work, validation: Tokens, several: Sequence[Placed]) -> Placed:
    """The one of several vectors that validates best; of equal ones the one that makes answers more probable."""
    vectors, layers = torch.cat([one.vectors for one in several]), [one.layers[0] for one in several]
    found = steer_by_length(work.model, validation, vectors, layers, memory=work.memory)
    right, first = (values[:, 1:].double().mean(0).tolist() for values in (found.match, found.first))
    return several[max(range(len(several)), key=lambda number: (right[number], first[number], -number))]
