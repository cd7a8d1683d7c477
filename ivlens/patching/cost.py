"""What does the sweep over heads take on a model of given sizes? On paper: nothing is loaded, and no clock is asked.

`docs/calculator.js` reckons the same in a browser.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from ivlens.forward.bridge_forward import TOKENS_TOGETHER
from ivlens.forward.memory import Budget
from ivlens.shapes import GIB

if TYPE_CHECKING:
    from transformer_lens import HookedTransformerConfig


class Cost(NamedTuple):
    """Of one sweep."""

    weights: int
    """Bytes of the model's matrices."""
    kept: int
    """Bytes of the keys, values and rows of one prompt, for as long as its batch lasts."""
    at_once: int
    """Prompts of one batch."""
    reading: int
    """Multiply-adds with the model's matrices, of reading one prompt. Those of queries with keys are left out."""
    products: int
    """The same of patching every head on all prompts, reading included."""


def sweep_cost(
    cfg: HookedTransformerConfig,
    *,
    prompts: int = 25,
    pos: int = 100,
    answer: int = 1,
    memory: int = 2 * GIB,
    bits: float = 0.0,
) -> Cost:
    """What patching every head on so many prompts takes of memory and arithmetic, in the precision of `cfg.dtype`.

    Args:
        cfg: Of a model, `model.cfg`, or made by hand for one that is not there.
        pos: Tokens of a prompt.
        answer: Tokens that every row carries: 1, or those of the whole answer for the effect `nll`.
        memory: Bytes that all but the weights may take.
        bits: Of a weight of quantised blocks, scales included, such as 4.5; else they are as wide as `cfg.dtype`.

    Raises:
        PromptError: not even one prompt fits into so much memory.
    """
    size = torch.finfo(cfg.dtype).bits // 8
    layers, heads, d_model = cfg.n_layers, cfg.n_heads, cfg.d_model
    kv_heads, n_rows, read = cfg.n_key_value_heads or heads, layers * heads, pos + answer - 1
    into_heads, output = d_model * cfg.d_head * (heads + 2 * kv_heads), d_model * cfg.d_head * heads
    mlp = 0 if cfg.attn_only else (3 if cfg.gated_mlp else 2) * d_model * (cfg.d_mlp or 0)
    blocks, unembedding = layers * (into_heads + output + mlp), d_model * cfg.d_vocab_out
    # The unpatched row, whose heads are computed again where others branch off it, after their outputs. These pass the
    # layers behind: half of all, on average. All are unembedded.
    rows = blocks + layers * into_heads + n_rows * (output + mlp)
    rows += heads * (layers - 1) * blocks // 2 + (1 + n_rows) * unembedding
    budget = Budget.of_sizes(cfg, prompts, read, answer, n_rows, memory, others_seen=TOKENS_TOGETHER)
    return Cost(
        weights=round(blocks * (bits / 8 or size)) + size * (unembedding + d_model * cfg.d_vocab),
        kept=size * (2 * layers * kv_heads * cfg.d_head * read + 2 * (1 + n_rows) * answer * d_model),
        at_once=budget.prompts,
        reading=read * blocks,
        products=prompts * (read * blocks + answer * rows),
    )
