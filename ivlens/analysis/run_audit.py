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
from ivlens.analysis.measure import check_heads, fix_choices, keep_rounding, kept_effects, size_trials
from ivlens.analysis.options import MOST_VALIDATION, AuditOptions, AuditSettings
from ivlens.datasets.task import Split, Task, tasks
from ivlens.datasets.task import task as find_task
from ivlens.errors import as_ivlens_error
from ivlens.models import hooked, loader
from ivlens.patching.activations import mean_z
from ivlens.patching.effects import check_prompts, example_prompts
from ivlens.patching.head_effects import HeadEffects
from ivlens.patching.rounding import rounding_sentence
from ivlens.patching.settings import Settings, gather_options, parse_bytes
from ivlens.prompts.choices import GREEDY_MATCH
from ivlens.prompts.long_pairs import leave_out_long
from ivlens.prompts.template import Prompt
from ivlens.prompts.tokens import Tokens, tokenize
from ivlens.replies.inquiry import measure_prompts
from ivlens.shapes import GIB, Head
from ivlens.steering import controls, trials
from ivlens.steering.necessity import NECESSITY, Asked, measure_necessity, other_prompts
from ivlens.steering.steered_replies import replace_accuracy
from ivlens.steering.trial_plan import Sizes, TrialPlan, plan_trials
from ivlens.steering.trials import BY_QUERY, DRAWS, PLACES
from ivlens.steering.vector_building import instruction_vector
from ivlens.steering.verdict import MOST_FREQUENT, most_frequent_share
from ivlens.storage.run_folder import Run, Source, open_run
from ivlens.storage.run_tables import Tables

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


@as_ivlens_error()
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
    return run_audit(prepare(model, task, settings=settings, memory=memory, **options), out)


def run_audit(work: Work, out: str | Path | None) -> Audit:
    """Do what was prepared."""
    if out is None:
        return work.all(Tables())
    with work.open(out) as run:
        if not run.is_complete:
            found = work.all(Tables(run))
            run.write_with("vector.safetensors", found.vector.save)
            run.write_json("prompts.json", example_prompts(work.model, work.task, work.settings))
            run.complete(precision="" if found.rounding is None else rounding_sentence(found.rounding))
    return Audit.read(out)


def audit_heads(work: Work, out: str | Path) -> HeadEffects:
    """The first half of an audit: abilities and the effects of heads, from which `audit` goes on in the same folder."""
    with work.open(out) as run:
        if run.is_complete:
            return Audit.read(out).effects
        tables = Tables(run)
        with tables.keeping("batches"):
            found = work.fixed(tables).first_half(tables, work.digest)
        run.stop_behind_heads()
    return found


def prepare(
    model: HookedTransformer | str | Path,
    task: Task | str | Path,
    *,
    settings: Settings | None = None,
    memory: int | str = 2 * GIB,
    **options: Unpack[AuditOptions],
) -> Work:
    """What `audit` is to do, checked, and nothing of it done."""
    task, memory = find_task(task), parse_bytes(memory)
    asked = gather_options(AuditSettings, settings, options)
    wordings.check_choice(task, asked.instruction)
    check_prompts(task, asked)
    model = loader.as_model(model)
    task = leave_out_long(model, task, shots=asked.shots, template=asked.template)
    return Work(model=model, task=task, asked=check_heads(asked, model, options), memory=memory)


