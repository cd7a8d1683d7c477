"""How long, in what batches and at what learning rate is an adapter trained on one task?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ivlens.errors import IvlensError

Schedule = Literal["cosine", "linear", "constant"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How an adapter is trained on one task.

    Raises:
        IvlensError: a number below its least, a choice that there is not, or a batch without so many equal parts.

    >>> training.Training(steps=100, batch=8, accumulate=2).schedule
    'cosine'
    """

    steps: int = 200
    batch: int = 16
    """Prompts of one step, in `accumulate` parts."""
    rate: float = 3e-3
    """AdamW's learning rate at its peak."""
    schedule: Schedule = "cosine"
    """How the rate falls to 0 behind the warm-up."""
    warmup: int = 10
    """Steps in which the rate rises."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """Gradients of a larger norm are scaled down to it."""
    accumulate: int = 1
    """A step in parts is the step in one, to rounding. Under a guidance with `rehearsal` or of the first token, only
    where answers are of equal length: parts count by their answers' tokens, and it reads one token per prompt; and
    never under one that ignores what is small, which is asked of every part."""
    precision: Precision = "float32"
    """`bfloat16`: autocast on a GPU; factors and optimiser stay in float32."""

    def __post_init__(self) -> None:
        for name, least in {"steps": 1, "batch": 1, "warmup": 0, "accumulate": 1}.items():
            if getattr(self, name) < least:
                raise IvlensError(f"training: {name} is {getattr(self, name)}; it must be {least} or more")
        for name in ("rate", "clip"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise IvlensError(f"training: {name} is {getattr(self, name)}; it must be a number above 0")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise IvlensError(f"training: weight_decay is {self.weight_decay}; it must be 0 or more")
        if self.batch % self.accumulate:
            raise IvlensError(f"training: a batch of {self.batch} has no {self.accumulate} equal parts; change one")
        for name, choices in {"schedule": get_args(Schedule), "precision": get_args(Precision)}.items():
            if getattr(self, name) not in choices:
                raise IvlensError(f"training: {name} is {getattr(self, name)!r}; choose of {', '.join(choices)}")

    def rate_at(self, step: int) -> float:
        """The learning rate at a step, counted from 0.

        >>> settings = training.Training(steps=10, rate=1.0, warmup=2, schedule="linear")
        >>> [round(settings.rate_at(step), 2) for step in (0, 1, 2, 6)]
        [0.5, 1.0, 1.0, 0.5]
        """
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        if self.schedule == "constant":
            return self.rate
        return self.rate * (1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2)
