"""Which options do several commands share, and how is what was typed read?"""

from __future__ import annotations

import re
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer

from ivlens.errors import IvlensError


class Corruption(StrEnum):
    shuffled = "shuffled"
    zero_shot = "zero-shot"


class Source(StrEnum):
    demonstrations = "demonstrations"
    instruction = "instruction"


class Effect(StrEnum):
    prob = "prob"
    nll = "nll"


def parse_whole(text: str | int) -> int:
    """A whole number; typer's own complaint does not say what came."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number") from None


def number(words: str) -> Any:
    return typer.Option(help=words, parser=parse_whole, metavar="N")


def split_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def parse_bytes(text: str) -> int:
    """Bytes of a size such as `2GiB`, `500 MB` or `1048576`.

    Raises:
        IvlensError: not a size, or not above 0.
    """
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    size = 0 if match is None or match[2].upper() not in units else int(Fraction(match[1]) * units[match[2].upper()])
    if size < 1:
        raise IvlensError(f"memory is {text!r}; write a size above 0 such as 2GiB, 500MB or 1048576")
    return size


TaskName = Annotated[
    str, typer.Option("--task", help="A built-in task (see `ivlens tasks`), a task file or folder, or hf:NAME.")
]
Columns = Annotated[
    str | None, typer.Option(metavar="INPUT,OUTPUT", help="Columns of a CSV file or data set, if not of common names.")
]
Adapter = Annotated[
    list[Path] | None,
    typer.Option(metavar="PEFT_DIR", help="A LoRA adapter over MODEL, as PEFT saves it; several: left to right."),
]
LayoutName = Annotated[
    str,
    typer.Option(
        "--template", help="qa, function-vectors, arrow, input-output, plain, chat (the model's own), or a JSON file."
    ),
]
Heads = Annotated[
    str | None,
    typer.Option(
        metavar="LIST|FILE", help="In place of those of largest AIE: L9H6,L3H2, a file of heads, or universal."
    ),
]
Wording = Annotated[
    str, typer.Option(metavar="all|best|N", help="Wordings of the instruction: in turn, the best, or the N-th.")
]
Shots = Annotated[int, number("Demonstrations of a prompt.")]
CleanPrompts = Annotated[int, number("Prompts that give the mean head outputs.")]
Prompts = Annotated[int, number("Corrupted prompts that heads are patched on.")]
Top = Annotated[int, number("Heads of the vector.")]
CorruptionOption = Annotated[Corruption, typer.Option(help="How the task is taken out of a prompt.")]
SourceOption = Annotated[Source, typer.Option(help="Where clean prompts show the task.")]
EffectOption = Annotated[Effect, typer.Option(help="Probability of the first answer token, or nats of all.")]
Seed = Annotated[int, number("Decides splits, prompts and draws.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16, float64.")]
Memory = Annotated[str, typer.Option(help="What patching may take beside the weights.")]


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
