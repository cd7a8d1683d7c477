"""How is an adapter computed while it is attached, and its weights stay as they are?

In a HookedTransformer, in two ways. Whoever reads a weight gets `W + scale * B A`, bit for bit what merging makes of it
(a parametrization of PyTorch). While an adapter is trained, which is while its factors ask for gradients, a layer of
the model itself computes `x W + scale * (x A) B`: neither the sum is made nor its gradient, which are as large as the
weight. Both are equal to rounding.

In a TransformerBridge, by layers of PEFT around the linear layers of the model inside, with the adapter's own tensors
in them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils import parametrize

from ivlens.errors import ModelError
from ivlens.models.adapter import Adapter, Factors, update_matrix
from ivlens.models.hooked import lay_out
from ivlens.models.origin import HELD, held_by, is_bridge, model_name
from ivlens.models.weights import as_weight, component, is_adapted, locate, refuse_unreached

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


class Update(nn.Module):
    """One adapter on one weight, as a parametrization of PyTorch, or as what a layer of PEFT computes.

    >>> lora.Update(adapter, adapter.factors[name]).active
    True
    """

    def __init__(self, adapter: Adapter, factors: Factors) -> None:
        super().__init__()
        self.adapter = adapter
        # In a tuple, since factors are the adapter's parameters and not the model's.
        self.factors = factors
        self.active = True
        self.beside = False
        """Is it being added to the layer's output, so that the weight is to stay as it is?"""
        self.layers: tuple[Any, ...] = ()
        """The layer of PEFT that computes it; in a tuple, since it is no part of the update."""

    @property
    def trained(self) -> bool:
        return any(factor.requires_grad for factor in self.factors)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with the update added, in its own shape and dtype.

        >>> lora.Update(adapter, adapter.factors[name]).forward(model.blocks[0].attn.W_Q).shape  # [head d_model d_head]
        torch.Size([8, 128, 16])
        """
        return weight if self.beside or not self.active else self.added_to(weight)

    def added_to(self, weight: Tensor, module: nn.Module | None = None) -> Tensor:
        """The sum, in the shape and dtype of a weight of `module`."""
        update = as_weight(update_matrix(self.factors, self.adapter.scale), weight, module)
        # Added before it is rounded: what 16 bits would round off a small update is not lost twice.
        return (weight.to(torch.promote_types(weight.dtype, update.dtype)) + update).to(weight.dtype)

    def added_behind(
        self, out: Float[Tensor, "*batch d_out"], x: Float[Tensor, "*batch d_in"]
    ) -> Float[Tensor, "*batch d_out"]:
        """The layer's output with the update's, `scale * (x A) B`, in the output's dtype."""
        dtype = torch.promote_types(out.dtype, self.factors.A.dtype)
        a, b = (factor.to(dtype) for factor in self.factors)
        narrow = linear(x.to(dtype), a)
        added = torch.addmm(out.flatten(0, -2).to(dtype), narrow.flatten(0, -2), b.T, alpha=self.adapter.scale)
        return added.view_as(out).to(out.dtype)


def check_attachable(model: HookedTransformer, adapter: Adapter) -> None:
    """Raises ModelError where a bridge runs without an adapted layer, or PEFT, which attaches to it, is missing."""
    if not is_bridge(model):
        return
    if find_spec("peft") is None:
        raise ModelError(
            f"an adapter is attached to {model_name(model)}, a TransformerBridge, by PEFT, which is not installed; "
            "install it with pip install 'ivlens[peft]'"
        )
    refuse_unreached(model, adapter.factors)


def add(model: HookedTransformer, adapter: Adapter) -> None:
    """Attach an adapter that was checked."""
    if is_bridge(model):
        for name, factors in adapter.factors.items():
            _add_to_layer(component(model, name), Update(adapter, factors))
        return
    lay_out(model)
    for name, factors in adapter.factors.items():
        module, weight = locate(model, name)
        with _unchanged(module, weight):
            parametrize.register_parametrization(module, weight, Update(adapter, factors), unsafe=True)
        module.forward = partial(_run, module)
    _wrap_blocks(model)


