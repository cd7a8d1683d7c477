"""One transformer block, applied to many variants of a prompt's end at once.

All variants (*rows*) of a prompt attend to the keys and values of one prefix, without copies of it. Blocks of all of
HookedTransformer's causal families are covered: learned positions, rotary, ALiBi, grouped queries, sliding windows,
soft caps, parallel and gated MLPs, norms before and after.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from ivlens.forward.rows import FedHead, Rows, RowsZ, SetPart

if TYPE_CHECKING:
    from transformer_lens.components.abstract_attention import AbstractAttention as Attention
    from transformer_lens.components.transformer_block import TransformerBlock as Block


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """A batch of prompts read once: what their tails attend to, and where the tails start from."""

    keys: list[Float[Tensor, "prompt kv_head pos d_head"]]
    """Per layer, positions already rotated in."""
    values: list[Float[Tensor, "prompt kv_head pos d_head"]]
    mask: Bool[Tensor, "prompt key"]
    """Tokens of prefix and tail that are not pads."""
    positions: Int[Tensor, "prompt tail"]
    """Position ids of the tail, pads not counted."""


def attend(block: Block, layer: int, prefix: Prefix, rows: Rows, fed: FedHead | None = None) -> RowsZ:
    """Every head's output before `W_O`, for every row of every prompt; queries, say, of all heads from other rows."""
    attn, n_rows = block.attn, rows.shape[1]
    q, k, v = _project(block, rows)
    if fed is not None:
        others = dict(zip("qkv", _project(block, fed.rows), strict=True))
        q, k, v = (others[part] if part == fed.part else own for part, own in zip("qkv", (q, k, v), strict=True))
    if attn.cfg.positional_embedding_type == "rotary":
        rotations = _rotations(attn, prefix.positions)
        q, k = _rotate(q, rotations), _rotate(k, rotations)
    pattern = _scores(attn, layer, prefix, q, k, n_rows).softmax(-1)
    before, own = pattern.split([prefix.keys[layer].shape[2], rows.shape[2]], dim=-1)
    kv_heads = v.shape[2]
    from_prefix = rearrange(before, "p (kv g) r t n -> p kv (g r t) n", kv=kv_heads) @ prefix.values[layer]
    from_prefix = rearrange(from_prefix, "p kv (g r t) d -> p r t (kv g) d", r=n_rows, t=rows.shape[2])
    v = _per_query_head(rearrange(v, "p (r t) kv d -> p r t kv d", r=n_rows), attn.cfg.n_heads)
    if rows.shape[2] == 1:
        return torch.addcmul(from_prefix, rearrange(own, "p h r t 1 -> p r t h 1"), v)
    return from_prefix + torch.einsum("phrts,prshd->prthd", own, v)


def write(block: Block, rows: Rows, z: RowsZ, change: SetPart | None = None) -> Rows:
    """The residual stream after the block, given what its heads computed."""
    attn, cfg = block.attn, block.cfg

    def changed(part: str, out: Tensor) -> Tensor:
        if change is None or change.part != part:
            return out
        own = out.unflatten(1, rows.shape[1:3])
        return torch.where(change.where[:, None, :, None], change.value[:, None], own).flatten(1, 2)

    weight = attn.W_O.reshape(-1, cfg.d_model)
    attn_out = linear(rearrange(z, "p r t h d -> p (r t) (h d)"), weight.T, attn.b_O)
    resid = rearrange(rows, "p r t d -> p (r t) d")
    norm = output_norm(block)
    if norm is not None:
        attn_out = norm(attn_out)
    attn_out = changed("attn_out", attn_out)
    if cfg.attn_only:
        out = resid + attn_out
    elif cfg.parallel_attn_mlp:
        out = resid + attn_out + changed("mlp_out", block.apply_mlp(block.ln2(resid)))
    else:
        mid = resid + attn_out
        out = mid + changed("mlp_out", block.apply_mlp(mid if _norm_after(block) else block.ln2(mid)))
    return rearrange(out, "p (r t) d -> p r t d", r=rows.shape[1])


def output_norm(block: Block) -> nn.Module | None:
    """The norm that what the heads write passes before the residual stream, if any: Gemma 2 and OLMo 2 have one."""
    if block.cfg.use_normalization_before_and_after:
        return block.ln1_post
    return block.ln1 if _norm_after(block) else None


def _norm_after(block: Block) -> bool:
    """OLMo 2 and 3 normalise what attention and MLP write, not what they read."""
    return block.cfg.original_architecture in ("Olmo2ForCausalLM", "Olmo3ForCausalLM")


