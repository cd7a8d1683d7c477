"""`ivlens show`, `ivlens figures`, `ivlens report`: what a run found, from saved numbers and without the model."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ivlens.cli.options import RunFolder
from ivlens.cli.output import say_notice
from ivlens.tables import plain

if TYPE_CHECKING:
    from ivlens.plots.style import Width


class PaperWidth(StrEnum):
    """How wide a figure is to be."""

    single = "single"
    double = "double"
    screen = "screen"


_WIDTHS: Mapping[PaperWidth, Width] = {
    PaperWidth.single: "single",
    PaperWidth.double: "double",
    PaperWidth.screen: "page",
}


def show(
    run: Annotated[Path, typer.Argument(help="A run folder, or the file of heads that `ivlens universal` wrote.")],
) -> None:
    """Print the tables of a run again, from saved numbers, without the model."""
    if run.is_file():
        from ivlens.cli.universal import print_file

        print_file(run)
        return
    from ivlens.analysis.audit import Audit
    from ivlens.analysis.audit_tables import print_audit
    from ivlens.analysis.comparison import Comparison
    from ivlens.analysis.comparison_tables import print_comparison
    from ivlens.forgetting.tables import print_study
    from ivlens.reports.findings import read_findings
    from ivlens.steering.trial_plan import describe
    from ivlens.storage.run_folder import read_run

    found = read_findings(run)
    if isinstance(found, Audit):
        print_audit(found)
        plan = read_run(run).record.settings.get("trials")
        if isinstance(plan, dict):
            print(describe(plan))
    elif isinstance(found, Comparison):
        print_comparison(found)
    else:
        print_study(found)


def redraw(
    run: RunFolder,
    format: Annotated[str, typer.Option(help="Any of html,png,svg,pdf, with commas between.")] = "html,png,svg,pdf",
    single_file: Annotated[
        bool,
        typer.Option(
            "--single-file/--bundle",
            help="HTML pages that each can be sent to somebody, or that share one plotly.js (4.8 MB) in figures/.",
        ),
    ] = False,
    width: Annotated[
        PaperWidth, typer.Option(help="Of a paper: a single column of 3.25 inches, or a double one of 6.75; or screen.")
    ] = PaperWidth.screen,
) -> None:
    """Draw every figure again from saved numbers, without the model."""
    from ivlens.storage import parquet

    parquet.start()  # While the rest is still imported.
    from ivlens.plots import export
    from ivlens.reports.findings import read_findings
    from ivlens.storage.atomic_files import inside

    formats = tuple(name.strip() for name in format.split(","))
    drawn = read_findings(run).figures(width=_WIDTHS[width])
    exported = export.export(drawn, inside(run, "figures"), formats=formats, alone=single_file)
    say_notice(exported)
    suffixes = dict.fromkeys(path.suffix[1:] for path in exported.written if path.stem in drawn)
    print(f"In {plain(str(run / 'figures'))}: {', '.join(drawn)} as {', '.join(suffixes)}.")


def report(
    run: RunFolder,
    single_file: Annotated[
        bool,
        typer.Option(
            "--single-file/--bundle",
            help="A page that can be sent to somebody, or one that shares plotly.js (4.8 MB) with those in figures/.",
        ),
    ] = True,
) -> None:
    """Write one page with everything that a run found, from saved numbers, without the model."""
    import ivlens
    from ivlens.storage import parquet

    parquet.start()  # While the rest is still imported.
    print(f"Written: {plain(str(ivlens.report(run, single_file=single_file)))}")
