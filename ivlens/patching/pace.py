"""How long does a model take to read a prompt, and to be patched on one? Measured, to say how long an audit takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ivlens.datasets.task import Task
from ivlens.patching import sweep
from ivlens.patching.activations import mean_z
from ivlens.patching.effects import clean_prompts
from ivlens.patching.settings import Settings

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds a prompt with demonstrations."""

    reading: float
    patching: float
    """Every head, one by one, reading included."""


def measure_pace(model: HookedTransformer, task: Task, settings: Settings, *, memory: int) -> Pace:
    """Read a clean prompt and patch every head on it, once to warm up and once by the clock."""
    _, tokens = clean_prompts(model, task, replace(settings, clean_prompts=1, answered_only=False))
    z = mean_z(model, tokens)
    return Pace(
        reading=_time(lambda: mean_z(model, tokens)),
        patching=_time(lambda: sweep.sweep(model, tokens, torch.zeros_like(z), effect=settings.effect, memory=memory)),
    )


def _time(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
