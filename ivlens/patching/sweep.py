"""Patch attention heads one at a time and measure what each one carries.

If head (l, h) had produced its mean clean output on a corrupted prompt, how far would the answer move?
Source: Todd et al. 2024, arXiv:2310.15213, who run the model once per head. `loop` does that; `sweep` computes the
same numbers in one pass: at layer l, `n_heads` rows branch off the unpatched run, each with one head's `z` replaced,
and only the end of the prompt is carried on (see `branches`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.errors import ModelError
from ivlens.forward.rows import Replaced, Rows
from ivlens.patching import branches, hooks
from ivlens.patching.activations import check_mean_z
from ivlens.patching.branches import Answers, Junction
from ivlens.patching.hooks import Hooks
from ivlens.patching.settings import Effect
from ivlens.prompts.tokens import Tokens
from ivlens.shapes import GIB, Cie, Head, MeanZ

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


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
        ModelError: a residual stream is NaN or infinite, the block-wise pass differs from the model's own, or a
            TransformerBridge lacks what `check_bridge` asks for.
        PromptError: `memory` cannot hold a single prompt.
    """
    _check_inputs(model, z)
    means = z.to(model.cfg.device, model.cfg.dtype)
    one_each = torch.eye(model.cfg.n_heads, dtype=torch.bool, device=model.cfg.device)

    def branch(junction: Junction, heads: range) -> Rows:
        replaced = Replaced(one_each[heads.start : heads.stop], means[junction.layer])
        return junction.reading.carry(junction.layer, junction.before, replaced)

    found = branches.run_branches(
        model,
        tokens if effect == "nll" else tokens.first(),
        branch,
        counts=[model.cfg.n_heads] * model.cfg.n_layers,
        inputs=[means],
        memory=memory,
        description="patching every head",
    )
    return _effects(model, found, effect)


def loop(
    model: HookedTransformer, tokens: Tokens, z: MeanZ, *, effect: Effect = "prob"
) -> tuple[Float[Tensor, " prompt"], Cie]:
    """The same as `sweep`, by one full forward pass per head: slow, obvious, and what `sweep` is held to."""
    _check_inputs(model, z)
    found = hooks.run_hooked(
        model,
        tokens if effect == "nll" else tokens.first(),
        list(_hooks_of_heads(model, tokens, z)),
        description="patching head by head",
    )
    return _effects(model, found, effect)


def _hooks_of_heads(model: HookedTransformer, tokens: Tokens, z: MeanZ) -> Iterator[Hooks]:
    last = tokens.prompts.shape[1] - 1
    for layer in range(model.cfg.n_layers):
        for head in (Head(layer, number) for number in range(model.cfg.n_heads)):
            yield [hooks.at_position(hooks.set_head(head, z[head]), last)]


def _effects(model: HookedTransformer, found: Answers, effect: Effect) -> tuple[Float[Tensor, " prompt"], Cie]:
    value = found.log_prob if effect == "nll" else found.first
    return value[:, 0], (value[:, 1:] - value[:, :1]).unflatten(1, (model.cfg.n_layers, model.cfg.n_heads))


def _check_inputs(model: HookedTransformer, z: MeanZ) -> None:
    cfg = model.cfg
    check_mean_z(model, z, what="mean_z is", remedy="recompute it with mean_z(model, clean)")
    if cfg.attention_dir != "causal":
        raise ModelError(f"{cfg.model_name} reads in both directions; patching the last token needs a causal model")
    if not bool(z.isfinite().all()):
        raise ModelError("mean_z is NaN or infinite; recompute it, or check the model's weights")
