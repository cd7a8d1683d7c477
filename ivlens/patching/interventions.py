"""What becomes of an answer when several things are changed at the last prompt token at once?

A sweep branches a few rows off at every layer, each with one change. Here a row has changes at whatever layers: heads
replaced by a mean (ablation), a vector added to the residual stream (steering). It leaves the unchanged run at the
first of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ivlens.errors import ShapeMismatch
from ivlens.forward.makers import forward_of
from ivlens.forward.memory import count_at_once
from ivlens.forward.rows import Forward, Replaced, Rows, check_finite, compare_with_model
from ivlens.forward.token_batches import batches, by_answer_length
from ivlens.kept_batches import keep_batch
from ivlens.measures import greedy_match, kl_divergence, token_log_probs
from ivlens.models import hooked
from ivlens.patching.activations import check_mean_z
from ivlens.progress import track
from ivlens.prompts.tokens import Tokens
from ivlens.shapes import Head, MeanZ, Residual

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

_LOGITS = 2**25
"""Numbers that are held at once, about."""


class Change(NamedTuple):
    """What is done to the last prompt token in one row."""

    added: Residual | None = None
    """Added to the residual stream, all rows at one layer."""
    ablated: tuple[Head, ...] = ()
    """Heads whose output is replaced by a mean."""


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What every row makes of the answer; row 0 is unchanged, row 1 + i has the i-th change."""

    probability: Float[Tensor, "prompt row"]
    """Of the first answer token, in [0, 1]."""
    match: Bool[Tensor, "prompt row"]
    """Would greedy decoding write the answer?"""
    shift: Float[Tensor, "prompt row"]
    """KL[row 0 || row] of the next token at the last prompt token, in nats; NaN where it was not asked for."""


class _Planned(NamedTuple):
    """The changes of all rows as tensors on the model's device, the unchanged row first, then the earliest changed."""

    added: Float[Tensor, "row d_model"]
    ablated: Bool[Tensor, "row layer head"]
    z: MeanZ
    layer: int
    joining: list[int]
    """How many rows are first changed in each block; the last number is of those that never are."""
    places: Int[Tensor, " row"]
    """Where each row stands, in the order in which they were given."""


@torch.no_grad()
def run_changes(
    model: HookedTransformer,
    tokens: Tokens,
    changes: Sequence[Change],
    *,
    layer: int,
    z: MeanZ,
    shifted: Sequence[int] = (),
) -> Outcomes:
    """Read every prompt once and carry its end up the layers, once per change and once unchanged.

    Args:
        layer: Vectors are added after this block.
        z: What ablated heads are replaced by.
        shifted: Rows whose shift is measured, which takes two softmaxes over the vocabulary for each.

    Raises:
        ShapeMismatch: `z` or a vector is from a model of other heads or width.
        ModelError: a residual stream is NaN or infinite, or the model has an attention that `block_forward` does
            not know.
    """
    planned = _plan(model, changes, layer, z)
    forward, groups = forward_of(model), by_answer_length(tokens)
    known = [planned.added, planned.ablated, planned.z, planned.places, torch.tensor([layer, *shifted])]

    def read(batch: Tokens) -> Outcomes:
        def compute() -> dict[str, Tensor]:
            return vars(_outcomes(batch, _carry(forward, batch, planned), list(shifted)))

        return Outcomes(**keep_batch("changes", [*vars(batch).values(), *known], compute, device=model.cfg.device))

    cut = [batch for group in groups for batch in _cut(model, tokens[group], len(planned.added))]
    parts = [read(batch) for batch in track(cut, "changing heads and vectors")]
    order = torch.cat(groups).argsort().cpu()
    return Outcomes(
        probability=torch.cat([part.probability for part in parts]).cpu()[order],
        match=torch.cat([part.match for part in parts]).cpu()[order],
        shift=torch.cat([part.shift for part in parts]).cpu()[order],
    )


