"""Which site carries the task at which tokens, and from which layer on?

Asked of the same prompts as the average indirect effect of heads (`indirect_effects`), with the same means over clean
prompts, or with what the model computes on each prompt's own clean twin.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ivlens.attribution import site_sweep
from ivlens.attribution.site import Given, Site, check_site, mean_values, read_values
from ivlens.attribution.site_effects import SiteEffects, head_columns
from ivlens.datasets.task import Task
from ivlens.datasets.task import task as find_task
from ivlens.errors import IvlensError, TaskError, TaskWarning, as_ivlens_error
from ivlens.models import hooked, loader
from ivlens.patching.effects import Queries, find_queries, mean_prompts, rank_prompts
from ivlens.patching.settings import Options, Settings, gather_options, parse_bytes
from ivlens.prompts.answer_check import check_answers
from ivlens.prompts.builders import clean, cycled, twins
from ivlens.prompts.long_pairs import leave_out_long
from ivlens.prompts.roles import Position, find_columns
from ivlens.prompts.template import Prompt
from ivlens.prompts.tokens import Tokens, tokenize
from ivlens.random_streams import Stream, open_stream
from ivlens.shapes import GIB

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Clean = Literal["mean", "own"]
FEWEST = 2
"""Prompts that are measured; fewer have no interval."""


@as_ivlens_error()
def site_effects(
    model: HookedTransformer | str | Path,
    task: Task | str | Path,
    *,
    site: Site = "mlp_out",
    positions: Position | Sequence[Position] = "last",
    clean: Clean = "mean",
    settings: Settings | None = None,
    memory: int | str = 2 * GIB,
    **options: Unpack[Options],
) -> SiteEffects:
    """What each layer carries at a site and at some tokens, exact, in one pass per prompt and position.

    The effect is P(answer | patched) - P(answer | unpatched) on a corrupted prompt, as in `indirect_effects`, whose
    numbers `site="heads"` gives at the last token; with `nll`, as much log-likelihood in nats.

    >>> streams = ivlens.site_effects(model, task, site="resid_post", positions=["last-output", -2], prompts=6, shots=5)
    >>> streams.columns, streams.effects.shape  # [prompt layer column]
    (('last-output', '-2'), torch.Size([6, 6, 2]))

    Args:
        model, task: Also by what `ivlens.load` and `ivlens.task` take: a name, a path.
        site: `attn_out` or `mlp_out`: what attention or MLP adds to the residual stream; `layer_out`: both, and all
            else that a block adds; `resid_pre` or `resid_post`: the residual stream before or after it; `heads`: each
            head's output before `W_O`, at one position.
        positions: A role (`last`, `query`, `last-output`, `outputs`, `inputs`, `separators`, `instruction`; its tokens
            are patched together), the number of a token, -1 being the last one, or several of either, patched one by
            one.
        clean: What is put in: `mean`, over clean prompts, of the position's tokens; or `own`, of each token what it is
            on the prompt's clean twin, where the position has as many tokens there; other prompts are left out.
        settings: All options at once.
        options: Fields of `Settings`, such as `shots=5`.
        memory: What may be taken beside the weights, in bytes or such as "2GiB".

    Raises:
        IvlensError: no such site, position or option, or heads at several positions.
        TaskError: too few pairs, or too few prompts with a twin.
        PromptError: a prompt has no token of a role, or prompts are longer than the context.
        ModelError: NaN or infinite activations, or a model that does not compute the site.
    """
    chosen, memory = gather_options(Settings, settings, options), parse_bytes(memory)
    wanted = [positions] if isinstance(positions, str | int) else list(positions)
    check_request(site, wanted)
    check_clean(clean)
    task, model = find_task(task), loader.as_model(model)
    check_site(model, site)
    task = leave_out_long(model, task, shots=chosen.shots, template=chosen.template)
    asked = ask(model, task, chosen, wanted, clean=clean)
    baseline, grids = None, []
    for where, source in zip(asked.where, asked.sources, strict=True):
        values = put_in(model, source, site, clean)
        baseline, found = site_sweep.sweep(
            model, asked.tokens, where, values, site, effect=chosen.effect, memory=memory
        )
        grids.append(found)
    assert baseline is not None
    return SiteEffects(
        effects=torch.cat(grids, dim=2),
        baseline=baseline,
        queries=asked.queries,
        site=site,
        columns=head_columns(model) if site == "heads" else tuple(map(str, wanted)),
        unit=chosen.unit,
        settings=chosen,
        **origin(model, task),
    )


def origin(model: HookedTransformer, task: Task) -> dict[str, str]:
    """What effects are of, as their fields."""
    return {
        "task": task.name,
        "task_digest": task.digest,
        "model": hooked.model_name(model),
        "model_digest": hooked.weight_digest(model),
    }


@dataclass(frozen=True, kw_only=True)
class Source:
    """Clean prompts and the tokens of them that give what is put in."""

    tokens: Tokens
    where: Bool[Tensor, "prompt pos"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Corrupted prompts, which of their tokens are patched, position by position, and where clean values are from."""

    tokens: Tokens
    queries: Int[Tensor, " prompt"]
    where: list[Bool[Tensor, "prompt pos"]]
    sources: list[Source]
    """With a twin for every prompt where each has its own."""


