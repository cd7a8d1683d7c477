"""What does a head tell a later head's query, key or value, or the logits, directly?

Path patching: a head is given another output at some tokens of a corrupted prompt, and what changes is seen by one
receiver alone, along the residual stream: all heads and MLPs between them, and what else the receiver reads, stay as
they are in the unpatched run. Behind the receiver everything is computed anew. Source: Goldowsky-Dill et al. 2023,
arXiv:2304.05969; Wang et al. 2022, arXiv:2211.00593, who let MLPs between them pass the change on.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Unpack

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ivlens.attribution.site import Given, read_values, spread
from ivlens.attribution.site_effects import SiteEffects, head_columns
from ivlens.attribution.site_patching import Clean, ask, check_clean, origin, put_in
from ivlens.attribution.site_sweep import Cut, cut, run_cut, set_at
from ivlens.attribution.writing import attention_writes
from ivlens.datasets.task import Task
from ivlens.datasets.task import task as find_task
from ivlens.errors import IvlensError, as_ivlens_error
from ivlens.forward.makers import forward_of
from ivlens.forward.rows import FedHead, Rows
from ivlens.forward.token_batches import with_answers
from ivlens.models import loader
from ivlens.patching import hooks
from ivlens.patching.branches import Answers, Branch, Junction
from ivlens.patching.hooks import Hooks
from ivlens.patching.settings import Effect, Options, Settings, gather_options, parse_bytes
from ivlens.prompts.long_pairs import leave_out_long
from ivlens.prompts.roles import Position
from ivlens.prompts.tokens import Tokens
from ivlens.shapes import GIB, Cie, Head
from ivlens.vectors.head_writing import check_head

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

LOGITS = "logits"


class Receiver(NamedTuple):
    """Who reads what a head writes: a head's query, key or value, or the logits (`head` is None)."""

    head: Head | None
    part: Literal["q", "k", "v"] | None

    @classmethod
    def parse(cls, text: str, model: HookedTransformer) -> Receiver:
        """Read `L9H6.q` or `logits`.

        Raises:
            IvlensError: it is neither, or there is no such head or no head before it.
            ModelError: a TransformerBridge does not show all that heads of that layer read.
        """
        if text == LOGITS:
            return cls(None, None)
        match = re.fullmatch(r"(L\d{1,9}H\d{1,9})\.([qkv])", str(text))
        if match is None:
            raise IvlensError(f"receiver is {text!r}; give a head's query, key or value, such as L9H6.q, or {LOGITS!r}")
        head = Head.parse(match[1])
        check_head(head, (model.cfg.n_layers, model.cfg.n_heads))
        if head.layer == 0:
            raise IvlensError(f"no head writes before {head}; give a head of a later layer")
        forward_of(model).check_parts(head.layer)
        return cls(head, match[2])  # pyright: ignore[reportArgumentType]

    def describe(self, model: HookedTransformer) -> str:
        """What is patched: of grouped queries a key or value has other readers, which go on reading it as it was."""
        if self.head is None or self.part is None:
            return LOGITS
        name, n_heads = f"{self.head}.{self.part}", model.cfg.n_heads
        n_shared = model.cfg.n_key_value_heads or n_heads
        if self.part == "q" or n_shared == n_heads:
            return name
        what = {"k": "key", "v": "value"}[self.part]
        return f"{name} ({what} head {self.head.head * n_shared // n_heads}, as {self.head} alone reads it)"

    def n_before(self, model: HookedTransformer) -> int:
        """Layers whose heads it can read."""
        return model.cfg.n_layers if self.head is None else self.head.layer


