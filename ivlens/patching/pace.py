"""How long does a model take to read a prompt, and to be patched on one? Measured, to say how long an audit takes."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ivlens.datasets.task import Task
from ivlens.errors import TaskWarning
from ivlens.patching import sweep
from ivlens.patching.activations import mean_z
from ivlens.patching.effects import clean_prompts, ranking_prompts
from ivlens.patching.settings import Settings

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds."""

    reading: float
    """A clean prompt."""
    patching: float
    """Every head on a corrupted prompt, one by one, reading included."""
    token: float
    """A token of a prompt that is read."""
    row: float
    """A variant of a prompt's end, which begins at half of the layers on average."""


def measure_pace(model: HookedTransformer, task: Task, settings: Settings, *, memory: int) -> Pace:
    """Read a clean prompt and patch every head on a corrupted one, once to warm up and once by the clock."""
    few = replace(settings, clean_prompts=1, prompts=1, answered_only=False)
    _, clean = clean_prompts(model, task, few)
    with warnings.catch_warnings():  # What is to be said of the prompts is said when all of them are asked.
        warnings.simplefilter("ignore", TaskWarning)
        _, corrupted = ranking_prompts(model, task, few)
    z = mean_z(model, clean)
    reading = _time(lambda: mean_z(model, clean))
    patching = _time(lambda: sweep.sweep(model, corrupted, z, effect=settings.effect, memory=memory))
    token = reading / int(clean.mask.sum())
    rows = (patching - token * int(corrupted.mask.sum())) / z[..., 0].numel()
    # By the clock, reading may look slower than reading and patching.
    return Pace(reading=reading, patching=patching, token=token, row=max(0.0, rows))


def _time(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