def ask(model: HookedTransformer, task: Task, settings: Settings, wanted: Sequence[Position], *, clean: Clean) -> Asked:
    """The prompts of a measurement, those of the AIE.

    Raises:
        TaskError: fewer than two prompts have as many tokens as their twins at all positions.
    """
    queries = find_queries(model, task, settings)
    prompts = rank_prompts(task, settings, queries.rank)
    tokens = tokenize(model, prompts)
    check_answers(model, task, prompts, tokens, first_token=settings.effect == "prob")
    where = [find_columns(model, prompts, tokens, position) for position in wanted]
    shown = mean_prompts(task, settings, queries.mean) if clean == "mean" else own_twins(task, settings, queries)
    given = tokenize(model, shown)
    sources = [Source(tokens=given, where=find_columns(model, shown, given, position)) for position in wanted]
    numbers = torch.arange(len(prompts), device=tokens.prompts.device) % len(queries.rank)
    if clean == "mean":
        return Asked(tokens=tokens, queries=numbers, where=where, sources=sources)
    pairs = zip(where, sources, strict=True)
    kept = torch.stack([here.sum(1) == source.where.sum(1) for here, source in pairs]).all(0).nonzero()[:, 0]
    if len(kept) < len(prompts):
        _report_left_out(task, len(kept), len(prompts))
        given, sources = given[kept], [Source(tokens=given[kept], where=one.where[kept]) for one in sources]
        tokens, where, numbers = tokens[kept], [one[kept] for one in where], numbers[kept]
        where = [one[:, -tokens.prompts.shape[1] :] for one in where]
        sources = [Source(tokens=given, where=one.where[:, -given.prompts.shape[1] :]) for one in sources]
    return Asked(tokens=tokens, queries=numbers, where=where, sources=sources)


def own_twins(task: Task, settings: Settings, queries: Queries) -> list[Prompt]:
    """Of each corrupted prompt the clean one: outputs in their places, or the query with demonstrations of its own."""
    split = task.split(shots=settings.shots, seed=settings.seed)
    asked = [prompt.query for prompt in rank_prompts(task, settings, queries.rank)]
    if settings.corruption == "shuffled" and settings.source == "demonstrations":
        drawn = open_stream(settings.seed, Stream.CORRUPTED_PROMPTS)
        both = twins(asked, split.mean, shots=settings.shots, generator=drawn, template=settings.template)
        return [kept for kept, _ in both]
    return clean(
        task,
        cycled(asked, len(asked)),
        split.mean,
        source=settings.source,
        shots=settings.shots,
        generator=open_stream(settings.seed, Stream.CLEAN_PROMPTS),
        template=settings.template,
    )


def put_in(model: HookedTransformer, source: Source, site: Site, clean: Clean) -> Given:
    """What a site is given: the mean over clean prompts, or of each prompt what it is on its twin."""
    return (mean_values if clean == "mean" else read_values)(model, source.tokens, source.where, site)


def check_request(site: str, wanted: Sequence[Position]) -> None:
    """Raises IvlensError where there is no position, one twice, or several for heads."""
    if not wanted:
        raise IvlensError("positions are empty; give at least one, such as 'last'")
    if len(set(map(str, wanted))) < len(wanted):
        raise IvlensError(f"positions {', '.join(map(str, wanted))} name one of them twice; name each once")
    if site == "heads" and len(wanted) > 1:
        raise IvlensError(f"site is 'heads' at {len(wanted)} positions; heads are patched at one, call it for each")


def check_clean(clean: str) -> None:
    """Raises IvlensError where it is none of the choices."""
    if clean not in ("mean", "own"):
        raise IvlensError(f"clean is {clean!r}; it must be 'mean' or 'own'")


def _report_left_out(task: Task, kept: int, total: int) -> None:
    said = (
        f"of task {task.name!r}, {kept} of {total} prompts have as many tokens at every position as their clean twins"
    )
    if kept < FEWEST:
        raise TaskError(f"{said}; clean='own' needs {FEWEST}: take clean='mean', or other positions")
    warnings.warn(f"{said}; the others are left out", TaskWarning, stacklevel=3)
