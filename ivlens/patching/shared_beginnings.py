"""What does the model answer to prompts that begin alike? What they share is read once, and each one's end behind it.

A dozen queries behind the same demonstrations are a tenth of the tokens that they are one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ivlens.forward.makers import forward_of
from ivlens.forward.memory import count_at_once
from ivlens.forward.token_batches import batches, with_answers
from ivlens.kept_batches import keep_batch
from ivlens.measures import first_token_probability, greedy_match
from ivlens.progress import track
from ivlens.prompts.tokens import Tokens

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


def score_groups(
    model: HookedTransformer, tokens: Tokens, sizes: Sequence[int]
) -> tuple[Bool[Tensor, " prompt"], Float[Tensor, " prompt"]]:
    """`activations.score_answers` of prompts in groups, each read behind what all of its prompts begin with.

    Hooks that look for the last prompt token do not find it here: nothing is to be steered.

    Args:
        sizes: Prompts of each group, in order.
    """
    found = []
    for group in track(_parts(tokens, sizes), "asking"):
        shared = _count_shared(group)
        ends = replace(group, prompts=group.prompts[:, shared:], mask=group.mask[:, shared:])
        for batch in batches(group, most=count_at_once(model, ends)):

            def compute(batch: Tokens = batch, shared: int = shared) -> dict[str, Tensor]:
                logits, there = _answer_logits(model, batch, shared), batch.to(model.cfg.device)
                right = greedy_match(logits, there.answers, there.answer_mask)
                return {"right": right, "first": first_token_probability(logits, there.answers)}

            found.append(keep_batch("answers behind one beginning", [*vars(batch).values()], compute, device="cpu"))
    return torch.cat([part["right"] for part in found]), torch.cat([part["first"] for part in found])


def count_read(tokens: Tokens, sizes: Sequence[int]) -> int:
    """Tokens that `score_groups` reads, pads aside."""
    spared = sum((len(group) - 1) * _count_shared(group) for group in _parts(tokens, sizes))
    return int(tokens.mask.sum()) - spared


def _parts(tokens: Tokens, sizes: Sequence[int]) -> list[Tokens]:
    """On the CPU, where they are cut token by token."""
    tokens = tokens.to("cpu")
    bounds = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return [tokens[start:stop] for start, stop in pairwise(bounds) if stop > start]


@torch.no_grad()
def _answer_logits(model: HookedTransformer, tokens: Tokens, shared: int) -> Float[Tensor, "prompt answer vocab"]:
    """`activations.answer_logits`, with the first so many tokens read once for all.

    Args:
        tokens: On the CPU.
    """
    forward, (ids, mask), width = forward_of(model), with_answers(tokens), tokens.answers.shape[1]
    device = model.cfg.device
    rows = [own[is_own] for own, is_own in zip(ids, mask, strict=True)]
    # Pads stand behind each end, where no token that is read sees them, and move no position.
    behind = pad_sequence([row[shared:] for row in rows], batch_first=True)
    places = (tokens.mask.sum(1) - 1 - shared)[:, None] + torch.arange(width)
    found = None
    if shared:
        at = places.clamp(max=behind.shape[1] - 1).to(device)
        found = forward.read_behind(rows[0][:shared].to(device), behind.to(device), at)
    return forward.last_logits(ids.to(device), mask.to(device), width) if found is None else found


def _count_shared(tokens: Tokens) -> int:
    """Tokens that all prompts begin with; the last token of each is its own."""
    most = int(tokens.mask.sum(1).min()) - 1
    rows = [row[mask][:most] for row, mask in zip(tokens.prompts, tokens.mask, strict=True)]
    same = (torch.stack(rows) == rows[0]).all(0)
    return int(same.long().cumprod(0).sum())
