"""How long do a token of a training step and a token that is read take? Measured, to say how long a study takes."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from ivlens.forward.memory import count_at_once
from ivlens.models import lora
from ivlens.models.lora import LoraConfig
from ivlens.patching.activations import answer_logits
from ivlens.prompts.tokens import tokenize
from ivlens.training.loop import Examples, finetune
from ivlens.training.methods import Lora
from ivlens.training.settings import Training
from ivlens.training.stages import Stage

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


class Pace(NamedTuple):
    """Seconds."""

    trained: float
    """A token of a step, pads included."""
    read: float
    """A token of a prompt that is asked."""


def measure_pace(model: HookedTransformer, stage: Stage, config: LoraConfig, training: Training) -> Pace:
    """Take two steps on a stage, the second by the clock, and ask the prompts of one batch."""
    tokens = tokenize(model, stage.train[: training.batch])
    width = tokens.prompts.shape[1] + tokens.answers.shape[1] - 1
    adapter = lora.fresh(model, config, seed=0)
    examples = Examples(prompts=tokens, bare=tokens, new=len(tokens))
    with lora.attached(model, adapter):
        steps = finetune(model, adapter, examples, replace(training, steps=2), method=Lora())
        next(steps)
        started = time.perf_counter()
        next(steps)
        stepped = time.perf_counter()
    part = tokens[: count_at_once(model, tokens)]
    answer_logits(model, part)
    read = time.perf_counter() - stepped
    return Pace(trained=(stepped - started) / (training.batch * width), read=read / (len(part) * width))