def remove(model: HookedTransformer, adapter: Adapter) -> None:
    """Take an adapter off that may be attached; others stay."""
    for name in adapter.factors:
        if is_bridge(model):
            _remove_from_layer(component(model, name), adapter)
            continue
        module, weight = locate(model, name)
        chain: list[Update] = list(getattr(module.parametrizations, weight)) if is_adapted(module, weight) else []
        kept = [update for update in chain if update.adapter is not adapter]
        if len(kept) == len(chain):
            continue
        # PyTorch can only remove a whole chain.
        with _unchanged(module, weight):
            parametrize.remove_parametrizations(module, weight, leave_parametrized=False)
            for update in kept:
                parametrize.register_parametrization(module, weight, update, unsafe=True)
        if not parametrize.is_parametrized(module):
            del module.forward
    if not is_bridge(model):
        _wrap_blocks(model)


def _unchanged(module: Any, weight: str) -> AbstractContextManager[None]:
    """PyTorch sets a weight to itself where it adds or removes a parametrization: a backward pass is to go on."""
    parameter = module.parametrizations[weight].original if is_adapted(module, weight) else getattr(module, weight)
    return torch.autograd.grad_mode._unsafe_preserve_version_counter(parameter)


def updates_of(model: HookedTransformer) -> list[Update]:
    """Those that are attached, active or not."""
    if is_bridge(model):
        return [update for module in model.modules() for update in held_by(module).values()]
    return [module for module in model.modules() if isinstance(module, Update)]


def is_on(model: HookedTransformer, name: str) -> bool:
    """Is an adapter attached to this weight?"""
    if is_bridge(model):
        return bool(held_by(component(model, name)._modules["_original_component"]))
    return is_adapted(*locate(model, name))


def with_updates(weight: Tensor, layer: nn.Module) -> Tensor:
    """A weight of a bridge in TransformerLens' shape, with what a layer of PEFT adds to it."""
    for update in held_by(layer).values():
        weight = update.added_to(weight) if update.active else weight
    return weight


def set_active(states: Sequence[tuple[Update, bool]]) -> None:
    """Have updates be computed, or not."""
    for update, active in states:
        update.active = active
    for layer in {layer for update, _ in states for layer in update.layers}:
        _follow(layer)


def _wrap_blocks(model: HookedTransformer) -> None:
    for block in model.blocks:
        if any(parametrize.is_parametrized(module) for module in block.children()):
            block.forward = partial(_run_block, block)
        else:
            vars(block).pop("forward", None)


def _run_block(block: Any, *args: Any, **kwargs: Any) -> Tensor:
    """A block's forward pass, in which queries, keys and values are normalised once, and not three times over."""
    norm, kept = block.ln1, list[Tensor]()

    def normalise(x: Tensor) -> Tensor:
        if not kept or kept[0] is not x:
            kept[:] = [x, type(norm).forward(norm, x)]
        return kept[1]

    norm.forward = normalise
    try:
        return type(block).forward(block, *args, **kwargs)
    finally:
        del norm.forward


def _run(module: Any, *args: Any, **kwargs: Any) -> Tensor:
    """A layer's forward pass, with the updates beside its weights where one of them is trained."""
    chains = {name.removeprefix("_"): list(chain) for name, chain in module.parametrizations.items()}
    if not any(update.trained for chain in chains.values() for update in chain) or _is_split(module.cfg):
        return type(module).forward(module, *args, **kwargs)
    active = {name: [update for update in chain if update.active] for name, chain in chains.items()}
    everything = [update for chain in active.values() for update in chain]
    with ExitStack() as stack:
        for update in everything:
            update.beside = True
            stack.callback(setattr, update, "beside", False)
        return _run_beside(module, active, stack, *args, **kwargs)


_signature = cache(inspect.signature)  # Every layer of every step asks for it.


