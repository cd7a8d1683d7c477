"""Which pairs, instructions and statements make up a task?

A task is a set of input/output pairs that one instruction turns into each other. The built-in set is a folder of
task files in the very format that a user writes.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ivlens.errors import TaskError
from ivlens.markup import html_table

BUILT_IN = Path(__file__).parent / "lab" / "tasks"
MAX_FILE_BYTES = 64 * 2**20
TOLERATED_CONTRADICTIONS = 0.01


class TaskWarning(UserWarning):
    """A task can be used, but something about it will blur what is measured on it."""


class Pair(NamedTuple):
    """One fact of a task; the output has no leading space."""

    input: str
    output: str


class Split(NamedTuple):
    """Parts of a task's pairs that share no pair, so that nothing is judged on what it was chosen on."""

    mean: tuple[Pair, ...]
    """Gives `mean_z` and all demonstrations."""
    rank: tuple[Pair, ...]
    """Ranks heads."""
    validation: tuple[Pair, ...]
    """Chooses the layer."""
    evaluation: tuple[Pair, ...]
    """Measures; nothing is chosen on it."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Pairs, the instructions that ask for them, and the plain statement of the same fact."""

    name: str
    pairs: tuple[Pair, ...]
    instructions: tuple[str, ...] = ()
    """Wordings of one instruction, such as "Write the opposite of the word."."""
    statement: str | None = None
    """The fact without an instruction, up to the output: "The opposite of {input} is"."""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise TaskError("a task needs a name; give it one")
        if not self.pairs:
            raise TaskError(f"task {self.name!r} has no pairs; add pairs of an input and an output")
        for pair in self.pairs:
            if not pair.input.strip() or not pair.output.strip():
                raise TaskError(
                    f"task {self.name!r} has the pair {tuple(pair)} with an empty side; fill it in or drop it"
                )
        if any(not wording.strip() for wording in self.instructions):
            raise TaskError(f"task {self.name!r} has an empty instruction; fill it in or drop it")
        if self.statement is not None and "{input}" not in self.statement:
            raise TaskError(
                f"the statement of task {self.name!r} is {self.statement!r}, without {{input}}; "
                "write {input} where the query goes"
            )

    @property
    def digest(self) -> str:
        """SHA-256 of everything that prompts are built from."""
        content = [self.pairs, self.instructions, self.statement]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"Task({self.name!r}, {len(self.pairs)} pairs, {len(self.instructions)} instructions)"

    def lines(self) -> list[tuple[str, str]]:
        """What a task is, by name: its size, its wordings, its statement and its first pairs."""
        return [
            ("pairs", f"{len(self.pairs)}: enough for up to {max(0, len(self.pairs) - 10)} shots"),
            *(("instruction", wording) for wording in self.instructions or ["none: not measured"]),
            ("statement", self.statement or "none: not measured"),
            *(("example", " → ".join(pair)) for pair in self.pairs[:3]),
        ]

    def _repr_html_(self) -> str:
        return html_table((self.name, ""), self.lines(), texts=True)

    def split(self, *, shots: int = 10, seed: int = 0) -> Split:
        """Part the pairs at random into four sets without overlap.

        Two fifths, and at least `shots + 1`, go to the mean (and to demonstrations); of the rest a third ranks
        heads, a quarter chooses the layer and the others evaluate.

        Raises:
            TaskError: fewer pairs than `shots` + 10.
        """
        if shots < 0:
            raise TaskError(f"shots is {shots}; it must be 0 or more")
        total = len(self.pairs)
        if total < shots + 10:
            raise TaskError(
                f"task {self.name!r} has {total} pairs, but {shots} shots need at least {shots + 10} "
                "(demonstrations, ranking, validation and evaluation share none); add pairs or use fewer shots"
            )
        order = np.random.default_rng(seed).permutation(total)
        shuffled = [self.pairs[i] for i in order]
        mean = max(shots + 1, round(0.4 * total))
        rank = mean + max(2, (total - mean) // 3)
        validation = rank + max(2, (total - mean) // 4)
        bounds = [0, mean, rank, validation, total]
        return Split(*(tuple(shuffled[a:b]) for a, b in pairwise(bounds)))


def tasks() -> list[str]:
    """Names of the built-in tasks, in alphabetical order."""
    return sorted(path.stem for path in BUILT_IN.glob("*.json"))


def task(name: str | Path) -> Task:
    """A built-in task by name, or a task file by path.

    Raises:
        TaskError: there is no such task or file, or it cannot be used.
    """
    built_in = BUILT_IN / f"{name}.json"
    if str(name) in tasks():
        return read(built_in)
    path = Path(name)
    with suppress(OSError):  # A name too long for the file system is no file.
        if path.exists():
            return read(path)
    close = difflib.get_close_matches(str(name), tasks(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "`ivlens tasks` lists the built-in ones."
    raise TaskError(f"there is no built-in task and no file {str(name)!r}; {hint}")


class _PairEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, str_strip_whitespace=True)

    input: str = Field(min_length=1)
    output: str = Field(min_length=1)


class _TaskFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str | None = None
    instructions: list[str] = []
    statement: str | None = None
    pairs: list[_PairEntry] = Field(min_length=1)


def read(path: Path) -> Task:
    """Read a task file: a list of `{"input", "output"}` or an object `{"name", "instructions", "statement", "pairs"}`.

    Raises:
        TaskError: not readable, not JSON, unknown or missing keys, empty, or with contradicting duplicates.
    """
    content = _json(path)
    try:
        entry = _TaskFile.model_validate({"pairs": content} if isinstance(content, list) else content)
    except ValidationError as error:
        raise TaskError(f"{path}: {_first_complaint(error)}") from error
    return Task(
        name=entry.name if entry.name is not None else path.stem,
        pairs=_consistent([Pair(pair.input, pair.output) for pair in entry.pairs], path),
        instructions=tuple(entry.instructions),
        statement=entry.statement,
    )


def _json(path: Path) -> object:
    try:
        if path.exists() and not path.is_file():  # A pipe would be waited for.
            raise TaskError(f"{path} cannot be read (it is no file); give the path of a JSON task file")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise TaskError(f"{path} has {size:,} bytes; a task file may have {MAX_FILE_BYTES:,} at most")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TaskError(f"{path} cannot be read ({error.strerror}); give the path of a JSON task file") from error
    except UnicodeDecodeError as error:
        raise TaskError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8 JSON") from error
    except json.JSONDecodeError as error:
        raise TaskError(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}; mend that place"
        ) from error
    except ValueError as error:  # A number of thousands of digits.
        raise TaskError(f"{path} is not JSON: {error}; mend that place") from error
    except RecursionError as error:
        raise TaskError(f"{path} is nested too deeply for a task file; it needs a flat list of pairs") from error


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


def _consistent(pairs: Sequence[Pair], path: Path) -> tuple[Pair, ...]:
    """Drop repeated pairs; refuse inputs with two outputs, or leave them out where they are very few."""
    outputs = defaultdict(set)
    for pair in pairs:
        outputs[pair.input].add(pair.output)
    contradicting = {given: sorted(wanted) for given, wanted in outputs.items() if len(wanted) > 1}
    if contradicting:
        given, wanted = next(iter(contradicting.items()))
        example = f"{given!r} is given the outputs {', '.join(map(repr, wanted))}"
        # A benchmark's file may hold a slip among hundreds of pairs; measuring on that input would be wrong
        # either way, and refusing the file would be worse than leaving it out aloud.
        if len(contradicting) > TOLERATED_CONTRADICTIONS * len(outputs):
            raise TaskError(f"{path} contradicts itself: {example}; keep one of them")
        warnings.warn(
            f"{path} contradicts itself: {example}; left out {_listed(contradicting)}", TaskWarning, stacklevel=4
        )
    return tuple(dict.fromkeys(pair for pair in pairs if pair.input not in contradicting))


def _listed(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + rest
