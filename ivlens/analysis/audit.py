"""What did an audit find of one model on one task: which heads, which vector, what it does beside controls?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ivlens import plots
from ivlens.analysis import audit_tables
from ivlens.analysis.consistency import check_audit
from ivlens.analysis.measure import RANKING
from ivlens.analysis.wordings import WORDINGS
from ivlens.errors import IvlensError, RunError
from ivlens.patching.head_effects import EFFECTS, HeadEffects
from ivlens.patching.rounding import ROUNDING
from ivlens.plots.steering import KINDS
from ivlens.plots.style import LOOKS, Look, Width, hollow
from ivlens.prompts.choices import GREEDY_MATCH
from ivlens.steering.necessity import NECESSITY
from ivlens.steering.steered_replies import in_brackets
from ivlens.steering.trials import BY_QUERY, DRAWS, PLACES, VALUES
from ivlens.steering.universal_heads import Considered
from ivlens.steering.verdict import MOST_FREQUENT, Verdict, read_abilities, vector_gain
from ivlens.storage import run_folder
from ivlens.vectors.instruction_vector import InstructionVector

if TYPE_CHECKING:
    import plotly.graph_objects as go


MEASURES = ("measure", *VALUES, "score")


STEERING = ("heads", "n_heads", "layer", "scale", "draws", *VALUES)


HEADS = ("heads", "n_heads", "layers", "scales", "draws", *VALUES)


_OLD_NAMES = {"bottom": "low-AIE"} | {f"steered, bottom{at}": f"steered, low-AIE{at}" for at in ("", ", scale 1")}
"""Controls of runs of version 0.1, as they are called now."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What an audit found; the tables are tidy, one line a number with its interval.

    >>> audit
    Audit(antonym on lab: zero-shot accuracy 0.05, with the vector of 2 heads (L3H3 L3H4) at layer 2, scale ...)
    >>> audit.measures.columns[:4].tolist()
    ['measure', 'accuracy', 'accuracy_low', 'accuracy_high']
    """

    effects: HeadEffects
    vector: InstructionVector
    measures: pd.DataFrame
    """Accuracy, by the score of the line, and probability of the answer (first token), unsteered and steered."""
    steering: pd.DataFrame
    """Zero-shot accuracy with the vector added at every layer, each at its own scale, beside its controls."""
    heads: pd.DataFrame
    """The same at the layer and scale that validation pairs chose, against the number of heads."""
    places: pd.DataFrame
    """Accuracy of the vector at every layer and scale on validation pairs, the chosen place marked."""
    draws: pd.DataFrame
    """Every vector by itself at its own place: the chosen ones, and each draw of their controls."""
    by_query: pd.DataFrame | None = None
    """What the chosen vector and every random one did at its place, query by query; runs of before have none."""
    layer_draws: pd.DataFrame | None = None
    """As `draws`, at every layer, each at its own scale; runs of before have none."""
    necessity: pd.DataFrame | None = None
    """What is lost when the vector's heads are ablated, one by one and together, beside random ones; `NECESSITY`."""
    instructions: pd.DataFrame | None = None
    """What every wording did on validation pairs, where the best was asked for."""
    ranking: pd.DataFrame | None = None
    """All heads by the ranking that the vector's were chosen by, where that is not the AIE's."""
    universal: pd.DataFrame | None = None
    """Which tasks universal heads were ranked on and why, where these were asked for."""
    rounding: pd.DataFrame | None = None
    """How far AIE in 16 bits is from float32's, where the model computes in 16 bits; `ROUNDING`."""
    folder: Path | None = None

    @classmethod
    def read(cls, folder: str | Path) -> Audit:
        """What a complete run folder holds, without the model.

        Raises:
            RunError: no run, not an audit's, unfinished, or damaged.

        >>> ivlens.Audit.read("runs/antonym").effects.cie.shape  # [prompt layer head]
        torch.Size([6, 6, 8])
        """
        run = run_folder.read_run(folder)
        if run.record.command != "audit":
            raise RunError(f"{folder} is of `ivlens {run.record.command}`, not of an audit; give an audit's folder")
        vector = InstructionVector.load(run.path("vector.safetensors"))
        z, settings = vector.measured()
        found = cls(
            effects=HeadEffects.from_frame(
                run.read_table("effects", columns=EFFECTS),
                mean_z=z,
                settings=settings,
                **{key: getattr(vector, key) for key in ("task", "task_digest", "model", "model_digest")},
            ),
            vector=vector,
            measures=_with_score(run.read_table("measures", columns=MEASURES[:-1])).replace({"measure": _OLD_NAMES}),
            steering=run.read_table("steering", columns=STEERING).replace({"heads": _OLD_NAMES}),
            heads=run.read_table("heads", columns=HEADS).replace({"heads": _OLD_NAMES}),
            places=run.read_table("places", columns=PLACES),
            draws=run.read_table("draws", columns=DRAWS).replace({"heads": _OLD_NAMES}),
            by_query=_read_if_kept(run, "by_query", BY_QUERY),
            layer_draws=_read_if_kept(run, "layer_draws", DRAWS),
            necessity=_read_if_kept(run, "necessity", NECESSITY),
            instructions=_read_if_kept(run, "instructions", WORDINGS),
            ranking=_read_if_kept(run, "ranking", RANKING),
            universal=_read_if_kept(run, "universal_tasks", Considered._fields),
            rounding=_read_if_kept(run, "precision", ROUNDING),
            folder=Path(folder),
        )
        names = ("steering", "heads", "places", "draws", "layer_draws")
        check_audit(Path(folder), len(z), {name: getattr(found, name) for name in names})
        return found

    @property
    def verdict(self) -> Verdict:
        """Can the model do the task, and does the vector do more than random heads?

        >>> print(audit.verdict.outcome, audit.verdict.share)  # Of a short audit.
        cannot tell 0.05
        """
        return self._verdict

    @cached_property
    def _verdict(self) -> Verdict:
        lines = {line["measure"]: line for line in self.measures.to_dict("records")}
        n_heads = len(self.vector.heads)
        tried = "steered" in lines and not math.isnan(lines["steered"]["accuracy"])
        return Verdict(
            abilities=read_abilities(lines),
            share=lines[MOST_FREQUENT]["accuracy"] if MOST_FREQUENT in lines else math.nan,
            gain=vector_gain(lines, self.draws, self.by_query, n_heads=n_heads) if tried else None,
            queries=max(self.measures["prompts"].tolist()),
            n_heads=n_heads,
            is_given=list(self.vector.heads) != self.effects.top(n_heads),
            is_greedy=lines["zero-shot"].get("score") == GREEDY_MATCH,
            settings=self.effects.settings,
            are_apart=2 * n_heads <= self.effects.aie.numel(),
        )

    def figures(self, *, width: Width = "page") -> dict[str, go.Figure]:
        """Every figure of the audit by file name.

        Args:
            width: See `ivlens.plots.WIDTHS`; `single` and `double` are a paper's columns of 3.25 and 6.75 inches.

        >>> list(audit.figures())
        ['aie', 'measures', 'steering', 'places', 'heads', 'necessity']
        """
        where = f"{self.vector.task} on {self.vector.model}"
        accuracy = {"accuracy_low": "low", "accuracy_high": "high"}
        bars = {"accuracy": "value", **accuracy}
        baselines = {name: self.accuracy(name) for name in ("zero-shot", "instructed", "few-shot")}
        # By layer and by number of heads accuracy is greedy match: no other score is a baseline there.
        score = in_brackets(self.measures)
        lines = {name: value for name, value in baselines.items() if not (math.isnan(value) or score)}
        matched = score and f" ({GREEDY_MATCH})"
        # What the figure by layer leaves out where it shows every draw.
        shown = "" if self.layer_draws is None else " (bands: chosen and random heads; dashes: single draws)"
        grid = len(set(self.places["layer"])) * len(set(self.places["scale"]))
        untried = " (grey: not tried)" if len(self.places) < grid else ""
        called = {"measure": audit_tables.measure_labels(self)}
        found = {
            "aie": self.effects.figure(marked=self.vector.heads, note=self._note(), width=width),
            "measures": plots.measures_bars(
                self.measures.replace(called).rename(columns=bars),
                looks=_measure_looks(self),
                title=f"Accuracy{score}: {where}",
                width=width,
            ),
            "steering": plots.steering_by_layer(
                self.steering.rename(columns=accuracy),
                draws=self.layer_draws,
                baselines=lines,
                title=f"Zero-shot accuracy{matched}, {len(self.vector.heads)}-head vector added{shown}: {where}",
                width=width,
            ),
            "places": plots.steering_heatmap(
                self.places, title=f"Layer and scale of the vector, on validation pairs{untried}: {where}", width=width
            ),
            "heads": plots.accuracy_by_heads(
                self.heads.rename(columns=accuracy),
                draws=self.draws,
                baselines=lines,
                title=f"Zero-shot accuracy{matched} by number of heads in the vector (dashes: single draws): {where}",
                width=width,
            ),
        }
        if self.necessity is not None and len(self.necessity):
            title = f"What each head adds where the task is corrupted, and what is lost without it: {where}"
            found["necessity"] = plots.necessity_by_head(
                _necessity_points(self), unit=self.effects.unit, title=title, width=width
            )
        return found

    def _note(self) -> str:
        return f"{self.verdict.short}. {audit_tables.corrupted_sentence(self)}".rstrip()

    def accuracy(self, measure: str) -> float:
        """Accuracy of one line of `measures`, NaN where it was not measured.

        Raises:
            IvlensError: there is no such line; those that there are, are named.

        >>> audit.accuracy("instructed"), audit.accuracy("steered")
        (1.0, 1.0)
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
            f"with the vector of {len(vector.heads)} heads ({heads}) at layer {vector.layer}, scale {vector.scale:g}: "
            f"{self.accuracy('steered'):.2f}, of random heads {self.accuracy('steered, random'):.2f})"
        )

    def _repr_html_(self) -> str:
        return audit_tables.audit_html(self)


def _necessity_points(found: Audit) -> pd.DataFrame:
    """AIE and necessity of the listed heads as `plots.necessity_by_head` draws them."""
    assert found.necessity is not None
    heads, aie, (low, high) = found.vector.heads[: audit_tables.MOST_HEADS], found.effects.aie, found.effects.interval()
    rows = [(str(head), "AIE", *(float(grid[head]) for grid in (aie, low, high))) for head in heads]
    listed = {*map(str, heads), ""}
    for line in found.necessity.to_dict("records"):
        if line["heads"] != "none" and (line["n_heads"] > 1 or line["ablated"] in listed):
            values = (line[f"necessity{end}"] for end in ("", "_low", "_high"))
            rows.append((audit_tables.ablated_label(line), line["prompt"], *values))
    return pd.DataFrame(rows, columns=["heads", "measure", "value", "low", "high"])


def _with_score(measures: pd.DataFrame) -> pd.DataFrame:
    """Runs of before have greedy matches alone."""
    return measures if "score" in measures else measures.assign(score=GREEDY_MATCH)


def _read_if_kept(run: run_folder.Run, name: str, columns: Sequence[str]) -> pd.DataFrame | None:
    return run.read_table(name, columns=columns) if run.has(f"{name}.parquet") else None


def _measure_looks(found: Audit) -> dict[str, Look]:
    """In which colour the bar of every line stands that has one elsewhere; pale at scale 1."""
    kinds = {f"steered, {kind}": kind for kind in KINDS} | {"steered": "chosen", "zero-shot": "none"}
    kinds |= {name: name for name in ("instructed", "few-shot", "statement")}
    looks = {name: LOOKS[kind] for name, kind in kinds.items()}
    looks |= {f"{name}, scale 1": hollow(look) for name, look in looks.items()}
    return {label: looks[name] for name, label in audit_tables.measure_labels(found).items() if name in looks}
