"""Which wording of an instruction does the model follow best?

Davidson et al. 2025, arXiv:2505.12075, write several instructions for a task and keep those that the model follows
best. Here the choice is made on validation pairs, on which nothing is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from ivlens.analysis.options import MOST_VALIDATION, Choice
from ivlens.datasets.task import Pair, Task
from ivlens.errors import IvlensError, TaskError
from ivlens.patching.settings import Settings
from ivlens.prompts.builders import instructed
from ivlens.prompts.chat import Layout
from ivlens.prompts.choices import GREEDY_MATCH, Score
from ivlens.prompts.template import DEFAULT
from ivlens.replies.inquiry import measure_prompts
from ivlens.steering import trials
from ivlens.storage.run_tables import Tables

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

WORDINGS = ("number", "wording", "chosen", *trials.VALUES)


def check_choice(task: Task, choice: Choice) -> None:
    """Raises a TaskError where the task has no such wording, an IvlensError where there is no such choice."""
    if choice == "all":
        return
    if choice != "best" and type(choice) is not int:
        raise IvlensError(f"instruction is {choice!r}; it must be 'all', 'best' or the number of a wording")
    count = len(task.instructions)
    if count == 0 or (isinstance(choice, int) and not 1 <= choice <= count):
        raise TaskError(
            f"instruction is {choice!r}, but task {task.name!r} has {count} wordings; "
            f"{f'give all, best or 1 to {count}' if count else 'add instructions to it'}"
        )


def choose_wording(
    model: HookedTransformer, task: Task, choice: Choice, settings: Settings, *, score: Score, tables: Tables
) -> Task:
    """The task with the wordings asked for; of `best`, what was tried is kept as the table `instructions`.

    Args:
        score: Of which the accuracy is that chooses the best one.

    Raises:
        IvlensError: there is no such wording.
    """
    check_choice(task, choice)
    if choice == "all":
        return task
    if choice == "best":
        pairs = task.split(shots=settings.shots, seed=settings.seed).validation[:MOST_VALIDATION]
        found = tables.table(
            "instructions",
            lambda: try_wordings(model, task, pairs, template=settings.template, score=score),
            WORDINGS,
        )
        choice = int(found.loc[found["chosen"], "number"].iloc[0])
    return replace(task, instructions=(task.instructions[choice - 1],))


def part_wordings(task: Task, kept_back: int) -> tuple[Task, Task]:
    """The task in its first wordings, and in the last ones, so many, that are kept back from something.

    Raises:
        TaskError: none is left that is not kept back.
    """
    n_seen = len(task.instructions) - kept_back
    if kept_back and n_seen < 1:
        raise TaskError(
            f"wordings of task {task.name!r}: {len(task.instructions)}, kept back: {kept_back}; keep fewer back, so "
            "that one is left, or add instructions"
        )
    seen, unseen = task.instructions[:n_seen], task.instructions[n_seen:]
    return replace(task, instructions=seen), replace(task, instructions=unseen)


def try_wordings(
    model: HookedTransformer,
    task: Task,
    pairs: Sequence[Pair],
    *,
    template: Layout = DEFAULT,
    score: Score = GREEDY_MATCH,
) -> pd.DataFrame:
    """Accuracy, by a score, and P(answer) under every wording, with intervals over pairs.

    `chosen` is the most accurate one; of equals the one of highest probability, of these the first.
    """
    lines = []
    for number, wording in enumerate(task.instructions, start=1):
        prompts = instructed(replace(task, instructions=(wording,)), pairs, template=template)
        values = trials.summary(*measure_prompts(model, prompts, score))
        lines.append({"number": number, "wording": wording, **values})
    best = max(lines, key=lambda line: (line["accuracy"], line["probability"]))
    return pd.DataFrame([{**line, "chosen": line is best} for line in lines]).filter(WORDINGS)
