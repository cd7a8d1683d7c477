"""By which way do a bridge's heads read the residual stream and write to it? Found by the bridge's names, and tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ivlens.checkpoints.quantised import is_quantised
from ivlens.errors import ModelError
from ivlens.models.attachment import with_updates
from ivlens.models.bridge import check_bridge, closeness
from ivlens.models.weights import as_matrix

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_PATHS: WeakKeyDictionary[nn.Module, list[float]] = WeakKeyDictionary()
# Layers of which heads came out of their queries, keys and values.
_PARTED: WeakKeyDictionary[nn.Module, set[int]] = WeakKeyDictionary()


class OutputPath(NamedTuple):
    """What heads' outputs pass on their way to the residual stream."""

    weight: Float[Tensor, "head d_head d_model"]
    norm: nn.Module | None
    """Of the sum of all heads (Gemma 2, OLMo 2)."""
    scale: float = 1.0
    """Of what is added (Granite)."""


def output_path(bridge: TransformerBridge, layer: int) -> OutputPath:
    """The way of what a layer's heads compute into the residual stream, by the bridge's own names; tried once.

    Raises:
        ModelError: what attention adds to the stream does not come out of that way.
    """
    path = _output_path(bridge, layer)
    if bridge not in _PATHS:
        _PATHS[bridge] = _path_errors(bridge)
    error = _PATHS[bridge][layer]
    if not error <= closeness(bridge):
        raise ModelError(
            f"what the heads of layer {layer} of {bridge.cfg.model_name} ({bridge.cfg.architecture}) write does not "
            f"reach the residual stream by W_O, a norm and a scale alone (off by {error:.2g} of it): it has no "
            "vectors; effects can be measured"
        )
    return path


def _output_path(bridge: TransformerBridge, layer: int) -> OutputPath:
    block = bridge.blocks[layer]
    # The name of what is added to the residual stream tells where it comes from.
    origin = block.hook_aliases.get("hook_attn_out", "attn.hook_out").split(".")[0]
    scale = getattr(block, "residual_contribution_scale", 1.0)
    weight = with_updates(_output_weight(bridge, layer), block.attn.o.original_component)
    return OutputPath(weight, None if origin == "attn" else getattr(block, origin), scale)


@torch.no_grad()
def _output_weight(bridge: TransformerBridge, layer: int) -> Float[Tensor, "head d_head d_model"]:
    """`W_O`; of quantised weights, what their module multiplies with, read off unit vectors."""
    module, cfg = bridge.blocks[layer].attn.o.original_component, bridge.cfg
    if not is_quantised(module):
        # Not TransformerLens' own W_O, which below a layer of PEFT is not turned where it should be.
        linear = getattr(module, "base_layer", module)
        return as_matrix(linear.weight.detach(), linear, "weight").unflatten(0, (cfg.n_heads, cfg.d_head))
    units = torch.eye(cfg.n_heads * cfg.d_head, dtype=cfg.dtype, device=next(module.parameters()).device)
    found = module(units) - module(torch.zeros_like(units[:1]))
    return found.unflatten(0, (cfg.n_heads, cfg.d_head))


@torch.no_grad()
def _path_errors(bridge: TransformerBridge) -> list[float]:
    """By layer, how far what heads write is from what attention adds to the stream, of the largest number there."""
    cfg, seen = bridge.cfg, {}

    def keep(activation: Tensor, hook: object, *, at: tuple[str, int]) -> None:
        seen[at] = activation.detach()

    layers = range(cfg.n_layers)
    hooks: list[Any] = [(f"blocks.{layer}.attn.hook_z", partial(keep, at=("z", layer))) for layer in layers]
    hooks += [(f"blocks.{layer}.hook_attn_out", partial(keep, at=("out", layer))) for layer in layers]
    tokens = torch.randint(cfg.d_vocab, (1, min(6, cfg.n_ctx)), generator=torch.Generator().manual_seed(0))
    with bridge.hooks(fwd_hooks=hooks):
        bridge(tokens.to(cfg.device))
    errors = []
    for layer in layers:
        weight, norm, scale = _output_path(bridge, layer)
        found = torch.einsum("bphd,hdm->bpm", seen["z", layer], weight)
        bias = bridge.blocks[layer].attn.b_O
        found = found if bias is None else found + bias
        found = scale * (found if norm is None else norm(found))
        added = seen.get(("out", layer), found * torch.nan)
        errors.append(float((found - added).abs().max() / added.abs().max()))
    return errors


def head_points(layer: int) -> dict[str, str]:
    """Where a bridge has what a layer's heads read (`q`, `k`, `v`, before norms and rotations) and compute (`z`)."""
    return {part: f"blocks.{layer}.attn.hook_{part}" for part in "qkvz"}


def check_parts(bridge: TransformerBridge, layer: int) -> None:
    """Try that what a layer's heads compute comes out of the queries, keys and values that a bridge shows; once.

    Raises:
        ModelError: it does not, or the bridge does not show them.
    """
    check_bridge(bridge)
    name = f"{bridge.cfg.model_name} ({bridge.cfg.architecture})"
    lacking = [point for point in head_points(layer).values() if point not in bridge.hook_dict]
    if lacking:
        raise ModelError(
            f"{name} has no {lacking[0]}: what its heads read cannot be told apart; ask for paths to the logits"
        )
    if layer in _PARTED.setdefault(bridge, set()):
        return
    error = _exchange_error(bridge, layer)
    if not error <= closeness(bridge):
        raise ModelError(
            f"what the heads of layer {layer} of {name} compute does not come out of the queries, keys and values that "
            f"TransformerLens shows (off by {error:.2g} of it); ask for paths to the logits"
        )
    _PARTED[bridge].add(layer)


@torch.no_grad()
def _exchange_error(bridge: TransformerBridge, layer: int) -> float:
    """How far heads that are given another prompt's queries, keys and values are from what they compute on it."""
    cfg, points, seen = bridge.cfg, head_points(layer), dict[str, Tensor]()
    tokens = torch.randint(cfg.d_vocab, (2, min(6, cfg.n_ctx)), generator=torch.Generator().manual_seed(0))

    def keep(name: str) -> Callable[[Tensor], None]:
        return partial(seen.__setitem__, name)

    def put(value: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda found: value

    with at_points(bridge, {name: keep(name) for name in points.values()}):
        bridge(tokens.to(cfg.device))
    own = seen[points["z"]]
    others = {points[part]: put(seen[points[part]].flip(0)) for part in "qkv"}
    with at_points(bridge, {**others, points["z"]: keep(points["z"])}):
        bridge(tokens.to(cfg.device))
    return float((seen[points["z"]] - own.flip(0)).abs().max() / own.abs().max())


def refuse_unreached(bridge: TransformerBridge, name: str, *, is_reached: bool) -> None:
    """Raises ModelError for a hook that a pass did not come by."""
    if not is_reached:
        raise ModelError(f"{name} of {bridge.cfg.model_name} is not reached when its block runs: it cannot be set")


@contextmanager
def at_points(bridge: TransformerBridge, edits: Mapping[str, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """Has activations of one pass seen, and replaced by what comes back, as they are: heads side by side or not.

    Raises:
        ModelError: the pass does not come by one of them.
    """
    reached: set[str] = set()

    def hook(module: nn.Module, args: Any, found: Tensor, *, name: str) -> Tensor | None:
        reached.add(name)
        return edits[name](found)

    with ExitStack() as stack:
        for name in edits:
            stack.callback(bridge.hook_dict[name].register_forward_hook(partial(hook, name=name)).remove)
        yield
    for name in edits:
        refuse_unreached(bridge, name, is_reached=name in reached)
