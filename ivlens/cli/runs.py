"""`ivlens show`, `figures`, `report`: what a run found, without the model; `explore`: its heads, with the model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from enum import StrEnum
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ivlens.cli import options
from ivlens.cli.loading import Loading, Patching, check_early
from ivlens.cli.options import RunFolder
from ivlens.cli.output import file_name, say_notice
from ivlens.errors import IvlensError, ModelError, TaskError
from ivlens.patching.settings import Settings
from ivlens.storage.run_record import RECORD
from ivlens.tables import plain

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

    from ivlens.datasets.task import Task
    from ivlens.plots.style import Width
    from ivlens.storage.run_folder import Run


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
    from ivlens.cli.study import print_experiment
    from ivlens.experiments.experiment import Experiment
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
    elif isinstance(found, Experiment):
        print_experiment(found)
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


@options.with_options(Settings)
def explore(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN",
            help=f"{options.MODEL_WORDS} Or the folder of an audit or a comparison.",
            autocompletion=options.complete_model,
        ),
    ],
    task: Annotated[
        str | None,
        typer.Option(help="As in an audit; of a run, its own by its name.", autocompletion=options.complete_task),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The page: .html; heads-MODEL-TASK.html, or explorer.html in the run folder.")
    ] = None,
    tuned: Annotated[
        list[str] | None,
        typer.Option(help="The model after fine-tuning, shown beside it: a checkpoint, or PEFT adapter folders."),
    ] = None,
    adapter: options.Adapter = None,
    columns: options.Columns = None,
    *,
    run_model: Annotated[
        str | None, typer.Option("--model", help="Of a run, where the name in its record does not load it.")
    ] = None,
    loading: Patching,
    **typed: Any,
) -> None:
    """Write a page to click on heads of: what each attends to, does and writes; and the vector, to be added.

    The page of a run lies in its folder, and its report has it from then on.
    """
    budget = options.parse_bytes(loading.memory)
    import ivlens
    from ivlens.explorer import kept_page
    from ivlens.explorer.page import check_name
    from ivlens.storage.run_folder import read_run

    if out is not None:
        check_name(out)
    run = read_run(model) if (Path(model) / RECORD).is_file() else None
    if run is None and task is None:
        raise IvlensError("there is no task; give --task, or the folder of an audit in place of the model")
    if run is not None:
        columns = columns or next(iter(_typed(run, "--columns")), None)
    pair = options.parse_columns(columns)
    chosen = _task_of(run, pair) if run is not None and task is None else ivlens.task(str(task), columns=pair)
    given = check_early(Settings, typed, chosen)
    if run is not None and (given or typed["template"] != "qa"):
        raise IvlensError(
            f"{model} has options of its own; leave the others out, or give the model in place of the run"
        )
    template = loading.choose_template(typed["template"])
    if run is None:
        hooked = loading.load(model, adapter)
        given["template"] = template(hooked)
        effects = ivlens.indirect_effects(hooked, chosen, memory=budget, **given)
        explorer = ivlens.explore(hooked, chosen, effects, tuned=tuned, memory=budget)
        path = explorer.save(out or f"heads-{file_name(model)}-{file_name(chosen.name)}.html")
    else:
        hooked = _load_again(run, run_model, kept_page.model_name(run), adapter, loading)
        effects, vector = kept_page.read_found(run)
        explorer = ivlens.explore(hooked, chosen, effects, vector=vector, tuned=tuned, memory=budget)
        path = explorer.save(out) if out else kept_page.keep(run, explorer.encoded())
    print(f"Written: {plain(str(path))}")


def _typed(run: Run, option: str) -> list[str]:
    """What the command that made a run was given by an option."""
    line = run.record.typed
    told = [one.partition("=")[2] for one in line if one.startswith(f"{option}=")]
    return told + [value for name, value in pairwise(line) if name == option]


def _task_of(run: Run, columns: tuple[str, str] | None) -> Task:
    """The task of a run, from where its command had it, else by its name.

    Raises:
        TaskError: it is in neither place.
    """
    import ivlens

    name = run.source("task").name
    for typed in _typed(run, "--task"):
        with suppress(TaskError):
            if (found := ivlens.task(typed, columns=columns)).name == name:
                return found
    try:
        return ivlens.task(name)
    except TaskError as error:
        raise TaskError(
            f"the task {name!r} of {run.folder} is not built in, and not where its command had it; give it by --task"
        ) from error


def _load_again(
    run: Run, model: str | None, name: str, adapter: list[Path] | None, loading: Loading
) -> HookedTransformer:
    """The model of a run, with the adapters and in the precision that it had, from where its command had it.

    Args:
        model: Where it is instead.
        name: What its record calls it.
    """
    from ivlens.datasets.task import exists

    for field in ("dtype", "backend"):
        if getattr(loading, field) == "auto" and (typed := _typed(run, f"--{field}")):
            loading = replace(loading, **{field: typed[0]})
    folders = (
        one for one in run.record.typed if exists(Path(one) / "config.json") and Path(one).resolve().name == name
    )
    files = (one for one in run.record.typed if one.endswith(".gguf") and Path(one).stem == name)
    try:
        known = model or next(chain(folders, files), name)
        return loading.load(known, adapter or [Path(one) for one in _typed(run, "--adapter")])
    except ModelError as error:
        raise ModelError(f"{error}; give the model of {run.folder} by --model") from error
