"""What does the model compute on a batch of prompts: logits at the answer, heads' outputs at the last prompt token.

Every run takes an explicit mask: TransformerLens gives pads no position and no attention only then.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ivlens.errors import ModelError, ShapeMismatch
from ivlens.forward.makers import forward_of
from ivlens.forward.memory import count_at_once
from ivlens.forward.prompt_end import answers_behind
from ivlens.forward.rows import AllSeen
from ivlens.forward.token_batches import batches, shortest_first, with_answers
from ivlens.kept_batches import keep_batch
from ivlens.measures import first_token_probability, greedy_match
from ivlens.models import bridge
from ivlens.models.hooked import model_name
from ivlens.progress import track
from ivlens.prompts.tokens import Tokens
from ivlens.shapes import Head, MeanZ

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

AnswerLogits = Float[Tensor, "prompt answer vocab"]


def unembed(model: HookedTransformer, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
    """Logits of a final residual stream, soft cap included."""
    return forward_of(model).unembed(resid)


@torch.no_grad()
def answer_logits(model: HookedTransformer, tokens: Tokens) -> AnswerLogits:
    """`differentiable_answer_logits` without gradients."""
    return differentiable_answer_logits(model, tokens)


def differentiable_answer_logits(model: HookedTransformer, tokens: Tokens) -> AnswerLogits:
    """Logits that predict each answer token, the answer so far teacher-forced.

    Position 0 is the last prompt token. Hooks on the model are in force; `steered` adds its vector there.
    """
    return differentiable_logits(model, tokens, last=tokens.answers.shape[1])


def differentiable_logits(
    model: HookedTransformer, tokens: Tokens, *, last: int | None = None
) -> Float[Tensor, "prompt place vocab"]:
    """Logits at the last so many of the tokens that `with_answers` reads, or at all of them, pads included."""
    ids, mask = with_answers(tokens)
    with answers_behind(tokens.answers.shape[1] - 1):
        return forward_of(model).last_logits(ids, mask, ids.shape[1] if last is None else last)


class Replied(NamedTuple):
    """What a model makes of a batch of prompts; on the CPU but for `best`."""

    right: Bool[Tensor, " prompt"]
    """Is the answer what greedy decoding writes?"""
    first: Float[Tensor, " prompt"]
    """Probability of the answer's first token."""
    best: Int[Tensor, "prompt answer"]
    """The most probable token at each place of the answer, which is teacher-forced up to there."""
    batch: Tokens


def reply_in_batches(model: HookedTransformer, tokens: Tokens) -> Iterator[Replied]:
    """Ask all prompts, batch by batch."""
    for batch in batches(tokens, most=count_at_once(model, tokens)):
        logits = answer_logits(model, batch)
        right = greedy_match(logits, batch.answers, batch.answer_mask).cpu()
        yield Replied(right, first_token_probability(logits, batch.answers).cpu(), logits.argmax(-1), batch)


def score_answers(model: HookedTransformer, tokens: Tokens) -> tuple[Bool[Tensor, " prompt"], Float[Tensor, " prompt"]]:
    """Is each answer what greedy decoding writes, and how probable is its first token? On the CPU."""
    found, order = [], shortest_first(tokens)
    for batch in track(list(batches(tokens[order], most=count_at_once(model, tokens))), "asking"):

        def compute(batch: Tokens = batch) -> dict[str, Tensor]:
            (part,) = reply_in_batches(model, batch)
            return {"right": part.right, "first": part.first}

        found.append(keep_batch("answers", list(vars(batch).values()), compute, device="cpu"))
    own = order.argsort().cpu()
    return torch.cat([part["right"] for part in found])[own], torch.cat([part["first"] for part in found])[own]


@torch.no_grad()
def last_z(
    model: HookedTransformer, tokens: Tokens, *, layers: int | None = None
) -> Float[Tensor, "prompt layer head d_head"]:
    """Every head's output before `W_O` at the last prompt token, in the first so many layers, or in all."""
    kept, layers = list[Tensor](), layers or model.cfg.n_layers

    def keep(z: Float[Tensor, "prompt pos head d_head"], hook: object) -> None:
        kept.append(z[:, -1].to(model.cfg.device, copy=True))
        if len(kept) == layers:
            raise AllSeen

    hooks: list[Any] = [(f"blocks.{layer}.attn.hook_z", keep) for layer in range(layers)]
    forward_of(model).run(tokens.prompts, tokens.mask, hooks)
    return torch.stack(kept, dim=1)


