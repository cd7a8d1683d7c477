"""Do other rankings find other heads, and do those steer better, or hurt more when they are ablated?

Heads are ranked on the queries that rank them; layer and scale of each ranking's vector are chosen on validation pairs,
and what is reported is of evaluation pairs. Random heads stand beside them, at the norm of the AIE's vector.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.attribution.head_scores import RANKINGS, ablation_means, score_heads
from ivlens.attribution.site_effects import SiteEffects
from ivlens.datasets.task import Split, Task
from ivlens.datasets.task import task as find_task
from ivlens.errors import IvlensError, as_ivlens_error
from ivlens.measures import Interval, interval
from ivlens.models import loader
from ivlens.patching.effects import task_mean_z
from ivlens.patching.interventions import Change, run_changes
from ivlens.patching.settings import Options, Ranking, Settings, gather_options, parse_bytes
from ivlens.prompts.builders import clean, zero_shot
from ivlens.prompts.long_pairs import leave_out_long
from ivlens.prompts.tokens import tokenize
from ivlens.random_streams import Stream, open_stream
from ivlens.shapes import GIB, Head, MeanZ
from ivlens.steering.controls import draw_heads, with_norm
from ivlens.steering.rows import steer_by_length
from ivlens.steering.search import search_places
from ivlens.vectors.head_writing import write_vector

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

RANDOM = "random"
MOST_VALIDATION = 30
"""Pairs that layer and scale are chosen on."""
COLUMNS = (
    *("ranking", "heads", "seconds", "spearman", "shared"),
    *("steered", "steered_low", "steered_high", "steered_gain", "steered_gain_low", "steered_gain_high"),
    *("lost", "lost_low", "lost_high", "lost_gain", "lost_gain_low", "lost_gain_high", "queries"),
)


@dataclass(frozen=True, kw_only=True)
class Rankings:
    """Several rankings of a model's heads on one task, and what the first heads of each do.

    >>> ranked
    Rankings(antonym on lab: aie, gradient, ablation; top 3, 8 queries)
    """

    scores: dict[Ranking, SiteEffects]
    top: int
    table: pd.DataFrame
    """A line for each ranking, and for random heads. `seconds`: what ranking took. `spearman` of all heads, and how
    many of the first are `shared`, with the AIE's ranking. `steered`: accuracy on bare queries with the vector of the
    first heads. `lost`: P(answer) lost from clean prompts when they are ablated together. `..._gain`: how much more
    than with the AIE's heads, query by query. Intervals of 95 %."""

    def heads(self, by: Ranking) -> list[Head]:
        """The first heads of a ranking.

        >>> len(ranked.heads("gradient"))
        3
        """
        return self.scores[by].top(self.top)  # pyright: ignore[reportReturnType]

    def __repr__(self) -> str:
        first = next(iter(self.scores.values()))
        queries = int(self.table["queries"].iloc[0])
        return f"Rankings({first.task} on {first.model}: {', '.join(self.scores)}; top {self.top}, {queries} queries)"


@as_ivlens_error()
def compare_rankings(
    model: HookedTransformer | str | Path,
    task: Task | str | Path,
    *,
    top: int = 10,
    draws: int = 20,
    queries: int = 100,
    settings: Settings | None = None,
    memory: int | str = 2 * GIB,
    **options: Unpack[Options],
) -> Rankings:
    """Rank heads by AIE, by gradient and by ablation, and try the first heads of each on other queries.

    >>> found = ivlens.compare_rankings(model, task, top=2, draws=2, queries=6, shots=5, prompts=6)
    >>> found.table["ranking"].tolist()
    ['aie', 'gradient', 'ablation', 'random']

    Args:
        model, task: Also by what `ivlens.load` and `ivlens.task` take: a name, a path.
        top: Heads of each vector, and heads that are ablated together.
        draws: Sets of random heads.
        queries: Evaluation pairs that numbers are of; fewer where the task has fewer.
        settings: All options at once.
        options: Fields of `Settings`, such as `shots=5`.
        memory: What sweeps may take beside the weights, in bytes or such as "2GiB".

    Raises:
        IvlensError: no such option, or `top`, `draws` or `queries` are below 1 or more than there are.
        TaskError, PromptError, ModelError: as for `head_scores`.
    """
    chosen, memory = gather_options(Settings, settings, options), parse_bytes(memory)
    task, model = find_task(task), loader.as_model(model)
    total = model.cfg.n_layers * model.cfg.n_heads
    for name, value, most in (("top", top, total), ("draws", draws, None), ("queries", queries, None)):
        if value < 1 or (most is not None and value > most):
            raise IvlensError(f"{name} is {value}; it must be 1 {f'to {most}' if most else 'or more'}")
    task = leave_out_long(model, task, shots=chosen.shots, template=chosen.template)
    scores, seconds = {}, {}
    for by in RANKINGS:
        started = time.perf_counter()
        scores[by] = score_heads(model, task, by, chosen, memory=memory)
        seconds[by] = time.perf_counter() - started
    sets: HeadSets = {by: [found.top(top)] for by, found in scores.items()}  # pyright: ignore
    sets[RANDOM] = list(
        draw_heads((model.cfg.n_layers, model.cfg.n_heads), top, draws=draws, seed=chosen.seed, apart=sets["aie"][0])
    )
    steered, _, lost = try_heads(model, task, sets, chosen, queries=queries, memory=memory)
    lines = [_line(name, scores, seconds, sets, steered, lost, total) for name in sets]
    return Rankings(scores=scores, top=top, table=pd.DataFrame(lines, columns=list(COLUMNS)))