@as_ivlens_error()
def path_effects(
    model: HookedTransformer | str | Path,
    task: Task | str | Path,
    *,
    receiver: str = LOGITS,
    position: Position = "last",
    clean: Clean = "mean",
    settings: Settings | None = None,
    memory: int | str = 2 * GIB,
    **options: Unpack[Options],
) -> SiteEffects:
    """What each head does to the answer by what it tells a receiver directly, exact, in one pass per prompt.

    A head is given its clean output, and of what it then writes the receiver alone takes notice: heads and MLPs between
    them stay as they are on the corrupted prompt. Unit, prompts and clean values are those of `site_effects`. Source:
    path patching of Wang et al. 2022, arXiv:2211.00593, there with MLPs in between that pass the change on.

    >>> told = ivlens.path_effects(model, task, receiver="L4H0.q", prompts=6, shots=5)
    >>> told.effects.shape, bool(told.effects[:, 4:].isnan().all())  # [prompt layer head]; no later head is read
    (torch.Size([6, 6, 8]), True)

    Args:
        model, task: Also by what `ivlens.load` and `ivlens.task` take: a name, a path.
        receiver: `logits`, or a head's query, key or value, such as `L9H6.q`: `q` at the position itself, `k` and `v`
            as they are read from all positions behind it, too. Of grouped queries, which share keys and values, that
            head alone takes notice.
        position: At which tokens heads are given other outputs; a role or a number, as for `site_effects`.
        clean: `mean` or `own`, as for `site_effects`.
        settings: All options at once.
        options: Fields of `Settings`, such as `shots=5`.
        memory: What may be taken beside the weights, in bytes or such as "2GiB".

    Raises:
        IvlensError: no such receiver, position or option.
        TaskError, PromptError: as for `site_effects`.
        ModelError: a TransformerBridge that does not show what the receiver reads, or NaN or infinite activations.
    """
    chosen, memory = gather_options(Settings, settings, options), parse_bytes(memory)
    check_clean(clean)
    task, model = find_task(task), loader.as_model(model)
    found = Receiver.parse(receiver, model)
    task = leave_out_long(model, task, shots=chosen.shots, template=chosen.template)
    asked = ask(model, task, chosen, [position], clean=clean)
    values = put_in(model, asked.sources[0], "heads", clean)
    baseline, effects = sweep(model, asked.tokens, asked.where[0], values, found, effect=chosen.effect, memory=memory)
    return SiteEffects(
        effects=effects,
        baseline=baseline,
        queries=asked.queries,
        site=f"paths to {found.describe(model)} at {position}",
        columns=head_columns(model),
        unit=chosen.unit,
        settings=chosen,
        **origin(model, task),
    )


def sweep(
    model: HookedTransformer,
    tokens: Tokens,
    where: Bool[Tensor, "prompt pos"],
    values: Given,
    receiver: Receiver,
    *,
    effect: Effect = "prob",
    memory: int = 2 * GIB,
) -> tuple[Float[Tensor, " prompt"], Cie]:
    """What becomes of the answer when each head tells a receiver something else, in one pass a prompt.

    Args:
        where: Tokens at which heads are given other outputs, together; `values` are these, as of the site `heads`.

    Returns:
        The unpatched value per prompt, and patched minus unpatched per head; NaN for heads that the receiver does not
        read.

    Raises:
        ModelError: as for `patching.sweep.sweep`.
    """
    tokens = tokens if effect == "nll" else tokens.first()
    values, where = values.to(model.cfg.device, model.cfg.dtype), where.to(tokens.prompts.device)
    n_heads, n_before = model.cfg.n_heads, receiver.n_before(model)
    own_z = read_values(model, tokens, where, "heads")
    at = n_before - 1 if receiver.head is None else receiver.head.layer
    counts = [n_before * n_heads if layer == at else 0 for layer in range(model.cfg.n_layers)]

    def branch_of(own: Cut, rows: slice) -> Branch:
        new = values if len(values) == 1 else values[rows]

        def branch(junction: Junction, senders: range) -> Rows:
            told = _told(model, own_z[rows], new, senders)
            change = spread(told, own.where).movedim(2, 1) * own.where[:, None, :, None].to(told.device)
            if receiver.head is None:
                return junction.after + change.to(junction.after)
            assert receiver.part is not None
            before = junction.before
            fed = FedHead(receiver.head.head, receiver.part, before + change.to(before))
            return junction.reading.carry(junction.layer, before, fed)

        return branch

    found = run_cut(
        model,
        cut(tokens, where),
        branch_of,
        counts=counts,
        inputs=[where, values],
        memory=memory,
        description=f"patching paths to {receiver.describe(model)}",
    )
    return _effects(model, found, effect, n_before)


