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
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ivlens.errors import IvlensError, ShapeMismatch, TrainingError
from ivlens.measures import token_log_probs
from ivlens.models.lora import Adapter
from ivlens.patching.activations import AnswerLogits, differentiable_answer_logits
from ivlens.prompts.tokens import Tokens
from ivlens.random_streams import Stream, open_stream
from ivlens.training import checkpoints
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


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What is trained on.

    Which prompts a step reads follows from the seed alone (`rows`). They are padded to the longest of them, and where a
    step is taken in parts, sorted by length first, so that a part is padded to its own.

    Raises:
        ShapeMismatch: not as many prompts with an instruction as without.
        IvlensError: `new` or `replayed` is out of range.

    >>> training.Examples(prompts=examples.prompts, bare=examples.bare, new=12, replayed=0.25).new
    12
    """

    prompts: Tokens
    bare: Tokens
    """The same queries without their instruction, in the same order."""
    new: int
    """The first so many are of the task being learned; the others are replayed."""
    replayed: float = 0.0
    """Share of replayed prompts in a batch."""

    def __post_init__(self) -> None:
        if len(self.bare) != len(self.prompts):
            raise ShapeMismatch(
                f"there are {len(self.prompts)} prompts, but {len(self.bare)} without an instruction; give as many"
            )
        if not 1 <= self.new <= len(self.prompts):
            raise IvlensError(f"{self.new} of {len(self.prompts)} prompts are said to be new; name 1 or more of them")
        if not 0 <= self.replayed < 1:
            raise IvlensError(f"the share of replayed prompts is {self.replayed}; it must be 0 or more and below 1")

    @cached_property
    def lengths(self) -> Int[Tensor, " prompt"]:
        """Tokens of each prompt and its answer.

        >>> examples.lengths.shape, bool((examples.lengths > 1).all())
        (torch.Size([16]), True)
        """
        return self.prompts.mask.sum(1) + self.prompts.answer_mask.sum(1)

    def rows(self, step: int, batch: int, seed: int) -> np.ndarray:
        """Which prompts a step reads: the new ones in random order, epoch by epoch, and a draw of the others.

        Args:
            step: Counted from 0.
            batch: How many.

        Raises:
            IvlensError: the batch is too small for its share of replayed prompts.

        >>> two = [examples.rows(step, 8, 0) for step in (0, 1)]  # An epoch of 16 prompts.
        >>> two[0].shape, sorted({*two[0].tolist(), *two[1].tolist()}) == list(range(16))
        ((8,), True)
        """
        replaying = self.replayed > 0 and len(self.prompts) > self.new
        old = round(self.replayed * batch) if replaying else 0
        if replaying and not 0 < old < batch:
            raise IvlensError(
                f"a batch of {batch} with a share of {self.replayed} replayed has {old} old and {batch - old} new "
                "prompts; choose a larger batch"
            )
        places = range(step * (batch - old), (step + 1) * (batch - old))
        begun = {place // self.new for place in places}
        epochs = {epoch: open_stream(seed, Stream.TRAINING_ORDER, epoch).permutation(self.new) for epoch in begun}
        fresh = [epochs[place // self.new][place % self.new] for place in places]
        drawn = open_stream(seed, Stream.REPLAYED, step).integers(self.new, max(self.new + 1, len(self.prompts)), old)
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
    start = 0
    if checkpoint is not None and checkpoint.exists():
        start = checkpoints.resume(checkpoint, factors, optimizer, record)
    written = time.monotonic()
    for number in range(start, training.steps):
        for group in optimizer.param_groups:
            group["lr"] = training.rate_at(number)
        with _frozen(own):
            loss, penalty = _backward(model, adapter, examples, training, method, guide, seed=seed, step=number)
        norm = float(torch.nn.utils.clip_grad_norm_(factors, training.clip))
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
) -> tuple[float, float]:
    """Add the gradients of one step's batch; its loss and its penalty."""
    device = examples.prompts.prompts.device
    rows = torch.from_numpy(examples.rows(step, training.batch, seed)).to(device)
    if training.accumulate > 1 and (guide is None or len(guide.vectors) == 1):
        # Parts of like lengths have fewer pads. Where each prompt draws a vector, that stays the one it drew.
        rows = rows[examples.lengths[rows].argsort(stable=True)]
    generator = torch.Generator().manual_seed(mix_seeds(seed, step))
    n_answer_tokens = int(examples.prompts.answer_mask[rows].sum())
    loss = penalty = 0.0
    for part in rows.chunk(training.accumulate):
        batch, bare = examples.prompts[part], examples.bare[part]
        with _precision(model, training):
            progress = step / training.steps
            logits, extra = _run(model, batch, bare, guide, progress=progress, generator=generator)
            wanted = answer_loss(logits, batch)
            extra = extra + method.penalty(model, adapter, batch, logits)
        if not wanted.requires_grad:
            raise IvlensError("the adapter is not attached to the model; train it inside `with attached(...)`")
        # Parts differ in answer tokens: the mean of their means is not the mean over the batch.
        share = int(batch.answer_mask.sum()) / n_answer_tokens
        ((wanted + extra) * share).backward()
        loss += wanted.item() * share
        penalty += extra.item() * share
    return loss, penalty


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
