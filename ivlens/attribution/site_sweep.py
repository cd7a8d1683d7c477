"""Patch a site layer by layer, at whichever tokens, and measure what it carries.

If the MLP of layer l had added its mean clean output at these tokens of a corrupted prompt, how far would the answer
move? Heads at the last token are the sweep of `patching.sweep`; here the site, the tokens and what is put in differ.
`loop` runs the model once for every patch; `sweep` computes the same numbers in one pass: rows branch off the unpatched
run at each layer, and carry all tokens from the first patched one on. Source: Meng et al. 2022, arXiv:2202.05262, who
trace facts over layers and tokens; with clean means, Todd et al. 2024, arXiv:2310.15213.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ivlens.attribution.site import HOOKS, Given, Site, check_site, spread
from ivlens.errors import ModelError
from ivlens.forward.makers import forward_of
from ivlens.forward.memory import Budget, count_at_once
from ivlens.forward.rows import Forward, Rows, SetHeads, SetPart
from ivlens.kept_batches import keep_batch
from ivlens.models.hooked import model_name
from ivlens.patching import branches, hooks
from ivlens.patching.branches import Answers, Branch, Junction
from ivlens.patching.hooks import Hooks
from ivlens.patching.settings import Effect
from ivlens.progress import open_bar
from ivlens.prompts.tokens import Tokens
from ivlens.shapes import GIB

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Effects = Float[Tensor, "prompt layer unit"]
"""Patched minus unpatched; a unit is a head, and of other sites there is one."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Prompts of which the tail, which rows carry up the layers, begins at the first of some tokens.

    What is changed at a token changes nothing before it. The tail is what `Tokens` calls answers: the rest of the
    prompt, and the answer behind it.
    """

    tokens: Tokens
    """Prompts up to that token; as answers, whatever stands behind it."""
    where: Bool[Tensor, "prompt tail"]
    """Those tokens, in the tail."""
    places: Int[Tensor, "prompt answer"]
    """Tokens of the tail that predict those of the answer."""
    asked: Tokens
    """The prompts and answers as they were."""

    def __getitem__(self, rows: slice) -> Cut:
        tokens, asked = self.tokens[rows], self.asked[rows]
        tail = tokens.answers.shape[1]
        # Beyond the end are places of answer tokens that are pads.
        places = self.places[rows, : asked.answers.shape[1]].clamp(max=tail - 1)
        return Cut(tokens=tokens, where=self.where[rows, :tail], places=places, asked=asked)


def cut(tokens: Tokens, where: Bool[Tensor, "prompt pos"]) -> Cut:
    """Cut every prompt at the first token that is `where`; each has one."""
    ids, mask = torch.cat([tokens.prompts, tokens.answers], 1), torch.cat([tokens.mask, tokens.answer_mask], 1)
    first = where.int().argmax(1)
    width, last = ids.shape[1], tokens.prompts.shape[1] - 1
    before = torch.arange(-int(first.max()), 1, device=ids.device) + first[:, None]
    tail = width - int(first.min()) - 1
    own = torch.arange(tail, device=ids.device) + first[:, None]
    places = (last - first)[:, None] + torch.arange(tokens.answers.shape[1], device=ids.device)
    return Cut(
        tokens=Tokens(
            prompts=_columns(ids, before),
            mask=_columns(mask, before),
            answers=_columns(ids, own + 1),
            answer_mask=_columns(mask, own + 1),
        ),
        where=_columns(where, own),
        places=places,
        asked=tokens,
    )


def _columns(
    values: Shaped[Tensor, "prompt pos"], columns: Int[Tensor, "prompt column"]
) -> Shaped[Tensor, "prompt column"]:
    """Those of each prompt; 0 or False beyond the first and the last."""
    inside = (columns >= 0) & (columns < values.shape[1])
    return values.gather(1, columns.clamp(0, values.shape[1] - 1)) * inside


def sweep(
    model: HookedTransformer,
    tokens: Tokens,
    where: Bool[Tensor, "prompt pos"],
    values: Given,
    site: Site,
    *,
    effect: Effect = "prob",
    memory: int = 2 * GIB,
) -> tuple[Float[Tensor, " prompt"], Effects]:
    """What becomes of the answer when a site is given other values at some tokens, one layer (or head) at a time.

    Args:
        tokens: Corrupted prompts and their answers.
        where: The tokens that are patched, together.
        values: What is put there: of each prompt and token, or one for all.
        effect: As for `patching.sweep.sweep`; so are the results.
        memory: Bytes that may be taken beside the model's weights.

    Raises:
        ModelError: a residual stream is NaN or infinite, the block-wise pass differs from the model's own, or a
            TransformerBridge does not compute the site where it is looked for.
        PromptError: `memory` cannot hold a single prompt.
    """
    _check(model, site)
    values, n_units = values.to(model.cfg.device, model.cfg.dtype), model.cfg.n_heads if site == "heads" else 1
    where = where.to(tokens.prompts.device)

    def branch_of(own: Cut, rows: slice) -> Branch:
        at = own.where
        here = values if len(values) == 1 else values[rows]
        return lambda junction, units: _patched(site, junction, units, at, spread(here[:, junction.layer], at), n_units)

    found = run_cut(
        model,
        cut(tokens if effect == "nll" else tokens.first(), where),
        branch_of,
        counts=[n_units] * model.cfg.n_layers,
        inputs=[where, values],
        memory=memory,
        description=f"patching {site}",
    )
    return _effects(found, effect, n_units)


def _patched(
    site: Site, junction: Junction, units: range, where: Bool[Tensor, "p tail"], value: Tensor, n_units: int
) -> Rows:
    """Rows that leave the unpatched run at a layer with other values of a site."""
    layer, before, after = junction.layer, junction.before, junction.after
    if site in ("attn_out", "mlp_out"):
        return junction.reading.carry(layer, before, SetPart(site, where, value))
    if site == "heads":
        one_each = torch.eye(n_units, dtype=torch.bool, device=where.device)[units.start : units.stop]
        change = SetHeads(where[:, None, :, None] & one_each[None, :, None], value[:, None])
        return junction.reading.carry(layer, before, change)
    at = where[:, None, :, None].to(after.device)
    if site == "resid_pre":
        return junction.reading.carry(layer, torch.where(at.to(before.device), value[:, None].to(before), before))
    value = value[:, None].to(after)
    return torch.where(at, before.to(after) + value if site == "layer_out" else value, after)


@torch.no_grad()
def run_cut(
    model: HookedTransformer,
    prompts: Cut,
    branch_of: Any,
    *,
    counts: list[int],
    inputs: list[Tensor],
    memory: int,
    description: str,
) -> Answers:
    """Carry the tails of cut prompts up the layers and read the answer off each row (see `branches.run_branches`).

    Args:
        branch_of: Given a batch of the prompts and which these are, makes the rows that leave the unpatched run.
        inputs: What rows are made from, by which a batch that was kept is known again.
    """
    forward, tokens = forward_of(model), prompts.tokens
    most = count_at_once(model, tokens, sum(counts), climbing=True)
    budget = Budget.of(model, tokens, sum(counts), memory, others_seen=forward.others_seen, most=most)
    parts: list[Answers] = []
    starts = range(0, len(tokens), budget.prompts)
    with open_bar(description, total=len(starts) * len(counts)) as advance:
        for number, start in enumerate(starts, start=1):
            rows = slice(start, start + budget.prompts)
            own = prompts[rows]

            def compute(own: Cut = own, rows: slice = rows) -> dict[str, Tensor]:
                stack = branches.climb(
                    forward, own.tokens, branch_of(own, rows), counts=counts, chunk=budget.rows, advance=advance
                )
                return vars(read_rows(forward, own, stack, budget.logits))

            known = [*vars(own.tokens).values(), own.where, torch.tensor([*counts, rows.start]), *inputs]
            found = keep_batch(description, known, compute, device=model.cfg.device)
            parts.append(Answers(**found))
            advance.move_to(number * len(counts))
    return Answers.joined(parts, dim=0)


def read_rows(forward: Forward, prompts: Cut, stack: Rows, chunk: int) -> Answers:
    """The answer off each row, of whose tail only the tokens that predict it are unembedded."""
    columns = prompts.places.to(stack.device)[:, None, :, None].expand(-1, stack.shape[1], -1, stack.shape[3])
    ends = stack.gather(2, columns)
    parts = ends.split(max(1, chunk // (ends.shape[0] * ends.shape[2])), dim=1)
    return Answers.joined([branches.read_answers(forward.unembed(part), prompts.asked) for part in parts], dim=1)


def loop(
    model: HookedTransformer,
    tokens: Tokens,
    where: Bool[Tensor, "prompt pos"],
    values: Given,
    site: Site,
    *,
    effect: Effect = "prob",
) -> tuple[Float[Tensor, " prompt"], Effects]:
    """The same as `sweep`, by one full forward pass per layer or head: slow, obvious, and what `sweep` is held to."""
    _check(model, site)
    parts = []
    for row in range(len(tokens)):  # Hooks are of the prompts of one pass.
        one = tokens[row : row + 1]
        own = values if len(values) == 1 else values[row : row + 1]
        changed = list(_hooks_of(model, one, where[row : row + 1, -one.prompts.shape[1] :], own, site))
        one = one if effect == "nll" else one.first()
        parts.append(hooks.run_hooked(model, one, changed, description=f"patching {site} one by one"))
    return _effects(Answers.joined(parts, dim=0), effect, model.cfg.n_heads if site == "heads" else 1)


def _hooks_of(model: HookedTransformer, one: Tokens, where: Tensor, values: Given, site: Site) -> Iterator[Hooks]:
    columns = where.nonzero()[:, 1]
    for layer in range(model.cfg.n_layers):
        value = spread(values[:, layer], where)[0, columns]
        names = [f"blocks.{layer}.{at}" for at in HOOKS[site]]
        if site == "heads":
            for head in range(model.cfg.n_heads):
                yield [(names[0], partial(set_at, at=(0, columns, head), value=value[:, head]))]
        elif site == "layer_out":
            before: list[Tensor] = []
            yield [(names[0], partial(_keep, kept=before)), (names[1], partial(_add_to, before, columns, value))]
        else:
            yield [(names[0], partial(set_at, at=(0, columns), value=value))]


def set_at(activation: Tensor, hook: object, *, at: Any, value: Tensor) -> Tensor:
    """A hook that sets an activation, at what is to be said."""
    activation = activation.clone()
    activation[at] = value.to(activation)
    return activation


def _keep(activation: Tensor, hook: object, *, kept: list[Tensor]) -> None:
    kept[:] = [activation]


def _add_to(before: list[Tensor], columns: Tensor, value: Tensor, activation: Tensor, hook: object) -> Tensor:
    return set_at(activation, hook, at=(0, columns), value=before[0][0, columns].to(activation) + value.to(activation))


def _effects(found: Answers, effect: Effect, n_units: int) -> tuple[Float[Tensor, " prompt"], Effects]:
    value = found.log_prob if effect == "nll" else found.first
    return value[:, 0], (value[:, 1:] - value[:, :1]).unflatten(1, (-1, n_units))


def _check(model: HookedTransformer, site: str) -> None:
    check_site(model, site)
    if model.cfg.attention_dir != "causal":
        raise ModelError(f"{model_name(model)} reads in both directions; patching a token needs a causal model")
