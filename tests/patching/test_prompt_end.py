"""What is steered is a token of the prompt, whatever is read behind it: in a batch as alone and unpadded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from checkpoints import random_hooked
from conftest import WORD_TEMPLATE, random_tokens
from small import alone, edited
from torch import Tensor
from transformer_lens import HookedTransformer

import ivlens
from ivlens.datasets.task import Pair, Task
from ivlens.errors import IvlensError
from ivlens.measures import kl_divergence, token_log_probs
from ivlens.patching import interventions, sweep
from ivlens.patching.activations import answer_logits, last_z, score_answers
from ivlens.patching.interventions import Change
from ivlens.patching.settings import Settings
from ivlens.prompts.builders import zero_shot
from ivlens.prompts.tokens import Tokens, tokenize
from ivlens.shapes import Head
from ivlens.steering import rows as steering_rows
from ivlens.steering.steered_model import steered
from ivlens.steering.vector_building import instruction_vector
from ivlens.training.guidance import steer_answers
from ivlens.vectors.instruction_vector import InstructionVector

pytestmark = pytest.mark.numeric

TOKENS = random_tokens(6, 16, 4, vocab=100)  # Answers of 1, 2, 3, 4, 1 and 2 tokens; prompts of 6 to 16.
NEAR = {"rtol": 0, "atol": 1e-11}
"""Rounding of float64 over three layers."""


@pytest.fixture(scope="module")
def vector(tiny: HookedTransformer, word_task: Task) -> InstructionVector:
    heads = [Head(0, 1), Head(1, 2), Head(2, 3)]
    settings = Settings(shots=3, clean_prompts=12, prompts=6, template=WORD_TEMPLATE)
    made = instruction_vector(tiny, word_task, heads=heads, layer=1, scale=2.0, settings=settings)
    assert len({tuple(answer) for answer in TOKENS.answer_mask.tolist()}) == 4
    return made


def by_hand(
    model: HookedTransformer,
    tokens: Tokens,
    edits: dict[str, Callable[[Tensor], Tensor]],
    *,
    every_token: bool = False,
    position: int = -1,
) -> list[Tensor]:
    """Logits that predict each prompt's answer, run alone and unpadded, changed at the prompt's own token."""
    found = []
    for row in range(len(tokens)):
        prompt, answer = alone(tokens, row)
        column = len(prompt) + position if position < 0 else position
        with edited(model, slice(column, None if every_token else column + 1), edits):
            found.append(model(torch.cat([prompt, answer[:-1]])[None])[0, len(prompt) - 1 :])
    return found


def assert_alike(batched: Tensor, single: list[Tensor]) -> None:
    for row, logits in enumerate(single):
        torch.testing.assert_close(batched[row, : len(logits)], logits, **NEAR)


def added(vector: Tensor, layer: int = 1) -> dict[str, Callable[[Tensor], Tensor]]:
    return {f"blocks.{layer}.hook_resid_post": lambda resid: resid + vector}


@pytest.mark.parametrize("every_token", [False, True])
@pytest.mark.parametrize("scale", [None, -1.5])
def test_steering_a_batch_of_unequal_answers_is_steering_each_prompt_alone(
    tiny: HookedTransformer, vector: InstructionVector, scale: float | None, every_token: bool
) -> None:
    with steered(tiny, vector, scale=scale, every_token=every_token):
        batched = answer_logits(tiny, TOKENS)
    wanted = (2.0 if scale is None else scale) * vector.vector
    assert_alike(batched, by_hand(tiny, TOKENS, added(wanted), every_token=every_token))


@pytest.mark.parametrize("position", [-3, 0, 2])
def test_positions_are_counted_in_the_prompts_own_tokens(
    tiny: HookedTransformer, vector: InstructionVector, position: int
) -> None:
    with steered(tiny, vector, position=position):
        batched = answer_logits(tiny, TOKENS)
    assert_alike(batched, by_hand(tiny, TOKENS, added(2 * vector.vector), position=position))
    refused = pytest.raises(IvlensError, match="position is -7, but a prompt has only 6 tokens")
    with refused, steered(tiny, vector, position=-7):
        answer_logits(tiny, TOKENS)


@pytest.mark.parametrize("every_token", [False, True])
@pytest.mark.parametrize("positions", [[-1], (0, -1), (2, -3, -1), (-1, -1)])
def test_several_tokens_are_steered_each_once(
    tiny: HookedTransformer, vector: InstructionVector, positions: Sequence[int], every_token: bool
) -> None:
    with steered(tiny, vector, position=positions, every_token=every_token):
        batched = answer_logits(tiny, TOKENS)
    found = []
    for row in range(len(TOKENS)):
        prompt, answer = alone(TOKENS, row)
        columns = {len(prompt) + one if one < 0 else one for one in positions}
        with ExitStack() as stack:
            for column in [min(columns)] if every_token else columns:
                at = slice(column, None if every_token else column + 1)
                stack.enter_context(edited(tiny, at, added(2 * vector.vector)))
            found.append(tiny(torch.cat([prompt, answer[:-1]])[None])[0, len(prompt) - 1 :])
    assert_alike(batched, found)


@pytest.mark.parametrize("position", [(), True])
def test_what_is_no_position_is_refused(tiny: HookedTransformer, vector: InstructionVector, position: Any) -> None:
    with pytest.raises(IvlensError, match="give the number of a token, such as -1, or several"):
        steered.__wrapped__(tiny, vector, position=position).__next__()


@pytest.mark.parametrize("layer", [1, 2])
def test_vectors_inside_one_another_are_each_added(
    tiny: HookedTransformer, vector: InstructionVector, layer: int
) -> None:
    other = replace(vector, vector=vector.vector.flip(0), layer=layer, scale=0.5)
    with steered(tiny, vector), steered(tiny, other):
        batched = answer_logits(tiny, TOKENS)
    first, second = added(2 * vector.vector), added(0.5 * other.vector, layer)
    if layer == vector.layer:
        first, second = added(2 * vector.vector + 0.5 * other.vector), {}
    assert_alike(batched, by_hand(tiny, TOKENS, first | second))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_distributed_steering_writes_scaled_means_at_the_prompts_own_token(
    tiny: HookedTransformer, vector: InstructionVector, scale: float
) -> None:
    def write(head: Head) -> Callable[[Tensor], Tensor]:
        def edit(z: Tensor) -> Tensor:
            z = z.clone()
            z[:, :, head.head] = scale * vector.mean_z[head]
            return z

        return edit

    with steered(tiny, vector, site="distributed", scale=scale):
        batched = answer_logits(tiny, TOKENS)
    edits = {f"blocks.{head.layer}.attn.hook_z": write(head) for head in vector.heads}
    assert_alike(batched, by_hand(tiny, TOKENS, edits))
    with steered(tiny, vector, site="distributed", scale=1.0):
        patched = answer_logits(tiny, TOKENS)
    with steered(tiny, vector, site="distributed"):
        assert torch.equal(answer_logits(tiny, TOKENS), patched), "the vector's own scale is of the other site"


def test_nested_steering_adds_both_at_the_prompts_own_token(tiny: HookedTransformer, vector: InstructionVector) -> None:
    with steered(tiny, vector), steered(tiny, vector, layer=2, scale=-0.5):
        batched = answer_logits(tiny, TOKENS)
    assert_alike(batched, by_hand(tiny, TOKENS, added(2 * vector.vector) | added(-0.5 * vector.vector, layer=2)))


@pytest.mark.slow
def test_asking_a_steered_model_gives_each_query_what_it_gets_alone(
    tiny: HookedTransformer, vector: InstructionVector
) -> None:
    pairs = [
        Pair(f"w{i} w{i + 1}" if i % 2 else f"w{i}", " ".join(f"w{20 + i + j}" for j in range(1 + i % 4)))
        for i in range(7)
    ]
    prompts = zero_shot(pairs, template=WORD_TEMPLATE)
    with steered(tiny, vector, scale=4.0):
        together = ivlens.ask(tiny, prompts)
        single = [ivlens.ask(tiny, [prompt]) for prompt in prompts]
    tokens = tokenize(tiny, prompts)
    assert set(tokens.answer_mask.sum(1).tolist()) == {1, 2, 3, 4}
    logits = torch.stack([one[0] for one in by_hand(tiny, tokens, added(4 * vector.vector))])
    wanted = logits.softmax(-1).gather(1, tokens.answers[:, :1])[:, 0]
    torch.testing.assert_close(together.first, wanted, **NEAR)
    torch.testing.assert_close(together.first, torch.cat([one.first for one in single]), **NEAR)
    assert together.right.tolist() == [bool(one.right) for one in single]
    assert together.said == tuple(one.said[0] for one in single)


def test_patching_inside_a_steered_model_patches_and_steers_the_same_token(
    tiny: HookedTransformer, vector: InstructionVector
) -> None:
    z = torch.randn(3, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with steered(tiny, vector):
        before, cie = sweep.loop(tiny, TOKENS, z, effect="nll")
    for head in (Head(0, 0), Head(2, 1)):

        def patch(heads: Tensor, head: Head = head) -> Tensor:
            heads = heads.clone()
            heads[:, :, head.head] = z[head]
            return heads

        edits = added(2 * vector.vector) | {f"blocks.{head.layer}.attn.hook_z": patch}
        for row, logits in enumerate(by_hand(tiny, TOKENS, edits)):
            answer = alone(TOKENS, row)[1]
            wanted = token_log_probs(logits, answer).sum()
            torch.testing.assert_close(before[row] + cie[row, head.layer, head.head], wanted, **NEAR)


def test_rows_of_one_pass_equal_steering(tiny: HookedTransformer, vector: InstructionVector) -> None:
    layers, scales = [2, 0, 1, 0], [1.0, -2.0, 16.0, 0.5]
    vectors = torch.tensor(scales, dtype=torch.float64)[:, None] * vector.vector
    found = steering_rows.steer_rows(tiny, TOKENS, vectors, layers)
    for row, (layer, scale) in enumerate(zip(layers, scales, strict=True), start=1):
        with steered(tiny, vector, layer=layer, scale=scale):
            right, first = score_answers(tiny, TOKENS)
        torch.testing.assert_close(found.first[:, row], first, **NEAR)
        assert found.match[:, row].tolist() == right.tolist()


def test_changes_of_dependence_are_made_at_the_prompts_own_token(
    tiny: HookedTransformer, vector: InstructionVector
) -> None:
    found = interventions.run_changes(tiny, TOKENS, [Change(added=vector.added)], layer=1, z=vector.mean_z)
    with steered(tiny, vector):
        right, first = score_answers(tiny, TOKENS)
    torch.testing.assert_close(found.probability[:, 1], first, **NEAR)
    assert found.match[:, 1].tolist() == right.tolist()


def test_changes_of_unequal_answers_are_each_a_run_of_its_own(
    tiny: HookedTransformer, vector: InstructionVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads ablated, a vector added, both; rows carry no longer answer than their prompt has."""
    tokens = TOKENS[torch.tensor([2, 0, 5, 4])]  # Answers of 3, 1, 2 and 1 tokens.
    heads, z = (Head(0, 2), Head(2, 0), Head(2, 1)), torch.randn_like(vector.mean_z)
    changes = [Change(ablated=heads), Change(added=vector.added), Change(added=-vector.added, ablated=heads[:1])]
    carry, carried = interventions._carry, list[Tokens]()

    def count(forward: Any, batch: Tokens, planned: Any) -> Tensor:
        carried.append(batch)
        return carry(forward, batch, planned)

    monkeypatch.setattr(interventions, "_carry", count)
    found = interventions.run_changes(tiny, tokens, changes, layer=1, z=z, shifted=[0, 3])
    assert all(bool(batch.answer_mask.all()) for batch in carried) and sum(map(len, carried)) == len(tokens)

    def edits(change: Change) -> dict[str, Callable[[Tensor], Tensor]]:
        def ablate(layer: int, own: Tensor) -> Tensor:
            own = own.clone()
            for head in (head for head in change.ablated if head.layer == layer):
                own[:, :, head.head] = z[head]
            return own

        hooks = {f"blocks.{layer}.attn.hook_z": partial(ablate, layer) for layer in range(3)}
        return hooks | ({} if change.added is None else added(change.added))

    plain = by_hand(tiny, tokens, {})
    for row, change in enumerate([Change(), *changes]):
        for prompt, logits in enumerate(by_hand(tiny, tokens, edits(change))):
            answer = alone(tokens, prompt)[1]
            first = token_log_probs(logits[0], answer[0]).exp()
            torch.testing.assert_close(found.probability[prompt, row], first, **NEAR)
            assert bool(found.match[prompt, row]) == bool((logits.argmax(-1) == answer).all())
            shift = kl_divergence(plain[prompt][0], logits[0])
            wanted = shift if row in (0, 3) else torch.full_like(shift, torch.nan)
            torch.testing.assert_close(found.shift[prompt, row], wanted, **NEAR, equal_nan=True)


