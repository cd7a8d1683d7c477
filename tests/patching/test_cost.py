"""What a sweep is said to take on paper is what it computes, and the site's calculator says the same."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from checkpoints import random_hooked
from conftest import random_tokens
from torch.utils._python_dispatch import TorchDispatchMode
from transformer_lens import HookedTransformer

from ivlens.errors import PromptError
from ivlens.forward.memory import Budget
from ivlens.patching.cost import sweep_cost
from ivlens.patching.sweep import sweep
from ivlens.shapes import GIB


class Products(TorchDispatchMode):
    """Counts multiply-adds with matrices of two axes: weights. Attention's own products have three."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            left = args[1] if func.overloadpacket is torch.ops.aten.addmm else args[0]
            self.count += out.numel() * left.shape[-1]
        return out


@functools.cache
def wide(kind: str) -> HookedTransformer:
    return random_hooked(kind, n_layers=4, d_model=48, d_head=12, d_mlp=96, d_vocab=120)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("answer", [1, 3])
def test_the_products_on_paper_are_those_that_the_sweep_computes(kind: str, answer: int) -> None:
    model, pos = wide(kind), 14
    tokens = random_tokens(3, pos, answer)
    cfg, effect = model.cfg, "prob" if answer == 1 else "nll"
    z = torch.zeros(cfg.n_layers, cfg.n_heads, cfg.d_head, dtype=cfg.dtype)
    with Products() as products:
        sweep(model, tokens, z, effect=effect)
    assert sweep_cost(cfg, prompts=3, pos=pos, answer=answer).products == products.count


def test_memory_on_paper_is_the_budget_that_a_run_gets() -> None:
    model, memory = wide("llama"), 2**21
    tokens = random_tokens(20, 14, 1)
    n_rows = model.cfg.n_layers * model.cfg.n_heads
    found = Budget.of(model, tokens, n_rows, memory, others_seen=128)
    assert 1 < found.prompts < 20
    assert sweep_cost(model.cfg, prompts=20, pos=14, memory=memory).at_once == found.prompts


def test_weights_on_paper_are_the_matrices_of_the_model() -> None:
    model = wide("gpt2")
    matrices = sum(weight.numel() for name, weight in model.named_parameters() if "W_" in name and "W_pos" not in name)
    assert sweep_cost(model.cfg, pos=14).weights == matrices * model.cfg.dtype.itemsize


def test_a_prompt_that_does_not_fit_is_told() -> None:
    with pytest.raises(PromptError, match="one prompt of 100000 tokens needs"):
        sweep_cost(wide("llama").cfg, pos=100_000, memory=GIB // 16)
