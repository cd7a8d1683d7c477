"""Patch attention heads one at a time and measure what each one carries.

If head (l, h) had produced its mean clean output on a corrupted prompt, how far would the answer move?
Source: Todd et al. 2024, arXiv:2310.15213, who run the model once per head. `loop` does that; `sweep` computes the
same numbers in one pass: patching the last prompt token cannot change earlier positions, so their keys and values
are computed once, and the last token's residual stream is carried up as a growing stack of rows. Row 0 is the
unpatched run; at layer l, `n_heads` rows branch off it, each with one head's `z` replaced.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens import tails
from ivlens.activations import answer_logits, batches, unembed
from ivlens.errors import IvlensError, ModelError, PromptError, ShapeMismatch
from ivlens.measures import answer_log_prob, first_token_probability, token_log_probs
from ivlens.progress import track
from ivlens.prompts import Tokens
from ivlens.shapes import GIB, Cie, MeanZ

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Effect = Literal["prob", "nll"]

# Copies of its rows that a block makes on the way (scores and pattern; gate, activation and its intermediates).
SCORE_COPIES, MLP_COPIES = 4, 6


@torch.no_grad()
def sweep(
    model: HookedTransformer, tokens: Tokens, z: MeanZ, *, effect: Effect = "prob", memory: int = 2 * GIB
) -> tuple[Float[Tensor, " prompt"], Cie]:
    """Causal indirect effect (CIE) of every head on every prompt, in one pass.

    Args:
        tokens: Corrupted prompts and their answers.
        z: What to replace a head's output by at the last prompt token (`mean_z` over clean prompts).
        effect: `prob`: probability of the first answer token; `nll`: log-likelihood of the whole answer in nats,
            teacher-forced, the patch at the last prompt token only.
        memory: Bytes that may be taken beside the model's weights.

    Returns:
        The unpatched value per prompt, and patched minus unpatched per head: in [-1, 1] for `prob`, in nats for
        `nll`; positive in both when the head carries the task.

    Raises:
        ShapeMismatch: `z` is from a model with other heads.
        ModelError: a residual stream is NaN or infinite, or the model's attention is not one that `tails` knows.
        PromptError: `memory` cannot hold a single prompt.
    """
    _check_inputs(model, z, effect)
    tokens = tokens if effect == "nll" else tokens.first()
    budget = Budget(model, tokens, memory)
    baselines, effects = [], []
    for batch in track(list(batches(tokens, size=budget.prompts)), "patching every head"):
        scores = _score(model, batch, _stack(model, batch, z.to(model.cfg.dtype), budget.rows), budget.logits)
        scores = scores if effect == "nll" else scores.exp()
        baselines.append(scores[:, 0])
        effects.append((scores[:, 1:] - scores[:, :1]).unflatten(1, (model.cfg.n_layers, model.cfg.n_heads)))
    return torch.cat(baselines), torch.cat(effects)


@torch.no_grad()
def loop(
    model: HookedTransformer, tokens: Tokens, z: MeanZ, *, effect: Effect = "prob"
) -> tuple[Float[Tensor, " prompt"], Cie]:
    """The same as `sweep`, by one full forward pass per head: slow, obvious, and what `sweep` is held to."""
    _check_inputs(model, z, effect)
    baseline = _answer_score(model, tokens, effect)
    effects = baseline.new_zeros(len(tokens), model.cfg.n_layers, model.cfg.n_heads)
    last = tokens.prompts.shape[1] - 1
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            hook = (f"blocks.{layer}.attn.hook_z", partial(_replace, head=head, pos=last, value=z[layer, head]))
            with model.hooks(fwd_hooks=[hook]):
                effects[:, layer, head] = _answer_score(model, tokens, effect) - baseline
    return baseline, effects


def _replace(
    z: Float[Tensor, "prompt pos head d_head"], hook: object, *, head: int, pos: int, value: Float[Tensor, " d_head"]
) -> Float[Tensor, "prompt pos head d_head"]:
    z = z.clone()
    z[:, pos, head] = value.to(z.dtype)
    return z


def _answer_score(model: HookedTransformer, tokens: Tokens, effect: Effect) -> Float[Tensor, " prompt"]:
    if effect == "nll":
        return answer_log_prob(answer_logits(model, tokens), tokens.answers, tokens.answer_mask)
    first = tokens.first()
    return first_token_probability(answer_logits(model, first), first.answers)


def _stack(model: HookedTransformer, batch: Tokens, z: MeanZ, chunk: int) -> tails.Rows:
    """The residual stream after the last block: row 0 unpatched, row 1 + l * n_heads + h with head (l, h) patched."""
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    prefix = tails.read(model, batch)
    stack = prefix.start.new_empty(len(batch), 1 + n_layers * n_heads, *prefix.start.shape[1:])
    stack[:, 0] = prefix.start
    for layer, block in enumerate(model.blocks):
        grown = 1 + layer * n_heads
        before = stack[:, :1].clone()
        unpatched = tails.attend(block, layer, prefix, before)
        for start in range(0, grown, chunk):
            rows = stack[:, start : min(start + chunk, grown)]
            stack[:, start : start + rows.shape[1]] = tails.write(
                block, rows, tails.attend(block, layer, prefix, rows)
            )
        for start in range(0, n_heads, chunk):
            heads = torch.arange(start, min(start + chunk, n_heads), device=stack.device)
            patched = unpatched.repeat(1, len(heads), 1, 1, 1)
            patched[:, torch.arange(len(heads)), 0, heads] = z[layer, heads]
            rows = before.expand(-1, len(heads), -1, -1)
            stack[:, grown + start : grown + start + len(heads)] = tails.write(block, rows, patched)
        tails.check_finite(stack[:, 0], layer)
    tails.check(model, prefix, stack[:, 0])
    return stack


def _score(model: HookedTransformer, batch: Tokens, stack: tails.Rows, chunk: int) -> Float[Tensor, "prompt row"]:
    """Log-probability of the answer per row, in nats."""
    scores = []
    for part in stack.split(max(1, chunk // (stack.shape[0] * stack.shape[2])), dim=1):
        answers = batch.answers[:, None].expand(-1, part.shape[1], -1)
        log_probs = token_log_probs(unembed(model, part), answers)
        scores.append((log_probs * batch.answer_mask[:, None]).sum(-1))
    return torch.cat(scores, dim=1)


class Budget:
    """How many prompts, rows and logits fit into `memory` bytes at once."""

    def __init__(self, model: HookedTransformer, tokens: Tokens, memory: int) -> None:
        cfg = model.cfg
        bytes_each = torch.finfo(cfg.dtype).bits // 8
        pos, tail = tokens.prompts.shape[1] + tokens.answers.shape[1] - 1, tokens.answers.shape[1]
        d_mlp = 0 if cfg.attn_only else cfg.d_mlp or 0
        kv_heads = cfg.n_key_value_heads or cfg.n_heads
        per_token = MLP_COPIES * d_mlp + 8 * cfg.d_model
        rows = 2 * (1 + cfg.n_layers * cfg.n_heads) * tail * cfg.d_model
        caches = 2 * cfg.n_layers * kv_heads * cfg.d_head * pos
        reading = pos * per_token + SCORE_COPIES * cfg.n_heads * pos * pos
        one_row = tail * (per_token + SCORE_COPIES * cfg.n_heads * pos)
        prompt = bytes_each * (rows + caches + max(reading, one_row))
        # Half for what a batch of prompts keeps, half for what its rows need on their way through a block.
        self.prompts = int(memory // 2 // prompt)
        if not self.prompts:
            raise PromptError(
                f"memory is {memory:,} bytes, but one prompt of {pos} tokens needs {2 * prompt:,}; give more, or use "
                "fewer shots"
            )
        self.prompts = min(self.prompts, len(tokens))
        self.rows = max(1, int(memory // 2 // (bytes_each * one_row * self.prompts)))
        # Logits are held in float32 beside the model's own precision, with one copy for the softmax.
        self.logits = max(1, int(memory // 2 // ((bytes_each + 8) * cfg.d_vocab_out)))


def _check_inputs(model: HookedTransformer, z: MeanZ, effect: str) -> None:
    cfg = model.cfg
    expected = (cfg.n_layers, cfg.n_heads, cfg.d_head)
    if tuple(z.shape) != expected:
        raise ShapeMismatch(
            f"mean_z is {tuple(z.shape)} but {cfg.model_name} has heads {expected} as (layer, head, d_head); "
            "recompute it with mean_z(model, clean)"
        )
    if effect not in ("prob", "nll"):
        raise IvlensError(f"effect is {effect!r}; it must be 'prob' or 'nll'")
    if cfg.attention_dir != "causal":
        raise ModelError(f"{cfg.model_name} reads in both directions; patching the last token needs a causal model")
    if not bool(z.isfinite().all()):
        raise ModelError("mean_z is NaN or infinite; recompute it, or check the model's weights")
