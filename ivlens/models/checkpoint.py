"""What is in a Hugging Face folder, and is it whole?

Reads a configuration, weights and a tokenizer from a local folder and from nowhere else: no network, no
pickle, no code out of the folder. Whatever is missing, torn or contradictory is refused in a sentence, because
transformers fills in missing weights at random and goes on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import CRITICAL
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from ivlens.errors import ModelError
from ivlens.models.architectures import ARCHITECTURES, EXPERTS, UNTRANSLATED, why_not
from ivlens.storage import tensor_files
from ivlens.storage.atomic_files import LARGEST_TEXT, reason, refuse_unusual
from ivlens.storage.json_files import read_json

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
# What transformers raises for a missing shard, a value out of range, a field of the wrong type, an unknown name.
BROKEN = (
    *(OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError),
    *(ArithmeticError, AssertionError, ImportError, MemoryError),
)
LONGEST = 2**21
"""Positions. Tables of rotary models are as long."""
SLACK = 2**26
"""Parameters that may be lacking in any checkpoint before it is refused unread."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One folder, read."""

    name: str
    """What the user called it: `lab`, the folder's name, or the hub id."""
    architecture: str
    """The class that config.json names, e.g. `LlamaForCausalLM`."""
    dtype: torch.dtype
    """What the weights are stored as; `model` holds them as float32."""
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def read_checkpoint(folder: Path, *, name: str, for_bridge: bool = False) -> Checkpoint:
    """Read a folder, its weights as float32 with eager attention.

    Args:
        for_bridge: Whether architectures are read, too, that only transformers computes.

    Raises:
        ModelError: a file is missing or torn, the architecture is not supported, the weights do not fit the
            configuration, or a weight is NaN or infinite.
    """
    architecture = _architecture(folder, for_bridge=for_bridge)
    _refuse_pickles(folder)
    _refuse_unusual(folder)
    with quiet_transformers():
        config = _config(folder)
        tokenizer = _tokenizer(folder)
        _refuse_larger(folder, config)
        model = _weights(folder, config)
    if type(model).__name__ != architecture:
        raise ModelError(
            f"config.json in {folder} names the architecture {architecture} but the model_type of a "
            f"{type(model).__name__}; make them agree"
        )
    refuse_non_finite(model, folder)
    highest = max(tokenizer.get_vocab().values())
    if highest >= config.vocab_size:
        raise ModelError(
            f"the tokenizer in {folder} goes up to id {highest} but the model has {config.vocab_size} "
            "embeddings; they are not of one model, or the embeddings were not resized"
        )
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    return Checkpoint(name=name, architecture=architecture, dtype=stored, model=model, tokenizer=tokenizer)


def refuse_non_finite(model: nn.Module, where: Path | str) -> None:
    """Raise a ModelError that names the first parameter (and so the layer) with NaN or infinity in it."""
    for name, weight in model.named_parameters():
        # A sum is not finite if any term is not, and is cheaper than a look at each; it can also overflow.
        if not weight.sum().isfinite() and not weight.isfinite().all():
            bad = int((~weight.isfinite()).sum())
            raise ModelError(
                f"{name} in {where} has {bad} NaN or infinite values; the checkpoint is damaged, use another"
            )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no load reports from transformers; its settings come back afterwards."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _architecture(folder: Path, *, for_bridge: bool) -> str:
    config = _json(folder / "config.json", folder)
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ModelError(f'config.json in {folder} has no "architectures"; add e.g. ["LlamaForCausalLM"]')
    if config.get("quantization_config"):
        raise ModelError(f"{folder} holds quantised weights; give the checkpoint in float32, bfloat16 or float16")
    fault = None if names[0] in ARCHITECTURES else why_not(config, names[0])
    if fault in (EXPERTS, UNTRANSLATED):
        # A TransformerBridge may know it; where it does not, it says so itself.
        way_out, fault = "; backend='bridge' may", None if for_bridge else fault
    else:
        way_out = ""
    if fault is not None:
        raise ModelError(
            f"{folder} is a {names[0]}, which is not supported: {fault}; "
            f"ivlens reads the causal models {', '.join(ARCHITECTURES)}{way_out}"
        )
    return names[0]


def _json(path: Path, folder: Path) -> dict[str, Any]:
    if not path.is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(f"{folder} is an adapter, not a model; load its base model and give the adapter with it")
        raise ModelError(f"{path.name} is missing from {folder}; give a folder that a Hugging Face model was saved to")
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.name} in {folder} is not readable JSON ({reason(error)}); copy it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path.name} in {folder} is a JSON {type(content).__name__}, not an object; copy it again")
    return content


