"""What can the model still do, and what has it learned? Everything that a study measures after a stage.

The prompts are the same for all methods of a seed, so that they are compared on the same questions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
import torch

from ivlens.datasets.task import Task
from ivlens.errors import IvlensError, TaskError
from ivlens.patching import effects
from ivlens.patching.activations import score_answers
from ivlens.patching.settings import Settings
from ivlens.prompts.builders import few_shot, instructed, statements
from ivlens.prompts.choices import GREEDY_MATCH, Score
from ivlens.prompts.template import Prompt
from ivlens.prompts.tokens import Tokens, tokenize
from ivlens.random_streams import Stream, open_stream
from ivlens.replies.inquiry import score_replies
from ivlens.training.stages import Stage

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

COLUMNS = ("task", "kind", "measure", "heads", "value", "n")
Drawn = Literal["seed", "once"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured, and on how much."""

    queries: int = 16
    """Queries of every general task, zero-shot with its instruction and as a statement."""
    few_shot_queries: int = 8
    """Queries of every general task with demonstrations."""
    shots: int = 10
    probes: tuple[str, ...] = ()
    """General tasks whose dependence on the instruction vector is measured after every stage."""
    probe_prompts: int = 20
    """Prompts of every probe, and prompts that heads are patched on."""
    clean_prompts: int = 40
    """Prompts that a mean head output is the mean over."""
    top: int = 10
    """Universal heads."""
    scale: float | None = None
    """Factor of the vectors of universal heads, of probes and guidance alike; None: chosen with their layer."""
    seed: int = 0
    """Draws queries, probes and universal heads; the methods of a seed are compared on the same prompts."""
    drawn: Drawn = "seed"
    """Are they drawn for every seed of the study anew (it is added to `seed`), or once for all?"""
    score: Score = GREEDY_MATCH
    """What every accuracy is of: greedy match of the answer's tokens, or the reply that is written, scored."""

    def __post_init__(self) -> None:
        least = {"queries": 2, "few_shot_queries": 2, "shots": 1, "probe_prompts": 2, "clean_prompts": 1, "top": 1}
        for name, bound in {**least, "seed": 0}.items():
            if getattr(self, name) < bound:
                raise IvlensError(f"evaluation: {name} is {getattr(self, name)}; it must be {bound} or more")
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise IvlensError(f"evaluation: scale is {self.scale}; it must be above 0, or be left out")
        for name, choices in {"drawn": get_args(Drawn), "score": get_args(Score)}.items():
            if getattr(self, name) not in choices:
                raise IvlensError(f"evaluation: {name} is {getattr(self, name)!r}; choose of {', '.join(choices)}")

    def of(self, seed: int) -> Evaluation:
        """What the cells of one seed of the study are asked."""
        return self if self.drawn == "once" else replace(self, seed=self.seed + seed)


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Prompts of one form of many tasks, to be answered together."""

    kind: str
    """`sequence` or `general`."""
    accuracy: str
    """What the share of right answers is called."""
    probability: str | None
    """What the mean probability of the first answer token is called; None: not reported."""
    sizes: Mapping[str, int]
    """Prompts by task, in order; 0: the task has no such prompts."""
    tokens: Tokens | None
    prompts: tuple[Prompt, ...] = ()
    """The same as text."""
    score: Score = GREEDY_MATCH
    """What the accuracy is of."""

    def lines(self, model: HookedTransformer) -> Iterator[tuple[str, str, str, str, float, int]]:
        """`COLUMNS` of every task; NaN where it has no such prompts."""
        right, first = score_answers(model, self.tokens) if self.tokens else (torch.zeros(0).bool(), torch.zeros(0))
        if self.prompts and self.score != GREEDY_MATCH:
            right = score_replies(model, self.prompts, self.score)
        sizes = list(self.sizes.values())
        for task, own, probabilities in zip(self.sizes, right.split(sizes), first.split(sizes), strict=True):
            yield task, self.kind, self.accuracy, "", float(own.double().mean()), len(own)
            if self.probability is not None:
                yield task, self.kind, self.probability, "", float(probabilities.double().mean()), len(own)


@dataclass(frozen=True, kw_only=True)
class StageEvaluation:
    """Questions on general tasks and on the tasks of a sequence."""

    prompt_sets: tuple[PromptSet, ...]

    def __call__(self, model: HookedTransformer) -> pd.DataFrame:
        """One line a task and measure, `COLUMNS`."""
        return pd.DataFrame([line for one in self.prompt_sets for line in one.lines(model)], columns=list(COLUMNS))


def prepare_evaluation(
    model: HookedTransformer, stages: Sequence[Stage], tasks: Sequence[Task], evaluation: Evaluation
) -> StageEvaluation:
    """Draw and tokenize all prompts.

    Raises:
        TaskError: a general task without an instruction, or with too few pairs.
    """
    prompt_set = partial(_prompt_set, model, evaluation.score)
    general = {task.name: _general(task, evaluation) for task in tasks}
    few = {name: found[1] for name, found in general.items()}
    stated = {name: found[2] for name, found in general.items()}
    return StageEvaluation(
        prompt_sets=(
            prompt_set("sequence", "accuracy", "probability", {stage.name: stage.test for stage in stages}),
            prompt_set("sequence", "trained accuracy", None, {stage.name: stage.train for stage in stages}),
            prompt_set(
                "general",
                "instruction accuracy",
                "instruction probability",
                {name: found[0] for name, found in general.items()},
            ),
            prompt_set("general", "few-shot accuracy", None, few),
            prompt_set("general", "knowledge accuracy", "knowledge probability", stated),
        )
    )


def _prompt_set(
    model: HookedTransformer,
    score: Score,
    kind: str,
    accuracy: str,
    probability: str | None,
    asked: Mapping[str, Sequence[Prompt]],
) -> PromptSet:
    every = [prompt for prompts in asked.values() for prompt in prompts]
    return PromptSet(
        kind=kind,
        accuracy=accuracy,
        probability=probability,
        sizes={name: len(prompts) for name, prompts in asked.items()},
        tokens=tokenize(model, every) if every else None,
        prompts=tuple(every),
        score=score,
    )


def _general(task: Task, evaluation: Evaluation) -> tuple[list[Prompt], list[Prompt], list[Prompt]]:
    """A general task's instructed, few-shot and statement prompts; of the last none where it has no statement."""
    if len(task.pairs) <= evaluation.shots:
        raise TaskError(
            f"general task {task.name!r} has {len(task.pairs)} pairs, but {evaluation.shots} demonstrations and a "
            "query need more; add pairs or use fewer shots"
        )
    generator = open_stream(evaluation.seed, Stream.GENERAL_PROMPTS)
    order = [task.pairs[i] for i in generator.permutation(len(task.pairs))]
    queries = order[: evaluation.queries]
    few = few_shot(order[: evaluation.few_shot_queries], task.pairs, shots=evaluation.shots, generator=generator)
    return instructed(task, queries), few, statements(task, queries)


def measure_grid(model: HookedTransformer, settings: Settings, name: str, task: Task) -> pd.DataFrame:
    """The model's own AIE of every head, of its own mean head outputs: `task`, `layer`, `head`, `aie`."""
    z = effects.task_mean_z(model, task, settings)
    aie = effects.measure_effects(model, task, z, settings, model_digest="").aie.cpu().numpy()
    layers, heads = np.indices(aie.shape).reshape(2, -1)
    return pd.DataFrame({"task": name, "layer": layers, "head": heads, "aie": aie.reshape(-1)})
