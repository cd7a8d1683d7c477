"""The bound that tests compare within is wide enough for rounding and too narrow for a mistake."""

from __future__ import annotations

import numpy as np
import pytest
import rounding
import torch
from checkpoints import random_hooked


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1.0, 1000.0])
def test_sums_in_any_order_are_within_the_bound_and_use_some_of_it(dtype: torch.dtype, size: float) -> None:
    generator = np.random.default_rng(0)
    numbers = torch.as_tensor(generator.normal(0, size, (500, 200))).to(dtype).numpy()
    # One number after the other: numpy's cumsum keeps the dtype on the way.
    ways = [np.cumsum(generator.permutation(numbers), axis=0) for _ in range(20)]
    sums = np.stack([way[-1] for way in ways])
    bound = rounding.bound(500, size=float(np.abs(ways).max()), dtype=dtype)
    assert 0.001 * bound < float(np.ptp(sums, axis=0).max()) < bound


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_forward_pass_in_float32_is_within_the_bound_and_a_weight_a_thousandth_off_is_not(kind: str) -> None:
    exact, ids = random_hooked(kind), torch.arange(3, 17)[None]
    rounded = random_hooked(kind).to(torch.float32)
    bound = rounding.of_forward(rounded, ids)
    wanted = exact(ids).log_softmax(-1)
    assert float((rounded(ids).log_softmax(-1) - wanted).abs().max()) < bound
    rounded.blocks[1].attn.W_O.data *= 1.001
    assert float((rounded(ids).log_softmax(-1) - wanted).abs().max()) > bound
