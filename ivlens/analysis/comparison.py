"""What did fine-tuning do to a task's heads, to their vector, and to what depends on them?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ivlens.analysis import comparison_tables
from ivlens.analysis.consistency import check_comparison
from ivlens.analysis.dependence import DEPENDENCE, Dependence
from ivlens.datasets.task import Task
from ivlens.errors import IvlensError, RunError
from ivlens.measures import Interval
from ivlens.patching.head_effects import EFFECTS, HeadEffects
from ivlens.patching.settings import Settings
from ivlens.plots import comparison
from ivlens.steering.verdict import (
    ABOVE_RANDOM,
    MOST_FREQUENT,
    Gain,
    Verdict,
    above_random,
    difference,
    most_frequent_share,
)
from ivlens.storage import run_folder
from ivlens.vectors.drift import AIE, DRIFT
from ivlens.vectors.instruction_vector import InstructionVector

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ivlens.plots.style import Width

CHANGES = ("measure", "heads", "n_heads", "model", "vector", "value", "low", "high", "n")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a comparison found; the tables are tidy, one line a number with its 95 % interval over queries.

    >>> change
    Comparison(antonym, lab → lab + adapter: instruction probability 0.9... → ...)
    >>> change.aie.shape, change.base_vector.heads[0]
    ((144, 6), L3H3)
    """

    base: HeadEffects
    tuned: HeadEffects
    base_vector: InstructionVector
    tuned_vector: InstructionVector
    """Of the tuned model's own top heads."""
    tuned_name: str
    aie: pd.DataFrame
    """Every head's AIE in `model` `base`, `tuned` and their `difference` (tuned minus base, prompt by prompt)."""
    measures: pd.DataFrame
    """Dependence, by `model` as above, on the `vector` of the base model (and of the tuned model on its own), with the
    chosen heads or random ones; what `dependence.per_prompt` lists."""
    drift: pd.DataFrame
    """Overlap and rank correlation of the heads, cosines of the vectors; beside random heads."""
    recovery: pd.DataFrame
    """What of the lost accuracy comes back with the base model's vector; what `dependence.recovery` lists."""
    folder: Path | None = None

    @classmethod
    def read(cls, folder: str | Path) -> Comparison:
        """What a complete run folder holds, without the models.

        Raises:
            RunError: no run, not a comparison's, unfinished, or damaged.

        >>> ivlens.Comparison.read("runs/antonym")
        Traceback (most recent call last):
        ivlens.errors.RunError: runs/antonym is of `ivlens audit`, not of a comparison; give a comparison's folder
        """
        run = run_folder.read_run(folder)
        if run.record.command != "compare":
            raise RunError(
                f"{folder} is of `ivlens {run.record.command}`, not of a comparison; give a comparison's folder"
            )
        vectors = {name: InstructionVector.load(run.path(f"{name}_vector.safetensors")) for name in ("base", "tuned")}
        effects = {
            name: HeadEffects.from_frame(run.read_table(f"{name}_effects", columns=EFFECTS), **described(vector))
            for name, vector in vectors.items()
        }
        found = cls(
            **effects,
            base_vector=vectors["base"],
            tuned_vector=vectors["tuned"],
            tuned_name=run.source("tuned").name,
            aie=run.read_table("aie", columns=AIE),
            measures=run.read_table("measures", columns=CHANGES),
            drift=run.read_table("drift", columns=DRIFT),
            recovery=run.read_table("recovery", columns=DEPENDENCE),
            folder=Path(folder),
        )
        names = ("aie", "measures", "recovery")
        check_comparison(Path(folder), effects, {name: getattr(found, name) for name in names})
        return found

    def figures(self, *, width: Width = "page") -> dict[str, go.Figure]:
        """Every figure of the comparison by file name.

        Args:
            width: See `ivlens.plots.WIDTHS`; `single` and `double` are a paper's columns of 3.25 and 6.75 inches.

        >>> list(change.figures())
        ['aie', 'heads', 'dependence', 'abilities']
        """
        where, (_, n_layers, n_heads) = self.title, self.base.cie.shape
        marked = {"base": self.base_vector.heads, "tuned": self.tuned_vector.heads}
        unit = self.base.unit
        return {
            "aie": comparison.aie_panels(
                self.aie,
                (n_layers, n_heads),
                unit=unit,
                chance=self._chance(),
                marked=marked,
                title=f"AIE before and after: {where}. {self.how_many_clear()}. Before: {self.verdict.short}",
                width=width,
            ),
            "heads": comparison.aie_scatter(
                self.aie,
                unit=unit,
                marked=marked,
                title=f"AIE of every head, before against after: {where}",
                width=width,
            ),
            "dependence": comparison.dependence_bars(
                self.measures, title=f"Dependence on the base model's vector: {where}", width=width
            ),
            "abilities": comparison.ability_bars(
                self.measures, title=f"With instruction, as a statement, with neither: {where}", width=width
            ),
        }

    @property
    def title(self) -> str:
        """Of its figures: task and both models.

        >>> change.title
        'antonym, lab → lab + adapter'
        """
        return f"{self.base_vector.task}, {self.base.model} → {self.tuned_name}"

    def how_many_clear(self) -> str:
        """In words, how many heads' AIE is clear of 0 in either model, and how many changed.

        >>> change.how_many_clear()
        'Clear of 0 (p ≤ 0.05 after Holm): ... of 48 heads before, ... after, ... in their difference'
        """
        before, after, moved = (len(effects.clear()) for effects in self._grids())
        heads = self.base.aie.numel()
        counts = f"{before} of {heads} heads before, {after} after, {moved} in their difference"
        return f"Clear of 0 (p ≤ 0.05 after Holm): {counts}"

    def _grids(self) -> tuple[HeadEffects, HeadEffects, HeadEffects]:
        """Before, after, and their difference."""
        return self.base, self.tuned, replace(self.tuned, cie=self.tuned.cie - self.base.cie)

    def _chance(self) -> float | None:
        """The largest |AIE| of any grid by chance; None where a head is clear of 0 in one of them."""
        found = [effects.chance() for effects in self._grids()]
        known = [value for value in found if value is not None]
        return max(known) if len(known) == len(found) else None

    @property
    def verdict(self) -> Verdict:
        """Of the base model: can it do the task, and does its vector do more than random heads?

        >>> change.verdict.outcome, list(change.verdict.abilities)
        ('cannot tell', ['instructed'])
        """
        found = self._of_base()
        # Of replies where these were scored: their line stands behind the one of greedy matches.
        instructed = [value for (measure, _), value in found.items() if measure.startswith("instruction accuracy")][-1]
        unknown = Interval(math.nan, math.nan, math.nan)
        return Verdict(
            abilities={} if math.isnan(instructed.mean) else {"instructed": instructed},
            share=found.get((MOST_FREQUENT, ""), unknown).mean,
            gain=self._gain(found),
            queries=max(self.measures["n"].tolist()),
            n_heads=len(self.base_vector.heads),
            is_given=list(self.base_vector.heads) != self.base.top(len(self.base_vector.heads)),
            is_greedy=False,
            settings=self.base.settings,
            are_apart=2 * len(self.base_vector.heads) <= self.base.aie.numel(),
        )

    def _gain(self, found: dict[tuple[str, str], Interval]) -> Gain:
        steered, random = (found["steered zero-shot probability", heads] for heads in ("chosen", "random"))
        above = found.get((ABOVE_RANDOM, "chosen"), difference(steered, random))
        right = [found["steered zero-shot accuracy", heads].mean for heads in ("chosen", "random")]
        return Gain(
            probability=above,
            high=above.high,
            accuracy=right[0] - right[1],
            is_above_none=steered.mean > found["zero-shot probability", ""].mean,
            draws=0,
        )

    def _of_base(self) -> dict[tuple[str, str], Interval]:
        """By measure and kind of heads, what the base model does."""
        lines = self.measures.query("model == 'base' and vector != 'tuned'")
        return {
            (line["measure"], line["heads"]): Interval(line["value"], line["low"], line["high"])
            for line in lines.to_dict("records")
        }

    def value(self, measure: str, *, model: str = "difference", heads: str = "", vector: str = "") -> float:
        """One number of `measures`; NaN where it was not measured.

        Args:
            model: `base`, `tuned` or `difference`.
            heads: `chosen` or `random` for what depends on heads.
            vector: Whose heads and vector these are: `base` unless given, or `tuned`.

        Raises:
            IvlensError: there is no such line.

        >>> round(change.value("instruction probability", model="base"), 1)
        1.0
        """
        vector = vector or ("base" if heads else "")
        asked = {"measure": measure, "model": model, "heads": heads, "vector": vector}
        found = [line["value"] for line in self.measures.to_dict("records") if asked.items() <= line.items()]
        if len(found) != 1:
            names = ", ".join(dict.fromkeys(self.measures["measure"]))
            raise IvlensError(f"there is no line {asked}; measures are {names}")
        return float(found[0])

    def drifted(self, measure: str, heads: str = "") -> float:
        """One number of `drift`.

        Args:
            measure: `jaccard` or `spearman` of the heads, in [0, 1] and [-1, 1]; `cosine` of the vectors, in [-1, 1].
            heads: `chosen` for `jaccard`; for `cosine` whose: each model's `own`, the `base` model's, or `random` ones.

        Raises:
            IvlensError: there is no such line.

        >>> 0 < change.drifted("cosine", "own") <= 1
        True
        """
        asked = {"measure": measure, "heads": heads}
        found = [line["value"] for line in self.drift.to_dict("records") if asked.items() <= line.items()]
        if len(found) != 1:
            raise IvlensError(f"there is no drift {measure!r} of heads {heads!r}; see the table drift")
        return float(found[0])

    def __repr__(self) -> str:
        return (
            f"Comparison({self.title}: instruction probability "
            f"{self.value('instruction probability', model='base'):.2f} → "
            f"{self.value('instruction probability', model='tuned'):.2f}, knowledge probability "
            f"{self.value('knowledge probability', model='base'):.2f} → "
            f"{self.value('knowledge probability', model='tuned'):.2f}, cosine of the vectors "
            f"{self.drifted('cosine', 'own'):.2f}, top {len(self.base_vector.heads)} heads shared (Jaccard) "
            f"{self.drifted('jaccard', 'chosen'):.2f})"
        )

    def _repr_html_(self) -> str:
        return comparison_tables.comparison_html(self)


def base_lines(before: Dependence, task: Task, settings: Settings) -> pd.DataFrame:
    """What the verdict on the base model takes beside its dependence, `CHANGES`."""
    n = len(before.values["zero-shot probability", ""])
    pairs = task.split(shots=settings.shots, seed=settings.seed).evaluation[:n]
    share = most_frequent_share(pair.output for pair in pairs)
    above, _ = above_random(*(before.values["sufficiency", heads] for heads in ("chosen", "random")))
    lines = [
        (MOST_FREQUENT, "", 0, "base", "", share, share, share, n),
        (ABOVE_RANDOM, "chosen", before.n_heads, "base", "base", *above, n),
    ]
    return pd.DataFrame(lines, columns=list(CHANGES))


def described(vector: InstructionVector) -> dict[str, object]:
    """What a vector and the effects that it was built from have in common."""
    z, settings = vector.measured()
    others = {key: getattr(vector, key) for key in ("task", "task_digest", "model", "model_digest")}
    return {"mean_z": z, "settings": settings, **others}