def test_guidance_steers_every_token_that_predicts_the_answer(
    tiny: HookedTransformer, vector: InstructionVector
) -> None:
    with torch.no_grad(), steer_answers(tiny, TOKENS, vector.added.expand(6, -1), 1):
        batched = answer_logits(tiny, TOKENS)
    with steered(tiny, vector, every_token=True):
        torch.testing.assert_close(batched, answer_logits(tiny, TOKENS), **NEAR)
    assert_alike(batched, by_hand(tiny, TOKENS, added(vector.added), every_token=True))


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("every_token", [False, True])
def test_generation_steers_each_prompt_of_a_padded_batch_as_alone(
    tiny: HookedTransformer, vector: InstructionVector, every_token: bool, cache: bool
) -> None:
    prompts = TOKENS.prompts[TOKENS.mask.sum(1) == 16], *(alone(TOKENS, row)[0][None] for row in (2, 5))
    for prompt in prompts:
        with steered(tiny, vector, scale=3.0, every_token=every_token):
            options = {"do_sample": False, "verbose": False, "stop_at_eos": False, "use_past_kv_cache": cache}
            written = tiny.generate(prompt, max_new_tokens=4, **options)
        ids = prompt
        for _ in range(4):
            column = prompt.shape[1] - 1
            with edited(tiny, slice(column, None if every_token else column + 1), added(3 * vector.vector)):
                ids = torch.cat([ids, tiny(ids)[:, -1:].argmax(-1)], dim=1)
        assert written.tolist() == ids.tolist()


