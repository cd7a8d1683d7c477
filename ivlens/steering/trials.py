"""How well does each vector steer: the instruction vector, and every control beside it?

Each candidate vector is added to zero-shot prompts. Its own layer and scale are chosen on validation pairs; what is
reported comes from evaluation pairs: at the chosen place, and at scale 1 beside it. Controls choose their places in
the same way, with as many tries, so that none is put at a disadvantage.
"""

from __future__ import annotations

from collections import Counter
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
from ivlens.patching.activations import residual_norms
from ivlens.patching.branches import Answers
from ivlens.patching.head_effects import HeadEffects
from ivlens.prompts.tokens import Tokens
from ivlens.shapes import GIB, Head, Residual
from ivlens.steering import controls
from ivlens.steering import search as place_search
from ivlens.steering.rows import steer_rows
from ivlens.steering.search import Place, Search
from ivlens.vectors.head_writing import write_vector

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

VALUES = (
    *("accuracy", "accuracy_low", "accuracy_high"),
    *("probability", "probability_low", "probability_high", "prompts"),
)
FEW_DRAWS = 5
"""Of every control but the random heads that the vector itself is held against, at most."""
SHARE = (0.0, 1.0)
"""What an accuracy or a probability cannot leave."""
DRAWS = ("heads", "n_heads", "draw", "layer", "scale", "accuracy", "probability")
BY_QUERY = ("query", "heads", "draw", "accuracy", "probability")
PLACES = ("layer", "scale", "share", "accuracy", "probability", "prompts", "chosen")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A vector on trial."""

    kind: str
    """`chosen`, `random`, `low-AIE`, `gaussian` or `other-task`."""
    n_heads: int
    vector: Residual


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What every candidate did on evaluation pairs, at places that were chosen on validation pairs."""

    candidates: list[Candidate]
    found: Answers
    """On evaluation pairs, a row a candidate and place of `rows`."""
    rows: dict[tuple[int, Place], int]
    """Number of each row, by number of the candidate and place."""
    places: list[Place]
    """Per candidate, where it did best on validation pairs."""
    unscaled: list[Place]
    """Per candidate, the best place of those at scale 1."""
    validated: Search
    """What every candidate did at the places that were tried on validation pairs; all places of the chosen vector."""
    norms: Float[Tensor, " layer"]
    """Mean length of the residual stream after each block, at the last token of validation prompts."""
    n_validation: int

    def by_layer(self, n_heads: int) -> pd.DataFrame:
        """Accuracy and probability by layer and kind of head, for vectors of `n_heads` heads, each at its own scale."""
        lines = []
        for kind, numbers in self._groups(n_heads):
            scales = {self.places[number].scale for number in numbers}
            common = scales.pop() if len(scales) == 1 else float("nan")
            for layer in range(len(self.norms)):
                values = self._values([(n, Place(layer, self.places[n].scale)) for n in numbers])
                about = {"heads": kind, "n_heads": n_heads, "layer": layer, "scale": common, "draws": len(numbers)}
                lines.append({**about, **values})
        return pd.DataFrame(lines)

    def by_number(self, *, unscaled: bool = False) -> pd.DataFrame:
        """Accuracy and probability by number and kind of heads, each vector at its own place (or at scale 1)."""
        lines, places = [], self.unscaled if unscaled else self.places
        for n_heads in sorted({candidate.n_heads for candidate in self.candidates}):
            for kind, numbers in self._groups(n_heads):
                at = [places[number] for number in numbers]
                about = {
                    "heads": kind,
                    "n_heads": n_heads,
                    "layers": " ".join(str(place.layer) for place in at),
                    "scales": " ".join(f"{place.scale:g}" for place in at),
                    "draws": len(numbers),
                }
                lines.append({**about, **self._values(list(zip(numbers, at, strict=True)))})
        return pd.DataFrame(lines)

    def by_place(self, n_heads: int) -> pd.DataFrame:
        """Every place of the chosen vector of `n_heads` heads on validation pairs, `PLACES`.

        `share` is the length of what is added, as a share of the residual stream's there.
        """
        (number,) = dict(self._groups(n_heads))["chosen"]
        norm, lines = float(self.candidates[number].vector.norm()), []
        for layer, row in enumerate(self.validated.accuracy[number].tolist()):
            for column, accuracy in enumerate(row):
                place = Place(layer, self.validated.scales[column])
                share = place.scale * norm / float(self.norms[layer])
                probability = float(self.validated.probability[number, layer, column])
                lines.append((*place, share, accuracy, probability, self.n_validation, place == self.places[number]))
        return pd.DataFrame(lines, columns=list(PLACES))

    def by_draw(self) -> pd.DataFrame:
        """Every candidate by itself at its own place, `DRAWS`."""
        lines, seen = [], Counter[tuple[str, int]]()
        for number, (candidate, place) in enumerate(zip(self.candidates, self.places, strict=True)):
            key = candidate.kind, candidate.n_heads
            lines.append((*key, seen[key], *place, *self._means(number, place)))
            seen[key] += 1
        return pd.DataFrame(lines, columns=list(DRAWS))

    def draws_by_layer(self, n_heads: int) -> pd.DataFrame:
        """Every candidate of `n_heads` heads by itself at every layer, at its own scale, `DRAWS`."""
        lines = []
        for kind, numbers in self._groups(n_heads):
            for draw, number in enumerate(numbers):
                for layer in range(len(self.norms)):
                    place = Place(layer, self.places[number].scale)
                    lines.append((kind, n_heads, draw, *place, *self._means(number, place)))
        return pd.DataFrame(lines, columns=list(DRAWS))

    def by_query(self, n_heads: int) -> pd.DataFrame:
        """The chosen vector and every random one at its own place, query by query, `BY_QUERY`."""
        parts = []
        for kind, numbers in self._groups(n_heads):
            for draw, number in enumerate(numbers if kind in ("chosen", "random") else ()):
                row = self.rows[number, self.places[number]]
                match, first = (values[:, row].cpu().numpy() for values in (self.found.match, self.found.first))
                about = {"query": range(len(match)), "heads": kind, "draw": draw}
                parts.append(pd.DataFrame({**about, "accuracy": match, "probability": first}))
        return pd.concat(parts, ignore_index=True)

    def _means(self, number: int, place: Place) -> tuple[float, float]:
        row = self.rows[number, place]
        return float(self.found.match[:, row].double().mean()), float(self.found.first[:, row].double().mean())

    def _values(self, at: Sequence[tuple[int, Place]]) -> dict[str, Any]:
        rows = [self.rows[one] for one in at]
        return summary(self.found.match[:, rows], self.found.first[:, rows])

    def _groups(self, n_heads: int) -> Iterator[tuple[str, list[int]]]:
        numbered = [(c.kind, i) for i, c in enumerate(self.candidates) if c.n_heads == n_heads]
        for kind, group in groupby(numbered, key=lambda entry: entry[0]):
            yield kind, [number for _, number in group]


