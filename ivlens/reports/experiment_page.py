"""What does a page say about an experiment?"""

from __future__ import annotations

from ivlens.experiments.experiment import Experiment
from ivlens.reports.page import LAB, QUERIES, SPLIT, WORDS, Page


def experiment_page(found: Experiment) -> Page:
    return Page(
        kind="Experiment",
        title=found.title,
        question=found.question.sentence,
        answer=found.verdict,
        cautions=(
            "Random controls stand beside the chosen ones wherever there are any; read the difference, not the level.",
            "Numbers are of one model and one task, and intervals are not corrected for how many there are.",
            *([LAB] if found.model == "lab" else []),
        ),
        captions={},
        figures=found.figures(),
        narrow=found.figures(width="column"),
        tables=tuple(found.tables()),
        words=WORDS | {"interval": QUERIES},
        method=SPLIT,
        data={"findings": found.table},
    )
