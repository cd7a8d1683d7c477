"""What does a task file say, in whichever of the known formats it is?

Ours and function_vectors' (JSON), records of other keys (JSON, JSONL, CSV, parquet), TRACE, O-LoRA,
Super-NaturalInstructions, and Hugging Face data sets.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ivlens.datasets import benchmark_files, csv_files, huggingface, parquet_files
from ivlens.datasets.entries import Pair, merge, read_each
from ivlens.datasets.huggingface import HUB
from ivlens.datasets.records import KNOWN, Columns, read_records
from ivlens.errors import TaskError
from ivlens.storage.atomic_files import parse_json
from ivlens.storage.json_files import read_given_json, read_text

CSV = (".csv", ".tsv")
LINES = (".jsonl", ".ndjson")
PARQUET = (".parquet",)
LABELS = "labels.json"
BENCHMARKS = {"trace": benchmark_files.trace, "o-lora": benchmark_files.o_lora}


class Content(NamedTuple):
    """A task as its file has it."""

    name: str
    entries: list[Pair]
    instructions: tuple[str, ...] = ()
    statement: str | None = None


class _TaskFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str | None = None
    instructions: list[str] = []
    statement: str | None = None
    pairs: list[Any] = Field(min_length=1)


def read_content(path: Path, columns: Columns | None = None) -> Content:
    """What a file or folder says, every input once with all of its right outputs.

    Entries without an input or an output are left out, aloud. Where an input is a list of texts, the first is taken, as
    function_vectors takes it of its queries. Of a folder of TRACE or O-LoRA the test part is taken, which no training
    saw; name one of its files for another.

    Args:
        columns: Which columns, or keys of records, are input and output.

    Raises:
        TaskError: not readable, of no known format, or without an entry that can be used.
    """
    return _merged(_read(path, columns), str(path))


def _merged(content: Content, where: str) -> Content:
    return content._replace(entries=merge(content.entries, where))


def _read(path: Path, columns: Columns | None) -> Content:
    if path.is_dir():
        return _folder(path, columns)
    kind = path.suffix.lower()
    if kind in CSV:
        return Content(path.stem, *csv_files.read_csv(path, columns))
    if kind in PARQUET:
        return Content(path.stem, *parquet_files.read_parquet(path, columns))
    content = None if kind in LINES else _json(path)
    if content is None:
        return Content(path.stem, *_lines(path, columns))
    form = None if columns else benchmark_files.kind(content)
    if form == "instructions":
        entries, wording = benchmark_files.natural_instructions(content, path)
        return Content(path.stem, entries, (wording,))
    if form == "trace" or (form == "o-lora" and (path.parent / LABELS).is_file()):
        return _benchmark(path, form, f"{path.resolve().parent.name}-{path.stem}")
    return _own(content, path, columns)


def _json(path: Path) -> Any:
    """What a JSON file holds; None for one of JSON lines by another name."""
    try:
        return read_given_json(path)
    except TaskError as error:
        cause = error.__cause__
        if isinstance(cause, json.JSONDecodeError) and cause.msg == "Extra data" and cause.lineno > 1:
            return None
        raise


def _lines(path: Path, columns: Columns | None) -> tuple[list[Pair], tuple[str, ...]]:
    """One JSON object a line. Not by `splitlines`: some of its line ends may stand inside a JSON text."""
    lines = [(number, line) for number, line in enumerate(read_text(path).split("\n"), start=1) if line.strip()]
    if not lines:
        raise TaskError(f"{path} is empty; write one JSON object a line")
    found = read_each(_line, lines, str(path), unit="line", numbers=[number for number, _ in lines])
    numbers = [number for number, _ in found]
    return read_records([record for _, record in found], str(path), columns, unit="line", numbers=numbers)


def _line(line: tuple[int, str], place: str) -> tuple[int, Any]:
    try:
        return line[0], parse_json(line[1])
    except ValueError as error:
        raise TaskError(f"{place} is not JSON: {error}; mend it") from error


def read_hub(name: str, columns: Columns | None = None) -> Content:
    """What `hf:NAME[:CONFIGURATION][@SPLIT]` says."""
    where = name.removeprefix(HUB)
    return _merged(Content(where.rpartition("/")[2], *huggingface.read_hub(where, columns)), name)


def _folder(path: Path, columns: Columns | None) -> Content:
    name = path.resolve().name or str(path)
    if huggingface.is_saved(path):
        return Content(name, *huggingface.read_saved(path, columns))
    test = path / "test.json"
    kind = benchmark_files.kind(read_given_json(test, wanted=benchmark_files.FORMATS))
    if kind not in BENCHMARKS:
        raise TaskError(f"{test} is of no known format; {benchmark_files.FORMATS}")
    return _benchmark(test, kind, name)


def _benchmark(path: Path, kind: str, name: str) -> Content:
    entries, instruction = BENCHMARKS[kind](path)
    return Content(name, entries, (instruction,) if instruction else ())


def _own(content: object, path: Path, columns: Columns | None) -> Content:
    try:
        entry = _TaskFile.model_validate({"pairs": content} if isinstance(content, list) else content)
    except ValidationError as error:
        raise TaskError(f"{path}: {_first_complaint(error)}") from error
    entries, wordings = read_records(entry.pairs, str(path), columns)
    return Content(
        name=entry.name if entry.name is not None else path.stem,
        entries=entries,
        instructions=tuple(entry.instructions) or wordings,
        statement=entry.statement,
    )


def _first_complaint(error: ValidationError) -> str:
    """What is wrong in a task file beside its pairs, in its writer's words."""
    first = min(error.errors(), key=lambda complaint: complaint["type"] != "extra_forbidden")
    where = " of ".join(f"{part + 1}" if isinstance(part, int) else repr(part) for part in reversed(first["loc"]))
    match first["type"]:
        case "extra_forbidden":
            return f"unknown key {where}; known are name, instructions, statement and pairs"
        case "missing":
            return f"{where} is missing; add it"
        case "model_type":
            return f"{where or 'the content'} is no JSON object; write one, or a list of them: {KNOWN}"
        case "too_short" | "string_too_short":
            return f"{where} is empty; fill it in"
        case _:
            came = json.dumps(first["input"], ensure_ascii=False, default=str)
            came = came if len(came) <= 60 else came[:57] + "..."
            return f"{where or 'the file'} is {came}, but {first['msg'][0].lower()}{first['msg'][1:]}"
