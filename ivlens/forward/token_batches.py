"""What is read in one pass: how many prompts, and which tokens of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ivlens.prompts.tokens import Tokens

# Tokens of one forward pass; more gains no speed and costs memory.
TOKENS_PER_PASS = 4096


def batches(tokens: Tokens, *, size: int | None = None, most: int | None = None) -> Iterator[Tokens]:
    """Parts of at most `size` prompts, or of about 4096 tokens, but no more than `most` prompts."""
    width = tokens.prompts.shape[1] + tokens.answers.shape[1]
    size = size or max(1, TOKENS_PER_PASS // width)
    size = size if most is None else min(size, most)
    for start in range(0, len(tokens), size):
        yield tokens[start : start + size]


def shortest_first(tokens: Tokens) -> Int[Tensor, " prompt"]:
    """Numbers of the prompts by length, answers included: batches of them hold few pads."""
    return (tokens.mask.sum(1) + tokens.answer_mask.sum(1)).argsort(stable=True)


def by_answer_length(tokens: Tokens) -> list[Int[Tensor, " prompt"]]:
    """Numbers of the prompts with answers of one length, for each length.

    Rows carry their answers up the layers: a single long one would make all others of a batch as long.
    """
    lengths = tokens.answer_mask.sum(1)
    return [(lengths == length).nonzero()[:, 0] for length in lengths.unique()]


def with_answers(tokens: Tokens) -> tuple[Int[Tensor, "prompt pos"], Bool[Tensor, "prompt pos"]]:
    """Prompts followed by all answer tokens but the last, and their mask: what teacher forcing reads."""
    ids = torch.cat([tokens.prompts, tokens.answers[:, :-1]], dim=1)
    # An answer's token is read if the answer goes on behind it.
    return ids, torch.cat([tokens.mask, tokens.answer_mask[:, 1:]], dim=1)
