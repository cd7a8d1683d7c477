"""Vectors are sums of what heads write; steering adds them where it says, and leaves no trace."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import rounding
import torch
from checkpoints import random_hooked
from conftest import WORD_TEMPLATE, random_tokens
from plotly.io import renderers
from safetensors.torch import save_file
from transformer_lens import HookedTransformer

from ivlens.datasets.task import Task
from ivlens.errors import IvlensError, ShapeMismatch
from ivlens.measures import first_token_probability, greedy_match
from ivlens.patching.activations import answer_logits
from ivlens.patching.effects import indirect_effects
from ivlens.patching.head_effects import HeadEffects
from ivlens.patching.settings import Settings
from ivlens.prompts.builders import zero_shot
from ivlens.prompts.tokens import tokenize
from ivlens.shapes import Head
from ivlens.steering import controls
from ivlens.steering.rows import steer_every_layer
from ivlens.steering.steered_model import steered
from ivlens.steering.trial_plan import TrialPlan
from ivlens.steering.vector_building import instruction_vector
from ivlens.vectors.head_writing import write_vector
from ivlens.vectors.instruction_vector import InstructionVector

pytestmark = pytest.mark.numeric

SETTINGS = {"shots": 3, "clean_prompts": 12, "prompts": 6}


@pytest.fixture(scope="module")
def effects(tiny: HookedTransformer, word_task: Task) -> HeadEffects:
    return indirect_effects(tiny, word_task, template=WORD_TEMPLATE, **SETTINGS)


@pytest.fixture(scope="module")
def vector(tiny: HookedTransformer, word_task: Task, effects: HeadEffects) -> InstructionVector:
    return instruction_vector(tiny, word_task, effects=effects, heads=effects.top(3), scale=1.0)


@pytest.mark.slow
def test_the_vector_is_what_the_heads_add_to_the_stream(tiny: HookedTransformer, vector: InstructionVector) -> None:
    tiny = random_hooked("gpt2")  # Its b_O is not zero: it would show if it were added.
    z = torch.randn(3, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    heads = [Head(0, 1), Head(2, 3), Head(2, 0)]
    by_hand = sum(z[head] @ tiny.W_O[head.layer, head.head] for head in heads)
    exact = rounding.bound(3 * 8, size=float(by_hand.abs().max()), dtype=torch.float64)
    torch.testing.assert_close(write_vector(tiny, z, heads), by_hand, rtol=0, atol=exact)


def test_steering_equals_adding_by_hand(tiny: HookedTransformer, vector: InstructionVector) -> None:
    tokens = torch.arange(3, 11)[None]
    resid = tiny(tokens, stop_at_layer=2)
    resid[:, -1] += -1.5 * vector.vector
    by_hand = tiny(resid, start_at_layer=2)
    with steered(tiny, vector, scale=-1.5, layer=1):
        torch.testing.assert_close(tiny(tokens), by_hand, rtol=0, atol=1e-12)


def test_steering_leaves_no_hooks_behind_even_on_an_exception(
    tiny: HookedTransformer, vector: InstructionVector
) -> None:
    tokens = torch.arange(3, 11)[None]
    before, seen = tiny(tokens), []
    tiny.add_hook("blocks.0.hook_resid_post", lambda resid, hook: seen.append(1))
    with pytest.raises(ZeroDivisionError), steered(tiny, vector, layer=1):
        tiny(tokens)
        raise ZeroDivisionError
    assert torch.equal(tiny(tokens), before)
    assert len(seen) == 2, "a hook of the user's own must stay"
    tiny.reset_hooks()
    assert all(not block._forward_pre_hooks for block in tiny.blocks)
    assert all(not point.fwd_hooks for point in tiny.hook_dict.values())


@pytest.mark.parametrize("every_token", [False, True])
def test_generation_is_steered_at_the_prompts_last_token_or_at_every_token(
    tiny: HookedTransformer, vector: InstructionVector, every_token: bool
) -> None:
    prompt = torch.arange(3, 9)[None]
    vector = replace(vector, vector=3 * vector.vector)
    with steered(tiny, vector, layer=1, every_token=every_token):
        written = tiny.generate(prompt, max_new_tokens=4, do_sample=False, verbose=False, stop_at_eos=False)
    ids = prompt
    for _ in range(4):
        resid = tiny(ids, stop_at_layer=2)
        resid[:, prompt.shape[1] - 1 if not every_token else slice(prompt.shape[1] - 1, None)] += vector.vector
        ids = torch.cat([ids, tiny(resid, start_at_layer=2)[:, -1:].argmax(-1)], dim=1)
    assert written.tolist() == ids.tolist()


def test_a_vector_is_read_out_of_the_run_folder_of_an_audit(vector: InstructionVector, tmp_path: Path) -> None:
    vector.save(tmp_path / "vector.safetensors")
    assert InstructionVector.load(tmp_path).heads == InstructionVector.load(tmp_path / "vector.safetensors").heads


def test_distributed_steering_patches_the_heads(tiny: HookedTransformer, vector: InstructionVector) -> None:
    kept = {}

    def keep(z: torch.Tensor, hook: object) -> None:
        kept[hook.layer()] = z[0, -1]  # type: ignore[attr-defined]

    with steered(tiny, vector, site="distributed"):
        tiny.run_with_hooks(torch.arange(3, 9)[None], fwd_hooks=[(lambda name: name.endswith("hook_z"), keep)])
    for head in vector.heads:
        assert torch.equal(kept[head.layer][head.head], vector.mean_z[head])


def test_steering_at_every_layer_at_once_equals_one_run_each() -> None:
    model, tokens = random_hooked("llama"), random_tokens()
    vectors = torch.randn(2, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = steer_every_layer(model, tokens, vectors, scale=0.7)
    last = tokens.prompts.shape[1] - 1
    for layer in range(3):
        for number, vector in enumerate(vectors):

            def add(resid: torch.Tensor, hook: object, vector: torch.Tensor = vector) -> torch.Tensor:
                resid = resid.clone()
                resid[:, last] += 0.7 * vector
                return resid

            with model.hooks(fwd_hooks=[(f"blocks.{layer}.hook_resid_post", add)]):
                logits = answer_logits(model, tokens)
            row = 1 + layer * 2 + number
            first = first_token_probability(logits, tokens.answers)
            torch.testing.assert_close(found.first[:, row], first, rtol=0, atol=1e-12)
            match = greedy_match(logits, tokens.answers, tokens.answer_mask)
            assert torch.equal(found.match[:, row], match)


def test_the_layer_is_the_best_one_on_validation_pairs(
    tiny: HookedTransformer, word_task: Task, vector: InstructionVector
) -> None:
    pairs = word_task.split(shots=3, seed=0).validation
    tokens = tokenize(tiny, zero_shot(pairs, template=WORD_TEMPLATE))
    scores = []
    for layer in range(3):
        with steered(tiny, vector, layer=layer):
            logits = answer_logits(tiny, tokens)
        match = greedy_match(logits, tokens.answers, tokens.answer_mask).double().mean()
        scores.append((float(match), float(first_token_probability(logits, tokens.answers).mean())))
    assert vector.layer == scores.index(max(scores))


@pytest.fixture(scope="module")
def second(tiny: HookedTransformer, word_task: Task, effects: HeadEffects) -> InstructionVector:
    """Of another task, of two heads of which `vector` has one."""
    z = -0.5 * effects.mean_z.flip(0)
    heads = [effects.top(3)[1], effects.bottom(1)[0]]
    made = instruction_vector(tiny, word_task, heads=heads, layer=1, scale=1.0, settings=effects.settings)
    return replace(made, vector=write_vector(tiny, z, heads), mean_z=z, task="others", task_digest="another")


def test_a_sum_of_vectors_is_written_by_the_heads_of_both(
    tiny: HookedTransformer, vector: InstructionVector, second: InstructionVector
) -> None:
    total = vector.at(1) + 2 * second
    torch.testing.assert_close(total.vector, vector.vector + 2 * second.vector, rtol=0, atol=1e-12)
    assert set(total.heads) == set(vector.heads) | set(second.heads) and len(total.heads) == 4
    torch.testing.assert_close(write_vector(tiny, total.mean_z, total.heads), total.vector, rtol=0, atol=1e-12)
    assert (total.task, total.layer, total.aie) == ("words + 2 others", 1, None)
    assert total.task_digest not in (vector.task_digest, second.task_digest)


def test_a_vector_minus_itself_does_nothing(tiny: HookedTransformer, vector: InstructionVector) -> None:
    tokens = torch.arange(3, 11)[None]
    nothing = vector - vector
    assert nothing.task == "words - words"
    assert (0.5 * nothing).task == "0.5 (words - words)"
    with steered(tiny, nothing, layer=1) as model:
        steered_logits = model(tokens)
    torch.testing.assert_close(steered_logits, tiny(tokens), rtol=0, atol=1e-12)


def test_a_scaled_vector_steers_as_the_scale_does(tiny: HookedTransformer, vector: InstructionVector) -> None:
    tokens = torch.arange(3, 11)[None]
    with steered(tiny, vector, scale=-1.5, layer=1):
        by_scale = tiny(tokens)
    with steered(tiny, vector * -1.5, layer=1):
        torch.testing.assert_close(tiny(tokens), by_scale, rtol=0, atol=1e-12)


def test_vectors_of_different_layers_have_no_layer_in_sum(vector: InstructionVector) -> None:
    assert (vector.at(0) + vector.at(1)).layer is None


def test_vectors_of_two_scales_are_added_as_they_are_used(
    tiny: HookedTransformer, vector: InstructionVector, second: InstructionVector
) -> None:
    total = vector.at(1, scale=4.0) - second.at(1, scale=0.5)
    assert total.scale == 1.0 and total.layer == 1
    torch.testing.assert_close(total.added, 4 * vector.vector - 0.5 * second.vector, rtol=0, atol=1e-12)
    torch.testing.assert_close(write_vector(tiny, total.mean_z, total.heads), total.vector, rtol=0, atol=1e-12)
    assert total.task == "words - others"
    alike = vector.at(1, scale=4.0) + second.at(1, scale=4.0)
    assert alike.scale == 4.0
    torch.testing.assert_close(alike.added, 4 * (vector.vector + second.vector), rtol=0, atol=1e-12)


def test_vectors_that_do_not_belong_together_are_not_added(vector: InstructionVector) -> None:
    with pytest.raises(IvlensError, match="are of two models"):
        vector + replace(vector, model_digest="another")
    with pytest.raises(IvlensError, match="are of two settings"):
        vector + replace(vector, settings=Settings(seed=1))
    with pytest.raises(TypeError):
        vector + 1
    with pytest.raises(TypeError):
        vector * vector


def test_top_tokens_are_those_of_the_final_norm_and_the_unembedding(
    tiny: HookedTransformer, vector: InstructionVector
) -> None:
    logits = tiny.ln_final(vector.vector[None, None])[0, 0] @ tiny.W_U + tiny.b_U
    order = sorted(range(len(logits)), key=lambda token: -float(logits[token]))
    near = rounding.bound(2 * tiny.cfg.d_model, size=float(logits.abs().max()))  # It reads them in float32.
    found = vector.top_tokens(tiny, 5)
    assert found["token"].tolist() == [tiny.to_string([token]) for token in order[:5]]
    assert found["logit"].tolist() == pytest.approx([float(logits[token]) for token in order[:5]], abs=near)
    assert found["probability"].tolist() == pytest.approx([float(logits.softmax(0)[t]) for t in order[:5]], abs=near)


def test_top_tokens_need_the_vectors_own_model(tiny: HookedTransformer, vector: InstructionVector) -> None:
    with pytest.raises(ShapeMismatch, match="has width"):
        vector.top_tokens(random_hooked("llama", d_model=20, n_layers=2))
    with pytest.raises(IvlensError, match="k is 0"):
        vector.top_tokens(tiny, 0)


def test_a_vector_comes_back_from_its_file_as_it_was(vector: InstructionVector, tmp_path: Path) -> None:
    loaded = InstructionVector.load(vector.save(tmp_path / "v.safetensors"))
    for name in ("vector", "mean_z", "aie"):
        assert torch.equal(getattr(loaded, name), getattr(vector, name))
    for name in ("heads", "layer", "settings", "task", "task_digest", "model", "model_digest", "versions"):
        assert getattr(loaded, name) == getattr(vector, name)
    assert loaded.cosine(vector) == pytest.approx(1.0)


def test_bad_vector_files_are_refused(vector: InstructionVector, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(IvlensError, match="is no readable safetensors file"):
        InstructionVector.load(tmp_path / "text")
    with pytest.raises(IvlensError, match="is no readable safetensors file"):
        InstructionVector.load(tmp_path / "absent")
    save_file({"vector": torch.zeros(3)}, tmp_path / "foreign")
    with pytest.raises(IvlensError, match=r"is of format None, not 'ivlens\.vector/1'"):
        InstructionVector.load(tmp_path / "foreign")
    save_file({"vector": torch.zeros(3)}, tmp_path / "lacking", metadata=vector._metadata())
    with pytest.raises(IvlensError, match="is no complete vector file"):
        InstructionVector.load(tmp_path / "lacking")
    replace(vector, mean_z=torch.zeros(1, 2, 3), aie=None, layer=0).save(tmp_path / "other-heads")
    with pytest.raises(IvlensError, match="there is no head"):
        InstructionVector.load(tmp_path / "other-heads")
    replace(vector, vector=torch.full((32,), torch.nan)).save(tmp_path / "nan")
    with pytest.raises(IvlensError, match="NaN or infinity"):
        InstructionVector.load(tmp_path / "nan")


def test_a_vector_of_another_model_is_refused(vector: InstructionVector) -> None:
    wide = random_hooked("gpt2", d_model=16)
    with (
        pytest.raises(ShapeMismatch, match="has width 32, but random-gpt2 has d_model 16"),
        steered(wide, vector, layer=0),
    ):
        pass
    with pytest.raises(IvlensError, match="there is no layer 7: the model has 3 layers"):
        vector.at(7)


def test_effects_of_another_task_are_refused(tiny: HookedTransformer, word_task: Task, effects: HeadEffects) -> None:
    other = Task(name="other", pairs=word_task.pairs[1:])
    with pytest.raises(IvlensError, match="the effects are of task 'words' on model, not of 'other'"):
        instruction_vector(tiny, other, effects=effects)
    with pytest.raises(IvlensError, match="heads is empty; give at least one, such as L9H6"):
        instruction_vector(tiny, word_task, heads=[])
    with pytest.raises(IvlensError, match="there is no head L9H0"):
        instruction_vector(tiny, word_task, heads=[Head(9, 0)], settings=Settings(**SETTINGS, template=WORD_TEMPLATE))


def test_effects_rank_heads_by_the_mean_over_queries(effects: HeadEffects) -> None:
    assert effects.cie.shape == (6, 3, 4)
    best = effects.top(1)[0]
    assert float(effects.aie[best]) == float(effects.aie.max())
    assert [effects.aie[head].item() for head in effects.ranked()] == sorted(
        effects.aie.flatten().tolist(), reverse=True
    )
    assert effects.bottom(12) == effects.top(12)[::-1]
    low, high = effects.interval()
    assert bool(((low <= effects.aie) & (effects.aie <= high)).all())
    with pytest.raises(IvlensError, match="k is 13, but the model has 12 heads"):
        effects.top(13)


def test_effects_come_back_from_their_table(effects: HeadEffects) -> None:
    others = {
        name: getattr(effects, name) for name in ("mean_z", "settings", "task", "task_digest", "model", "model_digest")
    }
    back = HeadEffects.from_frame(effects.to_frame().sample(frac=1, random_state=0), **others)
    for name in ("cie", "baseline", "queries"):
        assert torch.equal(getattr(back, name), getattr(effects, name))
    with pytest.raises(IvlensError, match="has 71 lines, but 6 prompts of 3x4 heads need one each"):
        HeadEffects.from_frame(effects.to_frame().iloc[1:], **others)


def test_effects_show_themselves(effects: HeadEffects, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"top {effects.top(1)[0]} " in repr(effects)
    monkeypatch.setattr(renderers, "default", "")
    assert effects._repr_mimebundle_() == ({"text/plain": repr(effects)}, {})
    monkeypatch.setattr(renderers, "default", "plotly_mimetype")
    shown, _ = effects._repr_mimebundle_()
    assert shown["text/plain"] == repr(effects)
    assert shown["application/vnd.plotly.v1+json"]["data"][0]["type"] == "heatmap"


def test_controls_have_the_vectors_norm_and_number_of_heads(
    tiny: HookedTransformer, word_task: Task, effects: HeadEffects
) -> None:
    others = [Task(name="other", pairs=word_task.pairs[::-1])]
    found = controls.make_candidates(tiny, effects, plan=TrialPlan(counts=(1, 2, 3, 5), draws=4), top=3, others=others)
    kinds = [(candidate.kind, candidate.n_heads) for candidate in found]
    assert kinds == [
        *(("chosen", 1), *[("random", 1)] * 4, ("chosen", 2), *[("random", 2)] * 4),
        *(("chosen", 3), *[("random", 3)] * 4, *[("low-AIE", 3)] * 4, *[("gaussian", 3)] * 4),
        ("other-task", 3),
        *(("chosen", 5), *[("random", 5)] * 4),
    ]
    norms = {candidate.n_heads: float(candidate.vector.norm()) for candidate in found if candidate.kind == "chosen"}
    for candidate in found:
        assert float(candidate.vector.norm()) == pytest.approx(norms[candidate.n_heads])
    assert controls.low_aie_heads(effects, 3, draws=2)[0] == effects.bottom(3)
    for heads in controls.random_heads(effects, 5, draws=20):
        assert len(set(heads)) == 5
        assert not set(heads) & set(effects.top(5))
    everywhere = controls.random_heads(effects, 5, draws=20, among="all")
    assert {head for heads in everywhere for head in heads} == set(effects.ranked())
    assert len(controls.random_heads(effects, 7, draws=1)[0]) == 7, "fewer than 7 others: drawn from all"
    assert len({tuple(heads) for heads in controls.random_heads(effects, 3, draws=6)}) > 3
    assert "words" not in controls.draw_other_tasks(word_task, ["words", "a", "b"], draws=5)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(IvlensError, match="prompts is 0; it must be 1 or more"):
        Settings(prompts=0)
    with pytest.raises(IvlensError, match="seed is -1; it must be 0 or more"):
        Settings(seed=-1)
