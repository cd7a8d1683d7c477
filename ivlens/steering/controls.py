"""Would other heads, or another task's vector, have done as well?

A vector that is added to the residual stream changes the output whatever its direction. What a result means is decided
by controls of the same number of heads and of equal norm: heads drawn at random, heads of low AIE, and the vectors
that the same heads write on other tasks.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.datasets.task import Task, TaskWarning
from ivlens.errors import PromptError, TaskError
from ivlens.patching.effects import task_mean_z
from ivlens.patching.head_effects import HeadEffects
from ivlens.patching.settings import Settings
from ivlens.random_streams import Stream, open_stream
from ivlens.shapes import Head, Residual
from ivlens.steering.trial_plan import TrialPlan
from ivlens.vectors.head_writing import write_vector

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Vectors = Float[Tensor, "draw d_model"]


def random_heads(
    effects: HeadEffects,
    k: int,
    *,
    draws: int,
    seed: int = 0,
    among: Literal["others", "all"] = "others",
    chosen: Sequence[Head] | None = None,
) -> list[list[Head]]:
    """`draws` sets of k heads.

    Args:
        chosen: The k heads that these are held against; those of largest AIE unless given.
        among: `others`: heads that are not among the chosen, since a control that shares heads with what
            it is held against understates the contrast, in a small model by much (all heads where fewer than k are
            left). `all`: all heads, the chosen ones included.
    """
    apart = effects.ranked()[:k] if chosen is None else chosen
    return draw_heads(tuple(effects.aie.shape), k, draws=draws, seed=seed, apart=() if among == "all" else apart)


def draw_heads(grid: tuple[int, ...], k: int, *, draws: int, seed: int, apart: Sequence[Head] = ()) -> list[list[Head]]:
    """`draws` sets of k of a model's heads, layers by heads, drawn at random.

    Args:
        apart: Heads to leave out, where k others are left.
    """
    heads = [Head(layer, head) for layer in range(grid[0]) for head in range(grid[1])]
    others, generator = _without(heads, apart), open_stream(seed, Stream.RANDOM_HEADS)
    heads = others if len(others) >= k else heads
    return [[heads[i] for i in generator.choice(len(heads), k, replace=False)] for _ in range(draws)]


def low_aie_heads(
    effects: HeadEffects, k: int, *, draws: int, seed: int = 0, chosen: Sequence[Head] = ()
) -> list[list[Head]]:
    """`draws` sets of k heads of low AIE: the k lowest first, then draws from the lower half (at least k heads).

    Args:
        chosen: Heads to leave out, where k others are left.
    """
    lowest, generator = effects.ranked()[::-1], open_stream(seed, Stream.LOW_AIE_HEADS)
    others = _without(lowest, chosen)
    lowest = others if len(others) >= k else lowest
    half = lowest[: max(k, len(lowest) // 2)]
    others = [[half[i] for i in generator.choice(len(half), k, replace=False)] for _ in range(draws - 1)]
    return [lowest[:k], *others]


def _without(heads: Sequence[Head], some: Sequence[Head]) -> list[Head]:
    return [head for head in heads if head not in some]


def with_norm(vectors: Vectors, norm: float | Float[Tensor, "draw 1"]) -> Vectors:
    """The vectors at another length, one for all or for each its own; a vector of length 0 stays as it is."""
    lengths = vectors.norm(dim=1, keepdim=True)
    return torch.where(lengths > 0, vectors * norm / lengths.clamp(min=torch.finfo(vectors.dtype).tiny), vectors)


def write_control_vectors(
    model: HookedTransformer, effects: HeadEffects, sets: Sequence[Sequence[Head]], *, norm: float
) -> Vectors:
    """One vector of length `norm` per set of heads, from the effects' own mean outputs."""
    return with_norm(torch.stack([write_vector(model, effects.mean_z, heads) for heads in sets]), norm)


def gaussians(vector: Residual, *, draws: int, seed: int = 0, norm: float) -> Vectors:
    """`draws` directions drawn at random, each as likely as any other, at length `norm`: no heads wrote them."""
    generator = open_stream(seed, Stream.GAUSSIANS)
    drawn = torch.from_numpy(generator.standard_normal((draws, len(vector))))
    return with_norm(drawn.to(vector.device, vector.dtype), norm)


def other_task_vectors(
    model: HookedTransformer,
    heads: Sequence[Head],
    others: Sequence[Task],
    settings: Settings,
    *,
    norm: float,
) -> Mapping[str, Residual]:
    """What the same heads write on other tasks, at length `norm`, by the task's name.

    A task that cannot be asked (too few pairs, prompts too long for the model) is left out with a warning.
    """
    vectors, layers = {}, 1 + max(head.layer for head in heads)
    for task in others:
        try:
            z = task_mean_z(model, task, settings, layers=layers)
        except (TaskError, PromptError) as error:
            warnings.warn(f"left out as a control: {error}", TaskWarning, stacklevel=2)
            continue
        vectors[task.name] = with_norm(write_vector(model, z, heads)[None], norm)[0]
    return vectors


def draw_other_tasks(task: Task, candidates: Sequence[str], *, draws: int, seed: int = 0) -> list[str]:
    """Names of `draws` other tasks, drawn at random (fewer where there are fewer)."""
    names = sorted(name for name in candidates if name != task.name)
    generator = open_stream(seed, Stream.OTHER_TASKS)
    return [names[i] for i in generator.permutation(len(names))[:draws]]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A vector on trial."""

    kind: str
    """`chosen`, `random`, `low-AIE`, `gaussian` or `other-task`."""
    n_heads: int
    vector: Residual


def make_candidates(
    model: HookedTransformer,
    effects: HeadEffects,
    *,
    plan: TrialPlan,
    top: int,
    others: Sequence[Task],
    heads: Sequence[Head] | None = None,
) -> list[Candidate]:
    """The vectors of the first 1, 2, 5 ... heads beside random ones; for `top` heads, all controls.

    Controls have the norm of the vector of as many chosen heads.

    Args:
        plan: How many of each.
        heads: At least `top`, the first ones first; ranked by AIE unless given.
    """
    ranked = effects.ranked() if heads is None else list(heads)
    seed, found = effects.settings.seed, []
    for k in plan.counts:
        vector = write_vector(model, effects.mean_z, ranked[:k])
        norm = float(vector.norm())
        few, n_draws = (plan.draws_of(kind, at_top=k == top) for kind in ("low-AIE", "random"))
        beside = {"random": random_heads(effects, k, draws=n_draws, seed=seed, chosen=ranked[:k])}
        if k == top:
            beside["low-AIE"] = low_aie_heads(effects, k, draws=few, seed=seed, chosen=heads or ())
        found.append(Candidate(kind="chosen", n_heads=k, vector=vector))
        for kind, sets in beside.items():
            vectors = write_control_vectors(model, effects, sets, norm=norm)
            found += [Candidate(kind=kind, n_heads=k, vector=control) for control in vectors]
        if k == top:
            noise = gaussians(vector, draws=few, seed=seed, norm=norm)
            found += [Candidate(kind="gaussian", n_heads=k, vector=control) for control in noise]
            elsewhere = other_task_vectors(model, ranked[:k], others, plan.of_tasks(effects.settings), norm=norm)
            found += [Candidate(kind="other-task", n_heads=k, vector=control) for control in elsewhere.values()]
    return found
