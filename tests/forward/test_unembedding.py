"""Logits of a model in 16 bits are sums in float32, on both makers, and the model's own where gradients are wanted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from bridges import random_bridge
from checkpoints import random_hooked
from conftest import random_tokens

from ivlens.forward import unembedding
from ivlens.forward.makers import forward_of
from ivlens.models.hooked import has_hooked
from ivlens.patching.activations import answer_logits, differentiable_answer_logits

pytestmark = pytest.mark.numeric


MODELS: dict[str, Callable[[], Any]] = {
    "hooked": partial(random_hooked, "llama", dtype=torch.bfloat16),
    "bridge": partial(random_bridge, "llama", torch.bfloat16),
    "a soft cap": partial(random_bridge, "gemma2", torch.bfloat16),
    "a scale": partial(random_bridge, "granite", torch.bfloat16),
}


needs_hooked = pytest.mark.skipif(not has_hooked(), reason="TransformerLens 4 has no HookedTransformer")
HOOKED = pytest.param("hooked", marks=needs_hooked)


@pytest.mark.parametrize("name", [HOOKED, *list(MODELS)[1:]])
@torch.no_grad()
def test_logits_of_a_stream_in_16_bits_are_not_rounded_to_16_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unembedding, "AT_ONCE", 200)  # Several parts of the vocabulary.
    model = MODELS[name]()
    resid = torch.randn(2, 3, model.cfg.d_model, generator=torch.Generator().manual_seed(0)).bfloat16()
    normed = model.ln_final(resid.flatten(0, 1)[None]).float()
    if name == "hooked":
        exact = normed @ model.W_U.float() + model.b_U.float()
    else:
        exact = normed @ model.unembed.original_component.weight.T.float()
    if name == "a soft cap":
        cap = model.original_model.config.final_logit_softcapping
        exact = cap * torch.tanh(exact / cap)
    found = forward_of(model).unembed(resid)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact.reshape(found.shape) / (2.0 if name == "a scale" else 1.0))
    assert not torch.equal(found, found.bfloat16().float())


@pytest.mark.parametrize("name", [HOOKED, "bridge"])
def test_what_is_differentiated_is_what_the_model_itself_computes(name: str) -> None:
    model, tokens = MODELS[name](), random_tokens(n=2)
    with torch.enable_grad():
        own = differentiable_answer_logits(model, tokens)
    measured = answer_logits(model, tokens)
    assert own.dtype == torch.bfloat16 and measured.dtype == torch.float32
    near = float(own.detach().abs().max()) * 2**-7
    torch.testing.assert_close(own.detach().float(), measured, rtol=0, atol=near)
