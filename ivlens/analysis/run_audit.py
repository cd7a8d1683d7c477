"""The whole audit of one model on one task: what can it do, which heads carry it, does their vector do the task?

Everything is measured on pairs that nothing was chosen on: the task's pairs are split into a part that gives the mean
head outputs, one that ranks heads, one that chooses layers, and one that is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from ivlens import prompts
from ivlens.analysis import wordings
from ivlens.analysis.audit import HEADS, MEASURES, STEERING, Audit
from ivlens.analysis.wordings import Choice, choose_wording, record_unusual
from ivlens.datasets.task import Split, Task, tasks
from ivlens.datasets.task import task as find_task
from ivlens.errors import IvlensError
from ivlens.models import hooked
from ivlens.patching.activations import score_answers
from ivlens.patching.effects import example_prompts, measure_effects, task_mean_z
from ivlens.patching.head_effects import EFFECTS, HeadEffects
from ivlens.patching.settings import Settings
from ivlens.patching.sweep import Effect
from ivlens.prompts.builders import Corruption, Source
from ivlens.prompts.chat import Layout
from ivlens.prompts.template import DEFAULT, Prompt
from ivlens.prompts.tokens import tokenize
from ivlens.random_streams import Stream, open_stream
from ivlens.shapes import GIB, Head
from ivlens.steering import controls, trials
from ivlens.steering.head_choice import Asked, Chosen, choose_heads, fix_heads
from ivlens.steering.trials import DRAWS, PLACES
from ivlens.steering.vector_building import instruction_vector
from ivlens.storage import run_folder
from ivlens.storage.run_folder import Table

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer
COUNTS = (1, 2, 5, 10, 20, 50, 100)


def audit(
    model: HookedTransformer,
    task: Task | str | Path,
    *,
    out: str | Path | None = None,
    shots: int = 10,
    clean_prompts: int = 100,
    prompts: int = 25,
    top: int = 10,
    heads: Asked | None = None,
    corruption: Corruption = "shuffled",
    source: Source = "demonstrations",
    instruction: Choice = "all",
    effect: Effect = "prob",
    draws: int = 5,
    other_tasks: int = 3,
    seed: int = 0,
    memory: int = 2 * GIB,
    template: Layout = DEFAULT,
) -> Audit:
    """Audit a model on a task: which heads carry it, what vector do they write, and what does that do beside controls?

    >>> short = {"shots": 5, "clean_prompts": 8, "prompts": 6, "draws": 1, "other_tasks": 0}
    >>> found = ivlens.audit(model, "antonym", heads="L3H3", **short)
    >>> found.vector.heads, found.measures["measure"].tolist()[:2]
    ((L3H3,), ['zero-shot', 'instructed'])

    Args:
        out: Run folder to write to, and to resume from; nothing is written without it.
        top: How many heads make up the vector; as many as there are where `heads` are given.
        heads: In place of those of largest AIE: heads, `L9H6,L3H2`, a file of heads (see
            `ivlens.steering.head_choice.choose_heads`), or `universal`, those that carry the other built-in tasks.
        instruction: Wordings of the task's instruction: `all` in turn, the N-th (from 1), or the `best`, which is
            chosen on validation pairs.
        draws: Sets of random and of bottom heads, and Gaussians, each of which is a control.
        other_tasks: Built-in tasks whose vectors are controls.
        memory: Bytes that patching and steering may take beside the weights. Does not change the numbers.

    For the other arguments see `indirect_effects`.

    Raises:
        TaskError, PromptError, ModelError: the task, prompts or model cannot serve.
        IvlensError: a number below its least, or more heads than the model has.
        RunError: `out` is of another configuration (the differences are named), or cannot be written.
    """
    if not isinstance(task, Task):
        task = find_task(task)
    wordings.check_choice(task, instruction)
    chosen_heads = choose_heads(heads, model)
    top = len(chosen_heads) if isinstance(chosen_heads, tuple) else top
    settings = Settings(
        shots=shots,
        clean_prompts=clean_prompts,
        prompts=prompts,
        corruption=corruption,
        source=source,
        effect=effect,
        seed=seed,
        template=template,
    )
    for name, value, least in (("top", top, 1), ("draws", draws, 1), ("other_tasks", other_tasks, 0)):
        if value < least:
            raise IvlensError(f"{name} is {value}; it must be {least} or more")
    if top > model.cfg.n_layers * model.cfg.n_heads:
        raise IvlensError(f"top is {top}, but the model has {model.cfg.n_layers * model.cfg.n_heads} heads; take fewer")
    work = _Work(
        model=model,
        task=task,
        split=task.split(shots=shots, seed=seed),
        settings=settings,
        top=top,
        heads=chosen_heads,
        instruction=instruction,
        draws=draws,
        other_tasks=other_tasks,
        memory=memory,
    )
    if out is None:
        return work.all(lambda name, compute, columns: compute())
    chosen = {**asdict(settings), "top": top, "draws": draws, "other_tasks": other_tasks}
    chosen |= record_unusual(chosen_heads, instruction)
    with run_folder.open_run(
        out,
        command="audit",
        settings={key: value for key, value in chosen.items() if key != "seed"},
        sources={
            "model": run_folder.Source(name=hooked.model_name(model), digest=work.digest),
            "task": run_folder.Source(name=task.name, digest=task.digest),
        },
        seed=seed,
    ) as run:
        if not run.is_complete:
            found = work.all(lambda name, compute, columns: run.table(name, compute, columns=columns))
            run.write_with("vector.safetensors", found.vector.save)
            run.write_json("prompts.json", example_prompts(task, settings))
            run.complete()
    return Audit.read(out)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """One audit on its way."""

    model: HookedTransformer
    task: Task
    split: Split
    settings: Settings
    top: int
    heads: Chosen
    instruction: Choice
    draws: int
    other_tasks: int
    memory: int

    @cached_property
    def digest(self) -> str:
        return hooked.weight_digest(self.model)

    def all(self, table: Table) -> Audit:
        kept: dict[str, pd.DataFrame] = {}

        def keep(name: str, compute: Callable[[], pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
            kept[name] = table(name, compute, columns)
            return kept[name]

        task = choose_wording(self.model, self.task, self.instruction, self.settings, table=keep)
        work = self if task is self.task else replace(self, task=task)
        found = work.measured(keep)
        return replace(found, instructions=kept.get("instructions"), universal=kept.get("universal_tasks"))

    def measured(self, table: Table) -> Audit:
        effects = self.effects(table)
        fixed = fix_heads(
            self.heads, self.model, self.task, self.settings, top=self.top, table=table, memory=self.memory
        )
        # Computed when the first table asks for it: a resumed run may have them all.
        tried = lru_cache(partial(self.trials, effects, fixed))
        places = table("places", lambda: tried().by_place(self.top), PLACES)
        place = places[places["chosen"]].iloc[0]
        vector = instruction_vector(
            self.model,
            self.task,
            effects=effects,
            heads=effects.top(self.top) if fixed is None else fixed,
            layer=int(place["layer"]),
            scale=float(place["scale"]),
            memory=self.memory,
        )
        return Audit(
            effects=effects,
            vector=vector,
            steering=table("steering", lambda: tried().by_layer(self.top), STEERING),
            heads=table("heads", lambda: tried().by_number(), HEADS),
            places=places,
            draws=table("draws", lambda: tried().by_draw(), DRAWS),
            measures=table("measures", lambda: self.measures(tried()), MEASURES),
        )

    def effects(self, table: Table) -> HeadEffects:
        """Measured, or read from the table of a run that was killed later."""
        z = task_mean_z(self.model, self.task, self.settings)
        measure = partial(
            measure_effects, self.model, self.task, z, self.settings, memory=self.memory, model_digest=self.digest
        )
        frame = table("effects", lambda: measure().to_frame(), EFFECTS)
        return HeadEffects.from_frame(
            frame,
            mean_z=z,
            settings=self.settings,
            task=self.task.name,
            task_digest=self.task.digest,
            model=hooked.model_name(self.model),
            model_digest=self.digest,
        )

    def trials(self, effects: HeadEffects, fixed: tuple[Head, ...] | None) -> trials.Trials:
        settings, zero_shot = self.settings, partial(prompts.zero_shot, template=self.settings.template)
        others = controls.draw_other_tasks(self.task, tasks(), draws=self.other_tasks, seed=settings.seed)
        candidates = trials.make_candidates(
            self.model,
            effects,
            counts=[k for k in COUNTS if k <= len(fixed or effects.ranked())],
            top=self.top,
            draws=self.draws,
            others=[find_task(name) for name in others],
            heads=fixed,
        )
        return trials.run_trials(
            self.model,
            candidates,
            validation=tokenize(self.model, zero_shot(self.split.validation)),
            evaluation=tokenize(self.model, zero_shot(self.split.evaluation)),
            top=self.top,
            memory=self.memory,
        )

    def measures(self, tried: trials.Trials) -> pd.DataFrame:
        """One line for the model unsteered under each kind of prompt, then for each kind of vector; then at scale 1."""
        lines = [{"measure": name, **self.baseline(kind)} for name, kind in self.baseline_prompts().items()]
        parts = [pd.DataFrame(lines)]
        for suffix, unscaled in (("", False), (", scale 1", True)):
            steered = tried.by_number(unscaled=unscaled).query("n_heads == @self.top")
            names = ["steered" if kind == "chosen" else f"steered, {kind}" for kind in steered["heads"]]
            parts.append(steered.assign(measure=[f"{name}{suffix}" for name in names]))
        return pd.concat(parts, ignore_index=True).filter(MEASURES)

    def baseline_prompts(self) -> dict[str, list[Prompt]]:
        """Prompts of the evaluation pairs by kind.

        None where the task lacks an instruction or a statement, or too few shots would make another kind of them.
        """
        task, pairs, template, shots = self.task, self.split.evaluation, self.settings.template, self.settings.shots
        few_shot = partial(prompts.few_shot, pairs, self.split.mean, shots=shots, template=template)
        generator = open_stream(self.settings.seed, Stream.BASELINE_PROMPTS)
        return {
            "zero-shot": prompts.zero_shot(pairs, template=template),
            "instructed": prompts.instructed(task, pairs, template=template) if task.instructions else [],
            "few-shot": few_shot(generator=generator) if shots >= 1 else [],
            "shuffled": few_shot(generator=generator, shuffled=True) if shots >= 2 else [],
            "statement": prompts.statements(task, pairs),
        }

    def baseline(self, kind: list[Prompt]) -> dict[str, Any]:
        if not kind:
            return trials.summary(torch.zeros(0, dtype=torch.bool), torch.zeros(0))
        return trials.summary(*score_answers(self.model, tokenize(self.model, kind)))
