"""How is a training that was killed gone on from?

A snapshot holds the factors and AdamW's moments after so many steps, and says what training it is of. Nothing is
unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from ivlens.errors import TrainingError
from ivlens.storage import atomic_files, tensor_files

FORMAT = "ivlens.training/1"


def write_checkpoint(
    path: Path, factors: list[Tensor], optimizer: torch.optim.Optimizer, record: Mapping[str, str], *, steps: int
) -> None:
    """Keep what `resume` needs, whole or not at all."""
    held = {f"factor {i}": factor for i, factor in enumerate(factors)}
    for i, state in optimizer.state_dict()["state"].items():
        held |= {f"{key} {i}": value for key, value in state.items()}
    held = {key: tensor.detach().cpu().contiguous() for key, tensor in held.items()}
    atomic_files.write_whole(path, to_bytes(held, metadata={"format": FORMAT, **record, "steps": str(steps)}))


def steps_of(path: Path) -> int:
    """Steps that a snapshot has seen; 0 where it is missing or damaged, of which `resume` says what is wrong."""
    with suppress(TrainingError, ValueError):
        return int(tensor_files.read_header(path, remedy="delete it", error=TrainingError).metadata.get("steps", "0"))
    return 0


def resume(path: Path, factors: list[Tensor], optimizer: torch.optim.Optimizer, record: Mapping[str, str]) -> int:
    """Fill in what a snapshot holds; the number of steps it has seen.

    Raises:
        TrainingError: it is damaged, or of another training; nothing is filled in then.
    """
    shapes, metadata = tensor_files.read_header(path, remedy="delete it", error=TrainingError)
    others = [key for key, value in {"format": FORMAT, **record}.items() if metadata.get(key) != value]
    moments = {"factor": None, "exp_avg": None, "exp_avg_sq": None, "step": ()}
    wanted = {
        f"{kind} {i}": tuple(factor.shape) if shape is None else shape
        for kind, shape in moments.items()
        for i, factor in enumerate(factors)
    }
    if others or shapes != wanted:
        raise TrainingError(
            f"{path} is a checkpoint of another training: it differs in {', '.join(others) or 'the adapter'}; train "
            "with the settings that it has, or delete it"
        )
    found, _ = tensor_files.read_tensors(path, remedy="delete it", error=TrainingError, most=None)
    steps = metadata.get("steps", "")
    if not re.fullmatch("[0-9]{1,9}", steps) or not all(bool(tensor.isfinite().all()) for tensor in found.values()):
        raise TrainingError(f"{path} is a damaged checkpoint ({steps!r} steps, or NaN in it); delete it")
    with torch.no_grad():
        for i, factor in enumerate(factors):
            factor.copy_(found[f"factor {i}"])
    state = {i: {key: found[f"{key} {i}"] for key in moments if key != "factor"} for i in range(len(factors))}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(steps)
