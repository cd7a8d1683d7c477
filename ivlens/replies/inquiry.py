"""What does the model answer to a prompt, and is it right?

Two measures, never mixed up: *greedy match*, which is teacher-forced (would greedy decoding write exactly the answer's
tokens?), and the *reply* that is generated and scored. Hooks on the model are in force: inside
`with steered(model, vector)` it is the steered model that is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ivlens.errors import PromptError, as_ivlens_error
from ivlens.measures import Interval, interval
from ivlens.models import loader
from ivlens.patching.activations import reply_in_batches, score_answers
from ivlens.patching.hooks import Hooks
from ivlens.prompts.builders import as_prompts
from ivlens.prompts.chat import Conversation
from ivlens.prompts.choices import GREEDY_MATCH, Score
from ivlens.prompts.template import Prompt
from ivlens.prompts.tokens import Tokens, tokenize
from ivlens.replies.endings import find_endings
from ivlens.replies.generation import NEW_TOKENS, write_replies
from ivlens.replies.scores import score_reply
from ivlens.tables import html_table, safe

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

SHOWN = 5
"""Replies that a notebook shows; all of them are in `to_frame`."""


@dataclass(frozen=True, kw_only=True)
class Replies:
    """What a model said to some prompts, and whether that is the answer.

    `said`, `right` and `first` are teacher-forced, so exact and cheap; `reply` is what the model writes by itself.

    >>> replies = ivlens.ask(model, ivlens.prompts.instructed(task, task.pairs[:20]))
    >>> replies
    Replies(20 prompts: accuracy 1.00 [0.84, 1.00], P(answer) 0.9...)
    >>> replies.said[:3], replies.right.shape
    (('small', 'big', 'cold'), torch.Size([20]))
    >>> replies.reply[:3]
    ('small', 'big', 'cold')
    """

    prompts: tuple[Prompt, ...]
    said: tuple[str, ...]
    """What greedy decoding writes, as far as the answer goes or up to the first wrong token."""
    right: Bool[Tensor, " prompt"]
    """Greedy match: did it say the whole answer?"""
    first: Float[Tensor, " prompt"]
    """Probability of the answer's first token, in [0, 1]."""
    reply: tuple[str, ...]
    """What the model writes, to the end of the line (of a conversation: of its turn) or of the tokens it may write."""

    @property
    def accuracy(self) -> Interval:
        """Share of prompts with a greedy match, in [0, 1], with Wilson's 95 % interval.

        >>> print(ivlens.ask(model, ivlens.prompts.instructed(task, task.pairs[:16])).accuracy.text(2))
        1.00 [0.81, 1.00]

        Raises:
            PromptError: some prompts have no answer, as of the other measures.
        """
        self._refuse_unanswered()
        return interval(self.right.double())

    @property
    def probability(self) -> Interval:
        """Mean probability of the answer's first token, with its 95 % interval over prompts.

        >>> print(ivlens.ask(model, ivlens.prompts.instructed(task, task.pairs[:8])).probability.text(1))
        1.0 [1.0, 1.0]
        """
        self._refuse_unanswered()
        return interval(self.first, torch.arange(len(self.first)), within=(0.0, 1.0))

    @property
    def usual_score(self) -> Score:
        """The score that fits the prompts: `contains` of a conversation, as chat models answer in sentences.

        >>> ivlens.ask(model, ivlens.prompts.zero_shot(task.pairs[:2])).usual_score
        'greedy-match'
        """
        return usual_score(self.prompts)

    def score(self, score: Score | None = None) -> Interval:
        """Mean score of the replies, in [0, 1], with its 95 % interval over prompts; of greedy match the accuracy.

        Args:
            score: `greedy-match`, or `exact`, `first-word`, `contains`, `f1` or `rouge-l` of the generated reply
                against the right answers; `usual_score` unless given.

        Raises:
            IvlensError: there is no such score.

        >>> print(ivlens.ask(model, ivlens.prompts.instructed(task, task.pairs[:16])).score("contains").text(2))
        1.00 [0.81, 1.00]
        """
        return interval(self.scores(score), within=(0.0, 1.0))

    def scores(self, score: Score | None = None) -> Float[Tensor, " prompt"]:
        """The same prompt by prompt, in float64.

        Raises:
            IvlensError: there is no such score.

        >>> ivlens.ask(model, ivlens.prompts.instructed(task, task.pairs[:2])).scores("f1")
        tensor([1., 1.], dtype=torch.float64)
        """
        self._refuse_unanswered()
        score = score or self.usual_score
        return self.right.double() if score == GREEDY_MATCH else _score_all(self.reply, self.prompts, score)

    def to_frame(self) -> pd.DataFrame:
        """One line a prompt: `query`, `answer`, `said`, `right`, `probability` (of the answer's first token), `reply`.

        `said` and `right` are of the greedy match, `reply` is what the model writes by itself.

        >>> ivlens.ask(model, ivlens.prompts.instructed(task, task.pairs[:2])).to_frame().round(1)
           query answer   said  right  probability  reply
        0    big  small  small   True          1.0  small
        1  small    big    big   True          1.0    big
        """
        return pd.DataFrame(
            {
                "query": [prompt.query.input for prompt in self.prompts],
                "answer": [prompt.answer.strip() for prompt in self.prompts],
                "said": list(self.said),
                "right": [
                    right if prompt.answer else None
                    for right, prompt in zip(self.right.tolist(), self.prompts, strict=True)
                ],
                "probability": self.first.tolist(),
                "reply": list(self.reply),
            }
        )

    @property
    def _unanswered(self) -> int:
        return sum(not prompt.answer for prompt in self.prompts)

    def _refuse_unanswered(self) -> None:
        if self._unanswered:
            raise PromptError(
                f"{self._unanswered} of {len(self.prompts)} prompts have no answer to score; give prompts that have, "
                "such as ivlens.prompts.zero_shot(pairs)"
            )

    def __repr__(self) -> str:
        if self._unanswered:
            return (
                f"Replies({self._unanswered} of {len(self.prompts)} prompts without an answer: {self.reply[:SHOWN]!r})"
            )
        right, first = (found.text(2) for found in (self.accuracy, self.probability))
        usual = self.usual_score
        found = f"accuracy {right}"
        if usual != GREEDY_MATCH:
            found = f"{usual} {self.score().text(2)}, {GREEDY_MATCH} {right}"
        return f"Replies({len(self.prompts)} prompts: {found}, P(answer) {first})"

    def _repr_html_(self) -> str:
        shown = self.to_frame().head(SHOWN)
        lines = [
            (*line[:3], "yes" if line[3] else "no", f"{line[4]:.3f}", line[5]) for line in shown.itertuples(index=False)
        ]
        return f"<p>{safe(repr(self))}</p>{html_table((*shown.columns[:4], 'P(answer)', 'reply'), lines)}"


