"""How well does each vector steer: the instruction vector, and every control beside it?

Each candidate vector is added to zero-shot prompts. Its own layer and scale are chosen on validation pairs; what is
reported comes from evaluation pairs: at the chosen place, and at scale 1 beside it. Controls choose their places in
the same way, with as many tries, so that none is put at a disadvantage. How much is tried, a `TrialPlan` says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ivlens.measures import interval
from ivlens.patching.activations import residual_norms
from ivlens.patching.branches import Answers
from ivlens.prompts.tokens import Tokens
from ivlens.shapes import GIB
from ivlens.steering import search as place_search
from ivlens.steering.controls import Candidate
from ivlens.steering.rows import steer_by_length, steer_rows
from ivlens.steering.search import Place, Search
from ivlens.steering.trial_plan import FEW_DRAWS as FEW_DRAWS
from ivlens.steering.trial_plan import TrialPlan

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

VALUES = (
    *("accuracy", "accuracy_low", "accuracy_high"),
    *("probability", "probability_low", "probability_high", "prompts"),
)
SHARE = (0.0, 1.0)
"""What an accuracy or a probability cannot leave."""
DRAWS = ("heads", "n_heads", "draw", "layer", "scale", "accuracy", "probability")
BY_QUERY = ("query", "heads", "draw", "accuracy", "probability")
PLACES = ("layer", "scale", "share", "accuracy", "probability", "prompts", "chosen")


Rows = dict[tuple[int, Place], int]
"""Number of each row, by number of the candidate and place."""


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What every candidate did on evaluation pairs, at places that were chosen on validation pairs."""

    candidates: list[Candidate]
    found: Answers
    """On evaluation pairs, a row a candidate and place of `rows`."""
    rows: Rows
    shown: Answers
    """At every layer and at scale 1, a row a candidate and place of `shown_rows`; perhaps of fewer pairs."""
    shown_rows: Rows
    places: list[Place]
    """Per candidate, where it did best on validation pairs."""
    unscaled: list[Place]
    """Per candidate, the best place of those at scale 1."""
    validated: Search
    """What every candidate did at the places that were tried on validation pairs; all places of the chosen vector."""
    norms: Float[Tensor, " layer"]
    """Mean length of the residual stream after each block, at the last token of validation prompts."""
    n_validation: int
    n_first: int
    """Validation prompts of places that were not tried on all of them."""

    def by_layer(self, n_heads: int) -> pd.DataFrame:
        """Accuracy and probability by layer and kind of head, for vectors of `n_heads` heads, each at its own scale."""
        lines = []
        for kind, numbers in self._at_every_layer(n_heads):
            scales = {self.places[number].scale for number in numbers}
            common = scales.pop() if len(scales) == 1 else float("nan")
            for layer in range(len(self.norms)):
                values = self._values([(n, Place(layer, self.places[n].scale)) for n in numbers], shown=True)
                about = {"heads": kind, "n_heads": n_heads, "layer": layer, "scale": common, "draws": len(numbers)}
                lines.append({**about, **values})
        return pd.DataFrame(lines)

    def by_number(self, *, unscaled: bool = False) -> pd.DataFrame:
        """Accuracy and probability by number and kind of heads, each vector at its own place (or at scale 1)."""
        lines, places = [], self.unscaled if unscaled else self.places
        for n_heads in sorted({candidate.n_heads for candidate in self.candidates}):
            for kind, numbers in self._groups(n_heads):
                if unscaled and (numbers[0], places[numbers[0]]) not in self.shown_rows:
                    continue
                at = [places[number] for number in numbers]
                about = {
                    "heads": kind,
                    "n_heads": n_heads,
                    "layers": " ".join(str(place.layer) for place in at),
                    "scales": " ".join(f"{place.scale:g}" for place in at),
                    "draws": len(numbers),
                }
                lines.append({**about, **self._values(list(zip(numbers, at, strict=True)), shown=unscaled)})
        return pd.DataFrame(lines)

    def by_place(self, n_heads: int) -> pd.DataFrame:
        """Every place of the chosen vector of `n_heads` heads on validation pairs, `PLACES`.

        `share` is the length of what is added, as a share of the residual stream's there; `prompts` on how many the
        place was tried.
        """
        (number,) = dict(self._groups(n_heads))["chosen"]
        norm, lines = float(self.candidates[number].vector.norm()), []
        for layer, row in enumerate(self.validated.accuracy[number].tolist()):
            for column, accuracy in enumerate(row):
                place = Place(layer, self.validated.scales[column])
                share = place.scale * norm / float(self.norms[layer])
                probability = float(self.validated.probability[number, layer, column])
                prompts = self.n_validation if self.validated.is_final(number, place) else self.n_first
                lines.append((*place, share, accuracy, probability, prompts, place == self.places[number]))
        return pd.DataFrame(lines, columns=list(PLACES))

    def by_draw(self) -> pd.DataFrame:
        """Every candidate by itself at its own place, `DRAWS`."""
        lines, seen = [], Counter[tuple[str, int]]()
        for number, (candidate, place) in enumerate(zip(self.candidates, self.places, strict=True)):
            key = candidate.kind, candidate.n_heads
            lines.append((*key, seen[key], *place, *self._means(number, place, shown=False)))
            seen[key] += 1
        return pd.DataFrame(lines, columns=list(DRAWS))

    def draws_by_layer(self, n_heads: int) -> pd.DataFrame:
        """Every candidate of `n_heads` heads by itself at every layer, at its own scale, `DRAWS`."""
        lines = []
        for kind, numbers in self._at_every_layer(n_heads):
            for draw, number in enumerate(numbers):
                for layer in range(len(self.norms)):
                    place = Place(layer, self.places[number].scale)
                    lines.append((kind, n_heads, draw, *place, *self._means(number, place, shown=True)))
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

    def _means(self, number: int, place: Place, *, shown: bool) -> tuple[float, float]:
        found, rows = self._tried(shown)
        row = rows[number, place]
        return float(found.match[:, row].double().mean()), float(found.first[:, row].double().mean())

    def _values(self, at: Sequence[tuple[int, Place]], *, shown: bool) -> dict[str, Any]:
        found, rows = self._tried(shown)
        asked = [rows[one] for one in at]
        return summary(found.match[:, asked], found.first[:, asked])

    def _tried(self, shown: bool) -> tuple[Answers, Rows]:
        return (self.shown, self.shown_rows) if shown else (self.found, self.rows)

    def _at_every_layer(self, n_heads: int) -> Iterator[tuple[str, list[int]]]:
        """Of every kind, the candidates that were tried at every layer."""
        for kind, numbers in self._groups(n_heads):
            places = {n: [(n, Place(layer, self.places[n].scale)) for layer in range(len(self.norms))] for n in numbers}
            yield kind, [number for number in numbers if all(one in self.shown_rows for one in places[number])]

    def _groups(self, n_heads: int) -> Iterator[tuple[str, list[int]]]:
        numbered = [(c.kind, i) for i, c in enumerate(self.candidates) if c.n_heads == n_heads]
        for kind, group in groupby(numbered, key=lambda entry: entry[0]):
            yield kind, [number for _, number in group]


