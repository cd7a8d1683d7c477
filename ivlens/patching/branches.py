"""What does the network make of a changed end of a prompt, when everything before it stays as it was?

Causal attention keeps a prompt's earlier positions untouched by a change at its last token. So the prompt is read
once, keys and values of its *prefix* are kept, and only the *tail* (the last prompt token, and answer tokens behind
it) is carried up the layers again: as a growing stack of *rows*, of which row 0 is the unpatched run and the others
branch off it, a few at every layer. After the last layer all rows are unembedded once.

A model whose attention is not covered cannot pass silently: `compare_with_model` holds row 0 against the model's own
forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ivlens.forward.makers import forward_of
from ivlens.forward.memory import Budget, count_at_once
from ivlens.forward.rows import Forward, Reading, Rows, compare_with_model, refuse_infinite
from ivlens.forward.token_batches import batches
from ivlens.kept_batches import keep_batch
from ivlens.measures import greedy_match, token_log_probs
from ivlens.progress import open_bar
from ivlens.prompts.tokens import Tokens

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


@dataclass(frozen=True, kw_only=True)
class Junction:
    """The unpatched run at one layer, where rows branch off."""

    layer: int
    reading: Reading
    before: Rows
    """Residual stream before the block, one row."""
    after: Rows
    """Residual stream after the block, one row."""


# Rows number start to stop of those that branch off at a junction.
Branch = Callable[[Junction, range], Rows]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What every row makes of the answer; row 0 is the unpatched run, the others follow layer by layer."""

    first: Float[Tensor, "prompt row"]
    """Probability of the first answer token, in [0, 1]."""
    log_prob: Float[Tensor, "prompt row"]
    """Log-likelihood of the whole answer, teacher-forced, in nats."""
    match: Bool[Tensor, "prompt row"]
    """Would greedy decoding write the answer?"""

    @classmethod
    def joined(cls, parts: Sequence[Answers], *, dim: int) -> Answers:
        """Answers of several prompts (`dim` 0) or rows (1) as one."""
        return cls(**{field.name: torch.cat([getattr(p, field.name) for p in parts], dim) for field in fields(cls)})

    def rows(self, numbers: Sequence[int]) -> Answers:
        """Some of the rows, in the order given."""
        return Answers(**{field.name: getattr(self, field.name)[:, list(numbers)] for field in fields(self)})

    def prompts(self, numbers: Int[Tensor, " prompt"]) -> Answers:
        """Some of the prompts, in the order given."""
        return Answers(**{field.name: getattr(self, field.name)[numbers] for field in fields(self)})


@torch.no_grad()
def run_branches(
    model: HookedTransformer,
    tokens: Tokens,
    branch: Branch,
    *,
    counts: Sequence[int],
    inputs: Sequence[Tensor],
    memory: int,
    description: str,
) -> Answers:
    """Carry all rows of all prompts up the layers and read the answer off each.

    Args:
        branch: Makes the rows that leave the unpatched run at a layer.
        counts: How many these are, by layer.
        inputs: What rows are made from, by which a batch that was kept is known again.
        memory: Bytes that may be taken beside the model's weights.
    """
    forward = forward_of(model)
    most = count_at_once(model, tokens, sum(counts), climbing=True)
    budget = Budget.of(model, tokens, sum(counts), memory, others_seen=forward.others_seen, most=most)
    parts, cut = [], list(batches(tokens, size=budget.prompts))
    known = [torch.tensor(counts), *inputs]
    with open_bar(description, total=len(cut) * len(counts)) as advance:
        for number, batch in enumerate(cut, start=1):

            def compute(batch: Tokens = batch) -> dict[str, Tensor]:
                stack = climb(forward, batch, branch, counts=counts, chunk=budget.rows, advance=advance)
                return vars(_unembed_rows(forward, batch, stack, budget.logits))

            found = keep_batch("branches", [*vars(batch).values(), *known], compute, device=model.cfg.device)
            parts.append(Answers(**found))
            advance.move_to(number * len(counts))
    return Answers.joined(parts, dim=0)


def climb(
    forward: Forward,
    tokens: Tokens,
    branch: Branch,
    *,
    counts: Sequence[int],
    chunk: int,
    advance: Callable[[], object] = lambda: None,
) -> Rows:
    """The residual stream of all rows after the last block.

    Row 0 is unpatched; behind it are those that branched off at layer 0, then those of layer 1, and so on.
    """
    reading = forward.read(tokens)
    stack = reading.start.new_empty(len(tokens), 1 + sum(counts), *reading.start.shape[1:])
    stack[:, 0] = reading.start
    grown, finite = 1, dict[int, Tensor]()
    for layer, more in enumerate(counts):
        before = stack[:, :1].clone()
        for rows in _chunks(0, grown, chunk):
            carried = reading.carry(layer, stack[:, rows.start : rows.stop])
            stack = stack.to(carried.device)  # Layers may lie on several devices.
            stack[:, rows.start : rows.stop] = carried
        junction = Junction(layer=layer, reading=reading, before=before, after=stack[:, :1].clone())
        for rows in _chunks(0, more, chunk):
            stack[:, grown + rows.start : grown + rows.stop] = branch(junction, rows)
        grown += more
        finite[layer] = junction.after.isfinite().all()
        advance()
    refuse_infinite(finite)
    compare_with_model(forward, reading, stack[:, 0])
    return stack


def _chunks(start: int, stop: int, size: int) -> Iterator[range]:
    for first in range(start, stop, size):
        yield range(first, min(first + size, stop))


def _unembed_rows(forward: Forward, tokens: Tokens, stack: Rows, chunk: int) -> Answers:
    parts = stack.split(max(1, chunk // (stack.shape[0] * stack.shape[2])), dim=1)
    return Answers.joined([read_answers(forward.unembed(part), tokens) for part in parts], dim=1)


def read_answers(logits: Float[Tensor, "prompt row answer vocab"], tokens: Tokens) -> Answers:
    """What the logits that predict the answer's tokens make of it."""
    home, there = tokens.answers.device, logits.device
    wanted = tokens.answers.to(there)[:, None].expand(logits.shape[:-1])
    mask = tokens.answer_mask.to(there)[:, None]
    log_probs = token_log_probs(logits, wanted)
    return Answers(
        first=log_probs[..., 0].exp().to(home),
        log_prob=(log_probs * mask).sum(-1).to(home),
        match=greedy_match(logits, wanted, mask).to(home),
    )
