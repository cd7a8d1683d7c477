"""`ivlens study`: what does each method of fine-tuning forget?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ivlens.cli import options
from ivlens.cli.output import about, draw_missing
from ivlens.engine.options import Engine
from ivlens.tables import plain

if TYPE_CHECKING:
    from ivlens.forgetting.plan import Plan


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
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="As many seeds as fit into 90min, 2h, ..., in place of --seeds.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how long it takes; write nothing.")] = False,
    score: options.StudyScore = None,
    tasks: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the tasks of the study that are not built in.")
    ] = None,
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
        tasks_in=None if tasks is None else str(tasks),
    )
    if score is not None:
        asked = asked.with_changes(evaluation=dataclasses.replace(asked.evaluation, score=score.value))
    if steps is not None:
        asked = asked.with_changes(training=dataclasses.replace(asked.training, steps=steps))
    given: Any = {"device": device, "dtype": dtype}
    if budget is not None and seeds is not None:
        raise typer.BadParameter("--budget chooses the seeds, and --seeds names them; leave one out")
    if budget is not None or dry_run:
        seconds = None if budget is None else options.parse_duration(budget)
        asked = _say_cost(asked, out, seconds, workers=engine.get("workers"), **given)
        if dry_run:
            return
    found = ivlens.study(asked, out=out, taken_from=taken_from or (), **given, **engine)
    study_tables.print_study(found)
    draw_missing(found.figures(), out)
    print(f"In {plain(str(out))}: run.json, tables, every stage's adapters and figures/.")


def _say_cost(asked: Plan, out: Path, seconds: float | None, *, workers: int | None, device: str, dtype: str) -> Plan:
    """How long the study takes, on standard error; the plan, with as many seeds as fit into so many seconds.

    A run that was begun keeps its seeds.
    """
    from itertools import count, islice

    import ivlens
    from ivlens.forgetting import cell_jobs, preparation
    from ivlens.storage.run_record import read_record

    model = ivlens.load(asked.model, device=device, dtype=dtype)
    cost = preparation.estimate_cost(asked, model, preparation.general_tasks(asked))
    at_once = workers or cell_jobs.count_cores(model)
    begun = read_record(out)
    if begun is not None and seconds is not None:
        asked = asked.with_changes(seeds=tuple(cast(Any, begun.settings["seeds"])))
    elif seconds is not None:
        asked = asked.with_changes(seeds=tuple(islice(count(asked.seeds[0]), cost.seeds_within(seconds * at_once))))
    n_seeds = len(asked.seeds)
    counts = {"method": len(asked.methods), "seed": n_seeds, "stage": len(asked.tasks)}
    sizes = " x ".join(f"{n} {name}{'s' if n > 1 else ''}" for name, n in counts.items())
    at_once = min(at_once, counts["method"] * n_seeds)  # A cell is not parted.
    total = (cost.once + n_seeds * cost.seed) / at_once
    print(
        f"ivlens: {sizes}: {about(total)}, {at_once} at once (before the first cell {about(cost.once)}; then "
        f"{about(cost.seed)} of one worker a seed, {cost.measuring / cost.seed:.0%} of it measuring)",
        file=sys.stderr,
        flush=True,
    )
    return asked
