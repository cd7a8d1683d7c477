"""Rows that pass a bridge's own blocks equal one run per head, on architectures that HookedTransformer has or has not.

`make test-tl4` runs this file with TransformerLens 4.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from bridges import EACH_ARCHITECTURE, IN_FLOAT64, NOT_IN_FLOAT64, SIDE_BY_SIDE, random_bridge
from checkpoints import build
from conftest import WORD_TEMPLATE, random_tokens
from torch import Tensor, nn

import ivlens
from ivlens.datasets.task import Task
from ivlens.errors import ModelError
from ivlens.forward import bridge_forward
from ivlens.forward.block_inputs import BlockInputs
from ivlens.forward.bridge_forward import BridgeReading
from ivlens.forward.makers import forward_of
from ivlens.forward.output_path import output_path
from ivlens.forward.rows import Replaced
from ivlens.patching import interventions, sweep
from ivlens.patching.effects import ranking_prompts
from ivlens.patching.hooks import add_to_residual, at_position, logits_under, run_hooked, set_head
from ivlens.patching.interventions import Change
from ivlens.prompts import zero_shot
from ivlens.prompts.tokens import Tokens
from ivlens.shapes import Head
from ivlens.steering.rows import steer_rows

pytestmark = pytest.mark.numeric

# Answers of one to four tokens; prompts of 14 tokens, of which up to six are pads, longer than the windows of 8.
TOKENS = random_tokens(n=4, answer=4, vocab=100)


def precise(name: str) -> torch.dtype:
    return torch.float32 if name in NOT_IN_FLOAT64 else torch.float64


def near(name: str) -> float:
    return 1e-9 if name in IN_FLOAT64 else 2e-5


def random_z(bridge: Any) -> Tensor:
    shape = (bridge.cfg.n_layers, bridge.cfg.n_heads, bridge.cfg.d_head)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def alone(tokens: Tokens, row: int) -> Tokens:
    """One prompt without its pads, and an answer without those behind it."""
    length = int(tokens.answer_mask[row].sum())
    return Tokens(
        prompts=tokens.prompts[row][tokens.mask[row]][None],
        mask=tokens.mask[row][tokens.mask[row]][None],
        answers=tokens.answers[row, :length][None],
        answer_mask=tokens.answer_mask[row, :length][None],
    )


@torch.no_grad()
def in_one_sequence(bridge: Any) -> bool:
    return forward_of(bridge).read(TOKENS).in_one_sequence  # pyright: ignore


@pytest.mark.long
@pytest.mark.parametrize("name", EACH_ARCHITECTURE)
def test_the_sweep_equals_one_run_per_head_and_each_prompt_alone(name: str) -> None:
    bridge = random_bridge(name, precise(name))
    z = random_z(bridge)
    baseline, cie = sweep.sweep(bridge, TOKENS, z, effect="nll")
    slow = sweep.loop(bridge, TOKENS, z, effect="nll")
    assert float(cie.abs().max()) > 0.1, "heads that do nothing"
    torch.testing.assert_close((baseline, cie), slow, rtol=0, atol=near(name))
    for row in (1, 3):
        one, _ = sweep.loop(bridge, alone(TOKENS, row), z, effect="nll")
        torch.testing.assert_close(baseline[row : row + 1], one, rtol=0, atol=near(name))
    assert in_one_sequence(bridge) == (name not in SIDE_BY_SIDE)


@pytest.mark.parametrize("name", EACH_ARCHITECTURE)
def test_what_heads_write_is_what_attention_adds_to_the_stream(name: str) -> None:
    bridge = random_bridge(name)
    paths = [output_path(bridge, layer) for layer in range(3)]
    assert [path.norm is not None for path in paths] == [name in ("gemma2", "gemma3", "olmo2", "olmo3", "glm4")] * 3
    assert [path.scale for path in paths] == [0.5 if name == "granite" else 1.0] * 3


@pytest.mark.long
@pytest.mark.parametrize("name", EACH_ARCHITECTURE)
def test_steering_and_ablating_rows_equal_one_run_for_each(name: str) -> None:
    bridge = random_bridge(name, precise(name))
    z, d_model, last = random_z(bridge), bridge.cfg.d_model, TOKENS.prompts.shape[1] - 1
    vectors = torch.randn(3, d_model, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    vectors = vectors.to(bridge.cfg.dtype)
    layers = [2, 0, 1]
    found = steer_rows(bridge, TOKENS, vectors, layers)
    hooks = [[at_position(add_to_residual(*pair), last)] for pair in zip(layers, vectors, strict=True)]
    slow = run_hooked(bridge, TOKENS, hooks, description="steering")
    torch.testing.assert_close(found.log_prob, slow.log_prob, rtol=0, atol=near(name))
    assert float((found.log_prob[:, 1:] - found.log_prob[:, :1]).abs().max()) > 0.1
    change = Change(added=vectors[0], ablated=(Head(0, 1), Head(2, 3)))
    changed = interventions.run_changes(bridge, TOKENS, [change], layer=1, z=z)
    by_hand = [*(set_head(head, z[head]) for head in change.ablated), add_to_residual(1, vectors[0])]
    logits = logits_under(bridge, TOKENS, [at_position(hook, last) for hook in by_hand])
    wanted = logits[:, 0].softmax(-1).gather(1, TOKENS.answers[:, :1])[:, 0]
    torch.testing.assert_close(changed.probability[:, 1], wanted, rtol=0, atol=near(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "gemma3", "falcon-alibi", "gpt-neo"])
def test_rows_pass_a_block_a_few_at_a_time_and_nothing_depends_on_how_many(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge = random_bridge(name, precise(name))
    z, together, carry = random_z(bridge), [], BridgeReading._carry
    whole = sweep.sweep(bridge, TOKENS, z, effect="nll")

    def see(self: BridgeReading, layer: int, rows: Tensor, replaced: Replaced | None) -> Tensor:
        together.append(rows.shape[1] * rows.shape[2])
        return carry(self, layer, rows, replaced)

    monkeypatch.setattr(BridgeReading, "_carry", see)
    monkeypatch.setattr(bridge_forward, "TOKENS_TOGETHER", 8)
    parts = sweep.sweep(bridge, TOKENS, z, effect="nll")
    torch.testing.assert_close(parts, whole, rtol=0, atol=near(name))
    assert max(together) == 8


@pytest.mark.slow
def test_rows_that_see_one_another_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    mask_of = BlockInputs._mask
    assert in_one_sequence(random_bridge("llama-gqa"))
    monkeypatch.setattr(BlockInputs, "_mask", lambda self, mask, n_rows: torch.zeros_like(mask_of(self, mask, n_rows)))
    assert not in_one_sequence(random_bridge("llama-gqa"))


def test_an_attention_that_can_be_told_in_neither_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bridge = random_bridge("llama-gqa")
    monkeypatch.setattr(BlockInputs, "keep_prefix", lambda self, resid: None)
    with pytest.raises(
        ModelError, match=r"variants of a prompt's end cannot pass the blocks of tiny \(LlamaForCausalLM\): "
    ):
        sweep.sweep(bridge, TOKENS, random_z(bridge))


@pytest.mark.slow
def test_a_hook_at_the_last_token_is_in_force_for_every_row() -> None:
    bridge = random_bridge("llama-gqa")
    z, tokens = random_z(bridge), TOKENS.first()
    plain, _ = sweep.sweep(bridge, tokens, z)

    def shift(resid: Tensor, hook: object) -> Tensor:
        return torch.cat([resid[:, :-1], resid[:, -1:] + 0.5], dim=1)

    with bridge.hooks(fwd_hooks=[("blocks.1.hook_resid_post", shift)]):
        found, slow = (how(bridge, tokens, z) for how in (sweep.sweep, sweep.loop))
    torch.testing.assert_close(found, slow, rtol=0, atol=2e-5)
    assert float((found[0] - plain).abs().max()) > 1e-4


def hooks_on(bridge: nn.Module) -> Sequence[Any]:
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    return [(name, kind, len(getattr(one, kind))) for name, one in bridge.named_modules() for kind in kinds]


@pytest.mark.slow
def test_nothing_is_left_behind_on_a_bridge() -> None:
    bridge = random_bridge("gemma3", torch.float64)
    z = random_z(bridge)
    sweep.sweep(bridge, TOKENS, z)
    before = hooks_on(bridge)
    sweep.sweep(bridge, TOKENS, z)
    bridge.original_model.model.layers[1].mlp.down_proj.weight.data.fill_(torch.nan)
    with pytest.raises(ModelError, match="the residual stream after layer 1 is NaN or infinite"):
        sweep.sweep(bridge, TOKENS, z)
    assert hooks_on(bridge) == before


def test_heads_that_are_not_reached_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bridge = random_bridge("llama-gqa")
    with torch.no_grad():
        reading = forward_of(bridge).read(TOKENS)
    monkeypatch.setattr(type(bridge), "hook_dict", {"blocks.1.attn.hook_z": nn.Identity()})
    replaced = Replaced(torch.eye(4, dtype=torch.bool), random_z(bridge)[1])
    with torch.no_grad(), pytest.raises(ModelError, match=r"blocks\.1\.attn\.hook_z of tiny is not reached"):
        reading.carry(1, reading.start[:, None], replaced)


@pytest.mark.slow
def test_a_checkpoint_in_a_bridge_is_measured_as_one_run_per_head_would(tmp_path: Path, word_task: Task) -> None:
    """Effects, vector, trials, ablation and comparison, from a folder, on whichever TransformerLens is here."""
    small: dict[str, Any] = {"shots": 2, "clean_prompts": 6, "prompts": 3, "template": WORD_TEMPLATE}
    model = ivlens.load(build("gemma2", tmp_path / "base"), backend="bridge")
    audit = ivlens.audit(model, word_task, out=tmp_path / "run", top=2, draws=1, other_tasks=0, **small)
    _, tokens = ranking_prompts(model, word_task, audit.effects.settings)
    _, slow = sweep.loop(model, tokens, audit.effects.mean_z)
    torch.testing.assert_close(audit.effects.cie, slow, rtol=0, atol=2e-5)
    with ivlens.steered(model, audit.vector):
        assert ivlens.ask(model, zero_shot(word_task.pairs[:3], template=WORD_TEMPLATE)).first.isfinite().all()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["sources"]["model"]["backend"] == "bridge"
    other = build("gemma2", tmp_path / "tuned", seed=1)
    change = ivlens.compare(model, other, word_task, queries=2, top=2, draws=1, **small)
    assert not torch.equal(change.base.aie, change.tuned.aie)


@pytest.mark.slow
def test_rows_are_tried_once_a_bridge_and_again_where_prompts_are_wider(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, bridge = [], random_bridge("llama")
    trial = bridge_forward.BridgeForward._try_rows
    monkeypatch.setattr(
        bridge_forward.BridgeForward,
        "_try_rows",
        lambda self, tokens: (tried.append(tokens.prompts.shape[1]), trial(self, tokens))[1],
    )
    z = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
    for width in (12, 12, 9, 16, 14):
        sweep.sweep(bridge, random_tokens(n=2, width=width), z)
    assert tried == [12, 16]


@pytest.mark.slow
def test_rows_that_cannot_be_tokens_of_one_sequence_are_sequences_at_every_width() -> None:
    """GPT-Neo's attention counts columns."""
    bridge, z = random_bridge("gpt-neo"), torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
    for width in (4, 14, 4):
        tokens = random_tokens(n=2, width=width)
        torch.testing.assert_close(
            sweep.sweep(bridge, tokens, z)[1], sweep.loop(bridge, tokens, z)[1], rtol=0, atol=2e-5
        )


@pytest.mark.slow
def test_rows_that_were_tried_behind_nothing_are_tried_again_behind_a_prompt() -> None:
    bridge, z = random_bridge("gpt-neo"), torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
    ids, mask = torch.cat([TOKENS.prompts[:1], TOKENS.answers[:1, :1]], 1), torch.ones(1, 15, dtype=torch.bool)
    of_one_token = Tokens(prompts=ids[:, :1], mask=mask[:, :1], answers=ids[:, 1:], answer_mask=mask[:, 1:])
    for tokens in (of_one_token, TOKENS.first()):
        fast, slow = (how(bridge, tokens, z, effect="nll") for how in (sweep.sweep, sweep.loop))
        torch.testing.assert_close(fast, slow, rtol=0, atol=5e-5)