def _told(
    model: HookedTransformer, own_z: Tensor, new: Given, senders: range
) -> Float[Tensor, "prompt place sender d_model"]:
    """How much each sender changes what attention adds to the stream, other heads of its layer being as they are."""
    n_heads, parts = model.cfg.n_heads, []
    for layer in range(senders.start // n_heads, -(-senders.stop // n_heads)):
        own, value = own_z[:, layer], new[:, layer]
        one_each = torch.eye(n_heads, dtype=torch.bool, device=own.device)[:, :, None]
        patched = torch.where(one_each, value[:, :, None], own[:, :, None])
        change = attention_writes(model, layer, patched) - attention_writes(model, layer, own)[:, :, None]
        first = layer * n_heads
        parts.append(change[:, :, max(0, senders.start - first) : senders.stop - first].to(own.device))
    return torch.cat(parts, 2)


def _effects(
    model: HookedTransformer, found: Answers, effect: Effect, n_before: int
) -> tuple[Float[Tensor, " prompt"], Cie]:
    value = found.log_prob if effect == "nll" else found.first
    change = (value[:, 1:] - value[:, :1]).unflatten(1, (n_before, model.cfg.n_heads))
    unread = change.new_full((len(change), model.cfg.n_layers - n_before, model.cfg.n_heads), torch.nan)
    return value[:, 0], torch.cat([change, unread], 1)


def loop(
    model: HookedTransformer,
    tokens: Tokens,
    where: Bool[Tensor, "prompt pos"],
    values: Given,
    receiver: Receiver,
    *,
    effect: Effect = "prob",
) -> tuple[Float[Tensor, " prompt"], Cie]:
    """The same as `sweep`, by hooks and four passes for every head and prompt: what `sweep` is held to."""
    tokens, parts = tokens if effect == "nll" else tokens.first(), []
    for row in range(len(tokens)):
        one = tokens[row : row + 1]
        columns = where[row, -one.prompts.shape[1] :].nonzero()[:, 0]
        own = values if len(values) == 1 else values[row : row + 1]
        rows = [
            _hooks_of(model, one, columns, own[0, layer, : len(columns), head], Head(layer, head), receiver)
            for layer in range(receiver.n_before(model))
            for head in range(model.cfg.n_heads)
        ]
        parts.append(hooks.run_hooked(model, one, rows, description="patching path by path"))
    return _effects(model, Answers.joined(parts, dim=0), effect, receiver.n_before(model))


def _hooks_of(
    model: HookedTransformer, one: Tokens, columns: Tensor, value: Tensor, sender: Head, receiver: Receiver
) -> Hooks:
    """What the receiver makes of the change, found by hooks alone."""
    attn_out = f"blocks.{sender.layer}.hook_attn_out"
    set_sender = (f"blocks.{sender.layer}.attn.hook_z", partial(set_at, at=(0, columns, sender.head), value=value))
    plain, patched = _see(model, one, attn_out, []), _see(model, one, attn_out, [set_sender])
    change = partial(_add, columns=columns, change=(patched - plain)[0, columns])
    if receiver.head is None:
        return [(f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", change)]
    layer, head = receiver.head
    part, z = f"blocks.{layer}.attn.hook_{receiver.part}", f"blocks.{layer}.attn.hook_z"
    fed = _see(model, one, part, [(f"blocks.{layer}.hook_resid_pre", change)])
    seen = _see(model, one, z, [(part, partial(set_at, at=..., value=fed))])
    everywhere = (slice(None), slice(None), head)
    return [(z, partial(set_at, at=everywhere, value=seen[:, :, head]))]


@torch.no_grad()
def _see(model: HookedTransformer, one: Tokens, name: str, changes: Hooks) -> Tensor:
    """An activation in a run under hooks."""
    seen: list[Tensor] = []
    forward_of(model).run(*with_answers(one), [*changes, (name, lambda activation, hook: seen.append(activation))])
    return seen[0]


def _add(resid: Tensor, hook: object, *, columns: Tensor, change: Tensor) -> Tensor:
    return set_at(resid, hook, at=(0, columns), value=resid[0, columns] + change.to(resid))
