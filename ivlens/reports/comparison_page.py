"""What does a page say about a comparison?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ivlens.analysis import comparison_tables
from ivlens.analysis.comparison import Comparison
from ivlens.reports.page import DEPENDENCE, LAB, QUERIES, SPLIT, WORDS, Page, name_every_line, order_figures

if TYPE_CHECKING:
    import pandas as pd


_COMPARE = {
    "abilities": ("What the models can do", "P(answer) by kind of prompt, before and after."),
    "dependence": ("Dependence on the vector", "On the base model's vector, beside as many random heads."),
    "aie": (
        "Which heads carry the task",
        "AIE of every head before, after, and the difference on one scale; the top heads of each are outlined. Colours "
        "grow with the square root of the effect.",
    ),
    "heads": ("Head by head", "AIE after against before; on the dashed line nothing changed."),
}


def comparison_page(found: Comparison) -> Page:
    base, tuned, task = found.base.model, found.tuned_name, found.base_vector.task
    return Page(
        kind="Comparison",
        title=found.title,
        question=f"What did fine-tuning {base} into {tuned} do to the heads that carry {task}, to their vector, and to "
        "what depends on it?",
        answer=f"Before: {found.verdict.sentence} {comparison_tables.sentence(found)}",
        cautions=(
            found.verdict.advice,
            *_comparison_controls(found.measures),
            *filter(None, (f"{found.how_many_clear()}.", comparison_tables.corrupted_sentence(found))),
            f"Each model's heads were chosen by their AIE on {len(found.base.cie)} prompts; expect less on others.",
            "Intervals are over queries of one fine-tuning: another seed of the training may do otherwise.",
            *([LAB] if base == "lab" else []),
        ),
        captions=_COMPARE,
        figures=order_figures(found.figures(), _COMPARE),
        narrow=found.figures(width="column"),
        tables=tuple(map(name_every_line, comparison_tables.comparison_tables(found))),
        words=WORDS
        | DEPENDENCE
        | {
            "random heads": "as many heads drawn at random, vectors brought to the same norm",
            "Jaccard": "heads in both top lists, as a share of the heads in either",
            "rank correlation": "Spearman's, of the AIE of all heads before and after",
            "interval": f"{QUERIES}; changes are paired by query",
        },
        method=f"{SPLIT} The same prompts were put to both models.",
        data={"measures": found.measures, "drift": found.drift, "recovery": found.recovery, "aie": found.aie},
    )


def _comparison_controls(measures: pd.DataFrame) -> Iterator[str]:
    """In which dependence random heads do as well as the chosen ones, so far as the intervals tell."""
    values = {(line["model"], line["measure"], line["heads"]): line for line in _of_base_vector(measures)}
    for model, when in (("base", "Before"), ("tuned", "After")):
        pairs = {name: [values[model, name, heads] for heads in ("chosen", "random")] for name in DEPENDENCE}
        apart = [name for name, (chosen, random) in pairs.items() if chosen["low"] > random["high"]]
        yield f"{when} fine-tuning the chosen heads stand clear of random ones in {', '.join(apart) or 'nothing'}."


def _of_base_vector(measures: pd.DataFrame) -> list[dict[Any, Any]]:
    return [line for line in measures.to_dict("records") if line["vector"] != "tuned"]
