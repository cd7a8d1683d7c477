"""How far apart rounding alone may bring two computations of the same number.

Other processors, thread counts and libraries add in another order. One operation is wrong by at most half of the
dtype's `eps`, relative to its result; errors of n operations are of both signs, and grow like the square root of n
rather than like n (Higham and Mary 2019, doi:10.1137/18M1226312). So two ways to one number differ by about
sqrt(n) * eps * size, where `size` is that of the largest number on the way. Tests allow ten times as much.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MARGIN = 10


def bound(operations: int, *, size: float = 1.0, dtype: torch.dtype = torch.float32) -> float:
    """The largest difference that `operations` one after the other explain, between numbers up to `size`."""
    return MARGIN * operations**0.5 * torch.finfo(dtype).eps * size


def chain(cfg: Any, positions: int) -> int:
    """Additions one after the other from a token to its log-probabilities: every sum of a forward pass."""
    width, heads = cfg.d_model, cfg.n_heads * cfg.d_head
    attention = 2 * width + cfg.d_head + 2 * positions + heads  # norm, projection; scores; softmax, mix; output
    mlp = 2 * width + (cfg.d_mlp or 0)  # norm, projection; output
    return cfg.n_layers * (attention + mlp) + 2 * width  # norm, unembedding


@torch.no_grad()
def of_forward(model: Any, ids: Tensor) -> float:
    """The bound for what a model gives on prompts like `ids`: logits, log-probabilities in nats, probabilities."""
    logits = model(ids)
    size = max(1.0, float(logits.abs().max()))
    return bound(chain(model.cfg, ids.shape[-1]), size=size, dtype=logits.dtype)