def _cut(model: HookedTransformer, tokens: Tokens, n_rows: int) -> list[Tokens]:
    """Batches of no more prompts than fit, and of no more tokens than one pass takes."""
    tail, pos = tokens.answers.shape[1], tokens.prompts.shape[1]
    most = max(1, _LOGITS // (n_rows * tail * max(model.cfg.d_vocab_out, 4 * model.cfg.n_heads * pos)))
    most = min(most, count_at_once(model, tokens, n_rows))
    return [batch for part in batches(tokens) for batch in batches(part, size=most)]


def _plan(model: HookedTransformer, changes: Sequence[Change], layer: int, z: MeanZ) -> _Planned:
    cfg = model.cfg
    check_mean_z(model, z, what="the ablation means are", remedy="prepare the probe on a model of this shape")
    begins = torch.tensor([-1, *(_begin(change, layer, cfg.n_layers) for change in changes)])
    order = begins.argsort(stable=True).to(cfg.device)
    added = torch.zeros(1 + len(changes), cfg.d_model, dtype=cfg.dtype, device=cfg.device)
    ablated = torch.zeros(1 + len(changes), *z.shape[:2], dtype=torch.bool, device=cfg.device)
    for row, change in enumerate(changes, start=1):
        if change.added is not None:
            if tuple(change.added.shape) != (cfg.d_model,):
                raise ShapeMismatch(
                    f"a vector is {tuple(change.added.shape)}, but {hooked.model_name(model)} has d_model "
                    f"{cfg.d_model}; prepare the probe on a model of this shape"
                )
            added[row] = change.added
        for head in change.ablated:
            ablated[row, head.layer, head.head] = True
    return _Planned(
        added=added[order],
        ablated=ablated[order],
        z=z.to(cfg.device, cfg.dtype),
        layer=layer,
        joining=begins[1:].bincount(minlength=1 + cfg.n_layers).tolist(),
        places=order.argsort(),
    )


def _begin(change: Change, layer: int, n_layers: int) -> int:
    """The first block that comes out otherwise; behind the last where none does."""
    own = [head.layer for head in change.ablated]
    return min(own if change.added is None else [*own, layer], default=n_layers)


def _carry(forward: Forward, tokens: Tokens, planned: _Planned) -> Float[Tensor, "prompt row answer vocab"]:
    """Logits of all rows, in the order in which they were given."""
    reading = forward.read(tokens)
    stack = reading.start[:, None]
    for layer, z in enumerate(planned.z):
        stack = _join(stack, planned.joining[layer])
        stack = reading.carry(layer, stack, Replaced(planned.ablated[: stack.shape[1], layer], z))
        if layer == planned.layer:
            stack[:, :, 0] += planned.added[: stack.shape[1]].to(stack.device)
        check_finite(stack, layer)
    compare_with_model(forward, reading, stack[:, 0])
    stack = _join(stack, planned.joining[-1])
    return forward.unembed(stack[:, planned.places.to(stack.device)]).to(tokens.answers.device)


def _join(stack: Rows, more: int) -> Float[Tensor, "prompt joined tail d_model"]:
    """So many rows more, which are still as the unchanged one is."""
    return torch.cat([stack, stack[:, :1].expand(-1, more, -1, -1)], dim=1)


def _outcomes(tokens: Tokens, logits: Float[Tensor, "prompt row answer vocab"], shifted: list[int]) -> Outcomes:
    wanted = tokens.answers[:, None].expand(-1, logits.shape[1], -1)
    probability = token_log_probs(logits[:, :, 0], wanted[:, :, 0]).exp()
    shift = torch.full_like(probability, torch.nan)
    if shifted:
        shift[:, shifted] = kl_divergence(logits[:, :1, 0], logits[:, shifted, 0])
    match = greedy_match(logits, wanted, tokens.answer_mask[:, None])
    return Outcomes(probability=probability, match=match, shift=shift)