def test_texts_of_unequal_length_are_steered_at_their_own_ends(
    tiny: HookedTransformer, vector: InstructionVector
) -> None:
    texts = ["w1 w2 w3 w4", "w5 w6"]
    with steered(tiny, vector):
        together = tiny(texts, padding_side="right")
        single = [tiny(text) for text in texts]
    for row, logits in enumerate(single):
        torch.testing.assert_close(together[row, : logits.shape[1]], logits[0], **NEAR)


def test_following_a_model_leaves_no_trace(tiny: HookedTransformer, vector: InstructionVector) -> None:
    with pytest.raises(ZeroDivisionError), steered(tiny, vector), steered(tiny, replace(vector, layer=2)):
        raise ZeroDivisionError
    assert "generate" not in vars(tiny)
    assert not any(module._forward_pre_hooks for module in tiny.modules())
    assert all(not point.fwd_hooks for point in tiny.hook_dict.values())


@pytest.mark.parametrize("kind", ["gpt2", "neox", "alibi", "local"])
def test_steered_answers_are_those_of_prompts_alone_on_other_architectures(kind: str) -> None:
    model = random_hooked(kind)
    generator = torch.Generator().manual_seed(5)
    made = torch.randn(model.cfg.d_model, dtype=torch.float64, generator=generator)
    other = InstructionVector(
        vector=made, heads=(), layer=0, mean_z=None, settings=None, task="t", task_digest="", model="", model_digest=""
    )
    with steered(model, other, scale=2.0):
        batched = answer_logits(model, TOKENS)
    assert_alike(batched, by_hand(model, TOKENS, added(2 * made, layer=0)))
    assert last_z(model, TOKENS).shape[0] == 6
