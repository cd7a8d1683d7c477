"""`ivlens study`: what does each method of fine-tuning forget?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ivlens.cli import options
from ivlens.cli.output import draw_missing
from ivlens.engine.options import Engine
from ivlens.tables import plain


@options.with_options(Engine)
def study(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE",
            help="A built-in study such as lab-func, or a TOML file.",
            autocompletion=options.complete_study,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Run folder, which the same command goes on with.")],
    methods: Annotated[str | None, typer.Option(metavar="LIST", help="In place of the study's: lora,lora+iv")] = None,
    seeds: Annotated[str | None, typer.Option(metavar="LIST", help="In place of the study's: 0,1,2")] = None,
    steps: Annotated[int | None, options.number("Steps of every stage, in place of the study's.")] = None,
    score: options.StudyScore = None,
    *,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    taken_from: Annotated[
        list[Path] | None,
        typer.Option("--from", metavar="RUN", help="Another run of the plan, whose cells are taken; several times."),
    ] = None,
    **typed: Any,
) -> None:
    """Learn a sequence of tasks with several methods, and measure what each one forgets."""
    import dataclasses

    import ivlens
    from ivlens.forgetting import plan
    from ivlens.forgetting import tables as study_tables

    engine = options.read_options(Engine, typed)
    Engine(**engine)  # Refused before anything is read.
    asked = plan.read_plan(name).with_changes(
        methods=None if methods is None else tuple(options.split_list(methods)),
        seeds=None if seeds is None else tuple(map(options.parse_whole, options.split_list(seeds))),
    )
    if score is not None:
        asked = asked.with_changes(evaluation=dataclasses.replace(asked.evaluation, score=score.value))
    if steps is not None:
        asked = asked.with_changes(training=dataclasses.replace(asked.training, steps=steps))
    about: Any = {"device": device, "dtype": dtype, **engine}
    found = ivlens.study(asked, out=out, taken_from=taken_from or (), **about)
    study_tables.print_study(found)
    draw_missing(found.figures(), out)
    print(f"In {plain(str(out))}: run.json, tables, every stage's adapters and figures/.")
