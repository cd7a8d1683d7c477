"""What does a model compute at a site: a head, attention, MLP, a whole layer, or the residual stream?

Sites have TransformerLens' names, but for `heads` (`attn.hook_z`, before `W_O`) and `layer_out`: what a block adds to
the residual stream, attention and MLP together. `attn_out` and `mlp_out` are what is added, too, behind any norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from ivlens.errors import IvlensError, ModelError, list_choices
from ivlens.forward.makers import forward_of
from ivlens.forward.memory import count_at_once
from ivlens.forward.token_batches import batches, shortest_first
from ivlens.models import bridge
from ivlens.models.hooked import model_name
from ivlens.prompts.tokens import Tokens

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Site = Literal["heads", "attn_out", "mlp_out", "layer_out", "resid_pre", "resid_post"]
SITES: tuple[Site, ...] = get_args(Site)
HOOKS: dict[Site, tuple[str, ...]] = {
    "heads": ("attn.hook_z",),
    "attn_out": ("hook_attn_out",),
    "mlp_out": ("hook_mlp_out",),
    "layer_out": ("hook_resid_pre", "hook_resid_post"),
    "resid_pre": ("hook_resid_pre",),
    "resid_post": ("hook_resid_post",),
}
"""Where a site is read; of two hooks, it is what the second has more than the first."""
# Of each prompt, of its tokens that are asked for, in their order; 0 behind the last. A head's `d_head`, or `d_model`.
Values = Float[Tensor, "prompt layer place *unit"]
Given = Float[Tensor, "#prompt layer #place *unit"]
"""Also one of all prompts, or of all tokens."""


def check_site(model: HookedTransformer, site: str) -> None:
    """Refuse a site that there is not, or that a model has not.

    Raises:
        IvlensError: there is no such site.
        ModelError: the model has no MLP.
    """
    if site not in SITES:
        raise IvlensError(f"site is {site!r}; {list_choices(site, SITES, lead='it must be one of')}")
    bridge.check_bridge(model)
    if site == "mlp_out" and model.cfg.attn_only:
        raise ModelError(f"{model_name(model)} has no MLP; choose another site")


def mean_values(
    model: HookedTransformer, tokens: Tokens, where: Bool[Tensor, "prompt pos"], site: Site
) -> Float[Tensor, "1 layer 1 *unit"]:
    """The mean over prompts of the mean over each one's tokens, as of a single prompt and token.

    Raises:
        ModelError: an activation is NaN or infinite, or the model does not compute the site where it is looked for.
    """
    total: Tensor | None = None
    start, order = 0, shortest_first(tokens)
    tokens, where = tokens[order], where[order.to(where.device)]
    where = where[:, -tokens.prompts.shape[1] :]
    for batch in batches(tokens, most=count_at_once(model, tokens)):
        own = where[start : start + len(batch), -batch.prompts.shape[1] :]
        start += len(batch)
        found = _read(model, batch, own, site).double()
        means = found.sum(2) / own.sum(1).to(found.device).view(-1, *[1] * (found.dim() - 2))
        total = means.sum(0) if total is None else total + means.sum(0)
    assert total is not None
    mean = (total / len(tokens))[None, :, None]
    broken = [layer for layer in range(mean.shape[1]) if not bool(mean[:, layer].isfinite().all())]
    if broken:
        raise ModelError(
            f"{site} of layer {broken[0]} is NaN or infinite on clean prompts; load the model in another dtype, or "
            "check its weights"
        )
    return mean if model.cfg.dtype == torch.float64 else mean.float()


def at_last(tokens: Tokens) -> Bool[Tensor, "prompt pos"]:
    """The last token of every prompt."""
    last = torch.zeros_like(tokens.mask)
    last[:, -1] = True
    return last


def read_values(model: HookedTransformer, tokens: Tokens, where: Bool[Tensor, "prompt pos"], site: Site) -> Values:
    """A site at some tokens of every prompt, at all layers; on the model's device.

    Raises:
        ModelError: the model does not compute the site where it is looked for.
    """
    parts, start, places = [], 0, int(where.sum(1).max())
    for batch in batches(tokens, most=count_at_once(model, tokens)):
        found = _read(model, batch, where[start : start + len(batch), -batch.prompts.shape[1] :], site)
        start += len(batch)
        behind = found.new_zeros(*found.shape[:2], places - found.shape[2], *found.shape[3:])
        parts.append(torch.cat([found, behind], 2))
    return torch.cat(parts)


def _read(model: HookedTransformer, tokens: Tokens, where: Bool[Tensor, "prompt pos"], site: Site) -> Values:
    return read_sites(model, tokens, where, [site])[site]


@torch.no_grad()
def read_sites(
    model: HookedTransformer, tokens: Tokens, where: Bool[Tensor, "prompt pos"], sites: Sequence[Site]
) -> dict[Site, Values]:
    """Several sites in one pass; see `read_values`."""
    seen: dict[tuple[int, str], Tensor] = {}

    def keep(activation: Tensor, hook: object, *, at: tuple[int, str]) -> None:
        activation = activation.to(model.cfg.device)
        if at[1] == "attn.hook_z":  # Some kinds of model have heads side by side.
            activation = activation.reshape(*activation.shape[:2], model.cfg.n_heads, model.cfg.d_head)
        seen[at] = _gather(activation, where)

    layers, points = range(model.cfg.n_layers), {at for site in sites for at in HOOKS[site]}
    hooks: list[Any] = [(f"blocks.{n}.{at}", partial(keep, at=(n, at))) for n in layers for at in points]
    forward_of(model).run(tokens.prompts, tokens.mask, [one for one in hooks if one[0] in model.hook_dict])
    for layer, at in ((layer, at) for layer in layers for at in points if (layer, at) not in seen):
        raise ModelError(f"blocks.{layer}.{at} of {model_name(model)} is not reached when it runs; choose another site")
    by_point = {at: torch.stack([seen[layer, at] for layer in layers], 1) for at in points}
    found: dict[Site, Values] = {}
    for site in sites:
        *before, last = (by_point[at] for at in HOOKS[site])
        found[site] = last - before[0] if before else last
    return found


def _gather(
    activation: Shaped[Tensor, "prompt pos *unit"], where: Bool[Tensor, "prompt pos"]
) -> Shaped[Tensor, "prompt place *unit"]:
    """The tokens that are `where`, in their order."""
    where = where.to(activation.device)
    places = int(where.sum(1).max())
    # Stable: those that are `where` come first, in the order of columns.
    columns = where.int().argsort(dim=1, descending=True, stable=True)[:, :places]
    units = [1] * (activation.dim() - 2)
    found = activation.gather(1, columns.view(*columns.shape, *units).expand(-1, -1, *activation.shape[2:]))
    return found * where.gather(1, columns).view(*columns.shape, *units)


def spread(
    values: Shaped[Tensor, "#prompt #place *unit"], where: Bool[Tensor, "prompt pos"]
) -> Shaped[Tensor, "prompt pos *unit"]:
    """Values of one layer at the columns of the tokens that they are of; anything elsewhere."""
    number = (where.cumsum(1) - 1).clamp(min=0).clamp(max=values.shape[1] - 1)
    values = values.expand(len(where), *values.shape[1:])
    return values[torch.arange(len(where), device=values.device)[:, None], number.to(values.device)]
