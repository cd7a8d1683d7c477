"""Which heads and MLPs write the answer into the logits themselves?

The last token's residual stream is a sum: embedding, what every head and MLP adds, biases. With the scale of the final
norm held at what it is on the prompt, a logit is linear in it, and so a sum of as many parts (direct logit attribution;
Elhage et al. 2021, "A mathematical framework for transformer circuits"). Where another norm lies behind attention
(Gemma 2, OLMo 2), its scale is held, too. What a part does by way of later layers is no part of its share.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ivlens.attribution.site import Site, at_last, read_sites
from ivlens.attribution.site_effects import SiteEffects, head_columns
from ivlens.attribution.site_patching import origin, own_twins
from ivlens.attribution.writing import HeldNorm
from ivlens.datasets.task import Task
from ivlens.datasets.task import task as find_task
from ivlens.errors import IvlensError, ModelError, TaskError, as_ivlens_error
from ivlens.forward.makers import forward_of
from ivlens.forward.memory import count_at_once
from ivlens.forward.token_batches import batches
from ivlens.measures import full_precision
from ivlens.models import bridge, loader
from ivlens.models.hooked import IN_16_BITS, model_name
from ivlens.patching.effects import find_queries, rank_prompts
from ivlens.patching.settings import Options, Settings, gather_options
from ivlens.prompts.long_pairs import leave_out_long
from ivlens.prompts.tokens import Tokens, tokenize

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Against = Literal["answers", "vocabulary", "nothing"]
On = Literal["clean", "corrupted"]
BIAS, MLP, EMBEDDING, READOUT = "bias", "MLP", "embedding", "readout"
"""Columns behind those of heads: `b_O`; the MLP; of layer 0 what was there before it; of the last layer the biases of
the final norm and of the unembedding."""


@as_ivlens_error()
def logit_attribution(
    model: HookedTransformer | str | Path,
    task: Task | str | Path,
    *,
    on: On = "clean",
    against: Against = "answers",
    settings: Settings | None = None,
    **options: Unpack[Options],
) -> SiteEffects:
    """The share of every head and MLP in the answer's logit, by what it writes into the last token's stream.

    Exact, with the scale of the final norm held: the shares of a prompt (NaN left out) sum to `baseline`, its logit
    before any soft cap. A share is no effect: what the model would do without the part is not asked.

    >>> shares = ivlens.logit_attribution(model, task)
    >>> shares.columns[-4:], shares.unit
    (('bias', 'MLP', 'embedding', 'readout'), 'logit')
    >>> bool((shares.effects.nansum((1, 2)) - shares.baseline).abs().max() < 1e-3)
    True

    Args:
        model, task: Also by what `ivlens.load` and `ivlens.task` take: a name, a path.
        on: `clean`: prompts that show the task and ask the queries of the AIE; `corrupted`: the prompts of the AIE.
        against: What the answer's logit is the difference to: the mean logit of the `answers` of the other prompts, of
            the `vocabulary`, or `nothing`. Logits themselves mean nothing: all of them may be raised alike.
        settings: All options at once.
        options: Fields of `Settings`, such as `shots=5`.

    Raises:
        IvlensError: no such option or choice.
        TaskError: all answers begin with one token, and it is to be told from the others.
        ModelError: a norm that is neither a LayerNorm nor an RMSNorm, or a stream that is not the sum of its parts.
    """
    chosen = gather_options(Settings, settings, options)
    check_on(on)
    if against not in ("answers", "vocabulary", "nothing"):
        raise IvlensError(f"against is {against!r}; it must be 'answers', 'vocabulary' or 'nothing'")
    task, model = find_task(task), loader.as_model(model)
    bridge.check_bridge(model)
    task = leave_out_long(model, task, shots=chosen.shots, template=chosen.template)
    queries = find_queries(model, task, chosen)
    prompts = own_twins(task, chosen, queries) if on == "clean" else rank_prompts(task, chosen, queries.rank)
    tokens = tokenize(model, prompts).first()
    others = tokens.answers[:, 0].unique()
    if against == "answers" and len(others) < 2:
        raise TaskError(
            f"all answers of task {task.name!r} begin with one token, which cannot be told from others; take "
            "against='vocabulary'"
        )
    parts = split_logits(model, tokens, against=others if against == "answers" else against)
    return SiteEffects(
        effects=parts.parts,
        baseline=parts.logit,
        queries=torch.arange(len(tokens), device=parts.logit.device) % len(queries.rank),
        site=f"share in the logit ({'answer' if against == 'nothing' else f'answer - {against}'})",
        columns=(*head_columns(model), BIAS, MLP, EMBEDDING, READOUT),
        unit="logit",
        settings=chosen,
        **origin(model, task),
    )


class LogitParts(NamedTuple):
    """A logit, or a difference of logits, and what it is the sum of."""

    logit: Float[Tensor, " prompt"]
    parts: Float[Tensor, "prompt layer column"]
    """Heads, then `BIAS`, `MLP`, `EMBEDDING`, `READOUT`; NaN where there is no such part."""


@torch.no_grad()
def split_logits(
    model: HookedTransformer, tokens: Tokens, *, against: Int[Tensor, " token"] | Literal["vocabulary", "nothing"]
) -> LogitParts:
    """The logit of each answer's first token at the last prompt token, part by part; in float32 at least.

    Args:
        against: Tokens whose mean logit is taken away, the answer's own left out.

    Raises:
        ModelError: see `logit_attribution`.
    """
    found = [_split(model, batch, against) for batch in batches(tokens, most=count_at_once(model, tokens))]
    return LogitParts(torch.cat([one.logit for one in found]), torch.cat([one.parts for one in found]))


def _split(model: HookedTransformer, tokens: Tokens, against: Int[Tensor, " token"] | str) -> LogitParts:
    mlps: list[Site] = [] if model.cfg.attn_only else ["mlp_out"]
    seen = read_sites(model, tokens, at_last(tokens), ["heads", "attn_out", "resid_pre", "resid_post", *mlps])
    at = {site: full_precision(value[:, :, 0]) for site, value in seen.items()}
    n_layers, n_heads, final = model.cfg.n_layers, model.cfg.n_heads, at["resid_post"][:, -1]
    readout, name = forward_of(model).readout(), model_name(model)
    held = HeldNorm.at(readout.norm, final, name=f"the final norm of {name}", dtype=model.cfg.dtype)
    logit, direction, bias = _read_out(model, final, held.bias, tokens, against)
    parts = final.new_full((len(tokens), n_layers, n_heads + 4), torch.nan)
    total = at["resid_pre"][:, 0].clone()
    for layer in range(n_layers):
        heads, rest = _attention_parts(model, layer, at["heads"][:, layer], at["attn_out"][:, layer])
        written = [heads, rest[:, None], *(at[site][:, layer, None] for site in mlps)]
        total += torch.cat(written, 1).sum(1)
        shares = [torch.einsum("pnm,pm->pn", held.of(part), direction) for part in written]
        parts[:, layer, : n_heads + len(written) - 1] = torch.cat(shares, 1)
    _check_sum(total, final, f"what attention and MLPs of {name} add", model.cfg.dtype)
    parts[:, 0, n_heads + 2] = torch.einsum("pnm,pm->p", held.of(at["resid_pre"][:, :1]), direction)
    parts[:, -1, n_heads + 3] = bias
    return LogitParts(logit, parts)


def _read_out(
    model: HookedTransformer, final: Tensor, bias: Tensor, tokens: Tokens, against: Int[Tensor, " token"] | str
) -> tuple[Tensor, Tensor, Tensor]:
    """What is asked for, `[prompt]`; its gradient by the normed stream; and what it is of the norm's bias alone."""
    readout, answers = forward_of(model).readout(), tokens.answers[:, 0]

    def ask(normed: Float[Tensor, "prompt d_model"]) -> Float[Tensor, " prompt"]:
        logits = full_precision(readout.head(normed[None])[0])
        own = logits.gather(1, answers.to(logits.device)[:, None])[:, 0]
        if isinstance(against, str):
            return own - (logits.mean(1) if against == "vocabulary" else 0.0)
        others = (against[None] != answers[:, None]).to(logits)
        return own - (logits[:, against.to(logits.device)] * others).sum(1) / others.sum(1)

    with torch.enable_grad():
        normed = readout.norm(final[None].to(model.cfg.dtype))[0].detach().requires_grad_()
        value = ask(normed)
        (direction,) = torch.autograd.grad(value.sum(), normed)
    of_bias = ask(bias.to(normed.dtype).expand_as(normed))
    return value.detach().to(final), direction.to(final), of_bias.to(final)