def summary(
    right: Bool[Tensor, "prompt *draw"] | Float[Tensor, "prompt *draw"], first: Float[Tensor, "prompt *other"]
) -> dict[str, Any]:
    """Accuracy and probability, with 95 % intervals over prompts and, where there are several, over their draws."""
    if not len(right):
        return dict.fromkeys(VALUES, float("nan")) | {"prompts": 0}
    parts: list[float] = []
    for values in (right.double(), first.double()):
        parts += interval(values, within=SHARE)
    return dict(zip(VALUES, (*parts, len(right)), strict=True))


def run_trials(
    model: HookedTransformer,
    candidates: list[Candidate],
    *,
    validation: Tokens,
    evaluation: Tokens,
    top: int,
    plan: TrialPlan | None = None,
    memory: int = 2 * GIB,
) -> Trials:
    """Choose layer and scale of every candidate on validation prompts, and try it there on evaluation prompts.

    Args:
        top: Of candidates with this many heads all layers are tried on evaluation prompts, too, and all places of the
            chosen one on validation prompts.
        plan: Where not everything is tried, what is. Rows then carry no longer answers than their prompts have.
    """
    counts = tuple(sorted({candidate.n_heads for candidate in candidates}))
    plan = plan or TrialPlan(counts=counts, draws=len(candidates))
    vectors = torch.stack([candidate.vector for candidate in candidates])
    validation = validation[: plan.validation]
    first = validation[: plan.first]
    attempts = partial(place_search.attempts, model, vectors=vectors, memory=memory, by_length=not plan.is_whole)
    few, every = attempts(first), attempts(validation)
    about = {"vectors": len(candidates), "n_layers": model.cfg.n_layers}
    if plan.first is None:
        search = place_search.search(every, **about)
    else:
        search = place_search.search_in_stages(few, every, stride=plan.stride, **about)
    at_top = [number for number, candidate in enumerate(candidates) if candidate.n_heads == top]
    places = [search.best(number) for number in range(len(candidates))]
    unscaled = [search.best(number, scale=1.0) for number in range(len(candidates))]
    place_search.complete(few, search, next(n for n in at_top if candidates[n].kind == "chosen"))
    layers = [
        (number, Place(layer, places[number].scale))
        for number in _at_every_layer(candidates, at_top, plan)
        for layer in range(model.cfg.n_layers)
    ]
    attempt = partial(_try_places, model, vectors=vectors, by_length=not plan.is_whole, memory=memory)
    if plan.is_whole:
        found, rows = shown, shown_rows = attempt(evaluation, [*enumerate(places), *enumerate(unscaled), *layers])
    else:
        few_asked = [*((number, unscaled[number]) for number in at_top), *layers]
        found, rows = attempt(evaluation, list(enumerate(places)))
        shown, shown_rows = attempt(evaluation[: plan.layer_prompts], few_asked)
    return Trials(
        candidates=candidates,
        found=found,
        rows=rows,
        shown=shown,
        shown_rows=shown_rows,
        places=places,
        unscaled=unscaled,
        validated=search,
        norms=residual_norms(model, validation),
        n_validation=len(validation),
        n_first=len(first),
    )


def _try_places(
    model: HookedTransformer,
    tokens: Tokens,
    asked: Sequence[tuple[int, Place]],
    *,
    vectors: Float[Tensor, "vector d_model"],
    by_length: bool,
    memory: int,
) -> tuple[Answers, Rows]:
    # Several of them are often the same.
    rows = {one: row for row, one in enumerate(dict.fromkeys(asked))}
    scales = torch.tensor([place.scale for _, place in rows], dtype=vectors.dtype, device=vectors.device)
    found = (steer_by_length if by_length else steer_rows)(
        model,
        tokens,
        scales[:, None] * vectors[[number for number, _ in rows]],
        [place.layer for _, place in rows],
        memory=memory,
        description="steering on evaluation pairs",
    )
    return found.rows(range(1, 1 + len(rows))), rows


def _at_every_layer(candidates: Sequence[Candidate], at_top: Sequence[int], plan: TrialPlan) -> list[int]:
    """Numbers of those that are tried at every layer: the first draws of every kind."""
    found: list[int] = []
    for kind, group in groupby(at_top, key=lambda number: candidates[number].kind):
        numbers = list(group)
        found += numbers[: plan.drawn_at_every_layer(kind, len(numbers))]
    return found
