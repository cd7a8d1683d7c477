"""How does a task of a published benchmark become a stage of a sequence?

Read as they are: TRACE (Wang et al. 2023, arXiv:2310.06762), O-LoRA's folders (Wang et al. 2023, arXiv:2310.14152) and
Super-NaturalInstructions (Wang et al. 2022, arXiv:2204.07705); beside them our own task files and names.
"""

from __future__ import annotations

import difflib
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ivlens.errors import TaskError
from ivlens.lab.sequences import SEQUENCES, TASKS
from ivlens.prompts import Prompt
from ivlens.stages import FEWEST, TRAIN_SHARE, VALIDATION_SHARE, Stage
from ivlens.tasks import MAX_FILE_BYTES, Pair, Task, TaskWarning, read, task, tasks

FORMATS = (
    "a TRACE folder has train.json, eval.json and test.json of prompt and answer, an O-LoRA folder train.json, "
    "dev.json, test.json of sentence and label and labels.json"
)
INSTRUCTION = "Answer with one of these options: {options}.\n"
"""Stands in front of an O-LoRA sentence."""
QUERY = "{sentence}\nAnswer:"

Entry = TypeVar("Entry", bound=BaseModel)


def stage(name: str | Path, *, seed: int, limit: int | None = None) -> Stage:
    """A stage by the name of a task or by the path of a file or folder, in whichever format that is.

    Args:
        name: A task of the lab's sequences, a built-in task, a task file (ours, function_vectors' or
            Super-NaturalInstructions'), or a folder of TRACE or O-LoRA.
        seed: Draws the split where the benchmark has none, and which training prompts stay under a limit.
        limit: Training prompts at most; `None` keeps all.

    Raises:
        TaskError: there is no such task, it cannot be read, or it is too small for its split.
    """
    if limit is not None and limit < FEWEST:
        raise TaskError(f"limit is {limit}; training needs {FEWEST} prompts or more")
    return _limited(_whole(name, seed), seed, limit)


