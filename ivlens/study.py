"""The forgetting study: what does fine-tuning do to instruction following, to knowledge and to the heads?

Every method with every seed (a cell) learns a sequence of tasks; after each stage all tasks, the general tasks and the
dependence on the instruction vector are measured. It reproduces, on one's own model, the setting of Jiang et al. 2024,
arXiv:2406.12227.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from ivlens import adapters, benchmarks, cell, forgetting, models, plan, probes, runs, stages
from ivlens.cell import EVALUATIONS, GRIDS, STEPS, Bench, Cell
from ivlens.effects import Settings
from ivlens.errors import RunError, StudyError, TaskError
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


KEY = ("AP", "F", "GP", "IP")
"""The measures that a study is told by."""


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

    @property
    def summary(self) -> pd.DataFrame:
        """AP, F, GP, IP and their like per method, with intervals over seeds; see `forgetting.summary`."""
        return forgetting.summary(self.evaluations, guided=self.guided)

    def figures(self) -> dict[str, go.Figure]:
        """Every figure of the study by file name."""
        from ivlens import study_figures

        return study_figures.figures(self)

    def __repr__(self) -> str:
        lines = self.summary.set_index(["method", "measure"])["value"]
        found = [f"{name}: " + ", ".join(f"{key} {lines[name, key]:.2f}" for key in KEY) for name in self.plan.methods]
        seeds = f"{len(self.plan.seeds)} seed{'s' if len(self.plan.seeds) > 1 else ''}"
        return f"Study({self.plan.name} on {self.plan.model}, {seeds}; {'; '.join(found)})"

    def _repr_html_(self) -> str:
        from ivlens import study_tables

        return study_tables.study_html(self)


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
            the numbers. A script that asks for several needs `if __name__ == "__main__":`.

    Raises:
        StudyError, TaskError: the plan or its tasks cannot serve, or a worker was killed.
        TrainingError: a loss is not finite; cells that are done stay.
        RunError: `out` is of another configuration (the differences are named), or cannot be written.
    """
    if workers is not None and workers < 1:
        raise StudyError(f"workers is {workers}; it must be 1 or more")
    asked = name if isinstance(name, Plan) else plan.read(name)
    general = general_tasks(asked)
    sequences = {seed: _stages(asked, seed, general) for seed in asked.seeds}
    base = adapters.load(model or asked.model, device="auto" if model else device, dtype="auto" if model else dtype)
    asked = asked.with_changes(model=model and models.model_name(model))
    sources = _sources(asked, base, general, sequences)
    with runs.open_run(
        out, command="study", settings=asked.record(), sources=sources, seed=asked.evaluation.seed
    ) as run:
        if not run.is_complete:
            at_once = 1 if model else workers or _cores(base)
            with _trained_beside(base), _threads(asked.threads):
                done = _cells_done(asked, base, general, sequences, run, at_once, device=device, dtype=dtype)
                with closing(done):
                    for _ in track(done, f"study {asked.name}: stages", total=_n_stages(_left(asked, run.folder))):
                        pass
            _collect(run, asked)
            run.complete()
    return Study.read(out)


def general_tasks(asked: Plan) -> list[Task]:
    """The general tasks of a plan, refused before the model is read where they cannot serve.

    Raises:
        StudyError: one is trained on, too, or a guide or probe is not among them.
        TaskError: one has no instruction, or too few pairs.
    """
    names = asked.general or tuple(tasks())
    found = {name: find_task(name) for name in names}
    own = [task.name for task in found.values()]
    repeated = sorted({name for name in own if own.count(name) > 1})
    if repeated:
        raise StudyError(f"two general tasks are called {', '.join(repeated)}; rename one")
    for kind, chosen in {"guides": asked.guides, "evaluation.probes": asked.evaluation.probes}.items():
        unknown = sorted(set(chosen) - set(names) - set(own))
        if unknown:
            raise StudyError(f"{kind} names {', '.join(unknown)}, which is not among the general tasks; add it there")
    shots = asked.evaluation.shots
    for name, task in found.items():
        _refuse_unfit(task, shots)
        if {name, task.name} & set(asked.evaluation.probes):
            task.split(shots=shots)
    return list(found.values())


def _refuse_unfit(task: Task, shots: int) -> None:
    if not task.instructions:
        raise TaskError(f"general task {task.name!r} has no instruction; add one, or leave the task out")
    if len(task.pairs) <= shots:
        raise TaskError(
            f"general task {task.name!r} has {len(task.pairs)} pairs, but {shots} demonstrations and a query need "
            "more; add pairs or use fewer shots"
        )


def _named(asked: Plan, general: Sequence[Task], chosen: Sequence[str]) -> list[Task]:
    """Those of the general tasks that a list of names or paths means."""
    names = asked.general or tuple(tasks())
    return [task for name, task in zip(names, general, strict=True) if {name, task.name} & set(chosen)]


