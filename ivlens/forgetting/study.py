"""What did a study find: every measure of every task after every stage of every cell, and what is told of it?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pandas as pd

from ivlens.analysis.consistency import check_below
from ivlens.errors import RunError
from ivlens.forgetting import metrics, plan
from ivlens.forgetting.method_run import EVALUATIONS, GRIDS, PROBE_BOUNDS, STEPS
from ivlens.forgetting.plan import Plan
from ivlens.forgetting.preparation import universal_files
from ivlens.steering.universal_heads import Universal
from ivlens.storage import run_folder

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ivlens.plots.style import Width


KEY = ("AP", "F", "GP", "IP")
"""The measures that a study is told by."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a study found; tidy tables, one line a number.

    >>> study
    Study(short on lab, 1 seed; lora: AP ..., F nan, GP ..., IP ...; replay: AP ..., F nan, GP ..., IP ...)
    >>> study.evaluations.columns.tolist()[:5]
    ['method', 'seed', 'stage', 'task', 'kind']
    """

    evaluations: pd.DataFrame
    """Every measure of every task after every stage of every cell; stage 0 is the base model. `learned` says in which
    stage of its cell a task is learned: seeds may draw the order."""
    steps: pd.DataFrame
    """Loss, penalty and gradient of every optimiser step."""
    grids: pd.DataFrame
    """AIE of every head of base and tuned model on the probes."""
    plan: Plan
    guided: tuple[str, ...]
    """General tasks that the universal heads and the general vectors are of, with one seed or another."""
    folder: Path

    @classmethod
    def read(cls, folder: str | Path) -> Study:
        """What a complete run folder holds, without the model.

        Raises:
            RunError: no run, not a study's, unfinished, or damaged.

        >>> ivlens.Study.read("runs/short").steps.groupby("method")["step"].count().to_dict()
        {'lora': 2, 'replay': 2}
        """
        run = run_folder.read_run(folder)
        if run.record.command != "study":
            raise RunError(f"{folder} is of `ivlens {run.record.command}`, not of a study; give a study's folder")
        settings = dict(run.record.settings)
        asked = plan.from_record({**settings, "model": run.source("model").name})
        kept = universal_files(asked, run.folder).values()
        guided = [task for path in dict.fromkeys(kept) for task in Universal.load(path).tasks]
        found = cls(
            evaluations=metrics.with_stages(run.read_table("evaluations", columns=EVALUATIONS)),
            steps=run.read_table("steps", columns=STEPS),
            grids=run.read_table("aie", columns=GRIDS),
            plan=asked,
            guided=tuple(dict.fromkeys(guided)),
            folder=Path(folder),
        )
        found._refuse_gaps()
        return found

    def _refuse_gaps(self) -> None:
        """Raises RunError where a table lacks a cell, a stage or a task of the plan, or has one that is not in it."""
        remedy, stages = "run again into a new --out", range(len(self.plan.tasks) + 1)
        path, lines = self.folder / "evaluations.parquet", cast(Any, self.evaluations)
        cells = {(method, seed) for method in self.plan.methods for seed in self.plan.seeds}
        if set(zip(lines["method"], lines["seed"], strict=True)) != cells or set(lines["stage"]) != set(stages):
            raise RunError(f"{path} is of other methods, seeds or stages than the plan; {remedy}")
        check_below(lines, {"learned": len(stages)}, str(path), remedy)
        for kind, measure in metrics.ALWAYS:
            own = lines[(lines["kind"] == kind) & (lines["measure"] == measure)]
            n_tasks = own["task"].nunique()
            needed = len(cells) * len(stages) * max(n_tasks, len(self.plan.tasks) if kind == "sequence" else 1)
            if len(own) != needed:
                raise RunError(f"{path} has {len(own):,} lines of {kind} {measure!r}; needed are {needed:,}; {remedy}")
        bounds = lines[lines["kind"].isin(PROBE_BOUNDS)]
        if bounds.duplicated(["method", "seed", "stage", "kind", "measure", "heads"]).any():
            raise RunError(f"{path} has two intervals over all probes of one measure; {remedy}")
        if len(self.grids) and set(self.grids["stage"]) != {stages[0], stages[-1]}:
            raise RunError(f"{self.folder}/aie.parquet is not of the first and the last stage; {remedy}")

    @property
    def summary(self) -> pd.DataFrame:
        """AP, F, GP, IP and their like per method, shares in [0, 1] with intervals over seeds; see `metrics.summary`.

        AP is the mean accuracy on the learned tasks, F what was forgotten of them, GP and IP the accuracy on general
        tasks, instructed and with demonstrations. NaN: F of a single stage, and the intervals of a single seed.

        >>> float(study.summary.set_index(["method", "measure"]).loc[("lora", "F"), "value"])
        nan
        """
        return self._summary.copy()

    @cached_property
    def _summary(self) -> pd.DataFrame:
        """Computed once: a page asks for it a dozen times."""
        return metrics.summary(
            self.evaluations, guided=self.guided, families=self.families, reference=self.plan.reference
        )

    @property
    def families(self) -> dict[str, str]:
        """The family of every general task.

        >>> study.families
        {'antonym': 'meaning', 'country-capital': 'country'}
        """
        general = self.evaluations.query("kind == 'general'")
        return {task: self.plan.family(task) for task in dict.fromkeys(general["task"])}

    @property
    def unmeasured(self) -> dict[str, list[str]]:
        """General tasks that the base model cannot do in a form, or that have none, so that they were not asked in it.

        By what the accuracy is called.

        >>> study.unmeasured  # Of a plan with `evaluation.able_only`.
        {}
        """
        if not self.plan.evaluation.able_only:
            return {}
        general = self.evaluations.query("kind == 'general' and n == 0").drop_duplicates(["task", "measure"])
        named = cast(Any, general[general["measure"].str.endswith("accuracy")]).groupby("measure", sort=False)
        return {measure: list(own["task"]) for measure, own in named}

    @property
    def order(self) -> pd.DataFrame:
        """Which task every seed learned in which stage: a row a seed, a column a stage, from 1.

        >>> study.order.loc[0, 1]
        'class-letter'
        """
        learned = self.evaluations.query("learned > 0").drop_duplicates(["seed", "learned"])
        return learned.pivot(index="seed", columns="learned", values="task").rename_axis(columns="stage")

    @property
    def recovery(self) -> pd.DataFrame:
        """What the base model's vector brings back after every stage; see `recovery.by_stage`.

        Beside the tuned model's own vector and those of random heads; without rows where a study has no probes.

        >>> study.recovery.columns.tolist()[:4], len(study.recovery)
        (['method', 'prompts', 'vector', 'stage'], 0)
        """
        from ivlens.forgetting import recovery

        return recovery.by_stage(self.evaluations)

    @property
    def similarity(self) -> pd.DataFrame:
        """How alike the tuned model's own vector and the base model's are, and accuracy, by probe and stage.

        >>> study.similarity.columns.tolist(), len(study.similarity)  # This study has no probes.
        (['method', 'seed', 'stage', 'task', 'cosine', 'accuracy'], 0)
        """
        from ivlens.forgetting import recovery

        return recovery.similarity(self.evaluations)

    def difference(self, method: str, other: str) -> pd.DataFrame:
        """What one method has over another, paired by seed; see `metrics.difference`.

        Args:
            method, other: Names of the plan; positive: `method` has more.

        >>> study.difference("replay", "lora")["measure"].tolist()[:3]
        ['AP', 'F', 'GP']
        """
        return metrics.difference(self.evaluations, method, other, guided=self.guided, families=self.families)

    def comparisons(self, reference: str | None = None) -> pd.DataFrame:
        """What one method has over each of the others, with p-values that Holm's method adjusts for all of them.

        Args:
            reference: A method of the plan; by default the plan's own `reference`, or, if that was not run, the first.

        >>> study.comparisons("replay")[["other", "measure", "n"]].values.tolist()[:2]
        [['lora', 'AP', 1], ['lora', 'GP', 1]]
        """
        own = self.plan.reference if self.plan.reference in self.plan.methods else self.plan.methods[0]
        chosen = own if reference is None else reference
        return metrics.comparisons(self.evaluations, chosen, guided=self.guided, families=self.families)

    def figures(self, *, width: Width = "page") -> dict[str, go.Figure]:
        """Every figure of the study by file name; those of which nothing was measured are left out.

        Args:
            width: See `ivlens.plots.WIDTHS`; `single` and `double` are a paper's columns of 3.25 and 6.75 inches.

        >>> list(study.figures())
        ['accuracy', 'r-matrix', 'instruction-knowledge', 'methods', 'trade-off']
        """
        from ivlens.forgetting import figures as study_figures
        from ivlens.forgetting import recovery

        return study_figures.figures(self, self.summary, width=width) | recovery.figures(self, width=width)

    def __repr__(self) -> str:
        lines = self.summary.set_index(["method", "measure"])["value"]
        found = [f"{name}: " + ", ".join(f"{key} {lines[name, key]:.2f}" for key in KEY) for name in self.plan.methods]
        seeds = f"{len(self.plan.seeds)} seed{'s' if len(self.plan.seeds) > 1 else ''}"
        return f"Study({self.plan.name} on {self.plan.model}, {seeds}; {'; '.join(found)})"

    def _repr_html_(self) -> str:
        from ivlens.forgetting import tables

        return tables.study_html(self)
