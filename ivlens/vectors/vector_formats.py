"""Which files do other tools keep a vector in, and what can each of them hold?

All of them add a vector to the residual stream after a block, and all count blocks from 0, as ivlens does. What a file
lacks its user has to know; what a file cannot hold is said, fact by fact.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ivlens.errors import IvlensError
from ivlens.shapes import Residual
from ivlens.storage import atomic_files, tensor_files
from ivlens.vectors import gguf, lm_eval
from ivlens.vectors.form_limits import facts_of, notices
from ivlens.vectors.gguf import ControlVector
from ivlens.vectors.instruction_vector import InstructionVector

Form = Literal[
    "vector",
    "gguf",
    "easysteer",
    "steering-vector",
    "lm-eval",
    "npy",
    "function-vector",
    "mean-activations",
    "effects",
    "indirect-effect",
]
FORMS: tuple[Form, ...] = get_args(Form)
VECTORS: tuple[Form, ...] = ("vector", "gguf", "easysteer", "steering-vector", "lm-eval", "npy", "function-vector")
# The longest first: function_vectors tells its files apart by these names.
_ENDINGS: dict[str, Form] = {
    "_mean_head_activations.pt": "mean-activations",
    "_indirect_effect.pt": "indirect-effect",
    ".safetensors": "vector",
    ".parquet": "effects",
    ".gguf": "gguf",
    ".npy": "npy",
    ".pt": "function-vector",
}
# These name the layer.
_STEERED = ("gguf", "easysteer", "steering-vector", "lm-eval")
_STEERING = "steering_vectors.steering_vector.SteeringVector"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a file may lack, and its user knows."""

    layer: int | None = None
    """Of a file with several layers: which. Of one without: where to add the vector."""
    model: str = ""
    task: str = ""


class Found(NamedTuple):
    """A vector out of a file, and what of the file was left out."""

    vector: InstructionVector
    left_out: tuple[str, ...]


@runtime_checkable
class Steering(Protocol):
    """A `SteeringVector` of the package steering-vectors, or whatever has its two fields."""

    layer_activations: dict[int, Tensor]
    layer_type: Any


def form_of(path: Path, *, is_source: bool) -> Form:
    """Which form a file has, by its name, and of a source `.pt` by what is in it.

    Raises:
        IvlensError: it cannot be told.
    """
    form: Form | None = next((form for ending, form in _ENDINGS.items() if path.name.lower().endswith(ending)), None)
    if form is None:
        raise IvlensError(
            f"the form of {path} cannot be told by its name; end it in {', '.join(_ENDINGS)}, or name one of "
            f"{', '.join(FORMS)}"
        )
    if not is_source or not path.name.lower().endswith(".pt") or form != "function-vector":
        return form
    content = _torch(path)
    if not isinstance(content, Tensor):
        return "lm-eval" if lm_eval.is_steering_config(content) else "steering-vector"
    if content.dim() == 4:
        raise IvlensError(
            f"{path} holds a tensor {tuple(content.shape)}, which may be mean activations or effects by class of "
            "token; say which: mean-activations or indirect-effect"
        )
    return "indirect-effect" if content.dim() == 3 and content.shape[:2] != (1, 1) else "function-vector"


def read_vector(path: str | Path, *, form: Form | None = None, facts: Facts | None = None) -> Found:
    """A vector in any of the forms `VECTORS`; nothing is unpickled, and no more is read than the file holds.

    Raises:
        IvlensError: the file is damaged, of another form, or lacks what `facts` do not say.
    """
    path, facts = Path(path), facts or Facts()
    match form or form_of(path, is_source=True):
        case "vector":
            own = InstructionVector.load(path)
            own = replace(own, model=facts.model or own.model, task=facts.task or own.task)
            return Found(own if facts.layer is None else own.at(facts.layer), ())
        case "gguf" | "easysteer":
            control = gguf.read_control_vector(path)
            known = replace(facts, model=facts.model or control.model, task=facts.task or control.name)
            return _chosen(control.directions, path, known)
        case "steering-vector":
            return _chosen(_activations(_torch(path), path), path, facts)
        case "lm-eval":
            content = _torch(path)
            if not lm_eval.is_steering_config(content):
                raise IvlensError(f"{path} holds no steering_vector by module; give a file for lm-eval's steered model")
            return _chosen(lm_eval.read_steering_config(content, path), path, facts)
        case "npy":
            return Found(_foreign(_flat(tensor_files.read_numpy(path), path), path, facts), ())
        case "function-vector":
            return Found(_foreign(_flat(_torch(path), path), path, facts), ())
        case other:
            raise IvlensError(f"{path} holds {other}, no vector; convert it with the model that it is of")


