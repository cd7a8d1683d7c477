"""What does a task file say, in whichever of the known formats it is?

Ours and function_vectors' (JSON), TRACE, O-LoRA, Super-NaturalInstructions, CSV, and Hugging Face data sets.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ivlens.datasets import benchmark_files, csv_files, huggingface
from ivlens.datasets.csv_files import Columns
from ivlens.datasets.huggingface import HUB
from ivlens.errors import TaskError
from ivlens.storage.json_files import read_given_json

CSV = (".csv", ".tsv")
BENCHMARKS = {"trace": benchmark_files.trace, "o-lora": benchmark_files.o_lora}


class Content(NamedTuple):
    """A task as its file has it."""

    name: str
    pairs: list[tuple[str, str]]
    instructions: tuple[str, ...] = ()
    statement: str | None = None


def _first(texts: object) -> object:
    return texts[0] if isinstance(texts, list) and texts else texts


class _PairEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, str_strip_whitespace=True)

    input: Annotated[str, BeforeValidator(_first)] = Field(min_length=1)
    output: Annotated[str, BeforeValidator(_first)] = Field(min_length=1)


class _TaskFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str | None = None
    instructions: list[str] = []
    statement: str | None = None
    pairs: list[_PairEntry] = Field(min_length=1)


def read_content(path: Path, columns: Columns | None = None) -> Content:
    """What a file or folder says.

    Where an input or an output is a list of texts, the first is taken, as function_vectors takes it of its queries.
    Of a folder of TRACE or O-LoRA the test part is taken, which no training saw; name one of its files for another.

    Args:
        columns: Which columns of a CSV file or data set are input and output.

    Raises:
        TaskError: not readable, of no known format, empty, or with unknown or missing keys.
    """
    if path.is_dir():
        return _folder(path, columns)
    if path.suffix.lower() in CSV:
        return Content(path.stem, csv_files.read_csv(path, columns))
    if columns is not None:
        raise TaskError(f"{path} is JSON, which has no columns to choose; leave --columns out")
    content = read_given_json(path)
    kind = benchmark_files.kind(content)
    if kind == "instructions":
        pairs, wording = benchmark_files.natural_instructions(content, path)
        return Content(path.stem, pairs, (wording,))
    if kind is not None:
        return _benchmark(path, kind, f"{path.resolve().parent.name}-{path.stem}")
    return _own(content, path)


def read_hub(name: str, columns: Columns | None = None) -> Content:
    """What `hf:NAME[:CONFIGURATION][@SPLIT]` says."""
    where = name.removeprefix(HUB)
    return Content(where.rpartition("/")[2], huggingface.read_hub(where, columns))


def _folder(path: Path, columns: Columns | None) -> Content:
    name = path.resolve().name or str(path)
    if huggingface.is_saved(path):
        return Content(name, huggingface.read_saved(path, columns))
    test = path / "test.json"
    kind = benchmark_files.kind(read_given_json(test, wanted=benchmark_files.FORMATS))
    if kind not in BENCHMARKS:
        raise TaskError(f"{test} is of no known format; {benchmark_files.FORMATS}")
    return _benchmark(test, kind, name)


def _benchmark(path: Path, kind: str, name: str) -> Content:
    pairs, instruction = BENCHMARKS[kind](path)
    return Content(name, pairs, (instruction,) if instruction else ())


def _own(content: object, path: Path) -> Content:
    try:
        entry = _TaskFile.model_validate({"pairs": content} if isinstance(content, list) else content)
    except ValidationError as error:
        raise TaskError(f"{path}: {_first_complaint(error)}") from error
    return Content(
        name=entry.name if entry.name is not None else path.stem,
        pairs=[(pair.input, pair.output) for pair in entry.pairs],
        instructions=tuple(entry.instructions),
        statement=entry.statement,
    )


def _first_complaint(error: ValidationError) -> str:
    """What is wrong in a task file, in its writer's words: pairs are counted from 1."""
    first = min(error.errors(), key=lambda complaint: complaint["type"] != "extra_forbidden")
    place = [f"pair {part + 1}" if isinstance(part, int) else repr(part) for part in first["loc"]]
    where = " of ".join(reversed([part for part in place if part != "'pairs'" or len(place) == 1]))
    match first["type"]:
        case "extra_forbidden":
            return f"unknown key {where}; known are name, instructions, statement and pairs of input and output"
        case "missing":
            return f"{where} is missing; add it"
        case "model_type":
            return f"{where or 'the content'} is no JSON object; write an object, or a list of input/output pairs"
        case "too_short" | "string_too_short":
            return f"{where} is empty; fill it in"
        case _:
            came = json.dumps(first["input"], ensure_ascii=False, default=str)
            came = came if len(came) <= 60 else came[:57] + "..."
            return f"{where or 'the file'} is {came}, but {first['msg'][0].lower()}{first['msg'][1:]}"
