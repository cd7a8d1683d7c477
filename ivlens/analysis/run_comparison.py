"""Base against tuned: the same prompts to both, and every change with its uncertainty.

An adapter is merged into the base model for as long as the tuned model is asked, and taken out again: there is only
one copy of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Unpack

import pandas as pd
import torch

from ivlens.analysis import probes, wordings
from ivlens.analysis.comparison import CHANGES, base_lines
from ivlens.analysis.comparison import Comparison as Comparison
from ivlens.analysis.dependence import DEPENDENCE, Dependence, per_prompt, recovery
from ivlens.analysis.measure import check_heads, fix_choices, kept_effects
from ivlens.analysis.options import ComparisonOptions, ComparisonSettings
from ivlens.datasets.task import Task
from ivlens.datasets.task import task as find_task
from ivlens.errors import ModelError, ShapeMismatch, as_ivlens_error
from ivlens.models import bridge, hooked, loader, lora, peft, peft_config
from ivlens.models.lora import Adapter
from ivlens.patching.effects import Queries, check_prompts, example_prompts, find_queries
from ivlens.patching.head_effects import HeadEffects
from ivlens.patching.settings import Settings, gather_options, parse_bytes
from ivlens.prompts.builders import zero_shot
from ivlens.prompts.long_pairs import leave_out_long
from ivlens.prompts.template import Prompt
from ivlens.prompts.tokens import tokenize
from ivlens.shapes import GIB, Head
from ivlens.steering.vector_building import instruction_vector
from ivlens.storage import run_folder
from ivlens.storage.run_tables import Tables
from ivlens.vectors.drift import AIE, DRIFT, Written, aie_table, head_drift, vector_drift, write_by_query
from ivlens.vectors.instruction_vector import InstructionVector

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


@as_ivlens_error()
def compare(
    base: HookedTransformer | str | Path,
    tuned: HookedTransformer | Adapter | str | Path | Sequence[str | Path],
    task: Task | str | Path,
    *,
    out: str | Path | None = None,
    settings: Settings | None = None,
    memory: int | str = 2 * GIB,
    **options: Unpack[ComparisonOptions],
) -> Comparison:
    """Compare a model before and after fine-tuning: AIE, vectors, dependence on them; changes have paired intervals.

    >>> short = {"shots": 5, "clean_prompts": 8, "prompts": 6, "queries": 8, "draws": 1}
    >>> sorted(set(ivlens.compare("lab", adapter, "antonym", heads="L3H3", **short).measures["model"]))
    ['base', 'difference', 'tuned']

    Args:
        tuned: A model, a checkpoint (folder or hub id), a PEFT adapter folder over `base`, or an adapter; or several
            such folders, whose updates are added up.
        out: Run folder to write to, and to resume from; nothing is written without it.
        settings: How effects are measured, all of these options at once.
        memory: What patching and steering may take beside the weights, in bytes or such as "2GiB". Does not change the
            numbers.
        options: Fields of `Settings`, and `top`, `heads`, `instruction`, `draws` and `queries`: see
            `ivlens.analysis.options.ComparisonSettings`. Universal heads and the best wording are the base model's;
            heads of largest AIE are each model's own.

    Raises:
        IvlensError: no such option, a value that it cannot have, more heads than the model has, or options that
            contradict each other.
        ShapeMismatch: `tuned` has other heads, layers or widths than `base`, or the adapter does not fit.
        ModelError: a model cannot serve, reads text differently, or both have the same weights.
        TaskError, PromptError: the task or its prompts cannot serve.
        RunError: `out` is of another configuration (the differences are named), or cannot be written.
    """
    task, memory = find_task(task), parse_bytes(memory)
    asked = gather_options(ComparisonSettings, settings, options)
    wordings.check_choice(task, asked.instruction)
    check_prompts(task, asked)
    base = loader.as_model(base)
    task = leave_out_long(base, task, shots=asked.shots, template=asked.template)
    asked = check_heads(asked, base, options)
    work = _Work(base=base, pair=find_tuned_model(base, tuned), task=task, asked=asked, memory=memory)
    lost = lora.lost_to_rounding(base, work.pair.model) if isinstance(work.pair.model, Adapter) else 0.0
    if out is None:
        return work.all(Tables())
    backend = bridge.backend_of(base)
    with run_folder.open_run(
        out,
        command="compare",
        settings=asked.record(),
        sources={
            "base": hooked.source(base, digest=work.digests[0]),
            "tuned": hooked.source(
                work.pair.model,
                name=work.pair.name,
                digest=work.digests[1],
                stored=lora.note_loss(base, lost, work.pair.name),
                backend=backend,
            ),
            "task": run_folder.Source(name=task.name, digest=task.digest),
        },
        seed=asked.seed,
    ) as run:
        if not run.is_complete:
            tables = Tables(run)
            found = work.all(tables)
            with tables.keeping("base"):
                run.write_json("prompts.json", example_prompts(base, task, work.settings))
            run.write_with("base_vector.safetensors", found.base_vector.save)
            run.write_with("tuned_vector.safetensors", found.tuned_vector.save)
            run.complete()
    return Comparison.read(out)


class TunedModel(NamedTuple):
    """The tuned model: one of its own, or an adapter that makes it of the base model."""

    model: HookedTransformer | Adapter
    name: str

    @contextmanager
    def active(self, base: HookedTransformer) -> Iterator[HookedTransformer]:
        """The tuned model, for the `with` block; an adapter is merged into the base model as long."""
        if isinstance(self.model, Adapter):
            with lora.merged(base, self.model) as merged:
                yield merged
        else:
            yield self.model

    def check_reading(self, base: HookedTransformer, model: HookedTransformer, prompts: Sequence[Prompt]) -> None:
        """Raises ModelError where the two models' tokenizers make different tokens of prompts."""
        ours, theirs = tokenize(base, prompts), tokenize(model, prompts)
        for name in ("prompts", "answers"):
            if not torch.equal(getattr(ours, name).cpu(), getattr(theirs, name).cpu()):
                raise ModelError(
                    f"{self.name} and {hooked.model_name(base)} make different tokens of the same {name}; give a model "
                    "with the same tokenizer"
                )


