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
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ivlens.errors import ModelError
from ivlens.measures import greedy_match, token_log_probs
from ivlens.patching.activations import batches, unembed, with_answers
from ivlens.patching.block_forward import Prefix, Rows, RowsZ, attend, write
from ivlens.patching.memory import Budget
from ivlens.progress import track
from ivlens.prompts.tokens import Tokens

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer
    from transformer_lens.components.transformer_block import TransformerBlock as Block


@dataclass(frozen=True, kw_only=True)
class Junction:
    """The unpatched run at one layer, where rows branch off."""

    layer: int
    block: Block
    before: Rows
    """Residual stream before the block, one row."""
    z: RowsZ
    """What the block's heads compute, one row."""
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
    model: HookedTransformer, tokens: Tokens, branch: Branch, *, counts: Sequence[int], memory: int, description: str
) -> Answers:
    """Carry all rows of all prompts up the layers and read the answer off each.

    Args:
        branch: Makes the rows that leave the unpatched run at a layer.
        counts: How many these are, by layer.
        memory: Bytes that may be taken beside the model's weights.
    """
    budget = Budget.of(model, tokens, sum(counts), memory)
    parts = [
        _unembed_rows(model, batch, climb(model, batch, branch, counts=counts, chunk=budget.rows), budget.logits)
        for batch in track(list(batches(tokens, size=budget.prompts)), description)
    ]
    return Answers.joined(parts, dim=0)


def climb(model: HookedTransformer, tokens: Tokens, branch: Branch, *, counts: Sequence[int], chunk: int) -> Rows:
    """The residual stream of all rows after the last block.

    Row 0 is unpatched; behind it are those that branched off at layer 0, then those of layer 1, and so on.
    """
    prefix = read_prefix(model, tokens)
    stack = prefix.start.new_empty(len(tokens), 1 + sum(counts), *prefix.start.shape[1:])
    stack[:, 0] = prefix.start
    grown = 1
    for layer, (block, more) in enumerate(zip(model.blocks, counts, strict=True)):
        before = stack[:, :1].clone()
        z = attend(block, layer, prefix, before)
        junction = Junction(layer=layer, block=block, before=before, z=z, after=write(block, before, z))
        stack[:, :1] = junction.after
        for rows in _chunks(1, grown, chunk):
            old = stack[:, rows.start : rows.stop]
            stack[:, rows.start : rows.stop] = write(block, old, attend(block, layer, prefix, old))
        for rows in _chunks(0, more, chunk):
            stack[:, grown + rows.start : grown + rows.stop] = branch(junction, rows)
        grown += more
        check_finite(junction.after, layer)
    compare_with_model(model, prefix, stack[:, 0])
    return stack


def _chunks(start: int, stop: int, size: int) -> Iterator[range]:
    for first in range(start, stop, size):
        yield range(first, min(first + size, stop))


def _unembed_rows(model: HookedTransformer, tokens: Tokens, stack: Rows, chunk: int) -> Answers:
    parts = stack.split(max(1, chunk // (stack.shape[0] * stack.shape[2])), dim=1)
    return Answers.joined([read_answers(unembed(model, part), tokens) for part in parts], dim=1)


def read_answers(logits: Float[Tensor, "prompt row answer vocab"], tokens: Tokens) -> Answers:
    """What the logits that predict the answer's tokens make of it."""
    wanted = tokens.answers[:, None].expand(logits.shape[:-1])
    mask = tokens.answer_mask[:, None]
    log_probs = token_log_probs(logits, wanted)
    return Answers(
        first=log_probs[..., 0].exp(),
        log_prob=(log_probs * mask).sum(-1),
        match=greedy_match(logits, wanted, mask),
    )


def read_prefix(model: HookedTransformer, tokens: Tokens) -> Prefix:
    """Run prompts and answers once through the model and keep what tails need.

    The tail is as long as the longest answer: the last prompt token, and every answer token that predicts another.
    """
    ids, mask = with_answers(tokens)
    tail = tokens.answers.shape[1]
    rotary = model.cfg.positional_embedding_type == "rotary"
    keys: list[Tensor] = []
    values: list[Tensor] = []
    starts: list[Tensor] = []

    def keep(cache: list[Tensor]):
        def hook_fn(heads: Tensor, hook: object) -> None:
            cache.append(rearrange(heads[:, :-tail], "prompt pos head d -> prompt head pos d").contiguous())

        return hook_fn

    def keep_start(resid: Tensor, hook: object) -> None:
        starts.append(resid[:, -tail:].clone())

    names = [f"blocks.{layer}.attn" for layer in range(model.cfg.n_layers)]
    hooks: list[Any] = [(f"{name}.hook_{'rot_k' if rotary else 'k'}", keep(keys)) for name in names]
    hooks += [(f"{name}.hook_v", keep(values)) for name in names]
    hooks += [("blocks.0.hook_resid_pre", keep_start)]
    final = model.run_with_hooks(ids, attention_mask=mask.long(), stop_at_layer=model.cfg.n_layers, fwd_hooks=hooks)
    clip = getattr(model.cfg, "clip_qkv", None)
    return Prefix(
        keys=keys,
        values=values if clip is None else [value.clamp(-clip, clip) for value in values],
        mask=mask,
        positions=(mask.cumsum(1) - 1).clamp(min=0)[:, -tail:],
        start=starts[0],
        final=final[:, -tail:].clone(),
    )


def compare_with_model(
    model: HookedTransformer, prefix: Prefix, unpatched: Float[Tensor, "prompt tail d_model"]
) -> None:
    """Refuse to go on when the block-wise pass and the model's own disagree.

    Raises:
        ModelError: the residual streams differ by more than rounding; both sizes are named.
    """
    scale = float(prefix.final.abs().max())
    tail = unpatched.shape[1]
    gap = float(((unpatched - prefix.final).abs() * prefix.mask[:, -tail:, None]).max())
    # Rounding of a few hundred operations, relative to the largest number in the stream.
    tolerance = 1e3 * torch.finfo(unpatched.dtype).eps * max(scale, 1.0)
    if unpatched.dtype == torch.bfloat16 or unpatched.dtype == torch.float16:
        tolerance = 0.1 * max(scale, 1.0)
    if not gap <= tolerance:
        raise ModelError(
            f"the block-wise pass differs from the model's own by {gap:.2g} (numbers up to {scale:.2g}): the model has "
            "hooks on it, or an attention that ivlens does not know; remove the hooks with model.reset_hooks(), or use "
            "ivlens.patching.sweep.loop"
        )


def check_finite(resid: Tensor, layer: int) -> None:
    """Raises ModelError naming the layer when a residual stream is NaN or infinite."""
    if not bool(resid.isfinite().all()):
        raise ModelError(
            f"the residual stream after layer {layer} is NaN or infinite; load the model in another dtype, or check "
            "its weights"
        )
