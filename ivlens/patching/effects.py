"""Which heads carry the task? The average indirect effect of every head, with its uncertainty.

Source: Todd et al. 2024, arXiv:2310.15213 (AIE on shuffled prompts); `corruption="zero-shot"` follows the published
code of arXiv:2502.11019. Clean prompts and ranking prompts share no query pair.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import torch
from jaxtyping import Int
from torch import Tensor

from ivlens.datasets.task import Split, Task
from ivlens.datasets.task import task as find_task
from ivlens.models import hooked, loader
from ivlens.patching import sweep
from ivlens.patching.activations import mean_z
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
    from transformer_lens import HookedTransformer


def indirect_effects(
    model: HookedTransformer | str | Path,
    task: Task | str | Path,
    *,
    settings: Settings | None = None,
    memory: int | str = 2 * GIB,
    **options: Unpack[Options],
) -> HeadEffects:
    """Causal indirect effect of every attention head, exact, in one pass per prompt.

    In 16 bits the AIE of the lab model is within 0.01 (bfloat16) and 0.001 (float16) of float32's, or 0.03 and 0.003
    nats. On a TransformerBridge there is one pass per head.

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
        TaskError: too few pairs, or no instruction where `source` asks for one.
        PromptError: prompts longer than the context, or than `memory` can hold.
        ModelError: NaN or infinite activations.
    """
    chosen, memory = gather_options(Settings, settings, options), parse_bytes(memory)
    task, model = find_task(task), loader.as_model(model)
    task = leave_out_long(model, task, shots=chosen.shots, template=chosen.template)
    return measure_effects(model, task, task_mean_z(model, task, chosen), chosen, memory=memory)


def measure_effects(
    model: HookedTransformer,
    task: Task,
    z: MeanZ,
    settings: Settings,
    *,
    memory: int = 2 * GIB,
    model_digest: str | None = None,
) -> HeadEffects:
    """Patch given mean outputs `z` into the task's ranking prompts.

    Args:
        model_digest: Where it is known already: it reads every weight of the model.
    """
    queries, tokens = ranking_prompts(model, task, settings)
    baseline, cie = sweep.sweep(model, tokens, z, effect=settings.effect, memory=memory)
    return HeadEffects(
        cie=cie,
        baseline=baseline,
        queries=queries,
        mean_z=z,
        settings=settings,
        task=task.name,
        task_digest=task.digest,
        model=hooked.model_name(model),
        model_digest=model_digest or hooked.weight_digest(model),
    )


def task_mean_z(model: HookedTransformer, task: Task, settings: Settings) -> MeanZ:
    """Mean head output over `settings.clean_prompts` clean prompts of the task's mean part."""
    return mean_z(model, clean_prompts(model, task, settings)[1])


def clean_prompts(model: HookedTransformer, task: Task, settings: Settings) -> tuple[Int[Tensor, " prompt"], Tokens]:
    """What mean head outputs are the mean over, and the number of each one's query."""
    split = task.split(shots=settings.shots, seed=settings.seed)
    prompts = _clean(task, split, settings, settings.clean_prompts)
    return torch.arange(len(prompts)) % len(split.mean), tokenize(model, prompts)


def _clean(task: Task, split: Split, settings: Settings, n: int) -> list[Prompt]:
    return clean(
        task,
        cycled(split.mean, n),
        split.mean,
        source=settings.source,
        shots=settings.shots,
        generator=open_stream(settings.seed, Stream.CLEAN_PROMPTS),
        template=settings.template,
    )


def example_prompts(task: Task, settings: Settings) -> dict[str, dict[str, str]]:
    """The first clean and the first corrupted prompt, as the model reads them, each with its `answer`."""
    split = task.split(shots=settings.shots, seed=settings.seed)
    first = {"clean": _clean(task, split, settings, 1), "corrupted": _corrupted(split, settings, 1)}
    return {kind: {"text": prompts[0].text, "answer": prompts[0].answer} for kind, prompts in first.items()}


def ranking_prompts(model: HookedTransformer, task: Task, settings: Settings) -> tuple[Int[Tensor, " prompt"], Tokens]:
    """Corrupted prompts of the task's ranking part, and the number of each one's query.

    A part shorter than `settings.prompts` is asked again with other demonstrations; where there are none
    (zero-shot) the same prompt twice would only pretend to be evidence, and there are fewer prompts.
    """
    split = task.split(shots=settings.shots, seed=settings.seed)
    n = settings.prompts
    if settings.corruption == "zero-shot":
        n = min(n, len(split.rank))
    prompts = _corrupted(split, settings, n)
    tokens = tokenize(model, prompts)
    answer_check.check_answers(model, task, prompts, tokens, first_token=settings.effect == "prob")
    return torch.arange(n, device=tokens.prompts.device) % len(split.rank), tokens


def _corrupted(split: Split, settings: Settings, n: int) -> list[Prompt]:
    return corrupted(
        cycled(split.rank, n),
        split.mean,
        corruption=settings.corruption,
        shots=settings.shots,
        generator=open_stream(settings.seed, Stream.CORRUPTED_PROMPTS),
        template=settings.template,
    )
