"""Prompts that begin alike are answered as each one is alone, however much of them was read together."""

from __future__ import annotations

import pytest
import torch
from bridges import random_bridge
from checkpoints import random_hooked
from conftest import random_tokens
from small import logits_alone

from ivlens.measures import first_token_probability
from ivlens.patching.activations import score_answers
from ivlens.patching.shared_beginnings import score_groups
from ivlens.prompts.tokens import Tokens

pytestmark = pytest.mark.numeric

SIZES = (3, 0, 1, 4)
SHARED = 5
"""Tokens that the prompts of the first group begin with."""
WIDTH = 18


def grouped() -> Tokens:
    """Groups of prompts of different lengths, whose answers are of one to four tokens; others share nothing."""
    tokens = random_tokens(sum(SIZES), WIDTH, 4, vocab=100)
    for row in range(SIZES[0]):
        start = WIDTH - int(tokens.mask[row].sum())
        tokens.prompts[row, start : start + SHARED] = torch.arange(7, 7 + SHARED)
    return tokens


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_answers_are_those_of_each_prompt_alone(kind: str) -> None:
    model, tokens = random_hooked(kind), grouped()
    right, first = score_groups(model, tokens, SIZES)
    assert len(right) == len(first) == len(tokens)
    for row in range(len(tokens)):
        logits = logits_alone(model, tokens, row)
        n = int(tokens.answer_mask[row].sum())
        assert bool(right[row]) == (logits[:n].argmax(-1).tolist() == tokens.answers[row, :n].tolist())
        wanted = first_token_probability(logits[None], tokens.answers[row : row + 1, :n])
        assert float(first[row]) == pytest.approx(float(wanted), rel=1e-9)


def test_a_bridge_which_reads_prompts_whole_gives_the_same_answers() -> None:
    bridge, tokens = random_bridge("llama", torch.float64), grouped()
    (right, first), (all_right, all_first) = score_groups(bridge, tokens, SIZES), score_answers(bridge, tokens)
    assert torch.equal(right, all_right)
    torch.testing.assert_close(first, all_first, rtol=2e-5, atol=0)


def test_what_is_shared_is_read_once() -> None:
    model, tokens, read = random_hooked("llama"), grouped(), []
    model.embed.register_forward_hook(lambda module, given, out: read.append(given[0].numel()))
    score_groups(model, tokens[: SIZES[0]], SIZES[:1])
    longest = max(int(tokens.mask[row].sum() + tokens.answer_mask[row].sum()) for row in range(SIZES[0]))
    assert read == [SHARED, SIZES[0] * (longest - 1 - SHARED)]