def _refuse_pickles(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pth", ".ckpt"})
    if pickles:
        raise ModelError(
            f"{folder} has its weights in {pickles[0]}, a pickle, which ivlens never opens; "
            "convert it to safetensors (save_pretrained of transformers 5 writes it)"
        )
    raise ModelError(f"model.safetensors is missing from {folder}; copy it again")


def _refuse_unusual(folder: Path) -> None:
    """Before transformers opens them: a pipe would be waited for, and texts are read whole."""
    for path in folder.iterdir():
        if path.suffix in {".json", ".jinja", ".model", ".txt"} and not path.is_dir():
            try:
                refuse_unusual(path, LARGEST_TEXT)
            except OSError as error:
                raise ModelError(f"{path.name} in {folder} cannot be read ({reason(error)}); copy it again") from error


def _config(folder: Path) -> PretrainedConfig:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (*BROKEN, StrictDataclassError) as error:
        raise ModelError(f"transformers cannot read config.json in {folder}: {_flat(error)}") from error


def _refuse_larger(folder: Path, config: PretrainedConfig) -> None:
    """Before memory is taken: raise a ModelError where config.json describes far more than the weights hold.

    transformers fills in at random what the weights lack, however large it is.
    """
    from transformers import AutoModelForCausalLM

    _refuse_elsewhere(folder)
    stored = [
        tensor_files.read_header(path, remedy="copy it again", error=ModelError)
        for path in folder.glob("*.safetensors")
    ]
    shapes = [shape for one in stored for shape in one.shapes.values()]
    for name, most in (("num_hidden_layers", len(shapes)), ("max_position_embeddings", LONGEST)):
        value = getattr(config, name, 0)
        if type(value) is not int or not 0 <= value <= most:
            raise ModelError(f"config.json in {folder} says {name} = {value!r}; at most {most:,} is possible here")
    try:
        with torch.device("meta"):
            described = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    except BROKEN as error:
        raise ModelError(f"transformers cannot read config.json in {folder}: {_flat(error)}") from error
    held = sum(map(math.prod, shapes))
    if described > 2 * held + SLACK:  # What is lacking of less is named, tensor by tensor, when it has been read.
        raise ModelError(
            f"config.json in {folder} describes {described:,} parameters but the weights hold {held:,}; they are not "
            "of one model, or a file is missing"
        )


def _refuse_elsewhere(folder: Path) -> None:
    """Raise a ModelError where the index of shards leads out of the folder."""
    index = folder / "model.safetensors.index.json"
    shards = _json(index, folder).get("weight_map") if index.is_file() else {}
    names = set(map(str, shards.values())) if isinstance(shards, dict) else {"..."}
    outside = sorted(name for name in names if Path(name).name != name)
    if outside:
        raise ModelError(f"{index.name} in {folder} names {outside[0]!r}, which is not in that folder; copy it again")


def _weights(folder: Path, config: PretrainedConfig) -> PreTrainedModel:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            # Reported and refused below, by name.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise ModelError(f"the weights in {folder} are truncated or damaged ({error}); copy them again") from error
    except BROKEN as error:
        raise ModelError(f"transformers cannot read {folder}: {_flat(error)}") from error
    model, found = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    _refuse_misfits(found, folder)
    return model.eval().requires_grad_(False)


def _refuse_misfits(found: dict[str, Any], folder: Path) -> None:
    shapes = sorted(f"{name} as {tuple(a)}, not {tuple(b)}" for name, a, b in found["mismatched_keys"])
    for fault, names in (
        ("lack", sorted(found["missing_keys"])),
        ("have", shapes),
        ("have what config.json has no place for,", sorted(found["unexpected_keys"])),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(
                f"the weights in {folder} {fault} {names[0]}{more}; config.json and weights are not of one model"
            )


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelError(f"tokenizer.json is missing from {folder}; save the model's tokenizer there")
    if (folder / "tokenizer.json").is_file():
        _json(folder / "tokenizer.json", folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # The Rust tokenizers raise bare Exception for a file that they cannot read.
    except Exception as error:
        raise ModelError(f"the tokenizer in {folder} cannot be read: {_flat(error)}") from error
    if tokenizer.pad_token is None:
        # An id that exists; masks tell pads, never the id. The embeddings are not resized.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token or tokenizer.unk_token
    return tokenizer


def _flat(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
