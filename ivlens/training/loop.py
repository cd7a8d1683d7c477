"""How is an adapter trained, step by step?

`finetune` is a generator: it takes one optimiser step and yields it; the caller logs, plots, stops. Batches are drawn
by step number from the seed, so that a training that goes on from a checkpoint takes the very steps that it would
have taken.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.errors import IvlensError, TrainingError
from ivlens.measures import token_log_probs
from ivlens.models.lora import Adapter
from ivlens.patching.activations import AnswerLogits, differentiable_answer_logits
from ivlens.prompts.tokens import Tokens
from ivlens.training import checkpoints
from ivlens.training.examples import Examples as Examples
from ivlens.training.guidance import Guide
from ivlens.training.methods import Method
from ivlens.training.settings import Training as Training

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


SECONDS = 5.0
"""Of training, about, are lost at most when it is killed."""


class Step(NamedTuple):
    """One optimiser step, as `finetune` yields it.

    >>> training.Step(number=0, loss=2.5, penalty=0.1, rate=0.003, gradient=1.2)._asdict()["loss"]
    2.5
    """

    number: int
    loss: float
    """Mean cross-entropy of the answer tokens, in nats."""
    penalty: float
    """What guidance and method added to it."""
    rate: float
    gradient: float
    """Norm of the gradient before clipping."""


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
        examples, training: What is trained on, and for how long at what rate.
        method: A new one of `METHODS`, such as `Lora()`; it keeps what it needs of earlier stages.
        guide: What the training is guided by; None: nothing.
        name: Of the task, for messages and the checkpoint.
        checkpoint: File that keeps factors and optimiser, and that is gone on from if it exists.
        every: So many steps it is written, and where these take longer, every few seconds.

    Raises:
        TrainingError: the loss or its gradient is NaN or infinite; step and task are named, and the last good
            checkpoint stays. Or the checkpoint is damaged, or of another training; then the factors stay, too.
        IvlensError: the adapter is not attached.

    >>> new, short = lora.fresh(model, lora.LoraConfig(rank=2)), training.Training(steps=3, batch=4, warmup=1)
    >>> with lora.attached(model, new):
    ...     for step in training.finetune(model, new, examples, short, method=training.Lora()):
    ...         print(step.number, step.rate, step.penalty)
    0 0.003 0.0
    1 0.003 0.0
    2 0.0015 0.0
    """
    factors = adapter.requires_grad_().parameters()
    optimizer = torch.optim.AdamW(factors, lr=training.rate, weight_decay=training.weight_decay)
    own = [weight for weight in model.parameters() if weight.requires_grad]
    record = _record(examples, training, method, guide, seed=seed, name=name)
    # Cut from prompts on the CPU, a batch's sizes are known without asking a GPU for them.
    asked = replace(examples, prompts=examples.prompts.to("cpu"), bare=examples.bare.to("cpu"))
    start = 0
    if checkpoint is not None and checkpoint.exists():
        start = checkpoints.resume(checkpoint, factors, optimizer, record)
    written = time.monotonic()
    for number in range(start, training.steps):
        for group in optimizer.param_groups:
            group["lr"] = training.rate_at(number)
        with _frozen(own):
            parts = _backward(model, adapter, asked, training, method, guide, seed=seed, step=number)
        loss, penalty, norm = _read(parts, torch.nn.utils.clip_grad_norm_(factors, training.clip))
        if not math.isfinite(loss + penalty + norm):
            raise TrainingError(
                f"the loss of {name} is {loss + penalty} and the norm of its gradient {norm} at step {number}; lower "
                "the rate or the weights of the penalties"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        is_due = (number + 1) % every == 0 or time.monotonic() - written > SECONDS
        if checkpoint is not None and is_due:
            checkpoints.write_checkpoint(checkpoint, factors, optimizer, record, steps=number + 1)
            written = time.monotonic()
        yield Step(number, loss, penalty, training.rate_at(number), norm)


class _Part(NamedTuple):
    """What a part of a batch was trained on."""

    share: float
    """Of the batch's answer tokens."""
    loss: Float[Tensor, ""]
    penalty: Float[Tensor, ""]


@contextmanager
def _frozen(weights: Sequence[Tensor]) -> Iterator[None]:
    """A model that somebody else built may keep gradients for its own weights, as large as they are."""
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def _backward(
    model: HookedTransformer,
    adapter: Adapter,
    examples: Examples,
    training: Training,
    method: Method,
    guide: Guide | None,
    *,
    seed: int,
    step: int,
) -> list[_Part]:
    """Add the gradients of one step's batch, part by part.

    Args:
        examples: On the CPU.
    """
    rows = torch.from_numpy(examples.rows(step, training.batch, seed))
    if training.accumulate > 1 and (guide is None or len(guide.vectors) == 1):
        # Parts of like lengths have fewer pads. Where each prompt draws a vector, that stays the one it drew.
        rows = rows[examples.lengths[rows].argsort(stable=True)]
    generator = torch.Generator().manual_seed(mix_seeds(seed, step))
    n_answer_tokens = int(examples.prompts.answer_mask[rows].sum())
    parts = list[_Part]()
    for part in rows.chunk(training.accumulate):
        here = examples.prompts[part]
        batch, bare = here.to(model.cfg.device), examples.bare[part].to(model.cfg.device)
        with _precision(model, training):
            progress = step / training.steps
            logits, extra = _run(model, batch, bare, guide, progress=progress, generator=generator)
            wanted = answer_loss(logits, batch)
            extra = extra + method.penalty(model, adapter, batch, logits)
        if not wanted.requires_grad:
            raise IvlensError("the adapter is not attached to the model; train it inside `with attached(...)`")
        # Parts differ in answer tokens: the mean of their means is not the mean over the batch.
        share = int(here.answer_mask.sum()) / n_answer_tokens
        ((wanted + extra) * share).backward()
        parts.append(_Part(share, wanted.detach(), extra.detach()))
    return parts


def _read(parts: Sequence[_Part], norm: Tensor) -> tuple[float, float, float]:
    """Loss and penalty of a batch, and a norm, read at once: a GPU is waited for a single time."""
    found = [one.to(norm.device) for part in parts for one in (part.loss, part.penalty)]
    *values, gradient = torch.stack([*found, norm]).tolist()
    loss = sum(value * part.share for value, part in zip(values[::2], parts, strict=True))
    return loss, sum(value * part.share for value, part in zip(values[1::2], parts, strict=True)), gradient


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


def mix_seeds(*numbers: int) -> int:
    """One seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _record(
    examples: Examples, training: Training, method: Method, guide: Guide | None, *, seed: int, name: str
) -> dict[str, str]:
    """What a checkpoint must be of."""
    digest = hashlib.sha256()
    for tensor in (examples.prompts.prompts, examples.prompts.answers):
        digest.update(tensor.cpu().numpy().tobytes())
    return {
        "task": name,
        "seed": str(seed),
        "prompts": f"{examples.new} new, {examples.replayed} replayed, {digest.hexdigest()[:16]}",
        "training": repr(training),
        "method": repr(method),
        "guidance": repr(guide and guide.guidance),
    }
