"""Every number of an explorer equals what a slow, obvious way gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WORD_TEMPLATE
from transformer_lens import HookedTransformer

import ivlens
from ivlens.datasets.task import Task
from ivlens.errors import IvlensError
from ivlens.explorer.explorer import Explorer
from ivlens.explorer.measurement import AskedPrompts, prompts_of_task
from ivlens.explorer.replies import MOST_LAYERS, NEW_TOKENS, kept_layers, reply_steered, strengths
from ivlens.explorer.run_explorer import explore
from ivlens.explorer.writing import read_writing
from ivlens.measures import mean_bounds
from ivlens.models import lora
from ivlens.models.hooked import weight_digest
from ivlens.patching import hooks
from ivlens.patching.activations import mean_z
from ivlens.patching.effects import find_queries
from ivlens.patching.head_effects import HeadEffects
from ivlens.prompts.tokens import tokenize
from ivlens.shapes import Head
from ivlens.steering.necessity import Asked, measure_necessity

SMALL: dict[str, Any] = {"shots": 3, "clean_prompts": 6, "prompts": 4, "template": WORD_TEMPLATE}


@pytest.fixture(scope="module")
def effects(tiny: HookedTransformer, word_task: Task) -> HeadEffects:
    return ivlens.indirect_effects(tiny, word_task, **SMALL)


@pytest.fixture(scope="module")
def explorer(tiny: HookedTransformer, word_task: Task, effects: HeadEffects) -> Explorer:
    return explore(tiny, word_task, effects, shown=2)


def prompts_asked(explorer: Explorer, model: HookedTransformer, task: Task) -> AskedPrompts:
    settings = explorer.vector.measured()[1]
    return prompts_of_task(model, task, settings, find_queries(model, task, settings), steered=2)


# What heads do


@pytest.mark.slow
def test_effects_are_those_that_were_given(explorer: Explorer, effects: HeadEffects):
    (found,) = explorer.contents.models
    assert torch.equal(found.cie, effects.cie) and torch.equal(found.aie.mean, effects.aie)
    assert all(map(torch.equal, found.aie[1:], effects.interval()))
    assert found.digest == effects.model_digest and explorer.contents.task_digest == effects.task_digest


@pytest.mark.slow
def test_what_is_lost_without_a_head_is_that_of_one_run_per_head(
    explorer: Explorer, tiny: HookedTransformer, word_task: Task
):
    asked = prompts_asked(explorer, tiny, word_task)
    assert asked.clean == explorer.contents.clean and len(asked.clean) == SMALL["prompts"]
    tokens, z = tokenize(tiny, asked.clean), mean_z(tiny, tokenize(tiny, asked.others))
    (found,) = explorer.contents.models
    last = tokens.prompts.shape[1] - 1
    for layer in range(3):
        for number in range(4):
            head = Head(layer, number)
            hook = hooks.at_position(hooks.set_head(head, z[head]), last)
            probability = [
                hooks.logits_under(tiny, tokens, own)[:, 0].softmax(-1).gather(1, tokens.answers[:, :1])[:, 0]
                for own in ([], [hook])
            ]
            torch.testing.assert_close(found.lost_by_prompt[:, layer, number], probability[0] - probability[1])
            torch.testing.assert_close(found.whole, probability[0])


@pytest.mark.slow
@pytest.mark.parametrize("source", ["demonstrations", "instruction"])
def test_it_is_the_necessity_of_an_audit_where_the_prompts_are_the_same(
    tiny: HookedTransformer, word_task: Task, source: Any
):
    effects = ivlens.indirect_effects(tiny, word_task, source=source, **SMALL)
    explorer = explore(tiny, word_task, effects, shown=1)
    asked, head = prompts_asked(explorer, tiny, word_task), Head(1, 2)
    z = mean_z(tiny, tokenize(tiny, asked.others))
    audited = measure_necessity(tiny, {"clean": Asked(tokenize(tiny, asked.clean), z)}, [head], draws=1)
    line = audited.query("ablated == 'L1H2'").iloc[0]
    found = [float(grid[head]) for grid in explorer.contents.models[0].lost]
    wanted = [line["necessity"], line["necessity_low"], line["necessity_high"]]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted, dtype=torch.float32), atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_prompts_of_ones_own_that_are_the_tasks_have_its_effects(
    explorer: Explorer, tiny: HookedTransformer, effects: HeadEffects
):
    own = explore(tiny, explorer.contents.corrupted, effects)
    (found,) = own.contents.models
    torch.testing.assert_close(found.cie, effects.cie)
    torch.testing.assert_close(found.unpatched, effects.baseline)
    assert own.contents.clean == own.contents.corrupted and {one.kind for one in own.contents.shown} == {"given"}


# What they write


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma2"])  # Gemma's heads pass another norm on their way.
def test_tokens_of_a_head_are_those_of_the_vector_that_it_writes(
    folders: Callable[[str], Path], word_task: Task, family: str
):
    model = ivlens.load(folders(family), dtype="float64")
    effects = ivlens.indirect_effects(model, word_task, **SMALL)
    found = read_writing(model, effects.mean_z, places=4)
    assert found is not None
    for head in (Head(0, 0), Head(2, 3)):
        vector = ivlens.instruction_vector(model, word_task, effects=effects, heads=[head], layer=1, scale=1.0)
        table = vector.top_tokens(model, model.cfg.d_vocab_out)
        logits = torch.tensor(table["logit"].tolist())
        torch.testing.assert_close(found.top_logits[head], logits[:4])
        torch.testing.assert_close(found.bottom_logits[head], logits.flip(0)[:4])
        assert [found.texts[token] for token in found.top[head].tolist()] == table["token"].tolist()[:4]


@pytest.mark.slow
def test_a_bridge_has_the_contents_of_a_hooked_transformer(folders: Callable[[str], Path], word_task: Task):
    hooked, bridge = (ivlens.load(folders("gpt2"), backend=backend) for backend in ("hooked", "bridge"))
    ours, theirs = (
        explore(one, word_task, ivlens.indirect_effects(one, word_task, **SMALL)) for one in (hooked, bridge)
    )
    (a,), (b,) = ours.contents.models, theirs.contents.models
    torch.testing.assert_close(a.lost_by_prompt, b.lost_by_prompt, atol=1e-5, rtol=1e-4)
    assert a.writing is not None and b.writing is not None
    torch.testing.assert_close(a.writing.top_logits, b.writing.top_logits, atol=1e-4, rtol=1e-4)
    for mine, other in zip(a.attention, b.attention, strict=True):
        assert abs(mine.last.astype(int) - other.last.astype(int)).max() <= 1


# What the vector does


@pytest.mark.slow
def test_replies_are_those_of_the_steered_model(lab: HookedTransformer):
    task = ivlens.task("antonym")
    effects = ivlens.indirect_effects(lab, task, shots=5, clean_prompts=8, prompts=2)
    explorer = explore(lab, task, effects, shown=2)
    prompts, vector = explorer.contents.steering.prompts, explorer.vector
    found = reply_steered(lab, prompts, vector.vector, layers=[2, 3, 4], scales=[-4.0, 4.0])
    for i, layer in enumerate(found.layers):
        for j, scale in enumerate(found.scales):
            with ivlens.steered(lab, vector, layer=layer, scale=scale):
                wanted = ivlens.ask(lab, prompts, new_tokens=NEW_TOKENS)
            assert found.replies[i][j] == wanted.reply
            torch.testing.assert_close(found.probability[i, j], wanted.first, atol=1e-5, rtol=1e-4)
    assert len(set(found.replies)) == 3, "each layer has its own"
    without = ivlens.ask(lab, prompts, new_tokens=NEW_TOKENS)
    assert explorer.contents.steering.replies == without.reply
    torch.testing.assert_close(explorer.contents.steering.probability, without.first, atol=1e-5, rtol=1e-4)
    live = explorer.reply(3, 4.0)
    assert tuple(live.replies) == found.replies[1][1]


@pytest.mark.parametrize(("n_layers", "own"), [(1, 0), (6, 2), (8, 7), (30, 11), (32, 0), (80, 79)])
def test_a_page_has_the_replies_of_few_layers_and_of_the_vectors_own(n_layers: int, own: int):
    kept = kept_layers(n_layers, own)
    assert own in kept and len(set(kept)) == len(kept) == min(n_layers, MOST_LAYERS)
    assert list(kept) == sorted(kept) and kept[0] >= 0 and kept[-1] < n_layers
    assert n_layers <= MOST_LAYERS or max(b - a for a, b in pairwise(kept)) <= 2 * n_layers / MOST_LAYERS + 2


def test_the_vectors_own_strength_is_one_of_those_of_the_slider():
    assert 3.5 in strengths(3.5) and len(strengths(4.0)) == len(strengths(3.5)) - 1


# Before and after


@pytest.mark.slow
def test_the_tuned_model_has_its_own_numbers_and_leaves_no_trace(
    tiny: HookedTransformer, word_task: Task, effects: HeadEffects
):
    adapter = lora.fresh(tiny, lora.LoraConfig(rank=2))
    for factors in adapter.factors.values():
        factors.B.normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
    explorer = explore(tiny, word_task, effects, tuned=adapter, shown=1)
    before, after = explorer.contents.models
    assert weight_digest(tiny) == effects.model_digest == before.digest != after.digest
    with lora.merged(tiny, adapter) as merged:
        alone = explore(merged, word_task, ivlens.indirect_effects(merged, word_task, **SMALL), shown=1)
    (wanted,) = alone.contents.models
    torch.testing.assert_close(after.cie, wanted.cie)
    torch.testing.assert_close(after.lost_by_prompt, wanted.lost_by_prompt)
    assert (after.attention[0].last == wanted.attention[0].last).all()
    assert not (before.attention[0].last == after.attention[0].last).all()
    change = explorer.contents.change
    assert change is not None
    torch.testing.assert_close(change.mean, after.aie.mean - before.aie.mean)
    torch.testing.assert_close(change.low, mean_bounds(after.cie - before.cie, effects.queries)[0])


# What is refused


@pytest.mark.slow
def test_what_does_not_fit_is_refused_in_a_sentence(
    tiny: HookedTransformer,
    lab: HookedTransformer,
    word_task: Task,
    effects: HeadEffects,
    explorer: Explorer,
    tmp_path: Path,
):
    prompts = explorer.contents.corrupted
    with pytest.raises(IvlensError, match=r"effects are of task 'words' .* not of 'antonym'"):
        explore(tiny, "antonym", effects)
    with pytest.raises(IvlensError, match="prompts of one's own need effects"):
        explore(tiny, prompts)
    with pytest.raises(IvlensError, match="a tuned model is shown on a task"):
        explore(tiny, prompts, effects, tuned=tiny)
    with pytest.raises(IvlensError, match="not of this model"):
        explore(lab, prompts, effects)
    with pytest.raises(IvlensError, match="there are no prompts"):
        explore(tiny, [], effects)
    with pytest.raises(IvlensError, match="shown is 0"):
        explore(tiny, word_task, effects, shown=0)
    with pytest.raises(IvlensError, match=r"ends in .html"):
        explorer.save(tmp_path / "heads.pdf")
    with pytest.raises(IvlensError, match="there is no layer 3"):
        explorer.reply(3, 1.0)
    with pytest.raises(IvlensError, match="there is no layer 7"):
        explore(tiny, word_task, effects, vector=replace(explorer.vector, layer=7))
    other = replace(explorer.vector, vector=torch.zeros(5))
    with pytest.raises(IvlensError, match="has width 5"):
        explore(tiny, word_task, effects, vector=other)
