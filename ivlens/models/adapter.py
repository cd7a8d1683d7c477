"""What is a low-rank adapter, and how is it kept as it is, factor by factor, in one safetensors file?

Factors have PEFT's shapes (see `lora`). Source: Hu et al. 2021, arXiv:2106.09685.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.errors import IvlensError, ShapeMismatch
from ivlens.models import hooked
from ivlens.models.weights import TARGETS, Target, matrix_shape, weight_name
from ivlens.storage import atomic_files, tensor_files

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

FORMAT = "ivlens.adapter/1"


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """What to adapt and how strongly; names as in PEFT, but for weights, which are TransformerLens'.

    Raises:
        IvlensError: a rank below 1, an alpha that is not above 0, or targets that there are not.

    >>> lora.LoraConfig(rank=4, targets=("W_Q", "W_O")).layers is None
    True
    """

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
        """Factor of `B A`.

        >>> lora.LoraConfig(rank=8, alpha=16.0).scale, lora.LoraConfig(rank=16, rank_stabilised=True).scale
        (2.0, 4.0)
        """
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


class Factors(NamedTuple):
    """The update of one weight, seen as a matrix: `scale * B @ A`.

    >>> lora.Factors(A=torch.ones(2, 5), B=torch.zeros(3, 2)).A.shape
    torch.Size([2, 5])
    """

    A: Float[Tensor, "rank d_in"]
    B: Float[Tensor, "d_out rank"]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Factors by the name of the weight, such as `blocks.0.attn.W_Q` (also under grouped-query attention).

    >>> adapter
    Adapter(12 weights, W_Q, W_V, rank [2], scale 8)
    """

    factors: Mapping[str, Factors]
    scale: float

    def parameters(self) -> list[Tensor]:
        """All factors, in the order of names; `A` before `B`.

        >>> len(adapter.parameters())
        24
        """
        return [factor for factors in self.factors.values() for factor in factors]

    def requires_grad_(self, wanted: bool = True) -> Adapter:
        """Have gradients kept for every factor, or not; the adapter itself comes back.

        >>> adapter.requires_grad_(False).parameters()[0].requires_grad
        False
        """
        for factor in self.parameters():
            factor.requires_grad_(wanted)
        return self

    def is_nothing(self) -> bool:
        """Does every update vanish?

        >>> lora.fresh(model, lora.LoraConfig()).is_nothing(), adapter.is_nothing()
        (True, False)
        """
        return not any(bool((factors.B @ factors.A).any()) for factors in self.factors.values())

    def __repr__(self) -> str:
        ranks = sorted({len(factors.A) for factors in self.factors.values()})
        targets = sorted({name.rsplit(".", 1)[1] for name in self.factors})
        return f"Adapter({len(self.factors)} weights, {', '.join(targets)}, rank {ranks}, scale {self.scale:g})"


