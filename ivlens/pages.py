"""What does a page about a run say: which question, which answer, which figures and tables, in which words?

One function for each kind of run; how a page looks is the business of `report`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivlens import comparison_tables, runs, study_tables, tables
from ivlens.audit import Audit
from ivlens.comparison import Comparison
from ivlens.study import Study
from ivlens.tables import Table

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Found = Audit | Comparison | Study
_KINDS: dict[str, type[Found]] = {"audit": Audit, "compare": Comparison, "study": Study}


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything that a page says about what a run found; plain text, no markup."""

    kind: str
    title: str
    question: str
    answer: str
    cautions: tuple[str, ...]
    """What the controls say, and what the numbers do not say."""
    captions: Mapping[str, tuple[str, str]]
    """Heading and caption of each figure, by its file name."""
    figures: Mapping[str, go.Figure]
    tables: tuple[Table, ...]
    words: Mapping[str, str]
    """What each measure is."""
    method: str
    """How the numbers came about."""
    data: Mapping[str, pd.DataFrame]
    """The numbers that the tables are made of, in full, by file name."""

    def figure_text(self, name: str) -> tuple[str, str]:
        """Heading and caption; a figure without any is headed by its name."""
        return self.captions.get(name, (name.replace("-", " ").capitalize(), ""))


def read(folder: Path | str) -> Found:
    """What a complete run of any kind found, without the model.

    Raises:
        RunError: no run, unfinished, or damaged.
    """
    return _KINDS.get(runs.read_run(folder).record.command, Audit).read(folder)


def page(found: Found) -> Page:
    """The page of a run of any kind."""
    if isinstance(found, Audit):
        return _audit(found)
    return _comparison(found) if isinstance(found, Comparison) else _study(found)


_WORDS = {
    "clean prompt": "a prompt whose demonstrations (or written instruction) are intact",
    "corrupted prompt": "the same query with the task removed: outputs of the demonstrations shuffled, or the query "
    "alone",
    "AIE of a head": "average indirect effect: mean over corrupted prompts of P(answer) with the head's output at the "
    "last token replaced by its mean over clean prompts, minus P(answer) unpatched; in nats where the effect is nll "
    "(arXiv:2310.15213)",
    "instruction vector": "sum over the top heads of their mean output times W_O, without b_O; added to the residual "
    "stream after one block at the last prompt token (arXiv:2406.12227)",
    "P(answer)": "probability of the answer's first token",
    "accuracy": "share of queries for which greedy decoding writes the whole answer",
}
_DEPENDENCE = {
    "sufficiency": "P(answer) of the query alone with the vector added, minus without",
    "necessity": "P(answer) with the instruction, minus the same with the vector's heads ablated by their mean over "
    "prompts of other tasks",
    "shift": "KL divergence, in nats, of the next token with the instruction from the same with the vector taken away",
}
_SPLIT = (
    "The task's pairs are split into four parts that share none: one gives mean outputs and demonstrations, one ranks "
    "heads, one chooses layer and scale, one is reported."
)
_QUERIES = "95 %; bootstrap over queries, Wilson's for accuracies"
_LAB = (
    "lab is a small model that ivlens trains itself so that everything can be tried offline: a model organism, not "
    "evidence about large models."
)

_AUDIT = {
    "measures": (
        "What the model does",
        "Accuracy without a vector, by kind of prompt, and zero-shot with each vector.",
    ),
    "aie": (
        "Which heads carry the task",
        "AIE of every head; those of the vector are outlined. The middle of the scale is 0.",
    ),
    "places": (
        "Where, and at what length, the vector works",
        "Zero-shot accuracy with the vector added after each block, scaled; on validation pairs. Outlined: the "
        "place that was chosen, by a search that every control went through, too.",
    ),
    "steering": (
        "Layer by layer",
        "Zero-shot accuracy with a vector added after each block, each at its own scale. Layers and scales in use were "
        "chosen on other queries.",
    ),
    "heads": ("How many heads it takes", "Zero-shot accuracy by number of heads, beside as many random ones."),
}


