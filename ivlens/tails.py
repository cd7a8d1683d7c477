"""What does the network make of a changed end of a prompt, when everything before it stays as it was?

Causal attention keeps a prompt's earlier positions untouched by a change at its last token. So the prompt is read
once, keys and values of its *prefix* are kept, and only the *tail* (the last prompt token, and answer tokens behind
it) is computed again, for as many variants (*rows*) as wanted, all attending to the same prefix without copies of it.

Blocks of all of HookedTransformer's causal families are covered: learned positions, rotary, ALiBi, grouped queries,
sliding windows, soft caps, parallel and gated MLPs, norms before and after. A family that is not covered cannot pass
silently: `check` compares the unpatched row with the model's own forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ivlens.activations import with_answers
from ivlens.errors import ModelError
from ivlens.prompts import Tokens

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer
    from transformer_lens.components import TransformerBlock
    from transformer_lens.components.abstract_attention import AbstractAttention

    Block = TransformerBlock
    Attention = AbstractAttention

Rows = Float[Tensor, "prompt row tail d_model"]
RowsZ = Float[Tensor, "prompt row tail head d_head"]


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
    start: Float[Tensor, "prompt tail d_model"]
    """The tail's residual stream before the first block."""
    final: Float[Tensor, "prompt tail d_model"]
    """The tail's residual stream after the last block, as the model itself computes it."""


def read(model: HookedTransformer, tokens: Tokens) -> Prefix:
    """Run prompts and answers once through the model and keep what tails need.

    The tail is as long as the longest answer: the last prompt token, and every answer token that predicts another.
    """
    ids, mask = with_answers(tokens)
    tail = tokens.answers.shape[1]
    rotary = model.cfg.positional_embedding_type == "rotary"
    keys: list[Tensor] = []
    values: list[Tensor] = []
    starts: list[Tensor] = []

    def keep(cache: list[Tensor]):  # noqa: ANN202
        def hook_fn(heads: Tensor, hook: object) -> None:
            cache.append(rearrange(heads[:, :-tail], "prompt pos head d -> prompt head pos d").contiguous())

        return hook_fn

    def keep_start(resid: Tensor, hook: object) -> None:
        starts.append(resid[:, -tail:].clone())

    names = [f"blocks.{layer}.attn" for layer in range(model.cfg.n_layers)]
    hooks = [(f"{name}.hook_{'rot_k' if rotary else 'k'}", keep(keys)) for name in names]
    hooks += [(f"{name}.hook_v", keep(values)) for name in names]
    hooks += [("blocks.0.hook_resid_pre", keep_start)]
    final = model.run_with_hooks(
        ids, attention_mask=mask.long(), stop_at_layer=model.cfg.n_layers, fwd_hooks=hooks
    )
    clip = getattr(model.cfg, "clip_qkv", None)
    return Prefix(
        keys=keys,
        values=values if clip is None else [value.clamp(-clip, clip) for value in values],
        mask=mask,
        positions=(mask.cumsum(1) - 1).clamp(min=0)[:, -tail:],
        start=starts[0],
        final=final[:, -tail:].clone(),
    )


def attend(block: Block, layer: int, prefix: Prefix, rows: Rows) -> RowsZ:
    """Every head's output before `W_O`, for every row of every prompt."""
    attn, n_rows = block.attn, rows.shape[1]
    q, k, v = _project(block, rows)
    if attn.cfg.positional_embedding_type == "rotary":
        positions = prefix.positions[:, None].expand(-1, n_rows, -1).flatten(1)
        q, k = _rotate(attn, q, positions), _rotate(attn, k, positions)
    pattern = _scores(attn, layer, prefix, q, k, n_rows).softmax(-1)
    before, own = pattern.split([prefix.keys[layer].shape[2], rows.shape[2]], dim=-1)
    kv_heads = v.shape[2]
    from_prefix = rearrange(before, "p (kv g) r t n -> p kv (g r t) n", kv=kv_heads) @ prefix.values[layer]
    from_prefix = rearrange(from_prefix, "p kv (g r t) d -> p r t (kv g) d", r=n_rows, t=rows.shape[2])
    v = _per_query_head(rearrange(v, "p (r t) kv d -> p r t kv d", r=n_rows), attn.cfg.n_heads)
    if rows.shape[2] == 1:
        return from_prefix + rearrange(own, "p h r t 1 -> p r t h 1") * v
    return from_prefix + torch.einsum("phrts,prshd->prthd", own, v)


def write(block: Block, rows: Rows, z: RowsZ) -> Rows:
    """The residual stream after the block, given what its heads computed."""
    attn, cfg = block.attn, block.cfg
    weight = attn.W_O.reshape(-1, cfg.d_model)
    attn_out = rearrange(z, "p r t h d -> p (r t) (h d)") @ weight + attn.b_O
    resid = rearrange(rows, "p r t d -> p (r t) d")
    norm_after = _norm_after(block)
    if cfg.use_normalization_before_and_after:
        attn_out = block.ln1_post(attn_out)
    if norm_after:
        attn_out = block.ln1(attn_out)
    if cfg.attn_only:
        out = resid + attn_out
    elif cfg.parallel_attn_mlp:
        out = resid + attn_out + block.apply_mlp(block.ln2(resid))
    else:
        mid = resid + attn_out
        out = mid + block.apply_mlp(mid if norm_after else block.ln2(mid))
    return rearrange(out, "p (r t) d -> p r t d", r=rows.shape[1])


