"""What the benchmark holds the sweep against computes what its name says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

from ivlens.patching import activations, sweep
from ivlens.prompts.tokens import Tokens

FILE = Path(__file__).parents[1] / "benchmarks" / "peers.py"


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("peers", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    config = HookedTransformerConfig(
        n_layers=2, n_heads=3, d_model=24, d_head=8, d_mlp=32, n_ctx=16, d_vocab=30, act_fn="gelu", seed=0,
        normalization_type="LN", device="cpu", dtype=torch.float64,
    )  # fmt: skip
    return HookedTransformer(config).eval().requires_grad_(False)


def tokens() -> Tokens:
    generator = torch.Generator().manual_seed(1)
    return Tokens(
        prompts=torch.randint(30, (3, 7), generator=generator),
        mask=torch.ones(3, 7, dtype=torch.bool),
        answers=torch.randint(30, (3, 1), generator=generator),
        answer_mask=torch.ones(3, 1, dtype=torch.bool),
    )


def test_the_helper_of_transformerlens_gives_what_the_sweep_gives(peers: ModuleType, model: HookedTransformer):
    asked, z = tokens(), torch.randn(2, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for i in range(3):
        exact = sweep.sweep(model, asked[i : i + 1], z)[1]
        assert torch.allclose(peers.generic_patch(model, asked[i : i + 1], z), exact, atol=1e-6)


def test_attribution_is_the_slope_of_the_exact_effect_at_the_unpatched_output(
    peers: ModuleType, model: HookedTransformer
):
    """A mean that is nearer by h to a prompt's own output moves the answer by h times the estimate, to first order."""
    asked = tokens()
    own = activations.last_z(model, asked)
    z = torch.randn(2, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    estimate, h = peers.attribution(model, asked, z), 1e-5
    for i in range(3):
        nearer = own[i] + h * (z - own[i])
        slope = sweep.sweep(model, asked[i : i + 1], nearer)[1] / h
        assert torch.allclose(estimate[i], slope[0], rtol=1e-3, atol=1e-7)