def summary(
    right: Bool[Tensor, "prompt *draw"] | Float[Tensor, "prompt *draw"], first: Float[Tensor, "prompt *draw"]
) -> dict[str, Any]:
    """Accuracy and probability, with 95 % intervals over prompts and, where there are several, over draws."""
    if not len(right):
        return dict.fromkeys(VALUES, float("nan")) | {"prompts": 0}
    parts: list[float] = []
    for values in (right.double(), first.double()):
        parts += interval(values, within=SHARE)
    return dict(zip(VALUES, (*parts, len(right)), strict=True))


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
        few = min(draws, FEW_DRAWS)
        n_draws = draws if k == top else few
        beside = {"random": controls.random_heads(effects, k, draws=n_draws, seed=seed, chosen=ranked[:k])}
        if k == top:
            beside["low-AIE"] = controls.low_aie_heads(effects, k, draws=few, seed=seed, chosen=heads or ())
        found.append(Candidate(kind="chosen", n_heads=k, vector=vector))
        for kind, sets in beside.items():
            vectors = controls.write_control_vectors(model, effects, sets, norm=norm)
            found += [Candidate(kind=kind, n_heads=k, vector=control) for control in vectors]
        if k == top:
            noise = controls.gaussians(vector, draws=few, seed=seed, norm=norm)
            found += [Candidate(kind="gaussian", n_heads=k, vector=control) for control in noise]
            elsewhere = controls.other_task_vectors(model, ranked[:k], others, effects.settings, norm=norm)
            found += [Candidate(kind="other-task", n_heads=k, vector=control) for control in elsewhere.values()]
    return found


def run_trials(
    model: HookedTransformer,
    candidates: list[Candidate],
    *,
    validation: Tokens,
    evaluation: Tokens,
    top: int,
    memory: int = 2 * GIB,
) -> Trials:
    """Choose layer and scale of every candidate on validation prompts, and try it there on evaluation prompts.

    Args:
        top: Of candidates with this many heads all layers are tried on evaluation prompts, too, and all places of the
            chosen one on validation prompts.
    """
    vectors = torch.stack([candidate.vector for candidate in candidates])
    attempt = place_search.attempts(model, validation, vectors, memory=memory)
    search = place_search.search(attempt, vectors=len(candidates), n_layers=model.cfg.n_layers)
    shown = [number for number, candidate in enumerate(candidates) if candidate.n_heads == top]
    places = [search.best(number) for number in range(len(candidates))]
    unscaled = [search.best(number, scale=1.0) for number in range(len(candidates))]
    place_search.complete(attempt, search, next(n for n in shown if candidates[n].kind == "chosen"))
    asked = [*enumerate(places), *enumerate(unscaled)]
    asked += [(number, Place(layer, places[number].scale)) for number in shown for layer in range(model.cfg.n_layers)]
    # Several of them are often the same.
    rows = {one: row for row, one in enumerate(dict.fromkeys(asked))}
    scales = torch.tensor([place.scale for _, place in rows], dtype=vectors.dtype, device=vectors.device)
    found = steer_rows(
        model,
        evaluation,
        scales[:, None] * vectors[[number for number, _ in rows]],
        [place.layer for _, place in rows],
        memory=memory,
        description="steering on evaluation pairs",
    )
    return Trials(
        candidates=candidates,
        found=found.rows(range(1, 1 + len(rows))),
        rows=rows,
        places=places,
        unscaled=unscaled,
        validated=search,
        norms=residual_norms(model, validation),
        n_validation=len(validation),
    )
