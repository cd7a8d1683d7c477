"""What does a low-rank adapter add to the weights, and how is it attached, taken off and merged?

An adapter holds, per adapted weight, `A` and `B`; the weight becomes `W + scale * B A`. Source: Hu et al. 2021,
arXiv:2106.09685. Factors have PEFT's shapes: seen as one matrix, a weight of queries has `heads * d_head` outputs,
and `A` is shared by its heads. The model's own weights are never touched while an adapter is attached.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ivlens.errors import IvlensError, ShapeMismatch
from ivlens.models import hooked
from ivlens.models.weights import TARGETS, Target, as_weight, is_adapted, locate, matrix_shape, weight_name

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """What to adapt and how strongly."""

    rank: int = 8
    """Inner width of the update; at least 1."""
    alpha: float = 16.0
    """The update is scaled by `alpha / rank`."""
    targets: tuple[Target, ...] = ("W_Q", "W_V")
    layers: tuple[int, ...] | None = None
    """Which blocks; None: all."""
    rank_stabilised: bool = False
    """Scale by `alpha / sqrt(rank)` (Kalajdzievski 2023, arXiv:2312.03732; PEFT's `use_rslora`)."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise IvlensError(f"rank is {self.rank}; it must be 1 or more")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise IvlensError(f"alpha is {self.alpha}; it must be a number above 0")
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets or len(set(self.targets)) < len(self.targets):
            raise IvlensError(f"targets are {self.targets}; name some of {', '.join(TARGETS)}, each once")

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


class Factors(NamedTuple):
    """The update of one weight, seen as a matrix: `scale * B @ A`."""

    A: Float[Tensor, "rank d_in"]
    B: Float[Tensor, "d_out rank"]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Factors by the name of the weight, such as `blocks.0.attn.W_Q` (also under grouped-query attention)."""

    factors: Mapping[str, Factors]
    scale: float

    def parameters(self) -> list[Tensor]:
        """All factors, in the order of names; `A` before `B`."""
        return [factor for factors in self.factors.values() for factor in factors]

    def requires_grad_(self, wanted: bool = True) -> Adapter:
        for factor in self.parameters():
            factor.requires_grad_(wanted)
        return self

    def is_nothing(self) -> bool:
        """Does every update vanish?"""
        return not any(bool((factors.B @ factors.A).any()) for factors in self.factors.values())

    def __repr__(self) -> str:
        ranks = sorted({len(factors.A) for factors in self.factors.values()})
        targets = sorted({name.rsplit(".", 1)[1] for name in self.factors})
        return f"Adapter({len(self.factors)} weights, {', '.join(targets)}, rank {ranks}, scale {self.scale:g})"


def fresh(model: HookedTransformer, config: LoraConfig, *, seed: int = 0) -> Adapter:
    """An adapter that changes nothing yet: `A` uniform in +-1/sqrt(d_in), as PEFT has it, and `B` zero.

    Raises:
        IvlensError: the model lacks a layer or a weight that the config names.
    """
    layers = range(model.cfg.n_layers) if config.layers is None else config.layers
    outside = [layer for layer in layers if not 0 <= layer < model.cfg.n_layers]
    if outside:
        raise IvlensError(f"there is no layer {outside[0]}: the model has {model.cfg.n_layers}, counted from 0")
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name in (weight_name(layer, target) for layer in layers for target in config.targets):
        d_in, d_out = matrix_shape(model, name)
        bound = 1 / math.sqrt(d_in)
        a = torch.empty(config.rank, d_in).uniform_(-bound, bound, generator=generator)
        b = torch.zeros(d_out, config.rank)
        factors[name] = Factors(a.to(model.cfg.device), b.to(model.cfg.device))
    return Adapter(factors=factors, scale=config.scale)


def stack(adapters: Sequence[Adapter]) -> Adapter:
    """One adapter whose update is the sum of all updates; its rank is the sum of their ranks."""
    if not adapters:
        raise IvlensError("there are no adapters to stack; give at least one")
    scale = adapters[0].scale
    names = dict.fromkeys(name for adapter in adapters for name in adapter.factors)
    stacked = {}
    for name in names:
        parts = [(adapter.factors[name], adapter.scale / scale) for adapter in adapters if name in adapter.factors]
        stacked[name] = Factors(
            torch.cat([factors.A for factors, _ in parts]).detach(),
            torch.cat([factors.B * share for factors, share in parts], dim=1).detach(),
        )
    return Adapter(factors=stacked, scale=scale)


@contextmanager
def attached(model: HookedTransformer, *adapters: Adapter) -> Iterator[HookedTransformer]:
    """The model with adapters added, inside the `with` block; leaves no trace, also on an exception."""
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
    """
    there = [update.adapter for update in _updates(model)]
    for number, adapter in enumerate(adapters):
        check_adapter(model, adapter)
        if any(other is adapter for other in (*there, *adapters[:number])):
            raise IvlensError("the adapter is attached already; detach it first")
    for adapter in adapters:
        for name, factors in adapter.factors.items():
            module, weight = locate(model, name)
            parametrize.register_parametrization(module, weight, Update(adapter, factors), unsafe=True)


def detach(model: HookedTransformer, adapter: Adapter) -> None:
    """Take an adapter off; others stay."""
    for name in adapter.factors:
        module, weight = locate(model, name)
        chain: list[Update] = list(getattr(module.parametrizations, weight)) if is_adapted(module, weight) else []
        kept = [update for update in chain if update.adapter is not adapter]
        if len(kept) == len(chain):
            continue
        # PyTorch can only remove a whole chain.
        parametrize.remove_parametrizations(module, weight, leave_parametrized=False)
        for update in kept:
            parametrize.register_parametrization(module, weight, update, unsafe=True)


@contextmanager
def silenced(model: HookedTransformer, *adapters: Adapter) -> Iterator[HookedTransformer]:
    """The model as if these adapters (without any named: all) were not attached."""
    chosen = [
        update for update in _updates(model) if not adapters or any(update.adapter is adapter for adapter in adapters)
    ]
    before = [update.active for update in chosen]
    try:
        for update in chosen:
            update.active = False
        yield model
    finally:
        for update, active in zip(chosen, before, strict=True):
            update.active = active


def merge(model: HookedTransformer, adapter: Adapter) -> None:
    """Add an adapter to the weights for good; bit for bit what attaching it computes.

    Raises:
        ShapeMismatch: the adapter is of another model.
        IvlensError: an adapter is attached; the sum would depend on the order. Nothing is merged then.
    """
    check_adapter(model, adapter)
    places = {name: locate(model, name) for name in adapter.factors}
    for name, (module, weight) in places.items():
        if is_adapted(module, weight):
            raise IvlensError(f"{name} has an adapter attached; detach it before merging")
    with torch.no_grad():
        for name, (module, weight) in places.items():
            parameter = getattr(module, weight)
            parameter.copy_(Update(adapter, adapter.factors[name])(parameter))


@contextmanager
def merged(model: HookedTransformer, adapter: Adapter) -> Iterator[HookedTransformer]:
    """The model with an adapter in its weights, inside the `with` block; afterwards the old weights, to the bit."""
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


class Update(nn.Module):
    """One adapter on one weight, as a parametrization."""

    def __init__(self, adapter: Adapter, factors: Factors) -> None:
        super().__init__()
        self.adapter = adapter
        # In a tuple, since factors are the adapter's parameters and not the model's.
        self.factors = factors
        self.active = True

    def forward(self, weight: Tensor) -> Tensor:
        if not self.active:
            return weight
        return weight + as_weight(update_matrix(self.factors, self.adapter.scale), weight).to(weight.dtype)


def update_matrix(factors: Factors, scale: float) -> Float[Tensor, "d_in d_out"]:
    """The update as TransformerLens multiplies: inputs first."""
    return scale * (factors.A.T @ factors.B.T)


def check_adapter(model: HookedTransformer, adapter: Adapter) -> None:
    """Raises ShapeMismatch where the adapter does not fit, IvlensError where it is not finite."""
    for name, (a, b) in adapter.factors.items():
        check_shapes(model, name, tuple(a.shape), tuple(b.shape))
        if not bool(a.isfinite().all() and b.isfinite().all()):
            raise IvlensError(f"the adapter has NaN or infinity for {name}; train or save it again")


def check_shapes(model: HookedTransformer, name: str, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    d_in, d_out = matrix_shape(model, name)
    if len(a) != 2 or len(b) != 2 or a[1] != d_in or b[0] != d_out or a[0] != b[1]:
        raise ShapeMismatch(
            f"the adapter has A {a} and B {b} for {name}, but {hooked.model_name(model)} needs (rank, {d_in}) and "
            f"({d_out}, rank); give an adapter of this model"
        )


def _updates(model: HookedTransformer) -> list[Update]:
    return [module for module in model.modules() if isinstance(module, Update)]
