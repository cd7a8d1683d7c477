"""A training, a comparison and a study give on a TransformerBridge what they give on a HookedTransformer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import WORD_TEMPLATE, random_tokens
from small import small_model, small_plan, small_tokens
from torch import Tensor
from transformer_lens import HookedTransformer

import ivlens
from ivlens.datasets.task import Task
from ivlens.models import lora
from ivlens.models.lora import Adapter, Factors, LoraConfig
from ivlens.shapes import Head
from ivlens.training.guidance import GUIDANCE, Guide
from ivlens.training.loop import Examples, Step, Training, finetune
from ivlens.training.methods import METHODS, History

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]

Folders = Callable[[str], Path]
TRAINING = Training(steps=5, batch=4, rate=0.01, warmup=1, accumulate=2)
# What transformers computes in float32 whatever the weights are makes the rest of the difference.
NEAR = {"gpt2": 1e-9, "neox": 1e-6, "llama-gqa": 1e-4, "gemma2": 1e-4}


def pair(folders: Folders, family: str) -> tuple[HookedTransformer, HookedTransformer]:
    hooked, bridge = (ivlens.load(folders(family), dtype="float64", backend=maker) for maker in ("hooked", "bridge"))
    bridge.cfg.default_prepend_bos = hooked.cfg.default_prepend_bos
    return hooked, bridge


def filled(adapter: Adapter) -> Adapter:
    generator = torch.Generator().manual_seed(5)
    factors = {
        name: Factors(a, torch.randn(b.shape, generator=generator, dtype=b.dtype) * 0.1)
        for name, (a, b) in adapter.factors.items()
    }
    return Adapter(factors=factors, scale=adapter.scale)


def train(model: HookedTransformer, *, form: str | None, method: str) -> tuple[list[Step], list[Tensor]]:
    """Steps of a second stage on top of a first one's adapter, guided or not."""
    config = LoraConfig(rank=2, targets=("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out"))
    old, adapter = filled(lora.fresh(model, config, seed=1)), lora.fresh(model, config, seed=2)
    tokens = random_tokens(8, 18, 3, vocab=100)
    examples = Examples(prompts=tokens, bare=random_tokens(8, 18, 3, vocab=100, seed=1), new=8)
    vectors = torch.randn(2, model.cfg.d_model, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    used = METHODS[method]()
    used.begin(model, History(adapters=(old,), tokens=(tokens[:2],)))
    guide = form and Guide(
        guidance=GUIDANCE[form], vectors=vectors, layer=1, heads=(Head(0, 1), Head(2, 3)),
        teacher=lambda: lora.silenced(model),
    )  # fmt: skip
    with lora.attached(model, old, adapter):
        steps = list(finetune(model, adapter, examples, TRAINING, method=used, guide=guide or None, seed=3))
    return steps, [factor.detach() for factor in adapter.parameters()]


@pytest.mark.long
@pytest.mark.parametrize(
    ("family", "form", "method"),
    [
        ("gpt2", None, "lora"),
        ("gpt2", "iv", "ewc"),
        ("gpt2", "fv", "lwf"),
        ("gpt2", "iv-general", "olora"),
        ("neox", "fv-published", "lora"),
        ("llama-gqa", None, "lora"),
        ("llama-gqa", "iv-general", "lora"),
        ("gemma2", "iv", "lora"),
    ],
)
def test_a_training_takes_the_same_steps_on_both(family: str, form: str | None, method: str, folders: Folders) -> None:
    hooked, bridge = pair(folders, family)
    (steps, factors), (own, ours) = (train(model, form=form, method=method) for model in (hooked, bridge))
    near = NEAR[family]
    np.testing.assert_allclose([one[1:] for one in own], [one[1:] for one in steps], rtol=near, atol=near)
    # Adam divides by what is almost nothing where a gradient almost vanishes.
    for one, other in zip(ours, factors, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6 if near < 1e-6 else 1e-2)
    assert steps[0].loss != steps[-1].loss and (form is None or steps[0].penalty > 0)


def test_a_comparison_with_an_adapter_is_the_same_on_both(folders: Folders, word_task: Task) -> None:
    hooked, bridge = pair(folders, "gpt2")
    adapter = filled(lora.fresh(hooked, LoraConfig(rank=2)))
    short: dict[str, Any] = {"shots": 2, "clean_prompts": 4, "prompts": 4, "queries": 4, "draws": 1, "top": 2}
    wanted, found = (
        ivlens.compare(model, adapter, word_task, template=WORD_TEMPLATE, **short) for model in (hooked, bridge)
    )
    np.testing.assert_allclose(found.tuned.aie, wanted.tuned.aie, atol=1e-9)
    for table in ("measures", "drift"):
        ours, theirs = (getattr(one, table).select_dtypes("number") for one in (found, wanted))
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.slow
def test_a_study_is_the_same_on_both(lab: HookedTransformer, tmp_path: Path) -> None:
    bridge = ivlens.load("lab", backend="bridge")
    plan = small_plan(methods=("lora+iv",), training=Training(steps=2, batch=4, warmup=1))
    wanted, found = (
        ivlens.study(plan, out=tmp_path / name, model=model) for name, model in (("hooked", lab), ("bridge", bridge))
    )
    same = ["seed", "stage", "task", "kind", "measure", "heads"]
    ours, theirs = (one.evaluations.sort_values(same, ignore_index=True) for one in (found, wanted))
    assert ours[same].equals(theirs[same])
    np.testing.assert_allclose(ours["value"], theirs["value"], atol=2e-4)
    np.testing.assert_allclose(found.steps["loss"], wanted.steps["loss"], rtol=1e-4)


def test_a_model_that_asks_for_gradients_itself_gets_none_from_a_training() -> None:
    model = small_model()
    model.requires_grad_(True)
    adapter = lora.fresh(model, LoraConfig(rank=2))
    tokens = small_tokens(4)
    examples = Examples(prompts=tokens, bare=tokens, new=4)
    with lora.attached(model, adapter):
        list(finetune(model, adapter, examples, Training(steps=1, batch=2), method=METHODS["lora"]()))
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
