"""Measure what an explorer shows of a model: on the prompts of a task, or on prompts of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.analysis.probes import ability_prompts
from ivlens.datasets.task import Task, tasks
from ivlens.datasets.task import task as find_task
from ivlens.explorer.attention import read_attention
from ivlens.explorer.contents import Bounded, Kind, ModelHeads, ShownPrompt
from ivlens.explorer.writing import read_writing, token_text
from ivlens.measures import mean_bounds
from ivlens.patching.activations import mean_z
from ivlens.patching.effects import Queries, rank_prompts
from ivlens.patching.head_effects import HeadEffects
from ivlens.patching.settings import Settings
from ivlens.patching.sweep import sweep
from ivlens.prompts.builders import zero_shot
from ivlens.prompts.template import Prompt
from ivlens.prompts.tokens import tokenize
from ivlens.shapes import Cie
from ivlens.steering.necessity import other_prompts

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


@dataclass(frozen=True, kw_only=True)
class AskedPrompts:
    """What models are asked."""

    corrupted: tuple[Prompt, ...]
    """Heads are patched on these."""
    clean: tuple[Prompt, ...]
    """Heads are ablated on these."""
    others: tuple[Prompt, ...]
    """Show other tasks; the mean over them takes the place of an ablated head's output."""
    steered: tuple[Prompt, ...]
    """The vector is added on these."""
    own: bool = False
    """Whether they were given, and are no task's."""

    def shown(self, model: HookedTransformer, most: int) -> tuple[ShownPrompt, ...]:
        """The prompts whose attention is shown, with their tokens: of a task the first `most` of each kind."""
        of_task: dict[Kind, tuple[Prompt, ...]] = {"corrupted": self.corrupted, "clean": self.clean}
        kinds: dict[Kind, tuple[Prompt, ...]] = {"given": self.corrupted} if self.own else of_task
        most = len(self.corrupted) if self.own else most
        return tuple(
            ShownPrompt(kind=kind, number=number, prompt=prompt, tokens=_texts(model, prompt))
            for kind, prompts in kinds.items()
            for number, prompt in enumerate(prompts[:most])
        )


def prompts_of_task(
    model: HookedTransformer, task: Task, settings: Settings, queries: Queries, *, steered: int
) -> AskedPrompts:
    """Those that effects are measured on, and, of the pairs that audits report, those that heads are ablated on."""
    split, seed, template = task.split(shots=settings.shots, seed=settings.seed), settings.seed, settings.template
    pairs = split.evaluation[: settings.prompts]
    asked = ability_prompts(task, pairs, split.mean, shots=settings.shots, template=template, seed=seed)
    is_written = settings.source == "instruction"
    shots = 0 if is_written else settings.shots
    return AskedPrompts(
        corrupted=tuple(rank_prompts(task, settings, queries.rank)),
        clean=tuple(asked["instructed" if is_written else "few-shot"]),
        others=tuple(other_prompts(model, task, template=template, seed=seed, shots=shots)),
        steered=tuple(zero_shot(split.evaluation[:steered], template=template)),
    )


def prompts_of_ones_own(model: HookedTransformer, prompts: Sequence[Prompt], effects: HeadEffects) -> AskedPrompts:
    """All is measured on the prompts that were given; ablated heads put out their mean over other tasks' prompts."""
    settings, own = effects.settings, Task(name=effects.task, pairs=tuple(prompt.query for prompt in prompts))
    others = [one for one in map(find_task, tasks()) if one.digest != effects.task_digest]
    shots = 0 if settings.source == "instruction" else settings.shots
    return AskedPrompts(
        corrupted=tuple(prompts),
        clean=tuple(prompts),
        others=tuple(other_prompts(model, own, others, template=settings.template, seed=settings.seed, shots=shots)),
        steered=tuple(prompts),
        own=True,
    )


def measure_heads(
    model: HookedTransformer,
    asked: AskedPrompts,
    effects: HeadEffects,
    shown: Sequence[ShownPrompt],
    *,
    name: str,
    memory: int,
) -> ModelHeads:
    """Everything of one model's heads that was not measured with their effects."""
    cie, unpatched = effects.cie, effects.baseline
    if asked.own:
        tokens = tokenize(model, asked.corrupted)
        unpatched, cie = sweep(model, tokens, effects.mean_z, effect=effects.settings.effect, memory=memory)
    whole, lost = _ablate(model, asked, memory)
    return ModelHeads(
        name=name,
        digest=effects.model_digest,
        aie=Bounded(effects.aie.cpu(), *(end.cpu() for end in effects.interval())),
        cie=cie.cpu(),
        unpatched=unpatched.cpu(),
        lost=Bounded(lost.mean(0), *(end.clamp(-1, 1) for end in mean_bounds(lost))),
        lost_by_prompt=lost,
        whole=whole,
        writing=read_writing(model, effects.mean_z),
        attention=tuple(read_attention(model, tokenize(model, [one.prompt for one in shown]))),
    )


def _ablate(model: HookedTransformer, asked: AskedPrompts, memory: int) -> tuple[Float[Tensor, " prompt"], Cie]:
    """P(answer) of every clean prompt, and what of it is lost without each head; NaN where no other task can be asked.

    To ablate a head is to patch its mean over other tasks' prompts in: the sweep does it for all heads at once.
    """
    tokens = tokenize(model, asked.clean)
    if not asked.others:
        n, grid = len(asked.clean), (model.cfg.n_layers, model.cfg.n_heads)
        return torch.full((n,), torch.nan, dtype=torch.float64), torch.full((n, *grid), torch.nan, dtype=torch.float64)
    whole, changed = sweep(model, tokens, mean_z(model, tokenize(model, asked.others)), memory=memory)
    return whole.double().cpu(), -changed.double().cpu()


def _texts(model: HookedTransformer, prompt: Prompt) -> tuple[str, ...]:
    return tuple(token_text(model, token) for token in tokenize(model, [prompt]).prompts[0].tolist())
