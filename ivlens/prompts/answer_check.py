"""Can a model's tokens say a task's answers, and tell them apart?"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from ivlens.datasets.task import Task, TaskWarning, list_names
from ivlens.errors import PromptError
from ivlens.prompts.template import Prompt
from ivlens.prompts.tokens import Tokens, tokenize

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

AMBIGUOUS = 0.1
"""Share of pairs above which it is said that first tokens do not tell answers apart."""
MOST_OUTPUTS = 10_000
"""Different outputs, the first in alphabetical order, whose first tokens are looked at."""


def check_answers(
    model: HookedTransformer, task: Task, prompts: Sequence[Prompt], tokens: Tokens, *, first_token: bool
) -> None:
    """Warn of answers without tokens of their own, spelled letter by letter, or that begin as others do.

    Args:
        tokens: Of the prompts, in their order.
        first_token: Whether effects are read off the first token of an answer, rather than off all.

    Raises:
        PromptError: the tokenizer has no tokens for any of them.
    """
    answers = [prompt.query.output for prompt in prompts]
    _refuse_unknown(model, task, answers, tokens)
    _warn_of_spelled(model, task, answers, tokens)
    if first_token:
        _warn_of_equal(model, task, prompts[0])


def _refuse_unknown(model: HookedTransformer, task: Task, answers: Sequence[str], tokens: Tokens) -> None:
    """Warn of answers that the tokenizer has no tokens for; raise a PromptError where it has them for none."""
    sign = getattr(model.tokenizer, "unk_token_id", None)
    unknown = [sign is not None and sign in row for row in tokens.answers.masked_fill(~tokens.answer_mask, -1).tolist()]
    lost = sorted({answer for answer, is_unknown in zip(answers, unknown, strict=True) if is_unknown})
    if not lost:
        return
    known = f"the tokenizer of {model.cfg.model_name} has no tokens for"
    if all(unknown):
        raise PromptError(f"{known} any answer of task {task.name!r} ({list_names(lost, 3)}); give a task in its words")
    warnings.warn(
        f"{known} {sum(unknown)} of {len(answers)} answers of task {task.name!r} ({list_names(lost, 3)}): on these the "
        "probability of an unknown token is measured; leave such pairs out",
        TaskWarning,
        stacklevel=4,
    )


def _warn_of_spelled(model: HookedTransformer, task: Task, answers: Sequence[str], tokens: Tokens) -> None:
    """Warn where most answers are taken letter by letter, as words are that a small vocabulary lacks."""
    lengths = tokens.answer_mask.sum(1).tolist()
    letters = ["".join(answer.split()) for answer in answers]
    spelled = {
        answer: length
        for answer, word, length in zip(answers, letters, lengths, strict=True)
        # Digits, and letters of other scripts, are tokens of their own in many vocabularies.
        if word.isascii() and word.isalpha() and length >= len(word) > 3
    }
    if 2 * sum(answer in spelled for answer in answers) <= len(answers):
        return
    answer, length = max(spelled.items(), key=lambda item: item[1])
    warnings.warn(
        f"the tokenizer of {model.cfg.model_name} spells most answers of task {task.name!r} letter by letter "
        f"({answer!r} in {length} tokens): it lacks these words, and the first token is a letter; measure with "
        "effect='nll', or give a task in its words",
        TaskWarning,
        stacklevel=4,
    )


def _warn_of_equal(model: HookedTransformer, task: Task, prompt: Prompt) -> None:
    """Say of which share of pairs the answer begins with the token that another answer begins with."""
    outputs = sorted({pair.output for pair in task.pairs})[:MOST_OUTPUTS]
    alike = _begin_alike(model, outputs, prompt)
    looked_at, shared = set(outputs), {output for group in alike for output in group}
    of = sum(pair.output in looked_at for pair in task.pairs)
    n = sum(pair.output in shared for pair in task.pairs)
    if n <= AMBIGUOUS * of:
        return
    warnings.warn(
        f"{n} of {of} pairs of task {task.name!r} ({n / of:.0%}) have an answer whose first token "
        f"begins other answers, too (such as {list_names(max(alike, key=len), 3)}): P(answer), which is of the first "
        "token, does not tell these apart; measure with effect='nll', which is of the whole answer",
        TaskWarning,
        stacklevel=5,
    )


def _begin_alike(model: HookedTransformer, outputs: Sequence[str], prompt: Prompt) -> list[list[str]]:
    """Groups of outputs of equal first tokens, as they stand behind the end of a prompt."""
    space = prompt.answer.partition(prompt.query.output)[0]
    # Where they meet is enough.
    asked = [replace(prompt, text=prompt.text[-20:], answer=f"{space}{output[:40]}") for output in outputs]
    groups = defaultdict(list)
    with suppress(PromptError):  # One of them has no token.
        for output, first in zip(outputs, tokenize(model, asked).answers[:, 0].tolist(), strict=True):
            groups[first].append(output)
    groups.pop(getattr(model.tokenizer, "unk_token_id", None), None)
    return [found for found in groups.values() if len(found) > 1]
