"""Which heads speak to a head, and which to the logits? Paths on the prompts of the average indirect effect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from ivlens.attribution import paths
from ivlens.attribution.paths import LOGITS, Receiver
from ivlens.attribution.site_effects import SiteEffects, head_columns
from ivlens.attribution.site_patching import Clean, ask, check_clean, origin, put_in
from ivlens.datasets.task import Task
from ivlens.datasets.task import task as find_task
from ivlens.errors import as_ivlens_error
from ivlens.models import loader
from ivlens.patching.settings import Options, Settings, gather_options, parse_bytes
from ivlens.prompts.long_pairs import leave_out_long
from ivlens.prompts.roles import Position
from ivlens.shapes import GIB

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


@as_ivlens_error()
def path_effects(
    model: HookedTransformer | str | Path,
    task: Task | str | Path,
    *,
    receiver: str = LOGITS,
    position: Position = "last",
    clean: Clean = "mean",
    settings: Settings | None = None,
    memory: int | str = 2 * GIB,
    **options: Unpack[Options],
) -> SiteEffects:
    """What each head does to the answer by what it tells a receiver directly, exact, in one pass per prompt.

    A head is given its clean output, and of what it then writes the receiver alone takes notice: heads and MLPs between
    them stay as they are on the corrupted prompt. Unit, prompts and clean values are those of `site_effects`. Source:
    path patching of Wang et al. 2022, arXiv:2211.00593, there with MLPs in between that pass the change on.

    >>> told = ivlens.path_effects(model, task, receiver="L4H0.q", prompts=6, shots=5)
    >>> told.effects.shape, bool(told.effects[:, 4:].isnan().all())  # [prompt layer head]; no later head is read
    (torch.Size([6, 6, 8]), True)

    Args:
        model, task: Also by what `ivlens.load` and `ivlens.task` take: a name, a path.
        receiver: `logits`, or a head's query, key or value, such as `L9H6.q`: `q` at the position itself, `k` and `v`
            as they are read from all positions behind it, too.
        position: At which tokens heads are given other outputs; a role or a number, as for `site_effects`.
        clean: `mean` or `own`, as for `site_effects`.
        settings: All options at once.
        options: Fields of `Settings`, such as `shots=5`.
        memory: What may be taken beside the weights, in bytes or such as "2GiB".

    Raises:
        IvlensError: no such receiver, position or option.
        TaskError, PromptError: as for `site_effects`.
        ModelError: a TransformerBridge with a receiver that is not the logits, or NaN or infinite activations.
    """
    chosen, memory = gather_options(Settings, settings, options), parse_bytes(memory)
    check_clean(clean)
    task, model = find_task(task), loader.as_model(model)
    found = Receiver.parse(receiver, model)
    task = leave_out_long(model, task, shots=chosen.shots, template=chosen.template)
    asked = ask(model, task, chosen, [position], clean=clean)
    values = put_in(model, asked.sources[0], "heads", clean)
    baseline, effects = paths.sweep(
        model, asked.tokens, asked.where[0], values, found, effect=chosen.effect, memory=memory
    )
    return SiteEffects(
        effects=effects,
        baseline=baseline,
        queries=asked.queries,
        site=f"paths to {receiver} at {position}",
        columns=head_columns(model),
        unit=chosen.unit,
        settings=chosen,
        **origin(model, task),
    )
