"""Loading: right against transformers for every family, and a sentence for everything that can be wrong."""

from __future__ import annotations

import json
import pickle
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import rounding
import torch
from checkpoints import EACH_FAMILY, KINDS, build, random_hooked
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformer_lens import HookedTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import ivlens.checkpoints.finder
import ivlens.models.hooked
import ivlens.models.verification
from ivlens.datasets.task import Pair
from ivlens.errors import ModelError, PromptError
from ivlens.models.hooked import model_name, weight_digest
from ivlens.models.loader import load_without_adapters
from ivlens.prompts.template import Prompt
from ivlens.prompts.tokens import tokenize

REQUEST = httpx.Request("GET", "https://huggingface.co/someone/model")
TOKENS = torch.randint(4, 120, (2, 60), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return build("llama", tmp_path / "tiny")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a local folder was looked up on the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def configure(folder: Path, **fields: object) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return folder


class Copied(TorchDispatchMode):
    """Names the parameters of which a copy is made."""

    def __init__(self, model: HookedTransformer) -> None:
        super().__init__()
        self.owners = {(weight.data_ptr(), weight.numel()): name for name, weight in model.named_parameters()}
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.clone.default:
            self.names.add(self.owners.get((args[0].data_ptr(), args[0].numel()), "of none"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_no_weight_is_copied_when_a_loaded_model_runs(family: str, tmp_path: Path) -> None:
    model = load_without_adapters(build(family, tmp_path / "tiny"))
    with Copied(model) as copied, torch.no_grad():
        model(TOKENS)
    assert {name for name in copied.names if ".W_" in name or "._W_" in name} == set()


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", EACH_FAMILY)
def test_log_probabilities_equal_those_of_transformers(family: str, stored: str, tmp_path: Path) -> None:
    folder = build(family, tmp_path / "tiny", seed=3, dtype=stored)
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        theirs = hf(TOKENS).logits.log_softmax(-1)
    model = load_without_adapters(folder)
    ours = model(TOKENS).log_softmax(-1)
    assert (ours - theirs).abs().max().item() <= rounding.of_forward(model, TOKENS)
    assert theirs.std() > 0.5, "the model is too flat to tell a mistake"


OVERRIDES = {
    "tied-llama": ("llama", {"tie_word_embeddings": True}),
    "untied-gpt2": ("gpt2", {"tie_word_embeddings": False}),
    "one-key-value-head": ("llama", {"num_key_value_heads": 1}),
    "gpt2-scaled-by-layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2-unscaled": ("gpt2", {"scale_attn_weights": False}),
    "sequential-neox": ("neox", {"use_parallel_residual": False}),
    "mistral-without-window": ("mistral", {"sliding_window": None, "num_key_value_heads": 4}),
    "window-past-the-shortest-probe": ("mistral", {"sliding_window": 40}),
    "mistral-with-head-size": ("mistral", {"head_dim": 10}),
    "tied-qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-with-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "partial-phi3": ("phi3", {"partial_rotary_factor": 0.5}),
    "uncapped-gemma2": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "olmo2-without-groups": ("olmo2", {"num_key_value_heads": 4}),
    "short-context": ("gpt2", {"n_positions": 12}),
}


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.parametrize("case", OVERRIDES)
def test_unusual_configurations_come_out_right(case: str, tmp_path: Path) -> None:
    family, overrides = OVERRIDES[case]
    folder = build(family, tmp_path / "tiny", **overrides)
    model, tokens = load_without_adapters(folder), TOKENS[:, :12] if case == "short-context" else TOKENS
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        difference = model(tokens).log_softmax(-1) - hf(tokens).logits.log_softmax(-1)
    assert difference.abs().max().item() <= rounding.of_forward(model, tokens)


def test_a_window_is_probed_past_its_edge(tmp_path: Path) -> None:
    model = load_without_adapters(build("mistral", tmp_path / "tiny", sliding_window=40))
    assert ivlens.models.verification._probe_tokens(model).shape[1] > 40


def test_a_model_that_comes_out_different_is_refused(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    translate = ivlens.models.hooked.hooked_fields
    monkeypatch.setattr(ivlens.models.hooked, "hooked_fields", lambda *a: translate(*a) | {"rotary_base": 9000})
    with pytest.raises(ModelError, match=r"tiny as LlamaForCausalLM does not come out right: .* differ by"):
        load_without_adapters(llama)


@pytest.mark.long
@pytest.mark.command
def test_loading_twice_gives_the_same_digest_in_any_process(llama: Path) -> None:
    code = (
        "import os, sys; before = dict(os.environ); from ivlens.models import hooked, loader;"
        "assert dict(os.environ) == before; assert not {'transformers', 'transformer_lens'} & set(sys.modules);"
        f"print(hooked.weight_digest(loader.load({str(llama)!r})))"
    )
    other = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    digest = weight_digest(load_without_adapters(llama))
    assert (other.stdout.strip(), other.stderr) == (digest, "")
    assert weight_digest(load_without_adapters(llama)) == digest


@pytest.mark.slow
def test_the_digest_changes_with_one_weight_and_with_the_dtype(llama: Path) -> None:
    digest = weight_digest(load_without_adapters(llama))
    assert weight_digest(load_without_adapters(llama, dtype="bfloat16")) != digest
    model = load_without_adapters(llama)
    model.blocks[1].attn.b_O[3] += 1e-7
    assert weight_digest(model) != digest


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_the_dtype_holds_everywhere(dtype: str, llama: Path) -> None:
    model, wanted = load_without_adapters(llama, dtype=dtype), getattr(torch, dtype)
    assert model.cfg.dtype == wanted
    assert {weight.dtype for weight in model.parameters()} == {wanted}
    assert model(TOKENS).dtype == wanted
    assert model.blocks[0].attn.rotary_sin.dtype == wanted


@pytest.mark.slow
@pytest.mark.numeric
def test_float64_and_bfloat16_stay_near_float32(llama: Path) -> None:
    exact = load_without_adapters(llama, dtype="float64")(TOKENS).log_softmax(-1)
    model = load_without_adapters(llama)
    assert (model(TOKENS).log_softmax(-1) - exact).abs().max() < rounding.of_forward(model, TOKENS)
    assert (load_without_adapters(llama, dtype="bfloat16")(TOKENS).float().log_softmax(-1) - exact).abs().mean() < 0.2


def test_weights_are_as_in_the_checkpoint_and_share_no_memory(tmp_path: Path) -> None:
    folder = build("gpt2", tmp_path / "tiny")
    model, stored = load_without_adapters(folder), load_file(folder / "model.safetensors")
    assert torch.equal(model.blocks[2].ln1.w, stored["transformer.h.2.ln_1.weight"])
    assert torch.equal(model.W_E, stored["transformer.wte.weight"])
    starts = [weight.untyped_storage().data_ptr() for weight in model.parameters()]
    assert len(set(starts)) == len(starts)
    assert all(weight.untyped_storage().nbytes() == weight.nbytes for weight in model.parameters())


def test_a_loaded_model_is_in_eval_mode_without_gradients(llama: Path) -> None:
    model = load_without_adapters(llama)
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


def test_loading_leaves_nothing_behind(
    llama: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    logging.set_verbosity_warning()
    logging.enable_progress_bar()
    settings = (logging.get_verbosity(), logging.is_progress_bar_enabled(), torch.get_default_dtype())
    random = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_without_adapters(llama)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled(), torch.get_default_dtype()) == settings
    assert torch.equal(torch.get_rng_state(), random)
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma-2-x", "gpt2", "hubert-t5-Llama-2-7b", "meta-llama/Llama-2-7b"])
def test_the_name_of_the_path_means_nothing(name: str, tmp_path: Path) -> None:
    model = load_without_adapters(build("neox", tmp_path / name))
    assert model.cfg.original_architecture == "GPTNeoXForCausalLM"
    assert model_name(model) == Path(name).name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "by_default"), [("llama", True), ("mistral", True), ("gpt2", True), ("neox", False), ("qwen2", False)]
)
def test_bos_is_prepended_where_the_tokenizer_does_it_and_on_gpt2(
    family: str, by_default: bool, tmp_path: Path
) -> None:
    model = load_without_adapters(build(family, tmp_path / "tiny"))
    words = [4, 6, 12, 10]
    assert model.to_tokens("Q : w1 ,").tolist() == [[1, *words] if by_default else words]
    assert model.to_tokens("Q : w1 ,", prepend_bos=False).tolist() == [words]
    bare = model.tokenizer("Q : w1 ,", add_special_tokens=False)["input_ids"]
    assert bare == words


def test_a_tokenizer_without_a_pad_token_pads_with_eos(llama: Path) -> None:
    settings = json.loads((llama / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (llama / "tokenizer_config.json").write_text(json.dumps(settings))
    model = load_without_adapters(llama)
    assert model.tokenizer.pad_token == "<eos>"
    assert model.cfg.d_vocab == 120


@pytest.mark.parametrize("kind", KINDS)
def test_a_hooked_transformer_is_returned_as_it_is(kind: str) -> None:
    model = random_hooked(kind)
    assert load_without_adapters(model) is model
    assert all((weight != 0).any() for weight in model.parameters())
    assert model(TOKENS).isfinite().all()


def test_a_hooked_transformer_is_checked() -> None:
    with pytest.raises(ModelError, match="random-gpt2 has bidirectional attention; ivlens needs a causal model"):
        load_without_adapters(random_hooked("gpt2", attention_dir="bidirectional"))
    model = random_hooked("llama")
    model.blocks[2].attn.W_O[1, 0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"blocks\.2\.attn\.W_O in random-llama has 1 NaN or infinite"):
        load_without_adapters(model)
    with pytest.raises(ModelError, match="taken as it is"):
        load_without_adapters(random_hooked("gpt2"), dtype="bfloat16")
    with pytest.raises(ModelError, match="a dict is not a model"):
        load_without_adapters({"model": 1})  # pyright: ignore[reportArgumentType]


def _drop(key: str) -> Callable[[Path], Path]:
    return lambda folder: change(folder, lambda weights: weights.pop(key))


def _spoil(value: float) -> Callable[[Path], Path]:
    return lambda folder: change(folder, lambda weights: weights["model.layers.1.mlp.up_proj.weight"][3].fill_(value))


def _cut(folder: Path) -> Path:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    return folder


def _pickle(folder: Path) -> Path:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (eval, ("1/0",))

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    return folder


def _remove(*names: str) -> Callable[[Path], Path]:
    def remove(folder: Path) -> Path:
        for name in names:
            (folder / name).unlink()
        return folder

    return remove


def _write(name: str, text: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder

    return write


def _set(**fields: object) -> Callable[[Path], Path]:
    return lambda folder: configure(folder, **fields)


def _adapter(folder: Path) -> Path:
    (folder / "config.json").rename(folder / "adapter_config.json")
    return folder


def _many_words(folder: Path) -> Path:
    return configure(change(folder, _shrink), vocab_size=100)


def _shrink(weights: dict[str, torch.Tensor]) -> None:
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[key] = weights[key][:100].clone()


LAYER = "model.layers.1.self_attn.q_proj.weight"
BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no config": (_remove("config.json"), r"config\.json is missing from .*tiny; give a folder that"),
    "an adapter": (_adapter, r"is an adapter, not a model; load its base model"),
    "torn config": (_write("config.json", '{"arch'), r"config\.json in .*tiny is not readable JSON"),
    "a list": (_write("config.json", "[]"), r"config\.json in .*tiny is a JSON list, not an object"),
    "no architecture": (_set(architectures=None), r'has no "architectures"; add e\.g\.'),
    "an encoder": (_set(architectures=["BertForMaskedLM"]), r"is a BertForMaskedLM, which is not supported"),
    "remote code": (
        _set(architectures=["QWenLMHeadModel"], auto_map={"AutoModelForCausalLM": "code.Model"}),
        r"is a QWenLMHeadModel, which is not supported: .*; ivlens reads the causal models GPT2LMHeadModel",
    ),
    "quantised": (
        _set(quantization_config={"quant_method": "gptq"}),
        r"transformers cannot read the gptq weights in .*tiny: ",
    ),
    "no tokenizer": (_remove("tokenizer.json"), r"tokenizer\.json is missing from .*tiny; save"),
    "torn tokenizer": (_write("tokenizer.json", "{"), r"tokenizer\.json in .*tiny is not readable JSON"),
    "odd tokenizer": (_write("tokenizer.json", "{}"), r"the tokenizer in .*tiny cannot be read"),
    "larger tokenizer": (_many_words, r"goes up to id 119 but the model has 100 embeddings"),
    "no weights": (_remove("model.safetensors"), r"model\.safetensors is missing from .*tiny"),
    "a pickle": (_pickle, r"has its weights in pytorch_model\.bin, a pickle, which ivlens never opens"),
    "cut weights": (_cut, r"tiny.model\.safetensors is no readable safetensors file"),
    "a missing tensor": (_drop(LAYER), rf"the weights in .*tiny lack {LAYER}; config\.json and weights"),
    "missing tensors": (_set(num_hidden_layers=4), r"the weights in .*tiny lack model\.layers\.3.* and 8 more"),
    "a layer too many": (_set(num_hidden_layers=2), r"have what config\.json has no place for, model\.layers\.2"),
    "another width": (
        _set(intermediate_size=40),
        r"have model\.layers\.0\.mlp\.down_proj\.weight as \(32, 48\), not \(32, 40\) and 8 more",
    ),
    "another vocabulary": (_set(vocab_size=130), r"have lm_head\.weight as \(120, 32\), not \(130, 32\)"),
    "five heads": (_set(num_attention_heads=5), r"transformers cannot read config\.json in .*not a multiple"),
    "two names": (
        _set(architectures=["MistralForCausalLM"]),
        r"names the architecture MistralForCausalLM but the model_type of a LlamaForCausalLM",
    ),
    "no context": (_set(max_position_embeddings=0), r"n_ctx comes out as 0 from config\.json"),
    "NaN": (_spoil(torch.nan), r"model\.layers\.1\.mlp\.up_proj\.weight in .*tiny has 32 NaN or infinite values"),
    "infinity": (_spoil(-torch.inf), r"model\.layers\.1\.mlp\.up_proj\.weight in .*tiny has 32 NaN or infinite"),
    "scaled rotation": (
        _set(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
        r"rotary scaling of type 'linear' is not supported; only default and llama3 are",
    ),
    "odd activation": (_set(hidden_act="tanh"), r"the activation 'tanh' is not supported"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_refused_in_one_sentence(case: str, llama: Path) -> None:
    spoil, sentence = BROKEN[case]
    with pytest.raises(ModelError, match=sentence) as caught:
        # Quantised weights are refused for another reason where a HookedTransformer is asked for.
        load_without_adapters(spoil(llama), backend="auto" if case == "quantised" else "hooked")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "fields", "sentence"),
    [
        ("llama", {"attention_bias": True}, r"attention_bias = True in config\.json is not supported"),
        ("llama", {"mlp_bias": True}, r"mlp_bias = True in config\.json is not supported"),
        ("neox", {"attention_bias": False}, r"attention_bias = False in config\.json is not supported"),
        ("opt", {"do_layer_norm_before": False}, r"do_layer_norm_before = False in config\.json is not"),
    ],
)
def test_what_a_converter_would_drop_is_refused(
    family: str, fields: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=sentence):
        load_without_adapters(build(family, tmp_path / "tiny", **fields), backend="hooked")


@pytest.mark.parametrize("half", ["half", "bfloat16"])
def test_weights_that_were_halved_behind_the_configurations_back_are_refused(half: str, word_task: ivlens.Task) -> None:
    model = random_hooked("llama", dtype=torch.float32)
    getattr(model, half)()
    with pytest.raises(ModelError, match=r"weights in torch\.b?float16, but computes in torch\.float32 .* model\.to"):
        ivlens.indirect_effects(model, word_task)


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        ("./nowhere", {}, r"there is no folder './nowhere'; give a Hugging Face folder, a hub id, or 'lab'"),
        (Path("nowhere"), {}, r"there is no folder 'nowhere'"),
        ("", {}, r"config\.json is missing from \."),
        ("two words", {}, r"'two words' is neither a folder here nor a hub id"),
        ("lab", {"device": "abacus"}, r"'abacus' is not a device; give auto, cpu, cuda"),
        ("lab", {"device": "meta"}, r"this machine has no device 'meta'; use cpu, or auto"),
        ("lab", {"device": "cuda:77"}, r"this machine has no device 'cuda:77'"),
        ("lab", {"dtype": "int8"}, r"'int8' is not a dtype ivlens computes in; give auto, float32, bfloat16, float16"),
        (__file__, {}, r"test_hooked\.py is a file; give a GGUF file, or the folder"),
    ],
)
def test_a_wrong_argument_is_refused(model: str | Path, options: dict[str, str], sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        load_without_adapters(model, **options)


def test_a_token_without_an_embedding_is_no_harm_until_a_prompt_has_it(llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.add_special_tokens({"pad_token": "[PAD-OF-MINE]"})
    tokenizer.save_pretrained(llama)
    model = load_without_adapters(llama)
    assert model.tokenizer.pad_token == "<eos>" and model.tokenizer.padding_side == "right"
    assert (
        tokenize(model, [Prompt(text="Q w1", answer=" w2", query=Pair("w1", "w2"))]).prompts.max() < model.cfg.d_vocab
    )
    with pytest.raises(PromptError, match=r"has the token '\[PAD-OF-MINE\]', which was added to the tokenizer"):
        tokenize(model, [Prompt(text="Q [PAD-OF-MINE]", answer=" w2", query=Pair("Q", "w2"))])


def test_a_missing_lab_model_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ivlens.checkpoints.finder, "LAB", tmp_path)
    with pytest.raises(ModelError, match="the lab model is missing from this installation"):
        load_without_adapters("lab")


def test_lab_is_the_folder_in_the_package(monkeypatch: pytest.MonkeyPatch, llama: Path) -> None:
    monkeypatch.setattr(ivlens.checkpoints.finder, "LAB", llama)
    assert model_name(load_without_adapters("lab")) == "lab"


def test_a_hub_id_offline_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelError, match="no folder 'someone/model' here and it cannot be had from the Hugging Face hub"
    ):
        load_without_adapters("someone/model")


def test_a_hub_that_says_no_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RepositoryNotFoundError("404 Client Error", response=httpx.Response(404, request=REQUEST))

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ModelError, match=r"hub did not give 'someone/model' \(revision main\): Repos.* 404 Client"):
        load_without_adapters("someone/model")


def test_a_downloaded_hub_id_takes_the_same_path(monkeypatch: pytest.MonkeyPatch, llama: Path) -> None:
    asked: dict[str, object] = {}

    def download(name: str, **options: object) -> str:
        asked.update(options, name=name)
        return str(llama)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    model = load_without_adapters("someone/model", revision="v2")
    assert isinstance(model, HookedTransformer)
    assert (asked["name"], asked["revision"], model_name(model)) == ("someone/model", "v2", "someone/model")
