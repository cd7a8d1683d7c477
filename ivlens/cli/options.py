"""Which options do several commands share, and how is what was typed read?

The options of a measurement are those of its settings, see `with_options`: a field that is added there is an option of
the command.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from ivlens.engine.options import Engine
from ivlens.errors import IvlensError, suggest
from ivlens.patching.settings import Settings
from ivlens.patching.settings import parse_bytes as parse_bytes
from ivlens.prompts.choices import SCORE_WORDS, Bos, Score, ScoreChoice


def parse_whole(text: str | int) -> int:
    """A whole number; typer's own complaint does not say what came."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number") from None


_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def parse_duration(text: str) -> float:
    """Seconds of a time such as `90min` or `1.5h`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|m|min|h|d)", text.strip())
    if found is None or float(found[1]) == 0:
        raise typer.BadParameter(f"{text!r} is no time above 0; write 90min, 2h or 1.5d")
    return float(found[1]) * _UNITS[found[2]]


def number(words: str) -> Any:
    return typer.Option(help=words, parser=parse_whole, metavar="N")


def split_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def complete_task(incomplete: str) -> list[str]:
    """Built-in tasks, for the shell."""
    from ivlens.datasets.task import tasks

    return [name for name in tasks() if name.startswith(incomplete)]


def complete_model(incomplete: str) -> list[str]:
    """Models that have a short name, for the shell, which completes paths by itself where none fits."""
    from ivlens.checkpoints.known_models import KNOWN

    return [name for name in ("lab", *KNOWN) if name.startswith(incomplete)]


def complete_study(incomplete: str) -> list[str]:
    """Built-in studies, for the shell."""
    from ivlens.forgetting.plan import studies

    return [name for name in studies() if name.startswith(incomplete)]


MODEL_WORDS = "lab, smollm2, a local Hugging Face folder, a GGUF file, or a hub id."
ModelName = Annotated[str, typer.Argument(help=MODEL_WORDS, autocompletion=complete_model)]
RunFolder = Annotated[Path, typer.Argument(help="A run folder.")]
_TASK = typer.Option(
    "--task",
    help="A built-in task (see `ivlens tasks`), a task file or folder, or hf:NAME.",
    autocompletion=complete_task,
)
TaskName = Annotated[str, _TASK]
ModelNames = Annotated[list[str], typer.Argument(metavar="MODEL...", help=MODEL_WORDS, autocompletion=complete_model)]
TaskNames = Annotated[list[str], _TASK]
Threads = Annotated[
    int | None, number("Threads of each audit on the CPU, where there are several; 1. Engines do not change numbers.")
]
Columns = Annotated[
    str | None,
    typer.Option(metavar="INPUT,OUTPUT", help="Columns of a table, or keys of records, if not of common names."),
]
Adapter = Annotated[
    list[Path] | None,
    typer.Option(metavar="PEFT_DIR", help="A LoRA adapter over MODEL, as PEFT saves it; several: left to right."),
]
# As they are written in Python: as text, `False` would be true.
_PYTHONS = {"True": True, "False": False, "None": None}
# Older versions of typer know enumerations, but not `Literal`.
BosChoice: Any = StrEnum("BosChoice", {choice: choice for choice in get_args(Bos)})
ScoreKind: Any = StrEnum("ScoreKind", {choice: choice for choice in get_args(ScoreChoice)})
ScoreOption = Annotated[ScoreKind, typer.Option("--score", help=SCORE_WORDS)]
AskedScore: Any = StrEnum("AskedScore", {"none": "none"} | {choice: choice for choice in get_args(ScoreChoice)})
StudyScore = Annotated[
    StrEnum("StudyScore", {choice: choice for choice in get_args(Score)}) | None,
    typer.Option("--score", help="What accuracies are of, in place of the study's."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and how long it takes; write nothing.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16, float64.")]


def with_options(*settings: type[Settings | Engine]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for every field of settings, in place of its `**typed`.

    They stand before the command's own keyword-only ones. What was typed is to be read by `read_options`. A
    keyword-only parameter that is a dataclass has its fields for options, whose types are typer's, and is made of what
    was typed.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())
        before = [one for one in own if one.kind is one.POSITIONAL_OR_KEYWORD]
        behind = [part for one in own if one.kind is one.KEYWORD_ONLY for part in _parts(one)]
        made: dict[str, Any] = {one.name: one.annotation for one in own if is_dataclass(one.annotation)}
        shown = [*before, *(_option_of(one) for kind in settings for one in fields(kind)), *behind]

        @functools.wraps(command)
        def run(**typed: Any) -> None:
            built = {
                name: kind(**{one.name: typed.pop(one.name) for one in fields(kind)}) for name, kind in made.items()
            }
            command(**typed, **built)

        # What typer reads.
        parameters = [one.replace(kind=one.KEYWORD_ONLY) for one in shown]
        vars(run)["__signature__"] = inspect.Signature(parameters)
        run.__annotations__ = {one.name: one.annotation for one in shown}
        return run

    return decorate


def _parts(one: inspect.Parameter) -> list[inspect.Parameter]:
    """The fields of a dataclass as options; what else a parameter is, itself."""
    if not is_dataclass(one.annotation):
        return [one]
    types = get_type_hints(one.annotation, include_extras=True)
    return [
        inspect.Parameter(field.name, one.kind, default=field.default, annotation=types[field.name])
        for field in fields(one.annotation)
    ]


def _option_of(one: Field[Any]) -> inspect.Parameter:
    """A field of settings as an option of the command line."""
    about, kind, default = one.metadata, str, one.metadata["typed"]
    option = typer.Option(help=about["words"], metavar=about["metavar"])
    if about["choices"]:
        # Older versions of typer know enumerations, but not `Literal`.
        kind: Any = StrEnum(one.name, {choice: choice for choice in about["choices"]})
        default = kind(one.default)
    elif about["least"] is not None:
        kind: Any = int if one.default is not None else int | None
        option, default = number(about["words"]), one.default
    elif isinstance(one.default, bool):
        flag = f"--{one.name.replace('_', '-')}"
        kind, option, default = bool, typer.Option(flag, help=about["words"]), one.default
    elif default is None:
        kind = str | None
    return inspect.Parameter(
        one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def read_options(settings: type[Settings | Engine], typed: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the settings that are not the default, but for `template`, which may be the model's own.

    Raises:
        IvlensError: no such heads, or no such wording.
    """
    from ivlens.steering.head_choice import parse_heads

    readers: dict[str, Callable[[Any], Any]] = {"heads": parse_heads, "instruction": parse_wording}
    found = {}
    for one in fields(settings):
        value = typed[one.name]
        value = value.value if isinstance(value, StrEnum) else readers.get(one.name, lambda value: value)(value)
        if one.name != "template" and value != one.default:
            found[one.name] = value
    return found


