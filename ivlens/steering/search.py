"""At which layer, and at what length, does a vector do most?

Layer and scale are chosen together, on validation prompts. A vector that is too short beside the residual stream does
nothing and one that is too long breaks the model, so the scales are powers of two over a range of 32. A coarse grid
comes first (every layer at scale 1, every other layer at scales 4 and 16), then the neighbours of its best place: about
2 n_layers + 8 places in place of 6 n_layers. Every vector, controls too, is searched in this way. Where that is too
much work, a sparser grid is tried on a few prompts, and only the best places on all of them (`search_in_stages`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ivlens.prompts.tokens import Tokens
from ivlens.shapes import GIB
from ivlens.steering.rows import steer_by_length, steer_rows
from ivlens.vectors.head_writing import check_layer, check_scale

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

SCALES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Lengths that are tried, as multiples of what the heads write."""
COARSE = (4.0, 16.0)
"""Tried at every other layer first; scale 1 is tried at every one."""
NEIGHBOURS = 8
"""Places around the best of the first grid, at most."""
FINALISTS, FINALISTS_AT_1 = 3, 2
"""Those tried on all prompts where the grid is on a few: the best ones, and of others the best at scale 1."""


class Place(NamedTuple):
    """After which block a vector is added, and how many times."""

    layer: int
    scale: float


class Tried(NamedTuple):
    """What a vector did at a place."""

    accuracy: float
    probability: float
    """Mean probability of the first answer token."""


