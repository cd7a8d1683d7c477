"""Which kind of model is it? Asked here, and where models are made; nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ivlens.forward.bridge_forward import BridgeForward
from ivlens.forward.hooked_forward import HookedForward
from ivlens.forward.rows import Forward
from ivlens.models import bridge

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


def forward_of(model: HookedTransformer) -> Forward:
    """How the model is run."""
    return BridgeForward(model) if bridge.is_bridge(model) else HookedForward(model)
