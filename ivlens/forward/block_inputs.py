"""What is a block of transformers given beside the residual stream, what of it is of rows, and how is it changed?"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ivlens.errors import ModelError
from ivlens.forward.output_path import refuse_unreached
from ivlens.forward.rows import Replaced, SetHeads, SetPart

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import DynamicCache

# The axis of columns, by the names that transformers gives to what its blocks are given; 1 by other names.
AXES = {"alibi": -1, "position_bias": -1, "position_ids": -1, "cache_position": 0, "position_embeddings": -2}
# Of these it is the axis of keys, not of tokens.
OF_KEYS = ("alibi", "position_bias")


def named_inputs(block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """The residual stream, and everything else by the names of the block's own parameters."""
    names = inspect.signature(block.original_component.forward).parameters  # pyright: ignore
    named = {**dict(zip(names, args, strict=False)), **kwargs}
    return named.pop(next(iter(names))), named


class Form(NamedTuple):
    """What a block is given for the tokens of some rows, and what of the prefix stands before them."""

    named: dict[str, Any]
    prefix: tuple[Tensor, Tensor] | None
    replayed: Tensor | None


@dataclass(kw_only=True)
class BlockInputs:
    """What one block was given when prompts were read, of `width` columns, the last `tail` of which rows vary."""

    named: dict[str, Any]
    cache: DynamicCache
    layer: int
    tail: int
    width: int
    prefix: tuple[Tensor, Tensor] | None = None
    """Keys and values that the block keeps of the prefix."""
    replayed: Float[Tensor, "prompt pos d_model"] | None = None
    """The residual stream of the prefix, where it keeps none: it is read again with the rows."""

    def keep_prefix(self, resid: Float[Tensor, "prompt pos d_model"]) -> None:
        """Call when all blocks have run."""
        layers: list[Any] = list(self.cache.layers)
        prefix = self.width - self.tail
        if self.layer < len(layers) and layers[self.layer].get_seq_length() == self.width:
            kept = layers[self.layer]
            self.prefix = kept.keys[:, :, :prefix].contiguous(), kept.values[:, :, :prefix].contiguous()
        else:
            self.replayed = resid[:, :prefix]

    @contextmanager
    def cached(self, form: Form) -> Iterator[None]:
        """The cache holds the prefix, for one pass of the block."""
        if form.prefix is not None:
            kept: Any = self.cache.layers[self.layer]
            kept.keys, kept.values = form.prefix
        yield

    def in_one_sequence(self, n_rows: int) -> Form:
        """So many rows as tokens of one sequence."""
        named = {name: self._in_one_sequence(name, value, n_rows) for name, value in self.named.items()}
        return Form(named, self.prefix, self.replayed)

    def side_by_side(self, n_prompts: int, n_rows: int) -> Form:
        """So many rows of every prompt as sequences of their own."""
        named = {name: self._side_by_side(name, value, n_prompts, n_rows) for name, value in self.named.items()}
        prefix = None
        if self.prefix is not None:
            keys, values = self.prefix
            prefix = keys.repeat_interleave(n_rows, 0), values.repeat_interleave(n_rows, 0)
        return Form(named, prefix, None if self.replayed is None else self.replayed.repeat_interleave(n_rows, 0))

    def _in_one_sequence(self, name: str, value: Any, n_rows: int) -> Any:
        if name == "attention_mask":
            return self._mask(value, n_rows)
        if isinstance(value, tuple) and all(isinstance(one, Tensor) for one in value):
            return tuple(self._in_one_sequence(name, one, n_rows) for one in value)
        if not isinstance(value, Tensor) or value.dim() == 0:
            return value
        along = self._axis(name, value)
        with_prefix = name in OF_KEYS or self.replayed is not None
        return value.index_select(along, self._columns(n_rows, with_prefix=with_prefix).to(value.device))

    def _axis(self, name: str, value: Tensor) -> int:
        axis = AXES.get(name, 1)
        if (value.dim() < 2 and axis == 1) or value.shape[axis] != self.width:
            raise ModelError(f"block {self.layer} is given {name} of shape {tuple(value.shape)}, which has no columns")
        return axis

    def _columns(self, n_rows: int, *, with_prefix: bool) -> Int[Tensor, " column"]:
        prefix = self.width - self.tail
        own = torch.arange(prefix, self.width).repeat(n_rows)
        return torch.cat([torch.arange(prefix), own]) if with_prefix else own

    def _mask(self, mask: Tensor | None, n_rows: int) -> Tensor:
        """Every row sees of the prefix what its token saw, and of the rows its own tail as its token did."""
        prefix, tail = self.width - self.tail, self.tail
        mask = self._causal() if mask is None else mask
        if mask.dim() != 4:
            raise ModelError(
                f"block {self.layer} is given an attention_mask of shape {tuple(mask.shape)}, not of tokens by tokens; "
                "load the Hugging Face model with attn_implementation='eager'"
            )
        hidden, shape = _hidden(mask), mask.shape[:2]
        own = mask.new_full((*shape, n_rows, tail, n_rows, tail), hidden)
        each = torch.arange(n_rows, device=mask.device)
        own[:, :, each, :, each] = mask[:, :, prefix:, prefix:]
        before = mask[:, :, prefix:, :prefix].repeat(1, 1, n_rows, 1)
        rows = torch.cat([before, own.flatten(4, 5).flatten(2, 3)], dim=-1)
        if self.replayed is None:
            return rows
        above = mask.new_full((*shape, prefix, n_rows * tail), hidden)
        return torch.cat([torch.cat([mask[:, :, :prefix, :prefix], above], dim=-1), rows], dim=2)

    def _causal(self) -> Bool[Tensor, "1 1 column column"]:
        return torch.ones(1, 1, self.width, self.width, dtype=torch.bool).tril()

    def _side_by_side(self, name: str, value: Any, n_prompts: int, n_rows: int) -> Any:
        if isinstance(value, tuple) and all(isinstance(one, Tensor) for one in value):
            return tuple(self._side_by_side(name, one, n_prompts, n_rows) for one in value)
        # A bias by position is the same for all prompts; its first axis is that of heads.
        if not isinstance(value, Tensor) or value.dim() == 0 or name == "position_bias":
            return value
        if self.replayed is None and name not in OF_KEYS:
            axis = -2 if name == "attention_mask" else AXES.get(name, 1)
            value = value.narrow(axis, self.width - self.tail, self.tail)
        if len(value) % n_prompts or name == "cache_position":
            return value
        # Of Bloom's biases the first axis is that of prompts and heads.
        return value.unflatten(0, (n_prompts, -1)).repeat_interleave(n_rows, 0).flatten(0, 1)


