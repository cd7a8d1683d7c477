"""Configuration, weights and tokenizer of a checkpoint are of one model, or it is refused or said that they are not."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ivlens.checkpoints.checkpoint import read_checkpoint
from ivlens.errors import LONGEST, ModelError, ModelWarning

Folders = Callable[[str], Path]
Weights = dict[str, Tensor]


def changed(
    source: Path,
    target: Path,
    *,
    config: Callable[[dict[str, Any]], object] = len,
    weights: Callable[[Weights], object] = len,
) -> Path:
    """A checkpoint of which something is another."""
    shutil.copytree(source, target)
    content = json.loads((target / "config.json").read_text())
    config(content)
    (target / "config.json").write_text(json.dumps(content))
    held = load_file(target / "model.safetensors")
    weights(held)
    save_file(held, target / "model.safetensors", metadata={"format": "pt"})
    return target


def read(folder: Path) -> None:
    read_checkpoint(folder, name="tiny")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize(("family", "name"), [("llama-gqa", "model.norm.weight"), ("gpt2", "transformer.ln_f.bias")])
def test_weights_that_are_no_fractions_are_refused(
    folders: Folders, tmp_path: Path, dtype: torch.dtype, family: str, name: str
) -> None:
    def cast(held: Weights) -> None:
        held[name] = held[name].to(dtype)

    with pytest.raises(ModelError, match=rf"holds {name} as .*; save it in float32, bfloat16 or float16"):
        read(changed(folders(family), tmp_path / "tiny", weights=cast))


@pytest.mark.parametrize(("family", "prefix"), [("gpt2", "transformer.h.0.attn"), ("gptj", "transformer.h.0.attn")])
def test_masks_of_old_checkpoints_are_no_weights(folders: Folders, tmp_path: Path, family: str, prefix: str) -> None:
    masks = {"bias": torch.ones(1, 1, 128, 128, dtype=torch.bool).tril(), "masked_bias": torch.tensor(-1e9)}
    old = {f"{prefix}.{name}": mask for name, mask in masks.items()}
    read(changed(folders(family), tmp_path / "tiny", weights=lambda held: held.update(old)))


def test_gpt2_is_read_as_it_lies_on_the_hub(folders: Folders, tmp_path: Path) -> None:
    """Without the name of the whole in front, and with masks."""

    def strip(held: Weights) -> None:
        for name in list(held):
            held[name.removeprefix("transformer.")] = held.pop(name)
        held["h.0.attn.bias"], held["h.0.attn.masked_bias"] = torch.ones(1, 1, 128, 128).tril(), torch.tensor(-1e4)

    read(changed(folders("gpt2"), tmp_path / "tiny", weights=strip))


def test_tied_embeddings_beside_an_output_of_its_own_are_refused(folders: Folders, tmp_path: Path) -> None:
    def tie(content: dict[str, Any]) -> None:
        content["tie_word_embeddings"] = True

    with pytest.raises(
        ModelError, match="says tie_word_embeddings = true, but the weights have an lm_head of their own"
    ):
        read(changed(folders("llama-gqa"), tmp_path / "own", config=tie))

    def same(held: Weights) -> None:
        held["lm_head.weight"] = held["model.embed_tokens.weight"].clone()

    read(changed(folders("llama-gqa"), tmp_path / "same", config=tie, weights=same))


def test_rotary_frequencies_of_another_base_are_refused(folders: Folders, tmp_path: Path) -> None:
    def frequencies(base: float) -> Callable[[Weights], object]:
        stored = 1 / base ** (torch.arange(0, 6, 2) / 6)
        return lambda held: held.update({"model.layers.0.self_attn.rotary_emb.inv_freq": stored})

    read(changed(folders("llama-gqa"), tmp_path / "same", weights=frequencies(500.0)))
    with pytest.raises(ModelError, match=r"has other rotary frequencies than config\.json asks for; set rope_theta"):
        read(changed(folders("llama-gqa"), tmp_path / "other", weights=frequencies(10_000.0)))


@pytest.mark.parametrize(
    ("family", "dropped", "sentence"),
    [
        (
            "llama-gqa",
            ["rope_parameters", "hidden_act"],
            r"does not say hidden_act and rope_theta: .*'silu', .* = 10000",
        ),
        ("llama-gqa", ["rms_norm_eps"], "does not say rms_norm_eps"),
        ("gpt2", ["layer_norm_epsilon"], "does not say layer_norm_epsilon"),
    ],
)
def test_what_the_configuration_leaves_to_transformers_is_said(
    folders: Folders, tmp_path: Path, family: str, dropped: list[str], sentence: str
) -> None:
    def drop(content: dict[str, Any]) -> None:
        for name in dropped:
            del content[name]

    with pytest.warns(ModelWarning, match=sentence):
        read(changed(folders(family), tmp_path / "tiny", config=drop))


def test_another_bos_token_than_the_configuration_says_is_said(folders: Folders, tmp_path: Path) -> None:
    with pytest.warns(ModelWarning, match=r"begins prompts with token 1 \('<bos>'\), but config.json says .* = 5"):
        read(changed(folders("llama-gqa"), tmp_path / "tiny", config=lambda content: content.update(bos_token_id=5)))


@pytest.mark.parametrize("name", ["num_labels", "num_hidden_layers", "num_local_experts", "n_routed_experts"])
def test_more_parts_than_any_model_has_are_refused_before_they_are_made(
    folders: Folders, tmp_path: Path, name: str
) -> None:
    with pytest.raises(ModelError, match=rf"says {name} = 20000000; at most 65,536 are possible"):
        read(
            changed(folders("llama-gqa"), tmp_path / "tiny", config=lambda content: content.update({name: 20_000_000}))
        )


VALUES = (None, True, 0, -1, 3, 10**30, 1.5, "x", "", "\ud800", "x" * 10**5, [], [1], {}, {"a": 1}, {"0": "x"})
MORE = ("num_labels", "id2label", "label2id", "pruned_heads", "layer_types", "quantization_config", "head_dim", "dtype")


@pytest.mark.slow
def test_a_field_of_any_type_and_size_is_read_or_refused_in_a_sentence(folders: Folders, tmp_path: Path) -> None:
    source = folders("llama-gqa")
    fields = (*json.loads((source / "config.json").read_text()), *MORE)
    for number, (field, value) in enumerate(random.Random(0).sample([(f, v) for f in fields for v in VALUES], 30)):
        folder = changed(
            source, tmp_path / str(number), config=lambda content, f=field, v=value: content.update({f: v})
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(folder)
        except ModelError as error:
            assert len(str(error)) <= LONGEST, field
