"""Which entries of a file can be asked, and what becomes of the others?

An entry is an input with all of its right outputs. One that lacks either is left out, aloud and counted; a file is
refused only where nothing of it is left.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import NamedTuple, TypeVar

from ivlens.errors import TaskError, TaskWarning

LONGEST = 2**20
"""Characters of an input, an output, an instruction or a statement: each stands in many prompts."""

Given, Found = TypeVar("Given"), TypeVar("Found")


class _Sides(NamedTuple):
    input: str
    output: str
    """What prompts show, and what probabilities and greedy matches are of."""


class Pair(_Sides):
    """One fact of a task; the outputs have no leading space. It unpacks into input and output."""

    also: tuple[str, ...] = ()
    """Other outputs that are right, too, where there are several."""
    knowledge: str | None = None
    """What is right behind the statement where that is not the output, but a letter in front of it, say."""

    def __new__(cls, input: str, output: str, also: Sequence[str] = (), knowledge: str | None = None) -> Pair:
        pair = super().__new__(cls, input, output)
        pair.also, pair.knowledge = tuple(also), knowledge
        return pair

    @classmethod
    def of(cls, given: str, outputs: Sequence[str], knowledge: str | None = None) -> Pair:
        """An input and all of its right outputs."""
        return cls(given, outputs[0], outputs[1:], knowledge)

    @property
    def stated(self) -> Pair:
        """What the statement asks for."""
        return self if self.knowledge is None else Pair(self.input, self.knowledge)

    @property
    def outputs(self) -> tuple[str, ...]:
        """All right outputs, first the one that is shown."""
        return (self.output, *self.also)

    def __repr__(self) -> str:
        also = f", also={self.also!r}" if self.also else ""
        knowledge = "" if self.knowledge is None else f", knowledge={self.knowledge!r}"
        return f"Pair(input={self.input!r}, output={self.output!r}{also}{knowledge})"

    def __eq__(self, other: object) -> bool:
        beside = getattr(other, "also", ()), getattr(other, "knowledge", None)
        return tuple.__eq__(self, other) and (self.also, self.knowledge) == beside

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = _Sides.__hash__


def read_each(
    read: Callable[[Given, str], Found],
    given: Sequence[Given],
    where: str,
    *,
    unit: str = "entry",
    numbers: Sequence[int] | None = None,
) -> list[Found]:
    """What is read of each; what raises a TaskError is left out aloud.

    Args:
        read: Takes one and its place, such as "entry 3", with which its complaints begin.
        unit: What one is called: entry, line, row.
        numbers: Of each; counted from 1 unless given.

    Raises:
        TaskError: nothing is left.
    """
    found, complaints = [], []
    for number, one in zip(numbers or range(1, len(given) + 1), given, strict=True):
        try:
            found.append(read(one, f"{unit} {number}"))
        except TaskError as error:
            complaints.append(str(error))
    if complaints and not found:
        raise TaskError(f"{where}, {complaints[0]}")
    if complaints:
        shown = f"{complaints[0]}{' (the first of them)' if len(complaints) > 1 else ''}"
        say(f"{where}: {len(complaints)} of {len(given)} {_plural(unit)} are left out: {shown}")
    return found


def _plural(unit: str) -> str:
    return "entries" if unit == "entry" else f"{unit}s"


def say(sentence: str) -> None:
    warnings.warn(sentence, TaskWarning, stacklevel=3)


def texts_of(value: object, what: str) -> tuple[str, ...]:
    """A value as the texts that it stands for: itself, a number as it is written, all of a list.

    Args:
        what: The value, for complaints, such as "entry 3: 'output'".

    Raises:
        TaskError: it is nothing, or neither text nor number.
    """
    if isinstance(value, str):
        return (_checked(value.strip(), what),)
    if isinstance(value, Real) and not isinstance(value, bool) and value == value:
        return (str(value),)
    if value is None or isinstance(value, float) or (isinstance(value, list | tuple) and not value):
        raise TaskError(f"{what} is empty; fill it in")
    if isinstance(value, list | tuple) and not any(isinstance(one, list | tuple) for one in value):
        return tuple(dict.fromkeys(texts_of(one, what)[0] for one in value))
    came = json.dumps(value, ensure_ascii=False, default=str)
    came = came if len(came) <= 60 else f"{came[:57]}..."
    raise TaskError(f"{what} is {came}; write text, a number or a list of texts")


def _checked(text: str, what: str) -> str:
    if not text:
        raise TaskError(f"{what} is empty; fill it in")
    check_text(text, what)
    return text


def check_text(text: object, what: str, most: int = LONGEST) -> None:
    """Raise a TaskError for what is no text, longer than a text may be, or without meaning."""
    if not isinstance(text, str):
        raise TaskError(f"{what} is a {type(text).__name__}; write text")
    if len(text) > most:
        raise TaskError(f"{what} has {len(text):,} characters, and may have {most:,}; shorten it, or leave it out")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TaskError(f"{what} has half a character in it (a lone surrogate); mend it") from error


def check_pair(pair: object, where: str) -> None:
    """Raise a TaskError for what is no pair of texts."""
    if not isinstance(pair, Pair):
        raise TaskError(f"{where} has {str(pair)[:60]} for a pair; give ivlens.Task.from_pairs(pairs, name=...)")
    for text in (pair.input, *pair.outputs, pair.stated.output):
        check_text(text, f"a pair of {where}")
        if not text.strip():
            raise TaskError(f"{where} has the pair {pair} with an empty side; fill it in or drop it")


def merge(pairs: Iterable[Pair], where: str) -> list[Pair]:
    """Every input once, with all outputs that it is given anywhere.

    Which of them is right the file does not say: all of them are taken to be, aloud.
    """
    pairs, outputs = list(pairs), dict[str, dict[str, None]]()
    knowledge = {pair.input: pair.knowledge for pair in reversed(pairs) if pair.knowledge is not None}
    unlike: dict[str, None] = {}
    for pair in pairs:
        known = outputs.setdefault(pair.input, dict.fromkeys(pair.outputs))
        if known.keys() != set(pair.outputs):
            unlike[pair.input] = None
            known.update(dict.fromkeys(pair.outputs))
    if unlike:
        first = next(iter(unlike))
        say(
            f"{where}: {len(unlike)} of {len(outputs)} inputs are given several outputs, such as {first!r} "
            f"{list_names(outputs[first])}: all of them count as right, and the first is the one that prompts show and "
            "probabilities are of; drop those that are wrong"
        )
    return [Pair.of(given, list(right), knowledge.get(given)) for given, right in outputs.items()]


def list_names(names: Iterable[str], most: int = 5) -> str:
    """Names in quotes; of many the first, and how many there are more."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + rest