def _attention_parts(
    model: HookedTransformer, layer: int, z: Float[Tensor, "prompt head d_head"], added: Float[Tensor, "prompt d_model"]
) -> tuple[Float[Tensor, "prompt head d_model"], Float[Tensor, "prompt d_model"]]:
    """What each head adds to the stream, and what is left: `b_O`, and the bias of a norm behind it."""
    path, bias = forward_of(model).output_path(layer), model.blocks[layer].attn.b_O
    heads = torch.einsum("phd,hdm->phm", z, path.weight.to(z))
    rest = torch.zeros_like(added) if bias is None else bias.to(added).expand_as(added)
    if path.norm is not None:
        name = f"the norm behind attention of layer {layer}"
        held = HeldNorm.at(path.norm, heads.sum(1) + rest, name=name, dtype=model.cfg.dtype)
        heads, rest = held.of(heads), held.of(rest[:, None])[:, 0] + held.bias
    heads, rest = path.scale * heads, path.scale * rest
    _check_sum(heads.sum(1) + rest, added, f"what the heads of layer {layer} write", model.cfg.dtype)
    return heads, rest


def _check_sum(found: Tensor, wanted: Tensor, what: str, dtype: torch.dtype) -> None:
    error = float((found - wanted).abs().max() / wanted.abs().max())
    if not error < (0.1 if dtype in IN_16_BITS else 1e-3):
        raise ModelError(f"{what} is not what is in the residual stream (off by {error:.2g}): a logit has no parts")


def check_on(on: str) -> None:
    """Raises IvlensError where it is none of the choices."""
    if on not in ("clean", "corrupted"):
        raise IvlensError(f"on is {on!r}; it must be 'clean' or 'corrupted'")
