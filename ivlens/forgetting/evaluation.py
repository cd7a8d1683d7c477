"""What can the model still do, and what has it learned? Everything that a study measures after a stage.

The prompts are the same for all methods of a seed, so that they are compared on the same questions.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ivlens.analysis.wordings import part_wordings
from ivlens.datasets.task import Pair, Task
from ivlens.errors import IvlensError, TaskError
from ivlens.measures import interval
from ivlens.patching.activations import score_answers
from ivlens.patching.shared_beginnings import count_read, score_groups
from ivlens.prompts.builders import few_shot, instructed, statements
from ivlens.prompts.choices import GREEDY_MATCH, Score
from ivlens.prompts.template import DEFAULT, Prompt
from ivlens.prompts.tokens import Tokens, tokenize
from ivlens.random_streams import Stream, open_stream
from ivlens.replies.inquiry import score_replies
from ivlens.steering.verdict import most_frequent_share
from ivlens.training.stages import Stage

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

COLUMNS = ("task", "kind", "measure", "heads", "value", "n")
STATED = "knowledge accuracy"
"""Of what statements ask for."""
UNSEEN = "unseen wording accuracy"
"""With the instruction in the wordings that are kept back."""
Drawn = Literal["seed", "once"]
Shown = Literal["query", "task"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured, and on how much."""

    queries: int = 16
    """Queries of every general task, zero-shot with its instruction and as a statement."""
    few_shot_queries: int = 8
    """Queries of every general task with demonstrations."""
    shots: int = 10
    demonstrations: Shown = "query"
    """Are they drawn for every query, or once for all queries of a general task, which are then read in one pass?"""
    learned_queries: int | None = None
    """Of every task of the sequence, test prompts, and training prompts, that are asked, at most; None: all."""
    able_only: bool = False
    """Is a general task asked only for what the base model can do? Where its accuracy on other queries of the task is
    not clear of the most frequent answer's share, there is nothing to forget: it is not measured, rather than 0."""
    kept_back: int = 0
    """Of every general task's wordings, the last ones that guides do not see: their heads and vectors are then of
    prompts with the instruction in the others, and queries are asked both in those and, beside, in these."""
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
        for name, bound in {**least, "seed": 0, "kept_back": 0}.items():
            if getattr(self, name) < bound:
                raise IvlensError(f"evaluation: {name} is {getattr(self, name)}; it must be {bound} or more")
        if self.learned_queries is not None and self.learned_queries < 1:
            raise IvlensError(
                f"evaluation: learned_queries is {self.learned_queries}; it must be 1 or more, or be left out"
            )
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise IvlensError(f"evaluation: scale is {self.scale}; it must be above 0, or be left out")
        choice = {"drawn": get_args(Drawn), "demonstrations": get_args(Shown), "score": get_args(Score)}
        for name, choices in choice.items():
            if getattr(self, name) not in choices:
                raise IvlensError(f"evaluation: {name} is {getattr(self, name)!r}; choose of {', '.join(choices)}")

    def record(self) -> dict[str, Any]:
        """Plain values; what runs of before could not be asked for only where it was."""
        later = ("able_only", "demonstrations", "learned_queries", "kept_back")
        defaults = {one.name: one.default for one in fields(self) if one.name in later}
        return {name: value for name, value in asdict(self).items() if (name, value) not in defaults.items()}

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
    begin_alike: bool = False
    """Do all prompts of a task begin alike, so that this is read once?"""

    def lines(self, model: HookedTransformer) -> Iterator[tuple[str, str, str, str, float, int]]:
        """`COLUMNS` of every task; NaN where it has no such prompts."""
        for task, own, probabilities in self.scores(model):
            yield task, self.kind, self.accuracy, "", float(own.double().mean()), len(own)
            if self.probability is not None:
                yield task, self.kind, self.probability, "", float(probabilities.double().mean()), len(own)

    def scores(self, model: HookedTransformer) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Of every task, how right its prompts are answered and how probable the answers' first tokens are."""
        right, first, sizes = torch.zeros(0).bool(), torch.zeros(0), list(self.sizes.values())
        if self.tokens is not None:
            asked = partial(score_groups, sizes=sizes) if self.begin_alike else score_answers
            right, first = asked(model, self.tokens)
        if self.prompts and self.score != GREEDY_MATCH:
            right = score_replies(model, self.prompts, self.score)
        yield from zip(self.sizes, right.split(sizes), first.split(sizes), strict=True)

    @property
    def n_read(self) -> int:
        """Tokens that are read to score it, pads aside."""
        if self.tokens is None:
            return 0
        return count_read(self.tokens, [*self.sizes.values()]) if self.begin_alike else int(self.tokens.mask.sum())

    @property
    def n_mean(self) -> float:
        """Tokens of a prompt, on average."""
        return float(self.tokens.mask.sum()) / len(self.tokens) if self.tokens is not None else 0.0

    def of_tasks(self, kept: Collection[str]) -> PromptSet:
        """The same without the prompts of other tasks."""
        rows = [task in kept for task, size in self.sizes.items() for _ in range(size)]
        numbers = [number for number, is_kept in enumerate(rows) if is_kept]
        return replace(
            self,
            sizes={task: size if task in kept else 0 for task, size in self.sizes.items()},
            tokens=None if self.tokens is None or not numbers else self.tokens[torch.tensor(numbers)],
            prompts=tuple(self.prompts[number] for number in numbers),
        )


