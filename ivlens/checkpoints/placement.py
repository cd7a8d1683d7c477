"""On which devices do the parts of a model lie, where one device cannot hold it?

Maps are those of transformers and accelerate: a device for each module, or the name of a way to find them. accelerate's
hooks then move what a module is given to where the module is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from ivlens.errors import ModelError
from ivlens.storage.json_files import read_json

Way = Literal["auto", "balanced", "balanced_low_0", "sequential"]
DeviceMap = str | Path | Mapping[str, str | int | torch.device]


def read_device_map(given: DeviceMap) -> str | dict[str, Any]:
    """A way to find devices, or a device for each module; raises ModelError for anything else.

    Args:
        given: Also the path of a JSON file with the second.
    """
    if given in get_args(Way):
        return str(given)
    found: Any = given
    if isinstance(given, str | Path):
        try:
            found = read_json(given)
        except (OSError, ValueError):
            found = None
    ways = ", ".join(get_args(Way))
    if not isinstance(found, Mapping) or not found or not all(map(_is_device, found.values())):
        raise ModelError(
            f"device_map is {given!r}; give {ways}, or a device by name of module, such as "
            '{"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": 1}, or a JSON file of that'
        )
    kinds = {device if isinstance(device, str) else "cuda" for device in found.values()}
    if kinds & {"disk", "meta"} or ("cpu" in kinds and len(kinds) > 1):
        raise ModelError(
            "device_map puts a part of the model on the disk, on meta or on the CPU beside other devices, where its "
            "weights are not when ivlens reads them; take more devices, or a quantised checkpoint"
        )
    return dict(found)


def _is_device(device: object) -> bool:
    return isinstance(device, str | int | torch.device) and not isinstance(device, bool)


def place(model: nn.Module, device_map: str | Mapping[str, Any]) -> nn.Module:
    """Move the parts of a model to their devices; inputs of a part follow it from then on.

    Raises:
        ModelError: the devices cannot hold it, or the map leaves modules out.
    """
    from accelerate import dispatch_model

    whole = _find_devices(model, device_map) if isinstance(device_map, str) else dict(device_map)
    try:
        return dispatch_model(model, device_map=whole, force_hooks=True)
    except (ValueError, RuntimeError, KeyError, AssertionError) as error:
        raise ModelError(f"the model cannot be placed by this device_map: {' '.join(str(error).split())}") from error


def _find_devices(model: nn.Module, way: str) -> dict[str, Any]:
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    whole = sorted(getattr(model, "_no_split_modules", None) or ())
    about: dict[str, Any] = {"no_split_module_classes": whole}
    memory = get_balanced_memory(model, low_zero=way == "balanced_low_0", **about) if way != "sequential" else None
    found = infer_auto_device_map(model, max_memory=memory, **about)
    return dict(read_device_map(found))