Try = Callable[[Sequence[tuple[int, Place]]], Sequence[Tried]]
"""Tries vectors, by number, at places."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """Every place that was tried of every vector; NaN where none was."""

    scales: tuple[float, ...]
    accuracy: Float[Tensor, "vector layer scale"]
    probability: Float[Tensor, "vector layer scale"]
    final: Bool[Tensor, "vector layer scale"] | None = None
    """Places that were tried on all prompts and so can be the best; all that were tried, where it is None."""

    def best(self, number: int = 0, *, scale: float | None = None) -> Place:
        """Where vector `number` was right most often (at one scale, if given).

        Among places of equal accuracy, the one where the answer's first token is most probable.
        """
        return next(place for place in self._ranked(number, scale) if self.is_final(number, place))

    def is_final(self, number: int, place: Place) -> bool:
        """Whether a vector was tried at a place on all prompts."""
        cell = self.cell(number, place)
        tried = ~self.accuracy[cell].isnan() if self.final is None else self.final[cell]
        return bool(tried)

    def finalists(self, number: int) -> list[Place]:
        """The best places of those tried so far, and the best others at scale 1."""
        best = self._ranked(number)[:FINALISTS]
        others = [place for place in self._ranked(number, 1.0) if place not in best]
        return best + others[:FINALISTS_AT_1]

    def cell(self, number: int, place: Place) -> tuple[int, int, int]:
        return number, place.layer, self.scales.index(place.scale)

    def _ranked(self, number: int, scale: float | None = None) -> list[Place]:
        """Places that were tried, the best first."""
        accuracy, probability = self.accuracy[number], self.probability[number]
        columns = range(len(self.scales)) if scale is None else [self.scales.index(scale)]
        tried = [
            (float(accuracy[layer, column]), float(probability[layer, column]), -layer, -column)
            for layer in range(len(accuracy))
            for column in columns
            if not math.isnan(float(accuracy[layer, column]))
        ]
        return [Place(-layer, self.scales[-column]) for _, _, layer, column in sorted(tried, reverse=True)]


def search(
    attempt: Try, *, vectors: int, n_layers: int, layer: int | None = None, scale: float | None = None
) -> Search:
    """Try places until the best one of each vector has been surrounded.

    Args:
        attempt: Tries vectors at places.
        vectors: How many there are.
        layer, scale: Fixed, if given: only the other is searched.

    Raises:
        IvlensError: there is no such layer, or the scale is not finite.
    """
    if layer is not None:
        check_layer(layer, n_layers)
    if scale is not None:
        check_scale(scale)
    scales = SCALES if scale is None else (float(scale),)
    found = _nothing_tried(vectors, n_layers, scales)
    if scale is not None or layer is not None:
        layers = range(n_layers) if layer is None else [layer]
        first = [Place(one, factor) for one in layers for factor in scales]
    else:
        first = _coarse(n_layers, 1)
    _attempt(attempt, [(number, place) for number in range(vectors) for place in first], found)
    if scale is None and layer is None:
        _attempt(attempt, [(n, place) for n in range(vectors) for place in _around(found, n)], found)
    return found


def search_in_stages(few: Try, every: Try, *, vectors: int, n_layers: int, stride: int) -> Search:
    """Try a grid and the places nearest to its best on a few prompts, then the best of these on all prompts.

    Every vector is tried at as many places in each stage.

    Args:
        few, every: Try vectors at places, on a few prompts and on all of them.
        stride: Every how many layers the grid has scale 1; the coarse scales stand at every other of these.
    """
    found = _nothing_tried(vectors, n_layers, SCALES)
    _attempt(few, [(number, place) for number in range(vectors) for place in _coarse(n_layers, stride)], found)
    _attempt(few, [(number, place) for number in range(vectors) for place in _nearest(found, number)], found)
    kept = [(number, place) for number in range(vectors) for place in found.finalists(number)]
    _attempt(every, kept, found)
    final = torch.zeros_like(found.accuracy, dtype=torch.bool)
    for number, place in kept:
        final[found.cell(number, place)] = True
    return replace(found, final=final)


def count_coarse(n_layers: int, stride: int) -> int:
    """How many places the first grid has."""
    return len(_coarse(n_layers, stride))


def _coarse(n_layers: int, stride: int) -> list[Place]:
    first = [Place(one, 1.0) for one in range(0, n_layers, stride)]
    return first + [Place(one, factor) for one in range(0, n_layers, 2 * stride) for factor in COARSE]


def _nothing_tried(vectors: int, n_layers: int, scales: tuple[float, ...]) -> Search:
    nothing = torch.full((vectors, n_layers, len(scales)), torch.nan, dtype=torch.float64)
    return Search(scales=scales, accuracy=nothing, probability=nothing.clone())


def complete(attempt: Try, found: Search, number: int = 0) -> None:
    """Try the other places of one vector, too: for a picture of all of them, which changes no choice made before."""
    left = found.accuracy[number].isnan().nonzero().tolist()
    _attempt(attempt, [(number, Place(layer, found.scales[column])) for layer, column in left], found)


def _attempt(attempt: Try, asked: Sequence[tuple[int, Place]], found: Search) -> None:
    for (number, place), tried in zip(asked, attempt(asked) if asked else (), strict=True):
        cell = found.cell(number, place)
        found.accuracy[cell], found.probability[cell] = tried


def _nearest(found: Search, number: int) -> list[Place]:
    """Of the places that were not tried, those nearest to the best one: as many for every vector."""
    layer, scale = found.best(number)
    column = found.scales.index(scale)
    untried = found.accuracy[number].isnan().nonzero().tolist()
    nearest = sorted(untried, key=lambda cell: ((cell[0] - layer) ** 2 + (cell[1] - column) ** 2, cell))
    return [Place(one, found.scales[other]) for one, other in nearest[:NEIGHBOURS]]


def _around(found: Search, number: int) -> list[Place]:
    """Neighbours of the best place that were not tried."""
    layer, scale = found.best(number)
    column = found.scales.index(scale)
    layers = range(max(0, layer - 1), min(found.accuracy.shape[1], layer + 2))
    columns = range(max(0, column - 1), min(len(found.scales), column + 2))
    near = [(one, other) for one in layers for other in columns]
    return [Place(one, found.scales[other]) for one, other in near if found.accuracy[number, one, other].isnan()]


def attempts(
    model: HookedTransformer,
    tokens: Tokens,
    vectors: Float[Tensor, "vector d_model"],
    *,
    memory: int = 2 * GIB,
    by_length: bool = False,
) -> Try:
    """Tries vectors on prompts, all places of a call in one pass (or one for each length of answers)."""
    steer = steer_by_length if by_length else steer_rows

    def attempt(asked: Sequence[tuple[int, Place]]) -> list[Tried]:
        numbers = [number for number, _ in asked]
        scales = torch.tensor([place.scale for _, place in asked], dtype=vectors.dtype, device=vectors.device)
        found = steer(
            model,
            tokens,
            scales[:, None] * vectors[numbers],
            [place.layer for _, place in asked],
            memory=memory,
            description="choosing layer and scale",
        )
        accuracy, probability = (values[:, 1:].double().mean(0).tolist() for values in (found.match, found.first))
        return list(map(Tried, accuracy, probability))

    return attempt


def search_places(
    model: HookedTransformer,
    tokens: Tokens,
    vectors: Float[Tensor, "vector d_model"],
    *,
    layer: int | None = None,
    scale: float | None = None,
    memory: int = 2 * GIB,
) -> Search:
    """Search layer and scale of every vector on validation prompts, in two passes over them.

    Args:
        tokens: Validation prompts; what is reported at the place found is to be measured on others.
        layer, scale: Fixed, if given.

    Raises:
        ShapeMismatch: the vectors have another width than the residual stream.
        IvlensError: there is no such layer, or the scale is not finite.
    """
    attempt = attempts(model, tokens, vectors, memory=memory)
    return search(attempt, vectors=len(vectors), n_layers=model.cfg.n_layers, layer=layer, scale=scale)
