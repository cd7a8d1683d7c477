"""The command line: parse, call, print.

Exit status 0: done; 2: the user's mistake, said in one line; 1: a fault of ours, with a traceback.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ivlens.errors import IvlensError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from ivlens.audit import Audit
    from ivlens.figures import Exported

app = typer.Typer(
    name="ivlens",
    help="Which attention heads carry an instruction, and what vector do they write?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Corruption(StrEnum):
    shuffled = "shuffled"
    zero_shot = "zero-shot"


class Source(StrEnum):
    demonstrations = "demonstrations"
    instruction = "instruction"


class Effect(StrEnum):
    prob = "prob"
    nll = "nll"


def main() -> None:
    """Run a command; turn the user's mistakes into one line and exit status 2."""
    try:
        app()
    except IvlensError as error:
        _complain(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        _complain("stopped; the same command goes on from what it has written")
        sys.exit(130)


def _complain(message: str) -> None:
    print(f"ivlens: {message}", file=sys.stderr)


@app.command()
def audit(
    model: Annotated[str, typer.Argument(help="lab, a local Hugging Face folder, or a hub id.")],
    task: Annotated[str, typer.Option(help="A built-in task (see `ivlens tasks`) or a task file.")],
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/MODEL-TASK unless given.")] = None,
    shots: Annotated[int, typer.Option(help="Demonstrations of a prompt.")] = 10,
    clean_prompts: Annotated[int, typer.Option(help="Prompts that give the mean head outputs.")] = 100,
    prompts: Annotated[int, typer.Option(help="Corrupted prompts that heads are patched on.")] = 25,
    top: Annotated[int, typer.Option(help="Heads of the vector.")] = 10,
    corruption: Annotated[Corruption, typer.Option(help="How the task is taken out of a prompt.")] = Corruption.shuffled,
    source: Annotated[Source, typer.Option(help="Where clean prompts show the task.")] = Source.demonstrations,
    effect: Annotated[Effect, typer.Option(help="Probability of the first answer token, or nats of all.")] = Effect.prob,
    seed: Annotated[int, typer.Option(help="Decides splits, prompts and draws.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16.")] = "auto",
    memory: Annotated[str, typer.Option(help="What patching may take beside the weights.")] = "2GiB",
) -> None:
    """Find the heads that carry a task, build their vector, and measure what it does beside controls."""
    budget = parse_bytes(memory)
    with _plain_warnings():
        import ivlens
        from ivlens import figures

        chosen = ivlens.task(task)
        found = ivlens.audit(
            ivlens.load(model, device=device, dtype=dtype),
            chosen,
            out=out or Path("runs") / f"{_file_name(model)}-{_file_name(chosen.name)}",
            shots=shots,
            clean_prompts=clean_prompts,
            prompts=prompts,
            top=top,
            corruption=corruption.value,
            source=source.value,
            effect=effect.value,
            seed=seed,
            memory=budget,
        )
        exported = figures.export(found.figures(), found.folder / "figures")
    _print_audit(found)
    _print_export(exported, found.folder)


@app.command("figures")
def redraw(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    format: Annotated[str, typer.Option(help="Comma-separated: html,png,svg,pdf.")] = "html,png,svg,pdf",
) -> None:
    """Draw every figure again from saved numbers, without the model."""
    with _plain_warnings():
        from ivlens import figures
        from ivlens.audit import Audit

        formats = tuple(name.strip() for name in format.split(",") if name.strip())
        exported = figures.export(Audit.read(run).figures(), run / "figures", formats=formats)
    _print_export(exported, run)


@app.command("tasks")
def list_tasks(
    file: Annotated[Path | None, typer.Argument(help="A task file to check.")] = None,
) -> None:
    """List the built-in tasks, or check a task file."""
    with _plain_warnings():
        from ivlens.tasks import read, task, tasks

        found = [task(name) for name in tasks()] if file is None else [read(file)]
    table = _table("task", "pairs", "wordings", "statement", "example")
    for entry in found:
        example = f"{entry.pairs[0].input} → {entry.pairs[0].output}"
        table.add_row(*map(_text, (entry.name, len(entry.pairs), len(entry.instructions), entry.statement or "–", example)))
    _print(table)
    if file is not None:
        print(f"{file} is a good task file.")


def parse_bytes(text: str) -> int:
    """Bytes of a size such as `2GiB`, `500 MB` or `1048576`.

    Raises:
        IvlensError: not a size, or not above 0.
    """
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in units or float(match[1]) == 0:
        raise IvlensError(f"memory is {text!r}; write a size such as 2GiB, 500MB or 1048576")
    return int(float(match[1]) * units[match[2].upper()])


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).name).strip(".-") or "run"


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Our own warnings as one line each; everybody else's stay as they are."""
    from ivlens.tasks import TaskWarning

    usual = warnings.showwarning

    def show(message, category, *args, **kwargs) -> None:  # noqa: ANN001, ANN002, ANN003
        if issubclass(category, TaskWarning):
            _complain(f"warning: {message}")
        else:
            usual(message, category, *args, **kwargs)

    with warnings.catch_warnings():
        warnings.simplefilter("always", TaskWarning)
        warnings.showwarning = show
        yield


def _print_audit(found: Audit) -> None:
    vector, effects = found.vector, found.effects
    table = _table("prompts", "accuracy", "95 % interval", "P(answer)", "95 % interval", "n")
    for line in found.measures.to_dict("records"):
        measured = line["prompts"] > 0
        accuracy, probability = (_numbers(line, name) if measured else _UNMEASURED for name in _VALUES)
        table.add_row(_text(line["measure"]), *accuracy, *probability, _text(line["prompts"]))
    _print(table)
    low, high = effects.interval()
    heads = _table("head", f"AIE ({effects.unit})", "95 % interval")
    for head in vector.heads:
        heads.add_row(str(head), f"{effects.aie[head]:+.4f}", f"[{low[head]:+.4f}, {high[head]:+.4f}]")
    _print(heads)
    print(
        f"{vector.task} on {vector.model}: adding the vector of {len(vector.heads)} heads at layer {vector.layer} "
        f"takes zero-shot accuracy from {found.accuracy('zero-shot'):.2f} to {found.accuracy('steered'):.2f}; "
        f"random heads reach {found.accuracy('steered, random'):.2f}."
    )


_VALUES = ("accuracy", "probability")
_UNMEASURED = ("not measured", "")


def _numbers(line: dict, name: str) -> tuple[str, str]:
    return f"{line[name]:.2f}", f"[{line[f'{name}_low']:.2f}, {line[f'{name}_high']:.2f}]"


def _print_export(exported: Exported, run: Path) -> None:
    if exported.notice:
        print(exported.notice, file=sys.stderr)
    print(f"Written to {run}: tables, the vector, and {len(exported.written)} figures in {run / 'figures'}.")


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table


def _text(value: object) -> Text:
    """Text as it is: names come from files, and square brackets are no markup there."""
    from rich.text import Text

    return Text(str(value))


def _print(table: Table) -> None:
    from rich.console import Console

    Console(soft_wrap=False).print(table)
