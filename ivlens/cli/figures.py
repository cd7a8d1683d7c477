"""`ivlens figures`: draw the figures of a run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ivlens.cli.output import say_notice
from ivlens.tables import plain


def redraw(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    format: Annotated[str, typer.Option(help="Any of html,png,svg,pdf, with commas between.")] = "html,png,svg,pdf",
) -> None:
    """Draw every figure again from saved numbers, without the model."""
    from ivlens.storage import parquet

    parquet.start()  # While the rest is still imported.
    from ivlens.plots import export
    from ivlens.reports.findings import read_findings
    from ivlens.storage.atomic_files import inside

    formats = tuple(name.strip() for name in format.split(","))
    exported = export.export(read_findings(run).figures(), inside(run, "figures"), formats=formats)
    say_notice(exported)
    names = dict.fromkeys(path.stem for path in exported.written)
    suffixes = dict.fromkeys(path.suffix[1:] for path in exported.written)
    print(f"In {plain(str(run / 'figures'))}: {', '.join(names)} as {', '.join(suffixes)}.")
