"""A fine-tuning's update, part by part: one matrix of one layer, a layer, a matrix of all layers, all but some heads.

A LoRA adapter is taken apart as it is; of a tuned checkpoint the difference of every matrix is taken, as an adapter of
full rank.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.errors import IvlensError, ModelError, ModelWarning
from ivlens.models.hooked import model_name
from ivlens.models.lora import Adapter, Factors
from ivlens.models.weights import TARGETS, as_matrix, locate, weight_name
from ivlens.random_streams import Stream, open_stream
from ivlens.shapes import Head

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


def update_between(base: HookedTransformer, tuned: HookedTransformer) -> Adapter:
    """The difference of two checkpoints' matrices in attention and MLPs, as an adapter.

    Raises:
        ModelError: no such matrix differs.
    """
    factors, eyes = {}, dict[int, Tensor]()
    for name in _matrices(base):
        before, after = (as_matrix(getattr(*locate(model, name)), *locate(model, name)) for model in (base, tuned))
        difference = (
            after.detach().to(base.cfg.device, torch.promote_types(torch.float32, after.dtype)) - before.detach()
        )
        if bool(difference.any()):
            eye = eyes.setdefault(len(difference), torch.eye(len(difference)).to(difference))
            factors[name] = Factors(A=eye, B=difference.T.contiguous())
    if not factors:
        raise ModelError(
            f"no matrix of attention or MLP differs between {model_name(base)} and {model_name(tuned)}; give the model "
            "as it is after fine-tuning"
        )
    _say_left_out(base, tuned, factors)
    return Adapter(factors=factors, scale=1.0)


def _matrices(model: HookedTransformer) -> Iterator[str]:
    for layer in range(model.cfg.n_layers):
        for target in TARGETS:
            name = weight_name(layer, target)
            try:
                locate(model, name)
            except IvlensError:  # Models without a gate, or without MLPs.
                continue
            yield name


def _say_left_out(base: HookedTransformer, tuned: HookedTransformer, factors: Mapping[str, object]) -> None:
    """Warn where other weights differ, too: they are no part that is told apart."""
    ours, theirs = dict(base.named_parameters()), dict(tuned.named_parameters())
    known = {id(getattr(*locate(base, name))) for name in factors}
    others = [
        name
        for name, own in ours.items()
        if id(own) not in known and not torch.equal(own.cpu(), theirs[name].to(own.dtype).cpu())
    ]
    if others:
        warnings.warn(
            f"{len(others)} other weights of {model_name(tuned)} differ, too, such as {others[0]}; parts are of the "
            "matrices in attention and MLPs alone, and all of them together are not the whole update",
            ModelWarning,
            stacklevel=3,
        )


def name_parts(adapter: Adapter) -> dict[str, tuple[str, ...]]:
    """The weights of each part, by its name: every matrix of every layer, then layers, then matrices of all layers.

    Layers and matrices that are a single weight, or the whole update, are left out.

    >>> from ivlens import lora
    >>> list(name_parts(lora.fresh(model, lora.LoraConfig(layers=(0, 3)))))
    ['L0 W_Q', 'L0 W_V', 'L3 W_Q', 'L3 W_V', 'layer 0', 'layer 3', 'all W_Q', 'all W_V']
    """
    places = {name: (int(name.split(".")[1]), name.rsplit(".", 1)[1]) for name in adapter.factors}
    single = {f"L{layer} {matrix}": (name,) for name, (layer, matrix) in places.items()}
    groups: dict[str, tuple[str, ...]] = {}
    for layer in dict.fromkeys(layer for layer, _ in places.values()):
        groups[f"layer {layer}"] = tuple(name for name, place in places.items() if place[0] == layer)
    for matrix in dict.fromkeys(matrix for _, matrix in places.values()):
        groups[f"all {matrix}"] = tuple(name for name, place in places.items() if place[1] == matrix)
    return single | {name: own for name, own in groups.items() if 1 < len(own) < len(places)}


def only(adapter: Adapter, names: Sequence[str]) -> Adapter:
    """The update of some weights alone."""
    return Adapter(factors={name: adapter.factors[name] for name in names}, scale=adapter.scale)


def all_but(adapter: Adapter, names: Sequence[str]) -> Adapter:
    """The update of all other weights."""
    return only(adapter, [name for name in adapter.factors if name not in names])


def without_heads(model: HookedTransformer, adapter: Adapter, heads: Sequence[Head]) -> Adapter:
    """The update without what it does to some heads: to their queries, keys, values and outputs.

    Keys and values that a head shares with others are taken from all of them.
    """
    factors = {}
    for name, (a, b) in adapter.factors.items():
        layer, matrix = int(name.split(".")[1]), name.rsplit(".", 1)[1]
        own = [head.head for head in heads if head.layer == layer]
        if matrix in ("W_K", "W_V"):
            shared = model.cfg.n_heads // (model.cfg.n_key_value_heads or model.cfg.n_heads)
            own = [head // shared for head in own]
        if not own or matrix not in ("W_Q", "W_K", "W_V", "W_O"):
            factors[name] = Factors(a, b)
            continue
        width = model.cfg.d_head
        gone = torch.cat([torch.arange(head * width, (head + 1) * width) for head in sorted(set(own))])
        a, b = (a.detach().clone(), b.detach().clone())
        if matrix == "W_O":  # Its inputs are what heads put out.
            a[:, gone.to(a.device)] = 0
        else:
            b[gone.to(b.device)] = 0
        factors[name] = Factors(a, b)
    return Adapter(factors=factors, scale=adapter.scale)


def random_like(adapter: Adapter, *, seed: int, draw: int) -> Adapter:
    """Updates drawn at random, each of the rank and the Frobenius norm of the one in whose place it stands."""
    generator, factors = open_stream(seed, Stream.RANDOM_UPDATES, draw), {}
    for name, own in adapter.factors.items():
        a, b = (
            torch.from_numpy(generator.standard_normal(tuple(part.shape))).to(part.device, part.dtype) for part in own
        )
        drawn = update_norm(Factors(a, b))
        factors[name] = Factors(a, b * (update_norm(own) / drawn if drawn else 0.0))
    return Adapter(factors=factors, scale=adapter.scale)


def update_norm(factors: Factors) -> float:
    """Frobenius norm of `B A`, which is not made for it."""
    a, b = (part.detach().double() for part in factors)
    squares: Float[Tensor, "rank rank"] = (a @ a.T) * (b.T @ b)
    return float(squares.sum().clamp(min=0).sqrt())
