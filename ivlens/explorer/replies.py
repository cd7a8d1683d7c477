"""What does the model reply when the vector is added at a layer, so many times?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ivlens.explorer.contents import SteeredReplies, Steering
from ivlens.patching.hooks import add_to_residual
from ivlens.patching.interventions import Change, run_changes
from ivlens.progress import track
from ivlens.prompts.template import Prompt
from ivlens.prompts.tokens import tokenize
from ivlens.replies.endings import find_endings
from ivlens.replies.generation import write_replies
from ivlens.shapes import Residual
from ivlens.steering.search import SCALES

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

    from ivlens.vectors.instruction_vector import InstructionVector

NEW_TOKENS = 12
"""Of a reply, at most."""
MOST_LAYERS = 8
"""Whose replies are kept on a page."""
STRENGTHS = (-4.0, -1.0, *SCALES)
"""How many times the vector can be added; below 0 it is taken away."""


def strengths(scale: float) -> tuple[float, ...]:
    """What the slider stops at: the usual ones, and the vector's own."""
    return tuple(sorted({*STRENGTHS, scale}))


def kept_layers(n_layers: int, own: int) -> tuple[int, ...]:
    """Layers whose replies a page has: evenly spaced ones, and the vector's own."""
    count = min(n_layers, MOST_LAYERS)
    spaced = {round(i * (n_layers - 1) / max(1, count - 1)) for i in range(count)}
    if own not in spaced:
        spaced = spaced - {min(spaced, key=lambda layer: abs(layer - own))} | {own}
    return tuple(sorted(spaced))


def reply_unsteered(
    model: HookedTransformer, prompts: Sequence[Prompt], vector: InstructionVector, layer: int, scale: float
) -> Steering:
    """What the model replies without the vector, and where the sliders begin."""
    found = reply_steered(model, prompts, vector.vector, layers=[layer], scales=[0.0])
    return Steering(
        prompts=tuple(prompts),
        layer=layer,
        scale=scale,
        replies=found.replies[0][0],
        probability=found.probability[0, 0],
    )


def reply_steered(
    model: HookedTransformer,
    prompts: Sequence[Prompt],
    vector: Residual,
    *,
    layers: Sequence[int],
    scales: Sequence[float],
) -> SteeredReplies:
    """The reply to every prompt with the vector added at the last prompt token, as `steered` adds it."""
    cfg, tokens, endings = model.cfg, tokenize(model, prompts), find_endings(model, prompts)
    added = [(scale * vector).to(cfg.device, cfg.dtype) for scale in scales]
    nothing = torch.zeros(cfg.n_layers, cfg.n_heads, cfg.d_head)  # No head is ablated.
    replies, probability = [], []
    for layer in track(list(layers), "replies by layer"):
        found = run_changes(model, tokens.first(), [Change(added=one) for one in added], layer=layer, z=nothing)
        probability.append(found.probability[:, 1:].T)
        changes = [[add_to_residual(layer, one)] if scale else [] for scale, one in zip(scales, added, strict=True)]
        replies.append(
            tuple(tuple(write_replies(model, tokens, endings, new_tokens=NEW_TOKENS, changes=own)) for own in changes)
        )
    return SteeredReplies(
        layers=tuple(layers), scales=tuple(scales), replies=tuple(replies), probability=torch.stack(probability)
    )
