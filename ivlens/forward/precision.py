"""How does a model whose weights are kept in 16 bits compute in float32 for a while?

Widening 16 bits is exact, and so is rounding what was widened back: the weights are afterwards what they were, to the
bit, and are in memory once at any time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ivlens.checkpoints.quantised import is_quantised
from ivlens.errors import ModelError
from ivlens.models.hooked import IN_16_BITS

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

_MEMORY = Path("/proc/meminfo")


@contextmanager
def in_float32(model: HookedTransformer) -> Iterator[None]:
    """Inside the `with` block the model computes in float32, with the weights that it has.

    Raises:
        ModelError: its weights are quantised, or there is not enough memory; nothing was changed then.
    """
    _refuse_unfit(model)
    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(module._buffers.update, dict(module._buffers))
            module._buffers.update(_wide_buffers(module))
        for weight in model.parameters():
            if weight.dtype in IN_16_BITS:
                stack.callback(_cast, weight, weight.dtype)
                _cast(weight, torch.float32)
        stack.callback(setattr, model.cfg, "dtype", model.cfg.dtype)
        model.cfg.dtype = torch.float32
        yield


def _cast(weight: nn.Parameter, dtype: torch.dtype) -> None:
    weight.data = weight.data.to(dtype)


def _wide_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Those that float32 would have: rotations of a HookedTransformer are rounded when they are made."""
    wide = {name: one.float() for name, one in module._buffers.items() if one is not None and one.dtype in IN_16_BITS}
    if "rotary_sin" in wide:
        attn: Any = module
        length, base = len(wide["rotary_sin"]), attn._rotary_base()
        made = attn.calculate_sin_cos_rotary(attn.cfg.rotary_dim, length, base=base, dtype=torch.float32)
        for name, one in zip(("rotary_sin", "rotary_cos"), made, strict=True):
            wide[name] = one.to(wide[name].device)
    return wide


def _refuse_unfit(model: HookedTransformer) -> None:
    if is_quantised(model):
        raise ModelError("the weights are quantised, and have no float32")
    needed: Counter[torch.device] = Counter()
    for weight in model.parameters():
        needed[weight.device] += weight.nbytes if weight.dtype in IN_16_BITS else 0
    for device, size in needed.items():
        free = free_memory(device)
        if free is not None and size > free:
            raise ModelError(
                f"the weights in float32 take {size / 2**30:.1f} GiB more on {device}, and {free / 2**30:.1f} are free"
            )


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken; None where that is not known."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "cpu" and _MEMORY.is_file():
        lines = dict(line.split(":") for line in _MEMORY.read_text().splitlines())
        return 1024 * int(lines["MemAvailable"].split()[0])
    return None
