"""The forgetting study: what does fine-tuning do to instruction following, to knowledge and to the heads?

Every method with every seed (a cell) learns a sequence of tasks; after each stage all tasks, the general tasks and the
dependence on the instruction vector are measured. It reproduces, on one's own model, the setting of Jiang et al. 2024,
arXiv:2406.12227.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from ivlens import adapters, benchmarks, cell, forgetting, models, plan, probes, runs, stages
from ivlens.cell import EVALUATIONS, GRIDS, STEPS, Bench, Cell
from ivlens.effects import Settings
from ivlens.errors import RunError, StudyError
from ivlens.examination import examination
from ivlens.plan import Plan
from ivlens.progress import track
from ivlens.stages import Stage
from ivlens.steering import instruction_vector
from ivlens.tasks import Task, tasks
from ivlens.tasks import task as find_task
from ivlens.universal import Universal, universal_heads

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from transformer_lens import HookedTransformer


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a study found; tidy tables, one line a number."""

    evaluations: pd.DataFrame
    """Every measure of every task after every stage of every cell; stage 0 is the base model."""
    steps: pd.DataFrame
    """Loss, penalty and gradient of every optimiser step."""
    grids: pd.DataFrame
    """AIE of every head of base and tuned model on the probes."""
    plan: Plan
    guided: tuple[str, ...]
    """General tasks that the universal heads and the general vectors are of."""
    folder: Path

    @classmethod
    def read(cls, folder: str | Path) -> Study:
        """What a complete run folder holds, without the model.

        Raises:
            RunError: no run, not a study's, unfinished, or damaged.
        """
        run = runs.read_run(folder)
        if run.record.command != "study":
            raise RunError(f"{folder} is of `ivlens {run.record.command}`, not of a study; give a study's folder")
        settings = dict(run.record.settings)
        return cls(
            evaluations=run.read_table("evaluations", columns=EVALUATIONS),
            steps=run.read_table("steps", columns=STEPS),
            grids=run.read_table("aie", columns=GRIDS),
            plan=plan.from_record({**settings, "model": run.record.sources["model"].name}),
            guided=Universal.load(run.path("universal.safetensors")).tasks,
            folder=Path(folder),
        )

    @cached_property
    def summary(self) -> pd.DataFrame:
        """AP, F, GP, IP and their like per method, with intervals over seeds; see `forgetting.summary`."""
        return forgetting.summary(self.evaluations, guided=self.guided)

    def figures(self) -> dict[str, go.Figure]:
        """Every figure of the study by file name."""
        from ivlens import study_figures

        return study_figures.figures(self)


