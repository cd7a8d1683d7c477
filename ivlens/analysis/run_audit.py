"""The whole audit of one model on one task: what can it do, which heads carry it, does their vector do the task?

Everything is measured on pairs that nothing was chosen on: the task's pairs are split into a part that gives the mean
head outputs, one that ranks heads, one that chooses layers, and one that is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import pandas as pd
import torch

from ivlens import prompts
from ivlens.analysis import probes, wordings
from ivlens.analysis.audit import HEADS, MEASURES, STEERING, Audit
from ivlens.analysis.measure import check_heads, fix_choices, kept_effects
from ivlens.analysis.options import MOST_VALIDATION, AuditOptions, AuditSettings
from ivlens.datasets.task import Split, Task, tasks
from ivlens.datasets.task import task as find_task
from ivlens.models import hooked, loader
from ivlens.patching.activations import mean_z
from ivlens.patching.effects import example_prompts
from ivlens.patching.head_effects import HeadEffects
from ivlens.patching.settings import Settings, gather_options, parse_bytes
from ivlens.prompts.choices import GREEDY_MATCH
from ivlens.prompts.long_pairs import leave_out_long
from ivlens.prompts.template import Prompt
from ivlens.prompts.tokens import Tokens, tokenize
from ivlens.random_streams import Stream, open_stream
from ivlens.replies.inquiry import measure_prompts
from ivlens.shapes import GIB, Head
from ivlens.steering import controls, trials
from ivlens.steering.necessity import NECESSITY, Asked, measure_necessity
from ivlens.steering.steered_replies import replace_accuracy
from ivlens.steering.trial_plan import Sizes, TrialPlan, plan_trials
from ivlens.steering.trials import DRAWS, PLACES
from ivlens.steering.vector_building import instruction_vector
from ivlens.storage import run_folder
from ivlens.storage.run_folder import Tables

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer
COUNTS = (1, 2, 5, 10, 20, 50, 100)


def audit(
    model: HookedTransformer | str | Path,
    task: Task | str | Path,
    *,
    out: str | Path | None = None,
    settings: Settings | None = None,
    memory: int | str = 2 * GIB,
    **options: Unpack[AuditOptions],
) -> Audit:
    """Audit a model on a task: which heads carry it, what vector do they write, and what does that do beside controls?

    >>> short = {"shots": 5, "clean_prompts": 8, "prompts": 6, "draws": 1, "other_tasks": 0}
    >>> found = ivlens.audit(model, "antonym", heads="L3H3", **short)
    >>> found.vector.heads, found.measures["measure"].tolist()[:2]
    ((L3H3,), ['zero-shot', 'instructed'])

    Args:
        model, task: Also by what `ivlens.load` and `ivlens.task` take: a name, a path.
        out: Run folder to write to, and to resume from; nothing is written without it.
        settings: How effects are measured, all of these options at once.
        memory: What patching and steering may take beside the weights, in bytes or such as "2GiB". Does not change the
            numbers.
        options: Fields of `Settings`, and `top`, `heads` (see `ivlens.steering.head_choice.parse_heads`),
            `instruction`, `draws` and `other_tasks`: see `ivlens.analysis.options.AuditSettings`.

    Raises:
        IvlensError: no such option, a value that it cannot have, more heads than the model has, or options that
            contradict each other.
        TaskError, PromptError, ModelError: the task, prompts or model cannot serve.
        RunError: `out` is of another configuration (the differences are named), or cannot be written.
    """
    task, memory = find_task(task), parse_bytes(memory)
    asked = gather_options(AuditSettings, settings, options)
    wordings.check_choice(task, asked.instruction)
    model = loader.as_model(model)
    task = leave_out_long(model, task, shots=asked.shots, template=asked.template)
    work = _Work(model=model, task=task, asked=check_heads(asked, model, options), memory=memory)
    if out is None:
        return work.all(Tables())
    with run_folder.open_run(
        out,
        command="audit",
        settings=work.record(),
        sources={
            "model": hooked.source(model, digest=work.digest),
            "task": run_folder.Source(name=task.name, digest=task.digest),
        },
        seed=asked.seed,
    ) as run:
        if not run.is_complete:
            found = work.all(Tables(run))
            run.write_with("vector.safetensors", found.vector.save)
            run.write_json("prompts.json", example_prompts(model, task, work.settings))
            run.complete()
    return Audit.read(out)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """One audit on its way."""

    model: HookedTransformer
    task: Task
    asked: AuditSettings
    heads: tuple[Head, ...] | None = None
    """None: the first of the effects' own."""
    memory: int

    @property
    def settings(self) -> Settings:
        return self.asked.measurement()

    @cached_property
    def split(self) -> Split:
        whole, asked = self.task.split(shots=self.asked.shots, seed=self.asked.seed), self.asked
        validation = whole.validation[: min(asked.queries, MOST_VALIDATION)]
        return whole._replace(validation=validation, evaluation=whole.evaluation[: asked.queries])

    @cached_property
    def zero_shot(self) -> tuple[Tokens, Tokens]:
        """Validation and evaluation prompts that vectors are tried on."""
        validation, evaluation = (
            tokenize(self.model, prompts.zero_shot(pairs, template=self.asked.template))
            for pairs in (self.split.validation, self.split.evaluation)
        )
        return validation, evaluation

    @cached_property
    def plan(self) -> TrialPlan:
        """What is tried of the vector and its controls."""
        asked, cfg = self.asked, self.model.cfg
        validation, evaluation = (tuple(tokens.answer_mask.sum(1).tolist()) for tokens in self.zero_shot)
        ranking = min(asked.prompts, len(self.split.rank)) if asked.corruption == "zero-shot" else asked.prompts
        most = cfg.n_layers * cfg.n_heads if asked.heads is None else asked.top
        sizes = Sizes(
            n_layers=cfg.n_layers,
            n_heads=cfg.n_heads,
            d_model=cfg.d_model,
            counts=tuple(count for count in COUNTS if count <= most),
            top=asked.top,
            draws=asked.draws,
            other_tasks=asked.other_tasks,
            ranking=ranking * max(evaluation) if asked.effect == "nll" else ranking,
            validation=validation,
            evaluation=evaluation,
        )
        return plan_trials(sizes)

    def record(self) -> dict[str, Any]:
        """The settings; the bound on queries and the plan of trials only where they leave something out."""
        values, whole = self.asked.record(), self.task.split(shots=self.asked.shots, seed=self.asked.seed)
        if self.split == whole:
            del values["queries"]
        return values | ({} if self.plan.is_whole else {"trials": self.plan.record()})

    @cached_property
    def digest(self) -> str:
        return hooked.weight_digest(self.model)

    def all(self, tables: Tables) -> Audit:
        """Fix wordings and heads, then measure."""
        with tables.keeping("batches"):
            task, heads = fix_choices(self.model, self.task, self.asked, tables=tables, memory=self.memory)
            found = replace(self, task=task, heads=heads).measured(self.digest, tables)
        kept = tables.kept
        return replace(found, instructions=kept.get("instructions"), universal=kept.get("universal_tasks"))

    def measured(self, digest: str, tables: Tables) -> Audit:
        # First what takes seconds and says whether the rest is worth waiting for.
        abilities = None if tables.has("measures") else tables.part("abilities", self.abilities, MEASURES)
        effects = kept_effects(
            self.model,
            self.task,
            self.settings,
            tables=tables,
            table="effects",
            name=hooked.model_name(self.model),
            digest=digest,
            memory=self.memory,
        )
        # Computed when the first table asks for it: a resumed run may have them all.
        tried, top = lru_cache(partial(self.trials, effects)), self.asked.top
        places = tables.table("places", lambda: tried().by_place(top), PLACES)
        place = places[places["chosen"]].iloc[0]
        vector = instruction_vector(
            self.model,
            self.task,
            effects=effects,
            heads=self.heads or effects.top(top),
            layer=int(place["layer"]),
            scale=float(place["scale"]),
            memory=self.memory,
        )
        return Audit(
            effects=effects,
            vector=vector,
            steering=tables.table("steering", lambda: tried().by_layer(top), STEERING),
            heads=tables.table("heads", lambda: tried().by_number(), HEADS),
            places=places,
            draws=tables.table("draws", lambda: tried().by_draw(), DRAWS),
            layer_draws=tables.table("layer_draws", lambda: tried().draws_by_layer(top), DRAWS),
            measures=tables.table("measures", lambda: self.measures(abilities, tried()), MEASURES),
            necessity=tables.table("necessity", lambda: self.necessity(vector.heads), NECESSITY),
        )

    def trials(self, effects: HeadEffects) -> trials.Trials:
        asked, (validation, evaluation) = self.asked, self.zero_shot
        others = controls.draw_other_tasks(self.task, tasks(), draws=asked.other_tasks, seed=asked.seed)
        candidates = controls.make_candidates(
            self.model,
            effects,
            plan=self.plan,
            top=asked.top,
            others=[find_task(name) for name in others],
            heads=self.heads,
        )
        return trials.run_trials(
            self.model,
            candidates,
            validation=validation,
            evaluation=evaluation,
            top=asked.top,
            plan=self.plan,
            memory=self.memory,
        )

    def abilities(self) -> pd.DataFrame:
        """One line for the model unsteered under each kind of prompt, of the score that was asked for."""
        asked, score = self.baseline_prompts(), self.asked.accuracy_score
        lines = [{"measure": name, "score": score, **self.baseline(kind)} for name, kind in asked.items()]
        return pd.DataFrame(lines).filter(MEASURES)

    def measures(self, abilities: pd.DataFrame, tried: trials.Trials) -> pd.DataFrame:
        """The abilities, then one line for each kind of vector; then at scale 1, which is of greedy match always."""
        parts, score = [abilities], self.asked.accuracy_score
        for suffix, unscaled in (("", False), (", scale 1", True)):
            steered = tried.by_number(unscaled=unscaled).query("n_heads == @self.asked.top")
            names = ["steered" if kind == "chosen" else f"steered, {kind}" for kind in steered["heads"]]
            steered = steered.assign(measure=[f"{name}{suffix}" for name in names], score=GREEDY_MATCH)
            if score != GREEDY_MATCH and not unscaled:
                steered = replace_accuracy(self.model, steered, tried, self.baseline_prompts()["zero-shot"], score)
            parts.append(steered)
        return pd.concat(parts, ignore_index=True).filter(MEASURES)

    def necessity(self, heads: Sequence[Head]) -> pd.DataFrame:
        """What is lost on instructed and few-shot prompts of the evaluation pairs when heads are ablated."""
        seed, template, asked = self.asked.seed, self.asked.template, {}
        for kind, shots in (("instructed", 0), ("few-shot", self.asked.shots)):
            own = self.baseline_prompts()[kind]
            others = (
                probes.other_prompts(self.model, self.task, template=template, seed=seed, shots=shots) if own else []
            )
            if others:
                z = mean_z(self.model, tokenize(self.model, others))
                asked[kind] = Asked(tokenize(self.model, own), z)
        return measure_necessity(self.model, asked, heads, draws=self.asked.draws, seed=seed)

    def baseline_prompts(self) -> dict[str, list[Prompt]]:
        """Prompts of the evaluation pairs by kind.

        None where the task lacks an instruction or a statement, or too few shots would make another kind of them.
        """
        task, pairs, template, shots = self.task, self.split.evaluation, self.asked.template, self.asked.shots
        few_shot = partial(prompts.few_shot, pairs, self.split.mean, shots=shots, template=template)
        generator = open_stream(self.asked.seed, Stream.BASELINE_PROMPTS)
        return {
            "zero-shot": prompts.zero_shot(pairs, template=template),
            "instructed": prompts.instructed(task, pairs, template=template) if task.instructions else [],
            "few-shot": few_shot(generator=generator) if shots >= 1 else [],
            "shuffled": few_shot(generator=generator, shuffled=True) if shots >= 2 else [],
            "statement": prompts.statements(task, pairs, bos=template.bos),
        }

    def baseline(self, kind: list[Prompt]) -> dict[str, Any]:
        if not kind:
            return trials.summary(torch.zeros(0, dtype=torch.bool), torch.zeros(0))
        return trials.summary(*measure_prompts(self.model, kind, self.asked.accuracy_score))
