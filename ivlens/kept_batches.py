"""What was computed before an interruption? Long work hands every batch to whoever keeps it: a run folder, or nobody.

A batch is known by everything that it is computed from, so that what is kept is given back for that alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import sha256

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Keeper = Callable[[str, Callable[[], Tensors]], Tensors]
"""Gives what is kept under a name, or computes and keeps it."""

_KEEPER: ContextVar[Keeper | None] = ContextVar("keeps batches", default=None)


@contextmanager
def keeping(keeper: Keeper) -> Iterator[None]:
    """Inside the `with` block, batches go to this keeper."""
    before = _KEEPER.set(keeper)
    try:
        yield
    finally:
        _KEEPER.reset(before)


def keep_batch(
    what: str, inputs: Sequence[Tensor], compute: Callable[[], Tensors], *, device: torch.device | str | None
) -> Tensors:
    """The tensors of one batch, computed, or as they were kept.

    Args:
        what: What is computed.
        inputs: Everything that it is computed from but the model.
        device: Where they are to be.
    """
    keeper = _KEEPER.get()
    if keeper is None:
        return {name: value.to(device) for name, value in compute().items()}
    found = keeper(_name(what, inputs), lambda: {name: value.cpu() for name, value in compute().items()})
    return {name: value.to(device) for name, value in found.items()}


def _name(what: str, inputs: Sequence[Tensor]) -> str:
    digest = sha256(what.encode())
    for one in inputs:
        digest.update(f"{one.dtype} {tuple(one.shape)}".encode())
        digest.update(one.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
