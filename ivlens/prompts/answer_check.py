"""Can a model's tokens say a task's answers, and tell them apart?"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ivlens.datasets.task import Task, TaskWarning, list_names
from ivlens.errors import PromptError
from ivlens.prompts.tokens import Tokens

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


def check_answers(model: HookedTransformer, task: Task, answers: Sequence[str], tokens: Tokens) -> None:
    """Warn of answers without tokens of their own, spelled letter by letter, or all of the same first token.

    Args:
        answers: Of the prompts of `tokens`, in their order.

    Raises:
        PromptError: the tokenizer has no tokens for any of them.
    """
    _refuse_unknown(model, task, answers, tokens)
    _warn_of_spelled(model, task, answers, tokens)
    _warn_of_equal(task, tokens)


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


def _warn_of_equal(task: Task, tokens: Tokens) -> None:
    outputs = sorted({pair.output for pair in task.pairs})
    if len(outputs) > 1 and len(tokens) > 1 and len(tokens.answers[:, 0].unique()) == 1:
        shown = ", ".join(map(repr, outputs[:3]))
        warnings.warn(
            f"the answers of task {task.name!r} ({shown}, ...) all begin with the same token: the probability of the "
            "first token cannot tell them apart; measure with effect='nll'",
            TaskWarning,
            stacklevel=4,
        )
