"""A Hugging Face folder as the GGUF file that llama.cpp's converter would make of it, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from checkpoints import build
from safetensors.torch import load_file
from tokenizers import pre_tokenizers

TOKENS = ["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
"""Every byte, and one word of two."""
TEMPLATE = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2")
"""Of GGUF, each the name of a family of `checkpoints` as well."""


def build_pair(family: str, folder: Path, **overrides: Any) -> tuple[Path, Path]:
    """A random checkpoint, without a tokenizer of use, and its GGUF file beside it."""
    # Quantised tensors are made of blocks of 32.
    sizes = {"vocab_size": len(TOKENS), "hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "n_inner": 256}
    made = build(family, folder / "base", **{**sizes, **overrides})
    return made, write_gguf(made, folder / "tiny.gguf")


def write_gguf(folder: Path, path: Path, *, quantised: bool = False, **fields: Any) -> Path:
    """Write the weights of a folder with a byte-level tokenizer; `fields` are put in, or left out where None."""
    config = json.loads((folder / "config.json").read_text())
    name = str(config["model_type"]).removesuffix("_text")
    writer = gguf.GGUFWriter(path, name)
    for key, value in {**_fields(name, config), **fields}.items():
        _add(writer, key, value)
    arch = next(kind for kind, arch_name in gguf.MODEL_ARCH_NAMES.items() if arch_name == name)
    names = gguf.get_tensor_name_map(arch, 3)
    for key, weight in load_file(folder / "model.safetensors").items():
        values = _as_llama_cpp(name, key, weight.float().numpy(), config)
        stem, _, ending = key.rpartition(".")
        kind = gguf.GGMLQuantizationType.F32
        if quantised and values.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            values = gguf.quantize(values, kind)
        writer.add_tensor(f"{names.get_name(stem)}.{ending}", np.ascontiguousarray(values), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _fields(name: str, config: dict[str, Any]) -> dict[str, Any]:
    heads = config.get("num_attention_heads") or config["n_head"]
    width = config.get("hidden_size") or config["n_embd"]
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    norm = "layer_norm_epsilon" if name == "gpt2" else "layer_norm_rms_epsilon"
    own = {
        "context_length": config.get("max_position_embeddings") or config["n_positions"],
        "embedding_length": width,
        "block_count": 3,
        "feed_forward_length": config["n_inner" if name == "gpt2" else "intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config.get("num_key_value_heads", heads),
        "attention.key_length": config.get("head_dim") or width // heads,
        f"attention.{norm}": config.get("rms_norm_eps") or config.get("layer_norm_epsilon"),
        "attention.sliding_window": config.get("sliding_window"),
        "rope.freq_base": rope.get("rope_theta"),
        "rope.dimension_count": config.get("head_dim") or width // heads,
        "vocab_size": len(TOKENS),
    }
    return {
        "general.name": "tiny",
        "general.file_type": 0,
        **{f"{name}.{key}": value for key, value in own.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3, *[1] * (len(TOKENS) - 1)],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.chat_template": TEMPLATE,
    }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if value is None or key == "general.architecture":
        return None
    for kind, add in ((str, writer.add_string), (int, writer.add_uint32), (float, writer.add_float32)):
        if isinstance(value, kind):
            return add(key, value)
    return writer.add_array(key, value)


def _as_llama_cpp(name: str, key: str, values: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """What llama.cpp's converter does to a tensor: it sorts dimensions of Llama's heads and adds 1 to Gemma's norms.

    Source: ggml-org/llama.cpp, convert_hf_to_gguf.py (`LlamaModel.permute`, `Gemma2Model.modify_tensors`).
    """
    if name.startswith("gemma") and key.endswith("norm.weight"):
        return values + 1
    if name == "gpt2" and key.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        return values.T
    if name == "llama" and (".q_proj." in key or ".k_proj." in key):
        heads = config["num_attention_heads"] if ".q_proj." in key else config["num_key_value_heads"]
        return values.reshape(heads, 2, len(values) // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)
    return values
