"""What is in a Hugging Face folder, and is it whole?

Reads a configuration, weights and a tokenizer from a local folder and from nowhere else: no network, no
pickle, no code out of the folder. Whatever is missing, torn or contradictory is refused in a sentence, because
transformers fills in missing weights at random and goes on. Weights are in memory once, in the 16 bits that they are
stored in, each in memory of its own: what is done with one is given back before the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from logging import CRITICAL
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from ivlens.checkpoints import agreement
from ivlens.checkpoints.architectures import ARCHITECTURES
from ivlens.checkpoints.tokenizer import check_vocabulary, read_tokenizer
from ivlens.checkpoints.unsupported import EXPERTS, UNTRANSLATED, why_not
from ivlens.errors import ModelError
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
    """What config.json says that the weights are stored as."""
    model: PreTrainedModel
    """With parameters as they are stored where all are of one 16-bit type, else in float32; buffers in float32."""
    tokenizer: PreTrainedTokenizerBase
    stored: str = ""
    """How weights that had to be dequantised are stored, such as `Q4_1, dequantised to float32`."""
    files: tuple[Path, ...] = ()
    """Those that the weights were read from."""


def read_checkpoint(folder: Path, *, name: str, for_bridge: bool = False) -> Checkpoint:
    """Read a folder, for eager attention.

    Args:
        for_bridge: Whether architectures are read, too, that only transformers computes.

    Raises:
        ModelError: a file is missing or torn, the architecture is not supported, the weights do not fit the
            configuration, or a weight is NaN or infinite.
    """
    stated = read_object(folder / "config.json", folder)
    architecture, files = architecture_of(stated, folder, for_bridge=for_bridge), find_weights(folder)
    _refuse_unusual(folder)
    with quiet_transformers():
        config = _config(folder)
        tokenizer = read_tokenizer(folder)
        headers = [tensor_files.read_header(path, remedy="copy it again", error=ModelError) for path in files]
        shapes = [shape for one in headers for shape in one.shapes.values()]
        refuse_larger(folder, config, architecture, tensors=len(shapes), parameters=sum(map(math.prod, shapes)))
        model = _weights(folder, files, config, architecture)
    refuse_non_finite(model, folder)
    check_vocabulary(tokenizer, config.vocab_size, folder)
    agreement.say_defaults(stated, config, f"config.json in {folder}")
    agreement.say_other_bos(config, tokenizer, folder)
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    return Checkpoint(
        name=name, architecture=architecture, dtype=stored, model=model, tokenizer=tokenizer, files=tuple(files)
    )


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


def architecture_of(config: Mapping[str, Any], folder: Path, *, for_bridge: bool) -> str:
    """The class that a folder's config.json names; raises ModelError where ivlens cannot run such models."""
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ModelError(f'config.json in {folder} has no "architectures"; add e.g. ["LlamaForCausalLM"]')
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
    agreement.refuse_counts(config, f"config.json in {folder}")
    return names[0]


def read_object(path: Path, folder: Path) -> dict[str, Any]:
    """A JSON file in a model's folder; raises ModelError where it is missing, or no object."""
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


def find_weights(folder: Path) -> list[Path]:
    """Those that transformers would read; raises ModelError where there are none, or only pickles."""
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    if (folder / "model.safetensors.index.json").is_file():
        return _shards(folder)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pth", ".ckpt"})
    if pickles and not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} has its weights in {pickles[0]}, a pickle, which ivlens never opens; "
            "convert it to safetensors (save_pretrained of transformers 5 writes it)"
        )
    raise ModelError(f"model.safetensors is missing from {folder}; copy it again")


