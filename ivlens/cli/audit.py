"""`ivlens audit`: which heads of a model carry a task?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ivlens.cli import options
from ivlens.cli.checks import check_early, settings_of
from ivlens.cli.options import parse_bytes
from ivlens.cli.output import draw_missing, file_name
from ivlens.tables import plain


def audit(
    model: Annotated[str, typer.Argument(help="lab, a local Hugging Face folder, or a hub id.")],
    task: options.TaskName,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/MODEL[-ADAPTER]-TASK unless given.")] = None,
    adapter: options.Adapter = None,
    columns: options.Columns = None,
    template: options.LayoutName = "qa",
    shots: options.Shots = 10,
    clean_prompts: options.CleanPrompts = 100,
    prompts: options.Prompts = 25,
    top: options.Top = 10,
    heads: options.Heads = None,
    corruption: options.CorruptionOption = options.Corruption.shuffled,
    source: options.SourceOption = options.Source.demonstrations,
    instruction: options.Wording = "all",
    effect: options.EffectOption = options.Effect.prob,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    memory: options.Memory = "2GiB",
) -> None:
    """Find the heads that carry a task, build their vector, and measure what it does beside controls."""
    budget = parse_bytes(memory)
    import ivlens
    from ivlens.analysis import audit_tables

    chosen = ivlens.task(task, columns=options.parse_columns(columns))
    settings = settings_of(shots, clean_prompts, prompts, corruption, source, effect, seed)
    others = check_early(chosen, settings, template=template, heads=heads, instruction=instruction)
    names = [model, *map(str, adapter or ()), chosen.name]
    folder = out or Path("runs") / "-".join(map(file_name, names))
    hooked = ivlens.load(model, adapter=adapter, device=device, dtype=dtype)
    settings |= {**others, "template": ivlens.template(template, hooked)}
    found = ivlens.audit(hooked, chosen, out=folder, top=top, memory=budget, **settings)
    audit_tables.print_audit(found)
    draw_missing(found.figures(), folder)
    print(f"In {plain(str(folder))}: run.json, tables, vector.safetensors and figures/.")