def study(
    name: Plan | str | Path,
    *,
    out: str | Path,
    model: HookedTransformer | None = None,
    workers: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> Study:
    """Run a study, or go on with it; every cell is kept as soon as it is done.

    Args:
        name: A plan, the name of a built-in study, or a TOML file.
        out: Run folder to write to, and to resume from.
        model: In place of the plan's; cells are then run in this process, one after the other.
        workers: Processes that run cells side by side; by default one a core on the CPU, one on a GPU. Does not change
            the numbers.

    Raises:
        StudyError, TaskError: the plan or its tasks cannot serve.
        TrainingError: a loss is not finite; cells that are done stay.
        RunError: `out` is of another configuration (the differences are named), or cannot be written.
    """
    asked = name if isinstance(name, Plan) else plan.read(name)
    general = _general(asked)
    sequences = {seed: _stages(asked, seed) for seed in asked.seeds}
    base = model or adapters.load(asked.model, device=device, dtype=dtype)
    with runs.open_run(
        out,
        command="study",
        settings=asked.record(),
        sources=_sources(asked, base, general, sequences),
        seed=asked.evaluation.seed,
    ) as run:
        if not run.is_complete:
            bench = _bench(asked, base, general, run)
            left = [one for one in _cells(asked, run.folder) if not one.is_done(len(asked.tasks))]
            if model is None and (workers or _cores(base)) > 1 and len(left) > 1:
                done = _side_by_side(left, asked, run.folder, workers or _cores(base), device=device, dtype=dtype)
            else:
                done = _one_by_one(left, bench, sequences, general)
            for _ in track(done, f"study {asked.name}: stages", total=len(left) * (len(asked.tasks) + 1)):
                pass
            _collect(run, asked)
            run.complete()
    return Study.read(out)


def _general(asked: Plan) -> list[Task]:
    """The general tasks; each must be one that no stage trains on."""
    found = [find_task(name) for name in asked.general or tasks()]
    trained = set(asked.tasks)
    both = sorted(trained & {task.name for task in found})
    if both:
        raise StudyError(f"{', '.join(both)} is trained on and measured as a general task; choose one of the two")
    for kind, names in {"guides": asked.guides, "evaluation.probes": asked.evaluation.probes}.items():
        unknown = sorted(set(names) - {task.name for task in found} - set(asked.general))
        if unknown:
            raise StudyError(f"{kind} names {', '.join(unknown)}, which is not among the general tasks; add it there")
    return found


def _stages(asked: Plan, seed: int) -> list[Stage]:
    found = [benchmarks.stage(name, seed=seed, limit=asked.train_prompts) for name in asked.tasks]
    stages.check_sequence(found)
    return found


def _sources(
    asked: Plan, base: HookedTransformer, general: Sequence[Task], sequences: Mapping[int, Sequence[Stage]]
) -> dict[str, runs.Source]:
    found = {"model": runs.Source(name=asked.model, digest=models.weight_digest(base))}
    found |= {f"general task {task.name}": runs.Source(name=task.name, digest=task.digest) for task in general}
    for number, stage in enumerate(sequences[asked.seeds[0]], 1):
        found[f"stage {number}"] = runs.Source(name=stage.name, digest=stage.digest)
    return found


def _cells(asked: Plan, folder: Path) -> list[Cell]:
    """Seed by seed, so that a study that is stopped early has all methods of the seeds that it has."""
    return [
        Cell(plan=asked, method=method, seed=seed, folder=folder / "cells" / f"{method}-{seed}")
        for seed in asked.seeds
        for method in asked.methods
    ]


def _bench(asked: Plan, base: HookedTransformer, general: Sequence[Task], run: runs.Run) -> Bench:
    """Universal heads, their vectors and the probes, of the base model; the heads are kept in the run folder."""
    path = run.path("universal.safetensors")
    if not path.exists():
        guides = [task for task in general if task.name in asked.guides] if asked.guides else list(general)[::2]
        universal_heads(base, guides, _settings(asked), top=asked.evaluation.top).save(path)
    return prepared(asked, base, general, path)


def prepared(asked: Plan, base: HookedTransformer, general: Sequence[Task], path: Path) -> Bench:
    """What cells share, from the universal heads that were kept."""
    universal = Universal.load(path)
    found = {}
    for task in general:
        if task.name not in asked.evaluation.probes:
            continue
        vector = instruction_vector(
            base, task, heads=universal.heads, layer=universal.layer, settings=universal.settings
        )
        found[task.name] = (
            task,
            probes.prepare(base, task, vector, prompts=asked.evaluation.probe_prompts, others=general),
        )
    return Bench(model=base, universal=universal, probes=found)


def _settings(asked: Plan) -> Settings:
    chosen = asked.evaluation
    return Settings(
        shots=chosen.shots, clean_prompts=chosen.clean_prompts, prompts=chosen.probe_prompts, seed=chosen.seed
    )


def _one_by_one(
    cells: Sequence[Cell], bench: Bench, sequences: Mapping[int, Sequence[Stage]], general: Sequence[Task]
) -> Iterator[int]:
    before = torch.get_num_threads()
    try:
        for one in cells:
            torch.set_num_threads(one.plan.threads)
            exam = examination(bench.model, sequences[one.seed], general, one.plan.evaluation)
            yield from cell.run(one, bench, sequences[one.seed], exam)
    finally:
        torch.set_num_threads(before)


def _side_by_side(
    cells: Sequence[Cell], asked: Plan, folder: Path, workers: int, *, device: str, dtype: str
) -> Iterator[int]:
    """Yields once for every stage whose table appears; a worker's error ends the study."""
    context = multiprocessing.get_context("spawn")
    before = sum(one.is_done(stage) for one in cells for stage in range(len(asked.tasks) + 1))
    yield from range(before)
    arguments = (asked, folder, device, dtype)
    with ProcessPoolExecutor(min(workers, len(cells)), context, _start_worker, arguments) as pool:
        futures = [pool.submit(_work, one) for one in cells]
        try:
            yield from _watched(futures, cells, before)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list((pool._processes or {}).values()):
                process.terminate()
            raise


def _watched(futures: Sequence[Future[None]], cells: Sequence[Cell], seen: int) -> Iterator[int]:
    n_stages = len(cells[0].plan.tasks) + 1
    while True:
        waiting = wait(futures, timeout=1, return_when="FIRST_EXCEPTION").not_done
        for future in futures:
            if future.done():
                future.result()
        now = sum(one.is_done(stage) for one in cells for stage in range(n_stages))
        yield from range(seen, now)
        seen = now
        if not waiting:
            return


_WORKER: dict[str, Any] = {}
"""What a worker process has loaded once for all of its cells."""


def _start_worker(asked: Plan, folder: Path, device: str, dtype: str) -> None:
    torch.set_num_threads(asked.threads)
    base, general = adapters.load(asked.model, device=device, dtype=dtype), _general(asked)
    _WORKER["general"] = general
    _WORKER["bench"] = prepared(asked, base, general, folder / "universal.safetensors")


def _work(one: Cell) -> None:
    sequences = {one.seed: _stages(one.plan, one.seed)}
    for _ in _one_by_one([one], _WORKER["bench"], sequences, _WORKER["general"]):
        pass


def _cores(base: HookedTransformer) -> int:
    return 1 if torch.device(base.cfg.device or "cpu").type != "cpu" else os.cpu_count() or 1


def _collect(run: runs.Run, asked: Plan) -> None:
    """One table of each kind for the whole study, and each cell's adapters as one PEFT folder."""
    cells = _cells(asked, run.folder)
    numbers = range(len(asked.tasks) + 1)
    for name, suffix, columns, which in (
        ("evaluations", ".parquet", EVALUATIONS, numbers),
        ("steps", "-steps.parquet", STEPS, numbers[1:]),
        ("aie", "-aie.parquet", GRIDS, [0, numbers[-1]]),
    ):
        paths = [path for one in cells for stage in which if (path := one.path(stage, suffix)).is_file()]
        frames = [pd.read_parquet(path) for path in paths]
        run.write_table(name, pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(columns)))
