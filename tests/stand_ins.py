"""Devices that are not there: tensors that say that they lie on one, and compute on the processor.

What is checked is what a real device checks: operands of an operation lie on the same one, or it fails. Numbers are
those of the processor, to the bit. Kernels, streams and copies between real devices are not tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

KIND = "privateuseone"
# What torch asks of a kind of device before it computes there.
backend_registration._setup_privateuseone_for_python_backend()
_CPU = torch.device("cpu")
_COPIES = {"aten::_to_copy", "aten::copy_"}
# Indices may be on the processor.
_INDEXED = {"aten::index", "aten::index_put_", "aten::index_put"}


class Placed(torch.Tensor):
    """A tensor on a device that is not there."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor, device: torch.device) -> Placed:
        made = torch.Tensor._make_wrapper_subclass(  # pyright: ignore
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _FromNumbers(TorchFunctionMode):
    """`torch.tensor` makes tensors below what a dispatch mode sees."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or _CPU).type == KIND:
            return func(*args, **{**kwargs, "device": _CPU}).to(kwargs["device"])
        return func(*args, **kwargs)


@contextmanager
def stand_ins() -> Iterator[None]:
    """Inside the `with` block tensors can be made on such devices."""
    with _FromNumbers(), _Anywhere():
        yield


class _Anywhere(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, target = func._schema.name, kwargs.get("device")
    tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
    if name in _INDEXED:
        tensors = [one for one in tensors if one.device != _CPU or one is args[0]]
    # A number on the processor goes with everything.
    found = {one.device for one in tensors if one.dim() or one.device != _CPU}
    if name not in _COPIES and len(found) > 1:
        raise RuntimeError(f"{name}: expected all tensors on the same device, but found {sorted(map(str, found))}")
    if name == "aten::copy_":
        device = args[0].device
    else:
        device = torch.device(target) if target is not None else next(iter(found), _CPU)
    if target is not None:
        kwargs = {**kwargs, "device": _CPU}
    bare_args, bare_kwargs = tree_map(_bare, (args, kwargs))
    out = func(*bare_args, **bare_kwargs)
    if func._schema.is_mutable:
        return kwargs.get("out", args[0])
    return tree_map(lambda one: _placed(one, device), out)


def _bare(one: Any) -> Any:
    return one.held if isinstance(one, Placed) else one


def _placed(one: Any, device: torch.device) -> Any:
    return Placed(one, device) if isinstance(one, torch.Tensor) and device.type == KIND else one