def _project(block: Block, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of all rows, `[prompt (row tail) head d_head]`, before any rotation."""
    attn = block.attn
    resid = rearrange(rows, "p r t d -> p (r t) d")
    normed = resid if _norm_after(block) else block.ln1(resid)
    for_queries, for_keys = _per_head_inputs(attn, normed)
    q, k, v = attn.calculate_qkv_matrices(for_queries, for_keys, for_keys)
    if attn.q_norm is not None and attn.k_norm is not None and not attn.cfg.use_qk_norm:
        # OLMo normalises all heads together.
        q = attn.q_norm(q.flatten(2)).reshape(q.shape)
        k = attn.k_norm(k.flatten(2)).reshape(k.shape)
    clip = getattr(attn.cfg, "clip_qkv", None)
    if clip is not None:
        q, k, v = (heads.clamp(-clip, clip) for heads in (q, k, v))
    return q, k, v


def _per_head_inputs(attn: Attention, normed: Float[Tensor, "p rt d_model"]) -> tuple[Tensor, Tensor]:
    """What queries, and keys and values, are computed from: one for each head where a flag that users set asks so."""
    cfg = attn.cfg
    if not (cfg.use_split_qkv_input or cfg.use_attn_in):
        return normed, normed
    grouped = cfg.n_key_value_heads is not None and not cfg.ungroup_grouped_query_attention
    n_kv_heads = cfg.n_key_value_heads if grouped else cfg.n_heads
    return tuple(normed[:, :, None].expand(-1, -1, n, -1) for n in (cfg.n_heads, n_kv_heads))  # pyright: ignore


def _per_query_head(heads: Float[Tensor, "p r t kv d"], n_heads: int) -> Float[Tensor, "p r t h d"]:
    groups = n_heads // heads.shape[3]
    return heads if groups == 1 else heads.repeat_interleave(groups, dim=3)


def _rotations(attn: Attention, positions: Int[Tensor, "p t"]) -> Float[Tensor, "p t d_head d_head"]:
    """What rotary embedding multiplies heads with at given positions: TransformerLens' own only knows consecutive ones.

    A product with it passes all rows once, where sums of turned copies pass them ten times.
    """
    dim = attn.cfg.rotary_dim
    cos, sin = attn.rotary_cos[positions, None], attn.rotary_sin[positions, None]
    units = torch.eye(attn.cfg.d_head, dtype=cos.dtype, device=cos.device)
    turned = units[:dim, :dim] * cos + attn.rotate_every_two(units[:dim, :dim]) * sin
    whole = units.repeat(*positions.shape, 1, 1)
    whole[..., :dim, :dim] = turned
    return whole


def _rotate(heads: Float[Tensor, "p rt h d"], rotations: Float[Tensor, "p t d d"]) -> Float[Tensor, "p rt h d"]:
    tail = rotations.shape[1]
    by_token = rearrange(heads, "p (r t) h d -> p t (r h) d", t=tail)
    return rearrange(by_token @ rotations.to(heads.dtype), "p t (r h) d -> p (r t) h d", h=heads.shape[2])


def _scores(
    attn: Attention, layer: int, prefix: Prefix, q: Tensor, k: Tensor, n_rows: int
) -> Float[Tensor, "p h r t key"]:
    """Attention scores of every row to the prefix and to its own tail, masked."""
    kv_heads, tail = k.shape[2], k.shape[1] // n_rows
    to_prefix = rearrange(q, "p rt (kv g) d -> p kv (g rt) d", kv=kv_heads) @ prefix.keys[layer].transpose(-1, -2)
    to_prefix = rearrange(to_prefix, "p kv (g r t) n -> p (kv g) r t n", r=n_rows, t=tail)
    q = rearrange(q, "p (r t) h d -> p r t h d", r=n_rows)
    k = _per_query_head(rearrange(k, "p (r t) kv d -> p r t kv d", r=n_rows), attn.cfg.n_heads)
    if tail == 1:
        to_own = rearrange((q * k).sum(-1), "p r t h -> p h r t 1")
    else:
        to_own = torch.einsum("prthd,prshd->phrts", q, k)
    scores = torch.cat([to_prefix, to_own], dim=-1) / attn.attn_scale
    cap = attn.cfg.attn_scores_soft_cap
    if cap > 0:
        scores = cap * torch.tanh(scores / cap)
    distance = _distance(prefix, tail)
    if attn.cfg.positional_embedding_type == "alibi":
        scores = scores - _alibi_slopes(attn)[:, None, None, None] * distance
    return scores.masked_fill(~_visible(attn, prefix, distance), -torch.inf)


def _distance(prefix: Prefix, tail: int) -> Int[Tensor, "tail key"]:
    """How many columns back each key is from each tail token."""
    column = torch.arange(prefix.mask.shape[1], device=prefix.mask.device)
    return column[-tail:, None] - column


def _visible(attn: Attention, prefix: Prefix, distance: Int[Tensor, "tail key"]) -> Bool[Tensor, "p 1 1 tail key"]:
    visible = distance >= 0
    if attn.attn_type == "local" and attn.cfg.window_size is not None:
        visible = visible & (distance < attn.cfg.window_size)
    return visible & prefix.mask[:, None, None, None]


def _alibi_slopes(attn: Attention) -> Float[Tensor, " head"]:
    return attn.create_alibi_multipliers(attn.cfg.n_heads, attn.cfg.device)
