"""How many prompts and rows fit into memory at once?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ivlens.errors import PromptError
from ivlens.forward.unembedding import AT_ONCE
from ivlens.prompts.tokens import Tokens

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer, HookedTransformerConfig


# Copies of its rows that a block makes on the way (scores and pattern; gate, activation and its intermediates).
SCORE_COPIES, MLP_COPIES = 4, 6
WORK = 10**11
"""Multiply-adds of one batch on a processor, about: two seconds on two cores."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What fits into memory at once."""

    prompts: int
    """Prompts of one batch."""
    rows: int
    """Rows of each of these prompts that pass a block together."""
    logits: int
    """Rows that are unembedded together, over all prompts."""

    @classmethod
    def of(
        cls,
        model: HookedTransformer,
        tokens: Tokens,
        n_rows: int,
        memory: int,
        *,
        others_seen: int = 0,
        most: int | None = None,
    ) -> Budget:
        """Share `memory` bytes: half for what a batch of prompts keeps, half for what its `n_rows` need.

        Args:
            others_seen: Tokens of other rows that a row's attention computes with, too.
            most: Prompts of one batch, whatever fits.

        Raises:
            PromptError: not even one prompt fits.
        """
        tail = tokens.answers.shape[1]
        count, pos = len(tokens) if most is None else most, tokens.prompts.shape[1] + tail - 1
        return cls.of_sizes(model.cfg, count, pos, tail, n_rows, memory, others_seen=others_seen)

    @classmethod
    def of_sizes(
        cls,
        cfg: HookedTransformerConfig,
        count: int,
        pos: int,
        tail: int,
        n_rows: int,
        memory: int,
        *,
        others_seen: int = 0,
    ) -> Budget:
        """The same for `count` prompts of `pos` tokens, of which each row carries the last `tail`.

        Raises:
            PromptError: not even one prompt fits.
        """
        bytes_each = torch.finfo(cfg.dtype).bits // 8
        per_token = MLP_COPIES * (0 if cfg.attn_only else cfg.d_mlp or 0) + 8 * cfg.d_model
        rows = 2 * (1 + n_rows) * tail * cfg.d_model
        caches = 2 * cfg.n_layers * (cfg.n_key_value_heads or cfg.n_heads) * cfg.d_head * pos
        reading = pos * per_token + SCORE_COPIES * cfg.n_heads * pos * pos
        one_row = bytes_each * tail * (per_token + SCORE_COPIES * cfg.n_heads * (pos + others_seen))
        one_prompt = bytes_each * (rows + caches + reading) + one_row
        # TransformerLens turns the unembedding around into a copy whenever it is used; in 16 bits, parts are widened.
        unembedding = cfg.d_model * cfg.d_vocab_out
        half = (memory - (4 * min(AT_ONCE, unembedding) if bytes_each == 2 else bytes_each * unembedding)) // 2
        prompts = min(count, half // one_prompt)
        if prompts < 1:
            raise PromptError(
                f"memory is {memory:,} bytes, but one prompt of {pos} tokens needs "
                f"{memory + 2 * (one_prompt - half):,}; give more, or use fewer shots"
            )
        # Logits are held in float32 beside the model's own precision, with one copy for the softmax.
        one_logit_row = (bytes_each + 8) * cfg.d_vocab_out
        return cls(prompts=prompts, rows=max(1, half // (one_row * prompts)), logits=max(1, half // one_logit_row))


def count_at_once(model: HookedTransformer, tokens: Tokens, n_rows: int = 0, *, climbing: bool = False) -> int:
    """Prompts of one batch that take a processor a few seconds at most, so that a bar moves and little is ever lost.

    Args:
        n_rows: Of every prompt, beside reading it.
        climbing: Rows branch off at every layer: half of the layers are behind them, on average.
    """
    cfg = model.cfg
    if torch.device(cfg.device or "cpu").type != "cpu":
        return len(tokens)
    pos, tail = tokens.prompts.shape[1] + tokens.answers.shape[1] - 1, tokens.answers.shape[1]
    blocks, vocabulary = 12 * cfg.n_layers * cfg.d_model**2, cfg.d_model * cfg.d_vocab_out
    one_row = tail * ((blocks // 2 if climbing else blocks) + vocabulary)
    return min(len(tokens), max(1, WORK // (pos * blocks + (1 + n_rows) * one_row)))
