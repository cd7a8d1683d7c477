"""Patch attention heads one at a time and measure what each one carries.

If head (l, h) had produced its mean clean output on a corrupted prompt, how far would the answer move?
Source: Todd et al. 2024, arXiv:2310.15213, who run the model once per head. `loop` does that; `sweep` computes the
same numbers in one pass: at layer l, `n_heads` rows branch off the unpatched run, each with one head's `z` replaced,
and only the end of the prompt is carried on (see `tails`).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens import tails
from ivlens.activations import answer_logits
from ivlens.blocks import Rows, write
from ivlens.errors import ModelError, ShapeMismatch
from ivlens.measures import answer_log_prob, first_token_probability
from ivlens.prompts import Tokens
from ivlens.shapes import GIB, Cie, MeanZ
from ivlens.tails import Junction

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Effect = Literal["prob", "nll"]


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
    _check_inputs(model, z)
    z = z.to(model.cfg.device, model.cfg.dtype)

    def branch(junction: Junction, heads: range) -> Rows:
        patched = junction.z.repeat(1, len(heads), 1, 1, 1)
        patched[:, range(len(heads)), 0, heads] = z[junction.layer, heads]
        return write(junction.block, junction.before.expand(-1, len(heads), -1, -1), patched)

    grid = (model.cfg.n_layers, model.cfg.n_heads)
    found = tails.answers(
        model,
        tokens if effect == "nll" else tokens.first(),
        branch,
        per_layer=model.cfg.n_heads,
        memory=memory,
        description="patching every head",
    )
    value = found.log_prob if effect == "nll" else found.first
    return value[:, 0], (value[:, 1:] - value[:, :1]).unflatten(1, grid)


@torch.no_grad()
def loop(
    model: HookedTransformer, tokens: Tokens, z: MeanZ, *, effect: Effect = "prob"
) -> tuple[Float[Tensor, " prompt"], Cie]:
    """The same as `sweep`, by one full forward pass per head: slow, obvious, and what `sweep` is held to."""
    _check_inputs(model, z)
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


def _check_inputs(model: HookedTransformer, z: MeanZ) -> None:
    cfg = model.cfg
    expected = (cfg.n_layers, cfg.n_heads, cfg.d_head)
    if tuple(z.shape) != expected:
        raise ShapeMismatch(
            f"mean_z is {tuple(z.shape)} but {cfg.model_name} has heads {expected} as (layer, head, d_head); "
            "recompute it with mean_z(model, clean)"
        )
    if cfg.attention_dir != "causal":
        raise ModelError(f"{cfg.model_name} reads in both directions; patching the last token needs a causal model")
    if not bool(z.isfinite().all()):
        raise ModelError("mean_z is NaN or infinite; recompute it, or check the model's weights")
