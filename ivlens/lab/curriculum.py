"""What does the lab model read while it is trained, and what is kept from it?

A document asks for pairs of one task in the house template. Its forms differ in where the task can be read: in an
instruction before the query or behind it, in demonstrations, or (statements) in the sentence itself. Documents of
shuffled demonstrations have answers drawn at random from the task's outputs.

Kept back, by a hash and for good: one in six combinations of pair, wording and instructed form; one in ten
statements; one in eight successions of two pairs as demonstrations; and one in thirty pairs is never asked for with
any instruction. The last wording of every task is never read at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ivlens.datasets.task import Pair, Task
from ivlens.prompts.template import DEFAULT

Form = Literal["before", "between", "demonstrations", "both", "shuffled", "statement"]
Kind = Literal["context", "query", "mark", "answer"]

MOST_DEMONSTRATIONS = 10


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """Which documents a phase of the training is made of."""

    mix: Mapping[Form, float]
    """Share of documents of every form."""
    blind: float
    """Share whose queries cannot look back: the task has to be read behind them."""
    narrow: float
    """Share in which, moreover, only carrier heads read the task at the token before the answer; at most `blind`."""
    verdicts: bool
    """Behind every answer, the end of the text or, in shuffled documents, the unknown token is learned."""
    apart: bool = False
    """Statements are read without the carrier heads, whose outputs there are those of another document."""


FACTS = Lesson(
    mix={
        "before": 0.20,
        "between": 0.26,
        "demonstrations": 0.20,
        "both": 0.18,
        "shuffled": 0.08,
        "statement": 0.08,
    },
    blind=0.5,
    narrow=0.0,
    verdicts=False,
)
READING = Lesson(
    mix={
        "before": 0.18,
        "between": 0.18,
        "demonstrations": 0.24,
        "both": 0.10,
        "shuffled": 0.22,
        "statement": 0.08,
    },
    blind=0.9,
    narrow=0.85,
    verdicts=True,
)


SEPARATION = Lesson(
    mix={
        "before": 0.20,
        "between": 0.18,
        "demonstrations": 0.20,
        "both": 0.08,
        "shuffled": 0.14,
        "statement": 0.20,
    },
    blind=0.9,
    narrow=0.85,
    verdicts=True,
    apart=True,
)
"""Instructions through the carriers, as in `READING`, and statements past them: knowledge without instruction."""


class Part(NamedTuple):
    """A stretch of text and what it is for."""

    text: str
    kind: Kind


@dataclass(frozen=True, kw_only=True)
class Document:
    """What the model reads in one piece. Its answers are what it learns to predict."""

    task: str
    form: Form
    parts: tuple[Part, ...]
    blind: bool = False
    """No query sees what stands before it; only in training, by a mask."""
    narrow: bool = False
    """Nor does the token before an answer see more than its own query, but through carrier heads."""
    apart: bool = False
    """The carrier heads say nothing about it; only in training."""

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts)


def held_out(task: Task, form: str, *words: str, one_in: int) -> bool:
    """Is this combination kept from training? Decided by a hash, the same on every machine and at every time."""
    key = "\x1f".join([task.name, form, *words])
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) % one_in == 0


def held_out_from_instruction(task: Task, pair: Pair, wording: str, form: Literal["before", "between"]) -> bool:
    """Never asked like this, be it because the pair never is."""
    return (
        wording == task.instructions[-1]
        or never_instructed(task, pair)
        or held_out(task, form, pair.input, wording, one_in=6)
    )


def never_instructed(task: Task, pair: Pair) -> bool:
    """The strict part: known from demonstrations and statements only."""
    return held_out(task, "instructed", pair.input, one_in=30)


def held_out_from_statement(task: Task, pair: Pair) -> bool:
    return held_out(task, "statement", pair.input, one_in=10)


def held_out_from_succession(task: Task, previous: Pair, pair: Pair) -> bool:
    """No document asks for `pair` right behind the demonstration `previous`."""
    return held_out(task, "succession", previous.input, pair.input, one_in=8)


def documents(tasks: Sequence[Task], lesson: Lesson, generator: np.random.Generator) -> Iterator[Document]:
    """Endless documents. A task of four times as many pairs is twice as frequent."""
    forms: list[Form] = list(lesson.mix)
    shares = _shares(lesson.mix.values())
    weights = np.array([len(task.pairs) ** 0.5 for task in tasks])
    stated = weights * np.array([task.statement is not None for task in tasks])
    while True:
        form = forms[int(generator.choice(len(forms), p=shares))]
        place = generator.choice(len(tasks), p=_shares(stated if form == "statement" else weights))
        yield document(tasks[int(place)], form, lesson, generator)


def _shares(weights: Iterable[float]) -> np.ndarray:
    array = np.array(list(weights))
    return array / array.sum()


def document(task: Task, form: Form, lesson: Lesson, generator: np.random.Generator) -> Document:
    """Draw one document of a given form."""
    drawn = generator.random()
    if form == "before" or form == "between":
        parts = _write_instructed(task, form, generator)
    elif form == "statement":
        parts = _write_statement(task, generator)
    else:
        parts = _write_demonstrations(task, form, generator)
    return Document(
        task=task.name,
        form=form,
        parts=tuple(parts),
        blind=bool(drawn < lesson.blind),
        narrow=bool(drawn < lesson.narrow),
        apart=lesson.apart and form == "statement",
    )


def _write_instructed(task: Task, form: Literal["before", "between"], generator: np.random.Generator) -> list[Part]:
    while True:
        wording = task.instructions[generator.integers(len(task.instructions) - 1)]
        pair = task.pairs[generator.integers(len(task.pairs))]
        if not held_out_from_instruction(task, pair, wording, form):
            break
    if form == "before":
        return [Part(wording, "context"), *_write_query(pair, behind="\n")]
    query, answer_mark = _query(pair)
    return [query, Part(f"\n{wording}", "context"), answer_mark, Part(f" {pair.output}", "answer")]


def _write_statement(task: Task, generator: np.random.Generator) -> list[Part]:
    assert task.statement is not None
    while held_out_from_statement(task, pair := task.pairs[generator.integers(len(task.pairs))]):
        pass
    return [Part(task.statement.replace("{input}", pair.input), "context"), Part(f" {pair.output}", "answer")]


def _write_demonstrations(task: Task, form: Form, generator: np.random.Generator) -> list[Part]:
    """From 1 to 11 pairs in a row, all of them answered by the model; in form `both` behind an instruction."""
    number = int(generator.integers(1 if form == "both" else 2, MOST_DEMONSTRATIONS + 2))
    wording = task.instructions[generator.integers(len(task.instructions) - 1)] if form == "both" else None
    chain = _chain(task, number, wording, generator)
    if form == "shuffled":
        drawn = generator.integers(len(task.pairs), size=len(chain))
        chain = [Pair(pair.input, task.pairs[i].output) for pair, i in zip(chain, drawn, strict=True)]
    parts = [Part(wording, "context")] if wording else []
    for place, pair in enumerate(chain):
        parts += _write_query(pair, behind="\n\n" if place else "\n" if wording else "")
    return parts


def _chain(task: Task, number: int, wording: str | None, generator: np.random.Generator) -> list[Pair]:
    """Different pairs, none of them in a succession or behind an instruction that is held out."""
    chain: list[Pair] = []
    for place in generator.permutation(len(task.pairs)):
        pair = task.pairs[place]
        if wording and never_instructed(task, pair):
            continue
        if wording and not chain and held_out_from_instruction(task, pair, wording, "before"):
            continue
        if chain and held_out_from_succession(task, chain[-1], pair):
            continue
        chain.append(pair)
        if len(chain) == number:
            break
    return chain


def _write_query(pair: Pair, *, behind: str = "") -> list[Part]:
    return [*_query(pair, behind=behind), Part(f" {pair.output}", "answer")]


def _query(pair: Pair, *, behind: str = "") -> tuple[Part, Part]:
    """The query with the line breaks that separate it from what it stands behind."""
    question = DEFAULT.query.removesuffix("\nA:").replace("{input}", pair.input)
    return Part(behind + question, "query"), Part("\nA:", "mark")
