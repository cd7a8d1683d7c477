"""The shares of a logit are those of a pass done by hand, and sum to it, on every kind of block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import rounding
import torch
from bridges import random_bridge
from checkpoints import KINDS, random_hooked
from conftest import WORD_TEMPLATE, random_tokens
from torch import Tensor

import ivlens
from ivlens.attribution.logit_parts import BIAS, EMBEDDING, MLP, READOUT, split_logits
from ivlens.attribution.writing import HeldNorm
from ivlens.datasets.task import Pair, Task
from ivlens.errors import IvlensError, ModelError, TaskError

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

pytestmark = pytest.mark.numeric

TOKENS = random_tokens(n=3, width=9, vocab=100)
SMALL: dict[str, Any] = {"shots": 3, "clean_prompts": 6, "prompts": 4, "template": WORD_TEMPLATE}


def uncapped(model: Any, tokens: Any) -> Tensor:
    """Logits at the last prompt token of each prompt alone, before a soft cap."""
    rows = [model(ids[mask][None])[0, -1] for ids, mask in zip(tokens.prompts, tokens.mask, strict=True)]
    logits, cap = torch.stack(rows), getattr(model.cfg, "output_logits_soft_cap", -1.0)
    return cap * torch.atanh(logits / cap) if cap > 0 else logits


def by_hand(model: Any, ids: Tensor, direction: Tensor) -> Tensor:
    """Shares of heads, biases and MLPs on one prompt, `[layer column]`, for norms that are written out here."""
    _, cache = model.run_with_cache(ids[None])
    final, centred = cache["resid_post", 2][0, -1], model.cfg.normalization_type == "LN"
    variance = (final - final.mean() * centred).square().mean()
    rows = []
    for layer in range(3):
        attn = model.blocks[layer].attn
        written = [cache["z", layer][0, -1, head] @ attn.W_O[head] for head in range(4)]
        written += [attn.b_O, cache["mlp_out", layer][0, -1]]
        held = [model.ln_final.w * (part - part.mean() * centred) for part in written]
        rows.append(torch.stack(held) @ direction / (variance + model.cfg.eps).sqrt())
    return torch.stack(rows)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_every_share_is_that_of_a_pass_done_by_hand(kind: str) -> None:
    model = random_hooked(kind)
    found = split_logits(model, TOKENS.first(), against="nothing")
    for row in range(len(TOKENS)):
        direction = model.unembed.W_U[:, TOKENS.answers[row, 0]]
        slow = by_hand(model, TOKENS.prompts[row][TOKENS.mask[row]], direction)
        exact = rounding.of_forward(model, TOKENS.prompts)
        torch.testing.assert_close(found.parts[row, :, :6], slow, rtol=0, atol=exact)
        start = found.parts[row, 0, 6]
        assert abs(float(start)) > 1e-3 and bool(found.parts[row, 1:, 6].isnan().all())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_sum_to_the_logit(kind: str) -> None:
    model, others = random_hooked(kind), torch.tensor([4, 5, int(TOKENS.answers[0, 0])])
    logits = uncapped(model, TOKENS)
    own = logits.gather(1, TOKENS.answers[:, :1])[:, 0]
    rest = torch.stack([row[others[others != a]].mean() for row, a in zip(logits, TOKENS.answers[:, 0], strict=True)])
    exact = rounding.of_forward(model, TOKENS.prompts) * 10
    against: Any
    for against, wanted in (("nothing", own), ("vocabulary", own - logits.mean(1)), (others, own - rest)):
        found = split_logits(model, TOKENS.first(), against=against)
        torch.testing.assert_close(found.logit, wanted, rtol=0, atol=exact)
        torch.testing.assert_close(found.parts.nansum((1, 2)), wanted, rtol=0, atol=exact)


@pytest.mark.parametrize("name", ["neox", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gemma2", "granite"))])
def test_the_parts_sum_to_the_logit_of_a_bridge(name: str) -> None:
    bridge: Any = random_bridge(name, torch.float64)
    found = split_logits(bridge, TOKENS.first(), against="vocabulary")
    torch.testing.assert_close(found.parts.nansum((1, 2)), found.logit, rtol=0, atol=1e-4)
    if name != "gemma2":  # Which caps its logits.
        logits = uncapped(bridge, TOKENS)
        own = logits.gather(1, TOKENS.answers[:, :1])[:, 0] - logits.mean(1)
        torch.testing.assert_close(found.logit, own, rtol=0, atol=1e-4)


@pytest.mark.parametrize("width", [7, 8])
@pytest.mark.parametrize("is_centred", [True, False])
def test_a_held_norm_is_the_norm_at_its_own_stream_and_linear(width: int, is_centred: bool) -> None:
    gain, bias, resid = torch.randn(3, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()

    def norm(given: Tensor) -> Tensor:
        given = given - given.mean(-1, keepdim=True) if is_centred else given
        return given / (given.square().mean(-1, keepdim=True) + 1e-2).sqrt() * gain + (bias if is_centred else 0.0)

    held = HeldNorm.at(norm, torch.stack([resid, 3 * resid]), name="it", dtype=torch.float64)
    assert held.is_centred is is_centred
    parts = torch.stack([resid / 3, 2 * resid / 3])[None].repeat(2, 1, 1) * torch.tensor([1.0, 3.0])[:, None, None]
    whole = held.of(parts).sum(1) + held.bias
    torch.testing.assert_close(whole, norm(torch.stack([resid, 3 * resid])), rtol=0, atol=1e-12)
    with pytest.raises(ModelError, match=r"it is neither a LayerNorm nor an RMSNorm \(off by [0-9.]+\): it has no"):
        HeldNorm.at(lambda x: torch.tanh(x) * gain, resid[None], name="it", dtype=torch.float64)


def test_a_run_tells_its_parts_by_name(tiny: HookedTransformer, word_task: Task) -> None:
    for on in ("clean", "corrupted"):
        found = ivlens.logit_attribution(tiny, word_task, on=on, **SMALL)
        assert found.columns == ("H0", "H1", "H2", "H3", BIAS, MLP, EMBEDDING, READOUT)
        torch.testing.assert_close(found.effects.nansum((1, 2)), found.baseline, rtol=0, atol=1e-9)
        assert "logit; top L" in repr(found) and len(found.top(19)) == 19
    with pytest.raises(IvlensError, match="k is 21, but there are 20 effects"):
        found.top(21)
    figure: Any = found.figure()
    assert figure.data[0].text[1][7] == "L1 readout: not measured"


def test_one_answer_for_all_cannot_be_told_from_others(tiny: HookedTransformer) -> None:
    task = Task(name="same", pairs=tuple(Pair(f"w{i}", "w50") for i in range(20)))
    with pytest.raises(TaskError, match="all answers of task 'same' begin with one token"):
        ivlens.logit_attribution(tiny, task, **SMALL)
