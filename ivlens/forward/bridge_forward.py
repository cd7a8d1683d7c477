"""How is a TransformerBridge run, TransformerLens' wrapper of transformers' own layers?

Its blocks take sequences, not rows. So rows are further tokens of one sequence behind the prompt's keys and values,
each with the position of the token that it is a variant of, and a mask that shows it the prompt and its own tail, but
no other row. What a block was given for those tokens when the prompt was read (mask, positions, rotations, biases) says
all of that, whatever the architecture: rows take the columns of their tokens from it (see `block_inputs`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import DynamicCache

from ivlens.errors import ModelError
from ivlens.forward.block_inputs import BlockInputs, finite_mask, named_inputs
from ivlens.forward.rows import Logits, OneOrAll, OutputPath, Replaced, Rows, Tail
from ivlens.forward.token_batches import with_answers
from ivlens.models.bridge import output_norm
from ivlens.prompts.tokens import Tokens

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# Of rows that pass a block together: each computes scores with all of them.
TOKENS_TOGETHER = 128


class _WasRead(Exception):
    """Thrown behind the last block: nothing else of the pass is wanted."""


@dataclass(frozen=True, kw_only=True)
class BridgeReading:
    """See `rows.Reading`."""

    bridge: TransformerBridge
    mask: Bool[Tensor, "prompt key"]
    start: Tail
    final: Tail
    inputs: list[BlockInputs]
    """What each block was given beside the residual stream."""

    def carry(self, layer: int, rows: OneOrAll, replaced: Replaced | None = None) -> Rows:
        if replaced is not None:
            rows = rows.expand(-1, len(replaced.where), -1, -1)
        size = max(1, TOKENS_TOGETHER // rows.shape[2])
        out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
        for first in range(0, rows.shape[1], size):
            part = slice(first, first + size)
            own = None if replaced is None else Replaced(replaced.where[part], replaced.z)
            out[:, part] = self._carry(layer, rows[:, part], own)
        return out

    def _carry(self, layer: int, rows: Rows, replaced: Replaced | None) -> Rows:
        inputs = self.inputs[layer]
        behind = rows.flatten(1, 2)
        n_replayed = 0 if inputs.replayed is None else inputs.replayed.shape[1]
        if inputs.replayed is not None:
            behind = torch.cat([inputs.replayed, behind], dim=1)
        with replacing(self.bridge, layer, replaced, skip=n_replayed, tail=rows.shape[2]), inputs.cached():
            out = self.bridge.blocks[layer](behind, **inputs.of_rows(rows.shape[1]))
        out = out[0] if isinstance(out, tuple) else out
        return out[:, n_replayed:].unflatten(1, rows.shape[1:3])


@contextmanager
def replacing(
    bridge: TransformerBridge, layer: int, replaced: Replaced | None, *, skip: int, tail: int
) -> Iterator[None]:
    """Replaces heads' outputs of rows that lie behind `skip` tokens, `tail` tokens each."""
    if replaced is None:
        yield
        return
    fired: list[bool] = []

    def replace(module: nn.Module, args: Any, z: Tensor) -> Tensor:
        heads = z.reshape(*z.shape[:2], *replaced.z.shape).clone()
        first = heads[:, skip::tail]
        heads[:, skip::tail] = torch.where(replaced.where[:, :, None], replaced.z.to(heads), first)
        fired.append(True)
        return heads.reshape(z.shape)

    name = f"blocks.{layer}.attn.hook_z"
    handle = bridge.hook_dict[name].register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
    if not fired:
        raise ModelError(f"{name} of {bridge.cfg.model_name} is not reached when its block runs; load the model anew")


class BridgeForward:
    """See `rows.Forward`."""

    others_seen = TOKENS_TOGETHER

    def __init__(self, bridge: TransformerBridge) -> None:
        self._bridge = bridge
        # Norms and softmax are float32 in most of transformers' models, whatever their weights are.
        self.precision: torch.dtype = torch.float32 if bridge.cfg.dtype == torch.float64 else bridge.cfg.dtype
        self.entrance: nn.Module = bridge.original_model

    def read(self, tokens: Tokens) -> BridgeReading:
        """See `rows.Forward`."""
        ids, mask = with_answers(tokens)
        tail, cache = tokens.answers.shape[1], DynamicCache()
        inputs: list[BlockInputs] = []
        starts: list[Tensor] = []

        def keep(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden, named = named_inputs(block, args, kwargs)
            starts.append(hidden)
            inputs.append(BlockInputs(named=named, cache=cache, layer=len(inputs), tail=tail, width=ids.shape[1]))

        def leave(block: nn.Module, args: Any, out: Any) -> None:
            raise _WasRead(out[0] if isinstance(out, tuple) else out)

        with self._finite_masks(), ExitStack() as stack:
            for block in self._bridge.blocks:
                stack.callback(block.register_forward_pre_hook(keep, with_kwargs=True).remove)
            stack.callback(self._bridge.blocks[-1].register_forward_hook(leave).remove)
            try:
                self._bridge(ids, attention_mask=mask.long(), past_key_values=cache, use_cache=True)
            except _WasRead as read:
                final = read.args[0]
        for layer, one in enumerate(inputs):
            one.keep_prefix(starts[layer])
        return BridgeReading(
            bridge=self._bridge,
            mask=mask,
            start=starts[0][:, -tail:].clone(),
            final=final[:, -tail:].clone(),
            inputs=inputs,
        )

    def unembed(self, resid: Float[Tensor, "*batch d_model"]) -> Logits:
        bridge, config = self._bridge, self._bridge.original_model.config.get_text_config()
        flat = resid.reshape(1, -1, resid.shape[-1])
        logits = bridge.unembed(bridge.ln_final(flat))
        logits = (
            logits * (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        )
        cap = getattr(config, "final_logit_softcapping", None)
        if cap:
            logits = cap * torch.tanh(logits / cap)
        return logits.reshape(*resid.shape[:-1], -1)

    def last_logits(self, ids: Tensor, mask: Tensor, n: int) -> Float[Tensor, "prompt n vocab"]:
        with self._finite_masks():
            return self._bridge(ids, attention_mask=mask.long())[:, -n:]

    def run(self, ids: Tensor, mask: Tensor, hooks: Sequence[tuple[str, Any]]) -> None:
        with self._finite_masks(), self._bridge.hooks(fwd_hooks=list(hooks)):
            self._bridge(ids, attention_mask=mask.long())

    def output_path(self, layer: int) -> OutputPath:
        return OutputPath(self._bridge.blocks[layer].attn.W_O.detach(), output_norm(self._bridge, layer))

    @contextmanager
    def _finite_masks(self) -> Iterator[None]:
        """In float64, transformers masks with numbers that its float32 softmax reads as minus infinity: NaN for pads."""
        with ExitStack() as stack:
            for block in self._bridge.blocks if self._bridge.cfg.dtype == torch.float64 else ():
                stack.callback(block.register_forward_pre_hook(finite_mask, with_kwargs=True).remove)
            yield
