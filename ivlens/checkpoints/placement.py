"""On which devices do the parts of a model lie, where one device cannot hold it?

Maps are those of transformers and accelerate: a device for each module, or the name of a way to find them. accelerate's
hooks then move what a module is given to where the module is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import nn

from ivlens.errors import ModelError
from ivlens.storage.json_files import read_json

Way = Literal["auto", "balanced", "balanced_low_0", "sequential"]
DeviceMap = str | Mapping[str, str | int]


def parse_device_map(text: str | None) -> DeviceMap | None:
    """What `--device-map` says: a way to find devices, or a JSON file with a device for each module.

    Raises:
        ModelError: neither.
    """
    if text is None or text in get_args(Way):
        return text
    try:
        found = read_json(text)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"device-map is {text!r}; give {', '.join(get_args(Way))}, or a JSON file such as "
            '{"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": 1, ...}'
        ) from error
    return check_device_map(found)


def check_device_map(given: Any) -> DeviceMap:
    """The map; raises ModelError where it is none, or leads off the devices that compute."""
    if isinstance(given, str) and given in get_args(Way):
        return given
    is_map = isinstance(given, Mapping) and all(isinstance(name, str) for name in given) and given
    if not is_map or not all(isinstance(device, str | int | torch.device) for device in given.values()):
        raise ModelError(f"device_map is {given!r}; give {', '.join(get_args(Way))}, or a device by name of module")
    kinds = {str(device) if isinstance(device, str) else "cuda" for device in given.values()}
    if "disk" in kinds or "meta" in kinds or ("cpu" in kinds and len(kinds) > 1):
        raise ModelError(
            "device_map puts a part of the model on the disk, on meta or on the CPU beside other devices, where its "
            "weights are not when ivlens reads them; take more devices, or a quantised checkpoint"
        )
    return given


def place(model: nn.Module, device_map: DeviceMap) -> nn.Module:
    """Move the parts of a model to their devices; inputs of a part follow it from then on.

    Raises:
        ModelError: the devices cannot hold it, or the map leaves modules out.
    """
    from accelerate import dispatch_model

    whole = dict(device_map) if isinstance(device_map, Mapping) else _find_devices(model, device_map)
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
    check_device_map(found)
    return found
