"""How is an adapter trained, step by step?

`finetune` is a generator: it takes one optimiser step and yields it; the caller logs, plots, stops. Batches are drawn by
step number from the seed, so that a training which goes on from a checkpoint takes the very steps it would have taken.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ivlens import files
from ivlens.activations import AnswerLogits, differentiable_answer_logits
from ivlens.errors import IvlensError, TrainingError
from ivlens.guidance import Guide
from ivlens.lora import Adapter
from ivlens.measures import token_log_probs
from ivlens.methods import Method
from ivlens.prompts import Tokens

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


@dataclass(frozen=True, kw_only=True)
class Training:
    """How an adapter is trained on one task."""

    steps: int = 200
    batch: int = 16
    """Prompts of one step, in `accumulate` parts."""
    rate: float = 3e-3
    """AdamW's learning rate at its peak."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls to 0 behind the warm-up."""
    warmup: int = 10
    """Steps in which the rate rises."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """Gradients of a larger norm are scaled down to it."""
    accumulate: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
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

    def rate_at(self, step: int) -> float:
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        if self.schedule == "constant":
            return self.rate
        return self.rate * (1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2)


class Step(NamedTuple):
    """One optimiser step."""

    number: int
    loss: float
    """Mean cross-entropy of the answer tokens, in nats."""
    penalty: float
    """What guidance and method added to it."""
    rate: float
    gradient: float
    """Norm of the gradient before clipping."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What is trained on."""

    prompts: Tokens
    bare: Tokens
    """The same queries without their instruction, in the same order."""
    new: int
    """The first so many are of the task being learned; the others are replayed."""
    replayed: float = 0.0
    """Share of replayed prompts in a batch."""

    def rows(self, step: int, batch: int, seed: int) -> np.ndarray:
        """Which prompts a step reads: the new ones in random order, epoch by epoch, and a draw of the others."""
        old = round(self.replayed * batch) if len(self.prompts) > self.new else 0
        places = np.arange(step * (batch - old), (step + 1) * (batch - old))
        epochs = {epoch: np.random.default_rng([seed, 7, epoch]).permutation(self.new) for epoch in places // self.new}
        fresh = [epochs[place // self.new][place % self.new] for place in places]
        drawn = np.random.default_rng([seed, 8, step]).integers(self.new, max(self.new + 1, len(self.prompts)), old)
        return np.array([*fresh, *drawn], dtype=np.int64)


def finetune(
    model: HookedTransformer,
    adapter: Adapter,
    examples: Examples,
    training: Training,
    *,
    method: Method,
    guide: Guide | None = None,
    seed: int = 0,
    name: str = "the task",
    checkpoint: Path | None = None,
    every: int = 100,
) -> Iterator[Step]:
    """Train an attached adapter; one step is taken each time that the next one is asked for.

    Args:
        adapter: Attached to `model`, whose own weights stay as they are.
        guide: What the training is guided by; None: nothing.
        checkpoint: File that keeps factors and optimiser every so many steps, and that is gone on from if it exists.

    Raises:
        TrainingError: the loss is NaN or infinite; step and task are named, and the last good checkpoint stays.
    """
    factors = adapter.requires_grad_().parameters()
    optimizer = torch.optim.AdamW(factors, lr=training.rate, weight_decay=training.weight_decay)
    start = _resume(checkpoint, factors, optimizer)
    part = training.batch // training.accumulate
    for number in range(start, training.steps):
        for group in optimizer.param_groups:
            group["lr"] = training.rate_at(number)
        rows = torch.from_numpy(examples.rows(number, training.batch, seed))
        loss = penalty = 0.0
        for i in range(training.accumulate):
            chosen = rows[i * part : (i + 1) * part].to(examples.prompts.prompts.device)
            batch, bare = examples.prompts[chosen], examples.bare[chosen]
            generator = torch.Generator().manual_seed(_mix(seed, number, i))
            with _precision(model, training):
                logits, extra = _run(model, batch, bare, guide, progress=number / training.steps, generator=generator)
                wanted = answer_loss(logits, batch)
                extra = extra + method.penalty(model, adapter, batch, logits)
            ((wanted + extra) / training.accumulate).backward()
            loss += wanted.item() / training.accumulate
            penalty += extra.item() / training.accumulate
        if not math.isfinite(loss + penalty):
            raise TrainingError(
                f"the loss of {name} is {loss + penalty} at step {number}; lower the rate or the weights of the "
                "penalties"
            )
        norm = float(torch.nn.utils.clip_grad_norm_(factors, training.clip))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if checkpoint is not None and (number + 1) % every == 0:
            _save(checkpoint, factors, optimizer, number + 1)
        yield Step(number, loss, penalty, training.rate_at(number), norm)


def answer_loss(logits: AnswerLogits, tokens: Tokens) -> Float[Tensor, ""]:
    """Mean cross-entropy over all answer tokens, in nats."""
    losses = -token_log_probs(logits, tokens.answers) * tokens.answer_mask
    return losses.sum() / tokens.answer_mask.sum()


def _run(
    model: HookedTransformer,
    batch: Tokens,
    bare: Tokens,
    guide: Guide | None,
    *,
    progress: float,
    generator: torch.Generator,
) -> tuple[AnswerLogits, Tensor]:
    if guide is not None:
        return guide.run(model, batch, bare, progress=progress, generator=generator)
    logits = differentiable_answer_logits(model, batch)
    return logits, torch.zeros((), device=logits.device)


def _precision(model: HookedTransformer, training: Training) -> Any:
    if training.precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(model.cfg.device or "cpu").type, dtype=torch.bfloat16)


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _save(path: Path, factors: list[Tensor], optimizer: torch.optim.Optimizer, steps: int) -> None:
    buffer = io.BytesIO()
    state = {"factors": [f.detach() for f in factors], "optimizer": optimizer.state_dict(), "steps": steps}
    torch.save(state, buffer)
    files.write_whole(path, buffer.getvalue())


def _resume(path: Path | None, factors: list[Tensor], optimizer: torch.optim.Optimizer) -> int:
    """Fill in what a checkpoint holds; the number of steps it has seen."""
    if path is None or not path.exists():
        return 0
    try:
        state = torch.load(path, weights_only=True, map_location=factors[0].device)
        for factor, saved in zip(factors, state["factors"], strict=True):
            factor.data.copy_(saved)
        optimizer.load_state_dict(state["optimizer"])
        return int(state["steps"])
    except (OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
        raise TrainingError(
            f"{path} is no checkpoint of this training ({files.first_line(error)}); delete it"
        ) from error
