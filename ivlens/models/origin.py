"""Which model is it: what is it called, what are its weights, and how were they stored?

The digest of 14 GB of weights takes half a minute. That of a model out of files is kept in the user's cache, by the
files' paths, sizes, times and inodes, and by sums over the weights themselves, which any change of a weight changes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ivlens.storage import user_cache
from ivlens.storage.run_record import Source

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformer_lens import HookedTransformer
    from transformer_lens.model_bridge import TransformerBridge
    from typing_extensions import TypeIs

LARGE = 2**28
"""Bytes of weights from which on their digest is kept: a second's work."""
_HASHED_WHOLE = 2**16


def from_here(model: str | Path) -> str:
    """A name as it is; a path as it is meant from here, wherever another process reads it."""
    with suppress(OSError, ValueError):  # A name too long for the file system, or with a null in it, is no path.
        if str(model) != "lab" and (path := user_cache.expand_user(model)).exists():
            return str(path.absolute())
    return str(model)


class Origin(NamedTuple):
    """Where the weights of a model that was loaded are from."""

    stored: str
    """How they were stored where they had to be dequantised, and what rounding lost of adapters."""
    files: tuple[tuple[str, int, int, int], ...]
    """Path, size, time of change in nanoseconds and inode of each."""

    @classmethod
    def of(cls, stored: str, files: tuple[Path, ...]) -> Origin:
        """As the files are now."""
        states = [(path.resolve(), path.stat()) for path in files]
        return cls(stored, tuple((str(path), one.st_size, one.st_mtime_ns, one.st_ino) for path, one in states))


HELD = "_ivlens_updates"
ORIGINS: WeakKeyDictionary[nn.Module, Origin] = WeakKeyDictionary()
"""By model, of those that were loaded from files and still exist."""


def model_name(model: HookedTransformer) -> str:
    """What the user called the model: `lab`, the folder's name, the hub id, or `cfg.model_name`."""
    return str(model.cfg.model_name)


def stored_as(model: object) -> str:
    """How its weights were stored, if they had to be dequantised, and what rounding lost of adapters; else nothing."""
    origin = ORIGINS.get(model) if isinstance(model, torch.nn.Module) else None
    return origin.stored if origin else ""


def add_note(model: HookedTransformer, said: str) -> None:
    """Have a run's record say something more of how the weights came to be what they are."""
    origin = ORIGINS.get(model, Origin("", ()))
    ORIGINS[model] = origin._replace(stored="; ".join(filter(None, (origin.stored, said))))


def is_bridge(model: object) -> TypeIs[TransformerBridge]:
    """Is it a TransformerBridge, of whichever version of TransformerLens?"""
    return any(kind.__name__ == "TransformerBridge" for kind in type(model).__mro__)


def held_by(layer: object) -> dict[str, Any]:
    """The updates that a layer of PEFT computes for an attached adapter (see `attachment`), by PEFT's name of each."""
    return vars(layer).get(HELD, {}) if isinstance(layer, torch.nn.Module) else {}


def backend_of(model: object) -> str:
    """As it is asked for and recorded: `bridge` or `hooked`."""
    return "bridge" if is_bridge(model) else "hooked"


def source(
    model: Any, *, name: str | None = None, digest: str | None = None, stored: str = "", backend: str | None = None
) -> Source:
    """What a run's record says of a model, or of an adapter whose name, digest and model's backend are given."""
    return Source(
        name=name or model_name(model),
        digest=digest or weight_digest(model),
        stored=stored or stored_as(model),
        backend=backend or backend_of(model),
    )


def weight_digest(model: HookedTransformer) -> str:
    """SHA-256, in hex, of the parameters' names, shapes, types and bytes.

    Equal for equal weights in any process and on any device; another dtype changes it. An attached adapter counts as
    if it were merged.
    """
    origin = ORIGINS.get(model)
    if origin is None or not origin.files or sum(weight.nbytes for weight in model.parameters()) < LARGE:
        return _digest(model)
    key = hashlib.sha256(f"{origin.files} {_sums(model)}".encode()).hexdigest()
    kept = user_cache.recall("digests", key)
    if kept is None or not re.fullmatch("[0-9a-f]{64}", kept):
        kept = _digest(model)
        user_cache.keep("digests", key, kept)
    return kept


def _digest(model: HookedTransformer) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(_weights(model), key=lambda named: named[0]):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        digest.update(_bytes(weight).cpu().numpy().data)
    return digest.hexdigest()


def _sums(model: HookedTransformer) -> str:
    """A digest of each weight's bits, summed along its rows and along its columns as whole numbers."""
    digest = hashlib.sha256()
    for name, weight in _weights(model):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        # As they lie in memory, so that nothing is copied.
        weight = weight.permute(sorted(range(weight.dim()), key=weight.stride, reverse=True))
        content = _bytes(weight)
        if len(content) > _HASHED_WHOLE and len(content) % (8 * len(weight)) == 0:
            table = content.view(torch.int64).view(len(weight), -1)
            content = torch.cat([table.sum(0), table.sum(1)]).view(torch.uint8)
        digest.update(content.cpu().numpy().data)
    return digest.hexdigest()


def _bytes(weight: Tensor) -> Tensor:
    return weight.detach().contiguous().reshape(-1).view(torch.uint8)


def _weights(model: HookedTransformer) -> Iterator[tuple[str, Tensor]]:
    for name, weight in _named_weights(model):
        yield from _parts(name, weight)


def _parts(name: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A weight, or what a quantised one is made of: its numbers, and beside them their scales."""
    if is_traceable_wrapper_subclass(weight):  # torchao's
        for part in weight.__tensor_flatten__()[0]:
            yield from _parts(f"{name}.{part}", getattr(weight, part))
        return
    yield name, weight
    state: Any = getattr(weight, "quant_state", None)  # bitsandbytes', of 4 bits and of 8
    scales = {"SCB": getattr(weight, "SCB", None)} if state is None else state.as_dict(packed=True)
    for part, scale in scales.items():
        if isinstance(scale, torch.Tensor):
            yield f"{name}.{part}", scale


def _named_weights(model: HookedTransformer) -> Iterator[tuple[str, Tensor]]:
    for name, weight in model.named_parameters():
        if name.endswith(".original"):  # What an adapter is attached to; the module's own attribute has the sum.
            path, _, own = name.removesuffix(".original").rpartition("parametrizations.")
            yield path + own, getattr(model.get_submodule(path.rstrip(".")), own)
        elif ".base_layer." in name:  # In a bridge, below a layer of PEFT.
            path, _, own = name.rpartition(".base_layer.")
            layer: Any = model.get_submodule(path)
            for update in held_by(layer).values() if own == "weight" else ():
                weight = update.added_to(weight, layer.base_layer) if update.active else weight
            yield f"{path}.{own}", weight
        else:
            yield name, weight
