"""What is kept of attention is what the model computes, to the hundredth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bridges import random_bridge
from conftest import random_tokens
from made_up import made_up_attention
from transformer_lens import HookedTransformer

import ivlens
from ivlens.errors import ModelError
from ivlens.explorer.attention import Attention, read_attention
from ivlens.prompts.tokens import Tokens


def rounded(weights: torch.Tensor) -> list[str]:
    return [f"{value:.2f}" for value in weights.flatten().tolist()]


def shown(row: np.ndarray) -> list[str]:
    return [f"{value // 100}.{value % 100:02d}" for value in row.tolist()]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mistral"])  # Learned positions; soft caps; a sliding window.
def test_every_row_is_the_pattern_of_the_prompt_alone_as_two_decimals_print_it(
    folders: Callable[[str], Path], family: str
):
    model, tokens = ivlens.load(folders(family), backend="hooked"), random_tokens(n=3, vocab=100)
    found = read_attention(model, tokens)
    for ids, mask, own in zip(tokens.prompts, tokens.mask, found, strict=True):
        _, cache = model.run_with_cache(ids[mask][None])
        for layer in range(model.cfg.n_layers):
            pattern = cache["pattern", layer][0]
            for head in range(model.cfg.n_heads):
                for token in range(int(mask.sum())):
                    assert shown(own.row(layer, head, token)) == rounded(pattern[head, token])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-gqa", "gpt-oss", "falcon-alibi"])  # Of gpt-oss a sink takes the rest.
def test_of_a_bridge_it_is_what_transformers_computes(name: str):
    bridge, tokens = random_bridge(name), random_tokens(n=2, vocab=100)
    found = read_attention(bridge, tokens)  # pyright: ignore[reportArgumentType]
    for ids, mask, own in zip(tokens.prompts, tokens.mask, found, strict=True):
        theirs: Any = bridge.original_model(ids[mask][None], output_attentions=True).attentions
        for layer, pattern in enumerate(theirs):
            rows = [own.row(layer, head, token) for head in range(4) for token in range(len(ids[mask]))]
            exact = pattern[0, :, :, : int(mask.sum())].detach().double().flatten(0, 1).numpy()
            assert np.abs(np.stack(rows) / 100 - exact).max() <= 0.005 + 1e-5


def test_a_model_that_does_not_show_its_attention_is_refused(tiny: HookedTransformer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ivlens.forward.hooked_forward.HookedForward.run", lambda *_: None)
    tokens = Tokens(**{name: value[:1] for name, value in vars(random_tokens(vocab=100)).items()})
    with pytest.raises(ModelError, match="does not show the attention of 3 of its 3 layers"):
        read_attention(tiny, tokens)


@pytest.fixture(scope="module")
def made() -> Attention:
    return made_up_attention(2, 3, 40, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("least", [1, 7, 101])
def test_what_is_thinned_lacks_the_small_weights_alone_and_none_from_the_last_token(made: Attention, least: int):
    thin = made.thinned(least)
    for layer in range(2):
        for head in range(3):
            for token in range(39):
                whole = made.row(layer, head, token)
                assert (thin.row(layer, head, token) == np.where(whole >= least, whole, 0)).all()
            assert (thin.row(layer, head, 39) == made.row(layer, head, 39)).all()
    assert thin.last.any() and (len(thin.weights) < len(made.weights) or least == 1)