def _is_split(cfg: Any) -> bool:
    """Does a user's flag have the model multiply head by head? Then weights are sums."""
    return cfg.use_split_qkv_input or cfg.use_attn_in or cfg.use_attn_result or cfg.ungroup_grouped_query_attention


def _run_beside(
    module: Any, updates: Mapping[str, Sequence[Update]], stack: ExitStack, *args: Any, **kwargs: Any
) -> Tensor:
    """Add what the updates write where the layer has what its weights do, before any hook sees that."""
    bound = _signature(type(module).forward).bind(module, *args, **kwargs).arguments
    for name, (point, read) in _places(module).items():
        if updates.get(name):
            before = partial(_add_before_hooks, updates[name], bound[read])
            stack.callback(getattr(module, point).register_forward_pre_hook(before).remove)
    (last, point), kept = ("W_O", "hook_z") if hasattr(module, "hook_z") else ("W_out", "hook_post"), []
    if updates.get(last):
        # Behind all other hooks: the layer reads what they make of it.
        keep = getattr(module, point).register_forward_hook(lambda point, args, out: kept.append(out))
        stack.callback(keep.remove)
    out = type(module).forward(module, *args, **kwargs)
    for update in updates.get(last, ()):
        out = update.added_behind(out, kept[0].flatten(2) if last == "W_O" else kept[0])
    return out


def _places(module: Any) -> dict[str, tuple[str, str]]:
    """By weight: the hook point that has its output, and the argument that has its input."""
    if hasattr(module, "hook_z"):
        inputs = {"q": "query", "k": "key", "v": "value"}
        return {f"W_{part.upper()}": (f"hook_{part}", f"{name}_input") for part, name in inputs.items()}
    if hasattr(module, "W_gate"):
        return {"W_gate": ("hook_pre", "x"), "W_in": ("hook_pre_linear", "x")}
    return {"W_in": ("hook_pre", "x")}


def _add_before_hooks(updates: Sequence[Update], x: Tensor, point: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    (out,) = args
    for update in updates:
        out = update.added_behind(out.flatten(2), x).view_as(out)
    return (out,)


def _add_to_layer(wrapper: Any, update: Update) -> None:
    """Have a layer of PEFT, a new one where there is none, compute an update with the adapter's own factors."""
    import peft

    layer, (a, b) = wrapper._original_component, update.factors
    held = held_by(layer)
    key = f"update_{1 + max((int(name.rpartition('_')[2]) for name in held), default=0)}"
    config = peft.LoraConfig(
        r=len(a),
        lora_alpha=len(a),
        target_modules=["layer"],
        init_lora_weights=False,
        fan_in_fan_out=not isinstance(getattr(layer, "base_layer", layer), nn.Linear),
    )
    holder = nn.Module()
    holder.layer = layer
    # Without memory, since the factors are there already.
    peft.inject_adapter_in_model(config, holder, adapter_name=key, low_cpu_mem_usage=True)
    layer = holder.layer
    for part, factor in (("lora_A", a), ("lora_B", b)):
        own = getattr(layer, part)[key]
        # No parameter of the model's: it would be saved, digested and cast with it.
        del own.weight
        own.weight = factor
    layer.scaling[key] = update.adapter.scale
    update.layers = (layer,)
    vars(layer)[HELD] = {**held, key: update}
    _follow(layer)
    wrapper._modules["_original_component"] = layer


def _remove_from_layer(wrapper: Any, adapter: Adapter) -> None:
    layer = wrapper._original_component
    held = held_by(layer)
    taken = [key for key, update in held.items() if update.adapter is adapter]
    for key in taken:
        held[key].active = False
        _follow(layer)
        layer.delete_adapter(key)
        del held[key]
    if taken and not held:
        wrapper._modules["_original_component"] = layer.base_layer


def _follow(layer: Any) -> None:
    """Have a layer of PEFT compute the active ones of its updates."""
    layer.set_adapter([key for key, update in held_by(layer).items() if update.active], inference_mode=True)
