"""What does the head sum leave on the table, and how does each kind of vector bear few prompts and wrong labels?

Vectors of one length are added at one layer to bare queries: what heads write (the head sum), what was trained, free or
as weights of those heads' outputs, the difference of mean streams with and without demonstrations, and random
directions. Layer and length are those at which the head sum of all prompts validates best. Before the heads have
written it, the stream does not hold the task: so the mean difference is also tried at the layer and length at which it
validates best itself. Heads are ranked once, and places are chosen and training stops by validation pairs: these see
right labels, whatever share of the others is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.attribution.rankings import MOST_VALIDATION
from ivlens.attribution.site import at_last, mean_values
from ivlens.attribution.trained_vector import train_vector
from ivlens.datasets.task import Pair, Split, Task
from ivlens.datasets.task import task as find_task
from ivlens.errors import IvlensError, as_ivlens_error
from ivlens.measures import interval
from ivlens.models import loader
from ivlens.patching.activations import mean_z
from ivlens.patching.effects import indirect_effects
from ivlens.patching.settings import Options, Settings, gather_options, parse_bytes
from ivlens.prompts.builders import cycled, few_shot, shuffle_outputs, zero_shot
from ivlens.prompts.long_pairs import leave_out_long
from ivlens.prompts.tokens import Tokens, tokenize
from ivlens.random_streams import Stream, open_stream
from ivlens.shapes import GIB, Head, Residual
from ivlens.steering.controls import gaussians, with_norm
from ivlens.steering.rows import steer_by_length
from ivlens.steering.search import SCALES, Place, attempts, search_places
from ivlens.vectors.head_writing import write_vector

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

HEAD_SUM, MEAN_DIFFERENCE, TRAINED, WEIGHED = "head sum", "mean difference", "trained", "weighed heads"
OWN_PLACE, RANDOM = "mean difference, own place", "random"
FEWEST = 3
"""Pairs that prompts with demonstrations can be made of."""
COLUMNS = (
    *("pairs", "wrong", "vector", "accuracy", "accuracy_low", "accuracy_high"),
    *("gain", "gain_low", "gain_high", "cosine", "layer", "norm", "queries"),
)


@as_ivlens_error()
def compare_vectors(
    model: HookedTransformer | str | Path,
    task: Task | str | Path,
    *,
    counts: Sequence[int] = (5, 10, 20),
    wrong: Sequence[float] = (0.0, 0.25, 0.5),
    top: int = 10,
    draws: int = 5,
    steps: int = 100,
    queries: int = 100,
    settings: Settings | None = None,
    memory: int | str = 2 * GIB,
    **options: Unpack[Options],
) -> pd.DataFrame:
    """How well vectors of several kinds steer at one layer and length, by what they are made of.

    >>> ivlens.compare_vectors(model, task, counts=[8], wrong=[0.0], steps=5, queries=8, shots=5, prompts=6)[
    ...     ["pairs", "vector"]
    ... ].values.tolist()[0]
    [8, 'head sum']

    Args:
        model, task: Also by what `ivlens.load` and `ivlens.task` take: a name, a path.
        counts: Pairs of the mean part that vectors are made of; all of them where it has fewer.
        wrong: Shares of these pairs that get another one's output, to the nearest whole pair, and two at least.
        top: Heads of the head sum, by AIE.
        draws: Random directions.
        steps: Of training, at most.
        queries: Evaluation pairs that numbers are of; fewer where the task has fewer.
        settings: All options at once; `shots` are fewer where there are too few pairs.
        options: Fields of `Settings`, such as `shots=5`.
        memory: What sweeps may take beside the weights, in bytes or such as "2GiB".

    Returns:
        A line for each number of pairs, share of wrong outputs and vector: accuracy on bare queries with its interval,
        how much more (`gain`) than the head sum has with the same pairs, query by query, and the cosine to the head
        sum of the whole mean part.

    Raises:
        IvlensError: fewer than three pairs, a share that is not in [0, 1], or no such option.
        TaskError, PromptError, ModelError: as for `indirect_effects` and `train_vector`.
    """
    chosen, memory = gather_options(Settings, settings, options), parse_bytes(memory)
    for count in counts:
        if count < FEWEST:
            raise IvlensError(f"counts has {count}; vectors need {FEWEST} pairs or more")
    for share in wrong:
        if not 0 <= share <= 1:
            raise IvlensError(f"wrong has {share}; it must be a share, from 0 to 1")
    task, model = find_task(task), loader.as_model(model)
    task = leave_out_long(model, task, shots=chosen.shots, template=chosen.template)
    effects = indirect_effects(model, task, settings=chosen, memory=memory)
    split, heads = task.split(shots=chosen.shots, seed=chosen.seed), effects.top(top)
    split = split.at_most(validation=MOST_VALIDATION, evaluation=queries)
    validation = tokenize(model, zero_shot(split.validation, template=chosen.template))
    whole = write_vector(model, effects.mean_z, heads)
    place = search_places(model, validation, whole[None], memory=memory).best()
    norm = abs(place.scale) * float(whole.norm())
    maker = _Maker(model, task, chosen, heads, place.layer, norm, steps, draws, validation, memory)
    lines = []
    for count in dict.fromkeys(min(count, len(split.mean)) for count in counts):
        for n_wrong in dict.fromkeys(count_wrong(share, count) for share in wrong):
            vectors = maker.vectors(with_wrong_outputs(split.mean[:count], n_wrong, seed=chosen.seed))
            about = {"pairs": count, "wrong": n_wrong / count}
            lines += _lines(model, split, chosen, vectors, whole, memory, about)
    return pd.DataFrame(lines, columns=list(COLUMNS))


def count_wrong(share: float, count: int) -> int:
    """How many outputs change places: at least two, where any do."""
    return max(2, round(share * count)) if share > 0 else 0


def with_wrong_outputs(pairs: Sequence[Pair], n_wrong: int, *, seed: int) -> list[Pair]:
    """The pairs, so many of which have each other's outputs."""
    generator = open_stream(seed, Stream.WRONG_LABELS)
    places = sorted(generator.permutation(len(pairs))[:n_wrong].tolist())
    moved = shuffle_outputs([pairs[place] for place in places], generator)
    changed = dict(zip(places, moved, strict=True))
    return [changed.get(place, pair) for place, pair in enumerate(pairs)]


