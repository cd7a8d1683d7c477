"""Do what an open question needs, into a run folder that the same call goes on with."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import pandas as pd

from ivlens.analysis.run_comparison import find_tuned_model
from ivlens.datasets.task import Task
from ivlens.datasets.task import task as find_task
from ivlens.errors import IvlensError, TaskWarning, as_ivlens_error
from ivlens.experiments.experiment import Experiment, find_question
from ivlens.experiments.findings import ABLE, ASKED, FINDINGS, NONE, SAME, Found, Line, caution, number, share
from ivlens.experiments.overshadowing import find_learned
from ivlens.experiments.settings import ExperimentOptions, ExperimentSettings
from ivlens.experiments.update_parts import find_update
from ivlens.experiments.work import Work
from ivlens.models import hooked, loader
from ivlens.models.lora import Adapter
from ivlens.patching.activations import score_answers
from ivlens.patching.effects import check_prompts
from ivlens.patching.settings import Settings, gather_options, parse_bytes
from ivlens.prompts.long_pairs import leave_out_long
from ivlens.shapes import GIB
from ivlens.steering.verdict import most_frequent_share
from ivlens.storage.run_folder import Source, open_run
from ivlens.storage.run_tables import Tables

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


@as_ivlens_error()
def experiment(
    name: str,
    model: HookedTransformer | str | Path,
    task: Task | str | Path,
    *,
    tuned: HookedTransformer | Adapter | str | Path | Sequence[str | Path] | None = None,
    out: str | Path | None = None,
    settings: Settings | None = None,
    memory: int | str = 2 * GIB,
    **options: Unpack[ExperimentOptions],
) -> Experiment:
    """Run the experiment of an open question on a model and a task; `docs/open_questions.md` tells what each asks.

    >>> short = {"shots": 5, "clean_prompts": 8, "prompts": 6, "queries": 6, "top": 3, "draws": 2}
    >>> ivlens.experiment("rankings", model, task, **short)
    Experiment(rankings, antonym on lab: 39 numbers)

    Args:
        name: Of the experiment, such as `rankings`; `ivlens experiment --list` names them all.
        model, task: Also by what `ivlens.load` and `ivlens.task` take: a name, a path.
        tuned: The model after fine-tuning, where the question is about one: as for `ivlens.compare`.
        out: Run folder to write to, and to resume from; nothing is written without it.
        settings: How effects are measured, all of these options at once.
        memory: What patching and steering may take beside the weights, in bytes or such as "2GiB".
        options: Fields of `Settings`, and `top`, `draws` and `queries`: see
            `ivlens.experiments.settings.ExperimentSettings`.

    Raises:
        IvlensError: no such experiment or option, a value that it cannot have, or a tuned model is missing or too much.
        TaskError, PromptError, ModelError, ShapeMismatch: the task, prompts or models cannot serve.
        RunError: `out` is of another configuration (the differences are named), or cannot be written.
    """
    work = prepare(name, model, task, tuned=tuned, settings=settings, memory=memory, **options)
    return run_experiment(name, work, out)


def prepare(
    name: str,
    model: HookedTransformer | str | Path,
    task: Task | str | Path,
    *,
    tuned: HookedTransformer | Adapter | str | Path | Sequence[str | Path] | None = None,
    settings: Settings | None = None,
    memory: int | str = 2 * GIB,
    **options: Unpack[ExperimentOptions],
) -> Work:
    """What `experiment` is to do, checked, and nothing of it done."""
    question, task, memory = find_question(name), find_task(task), parse_bytes(memory)
    asked = gather_options(ExperimentSettings, settings, options)
    check_tuned(name, question.needs_tuned, tuned)
    if asked.learned is not None:
        if not question.needs_tuned:
            raise IvlensError(f"{name} is about one model, which learned nothing in it; leave learned out")
        find_learned(asked.learned)
    check_prompts(task, asked)
    model = loader.as_model(model)
    total = model.cfg.n_layers * model.cfg.n_heads
    if asked.top > total:
        raise IvlensError(f"top is {asked.top}, but the model has {total} heads; take fewer")
    task = leave_out_long(model, task, shots=asked.shots, template=asked.template)
    pair = None if tuned is None else find_tuned_model(model, tuned)
    update = None if pair is None else cache(partial(find_update, model, pair.model))
    return Work(model=model, task=task, asked=asked, memory=memory, tuned=pair, update=update)


def check_tuned(name: str, needed: bool, tuned: object) -> None:
    """Raises IvlensError where a tuned model is missing, or given to a question about one model."""
    if needed and not tuned:
        raise IvlensError(
            f"{name} is about fine-tuning; give the model after it, too: a checkpoint, or PEFT adapter folders"
        )
    if not needed and tuned:
        raise IvlensError(f"{name} is about one model; leave the tuned one out")


def run_experiment(name: str, work: Work, out: str | Path | None) -> Experiment:
    """Do what was prepared."""
    if out is None:
        return Experiment(name=name, model=hooked.model_name(work.model), task=work.task.name, table=_find(name, work))
    sources = {
        "model": hooked.source(work.model, digest=hooked.weight_digest(work.model)),
        "task": Source(name=work.task.name, digest=work.task.digest),
    }
    if work.tuned is not None:
        with work.tuned.active(work.model) as model:
            digest = hooked.weight_digest(model)
        sources["tuned"] = Source(name=work.tuned.name, digest=digest)
    record = {"name": name, **work.asked.record()}
    with open_run(out, command="experiment", settings=record, sources=sources, seed=work.asked.seed) as run:
        if not run.is_complete:
            tables = Tables(run)
            tables.table("findings", lambda: _find(name, replace(work, tables=tables)), FINDINGS)
            run.complete()
    return Experiment.read(out)


def _find(name: str, work: Work) -> pd.DataFrame:
    lines = work.lines("abilities", lambda: _ask_first(work))
    if said := caution(Found(pd.DataFrame(lines))):
        warnings.warn(said, TaskWarning, stacklevel=2)
    return pd.DataFrame([*lines, *find_question(name).run(work)], columns=list(FINDINGS))


def _ask_first(work: Work) -> Iterator[Line]:
    """Can the model do the task at all? In seconds, before anything that takes longer."""
    right, _ = score_answers(work.model, work.shown(work.split.evaluation))
    yield share(ABLE, ASKED, NONE, right)
    yield number(ABLE, SAME, NONE, most_frequent_share(pair.output for pair in work.split.evaluation))
