"""Where do two models part? One is given what the other computes on the same prompt, at one site and layer at a time.

The base model's activations in the tuned one say where fine-tuning changed what is computed; the other way around,
which change suffices. What both agree on up to a layer changes nothing there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import torch

from ivlens.attribution import site_sweep
from ivlens.attribution.logit_parts import On, check_on
from ivlens.attribution.site import Site, check_site, read_values
from ivlens.attribution.site_effects import SiteEffects, head_columns
from ivlens.attribution.site_patching import check_request, origin, own_twins
from ivlens.datasets.task import Task
from ivlens.datasets.task import task as find_task
from ivlens.errors import IvlensError, ShapeMismatch, as_ivlens_error
from ivlens.models import loader
from ivlens.models.hooked import model_name
from ivlens.patching.effects import find_queries, rank_prompts
from ivlens.patching.settings import Options, Settings, gather_options, parse_bytes
from ivlens.prompts.answer_check import check_answers
from ivlens.prompts.long_pairs import leave_out_long
from ivlens.prompts.roles import Position, find_columns
from ivlens.prompts.tokens import tokenize
from ivlens.shapes import GIB

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

SIZES = ("n_layers", "n_heads", "d_head", "d_model", "d_vocab")


@as_ivlens_error()
def donor_effects(
    model: HookedTransformer | str | Path,
    donor: HookedTransformer | str | Path,
    task: Task | str | Path,
    *,
    site: Site = "resid_post",
    positions: Position | Sequence[Position] = "last",
    on: On = "clean",
    settings: Settings | None = None,
    memory: int | str = 2 * GIB,
    **options: Unpack[Options],
) -> SiteEffects:
    """What another model's activations do to a model's answers, layer by layer, exact, in one pass per prompt.

    The effect is P(answer | patched) - P(answer | unpatched) of `model`, on prompts that both read; with `nll`, as much
    log-likelihood in nats. Called once each way for a model before and after fine-tuning.

    >>> other = ivlens.load("lab")
    >>> other.blocks[3].attn.W_O.data[3] = 0.0  # Its L3H3 writes nothing.
    >>> back = ivlens.donor_effects(other, model, task, site="attn_out", shots=5, prompts=6)
    >>> back.effects.shape, float(back.mean[:3].abs().max()) < 1e-5  # [prompt layer column]; below, nothing differs.
    (torch.Size([6, 6, 1]), True)

    Args:
        model, task: Also by what `ivlens.load` and `ivlens.task` take: a name, a path.
        donor: The model whose activations are put in, of the same sizes and tokens.
        site, positions: As for `site_effects`.
        on: `clean`: prompts that show the task and ask the queries of the AIE; `corrupted`: the prompts of the AIE.
        settings: All options at once.
        options: Fields of `Settings`, such as `shots=5`.
        memory: What may be taken beside the weights, in bytes or such as "2GiB".

    Raises:
        ShapeMismatch: the models have other sizes.
        IvlensError: they read other tokens; no such site, position or option, or heads at several positions.
        TaskError, PromptError, ModelError: as for `site_effects`.
    """
    chosen, memory = gather_options(Settings, settings, options), parse_bytes(memory)
    wanted = [positions] if isinstance(positions, str | int) else list(positions)
    check_request(site, wanted)
    check_on(on)
    task, model, donor = find_task(task), loader.as_model(model), loader.as_model(donor)
    for one in (model, donor):
        check_site(one, site)
    _check_sizes(model, donor)
    task = leave_out_long(model, task, shots=chosen.shots, template=chosen.template)
    queries = find_queries(model, task, chosen)
    prompts = own_twins(task, chosen, queries) if on == "clean" else rank_prompts(task, chosen, queries.rank)
    tokens, theirs = tokenize(model, prompts), tokenize(donor, prompts)
    if not torch.equal(tokens.prompts.cpu(), theirs.prompts.cpu()):
        raise IvlensError(
            f"{model_name(model)} and {model_name(donor)} read a prompt as other tokens; give two models of one "
            "tokenizer"
        )
    check_answers(model, task, prompts, tokens, first_token=chosen.effect == "prob")
    baseline, grids = None, []
    for position in wanted:
        where = find_columns(model, prompts, tokens, position)
        values = read_values(donor, theirs, where.to(theirs.prompts.device), site)
        baseline, found = site_sweep.sweep(model, tokens, where, values, site, effect=chosen.effect, memory=memory)
        grids.append(found)
    assert baseline is not None
    return SiteEffects(
        effects=torch.cat(grids, dim=2),
        baseline=baseline,
        queries=torch.arange(len(tokens), device=baseline.device) % len(queries.rank),
        site=f"{site} of {model_name(donor)}",
        columns=head_columns(model) if site == "heads" else tuple(map(str, wanted)),
        unit=chosen.unit,
        settings=chosen,
        **origin(model, task),
    )


def _check_sizes(model: HookedTransformer, donor: HookedTransformer) -> None:
    for name in SIZES:
        ours, theirs = getattr(model.cfg, name), getattr(donor.cfg, name)
        if ours != theirs:
            raise ShapeMismatch(
                f"{model_name(model)} has {name} {ours}, and {model_name(donor)} {theirs}; give two models of one shape"
            )
