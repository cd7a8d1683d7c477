"""How is a HookedTransformer run? By its own parts, which `block_forward` calls on rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ivlens.errors import ModelError
from ivlens.forward.block_forward import Prefix, attend, output_norm, write
from ivlens.forward.output_path import OutputPath
from ivlens.forward.rows import (
    AllSeen,
    Change,
    FedHead,
    Logits,
    OneOrAll,
    Readout,
    Replaced,
    Rows,
    RowsZ,
    SetHeads,
    SetPart,
    Tail,
)
from ivlens.forward.token_batches import with_answers
from ivlens.forward.unembedding import is_rounding, product_in_float32
from ivlens.prompts.tokens import Tokens

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


@dataclass(frozen=True, kw_only=True)
class HookedReading:
    """See `rows.Reading`."""

    model: HookedTransformer
    prefix: Prefix
    start: Tail
    final: Tail

    @property
    def mask(self) -> Bool[Tensor, "prompt key"]:
        return self.prefix.mask

    def carry(self, layer: int, rows: OneOrAll, change: Change | None = None) -> Rows:
        block = self.model.blocks[layer]
        if isinstance(change, FedHead):
            rows = rows.expand(-1, change.n_rows, -1, -1)
            z = attend(block, layer, self.prefix, rows)
            z[:, :, :, change.head] = attend(block, layer, self.prefix, rows, change)[:, :, :, change.head]
            return write(block, rows, z)
        z = attend(block, layer, self.prefix, rows)
        if change is None:
            return write(block, rows, z)
        if isinstance(change, SetPart):
            return write(block, rows, z, change)
        z = torch.where(change.where[..., None], change.z, z) if isinstance(change, SetHeads) else _replace(z, change)
        return write(block, rows.expand(-1, change.n_rows, -1, -1), z)


def _replace(z: Float[Tensor, "prompt #row tail head d_head"], replaced: Replaced) -> RowsZ:
    first = torch.where(replaced.where[:, :, None], replaced.z, z[:, :, 0])
    return torch.cat([first[:, :, None], z[:, :, 1:].expand(-1, len(replaced.where), -1, -1, -1)], dim=2)


def _refuse_impossible(model: HookedTransformer) -> None:
    cfg = model.cfg
    grouped = cfg.n_key_value_heads not in (None, cfg.n_heads) and not cfg.ungroup_grouped_query_attention
    if cfg.use_attn_in and grouped:
        raise ModelError(
            f"{cfg.model_name} has use_attn_in set, which TransformerLens cannot compute with grouped queries; call "
            "model.set_use_attn_in(False), or set_ungroup_grouped_query_attention(True) as well"
        )


class HookedForward:
    """See `rows.Forward`."""

    others_seen = 0

    def __init__(self, model: HookedTransformer) -> None:
        self._model = model
        self.entrance: nn.Module = model.embed

    @property
    def precision(self) -> torch.dtype:
        return self._model.cfg.dtype

    def read(self, tokens: Tokens) -> HookedReading:
        """See `rows.Forward`.

        Raises:
            ModelError: `use_attn_in` is set where TransformerLens itself cannot compute with it.
        """
        _refuse_impossible(self._model)
        model, (ids, mask) = self._model, with_answers(tokens)
        tail = tokens.answers.shape[1]
        rotary = model.cfg.positional_embedding_type == "rotary"
        keys: list[Tensor] = []
        values: list[Tensor] = []
        starts: list[Tensor] = []

        def keep(cache: list[Tensor]):
            def hook_fn(heads: Tensor, hook: object) -> None:
                cache.append(rearrange(heads[:, :-tail], "prompt pos head d -> prompt head pos d").contiguous())

            return hook_fn

        def keep_start(resid: Tensor, hook: object) -> None:
            starts.append(resid[:, -tail:].clone())

        names = [f"blocks.{layer}.attn" for layer in range(model.cfg.n_layers)]
        hooks: list[Any] = [(f"{name}.hook_{'rot_k' if rotary else 'k'}", keep(keys)) for name in names]
        hooks += [(f"{name}.hook_v", keep(values)) for name in names]
        hooks += [("blocks.0.hook_resid_pre", keep_start)]
        final = model.run_with_hooks(ids, attention_mask=mask.long(), stop_at_layer=model.cfg.n_layers, fwd_hooks=hooks)
        clip = getattr(model.cfg, "clip_qkv", None)
        prefix = Prefix(
            keys=keys,
            values=values if clip is None else [value.clamp(-clip, clip) for value in values],
            mask=mask,
            positions=(mask.cumsum(1) - 1).clamp(min=0)[:, -tail:],
        )
        return HookedReading(model=model, prefix=prefix, start=starts[0], final=final[:, -tail:].clone())

    def unembed(self, resid: Float[Tensor, "*batch d_model"]) -> Logits:
        model = self._model
        flat = resid.reshape(1, -1, resid.shape[-1])
        normed = flat if model.cfg.normalization_type is None else model.ln_final(flat)
        head = model.unembed
        logits = product_in_float32(normed, head.W_U, head.b_U) if is_rounding(head.W_U) else head(normed)
        cap = model.cfg.output_logits_soft_cap
        if cap > 0:
            logits = cap * torch.tanh(logits / cap)
        return logits.reshape(*resid.shape[:-1], -1)

    def last_logits(self, ids: Tensor, mask: Tensor, n: int) -> Float[Tensor, "prompt n vocab"]:
        resid = self._model(ids, attention_mask=mask.long(), stop_at_layer=self._model.cfg.n_layers)
        return self.unembed(resid[:, -n:])

    def read_on(self, ids: Tensor, mask: Tensor, cache: Any) -> tuple[Float[Tensor, "row vocab"], Any]:
        from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

        cfg = self._model.cfg
        if cache is None:
            cache = TransformerLensKeyValueCache.init_cache(cfg, cfg.device, len(ids))
        return self.unembed(self._read_on(ids, mask, cache)[:, -1]), cache

    def read_behind(
        self, beginning: Int[Tensor, " shared"], ends: Int[Tensor, "row pos"], places: Int[Tensor, "row place"]
    ) -> Float[Tensor, "row place vocab"]:
        _, cache = self.read_on(beginning[None], torch.ones_like(beginning)[None], None)
        self.keep_rows(cache, torch.zeros(len(ends), dtype=torch.long, device=ends.device))
        resid = self._read_on(ends, torch.ones_like(ends), cache)
        return self.unembed(resid.take_along_dim(places[:, :, None], 1))

    def _read_on(self, ids: Tensor, mask: Tensor, cache: Any) -> Tail:
        new = mask[:, -ids.shape[1] :].long()
        return self._model(ids, attention_mask=new, past_kv_cache=cache, stop_at_layer=self._model.cfg.n_layers)

    def keep_rows(self, cache: Any, rows: Int[Tensor, " row"]) -> None:
        cache.previous_attention_mask = cache.previous_attention_mask[rows]
        for entry in cache.entries:
            entry.past_keys, entry.past_values = entry.past_keys[rows], entry.past_values[rows]

    def run(self, ids: Tensor, mask: Tensor, hooks: Sequence[tuple[str, Any]]) -> None:
        last = self._model.cfg.n_layers
        with suppress(AllSeen):
            self._model.run_with_hooks(ids, attention_mask=mask.long(), stop_at_layer=last, fwd_hooks=list(hooks))

    def output_path(self, layer: int) -> OutputPath:
        block = self._model.blocks[layer]
        return OutputPath(block.attn.W_O.detach(), output_norm(block))

    def check_parts(self, layer: int) -> None:
        """Its blocks compute heads from queries, keys and values."""

    def readout(self) -> Readout:
        model = self._model
        return Readout((lambda resid: resid) if model.cfg.normalization_type is None else model.ln_final, model.unembed)