class _Made(NamedTuple):
    """Vectors of one kind, as they are added after a block."""

    vectors: Float[Tensor, "draw d_model"]
    layer: int


class _Maker:
    """Makes vectors of every kind, at one layer and length where they have no other."""

    def __init__(
        self,
        model: HookedTransformer,
        task: Task,
        settings: Settings,
        heads: Sequence[Head],
        layer: int,
        norm: float,
        steps: int,
        draws: int,
        validation: Tokens,
        memory: int,
    ) -> None:
        self.model, self.task, self.settings, self.heads = model, task, settings, heads
        self.layer, self.norm, self.steps, self.draws = layer, norm, steps, draws
        self.validation, self.memory = validation, memory

    def vectors(self, pairs: Sequence[Pair]) -> dict[str, _Made]:
        """By kind, made of these pairs alone."""
        model, settings, template = self.model, self.settings, self.settings.template
        shown = few_shot(
            cycled(pairs, settings.clean_prompts),
            pairs,
            shots=min(settings.shots, len(pairs) - 1),
            generator=open_stream(settings.seed, Stream.CLEAN_PROMPTS),
            template=template,
        )
        clean, bare = tokenize(model, shown), tokenize(model, zero_shot(pairs, template=template))
        z = mean_z(model, clean)
        summed = write_vector(model, z, self.heads)
        difference = mean_difference(model, clean, bare)
        about: dict[str, Any] = {"layer": self.layer, "norm": self.norm, "steps": self.steps, "settings": settings}
        found: dict[str, Residual] = {
            HEAD_SUM: summed,
            MEAN_DIFFERENCE: difference[self.layer],
            TRAINED: train_vector(model, self.task, pairs=pairs, **about).vector,
            WEIGHED: train_vector(
                model, self.task, pairs=pairs, form="heads", heads=self.heads, mean_z=z, **about
            ).vector,
        }
        made = {kind: _Made(with_norm(one[None].to(summed), self.norm), self.layer) for kind, one in found.items()}
        random = gaussians(summed, draws=self.draws, seed=settings.seed, norm=self.norm)
        by_layer = difference.to(summed)
        own = best_of_layers(model, self.validation, by_layer, memory=self.memory)
        at_its_best = _Made(own.scale * by_layer[own.layer][None], own.layer)
        return {**made, OWN_PLACE: at_its_best, RANDOM: _Made(random, self.layer)}


def mean_difference(model: HookedTransformer, clean: Tokens, bare: Tokens) -> Float[Tensor, "layer d_model"]:
    """Mean residual stream behind each block at the last token of clean prompts, less that of bare queries."""
    streams = []
    for tokens in (clean, bare):
        streams.append(mean_values(model, tokens, at_last(tokens), "resid_post")[0, :, 0])
    return streams[0] - streams[1]


def best_of_layers(
    model: HookedTransformer, validation: Tokens, by_layer: Float[Tensor, "layer d_model"], *, memory: int
) -> Place:
    """Of vectors that belong to a layer each, where the one is that validates best there, and at what scale."""
    places = [Place(layer, scale) for layer in range(len(by_layer)) for scale in SCALES]
    tried = attempts(model, validation, by_layer, memory=memory)([(place.layer, place) for place in places])
    return max(zip(tried, places, strict=True), key=lambda one: (one[0], -one[1].layer))[1]


def _lines(
    model: HookedTransformer,
    split: Split,
    settings: Settings,
    vectors: dict[str, _Made],
    whole: Residual,
    memory: int,
    about: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    evaluation = tokenize(model, zero_shot(split.evaluation, template=settings.template))
    every = torch.cat([made.vectors for made in vectors.values()])
    layers = [made.layer for made in vectors.values() for _ in made.vectors]
    match = steer_by_length(model, evaluation, every, layers, memory=memory).match[:, 1:]
    parts = match.double().cpu().split([len(made.vectors) for made in vectors.values()], dim=1)
    found = dict(zip(vectors, parts, strict=True))
    for kind, right in found.items():
        gain = right - found[HEAD_SUM]
        groups = None if gain.shape[1] > 1 else torch.arange(len(gain))
        yield {
            **about,
            "vector": kind,
            **_columns("accuracy", interval(right, within=(0.0, 1.0))),
            **_columns("gain", interval(gain, groups, within=(-1.0, 1.0), of_answers=kind != HEAD_SUM)),
            "cosine": float(torch.cosine_similarity(vectors[kind].vectors.to(whole), whole[None]).mean()),
            "layer": vectors[kind].layer,
            "norm": float(vectors[kind].vectors.norm(dim=1).mean()),
            "queries": len(right),
        }


def _columns(name: str, found: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))
