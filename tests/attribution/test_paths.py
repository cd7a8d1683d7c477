"""A path from head to head equals one run by hooks for each, on every kind of block, padded or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import rounding
import torch
from checkpoints import KINDS, random_hooked
from conftest import WORD_TEMPLATE, random_tokens
from test_site_sweep import some_columns, values_of

import ivlens
from ivlens.attribution import paths, site_sweep
from ivlens.attribution.paths import Receiver
from ivlens.attribution.site_patching import ask, put_in
from ivlens.datasets.task import Task
from ivlens.errors import IvlensError
from ivlens.patching.settings import Settings
from ivlens.shapes import Head

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

pytestmark = pytest.mark.numeric

TOKENS = random_tokens(n=2, width=8, vocab=100)
WHERE = some_columns(TOKENS)
WHERE[:, -1] = True  # In the last layer, no other token's query is asked for.


def assert_exact(model: Any, receiver: str, exact: float, *, each: bool = True) -> None:
    values, found = values_of(model, WHERE, "heads", each=each), Receiver.parse(receiver, model)
    fast, slow = (how(model, TOKENS, WHERE, values, found, effect="nll") for how in (paths.sweep, paths.loop))
    seen = slow[1][:, : found.n_before(model)]
    assert float(seen.abs().max()) > 1e-4, "nothing is told by any head: the comparison would be empty"
    torch.testing.assert_close(fast, slow, rtol=0, atol=exact * max(1.0, float(seen.abs().max())), equal_nan=True)
    assert bool(fast[1][:, found.n_before(model) :].isnan().all())


@pytest.mark.slow
@pytest.mark.parametrize("receiver", ["L2H1.q", "L2H3.k", "L1H0.v", "logits"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_path_equals_one_run_by_hooks_for_each_head(kind: str, receiver: str) -> None:
    model = random_hooked(kind)
    assert_exact(model, receiver, rounding.of_forward(model, TOKENS.prompts), each=receiver != "logits")


def test_a_head_of_the_last_layer_has_no_other_way_than_that_to_the_logits() -> None:
    model = random_hooked("neox")  # Attention and MLP side by side: nothing of its own layer reads it.
    values = values_of(model, WHERE, "heads", each=True)
    _, whole = site_sweep.sweep(model, TOKENS, WHERE, values, "heads")
    _, direct = paths.sweep(model, TOKENS, WHERE, values, Receiver.parse("logits", model))
    torch.testing.assert_close(direct[:, -1], whole[:, -1], rtol=0, atol=1e-12)
    assert float((direct[:, 0] - whole[:, 0]).abs().max()) > 1e-4, "an earlier head has other ways, too"


def test_a_receiver_is_named_in_full() -> None:
    model = random_hooked("gpt2")
    assert Receiver.parse("L2H3.k", model) == (Head(2, 3), "k")
    for text, said in (
        ("L2H3", "receiver is 'L2H3'; give a head's query, key or value, such as L9H6.q, or 'logits'"),
        ("L2H9.q", "there is no head L2H9: the model has 3 layers of 4 heads"),
        ("L0H1.v", "no head writes before L0H1; give a head of a later layer"),
    ):
        with pytest.raises(IvlensError, match=said):
            Receiver.parse(text, model)


@pytest.mark.slow
@pytest.mark.parametrize("clean", ["mean", "own"])
def test_paths_of_a_task_are_those_on_the_prompts_of_the_aie(
    tiny: HookedTransformer, word_task: Task, clean: Any
) -> None:
    settings = Settings(shots=3, clean_prompts=6, prompts=6, template=WORD_TEMPLATE)
    found = ivlens.path_effects(tiny, word_task, receiver="L2H1.v", position="query", clean=clean, settings=settings)
    asked = ask(tiny, word_task, settings, ["query"], clean=clean)
    values, receiver = put_in(tiny, asked.sources[0], "heads", clean), Receiver.parse("L2H1.v", tiny)
    baseline, effects = paths.loop(tiny, asked.tokens, asked.where[0], values, receiver)
    torch.testing.assert_close((found.baseline, found.effects), (baseline, effects), rtol=0, atol=1e-9, equal_nan=True)
    assert found.of_heads and found.site == "paths to L2H1.v at query"
    assert bool(found.p_values()[2].isnan().all()) and bool(found.p_values()[:2].isfinite().all())
    assert {head.layer for head in found.top(8)} == {0, 1}
    with pytest.raises(IvlensError, match="k is 9, but there are 8 effects"):
        found.top(9)
