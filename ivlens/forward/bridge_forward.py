"""How is a TransformerBridge run, TransformerLens' wrapper of transformers' own layers?

Its blocks take sequences, not rows. So rows are further tokens of one sequence behind the prompt's keys and values,
each with the position of the token that it is a variant of, and a mask that shows it the prompt and its own tail, but
no other row. What a block was given for those tokens when the prompt was read (mask, positions, rotations, biases) says
all of that, whatever the architecture: rows take the columns of their tokens from it (see `block_inputs`).

An attention that counts columns by itself (GPT-Neo's window, MPT's biases) cannot be told where a row stands. It comes
out in a trial, and rows are sequences of their own then, each behind a copy of the prompt's keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ivlens.errors import ModelError
from ivlens.forward.block_inputs import BlockInputs, changing, named_inputs
from ivlens.forward.output_path import OutputPath, at_points, check_parts, head_points, output_path
from ivlens.forward.rows import (
    AllSeen,
    Change,
    FedHead,
    Logits,
    OneOrAll,
    Readout,
    Replaced,
    Rows,
    SetHeads,
    Tail,
    check_finite,
    compare_with_model,
)
from ivlens.forward.token_batches import with_answers
from ivlens.forward.unembedding import is_rounding, product_in_float32
from ivlens.models import bridge as bridges
from ivlens.prompts.tokens import Tokens

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import DynamicCache

# Of rows that pass a block together: each computes scores with all of them.
TOKENS_TOGETHER = 128


class _Trial(NamedTuple):
    """What came of carrying unchanged rows of one prompt."""

    hooks: int
    """Digest of the modules and hooks that were there: others may tell rows of one sequence apart."""
    prefix: int
    tail: int
    """Columns up to which it was tried."""
    in_one_sequence: bool


_TRIED: WeakKeyDictionary[nn.Module, _Trial] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class BridgeReading:
    """See `rows.Reading`."""

    bridge: TransformerBridge
    mask: Bool[Tensor, "prompt key"]
    start: Tail
    final: Tail
    inputs: list[BlockInputs]
    """What each block was given beside the residual stream."""
    in_one_sequence: bool
    """Whether rows are tokens of one sequence, or sequences of their own."""

    def carry(self, layer: int, rows: OneOrAll, change: Change | None = None) -> Rows:
        if isinstance(change, Replaced | SetHeads | FedHead):
            rows = rows.expand(-1, change.n_rows, -1, -1)
        size = max(1, TOKENS_TOGETHER // rows.shape[2])
        out: Tensor | None = None
        for first in range(0, rows.shape[1], size):
            part = slice(first, first + size)
            found = self._carry(layer, rows[:, part], None if change is None else change.of_rows(part))
            # On the device of the layer, which may be another one than that before.
            out = found.new_empty(rows.shape) if out is None else out
            out[:, part] = found
        assert out is not None
        return out

    def _carry(self, layer: int, rows: Rows, change: Change | None) -> Rows:
        if isinstance(change, FedHead):
            change = self._heard(layer, rows, change)
        return self._pass(layer, rows, partial(changing, self.bridge, layer, change))

    def _heard(self, layer: int, rows: Rows, fed: FedHead) -> SetHeads:
        """What a head makes of what it is fed: one pass, of the other rows, shows it, and one of these is given it."""
        points, n_heads = head_points(layer), self.bridge.cfg.n_heads
        told: list[Tensor] = []
        z: list[Tensor] = []

        def listening(of_tails: Callable[[Tensor], Tensor]) -> AbstractContextManager[None]:
            def hear(found: Tensor) -> None:
                z.append(of_tails(found.reshape(*found.shape[:2], n_heads, -1)))

            return at_points(self.bridge, {points[fed.part]: lambda own: told[0], points["z"]: hear})

        self._pass(layer, fed.rows, lambda _: at_points(self.bridge, {points[fed.part]: told.append}))
        self._pass(layer, rows, listening)
        where = torch.arange(n_heads, device=rows.device) == fed.head
        return SetHeads(where.expand(1, *rows.shape[1:3], n_heads), z[0])

    def _pass(
        self, layer: int, rows: Rows, edited: Callable[[Callable[[Tensor], Tensor]], AbstractContextManager[None]]
    ) -> Rows:
        """Rows through a block, under what `edited` makes of the view of their tokens."""
        inputs, (n_prompts, n_rows, tail, _) = self.inputs[layer], rows.shape
        form = inputs.in_one_sequence(n_rows) if self.in_one_sequence else inputs.side_by_side(n_prompts, n_rows)
        behind = rows.flatten(1, 2) if self.in_one_sequence else rows.flatten(0, 1)
        skipped = 0 if form.replayed is None else form.replayed.shape[1]
        if form.replayed is not None:
            behind = torch.cat([form.replayed, behind.to(form.replayed.device)], dim=1)

        def of_tails(tokens: Tensor) -> Tensor:
            own = tokens[:, skipped:]
            return own.unflatten(1, (n_rows, tail)) if self.in_one_sequence else own.unflatten(0, (n_prompts, n_rows))

        with edited(of_tails), inputs.cached(form):
            out = self.bridge.blocks[layer](behind, **form.named)
        return of_tails(out[0] if isinstance(out, tuple) else out)


def _longest(tokens: Tokens) -> Tokens:
    """One of the longest prompts, with all columns of the others: what stands before the tail comes first."""
    row = int((tokens.mask.sum(1) * tokens.answers.shape[1] + tokens.answer_mask.sum(1)).argmax())
    return Tokens(**{one.name: getattr(tokens, one.name)[row : row + 1] for one in fields(tokens)})


class BridgeForward:
    """See `rows.Forward`."""

    others_seen = TOKENS_TOGETHER

    def __init__(self, bridge: TransformerBridge) -> None:
        self._bridge = bridge
        self.entrance: nn.Module = bridge.original_model

    @property
    def precision(self) -> torch.dtype:
        # Norms and softmax are float32 in most of transformers' models, whatever their weights are.
        return torch.float32 if self._bridge.cfg.dtype == torch.float64 else self._bridge.cfg.dtype

    def read(self, tokens: Tokens) -> BridgeReading:
        """See `rows.Forward`."""
        bridges.check_bridge(self._bridge)
        tail, hooks, tried = tokens.answers.shape[1], self._digest_hooks(), _TRIED.get(self._bridge)
        prefix = tokens.prompts.shape[1] - 1
        if tried is None or tried.hooks != hooks:
            tried = _Trial(hooks, -1, 0, True)
        # What counts columns by itself may do so from some width on.
        if tried.in_one_sequence and (prefix > tried.prefix or tail > tried.tail):
            passed = self._try_rows(_longest(tokens))
            tried = _TRIED[self._bridge] = _Trial(hooks, max(prefix, tried.prefix), max(tail, tried.tail), passed)
        return self._read(tokens, in_one_sequence=tried.in_one_sequence)

    def _digest_hooks(self) -> int:
        # A hook's number is given once in a process.
        return hash(
            tuple((id(one), *one._forward_pre_hooks, None, *one._forward_hooks) for one in self._bridge.modules())
        )

    @torch.no_grad()
    def _try_rows(self, tokens: Tokens) -> bool:
        """Carry unchanged rows of one prompt: do many in one sequence, first and last, come out as the model has it?"""
        # Whatever an attention makes of inputs that are not what it counts on.
        failures = (ModelError, RuntimeError, ValueError, IndexError)
        try:
            self._carry_unchanged(tokens, n_rows=TOKENS_TOGETHER // tokens.answers.shape[1], in_one_sequence=True)
        except failures:
            try:
                self._carry_unchanged(tokens, n_rows=2, in_one_sequence=False)
            except failures as error:
                name = f"{self._bridge.cfg.model_name} ({self._bridge.cfg.architecture})"
                raise ModelError(f"variants of a prompt's end cannot pass the blocks of {name}: {error}") from error
            return False
        return True

    def _carry_unchanged(self, tokens: Tokens, *, n_rows: int, in_one_sequence: bool) -> None:
        reading = self._read(tokens, in_one_sequence=in_one_sequence)
        rows = reading.start[:, None].expand(-1, max(1, n_rows), -1, -1)
        for layer in range(len(reading.inputs)):
            rows = reading.carry(layer, rows)
            check_finite(rows, layer)
        for row in (0, -1):
            compare_with_model(self, reading, rows[:, row])

    def _read(self, tokens: Tokens, *, in_one_sequence: bool) -> BridgeReading:
        from transformers import DynamicCache

        ids, mask = with_answers(tokens)
        tail, cache = tokens.answers.shape[1], DynamicCache()
        inputs: list[BlockInputs] = []
        hidden: list[Tensor] = []

        def keep(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            resid, named = named_inputs(block, args, kwargs)
            hidden.append(resid)
            inputs.append(BlockInputs(named=named, cache=cache, layer=len(inputs), tail=tail, width=ids.shape[1]))

        with ExitStack() as stack:
            for block in self._bridge.blocks:
                stack.callback(block.register_forward_pre_hook(keep, with_kwargs=True).remove)
            final = self._final(ids, mask, cache)
        for resid, own in zip(hidden, inputs, strict=True):
            own.keep_prefix(resid)
        return BridgeReading(
            bridge=self._bridge,
            mask=mask,
            start=hidden[0][:, -tail:].clone(),
            final=final[:, -tail:].clone(),
            inputs=inputs,
            in_one_sequence=in_one_sequence,
        )

    def unembed(self, resid: Float[Tensor, "*batch d_model"]) -> Logits:
        bridge, flat = self._bridge, resid.reshape(1, -1, resid.shape[-1])
        head = bridge.unembed.original_component
        if type(head) is nn.Linear and is_rounding(head.weight):
            normed = bridge.unembed.hook_in(bridges.final_norm(bridge, flat))
            logits = bridge.unembed.hook_out(product_in_float32(normed, head.weight.T, head.bias))
            return bridges.scaled_logits(bridge, logits).reshape(*resid.shape[:-1], -1)
        return bridges.unembed(bridge, flat).reshape(*resid.shape[:-1], -1)

    def last_logits(self, ids: Tensor, mask: Tensor, n: int) -> Float[Tensor, "prompt n vocab"]:
        return self.unembed(self._final(ids, mask)[:, -n:]).to(ids.device)

    def read_on(self, ids: Tensor, mask: Tensor, cache: Any) -> tuple[Float[Tensor, "row vocab"], Any]:
        from transformers import DynamicCache

        cache = DynamicCache() if cache is None else cache
        return self.unembed(self._final(ids, mask, cache)[:, -1]).to(ids.device), cache

    def read_behind(self, beginning: Tensor, ends: Tensor, places: Tensor) -> None:
        """Not all of transformers' models read several tokens behind a cache (Falcon with ALiBi does not)."""

    def keep_rows(self, cache: Any, rows: Int[Tensor, " row"]) -> None:
        cache.batch_select_indices(rows.cpu())  # Layers may lie on several devices.

    def _final(self, ids: Tensor, mask: Tensor, cache: DynamicCache | None = None) -> Float[Tensor, "prompt pos d"]:
        """The residual stream after the last block: of most tokens no logits are wanted."""
        found: list[Tensor] = []

        def leave(block: nn.Module, args: Any, out: Any) -> None:
            found.append(out[0] if isinstance(out, tuple) else out)
            raise AllSeen

        options: dict[str, Any] = {} if cache is None else {"past_key_values": cache, "use_cache": True}
        handle = self._bridge.blocks[-1].register_forward_hook(leave)
        try:
            with bridges.finite_masks(self._bridge), suppress(AllSeen):
                self._bridge(ids, attention_mask=mask.long(), **options)
        finally:
            handle.remove()
        return found[0]

    def run(self, ids: Tensor, mask: Tensor, hooks: Sequence[tuple[str, Any]]) -> None:
        with bridges.finite_masks(self._bridge), suppress(AllSeen), self._bridge.hooks(fwd_hooks=list(hooks)):
            self._bridge(ids, attention_mask=mask.long())

    def output_path(self, layer: int) -> OutputPath:
        return output_path(self._bridge, layer)

    def check_parts(self, layer: int) -> None:
        check_parts(self._bridge, layer)

    def readout(self) -> Readout:
        bridge = self._bridge

        def head(normed: Tensor) -> Tensor:
            return bridges.scaled_logits(bridge, bridge.unembed(normed), capped=False)

        return Readout(lambda resid: bridges.final_norm(bridge, resid), head)