def _audit(found: Audit) -> Page:
    vector, effects = found.vector, found.effects
    return Page(
        kind="Audit",
        title=f"{vector.task} on {vector.model}",
        question=f"Which attention heads of {vector.model} carry the task {vector.task}, and does the vector that they "
        "write make the model do it?",
        answer=tables.sentence(found),
        cautions=(
            _audit_controls(found.measures),
            f"The heads were chosen by their AIE on {len(effects.cie)} prompts; expect less on others. Accuracies are "
            "of queries on which nothing was chosen.",
            "Intervals are over queries: they say nothing of other tasks, models or seeds.",
            *([_LAB] if vector.model == "lab" else []),
        ),
        captions=_AUDIT,
        figures=_ordered(found.figures(), _AUDIT),
        tables=tuple(map(_standing_alone, tables.audit_tables(found))),
        words=_WORDS
        | {
            "random heads": "vectors of as many heads drawn at random, brought to the norm of the vector",
            "low-AIE heads": "the same of the heads of smallest AIE",
            "Gaussian": "random directions of the same norm, which no heads wrote",
            "scale": "factor of the vector, chosen with the layer on validation pairs (0.5 to 16); controls choose "
            "their own with as many tries",
            "other tasks": "vectors of other tasks, built in the same way",
            "interval": _QUERIES,
        },
        method=_SPLIT,
        data={
            "measures": found.measures,
            "places": found.places,
            "steering": found.steering,
            "heads": found.heads,
        },
    )


def _audit_controls(measures: pd.DataFrame) -> str:
    """Which controls do no worse than the vector, so far as the intervals tell."""
    lines = {line["measure"]: line for line in measures.to_dict("records")}
    told = []
    for what, name in {"accuracy": "accuracy", "P(answer)": "probability"}.items():
        least = lines["steered"][f"{name}_low"]
        close = [
            label.removeprefix("zero-shot + ")
            for measure, label in tables.STEERED.items()
            if measure != "steered" and measure in lines and lines[measure][f"{name}_high"] >= least
        ]
        told.append(f"in {what}, {' and '.join(close) or 'none'}")
    return f"Controls whose interval reaches the vector's: {'; '.join(told)}."


_COMPARE = {
    "abilities": ("What the models can do", "P(answer) by kind of prompt, before and after."),
    "dependence": ("Dependence on the vector", "On the base model's vector, beside as many random heads."),
    "aie": (
        "Which heads carry the task",
        "AIE of every head before, after, and the difference on one scale; the top heads of each are outlined.",
    ),
    "heads": ("Head by head", "AIE after against before; on the dashed line nothing changed."),
}


def _comparison(found: Comparison) -> Page:
    base, tuned, task = found.base.model, found.tuned_name, found.base_vector.task
    return Page(
        kind="Comparison",
        title=found.title,
        question=f"What did fine-tuning {base} into {tuned} do to the heads that carry {task}, to their vector, and to "
        "what depends on it?",
        answer=comparison_tables.sentence(found),
        cautions=(
            *_comparison_controls(found.measures),
            f"Each model's heads were chosen by their AIE on {len(found.base.cie)} prompts; expect less on others.",
            "Intervals are over queries of one fine-tuning: another seed of the training may do otherwise.",
            *([_LAB] if base == "lab" else []),
        ),
        captions=_COMPARE,
        figures=_ordered(found.figures(), _COMPARE),
        tables=tuple(map(_standing_alone, comparison_tables.comparison_tables(found))),
        words=_WORDS
        | _DEPENDENCE
        | {
            "random heads": "as many heads drawn at random, vectors brought to the same norm",
            "Jaccard": "heads in both top lists, as a share of the heads in either",
            "rank correlation": "Spearman's, of the AIE of all heads before and after",
            "interval": f"{_QUERIES}; changes are paired by query",
        },
        method=f"{_SPLIT} The same prompts were put to both models.",
        data={"measures": found.measures, "drift": found.drift, "recovery": found.recovery, "aie": found.aie},
    )


def _comparison_controls(measures: pd.DataFrame) -> Iterator[str]:
    """In which dependence random heads do as well as the chosen ones, so far as the intervals tell."""
    values = {(line["model"], line["measure"], line["heads"]): line for line in _of_base_vector(measures)}
    for model, when in (("base", "Before"), ("tuned", "After")):
        pairs = {name: [values[model, name, heads] for heads in ("chosen", "random")] for name in _DEPENDENCE}
        apart = [name for name, (chosen, random) in pairs.items() if chosen["low"] > random["high"]]
        yield f"{when} fine-tuning the chosen heads stand clear of random ones in {', '.join(apart) or 'nothing'}."


