"""Vectors for the model `steered` of EleutherAI's lm-evaluation-harness, which measures benchmarks under them.

Its file, read with `torch.load(weights_only=True)`, names modules of transformers' model by their path below
`base_model`, and what is added to each one's output: `steering_coefficient` times `steering_vector`, at every token.
Source: `lm_eval/models/hf_steered.py` there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ivlens.errors import IvlensError
from ivlens.storage import tensor_files

BLOCKS = "layers"
"""What most of transformers' models call their list of blocks; GPT-2, GPT-J and Falcon say `h`."""


def steering_config(vector: Tensor, *, layer: int, scale: float, blocks: str = BLOCKS) -> dict[str, dict[str, Any]]:
    """What the file holds, of one vector `[d_model]` that is added after a block.

    Raises:
        IvlensError: `blocks` is no path of modules.
    """
    if not re.fullmatch(r"[A-Za-z_][\w.]{0,99}", blocks) or blocks.endswith("."):
        raise IvlensError(f"blocks is {blocks!r}; give what the model calls its list of blocks, such as layers or h")
    steering = {"steering_vector": vector, "steering_coefficient": scale, "action": "add", "bias": None}
    return {f"{blocks}.{layer}": {**steering, "head_index": None}}


def is_steering_config(content: object) -> bool:
    """Is this such a file's content?"""
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(one, dict) and "steering_vector" in one for one in content.values())
    )


def read_steering_config(content: Mapping[Any, Any], path: Path) -> dict[int, Tensor]:
    """By layer, what is added after each block, coefficients multiplied in.

    Raises:
        IvlensError: it clamps, takes a bias off, steers a single head, or something that is no block.
    """
    found = {}
    for name, steering in content.items():
        place = re.fullmatch(r"(?:[\w.]{1,100}\.)?([0-9]{1,5})", str(name)[:200])
        coefficient = steering.get("steering_coefficient")
        others = [key for key in ("bias", "head_index") if steering.get(key) is not None]
        if place is None or steering.get("action") != "add" or others or not isinstance(coefficient, int | float):
            raise IvlensError(
                f"{path} does something else at {str(name)[:60]!r} than add a vector to a block's output "
                f"({', '.join(['action', 'steering_coefficient', *others])}); ivlens adds vectors after whole blocks"
            )
        found[int(place[1])] = coefficient * tensor_files.as_floats(steering["steering_vector"], path, "a vector")
    return found
