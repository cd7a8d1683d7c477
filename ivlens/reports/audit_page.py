"""What does a page say about an audit?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ivlens.analysis import audit_tables
from ivlens.analysis.audit import Audit
from ivlens.reports.page import LAB, QUERIES, SPLIT, WORDS, Page, name_every_line, order_figures

if TYPE_CHECKING:
    import pandas as pd


_AUDIT = {
    "measures": (
        "What the model does",
        "Accuracy without a vector, by kind of prompt, and zero-shot with each vector.",
    ),
    "aie": (
        "Which heads carry the task",
        "AIE of every head: how far P(answer) rises on a corrupted prompt when that head alone has its clean output. "
        "Heads of the vector are outlined. The middle of the scale is 0, and colours grow with the square root of the "
        "effect, so that one large head leaves the others to be seen.",
    ),
    "necessity": (
        "What is lost without them",
        "AIE of each head of the vector, beside what P(answer) loses on clean prompts when the head is ablated: at the "
        "last prompt token, by its mean over prompts of other tasks. Below: all heads together, and random heads.",
    ),
    "places": (
        "Where, and at what length, the vector works",
        "Zero-shot accuracy with the vector added after each block, scaled; on validation pairs. Outlined: the "
        "place that was chosen, by a search that every control went through, too.",
    ),
    "steering": (
        "Layer by layer",
        "Zero-shot accuracy with a vector added after each block, each at its own scale. Layers and scales in use were "
        "chosen on other queries; a dash is one draw.",
    ),
    "heads": (
        "How many heads it takes",
        "Zero-shot accuracy by number of heads, beside as many random ones; a dash is one draw.",
    ),
}


def audit_page(found: Audit) -> Page:
    vector, effects = found.vector, found.effects
    return Page(
        kind="Audit",
        title=f"{vector.task} on {vector.model}",
        question=f"Which attention heads of {vector.model} carry the task {vector.task}, and does the vector that they "
        "write make the model do it?",
        answer=f"{found.verdict.sentence} {audit_tables.sentence(found)}",
        cautions=(
            found.verdict.advice,
            _audit_controls(found.measures),
            *filter(None, (audit_tables.corrupted_sentence(found), _necessity(found))),
            f"{effects.how_many_clear()}, by sign flips of queries.",
            f"The heads were chosen by their AIE on {len(effects.cie)} prompts; expect less on others. Accuracies are "
            "of queries on which nothing was chosen.",
            "Intervals are over queries, and over draws of random heads: they say nothing of other tasks, models or "
            "seeds.",
            *([LAB] if vector.model == "lab" else []),
        ),
        captions=_AUDIT | {"aie": (_AUDIT["aie"][0], f"{found.verdict.short}. {_AUDIT['aie'][1]}")},
        figures=order_figures(found.figures(), _AUDIT),
        narrow=found.figures(width="column"),
        tables=tuple(map(name_every_line, audit_tables.audit_tables(found))),
        words=WORDS
        | {
            "random heads": "vectors of as many heads drawn at random, brought to the norm of the vector",
            "low-AIE heads": "the same of the heads of smallest AIE",
            "Gaussian": "random directions of the same norm, which no heads wrote",
            "scale": "factor of the vector, chosen with the layer on validation pairs (0.5 to 16); controls choose "
            "their own with as many tries",
            "other tasks": "vectors of other tasks, built in the same way",
            "most frequent answer": "accuracy of giving one answer to all queries; a model that can do the task is "
            "clear of it on clean prompts",
            "beyond random heads": "with the vector minus with random heads, query by query and draw by draw; of a "
            "further draw of random heads the interval would be above 0 in one of twenty cases at most",
            "interval": QUERIES,
            "ablated": "the head's output at the last prompt token is replaced by its mean over prompts of other "
            "tasks, which are instructed, or have demonstrations, as the prompt has",
            "necessity": "P(answer) minus the same with heads ablated",
        }
        | ({"accuracy": " ".join(score.split())} if (score := audit_tables.score_note(found.measures)) else {}),
        method=SPLIT,
        data={
            "measures": found.measures,
            "places": found.places,
            "steering": found.steering,
            "heads": found.heads,
            "draws": found.draws,
            **({} if found.necessity is None else {"necessity": found.necessity}),
        },
    )


def _necessity(found: Audit) -> str:
    """What ablating the heads does; nothing where that was not measured."""
    return "" if not audit_tables.ablation_tables(found) else audit_tables.necessity_sentence(found)


def _audit_controls(measures: pd.DataFrame) -> str:
    """Which controls do no worse than the vector, so far as the intervals tell."""
    lines = {line["measure"]: line for line in measures.to_dict("records")}
    told = []
    for what, name in {"accuracy": "accuracy", "P(answer)": "probability"}.items():
        least = lines["steered"][f"{name}_low"]
        close = [
            label.removeprefix("zero-shot + ")
            for measure, label in audit_tables.STEERED.items()
            if measure != "steered" and measure in lines and lines[measure][f"{name}_high"] >= least
        ]
        told.append(f"in {what}, {' and '.join(close) or 'none'}")
    return f"Controls whose interval reaches the vector's: {'; '.join(told)}."