@as_ivlens_error()
def ask(
    model: HookedTransformer | str | Path,
    prompts: str | Prompt | Sequence[str | Prompt],
    *,
    new_tokens: int = NEW_TOKENS,
) -> Replies:
    """Put prompts to a model: texts as they are, or prompts with answers, such as `ivlens.prompts.zero_shot(pairs)`.

    Args:
        model: Also by what `ivlens.load` takes: a name, a path.
        prompts: Of a text only the reply is known, whose `right` is False and `first` NaN.
        new_tokens: That the model may write as its reply to a prompt, which ends with the line, or, of a conversation,
            with the turn. More take longer.

    Raises:
        PromptError: no prompts, or one that the model cannot read.
        IvlensError: fewer than one new token.

    >>> ivlens.ask(model, ivlens.prompts.zero_shot(task.pairs[:20])).accuracy.mean
    0.05
    >>> ivlens.ask(model, "Q: big\\nA: small\\n\\nQ: hot\\nA:").reply
    ('cold',)
    """
    model, asked = loader.as_model(model), as_prompts(prompts)
    tokens = tokenize(model, asked, answered=False)
    found = list(reply_in_batches(model, tokens)) if all(one.answer for one in asked) else []
    return Replies(
        prompts=asked,
        said=tuple(text for part in found for text in _texts(model, part.best, part.batch)) or ("",) * len(asked),
        right=torch.cat([part.right for part in found]) if found else torch.zeros(len(asked), dtype=torch.bool),
        first=torch.cat([part.first for part in found]) if found else torch.full((len(asked),), torch.nan),
        reply=tuple(write_replies(model, tokens, find_endings(model, asked), new_tokens=new_tokens)),
    )


def usual_score(prompts: Sequence[Prompt]) -> Score:
    """`contains` of conversations, else greedy match."""
    return "contains" if any(isinstance(prompt, Conversation) for prompt in prompts) else GREEDY_MATCH


def measure_prompts(
    model: HookedTransformer, prompts: Sequence[Prompt], score: Score
) -> tuple[Float[Tensor, " prompt"], Float[Tensor, " prompt"]]:
    """How right the model is on each prompt, in float64, and the probability of the answer's first token."""
    tokens = tokenize(model, prompts)
    right, first = score_answers(model, tokens)
    return (right.double() if score == GREEDY_MATCH else score_replies(model, prompts, score)), first


def score_replies(
    model: HookedTransformer,
    prompts: Sequence[Prompt],
    score: Score,
    *,
    changes: Hooks = (),
    known: Sequence[Tensor] = (),
) -> Float[Tensor, " prompt"]:
    """How right the replies that the model generates are, in float64.

    Args:
        score: Any but greedy match, for which nothing need be generated.
        changes, known: In force at the last prompt token, as `write_replies` has them, and what they are made from.
    """
    tokens, endings = tokenize(model, prompts), find_endings(model, prompts)
    replies = write_replies(model, tokens, endings, changes=changes, known=known)
    return _score_all(replies, prompts, score)


def right_answers(prompt: Prompt) -> tuple[str, ...]:
    """Everything that is a right reply to a prompt."""
    return (prompt.answer.strip(), *prompt.query.also)


def _score_all(replies: Sequence[str], prompts: Sequence[Prompt], score: Score) -> Float[Tensor, " prompt"]:
    values = [score_reply(reply, right_answers(one), score) for reply, one in zip(replies, prompts, strict=True)]
    return torch.tensor(values, dtype=torch.float64)


def _texts(model: HookedTransformer, best: Tensor, tokens: Tokens) -> Iterator[str]:
    """Behind a wrong token the best ones are of the answer that it should have been: no reply goes on there."""
    for written, answer, mask in zip(best, tokens.answers, tokens.answer_mask, strict=True):
        wrong = ((written != answer) & mask).nonzero()
        end = int(wrong[0]) + 1 if len(wrong) else int(mask.sum())
        yield str(model.to_string(written[:end])).strip()
