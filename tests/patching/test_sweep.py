"""The sweep equals one run per head, on every kind of block, for every effect, padded or not."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import pytest
import rounding
import torch
from checkpoints import FAMILIES, KINDS, build, random_hooked
from conftest import random_tokens
from transformer_lens import HookedTransformer

import ivlens
from ivlens.errors import ModelError, PromptError, ShapeMismatch
from ivlens.forward import memory
from ivlens.measures import first_token_probability
from ivlens.patching import activations, sweep
from ivlens.patching.activations import answer_logits, last_z, mean_z, score_answers
from ivlens.shapes import MeanZ

pytestmark = pytest.mark.numeric


def random_z(model: HookedTransformer, seed: int = 1) -> MeanZ:
    shape = (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_sweep_is_exact(model: HookedTransformer, effect: sweep.Effect) -> None:
    tokens, z = random_tokens(vocab=model.cfg.d_vocab - 5), random_z(model)
    baseline, cie = sweep.sweep(model, tokens, z, effect=effect)
    slow_baseline, slow = sweep.loop(model, tokens, z, effect=effect)
    exact = rounding.of_forward(model, tokens.prompts)
    assert float(cie.abs().max()) > 1e-3, "the heads of this model do nothing: the comparison would be empty"
    torch.testing.assert_close(cie, slow, rtol=0, atol=exact * max(1.0, float(slow.abs().max())))
    torch.testing.assert_close(baseline, slow_baseline, rtol=0, atol=exact * max(1.0, float(slow_baseline.abs().max())))
    for i in range(len(tokens)):
        _, alone = sweep.loop(model, tokens[i : i + 1], z, effect=effect)
        torch.testing.assert_close(cie[i : i + 1], alone, rtol=0, atol=exact * max(1.0, float(alone.abs().max())))


@pytest.mark.slow
@pytest.mark.parametrize("effect", ["prob", "nll"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_sweep_equals_one_run_per_head_and_each_prompt_alone(kind: str, effect: sweep.Effect) -> None:
    assert_sweep_is_exact(random_hooked(kind), effect)


@pytest.mark.slow
@pytest.mark.parametrize("effect", ["prob", "nll"])
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("gpt2", {"attn_only": True, "d_mlp": None, "act_fn": None}),
        ("neox", {"rotary_adjacent_pairs": True}),
        ("llama", {"n_key_value_heads": 1}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("llama", {"ungroup_grouped_query_attention": True}),
    ],
    ids=["attention-only", "gptj", "multi-query", "scaled-by-layer", "ungrouped"],
)
def test_rarer_blocks_are_exact_too(kind: str, fields: dict, effect: sweep.Effect) -> None:
    assert_sweep_is_exact(random_hooked(kind, **fields), effect)


FLAGS = ("use_attn_in", "use_attn_result", "use_split_qkv_input", "use_hook_mlp_in", "ungroup_grouped_query_attention")


@pytest.mark.slow
@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_flags_that_users_set_change_no_number(kind: str, flag: str) -> None:
    model, tokens = random_hooked(kind), random_tokens(n=2)
    z = random_z(model)
    plain = sweep.sweep(model, tokens, z, effect="nll")
    setattr(model.cfg, flag, True)
    if (kind, flag) == ("llama", "use_attn_in"):
        with pytest.raises(ModelError, match=r"has use_attn_in set, .* compute with grouped queries; call model"):
            sweep.sweep(model, tokens, z, effect="nll")
        model.cfg.ungroup_grouped_query_attention = True
    found = sweep.sweep(model, tokens, z, effect="nll")
    exact = rounding.of_forward(model, tokens.prompts)
    torch.testing.assert_close(found, sweep.loop(model, tokens, z, effect="nll"), rtol=0, atol=exact)
    torch.testing.assert_close(found, plain, rtol=0, atol=exact)


@pytest.mark.slow
def test_a_model_without_norms_is_exact_too() -> None:
    model = random_hooked("gpt2", normalization_type=None)
    for weight in model.parameters():
        weight.data *= 0.3  # Nothing else keeps the residual stream small.
    assert_sweep_is_exact(model, "nll")


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_the_sweep_is_exact_on_loaded_checkpoints(family: str, tmp_path) -> None:
    assert_sweep_is_exact(ivlens.load(build(family, tmp_path / "model"), dtype="float64"), "prob")


@pytest.mark.slow
def test_a_smaller_budget_changes_nothing() -> None:
    model, tokens = random_hooked("llama"), random_tokens()
    z, least = random_z(model), 0
    for size in range(50_000, 2_000_000, 50_000):
        try:
            memory.Budget.of(model, tokens, 4 * model.cfg.n_layers, size)
            least = size
            break
        except PromptError:
            continue
    budget = memory.Budget.of(model, tokens, 4 * model.cfg.n_layers, least)
    assert (budget.prompts, budget.rows) < (len(tokens), 1 + 3 * 4), "the small budget must force chunks"
    small = sweep.sweep(model, tokens, z, effect="nll", memory=least)
    large = sweep.sweep(model, tokens, z, effect="nll")
    torch.testing.assert_close(small, large, rtol=0, atol=rounding.of_forward(model, tokens.prompts))


def peak_of(run: Callable[[], object]) -> float:
    """MiB that torch holds at most while this runs, beside what it held before.

    Not the process's peak, which also counts what its allocator keeps free, and comes out otherwise from run to run.
    """
    with torch.autograd.profiler.profile(profile_memory=True) as profiled:
        run()
    changes = [event.nbytes() for event in profiled.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(changes)) / 2**20


@pytest.mark.long
@pytest.mark.parametrize("mebibytes", [64, 128, 256])
def test_the_sweep_keeps_its_memory_budget(mebibytes: int) -> None:
    sizes = {"n_layers": 6, "n_heads": 8, "d_model": 256, "d_head": 32, "d_mlp": 1024, "d_vocab": 20000, "n_ctx": 256}
    model = random_hooked("llama", dtype=torch.float32, **sizes)
    tokens = random_tokens(48, 120, 2, vocab=20000)
    z = random_z(model).float()
    used = peak_of(lambda: sweep.sweep(model, tokens, z, effect="nll", memory=mebibytes * 2**20))
    assert mebibytes / 8 < used <= mebibytes, "without a bound this sweep holds about 570 MiB"


def test_a_budget_below_one_prompt_is_refused() -> None:
    model = random_hooked("gpt2")
    with pytest.raises(
        PromptError, match=r"memory is 1,000 bytes, but one prompt of 14 tokens needs [0-9,]+; give more"
    ):
        sweep.sweep(model, random_tokens(), random_z(model), memory=1000)


def test_patching_a_head_with_its_own_output_changes_nothing() -> None:
    model, tokens = random_hooked("llama"), random_tokens(n=1)
    _, cie = sweep.sweep(model, tokens, last_z(model, tokens)[0])
    assert float(cie.abs().max()) < rounding.of_forward(model, tokens.prompts)


def test_row_0_is_the_unpatched_model() -> None:
    model, tokens = random_hooked("softcap"), random_tokens()
    baseline, _ = sweep.sweep(model, tokens, random_z(model))
    expected = first_token_probability(answer_logits(model, tokens.first()), tokens.first().answers)
    torch.testing.assert_close(baseline, expected, rtol=0, atol=rounding.of_forward(model, tokens.prompts))


def test_an_answer_of_one_token_has_the_same_sign_in_both_effects() -> None:
    model, tokens = random_hooked("gpt2"), random_tokens(answer=1)
    z = random_z(model)
    base, prob = sweep.sweep(model, tokens, z, effect="prob")
    base_nats, nats = sweep.sweep(model, tokens, z, effect="nll")
    exact = rounding.of_forward(model, tokens.prompts)
    torch.testing.assert_close(base.log(), base_nats, rtol=0, atol=exact)
    # A sum of probabilities: what is small beside them loses digits.
    exact /= float((base[:, None, None] + prob).min())
    torch.testing.assert_close((base[:, None, None] + prob).log() - base_nats[:, None, None], nats, rtol=0, atol=exact)


def test_the_mean_head_output_is_that_of_each_prompt_alone() -> None:
    model, tokens = random_hooked("local"), random_tokens()
    alone = torch.stack([last_z(model, tokens[i : i + 1])[0] for i in range(len(tokens))])
    torch.testing.assert_close(
        mean_z(model, tokens), alone.mean(0), rtol=0, atol=rounding.of_forward(model, tokens.prompts)
    )


def test_prompts_of_like_length_are_read_together_and_scored_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    model, mixed = random_hooked("llama"), random_tokens(6)[torch.tensor([0, 5, 2, 3, 4, 1])]
    right, first = score_answers(model, mixed)
    for i in range(len(mixed)):
        alone, probability = score_answers(model, mixed[i : i + 1])
        torch.testing.assert_close(first[i], probability[0], rtol=0, atol=rounding.of_forward(model, mixed.prompts))
        assert right[i] == alone[0]
    read, logits = [], activations.answer_logits
    monkeypatch.setattr(activations, "count_at_once", lambda *_: 2)
    monkeypatch.setattr(activations, "answer_logits", lambda model, batch: read.append(batch) or logits(model, batch))
    torch.testing.assert_close(score_answers(model, mixed)[1], first)
    assert sum(int((~batch.mask).sum()) for batch in read) == 3 * 2, "prompts of one batch differ by 2 tokens"


@pytest.mark.slow
def test_low_precision_stays_near_full_precision() -> None:
    tokens = random_tokens()
    exact, z = random_hooked("llama"), random_z(random_hooked("llama"))
    _, reference = sweep.sweep(exact, tokens, z)
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 0.02)):
        model = random_hooked("llama", dtype=dtype)
        for name, weight in model.named_parameters():
            weight.data = exact.state_dict()[name].to(dtype)
        _, found = sweep.sweep(model, tokens, z.float())
        assert found.dtype == torch.float32
        assert float((found - reference).abs().max()) < bound


def test_hooks_on_the_model_are_noticed() -> None:
    model = random_hooked("gpt2")
    model.add_hook("blocks.1.hook_resid_post", lambda resid, hook: resid + 1.0)
    with pytest.raises(ModelError, match=r"differs from the model's own by .*remove the hooks with model.reset_hooks"):
        sweep.sweep(model, random_tokens(), random_z(model))
    model.reset_hooks()
    sweep.sweep(model, random_tokens(), random_z(model))


def test_nothing_is_left_behind_on_the_model() -> None:
    model = random_hooked("gpt2")
    sweep.sweep(model, random_tokens(), random_z(model))
    sweep.loop(model, random_tokens(n=1), random_z(model))
    assert all(not point.fwd_hooks for point in model.hook_dict.values())


def test_heads_of_another_model_are_refused() -> None:
    model = random_hooked("gpt2")
    with pytest.raises(ShapeMismatch, match=r"mean_z is \(3, 4, 6\) but random-gpt2 has heads \(3, 4, 8\) as \(layer"):
        sweep.sweep(model, random_tokens(), torch.zeros(3, 4, 6))
    with pytest.raises(ModelError, match="mean_z is NaN or infinite"):
        sweep.sweep(model, random_tokens(), random_z(model) * torch.nan)


def test_a_model_that_reads_in_both_directions_is_refused() -> None:
    model = random_hooked("gpt2", attention_dir="bidirectional")
    with pytest.raises(ModelError, match="random-gpt2 reads in both directions"):
        sweep.sweep(model, random_tokens(), random_z(model))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_broken_activations_are_named_by_layer(value: float) -> None:
    model = random_hooked("gpt2")
    model.blocks[1].mlp.b_out.data[3] = value
    with pytest.raises(ModelError, match="the residual stream after layer 1 is NaN or infinite"):
        sweep.sweep(model, random_tokens(), random_z(model))
    with pytest.raises(ModelError, match="the head outputs of layer 2 are NaN or infinite"):
        mean_z(model, random_tokens())