def _of_base_vector(measures: pd.DataFrame) -> list[dict[Any, Any]]:
    return [line for line in measures.to_dict("records") if line["vector"] != "tuned"]


_STUDY = {
    "trade-off": (
        "What was learned against what was kept",
        "Accuracy on new tasks, each right after its stage, against accuracy on general tasks after the last stage. Up "
        "and to the right is better.",
    ),
    "methods": ("Method by method", "After the last stage; the dashed line is the base model."),
    "accuracy": (
        "Stage by stage",
        "Accuracy on the tasks learned so far and on general tasks; stage 0 is the base model.",
    ),
    "r-matrix": ("Every task after every stage", "Mean over seeds; on hover, the lowest and the highest seed."),
    "instruction-knowledge": (
        "Instruction and knowledge",
        "P(answer) with the instruction and of the plain statement of the same facts.",
    ),
    "dependence": (
        "Dependence on the vector",
        "On the base model's vector, before the first and after the last stage.",
    ),
    "drift": ("How far the vectors moved", "Cosine with the base model's vector after each stage."),
    "aie": ("Which heads carry the tasks", "AIE before the first stage, after the last, and the difference."),
    "recovery": ("What the vector brings back", "Accuracy with the base model's vector added, and with a random one."),
}


def _study(found: Study) -> Page:
    plan = found.plan
    return Page(
        kind="Study",
        title=study_tables.where(found),
        question=f"{plan.model} learns {', '.join(plan.tasks)}, one after the other. What does each method learn, and "
        "what does it forget?",
        answer=study_tables.sentence(found),
        cautions=(
            *_study_controls(found.summary),
            "Intervals are over seeds, which part the pairs, draw the adapters and order the batches; no correction is "
            "made for the number of methods and measures."
            if len(plan.seeds) > 1
            else "One seed: there are no intervals, and differences may be chance.",
            *([_LAB] if plan.model == "lab" else []),
        ),
        captions=_STUDY,
        figures=_ordered(found.figures(), _STUDY),
        tables=tuple(study_tables.study_tables(found)),
        words=_STUDY_WORDS | _DEPENDENCE | {"interval": study_tables.interval_note(found)},
        method="Every cell, a method with a seed, trained a LoRA adapter on the tasks in their order; after each stage "
        "all tasks so far, the general tasks and the dependence on the base model's vector were measured, on the same "
        "prompts for every cell.",
        data={"summary": found.summary},
    )


_STUDY_WORDS = {
    "learned": "accuracy on each new task right after its own stage, mean over tasks",
    "AP": "accuracy on all learned tasks after the last stage",
    "F": "how far the tasks before the last have fallen from their best",
    "GP, IP": "accuracy on general tasks, which are never trained on, with their instruction; with demonstrations",
    "GP, unguided": "the same of general tasks that the guidance has seen nothing of",
    "GP kept": "share of the GP lost by the unguided method that a guided one keeps",
    "P(instruction), P(knowledge)": "P(answer) with the instruction; of the plain statement of the same fact",
    "+iv, +kl, ...": "a method's guidance; +kl is plain distillation from the base model, the control of the others",
}


def _study_controls(summary: pd.DataFrame) -> Iterator[str]:
    """Which guided methods differ in GP from the unguided one and from plain distillation."""
    for other in dict.fromkeys(summary["method"]):
        own = summary.query(f"measure == {f'GP over {other}'!r}")
        if not all(own["low"].isna()):
            names = ", ".join(own.query("low > 0 or high < 0")["method"]) or "no method"
            yield f"In GP, the interval of the difference from {other} is clear of 0 for {names}."


def _ordered(figures: Mapping[str, go.Figure], captions: Mapping[str, object]) -> dict[str, go.Figure]:
    """In the order in which they are told, new ones last."""
    return {name: figures[name] for name in [*captions, *figures] if name in figures}


def _standing_alone(table: Table) -> Table:
    """A line that belongs to the one above it names that one, too, so that lines may be sorted."""
    parts = []
    for part in table.parts:
        lines, above = [], ""
        for name, *cells in part:
            above = above if name.startswith("  ") else name
            lines.append((name if above == name else f"{above}, {name.strip()}", *cells))
        parts.append(lines)
    return table._replace(parts=tuple(parts))
