"""What does a page about a run say: which question, which answer, which figures and tables, in which words?

What pages of all kinds share; there is a module for each kind, and how a page looks is the business of `html`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ivlens.tables import Table

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything that a page says about what a run found; plain text, no markup."""

    kind: str
    title: str
    question: str
    answer: str
    answer_table: Table | None = None
    """What the answer is made of, where a sentence cannot hold it."""
    cautions: tuple[str, ...]
    """What the controls say, and what the numbers do not say."""
    captions: Mapping[str, tuple[str, str]]
    """Heading and caption of each figure, by its file name."""
    figures: Mapping[str, go.Figure]
    narrow: Mapping[str, go.Figure]
    """The same for a screen that is too narrow for them."""
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


WORDS = {
    "clean prompt": "a prompt whose demonstrations (or written instruction) are intact",
    "corrupted prompt": "the same query with the task corrupted: outputs of the demonstrations shuffled, or the query "
    "alone",
    "AIE of a head": "average indirect effect: mean over corrupted prompts of P(answer) with the head's output at the "
    "last token replaced by its mean over clean prompts, minus P(answer) unpatched; in nats where the effect is nll "
    "(arXiv:2310.15213)",
    "instruction vector": "sum over the top heads of their mean output times W_O, without b_O; added to the residual "
    "stream after one block at the last prompt token (arXiv:2406.12227)",
    "P(answer)": "probability of the answer's first token",
    "accuracy": "share of queries for which greedy decoding writes the whole answer",
}
DEPENDENCE = {
    "sufficiency": "P(answer) of the query alone with the vector added, minus without",
    "necessity": "P(answer) with the instruction, minus the same with the vector's heads ablated by their mean over "
    "prompts of other tasks",
    "shift": "KL divergence, in nats, of the next token with the instruction from the same with the vector taken away",
}
SPLIT = (
    "The task's pairs are split into four parts that share none: one gives mean outputs and demonstrations, one ranks "
    "heads, one chooses layer and scale, one is reported."
)
QUERIES = "95 %, over queries and, where random heads were drawn, over draws; Wilson's for accuracies"
LAB = (
    "lab is a small model that ivlens trains itself so that everything can be tried offline: a model organism, not "
    "evidence about large models."
)


def order_figures(figures: Mapping[str, go.Figure], captions: Mapping[str, object]) -> dict[str, go.Figure]:
    """In the order in which they are told, new ones last."""
    return {name: figures[name] for name in [*captions, *figures] if name in figures}


def name_every_line(table: Table) -> Table:
    """A line that belongs to the one above it names that one, too, so that lines may be sorted."""
    parts = []
    for part in table.parts:
        lines, above = [], ""
        for name, *cells in part:
            above = above if name.startswith("  ") else name
            lines.append((name if above == name else f"{above}, {name.strip()}", *cells))
        parts.append(lines)
    return table._replace(parts=tuple(parts))
