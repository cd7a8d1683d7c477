"""Which of the tokens that a model is reading are the last of their prompts?

Answers, pads and generated tokens may stand behind a prompt, and a hook sees all of them alike. Here the passes of a
model are followed, so that what is steered is a token of the prompt, whatever is read behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ivlens.errors import IvlensError
from ivlens.forward.makers import forward_of

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

_ANSWERS: ContextVar[int] = ContextVar("answer tokens read behind the prompts", default=0)


@contextmanager
def answers_behind(n_tokens: int) -> Iterator[None]:
    """Says of the passes inside the `with` block that their last `n_tokens` columns are answers, not prompts."""
    before = _ANSWERS.set(n_tokens)
    try:
        yield
    finally:
        _ANSWERS.reset(before)


class PromptEnds:
    """Follows what a model reads, pass by pass."""

    def __init__(self, model: HookedTransformer, *, positions: Sequence[int], every_token: bool) -> None:
        self._model, self._positions, self._every_token = model, positions, every_token
        self._cached = 0
        self._mask: Tensor | None = None
        self._ids: Tensor | None = None
        self._is_generating, self._width = False, 0

    @contextmanager
    def followed(self, layer: int) -> Iterator[PromptEnds]:
        """Watch every pass inside the `with` block from block `layer` on; leaves no trace."""
        with ExitStack() as stack:
            for module, watch in self._watched(layer):
                handle = module.register_forward_pre_hook(watch, with_kwargs=True)
                stack.callback(handle.remove)
            stack.enter_context(self._generation())
            yield self

    def columns(self, n_prompts: int, width: int) -> Bool[Tensor, "prompt pos"] | None:
        """Which tokens of the running pass are steered; None where none is: only new tokens are read.

        Raises:
            IvlensError: a prompt has no token at one of the positions.
        """
        if self._cached:
            return torch.ones(n_prompts, width, dtype=torch.bool) if self._every_token else None
        own = self._not_pads(n_prompts, width)
        own[:, width - self._behind(width) :] = False
        # Pads do not count, on either side: the first token of each prompt has number 0, the last one -1.
        numbers, steered = own.cumsum(1) - 1, torch.zeros_like(own)
        for position in self._positions:
            wanted = own & (numbers == (position if position >= 0 else own.sum(1, keepdim=True) + position))
            if not bool(wanted.any(1).all()):
                shortest = int(own.sum(1).min())
                raise IvlensError(f"position is {position}, but a prompt has only {shortest} tokens; -1 is the last")
            steered |= wanted
        return steered.cumsum(1) > 0 if self._every_token else steered

    def _watched(self, layer: int) -> Iterator[tuple[torch.nn.Module, Any]]:
        def read(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found = [*args[:1], kwargs.get("input_ids")]
            self._ids = next((one for one in found if isinstance(one, Tensor) and one.dim() == 2), None)
            self._mask = _flat(kwargs.get("attention_mask"))

        def enter(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._cached = _count_cached(args, kwargs, layer)
            found = _flat(kwargs.get("attention_mask"))
            self._mask = self._mask if found is None else found

        yield forward_of(self._model).entrance, read
        yield self._model.blocks[layer], enter

    def _not_pads(self, n_prompts: int, width: int) -> Bool[Tensor, "prompt pos"]:
        shape = (n_prompts, width)
        if self._mask is not None and self._mask.shape == shape:
            return self._mask.bool().cpu()
        real = torch.ones(shape, dtype=torch.bool)
        pad = getattr(self._model.tokenizer, "pad_token_id", None)
        if self._ids is not None and self._ids.shape == shape and pad is not None:
            # Texts of unequal length that TransformerLens padded on the right, for which it makes no mask. At least
            # one text has no pad behind it: where all end in that token, it is their own.
            behind = (self._ids.cpu() != pad).flip(1).cumsum(1).flip(1) == 0
            if not bool(behind.any(1).all()):
                real &= ~behind
        return real

    def _behind(self, width: int) -> int:
        """How many columns hold no prompt."""
        if not self._is_generating:
            return _ANSWERS.get()
        # Without a cache, everything that was written so far is read again behind the prompt.
        self._width = self._width or width
        return width - self._width

    @contextmanager
    def _generation(self) -> Iterator[None]:
        """Tells passes of `model.generate` from others, for as long as the `with` block lasts."""
        generate, own = self._model.generate, vars(self._model).get("generate")

        def followed(*args: Any, **kwargs: Any) -> Any:
            self._is_generating, self._width = True, 0
            try:
                return generate(*args, **kwargs)
            finally:
                self._is_generating = False

        vars(self._model)["generate"] = followed
        try:
            yield
        finally:
            del vars(self._model)["generate"]
            if own is not None:
                vars(self._model)["generate"] = own


def _flat(mask: object) -> Tensor | None:
    """A mask of tokens; those of tokens by tokens, which transformers' layers are given, say nothing of pads here."""
    return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None


def _count_cached(args: tuple[Any, ...], kwargs: dict[str, Any], layer: int) -> int:
    """How many tokens a block finds in the key-value cache: TransformerLens' own, or in a bridge transformers'."""
    entry = kwargs.get("past_kv_cache_entry")
    if entry is not None:
        return entry.past_keys.shape[1]
    # Its name differs from version to version; GPT-2's blocks are given it by its place.
    caches = (value for value in (*args, *kwargs.values()) if hasattr(value, "get_seq_length"))
    return max((int(cache.get_seq_length(layer)) for cache in caches), default=0)