def check(model: HookedTransformer, prefix: Prefix, unpatched: Float[Tensor, "prompt tail d_model"]) -> None:
    """Refuse to go on when the block-wise pass and the model's own disagree.

    Raises:
        ModelError: the residual streams differ by more than rounding; both sizes are named.
    """
    scale = float(prefix.final.abs().max())
    tail = unpatched.shape[1]
    gap = float(((unpatched - prefix.final).abs() * prefix.mask[:, -tail:, None]).max())
    # Rounding of a few hundred operations, relative to the largest number in the stream.
    tolerance = 1e3 * torch.finfo(unpatched.dtype).eps * max(scale, 1.0)
    if unpatched.dtype == torch.bfloat16 or unpatched.dtype == torch.float16:
        tolerance = 0.1 * max(scale, 1.0)
    if not gap <= tolerance:
        raise ModelError(
            f"the block-wise pass differs from the model's own by {gap:.2g} (numbers up to {scale:.2g}): the model has "
            "hooks on it, or an attention that ivlens does not know; remove the hooks with model.reset_hooks(), or use "
            "ivlens.patching.loop"
        )


def check_finite(resid: Tensor, layer: int) -> None:
    """Raises ModelError naming the layer when a residual stream is NaN or infinite."""
    if not bool(resid.isfinite().all()):
        raise ModelError(
            f"the residual stream after layer {layer} is NaN or infinite; load the model in another dtype, or check "
            "its weights"
        )


def _norm_after(block: Block) -> bool:
    """OLMo 2 and 3 normalise what attention and MLP write, not what they read."""
    return block.cfg.original_architecture in ("Olmo2ForCausalLM", "Olmo3ForCausalLM")


def _project(block: Block, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of all rows, `[prompt (row tail) head d_head]`, before any rotation."""
    attn = block.attn
    resid = rearrange(rows, "p r t d -> p (r t) d")
    normed = resid if _norm_after(block) else block.ln1(resid)
    q, k, v = attn.calculate_qkv_matrices(normed, normed, normed)
    if attn.q_norm is not None and not attn.cfg.use_qk_norm:  # OLMo: over all heads together
        q = attn.q_norm(q.flatten(2)).reshape(q.shape)
        k = attn.k_norm(k.flatten(2)).reshape(k.shape)
    clip = getattr(attn.cfg, "clip_qkv", None)
    if clip is not None:
        q, k, v = (heads.clamp(-clip, clip) for heads in (q, k, v))
    return q, k, v


def _per_query_head(heads: Float[Tensor, "p r t kv d"], n_heads: int) -> Float[Tensor, "p r t h d"]:
    groups = n_heads // heads.shape[3]
    return heads if groups == 1 else heads.repeat_interleave(groups, dim=3)


def _rotate(attn: Attention, heads: Tensor, positions: Int[Tensor, "p rt"]) -> Tensor:
    """Rotary embedding at given positions: TransformerLens' own only knows consecutive ones."""
    dim = attn.cfg.rotary_dim
    turned, rest = heads[..., :dim], heads[..., dim:]
    cos, sin = attn.rotary_cos[positions, None], attn.rotary_sin[positions, None]
    turned = turned * cos + attn.rotate_every_two(turned) * sin
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


def _scores(
    attn: Attention, layer: int, prefix: Prefix, q: Tensor, k: Tensor, n_rows: int
) -> Float[Tensor, "p h r t key"]:
    """Attention scores of every row to the prefix and to its own tail, masked."""
    kv_heads, tail = k.shape[2], k.shape[1] // n_rows
    q = q / attn.attn_scale
    to_prefix = rearrange(q, "p rt (kv g) d -> p kv (g rt) d", kv=kv_heads) @ prefix.keys[layer].transpose(-1, -2)
    to_prefix = rearrange(to_prefix, "p kv (g r t) n -> p (kv g) r t n", r=n_rows, t=tail)
    q = rearrange(q, "p (r t) h d -> p r t h d", r=n_rows)
    k = _per_query_head(rearrange(k, "p (r t) kv d -> p r t kv d", r=n_rows), attn.cfg.n_heads)
    if tail == 1:
        to_own = rearrange((q * k).sum(-1), "p r t h -> p h r t 1")
    else:
        to_own = torch.einsum("prthd,prshd->phrts", q, k)
    scores = torch.cat([to_prefix, to_own], dim=-1)
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
    if attn.attn_type == "local":
        visible = visible & (distance < attn.cfg.window_size)
    return visible & prefix.mask[:, None, None, None]


def _alibi_slopes(attn: Attention) -> Float[Tensor, " head"]:
    return attn.create_alibi_multipliers(attn.cfg.n_heads, attn.cfg.device)