def _stages(asked: Plan, seed: int, general: Sequence[Task]) -> list[Stage]:
    """What is learned, with this seed's split.

    Raises:
        StudyError: one of them is a general task, too.
        TaskError: there is no such task, it is too small for its split, or it is named twice.
    """
    found = [benchmarks.stage(name, seed=seed, limit=asked.train_prompts) for name in asked.tasks]
    stages.check_sequence(found)
    both = sorted({stage.name for stage in found} & {task.name for task in general})
    if both:
        raise StudyError(f"{', '.join(both)} is trained on and measured as a general task; choose one of the two")
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
        guides = _named(asked, general, asked.guides) if asked.guides else list(general)[::2]
        universal_heads(base, guides, _settings(asked), top=asked.evaluation.top).save(path)
    return prepared(asked, base, general, path)


def prepared(asked: Plan, base: HookedTransformer, general: Sequence[Task], path: Path) -> Bench:
    """What cells share, from the universal heads that were kept."""
    universal = Universal.load(path)
    found = {}
    for task in _named(asked, general, asked.evaluation.probes):
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


def _cells_done(
    asked: Plan,
    base: HookedTransformer,
    general: Sequence[Task],
    sequences: Mapping[int, Sequence[Stage]],
    run: runs.Run,
    workers: int,
    *,
    device: str,
    dtype: str,
) -> Generator[int]:
    """Yields once for every stage of the cells that are left."""
    bench, left = _bench(asked, base, general, run), _left(asked, run.folder)
    if min(workers, len(left)) > 1:
        yield from _side_by_side(left, asked, run.folder, workers, device=device, dtype=dtype)
    else:
        yield from _one_by_one(left, bench, sequences, general)


def _left(asked: Plan, folder: Path) -> list[Cell]:
    return [one for one in _cells(asked, folder) if not one.is_done(len(asked.tasks))]


def _n_stages(cells: Sequence[Cell]) -> int:
    return sum(len(one.plan.tasks) + 1 for one in cells)


def _one_by_one(
    cells: Sequence[Cell], bench: Bench, sequences: Mapping[int, Sequence[Stage]], general: Sequence[Task]
) -> Iterator[int]:
    for one in cells:
        exam = examination(bench.model, sequences[one.seed], general, one.plan.evaluation)
        yield from cell.run(one, bench, sequences[one.seed], exam)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Sums depend on the number of threads in their last bits: the same in this process and in workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _trained_beside(base: HookedTransformer) -> Iterator[None]:
    """The model's own weights take no gradients; afterwards those do that did before."""
    before = [weight for weight in base.parameters() if weight.requires_grad]
    base.requires_grad_(False)
    try:
        yield
    finally:
        for weight in before:
            weight.requires_grad_(True)


def _side_by_side(
    cells: Sequence[Cell], asked: Plan, folder: Path, workers: int, *, device: str, dtype: str
) -> Iterator[int]:
    """Yields once for every stage whose table appears; a worker's error ends the study."""
    context = multiprocessing.get_context("spawn")
    before = _n_done(cells)
    yield from range(before)
    arguments = (asked, folder, device, dtype)
    with ProcessPoolExecutor(min(workers, len(cells)), context, _start_worker, arguments) as pool:
        futures = [pool.submit(_work, one) for one in cells]
        try:
            yield from _watched(futures, cells, before)
        except BrokenProcessPool as error:
            raise StudyError(
                "a worker process ended before its time; was it killed, or out of memory? Run the same command again, "
                "with fewer workers"
            ) from error
        except BaseException:
            processes = list((pool._processes or {}).values())  # The pool forgets them when it is shut down.
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            for process in processes:  # None is to write into the folder after this.
                process.join(10)
            raise


def _watched(futures: Sequence[Future[None]], cells: Sequence[Cell], seen: int) -> Iterator[int]:
    while True:
        waiting = wait(futures, timeout=1, return_when="FIRST_EXCEPTION").not_done
        for future in futures:
            if future.done():
                future.result()
        now = _n_done(cells)
        yield from range(seen, now)
        seen = now
        if not waiting:
            return


def _n_done(cells: Sequence[Cell]) -> int:
    return sum(one.is_done(stage) for one in cells for stage in range(len(one.plan.tasks) + 1))


_WORKER: dict[str, Any] = {}
"""What a worker process has loaded once for all of its cells."""


def _start_worker(asked: Plan, folder: Path, device: str, dtype: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the study itself, which ends its workers.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(asked.threads)
    base, general = adapters.load(asked.model, device=device, dtype=dtype), general_tasks(asked)
    _WORKER["general"] = general
    _WORKER["bench"] = prepared(asked, base, general, folder / "universal.safetensors")


def _end_with_parent() -> None:
    """A worker whose study was killed must not write on beside the next one, nor wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(one: Cell) -> None:
    general = _WORKER["general"]
    sequences = {one.seed: _stages(one.plan, one.seed, general)}
    for _ in _one_by_one([one], _WORKER["bench"], sequences, general):
        pass


def _cores(base: HookedTransformer) -> int:
    return 1 if torch.device(base.cfg.device or "cpu").type != "cpu" else os.cpu_count() or 1


def _collect(run: runs.Run, asked: Plan) -> None:
    """One table of each kind for the whole study."""
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
