"""A trained vector has the length that was asked for, and its gradient is that of whole passes of the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from bridges import random_bridge
from checkpoints import KINDS, random_hooked
from conftest import WORD_TEMPLATE, random_tokens

import ivlens
from ivlens.attribution.trained_vector import EVERY, answer_loss, read_ends
from ivlens.datasets.task import Task
from ivlens.errors import IvlensError, ModelError
from ivlens.forward.makers import forward_of
from ivlens.measures import answer_log_prob
from ivlens.patching.activations import differentiable_answer_logits
from ivlens.prompts.builders import zero_shot
from ivlens.prompts.tokens import Tokens, tokenize
from ivlens.shapes import Head
from ivlens.vectors.head_writing import write_vector

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

TOKENS = random_tokens(n=3, width=9, vocab=100)
SMALL: dict[str, Any] = {"shots": 3, "clean_prompts": 10, "template": WORD_TEMPLATE}


def loss_by_hooks(model: Any, tokens: Tokens, vector: torch.Tensor, layer: int) -> torch.Tensor:
    """Of whole passes, with the vector added by a hook."""
    last = tokens.prompts.shape[1] - 1

    def add(resid: torch.Tensor, hook: object) -> torch.Tensor:
        return torch.cat([resid[:, :last], resid[:, last : last + 1] + vector, resid[:, last + 1 :]], 1)

    with model.hooks(fwd_hooks=[(f"blocks.{layer}.hook_resid_post", add)]):
        logits = differentiable_answer_logits(model, tokens)
    return -answer_log_prob(logits, tokens.answers, tokens.answer_mask).mean()


def assert_gradients_agree(model: Any, layer: int, exact: float) -> None:
    vector = torch.randn(model.cfg.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vector.requires_grad_()
    ends = read_ends(model, TOKENS, layer)
    found = answer_loss(forward_of(model), ends, vector)
    slow = loss_by_hooks(model, TOKENS, vector, layer)
    torch.testing.assert_close(found, slow, rtol=0, atol=exact)
    gradients = [torch.autograd.grad(loss, vector)[0] for loss in (found, slow)]
    assert float(gradients[1].abs().max()) > 1e-3
    torch.testing.assert_close(*gradients, rtol=0, atol=exact)


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_those_of_whole_passes(kind: str, layer: int) -> None:
    assert_gradients_agree(random_hooked(kind), layer, 1e-10)


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.parametrize("name", ["neox", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gemma2", "gpt-neo"))])
def test_loss_and_gradient_of_a_bridge_are_those_of_whole_passes(name: str) -> None:
    assert_gradients_agree(random_bridge(name, torch.float64), 1, 1e-9 if name == "neox" else 1e-4)


def loss_of(model: HookedTransformer, task: Task, part: str, vector: torch.Tensor, layer: int) -> float:
    pairs = getattr(task.split(shots=3), part)[:10]
    return float(loss_by_hooks(model, tokenize(model, zero_shot(pairs, template=WORD_TEMPLATE)), vector, layer))


@pytest.mark.slow
def test_training_finds_a_vector_of_that_length_that_validates_better(tiny: HookedTransformer, word_task: Task) -> None:
    found = [ivlens.train_vector(tiny, word_task, layer=1, norm=5.0, steps=n, **SMALL) for n in (EVERY, 40)]
    losses = [loss_of(tiny, word_task, "validation", one.vector, 1) for one in found]
    assert losses[1] <= losses[0] < loss_of(tiny, word_task, "validation", torch.zeros(32, dtype=torch.float64), 1)
    for one in found:
        assert float(one.vector.norm()) == pytest.approx(5.0) and (one.layer, one.scale, one.heads) == (1, 1.0, ())
    again = ivlens.train_vector(tiny, word_task, layer=1, norm=5.0, steps=EVERY, **SMALL)
    assert torch.equal(again.vector, found[0].vector)
    other = ivlens.train_vector(tiny, word_task, layer=1, norm=5.0, steps=EVERY, seed=1, **SMALL)
    assert not torch.allclose(other.vector, again.vector)


@pytest.mark.slow
def test_it_stops_where_validation_no_longer_gains(
    tiny: HookedTransformer, word_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ivlens.attribution import trained_vector

    asked: list[bool] = []
    loss = trained_vector.answer_loss

    def count(forward: Any, ends: Any, vector: torch.Tensor) -> torch.Tensor:
        found = loss(forward, ends, vector)
        asked.append(vector.requires_grad)
        return found if vector.requires_grad else found.detach() + len(asked)  # Ever worse to check.

    monkeypatch.setattr(trained_vector, "answer_loss", count)
    found = ivlens.train_vector(tiny, word_task, layer=1, norm=5.0, **SMALL)
    assert asked.count(True) == EVERY * trained_vector.PATIENCE, "it goes on for so many looks, and no further"
    monkeypatch.undo()
    start = trained_vector._start(tiny, 0)
    torch.testing.assert_close(found.vector, 5.0 * start)


@pytest.mark.slow
def test_heads_are_weighed_and_their_sum_is_the_vector(
    tiny: HookedTransformer, word_task: Task, tmp_path: Path
) -> None:
    heads = [Head(0, 1), Head(2, 3), Head(1, 0)]
    found = ivlens.train_vector(tiny, word_task, layer=2, norm=3.0, form="heads", heads=heads, steps=10, **SMALL)
    assert found.heads == tuple(heads) and found.mean_z is not None
    torch.testing.assert_close(write_vector(tiny, found.mean_z, heads), found.vector)
    assert float(found.vector.norm()) == pytest.approx(3.0)
    doubled = ivlens.train_vector(
        tiny, word_task, layer=2, norm=3.0, form="heads", heads=heads, mean_z=2 * found.mean_z, steps=1, **SMALL
    )
    assert doubled.cosine(found) == pytest.approx(1.0, abs=1e-3), "it begins at the sum of what it is given"
    plain = ivlens.instruction_vector(tiny, word_task, heads=heads, layer=2, scale=1.0, **SMALL)
    assert 0 < found.cosine(plain) < 0.9999
    again = ivlens.InstructionVector.load(found.save(tmp_path / "trained.safetensors"))
    assert torch.equal(again.vector, found.vector) and again.heads == found.heads
    free = ivlens.train_vector(tiny, word_task, layer=2, norm=3.0, steps=EVERY, **SMALL)
    with ivlens.steered(tiny, ivlens.InstructionVector.load(free.save(tmp_path / "free.safetensors"))):
        assert ivlens.ask(tiny, zero_shot(word_task.pairs[:2], template=WORD_TEMPLATE)).first.isfinite().all()


def test_what_cannot_be_trained_is_refused(tiny: HookedTransformer, word_task: Task) -> None:
    for wrong, said in (
        ({"layer": 3}, "there is no layer 3"),
        ({"norm": 0.0}, "norm is 0.0; it must be a finite number above 0"),
        ({"steps": 0}, "steps is 0; it must be 1 or more"),
        ({"heads": [Head(0, 0)]}, "heads are given, but form='free' has none"),
        ({"form": "heads", "heads": [Head(0, 9)]}, "there is no head L0H9"),
    ):
        with pytest.raises(IvlensError, match=said):
            ivlens.train_vector(tiny, word_task, **{"layer": 1, "norm": 1.0, **wrong}, **SMALL)
    model = random_hooked("softcap")
    with pytest.raises(ModelError, match="random-softcap has a norm behind attention, so that heads cannot be weighed"):
        ivlens.train_vector(model, word_task, layer=1, norm=1.0, form="heads", **SMALL)
