"""Which heads carry the task? The average indirect effect of every head, with its uncertainty.

Source: Todd et al. 2024, arXiv:2310.15213 (AIE on shuffled prompts); `corruption="zero-shot"` follows the code of
arXiv:2502.11019. Clean prompts and ranking prompts share no query pair; those of function_vectors, Todd et al.'s code,
ask the same part of the pairs, and of it only what the model answers right, which here `answered_only` is for.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Unpack

import torch
from jaxtyping import Int
from torch import Tensor

from ivlens.datasets.task import Pair, Split, Task
from ivlens.datasets.task import task as find_task
from ivlens.errors import TaskError, TaskWarning, as_ivlens_error
from ivlens.models import hooked, loader
from ivlens.patching import sweep
from ivlens.patching.activations import mean_z, score_answers
from ivlens.patching.head_effects import HeadEffects
from ivlens.patching.settings import Options, Settings, gather_options, parse_bytes
from ivlens.prompts import answer_check
from ivlens.prompts.builders import clean, corrupted, cycled
from ivlens.prompts.long_pairs import leave_out_long
from ivlens.prompts.template import Prompt
from ivlens.prompts.tokens import Tokens, tokenize
from ivlens.random_streams import Stream, open_stream
from ivlens.shapes import GIB, MeanZ

if TYPE_CHECKING:
    import numpy as np
    from transformer_lens import HookedTransformer

FEWEST_ANSWERED = 2
"""Queries of either part that `answered_only` needs; fewer have no interval."""


@as_ivlens_error()
def indirect_effects(
    model: HookedTransformer | str | Path,
    task: Task | str | Path,
    *,
    settings: Settings | None = None,
    memory: int | str = 2 * GIB,
    **options: Unpack[Options],
) -> HeadEffects:
    """Causal indirect effect of every attention head, exact, in one pass per prompt.

    In 16 bits AIE is off by a share of the largest one: 0.5 % in bfloat16 and 0.05 % in float16 on the lab model, 1.2 %
    and 0.3 % on SmolLM2. An audit in 16 bits measures how far it is off.

    The CIE of Todd et al. 2024, arXiv:2310.15213, is P(answer | patched) - P(answer | unpatched) on a corrupted prompt,
    in [-1, 1], or with `nll` as much log-likelihood in nats; positive: the head carries the task.

    >>> ivlens.indirect_effects(model, task, shots=5, clean_prompts=8, prompts=6).cie.shape  # [prompt layer head]
    torch.Size([6, 6, 8])

    Args:
        model, task: Also by what `ivlens.load` and `ivlens.task` take: a name, a path.
        settings: All options at once.
        options: Fields of `Settings`, such as `shots=5`.
        memory: What the sweep may take beside the weights, in bytes or such as "2GiB".

    Raises:
        IvlensError: no such option, a value that it cannot have, or another than in `settings`.
        TaskError: too few pairs, no instruction where `source` asks for one, or too few pairs that the model answers
            right where `answered_only` asks for them.
        PromptError: prompts longer than the context, or than `memory` can hold.
        ModelError: NaN or infinite activations.
    """
    chosen, memory = gather_options(Settings, settings, options), parse_bytes(memory)
    task, model = find_task(task), loader.as_model(model)
    task = leave_out_long(model, task, shots=chosen.shots, template=chosen.template)
    queries = find_queries(model, task, chosen)
    z = task_mean_z(model, task, chosen, queries=queries)
    return measure_effects(model, task, z, chosen, memory=memory, queries=queries)


class Queries(NamedTuple):
    """Pairs of a task that are asked. Demonstrations are drawn from the whole of the part that gives means."""

    mean: tuple[Pair, ...]
    """Give the mean head outputs."""
    rank: tuple[Pair, ...]
    """Rank heads."""


def find_queries(model: HookedTransformer, task: Task, settings: Settings) -> Queries:
    """The task's parts, or, with `answered_only`, the pairs in them that the model answers right.

    Each pair is asked once on a clean prompt, and is right where greedy decoding writes its whole answer.
    function_vectors' code asks each one once with demonstrations, too, and takes it where the answer's first token is
    the most probable one. What is left is said in a warning.

    Raises:
        TaskError: fewer than two are left of either part.
    """
    split = task.split(shots=settings.shots, seed=settings.seed)
    if not settings.answered_only:
        return Queries(split.mean, split.rank)
    kept = Queries(*(_answered(model, task, split, part, settings) for part in (0, 1)))
    counts = (
        f"of task {task.name!r} the model answers {len(kept.mean)} of {len(split.mean)} queries right that give mean "
        f"head outputs, and {len(kept.rank)} of {len(split.rank)} that rank heads"
    )
    if min(map(len, kept)) < FEWEST_ANSWERED:
        raise TaskError(
            f"{counts}; answered_only needs {FEWEST_ANSWERED} of each: leave it out, or give a task that the model "
            "can do"
        )
    warnings.warn(f"{counts}; the others are left out (answered_only)", TaskWarning, stacklevel=3)
    return kept


def _answered(model: HookedTransformer, task: Task, split: Split, part: int, settings: Settings) -> tuple[Pair, ...]:
    """The pairs that the model answers right, of the part that gives means (0) or of the one that ranks heads (1)."""
    pairs = split[part]
    generator = open_stream(settings.seed, Stream.ANSWERED_PROMPTS, part)
    right, _ = score_answers(model, tokenize(model, _clean(task, pairs, split, settings, generator)))
    return tuple(pair for pair, is_right in zip(pairs, right.tolist(), strict=True) if is_right)


def check_prompts(task: Task, settings: Settings) -> None:
    """See, before anything is computed or written, that prompts as asked for can be written.

    Raises:
        TaskError: too few pairs, or no instruction where `source` asks for one.
        PromptError: fewer shots than clean or corrupted prompts need.
    """
    split = task.split(shots=settings.shots, seed=settings.seed)
    _clean(task, split.mean[:1], split, settings)
    _corrupted(split.rank[:1], split, settings)


def measure_effects(
    model: HookedTransformer,
    task: Task,
    z: MeanZ,
    settings: Settings,
    *,
    memory: int = 2 * GIB,
    model_digest: str | None = None,
    queries: Queries | None = None,
) -> HeadEffects:
    """Patch given mean outputs `z` into the task's ranking prompts.

    Args:
        model_digest: Where it is known already: it reads every weight of the model.
        queries: What is asked; by default, as `find_queries` finds it.
    """
    numbers, tokens = ranking_prompts(model, task, settings, queries=queries)
    baseline, cie = sweep.sweep(model, tokens, z, effect=settings.effect, memory=memory)
    return HeadEffects(
        cie=cie,
        baseline=baseline,
        queries=numbers,
        mean_z=z,
        settings=settings,
        task=task.name,
        task_digest=task.digest,
        model=hooked.model_name(model),
        model_digest=model_digest or hooked.weight_digest(model),
    )


def task_mean_z(
    model: HookedTransformer,
    task: Task,
    settings: Settings,
    *,
    queries: Queries | None = None,
    layers: int | None = None,
) -> MeanZ:
    """Mean head output over `settings.clean_prompts` clean prompts of the task's mean part; see `mean_z`."""
    return mean_z(model, clean_prompts(model, task, settings, queries=queries)[1], layers=layers)


