"""Rows with changes at different layers equal one run for each, and climb no layer below their first change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bridges import random_bridge
from checkpoints import random_hooked
from conftest import random_tokens
from torch import Tensor

from ivlens.forward.bridge_forward import BridgeReading
from ivlens.forward.hooked_forward import HookedReading
from ivlens.measures import greedy_match, kl_divergence, token_log_probs
from ivlens.patching.hooks import Hooks, add_to_residual, at_position, logits_under, set_head
from ivlens.patching.interventions import Change, run_changes
from ivlens.shapes import Head

pytestmark = pytest.mark.numeric

TOKENS = random_tokens(n=5, answer=3, vocab=100)  # With pads on both sides; answers of 1, 2 and 3 tokens.
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LAYER = 1
# First changed in blocks 2, none, 1, 0, 1 and 0.
CHANGES = (
    Change(ablated=(Head(2, 0),)),
    Change(),
    Change(added=VECTOR, ablated=(Head(2, 3),)),
    Change(ablated=(Head(2, 2), Head(0, 1))),
    Change(added=-VECTOR),
    Change(added=VECTOR, ablated=(Head(0, 3), Head(1, 1))),
)
MODELS: dict[str, Callable[[], Any]] = {
    **{name: lambda name=name: random_hooked(name) for name in ("gpt2", "llama", "neox", "alibi", "local", "softcap")},
    "bridge, rows of one sequence": lambda: random_bridge("gpt2", torch.float64),
    "bridge, rows side by side": lambda: random_bridge("gpt-neo", torch.float64),
}
SHIFTED = [1, 3, 5]


def _hooks(change: Change, z: Tensor) -> Hooks:
    hooks = [set_head(head, z[head]) for head in change.ablated]
    hooks += [] if change.added is None else [add_to_residual(LAYER, change.added)]
    return [at_position(hook, TOKENS.prompts.shape[1] - 1) for hook in hooks]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if "," in name else name for name in MODELS]
)
def test_rows_changed_at_different_layers_equal_one_run_for_each(name: str) -> None:
    model = MODELS[name]()
    shape = model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head
    z = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = run_changes(model, TOKENS, CHANGES, layer=LAYER, z=z, shifted=SHIFTED)
    near = {"rtol": 0, "atol": 2e-5 if name == "bridge, rows side by side" else 1e-9}
    plain = logits_under(model, TOKENS, [])
    for row, change in enumerate([Change(), *CHANGES]):
        logits = logits_under(model, TOKENS, _hooks(change, z))
        first = token_log_probs(logits[:, 0], TOKENS.answers[:, 0]).exp()
        torch.testing.assert_close(found.probability[:, row], first, **near)
        assert found.match[:, row].tolist() == greedy_match(logits, TOKENS.answers, TOKENS.answer_mask).tolist()
        if row in SHIFTED:
            torch.testing.assert_close(found.shift[:, row], kl_divergence(plain[:, 0], logits[:, 0]), **near)
    changed = [0, *(row for row, change in enumerate(CHANGES, start=1) if change != Change())]
    assert float(torch.pdist(found.probability[:, changed].T).min()) > 1e-4, "changes that do nothing"


@pytest.mark.parametrize(
    ("reading", "make"), [(HookedReading, MODELS["llama"]), (BridgeReading, MODELS["bridge, rows of one sequence"])]
)
def test_rows_climb_from_the_layer_of_their_first_change(
    reading: Any, make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, carry, carried = make(), reading.carry, set[tuple[int, int]]()

    def count(self: Any, layer: int, rows: Tensor, change: Any = None) -> Tensor:
        carried.add((layer, rows.shape[1]))
        return carry(self, layer, rows, change)

    z = torch.zeros(model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head, dtype=torch.float64)
    run_changes(model, TOKENS, [], layer=LAYER, z=z)  # A bridge tries its blocks the first time.
    monkeypatch.setattr(reading, "carry", count)
    run_changes(model, TOKENS, CHANGES, layer=LAYER, z=z)
    assert carried == {(0, 3), (1, 5), (2, 6)}
