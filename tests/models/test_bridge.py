"""A TransformerBridge gives the numbers of transformers' own model, and those of a HookedTransformer.

`make test-tl4` runs this file with TransformerLens 4, which has no HookedTransformer to compare with.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bridges
import pandas as pd
import pytest
import rounding
import torch
from checkpoints import FAMILIES
from conftest import WORD_TEMPLATE, random_tokens
from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    FalconH1Config,
    FalconH1ForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

import ivlens
from ivlens.analysis import dependence, probes
from ivlens.checkpoints.checkpoint import quiet_transformers
from ivlens.datasets.task import Task
from ivlens.errors import IvlensError, ModelError
from ivlens.forward import output_path
from ivlens.models import hooked as models
from ivlens.patching import interventions, sweep
from ivlens.patching.activations import answer_logits, last_z, path_to_residual
from ivlens.patching.hooks import add_to_residual, at_position, logits_under, set_head
from ivlens.patching.interventions import Change
from ivlens.prompts.tokens import Tokens
from ivlens.shapes import Head
from ivlens.steering.rows import steer_every_layer
from ivlens.steering.steered_model import steered
from ivlens.vectors.instruction_vector import InstructionVector

pytestmark = pytest.mark.numeric

HAS_HOOKED = int(version("transformer-lens").split(".")[0]) < 4
needs_hooked = pytest.mark.skipif(not HAS_HOOKED, reason="TransformerLens 4 has no HookedTransformer")
SMALL = {"shots": 3, "clean_prompts": 8, "prompts": 4, "template": WORD_TEMPLATE}
# Where transformers keeps a block's output projection.
PROJECTION = {
    "gpt2": "transformer.h.{}.attn.c_proj",
    "llama-gqa": "model.layers.{}.self_attn.o_proj",
    "gemma2": "model.layers.{}.self_attn.o_proj",
}

Folders = Callable[[str], Path]


def transformers_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def bridge_to(hf: Any, folder: Path) -> TransformerBridge:
    """A bridge to a model that is there already, with the tokenizer of a folder."""
    tokenizer, dtype = AutoTokenizer.from_pretrained(folder), next(hf.parameters()).dtype
    return TransformerBridge.boot_transformers("tiny", hf_model=hf, tokenizer=tokenizer, dtype=dtype, device="cpu")


def bridge_of(folder: Path) -> TransformerBridge:
    return bridge_to(transformers_model(folder), folder)


def pair(folder: Path) -> tuple[TransformerBridge, Any]:
    """A bridge and a HookedTransformer of one checkpoint, with the same idea of BOS."""
    bridge, hooked = ivlens.load(bridge_of(folder)), ivlens.load(folder)
    bridge.cfg.default_prepend_bos = hooked.cfg.default_prepend_bos
    return bridge, hooked


def random_z(cfg: Any, seed: int = 1) -> torch.Tensor:
    shape = (cfg.n_layers, cfg.n_heads, cfg.d_head)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@contextmanager
def head_set(projection: nn.Module, head: int, value: torch.Tensor, position: int):
    """PyTorch's own hook on what goes into a block's output projection, where heads lie one after the other."""

    def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        z = args[0].clone()
        z[:, position, head * len(value) : (head + 1) * len(value)] = value
        return (z, *args[1:])

    handle = projection.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def first_answer(hf: Any, tokens: Tokens, row: int) -> torch.Tensor:
    """P(first answer token) of one prompt, run alone and unpadded."""
    prompt = tokens.prompts[row][tokens.mask[row]][None]
    with torch.no_grad():
        return hf(input_ids=prompt).logits[0, -1].softmax(-1)[tokens.answers[row, 0]]


def near_effects(near: float, baseline: torch.Tensor, cie: torch.Tensor) -> float:
    """Rounding is in nats: for probabilities it is relative to the largest of them."""
    return near * float((baseline[:, None, None] + cie).max())


@pytest.mark.slow
@pytest.mark.parametrize("family", PROJECTION)
def test_effects_on_a_bridge_are_those_of_hooks_on_transformers_own_model(family: str, folders: Folders) -> None:
    bridge, hf, tokens = bridge_of(folders(family)), transformers_model(folders(family)), random_tokens(n=2)
    z = random_z(bridge.cfg)
    baseline, cie = sweep.sweep(bridge, tokens, z)
    near = near_effects(rounding.of_forward(bridge, tokens.prompts), baseline, cie)
    assert float(cie.abs().max()) > 10 * near, "heads that do nothing"
    for row in range(len(tokens)):
        plain = first_answer(hf, tokens, row)
        assert abs(baseline[row] - plain) < near
        for layer, head in [(0, 0), (1, 3), (2, 1)]:
            projection = hf.get_submodule(PROJECTION[family].format(layer))
            with head_set(projection, head, z[layer, head], -1):
                assert abs(cie[row, layer, head] - (first_answer(hf, tokens, row) - plain)) < near


@pytest.mark.long
@needs_hooked
@pytest.mark.parametrize("effect", ["prob", "nll"])
@pytest.mark.parametrize("family", FAMILIES)
def test_effects_on_a_bridge_are_those_on_a_hooked_transformer(
    family: str, effect: sweep.Effect, folders: Folders
) -> None:
    bridge, hooked = pair(folders(family))
    tokens, z = random_tokens(n=3), random_z(bridge.cfg)
    found, wanted = (sweep.sweep(model, tokens, z, effect=effect) for model in (bridge, hooked))
    near = rounding.of_forward(hooked, tokens.prompts)
    atol = near_effects(near, *wanted) if effect == "prob" else near
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)
    torch.testing.assert_close(last_z(bridge, tokens), last_z(hooked, tokens), rtol=0, atol=near)
    mean = last_z(hooked, tokens).mean(0)
    for head in (Head(0, 0), Head(2, 3)):
        ours, theirs = (path_to_residual(model, head, mean) for model in (bridge, hooked))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=near)


@pytest.mark.slow
@needs_hooked
@pytest.mark.parametrize("family", ["llama-gqa", "gemma2"])
def test_all_that_is_done_on_a_hooked_transformer_is_done_on_a_bridge(
    family: str, folders: Folders, word_task: Task
) -> None:
    both = pair(folders(family))
    near = rounding.of_forward(both[1], random_tokens().prompts)
    effects = [ivlens.indirect_effects(model, word_task, **SMALL) for model in both]
    torch.testing.assert_close(effects[0].cie, effects[1].cie, rtol=0, atol=near)
    heads = effects[1].top(3)
    vectors = [
        ivlens.instruction_vector(model, word_task, effects=found, heads=heads)
        for model, found in zip(both, effects, strict=True)
    ]
    torch.testing.assert_close(vectors[0].vector, vectors[1].vector, rtol=0, atol=near)
    assert vectors[0].layer == vectors[1].layer
    found = [steer_every_layer(model, random_tokens(), vectors[1].vector[None]) for model in both]
    torch.testing.assert_close(found[0].log_prob, found[1].log_prob, rtol=0, atol=near)
    other = replace(word_task, name="other words", pairs=word_task.pairs[:20])
    measured = [
        dependence.measure(model, probes.prepare(model, word_task, vector, others=[other], prompts=4, draws=1))
        for model, vector in zip(both, vectors, strict=True)
    ]
    numbers = [torch.tensor(frame.select_dtypes("number").to_numpy()) for frame in measured]
    torch.testing.assert_close(*numbers, rtol=0, atol=near, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("every_token", [False, True])
@pytest.mark.parametrize("family", PROJECTION)
def test_a_bridge_is_steered_at_each_prompts_own_token(family: str, every_token: bool, folders: Folders) -> None:
    bridge, tokens = ivlens.load(bridge_of(folders(family))), random_tokens(n=5, answer=4, vocab=100)
    vector = InstructionVector(
        vector=torch.randn(bridge.cfg.d_model, generator=torch.Generator().manual_seed(3)),
        heads=(),
        layer=1,
        scale=2.0,
        mean_z=None,
        settings=None,
        **dict.fromkeys(("task", "task_digest", "model", "model_digest"), ""),
    )
    with steered(bridge, vector, every_token=every_token):
        together = answer_logits(bridge, tokens)
        written = bridge.generate(tokens.prompts[:1, :6], max_new_tokens=3, do_sample=False, verbose=False)
    for row in range(len(tokens)):
        prompt, answer = tokens.prompts[row][tokens.mask[row]], tokens.answers[row][tokens.answer_mask[row]]
        end = len(prompt) - 1

        def add(resid: torch.Tensor, hook: object, end: int = end) -> torch.Tensor:
            resid = resid.clone()
            resid[:, slice(end, None if every_token else end + 1)] += 2 * vector.vector
            return resid

        with bridge.hooks(fwd_hooks=[("blocks.1.hook_resid_post", add)]):
            logits = bridge(torch.cat([prompt, answer[:-1]])[None])[0, end:].detach()
        near = rounding.bound(rounding.chain(bridge.cfg, end + len(logits)), size=float(logits.abs().max()))
        torch.testing.assert_close(together[row, : len(logits)], logits, rtol=0, atol=near)
    assert written.shape == (1, 9) and "generate" not in vars(bridge)


def numbers(frame: pd.DataFrame) -> torch.Tensor:
    return torch.tensor(frame.select_dtypes("number").to_numpy(float))


@pytest.mark.long
@needs_hooked
def test_a_bridge_is_audited_with_the_numbers_of_a_hooked_transformer(
    folders: Folders, word_task: Task, tmp_path: Path
) -> None:
    found = [
        ivlens.audit(model, word_task, out=tmp_path / name, **SMALL, top=2, draws=1, other_tasks=0)
        for name, model in zip(("bridge", "hooked"), pair(folders("llama-gqa")), strict=True)
    ]
    near = rounding.of_forward(ivlens.load(folders("llama-gqa")), random_tokens().prompts)
    torch.testing.assert_close(found[0].effects.aie, found[1].effects.aie, rtol=0, atol=near)
    assert found[0].vector.heads == found[1].vector.heads
    for name in ("measures", "steering", "heads"):
        ours, theirs = (numbers(getattr(one, name)) for one in found)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=near, equal_nan=True)


@pytest.mark.long
@needs_hooked
def test_two_bridges_are_compared_with_the_numbers_of_hooked_transformers(folders: Folders, word_task: Task) -> None:
    bases, others = pair(folders("llama-gqa")), pair(folders("llama-gqa"))
    with torch.no_grad():
        for weight in (others[0].original_model.model.norm.weight, others[1].ln_final.w):
            weight *= 1.5
    small = {**SMALL, "top": 2, "draws": 1, "queries": 2}
    found = [ivlens.compare(base, tuned, word_task, **small) for base, tuned in zip(bases, others, strict=True)]
    near = rounding.of_forward(others[1], random_tokens().prompts)
    assert float((found[1].tuned.aie - found[1].base.aie).abs().max()) > near
    for name in ("aie", "measures", "recovery"):
        ours, theirs = (numbers(getattr(one, name)) for one in found)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=near, equal_nan=True)


@pytest.mark.slow
def test_changes_together_equal_one_run_for_each(folders: Folders) -> None:
    bridge, tokens = bridge_of(folders("gpt2")), random_tokens()
    z, vector = random_z(bridge.cfg), torch.ones(32)
    change = Change(added=vector, ablated=(Head(0, 1), Head(2, 2)))
    found = interventions.run_changes(bridge, tokens, [change], layer=1, z=z, shifted=[1])
    last = tokens.prompts.shape[1] - 1
    hooks = [*(set_head(head, z[head]) for head in change.ablated), add_to_residual(1, vector)]
    hooks = [at_position(hook, last) for hook in hooks]
    by_hand = logits_under(bridge, tokens, hooks).softmax(-1)[:, 0].gather(1, tokens.answers[:, :1])[:, 0]
    near = rounding.of_forward(bridge, tokens.prompts)
    torch.testing.assert_close(found.probability[:, 1], by_hand, rtol=0, atol=near)
    assert (found.shift[:, 1] > 10 * near).all()


@pytest.mark.slow
def test_steering_a_bridge_touches_the_prompts_end_and_leaves_no_trace(folders: Folders, word_task: Task) -> None:
    bridge = ivlens.load(bridge_of(folders("llama-gqa")))
    vector = ivlens.instruction_vector(bridge, word_task, heads=[Head(1, 2)], layer=1, settings=_settings())
    ids = torch.arange(4, 12)[None]
    plain = bridge(ids)
    with steered(bridge, vector, scale=5.0):
        under = bridge(ids)
        generated = bridge.generate(ids, max_new_tokens=3, do_sample=False, verbose=False)
    with steered(bridge, vector, site="distributed"):
        assert not torch.equal(bridge(ids), plain)
    assert torch.equal(bridge(ids), plain)
    assert torch.equal(under[:, :-1], plain[:, :-1])
    assert not torch.allclose(under[:, -1], plain[:, -1])
    by_hand = ids
    for new in range(3):
        # Steered at the prompt's last token, which with every new token lies one further back.
        with steered(bridge, vector, scale=5.0, position=-1 - new):
            by_hand = torch.cat([by_hand, bridge(by_hand)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert generated.tolist() == by_hand.tolist()


def _settings() -> Any:
    from ivlens.patching.settings import Settings

    return Settings(**SMALL)


@pytest.mark.slow
def test_a_bridge_is_returned_as_it_is(folders: Folders) -> None:
    bridge = bridge_of(folders("llama"))
    assert ivlens.load(bridge) is bridge
    assert models.model_name(bridge) == "tiny"
    digest = models.weight_digest(bridge)
    assert digest == models.weight_digest(bridge_of(folders("llama")))
    with torch.no_grad():
        bridge.original_model.lm_head.weight[0, 0] += 1e-6
    assert models.weight_digest(bridge) != digest
    with pytest.raises(
        ModelError, match="a TransformerBridge is taken as it is; leave device, dtype, revision and backend out"
    ):
        ivlens.load(bridge, dtype="bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_bridge_that_was_not_told_the_precision_of_its_weights_is_measured_in_it(
    dtype: torch.dtype, folders: Folders
) -> None:
    told = bridge_to(transformers_model(folders("llama"), dtype), folders("llama"))
    bridge = TransformerBridge.boot_transformers(
        "tiny", hf_model=transformers_model(folders("llama"), dtype), tokenizer=told.tokenizer, device="cpu"
    )
    assert bridge.cfg.dtype == torch.float32, "TransformerLens finds out by itself"
    tokens, z = random_tokens(n=2), random_z(bridge.cfg)
    torch.testing.assert_close(sweep.sweep(bridge, tokens, z), sweep.sweep(told, tokens, z), rtol=0, atol=0)
    assert bridge.cfg.dtype == dtype


def test_what_a_bridge_cannot_do_is_refused_with_the_reason(folders: Folders) -> None:
    bridge = bridge_of(folders("llama"))
    with pytest.raises(IvlensError, match="adapter was given with a TransformerBridge, which is taken as it is"):
        ivlens.load(bridge, adapter="somewhere")
    bridge.train()
    with pytest.raises(ModelError, match="tiny is in training mode, where dropout changes every run"):
        ivlens.load(bridge)


def test_a_bridge_whose_heads_reach_the_stream_another_way_has_no_vectors(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge = ivlens.load(bridge_of(folders("llama")))
    way = output_path._output_path
    monkeypatch.setattr(output_path, "_output_path", lambda *at: way(*at)._replace(scale=1.0 + at[1]))
    sentence = r"the heads of layer 1 of tiny \(LlamaForCausalLM\) write does not reach .*: it has no vectors; effects"
    with pytest.raises(ModelError, match=sentence):
        path_to_residual(bridge, Head(1, 0), random_z(bridge.cfg))
    assert path_to_residual(bridge, Head(0, 0), random_z(bridge.cfg)).shape == (8, 32)


def test_a_bridge_that_pads_wrongly_is_refused() -> None:
    with pytest.raises(ModelError, match=r"tiny comes out different on a padded prompt, .* take float32"):
        ivlens.load(bridges.random_bridge("mpt", torch.float64))


def test_a_bridge_to_logits_of_another_kind_is_refused() -> None:
    bridge = bridges.random_bridge("granite")

    def halve(module: nn.Module, args: Any, out: Any) -> Any:
        out.logits = 0.5 * out.logits
        return out

    bridge.original_model.register_forward_hook(halve)
    with pytest.raises(ModelError, match="tiny makes logits of its last residual stream in a way that ivlens does not"):
        ivlens.load(bridge)


def test_a_dtype_that_transformers_cannot_compute_in_is_said() -> None:
    with pytest.raises(ModelError, match=r"tiny fails on 6 short prompts in torch\.float64: .*Double"):
        ivlens.load(bridges.random_bridge("mixtral", torch.float64))


# PEFT 0.21 reads an attribute that transformers 5.23 has renamed.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_of_peft_that_was_not_merged_is_refused(folders: Folders) -> None:
    peft = pytest.importorskip("peft")
    hf = peft.get_peft_model(transformers_model(folders("llama")), peft.LoraConfig(task_type="CAUSAL_LM", r=2))
    bridge = bridge_to(hf.base_model.model.eval(), folders("llama"))
    sentence = r"tiny has PEFT layers in it, .* call merge_and_unload\(\) .*, or attach the adapter with"
    with pytest.raises(ModelError, match=sentence):
        ivlens.load(bridge)


HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
BART = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads", "ffn_dim")}
SIZES = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2}
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no heads": (
        lambda: MambaForCausalLM(MambaConfig(**SIZES, state_size=4)),
        r"tiny \(MambaForCausalLM\) has no blocks\.0\.attn\.hook_z, where ivlens reads",
    ),
    "convolutions and attention": (
        lambda: Lfm2ForCausalLM(Lfm2Config(**SIZES, **HEADS, layer_types=["conv", "full_attention"])),
        r"tiny \(Lfm2ForCausalLM\) has no blocks\.0\.attn\.hook_z, .* \(state-space or hybrid models are not\)",
    ),
    "encoder and decoder": (
        lambda: BartForConditionalGeneration(BartConfig(vocab_size=120, d_model=32, **BART)),
        r"tiny \(BartForConditionalGeneration\) has an encoder and a decoder; ivlens needs a causal language model",
    ),
    "both directions": (
        lambda: BertLMHeadModel(BertConfig(**SIZES, num_attention_heads=4, intermediate_size=48)),
        r"tiny (reads in both directions|has bidirectional attention); ivlens needs a causal model",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_a_bridge_to_another_kind_of_model_is_refused(case: str) -> None:
    make, sentence = REFUSED[case]
    with quiet_transformers():
        bridge = bridges.bridge_to(make().eval())
    with pytest.raises(ModelError, match=sentence):
        ivlens.load(bridge)


@pytest.mark.slow
def test_where_state_spaces_run_beside_heads_effects_can_be_measured_head_by_head() -> None:
    sizes = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_state": 8, "mamba_d_head": 8}
    with quiet_transformers():
        model = FalconH1ForCausalLM(FalconH1Config(**SIZES, **HEADS, **sizes)).eval()
    bridge, tokens = ivlens.load(bridges.bridge_to(model)), random_tokens(n=2)
    z = random_z(bridge.cfg)
    assert sweep.loop(bridge, tokens, z)[1].shape == (2, 2, 4)
    with pytest.raises(ModelError, match=r"variants of a prompt's end cannot pass the blocks of tiny \(FalconH1"):
        sweep.sweep(bridge, tokens, z)


def backend_of(folder: Path, **options: Any) -> str:
    return type(ivlens.load(folder, **options)).__name__


@pytest.mark.slow
def test_a_folder_is_loaded_into_what_is_asked_for(folders: Folders) -> None:
    assert backend_of(folders("llama")) == ("HookedTransformer" if HAS_HOOKED else "TransformerBridge")
    assert backend_of(folders("llama"), backend="bridge") == "TransformerBridge"
    with pytest.raises(ModelError, match="'jax' is not a backend; give auto, hooked or bridge"):
        ivlens.load(folders("llama"), backend="jax")


@pytest.mark.skipif(HAS_HOOKED, reason="TransformerLens 3 has a HookedTransformer")
def test_without_a_hooked_transformer_none_can_be_asked_for(folders: Folders) -> None:
    with pytest.raises(ModelError, match=r"backend is 'hooked', but .* install transformer-lens<4, or take backend='b"):
        ivlens.load(folders("llama"), backend="hooked")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_a_folder_in_a_bridge_computes_what_transformers_computes(dtype: str, folders: Folders) -> None:
    bridge, hf = ivlens.load(folders("gpt2"), backend="bridge", dtype=dtype), transformers_model(folders("gpt2"))
    tokens = random_tokens(n=1).prompts
    with torch.no_grad():
        ours, theirs = bridge(tokens).float().log_softmax(-1), hf(tokens).logits.log_softmax(-1)
    near = rounding.bound(rounding.chain(bridge.cfg, 14), size=float(theirs.abs().max()))
    near = 0.5 if dtype == "bfloat16" else near
    torch.testing.assert_close(ours, theirs, rtol=0, atol=near)
    assert bridge.cfg.model_name == folders("gpt2").name and bridge.cfg.default_prepend_bos
    assert bridge.W_O.dtype == getattr(torch, dtype) and not any(one.requires_grad for one in bridge.parameters())
