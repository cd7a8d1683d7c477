"""`ivlens compare`: what did fine-tuning do to a task's heads?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ivlens.analysis.options import ComparisonSettings
from ivlens.cli import options
from ivlens.cli.loading import Patching, check_early
from ivlens.cli.options import parse_bytes
from ivlens.cli.output import draw_missing, file_name
from ivlens.tables import plain


@options.with_options(ComparisonSettings)
def compare(
    base: Annotated[
        str,
        typer.Argument(
            help=f"The model before fine-tuning: {options.MODEL_WORDS}", autocompletion=options.complete_model
        ),
    ],
    tuned: Annotated[
        list[str],
        typer.Argument(help="The model after it: a checkpoint, or PEFT adapter folders over BASE, which are added up."),
    ],
    task: options.TaskName,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/compare-BASE-TUNED-TASK unless given.")] = None,
    columns: options.Columns = None,
    *,
    loading: Patching,
    **typed: Any,
) -> None:
    """Measure what fine-tuning did to a task's heads, to their vector and to what depends on it."""
    budget = parse_bytes(loading.memory)
    import ivlens
    from ivlens.analysis import comparison_tables

    chosen = ivlens.task(task, columns=options.parse_columns(columns))
    given = check_early(ComparisonSettings, typed, chosen)
    template = loading.choose_template(typed["template"])
    folder = out or Path("runs") / "-".join(["compare", *map(file_name, [base, *tuned, chosen.name])])
    hooked = loading.load(base)
    given["template"] = template(hooked)
    found = ivlens.compare(hooked, tuned, chosen, out=folder, memory=budget, **given)
    comparison_tables.print_comparison(found)
    draw_missing(found.figures(), folder)
    print(f"In {plain(str(folder))}: run.json, tables, both vectors and figures/.")
