"""What one model computes is put into another, and what comes out is between the two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from checkpoints import build
from conftest import WORD_TEMPLATE

import ivlens
from ivlens.attribution import site_sweep
from ivlens.attribution.site import SITES, Site, read_values
from ivlens.attribution.site_patching import own_twins
from ivlens.datasets.task import Task
from ivlens.errors import IvlensError, ShapeMismatch
from ivlens.patching.effects import find_queries
from ivlens.patching.settings import Settings
from ivlens.prompts.roles import find_columns
from ivlens.prompts.tokens import tokenize

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

SETTINGS = Settings(shots=3, clean_prompts=6, prompts=4, template=WORD_TEMPLATE)


@pytest.fixture(scope="module")
def other(tiny: HookedTransformer, tmp_path_factory: pytest.TempPathFactory) -> HookedTransformer:
    """The tiny model with other weights from layer 1 on, up to the last block."""
    model = ivlens.load(build("llama", tmp_path_factory.mktemp("other") / "model"), dtype="float64")
    for name, weight in model.blocks[1:].named_parameters():
        if "W_" in name:
            weight.data += 0.1 * torch.randn(
                weight.shape, dtype=weight.dtype, generator=torch.Generator().manual_seed(1)
            )
    return model


def clean_tokens(model: HookedTransformer, task: Task) -> Any:
    prompts = own_twins(task, SETTINGS, find_queries(model, task, SETTINGS))
    return prompts, tokenize(model, prompts)


@pytest.mark.slow
@pytest.mark.parametrize("site", SITES)
def test_effects_of_a_donor_are_those_of_one_run_each(
    tiny: HookedTransformer, other: HookedTransformer, word_task: Task, site: Site
) -> None:
    found = ivlens.donor_effects(tiny, other, word_task, site=site, positions="query", settings=SETTINGS)
    prompts, tokens = clean_tokens(tiny, word_task)
    where = find_columns(tiny, prompts, tokens, "query")
    slow = site_sweep.loop(tiny, tokens, where, read_values(other, tokens, where, site), site)
    torch.testing.assert_close((found.baseline, found.effects), slow, rtol=0, atol=1e-10)
    assert float(found.effects[:, 0].abs().max()) < 1e-12 or site == "resid_post", "layer 0 is the same in both"


def test_the_last_stream_of_the_donor_gives_the_answer_of_the_donor(
    tiny: HookedTransformer, other: HookedTransformer, word_task: Task
) -> None:
    into = ivlens.donor_effects(tiny, other, word_task, settings=SETTINGS)
    back = ivlens.donor_effects(other, tiny, word_task, settings=SETTINGS)
    torch.testing.assert_close(into.baseline + into.effects[:, -1, 0], back.baseline, rtol=0, atol=1e-10)
    torch.testing.assert_close(back.baseline + back.effects[:, -1, 0], into.baseline, rtol=0, atol=1e-10)
    assert float(into.effects.abs().max()) > 1e-4 and into.site.startswith("resid_post of ")


def test_a_model_is_no_donor_to_itself(tiny: HookedTransformer, word_task: Task) -> None:
    found = ivlens.donor_effects(tiny, tiny, word_task, site="heads", on="corrupted", settings=SETTINGS)
    assert float(found.effects.abs().max()) < 1e-12 and found.of_heads


@pytest.mark.slow
def test_models_that_do_not_fit_are_refused(
    tiny: HookedTransformer, word_task: Task, tmp_path: Path, folders: Callable[[str], Path]
) -> None:
    narrow = ivlens.load(build("llama", tmp_path / "narrow", num_hidden_layers=2), dtype="float64")
    with pytest.raises(ShapeMismatch, match=r"has n_layers 3, and .* 2; give two models of one shape"):
        ivlens.donor_effects(tiny, narrow, word_task, settings=SETTINGS)
    neox = ivlens.load(folders("neox"), dtype="float64")  # Which has no BOS token in front.
    with pytest.raises(IvlensError, match="read a prompt as other tokens; give two models of one tokenizer"):
        ivlens.donor_effects(tiny, neox, word_task, settings=SETTINGS)
