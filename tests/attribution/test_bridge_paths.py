"""Paths on a TransformerBridge equal runs by hooks on it, one head at a time, and paths on a HookedTransformer.

`make test-tl4` runs this file with TransformerLens 4, which has no HookedTransformer to compare with.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from bridges import ARCHITECTURES, IN_FLOAT64, NOT_IN_FLOAT64, random_bridge
from checkpoints import build
from conftest import WORD_TEMPLATE
from test_paths import TOKENS, WHERE, assert_exact
from test_site_sweep import values_of
from torch import Tensor, nn

import ivlens
from ivlens.attribution import paths
from ivlens.attribution.paths import Receiver
from ivlens.datasets.task import Task
from ivlens.errors import ModelError
from ivlens.forward import output_path
from ivlens.shapes import Head

pytestmark = pytest.mark.numeric

HAS_HOOKED = int(version("transformer-lens").split(".")[0]) < 4


def precise(name: str) -> Any:
    return random_bridge(name, torch.float32 if name in NOT_IN_FLOAT64 else torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_path_on_a_bridge_equals_runs_by_hooks_for_each_head(name: str) -> None:
    bridge = precise(name)
    for receiver in ("L1H1.q", "L1H3.k", "L1H2.v"):
        assert_exact(bridge, receiver, 1e-9 if name in IN_FLOAT64 else 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["neox", "gemma2"])
def test_paths_to_the_logits_of_a_bridge(name: str) -> None:
    assert_exact(precise(name), "logits", 1e-9 if name in IN_FLOAT64 else 2e-5)


@pytest.mark.skipif(not HAS_HOOKED, reason="TransformerLens 4 has no HookedTransformer")
@pytest.mark.parametrize(
    "family",
    ["gpt2", "llama-gqa", *(pytest.param(name, marks=pytest.mark.slow) for name in ("neox", "qwen3", "gemma3"))],
)
def test_paths_on_a_bridge_are_those_on_a_hooked_transformer(family: str, tmp_path: Path) -> None:
    folder = build(family, tmp_path / "tiny")
    both = [ivlens.load(folder, backend=backend, dtype="float64") for backend in ("bridge", "hooked")]
    values = values_of(both[1], WHERE, "heads", each=True)
    for receiver in ("L2H1.q", "L2H3.k", "L1H2.v"):
        found, wanted = (paths.sweep(one, TOKENS, WHERE, values, Receiver.parse(receiver, one)) for one in both)
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5, equal_nan=True)


def test_of_a_shared_key_one_head_takes_notice_and_the_result_says_so(tmp_path: Path, word_task: Task) -> None:
    model = ivlens.load(build("llama-gqa", tmp_path / "tiny"), backend="bridge")
    small: Any = {"shots": 3, "clean_prompts": 4, "prompts": 2, "template": WORD_TEMPLATE}
    found = [ivlens.path_effects(model, word_task, receiver=f"L2H{head}.k", **small) for head in (2, 3)]
    assert found[1].site == "paths to L2H3.k (key head 1, as L2H3 alone reads it) at last"
    assert float((found[0].effects - found[1].effects)[:, :2].abs().max()) > 1e-6
    assert Receiver(Head(2, 3), "q").describe(model) == "L2H3.q"
    ungrouped: Any = random_bridge("gpt2")
    assert Receiver(Head(2, 3), "v").describe(ungrouped) == "L2H3.v"


def refuse(bridge: Any) -> pytest.ExceptionInfo[ModelError]:
    with pytest.raises(ModelError) as caught:
        Receiver.parse("L1H0.q", bridge)
    return caught


def test_heads_that_read_something_else_beside_are_refused() -> None:
    bridge: Any = random_bridge("llama-gqa", torch.float64)
    streams: list[Tensor] = []
    bridge.blocks[1].register_forward_pre_hook(lambda block, args: streams.append(args[0]))
    gated = bridge.hook_dict["blocks.1.attn.hook_z"].register_forward_hook(
        lambda point, args, z: z * streams[-1].mean(-1, keepdim=True).sigmoid()
    )
    refuse(bridge).match(
        r"the heads of layer 1 of tiny \(LlamaForCausalLM\) compute does not come out of the queries, keys and values "
        r"that TransformerLens shows \(off by 0\.\d+ of it\); ask for paths to the logits"
    )
    gated.remove()
    assert Receiver.parse("L1H0.q", bridge) == (Head(1, 0), "q")


def test_a_bridge_without_names_for_what_heads_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bridge = random_bridge("gpt2")
    lacking = {name: point for name, point in bridge.hook_dict.items() if name != "blocks.1.attn.hook_k"}
    monkeypatch.setattr(type(bridge), "hook_dict", lacking)
    refuse(bridge).match(r"tiny \(GPT2LMHeadModel\) has no blocks\.1\.attn\.hook_k: what its heads read cannot be told")


def test_names_that_a_pass_does_not_come_by_are_refused_and_nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    bridge = random_bridge("gpt2")
    dead = {name: nn.Identity() if name == "blocks.1.attn.hook_v" else at for name, at in bridge.hook_dict.items()}
    monkeypatch.setattr(type(bridge), "hook_dict", dead)
    refuse(bridge).match(r"blocks\.1\.attn\.hook_v of tiny is not reached when its block runs: it cannot be set")
    assert not any(dead[name]._forward_hooks for name in output_path.head_points(1).values())
