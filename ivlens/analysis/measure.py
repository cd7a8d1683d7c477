"""What do an audit and a comparison do alike? Check what is asked, fix wordings and heads, and measure effects.

Whatever is a table is read from the run folder where an earlier, interrupted run has left it there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

from ivlens.analysis.options import AnalysisSettings, AuditSettings
from ivlens.analysis.wordings import choose_wording
from ivlens.attribution.head_scores import score_heads
from ivlens.datasets.task import Split, Task
from ivlens.errors import IvlensError
from ivlens.patching.effects import Queries, find_queries, measure_effects, task_mean_z
from ivlens.patching.head_effects import EFFECTS, HeadEffects
from ivlens.patching.rounding import ROUNDING, is_rounded, measure_rounding
from ivlens.patching.settings import Ranking, Settings
from ivlens.prompts.choices import GREEDY_MATCH
from ivlens.prompts.tokens import Tokens
from ivlens.replies.generation import NEW_TOKENS
from ivlens.shapes import Head
from ivlens.steering.head_choice import choose_heads, fix_heads
from ivlens.steering.trial_plan import Sizes
from ivlens.storage.run_tables import Tables

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Asked = TypeVar("Asked", bound=AnalysisSettings)
RANKING = ("layer", "head", "score")
COUNTS = (1, 2, 5, 10, 20, 50, 100)
"""Numbers of heads that vectors are made of."""


def check_heads(asked: Asked, model: HookedTransformer, options: Mapping[str, Any]) -> Asked:
    """The settings with their heads read, which say how many they are.

    Args:
        options: What was given one by one: `top` may be another number by default, but not if it was given.

    Raises:
        IvlensError: the model has no such head or fewer heads, `top` is another number of heads than are given, or
            there is a ranking beside them.
    """
    heads = choose_heads(asked.heads, model)
    if heads is not None and _rank_of(asked) != "aie":
        raise IvlensError(f"rank is {_rank_of(asked)!r}, but heads are given; leave one of the two out")
    if isinstance(heads, tuple):
        if options.get("top", len(heads)) != len(heads):
            raise IvlensError(f"top is {asked.top}, but heads are {len(heads)}; leave one of the two out")
        asked = replace(asked, top=len(heads))
    total = model.cfg.n_layers * model.cfg.n_heads
    if asked.top > total:
        raise IvlensError(f"top is {asked.top}, but the model has {total} heads; take fewer")
    return replace(asked, heads=heads)


def fix_choices(
    model: HookedTransformer, task: Task, asked: AnalysisSettings, *, tables: Tables, memory: int
) -> tuple[Task, tuple[Head, ...] | None]:
    """The task with the wordings that were asked for, and the heads; None where these are to be ranked by AIE."""
    settings = asked.measurement()
    task = choose_wording(model, task, asked.instruction, settings, score=asked.accuracy_score, tables=tables)
    if _rank_of(asked) != "aie":
        return task, _ranked_heads(model, task, asked, tables=tables, memory=memory)
    chosen = choose_heads(asked.heads, model)
    return task, fix_heads(
        chosen, model, task, settings, top=asked.top, tables=tables, score=asked.score, memory=memory
    )


def _rank_of(asked: AnalysisSettings) -> Ranking:
    return asked.rank if isinstance(asked, AuditSettings) else "aie"


def _ranked_heads(
    model: HookedTransformer, task: Task, asked: AnalysisSettings, *, tables: Tables, memory: int
) -> tuple[Head, ...]:
    """The first heads of another ranking than the AIE's, which is kept as a table."""

    def rank() -> pd.DataFrame:
        found = score_heads(model, task, _rank_of(asked), asked.measurement(), memory=memory)
        means = found.mean
        lines = [(*head, float(means[head])) for head in found.top(means.numel())]  # pyright: ignore
        return pd.DataFrame(lines, columns=list(RANKING))

    first = tables.table("ranking", rank, RANKING).iloc[: asked.top]
    return tuple(Head(int(layer), int(head)) for layer, head in zip(first["layer"], first["head"], strict=True))


def kept_effects(
    model: HookedTransformer,
    task: Task,
    settings: Settings,
    *,
    tables: Tables,
    table: str,
    name: str,
    digest: str,
    memory: int,
    queries: Queries | None = None,
) -> HeadEffects:
    """Effects, measured, or read from the table of a run that was killed later.

    Args:
        table: What the table is called.
        name: What the model is called.
        digest: Of the model's weights.
        queries: What is asked; by default, as `find_queries` finds it.
    """
    queries = queries or find_queries(model, task, settings)
    z = task_mean_z(model, task, settings, queries=queries)
    measure = partial(measure_effects, model, task, z, settings, memory=memory, model_digest=digest, queries=queries)
    return HeadEffects.from_frame(
        tables.table(table, lambda: measure().to_frame(), EFFECTS),
        mean_z=z,
        settings=settings,
        task=task.name,
        task_digest=task.digest,
        model=name,
        model_digest=digest,
    )


def keep_rounding(model: HookedTransformer, task: Task, effects: HeadEffects, *, tables: Tables, memory: int) -> None:
    """Of a model that computes in 16 bits, have it in a table of its own how far its effects are from float32's."""
    if is_rounded(model):
        tables.table("precision", lambda: measure_rounding(model, task, effects, memory=memory), ROUNDING)


def size_trials(
    model: HookedTransformer, asked: AuditSettings, split: Split, validation: Tokens, evaluation: Tokens
) -> Sizes:
    """What the work of an audit's trials depends on."""
    cfg, answers = model.cfg, tuple(evaluation.answer_mask.sum(1).tolist())
    ranking = min(asked.prompts, len(split.rank)) if asked.corruption == "zero-shot" else asked.prompts
    most = cfg.n_layers * cfg.n_heads if asked.heads is None and asked.rank == "aie" else asked.top
    read = round(float(evaluation.mask.sum(1).double().mean()))
    return Sizes(
        n_layers=cfg.n_layers,
        n_heads=cfg.n_heads,
        d_model=cfg.d_model,
        counts=tuple(count for count in COUNTS if count <= most),
        top=asked.top,
        draws=asked.draws,
        other_tasks=asked.other_tasks,
        ranking=ranking * max(answers) if asked.effect == "nll" else ranking,
        validation=tuple(validation.answer_mask.sum(1).tolist()),
        evaluation=answers,
        reply=0 if asked.accuracy_score == GREEDY_MATCH else read + NEW_TOKENS,
    )
