"""`ivlens audit`: which heads of a model carry a task?"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ivlens.analysis.options import AuditSettings
from ivlens.cli import options
from ivlens.cli.checks import check_early, choose_template
from ivlens.cli.options import parse_bytes
from ivlens.cli.output import draw_missing, file_name, forecast, is_long, say_stored
from ivlens.tables import plain


class Only(StrEnum):
    """Where an audit stops before its end."""

    heads = "heads"


@options.with_options(AuditSettings)
def audit(
    model: options.ModelName,
    task: options.TaskName,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/MODEL[-ADAPTER]-TASK unless given.")] = None,
    adapter: options.Adapter = None,
    columns: options.Columns = None,
    *,
    bos: options.BosToken = options.BosChoice.auto,
    template_option: options.TemplateOptions = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    backend: options.Backend = "auto",
    device_map: options.DeviceMap = None,
    memory: options.Memory = "2GiB",
    only: Annotated[
        Only | None, typer.Option(help="Stop behind the AIE of heads; the same command without it goes on from there.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and how long it takes; write nothing.")
    ] = False,
    **typed: Any,
) -> None:
    """Find the heads that carry a task, build their vector, and measure what it does beside controls."""
    budget = parse_bytes(memory)
    import ivlens
    from ivlens.analysis import audit_tables, run_audit
    from ivlens.steering.trial_plan import describe

    chosen = ivlens.task(task, columns=options.parse_columns(columns))
    given = check_early(AuditSettings, typed, chosen)
    template = choose_template(typed["template"], bos, template_option)
    names = [model, *map(str, adapter or ()), chosen.name]
    folder = out or Path("runs") / "-".join(map(file_name, names))
    hooked = ivlens.load(model, adapter=adapter, device=device, dtype=dtype, backend=backend, device_map=device_map)
    say_stored(hooked)
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
    found = run_audit.run_audit(work, folder)
    audit_tables.print_audit(found)
    if not work.plan.is_whole:
        print(describe(work.plan.record()))
    draw_missing(found.figures(), folder)
    print(f"In {plain(str(folder))}: run.json, tables, vector.safetensors and figures/.")