def clean_prompts(
    model: HookedTransformer, task: Task, settings: Settings, *, queries: Queries | None = None
) -> tuple[Int[Tensor, " prompt"], Tokens]:
    """What mean head outputs are the mean over, and the number of each one's query."""
    asked = (queries or find_queries(model, task, settings)).mean
    prompts = mean_prompts(task, settings, asked)
    return torch.arange(len(prompts)) % len(asked), tokenize(model, prompts)


def mean_prompts(task: Task, settings: Settings, asked: Sequence[Pair] = ()) -> list[Prompt]:
    """The clean prompts that mean head outputs, and so a task's vector, are taken from: of all pairs, or of `asked`."""
    split = task.split(shots=settings.shots, seed=settings.seed)
    return _clean(task, cycled(asked or split.mean, settings.clean_prompts), split, settings)


def _clean(
    task: Task,
    pairs: Sequence[Pair],
    split: Split,
    settings: Settings,
    generator: np.random.Generator | None = None,
) -> list[Prompt]:
    return clean(
        task,
        pairs,
        split.mean,
        source=settings.source,
        shots=settings.shots,
        generator=generator or open_stream(settings.seed, Stream.CLEAN_PROMPTS),
        template=settings.template,
    )


def example_prompts(model: HookedTransformer, task: Task, settings: Settings) -> dict[str, dict[str, str]]:
    """The first clean and the first corrupted prompt, as the model reads them, each with its `answer`."""
    with warnings.catch_warnings():  # What is kept was said when it was measured.
        warnings.simplefilter("ignore", TaskWarning)
        queries = find_queries(model, task, settings)
    split = task.split(shots=settings.shots, seed=settings.seed)
    first = {
        "clean": _clean(task, queries.mean[:1], split, settings),
        "corrupted": _corrupted(queries.rank[:1], split, settings),
    }
    return {kind: {"text": prompts[0].text, "answer": prompts[0].answer} for kind, prompts in first.items()}


def ranking_prompts(
    model: HookedTransformer, task: Task, settings: Settings, *, queries: Queries | None = None
) -> tuple[Int[Tensor, " prompt"], Tokens]:
    """Corrupted prompts of the task's ranking part, and the number of each one's query.

    A part shorter than `settings.prompts` is asked again with other demonstrations; where there are none
    (zero-shot) the same prompt twice would only pretend to be evidence, and there are fewer prompts.
    """
    asked = (queries or find_queries(model, task, settings)).rank
    prompts = rank_prompts(task, settings, asked)
    tokens = tokenize(model, prompts)
    answer_check.check_answers(model, task, prompts, tokens, first_token=settings.effect == "prob")
    return torch.arange(len(prompts), device=tokens.prompts.device) % len(asked), tokens


def rank_prompts(task: Task, settings: Settings, asked: Sequence[Pair] = ()) -> list[Prompt]:
    """The corrupted prompts that heads are patched on: of all pairs of the ranking part, or of `asked`."""
    split = task.split(shots=settings.shots, seed=settings.seed)
    asked, n = asked or split.rank, settings.prompts
    if settings.corruption == "zero-shot":
        n = min(n, len(asked))
    return _corrupted(cycled(asked, n), split, settings)


def _corrupted(pairs: Sequence[Pair], split: Split, settings: Settings) -> list[Prompt]:
    return corrupted(
        pairs,
        split.mean,
        corruption=settings.corruption,
        shots=settings.shots,
        generator=open_stream(settings.seed, Stream.CORRUPTED_PROMPTS),
        template=settings.template,
    )