def write_vector(
    vector: InstructionVector, path: str | Path, *, form: Form | None = None, blocks: str = lm_eval.BLOCKS
) -> tuple[str, ...]:
    """Write a vector in any of the forms `VECTORS`, whole or not at all.

    Args:
        blocks: For lm-eval: what transformers' model calls its list of blocks.

    Returns:
        What the form has no place for, or does otherwise, one sentence each.

    Raises:
        IvlensError: the form needs a layer or a model that the vector does not name.
    """
    path = Path(path)
    form = form or form_of(path, is_source=False)
    if form in ("vector", "gguf", "easysteer") and not vector.model:
        raise IvlensError(f"{form} files name their model, which {vector.task} does not; say which model it is of")
    if form in _STEERED and vector.layer is None:
        raise IvlensError(f"{form} files name the layer to steer, which {vector.task} does not; choose a layer")
    if form == "vector":
        vector.save(path)
        return ()
    kept = vector.added.detach().cpu().contiguous()
    if form in ("gguf", "easysteer"):
        assert vector.layer is not None
        control = ControlVector({vector.layer: kept.float()}, vector.model, vector.task)
        gguf.write_control_vector(path, control, of_easysteer=form == "easysteer")
    elif form == "npy":
        kept = kept.float() if kept.dtype == torch.bfloat16 else kept
        buffer = io.BytesIO()
        np.save(buffer, kept.numpy(), allow_pickle=False)
        atomic_files.write_whole(path, buffer.getvalue())
    elif form in ("function-vector", "steering-vector"):
        content = kept[None] if form == "function-vector" else steering_arguments(vector)
        atomic_files.write_whole(path, tensor_files.torch_bytes(content))
    elif form == "lm-eval":
        assert vector.layer is not None
        own = vector.vector.detach().cpu().clone()
        content = lm_eval.steering_config(own, layer=vector.layer, scale=vector.scale, blocks=blocks)
        atomic_files.write_whole(path, tensor_files.torch_bytes(content))
    else:
        raise IvlensError(f"a vector cannot be written as {form}; choose one of {', '.join(VECTORS)}")
    return tuple(notices(vector, form))


def steering_arguments(vector: InstructionVector) -> dict[str, Any]:
    """What `steering_vectors.SteeringVector(**...)` is made of.

    Raises:
        IvlensError: the vector has no layer yet.
    """
    if vector.layer is None:
        raise IvlensError("the vector has no layer yet; take vector.at(layer)")
    kept = vector.added.detach().cpu().clone()
    return {"layer_activations": {vector.layer: kept}, "layer_type": "decoder_block"}


def of_steering_vector(steering: Steering, *, facts: Facts) -> Found:
    """A `SteeringVector`, one layer of it."""
    return _chosen(_activations(steering, Path("the SteeringVector")), Path("the SteeringVector"), facts)


def write_mean_activations(vector: InstructionVector, path: Path) -> tuple[str, ...]:
    """Write `mean_z` as [layer, head, 1, d_head]: function_vectors reads the last token of it.

    Raises:
        IvlensError: the vector comes from another tool, without its heads' means.
    """
    if vector.mean_z is None:
        raise IvlensError(f"the vector of {vector.task} comes without its heads' mean outputs; give one of ivlens")
    means = vector.mean_z.detach().cpu()[:, :, None].contiguous()
    atomic_files.write_whole(path, tensor_files.torch_bytes(means))
    facts = {"the vector itself": True, **dict(facts_of(vector))}
    facts.pop("the heads' mean outputs")
    lost = [*facts, *([f"the scale ({vector.scale:g})"] if vector.scale != 1.0 else [])]
    return tuple(f"mean-activations files have no place for {fact}" for fact in lost)


class _StandIn:
    """In place of a pickled SteeringVector: holds its fields, and can do nothing."""

    layer_activations: Any = None
    layer_type: Any = None


def _torch(path: Path) -> Any:
    return tensor_files.read_torch(path, {_STEERING: _StandIn})


def _activations(content: Any, path: Path) -> dict[int, Tensor]:
    fields = content if isinstance(content, dict) else getattr(content, "__dict__", {})
    layers, kind = fields.get("layer_activations"), fields.get("layer_type", "decoder_block")
    if not isinstance(layers, dict) or not layers or not all(type(layer) is int for layer in layers):
        raise IvlensError(f"{path} holds no layer_activations by layer; give a SteeringVector, saved with torch.save")
    if kind != "decoder_block":
        raise IvlensError(
            f"{path} steers {str(kind)[:40]!r}; ivlens adds vectors after whole blocks, and needs decoder_block"
        )
    return layers


def _chosen(directions: Mapping[int, Any], path: Path, facts: Facts) -> Found:
    """One of several layers."""
    listed = ", ".join(map(str, sorted(directions)[:40]))
    if facts.layer is None and len(directions) > 1:
        raise IvlensError(f"{path} holds vectors for layers {listed}; ivlens keeps one: choose a layer")
    layer = next(iter(directions)) if facts.layer is None else facts.layer
    if layer not in directions:
        raise IvlensError(f"{path} holds no vector for layer {layer}; choose one of {listed}")
    others = len(directions) - 1
    vector = _foreign(_flat(directions[layer], path), path, replace(facts, layer=layer))
    return Found(vector, (f"vectors of {others} other layers",) if others else ())


def _flat(content: Any, path: Path) -> Residual:
    """A vector, also one with leading axes of size 1, as function_vectors has it."""
    vector = tensor_files.as_floats(content, path, "a vector")
    if not vector.dim() or not vector.numel() or vector.numel() != vector.shape[-1]:
        raise IvlensError(f"{path} holds {tuple(vector.shape)}, not one vector [d_model]; give another file")
    return vector.reshape(-1)


def _foreign(vector: Residual, path: Path, facts: Facts) -> InstructionVector:
    made = InstructionVector(
        vector=vector,
        heads=(),
        layer=None,
        mean_z=None,
        settings=None,
        task=facts.task or path.stem,
        task_digest="",
        model=facts.model,
        model_digest="",
    )
    return made if facts.layer is None else made.at(facts.layer)
