"""How well does each vector steer: the instruction vector, and every control beside it?

Each candidate vector is added to zero-shot prompts at every layer. Its own layer is chosen on validation pairs; what is
reported comes from evaluation pairs. Controls choose their layers in the same way, so that none is put at a
disadvantage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ivlens.datasets.task import Task
from ivlens.measures import interval
from ivlens.patching.head_effects import HeadEffects
from ivlens.prompts.tokens import Tokens
from ivlens.shapes import GIB, Head, Residual
from ivlens.vectors import controls
from ivlens.vectors.head_writing import write_vector
from ivlens.vectors.steering import steer_every_layer

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

VALUES = (
    *("accuracy", "accuracy_low", "accuracy_high"),
    *("probability", "probability_low", "probability_high", "prompts"),
)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A vector on trial."""

    kind: str
    """`chosen`, `random`, `bottom` or `other-task`."""
    n_heads: int
    vector: Residual


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What every candidate did at every layer, on evaluation pairs."""

    candidates: list[Candidate]
    match: Bool[Tensor, "prompt layer candidate"]
    """Would greedy decoding write the answer?"""
    first: Float[Tensor, "prompt layer candidate"]
    """Probability of the first answer token."""
    layers: list[int]
    """Per candidate, the layer at which it did best on validation pairs."""

    def by_layer(self, n_heads: int, *, seed: int = 0) -> pd.DataFrame:
        """Accuracy and probability by layer and kind of head, for vectors of `n_heads` heads."""
        lines = []
        for kind, numbers in self._groups(n_heads):
            for layer in range(self.match.shape[1]):
                values = summary(self.match[:, layer, numbers], self.first[:, layer, numbers], seed=seed)
                lines.append(
                    {"heads": kind, "n_heads": n_heads, "layer": layer, "scale": 1.0, "draws": len(numbers), **values}
                )
        return pd.DataFrame(lines)

    def by_number(self, *, seed: int = 0) -> pd.DataFrame:
        """Accuracy and probability by number and kind of heads, each vector at its own layer."""
        lines = []
        for n_heads in sorted({candidate.n_heads for candidate in self.candidates}):
            for kind, numbers in self._groups(n_heads):
                at = [self.layers[number] for number in numbers]
                values = summary(self.match[:, at, numbers], self.first[:, at, numbers], seed=seed)
                layers = " ".join(map(str, at))
                lines.append({"heads": kind, "n_heads": n_heads, "layers": layers, "draws": len(numbers), **values})
        return pd.DataFrame(lines)

    def _groups(self, n_heads: int) -> Iterator[tuple[str, list[int]]]:
        numbered = [(c.kind, i) for i, c in enumerate(self.candidates) if c.n_heads == n_heads]
        for kind, group in groupby(numbered, key=lambda entry: entry[0]):
            yield kind, [number for _, number in group]


def summary(
    match: Bool[Tensor, "prompt *draw"], first: Float[Tensor, "prompt *draw"], *, seed: int = 0
) -> dict[str, Any]:
    """Accuracy and probability over prompts, with 95 % intervals over prompts; draws are averaged per prompt first."""
    if not len(match):
        return dict.fromkeys(VALUES, float("nan")) | {"prompts": 0}
    accuracy = interval(match.double().reshape(len(match), -1).mean(1), seed=seed)
    probability = interval(first.double().reshape(len(first), -1).mean(1), seed=seed)
    return dict(zip(VALUES, (*accuracy, *probability, len(match)), strict=True))


def make_candidates(
    model: HookedTransformer,
    effects: HeadEffects,
    *,
    counts: Sequence[int],
    top: int,
    draws: int,
    others: Sequence[Task],
    heads: Sequence[Head] | None = None,
) -> list[Candidate]:
    """The vectors of the first 1, 2, 5 ... heads beside random ones, and for `top` heads all other controls.

    Controls have the norm of the vector of as many chosen heads.

    Args:
        heads: At least `top`, the first ones first; ranked by AIE unless given.
    """
    ranked = effects.ranked() if heads is None else list(heads)
    seed, found = effects.settings.seed, []
    for k in sorted({*counts, top}):
        vector = write_vector(model, effects.mean_z, ranked[:k])
        norm = float(vector.norm())
        beside = {"random": controls.random_heads(effects, k, draws=draws, seed=seed, chosen=ranked[:k])}
        if k == top:
            beside["bottom"] = controls.bottom_heads(effects, k, draws=draws, seed=seed, chosen=heads or ())
        found.append(Candidate(kind="chosen", n_heads=k, vector=vector))
        for kind, sets in beside.items():
            vectors = controls.write_control_vectors(model, effects, sets, norm=norm)
            found += [Candidate(kind=kind, n_heads=k, vector=control) for control in vectors]
        if k == top:
            elsewhere = controls.other_task_vectors(model, ranked[:k], others, effects.settings, norm=norm)
            found += [Candidate(kind="other-task", n_heads=k, vector=control) for control in elsewhere.values()]
    return found


def run_trials(
    model: HookedTransformer,
    candidates: list[Candidate],
    *,
    validation: Tokens,
    evaluation: Tokens,
    memory: int = 2 * GIB,
) -> Trials:
    """Add every candidate at every layer, to validation prompts to choose its layer, and to evaluation prompts."""
    vectors = torch.stack([candidate.vector for candidate in candidates])
    grid = (model.cfg.n_layers, len(candidates))
    chosen = steer_every_layer(model, validation, vectors, memory=memory)
    found = steer_every_layer(model, evaluation, vectors, memory=memory)
    return Trials(
        candidates=candidates,
        match=found.match[:, 1:].unflatten(1, grid).cpu(),
        first=found.first[:, 1:].unflatten(1, grid).cpu(),
        layers=[chosen.best_layer(number, of=len(candidates)) for number in range(len(candidates))],
    )
