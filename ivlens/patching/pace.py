"""How long does a model take to read a prompt, and to be patched on one? Measured, to say how long an audit takes."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ivlens.datasets.task import Task
from ivlens.errors import TaskWarning
from ivlens.forward.memory import count_at_once
from ivlens.patching import sweep
from ivlens.patching.activations import mean_z, score_answers
from ivlens.patching.effects import clean_prompts, ranking_prompts
from ivlens.patching.settings import Settings

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


FIRST = 4
"""Prompts of a first batch, at most."""


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
    """Read a first batch of clean prompts and patch every head on one of corrupted ones, by the clock."""
    few = replace(settings, clean_prompts=FIRST, prompts=FIRST, answered_only=False)
    _, clean = clean_prompts(model, task, few)
    with warnings.catch_warnings():  # What is to be said of the prompts is said when all of them are asked.
        warnings.simplefilter("ignore", TaskWarning)
        _, corrupted = ranking_prompts(model, task, few)
    n_heads = model.cfg.n_layers * model.cfg.n_heads
    clean = clean[: count_at_once(model, clean)]
    corrupted = corrupted[: count_at_once(model, corrupted, n_heads, climbing=True)]
    z = mean_z(model, clean[:1])
    reading = _time(lambda: score_answers(model, clean))
    patching = _time(lambda: sweep.sweep(model, corrupted, z, effect=settings.effect, memory=memory))
    token = reading / int(clean.mask.sum())
    rows = (patching - token * int(corrupted.mask.sum())) / (n_heads * len(corrupted))
    # By the clock, reading may look slower than reading and patching.
    return Pace(reading=reading / len(clean), patching=patching / len(corrupted), token=token, row=max(0.0, rows))


def _time(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
