"""The command line: parse, call, print.

Exit status 0: done; 2: the user's mistake, said in one line; 1: a fault of ours, with a traceback; 130: stopped by
Ctrl-C.
"""

from __future__ import annotations

import errno
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ivlens.cli import options
from ivlens.cli.options import parse_bytes
from ivlens.errors import IvlensError
from ivlens.reports import findings
from ivlens.storage.command_line import typed
from ivlens.tables import plain

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from ivlens.datasets.task import Task
    from ivlens.plots.export import Exported

# Only the public subclass is at the same place in every version of typer.
_UsageError: Any = typer.BadParameter.__base__
_STOPPED = 130  # 128 and the number of SIGINT, as shells have it.
# What the user's machine refuses, as opposed to a file that we forgot.
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG}

app = typer.Typer(
    name="ivlens",
    help="Which attention heads carry an instruction, and what vector do they write?",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; the user's mistakes become one line."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # A stream of somebody else's making.
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _plain_warnings(), typed(given):
            status = app(given or ["--help"], prog_name="ivlens", standalone_mode=False) or 0
    except IvlensError as error:
        return _complain(str(error))
    except _UsageError as error:
        return _complain(_usage(error))
    except OSError as error:
        if error.errno not in _REFUSED or error.filename is None:
            raise
        return _complain(f"cannot use {error.filename}: {error.strerror}; mend that, or give another path")
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported for this.
            raise
        return _complain("the device ran out of memory; give a smaller --memory, or --device cpu")
    except (KeyboardInterrupt, typer.Abort):
        status = _STOPPED
    if status == _STOPPED:  # Some versions of typer return it, others raise.
        _complain("stopped; the same command goes on from what it has written")
    return status


def _complain(message: str) -> int:
    print(f"ivlens: {plain(message)}", file=sys.stderr)
    return 2


def _usage(error: Any) -> str:
    message = error.format_message().replace("Value error, ", "").rstrip(".")
    command = error.ctx.command_path if error.ctx is not None else "ivlens"
    return f"{message}; see {command} --help"


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Our own warnings as one line each; everybody else's stay as they are."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], filename: str, *args: Any) -> None:
        if category.__module__.startswith("ivlens.") or issubclass(category, RuntimeWarning):
            _complain(f"warning: {message}")
        else:
            usual(message, category, filename, *args)

    with warnings.catch_warnings():
        for category in (UserWarning, RuntimeWarning):
            warnings.simplefilter("default", category)
        warnings.showwarning = show
        yield


def _print_version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        print(f"ivlens {version('ivlens')}")
        raise typer.Exit
    return wanted


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@app.command()
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

    chosen = ivlens.task(task, columns=options.columns_of(columns))
    settings = _settings(shots, clean_prompts, prompts, corruption, source, effect, seed)
    others = _early(chosen, settings, template=template, heads=heads, instruction=instruction)
    names = [model, *map(str, adapter or ()), chosen.name]
    folder = out or Path("runs") / "-".join(map(_file_name, names))
    hooked = ivlens.load(model, adapter=adapter, device=device, dtype=dtype)
    settings |= {**others, "template": ivlens.template(template, hooked)}
    found = ivlens.audit(hooked, chosen, out=folder, top=top, memory=budget, **settings)
    audit_tables.print_audit(found)
    _draw_missing(found.figures(), folder)
    print(f"In {plain(str(folder))}: run.json, tables, vector.safetensors and figures/.")


@app.command()
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

    chosen = ivlens.task(task, columns=options.columns_of(columns))
    settings = _settings(shots, clean_prompts, prompts, corruption, source, effect, seed)
    others = _early(chosen, settings, template=template, heads=heads, instruction=instruction)
    folder = out or Path("runs") / "-".join(["compare", *map(_file_name, [base, *tuned, chosen.name])])
    hooked = ivlens.load(base, device=device, dtype=dtype)
    settings |= {**others, "template": ivlens.template(template, hooked)}
    found = ivlens.compare(hooked, tuned, chosen, out=folder, queries=queries, top=top, memory=budget, **settings)
    comparison_tables.print_comparison(found)
    _draw_missing(found.figures(), folder)
    print(f"In {plain(str(folder))}: run.json, tables, both vectors and figures/.")


@app.command()
def universal(
    model: Annotated[str, typer.Argument(help="lab, a local Hugging Face folder, or a hub id.")],
    out: Annotated[Path, typer.Option(help="File for the heads: .json, or .safetensors with vectors.")],
    tasks: Annotated[
        str | None, typer.Option(metavar="LIST", help="Tasks that heads are ranked on, with commas; all built-in ones.")
    ] = None,
    adapter: options.Adapter = None,
    template: options.LayoutName = "qa",
    shots: options.Shots = 10,
    clean_prompts: options.CleanPrompts = 100,
    prompts: options.Prompts = 25,
    top: options.Top = 10,
    corruption: options.CorruptionOption = options.Corruption.shuffled,
    source: options.SourceOption = options.Source.demonstrations,
    effect: options.EffectOption = options.Effect.prob,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    memory: options.Memory = "2GiB",
) -> None:
    """Rank heads over many tasks, and say which tasks entered and why."""
    budget = parse_bytes(memory)
    if out.suffix.lower() not in (".json", ".safetensors"):
        raise IvlensError(f"out is {str(out)!r}; give a name that ends in .json or .safetensors")
    import ivlens
    from ivlens.analysis import audit_tables
    from ivlens.patching.settings import Settings

    chosen = [ivlens.task(name) for name in (ivlens.tasks() if tasks is None else options.listed(tasks))]
    settings = _settings(shots, clean_prompts, prompts, corruption, source, effect, seed)
    _early(None, settings, template=template)
    hooked = ivlens.load(model, adapter=adapter, device=device, dtype=dtype)
    asked = Settings(**settings, template=ivlens.template(template, hooked))
    found = ivlens.universal_heads(hooked, chosen, asked, top=top, memory=budget)
    found.save(out)
    audit_tables.print_universal(found)
    print(f"In {plain(str(out))}; give it to --heads.")


def _settings(
    shots: int,
    clean_prompts: int,
    prompts: int,
    corruption: options.Corruption,
    source: options.Source,
    effect: options.Effect,
    seed: int,
) -> dict[str, Any]:
    numbers = {"shots": shots, "clean_prompts": clean_prompts, "prompts": prompts, "seed": seed}
    return {**numbers, "corruption": corruption.value, "source": source.value, "effect": effect.value}


def _early(
    task: Task | None,
    settings: dict[str, Any],
    *,
    template: str,
    heads: str | None = None,
    instruction: str = "all",
) -> dict[str, Any]:
    """Heads and wordings as they are meant. Refuses, before a large model is read, what can be refused without it."""
    from ivlens.analysis.wordings import check
    from ivlens.patching.settings import Settings
    from ivlens.prompts.chat import CHAT
    from ivlens.prompts.template import named as template_named
    from ivlens.vectors.head_choice import named

    Settings(**settings)
    if template != CHAT:
        template_named(template)
    wording = options.wording_of(instruction)
    if task is not None:
        task.split(shots=settings["shots"], seed=settings["seed"])
        check(task, wording)
    return {"heads": named(heads), "instruction": wording}


@app.command()
def study(
    name: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="A built-in study such as lab-func, or a TOML file.")
    ],
    out: Annotated[Path, typer.Option(help="Run folder, which the same command goes on with.")],
    methods: Annotated[str | None, typer.Option(metavar="LIST", help="In place of the study's: lora,lora+iv")] = None,
    seeds: Annotated[str | None, typer.Option(metavar="LIST", help="In place of the study's: 0,1,2")] = None,
    steps: Annotated[int | None, options.number("Steps of every stage, in place of the study's.")] = None,
    workers: Annotated[int | None, options.number("Cells side by side; one a core on the CPU, one on a GPU.")] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
) -> None:
    """Learn a sequence of tasks with several methods, and measure what each one forgets."""
    import dataclasses

    import ivlens
    from ivlens.forgetting import plan
    from ivlens.forgetting import tables as study_tables

    asked = plan.read(name).with_changes(
        methods=None if methods is None else tuple(options.listed(methods)),
        seeds=None if seeds is None else tuple(map(options.whole, options.listed(seeds))),
    )
    if steps is not None:
        asked = asked.with_changes(training=dataclasses.replace(asked.training, steps=steps))
    found = ivlens.study(asked, out=out, workers=workers, device=device, dtype=dtype)
    study_tables.print_study(found)
    _draw_missing(found.figures(), out)
    print(f"In {plain(str(out))}: run.json, tables, every stage's adapters and figures/.")