def suggest_typed(error: Any) -> str:
    """Which option or choice may have been meant by what typer refused; nothing where none is like it."""
    option = getattr(error, "option_name", "")
    if error.ctx is not None and option.startswith("--"):
        return suggest(option, [name for one in error.ctx.command.params for name in one.opts], most=1)
    # Where the choices are kept differs from version to version of typer; the sentence does not.
    refused = re.search(r"'(.*)' is not one of (.*)", error.message)
    return suggest(refused[1], re.findall(r"'([^']*)'", refused[2]), most=1) if refused else ""


def parse_template_options(typed: list[str] | None) -> dict[str, Any]:
    """What `--template-option` sets, by name; values are JSON's or Python's, and text where they are neither.

    Raises:
        IvlensError: no name, or the same one twice.
    """
    from ivlens.storage.atomic_files import parse_json

    found: dict[str, Any] = {}
    for text in typed or ():
        name, _, value = text.partition("=")
        if not name.isidentifier() or "=" not in text or name in found:
            raise IvlensError(
                f"template-option is {text!r}; write NAME=VALUE, such as enable_thinking=false, each once"
            )
        try:
            found[name] = _PYTHONS[value] if value in _PYTHONS else parse_json(value)
        except ValueError:
            found[name] = value
    return found


def parse_columns(text: str | None) -> tuple[str, str] | None:
    """The two columns that `--columns` names.

    Raises:
        IvlensError: not two.
    """
    names = [] if text is None else split_list(text)
    if text is None or len(names) == 2:
        return (names[0], names[1]) if names else None
    raise IvlensError(f"columns is {text!r}; write the input's and the output's, such as question,answer")


def parse_wording(text: str) -> Any:
    """What `--instruction` chooses: `all`, `best`, or a number.

    Raises:
        IvlensError: anything else.
    """
    if text not in ("all", "best") and not re.fullmatch(r"[0-9]{1,9}", text):
        raise IvlensError(f"instruction is {text!r}; it must be all, best or the number of a wording, from 1")
    return text if text in ("all", "best") else int(text)