@dataclass(frozen=True, kw_only=True)
class StageEvaluation:
    """Questions on general tasks and on the tasks of a sequence."""

    prompt_sets: tuple[PromptSet, ...]

    def __call__(self, model: HookedTransformer) -> pd.DataFrame:
        """One line a task and measure, `COLUMNS`."""
        return pd.DataFrame([line for one in self.prompt_sets for line in one.lines(model)], columns=list(COLUMNS))

    def of_able(self, able: Mapping[str, Collection[str]] | None) -> StageEvaluation:
        """The same without what the base model cannot do.

        Args:
            able: The general tasks that it can do, by what their accuracy is called; None: all.
        """
        if able is None:
            return self
        sets = (one if one.kind != "general" else one.of_tasks(able[one.accuracy]) for one in self.prompt_sets)
        return StageEvaluation(prompt_sets=tuple(sets))


def prepare_evaluation(
    model: HookedTransformer, stages: Sequence[Stage], tasks: Sequence[Task], evaluation: Evaluation
) -> StageEvaluation:
    """Draw and tokenize all prompts.

    Raises:
        TaskError: a general task without an instruction, or with too few pairs.
    """
    prompt_set = partial(_prompt_set, model, evaluation.score)
    most = evaluation.learned_queries
    test, trained = ({stage.name: getattr(stage, part)[:most] for stage in stages} for part in ("test", "train"))
    return StageEvaluation(
        prompt_sets=(
            prompt_set("sequence", "accuracy", "probability", test),
            prompt_set("sequence", "trained accuracy", None, trained),
            *_general_sets(model, tasks, evaluation, first=0),
        )
    )


def find_able(model: HookedTransformer, tasks: Sequence[Task], evaluation: Evaluation) -> dict[str, set[str]] | None:
    """The general tasks that the base model can do, by what the accuracy is called; None where nobody asks.

    It can where Wilson's interval, over queries that are not reported, is above the most frequent answer's share.
    """
    if not evaluation.able_only:
        return None
    others = _general_sets(model, tasks, evaluation, first=max(evaluation.queries, evaluation.few_shot_queries))
    named, found = {task.name: task for task in tasks}, {one.accuracy: one.scores(model) for one in others}
    return {
        form: {name for name, right, _ in scored if interval(right.double()).low > _share(named[name], form)}
        for form, scored in found.items()
    }


def _share(task: Task, form: str) -> float:
    """Of the most frequent answer to prompts of that form."""
    return most_frequent_share((pair.stated if form == STATED else pair).output for pair in task.pairs)


def _general_sets(
    model: HookedTransformer, tasks: Sequence[Task], evaluation: Evaluation, *, first: int
) -> tuple[PromptSet, ...]:
    """Instructed, few-shot and statement prompts of general tasks, from that query of each one's random order on."""
    prompt_set = partial(_prompt_set, model, evaluation.score, "general")
    drawn = {task.name: _general(task, evaluation, first) for task in tasks}
    asked, few, stated, unseen = ({name: found[form] for name, found in drawn.items()} for form in range(4))
    return (
        prompt_set("instruction accuracy", "instruction probability", asked),
        replace(prompt_set("few-shot accuracy", None, few), begin_alike=evaluation.demonstrations == "task"),
        prompt_set(STATED, "knowledge probability", stated),
        *([prompt_set(UNSEEN, None, unseen)] if evaluation.kept_back else []),
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


def _general(task: Task, evaluation: Evaluation, first: int) -> tuple[list[Prompt], ...]:
    """A general task's instructed, few-shot and statement prompts, and those in wordings that are kept back, if any.

    A task of too few pairs is asked some of those before the `first` again.
    """
    if len(task.pairs) <= evaluation.shots:
        raise TaskError(
            f"general task {task.name!r} has {len(task.pairs)} pairs, but {evaluation.shots} demonstrations and a "
            "query need more; add pairs or use fewer shots"
        )
    generator = open_stream(evaluation.seed, Stream.GENERAL_PROMPTS)
    order = [task.pairs[i] for i in generator.permutation(len(task.pairs))]
    order = [*order[first:], *order[:first]]
    queries, kept_back = order[: evaluation.queries], evaluation.kept_back
    seen, unseen = part_wordings(task, kept_back)
    few = _few_shot(task, order, evaluation, generator)
    return instructed(seen, queries), few, statements(task, queries), instructed(unseen, queries) if kept_back else []


def _few_shot(
    task: Task, order: Sequence[Pair], evaluation: Evaluation, generator: np.random.Generator
) -> list[Prompt]:
    asked, shots = order[: evaluation.few_shot_queries], evaluation.shots
    if evaluation.demonstrations == "query":
        return few_shot(asked, task.pairs, shots=shots, generator=generator)
    others = [pair for pair in task.pairs if pair not in asked]
    if len(others) < shots:
        raise TaskError(
            f"general task {task.name!r} has {len(task.pairs)} pairs, but {shots} demonstrations for all of "
            f"{len(asked)} queries need {len(asked) + shots}; add pairs, or use fewer shots or queries"
        )
    shown = [others[i] for i in generator.choice(len(others), shots, replace=False)]
    return [DEFAULT.render(pair, demonstrations=shown) for pair in asked]