def find_tuned_model(
    base: HookedTransformer, tuned: HookedTransformer | Adapter | str | Path | Sequence[str | Path]
) -> TunedModel:
    """The tuned model: one of its own, a checkpoint, or an adapter over the base model."""
    if isinstance(tuned, Sequence) and not isinstance(tuned, str):
        if len(tuned) != 1:
            stacked = lora.stack([peft.read_adapter(folder, base) for folder in tuned])
            return TunedModel(
                stacked, " + ".join([hooked.model_name(base), *(Path(one).resolve().name for one in tuned)])
            )
        tuned = tuned[0]
    if isinstance(tuned, Adapter):
        lora.check_adapter(base, tuned)
        return TunedModel(tuned, f"{hooked.model_name(base)} + adapter")
    if isinstance(tuned, str | Path):
        if (Path(tuned) / peft_config.CONFIG).is_file():
            name = f"{hooked.model_name(base)} + {Path(tuned).resolve().name}"
            return TunedModel(peft.read_adapter(tuned, base), name)
        tuned = loader.load_without_adapters(tuned, **loader.placed_as(base))
    loader.refuse_other_kinds(tuned)
    ours, theirs = (
        {name: getattr(model.cfg, name) for name in ("n_layers", "n_heads", "d_head", "d_model")}
        for model in (base, tuned)
    )
    if ours != theirs:
        unlike = [f"{name} {theirs[name]} instead of {ours[name]}" for name in ours if ours[name] != theirs[name]]
        raise ShapeMismatch(
            f"{hooked.model_name(tuned)} has {', '.join(unlike)} of {hooked.model_name(base)}; give a model that was "
            "fine-tuned from it"
        )
    return TunedModel(tuned, hooked.model_name(tuned))


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
    asked: ComparisonSettings
    heads: tuple[Head, ...] | None = None
    """None: the first of each model's own effects."""
    memory: int

    @property
    def settings(self) -> Settings:
        return self.asked.measurement()

    @cached_property
    def queries(self) -> Queries:
        """What both models are asked; where `answered_only` is asked for, what the base model answers right."""
        return find_queries(self.base, self.task, self.settings)

    def tuned(self) -> AbstractContextManager[HookedTransformer]:
        """The tuned model, for a `with` block."""
        return self.pair.active(self.base)

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

    def all(self, tables: Tables) -> Comparison:
        """Fix wordings and heads on the base model, then measure both."""
        with tables.keeping("base"):
            task, heads = fix_choices(self.base, self.task, self.asked, tables=tables, memory=self.memory)
            return replace(self, task=task, heads=heads).measured(self.digests, tables)

    def measured(self, digests: tuple[str, str], tables: Tables) -> Comparison:
        # What needs both models is measured of the base model before an adapter is merged into it.
        base_digest, tuned_digest = digests
        before = self.side(self.base, "base", base_digest, tables)
        sets = [before.vector.heads, *probes.random_sets(before.vector, draws=self.asked.draws)]
        is_asked = not (tables.has("measures") and tables.has("recovery"))
        prepare = partial(probes.prepare, task=self.task, prompts=self.asked.queries, draws=self.asked.draws)
        probe = prepare(self.base, vector=before.vector) if is_asked else None
        put = partial(per_prompt, score=self.asked.accuracy_score)
        found = [put(self.base, probe)] if probe else []
        write = partial(write_by_query, task=self.task, settings=self.settings, queries=self.queries)
        wrote = [] if tables.has("drift") else [write(self.base, sets=sets)]
        with self.tuned() as model, tables.keeping("tuned"):
            self.pair.check_reading(self.base, model, zero_shot(self.task.pairs, template=self.asked.template))
            after = self.side(model, "tuned", tuned_digest, tables)
            if probe:
                found += [put(model, probe), put(model, prepare(model, vector=after.vector))]
            if wrote:
                wrote.append(write(model, sets=[*sets, after.vector.heads]))
        return Comparison(
            base=before.effects,
            tuned=after.effects,
            base_vector=before.vector,
            tuned_vector=after.vector,
            tuned_name=self.pair.name,
            aie=tables.table("aie", lambda: aie_table(before.effects, after.effects), AIE),
            measures=tables.table("measures", lambda: self.changes(*found), CHANGES),
            drift=tables.table("drift", lambda: self.drift(before, after, wrote), DRIFT),
            recovery=tables.table("recovery", lambda: recovery(*found[:2]), DEPENDENCE),
        )

    def side(self, model: HookedTransformer, which: str, digest: str, tables: Tables) -> _Side:
        """Effects and vector of the base or the tuned model."""
        effects = kept_effects(
            model,
            self.task,
            self.settings,
            tables=tables,
            table=f"{which}_effects",
            name=hooked.model_name(model) if which == "base" else self.pair.name,
            digest=digest,
            memory=self.memory,
            queries=self.queries,
        )
        heads = self.heads or effects.top(self.asked.top)
        vector = instruction_vector(model, self.task, effects=effects, heads=heads, memory=self.memory)
        return _Side(effects, replace(vector, model=effects.model))

    def changes(self, before: Dependence, after: Dependence, own: Dependence) -> pd.DataFrame:
        """One table of the base model, the tuned one, their paired difference, and the tuned one on its own vector."""
        parts = []
        for name, found in {"base": before, "tuned": after, "difference": after.minus(before)}.items():
            frame = found.to_frame()
            parts.append(frame.assign(model=name, vector=frame["heads"].map(lambda heads: "base" if heads else "")))
        parts.append(base_lines(before, self.task, self.settings))
        parts.append(own.to_frame().query("heads != ''").assign(model="tuned", vector="tuned"))
        return pd.concat(parts, ignore_index=True).filter(CHANGES)

    def drift(self, before: _Side, after: _Side, wrote: list[Written]) -> pd.DataFrame:
        heads = head_drift(before.effects, after.effects, self.asked.top)
        return pd.DataFrame([*heads, *vector_drift(*wrote)], columns=list(DRIFT))
