"""What can the model still do, and what has it learned? Everything that a study measures after a stage.

The prompts are drawn once, the same for every cell of a study, so that methods are compared on the same questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ivlens.activations import answer_logits, batches
from ivlens.errors import TaskError
from ivlens.measures import first_token_probability, greedy_match
from ivlens.plan import Evaluation
from ivlens.prompts import Tokens, few_shot, instructed, statements, tokenize
from ivlens.stages import Stage
from ivlens.tasks import Task

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

COLUMNS = ("task", "kind", "measure", "heads", "value", "n")


@dataclass(frozen=True, kw_only=True)
class General:
    """Prompts of one general task."""

    instructed: Tokens
    few_shot: Tokens
    statement: Tokens | None
    """None where the task has no statement: not measured."""


def general(model: HookedTransformer, task: Task, evaluation: Evaluation) -> General:
    """Draw a general task's prompts.

    Raises:
        TaskError: no instruction, or too few pairs.
    """
    if len(task.pairs) <= evaluation.shots:
        raise TaskError(
            f"general task {task.name!r} has {len(task.pairs)} pairs, but {evaluation.shots} demonstrations and a "
            "query need more; add pairs or use fewer shots"
        )
    generator = np.random.default_rng([evaluation.seed, 11])
    order = [task.pairs[i] for i in generator.permutation(len(task.pairs))]
    queries = order[: evaluation.queries]
    few = few_shot(order[: evaluation.few_shot_queries], task.pairs, shots=evaluation.shots, generator=generator)
    stated = statements(task, queries)
    return General(
        instructed=tokenize(model, instructed(task, queries)),
        few_shot=tokenize(model, few),
        statement=tokenize(model, stated) if stated else None,
    )


@dataclass(frozen=True, kw_only=True)
class Examination:
    """Questions on general tasks and on the tasks of a sequence."""

    general: Mapping[str, General]
    trained: Mapping[str, Tokens]
    """Training prompts by stage."""
    test: Mapping[str, Tokens]

    def __call__(self, model: HookedTransformer) -> pd.DataFrame:
        """One line a task and measure, `COLUMNS`; NaN where a task has no such prompts."""
        return pd.DataFrame(list(self._lines(model)), columns=list(COLUMNS))

    def _lines(self, model: HookedTransformer) -> Iterator[dict[str, Any]]:
        for name, prompts in self.test.items():
            yield from _measured(model, prompts, name, "sequence", "accuracy", "probability")
        for name, prompts in self.trained.items():
            yield from _measured(model, prompts, name, "sequence", "trained accuracy")
        for name, one in self.general.items():
            yield from _measured(
                model, one.instructed, name, "general", "instruction accuracy", "instruction probability"
            )
            yield from _measured(model, one.few_shot, name, "general", "few-shot accuracy")
            yield from _measured(model, one.statement, name, "general", "knowledge accuracy", "knowledge probability")


def examination(
    model: HookedTransformer, stages: Sequence[Stage], tasks: Sequence[Task], evaluation: Evaluation
) -> Examination:
    """Draw and tokenize all prompts."""
    return Examination(
        general={task.name: general(model, task, evaluation) for task in tasks},
        trained={stage.name: tokenize(model, stage.train) for stage in stages},
        test={stage.name: tokenize(model, stage.test) for stage in stages},
    )


def answered(model: HookedTransformer, tokens: Tokens) -> tuple[Bool[Tensor, " prompt"], Float[Tensor, " prompt"]]:
    """Is each answer what greedy decoding writes, and how probable is its first token?"""
    right, first = [], []
    for batch in batches(tokens):
        logits = answer_logits(model, batch)
        right.append(greedy_match(logits, batch.answers, batch.answer_mask))
        first.append(first_token_probability(logits, batch.answers))
    return torch.cat(right).cpu(), torch.cat(first).cpu()


def _measured(
    model: HookedTransformer, tokens: Tokens | None, task: str, kind: str, accuracy: str, probability: str | None = None
) -> Iterator[dict[str, Any]]:
    line = {"task": task, "kind": kind, "heads": ""}
    values = {accuracy: float("nan")} | ({probability: float("nan")} if probability else {})
    if tokens is not None:
        right, first = answered(model, tokens)
        values[accuracy] = float(right.double().mean())
        if probability:
            values[probability] = float(first.double().mean())
    for measure, value in values.items():
        yield {**line, "measure": measure, "value": value, "n": 0 if tokens is None else len(tokens)}
