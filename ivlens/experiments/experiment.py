"""What did an experiment find: its table, the sentence that answers the question, and figures?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ivlens import plots
from ivlens.errors import IvlensError, RunError, list_choices
from ivlens.experiments.findings import CHOSEN, FINDINGS, NONE, Found, caution
from ivlens.experiments.latents import LATENTS
from ivlens.experiments.overshadowing import OVERSHADOWING
from ivlens.experiments.rankings import RANKINGS_QUESTION
from ivlens.experiments.trained_vectors import TRAINED_QUESTION
from ivlens.experiments.work import Question
from ivlens.plots.style import LOOKS
from ivlens.storage import run_folder
from ivlens.tables import INTERVAL, Table, interval_text, safe, table_html

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ivlens.plots.style import Width

QUESTIONS: Mapping[str, Question] = {
    "rankings": RANKINGS_QUESTION,
    "trained-vectors": TRAINED_QUESTION,
    "latents": LATENTS,
    "overshadowing": OVERSHADOWING,
}
"""By the name of the experiment."""


def find_question(name: str) -> Question:
    """The question that an experiment is about; raises IvlensError where there is no such experiment."""
    if name not in QUESTIONS:
        raise IvlensError(f"there is no experiment {name!r}; {list_choices(name, QUESTIONS, lead='there are')}")
    return QUESTIONS[name]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What an experiment found; the table is tidy, one line a number with its interval.

    >>> experiment
    Experiment(rankings, antonym on lab: 39 numbers)
    >>> experiment.table.columns.tolist()
    ['part', 'at', 'kind', 'value', 'low', 'high', 'draws', 'queries']
    """

    name: str
    """Of the experiment."""
    model: str
    task: str
    table: pd.DataFrame
    """`part`: what was measured; `at`: of what; `kind`: chosen, or which control. Intervals of 95 %; NaN: there is
    none. `draws` of a control; `queries` that were asked."""
    folder: Path | None = None

    @classmethod
    def read(cls, folder: str | Path) -> Experiment:
        """What a complete run folder holds, without the model.

        Raises:
            RunError: no run, not an experiment's, unfinished, or damaged.

        >>> ivlens.Experiment.read("runs/rankings").name
        'rankings'
        """
        run = run_folder.read_run(folder)
        name = str(run.record.settings.get("name"))
        if run.record.command != "experiment" or name not in QUESTIONS:
            raise RunError(
                f"{folder} is of `ivlens {run.record.command}`, not of an experiment of this version; give an "
                "experiment's folder"
            )
        found = cls(
            name=name,
            model=run.source("model").name,
            task=run.source("task").name,
            table=run.read_table("findings", columns=FINDINGS),
            folder=Path(folder),
        )
        try:
            found.question.verdict(Found(found.table))
        except (LookupError, ValueError) as error:
            lacks = f"{run.path('findings.parquet')} lacks lines that the answer is made of ({error})"
            raise RunError(f"{lacks}; run again into a new --out") from error
        return found

    @property
    def question(self) -> Question:
        """What was asked.

        >>> experiment.question.sentence.startswith("Do rankings by gradient")
        True
        """
        return find_question(self.name)

    @property
    def verdict(self) -> str:
        """The answer, with intervals.

        >>> experiment.verdict.startswith("With the vector of the AIE's heads")
        True
        """
        found = Found(self.table)
        return " ".join(filter(None, [caution(found), self.question.verdict(found)]))

    @property
    def title(self) -> str:
        """Which experiment, of what.

        >>> experiment.title
        'rankings: antonym on lab'
        """
        return f"{self.name}: {self.task} on {self.model}"

    def figures(self, *, width: Width = "page") -> dict[str, go.Figure]:
        """Figures by file name; the first one answers at a glance.

        Args:
            width: See `ivlens.plots.WIDTHS`.

        >>> list(experiment.figures())
        ['heads']
        """
        found = {}
        for name, units in self.question.figures.items():
            lines: Any = pd.concat([self.table[self.table["part"] == part] for part in units])
            if len(lines):
                title = f"{self.name}, {name}: {self.task} on {self.model}"
                found[name] = self.question.draw.get(name, draw_lines)(lines, units, title=title, width=width)
        return found

    def tables(self, *, drawn: bool = False) -> list[Table]:
        """The numbers as text: a table for each figure, then one for what is not drawn.

        Args:
            drawn: Only those of the figures.

        >>> [table.columns[:2] for table in experiment.tables(drawn=True)]
        [('heads', 'accuracy with the vector')]
        """
        parts = [tuple(units) for units in self.question.figures.values()]
        found = [_side_by_side(self.table, name, own) for name, own in zip(self.question.figures, parts, strict=True)]
        rest: Any = self.table[~self.table["part"].isin([part for own in parts for part in own])]
        lines = [(f"{line['part']}: {_name(line)}", *_number(line)) for line in rest.to_dict("records")]
        others = [] if drawn else [Table("More numbers", ("more", "value", INTERVAL), (lines,))]
        return [table for table in (*found, *others) if table.parts[0]]

    def __repr__(self) -> str:
        return f"Experiment({self.name}, {self.task} on {self.model}: {len(self.table)} numbers)"

    def _repr_html_(self) -> str:
        parts = "".join(map(table_html, self.tables()))
        return f"<p><b>{safe(self.title)}</b><br>{safe(self.verdict)}</p>{parts}"


def draw_lines(lines: pd.DataFrame, units: Mapping[str, str], *, title: str, width: Width) -> go.Figure:
    """What is varied down, a panel for each part."""
    return plots.method_dots(
        lines.rename(columns={"part": "panel", "at": "method"}),
        units=units,
        looks={"by AIE": LOOKS["chosen"], "by ablation": LOOKS["own"]},
        title=title,
        zero=True,
        width=width,
    )


def _side_by_side(table: pd.DataFrame, heading: str, parts: Sequence[str]) -> Table:
    """The parts of a figure, each a column with its interval; lines are what they are of."""
    chosen: Any = table[table["part"].isin(list(parts))]
    lines = chosen.to_dict("records")
    cells = {(line["part"], _name(line)): _number(line) for line in lines}
    names = dict.fromkeys(_name(line) for line in lines)
    rows = [(name, *(cell for part in parts for cell in cells.get((part, name), ("", "")))) for name in names]
    return Table(heading, (heading, *(column for part in parts for column in (part, INTERVAL))), (rows,))


def _name(line: Mapping[Any, Any]) -> str:
    """What a number is of, with its kind where that is a control or another vector."""
    at, kind = str(line["at"]), str(line["kind"])
    return at if kind in (CHOSEN, NONE) or kind in at else f"{at}, {kind}"


def _number(line: Mapping[Any, Any]) -> tuple[str, str]:
    text = interval_text(line["value"], line["low"], line["high"])
    value, _, bounds = text.partition(" [")
    return (text, "") if text == "not measured" else (value, f"[{bounds}" if bounds else "")
