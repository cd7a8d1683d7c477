"""What is trained on in one step of a sequence of tasks, and what is it measured on?"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ivlens.datasets.task import Pair, Task
from ivlens.errors import TaskError
from ivlens.prompts.builders import instructed, zero_shot
from ivlens.prompts.chat import Conversation, Layout
from ivlens.prompts.template import DEFAULT, Prompt
from ivlens.random_streams import Stream, open_stream

TRAIN_SHARE, VALIDATION_SHARE = 0.60, 0.15
"""Of a task's pairs; the rest is for the test."""
FEWEST = 2
"""Pairs in every part."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One task of a sequence: what is trained on and what it is measured on. The parts share no query."""

    name: str
    train: tuple[Prompt, ...]
    validation: tuple[Prompt, ...]
    """Hyperparameters may be chosen on these."""
    test: tuple[Prompt, ...]
    """Nothing is chosen on these."""
    bare: tuple[Prompt, ...]
    """The queries of `train` without the instruction, in the same order; `train` itself where the benchmark does not
    tell instruction and query apart."""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise TaskError("a stage needs a name; give it one")
        for part in ("train", "validation", "test"):
            if len(getattr(self, part)) < FEWEST:
                raise TaskError(
                    f"stage {self.name!r} has {len(getattr(self, part))} {part} prompts and needs {FEWEST}; add some"
                )
        queries = [{prompt.query.input for prompt in part} for part in (self.train, self.validation, self.test)]
        shared = (queries[0] & queries[1]) | (queries[0] & queries[2]) | (queries[1] & queries[2])
        if shared:
            raise TaskError(
                f"stage {self.name!r} asks {min(shared)[:60]!r} in two of train, validation and test; keep one"
            )
        if [prompt.query for prompt in self.bare] != [prompt.query for prompt in self.train]:
            raise TaskError(
                f"stage {self.name!r} has bare prompts of other queries than its train prompts; they go in pairs"
            )

    @classmethod
    def of_task(cls, task: Task, *, seed: int, template: Layout = DEFAULT) -> Stage:
        """Part a task's pairs at random and ask for them as the general tasks are asked for.

        Of the pairs 60 % are trained on, 15 % validate and 25 % test. Every part takes the wordings in turn.

        Raises:
            TaskError: too few pairs for two in every part, or no instruction.
        """
        train, validation, test = split(task, seed=seed)
        return cls(
            name=task.name,
            train=tuple(instructed(task, train, template=template)),
            validation=tuple(instructed(task, validation, template=template)),
            test=tuple(instructed(task, test, template=template)),
            bare=tuple(zero_shot(train, template=template)),
        )

    def with_demonstrations(self, shots: int, *, seed: int) -> list[Prompt]:
        """The bare prompts of `train`, each behind `shots` others with their answers, a blank line between.

        Raises:
            TaskError: fewer than `shots` other prompts, or prompts that are conversations.

        >>> learned.with_demonstrations(1, seed=0)[0].text.count("Q:")
        2
        """
        if len(self.bare) <= shots:
            raise TaskError(
                f"stage {self.name!r} has {len(self.bare)} training prompts, but {shots} demonstrations and a query "
                "need more; take fewer shots or more prompts"
            )
        if any(isinstance(prompt, Conversation) for prompt in self.bare):
            raise TaskError(f"the prompts of stage {self.name!r} are conversations, which cannot be joined")
        generator, found = open_stream(seed, Stream.GUIDE_DEMONSTRATIONS), []
        for number, prompt in enumerate(self.bare):
            drawn = generator.choice(len(self.bare) - 1, shots, replace=False)
            shown = [self.bare[i + (i >= number)] for i in drawn.tolist()]
            text = "".join(f"{one.text}{one.answer}\n\n" for one in shown)
            found.append(dataclasses.replace(prompt, text=text + prompt.text))
        return found

    @property
    def digest(self) -> str:
        """SHA-256 of everything in the stage."""
        content = json.dumps(dataclasses.asdict(self, dict_factory=_without_later_fields), ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(getattr(self, part))} {part}" for part in ("train", "validation", "test"))
        return f"Stage({self.name!r}, {sizes})"


def _without_later_fields(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """So that digests of before hold: the usual BOS is left out, and so are spans, which follow from the rest."""
    return {name: value for name, value in fields if (name, value) != ("bos", "auto") and name != "spans"}


def split(task: Task, *, seed: int) -> list[tuple[Pair, ...]]:
    """Pairs to train on, to validate on and to test on, in a random order and without overlap.

    Raises:
        TaskError: fewer than two pairs for one of the three.
    """
    total, fewest = len(task.pairs), 3 * FEWEST
    if total < fewest:
        raise TaskError(
            f"task {task.name!r} has {total} pairs, but a stage needs at least {fewest} "
            f"({FEWEST} each to train on, to validate and to test); add pairs"
        )
    if len({pair.input for pair in task.pairs}) < total:
        raise TaskError(f"task {task.name!r} has an input twice; a stage trains on no query that it tests, keep one")
    validation = max(FEWEST, round(VALIDATION_SHARE * total))
    train = min(max(FEWEST, round(TRAIN_SHARE * total)), total - validation - FEWEST)
    order = open_stream(seed, Stream.SPLIT_PAIRS).permutation(total)
    shuffled = [task.pairs[i] for i in order]
    return [tuple(shuffled[a:b]) for a, b in pairwise([0, train, train + validation, total])]


def check_sequence(stages: Sequence[Stage]) -> None:
    """See that stages can be learned one after the other.

    Raises:
        TaskError: there is no stage, or a task is named twice.
    """
    if not stages:
        raise TaskError("the sequence has no tasks; name at least one")
    names = [stage.name for stage in stages]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise TaskError(
            f"the sequence names {', '.join(map(repr, repeated))} more than once; forgetting is measured per task, so "
            "name each task once"
        )
