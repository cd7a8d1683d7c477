"""What is in a GGUF file of a language model, as llama.cpp runs them, and is it whole?

transformers dequantises it by the `gguf` package; its header is held against the file and against what ivlens computes
before either is handed it. What transformers leaves out of its reading (scaled rotations, how a tokenizer splits
digits, how the largest Gemmas scale attention) is put back here, or refused.
"""

from __future__ import annotations

import math
import re
import struct
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from ivlens.checkpoints import gguf_reading
from ivlens.checkpoints.agreement import refuse_counts
from ivlens.checkpoints.checkpoint import (
    BROKEN,
    Checkpoint,
    flat,
    quiet_transformers,
    refuse_larger,
    refuse_non_finite,
    whole_model,
)
from ivlens.checkpoints.gguf_reading import Contents, PackedTensor
from ivlens.checkpoints.tokenizer import check_vocabulary, read_tokenizer
from ivlens.errors import ModelError
from ivlens.storage import gguf_files
from ivlens.storage.atomic_files import reason, refuse_unusual
from ivlens.storage.gguf_files import Header, Listed, StoredTensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# By GGUF's general.architecture. llama.cpp knows many more, of which ivlens has no translation.
_CLASSES = {
    "gpt2": "GPT2LMHeadModel",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_BOUNDS = gguf_files.Bounds(entries=2**16, listed=2**22)
# What transformers 5.23 leaves at its default for one or another of them, and the configuration's name for it.
_UNREAD = (
    ("attention.key_length", "head_dim"),
    ("attention.sliding_window", "sliding_window"),
    ("context_length", "n_positions"),
    ("feed_forward_length", "n_inner"),
)
_FACTORS = "rope_freqs.weight"
"""By what each frequency is divided (Llama 3.1 and later)."""
_UNSCALED = {"type": "none", "factor": 1}
_ORIGINAL_CONTEXT = 8192
"""Of Llama 3, before its rotations were scaled; no GGUF file says it."""
# llama.cpp divides scores of Gemma 2 27B and Gemma 3 27B, told by their layers, by sqrt(d_model / n_heads) where
# smaller ones divide by sqrt(d_head) (`f_attention_scale`); no GGUF file says it.
_WIDE_SCALES = {("gemma2", 46), ("gemma3", 62)}


def read_gguf(path: Path, *, name: str) -> Checkpoint:
    """Read a GGUF file, its weights dequantised to float32.

    Raises:
        ModelError: it is no GGUF file, or torn, one of several parts, of another architecture, without a tokenizer, or
            describes something else than it holds; or the package `gguf` is not installed.
    """
    gguf_files.package()
    header = _header(path)
    architecture = _architecture(path, header)
    counts = {name.rpartition(".")[2]: value.content for name, value in header.fields.items()}
    refuse_counts(counts, str(path))
    found = gguf_reading.contents(path, header)
    with quiet_transformers(), gguf_reading.given(found):
        config = _config(path, header, found, architecture)
        tokenizer = _tokenizer(path, header)
        sizes = [math.prod(tensor.shape) for tensor in _weights_of(header).values()]
        refuse_larger(path, config, architecture, tensors=len(sizes), parameters=sum(sizes))
        model = _model(path, config, sum(sizes))
    refuse_non_finite(model, path)
    check_vocabulary(tokenizer, config.vocab_size, path)
    return Checkpoint(
        name=name,
        architecture=architecture,
        dtype=torch.float32,
        model=model,
        tokenizer=tokenizer,
        stored=f"{_quantisation(header)}, dequantised to float32",
        files=(path,),
    )


def _refuse(path: Path, why: str) -> NoReturn:
    raise ModelError(f"{path} is no readable GGUF file of a language model ({why}); copy it again, or give another")


def _header(path: Path) -> Header:
    import gguf

    try:
        refuse_unusual(path, None)
        header, size = gguf_files.read_header(path, _BOUNDS), path.stat().st_size
    except (OSError, ValueError, struct.error) as error:
        _refuse(path, reason(error))
    kinds = gguf.GGML_QUANT_SIZES
    whole = {gguf.GGMLQuantizationType[kind] for kind in ("I8", "I16", "I32", "I64")}
    for name, tensor in header.tensors.items():
        if tensor.kind in whole:
            _refuse(path, f"{name[:80]!r} holds whole numbers, which are no weights")
        if tensor.kind not in set(kinds):
            _refuse(path, f"{name[:80]!r} is packed as {tensor.kind}, which the package gguf does not know")
        values, length = kinds[gguf.GGMLQuantizationType(tensor.kind)]
        if header.start + tensor.offset + math.prod(tensor.shape) // values * length > size:
            _refuse(path, f"{name[:80]!r} lies behind its end; it is truncated")
    return header


def _architecture(path: Path, header: Header) -> str:
    parts = header.get("split.count", 1)
    if (isinstance(parts, int) and parts > 1) or re.search(r"-\d{5}-of-\d{5}$", path.stem):
        raise ModelError(f"{path} is one of several parts; join them with llama.cpp's llama-gguf-split --merge")
    kind = header.get("general.architecture")
    if kind not in _CLASSES:
        raise ModelError(
            f"{path} is a GGUF file of {str(kind)[:40]!r}, which is not supported; ivlens reads {', '.join(_CLASSES)}. "
            "Of a causal model of another architecture that transformers runs, build a TransformerBridge "
            "(TransformerLens' TransformerBridge.boot_transformers) and give that"
        )
    scaling, factor = (header.get(f"{kind}.rope.scaling.{name}", usual) for name, usual in _UNSCALED.items())
    if scaling not in ("none", "") or factor != 1 or (kind != "llama" and _FACTORS in header.tensors):
        raise ModelError(
            f"{path} scales rotations ({scaling}), which transformers leaves out of a GGUF file; give the model's "
            "Hugging Face folder"
        )
    for field in ("tokenizer.ggml.model", "tokenizer.ggml.tokens"):
        if field not in header.fields:
            raise ModelError(f"{path} has no tokenizer ({field} is missing); give a file that has one")
    return _CLASSES[str(kind)]


def _config(path: Path, header: Header, found: Contents, architecture: str) -> PretrainedConfig:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    except (*BROKEN, StrictDataclassError) as error:
        raise ModelError(f"transformers cannot read the configuration in {path}: {flat(error)}") from error
    kind = header.get("general.architecture")
    for name, field in _UNREAD:
        if hasattr(config, field) and f"{kind}.{name}" in header.fields:
            setattr(config, field, header.get(f"{kind}.{name}"))
    config.architectures = [architecture]
    if (kind, config.num_hidden_layers) in _WIDE_SCALES:
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads
    for tensor in found.tensors:
        if tensor.name == _FACTORS:
            config.rope_parameters = _scaled_rotations(path, tensor, config)
    return config


def _scaled_rotations(path: Path, stored: PackedTensor, config: PretrainedConfig) -> dict[str, Any]:
    """Llama 3's scaling of rotations, of which the file has the outcome alone."""
    import gguf
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    factors = torch.from_numpy(gguf.dequantize(stored.data, stored.tensor_type).copy()).float().flatten()
    base = config.rope_parameters
    config.rope_parameters = base | {
        "rope_type": "llama3",
        "factor": float(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": _ORIGINAL_CONTEXT,
    }
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1.0 / base["rope_theta"] ** (torch.arange(0, 2 * len(scaled), 2) / (2 * len(scaled)))
    if len(factors) != len(scaled) or not torch.allclose(plain / scaled, factors, rtol=1e-3):
        raise ModelError(f"{path} scales rotations in another way than Llama 3; give the model's Hugging Face folder")
    return config.rope_parameters


def _tokenizer(path: Path, header: Header) -> PreTrainedTokenizerBase:
    from tokenizers import pre_tokenizers

    tokenizer = read_tokenizer(path.parent, path.name)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if header.get("tokenizer.ggml.pre") == "smollm" and backend is not None:
        # As llama.cpp does, and SmolLM's own tokenizer; transformers 5.23 splits texts as GPT-2's.
        digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    return tokenizer


def _weights_of(header: Header) -> dict[str, StoredTensor]:
    return {name: tensor for name, tensor in header.tensors.items() if name != _FACTORS}


def _model(path: Path, config: PretrainedConfig, held: int) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    read = partial(AutoModelForCausalLM.from_pretrained, path.parent, gguf_file=path.name, local_files_only=True)
    model = whole_model(read, path, told=f"the weights in {path}", config=config, dtype=torch.float32)
    used = sum(weight.numel() for weight in model.parameters())
    if used != held:
        raise ModelError(
            f"{path} holds {held:,} numbers, of which transformers makes {used:,} parameters; it has tensors that a "
            f"{type(model).__name__} does not, so that something would be left out"
        )
    return model


def _quantisation(header: Header) -> str:
    """As people name it, such as `Q4_K_M`; else how most of the weights are packed."""
    import gguf

    kind = header.get("general.file_type")
    if not isinstance(kind, Listed) and kind in set(gguf.LlamaFileType):
        return re.sub("^(MOSTLY|ALL)_", "", gguf.LlamaFileType(kind).name)
    sizes: Counter[int] = Counter()
    for tensor in header.tensors.values():
        sizes[tensor.kind] += math.prod(tensor.shape)
    return gguf.GGMLQuantizationType(sizes.most_common(1)[0][0]).name
