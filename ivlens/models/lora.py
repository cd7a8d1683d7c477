"""What does a low-rank adapter add to the weights, and how is it attached, taken off and merged?

An adapter holds, per adapted weight, `A` and `B`; the weight becomes `W + scale * B A`. Source: Hu et al. 2021,
arXiv:2106.09685. Factors have PEFT's shapes: seen as one matrix, a weight of queries has `heads * d_head` outputs,
and `A` is shared by its heads. The model's own weights are never touched while an adapter is attached.

    >>> import torch
    >>> from ivlens import lora
    >>> tokens, name = model.to_tokens("Q: big\\nA:"), "blocks.0.attn.W_Q"
    >>> adapter.factors[name].A.shape, adapter.factors[name].B.shape  # [rank d_in], [d_out rank]
    (torch.Size([2, 128]), torch.Size([128, 2]))
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from ivlens.errors import IvlensError
from ivlens.errors import ModelWarning as ModelWarning
from ivlens.models import attachment, hooked
from ivlens.models.adapter import Adapter as Adapter
from ivlens.models.adapter import Factors as Factors
from ivlens.models.adapter import LoraConfig as LoraConfig
from ivlens.models.adapter import check_adapter as check_adapter
from ivlens.models.adapter import fresh as fresh
from ivlens.models.adapter import stack as stack
from ivlens.models.adapter import update_matrix as update_matrix
from ivlens.models.attachment import Update as Update
from ivlens.models.weights import as_weight, locate

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

LOSS = 0.05
"""The share of an update that rounding may lose before it is said aloud."""


@contextmanager
def attached(model: HookedTransformer, *adapters: Adapter) -> Iterator[HookedTransformer]:
    """The model with adapters added, inside the `with` block; leaves no trace, also on an exception.

    >>> before = model(tokens)
    >>> with lora.attached(model, adapter):
    ...     torch.equal(model(tokens), before)
    False
    >>> torch.equal(model(tokens), before)
    True
    """
    attach(model, *adapters)
    try:
        yield model
    finally:
        for adapter in adapters:
            detach(model, adapter)


def attach(model: HookedTransformer, *adapters: Adapter) -> None:
    """Add adapters until `detach`. Gradients reach factors that require them.

    Raises:
        ShapeMismatch: an adapter is of another model; both shapes are named.
        IvlensError: it is attached already, or given twice. Nothing is attached then.

    >>> lora.attach(model, adapter)
    >>> torch.nn.utils.parametrize.is_parametrized(model.blocks[0].attn, "W_Q")
    True
    >>> lora.detach(model, adapter)
    """
    there = [update.adapter for update in attachment.updates_of(model)]
    for number, adapter in enumerate(adapters):
        check_adapter(model, adapter)
        attachment.check_attachable(model, adapter)
        if any(other is adapter for other in (*there, *adapters[:number])):
            raise IvlensError("the adapter is attached already; detach it first")
    for adapter in adapters:
        attachment.add(model, adapter)


def detach(model: HookedTransformer, adapter: Adapter) -> None:
    """Take an adapter off; others stay.

    >>> other = lora.fresh(model, lora.LoraConfig())
    >>> with lora.attached(model, adapter, other):
    ...     lora.detach(model, adapter)
    ...     [update.adapter is other for update in model.blocks[0].attn.parametrizations.W_Q]
    [True]
    """
    attachment.remove(model, adapter)


@contextmanager
def silenced(model: HookedTransformer, *adapters: Adapter) -> Iterator[HookedTransformer]:
    """The model as if these adapters (without any named: all) were not attached.

    >>> before = model(tokens)
    >>> with lora.attached(model, adapter), lora.silenced(model):
    ...     torch.equal(model(tokens), before)
    True
    """
    chosen = [
        update
        for update in attachment.updates_of(model)
        if not adapters or any(update.adapter is adapter for adapter in adapters)
    ]
    before = [(update, update.active) for update in chosen]
    try:
        attachment.set_active([(update, False) for update in chosen])
        yield model
    finally:
        attachment.set_active(before)


def merge(model: HookedTransformer, adapter: Adapter) -> None:
    """Add an adapter to the weights for good; bit for bit what attaching it computes.

    Raises:
        ShapeMismatch: the adapter is of another model.
        IvlensError: an adapter is attached; the sum would depend on the order. Nothing is merged then.

    >>> tuned = ivlens.load("lab")
    >>> lora.merge(tuned, adapter)
    >>> torch.equal(tuned.W_V, model.W_V), torch.equal(tuned.W_O, model.W_O)
    (False, True)
    """
    check_adapter(model, adapter)
    places = {name: locate(model, name) for name in adapter.factors}
    for name in places:
        if attachment.is_on(model, name):
            raise IvlensError(f"{name} has an adapter attached; detach it before merging")
    with torch.no_grad():
        for name, (module, weight) in places.items():
            parameter = getattr(module, weight)
            parameter.copy_(Update(adapter, adapter.factors[name]).added_to(parameter, module))


@contextmanager
def merged(model: HookedTransformer, adapter: Adapter) -> Iterator[HookedTransformer]:
    """The model with an adapter in its weights, inside the `with` block; afterwards the old weights, to the bit.

    >>> before = model.W_Q.clone()
    >>> with lora.merged(model, adapter):
    ...     torch.equal(model.W_Q, before)
    False
    >>> torch.equal(model.W_Q, before)
    True
    """
    check_adapter(model, adapter)
    places = [locate(model, name) for name in adapter.factors]
    kept = [getattr(module, weight).detach().clone() for module, weight in places]
    try:
        merge(model, adapter)
        yield model
    finally:
        with torch.no_grad():
            for (module, weight), old in zip(places, kept, strict=True):
                getattr(module, weight).copy_(old)


@torch.no_grad()
def lost_to_rounding(model: HookedTransformer, adapter: Adapter) -> float:
    """Which part of an adapter's update the weights' dtype cannot hold: |sum as it is rounded - exact sum| / |update|.

    0 is nothing, 1 as much as the whole update. In float32 it is nothing to speak of; in bfloat16, whose numbers are
    0.4 % apart, it is most of an update that changes weights by less.

    >>> lora.lost_to_rounding(model, adapter) < 1e-4
    True
    """
    error, size = 0.0, 0.0
    for name, factors in adapter.factors.items():
        module, own = locate(model, name)
        weight = getattr(module, own).detach()
        update = as_weight(update_matrix(factors, adapter.scale), weight, module)
        wide = weight.to(torch.promote_types(torch.float32, torch.promote_types(weight.dtype, update.dtype)))
        got = (wide + update).to(weight.dtype).to(wide.dtype) - wide
        error += float((got - update).double().square().sum())
        size += float(update.double().square().sum())
    return math.sqrt(error / size) if size else 0.0


def note_loss(model: HookedTransformer, lost: float, name: str) -> str:
    """Warn where rounding loses a part of an update that counts.

    Args:
        lost: Share of the update, 0 to 1, as `lost_to_rounding` gives it.
        name: Of the adapter.

    Returns:
        What a run's record says of it; nothing where little is lost.

    >>> lora.note_loss(model, lora.lost_to_rounding(model, adapter), "mine")
    ''
    """
    if lost < LOSS:
        return ""
    said = f"{lost:.0%} of the update of {name} is lost to rounding in {str(model.cfg.dtype).removeprefix('torch.')}"
    warnings.warn(f"{said} ({hooked.model_name(model)}); load in float32 to keep it", ModelWarning, stacklevel=4)
    return said