def _hidden(mask: Tensor) -> float | bool:
    """What stands in such a mask where nothing is seen."""
    if mask.dtype == torch.bool:
        return False
    return torch.finfo(torch.float32 if mask.dtype == torch.float64 else mask.dtype).min


@contextmanager
def changing(
    bridge: TransformerBridge,
    layer: int,
    change: Replaced | SetHeads | SetPart | None,
    of_tails: Callable[[Tensor], Tensor],
) -> Iterator[None]:
    """Sets what one pass of a block computes for rows; `of_tails` is the view of rows' tokens."""
    if change is None:
        yield
        return
    fired: list[bool] = []
    name = f"blocks.{layer}.{f'hook_{change.part}' if isinstance(change, SetPart) else 'attn.hook_z'}"

    def set_output(found: Tensor, hook: object) -> Tensor:
        # Of heads, some kinds of model have one axis, others two.
        unit = (-1,) if isinstance(change, SetPart) else change.z.shape[-2:]
        out = found.reshape(*found.shape[:2], *unit).clone()
        _set_tails(of_tails(out), change)
        fired.append(True)
        return out.reshape(found.shape)

    with ExitStack() as stack:
        if isinstance(change, SetPart):
            # Some are reached only where the bridge itself was given the hook (Granite).
            stack.enter_context(bridge.hooks(fwd_hooks=[(name, set_output)] if name in bridge.hook_dict else []))
        else:
            point = bridge.hook_dict[name]

            def set_z(module: nn.Module, args: Any, z: Tensor) -> Tensor:
                return set_output(z, point)

            stack.callback(point.register_forward_hook(set_z).remove)
        yield
    refuse_unreached(bridge, name, is_reached=bool(fired))


def _set_tails(own: Tensor, change: Replaced | SetHeads | SetPart) -> None:
    """Sets activations in place, `[prompt row tail ...]`."""
    if isinstance(change, Replaced):
        own, where, value = own[:, :, 0], change.where[:, :, None], change.z
    elif isinstance(change, SetPart):
        where, value = change.where[:, None, :, None], change.value[:, None]
    else:
        where, value = change.where[..., None], change.z
    own.copy_(torch.where(where.to(own.device), value.to(own), own))
