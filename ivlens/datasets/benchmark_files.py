"""Which questions does a file of a published benchmark ask?

Read as they are: TRACE (Wang et al. 2023, arXiv:2310.06762), O-LoRA's folders (Wang et al. 2023, arXiv:2310.14152) and
Super-NaturalInstructions (Wang et al. 2022, arXiv:2204.07705).
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from ivlens.datasets.entries import Pair, read_each, say
from ivlens.errors import TaskError
from ivlens.storage.json_files import check_object, read_given_json

FORMATS = (
    "a TRACE folder has train.json, eval.json and test.json of prompt and answer, an O-LoRA folder train.json, "
    "dev.json, test.json of sentence and label and labels.json"
)
OPTIONS = "Answer with one of these options: {options}."
"""The instruction of an O-LoRA task."""

FormOfEntry = TypeVar("FormOfEntry", bound=BaseModel)


class Question(BaseModel):
    """An entry of TRACE. Where the instruction ends, the format does not tell."""

    model_config = ConfigDict(extra="ignore", strict=True)

    prompt: str = Field(min_length=1, pattern=r"\S")
    answer: str = Field(min_length=1, pattern=r"\S")


class Sentence(BaseModel):
    """An entry of O-LoRA."""

    model_config = ConfigDict(extra="ignore", strict=True, str_strip_whitespace=True)

    sentence: str = Field(min_length=1)
    label: str = Field(min_length=1)


class _Labels(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, str_strip_whitespace=True)

    labels: list[str] = Field(min_length=1)


class _Instance(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, str_strip_whitespace=True)

    input: str = Field(min_length=1)
    output: list[str] | str = Field(min_length=1)


class _Instructions(BaseModel):
    """A Super-NaturalInstructions file but for its instances. It documents many more keys than are needed here."""

    model_config = ConfigDict(extra="ignore", strict=True, str_strip_whitespace=True)

    Definition: list[str] | str = Field(min_length=1)
    Instances: list[Any] = Field(min_length=1)


def kind(content: object) -> str | None:
    """`trace`, `o-lora` or `instructions` by the keys that these have; None for anything else."""
    if isinstance(content, dict) and content.keys() & {"Definition", "Instances"}:
        return "instructions"
    head = content[0] if isinstance(content, list) and content else None
    keys = head.keys() if isinstance(head, dict) else frozenset()
    if {"prompt", "answer"} == keys:
        return "trace"
    return "o-lora" if {"sentence", "label"} == keys else None


def questions(path: Path) -> list[Question]:
    """The entries of one file of TRACE.

    Raises:
        TaskError: it cannot be read, or is of another form.
    """
    return _entries(Question, read_given_json(path, wanted=FORMATS), str(path))


def _entries(
    form: type[FormOfEntry],
    content: object,
    where: str,
    check: Callable[[FormOfEntry, str], None] = lambda one, place: None,
) -> list[FormOfEntry]:
    """Entries of one form.

    Args:
        check: Raises TaskErrors of its own, of an entry and its place.
    """
    if not isinstance(content, list) or not content:
        raise TaskError(f"{where} is no list of entries; write a JSON list with one object an entry")

    def read(entry: object, place: str) -> FormOfEntry:
        found = check_object(form, entry, place)
        check(found, place)
        return found

    return read_each(read, content, where)


def labels(path: Path) -> list[str]:
    """What O-LoRA's `labels.json` lists."""
    return check_object(_Labels, {"labels": read_given_json(path, wanted=FORMATS)}, str(path)).labels


def sentences(path: Path, labels: Sequence[str]) -> list[Sentence]:
    """The entries of one file of O-LoRA; those whose label is not listed, such as MNLI's "-", are left out aloud.

    Raises:
        TaskError: it cannot be read, or is of another form.
    """
    known = set(labels)

    def check(one: Sentence, place: str) -> None:
        if one.label not in known:
            raise TaskError(
                f"{place}: 'label' is {one.label[:60]!r}, which is not in labels.json ({', '.join(labels)[:200]}); "
                "mend one of them"
            )

    return _entries(Sentence, read_given_json(path, wanted=FORMATS), str(path), check)


def options(labels: Sequence[str]) -> str:
    """The instruction that asks for one of these labels."""
    return OPTIONS.replace("{options}", ", ".join(labels))


def trace(path: Path) -> tuple[list[Pair], str]:
    """Queries and answers of a file of TRACE, and the instruction, "" where there is none.

    What all prompts begin with, up to the last line break in it, is the instruction; what follows is the query.
    """
    found = questions(path)
    prompts = [one.prompt for one in found]
    shared = os.path.commonprefix(prompts).rpartition("\n")[0]  # noqa: RUF071 (of text, not of paths)
    start = len(shared) + 1 if shared.strip() else 0
    if not all(prompt[start:].strip() for prompt in prompts):
        start = 0
    return [Pair(one.prompt[start:], one.answer.strip()) for one in found], shared if start else ""


def o_lora(path: Path) -> tuple[list[Pair], str]:
    """Sentences and labels of a file of O-LoRA, and the instruction; `labels.json` lies beside it.

    Labels exclude each other: sentences that are given two are left out aloud.
    """
    known = labels(path.parent / "labels.json")
    given = defaultdict(set)
    found = sentences(path, known)
    for one in found:
        given[one.sentence].add(one.label)
    unlike = [sentence for sentence, those in given.items() if len(those) > 1]
    if unlike:
        say(f"{path}: {len(unlike)} of {len(given)} sentences have two labels and are left out: {unlike[0][:60]!r}")
    return [Pair(one.sentence, one.label) for one in found if len(given[one.sentence]) == 1], options(known)


def natural_instructions(content: object, path: Path) -> tuple[list[Pair], str]:
    """Inputs with all of their outputs, and the definition of a Super-NaturalInstructions file."""
    head = check_object(_Instructions, content, str(path))
    # An input may stand there several times, with one of its right answers each.
    answers: dict[str, dict[str, None]] = defaultdict(dict)
    for one in _entries(_Instance, head.Instances, f"{path}: 'Instances'"):
        answers[one.input].update(dict.fromkeys([one.output] if isinstance(one.output, str) else one.output))
    wording = head.Definition if isinstance(head.Definition, str) else " ".join(head.Definition)
    return [Pair.of(given, list(outputs)) for given, outputs in answers.items()], wording
