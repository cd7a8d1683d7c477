"""What the page on big models reckons is what ivlens reckons with."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ivlens.forward.bridge_forward import TOKENS_TOGETHER
from ivlens.forward.memory import Budget
from ivlens.patching.cost import Cost, sweep_cost
from ivlens.shapes import GIB

PAGE = Path(__file__).parents[2] / "docs" / "big_models.md"
# The letters of the page: layers, heads, key-value heads, width, MLP, vocabulary; tokens, prompts; bytes a number.
L, H, K, d, m, V, T, P, b = 80, 64, 8, 8192, 28672, 128256, 100, 25, 2
MIB = 2**20
WEIGHTS = L * (2 * d**2 + 2 * d**2 * K // H + 3 * d * m)
CACHES, ROWS = b * 2 * L * K * (d // H) * T, b * 2 * (1 + H * L) * d
READING, ROW = b * T * (6 * m + 8 * d + 4 * H * T), b * (6 * m + 8 * d + 4 * H * (T + 128))
INTO_HEADS = L * (d**2 + 2 * d**2 * K // H)
CARRIED = WEIGHTS + INTO_HEADS + H * (L - 1) // 2 * WEIGHTS + H * L * (d**2 + 3 * d * m) + (1 + H * L) * V * d


def shape() -> Any:
    """TransformerLens 4 describes a model by another class; the fields are the same."""
    sizes = {"n_layers": L, "n_heads": H, "n_key_value_heads": K, "d_model": d, "d_head": d // H, "d_mlp": m}
    return SimpleNamespace(**sizes, d_vocab=V, d_vocab_out=V, dtype=torch.bfloat16, attn_only=False, gated_mlp=True)


def cost(memory: int, bits: float = 0.0) -> Cost:
    return sweep_cost(shape(), prompts=P, pos=T, memory=memory, bits=bits)


@pytest.mark.parametrize("gib", [1, 2, 4, 8, 16, 64])
def test_the_formulas_of_the_page_are_those_of_the_budget(gib: int) -> None:
    found = Budget.of_sizes(shape(), P, T, 1, H * L, gib * GIB, others_seen=TOKENS_TOGETHER)
    half = (gib * GIB - 64 * MIB) // 2
    prompts = min(P, half // (CACHES + ROWS + READING + ROW))
    assert found == Budget(prompts=prompts, rows=half // (ROW * prompts), logits=half // ((b + 8) * V))


def test_the_formulas_of_the_page_are_those_of_the_cost() -> None:
    assert cost(2 * GIB) == Cost(
        weights=b * (WEIGHTS + 2 * V * d),
        kept=CACHES + ROWS,
        at_once=4,
        reading=T * WEIGHTS,
        products=P * (T * WEIGHTS + CARRIED),
    )


def test_the_numbers_of_the_page_come_from_its_formulas() -> None:
    lines = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    found = {
        "weights in bfloat16": f"{cost(2 * GIB).weights / GIB:.1f} GiB",
        "weights in 4 bits (4.5 with their scales), embedding and unembedding in 16": (
            f"{cost(2 * GIB, bits=4.5).weights / GIB:.1f} GiB"
        ),
        "keys and values of a prompt": f"{CACHES / MIB:.1f} MiB",
        "rows of a prompt": f"{ROWS / MIB:.1f} MiB",
        "prompts of a batch in 2 GiB": str(cost(2 * GIB).at_once),
        "prompts of a batch in 8 GiB": str(cost(8 * GIB).at_once),
        "multiply-adds of the sweep": f"{cost(2 * GIB).products / 1e15:.1f} · 10¹⁵",
        "seconds of its products, at 400 · 10¹² operations a second": f"{2 * cost(2 * GIB).products / 400e12:.0f}",
    }
    assert {name: lines.get(name) for name in found} == found