@dataclass(frozen=True, kw_only=True)
class Work:
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
        return whole.at_most(validation=min(asked.queries, MOST_VALIDATION), evaluation=asked.queries)

    @cached_property
    def zero_shot(self) -> tuple[Tokens, Tokens]:
        """Validation and evaluation prompts that vectors are tried on."""
        tokens = partial(tokenize, self.model)
        write = partial(prompts.zero_shot, template=self.asked.template)
        return tokens(write(self.split.validation)), tokens(write(self.split.evaluation))

    @cached_property
    def asked_prompts(self) -> dict[str, list[Prompt]]:
        """Prompts of the evaluation pairs by kind."""
        asked, split = self.asked, self.split
        about = {"shots": asked.shots, "template": asked.template, "seed": asked.seed}
        return probes.ability_prompts(self.task, split.evaluation, split.mean, **about)

    @cached_property
    def sizes(self) -> Sizes:
        return size_trials(self.model, self.asked, self.split, *self.zero_shot)

    @cached_property
    def plan(self) -> TrialPlan:
        """What is tried of the vector and its controls."""
        return plan_trials(self.sizes)

    def open(self, out: str | Path) -> Run:
        return open_run(
            out,
            command="audit",
            settings=self.record(),
            sources={
                "model": hooked.source(self.model, digest=self.digest),
                "task": Source(name=self.task.name, digest=self.task.digest),
            },
            seed=self.asked.seed,
        )

    def record(self) -> dict[str, Any]:
        """The settings; the bound on queries and the plan of trials only where they leave something out."""
        values, whole = self.asked.record(), self.task.split(shots=self.asked.shots, seed=self.asked.seed)
        if self.split == whole:
            del values["queries"]
        return values | ({"trials": left_out} if (left_out := self.plan.record()) else {})

    @cached_property
    def digest(self) -> str:
        return hooked.weight_digest(self.model)

    def all(self, tables: Tables) -> Audit:
        """Fix wordings and heads, then measure."""
        with tables.keeping("batches"):
            work = self.fixed(tables)
            found = work.second_half(work.first_half(tables, self.digest), tables)
        kept = tables.kept
        more = {"instructions": "instructions", "ranking": "ranking", "universal": "universal_tasks"}
        more |= {"rounding": "precision"}
        return replace(found, **{name: kept.get(table) for name, table in more.items()})

    def fixed(self, tables: Tables) -> Work:
        """With wordings and heads fixed."""
        task, heads = fix_choices(self.model, self.task, self.asked, tables=tables, memory=self.memory)
        return replace(self, task=task, heads=heads)

    def first_half(self, tables: Tables, digest: str) -> HeadEffects:
        """First abilities, which take seconds and say whether the rest is worth waiting for, then effects."""
        if not tables.has("measures"):
            tables.part("abilities", self.abilities, MEASURES)
        about: dict[str, Any] = {"tables": tables, "memory": self.memory}
        named = {"table": "effects", "name": hooked.model_name(self.model), "digest": digest}
        effects = kept_effects(self.model, self.task, self.settings, **named, **about)
        keep_rounding(self.model, self.task, effects, **about)
        return effects

    def second_half(self, effects: HeadEffects, tables: Tables) -> Audit:
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
            measures=tables.table("measures", lambda: self.measures(tables, tried()), MEASURES),
            necessity=tables.table("necessity", lambda: self.necessity(vector.heads), NECESSITY),
        )

    def trials(self, effects: HeadEffects) -> trials.Trials:
        asked, (validation, evaluation) = self.asked, self.zero_shot
        names = controls.draw_other_tasks(self.task, tasks(), draws=asked.other_tasks, seed=asked.seed)
        others, about = [find_task(name) for name in names], {"plan": self.plan, "top": asked.top}
        candidates = controls.make_candidates(self.model, effects, others=others, heads=self.heads, **about)
        return trials.run_trials(
            self.model, candidates, validation=validation, evaluation=evaluation, memory=self.memory, **about
        )

    def abilities(self) -> pd.DataFrame:
        """One line for the model unsteered under each kind of prompt, of the score that was asked for."""
        asked, score = self.asked_prompts, self.asked.accuracy_score
        lines = [{"measure": name, "score": score, **self.baseline(kind)} for name, kind in asked.items()]
        most_frequent = {"score": score, **self.most_frequent()}
        return pd.DataFrame([*lines, most_frequent]).filter(MEASURES)

    def measures(self, tables: Tables, tried: trials.Trials) -> pd.DataFrame:
        """The abilities, then one line for each kind of vector; then at scale 1, which is of greedy match always."""
        parts, score = [tables.part("abilities", self.abilities, MEASURES)], self.asked.accuracy_score
        for suffix, unscaled in (("", False), (", scale 1", True)):
            steered = tried.by_number(unscaled=unscaled).query("n_heads == @self.asked.top")
            names = ["steered" if kind == "chosen" else f"steered, {kind}" for kind in steered["heads"]]
            steered = steered.assign(measure=[f"{name}{suffix}" for name in names], score=GREEDY_MATCH)
            if score != GREEDY_MATCH and not unscaled:
                asked = self.asked_prompts["zero-shot"]
                steered = replace_accuracy(self.model, steered, tried, asked, score, self.plan)
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
            own = self.asked_prompts[kind][: self.plan.ablated_prompts]
            others = other_prompts(self.model, self.task, template=template, seed=seed, shots=shots) if own else []
            if others:
                z = mean_z(self.model, tokenize(self.model, others))
                asked[kind] = Asked(tokenize(self.model, own), z)
        return measure_necessity(self.model, asked, heads, draws=self.asked.draws, seed=seed)

    def baseline(self, kind: list[Prompt]) -> dict[str, Any]:
        if not kind:
            return trials.summary(torch.zeros(0, dtype=torch.bool), torch.zeros(0))
        return trials.summary(*measure_prompts(self.model, kind, self.asked.accuracy_score))