def _whole(name: str | Path, seed: int) -> Stage:
    known = {one: TASKS / f"{one}.json" for names in SEQUENCES.values() for one in names}
    if str(name) in known:
        return Stage.of_task(read(known[str(name)]), seed=seed)
    if str(name) in tasks():
        return Stage.of_task(task(str(name)), seed=seed)
    path = Path(name)
    if _is(path.is_dir):
        return _folder(path, seed)
    if _is(path.exists):
        return _file(path, seed)
    close = difflib.get_close_matches(str(name), [*known, *tasks()], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"give a task's name or a path: {FORMATS}"
    raise TaskError(f"there is no task, file or folder {str(name)!r}; {hint}")


def _is(asked: Callable[[], bool]) -> bool:
    with suppress(OSError, ValueError):  # A name too long for the file system, or with a null in it, is no file.
        return asked()
    return False


def _limited(whole: Stage, seed: int, limit: int | None) -> Stage:
    if limit is None or len(whole.train) <= limit:
        return whole
    kept = np.sort(np.random.default_rng([seed, 1]).choice(len(whole.train), limit, replace=False)).tolist()
    return replace(whole, train=tuple(whole.train[i] for i in kept), bare=tuple(whole.bare[i] for i in kept))


class _Instance(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, str_strip_whitespace=True)

    input: str = Field(min_length=1)
    output: list[str] | str = Field(min_length=1)


class _Instructions(BaseModel):
    """A Super-NaturalInstructions file but for its instances. It documents many more keys than are needed here."""

    model_config = ConfigDict(extra="ignore", strict=True, str_strip_whitespace=True)

    Definition: list[str] | str = Field(min_length=1)
    Instances: list[Any] = Field(min_length=1)


def _file(path: Path, seed: int) -> Stage:
    content = _json(path)
    if not isinstance(content, dict) or not content.keys() & {"Definition", "Instances"}:
        return Stage.of_task(read(path), seed=seed)
    head = _checked(_Instructions, content, str(path))
    instances = _entries(_Instance, head.Instances, f"{path}: 'Instances'")
    # An input may stand there several times, with one of its right answers each.
    answers = {one.input: one.output if isinstance(one.output, str) else one.output[0] for one in reversed(instances)}
    wording = head.Definition if isinstance(head.Definition, str) else " ".join(head.Definition)
    pairs = tuple(Pair(given, answers[given]) for given in dict.fromkeys(one.input for one in instances))
    return Stage.of_task(Task(name=path.stem, pairs=pairs, instructions=(wording,)), seed=seed)


class _Question(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    prompt: str = Field(min_length=1, pattern=r"\S")
    answer: str = Field(min_length=1, pattern=r"\S")


class _Sentence(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, str_strip_whitespace=True)

    sentence: str = Field(min_length=1)
    label: str = Field(min_length=1)


class _Labels(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, str_strip_whitespace=True)

    labels: list[str] = Field(min_length=1)


class _Asked(NamedTuple):
    """A prompt, and the same without its instruction."""

    prompt: Prompt
    bare: Prompt


def _folder(path: Path, seed: int) -> Stage:
    train = _json(path / "train.json")
    first = train[0] if isinstance(train, list) and train else None
    keys = first.keys() if isinstance(first, dict) else frozenset()
    if {"prompt", "answer"} & keys:
        return _stage(path, seed, [_trace(path / f"{part}.json") for part in ("train", "eval", "test")])
    if {"sentence", "label"} & keys:
        labels = _labels(path / "labels.json")
        return _stage(path, seed, [_o_lora(path / f"{part}.json", labels) for part in ("train", "dev", "test")])
    raise TaskError(f"{path / 'train.json'} is of no known format; {FORMATS}")


def _trace(path: Path) -> list[_Asked]:
    """Prompts as they are. The format does not tell where the instruction ends."""
    asked = [_question(one) for one in _entries(_Question, _json(path), str(path))]
    return [_Asked(prompt, prompt) for prompt in asked]


def _question(one: _Question) -> Prompt:
    # A word and the space before it are one token; at a seam that has a space already, one more would be another.
    seam = "" if one.prompt[-1].isspace() or one.answer[0].isspace() else " "
    return Prompt(text=one.prompt, answer=f"{seam}{one.answer}", query=Pair(one.prompt, one.answer.strip()))


def _labels(path: Path) -> list[str]:
    return _checked(_Labels, {"labels": _json(path)}, str(path)).labels


def _o_lora(path: Path, labels: Sequence[str]) -> list[_Asked]:
    instruction = INSTRUCTION.replace("{options}", ", ".join(labels))
    asked = []
    for number, one in enumerate(_entries(_Sentence, _json(path), str(path)), start=1):
        if one.label not in labels:
            raise TaskError(
                f"{path}: the label of entry {number} is {one.label[:60]!r}, which is not in labels.json "
                f"({', '.join(labels)[:200]}); mend one of them"
            )
        query = Pair(one.sentence, one.label)
        bare = Prompt(text=QUERY.replace("{sentence}", one.sentence), answer=f" {one.label}", query=query)
        asked.append(_Asked(replace(bare, text=instruction + bare.text), bare))
    return asked


def _stage(path: Path, seed: int, parts: Sequence[Sequence[_Asked]]) -> Stage:
    """Test prompts as they came; what is asked there is neither validated nor trained on.

    In O-LoRA's folders dev and test are often one file. Where too few prompts are left to validate on, some
    training prompts are drawn for it.
    """
    train, validation, test = parts
    validation = _unlike(validation, test)
    if len(validation) < FEWEST:
        train, validation = _drawn_off(_unlike(train, test), seed)
    train = _unlike(train, [*validation, *test])
    dropped = len(parts[0]) - len(train)
    if dropped or len(validation) != len(parts[1]):
        warnings.warn(
            f"{path}: queries stand in more than one of the three files; {dropped} of {len(parts[0])} training prompts "
            f"were left out or validate, and {len(validation)} validate in place of {len(parts[1])}",
            TaskWarning,
            stacklevel=5,
        )
    name = path.resolve().name or str(path)
    for part, prompts in (("train", train), ("validation", validation), ("test", test)):
        if len(prompts) < FEWEST:
            raise TaskError(f"{path} has {len(prompts)} {part} prompts of its own and needs {FEWEST}; add some")
    return Stage(
        name=name,
        train=tuple(asked.prompt for asked in train),
        validation=tuple(asked.prompt for asked in validation),
        test=tuple(asked.prompt for asked in test),
        bare=tuple(asked.bare for asked in train),
    )


def _unlike(some: Iterable[_Asked], others: Iterable[_Asked]) -> list[_Asked]:
    queries = {asked.prompt.query.input for asked in others}
    return [asked for asked in some if asked.prompt.query.input not in queries]


def _drawn_off(train: Sequence[_Asked], seed: int) -> tuple[list[_Asked], list[_Asked]]:
    """Training prompts, and some of them to validate on, in the proportion of a task's split."""
    share = VALIDATION_SHARE / (TRAIN_SHARE + VALIDATION_SHARE)
    order = np.random.default_rng([seed, 0]).permutation(len(train)).tolist()
    cut = max(FEWEST, round(share * len(train)))
    return [train[i] for i in sorted(order[cut:])], [train[i] for i in sorted(order[:cut])]


def _entries(form: type[Entry], content: object, where: str) -> list[Entry]:
    if not isinstance(content, list) or not content:
        raise TaskError(f"{where} is no list of entries; write a JSON list with one object an entry")
    return [_checked(form, one, f"{where}, entry {number}") for number, one in enumerate(content, start=1)]


def _checked(form: type[Entry], content: object, where: str) -> Entry:
    try:
        return form.model_validate(content)
    except ValidationError as error:
        raise TaskError(f"{where}: {_first_complaint(error)}") from error


def _first_complaint(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    key = next((repr(part) for part in first["loc"] if isinstance(part, str)), "it")
    match first["type"]:
        case "missing":
            return f"{key} is missing; add it"
        case "model_type":
            return "it is no JSON object; write an object"
        case "too_short" | "string_too_short" | "string_pattern_mismatch":
            return f"{key} is empty; fill it in"
        case "string_unicode":
            return f"{key} has half a character in it (a lone surrogate); mend it"
        case _:
            return f"{key} is {_kind(first['input'])}, but should be text or a list of texts; write it so"


def _kind(content: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(content), "a number")


def _json(path: Path) -> object:
    try:
        if path.exists() and not path.is_file():  # A pipe would be waited for.
            raise TaskError(f"{path} is no file; give a JSON file there")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise TaskError(f"{path} has {size:,} bytes; a task file may have {MAX_FILE_BYTES:,} at most")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise TaskError(f"{path} cannot be read ({error.strerror}); {FORMATS}") from error
    except UnicodeDecodeError as error:
        raise TaskError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8 JSON") from error
    except RecursionError as error:
        raise TaskError(f"{path} is nested too deeply for a task file; it needs a flat list") from error
    except ValueError as error:  # Not JSON, or a number of thousands of digits.
        raise TaskError(f"{path} is not JSON: {error}; mend that place") from error
