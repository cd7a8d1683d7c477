"""What could a vector at one layer do at best? It is trained, beside what heads write.

The model stays as it is; a vector of given length, added after one block at the last token of bare queries, is moved by
gradient until the answers are most probable. Prompts are read once: only their ends go up the layers behind the vector
again. Training stops when validation pairs no longer gain, and the vector that was best on them is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.datasets.task import Pair, Task
from ivlens.datasets.task import task as find_task
from ivlens.errors import IvlensError, ModelError, as_ivlens_error
from ivlens.forward.makers import forward_of
from ivlens.forward.memory import count_at_once
from ivlens.forward.rows import Forward, Reading, Rows, compare_with_model
from ivlens.forward.token_batches import batches
from ivlens.measures import token_log_probs
from ivlens.models import hooked, loader
from ivlens.patching.activations import check_mean_z, path_to_residual
from ivlens.patching.effects import task_mean_z
from ivlens.patching.settings import Options, Settings, gather_options
from ivlens.progress import track
from ivlens.prompts.builders import zero_shot
from ivlens.prompts.long_pairs import leave_out_long
from ivlens.prompts.tokens import Tokens, tokenize
from ivlens.random_streams import Stream, open_stream
from ivlens.shapes import Head, MeanZ, Residual
from ivlens.vectors.head_writing import check_head, check_layer
from ivlens.vectors.instruction_vector import InstructionVector

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Form = Literal["free", "heads"]
RATE = 0.05
"""Of Adam, on a vector of length 1, or on weights that begin at 1."""
EVERY, PATIENCE = 5, 4
"""Steps between two looks at validation pairs, and looks without a gain after which training stops."""


@as_ivlens_error()
def train_vector(
    model: HookedTransformer | str | Path,
    task: Task | str | Path,
    *,
    layer: int,
    norm: float,
    form: Form = "free",
    heads: Sequence[Head] | None = None,
    mean_z: MeanZ | None = None,
    pairs: Sequence[Pair] | None = None,
    steps: int = 200,
    settings: Settings | None = None,
    **options: Unpack[Options],
) -> InstructionVector:
    """The vector of a given length that does a task best when it is added to bare queries, found by gradient.

    Least is the negative log-likelihood of whole answers, in nats, on the pairs that mean outputs come from; training
    stops by the validation pairs. It is saved and used like any instruction vector, at scale 1.

    >>> trained = ivlens.train_vector(model, task, layer=2, norm=float(vector.added.norm()), steps=20)
    >>> round(float(trained.vector.norm() / vector.added.norm()), 3), trained.layer, trained.scale
    (1.0, 2, 1.0)
    >>> written = ivlens.train_vector(model, task, layer=2, norm=4.0, form="heads", heads=effects.top(3), steps=5)
    >>> written.heads, written.cosine(trained) < 1
    ((L3H3, L3H4, ...), True)

    Args:
        model, task: Also by what `ivlens.load` and `ivlens.task` take: a name, a path.
        layer: After which block it is added.
        norm: Its length, such as that of what another vector adds: `float(vector.added.norm())`.
        form: `free`: any direction. `heads`: a weight for each head's mean output, as `mean_z @ W_O`, and their sum at
            the given length.
        heads: Whose outputs are weighed, all of them unless given.
        mean_z: Mean outputs to weigh, in place of those over the task's clean prompts, `[layer head d_head]`.
        pairs: What is trained on, in place of the first `clean_prompts` pairs of the mean part.
        steps: Of Adam, on all pairs at once, at most.
        settings: All options at once.
        options: Fields of `Settings`, such as `shots=5`.

    Raises:
        IvlensError: no such layer, head, form or option, a length or number of steps that is not above 0, or heads
            for a form without them.
        ShapeMismatch: `mean_z` is of other heads.
        ModelError: heads are weighed where a norm lies behind attention, or the loss is not finite.
        TaskError, PromptError: too few pairs, or prompts longer than the context.
    """
    chosen = gather_options(Settings, settings, options)
    task, model = find_task(task), loader.as_model(model)
    _check_request(model, layer=layer, norm=norm, form=form, heads=heads, steps=steps)
    if mean_z is not None:
        check_mean_z(model, mean_z, what="mean_z is", remedy="recompute it with this model")
    task = leave_out_long(model, task, shots=chosen.shots, template=chosen.template)
    split = task.split(shots=chosen.shots, seed=chosen.seed)
    asked = split.mean[: chosen.clean_prompts] if pairs is None else tuple(pairs)
    train, check = (
        read_ends(model, tokenize(model, zero_shot(part, template=chosen.template)), layer)
        for part in (asked, split.validation)
    )
    every = [Head(one, head) for one in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    written = None
    named = () if form == "free" else tuple(every if heads is None else heads)
    if form == "heads":
        mean_z = task_mean_z(model, task, chosen) if mean_z is None else mean_z
        written = torch.stack([mean_z[head] @ path_to_residual(model, head, mean_z) for head in named])
    start = _start(model, chosen.seed) if written is None else torch.ones_like(written[:, 0])
    weights, vector = _train(forward_of(model), train, check, start, written, norm=norm, steps=steps)
    return InstructionVector(
        vector=vector,
        heads=named,
        layer=int(layer),
        mean_z=None if form == "free" or mean_z is None else _weighed(mean_z, named, weights),
        settings=chosen,
        task=task.name,
        task_digest=task.digest,
        model=hooked.model_name(model),
        model_digest=hooked.weight_digest(model),
    )


@dataclass(frozen=True, kw_only=True)
class Ends:
    """Prompts that were read up to the block behind which a vector is added."""

    tokens: Tokens
    reading: Reading
    after: Rows
    """The residual stream there, one row."""
    layer: int
    n_layers: int


@torch.no_grad()
def read_ends(model: HookedTransformer, tokens: Tokens, layer: int) -> list[Ends]:
    """Read prompts once, for as many vectors as are tried behind a block.

    Raises:
        ModelError: the block-wise pass differs from the model's own.
    """
    forward, found = forward_of(model), []
    for batch in batches(tokens, most=count_at_once(model, tokens)):
        reading = forward.read(batch)
        rows = reading.start[:, None]
        for below in range(layer + 1):
            rows = reading.carry(below, rows)
        ends = Ends(tokens=batch, reading=reading, after=rows, layer=layer, n_layers=model.cfg.n_layers)
        compare_with_model(forward, reading, _carry(ends, rows)[:, 0])
        found.append(ends)
    return found


def _carry(ends: Ends, rows: Rows) -> Rows:
    for above in range(ends.layer + 1, ends.n_layers):
        rows = ends.reading.carry(above, rows)
    return rows


def answer_loss(forward: Forward, ends: Sequence[Ends], vector: Residual) -> Float[Tensor, ""]:
    """Negative log-likelihood of whole answers under the vector, in nats: the mean over prompts."""
    total, n = torch.zeros((), dtype=vector.dtype, device=vector.device), 0
    for one in ends:
        last = one.after[:, :, :1] + vector.to(one.after)
        rows = _carry(one, torch.cat([last, one.after[:, :, 1:]], dim=2))
        logits = forward.unembed(rows)[:, 0]
        answers, mask = (part.to(logits.device) for part in (one.tokens.answers, one.tokens.answer_mask))
        total = total - (token_log_probs(logits, answers) * mask).sum().to(total)
        n += len(one.tokens)
    return total / n


def _train(
    forward: Forward,
    train: Sequence[Ends],
    check: Sequence[Ends],
    start: Tensor,
    written: Float[Tensor, "head d_model"] | None,
    *,
    norm: float,
    steps: int,
) -> tuple[Tensor, Residual]:
    """What was best on the pairs to check: the parameters, such that they make the vector, and the vector."""
    parameters = start.clone().requires_grad_()

    def scaled() -> tuple[Tensor, Residual]:
        direction = parameters if written is None else parameters @ written
        factor = norm / direction.norm()
        return factor * parameters, factor * direction

    optimiser = torch.optim.Adam([parameters], lr=RATE)
    best, kept, waited = math.inf, scaled(), 0
    for step in track(range(steps + 1), "training a vector"):
        if step % EVERY == 0 or step == steps:
            with torch.no_grad():
                loss = float(answer_loss(forward, check, scaled()[1]))
            if not math.isfinite(loss):
                raise ModelError(f"the loss of the vector is {loss} after {step} steps; give a smaller norm")
            waited += 1
            if loss < best:
                best, kept, waited = loss, scaled(), 0
            if waited >= PATIENCE:
                break
        with torch.enable_grad():
            (parameters.grad,) = torch.autograd.grad(answer_loss(forward, train, scaled()[1]), parameters)
        optimiser.step()
    return kept[0].detach(), kept[1].detach()


def _start(model: HookedTransformer, seed: int) -> Residual:
    """A direction drawn at random, of length 1."""
    drawn = torch.from_numpy(open_stream(seed, Stream.TRAINED_VECTOR).standard_normal(model.cfg.d_model))
    dtype = torch.float64 if model.cfg.dtype == torch.float64 else torch.float32
    return (drawn / drawn.norm()).to(model.cfg.device, dtype)


def _weighed(mean_z: MeanZ, heads: Sequence[Head], weights: Tensor) -> MeanZ:
    """Mean outputs times the weights of their heads: what the vector is the sum of."""
    own = torch.zeros_like(mean_z)
    for head, weight in zip(heads, weights, strict=True):
        own[head] = weight * mean_z[head]
    return own


def _check_request(
    model: HookedTransformer, *, layer: int, norm: float, form: str, heads: Sequence[Head] | None, steps: int
) -> None:
    check_layer(layer, model.cfg.n_layers)
    if form not in ("free", "heads"):
        raise IvlensError(f"form is {form!r}; it must be 'free' or 'heads'")
    if not (math.isfinite(norm) and norm > 0):
        raise IvlensError(f"norm is {norm}; it must be a finite number above 0")
    if steps < 1:
        raise IvlensError(f"steps is {steps}; it must be 1 or more")
    if form == "free":
        if heads is not None:
            raise IvlensError("heads are given, but form='free' has none; take form='heads', or leave heads out")
        return
    for head in heads or ():
        check_head(head, (model.cfg.n_layers, model.cfg.n_heads))
    if any(forward_of(model).output_path(one).norm is not None for one in range(model.cfg.n_layers)):
        raise ModelError(
            f"{hooked.model_name(model)} has a norm behind attention, so that heads cannot be weighed one by one; take "
            "form='free'"
        )