@app.command("figures")
def redraw(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    format: Annotated[str, typer.Option(help="Any of html,png,svg,pdf, with commas between.")] = "html,png,svg,pdf",
) -> None:
    """Draw every figure again from saved numbers, without the model."""
    from ivlens.plots import export

    formats = tuple(name.strip() for name in format.split(","))
    exported = export.export(findings.read_findings(run).figures(), run / "figures", formats=formats)
    _notice(exported)
    names = dict.fromkeys(path.stem for path in exported.written)
    suffixes = dict.fromkeys(path.suffix[1:] for path in exported.written)
    print(f"In {plain(str(run / 'figures'))}: {', '.join(names)} as {', '.join(suffixes)}.")


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write one page with everything that a run found, from saved numbers, without the model."""
    import ivlens

    print(f"Written: {plain(str(ivlens.report(run)))}")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="The file to read.")],
    target: Annotated[Path, typer.Argument(help="The file to write.")],
    source_form: Annotated[str | None, typer.Option("--from", metavar="FORM", help="What SOURCE is.")] = None,
    target_form: Annotated[str | None, typer.Option("--to", metavar="FORM", help="What TARGET is to be.")] = None,
    layer: Annotated[
        int | None, options.number("Which layer of SOURCE, or where to add its vector: after block N, from 0.")
    ] = None,
    model: Annotated[str, typer.Option(help="The model's name; for mean-activations its folder, hub id, or lab.")] = "",
    task: Annotated[str, typer.Option(help="The task's name; the file's unless given.")] = "",
    effects: Annotated[
        Path | None, typer.Option(help="For mean-activations: effects that rank the heads of the vector.")
    ] = None,
    heads: Annotated[str | None, typer.Option(metavar="LIST", help="In place of --effects: L9H6,L3H2")] = None,
    top: Annotated[int, options.number("Heads of the vector.")] = 10,
) -> None:
    """Turn a vector or effects into the file of another tool, or its file into one of ivlens.

    Forms are told by the files' names and contents:

    \b
    vector            *.safetensors  ivlens: vector, heads, their means and AIE
    gguf              *.gguf         control vector of llama.cpp and repeng
    steering-vector   *.pt           SteeringVector of steering-vectors (--to)
    npy               *.npy          one numpy array
    function-vector   *.pt           function_vectors' vector, [1, d_model]
    mean-activations  *_mean_head_activations.pt  of function_vectors
    effects           *.parquet      the effects of a run of ivlens
    indirect-effect   *_indirect_effect.pt        of function_vectors

    What TARGET has no place for is said, line by line. No pickle is executed.
    """
    import ivlens
    from ivlens.shapes import Head
    from ivlens.vectors import vector_formats

    for option, form in (("--from", source_form), ("--to", target_form)):
        if form is not None and form not in vector_formats.FORMS:
            raise IvlensError(f"{option} is {form!r}; it must be one of {', '.join(vector_formats.FORMS)}")
    notices = ivlens.convert(
        source,
        target,
        source_form=source_form,  # pyright: ignore[reportArgumentType]
        target_form=target_form,  # pyright: ignore[reportArgumentType]
        layer=layer,
        model=model,
        task=task,
        effects=effects,
        heads=[Head.parse(head) for head in options.listed(heads)] if heads else (),
        top=top,
    )
    for notice in notices:
        _complain(notice)
    print(f"Wrote {plain(str(target))}.")


@app.command("tasks")
def list_tasks(
    file: Annotated[str | None, typer.Argument(help="A task file to check, or a built-in task to show.")] = None,
    columns: options.Columns = None,
) -> None:
    """List the built-in tasks, or check a task file."""
    from ivlens.analysis import audit_tables
    from ivlens.datasets.task import task, tasks

    if file is None:
        audit_tables.print_tasks([task(name) for name in tasks()])
        return
    found = task(file, columns=options.columns_of(columns))
    _refuse_short(found)
    audit_tables.print_task(found)


def _refuse_short(task: Task) -> None:
    if len(task.pairs) < 10:
        raise IvlensError(
            f"task {task.name!r} has {len(task.pairs)} pairs, but an audit needs 10 and one more for each "
            "demonstration; add pairs"
        )


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).name)[:80].strip(".-") or "run"


def _draw_missing(drawn: dict[str, Figure], folder: Path) -> None:
    from ivlens.plots import export

    # A page is written after its images: where all pages are, all that could be drawn has been.
    if not all((folder / "figures" / f"{name}.html").is_file() for name in drawn):
        _notice(export.export(drawn, folder / "figures"))


def _notice(exported: Exported) -> None:
    if exported.notice:
        _complain(exported.notice)


if __name__ == "__main__":
    sys.exit(main())