def fresh(model: HookedTransformer, config: LoraConfig, *, seed: int = 0) -> Adapter:
    """An adapter that changes nothing yet: `A` uniform in +-1/sqrt(d_in), as PEFT has it, and `B` zero.

    Raises:
        IvlensError: the model lacks a layer or a weight that the config names.

    >>> new = lora.fresh(model, lora.LoraConfig(rank=4, targets=("W_out",), layers=(1,)))
    >>> new.factors["blocks.1.mlp.W_out"].A.shape, new.is_nothing()
    (torch.Size([4, 256]), True)
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
        # As precise as the model, and in float32 at least.
        dtype = torch.promote_types(torch.float32, model.cfg.dtype)
        factors[name] = Factors(a.to(model.cfg.device, dtype), b.to(model.cfg.device, dtype))
    return Adapter(factors=factors, scale=config.scale)


def stack(adapters: Sequence[Adapter]) -> Adapter:
    """One adapter whose update is the sum of all updates; its rank is the sum of their ranks.

    Raises:
        IvlensError: there are none.

    >>> lora.stack([adapter, adapter])
    Adapter(12 weights, W_Q, W_V, rank [4], scale 8)
    """
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


def update_matrix(factors: Factors, scale: float) -> Float[Tensor, "d_in d_out"]:
    """The update, `scale` times `B A`, as TransformerLens multiplies: inputs first.

    >>> lora.update_matrix(lora.Factors(A=torch.ones(2, 5), B=torch.ones(3, 2)), 0.5).shape
    torch.Size([5, 3])
    """
    return scale * (factors.A.T @ factors.B.T)


def check_adapter(model: HookedTransformer, adapter: Adapter) -> None:
    """See that an adapter is of this model.

    Raises:
        ShapeMismatch: it does not fit.
        IvlensError: it is not finite.

    >>> alien = lora.Adapter(factors={name: lora.Factors(torch.ones(2, 64), torch.ones(128, 2))}, scale=1.0)
    >>> lora.check_adapter(model, alien)
    Traceback (most recent call last):
    ivlens.errors.ShapeMismatch: the adapter has A (2, 64) and B (128, 2) for blocks.0.attn.W_Q, but lab needs ...
    """
    for name, (a, b) in adapter.factors.items():
        check_shapes(model, name, tuple(a.shape), tuple(b.shape))
        if not bool(a.isfinite().all() and b.isfinite().all()):
            raise IvlensError(f"the adapter has NaN or infinity for {name}; train or save it again")


def check_shapes(model: HookedTransformer, name: str, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    """Raises ShapeMismatch where factors of shapes `a` and `b` do not fit the weight."""
    d_in, d_out = matrix_shape(model, name)
    if len(a) != 2 or len(b) != 2 or a[1] != d_in or b[0] != d_out or a[0] != b[1]:
        raise ShapeMismatch(
            f"the adapter has A {a} and B {b} for {name}, but {hooked.model_name(model)} needs (rank, {d_in}) and "
            f"({d_out}, rank); give an adapter of this model"
        )


def save_adapter(adapter: Adapter, path: Path) -> None:
    """Write the factors as they are into one safetensors file; `peft.write_adapter` writes PEFT's form."""
    held = {
        f"{name}.{part}": getattr(factors, part).detach().cpu().contiguous()
        for name, factors in adapter.factors.items()
        for part in Factors._fields
    }
    content = tensor_files.to_bytes(held, {"format": FORMAT, "scale": repr(adapter.scale)})
    atomic_files.write_whole(path, content)


def load_adapter(path: Path, model: HookedTransformer) -> Adapter:
    """Read what `save` wrote, onto the model's device.

    Raises:
        IvlensError: not such a file.
        ShapeMismatch: it is of another model.
    """
    remedy = "delete it and run the same command again"
    shapes, metadata = tensor_files.read_header(path, remedy=remedy)
    if metadata.get("format") != FORMAT:
        raise IvlensError(
            f"{path} is of format {metadata.get('format')!r}, not {FORMAT!r}; give a file that save wrote"
        )
    names = {name.rpartition(".")[0] for name in shapes}
    if set(shapes) != {f"{name}.{part}" for name in names for part in Factors._fields}:
        raise IvlensError(f"{path} has tensors that make no pairs of A and B; {remedy}")
    for name in names:
        check_shapes(model, name, shapes[f"{name}.A"], shapes[f"{name}.B"])
    try:
        scale = float(metadata["scale"])
    except (KeyError, ValueError) as error:
        raise IvlensError(f"{path} does not say how strong its updates are; {remedy}") from error
    if not math.isfinite(scale):
        raise IvlensError(f"{path} says that its updates are {scale} times as strong; {remedy}")
    held, _ = tensor_files.read_tensors(path, remedy=remedy, device=model.cfg.device or "cpu", most=None)
    factors = {name: Factors(*(held[f"{name}.{part}"] for part in Factors._fields)) for name in sorted(names)}
    adapter = Adapter(factors=factors, scale=scale)
    check_adapter(model, adapter)
    return adapter
