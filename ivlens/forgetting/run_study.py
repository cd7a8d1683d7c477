"""The forgetting study: what does fine-tuning do to instruction following, to knowledge and to the heads?

Every method with every seed (a cell) learns a sequence of tasks; after each stage all tasks, the general tasks and the
dependence on the instruction vector are measured. It reproduces, on one's own model, the setting of Jiang et al. 2024,
arXiv:2406.12227.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ivlens.datasets.task import Task
from ivlens.errors import RunError, StudyError
from ivlens.forgetting import metrics, plan
from ivlens.forgetting import workers as crew
from ivlens.forgetting.cell import EVALUATIONS, GRIDS, STEPS
from ivlens.forgetting.plan import Plan
from ivlens.forgetting.preparation import general_tasks, refuse_unfit_guidance, sequence
from ivlens.models import hooked, peft
from ivlens.progress import track
from ivlens.storage import parquet, run_folder
from ivlens.training.stages import Stage
from ivlens.vectors.universal_heads import Universal

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
        run = run_folder.read_run(folder)
        if run.record.command != "study":
            raise RunError(f"{folder} is of `ivlens {run.record.command}`, not of a study; give a study's folder")
        settings = dict(run.record.settings)
        return cls(
            evaluations=run.read_table("evaluations", columns=EVALUATIONS),
            steps=run.read_table("steps", columns=STEPS),
            grids=run.read_table("aie", columns=GRIDS),
            plan=plan.from_record({**settings, "model": run.source("model").name}),
            guided=Universal.load(run.path("universal.safetensors")).tasks,
            folder=Path(folder),
        )

    @property
    def summary(self) -> pd.DataFrame:
        """AP, F, GP, IP and their like per method, with intervals over seeds; see `forgetting.summary`."""
        return metrics.summary(self.evaluations, guided=self.guided)

    def difference(self, method: str, other: str) -> pd.DataFrame:
        """What one method has over another, paired by seed; see `forgetting.difference`."""
        return metrics.difference(self.evaluations, method, other, guided=self.guided)

    def figures(self) -> dict[str, go.Figure]:
        """Every figure of the study by file name."""
        from ivlens.forgetting import figures as study_figures

        return study_figures.figures(self)

    def __repr__(self) -> str:
        lines = self.summary.set_index(["method", "measure"])["value"]
        found = [f"{name}: " + ", ".join(f"{key} {lines[name, key]:.2f}" for key in KEY) for name in self.plan.methods]
        seeds = f"{len(self.plan.seeds)} seed{'s' if len(self.plan.seeds) > 1 else ''}"
        return f"Study({self.plan.name} on {self.plan.model}, {seeds}; {'; '.join(found)})"

    def _repr_html_(self) -> str:
        from ivlens.forgetting import tables

        return tables.study_html(self)


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
    sequences = {seed: sequence(asked, seed, general) for seed in asked.seeds}
    base = peft.load(model or asked.model, device="auto" if model else device, dtype="auto" if model else dtype)
    refuse_unfit_guidance(asked, base)
    asked = asked.with_changes(model=model and hooked.model_name(model))
    sources = _sources(asked, base, general, sequences)
    with run_folder.open_run(
        out, command="study", settings=asked.record(), sources=sources, seed=asked.evaluation.seed
    ) as run:
        if not run.is_complete:
            at_once = 1 if model else workers or crew.cores(base)
            with crew.trained_beside(base), crew.threads(asked.threads):
                done = crew.train(asked, base, general, sequences, run, at_once, device=device, dtype=dtype)
                n_stages = crew.n_stages(crew.left(asked, run.folder))
                with closing(done):
                    for _ in track(done, f"study {asked.name}: stages", total=n_stages):
                        pass
            _collect(run, asked)
            run.complete()
    return Study.read(out)


def _sources(
    asked: Plan, base: HookedTransformer, general: Sequence[Task], sequences: Mapping[int, Sequence[Stage]]
) -> dict[str, run_folder.Source]:
    found = {"model": run_folder.Source(name=asked.model, digest=hooked.weight_digest(base))}
    found |= {f"general task {task.name}": run_folder.Source(name=task.name, digest=task.digest) for task in general}
    for number, stage in enumerate(sequences[asked.seeds[0]], 1):
        found[f"stage {number}"] = run_folder.Source(name=stage.name, digest=stage.digest)
    return found


def _collect(run: run_folder.Run, asked: Plan) -> None:
    """One table of each kind for the whole study."""
    cells = crew.all_cells(asked, run.folder)
    numbers = range(len(asked.tasks) + 1)
    for name, suffix, columns, which in (
        ("evaluations", ".parquet", EVALUATIONS, numbers),
        ("steps", "-steps.parquet", STEPS, numbers[1:]),
        ("aie", "-aie.parquet", GRIDS, [0, numbers[-1]]),
    ):
        paths = [path for one in cells for stage in which if (path := one.path(stage, suffix)).is_file()]
        found = [parquet.read(path, columns=columns, remedy="delete it and run again") for path in paths]
        run.write_table(name, pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=list(columns)))
