"""`ivlens compare`: what did fine-tuning do to a task's heads?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ivlens.cli import options
from ivlens.cli.checks import check_early, settings_of
from ivlens.cli.options import parse_bytes
from ivlens.cli.output import draw_missing, file_name
from ivlens.tables import plain


def compare(
    base: Annotated[str, typer.Argument(help="The model before fine-tuning: lab, a local folder, or a hub id.")],
    tuned: Annotated[
        list[str],
        typer.Argument(help="The model after it: a checkpoint, or PEFT adapter folders over BASE, which are added up."),
    ],
    task: options.TaskName,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/compare-BASE-TUNED-TASK unless given.")] = None,
    columns: options.Columns = None,
    template: options.LayoutName = "qa",
    shots: options.Shots = 10,
    clean_prompts: options.CleanPrompts = 100,
    prompts: options.Prompts = 25,
    queries: Annotated[int, options.number("Evaluation pairs that dependence on the vector is measured on.")] = 50,
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
    """Measure what fine-tuning did to a task's heads, to their vector and to what depends on it."""
    budget = parse_bytes(memory)
    import ivlens
    from ivlens.analysis import comparison_tables

    chosen = ivlens.task(task, columns=options.parse_columns(columns))
    settings = settings_of(shots, clean_prompts, prompts, corruption, source, effect, seed)
    others = check_early(chosen, settings, template=template, heads=heads, instruction=instruction)
    folder = out or Path("runs") / "-".join(["compare", *map(file_name, [base, *tuned, chosen.name])])
    hooked = ivlens.load(base, device=device, dtype=dtype)
    settings |= {**others, "template": ivlens.template(template, hooked)}
    found = ivlens.compare(hooked, tuned, chosen, out=folder, queries=queries, top=top, memory=budget, **settings)
    comparison_tables.print_comparison(found)
    draw_missing(found.figures(), folder)
    print(f"In {plain(str(folder))}: run.json, tables, both vectors and figures/.")