@torch.no_grad()
def residual_norms(model: HookedTransformer, tokens: Tokens) -> Float[Tensor, " layer"]:
    """Mean length of the residual stream after each block, at the last prompt token; in float64, on the CPU."""
    total = torch.zeros(model.cfg.n_layers, dtype=torch.float64)

    def add(resid: Float[Tensor, "prompt pos d_model"], hook: object, *, layer: int) -> None:
        total[layer] += resid[:, -1].double().norm(dim=-1).sum().cpu()

    layers = range(model.cfg.n_layers)
    hooks: list[Any] = [(f"blocks.{layer}.hook_resid_post", partial(add, layer=layer)) for layer in layers]
    for batch in batches(tokens):
        forward_of(model).run(batch.prompts, batch.mask, hooks)
    return total / len(tokens)


def mean_z(model: HookedTransformer, tokens: Tokens, *, layers: int | None = None) -> MeanZ:
    """Mean head output (before `W_O`) over clean prompts at the last prompt token, in float32 at least.

    Source: Todd et al. 2024, arXiv:2310.15213, where it is called the task-conditioned mean activation.

    Args:
        layers: How many of the first layers are wanted; of the others it is NaN. All unless given.

    Raises:
        ModelError: an activation is NaN or infinite; its layer is named. A TransformerBridge lacks what `check_bridge`
            asks for.
    """
    bridge.check_bridge(model)
    n_layers, layers = model.cfg.n_layers, layers or model.cfg.n_layers
    total = torch.zeros(layers, model.cfg.n_heads, model.cfg.d_head, dtype=torch.float64)
    ordered = tokens[shortest_first(tokens)]
    for batch in track(list(batches(ordered, most=count_at_once(model, tokens))), "mean head outputs"):

        def compute(batch: Tokens = batch) -> dict[str, Tensor]:
            return {"z": last_z(model, batch, layers=layers).double().sum(0)}

        known = [batch.prompts, batch.mask, torch.tensor(layers)]
        total += keep_batch("means", known, compute, device="cpu")["z"]
    broken = [layer for layer in range(layers) if not bool(total[layer].isfinite().all())]
    if broken:
        raise ModelError(
            f"the head outputs of layer {broken[0]} are NaN or infinite on clean prompts; load the model in another "
            "dtype, or check its weights"
        )
    unread = total.new_full((n_layers - layers, *total.shape[1:]), torch.nan)
    mean = torch.cat([total / len(tokens), unread]).to(model.cfg.device)
    return mean if model.cfg.dtype == torch.float64 else mean.float()


def check_mean_z(model: HookedTransformer, z: Tensor, *, what: str, remedy: str) -> None:
    """Raises ShapeMismatch where mean head outputs are of a model with other heads.

    Args:
        what: What is of that shape, as the complaint begins.
        remedy: What to do, as it ends.
    """
    expected = (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head)
    if tuple(z.shape) != expected:
        raise ShapeMismatch(
            f"{what} {tuple(z.shape)} but {model_name(model)} has heads {expected} as (layer, head, d_head); {remedy}"
        )


def path_to_residual(model: HookedTransformer, head: Head, mean: MeanZ) -> Float[Tensor, "d_head d_model"]:
    """What a head's output is multiplied by on its way to the residual stream: `W_O`, in the precision of `mean`.

    Where another norm lies on the way (Gemma 2, OLMo 2), its gain over its scale at the mean outputs of all heads of
    the layer is multiplied in: what they all write is then what the norm makes of the mean. The scale of a single
    prompt differs from that of the mean, and on average is larger.
    """
    weight, norm, scale = forward_of(model).output_path(head.layer)
    path = weight[head.head].to(mean)
    if norm is None:
        return path if scale == 1.0 else scale * path
    # The norms of Hugging Face and of TransformerLens keep their gain in different ways: it is read off numbers of one.
    ones = torch.ones(1, 1, model.cfg.d_model, dtype=model.cfg.dtype, device=weight.device)
    gain = norm(ones)[0, 0].detach().to(mean) * (1 + model.cfg.eps) ** 0.5
    out = torch.einsum("hd,hdm->m", mean[head.layer], weight.to(mean))
    return scale * path * gain / (out.square().mean() + model.cfg.eps).sqrt()
