"""What is a block of transformers given beside the residual stream, and what of it belongs to rows?"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache

from ivlens.errors import ModelError


def named_inputs(block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """The residual stream, and everything else by the names of the block's own parameters."""
    names = inspect.signature(block.original_component.forward).parameters  # pyright: ignore
    named = {**dict(zip(names, args)), **kwargs}
    return named.pop(next(iter(names))), named


def finite_mask(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A hook: masks of a block in float64 get numbers that float32 can hold."""
    lowest = torch.finfo(torch.float32).min

    def clamp(value: Any) -> Any:
        is_mask = isinstance(value, Tensor) and value.dim() == 4 and value.dtype == torch.float64
        return value.clamp(min=lowest) if is_mask else value

    return tuple(map(clamp, args)), {name: clamp(value) for name, value in kwargs.items()}


@dataclass(kw_only=True)
class BlockInputs:
    """What one block was given when prompts were read, of `width` columns, the last `tail` of which rows vary."""

    named: dict[str, Any]
    cache: DynamicCache
    layer: int
    tail: int
    width: int
    replayed: Float[Tensor, "prompt pos d_model"] | None = None
    """The residual stream of the prefix, where the block keeps no keys and values of it."""
    _prefix: tuple[Tensor, Tensor] | None = None
    _made: dict[int, dict[str, Any]] = field(default_factory=dict)

    def keep_prefix(self, hidden: Float[Tensor, "prompt pos d_model"]) -> None:
        """Call when the block has run."""
        layers, prefix = self.cache.layers, self.width - self.tail
        if self.layer < len(layers) and layers[self.layer].get_seq_length() == self.width:
            kept = layers[self.layer]
            self._prefix = kept.keys[:, :, :prefix].contiguous(), kept.values[:, :, :prefix].contiguous()
        else:
            self.replayed = hidden[:, :prefix]

    @contextmanager
    def cached(self) -> Iterator[None]:
        """The cache holds the prefix, for a pass of the block."""
        if self._prefix is not None:
            kept = self.cache.layers[self.layer]
            kept.keys, kept.values = self._prefix
        yield

    def of_rows(self, n_rows: int) -> dict[str, Any]:
        """The same for the tokens of so many rows."""
        if n_rows not in self._made:
            self._made = {n_rows: {name: self._of_rows(name, value, n_rows) for name, value in self.named.items()}}
        return self._made[n_rows]

    def _of_rows(self, name: str, value: Any, n_rows: int) -> Any:
        if isinstance(value, tuple) and all(isinstance(one, Tensor) for one in value):
            return tuple(self._of_rows(name, one, n_rows) for one in value)
        if name == "attention_mask":
            return self._mask_of_rows(value, n_rows)
        if not isinstance(value, Tensor) or value.dim() == 0:
            return value
        axis = {"alibi": -1, "position_bias": -1, "position_ids": -1, "cache_position": 0, "position_embeddings": -2}
        along = axis.get(name, 1)
        if value.shape[along] != self.width:
            raise ModelError(
                f"block {self.layer} is given {name} of shape {tuple(value.shape)}, which ivlens cannot give to "
                "variants of a token; use ivlens.patching.sweep.loop"
            )
        with_prefix = (along == -1 and name != "position_ids") or self.replayed is not None
        return value.index_select(along, self._columns(n_rows, with_prefix=with_prefix).to(value.device))

    def _columns(self, n_rows: int, *, with_prefix: bool) -> Tensor:
        prefix = self.width - self.tail
        own = torch.arange(prefix, self.width).repeat(n_rows)
        return torch.cat([torch.arange(prefix), own]) if with_prefix else own

    def _mask_of_rows(self, mask: Tensor | None, n_rows: int) -> Tensor:
        """Every row sees of the prefix what its token saw, and of the rows its own tail as its token did."""
        prefix = self.width - self.tail
        mask = self._causal() if mask is None else mask
        if mask.dim() != 4:
            raise ModelError(
                f"block {self.layer} is given an attention_mask of shape {tuple(mask.shape)}, not of tokens by tokens; "
                "load the Hugging Face model with attn_implementation='eager'"
            )
        hidden = (
            False
            if mask.dtype == torch.bool
            else torch.finfo(mask.dtype if mask.dtype != torch.float64 else torch.float32).min
        )
        before = mask[:, :, prefix:, :prefix].repeat(1, 1, n_rows, 1)
        own = torch.full(
            (*mask.shape[:2], n_rows, self.tail, n_rows, self.tail), hidden, dtype=mask.dtype, device=mask.device
        )
        each = torch.arange(n_rows, device=mask.device)
        own[:, :, each, :, each] = mask[:, :, prefix:, prefix:]
        rows = torch.cat([before, own.flatten(4, 5).flatten(2, 3)], dim=-1)
        if self.replayed is None:
            return rows
        above = torch.full((*mask.shape[:2], prefix, n_rows * self.tail), hidden, dtype=mask.dtype, device=mask.device)
        return torch.cat([torch.cat([mask[:, :, :prefix, :prefix], above], dim=-1), rows], dim=2)

    def _causal(self) -> Tensor:
        return torch.ones(1, 1, self.width, self.width, dtype=torch.bool).tril()
