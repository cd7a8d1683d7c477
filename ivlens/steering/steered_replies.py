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

from ivlens.patching.hooks import add_to_residual
from ivlens.prompts.choices import GREEDY_MATCH, Score
from ivlens.prompts.template import Prompt
from ivlens.replies.inquiry import score_replies
from ivlens.steering.trial_plan import FEW_DRAWS, TrialPlan
from ivlens.steering.trials import Trials, summary

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


def replace_accuracy(
    model: HookedTransformer,
    steered: pd.DataFrame,
    tried: Trials,
    prompts: Sequence[Prompt],
    score: Score,
    plan: TrialPlan,
) -> pd.DataFrame:
    """The lines of `Trials.by_number` with accuracies of the replies that are written under each vector at its place.

    Of every control the first draws are tried, five at most, or fewer and on fewer prompts, as the plan says: each is a
    reply to every prompt. Probabilities are then of the same prompts.
    """
    lines, asked = [], prompts[: plan.reply_prompts]
    for line in steered.to_dict("records"):
        numbers = [
            number
            for number, candidate in enumerate(tried.candidates)
            if (candidate.kind, candidate.n_heads) == (line["heads"], line["n_heads"])
        ]
        draws = plan.replied_draws(str(line["heads"]), len(numbers))
        values = torch.stack([_score(model, tried, one, asked, score) for one in numbers[:draws]], dim=1)
        rows = [tried.rows[number, tried.places[number]] for number in numbers]
        first = tried.found.first[: len(asked), rows]
        lines.append(line | summary(values, first) | {"score": score})
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