def _shards(folder: Path) -> list[Path]:
    """What the index of shards names; raises a ModelError where it leads out of the folder, or to nothing."""
    index = folder / "model.safetensors.index.json"
    shards = read_object(index, folder).get("weight_map")
    names = sorted(set(map(str, shards.values()))) if isinstance(shards, dict) and shards else ["..."]
    for name in names:
        if Path(name).name != name:
            raise ModelError(f"{index.name} in {folder} names {name!r}, which is not in that folder; copy it again")
        if not (folder / name).is_file():
            raise ModelError(f"{index.name} in {folder} names {name}, which is missing; copy it again")
    return [folder / name for name in names]


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
        raise ModelError(f"transformers cannot read config.json in {folder}: {flat(error)}") from error


def refuse_larger(where: Path, config: PretrainedConfig, architecture: str, *, tensors: int, parameters: int) -> None:
    """Before memory is taken: raise a ModelError where the configuration describes far more than the weights hold.

    transformers fills in at random what the weights lack, however large it is.

    Args:
        architecture: What the model that the configuration describes has to be.
        tensors, parameters: As many the files hold.
    """
    from transformers import AutoModelForCausalLM

    for name, most in (("num_hidden_layers", tensors), ("max_position_embeddings", LONGEST)):
        value = getattr(config, name, 0)
        if type(value) is not int or not 0 <= value <= most:
            raise ModelError(f"config.json in {where} says {name} = {value!r}; at most {most:,} is possible here")
    try:
        with torch.device("meta"):
            described = AutoModelForCausalLM.from_config(config)
    except BROKEN as error:
        raise ModelError(f"transformers cannot read config.json in {where}: {flat(error)}") from error
    if type(described).__name__ != architecture:
        raise ModelError(
            f"config.json in {where} names the architecture {architecture} but the model_type of a "
            f"{type(described).__name__}; make them agree"
        )
    size = sum(weight.numel() for weight in described.parameters())
    if size > 2 * parameters + SLACK:  # What is lacking of less is named, tensor by tensor, when it has been read.
        raise ModelError(
            f"config.json in {where} describes {size:,} parameters but the weights hold {parameters:,}; they are not "
            "of one model, or a file is missing"
        )


def _weights(folder: Path, files: list[Path], config: PretrainedConfig, architecture: str) -> PreTrainedModel:
    import transformers

    held = {}
    for path in files:
        held |= tensor_files.read_copies(path, remedy="copy it again", error=ModelError)
    held = agreement.without_masks(held)
    agreement.refuse_contradictions(held, config, folder)
    turned = agreement.rotations(held)
    kinds = {weight.dtype for weight in held.values() if weight.is_floating_point()}
    dtype = kinds.pop() if kinds in ({torch.bfloat16}, {torch.float16}) else torch.float32
    read = partial(getattr(transformers, architecture).from_pretrained, None, state_dict=held)
    model = whole_model(read, folder, told=str(folder), config=config, dtype=dtype)
    agreement.refuse_other_rotations(turned, model, folder)
    if dtype != torch.float32:
        _widen_buffers(model, config)
    return model


def whole_model(read: Callable[..., Any], path: Path, *, told: str, **given: Any) -> PreTrainedModel:
    """What a class's `from_pretrained` reads, refused where weights and configuration are not of one model."""
    try:
        # Weights of other shapes are reported and refused below, by name.
        loaded = read(**given, attn_implementation="eager", ignore_mismatched_sizes=True, output_loading_info=True)
    except BROKEN as error:
        raise ModelError(f"transformers cannot read {told}: {flat(error)}") from error
    model, found = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    agreement.refuse_misfits(found, path)
    return model.eval().requires_grad_(False)


def _widen_buffers(model: PreTrainedModel, config: PretrainedConfig) -> None:
    """Have the buffers of a model in float32: in 16 bits, Gemma's scale of embeddings is rounded."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        wide = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, module in model.named_modules():
        computed = {
            n: b for n, b in wide.get_submodule(name)._buffers.items() if n in module._non_persistent_buffers_set
        }
        module._buffers.update(computed)


def flat(error: BaseException) -> str:
    """An error of another package in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
