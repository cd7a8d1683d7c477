"""The whole audit of one model on one task: what can it do, which heads carry it, does their vector do the task?

Everything is measured on pairs that nothing was chosen on: the task's pairs are split into a part that gives the mean
head outputs, one that ranks heads, one that chooses layers, and one that is reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from ivlens import controls, models, plots, prompts, runs, tables, trials, wordings
from ivlens.activations import answered
from ivlens.chat import Layout
from ivlens.effects import EFFECTS, HeadEffects, Settings, example_prompts, measure_effects, task_mean_z
from ivlens.errors import IvlensError, RunError
from ivlens.heads import Asked, Chosen, asked, pinned
from ivlens.patching import Effect
from ivlens.prompts import DEFAULT, Corruption, Prompt, Source, tokenize
from ivlens.runs import Table
from ivlens.shapes import GIB, Head
from ivlens.steering import instruction_vector
from ivlens.tasks import Split, Task, tasks
from ivlens.tasks import task as find_task
from ivlens.trials import PLACES, VALUES
from ivlens.universal import Considered
from ivlens.vectors import InstructionVector
from ivlens.wordings import WORDINGS, Choice, unusual, worded

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from transformer_lens import HookedTransformer

MEASURES = ("measure", *VALUES)
STEERING = ("heads", "n_heads", "layer", "scale", "draws", *VALUES)
HEADS = ("heads", "n_heads", "layers", "scales", "draws", *VALUES)
COUNTS = (1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What an audit found; the tables are tidy, one line a number with its interval."""

    effects: HeadEffects
    vector: InstructionVector
    measures: pd.DataFrame
    """Accuracy and probability of the answer (first token) of the unsteered and the steered model."""
    steering: pd.DataFrame
    """Zero-shot accuracy with the vector added at every layer, each at its own scale, beside its controls."""
    heads: pd.DataFrame
    """The same at the layer and scale that validation pairs chose, against the number of heads."""
    places: pd.DataFrame
    """Accuracy of the vector at every layer and scale on validation pairs, the chosen place marked."""
    instructions: pd.DataFrame | None = None
    """What every wording did on validation pairs, where the best was asked for."""
    universal: pd.DataFrame | None = None
    """Which tasks universal heads were ranked on and why, where these were asked for."""
    folder: Path | None = None

    @classmethod
    def read(cls, folder: str | Path) -> Audit:
        """What a complete run folder holds, without the model.

        Raises:
            RunError: no run, not an audit's, unfinished, or damaged.
        """
        run = runs.read_run(folder)
        if run.record.command != "audit":
            raise RunError(f"{folder} is of `ivlens {run.record.command}`, not of an audit; give an audit's folder")
        vector = InstructionVector.load(run.path("vector.safetensors"))
        z, settings = vector.measured()
        return cls(
            effects=HeadEffects.from_frame(
                run.read_table("effects", columns=EFFECTS),
                mean_z=z,
                settings=settings,
                **{key: getattr(vector, key) for key in ("task", "task_digest", "model", "model_digest")},
            ),
            vector=vector,
            measures=run.read_table("measures", columns=MEASURES),
            steering=run.read_table("steering", columns=STEERING),
            heads=run.read_table("heads", columns=HEADS),
            places=run.read_table("places", columns=PLACES),
            instructions=_kept(run, "instructions", WORDINGS),
            universal=_kept(run, "universal_tasks", Considered._fields),
            folder=Path(folder),
        )

    def figures(self) -> dict[str, go.Figure]:
        """Every figure of the audit by file name."""
        where = f"{self.vector.task} on {self.vector.model}"
        accuracy = {"accuracy_low": "low", "accuracy_high": "high"}
        bars = {"accuracy": "value", **accuracy}
        baselines = {name: self.accuracy(name) for name in ("zero-shot", "instructed", "few-shot")}
        lines = {name: value for name, value in baselines.items() if not math.isnan(value)}
        return {
            "aie": self.effects.figure(marked=self.vector.heads),
            "measures": plots.measures_bars(self.measures.rename(columns=bars), title=f"Accuracy: {where}"),
            "steering": plots.steering_by_layer(
                self.steering.rename(columns=accuracy),
                baselines=lines,
                title=f"Zero-shot accuracy with a vector of {len(self.vector.heads)} heads added: {where}",
            ),
            "places": plots.steering_heatmap(
                self.places, title=f"Layer and scale of the vector, on validation pairs: {where}"
            ),
            "heads": plots.accuracy_by_heads(
                self.heads.rename(columns=accuracy),
                baselines=lines,
                title=f"Zero-shot accuracy by number of heads in the vector: {where}",
            ),
        }

    def accuracy(self, measure: str) -> float:
        """Accuracy of one line of `measures`, NaN where it was not measured.

        Raises:
            IvlensError: there is no such line; those that there are, are named.
        """
        found = dict(zip(self.measures["measure"], self.measures["accuracy"], strict=True))
        if measure not in found:
            raise IvlensError(f"there is no measure {measure!r}; there are {', '.join(map(repr, found))}")
        return float(found[measure])

    def __repr__(self) -> str:
        vector = self.vector
        heads = " ".join(map(str, vector.heads[:5])) + (" ..." if len(vector.heads) > 5 else "")
        return (
            f"Audit({vector.task} on {vector.model}: zero-shot accuracy {self.accuracy('zero-shot'):.2f}, "
            f"with the vector of {len(vector.heads)} heads ({heads}) at layer {vector.layer}, scale {vector.scale:g} "
            f"{self.accuracy('steered'):.2f}, of random heads {self.accuracy('steered, random'):.2f})"
        )

    def _repr_html_(self) -> str:
        return tables.audit_html(self)


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

    Args:
        out: Run folder to write to, and to resume from; nothing is written without it.
        top: How many heads make up the vector; as many as there are where `heads` are given.
        heads: In place of those of largest AIE: heads, `L9H6,L3H2`, a file of heads (see `ivlens.heads.asked`), or
            `universal`, those that carry the other built-in tasks.
        instruction: Wordings of the task's instruction: `all` in turn, the N-th (from 1), or the `best`, which is
            chosen on validation pairs.
        draws: Sets of random and of bottom heads, and Gaussians, each of which is a control.
        other_tasks: Built-in tasks whose vectors are controls.
        memory: Bytes that patching and steering may take beside the weights. Does not change the numbers.

    For the other arguments see `indirect_effects`.

    Raises:
        TaskError, PromptError, ModelError: the task, prompts or model cannot serve.
        RunError: `out` is of another configuration (the differences are named), or cannot be written.
    """
    if not isinstance(task, Task):
        task = find_task(task)
    wordings.check(task, instruction)
    chosen_heads = asked(heads, model)
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
    chosen |= unusual(chosen_heads, instruction)
    with runs.open_run(
        out,
        command="audit",
        settings={key: value for key, value in chosen.items() if key != "seed"},
        sources={
            "model": runs.Source(name=models.model_name(model), digest=work.digest),
            "task": runs.Source(name=task.name, digest=task.digest),
        },
        seed=seed,
    ) as run:
        if not run.is_complete:
            found = work.all(lambda name, compute, columns: run.table(name, compute, columns=columns))
            run.write_with("vector.safetensors", found.vector.save)
            run.write_json("prompts.json", example_prompts(task, settings))
            run.complete()
    return Audit.read(out)


def _kept(run: runs.Run, name: str, columns: Sequence[str]) -> pd.DataFrame | None:
    return run.read_table(name, columns=columns) if run.has(f"{name}.parquet") else None


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
        return models.weight_digest(self.model)

    def all(self, table: Table) -> Audit:
        kept: dict[str, pd.DataFrame] = {}

        def keep(name: str, compute: Callable[[], pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
            kept[name] = table(name, compute, columns)
            return kept[name]

        task = worded(self.model, self.task, self.instruction, self.settings, table=keep)
        work = self if task is self.task else replace(self, task=task)
        found = work.measured(keep)
        return replace(found, instructions=kept.get("instructions"), universal=kept.get("universal_tasks"))

    def measured(self, table: Table) -> Audit:
        effects = self.effects(table)
        fixed = pinned(self.heads, self.model, self.task, self.settings, top=self.top, table=table, memory=self.memory)
        # Computed when the first table asks for it: a resumed run may have them all.
        tried = lru_cache(partial(self.trials, effects, fixed))
        seed = self.settings.seed
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
            steering=table("steering", lambda: tried().by_layer(self.top, seed=seed), STEERING),
            heads=table("heads", lambda: tried().by_number(seed=seed), HEADS),
            places=places,
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
            model=models.model_name(self.model),
            model_digest=self.digest,
        )

    def trials(self, effects: HeadEffects, fixed: tuple[Head, ...] | None) -> trials.Trials:
        settings, zero_shot = self.settings, partial(prompts.zero_shot, template=self.settings.template)
        others = controls.draw_other_tasks(self.task, tasks(), draws=self.other_tasks, seed=settings.seed)
        candidates = trials.candidates(
            self.model,
            effects,
            counts=[k for k in COUNTS if k <= len(fixed or effects.ranked())],
            top=self.top,
            draws=self.draws,
            others=[find_task(name) for name in others],
            heads=fixed,
        )
        return trials.run(
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
            steered = tried.by_number(seed=self.settings.seed, unscaled=unscaled).query("n_heads == @self.top")
            names = ["steered" if kind == "chosen" else f"steered, {kind}" for kind in steered["heads"]]
            parts.append(steered.assign(measure=[f"{name}{suffix}" for name in names]))
        return pd.concat(parts, ignore_index=True).filter(MEASURES)

    def baseline_prompts(self) -> dict[str, list[Prompt]]:
        """Prompts of the evaluation pairs by kind.

        None where the task lacks an instruction or a statement, or too few shots would make another kind of them.
        """
        task, pairs, template, shots = self.task, self.split.evaluation, self.settings.template, self.settings.shots
        few_shot = partial(prompts.few_shot, pairs, self.split.mean, shots=shots, template=template)
        generator = np.random.default_rng([self.settings.seed, 6])
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
        return trials.summary(*answered(self.model, tokenize(self.model, kind)), seed=self.settings.seed)
