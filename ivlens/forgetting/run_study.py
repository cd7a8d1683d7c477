"""The forgetting study: what does fine-tuning do to instruction following, to knowledge and to the heads?

Every method with every seed (a cell) learns a sequence of tasks; after each stage all tasks, the general tasks and the
dependence on the instruction vector are measured. It reproduces, on one's own model, the setting of Jiang et al. 2024,
arXiv:2406.12227.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import pandas as pd

from ivlens.datasets.task import Task
from ivlens.engine.options import Engine, EngineOptions
from ivlens.engine.run_jobs import check_engine
from ivlens.engine.worker import use_threads
from ivlens.errors import RunError, StudyError, as_ivlens_error
from ivlens.forgetting import cell, cell_jobs, plan
from ivlens.forgetting.method_run import EVALUATIONS, GRIDS, STEPS
from ivlens.forgetting.plan import Plan
from ivlens.forgetting.preparation import general_tasks, refuse_unfit_guidance, sequence, universal_files
from ivlens.forgetting.study import Study
from ivlens.models import hooked, loader
from ivlens.patching.settings import gather_options
from ivlens.progress import track
from ivlens.storage import parquet, run_folder
from ivlens.storage.run_files import Home, describe_file
from ivlens.storage.run_record import configuration_digest, plain, read_record, refuse_another

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

_SAME_PLAN = "cells can be taken over from a run of the same plan that has other methods or seeds"


@as_ivlens_error()
def study(
    name: Plan | str | Path,
    *,
    out: str | Path,
    model: HookedTransformer | None = None,
    tasks_in: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    taken_from: Sequence[str | Path] = (),
    **options: Unpack[EngineOptions],
) -> Study:
    """Run a study, or go on with it; every cell is kept as soon as it is done.

    Args:
        name: A plan, the name of a built-in study, or a TOML file.
        out: Run folder to write to, and to resume from.
        model: In place of the plan's; cells are then run in this process, one after the other, where the model is.
        tasks_in: Folder of those tasks of the plan that are not built in, in place of the plan's.
        device, dtype: Of the model, as for `ivlens.load`, unless `model` is given.
        taken_from: Other run folders of this plan, complete or not, with other methods or seeds: cells that are done
            there are taken over.
        options: Fields of `ivlens.engine.options.Engine`: `engine` ("local" or "ray"), `workers`, `address` and so on.
            They do not change the numbers. A script that asks for several workers needs `if __name__ == "__main__":`.

    Raises:
        StudyError, TaskError: the plan or its tasks cannot serve, or a model was given to others to train.
        EngineError: there is no such cluster, or workers were lost more often than `retries` allows.
        TrainingError: a loss is not finite; the other cells are done, and stay.
        RunError: `out`, or a folder of `taken_from`, is of another configuration (the differences are named), or a
            folder cannot be read or written.

    >>> one = plan.with_changes(name="one", methods=("lora",))
    >>> found = ivlens.study(one, out="runs/one", model=model)
    >>> found.evaluations["stage"].unique().tolist()  # 0 is the base model.
    [0, 1]
    """
    engine = gather_options(Engine, None, options)
    if model is not None and (engine.engine == "ray" or (engine.workers or 1) > 1):
        asks = "engine is 'ray'" if engine.engine == "ray" else f"workers is {engine.workers}"
        raise StudyError(f"{asks}, but a model that is given is trained in this process; leave one out")
    asked = name if isinstance(name, Plan) else plan.read_plan(name)
    asked = asked.with_changes(tasks_in=None if tasks_in is None else str(tasks_in))
    general = general_tasks(asked)
    sequences = {seed: sequence(asked, seed, general) for seed in asked.seeds}
    check_engine(engine)
    base = loader.load(model or asked.model, device=device, dtype=dtype)
    refuse_unfit_guidance(asked, base)
    asked = asked.with_changes(model=model and hooked.model_name(model))
    sources = _sources(asked, base=base, general=general)
    with run_folder.open_run(
        out, command="study", settings=asked.record(), sources=sources, seed=asked.evaluation.seed
    ) as run:
        if not run.is_complete:
            if model is not None:
                engine = replace(engine, workers=1)
            for other in taken_from:
                _take_over(asked, run, Path(other), partial(_sources, base=base, general=general))
            with cell_jobs.freeze_base(base), use_threads(asked.threads):
                done = cell_jobs.train(asked, base, general, sequences, run, engine, device=device, dtype=dtype)
                n_stages = cell_jobs.n_stages(cell_jobs.list_unfinished(asked, run))
                with closing(done):
                    for _ in track(done, f"study {asked.name}: stages", total=n_stages):
                        pass
            _finish(run, asked)
    return Study.read(out)


def _sources(asked: Plan, *, base: HookedTransformer, general: Sequence[Task]) -> dict[str, run_folder.Source]:
    found = {"model": hooked.source(base, name=asked.model)}
    found |= {f"general task {task.name}": run_folder.Source(name=task.name, digest=task.digest) for task in general}
    role = "stage" if asked.order == "given" else "learned task"
    seed = asked.seeds[0]
    first = dict(zip(asked.ordered(seed), sequence(asked, seed, general), strict=True))
    for number, name in enumerate(asked.tasks, 1):
        found[f"{role} {number}"] = run_folder.Source(name=first[name].name, digest=first[name].digest)
    return found


def _take_over(
    asked: Plan, run: run_folder.Run, folder: Path, sources: Callable[[Plan], Mapping[str, run_folder.Source]]
) -> None:
    """Take the cells that are done in another run of the plan, with the universal heads that they rest on.

    Raises:
        RunError: it is no study of this plan, but for methods and seeds, or was computed by other versions.
    """
    found = read_record(folder)
    if found is None or found.command != "study":
        raise RunError(f"{folder} is not the run of a study; give the --out of one")
    recorded = plan.from_record({**found.settings, "model": asked.model})
    theirs = replace(asked, methods=recorded.methods, seeds=recorded.seeds)
    changes = {"settings": plain(theirs.record()), "sources": sources(theirs), "status": "running"}
    wanted = run.record.model_copy(update=changes)
    refuse_another(folder, wanted, found.model_copy(update={"status": "running"}), remedy=_SAME_PLAN)
    home, files = Home(folder, found.started.isoformat()), universal_files(theirs, folder)
    for one in cell_jobs.list_unfinished(asked, run):
        if one.method not in theirs.methods or one.seed not in theirs.seeds:
            continue
        heads = files[one.seed]
        other = replace(one, plan=theirs, home=home, configuration=configuration_digest(found), universal=heads.name)
        if all(map(other.is_done, other.stages)):
            if not run.has(one.universal):
                run.write_with(one.universal, partial(shutil.copyfile, heads))
            if run.files[one.universal] == describe_file(heads):
                one.take(other)


def _finish(run: run_folder.Run, asked: Plan) -> None:
    """See that everything that the plan asks for is there, make one table of each kind of it, and say so."""
    left = cell_jobs.list_unfinished(asked, run)
    if left:
        raise RunError(
            f"files of {', '.join(one.name for one in left)} in {run.folder} were changed or removed while the study "
            "was at work; run the same command again, and what is missing is computed again"
        )
    cells = cell_jobs.all_cells(asked, run)
    with run.writing():
        for one in cells:
            for stage in one.stages:  # A process that was killed behind its last line has left them.
                one.clear_up(stage)
    for name, suffix, columns in (
        ("evaluations", cell.MEASURES, EVALUATIONS),
        ("steps", cell.STEPS, STEPS),
        ("aie", cell.GRIDS, GRIDS),
    ):
        paths = [path for one in cells for path in one.tables(suffix)]
        found = [parquet.read_table(path, columns=columns, remedy="run the same command again") for path in paths]
        run.write_table(name, pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=list(columns)))
    run.complete({name: file for one in cells for name, file in one.files().items()})
