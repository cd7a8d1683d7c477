"""Base against tuned: the same prompts to both, and every change with its uncertainty.

An adapter is merged into the base model for as long as the tuned model is asked, and taken out again: there is only
one copy of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch

from ivlens.analysis import probes, wordings
from ivlens.analysis.comparison import CHANGES
from ivlens.analysis.comparison import Comparison as Comparison
from ivlens.analysis.dependence import DEPENDENCE, Dependence, per_prompt, recovery
from ivlens.analysis.drift import AIE, DRIFT, Written, aie_table, head_drift, vector_drift, write_by_query
from ivlens.analysis.tuned_model import TunedModel, find_tuned_model
from ivlens.analysis.wordings import Choice, choose_wording, record_unusual
from ivlens.datasets.task import Task
from ivlens.datasets.task import task as find_task
from ivlens.errors import IvlensError, ModelError
from ivlens.models import hooked, loader, lora
from ivlens.models.lora import Adapter
from ivlens.patching.effects import example_prompts, measure_effects, task_mean_z
from ivlens.patching.head_effects import EFFECTS, HeadEffects
from ivlens.patching.settings import Settings
from ivlens.patching.sweep import Effect
from ivlens.prompts.builders import Corruption, Source, zero_shot
from ivlens.prompts.chat import Layout
from ivlens.prompts.template import DEFAULT
from ivlens.prompts.tokens import tokenize
from ivlens.shapes import GIB
from ivlens.steering.head_choice import Asked, Chosen, choose_heads, fix_heads
from ivlens.steering.vector_building import instruction_vector
from ivlens.storage import run_folder
from ivlens.vectors.instruction_vector import InstructionVector

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


def compare(
    base: HookedTransformer | str | Path,
    tuned: HookedTransformer | Adapter | str | Path | Sequence[str | Path],
    task: Task | str | Path,
    *,
    out: str | Path | None = None,
    shots: int = 10,
    clean_prompts: int = 100,
    prompts: int = 25,
    queries: int = 50,
    top: int = 10,
    heads: Asked | None = None,
    corruption: Corruption = "shuffled",
    source: Source = "demonstrations",
    instruction: Choice = "all",
    effect: Effect = "prob",
    draws: int = 5,
    seed: int = 0,
    memory: int = 2 * GIB,
    template: Layout = DEFAULT,
) -> Comparison:
    """Compare a model before and after fine-tuning: AIE, vectors, dependence on them; changes have paired intervals.

    >>> short = {"shots": 5, "clean_prompts": 8, "prompts": 6, "queries": 8, "draws": 1}
    >>> sorted(set(ivlens.compare("lab", adapter, "antonym", heads="L3H3", **short).measures["model"]))
    ['base', 'difference', 'tuned']

    Args:
        tuned: A model, a checkpoint (folder or hub id), a PEFT adapter folder over `base`, or an adapter; or several
            such folders, whose updates are added up.
        out: Run folder to write to, and to resume from; nothing is written without it.
        queries: Evaluation pairs on which dependence is measured; fewer where the task has fewer.
        top: How many heads make up a vector.
        heads: In place of each model's own of largest AIE, as in `audit`; `universal` ones are the base model's.
        instruction: Wordings of the task's instruction, as in `audit`; the `best` is the base model's.
        draws: Sets of random heads, each of which is a control.
        memory: Bytes that patching and steering may take beside the weights. Does not change the numbers.

    For the other arguments see `indirect_effects`.

    Raises:
        ShapeMismatch: `tuned` has other heads, layers or widths than `base`, or the adapter does not fit.
        ModelError: a model cannot serve, reads text differently, or both have the same weights.
        TaskError, PromptError: the task or its prompts cannot serve.
        IvlensError: a number below its least, or more heads than the model has.
        RunError: `out` is of another configuration (the differences are named), or cannot be written.
    """
    task = task if isinstance(task, Task) else find_task(task)
    wordings.check_choice(task, instruction)
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
    for name, value in (("top", top), ("draws", draws), ("queries", queries)):
        if value < 1:
            raise IvlensError(f"{name} is {value}; it must be 1 or more")
    task.split(shots=shots, seed=seed)
    base = loader.load_without_adapters(base) if isinstance(base, str | Path) else base
    chosen_heads = choose_heads(heads, base)
    top = len(chosen_heads) if isinstance(chosen_heads, tuple) else top
    n_heads = base.cfg.n_layers * base.cfg.n_heads
    if top > n_heads:
        raise IvlensError(f"top is {top}, but the model has {n_heads} heads; take fewer")
    work = _Work(
        base=base,
        pair=find_tuned_model(base, tuned),
        task=task,
        settings=settings,
        top=top,
        heads=chosen_heads,
        instruction=instruction,
        draws=draws,
        queries=queries,
        memory=memory,
    )
    if out is None:
        return work.all(_Shelf(None))
    chosen = {**asdict(settings), "top": top, "draws": draws, "queries": queries}
    chosen |= record_unusual(chosen_heads, instruction)
    with run_folder.open_run(
        out,
        command="compare",
        settings={key: value for key, value in chosen.items() if key != "seed"},
        sources={
            "base": run_folder.Source(name=hooked.model_name(base), digest=work.digests[0]),
            "tuned": run_folder.Source(name=work.pair.name, digest=work.digests[1]),
            "task": run_folder.Source(name=task.name, digest=task.digest),
        },
        seed=seed,
    ) as run:
        if not run.is_complete:
            found = work.all(_Shelf(run))
            run.write_json("prompts.json", example_prompts(task, settings))
            run.write_with("base_vector.safetensors", found.base_vector.save)
            run.write_with("tuned_vector.safetensors", found.tuned_vector.save)
            run.complete()
    return Comparison.read(out)


class _Shelf(NamedTuple):
    """Where tables are kept; nowhere without a run."""

    run: run_folder.Run | None

    def has(self, name: str) -> bool:
        return self.run is not None and self.run.has(f"{name}.parquet")

    def table(self, name: str, compute: Callable[[], pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
        return compute() if self.run is None else self.run.table(name, compute, columns=columns)


class _Side(NamedTuple):
    """What is known of one of the two models."""

    effects: HeadEffects
    vector: InstructionVector


@dataclass(frozen=True, kw_only=True)
class _Work:
    """One comparison on its way."""

    base: HookedTransformer
    pair: TunedModel
    task: Task
    settings: Settings
    top: int
    heads: Chosen
    instruction: Choice
    draws: int
    queries: int
    memory: int

    @contextmanager
    def tuned(self) -> Iterator[HookedTransformer]:
        """The tuned model, for the `with` block."""
        if isinstance(self.pair.model, Adapter):
            with lora.merged(self.base, self.pair.model) as merged:
                yield merged
        else:
            yield self.pair.model

    @cached_property
    def digests(self) -> tuple[str, str]:
        """Of base and tuned weights.

        Raises:
            ModelError: they are the same.
        """
        base = hooked.weight_digest(self.base)
        with self.tuned() as model:
            tuned = hooked.weight_digest(model)
        if base == tuned:
            raise ModelError(
                f"{hooked.model_name(self.base)} and {self.pair.name} have the same weights (digest {base[:12]}); "
                "there is no change to measure: give the model as it is after fine-tuning"
            )
        return base, tuned

    def all(self, shelf: _Shelf) -> Comparison:
        """Fix wordings and heads on the base model, then measure both."""
        task = choose_wording(self.base, self.task, self.instruction, self.settings, table=shelf.table)
        fixed = fix_heads(
            self.heads, self.base, task, self.settings, top=self.top, table=shelf.table, memory=self.memory
        )
        return replace(self, task=task, heads=fixed).measured(self.digests, shelf)

    def measured(self, digests: tuple[str, str], shelf: _Shelf) -> Comparison:
        # What needs both models is measured of the base model before an adapter is merged into it.
        base_digest, tuned_digest = digests
        before = self.side(self.base, "base", base_digest, shelf)
        sets = [before.vector.heads, *probes.random_sets(before.vector, draws=self.draws)]
        is_asked = not (shelf.has("measures") and shelf.has("recovery"))
        prepare = partial(probes.prepare, task=self.task, prompts=self.queries, draws=self.draws)
        probe = prepare(self.base, vector=before.vector) if is_asked else None
        found = [per_prompt(self.base, probe)] if probe else []
        wrote = [] if shelf.has("drift") else [write_by_query(self.base, self.task, self.settings, sets)]
        with self.tuned() as model:
            self.check_reading(model)
            after = self.side(model, "tuned", tuned_digest, shelf)
            if probe:
                found += [per_prompt(model, probe), per_prompt(model, prepare(model, vector=after.vector))]
            if wrote:
                wrote.append(write_by_query(model, self.task, self.settings, [*sets, after.vector.heads]))
        return Comparison(
            base=before.effects,
            tuned=after.effects,
            base_vector=before.vector,
            tuned_vector=after.vector,
            tuned_name=self.pair.name,
            aie=shelf.table("aie", lambda: aie_table(before.effects, after.effects), AIE),
            measures=shelf.table("measures", lambda: changes(*found), CHANGES),
            drift=shelf.table("drift", lambda: self.drift(before, after, wrote), DRIFT),
            recovery=shelf.table("recovery", lambda: recovery(*found[:2]), DEPENDENCE),
        )

    def side(self, model: HookedTransformer, name: str, digest: str, shelf: _Shelf) -> _Side:
        """Effects, measured or read from the table of a run that was killed later, and the vector."""
        z = task_mean_z(model, self.task, self.settings)
        measure = partial(measure_effects, model, self.task, z, self.settings, memory=self.memory, model_digest=digest)
        effects = HeadEffects.from_frame(
            shelf.table(f"{name}_effects", lambda: measure().to_frame(), EFFECTS),
            mean_z=z,
            settings=self.settings,
            task=self.task.name,
            task_digest=self.task.digest,
            model=hooked.model_name(model) if name == "base" else self.pair.name,
            model_digest=digest,
        )
        heads = self.heads if isinstance(self.heads, tuple) else effects.top(self.top)
        vector = instruction_vector(model, self.task, effects=effects, heads=heads, memory=self.memory)
        return _Side(effects, replace(vector, model=effects.model))

    def check_reading(self, model: HookedTransformer) -> None:
        """Raises ModelError where the two models' tokenizers make different tokens of the task."""
        prompts = zero_shot(self.task.pairs, template=self.settings.template)
        ours, theirs = tokenize(self.base, prompts), tokenize(model, prompts)
        for name in ("prompts", "answers"):
            if not torch.equal(getattr(ours, name).cpu(), getattr(theirs, name).cpu()):
                raise ModelError(
                    f"{self.pair.name} and {hooked.model_name(self.base)} make different tokens of the same {name}; "
                    "give a model with the same tokenizer"
                )

    def drift(self, before: _Side, after: _Side, wrote: list[Written]) -> pd.DataFrame:
        heads = head_drift(before.effects, after.effects, self.top)
        return pd.DataFrame([*heads, *vector_drift(*wrote, seed=self.settings.seed)], columns=list(DRIFT))


def changes(before: Dependence, after: Dependence, own: Dependence) -> pd.DataFrame:
    """One table of the base model, the tuned one, their paired difference, and the tuned one on its own vector."""
    parts = []
    for name, found in {"base": before, "tuned": after, "difference": after.minus(before)}.items():
        frame = found.to_frame()
        parts.append(frame.assign(model=name, vector=frame["heads"].map(lambda heads: "base" if heads else "")))
    parts.append(own.to_frame().query("heads != ''").assign(model="tuned", vector="tuned"))
    return pd.concat(parts, ignore_index=True).filter(CHANGES)
