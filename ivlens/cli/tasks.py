"""`ivlens tasks`: which tasks are there, and is a file one?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from ivlens.cli import options
from ivlens.cli.checks import refuse_short
from ivlens.tables import Table, print_table

if TYPE_CHECKING:
    from ivlens.datasets.task import Task


def list_tasks(
    file: Annotated[str | None, typer.Argument(help="A task file to check, or a built-in task to show.")] = None,
    columns: options.Columns = None,
) -> None:
    """List the built-in tasks, or check a task file."""
    from ivlens.datasets.task import task, tasks

    if file is None:
        print_tasks([task(name) for name in tasks()])
        return
    found = task(file, columns=options.parse_columns(columns))
    refuse_short(found)
    print_task(found)


def print_tasks(tasks: Iterable[Task]) -> None:
    """One line a task."""
    lines = [
        (task.name, str(len(task.pairs)), str(len(task.instructions)), " → ".join(task.pairs[0])) for task in tasks
    ]
    print_table(Table("", ("task", "pairs", "wordings", "example"), (lines,)))


def print_task(task: Task) -> None:
    """One task in full, with its first pairs."""
    print_table(Table("", (task.name, ""), (task.lines(),)), justify="left")
