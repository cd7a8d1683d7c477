"""What heads put out is read no further than the last layer that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from bridges import random_bridge
from checkpoints import random_hooked
from conftest import WORD_TEMPLATE, random_tokens
from transformer_lens import HookedTransformer

from ivlens.datasets.task import Pair, Task
from ivlens.patching.activations import answer_logits, mean_z
from ivlens.patching.effects import task_mean_z
from ivlens.patching.settings import Settings
from ivlens.shapes import Head
from ivlens.steering.controls import other_task_vectors, with_norm
from ivlens.vectors.head_writing import write_vector

pytestmark = pytest.mark.numeric

TOKENS = random_tokens(vocab=100)
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: random_hooked("llama"),
    "neox": lambda: random_hooked("neox"),
    "bridge": lambda: random_bridge("gpt2", torch.float64),
}


@contextmanager
def watched(module: torch.nn.Module) -> Iterator[list[str]]:
    """Grows with every run of a module inside the `with` block."""
    ran: list[str] = []
    handle = module.register_forward_pre_hook(lambda *_: ran.append("ran"))
    yield ran
    handle.remove()


@pytest.mark.parametrize("name", MODELS)
def test_means_of_the_first_layers_are_those_of_all_and_no_layer_behind_them_is_run(name: str) -> None:
    model = MODELS[name]()
    whole, plain = mean_z(model, TOKENS), answer_logits(model, TOKENS)
    with watched(model.blocks[1].mlp) as mlp, watched(model.blocks[2]) as behind:
        found = mean_z(model, TOKENS, layers=2)
        assert not mlp and not behind
        assert torch.equal(answer_logits(model, TOKENS), plain), "hooks are left"
        assert mlp and behind
    assert torch.equal(found[:2], whole[:2])
    assert bool(found[2:].isnan().all())


def test_another_tasks_vector_is_read_up_to_its_highest_head(tiny: HookedTransformer, word_task: Task) -> None:
    other = Task(name="other", pairs=tuple(Pair(f"w{n}", f"w{n + 3}") for n in range(20)))
    heads, settings = (Head(1, 2), Head(0, 1)), Settings(shots=2, clean_prompts=5, prompts=4, template=WORD_TEMPLATE)
    wanted = write_vector(tiny, task_mean_z(tiny, other, settings), heads)
    with watched(tiny.blocks[2]) as last:
        found = other_task_vectors(tiny, heads, [other], settings, norm=3.0)
    torch.testing.assert_close(found["other"], with_norm(wanted[None], 3.0)[0], rtol=0, atol=1e-12)
    assert not last
