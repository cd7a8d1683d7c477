"""Prompts cut where a patch begins: what is changed at a token changes nothing before it.

The tail that rows carry up the layers (see `patching.branches`) then begins at the first token that is patched. It is
what `Tokens` calls answers: the rest of the prompt, and the answer behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from ivlens.prompts.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Prompts of which the tail begins at the first of some tokens."""

    tokens: Tokens
    """Prompts up to that token; as answers, whatever stands behind it."""
    where: Bool[Tensor, "prompt tail"]
    """Those tokens, in the tail."""
    places: Int[Tensor, "prompt answer"]
    """Tokens of the tail that predict those of the answer."""
    asked: Tokens
    """The prompts and answers as they were."""

    def __getitem__(self, rows: slice) -> Cut:
        tokens, asked = self.tokens[rows], self.asked[rows]
        tail = tokens.answers.shape[1]
        # Beyond the end are places of answer tokens that are pads.
        places = self.places[rows, : asked.answers.shape[1]].clamp(max=tail - 1)
        return Cut(tokens=tokens, where=self.where[rows, :tail], places=places, asked=asked)


def cut(tokens: Tokens, where: Bool[Tensor, "prompt pos"]) -> Cut:
    """Cut every prompt at the first token that is `where`; each has one."""
    ids, mask = torch.cat([tokens.prompts, tokens.answers], 1), torch.cat([tokens.mask, tokens.answer_mask], 1)
    first = where.int().argmax(1)
    width, last = ids.shape[1], tokens.prompts.shape[1] - 1
    before = torch.arange(-int(first.max()), 1, device=ids.device) + first[:, None]
    tail = width - int(first.min()) - 1
    own = torch.arange(tail, device=ids.device) + first[:, None]
    places = (last - first)[:, None] + torch.arange(tokens.answers.shape[1], device=ids.device)
    return Cut(
        tokens=Tokens(
            prompts=_columns(ids, before),
            mask=_columns(mask, before),
            answers=_columns(ids, own + 1),
            answer_mask=_columns(mask, own + 1),
        ),
        where=_columns(where, own),
        places=places,
        asked=tokens,
    )


def _columns(
    values: Shaped[Tensor, "prompt pos"], columns: Int[Tensor, "prompt column"]
) -> Shaped[Tensor, "prompt column"]:
    """Those of each prompt; 0 or False beyond the first and the last."""
    inside = (columns >= 0) & (columns < values.shape[1])
    return values.gather(1, columns.clamp(0, values.shape[1] - 1)) * inside
