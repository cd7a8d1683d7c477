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
from ivlens.analysis.options import AuditOptions, AuditSettings
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
from ivlens.prompts.tokens import tokenize
from ivlens.random_streams import Stream, open_stream
from ivlens.replies.inquiry import measure_prompts
from ivlens.shapes import GIB, Head
from ivlens.steering import controls, trials
from ivlens.steering.necessity import NECESSITY, Asked, measure_necessity
from ivlens.steering.steered_replies import replace_accuracy
from ivlens.steering.trials import BY_QUERY, DRAWS, PLACES
from ivlens.steering.vector_building import instruction_vector
from ivlens.steering.verdict import MOST_FREQUENT, most_frequent_share
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
        settings=work.asked.record(),
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
        return self.task.split(shots=self.asked.shots, seed=self.asked.seed)

    @cached_property
    def digest(self) -> str:
        return hooked.weight_digest(self.model)

    def all(self, tables: Tables) -> Audit:
        """Fix wordings and heads, then measure."""
        task, heads = fix_choices(self.model, self.task, self.asked, tables=tables, memory=self.memory)
        found = replace(self, task=task, heads=heads).measured(self.digest, tables)
        kept = tables.kept
        return replace(found, instructions=kept.get("instructions"), universal=kept.get("universal_tasks"))

    def measured(self, digest: str, tables: Tables) -> Audit:
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
            by_query=tables.table("by_query", lambda: tried().by_query(top), BY_QUERY),
            layer_draws=tables.table("layer_draws", lambda: tried().draws_by_layer(top), DRAWS),
            measures=tables.table("measures", lambda: self.measures(tried()), MEASURES),
            necessity=tables.table("necessity", lambda: self.necessity(vector.heads), NECESSITY),
        )

    def trials(self, effects: HeadEffects) -> trials.Trials:
        asked, zero_shot = self.asked, partial(prompts.zero_shot, template=self.asked.template)
        others = controls.draw_other_tasks(self.task, tasks(), draws=asked.other_tasks, seed=asked.seed)
        candidates = trials.make_candidates(
            self.model,
            effects,
            counts=[k for k in COUNTS if k <= len(self.heads or effects.ranked())],
            top=asked.top,
            draws=asked.draws,
            others=[find_task(name) for name in others],
            heads=self.heads,
        )
        return trials.run_trials(
            self.model,
            candidates,
            validation=tokenize(self.model, zero_shot(self.split.validation)),
            evaluation=tokenize(self.model, zero_shot(self.split.evaluation)),
            top=asked.top,
            memory=self.memory,
        )

    def measures(self, tried: trials.Trials) -> pd.DataFrame:
        """One line for the model unsteered under each kind of prompt, then for each kind of vector; then at scale 1.

        Accuracies are of the score that was asked for, but for those at scale 1, which are of greedy match.
        """
        asked, score = self.baseline_prompts(), self.asked.accuracy_score
        lines = [{"measure": name, "score": score, **self.baseline(kind)} for name, kind in asked.items()]
        parts = [pd.DataFrame([*lines, {"score": score, **self.most_frequent()}])]
        for suffix, unscaled in (("", False), (", scale 1", True)):
            steered = tried.by_number(unscaled=unscaled).query("n_heads == @self.asked.top")
            names = ["steered" if kind == "chosen" else f"steered, {kind}" for kind in steered["heads"]]
            steered = steered.assign(measure=[f"{name}{suffix}" for name in names], score=GREEDY_MATCH)
            if score != GREEDY_MATCH and not unscaled:
                steered = replace_accuracy(self.model, steered, tried, asked["zero-shot"], score)
            parts.append(steered)
        return pd.concat(parts, ignore_index=True).filter(MEASURES)

    def most_frequent(self) -> dict[str, Any]:
        """What giving one answer to all queries would do; of these queries it is known exactly."""
        answers = [pair.output for pair in self.split.evaluation]
        share = most_frequent_share(answers)
        line = dict.fromkeys(trials.VALUES, float("nan")) | dict.fromkeys(trials.VALUES[:3], share)
        return {"measure": MOST_FREQUENT, **line, "prompts": len(answers)}

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
