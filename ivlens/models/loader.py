"""How is a model found, loaded, and given the adapters that belong to it?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ivlens.checkpoints.checkpoint import read_checkpoint, refuse_non_finite
from ivlens.checkpoints.finder import find_checkpoint
from ivlens.checkpoints.gguf_checkpoint import read_gguf
from ivlens.checkpoints.placement import DeviceMap, read_device_map
from ivlens.checkpoints.quantised import quantisation, read_quantised
from ivlens.errors import IvlensError, ModelError, as_ivlens_error, list_choices
from ivlens.models import bridge, hooked, lora
from ivlens.models.bridge import build_bridge
from ivlens.models.hooked import DTYPES, IN_16_BITS, build_hooked, computes, has_hooked, model_name
from ivlens.models.peft import read_adapter
from ivlens.models.peft_config import read_config
from ivlens.storage.user_cache import expand_user

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

# Other models of TransformerLens, and what keeps them out.
_OF_TRANSFORMERLENS = {
    "HookedEncoder": "reads in both directions",
    "HookedEncoderDecoder": "has an encoder and a decoder",
    "HookedAudioEncoder": "reads sounds",
}
BACKENDS = ("auto", "hooked", "bridge")


@as_ivlens_error()
def load_without_adapters(
    model: str | Path | HookedTransformer,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    backend: str = "auto",
    device_map: DeviceMap | None = None,
) -> HookedTransformer:
    """Load a model and prove on a short prompt that it computes what transformers computes.

    The check runs in float32 on the CPU, with eager attention, before any cast; weights of 16 bits are widened for it
    module by module. Its prompt is random tokens, long enough to pass a sliding window of up to 1,024 tokens;
    the far edge of a longer window is not tested. Rotary frequencies, which long contexts need and a short prompt
    does not show, are compared one by one.

    Args:
        model: `lab`, a local Hugging Face folder, a GGUF file, a hub id, `smollm2`, or a HookedTransformer or
            TransformerBridge, which is checked and returned as it is. Needs safetensors or GGUF; pickles and code out
            of a checkpoint are never run.
        device: `auto` (CUDA if there is any, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`.
        dtype: `float32`, `bfloat16`, `float16`, `float64`, or `auto`: float32, but bfloat16 on CUDA for a checkpoint
            that is stored in 16 bits.
        revision: Branch, tag or commit of a hub id.
        backend: What it is loaded into: `hooked`, a HookedTransformer (TransformerLens 3); `bridge`, a
            TransformerBridge, which knows more; `auto`, hooked where that computes it, else a bridge.
        device_map: Has the parts of a large model lie on several devices, as transformers has it: `auto`, `balanced`,
            `balanced_low_0`, `sequential`, or a device by name of module, also as a JSON file. In a bridge alone.

    Returns:
        A model in eval mode with no gradients and with its tokenizer. Text gets a BOS token where the
        checkpoint's own tokenizer adds one, and on GPT-2, whose heads rest on `<|endoftext|>`
        (TransformerLens' convention). A model that is returned as it is keeps its own `cfg.default_prepend_bos`.

    Raises:
        ModelError: it cannot be found or read whole, is not supported, has NaN in it, is not causal, or comes
            out different from transformers by more than `TOLERANCE`.
    """
    if not isinstance(model, str | Path):
        if device_map is not None:
            raise ModelError(f"a {type(model).__name__} is taken as it is, where it is; leave device_map out")
        return _as_it_is(model, device=device, dtype=dtype, revision=revision, backend=backend)
    if device_map is not None:
        device_map, backend = read_device_map(device_map), _backend_of_map(backend, device)
    where, asked = _device(device), _dtype(dtype)
    _check_backend(backend)
    found = find_checkpoint(model, revision=revision)
    name, way = _name(model, found), None if found.is_file() else quantisation(found)
    if way is not None:
        if backend == "hooked":
            raise ModelError(
                f"{found} holds quantised weights ({way}), which no HookedTransformer computes with; take "
                "backend='bridge', or give the checkpoint in float32, bfloat16 or float16"
            )
        checkpoint = read_quantised(found, way=way, name=name, device_map=device_map or {"": where}, dtype=asked)
        return build_bridge(checkpoint, device=where, dtype=checkpoint.dtype)  # pyright: ignore[reportReturnType]
    if found.suffix == ".gguf" and found.is_file():
        checkpoint = read_gguf(found, name=name)
    else:
        checkpoint = read_checkpoint(found, name=name, for_bridge=backend != "hooked")
    if asked is None:
        half = checkpoint.dtype in IN_16_BITS
        asked = torch.bfloat16 if half and where.startswith("cuda") else torch.float32
    placed = {} if device_map is None else {"device_map": device_map}
    build: Any = build_hooked if backend == "hooked" or (backend == "auto" and computes(checkpoint)) else build_bridge
    return build(checkpoint, device=where, dtype=asked, **placed)


def _backend_of_map(backend: str, device: str) -> str:
    if backend == "hooked" or device != "auto":
        raise ModelError(
            "device_map places the parts of a TransformerBridge; leave device out, and take backend='bridge' or 'auto'"
        )
    return "bridge"


def _name(model: str | Path, found: Path) -> str:
    """What the user calls it: `lab`, a known name, a hub id, or the last part of a path."""
    if model == "lab" or not expand_user(model).exists():
        return str(model)
    return found.stem if found.is_file() else found.resolve().name


def _as_it_is(
    model: HookedTransformer, *, device: str, dtype: str, revision: str | None, backend: str
) -> HookedTransformer:
    kind = type(model).__name__
    refuse_other_kinds(model)
    if (device, dtype, revision, backend) != ("auto", "auto", None, "auto"):
        raise ModelError(f"a {kind} is taken as it is; leave device, dtype, revision and backend out, or use model.to")
    refuse_non_finite(model, model_name(model))
    bridge.check_bridge(model)
    return model


def _check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ModelError(f"{backend!r} is not a backend; give auto, hooked or bridge")
    if backend == "hooked" and not has_hooked():
        raise ModelError(
            "backend is 'hooked', but this version of TransformerLens has no HookedTransformer; install "
            "transformer-lens<4, or take backend='bridge'"
        )


def _device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"{device!r} is not a device; give auto, cpu, cuda, cuda:1 or mps") from error
    available = {
        "cpu": True,
        "cuda": (wanted.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(wanted.type, False):
        raise ModelError(f"this machine has no device {device!r}; use cpu, or auto to let ivlens choose")
    return str(wanted)


def _dtype(dtype: str) -> torch.dtype | None:
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(
            f"{dtype!r} is not a dtype ivlens computes in; {list_choices(dtype, ['auto', *DTYPES], lead='give')}"
        )
    return DTYPES.get(dtype)


@as_ivlens_error()
def load(
    model: str | Path | HookedTransformer,
    *,
    adapter: str | Path | Sequence[str | Path] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    backend: str = "auto",
    device_map: DeviceMap | None = None,
) -> HookedTransformer:
    """Load a model, prove that it computes what transformers computes, and merge adapters into its weights.

    The proof runs in float32 on the CPU, on a short prompt of random tokens. Weights are in memory once, and what one
    module needs in float32.

    Args:
        model: `lab`, a local Hugging Face folder, a GGUF file, a hub id, `smollm2` or `gemma3-270m` (see
            `ivlens.checkpoints.known_models`), or a HookedTransformer or TransformerBridge, which is checked and
            returned as it is. Needs safetensors or GGUF; pickles and code out of a checkpoint are never run.
        adapter: A local folder that PEFT saved a LoRA adapter of this model to, or several, merged from left to right.
            The model keeps its name; its weight digest becomes another one.
        device: `auto` (CUDA if there is any, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`.
        dtype: `float32`, `bfloat16`, `float16`, `float64`, or `auto`: float32, but bfloat16 on CUDA for a checkpoint
            that is stored in 16 bits.
        revision: Branch, tag or commit of a hub id.
        backend: What it is loaded into: `hooked`, a HookedTransformer (TransformerLens 3); `bridge`, a
            TransformerBridge, which knows more; `auto`, hooked where that computes it, else a bridge.
        device_map: Has the parts of a large model lie on several devices, as transformers has it: `auto`, `balanced`,
            `balanced_low_0`, `sequential`, or a device by name of module, also as a JSON file. In a bridge alone.

    Returns:
        A model in eval mode with no gradients and with its tokenizer. Text gets a BOS token where the checkpoint's
        own tokenizer adds one, and on GPT-2, whose heads rest on `<|endoftext|>` (TransformerLens' convention).

    Raises:
        ModelError: the model cannot be read, is not supported, or comes out different (see `load_without_adapters`).
        ShapeMismatch: the adapter is of another model.
        IvlensError: an adapter cannot be read, asks for what ivlens does not compute, or changes nothing.

    >>> lab = ivlens.load("lab", dtype="float64")
    >>> lab.cfg.n_layers, lab.cfg.n_heads, lab.cfg.d_head, lab.W_O.dtype
    (6, 8, 16, torch.float64)
    """
    folders = [adapter] if isinstance(adapter, str | Path) else list(adapter or ())
    where: dict[str, Any] = {"device": device, "dtype": dtype, "revision": revision, "backend": backend}
    if not folders:
        return load_without_adapters(model, **where, device_map=device_map)
    if not isinstance(model, str | Path):
        raise IvlensError(
            f"adapter was given with a {type(model).__name__}, which is taken as it is; give the model's folder or hub "
            "id, or attach what ivlens.models.peft.read_adapter returns"
        )
    for folder in folders:  # Before a large model is read.
        read_config(Path(folder))
    loaded = load_without_adapters(model, **where, device_map=device_map)
    for folder in folders:
        merge_adapter(loaded, folder)
    return loaded


def placed_as(model: HookedTransformer) -> dict[str, Any]:
    """Options of `load_without_adapters` that put another model where this one is, in its precision and backend."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    parts = getattr(getattr(model, "original_model", None), "hf_device_map", None)
    where: dict[str, Any] = {"device_map": parts} if parts else {"device": str(model.cfg.device)}
    return {**where, "dtype": names.get(model.cfg.dtype, "auto"), "backend": bridge.backend_of(model)}


def merge_adapter(model: HookedTransformer, folder: str | Path) -> None:
    """Merge an adapter for good; raises IvlensError where that changes nothing, or makes outputs NaN."""
    found = read_adapter(folder, model)
    before = _log_probs(model)
    lost = lora.lost_to_rounding(model, found)
    lora.merge(model, found)
    after = _log_probs(model)
    if not after.isfinite().all():
        raise IvlensError(f"with the adapter in {folder} the model's outputs are NaN or infinite; train it again")
    if torch.equal(before, after):
        raise IvlensError(
            f"the adapter in {folder} changes no output of {hooked.model_name(model)} in {model.cfg.dtype}; "
            "load in float32, or give an adapter that was trained"
        )
    said = lora.note_loss(model, lost, Path(folder).resolve().name)
    if said:
        hooked.add_note(model, said)


def _log_probs(model: HookedTransformer) -> Tensor:
    tokens = torch.randint(model.cfg.d_vocab, (1, min(32, model.cfg.n_ctx)), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model(tokens.to(model.cfg.device)).float().log_softmax(-1)


def as_model(model: str | Path | HookedTransformer) -> HookedTransformer:
    """A model that is given as such, or by the name, folder or hub id that it is loaded from.

    Raises:
        ModelError: it is neither, or cannot be loaded.
    """
    if isinstance(model, str | Path):
        return load_without_adapters(model)
    refuse_other_kinds(model)
    return model


def refuse_other_kinds(model: object) -> None:
    """Raises a ModelError for what is no model that ivlens runs."""
    kinds = {base.__name__ for base in type(model).__mro__}
    if "HookedTransformer" in kinds or bridge.is_bridge(model):
        found: Any = model
        if found.cfg.attention_dir != "causal":
            raise ModelError(
                f"{model_name(found)} has {found.cfg.attention_dir} attention; ivlens needs a causal model"
            )
        if "HookedTransformer" in kinds:
            hooked.refuse_other_precision(found)
        return
    for kind, reason in _OF_TRANSFORMERLENS.items():
        if kind in kinds:
            raise ModelError(f"{_describe(model)} {reason}; ivlens needs a causal language model")
    wanted = "give 'lab', a folder, a hub id, a HookedTransformer or a TransformerBridge"
    if "PreTrainedModel" in kinds:
        wanted = "a model of transformers is loaded from the folder of its save_pretrained, or by its hub id"
    elif "PeftModel" in kinds:
        wanted = "give the base model and the folder of its save_pretrained: ivlens.load(base, adapter=folder)"
    elif "Task" in kinds:
        wanted = "the model comes first, then the task"
    raise ModelError(f"{_describe(model)} is not a model; {wanted}")


def _describe(given: object) -> str:
    return f"the class {given.__name__}" if isinstance(given, type) else f"a {type(given).__name__}"
