"""Patching a site at any tokens equals one run per patch, on every kind of block, padded or not."""

from __future__ import annotations

from typing import Any

import pytest
import rounding
import torch
from bridges import random_bridge
from checkpoints import KINDS, random_hooked
from conftest import random_tokens
from torch import Tensor

from ivlens.attribution import site_sweep
from ivlens.attribution.site import SITES, Site, check_site, mean_values, read_values
from ivlens.errors import IvlensError, ModelError
from ivlens.patching import sweep
from ivlens.patching.activations import mean_z
from ivlens.prompts.tokens import Tokens

pytestmark = pytest.mark.numeric

TOKENS = random_tokens(n=3, width=9, vocab=100)


def some_columns(tokens: Tokens, seed: int = 3) -> Tensor:
    """Two or three tokens of each prompt, at other places in each."""
    drawn = torch.rand(tokens.mask.shape, generator=torch.Generator().manual_seed(seed)).masked_fill(~tokens.mask, 2.0)
    return (drawn <= drawn.sort(1).values[:, 1:2]) | (drawn < 0.2)


def values_of(model: Any, where: Tensor, site: Site, *, each: bool) -> Tensor:
    unit = (model.cfg.n_heads, model.cfg.d_head) if site == "heads" else (model.cfg.d_model,)
    shape = (len(where) if each else 1, model.cfg.n_layers, int(where.sum(1).max()) if each else 1, *unit)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(model.cfg.dtype)


def assert_exact(model: Any, tokens: Tokens, site: Site, exact: float, *, each: bool, effect: Any = "nll") -> None:
    where = some_columns(tokens)
    values = values_of(model, where, site, each=each)
    found = site_sweep.sweep(model, tokens, where, values, site, effect=effect)
    slow = site_sweep.loop(model, tokens, where, values, site, effect=effect)
    assert float(found[1].abs().max()) > 1e-3, "nothing is done by any patch: the comparison would be empty"
    torch.testing.assert_close(found, slow, rtol=0, atol=exact * max(1.0, float(slow[1].abs().max())))


@pytest.mark.slow
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("kind", KINDS)
def test_patching_a_site_equals_one_run_for_each_layer_and_prompt(kind: str, site: Site) -> None:
    model = random_hooked(kind)
    assert_exact(model, TOKENS, site, rounding.of_forward(model, TOKENS.prompts), each=site != "mlp_out")


@pytest.mark.slow
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(
    "name",
    [
        "neox",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("llama-gqa", "gemma2", "granite", "gpt-neo", "olmo2")
        ),
    ],
)
def test_patching_a_site_of_a_bridge_equals_one_run_for_each(name: str, site: Site) -> None:
    bridge = random_bridge(name, torch.float64)
    assert_exact(bridge, TOKENS, site, 1e-9 if name == "neox" else 2e-5, each=True)


@pytest.mark.parametrize("site", ["attn_out", "layer_out"])
def test_one_value_for_all_and_the_first_token_of_the_answer(site: Site) -> None:
    model = random_hooked("llama")
    assert_exact(model, TOKENS, site, rounding.of_forward(model, TOKENS.prompts), each=False, effect="prob")


def last_of(tokens: Tokens) -> Tensor:
    where = torch.zeros_like(tokens.mask)
    where[:, -1] = True
    return where


def test_heads_at_the_last_token_are_the_sweep_of_the_aie() -> None:
    model = random_hooked("llama")
    values = mean_values(model, TOKENS, last_of(TOKENS), "heads")
    torch.testing.assert_close(values[0, :, 0], mean_z(model, TOKENS), rtol=0, atol=1e-12)
    found = site_sweep.sweep(model, TOKENS, last_of(TOKENS), values, "heads", effect="nll")
    torch.testing.assert_close(found, sweep.sweep(model, TOKENS, values[0, :, 0], effect="nll"), rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("site", SITES)
def test_a_site_given_its_own_values_changes_nothing(site: Site) -> None:
    model, where = random_hooked("gpt2"), some_columns(TOKENS)
    own = read_values(model, TOKENS, where, site)
    _, found = site_sweep.sweep(model, TOKENS, where, own, site)
    assert float(found.abs().max()) < rounding.of_forward(model, TOKENS.prompts)


def test_the_residual_stream_after_a_layer_is_that_before_the_next() -> None:
    model, where = random_hooked("neox"), some_columns(TOKENS)
    values = values_of(model, where, "resid_post", each=True)
    _, after = site_sweep.sweep(model, TOKENS, where, values, "resid_post")
    _, before = site_sweep.sweep(model, TOKENS, where, values.roll(1, dims=1), "resid_pre")
    torch.testing.assert_close(after[:, :-1], before[:, 1:], rtol=0, atol=rounding.of_forward(model, TOKENS.prompts))


def test_the_mean_is_over_prompts_of_the_mean_over_each_ones_tokens() -> None:
    model, where = random_hooked("local"), some_columns(TOKENS)
    alone = []
    for row in range(len(TOKENS)):
        columns = where[row][TOKENS.mask[row]]
        _, cache = model.run_with_cache(TOKENS.prompts[row][TOKENS.mask[row]][None])
        alone.append(torch.stack([cache["mlp_out", layer][0, columns].mean(0) for layer in range(3)]))
    found = mean_values(model, TOKENS, where, "mlp_out")[0, :, 0]
    torch.testing.assert_close(found, torch.stack(alone).mean(0), rtol=0, atol=1e-12)


@pytest.mark.slow
def test_a_smaller_budget_changes_nothing() -> None:
    model, where = random_hooked("llama"), some_columns(TOKENS)
    values = values_of(model, where, "heads", each=True)
    large = site_sweep.sweep(model, TOKENS, where, values, "heads", effect="nll")
    small = site_sweep.sweep(model, TOKENS, where, values, "heads", effect="nll", memory=600_000)
    torch.testing.assert_close(small, large, rtol=0, atol=rounding.of_forward(model, TOKENS.prompts))


def test_what_a_model_does_not_have_is_refused() -> None:
    where = some_columns(TOKENS)
    model = random_hooked("gpt2", attn_only=True, d_mlp=None, act_fn=None)
    with pytest.raises(ModelError, match="random-gpt2 has no MLP; choose another site"):
        site_sweep.sweep(model, TOKENS, where, torch.zeros(1, 3, 1, 32), "mlp_out")
    with pytest.raises(IvlensError, match=r"site is 'mlp'; did you mean mlp_out\? It must be one of heads, attn_out"):
        check_site(model, "mlp")
    model = random_hooked("gpt2", attention_dir="bidirectional")
    with pytest.raises(ModelError, match="random-gpt2 reads in both directions"):
        site_sweep.sweep(model, TOKENS, where, torch.zeros(1, 3, 1, 32), "attn_out")
