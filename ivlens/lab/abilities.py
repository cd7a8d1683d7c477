"""What can the lab model do on prompts that it was not trained on?

Every prompt is one that `curriculum` keeps back: its combination of pair, wording and form, or of last demonstration
and query, is in no document. The exception is the prompt with neither instruction nor demonstrations: documents of
demonstrations begin like that, and it measures what the query alone gives away.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ivlens.datasets.task import Pair, Task
from ivlens.lab.curriculum import (
    held_out_from_instruction,
    held_out_from_statement,
    held_out_from_succession,
    never_instructed,
)
from ivlens.measures import Interval, interval
from ivlens.patching import activations
from ivlens.prompts.builders import shuffle_outputs, statements, zero_shot
from ivlens.prompts.template import DEFAULT, Prompt, Template
from ivlens.prompts.tokens import tokenize
from ivlens.random_streams import Stream, open_stream

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

MOST_PROMPTS = 100
"""Prompts a task and ability; fewer where fewer are held out."""
SHOTS = 10


class Answered(NamedTuple):
    """What a model made of prompts."""

    right: Bool[Tensor, " prompt"]
    """Greedy decoding writes the whole answer."""
    probability: Float[Tensor, " prompt"]
    """Of the answer's first token."""
    queries: Int[Tensor, " prompt"]
    """Prompts of one number ask the same query."""

    def accuracy(self) -> Interval:
        return interval(self.right.double(), self._groups(), within=(0.0, 1.0))

    def mean_probability(self) -> Interval:
        return interval(self.probability, self._groups(), within=(0.0, 1.0))

    def _groups(self) -> Tensor | None:
        return None if len(self.queries.unique()) == len(self.queries) else self.queries


def answer_all(model: HookedTransformer, prompts: Sequence[Prompt]) -> Answered:
    """Ask all prompts, teacher-forced."""
    numbers = {query: number for number, query in enumerate(dict.fromkeys(prompt.query for prompt in prompts))}
    queries = torch.tensor([numbers[prompt.query] for prompt in prompts])
    return Answered(*activations.score_answers(model, tokenize(model, prompts)), queries)


def abilities(task: Task, *, seed: int) -> dict[str, list[Prompt]]:
    """Prompts of every ability; an empty list where a task has none."""
    draw = open_stream(seed, Stream.LAB_QUERIES)
    clean, shuffled = ten_shot(task, open_stream(seed, Stream.LAB_DEMONSTRATIONS))
    unstated = [pair for pair in task.pairs if held_out_from_statement(task, pair)]
    return {
        "instructed": _some(instructed(task), draw),
        "instructed-between": _some(instructed_between(task), draw),
        "unseen-wording": _some(unseen_wording(task), draw),
        "never-instructed": _some(strictly_instructed(task), draw),
        "ten-shot": clean,
        "shuffled": shuffled,
        "neither": _some(zero_shot(task.pairs), draw),
        "statement": _some(statements(task, unstated), draw),
    }


def _some(prompts: Sequence[Prompt], generator: np.random.Generator) -> list[Prompt]:
    chosen = generator.permutation(len(prompts))[:MOST_PROMPTS]
    return [prompts[i] for i in sorted(chosen)]


def instructed(task: Task) -> list[Prompt]:
    """Wordings of the training in combinations that it lacks."""
    return [
        DEFAULT.render(pair, instruction=wording)
        for pair, wording in _combinations(task)
        if held_out_from_instruction(task, pair, wording, "before")
    ]


def instructed_between(task: Task) -> list[Prompt]:
    return [
        Template(query=f"Q: {{input}}\n{wording}\nA:").render(pair)
        for pair, wording in _combinations(task)
        if held_out_from_instruction(task, pair, wording, "between")
    ]


def _combinations(task: Task) -> list[tuple[Pair, str]]:
    pairs = [pair for pair in task.pairs if not never_instructed(task, pair)]
    return list(itertools.product(pairs, task.instructions[:-1]))


def unseen_wording(task: Task) -> list[Prompt]:
    """The wording that no document contains."""
    return [DEFAULT.render(pair, instruction=task.instructions[-1]) for pair in task.pairs]


def strictly_instructed(task: Task) -> list[Prompt]:
    """Pairs that no document asks for with an instruction, whatever its wording."""
    pairs = [pair for pair in task.pairs if never_instructed(task, pair)]
    return [DEFAULT.render(pair, instruction=wording) for pair in pairs for wording in task.instructions[:-1]]


def ten_shot(task: Task, generator: np.random.Generator) -> tuple[list[Prompt], list[Prompt]]:
    """Demonstrations whose last one no document puts before the query; and the same with outputs permuted."""
    clean, shuffled = [], []
    while len(clean) < MOST_PROMPTS:
        query = task.pairs[generator.integers(len(task.pairs))]
        others = [pair for pair in task.pairs if pair != query]
        order = generator.permutation(len(others))
        last = next((others[i] for i in order if held_out_from_succession(task, others[i], query)), None)
        if last is None:
            continue
        others.remove(last)
        shown = [others[i] for i in generator.choice(len(others), SHOTS - 1, replace=False)] + [last]
        clean.append(DEFAULT.render(query, demonstrations=shown))
        shuffled.append(DEFAULT.render(query, demonstrations=shuffle_outputs(shown, generator)))
    return clean, shuffled