# By ranking: of each query and set of heads.
Found = dict[str, Float[Tensor, "query draw"]]
HeadSets = dict[str, list[Sequence[Head]]]
"""By ranking: the first heads, or several draws of as many; those of the AIE come first."""


def try_heads(
    model: HookedTransformer, task: Task, sets: HeadSets, settings: Settings, *, queries: int, memory: int
) -> tuple[Found, Found, Found]:
    """What sets of heads do on evaluation pairs, with vectors of which layer and scale are chosen on validation pairs.

    Args:
        sets: The last ones' vectors get the first one's length.

    Returns:
        Whether each bare query is answered right with each set's vector; P(answer) there; P(answer) lost from clean
        prompts without the heads.
    """
    split = task.split(shots=settings.shots, seed=settings.seed)
    split = split.at_most(validation=MOST_VALIDATION, evaluation=queries)
    z = task_mean_z(model, task, settings)
    return *_steer(model, split, z, sets, settings, memory=memory), _ablate(model, task, split, sets, settings)


def _steer(
    model: HookedTransformer,
    split: Split,
    z: MeanZ,
    sets: HeadSets,
    settings: Settings,
    *,
    memory: int,
) -> tuple[Found, Found]:
    """Whether each bare query of the evaluation pairs is answered right with each set's vector, and P(answer)."""
    validation, evaluation = (
        tokenize(model, zero_shot(pairs, template=settings.template)) for pairs in (split.validation, split.evaluation)
    )
    vectors = torch.stack([write_vector(model, z, heads) for several in sets.values() for heads in several])
    first = len(sets) - 1
    vectors[first:] = with_norm(vectors[first:], float(vectors[0].norm()))
    places = search_places(model, validation, vectors, memory=memory)
    best = [places.best(number) for number in range(len(vectors))]
    scales = torch.tensor([place.scale for place in best], dtype=vectors.dtype, device=vectors.device)
    layers = [place.layer for place in best]
    found = steer_by_length(model, evaluation, scales[:, None] * vectors, layers, memory=memory)
    return _by_ranking(found.match[:, 1:].double(), sets), _by_ranking(found.first[:, 1:].double(), sets)


def _ablate(model: HookedTransformer, task: Task, split: Split, sets: HeadSets, settings: Settings) -> Found:
    """P(answer) lost from clean prompts of the evaluation pairs when each set is ablated."""
    prompts = clean(
        task,
        split.evaluation,
        split.mean,
        source=settings.source,
        shots=settings.shots,
        generator=open_stream(settings.seed, Stream.BASELINE_PROMPTS),
        template=settings.template,
    )
    changes = [Change(ablated=tuple(heads)) for several in sets.values() for heads in several]
    z = ablation_means(model, task, settings)
    found = run_changes(model, tokenize(model, prompts), changes, layer=0, z=z).probability.double()
    return _by_ranking(found[:, :1] - found[:, 1:], sets)


def _by_ranking(found: Tensor, sets: HeadSets) -> Found:
    return dict(zip(sets, found.cpu().split([len(several) for several in sets.values()], dim=1), strict=True))


def rank_correlation(one: Any, other: Any) -> float:
    """Spearman's, of two scores of all heads."""
    from scipy import stats  # Not at once: whoever reads an experiment does not wait for it.

    return float(stats.spearmanr(one, other)[0])  # pyright: ignore[reportArgumentType]


def _line(
    name: str,
    scores: dict[Ranking, SiteEffects],
    seconds: dict[Ranking, float],
    sets: HeadSets,
    steered: Found,
    lost: Found,
    total: int,
) -> dict[str, Any]:
    aie, top = scores["aie"].mean.cpu().flatten(), len(sets["aie"][0])
    is_ranked = name in scores
    own = scores[name].mean.cpu().flatten() if is_ranked else aie  # pyright: ignore[reportArgumentType]
    line: dict[str, Any] = {
        "ranking": name,
        "heads": " ".join(map(str, sets[name][0])) if is_ranked else f"{len(sets[name])} draws",
        "seconds": seconds.get(name, float("nan")),  # pyright: ignore[reportArgumentType, reportCallIssue]
        "spearman": rank_correlation(aie, own) if is_ranked else float("nan"),
        "shared": len(set(sets[name][0]) & set(sets["aie"][0])) if is_ranked else top * top / total,
        "queries": len(steered[name]),
    }
    for what, found, (low, high) in (("steered", steered, (0.0, 1.0)), ("lost", lost, (-1.0, 1.0))):
        gain, width = found[name] - found["aie"], high - low
        line |= _columns(what, _interval(found[name], (low, high)))
        line |= _columns(f"{what}_gain", _interval(gain, (-width, width)))
    return line


def _interval(values: Float[Tensor, "query draw"], within: tuple[float, float]) -> Interval:
    # In groups of one: what happens to be 0 or 1 everywhere is no share of successes, unless it is one of them.
    of_shares = within == (0.0, 1.0)
    groups = None if of_shares or values.shape[1] > 1 else torch.arange(len(values))
    return interval(values, groups, within=within)


def _columns(name: str, found: Interval) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))
