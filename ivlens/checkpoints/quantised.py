"""How is a checkpoint read whose weights are quantised?

By transformers' own loaders (bitsandbytes, torchao, FP8 ...), each of which needs its package. Weights stay as they
are: what is measured is the quantised model, on transformers' own layers. GGUF files are dequantised instead, see
`gguf_checkpoint`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ivlens.checkpoints.checkpoint import (
    Checkpoint,
    architecture_of,
    find_weights,
    quiet_transformers,
    read_object,
    whole_model,
)
from ivlens.checkpoints.tokenizer import check_vocabulary, read_tokenizer

COMPUTED_IN = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def is_quantised(model: nn.Module) -> bool:
    """Whether some of a model's weights are kept in another form than they compute in."""
    return any(
        weight.dtype not in COMPUTED_IN or is_traceable_wrapper_subclass(weight.data) for weight in model.parameters()
    )


def quantisation(folder: Path) -> str | None:
    """The way in which the weights in a folder are quantised, such as `torchao`; None where they are not."""
    path = folder / "config.json"
    found = read_object(path, folder).get("quantization_config") if path.is_file() else None
    return str(found.get("quant_method", "unknown")) if isinstance(found, Mapping) else None


def read_quantised(
    folder: Path, *, way: str, name: str, device_map: str | dict[str, Any], dtype: torch.dtype | None
) -> Checkpoint:
    """Read a folder of weights that are quantised in some way, onto the devices that they are to be on.

    Raises:
        ModelError: a file is missing, the package for this quantisation is, the architecture is not supported, or the
            weights do not fit the configuration.
    """
    import transformers

    stated = read_object(folder / "config.json", folder)
    architecture, files = architecture_of(stated, folder, for_bridge=True), find_weights(folder)
    with quiet_transformers():
        tokenizer = read_tokenizer(folder)
        read = partial(
            getattr(transformers, architecture).from_pretrained,
            folder,
            device_map=device_map,
            dtype=dtype or "auto",
            use_safetensors=True,
            local_files_only=True,
        )
        model: Any = whole_model(read, folder, told=f"the {way} weights in {folder}")
    check_vocabulary(tokenizer, model.config.get_text_config().vocab_size, folder)
    return Checkpoint(
        name=name,
        architecture=architecture,
        dtype=model.dtype,
        model=model,
        tokenizer=tokenizer,
        stored=f"quantised by {way}" if is_quantised(model) else f"{way}, dequantised to {model.dtype}",
        files=tuple(files),
    )
