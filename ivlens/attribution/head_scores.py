"""Which heads matter, asked in other ways than by patching: by one gradient, and by taking each away.

- Gradient (attribution patching): the effect of patching a head, to first order: the gradient of the answer's
  probability by the head's output, times the change of that output. One backward pass gives all heads of a batch.
  Source: Nanda 2023, "Attribution patching"; Syed et al. 2023, arXiv:2310.10348.
- Ablation: what is lost from a prompt that shows the task when the head's output is replaced by its mean over prompts
  of other tasks. This is a sweep, too, with other prompts and other means.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.attribution.site_effects import SiteEffects, head_columns
from ivlens.attribution.site_patching import origin
from ivlens.datasets.task import Task
from ivlens.datasets.task import task as find_task
from ivlens.errors import IvlensError, TaskError, as_ivlens_error
from ivlens.forward.memory import count_at_once
from ivlens.forward.token_batches import batches
from ivlens.measures import answer_log_prob, first_token_probability
from ivlens.models import bridge, loader
from ivlens.patching import sweep
from ivlens.patching.activations import check_mean_z, differentiable_answer_logits, mean_z
from ivlens.patching.effects import Queries, find_queries, ranking_prompts, task_mean_z
from ivlens.patching.settings import Effect, Options, Ranking, Settings, gather_options, parse_bytes
from ivlens.prompts.builders import clean, cycled
from ivlens.prompts.long_pairs import leave_out_long
from ivlens.prompts.tokens import Tokens, tokenize
from ivlens.random_streams import Stream, open_stream
from ivlens.shapes import GIB, Cie, MeanZ
from ivlens.steering.necessity import other_prompts

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

RANKINGS: tuple[Ranking, ...] = get_args(Ranking)


@as_ivlens_error()
def head_scores(
    model: HookedTransformer | str | Path,
    task: Task | str | Path,
    *,
    by: Ranking = "gradient",
    settings: Settings | None = None,
    memory: int | str = 2 * GIB,
    **options: Unpack[Options],
) -> SiteEffects:
    """A score of every head on every prompt, by which heads can be ranked in place of the AIE.

    Scores are probabilities, or nats with `nll`, and positive where a head carries the task; those of `gradient` are
    estimates of the CIE, and may leave [-1, 1].

    >>> estimated = ivlens.head_scores(model, task, by="gradient")
    >>> estimated.top(1), effects.top(1)
    ([L3H3], [L3H3])

    Args:
        model, task: Also by what `ivlens.load` and `ivlens.task` take: a name, a path.
        by: `aie`: the effects of `indirect_effects`; `gradient`: their estimate by one backward pass, on the same
            prompts; `ablation`: what is lost on clean prompts of the same queries when a head alone is replaced by its
            mean over prompts of other tasks.
        settings: All options at once.
        options: Fields of `Settings`, such as `shots=5`.
        memory: What sweeps may take beside the weights, in bytes or such as "2GiB".

    Raises:
        IvlensError: no such option or ranking.
        TaskError: too few pairs, or no other task can be asked for the means of ablated heads.
        PromptError, ModelError: as for `indirect_effects`.
    """
    chosen, memory = gather_options(Settings, settings, options), parse_bytes(memory)
    if by not in RANKINGS:
        raise IvlensError(f"by is {by!r}; it must be {' or '.join(map(repr, RANKINGS))}")
    task, model = find_task(task), loader.as_model(model)
    task = leave_out_long(model, task, shots=chosen.shots, template=chosen.template)
    return score_heads(model, task, by, chosen, memory=memory)


def score_heads(
    model: HookedTransformer, task: Task, by: Ranking, settings: Settings, *, memory: int = 2 * GIB
) -> SiteEffects:
    """See `head_scores`."""
    queries = find_queries(model, task, settings)
    if by == "ablation":
        numbers, tokens = _clean_prompts(model, task, settings, queries)
        z = ablation_means(model, task, settings)
        measure: Any = partial(ablation_sweep, memory=memory)
    else:
        numbers, tokens = ranking_prompts(model, task, settings, queries=queries)
        z = task_mean_z(model, task, settings, queries=queries)
        measure = gradient_sweep if by == "gradient" else partial(sweep.sweep, memory=memory)
    baseline, scores = measure(model, tokens, z, effect=settings.effect)
    return SiteEffects(
        effects=scores,
        baseline=baseline,
        queries=numbers,
        site={"aie": "heads", "gradient": "gradient of heads", "ablation": "loss without a head"}[by],
        columns=head_columns(model),
        unit=settings.unit,
        settings=settings,
        **origin(model, task),
    )


def gradient_sweep(
    model: HookedTransformer, tokens: Tokens, z: MeanZ, *, effect: Effect = "prob"
) -> tuple[Float[Tensor, " prompt"], Cie]:
    """The effects of `patching.sweep.sweep` to first order, by one forward and one backward pass.

    Returns:
        The unpatched value per prompt, and the gradient by each head's output times its change to `z`.

    Raises:
        ShapeMismatch: `z` is from a model with other heads.
    """
    check_mean_z(model, z, what="mean_z is", remedy="recompute it with mean_z(model, clean)")
    bridge.check_bridge(model)
    tokens = tokens if effect == "nll" else tokens.first()
    parts = [_gradient(model, batch, z, effect) for batch in batches(tokens, most=count_at_once(model, tokens))]
    return torch.cat([value for value, _ in parts]), torch.cat([scores for _, scores in parts])


def _gradient(model: HookedTransformer, tokens: Tokens, z: MeanZ, effect: Effect) -> tuple[Tensor, Tensor]:
    seen: list[Tensor] = []

    def enter(resid: Tensor, hook: object) -> Tensor:
        return resid.detach().requires_grad_()  # The weights themselves ask for no gradient.

    def keep(heads: Tensor, hook: object) -> Tensor:
        # Set to what it is: a bridge's hook may be given a view that nothing is computed from.
        seen.append(heads.clone())
        return seen[-1]

    hooks: list[Any] = [("blocks.0.hook_resid_pre", enter)]
    hooks += [(f"blocks.{layer}.attn.hook_z", keep) for layer in range(model.cfg.n_layers)]
    with torch.enable_grad(), model.hooks(fwd_hooks=hooks):
        logits = differentiable_answer_logits(model, tokens)
        value = (
            answer_log_prob(logits, tokens.answers, tokens.answer_mask)
            if effect == "nll"
            else first_token_probability(logits, tokens.answers)
        )
        gradients = torch.autograd.grad(value.sum(), seen)
    column, shape = tokens.prompts.shape[1] - 1, (len(tokens), model.cfg.n_heads, model.cfg.d_head)
    scores = []
    for layer, (heads, gradient) in enumerate(zip(seen, gradients, strict=True)):
        change = z[layer].to(heads.device) - heads[:, column].detach().reshape(shape).to(z.dtype)
        scores.append((gradient[:, column].reshape(shape).to(z.dtype) * change).sum(-1).to(tokens.answers.device))
    return value.detach(), torch.stack(scores, 1)


def ablation_sweep(
    model: HookedTransformer, tokens: Tokens, z: MeanZ, *, effect: Effect = "prob", memory: int = 2 * GIB
) -> tuple[Float[Tensor, " prompt"], Cie]:
    """What is lost from clean prompts when each head alone puts out `z`: the sweep, with its sign turned around."""
    baseline, change = sweep.sweep(model, tokens, z, effect=effect, memory=memory)
    return baseline, -change


def ablation_means(model: HookedTransformer, task: Task, settings: Settings) -> MeanZ:
    """Mean head output over prompts of other tasks that show theirs as this one's clean prompts do.

    Raises:
        TaskError: no other task can be asked.
    """
    shots = 0 if settings.source == "instruction" else settings.shots
    others = other_prompts(model, task, template=settings.template, seed=settings.seed, shots=shots)
    if not others:
        raise TaskError(
            "no built-in task can be asked of this model in this way, and ablated heads are given the mean over other "
            "tasks; use fewer shots, or rank by aie or gradient"
        )
    return mean_z(model, tokenize(model, others))


def _clean_prompts(model: HookedTransformer, task: Task, settings: Settings, queries: Queries) -> tuple[Tensor, Tokens]:
    """Clean prompts of the ranking queries, as many as there are corrupted ones."""
    split = task.split(shots=settings.shots, seed=settings.seed)
    n = settings.prompts
    if settings.source == "instruction":  # Where nothing is drawn, a query asked again is no evidence.
        n = min(n, len(queries.rank))
    prompts = clean(
        task,
        cycled(queries.rank, n),
        split.mean,
        source=settings.source,
        shots=settings.shots,
        generator=open_stream(settings.seed, Stream.CORRUPTED_PROMPTS),
        template=settings.template,
    )
    tokens = tokenize(model, prompts)
    return torch.arange(len(prompts), device=tokens.prompts.device) % len(queries.rank), tokens
