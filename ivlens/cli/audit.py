"""`ivlens audit`: which heads of a model carry a task, and which recur where several models or tasks are named?"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ivlens.analysis.options import AuditSettings
from ivlens.cli import options
from ivlens.cli.loading import Patching, check_early
from ivlens.cli.options import parse_bytes
from ivlens.cli.output import about, draw, draw_missing, file_name, forecast, forecast_audits, is_long
from ivlens.engine.options import Engine
from ivlens.errors import IvlensError
from ivlens.tables import plain

if TYPE_CHECKING:
    from ivlens.datasets.task import Task
    from ivlens.matrix.run_matrix import AuditPlan


class Only(StrEnum):
    """Where an audit stops before its end."""

    heads = "heads"


@options.with_options(AuditSettings, Engine)
def audit(
    models: options.ModelNames,
    task: options.TaskNames,
    out: Annotated[
        Path | None,
        typer.Option(help="Run folder; runs/MODEL[-ADAPTER]-TASK unless given. Of several audits: their folder."),
    ] = None,
    adapter: options.Adapter = None,
    columns: options.Columns = None,
    *,
    loading: Patching,
    threads: options.Threads = None,
    only: Annotated[
        Only | None, typer.Option(help="Stop behind the AIE of heads; the same command without it goes on from there.")
    ] = None,
    dry_run: options.DryRun = False,
    **typed: Any,
) -> None:
    """Find the heads that carry a task, build their vector, and measure what it does beside controls.

    Several models or tasks (--task A --task B) are audited each by itself, and a table and a figure show which heads
    recur.
    """
    budget = parse_bytes(loading.memory)
    import ivlens
    from ivlens.analysis import audit_tables, run_audit
    from ivlens.matrix.audit_jobs import Layout
    from ivlens.steering.trial_plan import describe

    found = [ivlens.task(one, columns=options.parse_columns(columns)) for one in task]
    engine = options.read_options(Engine, typed) | ({} if threads is None else {"threads": threads})
    if len(models) > 1 or len(task) > 1:
        if only:
            raise IvlensError("--only is of one audit; name one model and one --task, or leave it out")
        *_, given = (check_early(AuditSettings, typed, one) for one in found)
        loading.choose_template(typed["template"])
        template_options = options.parse_template_options(loading.template_option)
        layout = Layout(typed["template"], template_options, loading.bos.value)
        asked: Any = {"layout": layout, "memory": budget, "adapter": adapter, **loading.place, **engine, **given}
        _audit_many(models, found, out or Path("runs") / "matrix", asked, dry_run=dry_run)
        return
    if engine:
        raise IvlensError(f"{', '.join(engine)} says how several audits are run; name more models or --task, too")
    (model,), (chosen,) = models, found
    given = check_early(AuditSettings, typed, chosen)
    template = loading.choose_template(typed["template"])
    names = [model, *map(str, adapter or ()), chosen.name]
    folder = out or Path("runs") / "-".join(map(file_name, names))
    hooked = loading.load(model, adapter)
    given["template"] = template(hooked)
    work = run_audit.prepare(hooked, chosen, memory=budget, **given)
    if dry_run:
        print(*map(plain, forecast(work)), sep="\n")
        return
    if is_long(work) and not (folder / "run.json").exists():
        print(*(f"ivlens: {plain(line)}" for line in forecast(work)), sep="\n", file=sys.stderr, flush=True)
    if only:
        effects = run_audit.audit_heads(work, folder)
        draw_missing({"aie": effects.figure()}, folder)
        print(effects)
        print(f"In {plain(str(folder))}: the effects of heads; the same command without --only goes on from there.")
        return
    audited = run_audit.run_audit(work, folder)
    audit_tables.print_audit(audited)
    if left_out := work.plan.record():
        print(describe(left_out))
    draw_missing(audited.figures(), folder)
    print(f"In {plain(str(folder))}: run.json, tables, vector.safetensors and figures/.")


def _audit_many(models: list[str], tasks: list[Task], folder: Path, asked: dict[str, Any], *, dry_run: bool) -> None:
    import ivlens
    from ivlens.matrix.run_matrix import plan_audits
    from ivlens.matrix.tables import print_matrix

    lines, any_long = _forecast(plan_audits(models, tasks, **asked), folder)
    if dry_run:
        print(*map(plain, lines), sep="\n")
        return
    if any_long:
        print(*(f"ivlens: {plain(line)}" for line in lines), sep="\n", file=sys.stderr, flush=True)
    found = ivlens.audit_many(models, tasks, out=folder, **asked)
    print_matrix(found)
    draw(found.figures(), folder)  # Anew: there may be more audits than when it was drawn.
    print(f"In {plain(str(folder))}: a run folder for each audit, recurring_heads.csv and figures/.")


def _forecast(plan: AuditPlan, folder: Path) -> tuple[list[str], bool]:
    """What several audits do and how long it takes, about, and whether any takes more than seconds.

    Workers of a cluster load models that need not be here: how long they take is not said.
    """
    left = plan.left(folder)
    kept = len(plan.asked) - len(left)
    said = f"{len(plan.asked)} audits{f', of which {kept} are done' if kept else ''}"
    if plan.engine.engine == "ray" or not left:
        return [said], False
    lines, seconds, any_long = forecast_audits(list(left.values()))
    workers = plan.count_workers(len(left))
    return [f"{said}: {about(seconds / workers)}, {workers} at once", *lines], any_long
