"""How right is what a steered model writes?

Layers and scales are chosen by greedy match, which costs one pass for all of them. At the places that were chosen the
model writes its replies, and these are scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.measures import interval
from ivlens.patching.hooks import add_to_residual
from ivlens.prompts.choices import GREEDY_MATCH, Score
from ivlens.prompts.template import Prompt
from ivlens.replies.inquiry import score_replies
from ivlens.steering.trials import FEW_DRAWS, SHARE, Trials

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


def replace_accuracy(
    model: HookedTransformer, steered: pd.DataFrame, tried: Trials, prompts: Sequence[Prompt], score: Score
) -> pd.DataFrame:
    """The lines of `Trials.by_number` with accuracies of the replies that are written under each vector at its place.

    Of every control the first draws are tried, five at most: each is a reply to every prompt.
    """
    lines = []
    for line in steered.to_dict("records"):
        numbers = [
            number
            for number, candidate in enumerate(tried.candidates)
            if (candidate.kind, candidate.n_heads) == (line["heads"], line["n_heads"])
        ]
        values = torch.stack([_score(model, tried, one, prompts, score) for one in numbers[:FEW_DRAWS]], dim=1)
        ends = zip(("accuracy", "accuracy_low", "accuracy_high"), interval(values, within=SHARE), strict=True)
        lines.append(line | dict(ends) | {"score": score})
    return pd.DataFrame(lines)


def in_brackets(measures: pd.DataFrame) -> str:
    """Which score an audit's accuracies are of; nothing where it is greedy match."""
    score = measures["score"].iloc[0]
    return "" if score == GREEDY_MATCH else f" ({score})"


def score_note(measures: pd.DataFrame) -> str:
    """The same in full, for below a table."""
    score = measures["score"].iloc[0]
    return (
        ""
        if score == GREEDY_MATCH
        else f"Accuracy is {score} of the replies that the model writes: under a vector at the place\n"
        f"that greedy match chose, under {FEW_DRAWS} draws of each control at most. At scale 1, and by\n"
        "layer and number of heads, it is greedy match.\n"
    )


def _score(
    model: HookedTransformer, tried: Trials, number: int, prompts: Sequence[Prompt], score: Score
) -> Float[Tensor, " prompt"]:
    place = tried.places[number]
    added = place.scale * tried.candidates[number].vector
    changes, known = [add_to_residual(place.layer, added)], [torch.tensor(place.layer), added]
    return score_replies(model, prompts, score, changes=changes, known=known)
