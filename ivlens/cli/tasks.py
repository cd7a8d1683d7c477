"""`ivlens tasks`: which tasks are there, and is a file one?"""

from __future__ import annotations

from typing import Annotated

import typer

from ivlens.cli import options
from ivlens.cli.checks import refuse_short


def list_tasks(
    file: Annotated[str | None, typer.Argument(help="A task file to check, or a built-in task to show.")] = None,
    columns: options.Columns = None,
) -> None:
    """List the built-in tasks, or check a task file."""
    from ivlens.analysis import audit_tables
    from ivlens.datasets.task import task, tasks

    if file is None:
        audit_tables.print_tasks([task(name) for name in tasks()])
        return
    found = task(file, columns=options.parse_columns(columns))
    refuse_short(found)
    audit_tables.print_task(found)
