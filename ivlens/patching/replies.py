"""What does the model answer to a prompt, and is it right?

Hooks on the model are in force: inside `with steered(model, vector)` it is the steered model that is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ivlens.measures import Interval, interval
from ivlens.patching.activations import reply_in_batches
from ivlens.prompts.template import Prompt
from ivlens.prompts.tokens import Tokens, tokenize
from ivlens.tables import html_table, safe

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

SHOWN = 5
"""Replies that a notebook shows; all of them are in `to_frame`."""


@dataclass(frozen=True, kw_only=True)
class Replies:
    """What a model said to some prompts, and whether that is the answer; teacher-forced, so exact and cheap.

    >>> replies = ivlens.ask(model, ivlens.prompts.instructed(task, task.pairs[:20]))
    >>> replies
    Replies(20 prompts: accuracy 1.00 [0.84, 1.00], P(answer) 0.9...)
    >>> replies.said[:3], replies.right.shape
    (('small', 'big', 'cold'), torch.Size([20]))
    """

    prompts: tuple[Prompt, ...]
    said: tuple[str, ...]
    """What greedy decoding writes, as far as the answer goes or up to the first wrong token."""
    right: Bool[Tensor, " prompt"]
    """Did it say the whole answer?"""
    first: Float[Tensor, " prompt"]
    """Probability of the answer's first token, in [0, 1]."""

    @property
    def accuracy(self) -> Interval:
        """Share of right replies, in [0, 1], with Wilson's 95 % interval.

        >>> print(ivlens.ask(model, ivlens.prompts.instructed(task, task.pairs[:16])).accuracy.text(2))
        1.00 [0.81, 1.00]
        """
        return interval(self.right.double())

    @property
    def probability(self) -> Interval:
        """Mean probability of the answer's first token, with its 95 % interval over prompts.

        >>> print(ivlens.ask(model, ivlens.prompts.instructed(task, task.pairs[:8])).probability.text(1))
        1.0 [1.0, 1.0]
        """
        return interval(self.first, torch.arange(len(self.first)), within=(0.0, 1.0))

    def to_frame(self) -> pd.DataFrame:
        """One line a prompt: `query`, `answer`, `said`, `right`, `probability` (of the answer's first token).

        >>> ivlens.ask(model, ivlens.prompts.instructed(task, task.pairs[:2])).to_frame().round(1)
           query answer   said  right  probability
        0    big  small  small   True          1.0
        1  small    big    big   True          1.0
        """
        return pd.DataFrame(
            {
                "query": [prompt.query.input for prompt in self.prompts],
                "answer": [prompt.answer.strip() for prompt in self.prompts],
                "said": list(self.said),
                "right": self.right.tolist(),
                "probability": self.first.tolist(),
            }
        )

    def __repr__(self) -> str:
        right, first = (found.text(2) for found in (self.accuracy, self.probability))
        return f"Replies({len(self.prompts)} prompts: accuracy {right}, P(answer) {first})"

    def _repr_html_(self) -> str:
        shown = self.to_frame().head(SHOWN)
        lines = [(*line[:3], "yes" if line[3] else "no", f"{line[4]:.3f}") for line in shown.itertuples(index=False)]
        return f"<p>{safe(repr(self))}</p>{html_table((*shown.columns[:4], 'P(answer)'), lines)}"


def ask(model: HookedTransformer, prompts: Sequence[Prompt]) -> Replies:
    """Put prompts to a model, such as those of `ivlens.prompts.zero_shot(pairs)`.

    Raises:
        PromptError: no prompts, or one that the model cannot read.

    >>> ivlens.ask(model, ivlens.prompts.zero_shot(task.pairs[:20])).accuracy.mean
    0.05
    """
    found = list(reply_in_batches(model, tokenize(model, prompts)))
    return Replies(
        prompts=tuple(prompts),
        said=tuple(text for part in found for text in _texts(model, part.best, part.batch)),
        right=torch.cat([part.right for part in found]),
        first=torch.cat([part.first for part in found]),
    )


def _texts(model: HookedTransformer, best: Tensor, tokens: Tokens) -> Iterator[str]:
    """Behind a wrong token the best ones are of the answer that it should have been: no reply goes on there."""
    for written, answer, mask in zip(best, tokens.answers, tokens.answer_mask, strict=True):
        wrong = ((written != answer) & mask).nonzero()
        end = int(wrong[0]) + 1 if len(wrong) else int(mask.sum())
        yield str(model.to_string(written[:end])).strip()
