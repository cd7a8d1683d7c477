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
from ivlens.prompts.tokens import Tokens
from ivlens.shapes import GIB

PAGE = Path(__file__).parents[2] / "docs" / "big_models.md"
# The letters of the page: layers, heads, key-value heads, width, MLP, vocabulary; tokens, prompts; bytes a number.
L, H, K, d, m, V, T, P, b = 80, 64, 8, 8192, 28672, 128256, 100, 25, 2
MIB = 2**20
WEIGHTS = L * (2 * d**2 + 2 * d**2 * K // H + 3 * d * m)
CACHES, ROWS = b * 2 * L * K * (d // H) * T, b * 2 * (1 + H * L) * d
READING, ROW = b * T * (6 * m + 8 * d + 4 * H * T), b * (6 * m + 8 * d + 4 * H * (T + 128))
WORK = P * (T * WEIGHTS + H * (L - 1) // 2 * WEIGHTS + H * L * (d**2 + 3 * d * m) + (1 + H * L) * V * d)


def budget(memory: int) -> Budget:
    fields = {"n_layers": L, "n_heads": H, "n_key_value_heads": K, "d_model": d, "d_head": d // H, "d_mlp": m}
    model: Any = SimpleNamespace(
        cfg=SimpleNamespace(**fields, d_vocab_out=V, dtype=torch.bfloat16, attn_only=False),
    )
    prompts, answers = torch.zeros(P, T, dtype=torch.long), torch.zeros(P, 1, dtype=torch.long)
    tokens = Tokens(prompts=prompts, mask=prompts == 0, answers=answers, answer_mask=answers == 0)
    return Budget.of(model, tokens, H * L, memory, others_seen=TOKENS_TOGETHER)


@pytest.mark.parametrize("gib", [1, 2, 4, 8, 16, 64])
def test_the_formulas_of_the_page_are_those_of_the_budget(gib: int) -> None:
    found, half = budget(gib * GIB), (gib * GIB - 64 * MIB) // 2
    prompts = min(P, half // (CACHES + ROWS + READING + ROW))
    assert found == Budget(prompts=prompts, rows=half // (ROW * prompts), logits=half // ((b + 8) * V))


def test_the_numbers_of_the_page_come_from_its_formulas() -> None:
    lines = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    found = {
        "weights in bfloat16": f"{b * (WEIGHTS + 2 * V * d) / GIB:.1f} GiB",
        "weights in 4 bits (4.5 with their scales), embedding and unembedding in 16": (
            f"{(WEIGHTS * 4.5 / 8 + b * 2 * V * d) / GIB:.1f} GiB"
        ),
        "keys and values of a prompt": f"{CACHES / MIB:.1f} MiB",
        "rows of a prompt": f"{ROWS / MIB:.1f} MiB",
        "prompts of a batch in 2 GiB": str(budget(2 * GIB).prompts),
        "prompts of a batch in 8 GiB": str(budget(8 * GIB).prompts),
        "multiply-adds of the sweep": f"{WORK / 1e15:.1f} · 10¹⁵",
        "seconds of its products, at 400 · 10¹² operations a second": f"{2 * WORK / 400e12:.0f}",
    }
    assert {name: lines.get(name) for name in found} == found
