"""`ivlens show`, `ivlens figures`, `ivlens report`: what a run found, from saved numbers and without the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ivlens.cli.options import RunFolder
from ivlens.cli.output import say_notice
from ivlens.tables import plain


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
        if plan is not None:
            print(describe(plan))
    elif isinstance(found, Comparison):
        print_comparison(found)
    else:
        print_study(found)


def redraw(
    run: RunFolder,
    format: Annotated[str, typer.Option(help="Any of html,png,svg,pdf, with commas between.")] = "html,png,svg,pdf",
) -> None:
    """Draw every figure again from saved numbers, without the model."""
    from ivlens.plots import export
    from ivlens.reports.findings import read_findings

    formats = tuple(name.strip() for name in format.split(","))
    exported = export.export(read_findings(run).figures(), run / "figures", formats=formats)
    say_notice(exported)
    names = dict.fromkeys(path.stem for path in exported.written)
    suffixes = dict.fromkeys(path.suffix[1:] for path in exported.written)
    print(f"In {plain(str(run / 'figures'))}: {', '.join(names)} as {', '.join(suffixes)}.")


def report(run: RunFolder) -> None:
    """Write one page with everything that a run found, from saved numbers, without the model."""
    import ivlens

    print(f"Written: {plain(str(ivlens.report(run)))}")
