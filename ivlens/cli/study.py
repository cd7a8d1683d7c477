"""`ivlens study`: what does each method of fine-tuning forget? `ivlens experiment`: an open question, as a command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ivlens.cli import options
from ivlens.cli.loading import Patching, check_early
from ivlens.cli.output import about, draw_missing, file_name
from ivlens.engine.options import Engine
from ivlens.errors import IvlensError
from ivlens.experiments.settings import ExperimentSettings
from ivlens.tables import folded, plain, print_table

if TYPE_CHECKING:
    from ivlens.experiments.experiment import Experiment
    from ivlens.experiments.work import Work
    from ivlens.forgetting.plan import Plan


LONG = 60.0
"""Seconds from which on a study says beforehand how long it takes."""


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
    model: Annotated[
        str | None, typer.Option(help="In place of the study's.", autocompletion=options.complete_model)
    ] = None,
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
    from ivlens.datasets.task import exists
    from ivlens.forgetting import plan
    from ivlens.forgetting import tables as study_tables

    engine = options.read_options(Engine, typed)
    Engine(**engine)  # Refused before anything is read.
    asked = plan.read_plan(name).with_changes(
        model=model,
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
    is_here = engine.get("engine", "local") == "local"  # Workers of a cluster load models that need not be here.
    if budget is not None or dry_run or (is_here and not exists(out / "run.json")):
        within = None if budget is None else options.parse_duration(budget)
        asked, seconds, said = _weigh(asked, out, within, workers=engine.get("workers"), **given)
        if dry_run:
            print(said)
            return
        if budget is not None or seconds > LONG:
            print(f"ivlens: {said}", file=sys.stderr, flush=True)
    found = ivlens.study(asked, out=out, taken_from=taken_from or (), **given, **engine)
    study_tables.print_study(found)
    draw_missing(found.figures(), out)
    print(f"In {plain(str(out))}: run.json, tables, every stage's adapters and figures/.")


def _weigh(
    asked: Plan, out: Path, within: float | None, *, workers: int | None, device: str, dtype: str
) -> tuple[Plan, float, str]:
    """The plan, with as many seeds as fit into so many seconds; how many it takes, about, and that in words.

    A run that was begun keeps its seeds.
    """
    from itertools import count, islice

    import ivlens
    from ivlens.forgetting import cell_jobs, preparation
    from ivlens.storage.run_record import read_record

    general = preparation.general_tasks(asked)  # Refused before the model is read.
    model = ivlens.load(asked.model, device=device, dtype=dtype)
    cost = preparation.estimate_cost(asked, model, general)
    at_once = workers or cell_jobs.count_cores(model)
    begun = read_record(out)
    if begun is not None and within is not None:
        asked = asked.with_changes(seeds=tuple(cast(Any, begun.settings["seeds"])))
    elif within is not None:
        asked = asked.with_changes(seeds=tuple(islice(count(asked.seeds[0]), cost.seeds_within(within * at_once))))
    n_seeds = len(asked.seeds)
    counts = {"method": len(asked.methods), "seed": n_seeds, "stage": len(asked.tasks)}
    sizes = " x ".join(f"{n} {name}{'s' if n > 1 else ''}" for name, n in counts.items())
    at_once = min(at_once, counts["method"] * n_seeds)  # A cell is not parted.
    total = (cost.once + n_seeds * cost.seed) / at_once
    said = (
        f"{sizes}: {about(total)}, {at_once} at once (before the first cell {about(cost.once)}; then "
        f"{about(cost.seed)} of one worker a seed, {cost.measuring / cost.seed:.0%} of it measuring)"
    )
    return asked, total, said


@options.with_options(ExperimentSettings)
def experiment(
    name: Annotated[
        str | None, typer.Argument(help="Of the experiment; all are listed without one.", metavar="[NAME]")
    ] = None,
    model: Annotated[
        str | None, typer.Argument(help=options.MODEL_WORDS, autocompletion=options.complete_model)
    ] = None,
    tuned: Annotated[
        list[str] | None,
        typer.Argument(help="Of questions about fine-tuning: the model after it, or PEFT adapter folders over MODEL."),
    ] = None,
    task: options.TaskName = "antonym",
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/NAME-MODEL[-TUNED]-TASK unless given.")] = None,
    columns: options.Columns = None,
    listed: Annotated[bool, typer.Option("--list", help="List all experiments.")] = False,
    *,
    loading: Patching,
    dry_run: options.DryRun = False,
    **typed: Any,
) -> None:
    """Run the experiment of an open question, with its control: a table, a figure and a sentence."""
    budget = options.parse_bytes(loading.memory)
    import ivlens
    from ivlens.experiments import experiment as experiments
    from ivlens.experiments import run_experiment

    if listed or name is None:
        for each, question in experiments.QUESTIONS.items():
            print(folded(f"{each}: {question.sentence}"))
        return
    run_experiment.check_tuned(name, experiments.find_question(name).needs_tuned, tuned)
    if model is None:
        raise IvlensError(f"there is no model; write ivlens experiment {name} MODEL")
    chosen = ivlens.task(task, columns=options.parse_columns(columns))
    given = check_early(ExperimentSettings, typed, chosen)
    template = loading.choose_template(typed["template"])
    folder = out or Path("runs") / "-".join(map(file_name, [name, model, *(tuned or ()), chosen.name]))
    hooked = loading.load(model)
    given["template"] = template(hooked)
    work = run_experiment.prepare(name, hooked, chosen, tuned=tuned, memory=budget, **given)
    if dry_run:
        print(_forecast(name, work))
        return
    if not (folder / "run.json").exists():
        print(f"ivlens: {plain(_forecast(name, work))}", file=sys.stderr, flush=True)
    print_experiment(run_experiment.run_experiment(name, work, folder), drawn=True)
    draw_missing(experiments.Experiment.read(folder).figures(), folder)
    print(f"In {plain(str(folder))}: run.json, findings.parquet and figures/.")


def _forecast(name: str, work: Work) -> str:
    """What an experiment does and how long each part takes, about; the first prompts are run for it."""
    from ivlens.experiments.experiment import find_question
    from ivlens.patching.pace import measure_pace

    pace = measure_pace(work.model, work.task, work.settings, memory=work.memory)
    seconds = find_question(name).cost(work, pace)
    parts = "; ".join(f"{part}, {about(one)}" for part, one in seconds.items())
    return f"{name}: {about(sum(seconds.values()))} ({parts})"


def print_experiment(found: Experiment, *, drawn: bool = False) -> None:
    """The answer, then the numbers; `drawn`: those of the figures alone."""
    print(folded(f"{plain(found.title)}\n\n{plain(found.question.sentence)}\n\n{plain(found.verdict)}\n"))
    for table in found.tables(drawn=drawn):
        print_table(table)
        print()
